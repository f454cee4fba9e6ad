"""Records: a run is a CSV of evaluations beside a JSON of metadata, written once and then only read.

`data/runs/<task>/<dataset>/<arm>/seed<k>.csv` holds one row per evaluation episode. The `.json` beside it holds all settings,
the versions of the software and the CSV's SHA-256 (`metadata`). A `.safetensors`, if there is one, holds the actors that were
kept. The JSON is written last, so a run exists if and only if its JSON does. Nothing here is pickled.
"""

import contextlib
import dataclasses
import importlib.util
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import safetensors.torch
from torch import Tensor

from mbaug import files, tasks
from mbaug.checks import NAME, needs, require, suggestion
from mbaug.experiments import metadata as about
from mbaug.method.arms import Arm

COLUMNS = {
    "phase": "str",  # "pretrain" or "finetune"
    "gradient_steps": "int64",  # updates so far, in all phases
    "environment_steps": "int64",  # interactions so far, warm-up included
    "episode": "int64",  # 0, 1, ... within this evaluation
    "return": "float64",  # undiscounted
    "length": "int64",  # steps of this episode
    "discounted_return": "float64",  # sum of discount^t r_t from its first step
    "predicted_value": "float64",  # min_i Q_i(s_0, pi(s_0))
    "data_value": "float64",  # mean of min_i Q_i(s, a) over fixed dataset rows
    "imagined_outside": "float64",  # fraction of imagined components outside the data's range
}
COUNTS = [name for name, kind in COLUMNS.items() if kind == "int64"]
RUN_COLUMNS = {"task": "str", "dataset": "str", "arm": "str", "seed": "int64", "status": "str", "overfitting": "float64"}
HASHES = {".csv": "csv_sha256", ".safetensors": "policies_sha256"}  # keys of the JSON, by file suffix


class RecordDamaged(ValueError):
    """The files of a recorded run are invalid or do not match its JSON."""


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """One agent, trained to the end of its arm. Its name is the path of its record: task/dataset/arm/seed<k>."""

    task: str
    dataset: str  # "none" for arms from scratch
    arm: str
    seed: int

    def __post_init__(self) -> None:
        for name in (self.task, self.dataset, self.arm):
            if not re.fullmatch(NAME, name):
                form = "must begin with a letter, a digit or _ and hold only these and .+-"
                raise ValueError(f"A part of a run's name {form}; got {name!r}.")

    def __str__(self) -> str:
        return f"{self.task}/{self.dataset}/{self.arm}/seed{self.seed}"

    def path(self, root: Path) -> Path:
        """Returns the run's path below `root`, without a suffix."""
        return root / str(self)

    @classmethod
    def parse(cls, text: str) -> "Run":
        """Returns the run with the name `text`; raises ValueError if `text` is not a run's name."""
        match = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/seed(0|[1-9][0-9]*)", text)
        if match is None:
            raise ValueError(f"A run is named task/dataset/arm/seed<k>, with k = 0, 1, ...; got {text!r}.")
        return cls(*match.groups()[:3], seed=int(match[4]))


class Record(NamedTuple):
    """One recorded run: its evaluation episodes, one per row, and its metadata."""

    rows: pd.DataFrame
    metadata: dict[str, Any]


def root() -> Path:
    """Returns the repository's folder of recorded runs, data/runs."""
    return files.repository() / "data" / "runs"


# --- write ----------------------------------------------------------------------------------------------------------------


def write(root: Path, run: Run, rows: Iterable[Mapping], metadata: Mapping, policies: Mapping[str, Tensor] | None = None) -> None:
    """Writes all files of a run, the JSON last.

    A row has exactly the columns in `COLUMNS`, and the metadata have exactly the keys in `metadata.OWN`. Numbers that are not
    finite become null in the JSON. `policies` are the actors to keep, by name; they go into a file of their own.

    Raises:
        FileExistsError: The run is already recorded. Evidence is never overwritten.
        ValueError: A row or the metadata lack a name or have an unknown one, two rows are the same episode, or the metadata
            have an invalid value.
        files.CannotWrite: The folder is full or read-only.
    """
    path = run.path(root)
    if find(root, run) is not None:
        raise FileExistsError(f"{run} is already recorded in {root}: evidence is never overwritten.")
    contents = {".csv": csv(rows)} | ({".safetensors": safetensors.torch.save(dict(policies))} if policies else {})
    hashes = {HASHES[suffix]: files.sha256(content) for suffix, content in contents.items()}
    contents[".json"] = files.sealed({"format": about.FORMAT, **dataclasses.asdict(run), **metadata, **hashes})
    about.checked(files.parse_json(contents[".json"], f"the record of {run}"), f"the record of {run}")
    files.write_together({path.with_suffix(suffix): content for suffix, content in contents.items()})


def csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the rows as CSV, with floats in enough digits to be read back exactly.

    Raises:
        ValueError: A row has other columns, or two rows are the same episode.
    """
    rows, names = list(rows), list(COLUMNS)[:4]
    for row in rows:
        require(row.keys() == COLUMNS.keys(), f"A row must have the columns {', '.join(COLUMNS)}, but it has {', '.join(row)}.")
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if frame.duplicated(names).any():  # a mistake in resuming would do this
        found = " ".join(map(str, frame.loc[frame.duplicated(names).idxmax(), names]))
        raise ValueError(f"Two rows are the same evaluation episode, {found}.")
    return frame.astype(COLUMNS).to_csv(index=False, lineterminator="\n", na_rep="nan").encode()


# --- read -----------------------------------------------------------------------------------------------------------------


def read_metadata(root: Path, run: Run) -> dict[str, Any]:
    """Returns a run's metadata after checking that its CSV is the one for which the JSON was written.

    Raises:
        FileNotFoundError: The run is not recorded.
        RecordDamaged: The JSON or the CSV is not what was written.
    """
    return _verified(root, run)[1]


def read(root: Path, run: Run) -> Record:
    """Returns a run's verified evaluation episodes and metadata; raises as `read_metadata`."""
    content, metadata = _verified(root, run)
    return Record(_frame(content), metadata)


def policies(root: Path, run: Run) -> dict[str, Tensor]:
    """Returns the parameters of a run's kept actors by name, {} if none were kept; raises as `read_metadata`."""
    metadata = read_metadata(root, run)
    if "policies_sha256" not in metadata:
        return {}
    with _naming_damage(run):
        return safetensors.torch.load(_content(run.path(root), ".safetensors", metadata))


def _verified(root: Path, run: Run) -> tuple[bytes, dict[str, Any]]:
    """Returns a run's CSV and metadata; raises as `read_metadata`."""
    path = run.path(root)
    document, actors = path.with_suffix(".json"), path.with_suffix(".safetensors")
    if not document.exists():
        nearest = suggestion(str(run), map(str, recorded(root)), most=1)
        raise FileNotFoundError(f"{run} is not recorded in {root}: {nearest}`python -m mbaug status` counts the recorded runs")
    with _naming_damage(run):
        text = files.content(document)
        metadata = about.checked(files.parse_json(text, str(document)), str(document))
        require(metadata.items() >= dataclasses.asdict(run).items(), f"{document} was written for another run")
        require("sha256" not in metadata or text == files.sealed(metadata), f"{document}: its content does not match its SHA-256")
        content = _content(path, ".csv", metadata)
        header = content.partition(b"\n")[0].decode(errors="replace")
        require(header == ",".join(COLUMNS), f"its CSV has the columns {header} instead of {','.join(COLUMNS)}")
        declared = "policies_sha256" in metadata or not actors.exists()
        require(declared, f"{document} lacks policies_sha256, the SHA-256 of {actors}")
    return content, metadata


def _content(path: Path, suffix: str, metadata: Mapping[str, Any]) -> bytes:
    """Returns the content of a file beside a run's JSON after comparing it with its SHA-256 there."""
    path = path.with_suffix(suffix)
    require(path.exists(), f"{path} is missing")
    content = files.content(path)
    require(files.sha256(content) == metadata[HASHES[suffix]], f"{path} does not match the SHA-256 in its .json")
    return content


@contextlib.contextmanager
def _naming_damage(run: Run) -> Iterator[None]:
    """Turns a ValueError into RecordDamaged, with the run's name and what to do."""
    try:
        yield
    except ValueError as error:
        raise RecordDamaged(f"{run} is damaged: {error}; restore it, or remove it and record the run again.") from None


def _frame(content: bytes) -> pd.DataFrame:
    """Returns the rows of a CSV, with floats exactly as they were written."""
    return pd.read_csv(io.BytesIO(content), dtype=COLUMNS)  # pandas reads floats exactly from 3.1 on


def recorded(root: Path, runs: Iterable[Run] | None = None) -> list[Run]:
    """Returns the runs recorded below `root`, or only those in `runs`, sorted."""
    paths = [path.relative_to(root) for path in root.glob("*/*/*/seed*.json")]
    for path in paths:
        stray = f"{root / path} is not the name of a record, which is seed<k>.json: move the file away"
        require(re.fullmatch(r"seed\d+", path.stem), stray)
    found = {Run.parse(path.with_suffix("").as_posix()) for path in paths}
    return sorted(found if runs is None else found & set(runs))


def find(root: Path, run: Run) -> dict[str, Any] | None:
    """Returns a run's verified metadata, None if it is not recorded; raises RecordDamaged as `read_metadata`."""
    return read_metadata(root, run) if run.path(root).with_suffix(".json").exists() else None


def load_metadata(root: Path, runs: Iterable[Run] | None = None) -> dict[Run, dict[str, Any]]:
    """Returns the verified metadata of the recorded runs, or only of those in `runs`; raises RecordDamaged."""
    return {run: read_metadata(root, run) for run in recorded(root, runs)}


def load_runs(root: Path, runs: Iterable[Run] | None = None) -> pd.DataFrame:
    """Returns the verified evaluation episodes of the recorded runs, or only of those in `runs`, as one tidy frame.

    The columns are those of `RUN_COLUMNS`, those of `COLUMNS`, and score, the D4RL-normalised return. `overfitting` is the error
    of the critics on new rows divided by that on trained rows when pre-training ends, NaN if it was not measured. A run that
    diverged before its first evaluation has one row without phase and returns. Raises RecordDamaged as `read_metadata`.
    """
    found = {run: _verified(root, run) for run in recorded(root, runs)}
    run_values = [
        dataclasses.asdict(run) | {"status": metadata["status"], "overfitting": _overfitting(metadata)}
        for run, (_, metadata) in found.items()
    ]
    header, bodies = ",".join(COLUMNS).encode(), [content.partition(b"\n")[2] for content, _ in found.values()]
    rows = _frame(b"\n".join([header, b"".join(bodies)]))  # parsed at once: a thousand small parses take far longer
    rows.index = pd.Index(np.repeat(np.arange(len(found)), [body.count(b"\n") for body in bodies]))
    frame = pd.DataFrame(run_values, columns=list(RUN_COLUMNS)).astype(RUN_COLUMNS).join(rows).reset_index(drop=True)
    frame[COUNTS] = frame[COUNTS].fillna(0).astype("int64")  # NaN for a run without rows
    scores = []
    for name, part in frame.groupby("task"):
        task = str(name)
        foreign = f"{root / task} holds runs of a task that mbaug/tasks.py lacks: add it to EXTRA, or move the folder away"
        require(task in tasks.EVERY, foreign)
        scores.append(tasks.normalised_score(tasks.EVERY[task], part["return"]))
    return frame.assign(score=pd.concat(scores) if scores else pd.Series(dtype=float))


def write_parquet(root: Path, path: Path) -> None:
    """Writes the frame of all recorded runs (`load_runs`) as one Parquet file; raises ModuleNotFoundError without pyarrow."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ModuleNotFoundError(needs("Parquet", "pyarrow"))
    content = io.BytesIO()
    load_runs(root).to_parquet(content, index=False)
    files.write_atomically(path, content.getvalue())


def _overfitting(metadata: Mapping[str, Any]) -> float:
    """Returns a run's error on new rows divided by that on trained rows, NaN if its record lacks them."""
    found = metadata["watch"].get("overfitting") or {}
    new, trained = found.get("error_new"), found.get("error_trained")
    return new / trained if new and trained else np.nan


# --- recorded and current settings ----------------------------------------------------------------------------------------


def difference(metadata: Mapping[str, Any], arm: Arm) -> str | None:
    """Returns a sentence that names the first setting in which a record differs from `arm`, None if there is none."""
    recorded, current = (files.finite(files.plain(settings)) for settings in (about.arm(dict(metadata)), arm))
    return _difference(recorded, current, "settings")


def _difference(recorded: Any, current: Any, name: str) -> str | None:
    """Returns what `difference` does for plain data, of which `name` is the path in the settings."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        pairs = {key: [side.get(key, "absent") for side in (recorded, current)] for key in recorded | current}
        differences = (_difference(then, now, f"{name}.{key}") for key, (then, now) in pairs.items())
        return next(filter(None, differences), None)
    if recorded == current:
        return None
    return f"{name} is {recorded!r} in the record and {current!r} in today's code."
