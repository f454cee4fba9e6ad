"""The command line: each command does what it says, and a wrong argument ends in one sentence."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from mbaug import __main__ as commands
from mbaug import files
from mbaug.datasets import collect, read, render
from mbaug.experiments import records, runner, studies, trained, verify
from mbaug.experiments.records import Run
from mbaug.method.arms import Arm
from mbaug.method.settings import Evaluation
from mbaug.method.td3 import TD3
from mbaug.reporting import answers, chapters, figures, tables

SMALL = Arm(learner=TD3(hidden=(16, 16)), finetuning=studies.SCRATCH, evaluation=Evaluation(1, 100))
RUNS = [Run("hopper", "none", "small", seed) for seed in (0, 1)]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository whose programme is one small study."""
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    monkeypatch.setitem(studies.ARMS, "small", SMALL)
    monkeypatch.setattr(studies, "STUDIES", {"tiny": studies.Study("tiny", "Does it run?", ("small",), seeds=(0, 1))})
    monkeypatch.setattr(studies, "PROGRAMME", (("tiny",),))
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    return tmp_path


@pytest.mark.slow
def test_record_trains_the_missing_runs_and_then_has_nothing_to_do(repository, capsys):
    """The first command writes its run into the folder of the profile; the second finds it there."""
    command = ["record", "tiny", "--profile", "smoke", "--seeds", "1", "--workers", "1"]
    for missing, said in (("1 run", str(RUNS[1])), ("0 runs", "to train them again after a code change, delete ")):
        commands.main(command)
        assert records.recorded(repository / "build" / "smoke" / "runs") == RUNS[1:]
        first, *rest = capsys.readouterr().out.splitlines()
        assert first.startswith(f"tiny: {missing} missing in ")
        assert said in "".join(rest)


@pytest.mark.parametrize(
    ("typed", "first", "listed"),
    [
        ("record", "programme: 2 runs missing in", RUNS),  # 95,000 updates each, counted as 100 a second
        ("record tiny --only */seed1", "tiny: 1 run missing in", RUNS[1:]),
        ("record tiny --seeds 7,3-4", "tiny: 3 runs missing in", [Run("hopper", "none", "small", seed) for seed in (7, 3, 4)]),
        ("record tiny --profile smoke", "tiny: 1 run missing in", RUNS[:1]),  # this profile has one seed
    ],
)
def test_a_dry_run_lists_the_runs_that_it_would_train(typed, first, listed, repository, capsys):
    commands.main([*typed.split(), "--dry-run"])
    head, *runs = capsys.readouterr().out.splitlines()
    assert head.startswith(first)
    assert head.endswith(f"about {0.0 if 'smoke' in typed else len(listed) * 0.95 / 3.6 / 2:.1f} hours with 2 workers")
    assert not list(repository.iterdir())
    assert runs == list(map(str, listed))


def test_a_profile_with_one_seed_takes_the_first_of_each_study(repository, monkeypatch, capsys):
    """The seeds of a study may begin at 100."""
    monkeypatch.setitem(studies.STUDIES, "later", studies.Study("later", "Does it run?", ("small",), seeds=(100, 101)))
    commands.main(["record", "later", "--profile", "smoke", "--dry-run"])
    assert capsys.readouterr().out.splitlines()[1:] == ["hopper/none/small/seed100"]


TIMED = """
import os, sys, time
from mbaug import __main__ as commands
from mbaug.experiments import run, runner
from mbaug.method import training
training.learner = run.train = run.begin = "a call of this fails"
for typed in sys.argv[1:]:  # each in a process of its own, which has imported everything and read nothing
    if not (child := os.fork()):
        began = time.process_time()
        commands.main(typed.split())
        print(time.process_time() - began, end="\\f", flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
QUICK = "status", "status core", "record --dry-run", "record core --dry-run"


@pytest.fixture(scope="module")
def printed():
    """What each of the commands in QUICK prints, and then the seconds that it took."""
    found = subprocess.run([sys.executable, "-c", TIMED, *QUICK], capture_output=True, text=True, check=True).stdout
    return dict(zip(QUICK, found.split("\f")[:-1], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("typed", QUICK)
def test_status_and_dry_runs_train_nothing_and_take_seconds(typed, printed):
    """For the whole programme and all its records, without the checks of types that slow the tests; imports do not count."""
    *lines, seconds = printed[typed].splitlines()
    assert float(seconds) < 5
    if typed.startswith("status"):
        assert len(lines) > 5
    else:  # after the first line, one for each missing run, if any
        assert f": {len(lines) - 1} run" in lines[0]


WATCHED = Path("to/hopper-none-small-seed0-final.mp4")


class Called(Exception):
    """Ends a command where it calls into the package; holds the arguments of the call."""


@pytest.mark.parametrize(
    ("typed", "module", "callee", "given"),
    [
        ("record tiny --only */seed1", runner, "record", {"runs": RUNS[1:], "population": 1, "cluster": None, "workers": 2}),
        ("record --population 2 --workers 3 --device cuda", runner, "record", {"population": 2, "workers": 3, "device": "cuda"}),
        ("record --device cuda", runner, "record", {"population": 1, "workers": 1, "device": "cuda"}),
        ("record tiny --cluster tcp://host:8786", runner, "record", {"cluster": "tcp://host:8786", "work": None}),
        ("verify hopper/none/small/seed0 --updates 300", verify, "verify", {"which": RUNS[0], "updates": 300}),
        ("watch hopper --run hopper/none/small/seed0", runner, "policy", {"which": RUNS[0], "name": "final"}),
        ("watch hopper --run hopper/none/small/seed1 --policy medium", runner, "policy", {"which": RUNS[1], "name": "medium"}),
        ("watch hopper --run hopper/none/small/seed0 --seconds 2", render, "frames", {"seconds": 2.0}),
        ("watch hopper --run hopper/none/small/seed0 --output to", files, "write_atomically", {"path": WATCHED}),
        ("collect hopper --seed 3", runner, "recorded_curve", {"which": Run("hopper", "none", "sac_million", 3)}),
        ("collect hopper --seed 3 --output pools", collect, "collect", {"seed": 3, "folders": (Path("pools"), Path("pools"))}),
        ("models --work elsewhere", trained, "make", {"work": Path("elsewhere")}),
        ("figures --profile smoke --only 02", chapters, "run", {"profile": "smoke", "only": "02"}),
    ],
)
def test_typed_options_reach_the_function_that_they_are_for(typed, module, callee, given, repository, monkeypatch):
    signature = inspect.signature(getattr(module, callee))

    def called(*positional, **named):
        raise Called(signature.bind(*positional, **named).arguments)

    monkeypatch.setattr(runner, "policy", lambda *given: None)
    monkeypatch.setattr(render, "frames", lambda *given: (np.zeros((2, 32, 32, 3), np.uint8), 25))
    monkeypatch.setattr(module, callee, called)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(render, "opengl", lambda: "")
    monkeypatch.setenv("MUJOCO_GL", "")  # `watch` sets it; this restores it after the test
    with pytest.raises(Called) as ended:
        commands.main(typed.split())
    (found,) = ended.value.args
    assert {name: found[name] for name in given} == given


def test_status_counts_the_runs_of_the_programme_or_of_one_study(repository, capsys):
    """`status` prints a line for each study and the sum; `status STUDY` prints a table."""
    commands.main(["status"])
    tiny, programme = capsys.readouterr().out.splitlines()
    assert tiny.startswith("tiny          0 of   2 runs    0.3 hours on 2 cores, 0.3 left")
    assert programme == "programme: 2 runs missing, about 0.3 hours on 2 cores"
    commands.main(["status", "tiny"])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["hopper", "none", "small", "0", "0", "0", "2"]


@pytest.mark.slow
def test_status_exports_every_recorded_row_if_pyarrow_is_installed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyarrow", reason="pyarrow, which is optional, is not installed")
    path = tmp_path / "new" / "runs.parquet"
    commands.main(["status", "--parquet", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    pd.testing.assert_frame_equal(pd.read_parquet(path), records.load_runs(records.root()).reset_index(drop=True))
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^mbaug: Parquet needs pyarrow: `make setup` installs it$"):
        commands.main(["status", "--parquet", str(path)])


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("record tny", "unknown study 'tny': did you mean 'tiny'"),
        ("record tiny --profile papr", "unknown profile 'papr': did you mean 'paper'"),
        ("record tiny --only */sac/*", "no run matches '*/sac/*'; an example of a run's name is hopper/none/small/seed0"),
        ("record tiny --workers 100000", "workers is 100000, but on 2 cores it must be at most 8"),
        ("status tiny --parquet runs.parquet", "--parquet writes all recorded runs: leave out the study"),
        ("record tiny --workers 2 --cluster tcp://host:1", "--workers and --cluster exclude each other: on a cluster, use"),
        ("data a.hdf5 --as hopper-a --readme", "an import and --readme cannot be combined: run one command for each"),
        ("data --export minari --probes", "--export and --probes cannot be combined: run one command for each"),
        ("status tny", "unknown study 'tny'"),
        ("verify", "nothing is recorded in"),
        ("verify hopper/none/small/seed7", "seed7 is not recorded"),
        ("collect hoper", "unknown task 'hoper': did you mean 'hopper'? allowed are 'hopper', 'walker2d', "),
        ("watch ant --run hopper/none/small/seed0", "hopper/none/small/seed0 is a run of hopper, but the task given is ant"),
        ("data minari:mujoco/hopper/medium-v0 --as hopper-minari", "needs Minari: `make setup` installs it"),
        ("data absent.hdf5 --as hopper-absent", "there is no file absent.hdf5"),
        ("data absent.hdf5", "an import needs a name for the new dataset: add --as NAME, e.g. --as hopper-d4rl"),
        (
            "data --output elsewhere",
            "--output names the folder of an import or export: add PATH.hdf5 --as NAME, or --export minari",
        ),
        (
            "data hopper-medium --as hopper-again",
            "hopper-medium is a pool that already exists here: give PATH.hdf5 or minari:ID of the data to import",
        ),
        ("data minari: --as hopper-minari", "'minari:' names no dataset: add its id, as in"),
        ("advise hopper-medium --task=", "unknown task ''"),
        ("data --as hopper-absent", "--as NAME needs a dataset to import: add PATH.hdf5 or minari:ID"),
        ("figures --profile papr", "unknown profile 'papr'"),
        ("figures --only 99", "'99'"),
        ("figures --profile smoke --anew", "--anew writes tables of the profile 'paper', but the profile is 'smoke'"),
    ],
)
def test_a_wrong_argument_ends_in_one_sentence(typed, sentence, repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)  # an optional package, here as if it were not installed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
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
        ("record tiny --seeds a-b", "seeds are 'a-b', but they must be a range such as 0-4 or a list such as 0,2,5"),
        ("record tiny --seeds 4-0", "seeds are '4-0'"),
        ("record tiny --cluster=", "'' was given, but it must be an address such as tcp://HOST:8786"),
        ("record tiny --cluster nowhere", "'nowhere' was given, but it must be an address"),
        (
            "record tiny --seeds 0-20000000",
            "seeds are '0-20000000', but they must be a range such as 0-4 or a list such as 0,2,5, with at most 100 seeds",
        ),
        ("record tiny --seeds 1-" + 5000 * "9", "with at most 100 seeds, each below a billion"),
        ("record tiny --population " + 5000 * "9", "was given, but it must be a whole number from 1 to 999,999,999"),
        ("record tiny --workers 0", "'0' was given, but it must be a whole number from 1 to 999,999,999"),
        ("collect hopper --to many", "'many' was given, but it must be a whole number from 0 to 999,999,999"),
    ],
)
def test_a_command_that_cannot_be_parsed_ends_with_the_usage(typed, sentence, repository, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(typed.split())
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        *("collect hopper --to 0", "data", "data a.hdf5 --as hopper-a", "data --readme", "data --probes", "data --export minari"),
        *("strips", "status", "verify", "record tiny", "notebooks", "figures", "watch hopper --run hopper/none/small/seed0"),
    ],
)
def test_a_command_that_needs_a_clone_says_so_without_one(typed, tmp_path, monkeypatch):
    """This is the state after installing a wheel. Nothing may be written beside the package."""
    folder = tmp_path / "site-packages"
    monkeypatch.setattr(files, "CLONE", folder)
    monkeypatch.setattr(render, "opengl", lambda: "")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setitem(studies.STUDIES, "tiny", studies.Study("tiny", "Does it run?", ("td3",)))
    with pytest.raises(
        SystemExit, match=f"^mbaug: mbaug is installed in {re.escape(str(folder))} without its repository, which holds the data"
    ):
        commands.main(typed.split())
    assert not folder.exists()


def test_loading_a_pool_by_name_without_a_clone_says_where_the_data_are(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CLONE", tmp_path)
    monkeypatch.setattr(read, "bundled", lambda folders: {})
    with pytest.raises(FileNotFoundError, match="without its repository, which holds the data"):
        read.load("hopper-medium-replay")


@pytest.mark.parametrize(
    "typed", [["status", "\x1b[2J"], ["status", "--parquet", "\x1b[2J"], ["data", "\x1b[2J", "--as", "ant-a"]]
)
def test_typed_control_characters_are_printed_escaped(typed, repository, in_tmp_path, capsys):
    """Whether the parser refuses the word, a command refuses it, or it names a file that was written."""
    try:
        commands.main(typed)
    except SystemExit as ended:
        print(ended.code)
    printed = "".join(capsys.readouterr())
    assert r"\x1b[2J" in printed
    assert "\x1b" not in printed


def test_each_failed_run_has_its_own_line(repository, monkeypatch):
    def failed(*given):
        raise RuntimeError("one: \x1b\nother: full")

    monkeypatch.setattr(runner, "hours", failed)
    with pytest.raises(SystemExit, match=r"^mbaug: one: \\x1b\nother: full$"):
        commands.main(["status"])


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_closed_pipe_is_no_error(lines):
    """As in `mbaug status | head -1`, whether the output fits into the pipe's buffer or not."""
    code = "from mbaug import __main__ as m; m.COMMANDS = {m.notebooks: {}}; "
    code += f"m.notebooks.__code__ = (lambda arguments: print('x\\\\n' * {lines})).__code__; m.main(['notebooks'])"
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stderr == ""


def test_verify_takes_the_cheapest_run_that_every_processor_can_train(monkeypatch, capsys):
    """A bfloat16 run may be cheaper, but not every processor has bfloat16 products. Nor has every machine a GPU."""
    low, full, gpu = {"precision": "bfloat16"}, {"precision": "float32"}, {"precision": "float32", "device": "a GPU"}
    costs = [(low, 1.0), (full, 3.0), (full, 2.0), (gpu, 0.1)]
    runs = [Run("hopper", "none", "small", seed) for seed in range(4)]
    found = {run: {"provenance": origin, "wall_seconds": wall} for run, (origin, wall) in zip(runs, costs, strict=True)}
    monkeypatch.setattr(records, "load_metadata", lambda root: found)
    monkeypatch.setattr(verify, "verify", lambda run, *rest: f"verified {run}")
    commands.main(["verify"])
    assert capsys.readouterr().out == f"verified {runs[2]}\n"


@pytest.mark.parametrize(
    ("typed", "callee", "said"),
    [
        ("record tiny", "record", "mbaug: interrupted; the same command continues from the last checkpoints"),
        ("status", "hours", "mbaug: interrupted"),
    ],
)
def test_an_interrupted_command_mentions_checkpoints_only_if_it_writes_them(typed, callee, said, repository, monkeypatch):
    def interrupted(*rest, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, callee, interrupted)
    with pytest.raises(SystemExit) as ended:
        commands.main(typed.split())
    assert str(ended.value) == said


@pytest.mark.parametrize(("given", "said"), [("tpu", "unknown device 'tpu'"), ("cuda", "torch finds no NVIDIA GPU here")])
def test_an_unavailable_device_is_refused_even_in_a_dry_run(given, said, repository, monkeypatch, capsys):
    """On a cluster any known device is accepted: the workers have their own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=said):
        commands.main(["record", "tiny", "--dry-run", "--device", given])
    commands.main(["record", "tiny", "--dry-run", "--device", "cuda", "--cluster", "tcp://nowhere:1"])
    assert "about 0.5 hours of one CPU core" in capsys.readouterr().out  # how many workers there are nobody knows here


def test_figures_ends_with_what_was_found_where_to_look_and_what_to_do_next(monkeypatch, capsys):
    monkeypatch.setattr(chapters, "run", lambda *given, **named: None)
    monkeypatch.setattr(records, "load_runs", lambda root: pd.DataFrame())
    monkeypatch.setattr(tables, "update", lambda frame: None)
    monkeypatch.setattr(figures, "write_gallery", lambda folder: None)
    monkeypatch.setattr(answers, "readme", lambda frame: "Imagination helps.")
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MBAUG_FIGURES", raising=False)
    commands.main(["figures", "--only", "00"])
    found, look, after = capsys.readouterr().out.splitlines()
    assert found == "found: Imagination helps."
    places = re.findall(r"\S*README\.md", look)
    assert places == ["README.md", "figures/README.md"]
    assert all((ROOT / place).is_file() for place in places)
    assert after.startswith("next:  read on with ")
