"""Exports the bundled pools as local Minari datasets, with a README for a dataset hub.

Each dataset holds the reference returns of its task, so `minari.get_normalized_score` returns our score divided by 100.
"""

import importlib.util
import os
import tempfile
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mbaug import files, tasks
from mbaug.checks import needs
from mbaug.datasets import read
from mbaug.datasets.cards import read_card
from mbaug.datasets.pools import LICENCE
from mbaug.method.transitions import ROWS, Dataset

VERSION = 0  # version of the exported datasets, the last part of a Minari id
LEARNING = "a learning agent, from its first step on"  # policy of a medium-replay pool, whose card names none

CARD = """---
pretty_name: Small offline datasets of four MuJoCo tasks
license: cc-by-4.0
tags: [reinforcement-learning, offline-reinforcement-learning, minari, mujoco]
---

# Small offline datasets of four MuJoCo tasks

Made by `python -m mbaug data --export minari` from the pools of mbaug {version}, a companion to arXiv 2312.09844.
Licence: {licence}.
*Score*: D4RL-normalised mean return. Observations and actions are float32.

| id | environment | transitions | episodes | mean return | score | policy | commit |
|---|---|---|---|---|---|---|---|
{rows}
"""
ROW = (
    "| `{id}` | {task} | {transitions:,} | {episodes:,} | {mean_return:,.1f} | {mean_score:.1f} | {policy} "
    "| `{provenance[commit]:.7}` |"
)


def minari_datasets(folder: Path) -> Iterator[str]:
    """Exports the bundled pools that `folder` lacks, yields all Minari ids, then writes the README.

    Raises:
        ModuleNotFoundError: Minari is not installed.
        files.CannotWrite: `folder` is a file or cannot be made.
    """
    if importlib.util.find_spec("minari") is None:
        raise ModuleNotFoundError(needs("--export minari", "Minari"))
    folder = folder.absolute()
    project, lines = tomllib.loads((files.repository() / "pyproject.toml").read_text())["project"], []
    for name, path in read.bundled([read.FOLDER]).items():
        card, data = read_card(path), read.load(name)
        task = tasks.find(name.partition("-")[0])
        identifier = f"mbaug/{name.replace('-', '/', 1)}-v{VERSION}"
        if not (folder / identifier).exists():
            size = 2 * sum(getattr(data, column).nbytes for column in ROWS)
            files.check_writable(folder, size)  # on a full disk HDF5 prints pages, and may crash
            with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder) as temporary:
                os.environ["MINARI_DATASETS_PATH"] = temporary  # the folder in which Minari writes
                create(identifier, task, data, card, project)
                publish(Path(temporary), folder, identifier)
        os.environ["MINARI_DATASETS_PATH"] = str(folder)  # where Minari now finds them
        lines.append(ROW.format(**{"policy": LEARNING} | card | {"id": identifier}))
        yield identifier
    text = CARD.format(version=project["version"], licence=LICENCE, rows="\n".join(lines))
    files.write_atomically(folder / "README.md", text.encode())


def publish(temporary: Path, folder: Path, identifier: str) -> None:
    """Moves a finished dataset, so that an existing one is always complete, and copies what describes its namespaces."""
    for about in temporary.rglob("namespace_metadata.json"):
        target = folder / about.relative_to(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(target, about.read_bytes())
    os.replace(temporary / identifier, folder / identifier)


def create(identifier: str, task: tasks.Task, data: Dataset, card: dict, project: dict) -> None:
    """Makes one Minari dataset in MINARI_DATASETS_PATH."""
    import gymnasium
    import minari  # pyright: ignore[reportMissingImports] -- optional
    from minari.data_collector import EpisodeBuffer  # pyright: ignore[reportMissingImports]

    episodes = [
        EpisodeBuffer(
            observations=np.concatenate([data.state[rows], data.next_state[rows[-1:]]]),
            actions=data.action[rows],
            rewards=data.reward[rows],
            terminations=data.terminal[rows],
            truncations=data.truncated[rows],
        )
        for rows in np.split(np.arange(len(data)), np.flatnonzero(np.diff(data.episode)) + 1)
    ]
    environment = tasks.make(task)
    with warnings.catch_warnings(action="ignore"):  # Minari recommends an e-mail address and a permanent link
        minari.create_dataset_from_buffers(
            identifier,
            episodes,
            env=environment,
            eval_env=environment,
            observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (task.state_size,), np.float32),
            algorithm_name=card.get("policy", LEARNING),
            author=project["authors"][0]["name"],
            code_permalink=project.get("urls", {}).get("Repository"),
            ref_min_score=task.return_random,
            ref_max_score=task.return_expert,
            description=f"`{card['command']}`, licence {card['licence']}.",
            requirements=[f"{package}=={card['provenance'][package]}" for package in ("gymnasium", "mujoco")],
        )
    environment.close()
