"""Tables that chapters compute from trained networks, compared with committed copies. The figures draw the copies.

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

DRAWN = FOLDER / "drawn"  # folder of the committed tables
ANEW = "MBAUG_STORE_ANEW"  # variable that `python -m mbaug figures --anew` sets: overwrite the committed tables


def command(name: str) -> str:
    """Returns the command that writes a table or a picture, whose name begins with its chapter's number."""
    return f"python -m mbaug figures --only {name[:2]} --anew"


def stored(
    name: str, computed: pd.DataFrame, profile: str = "paper", tolerance: float = 1e-3, folder: Path = DRAWN
) -> pd.DataFrame:
    """Returns the committed table, after comparing it with the computed one.

    Profiles other than "paper" get the computed one.

    `tolerance` is the largest allowed difference, as a fraction of a column's largest absolute value.

    Raises:
        FileNotFoundError: The table does not exist yet; the message names the command that writes
            it.
        ValueError: The tables differ; the message names the first number that does.
    """
    if profile != "paper":
        return computed
    path, remedy = folder / f"{name}.csv", f"`{command(name)}` writes it"
    if os.environ.get(ANEW):
        files.write_atomically(path, computed.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode())
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {remedy}")
    try:
        committed = pd.read_csv(path)
    except ValueError as error:  # pandas raises it, or a subclass, for a truncated or binary file
        raise ValueError(f"{path} is not a table ({str(error).strip()}): {remedy} anew") from error
    require(
        [*committed] == [*computed] and len(committed) == len(computed),
        f"{path} has {len(committed)} rows of {', '.join(committed)}, but {len(computed)} of {', '.join(computed)} were "
        f"computed: {remedy} anew",
    )
    for column in committed:
        old, new = committed[column].to_numpy(), computed[column].to_numpy()
        if pd.api.types.is_numeric_dtype(committed[column]) and pd.api.types.is_numeric_dtype(computed[column]):
            same = np.isclose(old, new, rtol=0, atol=tolerance * np.nanmax(np.abs(old), initial=1e-12), equal_nan=True)
        else:
            same = old.astype(str) == new.astype(str)
        if not np.all(same):
            row = int(np.argmin(same))
            raise ValueError(f"{path} has {old[row]} in row {row} of {column}, but {new[row]} was computed: {remedy} anew")
    return committed


def picture(name: str, draw: Callable[[], bytes], folder: Path = DRAWN) -> np.ndarray:
    """Returns the committed PNG. Only `python -m mbaug figures --anew` draws it, so nothing else needs OpenGL.

    Raises:
        FileNotFoundError: The picture does not exist yet; the message names the command that draws
            it.
    """
    path = folder / f"{name}.png"
    if os.environ.get(ANEW):
        files.write_atomically(path, draw())
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: `{command(name)}` draws it")
    return imageio.imread(path)
