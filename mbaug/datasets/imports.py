"""Imports D4RL and Minari datasets as pools."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from mbaug import files, tasks
from mbaug.checks import NAME, require
from mbaug.datasets import pools, read
from mbaug.datasets.cards import read_card
from mbaug.datasets.check import check_dataset
from mbaug.datasets.read import COMPOSED, D4RL_FILES, MINARI, QUALITIES
from mbaug.method.transitions import Dataset, pack
from mbaug.provenance import provenance


def import_dataset(source: str, name: str, folder: Path, report: Callable[[str], None] = lambda line: None) -> Path:
    """Makes a pool in `folder` from a D4RL v2 file or a Minari dataset and returns its path.

    Args:
        source: path of the file, or "minari:" and the dataset's id.
        name: task name, a hyphen, and a description, e.g. "hopper-d4rl-medium-replay".
        folder: where the pool goes.
        report: receives a line for each finding.

    Raises:
        ValueError: The name does not have this form or is reserved, or the data do not belong to
            the task.
        FileExistsError: A pool of this name exists in `folder`.
    """
    task, path = _task_in(name), folder / f"{name}.hdf5"
    is_pool = source in read.bundled() and not Path(source).is_file()
    require(not is_pool, f"{source} is a pool that already exists here: give PATH.hdf5 or minari:ID of the data to import")
    if pools.exists(path):
        raise FileExistsError(f"{name} already exists in {folder}: pools are never overwritten, so choose another name")
    title, arrays = read.arrays(source)
    dataset = Dataset(title, **read.columns(source, arrays))
    both = (arrays["terminals"] > 0) & (arrays["timeouts"] > 0)
    if both.any():
        falls = (both & read.ends(title, arrays)[0]).sum()
        report(
            f"{both.sum():,} rows are marked as terminal and as timed out: we read {falls:,} before step {tasks.STEPS:,} "
            f"as falls and {both.sum() - falls:,} at that step as time-outs"
        )
    if lost := len(arrays["observations"]) - len(dataset):
        report(f"rows left out: {lost:,}, because without next_observations in the file their next states are unknown")
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


def _task_in(name: str) -> tasks.Task:
    """Returns the task that a new pool's name begins with; raises ValueError if a pool cannot have this name."""
    task, _, quality = name.partition("-")
    form = "it must be a task's name, a hyphen, and letters, digits or _.+-, and must not end in .hdf5 or .h5"
    well_formed = re.fullmatch(NAME, name) and quality and not name.endswith(read.SUFFIXES)
    require(task in tasks.EVERY and well_formed, f"a pool cannot have the name {name!r}: {form}")
    reserved = f"{name} is reserved for this project's own pools: choose another name, e.g. {name}-imported"
    require(quality not in (*QUALITIES, *COMPOSED), reserved)
    return tasks.find(task)
