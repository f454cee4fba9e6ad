"""The record that describes an algorithm. Each algorithm's file ends with one.

P agents are one frozen dataclass. It has an `actor`, `critics`, and `moments`: the state of Adam
for each trained part, by name. A target network is named `target_` and the name of the network that
it tracks. The critics have a twin axis of two (`networks.TWIN`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

# (state, standard normal) -> the action of one agent
Explore = Callable[[Float[np.ndarray, " state"], Float[np.ndarray, " action"]], Float[np.ndarray, " action"]]


@dataclass(frozen=True)
class Algorithm:
    """One algorithm, for a population of P agents."""

    settings: type  # class with at least hidden, discount, batch_size and policy_delay
    create: Callable[..., Any]  # (state_size, action_size, settings, generators, arithmetic) -> P fresh agents
    # (agent, batch, settings, noise) -> y [P, B], with which `measures.error` measures the critics.
    # `update` does not read this field: it calls the function in its own file.
    critic_target: Callable[..., Tensor]
    # (agent, batch, settings, noise, policy_step, loss): updates the agents in place. A graph may
    # replay it (engine.graphs). So it must not depend on anything else that changes between
    # updates, such as a counter, and no shape in it may depend on a value.
    update: Callable[..., None]
    online_loss: Callable[..., Any]  # the actor's loss that `update` takes online
    greedy: Callable[..., Tensor]  # (agent, state) -> the actions of an evaluation
    explorer: Callable[..., Explore]  # (agent, number, settings) -> one agent's exploring policy
    carried: Mapping[str, tuple[str, ...]]  # parts of an agent that are carried online as its "actor" and its "critics"
    offline_loss: Callable[..., Any] | None = None  # the same offline; None: no offline phase
    normals: int = 1  # action-sized vectors of standard normals that an update needs per transition
    # (standard normals, settings) -> the noise that `update` takes
    noise: Callable[..., Tensor] = lambda normals, settings: normals
    # (uniform numbers in [0, 1), number of offline rows, number of rows) -> indices of a batch's
    # rows in a replay buffer that begins with the offline rows; None: uniform
    rows: Callable[[Tensor, int, int], Tensor] | None = None
    critics_alone: bool = False  # whether `update` with loss=None updates the critics alone
