"""Trains a recorded run again and compares its rows with the record."""

from pathlib import Path

import numpy as np
import pandas as pd

from mbaug.checks import require
from mbaug.experiments import records, run, studies
from mbaug.experiments.records import Run
from mbaug.provenance import VERSIONED, provenance


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
    then, now = record.metadata["provenance"], provenance(arm.precision)
    names = "cpu", "device", "torch", *VERSIONED
    excuses = ", ".join(f"{name} {now.get(name)}, not {then[name]}" for name in names if then.get(name) != now.get(name))

    def different(how: str) -> str:
        """Returns how the rows differ if rounding may explain it, else raises ValueError."""
        sentence = f"{which}: different {how}"
        require(bool(excuses), f"{sentence}, with the same processor and versions: the code computes something else")
        return f"{sentence}, perhaps because of rounding: this machine has {excuses}"

    if len(again) > len(record.rows) or (population.ended and len(again) < len(record.rows)):
        return different(f"number of rows, {len(again)} for {len(record.rows)}")
    recorded = record.rows[: len(again)]
    if again.equals(recorded):
        return f"{which}: {len(again)} rows are equal bit for bit"
    numbers = [name for name, kind in records.COLUMNS.items() if kind == "float64"]
    close = np.isclose(again[numbers], recorded[numbers], rtol=1e-3, equal_nan=True).all(axis=1)
    close &= (again.drop(columns=numbers) == recorded.drop(columns=numbers)).all(axis=1)
    if close.all():
        largest = (again[numbers] - recorded[numbers]).abs().max().max()
        return f"{which}: {len(again)} rows are equal within 0.1 %, the largest difference is {largest:.2g}"
    first = again.loc[~close, ["phase", "gradient_steps", "environment_steps", "episode"]].iloc[0].to_dict()
    return different(f"from row {int((~close).argmax())} on ({first})")
