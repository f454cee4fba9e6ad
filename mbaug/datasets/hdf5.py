"""Reads the columns of an HDF5 file that may be damaged or malicious: we check what it declares before we allocate memory.

We read only data in the file itself, because the file's checksum covers nothing else. So we refuse external storage, virtual
datasets and links to other files. We do not lock the file, because some file systems have no locks.
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

DIMENSIONS = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}  # number of axes of D4RL v2's columns
SUCCESSORS = {"next_observations": 2, "final_observations": 2}  # D4RL's: one per row; our pools': one per episode
LARGEST = 2**31  # upper limit for the bytes of all columns: about four times D4RL's largest file of these tasks
FOREIGN = {  # first bytes of files often mistaken for HDF5 -> what the file is and what to do
    b"version https://git-lfs": "is a Git LFS pointer instead of the data: run `git lfs pull`",
    b"/annex/objects": "is a git-annex pointer instead of the data: run `git annex get`",
    b"\x1f\x8b": "is compressed with gzip: unpack it with `gunzip`",
    b"PK\x03\x04": "is a ZIP archive, such as .npz: unpack it, and give an HDF5 file with D4RL's columns",
    b"\x93NUMPY": "is a NumPy array: write the columns into an HDF5 file with D4RL's names",
    b"<": "is a web page instead of the data: download the file itself",
}

Columns = dict[str, Shaped[np.ndarray, "..."]]


def read_hdf5(path: Path) -> Columns:
    """Returns the columns, by name, of a D4RL file or of one of our pools.

    Raises:
        DatasetDamaged: The file is not HDF5, or a column is missing, incomplete or of the wrong
            shape or type.
        OSError: The system refuses to read the file.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            declared = _declared(path, file)
            return {key: column[()] for key, column in declared.items()}
    except DatasetDamaged:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py's errors, depending on the damage
        if number := getattr(error, "errno", None):
            raise OSError(number, f"cannot read {path}: {os.strerror(number)}") from error
        raise DatasetDamaged(_explain(path, str(error))) from error


def _declared(path: Path, file: h5py.File) -> dict[str, h5py.Dataset]:
    """Returns the columns that a file declares, after all checks that do not read their values."""
    links = {key: file.get(key, getlink=True) for key in file}
    columns = {}
    for key in filter(links.__contains__, DIMENSIONS | SUCCESSORS):
        place = f"{path}: {key}"
        _refuse(isinstance(links[key], h5py.ExternalLink), f"{place} is a link to another file: copy the column into this file")
        column = file[key]
        kind = {h5py.Group: "a group", h5py.Datatype: "a type"}.get(type(column), "a column")
        _refuse(kind != "a column", f"{place} is {kind}, but it must be a column of numbers")
        _refuse(bool(column.external), f"{place} is stored in another file (external storage): copy the column into this file")
        _refuse(column.is_virtual, f"{place} is a view of other files (a virtual dataset): copy the column into this file")
        _refuse(column.shape is None, f"{place} is empty: it has a type, but no values")
        columns[key] = column
    missing = [key for key in DIMENSIONS if key not in columns]
    if missing:
        raise DatasetDamaged(_locate(path, file, links, missing))
    check_columns(str(path), columns)
    size = sum(max(column.size, math.prod(column.chunks or ())) * column.dtype.itemsize for column in columns.values())
    _refuse(size > LARGEST, f"{path} declares {size:,} bytes of columns and their chunks, but at most {LARGEST:,} are allowed")
    for key, column in columns.items():
        written = column.id.get_space_status() == h5py.h5d.SPACE_STATUS_ALLOCATED
        _refuse(not written, f"{path}: parts of {key} were never written: download or copy the file again")
        plugin = f"{path}: {key} is compressed with a plug-in filter, but only gzip, lzf and szip are allowed"
        _refuse(column.compression == "unknown", plugin)
    return columns


def _refuse(fault: bool, sentence: str) -> None:
    """Raises DatasetDamaged with `sentence` if there is a fault."""
    if fault:
        raise DatasetDamaged(sentence)


def check_columns(name: str, columns: Mapping[str, Any]) -> None:
    """Raises DatasetDamaged unless the types and shapes of the columns, in memory or in a file, are valid and agree."""
    states = columns["observations"].shape
    for key, array in columns.items():
        axes, shape = (DIMENSIONS | SUCCESSORS)[key], f"{name}: {key} has the shape {array.shape}, but"
        _refuse(array.dtype.kind not in "fiub", f"{name}: {key} has the type {array.dtype}, but only numbers are allowed")
        _refuse(len(array.shape) != axes, f"{shape} it must have {axes} axes, rows first")
        _refuse(len(array) == 0, f"{name}: {key} has no rows, but it must have at least one")
        agree = len(array) == states[0] or key == "final_observations"
        _refuse(not agree, f"{name}: {key} has {len(array)} rows, but observations has {states[0]}: they must agree")
        agree = key not in SUCCESSORS or array.shape[1:] == states[1:]
        _refuse(not agree, f"{shape} observations has the shape {states}: the numbers of columns must agree")


def _locate(path: Path, file: h5py.File, links: Mapping[str, Any], missing: list[str]) -> str:
    """Returns a sentence that says which columns are missing, or where in the file they are instead."""
    groups = [key for key, link in links.items() if isinstance(link, h5py.HardLink) and isinstance(file[key], h5py.Group)]
    inside = [key for key in groups if not {*DIMENSIONS} - {*file[key]}]
    if inside:
        return f"{path}: the columns are in the group {_printable(inside)}, but they must be at the top level: move them there"
    if any(re.fullmatch(r"episode_\d+", key) for key in groups):
        return f"{path} belongs to a Minari dataset: import the dataset as minari:ID"
    sentence = f"{path} lacks {', '.join(missing)}: a D4RL v2 file has {', '.join(DIMENSIONS)}"
    columns = _printable(key for key in links if key not in groups)
    return f"{sentence}; columns in this file: {columns}; groups: {_printable(groups)}"


def _printable(names: Iterable[str]) -> str:
    """Returns at most 20 names, with control characters escaped, or "none"."""
    return ", ".join(name if name.isprintable() else ascii(name) for name in [*names][:20]) or "none"


def _explain(path: Path, reason: str) -> str:
    """Returns a plain sentence for `reason`, an error message of h5py."""
    if sizes := re.search(r"truncated file: eof = (\d+),.* stored_eof = (\d+)", reason):
        given, whole = map(int, sizes.groups())
        return f"{path} is incomplete: it has {given:,} of {whole:,} bytes; download or copy it again"
    if "signature not found" in reason:
        with open(path, "rb") as file:
            head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        foreign = next((sentence for begin, sentence in FOREIGN.items() if head.startswith(begin)), None)
        return f"{path} {foreign or 'is not an HDF5 file (an incomplete download?): download or copy it again'}"
    return f"{path} is damaged, and parts of it cannot be read: download or copy it again"
