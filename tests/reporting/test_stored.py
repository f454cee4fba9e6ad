"""Stored tables: a computed table must agree with the committed one, which is returned."""

import re

import imageio.v3 as imageio
import numpy as np
import pandas as pd
import pytest

from mbaug.reporting.stored import ANEW, picture, stored

TABLE = pd.DataFrame({"horizon": [1, 2, 3], "model": ["a", "b", "c"], "error": [0.1, None, 0.3]})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that holds TABLE."""
    monkeypatch.setenv(ANEW, "1")
    stored("06_table", TABLE, folder=tmp_path)
    monkeypatch.delenv(ANEW)
    return tmp_path


def test_the_committed_table_is_returned(folder):
    nearly = TABLE.assign(error=TABLE["error"] + 1e-5)
    pd.testing.assert_frame_equal(stored("06_table", nearly, folder=folder), TABLE)


@pytest.mark.parametrize(
    ("computed", "sentence"),
    [
        (TABLE.assign(error=[0.1, None, 0.31]), "has 0.3 in row 2 of error, but 0.31 was computed"),
        (TABLE.assign(error=[0.1, 0.2, 0.3]), "has nan in row 1 of error, but 0.2 was computed"),
        (TABLE.assign(model=["a", "b", "d"]), "has c in row 2 of model, but d was computed"),
        (TABLE.rename(columns={"error": "e"}), "horizon, model, error, but 3 of horizon, model, e were computed"),
        (TABLE[:2], "has 3 rows of"),
    ],
)
def test_the_error_names_the_first_difference(folder, computed, sentence):
    with pytest.raises(ValueError, match=sentence):
        stored("06_table", computed, folder=folder)


@pytest.mark.parametrize("content", [b"\xff", b"", b"a,b\n1,2,3\n1\n1,2,3,4\n"])
def test_the_error_for_a_damaged_table_says_how_to_write_it_anew(tmp_path, content):
    path = tmp_path / "06_table.csv"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))} [^\n]*: `python -m mbaug figures --only 06 --anew` writes it anew$"
    ):
        stored("06_table", pd.DataFrame({"a": [1]}), folder=tmp_path)


def test_the_error_for_a_missing_table_says_how_to_write_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m mbaug figures --only 06 --anew` writes it"):
        stored("06_table", TABLE, folder=tmp_path)


def test_other_profiles_have_no_committed_tables(tmp_path):
    assert stored("06_table", TABLE, "smoke", folder=tmp_path) is TABLE


def test_a_stored_picture_is_drawn_anew_only_on_request(tmp_path, monkeypatch):
    drawn = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    draw = lambda: imageio.imwrite("<bytes>", drawn, extension=".png")  # noqa: E731
    with pytest.raises(FileNotFoundError, match="`python -m mbaug figures --only 08 --anew` draws it"):
        picture("08_strangest", draw, tmp_path)
    monkeypatch.setenv(ANEW, "1")
    np.testing.assert_array_equal(picture("08_strangest", draw, tmp_path), drawn)
    monkeypatch.delenv(ANEW)
    np.testing.assert_array_equal(picture("08_strangest", lambda: b"", tmp_path), drawn)
