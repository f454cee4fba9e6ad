"""Repeats the measurements, records them in data/benchmarks, one file per processor, and formats them for readers."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks import speed
from benchmarks.speed import Effort
from mbaug import files
from mbaug.provenance import provenance

FORMAT = 3  # from 2 on, each library has a process of its own; from 3 on, a population's limit is that of all its networks
INSTALLED = {"Stable-Baselines3": "make setup", "SBX": ".venv/bin/python -m pip install sbx-rl"}  # commands that install peers
FOLDER = files.repository() / "data" / "benchmarks"  # one file per processor


def measure(effort: Effort, device: str, sections: Sequence[Callable]) -> dict:
    """Returns a document with the sections, the effort and the provenance. Each measured number is the list of its repeats.

    We repeat whole sections rather than single rows, so that slow changes of the machine's speed affect all rows alike.
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
    """Writes a document atomically, replacing the last one of the same processor or GPU; returns the path."""
    origin = document["provenance"]
    name = re.sub("[^a-z0-9]+", "-", origin.get("device", origin["cpu"]).lower()).strip("-")
    path = folder / f"{name}.json"
    files.write_atomically(path, files.sealed(document))
    return path


def load(folder: Path = FOLDER) -> list[dict]:
    """Returns the documents in a folder, the processor with the fastest float32 products first.

    Raises:
        ValueError: A file is damaged or was edited.
    """
    remedy = "measure it again with python -m benchmarks --record"
    documents = [files.unsealed(path, remedy) for path in sorted(folder.glob("*.json"))]
    return sorted(documents, key=lambda document: -max(document["sections"]["products"][0]["gflops"]))


def table(rows: Sequence[dict]) -> pd.DataFrame:
    """Returns rows as a table, with the median, lowest and highest repeat of each measured number."""
    columns = {}
    for name, column in pd.DataFrame(rows).items():
        columns[name] = column
        if isinstance(column[0], list):
            repeats = np.array(column.tolist(), dtype=float)  # None in JSON stands for NaN
            columns |= {name: np.median(repeats, 1), f"{name}_low": repeats.min(1), f"{name}_high": repeats.max(1)}
    return pd.DataFrame(columns)


def text(section: str, rows: Sequence[dict]) -> str:
    """Returns a section as a text table of medians, with three significant digits below 10 and whole numbers above."""
    shown = table(rows).map(lambda x: (f"{x:.3g}" if x < 10 else f"{x:.0f}") if isinstance(x, float) else x)
    names = [name for name in shown if not str(name).endswith(("_low", "_high"))]
    return f"{section}\n{shown[names].to_string(index=False)}\n"


def pairs(rows: Sequence[dict]) -> pd.DataFrame:
    """Returns each of our rows joined to each peer's row of the same algorithm, with `times`, the ratio of their speeds."""
    measured = table(rows)
    ours, others = measured[measured["by"] == "mbaug"], measured[measured["by"] != "mbaug"]
    paired = ours.merge(others, on="algorithm", suffixes=("", "_peer"))
    return paired.assign(times=paired["updates_per_second"] / paired["updates_per_second_peer"])


def ratios(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence for each of our rows and each peer on the ratio of their speeds, and one for each missing peer."""
    sentence = "{algorithm}, {precision}: {times:.2f} times {by_peer}"
    sentences = [sentence.format(**row) for row in pairs(rows).to_dict("records")]
    libraries = {row["by"].split()[0] for row in rows}
    for library, command in INSTALLED.items():
        if library not in libraries:
            sentences.append(f"{library} was not measured: install it with `{command}` and measure again.")
    return sentences
