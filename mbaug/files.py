"""Files that are written whole or not at all, with the standard library alone: who only writes one waits for no import."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class CannotWrite(OSError):
    """The output folder is full or read-only; what was there before is untouched."""


@contextmanager
def in_one_sentence(path: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `path` into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CannotWrite(
            f"Cannot write {path}: {reason}. Nothing there was changed; make room or choose another folder."
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` so that at any moment it is the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed process left is written over
    with in_one_sentence(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # also Ctrl-C: nothing stays behind
            _remove(temporary)
            raise


def _remove(path: Path) -> None:
    """Removes `path` if that can be done; what cannot be removed must not hide the error that led here."""
    try:
        path.unlink()
    except OSError:
        return
