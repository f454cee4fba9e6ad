"""What was measured: several times over, kept in data/benchmarks as evidence of one processor, and shown to a reader."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import speed
from benchmarks.speed import Effort
from mbaug import checks, files
from mbaug.checks import Bound, Count, Positive, require, settings
from mbaug.datasets.cards import Sha256
from mbaug.provenance import OPTIONAL, Provenance, provenance

FORMAT = 2  # since then each peer is measured in a process of its own, and a file holds its own digest
INSTALLED = {"Stable-Baselines3": "make setup", "SBX": ".venv/bin/python -m pip install sbx-rl"}  # how peers come
FOLDER = files.repository() / "data" / "benchmarks"  # a file for each processor


@settings
class Benchmark:
    """What `keep` writes."""

    format: Annotated[int, Bound(lambda x: 1 <= x <= FORMAT, f"from 1 to {FORMAT}")]
    provenance: Provenance
    cores: Count | None
    seconds: Positive
    repeats: Count
    populations: tuple[Count, ...]
    growth: tuple[Count, ...]
    rows: tuple[Count, ...]
    sections: dict[str, list[dict[str, Any]]]
    sha256: Sha256 | None = None  # of the file without this line; format 1 has none

    def __post_init__(self) -> None:
        require((self.sha256 is None) == (self.format == 1), "sha256 is there from format 2 on")
        for name, rows in self.sections.items():
            require(rows and all(row.keys() == rows[0].keys() for row in rows), f"section {name} has no rows, or unequal ones")
            for key, value in (pair for row in rows for pair in row.items()):
                repeats = not isinstance(value, list) or len(value) == self.repeats
                found = [number for number in (value if isinstance(value, list) else [value]) if number is not None]
                plain = all(isinstance(number, str | int | float) for number in found)
                require(repeats and plain, f"section {name} has {key} {value!r:.80}, but it must be a value or one a repeat")


def measure(effort: Effort, device: str, sections: Sequence[Callable]) -> dict:
    """Returns what was measured, how, with what, on what: each measured number as the list of its repeats.

    A whole section is repeated, not each row: what changes slowly on a machine then touches all rows alike.
    """
    found = {}
    for section in (progress := tqdm(sections, disable=None)):
        progress.set_description(section.__name__)
        rounds = [list(section(effort, device)) for _ in range(effort.repeats)]
        found[section.__name__] = [
            {name: [row[name] for row in rows] if isinstance(value, float) else value for name, value in rows[0].items()}
            for rows in zip(*rounds, strict=True)
        ]
    about = {"format": FORMAT, "provenance": provenance(", ".join(speed.precisions(device)), device), "cores": os.cpu_count()}
    return about | files.plain(effort) | {"sections": found}


def keep(document: dict, folder: Path = FOLDER) -> Path:
    """Writes a document in place of the same processor's (or GPU's) last one, in one piece or not at all; returns where."""
    origin = document["provenance"]
    name = re.sub("[^a-z0-9]+", "-", origin.get("device", origin["cpu"]).lower()).strip("-")
    files.write_atomically(path := folder / f"{name}.json", files.sealed(document))
    return path


def load(folder: Path = FOLDER) -> list[dict]:
    """Returns the documents in a folder, the processor with the fastest float32 products first; none where there is none.

    Raises:
        ValueError: a file is not what `keep` writes.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = files.content(path)
            document = files.parse_json(content, str(path))
            found = checks.read(Benchmark, document, str(path), {"sha256", *OPTIONAL})
            needed = speed.COMPARED if found.provenance.device is None else speed.ON_GPU
            lacking = sorted({section.__name__ for section in needed} - {*found.sections})
            require(not lacking, f"{path} has no section {', '.join(lacking)}")
            whole = found.sha256 is None or content == files.sealed(document)
            require(whole, f"{path}: its SHA-256 is not the one in it")
        except ValueError as error:
            raise ValueError(f"{error}: measure it again with python -m benchmarks --record") from None
        documents.append(document)
    return sorted(documents, key=lambda document: -max(document["sections"]["products"][0]["gflops"]))


def table(rows: Sequence[dict]) -> pd.DataFrame:
    """Returns rows as a table: each measured number as the median of its repeats, with its lowest and highest beside it."""
    columns = {}
    for name, column in pd.DataFrame(rows).items():
        columns[name] = column
        if isinstance(column[0], list):
            repeats = np.array(column.tolist(), dtype=float)  # None, of a number that was not finite, is NaN again
            columns |= {name: np.median(repeats, 1), f"{name}_low": repeats.min(1), f"{name}_high": repeats.max(1)}
    return pd.DataFrame(columns)


def text(section: str, rows: Sequence[dict]) -> str:
    """Returns a section's rows as lines of a fixed width: medians, with three digits below 10 and none after the point above."""
    shown = table(rows).map(lambda x: (f"{x:.3g}" if x < 10 else f"{x:.0f}") if isinstance(x, float) else x)
    names = [name for name in shown if not str(name).endswith(("_low", "_high"))]
    return f"{section}\n{shown[names].to_string(index=False)}\n"


def pairs(rows: Sequence[dict]) -> pd.DataFrame:
    """Returns each of our rows beside each of another's of the same algorithm (`by_peer`), and how many `times` as fast it is."""
    found = table(rows)
    ours, others = found[found["by"] == "mbaug"], found[found["by"] != "mbaug"]
    paired = ours.merge(others, on="algorithm", suffixes=("", "_peer"))
    return paired.assign(times=paired["updates_per_second"] / paired["updates_per_second_peer"])


def ratios(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence for each of our rows on how many times as fast as another's of the same algorithm it is."""
    sentence = "{algorithm}, {precision}: {times:.2f} times {by_peer}"
    sentences = [sentence.format(**row) for row in pairs(rows).to_dict("records")]
    here = {row["by"].split()[0] for row in rows}
    for library, command in INSTALLED.items():
        if library not in here:
            sentences.append(f"{library} was not measured: after `{command}` it is, in the same run.")
    return sentences
