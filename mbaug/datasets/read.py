"""Datasets from files: a pool of this project, D4RL's HDF5 or Minari.

Whatever the source: a time-out ends only the recording and is never a terminal; every row's next state is the one that the
environment gave, not the first of the next episode; and what is wrong with a file is said in a sentence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from mbaug import files, tasks
from mbaug.checks import choose, needs, require
from mbaug.datasets.cards import DatasetDamaged, read_card
from mbaug.datasets.hdf5 import Columns, check_columns, read_hdf5
from mbaug.method.transitions import ROWS, Dataset

FOLDER = Path(__file__).resolve().parents[2] / "data" / "offline"  # of the bundled pools
FOLDERS = FOLDER, FOLDER.parents[1] / "build" / "offline"  # the second is for pools too large to be committed, and for imports
QUALITIES = "random", "medium-replay", "medium", "expert", "replay"  # of our own pools; `replay` is not committed
COMPOSED = {"medium-expert": ("medium", "expert")}  # half of a draw from each; no file
SUFFIXES = ".hdf5", ".h5"  # a name that ends so is a file's path
MINARI = "minari:"  # what a Minari dataset's name begins with
# Dimensions of Ant's state with contact forces, which come last, and without, as in our task: D4RL's, where they were found to
# be zero (Farama-Foundation/D4RL, issue 143), and the default of Gymnasium's v5.
WITHOUT_CONTACT_FORCES = {111: 27, 105: 27}

# SHA-256 of D4RL v2's files. Source: tensorflow/datasets, checksums of d4rl.
D4RL_FILES = {
    "hopper_medium_replay-v2.hdf5": "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b",
    "walker2d_medium_replay-v2.hdf5": "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db",
    "halfcheetah_medium_replay-v2.hdf5": "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683",
    "ant_medium_replay-v2.hdf5": "844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46",
}


def load(name: str | Path, folders: Sequence[Path] = FOLDERS) -> Dataset:
    """Returns a dataset in the order of its episodes.

    Args:
        name: of a bundled pool ("hopper-medium-replay") or of two ("hopper-medium-expert"), the path of a D4RL v2 file
            ("hopper_medium_replay-v2.hdf5"), or a Minari id ("minari:mujoco/hopper/medium-v0", with the optional extra).
        folders: of the bundled pools.

    Raises:
        ValueError: The name is unknown, or the file does not hold what it should (DatasetDamaged).
        OSError: There is no such file, or the system refuses to read it; where a pool can be made, it has the command.
    """
    name = str(name)
    task, _, quality = name.partition("-")
    if task in tasks.TASKS and quality in COMPOSED:
        return compose(name, [load(f"{task}-{part}", folders) for part in COMPOSED[quality]])
    title, found = arrays(name, folders)
    return Dataset(title, **columns(name, found))


def arrays(name: str, folders: Sequence[Path] = FOLDERS) -> tuple[str, Columns]:
    """Returns the name of a dataset that is one file or one Minari set, and its columns as D4RL v2 names them."""
    if name.startswith(MINARI):
        return name.removeprefix(MINARI).replace("/", "-"), read_minari(name)
    path = _find(name, folders)
    found, digest = read_hdf5(path), D4RL_FILES.get(path.name)
    if digest is not None and files.sha256(path) != digest:
        raise DatasetDamaged(f"{path} is not D4RL's file of that name (SHA-256 {digest}): download it again or rename it")
    return path.stem, found


def compose(name: str, pools: Sequence[Dataset]) -> Dataset:
    """Returns one dataset of several pools, of which `transitions.draw` takes as many transitions from each."""
    columns = {field: np.concatenate([getattr(pool, field) for pool in pools]) for field in ROWS}
    sizes, episodes = [len(pool) for pool in pools], [pool.episode.max() + 1 for pool in pools]
    columns["episode"] += np.repeat(np.cumsum([0, *episodes[:-1]]), sizes)
    return Dataset(name, **columns | {"part": np.repeat(np.arange(len(pools)), sizes)})


def bundled(folders: Sequence[Path] = FOLDERS) -> dict[str, Path]:
    """Returns the path of each pool that comes with the project or was made here, by name; the first folder's is taken."""
    found = [path for folder in reversed(folders) for path in folder.glob("*.hdf5") if path.is_file()]
    return {path.stem: path for path in sorted(found, key=lambda path: path.name)}


def _find(name: str, folders: Sequence[Path]) -> Path:
    """Returns the path of a pool, after comparing its SHA-256 with its card's, or of a file that is named by its path."""
    found, path, (task, _, quality) = bundled(folders), Path(name), name.partition("-")
    if path.suffix in SUFFIXES or len(path.parts) > 1 or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: give the path of a D4RL v2 file or one of {', '.join(found)}")
        return path
    if name not in found and folders is FOLDERS:
        files.repository()  # says where data are, where there is none
    if name not in found and task in tasks.TASKS and quality in QUALITIES:
        command = f"python -m mbaug collect {task}{' --to 0' if quality == 'random' else ''}"
        raise FileNotFoundError(f"{name} is not here: `{command}` makes it")
    path = found[choose("dataset", name, [*found, "PATH.hdf5", MINARI + "ID"])]
    if files.sha256(path) != read_card(path)["sha256"]:
        raise DatasetDamaged(f"{path} has another SHA-256 than its card, {name}.json, promises: restore or make both again")
    return path


def columns(name: str, arrays: Columns) -> Columns:
    """Returns the columns of a `Dataset` from those of D4RL v2.

    The next states are `next_observations`. Where a file has none, they are the successor's state, and a row whose successor
    is unknown is dropped: a time-out, or the last row of an episode that is unfinished where the file ends. A terminal row
    stays, for its reward counts, and gets its own state as next state: no target looks there, and the world model fits no row
    at an episode's end. The pools of this project have `final_observations` for exactly those rows, so they drop none.
    """
    check_columns(name, arrays)
    terminal, timeout = ends(name, arrays)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and Dataset refuses that in a sentence
        arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    kept = WITHOUT_CONTACT_FORCES.get(arrays["observations"].shape[1])  # None: all dimensions
    state, ended = arrays["observations"][:, :kept], terminal | timeout
    next_state, known = np.roll(state, -1, axis=0), np.ones(len(state), dtype=bool)
    if "next_observations" in arrays:
        next_state = arrays["next_observations"][:, :kept]
        _check_succession(name, state, next_state, ended)
    elif "final_observations" in arrays:
        final, count = arrays["final_observations"], ended.sum()
        sentence = f"{name}: {len(final)} final_observations for {count} ends of episodes"
        require(ended[-1] and len(final) == count, f"{sentence}; a pool has one for each, and ends with one")
        next_state[ended] = final[:, :kept]
    else:
        next_state[terminal] = state[terminal]
        known = terminal | ~timeout & (np.arange(len(state)) < len(state) - 1)
        require(known.any(), f"{name}: no row's next state is known; without next_observations every time-out is dropped")
    recorded = [array[known] for array in (state, arrays["actions"], arrays["rewards"], next_state, terminal)]
    episode = np.append(0, np.cumsum(ended)[:-1])[known]
    last = np.append(np.diff(episode) > 0, True)  # an episode's recording ends here, whether it or the file was cut
    return dict(zip(ROWS, (*recorded, last & ~terminal[known], episode, np.zeros_like(episode)), strict=True))


def ends(name: str, arrays: Columns) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Returns which rows are terminal and which only timed out, as the tasks' time limit has it.

    A row that is marked as both is a time-out at the limit, where old recorders set `done`, too, and a fall before.

    Raises:
        ValueError: no episode ends, one goes on after the limit, or one is timed out before it and before the file ends.
    """
    for key in ("terminals", "timeouts"):
        flags = bool(np.isin(arrays[key], (0, 1)).all())
        require(flags, f"{name}: {key} holds other values than 0 and 1, or false and true")
    terminal, timeout = (arrays[key] > 0 for key in ("terminals", "timeouts"))
    ended = terminal | timeout
    require(ended.any(), f"{name}: no row of terminals or timeouts is true, but episodes end in the one or the other way")
    episode, limit = pd.Series(np.append(0, np.cumsum(ended)[:-1])), tasks.STEPS
    step = episode.groupby(episode).cumcount().to_numpy() + 1
    sentence = f"{name}: an episode has {step.max():,} steps, but the task ends after {limit:,}"
    require(step.max() <= limit, f"{sentence}: its time-outs are not marked, as in D4RL's v0 and v1; take the v2 file")
    early = timeout & ~terminal & (step < limit)
    early[-1] = False  # cut with the file
    sentence = f"{name}: {early.sum():,} of {timeout.sum():,} timeouts are before step {limit:,} (first: row {early.argmax()})"
    require(not early.any(), f"{sentence}, but a task times out only there, or where the file ends")
    fall = terminal & (~timeout | (step < limit))
    return fall, timeout & ~fall


def _check_succession(name: str, state: np.ndarray, next_state: np.ndarray, ended: np.ndarray) -> None:
    """Raises ValueError unless each next state is the following row's state within an episode, and is not at its end."""
    follows = np.isclose(next_state[:-1], state[1:], rtol=1e-3, atol=1e-3).all(axis=1)
    for wrong, words in (
        (~follows & ~ended[:-1], "are not the state of the row that follows in the episode"),
        (follows & ended[:-1], "at an episode's end are the first state of the next one"),
    ):
        sentence = f"{name}: {wrong.sum():,} of {len(state):,} next_observations {words} (first: row {wrong.argmax()})"
        require(not wrong.any(), f"{sentence}: they must be what the environment gave before it was reset")


def read_minari(name: str) -> Columns:
    """Returns the columns, as D4RL v2 names them, of a Minari dataset that is on this machine; nothing is downloaded."""
    identifier = name.removeprefix(MINARI)
    require(identifier, f"{name!r} names no dataset: an id follows, as in {MINARI}mujoco/hopper/medium-v0")
    try:
        import minari  # pyright: ignore[reportMissingImports] -- optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(needs(name, "Minari")) from error
    try:
        return _minari_columns(list(minari.load_dataset(identifier).iterate_episodes()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is not on this machine: `minari download {identifier}` gets it") from error
    except Exception as error:  # Minari raises all kinds, depending on what is damaged
        reason = f"{error}".partition("\n")[0] or type(error).__name__
        raise DatasetDamaged(f"{name} cannot be read ({reason}): get or make it again") from error


def _minari_columns(episodes: Sequence[Any]) -> Columns:
    """Returns the columns of Minari's episodes, which have one observation more than steps."""
    plain = all(isinstance(part, np.ndarray) for e in episodes for part in (e.observations, e.actions))
    require(bool(episodes) and plain, "it holds no episodes of plain arrays, but only those are allowed")
    for number, e in enumerate(episodes):
        counts = [len(part) for part in (e.observations[1:], e.actions, e.rewards, e.terminations)]
        sentence = f"episode {number} has {counts} observations after the first, actions, rewards and terminations"
        require(min(counts) > 0 and len({*counts}) == 1, f"{sentence}, but they must be as many")
    terminals = np.concatenate([e.terminations for e in episodes])
    timeouts = np.zeros_like(terminals)
    timeouts[np.cumsum([len(e.terminations) for e in episodes]) - 1] = True  # unless terminal, which is never a time limit here
    return {
        "observations": np.concatenate([e.observations[:-1] for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": terminals,
        "timeouts": timeouts & ~terminals,
        "final_observations": np.stack([e.observations[-1] for e in episodes]),
    }
