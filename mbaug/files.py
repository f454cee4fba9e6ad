"""Files that are written whole or not at all, JSON that is standard, and the clone's folder. Needs no torch."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

CLONE = Path(__file__).resolve().parents[1]  # or where the package is installed without it


class CannotWrite(OSError):
    """The output folder is full or read-only; what was there before is untouched."""


def repository() -> Path:
    """Returns the folder of the clone that this package was installed from; raises FileNotFoundError if there is none."""
    if not (CLONE / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"mbaug is installed in {CLONE} without its repository, which holds the data, the recorded runs and the notebooks: "
            "work in a clone of it, with `pip install --editable .`, or name the folder yourself."
        )
    return CLONE


@contextmanager
def in_one_sentence(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        reason, inside = error.strerror or type(error).__name__, path.absolute().is_relative_to(CLONE)
        remedy = "work in a clone that you may write to" if inside else "choose another folder"
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else remedy
        raise CannotWrite(f"Cannot write {path}: {reason}. Nothing there was changed: {remedy}.") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` so that at any moment it is the old file or the new one, never a part, whoever else writes it."""
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files that belong together: all lie beside their places, whole and on disk, before the first takes its place.

    If that fails nothing changes; if a file cannot take its place, those that were not there before go away again.
    """
    temporaries = {}
    with ExitStack() as undo:  # of what was written so far, also by Ctrl-C
        for path, content in contents.items():
            with in_one_sentence(path):
                if path.exists() and not path.is_file():  # a folder; or a device, as /dev/null, which a file would replace
                    raise FileExistsError(errno.EEXIST, "it is there, and is no file")
                path.parent.mkdir(parents=True, exist_ok=True)
                _tidy(path.parent)
                temporaries[path] = temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
                with open(temporary, "xb") as file:  # no other writer's, and nothing that a link leads to
                    undo.callback(_remove, temporary)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with in_one_sentence(path):
                was_there = os.path.lexists(path)
                os.replace(temporary, path)
                if not was_there:
                    undo.callback(_remove, path)
        undo.pop_all()


def _remove(path: Path) -> None:
    """Removes a file; what cannot be removed must not hide the error that led here."""
    with suppress(OSError):
        path.unlink()


def _tidy(folder: Path) -> None:
    """Removes what processes that were killed left here: temporaries that nobody has written to for an hour."""
    for left in folder.glob(".????????????????.tmp"):
        with suppress(OSError):  # another process was faster
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()


# --- JSON -----------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Returns `value` as JSON knows it: dataclasses as dicts, tuples as lists, scalars of NumPy and torch as numbers.

    Raises:
        TypeError: A value has no equal in JSON, or a key is not a string (JSON would silently make it one).
    """
    if getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"A key in JSON is a string; got {odd[0]!r}.")
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"JSON holds numbers, texts, lists and dicts; got {type(value).__name__}: {value!r:.80}.")


def finite(value: Any) -> Any:
    """Returns plain data with None for NaN and the infinities, which standard JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(document: Any) -> str:
    """Returns a document as standard JSON, with null for numbers that are not finite."""
    return json.dumps(finite(plain(document)), indent=2)


def sealed(document: Mapping[str, Any], name: str = "sha256", indent: int = 2) -> bytes:
    """Returns JSON that holds, under `name`, its own digest: what is not this, byte for byte, was changed."""
    bare = finite(plain({key: value for key, value in document.items() if key != name}))
    digest = sha256(json.dumps(bare, indent=indent).encode())
    return (json.dumps(bare | {name: digest}, indent=indent) + "\n").encode()


def content(path: Path) -> bytes:
    """Returns the bytes of a file; raises ValueError for a folder, or a pipe, which might never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file")
    return path.read_bytes()


def parse_json(text: bytes, where: str) -> Any:
    """Returns what JSON text holds; raises ValueError, beginning with `where`, if it is no JSON or gives a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])]:
            raise ValueError(f"the key {twice[0]!r} is there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None


def sha256(content: bytes | Path) -> str:
    """Returns the SHA-256 of `content`, or of a file, in hexadecimal digits."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:  # which may be larger than the memory
        return hashlib.file_digest(file, "sha256").hexdigest()
