"""Checks a dataset by replaying rows in the simulator."""

import numpy as np
from jaxtyping import Bool, Float, Int

from mbaug import tasks
from mbaug.checks import require
from mbaug.method.transitions import Dataset
from mbaug.tasks import Task

ACTION_LIMIT = 1 + 1e-4  # largest absolute action accepted; the excess over 1 allows for float32 rounding
INSIDE, ENDS = 300, 60  # number of rows to replay: inside episodes, and at episodes' ends

# Limits on the difference between recorded and replayed transitions. The error of a next state is measured in steps: it is the
# distance to the replayed next state, divided by how far the state moves in that step, where each component is in units of its
# standard deviation. The error of a reward is divided by the median difference between the rewards of neighbouring rows.
#
# We measured these errors with MuJoCo 4.0 on each task's medium-replay, expert and random pools. "Older" stands for copies of
# these pools from a changed simulator: friction x 0.5, x 1.5 or as in Walker2d-v4, elliptic friction cones, mass x 1.05,
# damping x 1.1, or Euler's method and RK4 exchanged. "Wrong" stands for copies with a fault that we must find:
#                               own pools   older       wrong
#   state error, median         < 2e-6      < 0.15      > 0.3 actions / 2; > 0.6 shifted rows, swapped columns, another task
#   state error, 90 % quantile  < 4e-6      < 0.52      (the same)
#   state error > half a step   none        < 11 %      3 to 5 % if one row in 20 is shifted
#   reward error, median        < 2e-3      < 0.24      > 0.5 rewards x 1.1; > 0.9 rewards x 2, + 1, of the row before or after
#   reward error, maximum       < 0.2
#   state error at ends, median < 2e-6                  > 0.9 if the next state is the first state of the next episode
#   falls that differ           none        < 7 % of ends
EXACT = 1e-3  # 90 % quantile of the state error below which the simulator is today's; then no error may exceed HALF
HALF = 0.5  # of a step
NEAR = 0.2  # limits for an older simulator: median state error, share of rows beyond HALF, share of ends whose fall differs
REWARD = 0.35  # limit of the median reward error
FAR = 10_000  # states farther away would hide all errors, because they make the unit of a step's length so large
# If actions were scaled, one factor on them explains the error of every row: 1.053 for actions x 0.95. The older copies need
# 0.962 (mass), or factors from 0.92 to 1.02 that vary more from row to row.
SCALED = 0.04  # largest distance of that factor from 1 that we accept


def replay(task: Task, state: Float[np.ndarray, "rows state"], action: Float[np.ndarray, "rows action"]) -> list[np.ndarray]:
    """Returns the next state, reward and terminal of one simulated step from each state with its action."""
    environment, steps = tasks.make(task), []
    for one_state, one_action in zip(state, action, strict=True):
        environment.reset(seed=0)
        tasks.set_state(environment, one_state)
        steps.append(environment.step(one_action)[:3])
    environment.close()
    return [np.array(part) for part in zip(*steps, strict=True)]


def _evenly_spaced(allowed: Bool[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " some"]:
    """Returns the indices of at most `count` allowed rows, evenly spaced and not random."""
    rows = np.flatnonzero(allowed)
    return rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), min(count, len(rows))).astype(int))]


def _median(values: np.ndarray) -> float:
    """Returns the median, or 0 if there are no values."""
    return float(np.median(values)) if len(values) else 0.0


def check_dataset(task: Task, dataset: Dataset) -> str:
    """Returns a sentence that says how well replayed rows of the dataset agree with the task's simulator.

    Raises:
        ValueError: The transitions do not belong to the task; the message says what differs.
    """
    for name, size in (("state", task.state_size), ("action", task.action_size)):
        given = getattr(dataset, name).shape[1]
        sentence = f"{dataset.name}: {name} has {given} dimensions, but in {task.gym_id} it has {size}"
        require(given == size, f"{sentence}: the data belong to another task")
    outside = (np.abs(dataset.action) > ACTION_LIMIT).any(axis=1)
    sentence = f"{dataset.name}: {outside.sum()} actions are outside [-1, 1] (first: row {outside.argmax()})"
    remedy = "record the actions that the environment received"
    require(not outside.any(), f"{sentence}, but {task.gym_id} allows no such action: {remedy}")
    away = np.abs(dataset.state - np.median(dataset.state, axis=0))
    far = (away > FAR * (np.quantile(away, 0.9, axis=0) + 1e-2)).any(axis=1)  # 1e-2: in case nearly all are equal
    sentence = f"{dataset.name}: {far.sum()} states are more than {FAR:,} times as far from the median as 90 % of the states are"
    require(not far.any(), f"{sentence} (first: row {far.argmax()}): the file is damaged, or they have another unit")
    usable = tasks.unclipped(task, dataset.state)
    sentence = f"{dataset.name}: every state has a velocity of {task.velocity_limit:g} or more"
    require(usable.any(), f"{sentence}, but in {task.gym_id} few states do")
    ended = dataset.terminal | dataset.truncated
    inside, ends = _evenly_spaced(usable & ~ended, INSIDE), _evenly_spaced(usable & ended, ENDS)
    return _check_replay(task, dataset, np.concatenate([inside, ends]), len(inside))


@np.errstate(all="ignore")  # values that overflow become infinite and are then refused
def _check_replay(task: Task, dataset: Dataset, rows: np.ndarray, count: int) -> str:
    """Returns a sentence about the replay of these rows, of which only the first `count` are inside an episode.

    Raises:
        ValueError: The replay differs too much from the recorded transitions.
    """
    next_state, reward, terminal = replay(task, dataset.state[rows], dataset.action[rows])
    unit, state = dataset.state.std(axis=0, dtype=np.float64) + 1e-3, dataset.state[rows]
    recorded = dataset.next_state[rows].astype(np.float64)

    def length(step: np.ndarray) -> np.ndarray:
        return np.linalg.norm(step / unit, axis=1)

    moved = np.maximum(length(recorded - state), length(next_state - state))
    errors = np.nan_to_num(length(recorded - next_state) / np.maximum(moved, 1e-6), nan=np.inf)
    neighbours = (dataset.reward[np.clip(rows + offset, 0, len(dataset) - 1)] for offset in (-1, 0, 1))
    previous, same, following = (np.abs(reward - neighbour)[:count] for neighbour in neighbours)
    reward_errors = same / max(min(_median(previous), _median(following)), 1e-3)  # 1e-3: in case neighbouring rewards are equal
    # A file without next states gives a terminal row its own state as next state, so there is nothing to compare.
    known = ~(dataset.terminal[rows] & (recorded == state).all(axis=1))
    inside, at_ends = errors[:count], errors[count:][known[count:]]
    place = f"{dataset.name}: replayed {len(rows)} of {len(dataset):,} rows in {task.gym_id}"

    def refuse(fault: object, words: str) -> None:
        require(not fault, f"{place}, but {words}")

    refuse(not known.any(), "no row has a next state to compare")
    exact = np.quantile(errors[known], 0.9) < EXACT
    allowed, far, falls = 0 if exact else NEAR, (inside > HALF).sum(), (terminal != dataset.terminal[rows]).sum()
    typical, end, pay, worst = _median(inside), _median(at_ends), _median(reward_errors), reward_errors.max(initial=0)
    differ = f"differ by {typical:.2g} of a step (median)"
    refuse(typical > NEAR, f"next states {differ}: the data belong to another task, or rows, columns or units are mixed up")
    refuse(far > allowed * count, f"{far} next states differ by more than half a step: rows are mixed up")
    refuse(end > HALF, f"next states at episodes' ends differ by {end:.2g} of a step: they are not where the episodes ended")
    unlike = f"rewards differ by {pay:.2g} (median; at most {worst:.2g}) of the difference between neighbouring rows"
    refuse(pay > REWARD or (exact and worst > 1), f"{unlike}: they belong to other rows or have another unit")
    unmarked = f"in {falls} rows a fall is not marked as terminal, or a row is marked as terminal without a fall"
    refuse(falls > allowed * max(len(rows) - count, 10), unmarked)
    if not exact:
        weaker, *_ = replay(task, state, np.float32(0.99) * dataset.action[rows])
        error, by_action = (recorded - next_state)[known] / unit, (next_state - weaker)[known] / 0.01 / unit
        factors = 1 + (error * by_action).sum(axis=1) / np.maximum((by_action**2).sum(axis=1), 1e-12)
        low, factor, high = np.quantile(factors, (0.25, 0.5, 0.75))
        scaled = abs(factor - 1) > SCALED and high - low < 0.8 * abs(factor - 1)
        refuse(scaled, f"next states fit {factor:.3g} times the actions: record the actions that the environment received")
        return f"{place}: next states {differ}, as in another version of the simulator"
    within = np.abs(recorded - next_state)[known].max(), np.abs(reward - dataset.reward[rows])[:count].max(initial=0)
    return f"{place}: next states agree within {within[0]:.0e}, rewards within {within[1]:.0e}"
