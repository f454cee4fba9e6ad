"""The record that describes an algorithm. It stands at the end of the algorithm's file.

An agent is a frozen dataclass of P agents. It has an `actor` and `critics`, the `moments` of their Adams by name, and targets
called `target_` and the name of what they follow. The critics have a twin axis of two (`networks.TWIN`).
"""

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
    # (agent, batch, settings, noise) -> y [P, B], by which we measure the critics' errors. `update` calls its own.
    critic_target: Callable[..., Tensor]
    # (agent, batch, noise, settings, policy_step, loss): moves the agents in place. A graph may replay it (engine.graphs). So it
    # may depend on nothing else that changes between updates, such as a counter, and no shape in it on a value.
    update: Callable[..., None]
    online_loss: Callable[..., Any]  # of the actor, for `update`
    greedy: Callable[..., Tensor]  # (agent, state) -> the actions of an evaluation
    explorer: Callable[..., Explore]  # (agent, number, settings) -> how one agent acts while it learns
    carried: Mapping[str, tuple[str, ...]]  # parts of an agent that are carried online as its "actor" and its "critics"
    offline_loss: Callable[..., Any] | None = None  # of the actor, for `update`; None: no offline phase
    normals: int = 1  # standard normal vectors of an action's size that an update needs for each transition
    noise: Callable[..., Tensor] = lambda normals, settings: normals  # what `update` makes of them
    # (places, offline rows, all rows) -> the rows of a batch in a replay buffer that holds the offline rows; None: uniform
    rows: Callable[[Tensor, int, int], Tensor] | None = None
    critics_alone: bool = False  # whether `update` with loss=None moves the critics and leaves the actor as it is
