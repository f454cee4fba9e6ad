"""The files of offline data, read into columns: a bundled pool, D4RL's HDF5 or Minari. `transitions.load` makes datasets of them.

Whatever the source: a time-out ends only the recording and is never a terminal; every row's next state is the one that the
environment gave, not the first of the next episode; and what is wrong with a file is said in a sentence.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from mbaug.settings import choose, require

FOLDER = Path(__file__).resolve().parents[1] / "data" / "offline"  # of the bundled pools
FOLDERS = FOLDER, FOLDER.parents[1] / "build" / "offline"  # the second is of what is too large to be committed, and of imports
TASKS = "hopper", "walker2d", "halfcheetah", "ant"
QUALITIES = "random", "medium-replay", "medium", "expert", "replay"  # of our own pools; `replay` is not committed
COMPOSED = {"medium-expert": ("medium", "expert")}  # half of a draw from each; no file
MINARI = "minari:"  # what a Minari dataset's name begins with
DIMENSIONS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}  # axes of D4RL v2's columns
SUCCESSORS = {"next_observations": 2, "final_observations": 2}  # D4RL's, a row each; our pools', an episode each
# Dimensions of Ant's state with contact forces, which come last, and without, as it is here: D4RL's, where they were found to be
# zero (Farama-Foundation/D4RL, issue 143), and the default of Gymnasium's v5.
WITHOUT_CONTACT_FORCES = {111: 27, 105: 27}

# Bytes and SHA-256 of D4RL v2's files. Source: tensorflow/datasets, checksums of d4rl.
D4RL_FILES = {
    "hopper_medium_replay-v2.hdf5": (75_854_457, "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b"),
    "walker2d_medium_replay-v2.hdf5": (86_323_963, "e75de96a4f77acf7d4e0d6fdf0d7ccb177c26c44bb4388e4fd99f543ccfa18db"),
    "halfcheetah_medium_replay-v2.hdf5": (59_448_533, "48d494a4770c11f48260736dec090b78bdca8375647ed4d24bfa5b6610c7f683"),
    "ant_medium_replay-v2.hdf5": (136_482_252, "844c4e5743ef51091f2106a3570b257fb149032c4743f8a5f02f40adc3b42a46"),
}

Array = Shaped[np.ndarray, "..."]
Columns = dict[str, Array]  # the fields of transitions.Dataset but its name


class DatasetDamaged(ValueError):
    """A file of offline data is not what it should be: half a download, no HDF5, or other contents than its checksum says."""


def bundled(folders: Sequence[Path] = FOLDERS) -> list[str]:
    """Returns the names of the pools that come with the project or were made here."""
    return sorted(path.stem for folder in folders for path in folder.glob("*.hdf5"))


def label(name: str | Path) -> str:
    """Returns a dataset's name as it stands in records: without a folder, a suffix or a slash."""
    if str(name).startswith(MINARI):
        return str(name).removeprefix(MINARI).replace("/", "-")
    return Path(name).stem if _is_path(name) else str(name)


def read(name: str | Path, folders: Sequence[Path] = FOLDERS) -> Columns:
    """Returns the columns of a dataset: state, action, reward, next_state, terminal, truncated, episode.

    Args:
        name: of a bundled pool, the path of a D4RL v2 file, or "minari:" and a Minari id.
        folders: of the bundled pools.

    Raises:
        ValueError: The name is unknown, or the columns are not those of D4RL v2.
        DatasetDamaged: The file is truncated, is no HDF5, or has another checksum than is known of it.
        OSError: There is no such file, or the system refuses to read it; where a pool can be made, it has the command.
    """
    if str(name).startswith(MINARI):
        return read_minari(str(name).removeprefix(MINARI))
    if _is_path(name):
        path = Path(name)
        _check_exists(path)
        _check_download(path)
    else:
        path = _find(str(name), folders)
        _check_card(path)
    return columns(str(name), read_hdf5(path))


def _is_path(name: str | Path) -> bool:
    path = Path(name)
    return path.suffix in (".hdf5", ".h5") or len(path.parts) > 1 or path.is_file()


def _find(name: str, folders: Sequence[Path]) -> Path:
    """Returns the path of a pool."""
    task, _, quality = name.partition("-")
    if name not in bundled(folders) and task in TASKS and quality in QUALITIES:
        command = f"python -m mbaug collect {task}{' --to 0' if quality == 'random' else ''}"
        raise FileNotFoundError(f"{name} is not here: `{command}` makes it")
    choose("dataset", name, [*bundled(folders), "PATH.hdf5", MINARI + "ID"])
    return next(path for folder in folders if (path := folder / f"{name}.hdf5").is_file())


# --- HDF5 -----------------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of a D4RL v2 file or one of {', '.join(bundled())}")


def _check_download(path: Path) -> None:
    """Raises DatasetDamaged if a file has the name of one of D4RL's, but not its contents."""
    if path.name not in D4RL_FILES:
        return
    size, digest = D4RL_FILES[path.name]
    given = path.stat().st_size
    if given < size:
        raise DatasetDamaged(f"{path} is half a download: it has {given:,} of {size:,} bytes; download it again")
    if sha256(path) != digest:
        raise DatasetDamaged(f"{path} is not D4RL's file of that name (SHA-256 {digest}): download it again or rename it")


def read_card(path: Path) -> dict:
    """Returns the card of a pool.

    Raises:
        DatasetDamaged: There is none, or none that holds the pool's SHA-256.
    """
    card = path.with_suffix(".json")
    try:
        found = json.loads(card.read_bytes())
        return found | {"sha256": found["sha256"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DatasetDamaged(f"{path} needs its card, {card.name}, with its sha256: restore or make both again") from error


def _check_card(path: Path) -> None:
    """Raises DatasetDamaged unless a pool has the SHA-256 that the card beside it promises."""
    if sha256(path) != read_card(path)["sha256"]:
        raise DatasetDamaged(f"{path} has another SHA-256 than its card, {path.stem}.json, promises: restore or make both again")


def read_hdf5(path: Path) -> Columns:
    """Returns the columns that a file of D4RL's layout, or a pool of this project, has under their names there.

    Raises:
        ValueError: A column is missing; the sentence names it and what the file has.
        DatasetDamaged: The file is truncated or is no HDF5.
        OSError: The system refuses to read it.
    """
    try:
        with h5py.File(path, "r") as file:
            found = [key for key in file if isinstance(file[key], h5py.Dataset)]
            arrays = {key: file[key][()] for key in found if key in DIMENSIONS | SUCCESSORS}
    except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises, depending on where the damage is
        if getattr(error, "errno", None):
            raise OSError(error.errno, f"cannot read {path}: {os.strerror(error.errno)}") from error
        raise DatasetDamaged(_damage(path, str(error))) from error
    missing = [key for key in DIMENSIONS if key not in arrays]
    require(
        not missing,
        f"{path} has no {' and no '.join(missing)}: a D4RL v2 file has {', '.join(DIMENSIONS)};"
        f" the columns here are {', '.join(map(str, found[:20])) or 'none'}",
    )
    return arrays


def _damage(path: Path, reason: str) -> str:
    """Returns in one sentence what h5py means by `reason`."""
    if sizes := re.search(r"truncated file: eof = (\d+),.* stored_eof = (\d+)", reason):
        given, whole = map(int, sizes.groups())
        return f"{path} is half a download or half a copy: it has {given:,} of {whole:,} bytes; get it again"
    if "signature not found" in reason:
        return f"{path} is no HDF5 file (a web page, or half a download?): get it again"
    return f"{path} is damaged, parts of it cannot be read: get it again"


# --- columns --------------------------------------------------------------------------------------------------------------


def columns(name: str, arrays: Columns) -> Columns:
    """Returns the columns of a dataset from those of D4RL v2.

    The next states are `next_observations`. Where a file has none, they are the successor's state, and a row whose successor
    is unknown is dropped: a time-out, or the last row of an episode that is unfinished where the file ends. A terminal row
    stays, for its reward counts, and gets its own state as next state: no target looks there, and the world model fits no row
    at an episode's end. The pools of this project have `final_observations` for exactly those rows, so they drop none.

    A row that is marked terminal and timed out is taken as timed out: old recorders set `done` at the time limit too. Of Ant's
    states the contact forces are left out.
    """
    for key, axes in (DIMENSIONS | SUCCESSORS).items():
        if key in arrays:
            _check_column(name, key, arrays[key], axes, arrays["observations"].shape)
    arrays = _without_contact_forces(arrays)
    state, action, reward = (_float32(arrays[key]) for key in ("observations", "actions", "rewards"))
    truncated = _flags(name, "timeouts", arrays["timeouts"])
    terminal = _flags(name, "terminals", arrays["terminals"]) & ~truncated
    ends = terminal | truncated
    require(bool(ends.any()), f"{name}: no row of terminals or timeouts is true, but episodes end in the one or the other way")
    known = np.ones(len(state), dtype=bool)
    if "next_observations" in arrays:
        next_state = _float32(arrays["next_observations"])
    elif "final_observations" in arrays:
        next_state = _followed(name, state, ends, _float32(arrays["final_observations"]))
    else:
        next_state = np.where(terminal[:, None], state, np.roll(state, -1, axis=0))
        known = terminal | ~truncated & (np.arange(len(state)) < len(state) - 1)
        require(bool(known.any()), f"{name}: no row's next state is known; without next_observations every time-out is dropped")
    episode = np.append(0, np.cumsum(ends)[:-1])
    full = {
        "state": state,
        "action": action,
        "reward": reward,
        "next_state": next_state,
        "terminal": terminal,
        "truncated": _last_known(known, episode) & ~terminal,
        "episode": episode,
    }
    return {key: array[known] for key, array in full.items()}


def _without_contact_forces(arrays: Columns) -> Columns:
    """Returns columns whose states, if they are an ant's with contact forces, have none."""
    size = arrays["observations"].shape[1]
    kept = WITHOUT_CONTACT_FORCES.get(size, size)
    return arrays | {key: arrays[key][:, :kept] for key in ("observations", *SUCCESSORS) if key in arrays}


def _followed(name: str, state: np.ndarray, ends: np.ndarray, final: np.ndarray) -> Float[np.ndarray, "rows state"]:
    """Returns each row's next state: its successor's state or, at an episode's end, the episode's final one."""
    require(
        bool(ends[-1] and len(final) == ends.sum()),
        f"{name}: {len(final)} final_observations for {ends.sum()} ends of episodes; a pool has one for each, and ends with one",
    )
    next_state = np.roll(state, -1, axis=0)
    next_state[ends] = final
    return next_state


def _last_known(known: Bool[np.ndarray, " rows"], episode: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Returns where an episode's last known row is: there its recording ends, whether it or the file was cut."""
    rows = np.flatnonzero(known)
    last = np.zeros(len(known), dtype=bool)
    last[rows[np.append(np.diff(episode[rows]) > 0, True)]] = True
    return last


def _check_column(name: str, key: str, array: Array, axes: int, states: tuple[int, ...]) -> None:
    require(array.dtype.kind in "fiub", f"{name}: {key} has the type {array.dtype}, but only numbers are allowed")
    require(array.ndim == axes, f"{name}: {key} has the shape {array.shape}, but it must have {axes} axes, rows first")
    require(len(array) > 0, f"{name}: {key} has no rows, but there must be one at least")
    require(
        len(array) == states[0] or key == "final_observations",
        f"{name}: {key} has {len(array)} rows, but observations has {states[0]}: they must agree",
    )
    require(
        key not in SUCCESSORS or array.shape[1:] == states[1:],
        f"{name}: {key} has the shape {array.shape}, but observations has {states}: their columns must agree",
    )


def _float32(array: Array) -> Float[np.ndarray, "..."]:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and Dataset refuses that in a sentence
        return array.astype(np.float32)


def _flags(name: str, key: str, array: Array) -> Bool[np.ndarray, " rows"]:
    require(bool(np.isin(array, (0, 1)).all()), f"{name}: {key} holds other values than 0 and 1, or false and true")
    return array.astype(bool)


# --- Minari ---------------------------------------------------------------------------------------------------------------


def read_minari(identifier: str) -> Columns:
    """Returns the columns of a Minari dataset that is on this machine; nothing is downloaded.

    Raises:
        ModuleNotFoundError: The optional extra is not installed; the sentence has the command.
        FileNotFoundError: The dataset is not on this machine; the sentence has the command.
        ValueError: Its observations or actions are no plain arrays.
    """
    try:
        import minari
    except ModuleNotFoundError as error:
        sentence = f"{MINARI}{identifier} needs Minari: `make setup EXTRAS=minari` installs it"
        raise ModuleNotFoundError(sentence) from error
    try:
        dataset = minari.load_dataset(identifier)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{MINARI}{identifier} is not on this machine: `minari download {identifier}` gets it") from error
    episodes = list(dataset.iterate_episodes())
    plain = all(isinstance(part, np.ndarray) for e in episodes for part in (e.observations, e.actions))
    require(bool(episodes) and plain, f"{MINARI}{identifier} holds no episodes of plain arrays, but only those are allowed")
    arrays = {
        "observations": np.concatenate([e.observations[:-1] for e in episodes]),
        "actions": np.concatenate([e.actions for e in episodes]),
        "rewards": np.concatenate([e.rewards for e in episodes]),
        "terminals": np.concatenate([e.terminations for e in episodes]),
        "timeouts": np.concatenate([_cut(e.terminations) for e in episodes]),
        "final_observations": np.stack([e.observations[-1] for e in episodes]),
    }
    return columns(f"{MINARI}{identifier}", arrays)


def _cut(terminations: Bool[np.ndarray, " steps"]) -> Bool[np.ndarray, " steps"]:
    """Returns true at the last step, unless it is terminal: Gymnasium's terminals are never time limits."""
    cut = np.zeros(len(terminations), dtype=bool)
    cut[-1] = not terminations[-1]
    return cut
