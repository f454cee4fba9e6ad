"""What an algorithm is: one record, at the end of its file. Training and measuring read it and name no algorithm."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Explore = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (state, standard normal) -> the action of one agent


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, for a population of P agents."""

    settings: type  # of its hyper-parameters, among them hidden, discount, batch_size and policy_delay
    create: Callable[..., Any]  # (state_size, action_size, settings, generators, arithmetic) -> P fresh agents
    critic_target: Callable[..., Tensor]  # (agent, batch, settings, noise) -> y [P, B], what the critics move towards
    update: Callable[..., None]  # (agent, batch, noise, settings, step, loss): moves the agents in place
    online_loss: Callable[..., Any]  # of the actor, for `update`
    greedy: Callable[..., Tensor]  # (agent, state) -> the actions of an evaluation
    explorer: Callable[..., Explore]  # (agent, number, settings) -> how one agent acts while it learns
    carried: Mapping[str, tuple[str, ...]]  # the parts that going online carries with the "actor" and with the "critics"
    offline_loss: Callable[..., Any] | None = None  # of the actor, for `update`; None: it has no offline phase
    normals: int = 1  # standard normal vectors of an action's size that an update needs for each transition
    noise: Callable[..., Tensor] = lambda normals, settings: normals  # what an update takes of them
    rows: Callable[[Tensor, int, int], Tensor] | None = None  # (places, offline rows, all rows) -> a batch of the replay's rows;
    # it needs the offline rows there. None: all rows alike
    critics_alone: bool = False  # whether `update` can move the critics while the actor stays, with loss=None
