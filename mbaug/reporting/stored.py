"""Tables that chapters compute from trained networks: compared with the committed ones, which are what is drawn.

So `make figures` gives the same bytes on every processor, and the reader still sees the computation run.
"""

import os
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pandas as pd

from mbaug import files
from mbaug.checks import require
from mbaug.experiments.trained import FOLDER

DRAWN = FOLDER / "drawn"  # of the committed tables
ANEW = "MBAUG_STORE_ANEW"  # set by `python -m mbaug figures --anew`: write what is computed in place of comparing it


def stored(
    name: str, computed: pd.DataFrame, profile: str = "paper", tolerance: float = 1e-3, folder: Path = DRAWN
) -> pd.DataFrame:
    """Returns the committed table of that name, after comparing it with the one computed here; in other profiles the latter.

    `tolerance` is the largest difference, in units of a column's largest number.

    Raises:
        FileNotFoundError: there is none yet; the sentence names the command that makes it.
        ValueError: they differ; the sentence names the first number that does.
    """
    if profile != "paper":
        return computed
    path, command = folder / f"{name}.csv", "`python -m mbaug figures --anew` writes it"
    if os.environ.get(ANEW):
        files.write_atomically(path, computed.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode())
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {command}")
    try:
        kept = pd.read_csv(path)
    except ValueError as error:  # as pandas says it of a table that was cut or is no text
        raise ValueError(f"{path} is no table ({str(error).strip()}): {command} anew") from error
    require(
        [*kept] == [*computed] and len(kept) == len(computed),
        f"{path} has {len(kept)} rows of {', '.join(kept)}, but {len(computed)} of {', '.join(computed)} were computed: "
        f"{command} anew",
    )
    for column in kept:
        old, new = kept[column].to_numpy(), computed[column].to_numpy()
        if pd.api.types.is_numeric_dtype(kept[column]) and pd.api.types.is_numeric_dtype(computed[column]):
            same = np.isclose(old, new, rtol=0, atol=tolerance * np.nanmax(np.abs(old), initial=1e-12), equal_nan=True)
        else:
            same = old.astype(str) == new.astype(str)
        if not np.all(same):
            row = int(np.argmin(same))
            raise ValueError(f"{path} has {old[row]} in row {row} of {column}, but {new[row]} was computed: {command} anew")
    return kept


def picture(name: str, draw: Callable[[], bytes], folder: Path = DRAWN) -> np.ndarray:
    """Returns the committed PNG of that name; `python -m mbaug figures --anew` draws it, which needs OpenGL and others do not.

    Raises:
        FileNotFoundError: there is none yet; the sentence has the command.
    """
    path = folder / f"{name}.png"
    if os.environ.get(ANEW):
        files.write_atomically(path, draw())
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: `python -m mbaug figures --anew` draws it")
    return imageio.imread(path)
