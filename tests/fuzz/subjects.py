"""The kinds of files that the project reads: how we make intact ones, read and damage them, and how many cases we try."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import torch
from mutations import damaged, edited, rewritten

from mbaug import files, tasks
from mbaug.datasets import imports, pools, read
from mbaug.datasets.cards import read_card
from mbaug.experiments import checkpoint, probes, records, run, studies, trained
from mbaug.experiments.records import Run
from mbaug.method.transitions import Dataset, pack
from mbaug.reporting import figures, stored

TASK = tasks.find("hopper")


@dataclass(frozen=True)
class Subject:
    """One kind of file.

    Attributes:
        name: its name, which also seeds the random damage.
        cases: how many damaged files we try.
        make: writes intact files into a folder.
        read: returns the content of the files in that folder, as a list of texts, numbers and arrays.
        harm: damages one of the files in that folder.
        bound: whether checksums cover all values in the files, so that no other values may be read.
    """

    name: str
    cases: int
    make: Callable[[Path], object]
    read: Callable[[Path], list]
    harm: Callable[[Path, np.random.Generator], object]
    bound: bool = field(default=True)


def any_file(folder: Path, random: np.random.Generator, *patterns: str) -> Path:
    """Returns a random file of a folder."""
    found = sorted({path for pattern in patterns or ["*"] for path in folder.rglob(pattern) if path.is_file()})
    return found[random.integers(len(found))]


def bytes_of(*patterns: str) -> Callable:
    """Returns a function that damages the bytes of a file, or sometimes puts a folder or a pipe in its place."""

    def harm(folder: Path, random: np.random.Generator) -> None:
        path = any_file(folder, random, *patterns)
        content = damaged(path.read_bytes(), random)
        if random.random() < 0.1:
            path.unlink()
            [path.mkdir, lambda: os.mkfifo(path)][random.integers(2)]()
        else:
            path.write_bytes(content)

    return harm


def json_of(*patterns: str) -> Callable:
    """Returns a function that edits a JSON file."""

    def harm(folder: Path, random: np.random.Generator) -> None:
        path = any_file(folder, random, *patterns)
        path.write_bytes(edited(json.loads(path.read_bytes()), random))

    return harm


def arrays(dataset: Dataset) -> list:
    """Returns the transitions and episode numbers of a dataset."""
    return [pack(dataset).numpy(), dataset.episode]


# --- datasets -------------------------------------------------------------------------------------------------------------

FEW = read.load("hopper-medium-replay")
FEW = FEW.rows(FEW.episode < 6)  # about 300 transitions
COLUMNS = {
    "observations": FEW.state,
    "actions": FEW.action,
    "rewards": FEW.reward,
    "terminals": FEW.terminal,
    "timeouts": FEW.truncated,
    "next_observations": FEW.next_state,
}


def d4rl(folder: Path) -> None:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, column in COLUMNS.items():
            file.create_dataset(name, data=column, compression="gzip")


def imported(folder: Path, source: str | None = None) -> list:
    """Returns the arrays of the pool that a file or a Minari dataset becomes."""
    said: list[str] = []
    imports.import_dataset(source or str(folder / "a.hdf5"), "hopper-a", folder / "pools", said.append)
    assert all(line.isprintable() for line in said), said
    return arrays(read.load("hopper-a", [folder / "pools"]))


def pool(folder: Path) -> None:
    d4rl(folder)
    imported(folder)
    (folder / "a.hdf5").unlink()


def read_pool(folder: Path) -> list:
    card = read_card(folder / "pools" / "hopper-a.hdf5")
    listed = pools.listing([folder / "pools"])
    found = [*arrays(read.load("hopper-a", [folder / "pools"])), json.dumps(card), listed.to_csv()]
    return [*found, pools.readme(folder / "pools")]


MINARI = "fuzz/hopper-v0"


def minari_set(folder: Path) -> None:
    from mbaug.datasets import export

    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    card = {"provenance": {"gymnasium": "1", "mujoco": "3"}, "command": "fuzz", "licence": "none"}
    export.create(MINARI, TASK, FEW, card, {"authors": [{"name": "x"}]})


def read_minari(folder: Path) -> list:
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    return imported(folder, read.MINARI + MINARI)


def harm_minari(folder: Path, random: np.random.Generator) -> None:
    """Damages a Minari dataset visibly: it changes no single number, since no checksum covers those."""
    path = any_file(folder, random, "*.json", "*.hdf5")
    if path.suffix == ".json":
        content = path.read_bytes()
        path.write_bytes(damaged(content, random) if random.random() < 0.5 else edited(json.loads(content), random))
        return
    if random.random() < 0.3:
        path.write_bytes(path.read_bytes()[: random.integers(path.stat().st_size)])
        return
    with h5py.File(path, "a") as file:
        episode = file[f"episode_{random.integers(len(file))}"]
        key = ["observations", "actions", "rewards", "terminations", "truncations"][random.integers(5)]
        column = episode[key][()]
        del episode[key]
        other_types = (column.astype(kind) for kind in ("S8", "f8"))
        ways = [column[:-1], column[None], column[:0], *other_types, np.full(len(column), np.nan), 1.0]
        if (way := random.integers(len(ways) + 2)) < len(ways):
            episode[key] = ways[way]
        elif way == len(ways):
            episode.create_group(key)[key] = column


# --- records, checkpoints and networks ------------------------------------------------------------------------------------

RECORDED = Run("hopper", "none", "td3", 0)


def record(folder: Path) -> None:
    """Writes a record in today's format, with actors."""
    metadata = records.read_metadata(records.root(), RECORDED)
    rows = records.read(records.root(), RECORDED).rows[:20].to_dict("records")
    own = {name: metadata.get(name) for name in records.about.OWN}  # an older format has no calibration
    own["settings"] = files.plain(records.about.arm(metadata))
    own["watch"] |= {"overfitting": None}
    records.write(folder, RECORDED, rows, own, {"final": torch.arange(10.0)})


def old_record(folder: Path) -> None:
    source = RECORDED.path(records.root())
    RECORDED.path(folder).parent.mkdir(parents=True)
    for suffix in (".csv", ".json"):
        RECORDED.path(folder).with_suffix(suffix).write_bytes(source.with_suffix(suffix).read_bytes())


def read_record(folder: Path) -> list:
    rows, metadata = records.read(folder, RECORDED)
    policies = [tensor.numpy() for tensor in records.policies(folder, RECORDED).values()]
    frame = records.load_runs(folder)
    records.difference(metadata, studies.ARMS[RECORDED.arm])
    return [rows.to_csv(), frame.to_csv(), json.dumps(metadata), *policies]


SMALL = studies.PROFILES["smoke"].apply(studies.ARMS["td3"])
LEARNER = run.begin([RECORDED], SMALL, Path()).learner
STATE = {"rows": [[]], "outside": [0.0], "switch": [], "wall_seconds": 0.0, "commits": []}


def population() -> SimpleNamespace:
    """Returns a stand-in for the population that `run.load` restores."""
    return SimpleNamespace(learner=LEARNER, commits=[])


def save_checkpoint(folder: Path) -> None:
    tensors, state = checkpoint.learner_state(LEARNER)
    checkpoint.save(folder, tensors, state | STATE)


def read_checkpoint(folder: Path) -> list:
    taken = population()
    tensors, state = run.load(folder, taken)
    return [*(tensors[name].numpy() for name in sorted(tensors)), json.dumps(state, sort_keys=True)]


def other_checkpoint(folder: Path, random: np.random.Generator) -> None:
    """Replaces the checkpoint by one with other content and a valid digest."""
    tensors, state = checkpoint.load(folder)
    names = sorted(tensors)
    name = names[random.integers(len(names))]
    way, tensor = random.integers(5), tensors.pop(name)
    other = {1: tensor.flatten()[:-1], 2: tensor[None].repeat(2, *[1] * tensor.ndim), 3: tensor.to(torch.complex64)}.get(way)
    if other is not None:
        tensors[name] = other
    if way == 4:
        tensors[name] = tensor
        state = json.loads(edited(state, random))
    files.write_atomically(folder / checkpoint.NAME, checkpoint.packed(tensors, state))


AGENT = "noise"


def networks(folder: Path) -> None:
    for name in (AGENT, "world_model"):
        files.write_atomically(trained.path_of("halfcheetah", name, folder), trained.path_of("halfcheetah", name).read_bytes())


def read_networks(folder: Path) -> list:
    agent = trained.agent("halfcheetah", AGENT, folder=folder).agent
    fit = trained.world_model("halfcheetah", folder=folder)
    return [agent.actor.network.flat.detach().numpy(), agent.critics.network.flat.detach().numpy(), fit.history.numpy()]


# --- generated files ------------------------------------------------------------------------------------------------------


def states(folder: Path) -> None:
    files.write_atomically(probes.path_of(TASK, folder), probes.path_of(TASK).read_bytes())


def read_states(folder: Path) -> list:
    return list(vars(probes.load(TASK, folder)).values())


def captions(folder: Path) -> None:
    for path in sorted((files.repository() / "figures").glob("0[01]_*.json")):
        for suffix in (".json", ".csv"):
            (folder / path.name).with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes())


def read_captions(folder: Path) -> list:
    text = figures.gallery(folder)
    assert all(letter.isprintable() or letter == "\n" for letter in text), "control codes in the gallery"
    return [text]


TABLE = pd.DataFrame({"arm": ["a", "b"], "score": [1.5, 2.5]})


def table(folder: Path) -> None:
    (folder / "a.csv").write_text(TABLE.to_csv(index=False))


def read_table(folder: Path) -> list:
    return [stored.stored("a", TABLE, folder=folder).to_csv()]


SUBJECTS = [
    Subject("HDF5, bytes", 150, d4rl, imported, bytes_of()),
    Subject("HDF5, columns", 150, d4rl, imported, lambda folder, random: rewritten(folder / "a.hdf5", COLUMNS, random)),
    Subject("pools and cards, bytes", 150, pool, read_pool, bytes_of()),
    Subject("cards, edited", 100, pool, read_pool, json_of("*.json")),
    Subject("Minari sets", 100, minari_set, read_minari, harm_minari),
    Subject("records, bytes", 150, record, read_record, bytes_of()),
    Subject("records, edited", 100, record, read_record, json_of("*.json")),
    Subject("records of an older format, edited", 100, old_record, read_record, json_of("*.json"), bound=False),
    Subject("checkpoints, bytes", 100, save_checkpoint, read_checkpoint, bytes_of()),
    Subject("checkpoints of something else", 100, save_checkpoint, read_checkpoint, other_checkpoint, bound=False),
    Subject("trained networks", 40, networks, read_networks, bytes_of()),
    Subject("fixed states", 60, states, read_states, bytes_of()),
    Subject("captions", 60, captions, read_captions, bytes_of()),
    Subject("captions, edited", 60, captions, read_captions, json_of("*.json")),
    Subject("tables", 40, table, read_table, bytes_of()),
]
