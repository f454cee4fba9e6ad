"""Whether a dataset is of a task; and datasets of others, checked and imported as pools."""

import re
from pathlib import Path

import numpy as np

from mbaug import files, tasks
from mbaug.checks import NAME, require
from mbaug.datasets import pools
from mbaug.datasets.read import COMPOSED, D4RL_FILES, FOLDERS, MINARI, QUALITIES, load
from mbaug.method.transitions import Dataset, pack
from mbaug.provenance import provenance

ACTION_LIMIT = 1 + 1e-4  # of a recorded action: far more than float32 rounds, far less than an environment could not have got


def check_dataset(task: tasks.Task, dataset: Dataset) -> None:
    """Raises ValueError, in a sentence, unless a dataset's states and actions are such as the task has."""
    for name, size in (("state", task.state_size), ("action", task.action_size)):
        given = getattr(dataset, name).shape[1]
        sentence = f"{dataset.name}: {name} has {given} dimensions, but in {task.gym_id} it has {size}"
        require(given == size, f"{sentence}: these are another task's data")
    beyond = (np.abs(dataset.action) > ACTION_LIMIT).any(axis=1)
    sentence = f"{dataset.name}: {beyond.sum()} actions are beyond [-1, 1] (first: row {beyond.argmax()})"
    require(not beyond.any(), f"{sentence}, but {task.gym_id} allows no such action: record those that the environment got")


def import_dataset(source: str, name: str, folder: Path = FOLDERS[1]) -> Path:
    """Returns the path of a new pool that holds the transitions of a D4RL v2 file or a Minari set.

    Args:
        source: path of the file, or "minari:" and a Minari id.
        name: of the pool: a task's name, a hyphen and whatever says what it is, e.g. "hopper-d4rl-medium-replay".
        folder: to write into.

    Raises:
        ValueError: the name is not of that form or is a bundled pool's, or the data are not the task's.
        FileExistsError: there is such a pool.
    """
    path = folder / f"{name}.hdf5"
    task_name, _, quality = name.partition("-")
    form = f"a pool's name is {name!r}, but it must be a task's, a hyphen and a word of letters, digits and _.+-"
    require(task_name in tasks.TASKS and bool(re.fullmatch(NAME, name) and quality), form)
    own = f"{name} is a name of this project's own pools: choose another one, e.g. {name}-imported"
    require(quality not in (*QUALITIES, *COMPOSED), own)
    task, dataset = tasks.find(task_name), load(source)
    check_dataset(task, dataset)
    is_minari = source.startswith(MINARI)
    origin = source if is_minari else Path(source).name
    card = {
        "name": name,
        "task": task.gym_id,
        "command": f"python -m mbaug data {origin} --as {name}",
        "licence": pools.LICENCE if origin in D4RL_FILES else "as its source says",
        "source": origin,
        "source_sha256": None if is_minari else files.sha256(Path(source).read_bytes()),
        "provenance": provenance("float32"),
    }
    pools.write(path, pack(dataset).numpy(), task, card)
    return path
