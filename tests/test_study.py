"""The grid: what is trained, that a kill loses nothing, and that a stage shared by two arms is trained once."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import joblib
import pytest
import torch
from conftest import wait_until

from mbaug import engine, grid, recording, settings, study, training, world_model
from mbaug.grid import Study
from mbaug.life import Life
from mbaug.settings import Augmentation, Evaluation, Pretraining, Profile, WorldModel

TINY = Profile("tiny", updates=100, steps=600, warmup_steps=100, epochs=1, episodes=1, evaluation_interval=100, transitions=500)
BRIEF = replace(TINY, steps=300)
SMALL = replace(grid.ARMS["td3"], learner=settings.TD3(hidden=(16, 16)), evaluation=Evaluation(1, 100))
SCRATCH = Study("tiny", "Does it run?", {"small": SMALL}, seeds=(0,))
FORK = multiprocessing.get_context("fork")  # no imports again: a restart takes milliseconds
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_process_stays():
    """Kills what a failed test leaves behind: the end of all tests would wait for it."""
    yield
    for process in multiprocessing.active_children():
        if isinstance(process, FORK.Process):
            process.kill()


def start(folder):
    """Starts recording the tiny study in a process of its own."""
    process = FORK.Process(target=study.record, args=(SCRATCH, folder / "runs", folder / "work", TINY))
    process.start()
    return process


def finish(process):
    """Waits for a process that should end well."""
    process.join(timeout=120)
    assert process.exitcode == 0


def wait_for_two_checkpoints(process, folder):
    """Waits until a life that `process` records has left two."""
    wait_until("the second checkpoint", lambda: list(folder.rglob("2.json")) or not process.is_alive())  # the JSON comes last
    assert process.is_alive(), "all was recorded before it could be disturbed"


def rows(folder):
    """The bytes of the only recorded CSV."""
    (path,) = (folder / "runs").rglob("*.csv")
    return path.read_bytes()


def test_a_run_killed_twenty_times_ends_as_one_that_was_not(tmp_path):
    """kill -9 at random moments; the same command goes on; every evaluation row is equal bit for bit."""
    finish(start(tmp_path / "whole"))
    moments, interrupted = random.Random(0), 0
    for _ in range(20):
        process = start(tmp_path / "killed")
        process.join(timeout=moments.uniform(0.01, 0.4))
        interrupted += process.is_alive()
        process.kill()
        process.join()
    assert interrupted >= 5, "too few of the kills met a run that was still training"
    finish(start(tmp_path / "killed"))
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.safetensors")), "the checkpoints of a recorded run are removed"


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    """Killed after the second checkpoint, it does not begin again."""
    process = start(tmp_path)
    wait_for_two_checkpoints(process, tmp_path)
    process.kill()
    process.join()
    (checkpoint,) = {path.parent for path in tmp_path.rglob("*.safetensors")}
    tensors, state = recording.load_checkpoint(checkpoint)
    assert state["environment_steps"] >= 200
    life = Life(SCRATCH.runs(), TINY.apply(SMALL), tmp_path / "work")
    next(life.stages())
    assert life.learner.environment_steps == state["environment_steps"] + 100
    assert tensors["replay"].shape[1] == state["environment_steps"]


IMAGINING = replace(
    SMALL,
    model=WorldModel((16,), (16,), latent_size=4),
    augmentation=Augmentation(table_samples=2, redraw_interval=100),
    pretraining=Pretraining(),
)
OFFLINE = Study("offline", "Does it imagine?", {"augmented": IMAGINING}, qualities=("random",), seeds=(0,))
IMAGINED = replace(TINY, updates=150, steps=150, evaluation_interval=50)


def record_and_die(folder):
    """Records the study that learns offline first, and dies once the life has left a checkpoint."""
    save = Life.save

    def last(life, *given):
        save(life, *given)
        os.kill(os.getpid(), signal.SIGKILL)

    Life.save = last
    study.record(OFFLINE, folder / "runs", folder / "work", IMAGINED)


@pytest.fixture
def begun(monkeypatch):
    """The gradient steps at which each pre-training in this process begins, in order."""
    found, pretrain = [], training.pretrain

    def note(learner, *given):
        found.append(learner.gradient_steps)
        return pretrain(learner, *given)

    monkeypatch.setattr(training, "pretrain", note)
    return found


def test_a_pretraining_killed_between_two_tables_ends_as_one_that_was_not(begun, tmp_path):
    """It goes on with the imagined next states that it had: every row is equal bit for bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    study.record(OFFLINE, whole / "runs", whole / "work", IMAGINED, report=lambda line: None)
    process = FORK.Process(target=record_and_die, args=(killed,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    study.record(OFFLINE, killed / "runs", killed / "work", IMAGINED, report=lambda line: None)
    assert begun == [0, 50]
    assert rows(killed) == rows(whole)


def test_a_stage_that_arms_share_is_trained_once(begun, tmp_path, monkeypatch):
    """Of three arms, two differ in their fine-tuning alone, and the third in what it takes from the same world model."""
    fitted, fit = [], world_model.fit
    monkeypatch.setattr(world_model, "fit", lambda *given: fitted.append(given) or fit(*given))
    noise = replace(IMAGINING, augmentation=replace(IMAGINING.augmentation, source="noise"))
    arms = {"augmented": IMAGINING, "with_data": grid.finetuned(IMAGINING, keep_data=True), "noise": noise}
    one = replace(OFFLINE, arms=arms)
    assert study.record(one, tmp_path / "runs", tmp_path / "work", IMAGINED, report=lambda line: None) == one.runs()
    assert len(fitted) == 1
    assert begun == [0, 0]


PAIR = replace(SCRATCH, seeds=(0, 1))


def record_pair(folder, workers=2, file_size=None):
    """Records two runs in a process group of its own, as a shell does; no file may grow beyond `file_size` bytes."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, such as these tests, may ignore it
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    study.record(PAIR, folder / "runs", folder / "work", TINY, workers=workers)


def kill_worker(process, folder):
    """Kills a process that holds a run, without a word."""
    held = (lock for lock in (folder / "work" / "runs").rglob("lock") if recording.claimed(lock.parent))
    os.kill(int(re.search(r"process (\d+)", next(held).read_text())[1]), signal.SIGKILL)


def kill_parent(process, folder):
    """Kills the process that hands out the runs; its workers are orphans."""
    process.kill()


def press_ctrl_c(process, folder):
    """Sends what a terminal sends, to parent and workers."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of the two runs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study.record(PAIR, folder / "runs", folder / "work", TINY, report=lambda line: None)
    return [recording.read(folder / "runs", run).rows for run in PAIR.runs()]


@pytest.mark.parametrize("disturb", [kill_worker, kill_parent, press_ctrl_c])
def test_two_workers_disturbed_end_as_if_they_were_not(disturb, undisturbed, tmp_path):
    """In the middle of a run, or of both; then the same command goes on, and every row is equal."""
    process = FORK.Process(target=record_pair, args=(tmp_path,))
    process.start()
    wait_for_two_checkpoints(process, tmp_path)
    disturb(process, tmp_path)
    process.join(timeout=60)
    assert process.exitcode not in (None, 0), "nothing was disturbed"
    again = FORK.Process(target=record_pair, args=(tmp_path, 1))
    again.start()
    finish(again)
    for run, rows in zip(PAIR.runs(), undisturbed, strict=True):
        assert recording.read(tmp_path / "runs", run).rows.equals(rows)


def test_a_full_disk_loses_nothing(undisturbed, tmp_path):
    """No checkpoint fits; the command ends; with space again the same command records the same rows."""
    full = FORK.Process(target=record_pair, args=(tmp_path, 1, 20_000))
    full.start()
    full.join(timeout=60)
    assert full.exitcode == 1
    assert not list(tmp_path.rglob("*.csv"))
    again = FORK.Process(target=record_pair, args=(tmp_path, 1))
    again.start()
    finish(again)
    for run, rows in zip(PAIR.runs(), undisturbed, strict=True):
        assert recording.read(tmp_path / "runs", run).rows.equals(rows)


@pytest.mark.parametrize("variable", engine.THREADS)
def test_a_worker_process_has_one_thread_from_its_start(monkeypatch, variable):
    """Also where the user's shell says otherwise."""
    monkeypatch.setenv(variable, "3")
    assert list(study.processes(2)([joblib.delayed(os.getenv)(variable)])) == ["1"]


def test_a_population_records_what_its_agents_record_alone(undisturbed, tmp_path):
    """Two seeds side by side in one process: the same rows, a record each."""
    study.record(PAIR, tmp_path / "runs", tmp_path / "work", TINY, population=2, report=lambda line: None)
    for run, rows in zip(PAIR.runs(), undisturbed, strict=True):
        assert recording.read(tmp_path / "runs", run).rows.equals(rows)


def test_populations_share_all_but_the_seed():
    """At most `size` agents, the arms in their order; size 1 keeps the order of the runs."""
    hopper = grid.find("hopper")
    paper = settings.profile("paper")
    jobs = study.populations(hopper, hopper.runs(), paper, 2)
    assert [[run.seed for run in runs] for runs, _ in jobs] == [[0, 1]] * 5 + [[2]] * 5
    assert [runs[0].arm for runs, _ in jobs[:5]] == list(hopper.arms)
    alone = study.populations(hopper, hopper.runs(), paper, 1)
    assert [runs for runs, _ in alone] == [[run] for run in hopper.runs()]
    with pytest.raises(ValueError, match="the population is 0, but it must be 1 or above"):
        study.populations(hopper, hopper.runs(), paper, 0)


def test_two_processes_record_a_run_once(tmp_path):
    """The second process waits and then finds the run recorded: never two halves."""
    for process in [start(tmp_path), start(tmp_path)]:
        finish(process)
    record = recording.read(tmp_path / "runs", SCRATCH.runs()[0])
    assert len(record.rows) == 7  # one episode at 0, 100, ..., 600 steps


def test_an_agent_that_becomes_nan_is_recorded_and_its_neighbour_goes_on(tmp_path, monkeypatch):
    """Two agents in one population: the first is poisoned on the way; the second's rows are those of a life alone."""
    first, second = (replace(SCRATCH, seeds=(seed,)).runs()[0] for seed in (0, 1))
    poison = Life.evaluate

    def evaluate(life, phase):
        poison(life, phase)
        if life.learner.environment_steps == 200 and life.population == 2:
            life.learner.agent.critics.network.layers[0][0][0] = float("nan")

    monkeypatch.setattr(Life, "evaluate", evaluate)
    arm = BRIEF.apply(SMALL)
    study.live([first, second], arm, tmp_path / "both", tmp_path / "work")
    study.live([second], arm, tmp_path / "alone", tmp_path / "other")
    metadata = recording.verify(tmp_path / "both", first)
    assert metadata["status"] == "diverged"
    assert metadata["diverged_at"]["environment_steps"] == 250
    together, alone = (recording.read(tmp_path / place, second).rows for place in ("both", "alone"))
    assert together.equals(alone)


def test_the_order_pairs_the_arms_of_a_seed():
    """All arms of seed 0 come before any of seed 1, so that comparisons are paired early."""
    hopper = grid.find("hopper")
    seeds = [run.seed for run in hopper.runs()]
    assert seeds == sorted(seeds)
    assert [run.arm for run in hopper.runs()[: len(hopper.arms)]] == list(hopper.arms)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown study 'hoper': did you mean 'hopper'"):
        grid.find("hoper")
    with pytest.raises(ValueError, match="unknown arm 'vanila': did you mean 'vanilla'"):
        grid.find("hopper").arm("vanila")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with the tiny study's run recorded in this process."""
    folder = tmp_path_factory.mktemp("recorded")
    study.record(SCRATCH, folder / "runs", folder / "work", BRIEF, report=lambda line: None)
    return folder


def test_verify_trains_a_record_again(recorded, tmp_path, monkeypatch):
    """The same processor gives the same bits; a record that holds other numbers is found out, with its first row."""
    within = replace(SCRATCH, arms={"small": BRIEF.apply(SMALL)})
    monkeypatch.setitem(grid.STUDIES, "tiny", within)
    (run,) = SCRATCH.runs()
    assert "equal bit for bit" in study.verify(run, recorded / "runs", tmp_path / "a")
    record = recording.read(recorded / "runs", run)
    changed = record.rows.copy()
    changed.loc[2, "return"] += 1
    metadata = {name: record.metadata[name] for name in recording.METADATA}
    recording.write(tmp_path / "changed", run, changed.to_dict("records"), metadata)
    assert "different from row 2 on" in study.verify(run, tmp_path / "changed", tmp_path / "b")
    monkeypatch.setitem(grid.STUDIES, "tiny", SCRATCH)
    with pytest.raises(ValueError, match=r"settings\.finetuning\.steps is 300 in the record and 100000"):
        study.verify(run, recorded / "runs", tmp_path / "c")


def test_data_of_another_task_are_refused_before_anything_is_trained(tmp_path):
    """The name of a run says which task and which data; that they fit is checked where they meet."""
    run = recording.Run("tiny", "ant", "hopper-medium-replay", "vanilla", 0)
    with pytest.raises(ValueError, match="hopper-medium-replay: state has 11 dimensions, but in Ant-v5 it has 27"):
        study.live([run], grid.ARMS["vanilla"], tmp_path / "runs", tmp_path / "work")


def test_bfloat16_is_recorded_only_where_it_is_multiplied(tmp_path, monkeypatch):
    """A run in float32 under the name of a bfloat16 arm would be no evidence: it is refused, and nothing is written."""
    monkeypatch.setattr(engine, "has_bfloat16", lambda device="cpu": False)
    (run,) = SCRATCH.runs()
    with pytest.raises(ValueError, match=f"{run} is trained in bfloat16, of which this processor has no products"):
        study.live([run], BRIEF.apply(replace(SMALL, precision="bfloat16")), tmp_path / "runs", tmp_path / "work")
    assert not list(tmp_path.rglob("*.*"))


def test_a_population_s_wall_time_is_shared_among_its_runs(tmp_path, monkeypatch):
    """What runs cost can be added up, however many were trained side by side."""
    monkeypatch.setattr(Life, "elapsed", lambda life: 100.0)
    both = PAIR.runs()
    study.live(both, BRIEF.apply(SMALL), tmp_path / "runs", tmp_path / "work")
    assert [recording.verify(tmp_path / "runs", run)["wall_seconds"] for run in both] == [50.0, 50.0]


def test_status_counts_what_is_there(recorded, tmp_path):
    """One row an arm; a run is finished, diverged, running or missing."""
    assert study.status(SCRATCH, recorded / "runs", recorded / "work").to_numpy().tolist() == [[1, 0, 0, 0]]
    with recording.claim(tmp_path / "runs" / str(SCRATCH.runs()[0])):
        assert study.status(SCRATCH, tmp_path / "none", tmp_path).to_numpy().tolist() == [[0, 0, 1, 0]]
    assert study.status(SCRATCH, tmp_path / "none", tmp_path).to_numpy().tolist() == [[0, 0, 0, 1]]


def record_with_an_actor(source, root):
    """Records the tiny study's run below `root` as it is below `source`, and as if its last actor had been kept."""
    (run,) = SCRATCH.runs()
    rows, metadata = recording.read(source, run)
    metadata = {name: metadata[name] for name in recording.METADATA}
    recording.write(root, run, rows.to_dict("records"), metadata, {"final": torch.tensor([1.0, 2.0])})


def test_what_another_study_recorded_is_not_trained_again(recorded, tmp_path, monkeypatch):
    """The same task, data, seed and settings under another name: the record is copied, with its provenance and its actors."""
    monkeypatch.setattr(study, "Life", None)  # nothing may be trained
    other = replace(SCRATCH, name="other", arms={"alias": SMALL})
    record_with_an_actor(recorded / "runs", tmp_path / "runs")
    study.record(other, tmp_path / "runs", tmp_path / "work", BRIEF, report=lambda line: None)
    first, second = (recording.read(tmp_path / "runs", each.runs()[0]) for each in (SCRATCH, other))
    assert first.rows.equals(second.rows)
    assert second.metadata["provenance"] == {"copied_from": str(SCRATCH.runs()[0])} | first.metadata["provenance"]
    assert recording.policies(tmp_path / "runs", other.runs()[0])["final"].tolist() == [1.0, 2.0]


def test_a_whole_record_travels_home_from_a_cluster(recorded, tmp_path, monkeypatch):
    """Rows, metadata and actors."""
    monkeypatch.setattr(study, "Life", None)  # nothing may be trained: the worker has the record already
    arm = BRIEF.apply(SMALL)
    there = tmp_path / "work" / "records" / study.key(arm)
    record_with_an_actor(recorded / "runs", there)
    (run,) = SCRATCH.runs()
    for record in study.live_elsewhere([run], arm, tmp_path / "work"):
        recording.write(tmp_path / "home", *record)
    first, second = (recording.read(place, run) for place in (there, tmp_path / "home"))
    assert first.rows.equals(second.rows)
    assert first.metadata == second.metadata
    assert recording.policies(tmp_path / "home", run)["final"].tolist() == [1.0, 2.0]


def test_runs_whose_data_are_not_here_are_left_out(monkeypatch):
    asked, loaded = [], study.transitions.load

    def load(name):
        asked.append(name)
        if name == "ant-medium":
            raise FileNotFoundError("ant-medium is not here: `collect` makes it")
        return loaded(name)

    monkeypatch.setattr(study.transitions, "load", load)
    scratch, said = SCRATCH.runs()[0], []
    lacking = [replace(scratch, dataset="ant-medium", seed=seed) for seed in (0, 1)]
    here = [scratch, replace(scratch, dataset="hopper-random")]
    assert study.with_data([lacking[0], *here, lacking[1]], said.append) == here
    assert said == ["2 runs are left out: ant-medium is not here: `collect` makes it"]
    assert asked == ["ant-medium", "hopper-random"]
    assert study.with_data([], said.append) == []
    with pytest.raises(FileNotFoundError, match="ant-medium is not here"):
        study.with_data(lacking, said.append)


def test_the_whole_programme_is_well_formed():
    """Every run of every study has a name of its own and settings that can be recorded and compared."""
    for one in grid.STUDIES.values():
        runs = one.runs()
        assert len(set(runs)) == len(runs) > 0
        for name, arm in one.arms.items():
            assert recording.first_difference(recording.plain(arm), one.arm(name)) is None
            assert grid.updates(arm) > 0


def test_old_records_lack_new_settings_only_at_their_defaults():
    """A setting that a record lacks is filled with its default; one that differs is named."""
    arm = grid.ARMS["td3"]
    old = recording.plain(arm)
    del old["dynamics"], old["learner"]["policy_delay"]
    assert study.difference_from({"settings": old}, arm) is None
    noisy = replace(arm, dynamics=settings.Dynamics(action_noise=0.1))
    assert "settings.dynamics.action_noise is 0.0 in the record" in study.difference_from({"settings": old}, noisy)


def test_runs_that_another_process_is_at_come_last(tmp_path):
    """So that two processes that record one study train different runs."""
    runs = replace(SCRATCH, seeds=(0, 1, 2)).runs()
    jobs = [([run], SMALL) for run in runs]
    with recording.claim(tmp_path / "runs" / str(runs[0])):
        order = study.unclaimed_first(jobs, tmp_path)
        assert next(order)[0] == [runs[1]]
    assert [given for given, _ in order] == [[runs[0]], [runs[2]]]


def test_hours_come_from_this_processor_s_records_or_are_measured(recorded, monkeypatch):
    """Another processor's seconds say nothing here; a pre-training that two arms share is counted once."""
    monkeypatch.setitem(grid.STUDIES, "tiny", SCRATCH)
    monkeypatch.setattr(study.benchmark, "online", lambda algorithm, precision: 50.0)
    (run,) = SCRATCH.runs()
    measured = recording.verify(recorded / "runs", run)["wall_seconds"] / grid.updates(SMALL)
    assert study.step_seconds(recorded / "runs") == {"td3": measured, "sac": 0.02}
    monkeypatch.setattr(recording, "processor", lambda: "another")
    assert study.step_seconds(recorded / "runs") == {"td3": 0.02, "sac": 0.02}
    transfer = grid.find("transfer")
    runs = [run for run in transfer.runs() if run.seed == 0 and run.arm in ("augmented", "augmented_actor", "vanilla_actor")]
    pace = {"td3": 0.01, "sac": 1.0}
    assert study.seconds(transfer, runs, pace) == pytest.approx(0.01 * (2 * 200_000 + 3 * 75_000))


PRETRAINED = replace(SMALL, pretraining=settings.Pretraining(), finetuning=settings.Finetuning())
BRED = Study("bred", "Does it run?", {"small": TINY.apply(PRETRAINED)}, qualities=("random",), seeds=(0, 1))


def test_an_agent_that_diverges_before_its_first_evaluation_is_recorded(tmp_path, monkeypatch):
    """Without rows, and without signatures of a failure that nobody saw; its neighbour goes on."""
    pretrain = Life.pretrain

    def poisoned(life):
        life.learner.agent.critics.network.layers[0][0][0] = float("nan")
        yield from pretrain(life)

    monkeypatch.setattr(Life, "pretrain", poisoned)
    runs, arm = BRED.runs(), BRED.arm("small")
    study.live(runs, arm, tmp_path / "runs", tmp_path / "work")
    lost, whole = (recording.read(tmp_path / "runs", run) for run in runs)
    assert (lost.metadata["status"], len(lost.rows)) == ("diverged", 0)
    assert {lost.metadata["watch"][name] for name in ("score_drop", "value_gap", "imagined_outside")} == {None}
    assert (whole.metadata["status"], len(whole.rows)) == ("finished", 1 + 7)
    frame = recording.load_runs(tmp_path / "runs")
    assert frame.groupby("seed").size().tolist() == [1, 8]


@pytest.mark.parametrize("one", [SCRATCH, BRED], ids=lambda one: one.name)
def test_a_resumed_life_names_all_the_code_that_trained_it(one, tmp_path, monkeypatch):
    """Trained by one commit after the other: the last is its commit, and the checkpoints remember the others."""
    run, arm = one.runs()[0], TINY.apply(one.arm("small"))
    for letter, to in (("a", 200), ("b", 400), ("b", 500), ("c", None)):
        monkeypatch.setattr(recording, "commit", lambda letter=letter: letter * 40)
        life = Life([run], arm, tmp_path / "work")
        list(life.stages(to))
    life.write(tmp_path / "runs")
    provenance = recording.verify(tmp_path / "runs", run)["provenance"]
    assert (provenance["commit"], provenance["earlier_commits"]) == ("c" * 40, ["a" * 40, "b" * 40])
    again = Life([run], arm, tmp_path / "other")
    list(again.stages())
    assert "earlier_commits" not in again.provenance()


def test_a_checkpoint_that_does_not_name_its_code_is_gone_on_from(tmp_path, monkeypatch):
    """The first ones did not."""
    save = recording.save_checkpoint
    silent = lambda folder, tensors, state: save(folder, tensors, {k: v for k, v in state.items() if k != "commits"})  # noqa: E731
    arm = TINY.apply(SMALL)
    life = Life(SCRATCH.runs(), arm, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recording, "save_checkpoint", silent)
        list(life.stages(to=200))
    again = Life(SCRATCH.runs(), arm, tmp_path)
    list(again.stages())
    assert again.provenance()["earlier_commits"] == ["unknown"]


def test_a_checkpoint_belongs_to_the_rows_that_were_drawn(tmp_path, monkeypatch):
    """A pool of the same name may be another one; a life from scratch has no rows, and the names that its checkpoints had."""
    (run, _), arm = BRED.runs(), BRED.arm("small")
    first, scratch = Life([run], arm, tmp_path).online, Life(SCRATCH.runs(), SMALL, tmp_path).online
    assert Life([run], arm, tmp_path).online == first
    assert scratch.name == study.key("hopper", "none", [0], "float32", "finetuning", SMALL)
    load = study.transitions.load
    monkeypatch.setattr(study.transitions, "load", lambda name: load("hopper-medium"))
    assert Life([run], arm, tmp_path).online != first


# --- runs that other studies, profiles and processes share ----------------------------------------------------------------

OTHER = replace(SCRATCH, name="other", arms={"alias": SMALL})


def test_two_studies_that_share_a_life_train_it_once(tmp_path):
    """Side by side in one clone: whoever comes second waits for the life, under whatever name, and copies it."""
    args = [(one, tmp_path / "runs", tmp_path / "work", TINY) for one in (SCRATCH, OTHER)]
    both = [FORK.Process(target=study.record, args=each) for each in args]
    for process in both:
        process.start()
    for process in both:
        finish(process)
    origins = [recording.verify(tmp_path / "runs", one.runs()[0])["provenance"] for one in (SCRATCH, OTHER)]
    assert sorted("copied_from" in origin for origin in origins) == [False, True]
    assert not list((tmp_path / "work").rglob("*.json"))


def test_a_life_that_another_study_is_at_comes_last(tmp_path):
    """A worker that took it would wait; and it is said to be running."""
    (first,), (second,) = SCRATCH.runs(), OTHER.runs()
    later = replace(second, seed=1)
    with study.claims([first], SMALL, tmp_path):
        order = study.unclaimed_first([([second], SMALL), ([later], SMALL)], tmp_path)
        assert [runs for runs, _ in order] == [[later], [second]]
        assert study.status(OTHER, tmp_path / "none", tmp_path)["running"].tolist() == [1]
    assert study.status(OTHER, tmp_path / "none", tmp_path)["running"].tolist() == [0]


def test_a_copy_names_the_run_that_was_trained(recorded, tmp_path):
    """Also the copy of a copy."""
    shutil.copytree(recorded / "runs", tmp_path / "runs")
    (run,) = SCRATCH.runs()
    chain = [run, replace(run, study="second"), replace(run, study="third")]
    for other, copy in pairwise(chain):
        study.copy(copy, other, tmp_path / "runs")
    origins = [recording.verify(tmp_path / "runs", each)["provenance"].get("copied_from") for each in chain]
    assert origins == [None, str(run), str(run)]


def test_what_is_only_copied_costs_no_hours(recorded):
    within = replace(OTHER, arms={"alias": BRIEF.apply(SMALL)}, seeds=(0, 1))
    assert study.to_train(within, within.runs(), recorded / "runs") == within.runs()[1:]


def test_a_record_with_other_settings_does_not_count_as_there(recorded, tmp_path, monkeypatch):
    """Old curves under a new setting would be a lie: the sentence names the setting, and the file to remove."""
    monkeypatch.setattr(study, "Life", None)  # nothing may be trained
    (run,) = SCRATCH.runs()
    assert study.record(SCRATCH, recorded / "runs", tmp_path, BRIEF, report=lambda line: None) == []
    changed = replace(SCRATCH, arms={"small": replace(SMALL, learner=settings.TD3(hidden=(16, 16), policy_delay=3))})
    file = re.escape(str(run.path(recorded / "runs"))) + ".json"
    sentence = f"{run} is recorded with other settings: settings.learner.policy_delay is 2 in the record and 3 .* remove {file}$"
    with pytest.raises(ValueError, match=sentence):
        study.record(changed, recorded / "runs", tmp_path, BRIEF, report=lambda line: None)


def test_a_profile_takes_the_first_seeds(tmp_path):
    """Unless seeds are given."""
    three = replace(SCRATCH, seeds=(4, 5, 6))
    assert [run.seed for run in study.missing(three, tmp_path, replace(TINY, seeds=2))] == [4, 5]
    assert [run.seed for run in study.missing(three, tmp_path, replace(TINY, seeds=2), seeds=[6])] == [6]
    assert [run.seed for run in study.missing(three, tmp_path, TINY)] == [4, 5, 6]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_does_not_end_the_study(workers, tmp_path):
    """The others are recorded, and the problem is told when it comes and at the end."""
    three, said = replace(SCRATCH, seeds=(0, 1, 2)), []
    blocked = three.runs()[1].path(tmp_path / "runs").with_suffix(".csv")
    blocked.mkdir(parents=True)
    sentence = f"{three.runs()[1]}: Cannot write {blocked}"
    with pytest.raises(RuntimeError, match=re.escape(sentence)):
        study.record(three, tmp_path / "runs", tmp_path / "work", BRIEF, workers=workers, report=said.append)
    assert [run.seed for run in recording.recorded(tmp_path / "runs")] == [0, 2]
    assert len([line for line in said if line.startswith(sentence)]) == 1


def test_a_mistake_of_the_code_is_told_with_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "Life", lambda *rest: {}["absent"])
    runs, problem = study.attempt(SCRATCH.runs(), SMALL, tmp_path / "runs", tmp_path / "work")
    assert runs == []
    assert problem.startswith(f"{SCRATCH.runs()[0]}: Traceback")
    assert problem.endswith("KeyError: 'absent'\n")


def home(record, run=None, **changed):
    """What a cluster's worker sends home of a record, with other settings if some are given."""
    rows, metadata = record
    kept = {name: metadata[name] for name in recording.METADATA}
    kept["settings"] = metadata["settings"] | changed
    return [(run, rows.to_dict("records"), kept, {})]


def test_a_worker_of_a_cluster_keeps_what_other_budgets_gave_apart(tmp_path):
    """First with one profile, then with another: what comes home is of the settings that were sent."""
    runs = SCRATCH.runs()
    short, longer = [profile.apply(SMALL) for profile in (BRIEF, TINY)]
    for arm, count in ((short, 4), (longer, 7), (short, 4)):
        ((_, rows, metadata, _),) = study.live_elsewhere(runs, arm, tmp_path)
        assert (len(rows), study.difference_from(metadata, arm)) == (count, None)


def test_only_what_was_asked_for_comes_home_and_only_once(recorded, tmp_path):
    """A record with other settings is refused; one that was recorded here meanwhile stays as it is."""
    runs, arm, root = SCRATCH.runs(), BRIEF.apply(SMALL), tmp_path / "runs"
    record = recording.read(recorded / "runs", runs[0])
    other = home(record, runs[0], precision="bfloat16")
    found, problem = study.bring_home(lambda: other, runs, arm, root)
    assert (found, recording.missing(root, runs)) == ([], runs)
    assert "other settings than it was sent with: settings.precision is 'bfloat16' in the record" in problem
    assert study.bring_home(lambda: home(record, runs[0]), runs, arm, root) == (runs, "")
    before = runs[0].path(root).with_suffix(".json").stat().st_mtime_ns
    assert study.bring_home(lambda: home(record, runs[0]), runs, arm, root) == (runs, "")
    assert runs[0].path(root).with_suffix(".json").stat().st_mtime_ns == before


def test_what_can_be_copied_here_is_not_sent_to_a_cluster(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr("distributed.Client", nullcontext)  # of no cluster, so that whatever is sent fails
    monkeypatch.setattr("distributed.as_completed", list)
    shutil.copytree(recorded / "runs", tmp_path / "runs")
    study.record(OTHER, tmp_path / "runs", None, BRIEF, cluster="tcp://nowhere:1", report=lambda line: None)
    assert recording.recorded(tmp_path / "runs", "other") == OTHER.runs()


def verified(recorded, folder, monkeypatch, change):
    """What `verify` says of the tiny study's record after `change` of its rows."""
    monkeypatch.setitem(grid.STUDIES, "tiny", replace(SCRATCH, arms={"small": BRIEF.apply(SMALL)}))
    (run,) = SCRATCH.runs()
    record = recording.read(recorded / "runs", run)
    metadata = {name: record.metadata[name] for name in recording.METADATA}
    recording.write(folder / "changed", run, change(record.rows).to_dict("records"), metadata)
    return study.verify(run, folder / "changed", folder / "work")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows.assign(data_value=1.0), "different from row 0 on"),
        (lambda rows: rows.assign(length=rows["length"] + (rows.index == 3)), "different from row 3 on"),
        (lambda rows: rows.assign(discounted_return=rows["discounted_return"] * 1.0001), "equal within 0.1 %"),
        (lambda rows: rows[:-1], "different: it has 4 rows now, and 3 in its record"),
        (lambda rows: rows.iloc[[0, 1, 2, 3, 3]].assign(episode=[0, 0, 0, 0, 1]), "4 rows now, and 5 in its record"),
        (lambda rows: rows, "4 rows are equal bit for bit"),
    ],
)
def test_verify_compares_every_column_and_every_row(change, sentence, recorded, tmp_path, monkeypatch):
    """NaN, which a life from scratch has where there are no data, equals NaN alone."""
    assert sentence in verified(recorded, tmp_path, monkeypatch, change)
