"""The command line: each command does what it says, and what was typed wrongly ends in one sentence."""

import inspect
import shutil
import sys

import joblib
import pytest

from mbaug import __main__ as commands
from mbaug import benchmark, engine, grid, recording, rendering, settings, study
from mbaug.settings import Evaluation

SMALL = settings.Arm(learner=settings.TD3(hidden=(16, 16)), finetuning=grid.SCRATCH, evaluation=Evaluation(1, 100))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository whose programme is one small study."""
    monkeypatch.setattr(recording, "repository", lambda: tmp_path)
    monkeypatch.setattr(recording, "root", lambda: tmp_path / "data" / "runs")
    monkeypatch.setattr(grid, "STUDIES", {"tiny": grid.Study("tiny", "Does it run?", {"small": SMALL}, seeds=(0, 1))})
    monkeypatch.setattr(benchmark, "online", lambda algorithm, precision: 100.0)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
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
    monkeypatch.setattr(engine, "devices", lambda: ("cpu", "cuda"))
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


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("record tiny", "mbaug: interrupted; the same command goes on from the last checkpoints"),
        ("bench", "mbaug: interrupted"),
    ],
)
def test_an_interrupted_command_promises_only_what_it_keeps(typed, said, repository, monkeypatch):
    """Only training leaves checkpoints."""

    def interrupted(*rest, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "main", interrupted)
    monkeypatch.setattr(study, "record", interrupted)
    with pytest.raises(SystemExit) as ended:
        commands.main(typed.split())
    assert str(ended.value) == said


def test_a_dry_run_is_of_what_would_be_trained(repository, capsys, monkeypatch):
    """The seeds of the profile, on the cores that are free to use; what another study has recorded costs nothing."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    smoke = ["--profile", "smoke", "--dry-run"]
    commands.main(["record", "tiny", *smoke])
    first, *runs = capsys.readouterr().out.splitlines()
    assert first.endswith("about 0.0 hours with 3 workers")
    assert runs == ["tiny/hopper/none/small/seed0"]
    commands.main(["record", "tiny", "--profile", "smoke", "--workers", "1"])
    monkeypatch.setitem(grid.STUDIES, "alias", grid.replace(grid.STUDIES["tiny"], name="alias", seeds=(0,)))
    monkeypatch.setattr(study, "step_seconds", lambda root: {"td3": 3600.0, "sac": 3600.0})
    capsys.readouterr()
    commands.main(["record", "alias", *smoke])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("alias: 1 runs missing in ")
    assert "about 0.0 hours" in first
    shutil.copytree(repository / "build" / "smoke" / "runs", recording.root())
    monkeypatch.setitem(grid.STUDIES, "alias", smoke_of(grid.STUDIES["alias"]))
    monkeypatch.setitem(grid.STUDIES, "tiny", smoke_of(grid.STUDIES["tiny"]))
    commands.main(["status"])
    assert [line.split()[:2] + line.split()[5:11] for line in capsys.readouterr().out.splitlines()] == [
        ["tiny", "1", "66.7", "hours", "on", "3", "cores,", "33.3"],
        ["alias", "0", "33.3", "hours", "on", "3", "cores,", "0.0"],
    ]


def smoke_of(one):
    """A study whose arms are those that the smoke profile trains."""
    smoke = settings.profile("smoke")
    return grid.replace(one, arms={name: smoke.apply(arm) for name, arm in one.arms.items()})


@pytest.mark.parametrize("given", ["tpu", "cuda"])
def test_what_cannot_train_is_refused_also_in_a_dry_run(given, repository, monkeypatch):
    """On a cluster the workers have devices of their own."""
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=f"unknown device '{given}': .*allowed are 'cpu'$"):
        commands.main(["record", "tiny", "--dry-run", "--device", given])
    commands.main(["record", "tiny", "--dry-run", "--device", "cuda", "--cluster", "tcp://nowhere:1"])
