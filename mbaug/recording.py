"""Evidence: a run is a CSV of evaluations beside a JSON of its provenance, written once and then only read.

`data/runs/<study>/<task>/<dataset>/<arm>/seed<k>.csv` holds one row per evaluation episode; the
`.json` beside it holds all settings, the versions that made it and the CSV's SHA-256; a `.safetensors`,
where there is one, the actors that were kept. The JSON is written last, so a run exists if and only if
its JSON does. Checkpoints, which let an interrupted run go on, are safetensors beside JSON with the same
promise. Nothing here is pickled.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import math
import operator
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mbaug import __version__, files, tasks

FORMAT = 2
CHECKPOINT_FORMAT = 1
SINCE = {"calibration": 2}  # the format that a name came with: older records lack it
COLUMNS = {
    "phase": str,  # "pretrain" or "finetune"
    "gradient_steps": int,  # updates so far in the agent's life, all phases
    "environment_steps": int,  # interactions so far, warm-up included
    "episode": int,  # 0, 1, ... within this evaluation
    "return": float,  # undiscounted
    "length": int,  # steps of this episode
    "discounted_return": float,  # sum of discount^t r_t from its first step
    "predicted_value": float,  # min_i Q_i(s_0, pi(s_0))
    "data_value": float,  # mean of min_i Q_i(s, a) over a fixed probe of dataset rows
    "imagined_outside": float,  # fraction of imagined components outside the data's range
}
PHASES = ("pretrain", "finetune")
METADATA = (
    "settings",  # every setting, nested
    "draw_sha256",  # of the transitions this seed drew from its dataset; None from scratch
    "status",  # "finished" or "diverged"
    "diverged_at",  # gradient_steps and environment_steps, or None
    "watch",  # the failure signatures
    "calibration",  # values against returns on fixed states at the end of pre-training (`overfitting.calibration`), or None
    "world_model",  # its held-out errors, or None
    "provenance",  # see `provenance`; also earlier_commits of a life that other code began, and copied_from of a copy
    "wall_seconds",  # of training and evaluation; of a population's, the share of one agent
)
STATUSES = ("finished", "diverged")
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"  # a part of a run's name, and the name of a dataset


class RecordDamaged(ValueError):
    """A recorded run does not hold what its JSON promises."""


class CheckpointDamaged(ValueError):
    """A checkpoint does not hold what its JSON promises."""


class AlreadyRecording(RuntimeError):
    """Another process is recording the same run."""


# --- names and places -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One agent through its whole life, named by where its record is kept: study/task/dataset/arm/seed."""

    study: str
    task: str
    dataset: str  # "none" for arms from scratch
    arm: str
    seed: int

    def __post_init__(self) -> None:
        for name in (self.study, self.task, self.dataset, self.arm):
            if not re.fullmatch(NAME, name):
                raise ValueError(f"A part of a run's name holds letters, digits and _.+- only; got {name!r}.")
        if self.seed < 0:
            raise ValueError(f"A run's seed is 0 or more; got {self.seed}.")

    def __str__(self) -> str:
        return f"{self.study}/{self.task}/{self.dataset}/{self.arm}/seed{self.seed}"

    def path(self, root: Path | str) -> Path:
        """Returns the run's path below `root`, without a suffix."""
        return Path(root) / str(self)

    @classmethod
    def parse(cls, text: str) -> "Run":
        """Returns the run that `str` wrote as `text`.

        Raises:
            ValueError: The text is not of the form study/task/dataset/arm/seed<k>.
        """
        match = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/([^/]+)/seed(0|[1-9][0-9]*)", text)
        if match is None:
            raise ValueError(f"A run reads study/task/dataset/arm/seed<k>, with k = 0, 1, ...; got {text!r}.")
        return cls(*match.groups()[:4], seed=int(match[5]))


class Record(NamedTuple):
    """One recorded run: its evaluation episodes, a row each, and its provenance."""

    rows: pd.DataFrame
    metadata: dict[str, Any]


def repository() -> Path:
    """Returns the folder of the clone that this package was installed from.

    Raises:
        FileNotFoundError: The package was installed without its repository.
    """
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"mbaug is installed in {folder} without its repository, which holds the recorded runs: "
            "install a clone with `pip install --editable .`, or name the folder of runs yourself."
        )
    return folder


def root() -> Path:
    """Returns the repository's folder of recorded runs, data/runs."""
    return repository() / "data" / "runs"


# --- runs: write ----------------------------------------------------------------------------------


def write(
    root: Path | str, run: Run, rows: Iterable[Mapping], metadata: Mapping, policies: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a run: the CSV first, then the JSON that holds its SHA-256, each in one piece or not at all.

    Args:
        root: Folder of runs.
        run: What was run.
        rows: One mapping per evaluation episode, with exactly the names in `COLUMNS`.
        metadata: The names in `METADATA`; numbers that are not finite are written as null.
        policies: Parameters of the actors that are kept, by name, in a file of their own.

    Raises:
        FileExistsError: The run is already recorded; evidence is never overwritten.
        ValueError: A row or the metadata lack a name, or have one that is unknown.
        files.CannotWrite: The folder is full or read-only.
    """
    _check_names("A run's metadata", metadata, METADATA)
    path = run.path(root)
    if path.with_suffix(".json").exists():
        raise FileExistsError(f"{run} is already recorded in {root}: evidence is never overwritten.")
    if metadata["status"] not in STATUSES:
        raise ValueError(f"A record's status is {' or '.join(STATUSES)}; got {metadata['status']!r}.")
    content = _csv(rows).encode()
    identity = {"format": FORMAT, **dataclasses.asdict(run)}
    document = {**identity, **metadata, "csv_sha256": sha256(content)}
    weights = safetensors.torch.save(dict(policies)) if policies else b""
    if weights:
        document |= {"policies_sha256": sha256(weights)}
    text = json_text(document) + "\n"  # before anything is written: it may refuse the metadata
    files.write_atomically(path.with_suffix(".csv"), content)
    if weights:
        files.write_atomically(path.with_suffix(".safetensors"), weights)
    files.write_atomically(path.with_suffix(".json"), text.encode())


def _check_names(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises ValueError with the names that are missing or unknown, if there are any."""
    if different := sorted(set(allowed) ^ set(given)):
        wrong = ", ".join(f"{name} is {'missing' if name in allowed else 'unknown'}" for name in different)
        raise ValueError(f"{what} has exactly the names {', '.join(allowed)}; here {wrong}.")


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns the rows as CSV text."""
    lines, seen = [",".join(COLUMNS)], set()
    for row in rows:
        _check_names("A row", row, COLUMNS)
        values = [_text(kind, row[name]) for name, kind in COLUMNS.items()]
        if (episode := " ".join(values[:4])) in seen:  # what a mistake in resuming looks like
            raise ValueError(f"Two rows are the same evaluation episode, {episode}.")
        seen.add(episode)
        lines.append(",".join(values))
    return "\n".join(lines) + "\n"


def _text(kind: type, value: Any) -> str:
    """Returns a value as it stands in the CSV; a float has the digits that reading it back needs."""
    if kind is float:
        return repr(float(value))
    if kind is int:
        return str(operator.index(value))
    if value not in PHASES:
        raise ValueError(f"A phase is {' or '.join(PHASES)}; got {value!r}.")
    return value


def plain(value: Any) -> Any:
    """Returns `value` as JSON knows it: dataclasses as dicts, tuples as lists, array scalars as numbers.

    Raises:
        TypeError: A value has no equal in JSON, or a key is not a string (JSON would silently make it one).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_string(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"JSON holds numbers, texts, lists and dicts; got {type(value).__name__}: {value!r:.80}.")


def json_text(document: Any) -> str:
    """Returns a document as standard JSON, with null for numbers that are not finite."""
    return json.dumps(_finite(plain(document)), indent=2)


def _string(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"A key in JSON is a string; got {key!r}.")
    return key


def _finite(value: Any) -> Any:
    """Returns `value` with null for NaN and the infinities, which standard JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sha256(content: bytes) -> str:
    """Returns the SHA-256 of `content` in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


# --- runs: read -----------------------------------------------------------------------------------


def verify(root: Path | str, run: Run) -> dict[str, Any]:
    """Returns a run's metadata after checking that its CSV is the one that the JSON was written for.

    Raises:
        FileNotFoundError: The run is not recorded.
        RecordDamaged: The JSON or the CSV is not what was written.
    """
    return _verified(Path(root), run)[1]


def read(root: Path | str, run: Run) -> Record:
    """Returns a run's evaluation episodes and metadata, verified; raises what `verify` raises."""
    body, metadata = _verified(Path(root), run)
    return Record(_frame([body]), metadata)


def policies(root: Path | str, run: Run) -> dict[str, Tensor]:
    """Returns the parameters of the actors that were kept of a run, by name, verified; none if none were.

    Raises:
        FileNotFoundError: The run is not recorded.
        RecordDamaged: A file is not what was written.
    """
    metadata, path = verify(root, run), run.path(root).with_suffix(".safetensors")
    if "policies_sha256" not in metadata:
        return {}
    if not path.exists():
        raise _damaged_run(run, f"{path} is missing")
    weights = path.read_bytes()
    if sha256(weights) != metadata["policies_sha256"]:
        raise _damaged_run(run, f"the SHA-256 of {path} is not the one in its .json")
    return safetensors.torch.load(weights)


def _verified(root: Path, run: Run) -> tuple[bytes, dict[str, Any]]:
    """Returns the CSV's lines without its header, and the metadata."""
    path = run.path(root)
    if not path.with_suffix(".json").exists():
        raise FileNotFoundError(f"{run} is not recorded in {root}.")
    metadata = _metadata(path.with_suffix(".json"), run)
    try:
        content = path.with_suffix(".csv").read_bytes()
    except FileNotFoundError:
        raise _damaged_run(run, f"{path}.csv is missing") from None
    if sha256(content) != metadata["csv_sha256"]:
        raise _damaged_run(run, f"the SHA-256 of {path}.csv is not the one in its .json")
    header, _, body = content.partition(b"\n")
    if header.decode() != ",".join(COLUMNS):
        raise _damaged_run(run, f"its CSV has the columns {header.decode()} instead of {','.join(COLUMNS)}")
    return body, metadata


def _metadata(path: Path, run: Run) -> dict[str, Any]:
    """Returns the content of a run's JSON if it is of today's format and names the run that its path does."""
    try:
        metadata = json.loads(path.read_bytes())
    except ValueError:
        raise _damaged_run(run, f"{path} is not JSON") from None
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found not in range(1, FORMAT + 1):
        raise RecordDamaged(f"{run} has the format {found!r}; this version of mbaug reads formats 1 to {FORMAT}.")
    identity = dataclasses.asdict(run)
    names = (name for name in (*identity, *METADATA, "csv_sha256") if SINCE.get(name, 1) <= found)
    if lacking := [name for name in names if name not in metadata]:
        raise _damaged_run(run, f"{path} lacks {', '.join(lacking)}")
    if any(metadata[name] != value for name, value in identity.items()):
        raise _damaged_run(run, f"{path} was written for another run")
    return metadata


def _damaged_run(run: Run, reason: str) -> RecordDamaged:
    return RecordDamaged(f"{run} is damaged: {reason}; restore it, or remove it and record the run again.")


def _frame(bodies: list[bytes]) -> pd.DataFrame:
    """Returns the rows of several CSV bodies as one frame.

    NumPy's reader returns exactly the floats that were written; pandas' does so only in some versions.
    """
    kinds = {str: "U8", int: "i8", float: "f8"}
    columns = [(name, kinds[kind]) for name, kind in COLUMNS.items()]
    text = io.StringIO(b"".join(bodies).decode())
    table = np.loadtxt(text, columns, delimiter=",", ndmin=1) if any(bodies) else np.empty(0, columns)
    return pd.DataFrame({name: table[name] for name in COLUMNS})


def recorded(root: Path | str, study: str | None = None) -> list[Run]:
    """Returns the runs below `root`, of one study or of all, in order."""
    pattern = f"{study or '*'}/*/*/*/seed*.json"
    paths = (path.relative_to(root).with_suffix("") for path in Path(root).glob(pattern))
    return sorted(Run.parse(path.as_posix()) for path in paths)


def missing(root: Path | str, runs: Iterable[Run]) -> list[Run]:
    """Returns those of `runs` that are not yet recorded below `root`, in the order given."""
    return [run for run in runs if not run.path(root).with_suffix(".json").exists()]


def load_metadata(root: Path | str, study: str | None = None) -> dict[Run, dict[str, Any]]:
    """Returns the metadata of every recorded run, of one study or of all, each verified."""
    return {run: verify(root, run) for run in recorded(root, study)}


def load_runs(root: Path | str, study: str | None = None) -> pd.DataFrame:
    """Returns all evaluation episodes of a study, or of all studies, as one tidy frame, verified.

    The columns are study, task, dataset, arm, seed, status, overfitting (at the end of pre-training:
    the critics' error on new rows divided by that on trained rows; NaN where it was not measured),
    those of `COLUMNS`, and score: the return, D4RL-normalised. A run that diverged before its first
    evaluation has one row without phase and returns. All text is parsed at once: a thousand small
    parses take far longer.
    """
    runs = recorded(root, study)
    verified = [_verified(Path(root), run) for run in runs]
    rows = _frame([body for body, _ in verified])
    counts = np.array([body.count(b"\n") for body, _ in verified], dtype=int)
    rows = _blanks(rows, counts)
    names = {field.name: [getattr(run, field.name) for run in runs] for field in dataclasses.fields(Run)}
    owners = pd.DataFrame({**names, "status": [metadata["status"] for _, metadata in verified]})
    owners = owners.astype({name: int if name == "seed" else str for name in owners})  # also where there are no runs
    owners["overfitting"] = np.array([_overfitting(metadata) for _, metadata in verified], dtype=float)
    owners = owners.iloc[np.repeat(np.arange(len(runs)), np.maximum(counts, 1))].reset_index(drop=True)
    frame = pd.concat([owners, rows], axis="columns")
    return frame.assign(score=_scores(frame))


def _blanks(rows: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    """Returns the rows of runs that have `counts` of them, with a row without phase and returns where a run has none."""
    places = np.insert(np.arange(len(rows)), np.cumsum(counts)[counts == 0], -1)
    whole = [name for name, kind in COLUMNS.items() if kind is int]  # stay whole numbers: NaN would make them floats
    blank = rows.reindex(places).assign(**rows[whole].reindex(places, fill_value=0))
    return blank.reset_index(drop=True)


def _overfitting(metadata: dict[str, Any]) -> float:
    """Returns a run's error on new rows divided by that on trained rows, NaN where its record does not have them."""
    found = metadata["watch"].get("overfitting") or {}
    errors = found.get("error_new"), found.get("error_trained")
    return errors[0] / errors[1] if all(errors) else np.nan


def _scores(frame: pd.DataFrame) -> pd.Series:
    """Returns the D4RL-normalised score of each row of `frame`."""
    scores = pd.Series(np.nan, index=frame.index)
    for task, returns in frame.groupby("task")["return"]:
        scores[returns.index] = tasks.normalised_score(tasks.find(task), returns.to_numpy())
    return scores


# --- provenance -----------------------------------------------------------------------------------


def provenance(precision: str, device: str = "cpu") -> dict[str, str]:
    """Returns what a run's numbers depend on beside its settings: code, versions, processor and arithmetic.

    Args:
        precision: The arithmetic that training used, "float32" or "bfloat16".
        device: What trained; it is named where it is not the processor.
    """
    gpu = {} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "gymnasium", "mujoco")}
    torch_version = str(torch.__version__)  # names its CUDA, where the metadata of the default wheel do not
    versions = {"python": platform.python_version(), "torch": torch_version, **packages, "mbaug": __version__}
    return {"commit": commit(), **versions, "cpu": processor(), **gpu, "precision": precision}


@cache
def commit() -> str:
    """Returns the commit of the code that runs, with "+dirty" where a tracked file of the package differs from it.

    Asked once a process, before it trains: hours later the folder may hold other code than was imported.
    """
    try:
        head, changes = _git("rev-parse", "HEAD"), _git("diff", "--name-only", "HEAD", "--", ".")
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy of the code without its history
        return "unknown"
    return f"{head}+dirty" if changes else head


def _git(*arguments: str) -> str:
    """Returns what git answers in the package's folder."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """Returns the processor's name, on Linux with its family and model: a virtual machine often tells the brand alone."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", first, re.MULTILINE))
    name = facts.pop("model name", platform.machine())
    return ", ".join([name, *(f"{fact.removeprefix('cpu ')} {value}" for fact, value in facts.items())])


def first_difference(recorded: Any, current: Any) -> str | None:
    """Returns a sentence that names the first setting that differs and both values, or None.

    Args:
        recorded: The settings in a record.
        current: Today's settings, as dicts or dataclasses.
    """
    return _difference(_finite(plain(recorded)), _finite(plain(current)), "settings")


def _difference(recorded: Any, current: Any, name: str) -> str | None:
    if isinstance(recorded, dict) and isinstance(current, dict):
        pairs = {key: [side.get(key, "absent") for side in (recorded, current)] for key in recorded | current}
        differences = (_difference(*pair, f"{name}.{key}") for key, pair in pairs.items())
        return next(filter(None, differences), None)
    if recorded == current:
        return None
    return f"{name} is {recorded!r} in the record and {current!r} in today's code."


# --- checkpoints ----------------------------------------------------------------------------------


def save_checkpoint(folder: Path | str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint that replaces the folder's last one only once it is complete.

    The tensors go to a file with a new number, then the JSON with that number and the tensors'
    SHA-256: a checkpoint exists if and only if its JSON does. Only then is the one before removed,
    so that a crash at any moment leaves one that can be loaded.

    Args:
        folder: A folder for this checkpoint alone.
        tensors: Named tensors on any device; those that share memory are stored apart.
        state: What JSON can hold; integers of any size and NaN come back as they were, tuples as lists.

    Raises:
        TypeError: The state holds something that JSON cannot.
        files.CannotWrite: The folder is full or read-only; the checkpoint before is still there.
    """
    folder = Path(folder)
    number = max(_numbers(folder), default=0) + 1
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    weights, state = safetensors.torch.save(apart), plain(state)
    hashes = {"tensors_sha256": sha256(weights), "state_sha256": sha256(json.dumps(state).encode())}
    document = {"format": CHECKPOINT_FORMAT, **hashes, "state": state}
    files.write_atomically(folder / f"{number}.safetensors", weights)
    files.write_atomically(folder / f"{number}.json", json.dumps(document).encode())
    for stale in folder.glob("*.*"):
        if stale.stem.isdecimal() and int(stale.stem) < number:
            stale.unlink()


def _numbers(folder: Path) -> list[int]:
    """Returns the numbers of the complete checkpoints in `folder`."""
    return [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]


def has_checkpoint(folder: Path | str) -> bool:
    """Returns whether `folder` holds a checkpoint."""
    return bool(_numbers(Path(folder)))


def load_checkpoint(folder: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, on the CPU, and the state of the last complete checkpoint in `folder`.

    Raises:
        FileNotFoundError: The folder holds no checkpoint.
        CheckpointDamaged: A file is not what was written.
    """
    folder = Path(folder)
    if not has_checkpoint(folder):
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    path = folder / str(max(_numbers(folder)))
    try:
        document = json.loads(path.with_suffix(".json").read_bytes())
        weights = path.with_suffix(".safetensors").read_bytes()
        found = document["format"], sha256(json.dumps(document["state"]).encode()), sha256(weights)
        promised = CHECKPOINT_FORMAT, document["state_sha256"], document["tensors_sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(_damage(path, str(error))) from error
    if found != promised:
        raise CheckpointDamaged(_damage(path, "a SHA-256 is not the one that was written"))
    return safetensors.torch.load(weights), document["state"]


def _damage(path: Path, reason: str) -> str:
    return f"The checkpoint {path} is damaged ({reason}): remove its folder to begin this run again."


@contextmanager
def claim(folder: Path | str, wait: bool = False) -> Iterator[None]:
    """Holds `folder` for this process; the kernel lets go of it when the process ends, however it ends.

    The lock's file stays: were it removed, one process could lock the old file and another a new one.

    Args:
        folder: Made where there is none.
        wait: Until another process that holds it lets go, instead of raising.

    Raises:
        AlreadyRecording: Another process holds it; the sentence says which.
        files.CannotWrite: The folder is full or read-only.
    """
    import fcntl  # POSIX only, and the records can be read anywhere

    path = Path(folder) / "lock"
    with files.in_one_sentence(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 -- closed, and so released, below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise AlreadyRecording(f"{folder} is being recorded by {holder}: wait or stop it.") from None
        with files.in_one_sentence(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def claimed(folder: Path | str) -> bool:
    """Returns whether a process holds `folder`; writes nothing, so that a read-only clone can be asked."""
    import fcntl

    try:
        with open(Path(folder) / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
