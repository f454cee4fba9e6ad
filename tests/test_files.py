"""The clone's folder is found; what can be written in JSON comes back."""

import json
import math

import numpy as np
import pytest
import torch

from mbaug import files


def test_the_repository_is_found():
    assert (files.repository() / "mbaug" / "files.py").is_file()


def test_a_package_without_its_repository_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages" / "mbaug" / "files.py"))
    with pytest.raises(FileNotFoundError, match="without its repository"):
        files.repository()


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
def test_what_is_no_json_is_refused_with_its_file(tmp_path, content, sentence):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json is not JSON: .*{sentence}"):
        files.read_json(tmp_path / "a.json")
