"""Files are written completely or not at all, even by several writers; JSON is standard JSON."""

import errno
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import no_space

from mbaug import files


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Each write succeeds, a reader always sees one complete version, and no temporary file is left."""
    path = tmp_path / "folder" / "a"

    def write(number):
        for _ in range(20):
            files.write_atomically(path, bytes([number]) * 10_000)
            assert len(set(path.read_bytes())) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [left.name for left in path.parent.iterdir()] == ["a"]


def test_writing_follows_no_symbolic_link(tmp_path, monkeypatch):
    """Neither at the path of the temporary file nor at that of the file itself."""
    other = tmp_path / "other"
    other.write_bytes(b"stays")
    for name in (".a.tmp", "a", ".00.tmp"):
        (tmp_path / name).symlink_to(other)
    files.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "00")
    with pytest.raises(files.CannotWrite, match="File exists"):
        files.write_atomically(tmp_path / "b", b"new")
    assert other.read_bytes() == b"stays"
    assert (tmp_path / ".00.tmp").is_symlink()


def test_a_folder_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    """Root could replace even /dev/null."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "b")
    for name in "ab":
        sentence = f"Cannot write .*{name}: it exists and is not a regular file.*: name another path"
        with pytest.raises(files.CannotWrite, match=sentence):
            files.write_atomically(tmp_path / name, b"new")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


def test_files_are_written_together_or_not_at_all(tmp_path, monkeypatch):
    """When the disk is full at the second file, the first is not there either, and no temporary file is left."""
    real, calls = os.fsync, []

    def fails(*given):
        calls.append(given)
        return real(*given) if len(calls) == 1 else no_space()

    monkeypatch.setattr(files.os, "fsync", fails)
    with pytest.raises(files.CannotWrite, match=r"Cannot write .*b: No space left"):
        files.write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "folder", "remedy"),
    [
        (errno.ENOSPC, "clone", "make room"),
        (errno.EFBIG, "clone", "make room"),
        (errno.EROFS, "clone", "work in a clone that you may write to"),  # `figures`, for one, has no option for a folder
        (errno.EACCES, "other", "choose another folder"),
    ],
)
def test_a_failed_write_says_what_to_do(tmp_path, monkeypatch, code, folder, remedy):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "CLONE", tmp_path / "clone")
    monkeypatch.setattr(files.os, "fsync", refused)
    with pytest.raises(files.CannotWrite, match=rf"a: {os.strerror(code)}\. Nothing there was changed: {remedy}\.$"):
        files.write_atomically(tmp_path / folder / "a", b"1")


def test_old_temporary_files_of_killed_processes_are_removed(tmp_path):
    old, new = (tmp_path / f".{number * 16}.tmp" for number in "01")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    files.write_atomically(tmp_path / "a", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "a"}


# --- JSON -----------------------------------------------------------------------------------------------------------------


def test_json_is_standard_and_holds_plain_numbers():
    document = {"a": math.nan, "b": np.float32(0.5), "c": torch.tensor(3), "d": (1, True), "e": np.float64(2)}
    found = json.loads(files.sealed(document), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"a": None, "b": 0.5, "c": 3, "d": [1, True], "e": 2.0, "sha256": found["sha256"]}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b'"a"', b"a", "is not JSON"),
        (b"1.5", b"1.6", "its content does not match its SHA-256"),
        (b"  ", b"", "its content does not match its SHA-256"),
    ],
)
def test_a_sealed_document_that_was_edited_is_refused(tmp_path, old, new, sentence):
    path = tmp_path / "a.json"
    path.write_bytes(files.sealed({"a": 1.5}))
    assert files.unsealed(path, "")["a"] == 1.5
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"a.json.*{sentence}.*: make it anew$"):
        files.unsealed(path, "make it anew")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff", "can't decode"),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
    ],
)
def test_invalid_json_is_refused_with_the_name_of_its_file(content, sentence):
    with pytest.raises(ValueError, match=f"^a.json is not JSON: .*{sentence}"):
        files.parse_json(content, "a.json")
