"""Reads datasets: our own pools, D4RL's HDF5 files and Minari datasets.

For every source, a time-out only ends the recording and is never terminal. A next state is always the one that the environment
returned, never the first state of the next episode.
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

FOLDER = files.CLONE / "data" / "offline"  # folder of the bundled pools
FOLDERS = FOLDER, files.CLONE / "build" / "offline"  # the second holds imports and pools too large to commit
QUALITIES = "random", "medium-replay", "medium", "expert", "replay"  # qualities of our own pools; `replay` is not committed
COMPOSED = {"medium-expert": ("medium", "expert")}  # qualities without a file: a draw takes half from each of these pools
SUFFIXES = ".hdf5", ".h5"  # endings that mark a name as a file's path
MINARI = "minari:"  # prefix of a Minari dataset's name
# Size of Ant's state with contact forces -> size without, as in our task. The forces are the last components. D4RL has 111
# dimensions, of which the forces are zero (Farama-Foundation/D4RL, issue 143). Gymnasium's v5 has 105 by default.
WITHOUT_CONTACT_FORCES = {111: 27, 105: 27}

# SHA-256 of D4RL v2's files. Source: the checksums of d4rl in tensorflow/datasets.
D4RL_FILES = {
    "hopper_medium_replay-v2.hdf5": "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b",
    "walker2d_medium_replay-v2.hdf5": "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db",
    "halfcheetah_medium_replay-v2.hdf5": "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683",
    "ant_medium_replay-v2.hdf5": "844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46",
}


def load(name: str | Path, folders: Sequence[Path] = FOLDERS) -> Dataset:
    """Returns a dataset in the order of its episodes.

    Args:
        name: a pool ("hopper-medium-replay"), a pair of pools ("hopper-medium-expert"), the path of a D4RL v2 file
            ("hopper_medium_replay-v2.hdf5"), or a Minari id ("minari:mujoco/hopper/medium-v0", which needs Minari).
        folders: folders of the pools.

    Raises:
        ValueError: The name is unknown, or the file is damaged (DatasetDamaged).
        OSError: The file does not exist or cannot be read. If a command can make the missing pool, the message names it.
    """
    name = str(name)
    task, _, quality = name.partition("-")
    if task in tasks.EVERY and quality in COMPOSED:
        return compose(name, [load(f"{task}-{part}", folders) for part in COMPOSED[quality]])
    title, found = arrays(name, folders)
    return Dataset(title, **columns(name, found))


def arrays(name: str, folders: Sequence[Path] = FOLDERS) -> tuple[str, Columns]:
    """Returns the name and the columns, under D4RL v2's names, of a dataset that is one file or one Minari dataset.

    Raises:
        ValueError: The name is unknown, or the file or dataset is damaged (DatasetDamaged).
        OSError: It does not exist or cannot be read.
        ModuleNotFoundError: Minari, which is optional, is not installed.
    """
    if name.startswith(MINARI):
        return name.removeprefix(MINARI).replace("/", "-"), read_minari(name)
    path = _find(name, folders)
    found, digest = read_hdf5(path), D4RL_FILES.get(path.name)
    if digest is not None and files.sha256(path) != digest:
        raise DatasetDamaged(f"{path} is not D4RL's file of that name (SHA-256 {digest}): download it again or rename it")
    return path.stem, found


def compose(name: str, pools: Sequence[Dataset]) -> Dataset:
    """Returns one dataset of several pools, from which `transitions.draw` takes equally many transitions of each."""
    columns = {field: np.concatenate([getattr(pool, field) for pool in pools]) for field in ROWS}
    sizes, episodes = [len(pool) for pool in pools], [pool.episode.max() + 1 for pool in pools]
    columns["episode"] += np.repeat(np.cumsum([0, *episodes[:-1]]), sizes)
    return Dataset(name, **columns | {"part": np.repeat(np.arange(len(pools)), sizes)})


def bundled(folders: Sequence[Path] = FOLDERS) -> dict[str, Path]:
    """Returns the path of each pool in `folders`, by name. If two folders hold a pool of the same name, the first wins."""
    found = [path for folder in reversed(folders) for path in folder.glob("*.hdf5") if path.is_file()]
    return {path.stem: path for path in sorted(found, key=lambda path: path.name)}


def _find(name: str, folders: Sequence[Path]) -> Path:
    """Returns the path of a file, or of a named pool after comparing its SHA-256 with its card's."""
    found, path, (task, _, quality) = bundled(folders), Path(name), name.partition("-")
    if path.suffix in SUFFIXES or len(path.parts) > 1 or path.is_file():
        if not path.is_file():
            what = f"{path} is not a regular file" if path.exists() else f"there is no file {path}"
            raise FileNotFoundError(f"{what}: give the path of a D4RL v2 file or one of {', '.join(found)}")
        return path
    if name not in found and folders is FOLDERS:
        files.repository()  # without a clone, its error explains where the data are
    if name not in found and task in tasks.EVERY and quality in QUALITIES:
        command = f"python -m mbaug collect {task}{' --to 0' if quality == 'random' else ''}"
        raise FileNotFoundError(f"dataset {name} does not exist: run `{command}` to make it")
    path = found[choose("dataset", name, [*found, "PATH.hdf5", MINARI + "ID"])]
    if files.sha256(path) != read_card(path)["sha256"]:
        remedy = "restore the pool and its card or make both again"
        raise DatasetDamaged(f"{path} does not match the SHA-256 in its card, {name}.json: {remedy}")
    return path


def columns(name: str, arrays: Columns) -> Columns:
    """Returns the columns of a `Dataset` from those of D4RL v2.

    The next states are `next_observations` if the file has them. Otherwise a row's next state is the state of the following row,
    or for the last row of an episode its entry in `final_observations`, which our pools have.

    Files with neither lack the next state at an episode's end. There we drop rows that timed out, and the last row of an
    unfinished last episode. We keep a terminal row because its reward counts, and set its next state to its own state: no
    target uses that state, and the world model is not fitted to rows at an episode's end.

    Raises:
        ValueError: The columns lack a next state, contradict each other, or violate what `check_columns` or `ends` checks.
    """
    check_columns(name, arrays)
    terminal, timeout = ends(name, arrays)
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which Dataset refuses
        arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    kept = WITHOUT_CONTACT_FORCES.get(arrays["observations"].shape[1])  # None: all dimensions
    state, ended = arrays["observations"][:, :kept], terminal | timeout
    next_state, known = np.roll(state, -1, axis=0), np.ones(len(state), dtype=bool)
    if "next_observations" in arrays:
        next_state = arrays["next_observations"][:, :kept]
        _check_succession(name, state, next_state, ended)
    elif "final_observations" in arrays:
        final, count = arrays["final_observations"], ended.sum()
        sentence = f"{name}: there are {len(final)} final_observations for {count} ends of episodes"
        require(ended[-1] and len(final) == count, f"{sentence}, but each end must have one and the last row must be an end")
        next_state[ended] = final[:, :kept]
    else:
        next_state[terminal] = state[terminal]
        known = terminal | ~timeout & (np.arange(len(state)) < len(state) - 1)
        require(known.any(), f"{name}: no row has a known next state: without next_observations, rows that timed out are dropped")
    recorded = [array[known] for array in (state, arrays["actions"], arrays["rewards"], next_state, terminal)]
    episode = np.append(0, np.cumsum(ended)[:-1])[known]
    last = np.append(np.diff(episode) > 0, True)  # the recording of an episode ends here, perhaps because the file ends
    return dict(zip(ROWS, (*recorded, last & ~terminal[known], episode, np.zeros_like(episode)), strict=True))


def ends(name: str, arrays: Columns) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Returns which rows are terminal and which only timed out, according to the tasks' time limit.

    A row that is marked as both is a time-out if it is at the time limit, where old recorders also set `done`. Before the limit
    it is a fall.

    Raises:
        ValueError: No episode ends, one is longer than the limit, or one times out before the limit
            and before the file ends.
    """
    for key in ("terminals", "timeouts"):
        flags = bool(np.isin(arrays[key], (0, 1)).all())
        require(flags, f"{name}: {key} has values other than 0 and 1 (or false and true)")
    terminal, timeout = (arrays[key] > 0 for key in ("terminals", "timeouts"))
    ended = terminal | timeout
    require(ended.any(), f"{name}: terminals and timeouts are false in every row, but every episode must end in one of the two")
    episode, limit = pd.Series(np.append(0, np.cumsum(ended)[:-1])), tasks.STEPS
    step = episode.groupby(episode).cumcount().to_numpy() + 1
    sentence = f"{name}: an episode has {step.max():,} steps, but the task ends after {limit:,}"
    require(step.max() <= limit, f"{sentence}: time-outs are not marked, as in D4RL v0 and v1; use the v2 file")
    early = timeout & ~terminal & (step < limit)
    early[-1] = False  # the file may end before the episode does
    sentence = f"{name}: {early.sum():,} of {timeout.sum():,} timeouts are before step {limit:,} (first: row {early.argmax()})"
    remedy = "keep the rows in order, and import each recording as a file of its own"
    require(not early.any(), f"{sentence}, but a task times out only at that step or where the file ends: {remedy}")
    fall = terminal & (~timeout | (step < limit))
    return fall, timeout & ~fall


def _check_succession(name: str, state: np.ndarray, next_state: np.ndarray, ended: np.ndarray) -> None:
    """Raises ValueError unless each next state equals the following row's state inside an episode and differs at its end."""
    equal = np.isclose(next_state[:-1], state[1:], rtol=1e-3, atol=1e-3).all(axis=1)
    finite = np.isfinite(next_state[:-1]).all(axis=1) & np.isfinite(state[1:]).all(axis=1)  # Dataset refuses all others
    for wrong, words in (
        (~equal & ~ended[:-1] & finite, "inside an episode differ from the observation in the following row"),
        (equal & ended[:-1], "at an episode's end are the first observation of the next episode"),
    ):
        sentence = f"{name}: {wrong.sum():,} of {len(state):,} next_observations {words} (first: row {wrong.argmax()})"
        require(not wrong.any(), f"{sentence}, but they must be what the environment returned before it was reset")


def read_minari(name: str) -> Columns:
    """Returns the columns, under D4RL v2's names, of a Minari dataset on this machine. Downloads nothing.

    Raises:
        ValueError: The name lacks the id, or the dataset cannot be read (DatasetDamaged).
        FileNotFoundError: It is not on this machine.
        ModuleNotFoundError: Minari, which is optional, is not installed.
    """
    identifier = name.removeprefix(MINARI)
    require(identifier, f"{name!r} names no dataset: add its id, as in {MINARI}mujoco/hopper/medium-v0")
    try:
        import minari  # pyright: ignore[reportMissingImports] -- optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(needs(name, "Minari")) from error
    try:
        return _minari_columns(list(minari.load_dataset(identifier).iterate_episodes()))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is not on this machine: run `minari download {identifier}` to get it") from error
    except Exception as error:  # Minari's errors are of many types, depending on the damage
        reason = f"{error}".partition("\n")[0] or type(error).__name__
        raise DatasetDamaged(f"{name} cannot be read ({reason}): download or make it again") from error


def _minari_columns(episodes: Sequence[Any]) -> Columns:
    """Returns the columns of Minari's episodes, each of which has one observation more than it has steps."""
    plain = all(isinstance(part, np.ndarray) for e in episodes for part in (e.observations, e.actions))
    require(bool(episodes) and plain, "it must have episodes whose observations and actions are plain arrays")
    for number, e in enumerate(episodes):
        counts = [len(part) for part in (e.observations[1:], e.actions, e.rewards, e.terminations)]
        sentence = f"episode {number} has {counts} observations after the first, actions, rewards and terminations"
        require(min(counts) > 0 and len({*counts}) == 1, f"{sentence}, but the four numbers must be equal and above 0")
    terminals = np.concatenate([e.terminations for e in episodes])
    timeouts = np.zeros_like(terminals)
    timeouts[np.cumsum([len(e.terminations) for e in episodes]) - 1] = True
    return {
        "observations": np.concatenate([e.observations[:-1] for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": terminals,
        "timeouts": timeouts & ~terminals,  # a Minari episode that ends terminal did not time out
        "final_observations": np.stack([e.observations[-1] for e in episodes]),
    }
