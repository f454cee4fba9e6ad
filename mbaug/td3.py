"""TD3 (Fujimoto, van Hoof & Meger 2018) and TD3+BC (Fujimoto & Gu 2021) for a population of agents.

Every function keeps the population axis: a loss is a vector of P numbers, one an agent. Offline and online differ by which
actor loss is passed to `update`, not by a flag inside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import engine, networks
from mbaug.engine import Adam
from mbaug.networks import TWIN, Actor, Critics
from mbaug.settings import TD3
from mbaug.transitions import Batch

NORMALS = 1  # standard normal vectors of an action's size that an update needs for each transition


@dataclass(frozen=True, eq=False)
class Agent:
    """P agents: their networks, slowly following targets, and the moments of both Adams."""

    actor: Actor
    critics: Critics
    target_actor: Actor
    target_critics: Critics
    actor_moments: Adam
    critics_moments: Adam


def create(
    state_size: int,
    action_size: int,
    settings: TD3,
    generators: Sequence[torch.Generator],
    precision: str = "float32",
    device: str = "cpu",
) -> Agent:
    """Returns P = len(generators) fresh agents; the targets start as copies."""
    actor = networks.actor(state_size, action_size, settings.hidden, generators, precision, device)
    critics = networks.critics(state_size, action_size, settings.hidden, generators, precision, device)
    return Agent(
        actor,
        critics,
        Actor(actor.network.copy()),
        Critics(critics.network.copy()),
        Adam.zeros(actor.network.flat),
        Adam.zeros(critics.network.flat),
    )


def noise(normal: Float[Tensor, "..."], settings: TD3) -> Float[Tensor, "..."]:
    """Returns epsilon = clip(sigma~ n, -c, c) for standard normal n: the smoothing of the target action."""
    return (settings.target_noise * normal).clamp(-settings.target_noise_clip, settings.target_noise_clip)


@torch.no_grad()
def critic_target(
    agent: Agent, batch: Batch, settings: TD3, noise: Float[Tensor, "population batch action"]
) -> Float[Tensor, "population batch"]:
    """y = r + gamma (1 - d) min_i Q'_i(s', pi'(s') + epsilon).

    Source: Fujimoto et al. 2018, Algorithm 1; the target action is clipped to [-1, 1].
    """
    next_action = (agent.target_actor(batch.next_state) + noise).clamp(-1, 1)
    next_value = agent.target_critics(batch.next_state, next_action).amin(dim=TWIN)
    return batch.reward + settings.discount * (1 - batch.terminal) * next_value


def critic_loss(critics: Critics, batch: Batch, target: Float[Tensor, "population batch"]) -> Float[Tensor, " population"]:
    """L = sum_i mean (Q_i(s, a) - y)^2. Source: Fujimoto et al. 2018, Algorithm 1."""
    return (critics(batch.state, batch.action) - target).square().mean(dim=-1).sum(dim=TWIN)


def actor_loss(actor: Actor, critics: Critics, batch: Batch, settings: TD3) -> Float[Tensor, " population"]:
    """L = -mean Q_1(s, pi(s)): the online loss. Source: Fujimoto et al. 2018, Algorithm 1."""
    return -critics.first(batch.state, actor(batch.state))[0].mean(dim=-1)


def actor_loss_bc(actor: Actor, critics: Critics, batch: Batch, settings: TD3) -> Float[Tensor, " population"]:
    """L = -lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2 with lambda = alpha / mean |Q_1|: the offline loss.

    lambda is held fixed: it only scales. The second mean runs over the batch and the action's dimensions.
    Source: Fujimoto & Gu 2021, equation 3 to 5.
    """
    action = actor(batch.state)
    value = critics.first(batch.state, action)[0]
    scale = settings.behaviour_weight / value.detach().abs().mean(dim=-1)
    return -scale * value.mean(dim=-1) + (action - batch.action).square().mean(dim=(-1, -2))


@torch.no_grad()
def track(target: networks.Perceptron, online: networks.Perceptron, rate: float) -> None:
    """theta' <- (1 - tau) theta' + tau theta, in place."""
    target.flat.lerp_(online.flat, rate)


def update(
    agent: Agent,
    batch: Batch,
    noise: Float[Tensor, "1 population batch action"],
    settings: TD3,
    gradient_step: int,
    loss: Callable[..., Float[Tensor, " population"]] | None = actor_loss,
) -> None:
    """Moves the critics and, at every `policy_delay`-th gradient step, the actor and the targets, in place.

    Args:
        agent: P agents.
        batch: B transitions for each.
        noise: what `noise` returned, with a leading axis of NORMALS.
        settings: of TD3.
        gradient_step: the number of this update, counted from 1.
        loss: of the actor: `actor_loss` online, `actor_loss_bc` offline; None: the actor stays as it is.
    """
    target = critic_target(agent, batch, settings, noise[0])
    critics, actor = agent.critics.network, agent.actor.network
    engine.descend(critic_loss(agent.critics, batch, target), critics.flat, agent.critics_moments, settings.learning_rate)
    if gradient_step % settings.policy_delay == 0:
        if loss is not None:
            losses = loss(agent.actor, agent.critics, batch, settings)
            engine.descend(losses, actor.flat, agent.actor_moments, settings.learning_rate)
        track(agent.target_critics.network, critics, settings.target_rate)
        track(agent.target_actor.network, actor, settings.target_rate)


# --- acting ---------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(agent: Agent, state: Float[Tensor, "population batch state"]) -> Float[Tensor, "population batch action"]:
    """Returns pi(s): the action of an evaluation."""
    return agent.actor(state)


def explorer(agent: Agent, number: int, settings: TD3) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a = clip(pi(s) + sigma n, -1, 1) of agent `number`, as a NumPy function of a state and a standard normal n."""
    forward = engine.act_alone(agent.actor.network.layers, number)

    def explore(state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        return np.clip(np.tanh(forward(state)) + settings.exploration_noise * normal, -1, 1)

    return explore
