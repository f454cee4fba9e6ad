"""IQL (Kostrikov, Nair & Levine 2021, arXiv 2110.06169) for a population of agents, in the shape of `td3`.

The critics learn from the values of states, and a state's value is an expectile of its recorded actions' values: no action is
asked about that the data do not hold. The actor clones the recorded actions, the better ones more.

Where it differs from the authors' code: 1. the actor's learning rate stays as it is (theirs decays along a cosine, offline).
2. Parameters start as torch.nn.Linear's do (theirs are orthogonal). 3. Rewards are used as they are recorded (theirs are scaled
by the range of a dataset's returns): values are in the unit of every other algorithm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug.checks import Count, Layers, Positive, Share, settings
from mbaug.method import networks
from mbaug.method.algorithm import Algorithm, as_drawn
from mbaug.method.networks import TWIN, Actor, Adam, Critics, descend
from mbaug.method.td3 import critic_loss
from mbaug.method.transitions import Batch


@settings
class IQL:
    """Implicit Q-learning, with the authors' numbers for MuJoCo."""

    hidden: Layers = (256, 256)  # units a layer, all three networks
    discount: Share = 0.99  # gamma, per step
    target_rate: Share = 0.005  # tau of the target critics, per update
    learning_rate: Positive = 3e-4  # Adam, all three networks
    batch_size: Count = 256  # B, transitions
    policy_delay: Count = 1  # every update moves the actor
    expectile: Share = 0.7  # of the actions' values, that is a state's value
    inverse_temperature: Positive = 3.0  # beta of the weights exp(beta A)
    largest_weight: Positive = 100.0  # of a cloned action
    log_std_min: float = -5.0  # of the Gaussian policy, which is the same in every state
    log_std_max: float = 2.0


@dataclass(frozen=True, eq=False)
class Value:
    """V(s) = MLP(s)."""

    network: networks.Perceptron

    def __call__(self, state: Float[Tensor, "population batch state"]) -> Float[Tensor, "population batch"]:
        return self.network(state).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Agent:
    """P agents: their networks, the target critics, and the moments of the Adams. The policy is N(pi(s), sigma^2)."""

    actor: Actor
    log_std: Float[Tensor, " padded"]  # log sigma, the same in every state; agent by agent, padded as `allocate` says
    critics: Critics
    value: Value
    target_critics: Critics
    actor_moments: Adam
    log_std_moments: Adam
    critics_moments: Adam
    value_moments: Adam


def create(
    state_size: int,
    action_size: int,
    settings: IQL,
    generators: Sequence[torch.Generator],
    arithmetic: networks.Arithmetic = networks.PLAIN,
) -> Agent:
    """Returns P = len(generators) fresh agents; the target critics start as copies, sigma at 1."""

    def network(inputs: int, outputs: int, copies: int = 1) -> networks.Perceptron:
        return networks.perceptron((inputs, *settings.hidden, outputs), [*generators] * copies, arithmetic)

    actor, critics = network(state_size, action_size), network(state_size + action_size, 1, copies=2)
    value = network(state_size, 1)
    log_std = networks.allocate(len(generators), (0, action_size), arithmetic.dtype).to(arithmetic.device)
    parameters = actor.flat, log_std.requires_grad_(), critics.flat, value.flat
    parts = Actor(actor), log_std, Critics(critics), Value(value), Critics(critics.copy())
    return Agent(*parts, *map(Adam.zeros, parameters))


def log_std(agent: Agent, action_size: int, settings: IQL) -> Float[Tensor, "population 1 action"]:
    """Returns log sigma of each agent's policy, clipped."""
    population = agent.actor.network.population
    rows = agent.log_std[: population * action_size].view(population, 1, action_size)
    return rows.clamp(settings.log_std_min, settings.log_std_max)


def value_loss(
    value: Float[Tensor, "population batch"], target: Float[Tensor, "population batch"], expectile: float
) -> Float[Tensor, " population"]:
    """L = mean |tau - 1(u < 0)| u^2 with u = Q - V: V becomes the expectile tau of Q over the recorded actions.

    Source: Kostrikov et al. 2021, equation 5.
    """
    surplus = target - value
    weight = (expectile - (surplus < 0).to(surplus)).abs()
    return (weight * surplus.square()).mean(dim=-1)


@torch.no_grad()
def critic_target(
    agent: Agent, batch: Batch, settings: IQL, noise: Float[Tensor, "population batch action"]
) -> Float[Tensor, "population batch"]:
    """y = r + gamma (1 - d) V(s'): no action at s' is asked about. Source: Kostrikov et al. 2021, equation 6."""
    return batch.reward + settings.discount * (1 - batch.terminal) * agent.value(batch.next_state)


def actor_loss(
    mean: Float[Tensor, "population batch action"],
    log_std: Float[Tensor, "population 1 action"],
    action: Float[Tensor, "population batch action"],
    advantage: Float[Tensor, "population batch"],
    settings: IQL,
) -> Float[Tensor, " population"]:
    """L = -mean min(exp(beta (Q - V)), 100) log pi(a|s). Source: Kostrikov et al. 2021, equation 7, the clip in the code."""
    weight = (settings.inverse_temperature * advantage).exp().clamp(max=settings.largest_weight)
    density = -0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    return -(weight * density.sum(dim=-1)).mean(dim=-1)


def update(
    agent: Agent,
    batch: Batch,
    noise: Float[Tensor, "1 population batch action"],
    settings: IQL,
    gradient_step: int,
    loss: Callable[..., Float[Tensor, " population"]] = actor_loss,
) -> None:
    """Moves the values, the actor, the critics and the target critics, in this order, in place.

    `noise` is not used; the actor's loss is the same offline and online.
    """
    rate, value, actor, critics = settings.learning_rate, agent.value.network, agent.actor.network, agent.critics.network
    with torch.no_grad():
        least = agent.target_critics(batch.state, batch.action).amin(dim=TWIN)
    descend(value_loss(agent.value(batch.state), least, settings.expectile), value.flat, agent.value_moments, rate)
    with torch.no_grad():
        advantage = least - agent.value(batch.state)
    spread = log_std(agent, batch.action.shape[-1], settings)
    losses = loss(agent.actor(batch.state), spread, batch.action, advantage, settings).sum()
    gradients = torch.autograd.grad(losses, (actor.flat, agent.log_std))
    agent.actor_moments.step(actor.flat, gradients[0], rate)
    agent.log_std_moments.step(agent.log_std, gradients[1], rate)
    target = critic_target(agent, batch, settings, noise[0])
    descend(critic_loss(agent.critics, batch, target), critics.flat, agent.critics_moments, rate)
    networks.track(agent.target_critics.network, critics, settings.target_rate)


@torch.no_grad()
def greedy(agent: Agent, state: Float[Tensor, "population batch state"]) -> Float[Tensor, "population batch action"]:
    """Returns pi(s): the action of an evaluation."""
    return agent.actor(state)


def explorer(agent: Agent, number: int, settings: IQL) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a = clip(mean(s) + sigma n, -1, 1) of agent `number`, as a NumPy function of a state and a standard normal n."""
    forward, size = networks.act_alone(agent.actor.network.layers, number), agent.actor.network.sizes[-1]
    spread = agent.log_std.detach()[number * size : (number + 1) * size].numpy()  # the same memory: it learns on

    def explore(state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        sigma = np.exp(np.clip(spread, settings.log_std_min, settings.log_std_max))
        return np.clip(np.tanh(forward(state)) + sigma * normal, -1, 1)

    return explore


ALGORITHM = Algorithm(
    settings=IQL,
    create=create,
    normals=1,
    noise=as_drawn,
    critic_target=critic_target,
    update=update,
    offline_loss=actor_loss,
    online_loss=actor_loss,
    greedy=greedy,
    explorer=explorer,
    carried={"actor": ("actor", "log_std"), "critics": ("critics", "value")},
)
