"""Every recorded row in one Parquet file."""

import pandas as pd
import pytest

from mbaug import __main__ as commands
from mbaug.experiments import records


@pytest.mark.slow
def test_it_holds_what_load_runs_returns(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow, which is optional, is not installed")
    path = tmp_path / "new" / "runs.parquet"
    commands.main(["status", "--parquet", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    pd.testing.assert_frame_equal(pd.read_parquet(path), records.load_runs(records.root()).reset_index(drop=True))


def test_without_pyarrow_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^mbaug: Parquet needs pyarrow: `make setup` installs it$"):
        commands.main(["status", "--parquet", str(tmp_path / "runs.parquet")])
