"""Fixed states of each task, the same for every arm and seed.

We compare the return that critics predict from these states with the return in the simulator.

`data/probes/<task>.safetensors` holds 400 states of the bundled medium-replay pool. About a fifth of them are among the rows
that an agent draws, the same share as of the whole pool. `python -m mbaug data --probes` makes the files, and a test compares
each with its pool.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from mbaug import files, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import checkpoint
from mbaug.method.transitions import Dataset
from mbaug.tasks import Task

FOLDER = files.CLONE / "data" / "probes"
GROUPS = "anywhere", "near a fall", "low return", "high return"
STATES = 400
NEAR = 20  # last steps of an episode that ends in a fall


@dataclass(frozen=True, eq=False)
class Probe:
    """States of a task, each in one of GROUPS."""

    state: Float[np.ndarray, "states state"]  # in the environment's units
    group: Int[np.ndarray, " states"]  # index in GROUPS
    row: Int[np.ndarray, " states"]  # index in the pool


def choose(task: Task, pool: Dataset) -> Probe:
    """Returns STATES rows of a pool, equally many from each group; what a small group lacks comes from "anywhere".

    The groups "low return" and "high return" are the episodes of the lowest and the highest quarter by return. No row has a
    clipped velocity (`tasks.unclipped`).
    """
    unclipped = tasks.unclipped(task, pool.state)
    episodes = pd.DataFrame({"episode": pool.episode, "reward": pool.reward, "terminal": pool.terminal}).groupby("episode")
    returns, ends = episodes["reward"].transform("sum").to_numpy(), episodes["terminal"].transform("any").to_numpy()
    remaining = episodes.cumcount(ascending=False).to_numpy()
    low, high = np.quantile(episodes["reward"].sum(), (0.25, 0.75))
    members = (np.ones(len(pool), dtype=bool), ends & (remaining < NEAR), returns <= low, returns >= high)
    candidates = [np.flatnonzero(allowed & unclipped) for allowed in members]
    counts = [min(STATES // len(GROUPS), len(rows)) for rows in candidates]
    counts[0] += STATES - sum(counts)
    groups = zip(GROUPS, candidates, counts, strict=True)
    drawn = [streams.numpy_generator(0, "probe", name).choice(rows, count, replace=False) for name, rows, count in groups]
    row = np.concatenate(drawn)
    return Probe(pool.state[row], np.repeat(np.arange(len(GROUPS)), counts), row)


def path_of(task: Task, folder: Path = FOLDER) -> Path:
    """Returns the path of a task's file."""
    return folder / f"{task.name}.safetensors"


def content(task: Task) -> bytes:
    """Returns the content of a task's file: states that `choose` takes from the bundled pool, and the pool's name and digest."""
    name = f"{task.name}-medium-replay"
    pool = read.load(name)
    probe = choose(task, pool)
    about = {"pool": name, "pool_sha256": pool.sha256, "groups": GROUPS}
    return checkpoint.packed({name: torch.from_numpy(part) for name, part in vars(probe).items()}, about)


def load(task: Task, folder: Path = FOLDER) -> Probe:
    """Returns a task's states.

    Raises:
        FileNotFoundError: The file is missing. The sentence names the command that makes it.
        CheckpointDamaged: Its content is not what was written.
    """
    path, remedy = path_of(task, folder), "`python -m mbaug data --probes` makes it"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: {remedy}")
    return Probe(**{name: part.numpy() for name, part in checkpoint.unpacked(path, f"remove it, then {remedy} anew")[0].items()})


def known(task: Task) -> bool:
    """Returns whether calibration is measured on a task: always on the paper's, on a task of your own if its file exists."""
    return task.name in tasks.TASKS or path_of(task).exists()


def write(folder: Path = FOLDER) -> Iterator[Path]:
    """Writes the missing files of all tasks with a medium-replay pool, and yields them.

    Existing files stay: recorded runs depend on them.
    """
    pools = read.bundled()
    for task in tasks.EVERY.values():
        path = path_of(task, folder)
        if f"{task.name}-medium-replay" in pools and not path.exists():
            files.write_atomically(path, content(task))
            yield path
