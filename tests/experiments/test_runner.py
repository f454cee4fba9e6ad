"""Recording missing runs: a kill loses nothing and leaves no process behind, and two commands train each run once."""

import errno
import fcntl
import inspect
import os
import random
import re
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from conftest import alive, no_space, wait_until
from joblib.externals.loky import get_reusable_executor, process_executor
from small import BRIEF, FORK, OFFLINE, RUN, SCRATCH, SECOND, SHORT, THIRD, TINY, arms, on_data, progress, record, rows  # noqa: F401

from mbaug import __main__ as commands
from mbaug import engine, files, provenance
from mbaug.experiments import checkpoint, probes, records, run, runner, studies, verify
from mbaug.experiments.metadata import FORMAT, OWN
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, Study
from mbaug.method import training

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
slow = pytest.mark.slow


def start(folder, *given, **more):
    """Starts recording in a forked process, which knows the tiny arms."""
    process = FORK.Process(target=record, args=(folder, *given), kwargs=more)
    process.start()
    return process


def finish(process):
    """Waits for a process and asserts that it succeeds."""
    process.join(timeout=600)
    assert process.exitcode == 0


# --- kills ----------------------------------------------------------------------------------------------------------------


@slow
def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path):
    """We kill it after the second checkpoint."""
    process = start(tmp_path, [RUN])
    wait_until("the second checkpoint", lambda: max(progress(tmp_path), default=0) >= 200)
    process.kill()
    process.join()
    (steps,) = progress(tmp_path)
    states = run.train([RUN], TINY.apply(SCRATCH), tmp_path / "work")
    assert [next(states).learner.environment_steps for _ in range(3)] == [0, steps, steps + 100]


# For tests with workers, which know only the programme's arms.
PAIR = [Run("hopper", "none", "td3", seed) for seed in (0, 1)]


def record_pair(folder, workers=2):
    """Records two runs in a new process group, as a shell does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job, such as these tests, may ignore it
    record(folder, PAIR, TINY, workers=workers)
    get_reusable_executor().shutdown()  # as a command does at its end; otherwise idle workers stay for minutes


def tiny_study():
    """Returns a study of the two runs."""
    return Study("tiny", "Does it run?", ("small",), seeds=(0, 1))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with the two runs, recorded without a disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    record(folder, PAIR, TINY)
    return folder


def assert_continues(folder, undisturbed):
    """Repeats the command with one worker and asserts that it records the rows of the undisturbed runs."""
    process = FORK.Process(target=record_pair, args=(folder, 1))
    process.start()
    finish(process)
    for which in PAIR:
        assert rows(folder, which).equals(rows(undisturbed, which))


@slow
def test_ctrl_c_leaves_no_process_and_the_same_command_continues(undisturbed, tmp_path):
    """At least one run is training. Like a terminal, we send SIGINT to the command and to its workers."""
    process = FORK.Process(target=record_pair, args=(tmp_path,))
    process.start()
    wait_until("the second checkpoint", lambda: max(progress(tmp_path), default=0) >= 200 or not process.is_alive())
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2, "Two processes should be training."
    os.killpg(process.pid, signal.SIGINT)
    process.join(timeout=60)
    assert process.exitcode not in (None, 0), "The command ended before we interrupted it."
    wait_until("the end of all workers", lambda: not any(map(alive, children)), seconds=10)
    assert_continues(tmp_path, undisturbed)


def command_line(child):
    """Returns the command line of a process, or an empty text if the process has ended."""
    with suppress(psutil.NoSuchProcess):
        return str(child.cmdline())
    return ""


@slow
def test_twenty_kills_of_command_and_workers_lose_nothing(undisturbed, tmp_path):
    """SIGKILL or SIGTERM ends the command or a worker at a random moment. Each time all processes end within ten seconds."""
    moments, interrupted, folder = random.Random(0), 0, tmp_path / "0"
    for number in range(20):
        if records.recorded(folder / "runs") == PAIR:  # a fast machine needs few attempts: begin again
            assert all(rows(folder, which).equals(rows(undisturbed, which)) for which in PAIR)
            folder = tmp_path / str(number)
        process = FORK.Process(target=record_pair, args=(folder,))
        process.start()
        parent = psutil.Process(process.pid)
        wait_until("two workers", lambda p=process, parent=parent: not p.is_alive() or len(parent.children()) >= 2)
        process.join(timeout=moments.uniform(0, 4))
        children = parent.children(recursive=True) if process.is_alive() else []
        interrupted += bool(children)
        with suppress(psutil.NoSuchProcess):  # the process has just ended by itself
            workers = [child for child in children if "LokyProcess" in command_line(child)]  # not loky's resource tracker
            victim = parent if number % 2 or not workers else moments.choice(workers)
            victim.send_signal(signal.SIGKILL if number % 4 < 2 else signal.SIGTERM)
        process.join(timeout=300)
        assert process.exitcode is not None
        wait_until("the end of all", lambda children=children: not any(map(alive, children)), seconds=10)
    assert interrupted >= 5, "Too few of the kills met a command that was still training."
    assert_continues(folder, undisturbed)


def command(folder):
    """Runs `mbaug record` for the two runs, with `folder` as the repository."""
    files.repository = lambda: folder
    studies.PROFILES["tiny"] = TINY
    commands.main(["record", "baselines", "--profile", "tiny", "--only", "hopper/none/td3/*", "--seeds", "0-1", "--workers", "2"])


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_end_a_command_as_ctrl_c_does(number, tmp_path, capfd):
    """A job scheduler sends SIGTERM to the command alone. It prints one sentence, and no process is left."""
    process = FORK.Process(target=command, args=(tmp_path,))
    process.start()
    wait_until("a training", lambda: list(tmp_path.rglob(checkpoint.NAME)) or not process.is_alive())
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, number)
    process.join(timeout=20)
    assert process.exitcode == 1
    assert "mbaug: interrupted; the same command continues from the last checkpoints" in capfd.readouterr().err
    wait_until("the end of all workers", lambda: not any(map(alive, children)), seconds=10)


@slow
def test_whichever_write_finds_the_disk_full_the_same_command_continues(tmp_path, monkeypatch):
    """The error is one sentence, and all checkpoints stay complete. Finally the rows equal those of a run that had space."""
    which, fsync, room, refused = on_data("small_imagining"), os.fsync, 0, set()
    record(tmp_path / "whole", [which], SHORT)

    def full(*given):
        nonlocal room
        room -= 1
        return fsync(*given) if room >= 0 else no_space()

    monkeypatch.setattr(files.os, "fsync", full)
    for number in (0, 1, 2, 1, 1, 1, 3, 2, 2):  # writes that find room, chosen so that each kind of file fails at least once
        room = number
        with pytest.raises(RuntimeError) as ended:
            record(tmp_path / "full", [which], SHORT)
        pattern = rf"{which}: Cannot write [^\n]*/([^/\n]+): No space left on device\. Nothing there was changed: make room\."
        refused.add(re.fullmatch(pattern, str(ended.value))[1])
        assert not records.recorded(tmp_path / "full" / "runs")
        for path in tmp_path.glob(f"full/work/*/{checkpoint.NAME}"):
            checkpoint.load(path.parent)
    assert refused == {checkpoint.NAME, "switch.safetensors", "seed0.csv", "seed0.json"}
    monkeypatch.undo()
    record(tmp_path / "full", [which], SHORT)
    assert rows(tmp_path / "full", which).equals(rows(tmp_path / "whole", which))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.filterwarnings("ignore:OMP_NUM_THREADS=3 was set")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=slow)])
def test_each_worker_has_one_thread_and_a_single_one_needs_no_process(workers, monkeypatch, tmp_path):
    """The user's OMP_NUM_THREADS does not matter. Only workers end with their parent: the command itself outlives its shell."""
    monkeypatch.setenv(engine.process.THREADS[0], "3")
    monkeypatch.setattr(runner, "attempt", lambda *given: [(os.getppid(), dict(os.environ))])
    ((parent, environment),) = runner.on_this_machine([[[RUN]]], TINY, tmp_path, tmp_path, workers, "cpu")
    assert (parent == os.getpid()) == (workers > 1)
    assert workers == 1 or [environment[variable] for variable in engine.process.THREADS] == ["1", "1"]
    time.sleep(0.2)  # time enough for this process to end if it were treated as a worker


def test_no_warning_of_a_leak_when_joblib_replaces_a_worker_that_grew(tmp_path):
    reported = "A worker stopped while some jobs were given to the executor. This can be caused by"
    source = "".join(re.findall(r'"(.*)"', inspect.getsource(process_executor)))
    assert reported in source, "joblib words it differently now"
    with warnings.catch_warnings(action="error"):
        assert not list(runner.on_this_machine([], TINY, tmp_path, tmp_path, 2, "cpu"))
        warnings.warn(reported, UserWarning, stacklevel=1)


@slow
def test_without_semaphores_one_worker_trains_and_several_are_refused(tmp_path, monkeypatch):
    """A read-only /dev/shm has no semaphores."""
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", lambda *_, **__: no_space())
    with pytest.raises(
        RuntimeError, match=r"several workers need semaphores, .* No space left on device; train with --workers 1$"
    ):
        record(tmp_path, [RUN, SECOND], BRIEF, workers=2)
    record(tmp_path, [RUN], BRIEF)
    assert len(rows(tmp_path)) == 4


# --- two commands side by side --------------------------------------------------------------------------------------------


@slow
def test_two_commands_record_each_run_once(tmp_path):
    """The second one takes another run or waits, and in the end finds everything recorded."""
    for process in [start(tmp_path, [RUN, SECOND]), start(tmp_path, [RUN, SECOND])]:
        finish(process)
    assert [len(rows(tmp_path, which)) for which in (RUN, SECOND)] == [7, 7]  # one episode at 0, 100, ..., 600 steps


def test_runs_held_by_another_command_come_last_and_count_as_running(tmp_path):
    """Thus two commands share the work. Asking for the status creates no file."""
    cells, root = studies.cells([RUN, SECOND, THIRD]), tmp_path / "runs"
    with runner.held([RUN], TINY.apply(SCRATCH), tmp_path):
        assert list(runner.free_first(cells, TINY, tmp_path)) == [[[SECOND]], [[THIRD]], [[RUN]]]
    with runner.held([RUN], SCRATCH, tmp_path):
        assert runner.status(tiny_study(), root, tmp_path).to_numpy().tolist() == [[0, 0, 1, 1]]
    assert runner.status(tiny_study(), root, tmp_path).to_numpy().tolist() == [[0, 0, 0, 2]]
    assert runner.status(tiny_study(), root, tmp_path / "none").to_numpy().tolist() == [[0, 0, 0, 2]]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_file_locks_we_warn_and_two_commands_still_do_not_meet(code, tmp_path, monkeypatch):
    """Some network file systems have no locks. A file stands for the lock and is removed when it is released."""

    def flock(*given):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    sentence = f"the file system of {tmp_path}/runs has no locks .*lock.soft"
    with pytest.warns(RuntimeWarning, match=sentence), runner.held([RUN], SCRATCH, tmp_path):
        assert runner.is_training(RUN, SCRATCH, tmp_path)
    assert not runner.is_training(RUN, SCRATCH, tmp_path)


# --- failures -------------------------------------------------------------------------------------------------------------


@slow
def test_a_failed_run_does_not_stop_the_others(tmp_path):
    """They are recorded. The problem is reported at once, and again at the end."""
    runs, reported = [RUN, SECOND, THIRD], []
    blocked = SECOND.path(tmp_path / "runs").with_suffix(".csv")
    blocked.mkdir(parents=True)
    sentence = f"{SECOND}: Cannot write {blocked}"
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        record(tmp_path, runs, BRIEF, report=reported.append)
    assert records.recorded(tmp_path / "runs") == [RUN, THIRD]
    assert len([line for line in reported if line.startswith(sentence)]) == 1


def test_uncommitted_code_is_reported_before_it_trains(tmp_path, monkeypatch):
    """Hours later it would be too late."""
    reported, counts = [], []
    for name in ("unknown", "0" * 40 + "+dirty", "0" * 40):
        monkeypatch.setattr(runner, "commit", lambda name=name: name)
        monkeypatch.setattr(runner, "on_this_machine", lambda *given: counts.append(len(reported)) or [])
        record(tmp_path, [RUN], report=reported.append)
    assert reported == [
        f"the records will name the commit {x}: train in a clean clone if you want to keep them"
        for x in ("unknown (git is missing, or there is no history here)", "0" * 40 + "+dirty")
    ]
    assert counts == [1, 2, 2]


def test_a_worker_at_another_commit_is_reported_with_both_commits(recorded, tmp_path, monkeypatch):
    copy(
        recorded, tmp_path / "runs", provenance=records.read_metadata(recorded / "runs", RUN)["provenance"] | {"commit": 40 * "1"}
    )
    reported = []
    monkeypatch.setattr(runner, "commit", lambda: 40 * "0")
    monkeypatch.setattr(runner, "missing", lambda *given: [RUN])
    monkeypatch.setattr(runner, "train", lambda *given: None)
    record(tmp_path, [RUN], report=reported.append)
    assert reported[0].endswith(f" s, trained by commit {40 * '1'}, but this clone is at {40 * '0'}")


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(tmp_path):
    """A file is in the way, so that even root cannot write there."""
    (tmp_path / "work").touch()
    sentence = f"^{RUN}: Cannot write {re.escape(str(tmp_path / 'work'))}.*: name another path, because .*\\.$"
    with pytest.raises(RuntimeError, match=sentence):
        record(tmp_path, [RUN])


def test_a_folder_for_records_that_cannot_be_written_is_reported_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "attempt", lambda *given: pytest.fail("It trains."))
    (tmp_path / "runs").touch()
    with pytest.raises(files.CannotWrite, match=f"^Cannot write {re.escape(str(tmp_path / 'runs'))}: "):
        record(tmp_path, [RUN])


def test_an_unexpected_error_is_reported_with_its_traceback(tmp_path, monkeypatch):
    """Shapes that do not fit are a RuntimeError of torch."""
    monkeypatch.setattr(run, "train", lambda *given: torch.ones(2) + torch.ones(3))
    assert runner.attempt([[RUN]], TINY, tmp_path / "runs", tmp_path / "work")[0][1].startswith(f"{RUN}: Traceback")
    monkeypatch.setattr(run, "train", lambda *given: {}["absent"])
    ((runs, problem),) = runner.attempt([[RUN]], TINY, tmp_path / "runs", tmp_path / "work")
    assert runs == [RUN]
    assert problem.startswith(f"{RUN}: Traceback")
    assert problem.endswith("KeyError: 'absent'\n")


def test_runs_whose_dataset_is_missing_are_left_out(monkeypatch):
    def load(name):
        if name == "ant-medium":
            raise FileNotFoundError("ant-medium is not here: `collect` makes it")

    monkeypatch.setattr(runner.read, "load", load)
    here, reported = [RUN, on_data()], []
    lacking = [Run("ant", "ant-medium", "vanilla", seed) for seed in (0, 1)]
    assert runner.with_data([lacking[0], *here, lacking[1]], reported.append) == here
    assert reported == ["2 runs are skipped: ant-medium is not here: `collect` makes it"]
    assert runner.with_data([], reported.append) == []
    with pytest.raises(FileNotFoundError, match="ant-medium is not here"):
        runner.with_data(lacking, reported.append)


# --- existing records -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder in which the tiny run is recorded with a short budget."""
    folder = tmp_path_factory.mktemp("recorded")
    record(folder, [RUN], BRIEF)
    return folder


def copy(recorded, root, change=lambda rows: rows, policies=None, **changed):
    """Writes the record into `root` with changed rows or metadata, and with actors if given."""
    table, metadata = records.read(recorded / "runs", RUN)
    metadata = {name: metadata[name] for name in OWN} | changed
    records.write(root, RUN, change(table).to_dict("records"), metadata, policies)


def test_a_record_with_other_settings_is_refused(recorded, monkeypatch):
    """Old curves under new settings would be false evidence. The error names the setting and the file to remove."""
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("The run is trained again."))
    assert record(recorded, [RUN], BRIEF) == []
    monkeypatch.setitem(ARMS, "small", replace(SCRATCH, learner=replace(SCRATCH.learner, policy_delay=3)))
    file = re.escape(str(RUN.path(recorded / "runs"))) + ".json"
    sentence = f"{RUN} is recorded with other settings: settings.learner.policy_delay is 2 in the record and 3 .* remove {file}$"
    with pytest.raises(ValueError, match=sentence):
        record(recorded, [RUN], BRIEF)


def test_status_counts_finished_and_diverged_runs(recorded, tmp_path):
    copy(recorded, tmp_path, status="diverged", diverged_at={"gradient_steps": 1, "environment_steps": 1})
    found = [runner.status(tiny_study(), root, tmp_path).to_numpy().tolist() for root in (recorded / "runs", tmp_path)]
    assert found == [[[1, 0, 0, 1]], [[0, 1, 0, 1]]]


def test_a_run_that_diverges_is_reported_as_such(tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS, "small_offline", replace(OFFLINE, learner=replace(OFFLINE.learner, learning_rate=1e30)))
    reports = []
    record(tmp_path, [on_data()], report=reports.append)
    assert reports[-1].endswith(" s, diverged")


def test_status_tells_datasets_apart(tmp_path):
    study = Study("tiny", "Does it run?", ("small", "small_offline"), qualities=("random", "medium"), seeds=(0, 1))
    found = runner.status(study, tmp_path, tmp_path)["missing"].to_dict()
    datasets = {"none": "small", "hopper-random": "small_offline", "hopper-medium": "small_offline"}
    assert found == {("hopper", dataset, arm): 2 for dataset, arm in datasets.items()}


def test_a_task_without_fixed_states_is_recorded_without_calibration(tmp_path, monkeypatch):
    """It is a task of your own. The user learns it before the training."""
    monkeypatch.setitem(ARMS, "small_offline", SHORT.apply(replace(OFFLINE, finetuning=None)))
    monkeypatch.setattr(probes, "known", lambda task: False)
    reports = []
    record(tmp_path, [on_data()], SHORT, report=reports.append)
    assert reports[0].startswith("data/probes has no fixed states of hopper, so the records will have no calibration")
    assert reports[-1].endswith(" s, without calibration")
    assert records.read_metadata(tmp_path / "runs", on_data())["calibration"] is None


def test_the_estimate_of_hours_uses_records_of_this_processor():
    """Records of other processors count only if there are no others, those of a GPU never. Shared pre-training counts once."""
    assert runner.step_seconds({}) == 0.01
    found = {PAIR[0]: {"wall_seconds": 1900.0, "provenance": {"cpu": "another"}}}  # for 95,000 updates
    assert runner.step_seconds(found) == pytest.approx(0.02)
    found[PAIR[1]] = {"wall_seconds": 950.0, "provenance": {"cpu": provenance.processor()}}
    found[THIRD] = {"wall_seconds": 1.0, "provenance": {"cpu": provenance.processor(), "device": "a GPU"}}
    assert runner.step_seconds(found) == pytest.approx(0.01)
    runs = [Run("hopper", "hopper-medium-replay", arm, 0) for arm in ("augmented", "augmented_critics", "vanilla_critics")]
    assert runner.hours(runs, found) == pytest.approx(0.01 * (2 * 200_000 + 3 * 75_000) / 3600)
    assert runner.hours(runs + [replace(each, seed=1) for each in runs], found) == 2 * runner.hours(runs, found)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows.assign(data_value=1.0), "different from row 0 on"),
        (lambda rows: rows.assign(length=rows["length"] + (rows.index == 3)), "different from row 3 on"),
        (lambda rows: rows.assign(discounted_return=rows["discounted_return"] * 1.0001), "equal within 0.1 %"),
        (lambda rows: rows[:-1], "different number of rows, 4 for 3"),
        (lambda rows: rows.iloc[[0, 1, 2, 3, 3]].assign(episode=[0, 0, 0, 0, 1]), "different number of rows, 4 for 5"),
        (lambda rows: rows, "4 rows are equal bit for bit"),
    ],
)
def test_verify_compares_every_column_and_every_row(change, sentence, recorded, tmp_path, monkeypatch):
    """NaN, in place of a value on data, equals only NaN. Only another processor or version excuses a difference."""
    monkeypatch.setitem(ARMS, "small", BRIEF.apply(SCRATCH))
    copy(recorded, tmp_path / "changed", change)
    if "different" not in sentence:
        assert sentence in verify.verify(RUN, tmp_path / "changed", tmp_path / "work")
        return
    with pytest.raises(ValueError, match=re.escape(sentence) + ".*, with the same processor and versions: the code computes"):
        verify.verify(RUN, tmp_path / "changed", tmp_path / "work")
    origin = records.read_metadata(recorded / "runs", RUN)["provenance"] | {"cpu": "another"}
    copy(recorded, tmp_path / "elsewhere", change, provenance=origin)
    found = verify.verify(RUN, tmp_path / "elsewhere", tmp_path / "work")
    assert sentence in found
    assert found.endswith(f", perhaps because of rounding: this machine has cpu {provenance.processor()}, not another")


def test_verify_may_stop_before_an_offline_run_ends(tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS, "small_offline", SHORT.apply(replace(OFFLINE, finetuning=None)))
    record(tmp_path, [on_data()], SHORT)
    for updates, count in ((50, 1), (1_000, 3)):
        found = verify.verify(on_data(), tmp_path / "runs", tmp_path / f"{updates} updates", updates)
        assert found.endswith(f": {count} rows are equal bit for bit")


def test_verify_refuses_a_record_with_other_settings(recorded, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be verified: settings\.finetuning\.steps is 300 in the record and 100000"):
        verify.verify(RUN, recorded / "runs", tmp_path)


@pytest.mark.parametrize("use", [lambda root: verify.verify(RUN, root, root), lambda root: runner.policy(RUN, root, "final")])
def test_a_record_of_an_arm_that_no_longer_exists_is_refused_in_one_sentence(use, recorded, monkeypatch):
    monkeypatch.delitem(ARMS, "small")
    with pytest.raises(ValueError, match=r"^unknown arm 'small': "):
        use(recorded / "runs")


def test_a_kept_actor_can_be_loaded_and_acts_as_before(recorded, tmp_path, monkeypatch):
    """If there is none, the error says why."""
    monkeypatch.setitem(ARMS, "small", BRIEF.apply(SCRATCH))
    learner = training.learner(SCRATCH, run.tasks.find("hopper"), [5])
    copy(recorded, tmp_path, policies={"final": training.actors(learner)[0]})
    state = np.linspace(-1, 1, 11)
    act = runner.policy(RUN, tmp_path, "final")
    assert np.array_equal(act(state), learner.policy(state[None, None])[0, 0])
    with pytest.raises(ValueError, match="unknown policy 'medium': allowed are 'final'"):
        runner.policy(RUN, tmp_path, "medium")
    with pytest.raises(FileNotFoundError, match="recorded without its actors: only runs of more than 100,000 steps keep them"):
        runner.policy(RUN, recorded / "runs", "final")


def test_a_chapter_reads_records_or_trains_its_own_runs(tmp_path, monkeypatch):
    """With `retrain`, it trains the first seeds with a small budget into a separate folder, and only once."""
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    monkeypatch.setitem(studies.STUDIES, "tiny", tiny_study())
    monkeypatch.setitem(studies.PROFILES, "tiny", replace(BRIEF, seeds=1))
    assert len(runner.evidence("tiny", "tiny")) == 0
    found = runner.evidence("tiny", "tiny", retrain=True)
    assert (found["seed"].unique().tolist(), len(found)) == ([0], 4)
    assert records.recorded(tmp_path / "build/tiny/runs") == [RUN]
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("The run is trained again."))
    assert runner.evidence("tiny", "tiny", retrain=True).equals(found)


# --- records from a cluster -----------------------------------------------------------------------------------------------


@slow
def test_a_cluster_worker_keeps_runs_of_different_profiles_apart(tmp_path):
    """Each record that comes back has the settings that were sent."""
    for profile, count in ((BRIEF, 4), (TINY, 7), (BRIEF, 4)):
        ((outcome, ((which, table, metadata, _),)),) = runner.attempt_on_worker([[RUN]], profile, tmp_path)
        assert outcome == ([RUN], "")
        assert (which, len(table)) == (RUN, count)
        assert records.difference({"format": FORMAT} | metadata, profile.apply(SCRATCH)) is None


@slow
def test_a_cluster_worker_does_not_return_what_other_code_has_trained(tmp_path, monkeypatch):
    trained, train = [], run.train
    monkeypatch.setattr(run, "train", lambda *given: trained.append(checkpoint.circumstances()["code"]) or train(*given))
    here = checkpoint.circumstances()
    for code in ("old", "old", "edited"):
        monkeypatch.setattr(checkpoint, "circumstances", lambda code=code: here | {"code": code})
        runner.attempt_on_worker([[RUN]], BRIEF, tmp_path)
    assert trained == ["old", "edited"]


def test_a_record_from_a_cluster_is_written_once_and_only_with_the_settings_sent(recorded, tmp_path):
    """Rows, metadata and actors are written. An existing record stays as it is."""
    table, metadata = records.read(recorded / "runs", RUN)
    kept, actor = {name: metadata[name] for name in OWN}, {"final": torch.tensor([1.0, 2.0])}
    other = kept | {"settings": metadata["settings"] | {"precision": "bfloat16"}}
    sentence = "the worker returned other settings than we sent: settings.precision is 'bfloat16' in the record"
    with pytest.raises(ValueError, match=sentence):
        runner.write_returned([(RUN, table.to_dict("records"), other, {})], BRIEF, tmp_path)
    assert records.find(tmp_path, RUN) is None
    for change in (lambda rows: rows, lambda rows: rows.assign(data_value=1.0)):
        runner.write_returned([(RUN, change(table).to_dict("records"), kept, actor)], BRIEF, tmp_path)
    assert records.read(tmp_path, RUN).rows.equals(table)
    found = records.read_metadata(tmp_path, RUN)
    assert found == metadata | {name: found[name] for name in ("policies_sha256", "sha256")}
    assert records.policies(tmp_path, RUN)["final"].tolist() == [1.0, 2.0]
