"""Export to Minari: Minari itself reads the datasets back and finds what the pools hold."""

import numpy as np
import pytest

from mbaug import __main__ as commands
from mbaug import files, tasks
from mbaug.datasets import export, read


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """Exports two pools; returns the folder, and the Minari identifier of each pool."""
    pytest.importorskip("minari", reason="Minari is not installed: `make setup`")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/nowhere")  # monkeypatch restores it after the export has changed it
    monkeypatch.setattr(read, "bundled", lambda folders: {name: read.FOLDER / f"{name}.hdf5" for name in NAMES})
    return tmp_path, dict(zip(NAMES, export.minari_datasets(tmp_path), strict=True))


NAMES = ("ant-random", "hopper-medium-replay")
pytestmark = pytest.mark.filterwarnings("ignore")  # Minari itself warns


def test_minari_reads_back_what_the_pools_hold(exported):
    import minari

    for name, identifier in exported[1].items():
        pool, task = read.load(name), tasks.find(name.partition("-")[0])
        again = read.load(f"minari:{identifier}")
        for column in ("state", "action", "reward", "next_state", "terminal", "truncated", "episode"):
            np.testing.assert_array_equal(getattr(again, column), getattr(pool, column), column)
        dataset = minari.load_dataset(identifier)
        score = minari.get_normalized_score(dataset, np.array([task.return_expert, task.return_random]))
        np.testing.assert_allclose(score, [1, 0], atol=1e-12)
        environment = dataset.recover_environment()
        assert environment.observation_space.shape == (task.state_size,)
        assert environment.spec.max_episode_steps == 1000


def test_a_second_export_changes_no_file_and_the_readme_lists_every_dataset(exported):
    folder, identifiers = exported
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(f"| `{identifier}` |" in card for identifier in identifiers.values())
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.hdf5")}
    assert [*export.minari_datasets(folder)] == [*identifiers.values()]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.hdf5")} == before != {}


def test_the_command_prints_each_dataset_as_it_is_made(monkeypatch, tmp_path, capsys):
    def killed(folder):
        yield "mbaug/first-v0"
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "minari_datasets", killed)
    with pytest.raises(SystemExit, match="interrupted"):
        commands.main(["data", "--export", "minari", "--output", str(tmp_path)])
    assert capsys.readouterr().out == "mbaug/first-v0\n"


def test_an_export_that_is_killed_leaves_no_dataset(exported, monkeypatch, tmp_path):
    """As if it were killed while Minari writes: what is there is not taken for a dataset, and the same command makes it."""
    made, create = exported[0].rglob("*.hdf5"), export.create

    def killed(*given):
        create(*given)
        raise KeyboardInterrupt

    assert len([*made]) == 2
    monkeypatch.setattr(export, "create", killed)
    folder = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        next(export.minari_datasets(folder))
    assert not [*folder.rglob("*.hdf5")]
    monkeypatch.setattr(export, "create", create)
    monkeypatch.setattr(files, "check_writable", lambda folder, size: sizes.append(size))
    sizes: list[int] = []
    assert len([*export.minari_datasets(folder)]) == 2
    written = [path.stat().st_size for path in sorted(folder.rglob("*.hdf5"))]
    assert all(size > real for size, real in zip(sizes, written, strict=True)), "room is checked for all that Minari writes"


def test_an_export_into_a_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/nowhere")  # monkeypatch restores it after the export has changed it
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: True)
    (tmp_path / "file").touch()
    with pytest.raises(files.CannotWrite, match=r"^Cannot write .*/file: File exists"):
        next(export.minari_datasets(tmp_path / "file"))


def test_an_export_without_minari_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="--export minari needs Minari: `make setup` installs it"):
        next(export.minari_datasets(tmp_path))
