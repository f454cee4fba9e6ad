"""Transitions: what an agent learns from, offline (a fixed dataset) and online (a growing replay buffer).

`terminal` and `truncated` are never confused: a terminal transition ends the task and cuts the bootstrap; a truncated one only
ended the recording, and its next state still has a value.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mbaug import streams
from mbaug.checks import given, require

State = Float[Tensor, "rows state"]  # of one agent's rows
Action = Float[Tensor, "rows action"]
AgentStates = Float[Tensor, "*axes state"]  # of each agent: the first axis counts agents
Predict = Callable[..., State]  # (state, action, next_state, generator) -> imagined next states, in the environment's units
REWARD, TERMINAL, TRUNCATED = -3, -2, -1  # columns of packed rows, after state, action and next state
ROWS = ("state", "action", "reward", "next_state", "terminal", "truncated", "episode", "part")  # the columns of a dataset


@dataclass(frozen=True, eq=False)
class Dataset:
    """A fixed set of transitions in the order of their episodes. States, actions and rewards are in the environment's units."""

    name: str
    state: Float[np.ndarray, "rows state"]
    action: Float[np.ndarray, "rows action"]
    reward: Float[np.ndarray, " rows"]
    next_state: Float[np.ndarray, "rows state"]
    terminal: Bool[np.ndarray, " rows"]  # the task ended here
    truncated: Bool[np.ndarray, " rows"]  # only the recording ended here (a time limit)
    episode: Int[np.ndarray, " rows"]  # index of the transition's episode
    part: Int[np.ndarray, " rows"]  # number of the pool that it is from; 0 where the dataset is one pool

    def __post_init__(self) -> None:
        rows, shape, other = len(self.state), self.state.shape, self.next_state.shape
        for field in ROWS:
            values = getattr(self, field)
            size = len(values)
            require(size == rows, f"{self.name}: {field} has {size} rows, but state has {rows}: they must agree")
            axes = 2 if field in ("state", "action", "next_state") else 1
            wrong = f"{self.name}: {field} has the shape {values.shape}, but its number of axes must be {axes}"
            require(values.ndim == axes, wrong)
            bad = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
            where = f"in {bad.sum()} rows (first: row {bad.argmax() if rows else 0})"
            require(not bad.any(), f"{self.name}: {field} holds NaN or infinity {where}; only finite numbers are allowed")
        require(shape == other, f"{self.name}: next_state has shape {other}, but state has {shape}")

    def __len__(self) -> int:
        return len(self.state)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of what was recorded; not of `episode` and `part`, which only windows and composed draws read."""
        digest = hashlib.sha256()
        for array in (self.state, self.action, self.reward, self.next_state, self.terminal, self.truncated):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def rows(self, index: Int[np.ndarray, " chosen"]) -> "Dataset":
        """Returns the transitions at `index`, in that order."""
        return replace(self, **{field: getattr(self, field)[index] for field in ROWS})


def draw(pool: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Returns `size` single transitions, uniformly at random without replacement, and the rest of the pool.

    We never train on the rest: held-out errors are measured on it. Every arm of a seed gets the same draw.
    The parts of a composed dataset give transitions in turn, so their numbers are as equal as the parts
    allow.

    Raises:
        ValueError: `size` is below 1 or above the size of the pool.
    """
    _check_size(pool, size)
    order = streams.numpy_generator(seed, "draw").permutation(len(pool))
    if pool.part.any():
        # how many rows of the same part stand before each
        turn = pd.Series(pool.part[order]).groupby(pool.part[order]).cumcount()
        order = order[np.argsort(turn, kind="stable")]
    return pool.rows(order[:size]), pool.rows(np.sort(order[size:]))


def _check_size(pool: Dataset, size: int) -> None:
    """Raises ValueError unless `size` transitions can be drawn from the pool."""
    require(
        1 <= size <= len(pool),
        f"{size} transitions were requested, but {pool.name} has {len(pool)}: allowed are 1 to {len(pool)}",
    )


def draw_episodes(pool: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Returns `size` transitions of whole episodes in random order, and the episodes that are left.

    The last drawn episode is cut to fit.

    Raises:
        ValueError: The pool has fewer transitions, or it is composed of several pools.
    """
    _check_size(pool, size)
    sentence = f"{pool.name} is composed of several pools, but whole episodes are drawn from one alone"
    require(not pool.part.any(), sentence)
    order = streams.numpy_generator(seed, "draw", "episodes").permutation(np.unique(pool.episode))
    index = np.concatenate([np.flatnonzero(pool.episode == episode) for episode in order])
    drawn = pool.rows(index[:size])
    rest = pool.rows(np.flatnonzero(~np.isin(pool.episode, drawn.episode)))
    drawn.truncated[-1] |= not drawn.terminal[-1]
    return drawn, rest


class Windows(NamedTuple):
    """For each row the window of up to n recorded steps that begins there, and ends with its episode or the data."""

    row: Int[np.ndarray, "rows horizon"]  # indices of the window's rows; the last one repeated where the window is shorter
    length: Int[np.ndarray, " rows"]  # m <= n, steps of the window
    reward: Float[np.ndarray, " rows"]  # r_0 + gamma r_1 + ... + gamma^(m-1) r_(m-1)
    cut: Float[np.ndarray, " rows"]  # share of the bootstrap gamma Q(s_m) that is cut: 1 - gamma^(m-1) (1 - d)


def windows(dataset: Dataset, horizon: int, discount: float) -> Windows:
    """Returns the window of each row; its target r + gamma (1 - cut) Q(s_m) is the m-step return.

    With horizon 1 reward and cut are the recorded reward and terminal, bit for bit.

    Raises:
        ValueError: The horizon is below 1.
    """
    require(horizon >= 1, f"horizon is {horizon}, but a window has at least one step")
    rows = np.arange(len(dataset))
    ends = dataset.terminal | dataset.truncated | (np.append(dataset.episode[1:], -1) != dataset.episode)
    window, length = [rows], np.ones(len(dataset), dtype=int)
    reward, weight = dataset.reward.astype(np.float64), 1.0
    for _ in range(1, horizon):
        goes_on = ~ends[window[-1]] & (length == len(window))
        window.append(window[-1] + goes_on)
        length += goes_on
        weight *= discount
        reward += weight * goes_on * dataset.reward[window[-1]]
    last = np.stack(window, axis=1)
    cut = 1 - discount ** (length - 1) * (1.0 - dataset.terminal[last[:, -1]])
    return Windows(last, length, reward.astype(np.float32), cut.astype(np.float32))


class Batch(NamedTuple):
    """B transitions for each of P agents."""

    state: Float[Tensor, "population batch state"]
    action: Float[Tensor, "population batch action"]
    reward: Float[Tensor, "population batch"]
    next_state: Float[Tensor, "population batch state"]
    terminal: Float[Tensor, "population batch"]  # share of the bootstrap that is cut (`windows`)


def width(state_size: int, action_size: int) -> int:
    """Returns the number of columns of packed rows."""
    return 2 * state_size + action_size + 3


def packed_rows(
    state: np.ndarray, action: np.ndarray, next_state: np.ndarray, reward: np.ndarray, terminal: np.ndarray, truncated: np.ndarray
) -> Float[np.ndarray, "rows width"]:
    """Returns one row per transition, the format of tables and replay buffers: the columns in the order of the arguments."""
    scalars = (column[:, None] for column in (reward, terminal, truncated))
    return np.concatenate([state, action, next_state, *scalars], axis=1, dtype=np.float32)


def pack(dataset: Dataset, horizon: int = 1, discount: float | None = None) -> Float[Tensor, "rows width"]:
    """Returns the dataset's transitions as `packed_rows`, so that one gather fetches all columns.

    With a horizon n above 1 the next state is the window's last, the reward its discounted sum, and `terminal` the share of
    the bootstrap that is cut (`windows`); the target of TD3 is then the n-step one, without a change to TD3. This needs the
    learner's discount, which a single step does not use.
    """
    missing = f"horizon is {horizon}, but discount is None: above 1 it needs the learner's discount"
    window = windows(dataset, horizon, 1.0 if horizon == 1 else given(discount, missing))
    last = dataset.next_state[window.row[:, -1]]
    return torch.from_numpy(packed_rows(dataset.state, dataset.action, last, window.reward, window.cut, dataset.truncated))


def unpack(rows: Float[Tensor, "... width"], state_size: int, action_size: int) -> Batch:
    """Returns the columns of packed rows, each contiguous, without `truncated`, which no learner uses. Leading axes stay."""
    sizes = (state_size, action_size, state_size, 1, 1, 1)
    state, action, next_state, reward, terminal = (part.contiguous() for part in rows.split(sizes, dim=-1)[:-1])
    return Batch(state, action, reward.squeeze(-1), next_state, terminal.squeeze(-1))


def gather(
    tables: Float[Tensor, "population rows width"], index: Int[Tensor, "block population batch"]
) -> Float[Tensor, "block population batch width"]:
    """Returns rows `index` of each agent's own table."""
    chosen = [table.index_select(0, index[:, k].reshape(-1)) for k, table in enumerate(tables)]
    return torch.stack(chosen).view(len(tables), len(index), index.shape[-1], -1).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Standardiser:
    """x -> (x - mean) / std per state dimension, with each agent's own mean and std.

    The standardiser of a single agent may lack the first axis.
    """

    mean: Float[Tensor, "*population state"]
    std: Float[Tensor, "*population state"]

    @classmethod
    def fit(cls, states: Sequence[Float[np.ndarray, "_ state"]], epsilon: float) -> "Standardiser":
        """Returns each agent's standardiser, with `epsilon` added to the standard deviation."""
        mean = np.stack([state.mean(axis=0, dtype=np.float64) for state in states])
        std = np.stack([state.std(axis=0, dtype=np.float64) for state in states])
        return cls(torch.from_numpy(mean).float(), torch.from_numpy(std + epsilon).float())

    @classmethod
    def identity(cls, population: int, state_size: int) -> "Standardiser":
        """Returns the standardiser that changes nothing, for agents without offline data."""
        return cls(torch.zeros(population, state_size), torch.ones(population, state_size))

    def of(self, k: int) -> "Standardiser":
        """Returns the standardiser of agent k alone."""
        return Standardiser(self.mean[k], self.std[k])

    def apply(self, state: AgentStates) -> AgentStates:
        """Returns standardised states."""
        return (state - _beside(self.mean, state)) / _beside(self.std, state)

    def invert(self, state: AgentStates) -> AgentStates:
        """Returns states in the environment's own units again."""
        return state * _beside(self.std, state) + _beside(self.mean, state)


def _beside(moment: Tensor, state: Tensor) -> Tensor:
    """Returns a mean or a standard deviation with an axis of length 1 for each axis of `state` that it lacks."""
    return moment.view(*moment.shape[:-1], *[1] * (state.ndim - moment.ndim), moment.shape[-1])


def table(
    datasets: Sequence[Dataset],
    standardiser: Standardiser,
    dtype: torch.dtype = torch.float32,
    horizon: int = 1,
    discount: float | None = None,
) -> Float[Tensor, "population rows width"]:
    """Returns the packed rows of each agent's dataset (`pack`) with standardised states.

    Raises:
        ValueError: The datasets differ in size, or there is not one standardiser for each.
    """
    lengths, agents = [*map(len, datasets)], standardiser.mean.shape[:-1].numel()
    require(len({*lengths}) == 1, f"the datasets have {lengths} rows, but all agents of a population need equally many")
    require(agents == len(lengths), f"there are {len(lengths)} datasets, but the standardiser is for {agents}: give one for each")
    size = datasets[0].state.shape[1]
    rows = torch.stack([pack(dataset, horizon, discount) for dataset in datasets]).to(dtype)
    for states in (rows[..., :size], rows[..., REWARD - size : REWARD]):
        states.copy_(standardiser.apply(states))
    return rows


@dataclass
class ReplayBuffer:
    """A growing table of each agent's own packed transitions."""

    rows: Float[Tensor, "population capacity width"]
    size: int = 0  # rows that are filled

    def extend(self, rows: Float[Tensor, "population new width"]) -> None:
        """Appends `new` packed transitions for each agent; raises ValueError if the buffer is full."""
        end, capacity = self.size + rows.shape[1], self.rows.shape[1]
        require(end <= capacity, f"{end} transitions were requested, but the replay buffer holds at most {capacity}")
        self.rows[:, self.size : end] = rows
        self.size = end
