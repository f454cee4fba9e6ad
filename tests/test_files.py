"""Files are written whole or not at all, whoever else writes; what can be written in JSON comes back."""

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


def test_many_writers_of_one_file_do_not_meet(tmp_path):
    """Each write succeeds, what is read is always one of them whole, and nothing is left behind."""
    path = tmp_path / "folder" / "a"

    def write(number):
        for _ in range(20):
            files.write_atomically(path, bytes([number]) * 10_000)
            assert len(set(path.read_bytes())) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [left.name for left in path.parent.iterdir()] == ["a"]


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Neither one that lies where the temporary file would, nor the file's own name."""
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


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    """A folder, or a pipe or device such as /dev/null, which root could replace."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "b")
    for name in "ab":
        with pytest.raises(files.CannotWrite, match=f"Cannot write .*{name}: it is there, and is no file"):
            files.write_atomically(tmp_path / name, b"new")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_files_are_written_together_or_not_at_all(tmp_path, monkeypatch, call):
    """The disk is full at the second: the first is what it was, which is not there, and no temporary file is left."""
    real, calls = getattr(os, call), []

    def fails(*given):
        calls.append(given)
        return real(*given) if len(calls) == 1 else no_space()

    monkeypatch.setattr(files.os, call, fails)
    with pytest.raises(files.CannotWrite, match=r"Cannot write .*b: No space left"):
        files.write_together({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "folder", "remedy"),
    [
        (errno.ENOSPC, "clone", "make room"),
        (errno.EROFS, "clone", "work in a clone that you may write to"),  # as `figures` does, which takes no folder
        (errno.EACCES, "other", "choose another folder"),
    ],
)
def test_what_cannot_be_written_says_what_helps(tmp_path, monkeypatch, code, folder, remedy):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "CLONE", tmp_path / "clone")
    monkeypatch.setattr(files.os, "fsync", refused)
    with pytest.raises(files.CannotWrite, match=rf"a: {os.strerror(code)}\. Nothing there was changed: {remedy}\.$"):
        files.write_atomically(tmp_path / folder / "a", b"1")


def test_what_a_killed_process_left_is_removed_later(tmp_path):
    left = [tmp_path / f".{number * 16}.tmp" for number in "01"]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (0, 0))
    files.write_atomically(tmp_path / "a", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {left[1].name, "a"}


# --- JSON -----------------------------------------------------------------------------------------------------------------


def test_json_is_standard_and_holds_plain_numbers():
    document = {"a": math.nan, "b": np.float32(0.5), "c": torch.tensor(3), "d": (1, True), "e": np.float64(2)}
    found = json.loads(files.json_text(document), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"a": None, "b": 0.5, "c": 3, "d": [1, True], "e": 2.0}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "Expecting value"),
        (b"\xff", "can't decode"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
        (b"1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_refused_with_its_file(content, sentence):
    with pytest.raises(ValueError, match=f"^a.json is not JSON: .*{sentence}"):
        files.parse_json(content, "a.json")
