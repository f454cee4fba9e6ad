"""What was measured: several times over, kept in data/benchmarks as evidence of one processor, and shown to a reader."""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import speed
from benchmarks.speed import Effort
from mbaug import files
from mbaug.provenance import provenance

FORMAT = 1
FOLDER = files.repository() / "data" / "benchmarks"  # a file for each processor


def measure(effort: Effort, device: str, sections: Sequence[Callable], report: Callable[[str], object] = print) -> dict:
    """Returns what was measured, how, with what, on what: each measured number as the list of its repeats.

    A whole section is repeated, not each row: what changes slowly on a machine then touches all rows alike. `report` takes a
    line before each section.
    """
    found = {}
    for section in sections:
        report(f"{section.__name__}: {section.__doc__.splitlines()[0].removeprefix('Yields ')}")
        rounds = [list(section(effort, device)) for _ in range(effort.repeats)]
        found[section.__name__] = [
            {name: [row[name] for row in rows] if isinstance(value, float) else value for name, value in rows[0].items()}
            for rows in zip(*rounds, strict=True)
        ]
    about = {"format": FORMAT, "provenance": provenance(", ".join(speed.precisions(device)), device), "cores": os.cpu_count()}
    return about | files.plain(effort) | {"sections": found}


def keep(document: dict, folder: Path = FOLDER) -> Path:
    """Writes a document in place of the same processor's (or GPU's) last one, in one piece or not at all; returns where.

    Raises:
        files.CannotWrite: the folder is full or read-only; the last one is still there.
    """
    origin = document["provenance"]
    name = re.sub("[^a-z0-9]+", "-", origin.get("device", origin["cpu"]).lower()).strip("-")
    files.write_atomically(path := folder / f"{name}.json", (files.json_text(document) + "\n").encode())
    return path


def load(folder: Path = FOLDER) -> list[dict]:
    """Returns the documents in a folder, the processor with the fastest float32 products first; none where there is none.

    Raises:
        ValueError: a file is not what `keep` writes.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
            needed = {section.__name__ for section in (speed.ON_GPU if "device" in document["provenance"] else speed.COMPARED)}
            whole = document["format"] == FORMAT and needed <= set(document["sections"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is no benchmark of format {FORMAT}: measure it again with python -m benchmarks --record")
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
    """Returns a section's rows as lines of a fixed width: medians."""
    shown = table(rows)
    shown = shown[[name for name in shown if not name.endswith(("_low", "_high"))]]
    return f"{section}\n{shown.to_string(index=False, float_format=lambda x: f'{x:.3g}' if x < 10 else f'{x:.0f}')}\n"


def ratios(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence for each of our rows on how many times as fast as another's of the same algorithm it is."""
    found = table(rows)
    ours, others = found[found["by"] == "mbaug"], found[found["by"] != "mbaug"]
    pairs = ours.merge(others, on="algorithm", suffixes=("", "_peer"))
    sentences = [
        f"{row.algorithm}, {row.precision}: {row.updates_per_second / row.updates_per_second_peer:.2f} times {row.by_peer}"
        for row in pairs.itertuples()
    ]
    if set(others["by"]) <= {"plain torch"}:
        sentences.append("No peer is installed: after `make setup EXTRAS=peers` Stable-Baselines3 is measured in the same run.")
    return sentences
