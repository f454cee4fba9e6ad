"""Datasets from files: a pool of this project, D4RL's HDF5 or Minari.

Whatever the source: a time-out ends only the recording and is never a terminal; every row's next state is the one that the
environment gave, not the first of the next episode; and what is wrong with a file is said in a sentence.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Shaped

from mbaug import files, tasks
from mbaug.checks import choose, require
from mbaug.datasets.cards import DatasetDamaged, read_card
from mbaug.method.transitions import ROWS, Dataset

FOLDER = Path(__file__).resolve().parents[2] / "data" / "offline"  # of the bundled pools
FOLDERS = FOLDER, FOLDER.parents[1] / "build" / "offline"  # the second is for pools too large to be committed, and for imports
QUALITIES = "random", "medium-replay", "medium", "expert", "replay"  # of our own pools; `replay` is not committed
COMPOSED = {"medium-expert": ("medium", "expert")}  # half of a draw from each; no file
MINARI = "minari:"  # what a Minari dataset's name begins with
DIMENSIONS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}  # axes of D4RL v2's columns
SUCCESSORS = {"next_observations": 2, "final_observations": 2}  # D4RL's, one for each row; our pools', one for each episode
# Dimensions of Ant's state with contact forces, which come last, and without, as in our task: D4RL's, where they were found to
# be zero (Farama-Foundation/D4RL, issue 143), and the default of Gymnasium's v5.
WITHOUT_CONTACT_FORCES = {111: 27, 105: 27}

# Bytes and SHA-256 of D4RL v2's files. Source: tensorflow/datasets, checksums of d4rl.
D4RL_FILES = {
    "hopper_medium_replay-v2.hdf5": (75_854_457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "walker2d_medium_replay-v2.hdf5": (86_323_963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "halfcheetah_medium_replay-v2.hdf5": (59_448_533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "ant_medium_replay-v2.hdf5": (136_482_252, "844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46"),
}

Columns = dict[str, Shaped[np.ndarray, "..."]]


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
    if name.startswith(MINARI):
        return Dataset(name.removeprefix(MINARI).replace("/", "-"), **columns(name, read_minari(name)))
    path = _find(name, folders)
    return Dataset(path.stem, **columns(name, read_hdf5(path)))


def compose(name: str, pools: Sequence[Dataset]) -> Dataset:
    """Returns one dataset of several pools, of which `transitions.draw` takes as many transitions from each."""
    columns = {field: np.concatenate([getattr(pool, field) for pool in pools]) for field in ROWS}
    sizes, episodes = [len(pool) for pool in pools], [pool.episode.max() + 1 for pool in pools]
    columns["episode"] += np.repeat(np.cumsum([0, *episodes[:-1]]), sizes)
    return Dataset(name, **columns | {"part": np.repeat(np.arange(len(pools)), sizes)})


def bundled(folders: Sequence[Path] = FOLDERS) -> dict[str, Path]:
    """Returns the path of each pool that comes with the project or was made here, by name; the first folder's is taken."""
    found = [path for folder in reversed(folders) for path in folder.glob("*.hdf5")]
    return {path.stem: path for path in sorted(found, key=lambda path: path.name)}


def _find(name: str, folders: Sequence[Path]) -> Path:
    """Returns the path of a pool, or of a file that is named by its path, after comparing its SHA-256 if it should have one."""
    found, path, (task, _, quality) = bundled(folders), Path(name), name.partition("-")
    if path.suffix in (".hdf5", ".h5") or len(path.parts) > 1 or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: give the path of a D4RL v2 file or one of {', '.join(found)}")
        size, digest = D4RL_FILES.get(path.name, (0, None))
        if (given := path.stat().st_size) < size:
            raise DatasetDamaged(f"{path} is half a download: it has {given:,} of {size:,} bytes; download it again")
        if digest is not None and files.sha256(path.read_bytes()) != digest:
            raise DatasetDamaged(f"{path} is not D4RL's file of that name (SHA-256 {digest}): download it again or rename it")
        return path
    if name not in found and task in tasks.TASKS and quality in QUALITIES:
        command = f"python -m mbaug collect {task}{' --to 0' if quality == 'random' else ''}"
        raise FileNotFoundError(f"{name} is not here: `{command}` makes it")
    path = found[choose("dataset", name, [*found, "PATH.hdf5", MINARI + "ID"])]
    if files.sha256(path.read_bytes()) != read_card(path)["sha256"]:
        raise DatasetDamaged(f"{path} has another SHA-256 than its card, {name}.json, promises: restore or make both again")
    return path


def read_hdf5(path: Path) -> Columns:
    """Returns the columns of a file of D4RL's layout, or of a pool of this project, under their names there."""
    try:
        with h5py.File(path, "r") as file:
            found = [key for key in file if isinstance(file[key], h5py.Dataset)]
            arrays = {key: file[key][()] for key in found if key in DIMENSIONS | SUCCESSORS}
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises, depending on where the damage is
        if number := getattr(error, "errno", None):
            raise OSError(number, f"cannot read {path}: {os.strerror(number)}") from error
        raise DatasetDamaged(_damage(path, str(error))) from error
    missing = [key for key in DIMENSIONS if key not in arrays]
    sentence = f"{path} has no {' and no '.join(missing)}: a D4RL v2 file has {', '.join(DIMENSIONS)}"
    require(not missing, f"{sentence}; the columns here are {', '.join(map(str, found[:20])) or 'none'}")
    return arrays


def _damage(path: Path, reason: str) -> str:
    """Returns in one sentence what h5py means by `reason`."""
    if sizes := re.search(r"truncated file: eof = (\d+),.* stored_eof = (\d+)", reason):
        given, whole = map(int, sizes.groups())
        return f"{path} is half a download or half a copy: it has {given:,} of {whole:,} bytes; get it again"
    if "signature not found" in reason:
        return f"{path} is no HDF5 file (a web page, or half a download?): get it again"
    return f"{path} is damaged, parts of it cannot be read: get it again"


def columns(name: str, arrays: Columns) -> Columns:
    """Returns the columns of a `Dataset` from those of D4RL v2.

    The next states are `next_observations`. Where a file has none, they are the successor's state, and a row whose successor
    is unknown is dropped: a time-out, or the last row of an episode that is unfinished where the file ends. A terminal row
    stays, for its reward counts, and gets its own state as next state: no target looks there, and the world model fits no row
    at an episode's end. The pools of this project have `final_observations` for exactly those rows, so they drop none.

    A row that is marked terminal and timed out is taken as timed out: old recorders set `done` at the time limit too.
    """
    for key in DIMENSIONS | SUCCESSORS:
        if key in arrays:
            _check_column(name, key, arrays)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and Dataset refuses that in a sentence
        arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    kept = WITHOUT_CONTACT_FORCES.get(arrays["observations"].shape[1])  # None: all dimensions
    state, timeout = arrays["observations"][:, :kept], arrays["timeouts"] > 0
    terminal = (arrays["terminals"] > 0) & ~timeout
    ends = terminal | timeout
    require(bool(ends.any()), f"{name}: no row of terminals or timeouts is true, but episodes end in the one or the other way")
    next_state, known = np.roll(state, -1, axis=0), np.ones(len(state), dtype=bool)
    if "next_observations" in arrays:
        next_state = arrays["next_observations"][:, :kept]
    elif "final_observations" in arrays:
        final, count = arrays["final_observations"], ends.sum()
        sentence = f"{name}: {len(final)} final_observations for {count} ends of episodes"
        require(bool(ends[-1] and len(final) == count), f"{sentence}; a pool has one for each, and ends with one")
        next_state[ends] = final[:, :kept]
    else:
        next_state[terminal] = state[terminal]
        known = terminal | ~timeout & (np.arange(len(state)) < len(state) - 1)
        require(bool(known.any()), f"{name}: no row's next state is known; without next_observations every time-out is dropped")
    recorded = [array[known] for array in (state, arrays["actions"], arrays["rewards"], next_state, terminal)]
    episode = np.append(0, np.cumsum(ends)[:-1])[known]
    last = np.append(np.diff(episode) > 0, True)  # an episode's recording ends here, whether it or the file was cut
    return dict(zip(ROWS, (*recorded, last & ~terminal[known], episode, np.zeros_like(episode)), strict=True))


def _check_column(name: str, key: str, arrays: Columns) -> None:
    """Raises ValueError unless a column has the type, the shape and the values that it must have beside the others."""
    array, axes, states = arrays[key], (DIMENSIONS | SUCCESSORS)[key], arrays["observations"].shape
    shape = f"{name}: {key} has the shape {array.shape}, but"
    require(array.dtype.kind in "fiub", f"{name}: {key} has the type {array.dtype}, but only numbers are allowed")
    require(array.ndim == axes, f"{shape} it must have {axes} axes, rows first")
    require(len(array) > 0, f"{name}: {key} has no rows, but there must be one at least")
    agree = len(array) == states[0] or key == "final_observations"
    require(agree, f"{name}: {key} has {len(array)} rows, but observations has {states[0]}: they must agree")
    agree = key not in SUCCESSORS or array.shape[1:] == states[1:]
    require(agree, f"{shape} observations has {states}: their columns must agree")
    flags = key not in ("terminals", "timeouts") or bool(np.isin(array, (0, 1)).all())
    require(flags, f"{name}: {key} holds other values than 0 and 1, or false and true")


def read_minari(name: str) -> Columns:
    """Returns the columns, as D4RL v2 names them, of a Minari dataset that is on this machine; nothing is downloaded."""
    identifier = name.removeprefix(MINARI)
    try:
        import minari  # pyright: ignore[reportMissingImports] -- optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} needs Minari: `make setup` installs it") from error
    try:
        episodes = list(minari.load_dataset(identifier).iterate_episodes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is not on this machine: `minari download {identifier}` gets it") from error
    plain = all(isinstance(part, np.ndarray) for e in episodes for part in (e.observations, e.actions))
    require(bool(episodes) and plain, f"{name} holds no episodes of plain arrays, but only those are allowed")
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
