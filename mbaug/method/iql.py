"""IQL (Kostrikov, Nair & Levine 2021, arXiv 2110.06169) for a population of agents, in the shape of `td3`.

The critics learn from the values of states, and a state's value is an expectile of its recorded actions' values. So the
critics never evaluate an action outside the data. The actor clones the recorded actions, the better ones more.

Where it differs from the authors' code: 1. the actor's learning rate stays as it is (theirs decays along a cosine, offline).
2. Parameters start as torch.nn.Linear's do (theirs are orthogonal). 3. Rewards are used as they are recorded, so that values are
in the unit of every other algorithm. Theirs are scaled by the range of a dataset's returns; here one factor scales advantages.
4. States are standardised. 5. There are 200,000 offline updates instead of a million. 6. Online, nothing is learned in the first
5,000 steps (theirs learns from the first). 7. Recorded actions are not clipped to +-(1 - 1e-5).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug.checks import Count, Layers, Positive, Share, require, settings
from mbaug.method import networks
from mbaug.method.algorithm import Algorithm, Explore
from mbaug.method.networks import PLAIN, TWIN, Actions, Actor, Adam, Arithmetic, Critics, Generators, Losses, Noise, Values
from mbaug.method.td3 import critic_loss, greedy
from mbaug.method.transitions import Batch


@settings
class IQL:
    """Implicit Q-learning, with the authors' numbers for MuJoCo."""

    hidden: Layers = (256, 256)  # units per layer, all three networks
    discount: Share = 0.99  # gamma, per step
    target_rate: Share = 0.005  # tau of the target critics, per update
    learning_rate: Positive = 3e-4  # Adam, all three networks
    batch_size: Count = 256  # B, transitions
    policy_delay: Count = 1  # every update also updates the actor
    expectile: Share = 0.7  # a state's value is this expectile of its actions' values
    inverse_temperature: Positive = 3.0  # beta of the weights exp(beta c A)
    # c; ours: theirs, 1,000 / (range of returns), is 0.32 on our Hopper pool and 0.19 on HalfCheetah's
    reward_scale: Positive = 0.25
    largest_weight: Positive = 100.0  # upper limit of a cloned action's weight
    log_std_min: float = -5.0  # bounds of log sigma, which is the same in every state
    log_std_max: float = 2.0

    def __post_init__(self) -> None:
        low, high = self.log_std_min, self.log_std_max
        require(low < high, f"log_std_min is {low}, but it must be below log_std_max = {high}")


@dataclass(frozen=True, eq=False)
class Agent:
    """P agents: networks, target critics and Adam's moments. The policy is N(pi(s), sigma^2)."""

    actor: Actor
    log_std: Float[Tensor, " padded"]  # log sigma, the same in every state; agent by agent, padded as `allocate` says
    critics: Critics
    value: Critics  # V(s): one network for each agent, so the first axis of its result has one entry
    target_critics: Critics
    moments: dict[str, Adam]


def create(state_size: int, action_size: int, settings: IQL, generators: Generators, arithmetic: Arithmetic = PLAIN) -> Agent:
    """Returns P = len(generators) fresh agents: the target critics are copies, and sigma is 1."""
    actor = networks.perceptron((state_size, *settings.hidden, action_size), generators, arithmetic)
    critics = networks.perceptron((state_size + action_size, *settings.hidden, 1), [*generators] * 2, arithmetic)
    value = networks.perceptron((state_size, *settings.hidden, 1), generators, arithmetic)
    log_std = networks.allocate(len(generators), (0, action_size), arithmetic.dtype).to(arithmetic.device).requires_grad_()
    learned = {"actor": actor.flat, "log_std": log_std, "critics": critics.flat, "value": value.flat}
    moments = {name: Adam.zeros(flat) for name, flat in learned.items()}
    return Agent(Actor(actor), log_std, Critics(critics), Critics(value, twins=1), Critics(critics.copy()), moments)


def clipped_log_std(agent: Agent, action_size: int, settings: IQL) -> Float[Tensor, "population 1 action"]:
    """Returns log sigma of each agent's policy, clipped."""
    population = agent.actor.network.number
    rows = agent.log_std[: population * action_size].view(population, 1, action_size)
    return rows.clamp(settings.log_std_min, settings.log_std_max)


def value_loss(value: Values, target: Values, expectile: float) -> Losses:
    """L = mean |tau - 1(u < 0)| u^2, u = Q - V: V becomes Q's expectile tau. Source: Kostrikov et al. 2021, equation 5."""
    surplus = target - value
    weight = (expectile - (surplus < 0).to(surplus)).abs()
    return (weight * surplus.square()).mean(dim=-1)


@torch.no_grad()
def critic_target(agent: Agent, batch: Batch, settings: IQL, noise: Actions) -> Values:
    """y = r + gamma (1 - d) V(s'), which needs no action at s'. Source: Kostrikov et al. 2021, equation 6."""
    return batch.reward + settings.discount * (1 - batch.terminal) * agent.value(batch.next_state)[0]


def actor_loss(
    mean: Actions,
    log_std: Float[Tensor, "population 1 action"],
    action: Actions,
    advantage: Values,
    settings: IQL,
) -> Losses:
    """L = -mean min(exp(beta c (Q - V)), 100) log pi(a|s).

    Source: Kostrikov et al. 2021, equation 7; the authors' code for the clip at 100.
    """
    scaled = settings.inverse_temperature * settings.reward_scale * advantage
    weight = scaled.exp().clamp(max=settings.largest_weight)
    density = -0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    return -(weight * density.sum(dim=-1)).mean(dim=-1)


def update(
    agent: Agent,
    batch: Batch,
    settings: IQL,
    noise: Noise,
    policy_step: bool,
    loss: Callable = actor_loss,
) -> None:
    """Updates values, actor, critics and target critics, in this order, in place, without `noise`.

    The actor is updated only in a policy step, which is every `policy_delay`-th update.
    """
    rate, actor, critics = settings.learning_rate, agent.actor.network, agent.critics.network
    least = agent.target_critics(batch.state, batch.action).amin(dim=TWIN)  # targets have no gradient
    losses = value_loss(agent.value(batch.state)[0], least, settings.expectile)
    networks.adam_step(losses, rate, (agent.value.network.flat, agent.moments["value"]))
    if policy_step:
        advantage = least - agent.value(batch.state)[0].detach()
        log_std = clipped_log_std(agent, batch.action.shape[-1], settings)
        losses = loss(agent.actor(batch.state), log_std, batch.action, advantage, settings)
        learned = (actor.flat, agent.moments["actor"]), (agent.log_std, agent.moments["log_std"])
        networks.adam_step(losses, rate, *learned)
    target = critic_target(agent, batch, settings, noise[0])
    networks.adam_step(critic_loss(agent.critics, batch, target), rate, (critics.flat, agent.moments["critics"]))
    networks.soft_update(agent.target_critics.network, critics, settings.target_rate)


def explorer(agent: Agent, number: int, settings: IQL) -> Explore:
    """Returns a = clip(pi(s) + sigma n, -1, 1) of one agent, as a NumPy function of s and n."""
    forward, size = networks.numpy_forward(agent.actor.network, number), agent.actor.network.sizes[-1]
    log_std = agent.log_std.detach()[number * size : (number + 1) * size].numpy()  # a view: it stays current
    low, high = settings.log_std_min, settings.log_std_max
    return lambda state, normal: np.clip(np.tanh(forward(state)) + np.exp(np.clip(log_std, low, high)) * normal, -1, 1)


ALGORITHM = Algorithm(
    settings=IQL,
    create=create,
    critic_target=critic_target,
    update=update,
    online_loss=actor_loss,
    offline_loss=actor_loss,
    greedy=greedy,
    explorer=explorer,
    carried={"actor": ("actor", "log_std"), "critics": ("critics", "value")},
)
