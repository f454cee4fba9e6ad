"""What an algorithm is: one record, at the end of its file. Whoever trains or measures asks it and names no algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from mbaug.method.networks import Adam


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, for a population of P agents.

    Attributes:
        settings: the class of its hyper-parameters; it has hidden, discount, batch_size and policy_delay.
        create: (state_size, action_size, settings, generators, arithmetic) -> P fresh agents.
        normals: standard normal vectors of an action's size that an update needs for each transition.
        noise: (normals, settings) -> what an update takes of them.
        critic_target: (agent, batch, settings, noise) -> y [P, B], what the critics move towards.
        update: (agent, batch, noise, settings, gradient_step, loss) moves the agents in place.
        offline_loss: of the actor, for `update`; None: the algorithm has no offline phase.
        online_loss: of the actor, for `update`.
        greedy: (agent, state) -> the actions of an evaluation.
        explorer: (agent, number, settings) -> how one agent acts while it learns, a NumPy function of a state and a normal.
        carried: the networks and tensors of an agent that going online carries with the "actor" and with the "critics".
        critics_alone: whether `update` can move the critics while the actor stays, with loss=None.
    """

    settings: type
    create: Callable[..., Any]
    normals: int
    noise: Callable[..., Tensor]
    critic_target: Callable[..., Tensor]
    update: Callable[..., None]
    offline_loss: Callable[..., Any] | None
    online_loss: Callable[..., Any]
    greedy: Callable[..., Tensor]
    explorer: Callable[..., Callable]
    carried: Mapping[str, tuple[str, ...]]
    critics_alone: bool = False


def as_drawn(normal: Tensor, settings: object) -> Tensor:
    """Returns the standard normals as they are: the `noise` of an algorithm that scales them itself, or needs none."""
    return normal


def tensors(agent: Any) -> dict[str, Tensor]:
    """Returns every tensor of an agent by name, in the agent's own memory: parameters, and the moments of each Adam."""
    found = {}
    for part in fields(agent):
        value = getattr(agent, part.name)
        if isinstance(value, Tensor):
            found[part.name] = value.detach()
        elif isinstance(value, Adam):
            found |= {f"{part.name}.{name}": getattr(value, name) for name in ("first", "second", "steps")}
        else:
            found[part.name] = value.network.flat.detach()
    return found
