"""TD3 (Fujimoto, van Hoof & Meger 2018) and TD3+BC (Fujimoto & Gu 2021) for a population of agents.

Every function keeps the population axis: a loss is a vector of P numbers, one per agent. Offline
and online differ only in the actor loss that is passed to `update`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug.checks import Count, Layers, NotNegative, Positive, Share, settings
from mbaug.method import networks
from mbaug.method.algorithm import Algorithm, Explore
from mbaug.method.networks import (
    PLAIN,
    TWIN,
    Actions,
    Actor,
    Adam,
    Arithmetic,
    Critics,
    Generators,
    Losses,
    Noise,
    States,
    Values,
)
from mbaug.method.transitions import Batch


@settings
class TD3:
    """TD3 and, with the behaviour-cloning term, TD3+BC. Sources: the papers, their code, the first author's repository [C]."""

    hidden: Layers = (256, 256)  # units per layer, actor and critics; TD3 code, C
    discount: Share = 0.99  # gamma, per step; TD3
    target_rate: Share = 0.005  # tau, per update of the targets; TD3
    learning_rate: Positive = 3e-4  # Adam, actor and critics; TD3 code, C
    batch_size: Count = 256  # B, transitions; TD3 code, C
    policy_delay: Count = 2  # d, critic updates per actor update; TD3
    target_noise: NotNegative = 0.2  # sigma~, of an action in [-1, 1]; TD3
    target_noise_clip: NotNegative = 0.5  # c, of an action in [-1, 1]; TD3
    exploration_noise: NotNegative = 0.1  # sigma, of an action in [-1, 1]; TD3, C
    behaviour_weight: Positive = 2.5  # alpha of lambda = alpha / mean|Q|, the weight of Q; TD3+BC, C


@dataclass(frozen=True, eq=False)
class Agent:
    """P agents: their networks, the target networks, and Adam's moments for actor and critics."""

    actor: Actor
    critics: Critics
    target_actor: Actor
    target_critics: Critics
    moments: dict[str, Adam]


def create(state_size: int, action_size: int, settings: TD3, generators: Generators, arithmetic: Arithmetic = PLAIN) -> Agent:
    """Returns P = len(generators) fresh agents; the targets start as copies."""
    actor = networks.perceptron((state_size, *settings.hidden, action_size), generators, arithmetic)
    critics = networks.perceptron((state_size + action_size, *settings.hidden, 1), [*generators] * 2, arithmetic)
    moments = {"actor": Adam.zeros(actor.flat), "critics": Adam.zeros(critics.flat)}
    return Agent(Actor(actor), Critics(critics), Actor(actor.copy()), Critics(critics.copy()), moments)


def smoothing_noise(normal: Float[Tensor, "..."], settings: TD3) -> Float[Tensor, "..."]:
    """Returns epsilon = clip(sigma~ n, -c, c) for standard normal n: the smoothing of the target action."""
    bound = settings.target_noise_clip
    return (settings.target_noise * normal).clamp(-bound, bound)


@torch.no_grad()
def critic_target(agent: Agent, batch: Batch, settings: TD3, noise: Actions) -> Values:
    """y = r + gamma (1 - d) min_i Q'_i(s', pi'(s') + epsilon).

    Source: Fujimoto et al. 2018, Algorithm 1; the target action is clipped to [-1, 1].
    """
    next_action = (agent.target_actor(batch.next_state) + noise).clamp(-1, 1)
    next_value = agent.target_critics(batch.next_state, next_action).amin(dim=TWIN)
    return batch.reward + settings.discount * (1 - batch.terminal) * next_value


def critic_loss(critics: Critics, batch: Batch, target: Values) -> Losses:
    """L = sum_i mean (Q_i(s, a) - y)^2. Source: Fujimoto et al. 2018, Algorithm 1."""
    return (critics(batch.state, batch.action) - target).square().mean(dim=-1).sum(dim=TWIN)


def actor_loss(actor: Actor, critics: Critics, batch: Batch, settings: TD3) -> Losses:
    """L = -mean Q_1(s, pi(s)): the online loss. Source: Fujimoto et al. 2018, Algorithm 1."""
    return -critics.first(batch.state, actor(batch.state))[0].mean(dim=-1)


def actor_loss_bc(actor: Actor, critics: Critics, batch: Batch, settings: TD3) -> Losses:
    """L = -lambda mean Q_1(s, pi(s)) + mean (pi(s) - a)^2 with lambda = alpha / mean |Q_1(s, pi(s))|: the offline loss.

    lambda has no gradient. The second mean runs over the batch and the action's dimensions.
    Source: Fujimoto & Gu 2021, equation 3, and their code for lambda (their equation 5 takes |Q| at a).
    """
    action = actor(batch.state)
    value = critics.first(batch.state, action)[0]
    scale = settings.behaviour_weight / value.detach().abs().mean(dim=-1)
    return -scale * value.mean(dim=-1) + (action - batch.action).square().mean(dim=(-1, -2))


def update(
    agent: Agent,
    batch: Batch,
    settings: TD3,
    noise: Noise,
    policy_step: bool,
    loss: Callable | None = actor_loss,
) -> None:
    """Updates the critics and, in a policy step, the actor and the targets, in place.

    Every `policy_delay`-th update is a policy step. `noise` is that of `smoothing_noise`. The actor's loss is
    `actor_loss` online and `actor_loss_bc` offline. With None the actor stays as it is.
    """
    rate, actor, critics = settings.learning_rate, agent.actor.network, agent.critics.network
    target = critic_target(agent, batch, settings, noise[0])
    losses = critic_loss(agent.critics, batch, target)
    networks.adam_step(losses, rate, (critics.flat, agent.moments["critics"]))
    if policy_step:
        if loss is not None:
            losses = loss(agent.actor, agent.critics, batch, settings)
            networks.adam_step(losses, rate, (actor.flat, agent.moments["actor"]))
        networks.soft_update(agent.target_critics.network, critics, settings.target_rate)
        networks.soft_update(agent.target_actor.network, actor, settings.target_rate)


@torch.no_grad()
def greedy(agent: Any, state: States) -> Actions:
    """Returns pi(s), the action in an evaluation, for agents with a deterministic actor."""
    return agent.actor(state)


def explorer(agent: Agent, number: int, settings: TD3) -> Explore:
    """Returns a = clip(pi(s) + sigma n, -1, 1) of one agent, as a NumPy function of s and n."""
    forward = networks.numpy_forward(agent.actor.network, number)
    sigma = settings.exploration_noise
    return lambda state, normal: np.clip(np.tanh(forward(state)) + sigma * normal, -1, 1)


ALGORITHM = Algorithm(
    settings=TD3,
    create=create,
    critic_target=critic_target,
    update=update,
    online_loss=actor_loss,
    offline_loss=actor_loss_bc,
    greedy=greedy,
    explorer=explorer,
    carried={"actor": ("actor",), "critics": ("critics",)},
    noise=smoothing_noise,
    critics_alone=True,
)
