"""Atomic writes, standard JSON, digests, and the folder of the clone. Does not import torch."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]  # the clone, or site-packages if the package is installed without one


class CannotWrite(OSError):
    """A file cannot be written, for example because the disk is full. No file is left half-written."""


def repository() -> Path:
    """Returns the folder of the clone that the package runs from; raises FileNotFoundError if there is none."""
    if not (CLONE / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"mbaug is installed in {CLONE} without its repository, which holds the data, the recorded runs and the notebooks: "
            "work in a clone of it, with `pip install --editable .`, or name the folder yourself."
        )
    return CLONE


@contextmanager
def in_one_sentence(path: Path) -> Iterator[None]:
    """Turns an OSError from writing `path` into a CannotWrite that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "make room"
        elif isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            remedy = "name another path, because a file cannot replace a folder or a device, nor a folder a file"
        elif path.absolute().is_relative_to(CLONE):
            remedy = "work in a clone that you may write to"
        else:
            remedy = "choose another folder"
        raise CannotWrite(f"Cannot write {path}: {reason}. Nothing there was changed: {remedy}.") from error


def check_writable(folder: Path, size: int = 1) -> None:
    """Makes a folder if it is missing, and raises CannotWrite unless a file of `size` bytes can be written into it."""
    with in_one_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(size))


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` atomically: readers see the old file or the new one, never a part, even if several processes write it."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: temporary files first, flushed to disk and then renamed, in the given order.

    If writing one of them fails, for example because the disk is full, nothing changes.
    """
    temporaries = {}
    with ExitStack() as undo:  # removes temporary files if an error or Ctrl-C interrupts us
        for path, content in contents.items():
            with in_one_sentence(path):
                if path.exists() and not path.is_file():  # a folder, or a device such as /dev/null, which we would replace
                    raise FileExistsError(errno.EEXIST, "it exists and is not a regular file")
                path.parent.mkdir(parents=True, exist_ok=True)
                _tidy(path.parent)
                temporaries[path] = temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
                with open(temporary, "xb") as file:  # "x": never overwrite another process's file or follow a link
                    undo.callback(_remove, temporary)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with in_one_sentence(path):
                os.replace(temporary, path)


def _remove(path: Path) -> None:
    """Removes a file if it is there. Ignores errors, so that they do not hide the error that made us remove it."""
    with suppress(OSError):
        path.unlink()


def _tidy(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder: those unchanged for an hour."""
    for abandoned in folder.glob(".????????????????.tmp"):
        with suppress(OSError):  # another process may have removed it
            if time.time() - abandoned.stat().st_mtime > 3600:
                abandoned.unlink()


# --- JSON -----------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Returns `value` as JSON types: dataclasses as dicts, tuples as lists, NumPy and torch scalars as numbers.

    Raises:
        TypeError: A value has no JSON type, or a key is not a string (json.dumps would silently convert it).
    """
    if getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"JSON keys must be strings, but got {wrong[0]!r}.")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"JSON holds numbers, strings, lists and dicts, but got {type(value).__name__}: {value!r:.80}.")


def finite(value: Any) -> Any:
    """Returns plain data with None in place of NaN and infinities, which standard JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sealed(document: Mapping[str, Any], name: str = "sha256", indent: int = 2) -> bytes:
    """Returns JSON that holds the SHA-256 of its other keys under `name`, so that any later edit can be detected."""
    bare = finite(plain({key: value for key, value in document.items() if key != name}))
    digest = sha256(json.dumps(bare, indent=indent).encode())
    return (json.dumps(bare | {name: digest}, indent=indent) + "\n").encode()


def content(path: Path) -> bytes:
    """Returns the bytes of a file; raises ValueError for a folder, and for a pipe, which might never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    return path.read_bytes()


def parse_json(text: bytes, where: str) -> Any:
    """Returns parsed JSON; raises ValueError, whose message begins with `where`, for invalid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def unsealed(path: Path, remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file that `sealed` wrote. Its digest shows that it holds just what was written.

    Raises:
        ValueError: The file is damaged or was edited. The message ends with `remedy`.
    """
    try:
        found = content(path)
        document = parse_json(found, str(path))
        if not isinstance(document, dict) or found != sealed(document):
            raise ValueError(f"{path}: its content does not match its SHA-256")
    except ValueError as error:
        raise ValueError(f"{error}: {remedy}") from None
    return document


def sha256(content: bytes | Path) -> str:
    """Returns the SHA-256 of bytes or of a file, in hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:  # in chunks: it may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()
