"""The command line: each command does what it says, and what was typed wrongly ends in one sentence."""

import inspect
import sys

import pytest

from mbaug import __main__ as commands
from mbaug import benchmark, grid, recording, rendering, settings, study
from mbaug.settings import Evaluation

SMALL = settings.Arm(learner=settings.TD3(hidden=(16, 16)), finetuning=grid.SCRATCH, evaluation=Evaluation(1, 100))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository whose programme is one small study."""
    monkeypatch.setattr(recording, "repository", lambda: tmp_path)
    monkeypatch.setattr(recording, "root", lambda: tmp_path / "data" / "runs")
    monkeypatch.setattr(grid, "STUDIES", {"tiny": grid.Study("tiny", "Does it run?", {"small": SMALL}, seeds=(0, 1))})
    monkeypatch.setattr(benchmark, "online", lambda algorithm, precision: 100.0)
    return tmp_path


def test_record_lists_trains_and_then_has_nothing_left(repository, capsys):
    """A dry run writes nothing; a recording leaves its runs where the profile's are; the second has nothing to do."""
    commands.main(["record", "tiny", "--dry-run", "--workers", "1"])
    first, *runs = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny: 2 runs missing in ")
    assert "about 0.5 hours with 1 workers" in first  # 2 runs of 95,000 updates at 100 a second
    assert runs == ["tiny/hopper/none/small/seed0", "tiny/hopper/none/small/seed1"]
    assert not list(repository.iterdir())
    command = ["record", "tiny", "--profile", "smoke", "--seeds", "1", "--workers", "1"]
    commands.main(command)
    assert [run.seed for run in recording.recorded(repository / "build" / "smoke" / "runs")] == [1]
    assert "tiny/hopper/none/small/seed1" in capsys.readouterr().out
    commands.main(command)
    assert capsys.readouterr().out.startswith("tiny: 0 runs missing")


class Called(Exception):
    """Ends a command where it calls into the package; holds what it gave."""


@pytest.mark.parametrize(
    ("typed", "callee", "given"),
    [
        ("record tiny --only */seed1", "record", {"only": "*/seed1", "population": 1, "cluster": None}),
        ("record tiny --population 2 --workers 3 --device cuda", "record", {"population": 2, "workers": 3, "device": "cuda"}),
        ("record tiny --seeds 3,5 --cluster tcp://host:8786", "record", {"seeds": [3, 5], "cluster": "tcp://host:8786"}),
        ("verify tiny/hopper/none/small/seed0 --updates 300", "verify", {"updates": 300}),
        ("collect hopper --to 5000 --seed 3", "collect", {"to": 5000, "seed": 3}),
        ("watch hopper --run tiny/hopper/none/small/seed0", "policy", {"name": "final"}),
        ("watch hopper --run tiny/hopper/none/small/seed0 --policy medium", "policy", {"name": "medium"}),
    ],
)
def test_what_was_typed_arrives(typed, callee, given, repository, monkeypatch):
    signature = inspect.signature(getattr(study, callee))

    def called(*positional, **named):
        raise Called(signature.bind(*positional, **named).arguments)

    monkeypatch.setattr(study, callee, called)
    monkeypatch.setattr(rendering, "opengl", lambda: "")
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what `watch` sets is undone
    with pytest.raises(Called) as ended:
        commands.main(typed.split())
    (found,) = ended.value.args
    assert {name: found[name] for name in given} == given


def test_only_the_runs_that_match_are_listed(repository, capsys):
    commands.main(["record", "tiny", "--only", "*/seed1", "--dry-run", "--workers", "1"])
    first, *runs = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny: 1 runs missing in ")
    assert runs == ["tiny/hopper/none/small/seed1"]


def test_status_counts_the_programme(repository, capsys):
    """A line for each study, and a table of one."""
    commands.main(["status"])
    assert capsys.readouterr().out.startswith("tiny          0 of   2 runs    0.3 hours on 2 cores, 0.3 left")
    commands.main(["status", "tiny"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["hopper", "small", "0", "0", "0", "2"]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("record tny", "unknown study 'tny': did you mean 'tiny'"),
        ("record tiny --profile papr", "unknown profile 'papr': did you mean 'paper'"),
        ("record tiny --only */sac/*", "no run of tiny matches '*/sac/*'"),
        ("record tiny --workers 1 --device cdua", "unknown device 'cdua': allowed are 'cpu'"),
        ("status tny", "unknown study 'tny'"),
        ("verify", "nothing is recorded in"),
        ("verify tiny/hopper/none/small/seed7", "seed7 is not recorded"),
        ("verify seed7", "'seed7'"),
        ("collect hoper", "unknown task 'hoper'"),
        ("data minari:mujoco/hopper/medium-v0 --as hopper-minari", "needs Minari: `make setup EXTRAS=minari` installs it"),
        ("data absent.hdf5 --as hopper-absent", "there is no file absent.hdf5"),
        ("data absent.hdf5", "--as names the dataset"),
        ("data --as hopper-absent", "names what to import"),
        ("figures --profile papr", "unknown profile 'papr'"),
        ("figures --only 99", "'99'"),
    ],
)
def test_a_wrong_word_ends_in_one_sentence(typed, sentence, repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)  # an optional extra, here as if it were not installed
    with pytest.raises(SystemExit) as ended:
        commands.main(typed.split())
    assert str(ended.value).startswith("mbaug: ")
    assert sentence in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "required: COMMAND"),
        ("recrod tiny", "invalid choice: 'recrod'"),
        ("record", "required: study"),
        ("record tiny --seeds a-b", "seeds are 'a-b', but they must be a range such as 0-4 or a list such as 0,2,5"),
        ("record tiny --seeds 4-0", "seeds are '4-0'"),
        ("record tiny --workers 0", "'0' was given, but it must be a whole number, 1 or above"),
        ("record tiny --population two", "'two' was given"),
    ],
)
def test_what_is_no_command_shows_the_usage(typed, sentence, repository, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(typed.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_seeds_are_ranges_and_lists():
    assert commands.seeds("0-2,5") == [0, 1, 2, 5]


def test_verify_takes_the_cheapest_run_that_every_processor_can_train(monkeypatch, capsys):
    """A run in bfloat16 may be cheaper, but not every processor multiplies it."""
    costs = {"seed0": ("bfloat16", 1.0), "seed1": ("float32", 3.0), "seed2": ("float32", 2.0)}
    records = {name: {"provenance": {"precision": p}, "wall_seconds": s} for name, (p, s) in costs.items()}
    monkeypatch.setattr(recording, "load_metadata", lambda root: records)
    monkeypatch.setattr(study, "verify", lambda run, *rest: f"verified {run}")
    commands.main(["verify"])
    assert capsys.readouterr().out == "verified seed2\n"
