"""Whether a dataset is of a task: rows of it are replayed in the simulator. Datasets of others are checked so and imported."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mbaug import files, tasks
from mbaug.checks import NAME, require
from mbaug.datasets import pools, read
from mbaug.datasets.cards import read_card
from mbaug.datasets.read import COMPOSED, D4RL_FILES, MINARI, QUALITIES
from mbaug.method.transitions import Dataset, pack
from mbaug.provenance import provenance
from mbaug.tasks import Task

ACTION_LIMIT = 1 + 1e-4  # of a recorded action: far more than float32 rounds, far less than an environment could not have got
INSIDE, ENDS = 300, 60  # rows that are replayed: within episodes, and at their ends

# Bounds on what a replay differs by. A next state's error is measured in steps: divided by how far the state moves in that
# step, each component in units of its standard deviation. A reward's error is divided by what a row's reward differs by from the
# neighbours' (medians of both). Measured with MuJoCo 4.0 on each task's medium-replay, expert and random pool. "As older" are
# copies whose next states were simulated with friction / 2, x 1.5 and as in Walker2d-v4, with elliptic cones, mass x 1.05,
# damping x 1.1, and Euler's method in place of RK4 or the reverse:
#                              own pools   as older    wrong
#   states, median             < 2e-6      < 0.15      > 0.3 actions / 2; > 0.6 shifted rows, swapped columns, another task's
#   states, nine of ten below  < 4e-6      < 0.52      (the same)
#   states, beyond half a step none        < 11 %      3 to 5 %, where a row in 20 is shifted
#   rewards, median            < 2e-3      < 0.24      > 0.5 rewards x 1.1; > 0.9 rewards x 2, + 1, of the row before or after
#   rewards, worst             < 0.2
#   states at ends, median     < 2e-6                  > 0.9, where the next episode's first state stands there
#   falls that are not the same none       < 7 % of ends
EXACT = 1e-3  # the simulator of today, where nine of ten states differ by less: then none may by more than HALF
HALF = 0.5
NEAR = 0.2  # an older simulator's, at most: the states' median, the share beyond HALF, and the share of other falls
REWARD = 0.35
# Where the actions are scaled, one factor explains the error of every row: 1.053 for actions x 0.95. The older copies need
# factors from 0.92 to 1.02, which scatter more, or 0.962 (mass).
SCALED = 0.04


def replay(task: Task, state: Float[np.ndarray, "rows state"], action: Float[np.ndarray, "rows action"]) -> list[np.ndarray]:
    """Returns next state, reward and terminal of one simulated step from each state."""
    environment, steps = tasks.make(task), []
    for before, chosen in zip(state, action, strict=True):
        environment.reset(seed=0)
        tasks.set_state(environment, before)
        steps.append(environment.step(chosen)[:3])
    environment.close()
    return [np.array(part) for part in zip(*steps, strict=True)]


def _spread(chosen: Bool[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " some"]:
    """Returns at most `count` of the chosen rows, evenly spread: no random stream is asked."""
    rows = np.flatnonzero(chosen)
    return rows[np.unique(np.linspace(0, max(len(rows) - 1, 0), min(count, len(rows))).astype(int))]


def _median(values: np.ndarray) -> float:
    """Returns the median, 0 where there is none."""
    return float(np.median(values)) if len(values) else 0.0


def check_dataset(task: Task, dataset: Dataset) -> str:
    """Returns in a sentence how well a dataset agrees with its task: some rows are replayed in the simulator.

    Raises:
        ValueError: its transitions are not the task's; the sentence says what differs.
    """
    for name, size in (("state", task.state_size), ("action", task.action_size)):
        given = getattr(dataset, name).shape[1]
        sentence = f"{dataset.name}: {name} has {given} dimensions, but in {task.gym_id} it has {size}"
        require(given == size, f"{sentence}: these are another task's data")
    beyond = (np.abs(dataset.action) > ACTION_LIMIT).any(axis=1)
    sentence = f"{dataset.name}: {beyond.sum()} actions are beyond [-1, 1] (first: row {beyond.argmax()})"
    require(not beyond.any(), f"{sentence}, but {task.gym_id} allows no such action: record those that the environment got")
    whole = tasks.whole(task, dataset.state)
    clipped = f"{dataset.name}: every state has a velocity of {task.velocity_limit:g} or more, but in {task.gym_id} few have"
    require(whole.any(), clipped)
    ended = dataset.terminal | dataset.truncated
    inside, ends = _spread(whole & ~ended, INSIDE), _spread(whole & ended, ENDS)
    return _judged(task, dataset, np.concatenate([inside, ends]), len(inside))


@np.errstate(all="ignore")  # what is beyond all bounds becomes infinite, and is refused
def _judged(task: Task, dataset: Dataset, rows: np.ndarray, count: int) -> str:
    """Returns the sentence about the replay of rows, the first `count` of which end no episode; raises ValueError with it."""
    next_state, reward, terminal = replay(task, dataset.state[rows], dataset.action[rows])
    unit, before = dataset.state.std(axis=0, dtype=np.float64) + 1e-3, dataset.state[rows]
    recorded = dataset.next_state[rows].astype(np.float64)
    apart, *moved = (
        np.linalg.norm(step / unit, axis=1) for step in (recorded - next_state, recorded - before, next_state - before)
    )
    every = np.nan_to_num(apart / np.maximum(np.max(moved, axis=0), 1e-6), nan=np.inf)
    neighbours = (dataset.reward[np.clip(rows + offset, 0, len(dataset) - 1)] for offset in (-1, 0, 1))
    previous, wrong, following = (np.abs(reward - neighbour)[:count] for neighbour in neighbours)
    rewards = wrong / max(min(_median(previous), _median(following)), 1e-3)  # where none differs from the next, in its own unit
    # Files without next states give a fall its own state: nothing to compare.
    known = ~(dataset.terminal[rows] & (recorded == before).all(axis=1))
    states, at_ends = every[:count], every[count:][known[count:]]
    place = f"{dataset.name}: replayed {len(rows)} of {len(dataset):,} rows in {task.gym_id}"
    require(known.any(), f"{place}, but no row has a next state to compare")
    exact = np.quantile(every[known], 0.9) < EXACT
    allowed, far, falls = 0 if exact else NEAR, (states > HALF).sum(), (terminal != dataset.terminal[rows]).sum()
    middle, worst = f"differ by {_median(states):.2g} of a step (median)", rewards.max(initial=0)
    for fault, words in (
        (_median(states) > NEAR, f"next states {middle}: another task's, or rows, columns or units are mixed up"),
        (far > allowed * count, f"{far} next states differ by more than half a step: rows are mixed up"),
        (
            _median(at_ends) > HALF,
            f"at episodes' ends next states differ by {_median(at_ends):.2g} of a step: they are not where the episode ended",
        ),
        (
            _median(rewards) > REWARD or (exact and worst > 1),
            f"rewards differ by {_median(rewards):.2g} (median; at most {worst:.2g}) of the difference from row to row: "
            "they are other rows', or in another unit",
        ),
        (falls > allowed * max(len(rows) - count, 10), f"in {falls} rows a fall is not marked, or what is marked is none"),
    ):
        require(not fault, f"{place}, but {words}")
    if not exact:
        weaker, *_ = replay(task, before, np.float32(0.99) * dataset.action[rows])
        error, by_action = (recorded - next_state)[known] / unit, (next_state - weaker)[known] / 0.01 / unit
        factors = 1 + (error * by_action).sum(axis=1) / np.maximum((by_action**2).sum(axis=1), 1e-12)
        low, factor, high = np.quantile(factors, (0.25, 0.5, 0.75))
        scaled = abs(factor - 1) > SCALED and high - low < 0.8 * abs(factor - 1)
        require(not scaled, f"{place}, but next states are those of {factor:.3g} times the actions: record what it got")
        return f"{place}: next states {middle}, as in another version of the simulator"
    within = np.abs(recorded - next_state)[known].max(), np.abs(reward - dataset.reward[rows])[:count].max(initial=0)
    return f"{place}: next states agree within {within[0]:.0e}, rewards within {within[1]:.0e}"


def import_dataset(source: str, name: str, folder: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """Makes a pool in `folder` from a D4RL v2 file, given by its path, or a Minari set ("minari:" and its id); returns its path.

    Its name is a task's, a hyphen and whatever says what it is: "hopper-d4rl-medium-replay". `report` takes what is found.

    Raises:
        ValueError: the name is not of that form or is a bundled pool's, or the data are not the task's.
        FileExistsError: there is such a pool.
    """
    path = folder / f"{name}.hdf5"
    task_name, _, quality = name.partition("-")
    form = "it must be a task's, a hyphen and a word of letters, digits and _.+- that ends in neither .hdf5 nor .h5"
    formed = re.fullmatch(NAME, name) and quality and not name.endswith(read.SUFFIXES)
    require(task_name in tasks.TASKS and formed, f"a pool's name is {name!r}, but {form}")
    own = f"{name} is a name of this project's own pools: choose another one, e.g. {name}-imported"
    require(quality not in (*QUALITIES, *COMPOSED), own)
    here = source in read.bundled() and not Path(source).is_file()
    require(not here, f"{source} is a pool that is here already, but what is imported must be PATH.hdf5 or minari:ID")
    if pools.exists(path):
        raise FileExistsError(f"{name} is in {folder} already: a pool is never overwritten")
    task, (title, arrays) = tasks.find(task_name), read.arrays(source)
    dataset = Dataset(title, **read.columns(source, arrays))
    both = (arrays["terminals"] > 0) & (arrays["timeouts"] > 0)
    if both.any():
        falls = (both & read.ends(title, arrays)[0]).sum()
        report(
            f"{both.sum():,} rows are marked terminal and timed out at once: {falls:,} before step {tasks.STEPS:,} are taken "
            f"as falls, {both.sum() - falls:,} at it as time-outs"
        )
    if lost := len(arrays["observations"]) - len(dataset):
        report(f"{lost:,} rows are left out: there are no next_observations, and no row tells what came after these")
    report(check_dataset(task, dataset))
    is_minari = source.startswith(MINARI)
    origin = source if is_minari else Path(source).name
    card = {
        "command": shlex.join(["python", "-m", "mbaug", "data", origin, "--as", name]),
        "licence": pools.LICENCE if origin in D4RL_FILES else "as its source says",
        "source": origin,
        "source_sha256": None if is_minari else files.sha256(Path(source)),
        "provenance": provenance("float32"),
    }
    pools.write(path, pack(dataset).numpy(), task, card)
    counts = "{episodes:,} episodes, {terminals:,} falls, {timeouts:,} time-outs".format(**read_card(path))
    report(f"{len(dataset):,} transitions: {counts}")
    return path
