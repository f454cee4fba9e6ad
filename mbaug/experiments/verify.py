"""Trains a recorded run again and compares its rows with the record."""

from pathlib import Path

import numpy as np
import pandas as pd

from mbaug.checks import require
from mbaug.experiments import records, run, studies
from mbaug.experiments.records import Run
from mbaug.provenance import VERSIONED, provenance

NUMBERS = [name for name, kind in records.COLUMNS.items() if kind == "float64"]  # columns that rounding may change


def verify(which: Run, root: Path, work: Path, updates: int = 10_000) -> str:
    """Trains a recorded run again and returns a sentence that says whether its rows are equal, close, or where they differ.

    Stops after `updates` gradient steps; `work` is an empty folder for checkpoints.

    Raises:
        ValueError: The arm no longer exists or its settings are no longer the recorded ones, or this
            processor lacks its precision, or the rows differ although processor and versions are
            those of the record. In the last case the code computes something else.
    """
    record, arm = records.read(root, which), studies.arm(which.arm)
    difference = records.difference(record.metadata, arm)
    require(difference is None, f"{which} cannot be verified: {difference}")
    run.prepare_for(arm)
    for population in run.train([which], arm, work):
        if population.learner.gradient_steps >= updates:
            break
    again = pd.DataFrame(population.rows[0], columns=list(records.COLUMNS)).astype(records.COLUMNS)
    if how := different(again, record.rows, population.ended):
        then, now = record.metadata["provenance"], provenance(arm.precision)
        names = [name for name in ("cpu", "device", "torch", *VERSIONED) if then.get(name) != now.get(name)]
        sentence = f"{which}: different {how}"
        require(bool(names), f"{sentence}, with the same processor and versions: the code computes something else")
        excuses = ", ".join(f"{name} {now.get(name)}, not {then.get(name)}" for name in names)
        return f"{sentence}, perhaps because of rounding: this machine has {excuses}"
    recorded = record.rows[: len(again)]
    if again.equals(recorded):
        return f"{which}: {len(again)} rows are equal bit for bit"
    largest = (again[NUMBERS] - recorded[NUMBERS]).abs().max().max()
    return f"{which}: {len(again)} rows are equal within 0.1 %, the largest difference is {largest:.2g}"


def different(again: pd.DataFrame, recorded: pd.DataFrame, ended: bool) -> str | None:
    """Returns how rows differ by more than 0.1 % from the recorded ones, or None; none may be missing if training has `ended`."""
    if len(again) > len(recorded) or (ended and len(again) < len(recorded)):
        return f"number of rows, {len(again)} for {len(recorded)}"
    recorded = recorded[: len(again)]
    close = np.isclose(again[NUMBERS], recorded[NUMBERS], rtol=1e-3, equal_nan=True).all(axis=1)
    close &= (again.drop(columns=NUMBERS) == recorded.drop(columns=NUMBERS)).all(axis=1)
    if close.all():
        return None
    first = again.loc[~close, ["phase", "gradient_steps", "environment_steps", "episode"]].iloc[0].to_dict()
    return f"from row {int((~close).argmax())} on ({first})"
