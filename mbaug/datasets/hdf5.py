"""The columns of an HDF5 file. Nothing in it is believed: what it declares is checked before memory is taken.

Only what the file itself holds is read, since its checksum covers nothing else: no external storage, no virtual column, no link
to another file. The file is not locked, so that it can be read where the file system has no locks.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from mbaug.datasets.cards import DatasetDamaged

DIMENSIONS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}  # axes of D4RL v2's columns
SUCCESSORS = {"next_observations": 2, "final_observations": 2}  # D4RL's, one for each row; our pools', one for each episode
LARGEST = 2**31  # bytes of all columns: D4RL's largest file of these tasks has a quarter of that
FOREIGN = {  # how files begin that are taken for HDF5, and what they are
    b"version https://git-lfs": "is a Git LFS pointer in place of the data: `git lfs pull` gets them",
    b"/annex/objects": "is a git-annex pointer in place of the data: `git annex get` gets them",
    b"\x1f\x8b": "is compressed by gzip: `gunzip` gives the HDF5 file",
    b"PK\x03\x04": "is a ZIP archive, as .npz is: unpack it, and give an HDF5 file with D4RL's columns",
    b"\x93NUMPY": "is a NumPy array: write the columns into an HDF5 file, under D4RL's names",
    b"<": "is a web page in place of the data: download the file itself",
}

Columns = dict[str, Shaped[np.ndarray, "..."]]


def read_hdf5(path: Path) -> Columns:
    """Returns the columns of a file of D4RL's layout, or of a pool of this project, under their names there.

    Raises:
        DatasetDamaged: the file is no HDF5, or does not hold such columns, whole.
        OSError: the system refuses to read it.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            declared = _declared(path, file)
            return {key: column[()] for key, column in declared.items()}
    except DatasetDamaged:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # what h5py raises, depending on the damage
        if number := getattr(error, "errno", None):
            raise OSError(number, f"cannot read {path}: {os.strerror(number)}") from error
        raise DatasetDamaged(_damage(path, str(error))) from error


def _declared(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns the columns that a file declares, after all checks that need none of their values."""
    links = {key: file.get(key, getlink=True) for key in file}
    columns = {}
    for key in filter(links.__contains__, DIMENSIONS | SUCCESSORS):
        place = f"{path}: {key}"
        _refuse(isinstance(links[key], h5py.ExternalLink), f"{place} is a link to another file: copy the column into this one")
        column = file[key]
        kind = {h5py.Group: "a group", h5py.Datatype: "a type"}.get(type(column), "a column")
        _refuse(kind != "a column", f"{place} is {kind}, but it must be a column of numbers")
        _refuse(bool(column.external), f"{place} lies in another file (external storage): copy the column into this one")
        _refuse(column.is_virtual, f"{place} is a view of other files (a virtual dataset): copy the column into this one")
        _refuse(column.shape is None, f"{place} is empty: it has a type, but no values")
        columns[key] = column
    missing = [key for key in DIMENSIONS if key not in columns]
    if missing:
        raise DatasetDamaged(_lacking(path, file, links, missing))
    check_columns(str(path), columns)
    size = sum(max(column.size, math.prod(column.chunks or ())) * column.dtype.itemsize for column in columns.values())
    _refuse(size > LARGEST, f"{path} declares {size:,} bytes of columns and their chunks, but at most {LARGEST:,} are read")
    for key, column in columns.items():
        written = column.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED
        _refuse(not written, f"{path}: parts of {key} were never written: get the file again")
        plugin = f"{path}: {key} is compressed by a plug-in's filter, but only gzip, lzf and szip are read"
        _refuse(column.compression == "unknown", plugin)
    return columns


def _refuse(fault: bool, sentence: str) -> None:
    if fault:
        raise DatasetDamaged(sentence)


def check_columns(name: str, columns: Mapping[str, Any]) -> None:
    """Raises DatasetDamaged unless columns, in memory or in a file, have the types and shapes that they must have together."""
    states = columns["observations"].shape
    for key, array in columns.items():
        axes, shape = (DIMENSIONS | SUCCESSORS)[key], f"{name}: {key} has the shape {array.shape}, but"
        _refuse(array.dtype.kind not in "fiub", f"{name}: {key} has the type {array.dtype}, but only numbers are allowed")
        _refuse(len(array.shape) != axes, f"{shape} it must have {axes} axes, rows first")
        _refuse(len(array) == 0, f"{name}: {key} has no rows, but there must be one at least")
        agree = len(array) == states[0] or key == "final_observations"
        _refuse(not agree, f"{name}: {key} has {len(array)} rows, but observations has {states[0]}: they must agree")
        agree = key not in SUCCESSORS or array.shape[1:] == states[1:]
        _refuse(not agree, f"{shape} observations has {states}: their columns must agree")


def _lacking(path: Path, file: h5py.File, links: Mapping[str, Any], missing: list[str]) -> str:
    """Returns a sentence about missing columns, and where they may be instead."""
    groups = [key for key, link in links.items() if isinstance(link, h5py.HardLink) and isinstance(file[key], h5py.Group)]
    inside = [key for key in groups if not {*DIMENSIONS} - {*file[key]}]
    if inside:
        return f"{path}: the columns lie inside the group {printed(inside)}, but they must lie at the top: move them"
    if any(re.fullmatch(r"episode_\d+", key) for key in groups):
        return f"{path} is a Minari set's file: import it as minari:ID, so that Minari reads it"
    sentence = f"{path} has no {' and no '.join(missing)}: a D4RL v2 file has {', '.join(DIMENSIONS)}"
    return f"{sentence}; the columns here are {printed(key for key in links if key not in groups)}, the groups {printed(groups)}"


def printed(names: Iterable[str]) -> str:
    """Returns at most 20 names as they can be printed: control codes escaped."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in [*names][:20]) or "none"


def _damage(path: Path, reason: str) -> str:
    """Returns in one sentence what h5py means by `reason`."""
    if sizes := re.search(r"truncated file: eof = (\d+),.* stored_eof = (\d+)", reason):
        given, whole = map(int, sizes.groups())
        return f"{path} is half a download or half a copy: it has {given:,} of {whole:,} bytes; get it again"
    if "signature not found" in reason:
        with open(path, "rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        what = next((sentence for begin, sentence in FOREIGN.items() if head.startswith(begin)), None)
        return f"{path} {what or 'is no HDF5 file (half a download?): get it again'}"
    return f"{path} is damaged, parts of it cannot be read: get it again"
