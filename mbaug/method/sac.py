"""SAC with a learned temperature (Haarnoja et al. 2018b) for a population of agents: the baseline, in the shape of `td3`."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from mbaug.checks import Count, Layers, Positive, Share, require, settings
from mbaug.method import networks
from mbaug.method.algorithm import Algorithm, Explore
from mbaug.method.networks import PLAIN, TWIN, Actions, Adam, Arithmetic, Critics, Generators, Losses, Noise, States, Values
from mbaug.method.transitions import Batch


@settings
class SAC:
    """Soft actor-critic with a learned temperature."""

    hidden: Layers = (256, 256)  # units per layer; SAC
    discount: Share = 0.99  # gamma, per step; SAC
    target_rate: Share = 0.005  # tau, per update; SAC
    learning_rate: Positive = 1e-3  # Adam, actor and critics; Tianshou's MuJoCo benchmark, the strongest published SAC we know
    temperature_learning_rate: Positive = 3e-4  # Adam, log alpha; same source
    batch_size: Count = 256  # B, transitions; SAC
    policy_delay: Count = 1  # every update also updates the actor; SAC
    initial_temperature: Positive = 1.0  # alpha at the start; SAC code
    target_entropy_per_action: float = -1.0  # nats per action dimension; SAC
    log_std_min: float = -20.0  # of the Gaussian before tanh; SAC code
    log_std_max: float = 2.0  # of the Gaussian before tanh; SAC code

    def __post_init__(self) -> None:
        low, high = self.log_std_min, self.log_std_max
        require(low < high, f"log_std_min is {low}, but it must be below log_std_max = {high}")


@dataclass(frozen=True, eq=False)
class GaussianActor:
    """The mean and log standard deviation of SAC's Gaussian before tanh."""

    network: networks.Perceptron
    log_std_min: float
    log_std_max: float

    def __call__(self, state: States) -> tuple[Actions, Actions]:
        mean, log_std = self.network(state).chunk(2, dim=-1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)


@dataclass(frozen=True, eq=False)
class Agent:
    """P agents: their networks, the target critics, log alpha and Adam's moments."""

    actor: GaussianActor
    critics: Critics
    target_critics: Critics
    log_temperature: Float[Tensor, " padded"]  # agent k's is at index k; padded as in `allocate`
    moments: dict[str, Adam]


def create(state_size: int, action_size: int, settings: SAC, generators: Generators, arithmetic: Arithmetic = PLAIN) -> Agent:
    """Returns P = len(generators) fresh agents; the target critics start as copies."""
    actor = networks.perceptron((state_size, *settings.hidden, 2 * action_size), generators, arithmetic)
    critics = networks.perceptron((state_size + action_size, *settings.hidden, 1), [*generators] * 2, arithmetic)
    log_temperature = networks.allocate(len(generators), (0, 1), arithmetic.dtype).to(arithmetic.device)
    log_temperature.add_(math.log(settings.initial_temperature)).requires_grad_()
    learned = {"actor": actor.flat, "critics": critics.flat, "log_temperature": log_temperature}
    moments = {name: Adam.zeros(flat) for name, flat in learned.items()}
    policy = GaussianActor(actor, settings.log_std_min, settings.log_std_max)
    return Agent(policy, Critics(critics), Critics(critics.copy()), log_temperature, moments)


def sample(actor: GaussianActor, state: States, normal: Actions) -> tuple[Actions, Values]:
    """Returns a = tanh(u), u = mu(s) + sigma(s) n, and log pi(a|s) = log N(u) - sum log(1 - tanh(u)^2).

    The correction is written as 2 (log 2 - u - softplus(-2u)), which stays finite where tanh saturates.
    Source: Haarnoja et al. 2018b, appendix C.
    """
    mean, log_std = actor(state)
    before = mean + log_std.exp() * normal
    log_density = -0.5 * normal.square() - log_std - 0.5 * math.log(2 * math.pi)
    correction = 2 * (math.log(2) - before - softplus(-2 * before))
    return before.tanh(), (log_density - correction).sum(dim=-1)


def temperature(agent: Agent) -> Losses:
    """Returns alpha of each agent, without gradient."""
    return agent.log_temperature.detach()[: agent.actor.network.number].exp()


@torch.no_grad()
def critic_target(agent: Agent, batch: Batch, settings: SAC, noise: Actions) -> Values:
    """y = r + gamma (1 - d) (min_i Q'_i(s', a') - alpha log pi(a'|s')), a' from the current actor.

    Source: Haarnoja et al. 2018b, equations 3 and 5.
    """
    next_action, log_density = sample(agent.actor, batch.next_state, noise)
    next_value = agent.target_critics(batch.next_state, next_action).amin(dim=TWIN)
    soft_value = next_value - temperature(agent).unsqueeze(-1) * log_density
    return batch.reward + settings.discount * (1 - batch.terminal) * soft_value


def critic_loss(critics: Critics, batch: Batch, target: Values) -> Losses:
    """L = sum_i mean (Q_i(s, a) - y)^2 / 2. Source: Haarnoja et al. 2018b, equation 5."""
    return 0.5 * (critics(batch.state, batch.action) - target).square().mean(dim=-1).sum(dim=TWIN)


def actor_loss(
    actor: GaussianActor,
    critics: Critics,
    batch: Batch,
    alpha: Losses,
    noise: Actions,
    over_critics: Callable[..., Tensor] = torch.amin,
) -> tuple[Losses, Losses]:
    """L = mean (alpha log pi(a|s) - min_i Q_i(s, a)), and mean log pi.

    `over_critics` reduces the twin axis, by default to the minimum.
    Source: Haarnoja et al. 2018b, equation 9.
    """
    action, log_density = sample(actor, batch.state, noise)
    value = over_critics(critics.frozen(batch.state, action), dim=TWIN)
    return (alpha.unsqueeze(-1) * log_density - value).mean(dim=-1), log_density.detach().mean(dim=-1)


def temperature_loss(log_temperature: Losses, log_density: Losses, target_entropy: float) -> Losses:
    """L = -log alpha (mean log pi + H): alpha grows while the entropy is below H.

    Source: Haarnoja et al. 2018b, equation 18; log alpha in place of alpha, as in the authors' code.
    """
    return -log_temperature * (log_density + target_entropy)


def update(
    agent: Agent,
    batch: Batch,
    settings: SAC,
    noise: Noise,
    policy_step: bool,
    loss: Callable = actor_loss,
) -> None:
    """Updates critics, actor, temperature and target critics, in place.

    The actor and the temperature are updated only in a policy step, which is every
    `policy_delay`-th update. `noise` holds standard normals for the actions at s' and at s.
    """
    rate, actor, critics = settings.learning_rate, agent.actor.network, agent.critics.network
    target = critic_target(agent, batch, settings, noise[0])
    losses = critic_loss(agent.critics, batch, target)
    networks.adam_step(losses, rate, (critics.flat, agent.moments["critics"]))
    if policy_step:
        losses, log_density = loss(agent.actor, agent.critics, batch, temperature(agent), noise[1])
        networks.adam_step(losses, rate, (actor.flat, agent.moments["actor"]))
        target_entropy = settings.target_entropy_per_action * batch.action.shape[-1]
        losses = temperature_loss(agent.log_temperature[: len(losses)], log_density, target_entropy)
        learned = agent.log_temperature, agent.moments["log_temperature"]
        networks.adam_step(losses, settings.temperature_learning_rate, learned)
    networks.soft_update(agent.target_critics.network, critics, settings.target_rate)


@torch.no_grad()
def greedy(agent: Agent, state: States) -> Actions:
    """Returns tanh(mu(s)): the action of an evaluation."""
    return agent.actor(state)[0].tanh()


def explorer(agent: Agent, number: int, settings: SAC) -> Explore:
    """Returns a = tanh(mu(s) + sigma(s) n) of one agent, as a NumPy function of s and n."""
    forward = networks.numpy_forward(agent.actor.network, number)

    def explore(state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        mean, log_std = np.split(forward(state), 2)
        log_std = np.clip(log_std, settings.log_std_min, settings.log_std_max)
        return np.tanh(mean + np.exp(log_std) * normal)

    return explore


ALGORITHM = Algorithm(
    settings=SAC,
    create=create,
    critic_target=critic_target,
    update=update,
    online_loss=actor_loss,
    greedy=greedy,
    explorer=explorer,
    carried={"actor": ("actor", "log_temperature"), "critics": ("critics",)},
    normals=2,  # for the actions at s' and at s
)
