"""What was measured: several times over, kept in data/benchmarks as evidence of one processor, and shown to a reader."""

import json
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
from mbaug.checks import require
from mbaug.provenance import provenance

FORMAT = 1
FOLDER = files.repository() / "data" / "benchmarks"  # a file for each processor


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
            needed = speed.ON_GPU if "device" in document["provenance"] else speed.COMPARED
            complete = {section.__name__ for section in needed} <= set(document["sections"])
            require(document["format"] == FORMAT and complete, "of another format, or with too few sections")
        except (ValueError, KeyError, TypeError):
            sentence = f"{path} is no benchmark of format {FORMAT}: measure it again with python -m benchmarks --record"
            raise ValueError(sentence) from None
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


def ratios(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence for each of our rows on how many times as fast as another's of the same algorithm it is."""
    found = table(rows)
    ours, others = found[found["by"] == "mbaug"], found[found["by"] != "mbaug"]
    pairs = ours.merge(others, on="algorithm", suffixes=("", "_peer"))
    pairs["times"] = pairs["updates_per_second"] / pairs["updates_per_second_peer"]
    sentence = "{algorithm}, {precision}: {times:.2f} times {by_peer}"
    sentences = [sentence.format(**row) for row in pairs.to_dict("records")]
    if set(others["by"]) <= {"plain torch"}:
        sentences.append("No peer is installed: after `make setup` Stable-Baselines3 is measured in the same run.")
    return sentences
