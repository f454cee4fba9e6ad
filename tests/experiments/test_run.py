"""One population from nothing to its record: what is trained once, what a kill leaves, who diverges, and what is refused."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from small import BRIEF, FORK, IMAGINING, OFFLINE, RUN, SCRATCH, SECOND, SHORT, TINY, arms, on_data, record, rows  # noqa: F401

from mbaug import engine, files
from mbaug.datasets import check
from mbaug.experiments import models, records, run, runner, studies
from mbaug.experiments.studies import ARMS
from mbaug.method import imagination, training, transitions

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def trained(which, work, to=None):
    """Trains a run in a tiny budget, and returns it."""
    *_, population = run.train([which], TINY.apply(ARMS[which.arm]), work, to=to)
    return population


@pytest.fixture
def begun(monkeypatch):
    """The gradient steps at which each pre-training in this process begins, in order."""
    found, pretrain = [], training.pretrain

    def note(learner, *given):
        found.append(learner.gradient_steps)
        return pretrain(learner, *given)

    monkeypatch.setattr(training, "pretrain", note)
    return found


def test_a_setting_that_came_later_renames_nothing_where_it_is_what_was_done_before():
    """Checkpoints from before `picks` and `branch` keep their place; an arm that picks by doubt has its own."""
    before = files.plain(ARMS["augmented"])
    assert [before["augmentation"].pop(name) for name in ("picks", "branch")] == ["random", 0]
    assert run.key("pretraining", ARMS["augmented"]) == run.key("pretraining", before)
    trusted = ARMS["augmented_trusted_offline"]
    assert run.key("pretraining", trusted) != run.key("pretraining", replace(ARMS["augmented"], finetuning=None))


def test_the_doubt_that_an_arm_picks_by_is_its_own_model_s(tmp_path, monkeypatch):
    """Of the rows that the agent drew; where picks are random there is none."""
    rule = replace(IMAGINING.augmentation, picks="trusted")
    monkeypatch.setitem(ARMS, "small_trusted", replace(IMAGINING, augmentation=rule, finetuning=None))
    population = trained(on_data("small_trusted"), tmp_path)
    model, state = population.fits[0].model, torch.from_numpy(population.drawn[0].state)
    known = model.standardiser.apply(state)
    blurred = model.decoder.alone(model.encoder.alone(known)[:, :4])
    torch.testing.assert_close(run.doubt(population), (blurred - known).square().mean(dim=1)[None])
    assert run.doubt(trained(on_data("small_imagining"), tmp_path)) is None


def test_branches_are_what_the_simulator_answers_each_agent_from_its_own_whole_states(tmp_path):
    """Two agents' tables; those of one alone are the same. Steps start in drawn states, or go on from the first ones."""
    arm, runs = TINY.apply(ARMS["small_branch"]), [on_data("small_branch", seed) for seed in (0, 1)]
    both, alone = (run.begin(some, arm, tmp_path) for some in (runs, runs[1:]))
    table = run.branched(both, arm.augmentation, 3)
    assert table.shape == both.table.shape
    assert torch.equal(table[1:], run.branched(alone, arm.augmentation, 3))
    batch, task = transitions.unpack(table, 11, 3), both.learner.task
    state, next_state = (both.learner.standardiser.invert(part)[0].numpy() for part in (batch.state, batch.next_state))
    drawn, half = both.drawn[0], len(state) // 2
    apart = np.abs(state[:half, None] - drawn.state).max(axis=2).min(axis=1)
    assert apart.max() < 1e-4
    assert np.abs(state[:, -6:]).max() < task.velocity_limit
    found, _, terminal = check.replay(task, state, batch.action[0].numpy())
    np.testing.assert_allclose(found, next_state, atol=0.05)
    np.testing.assert_array_equal(terminal, batch.terminal[0].numpy() > 0)
    greedy = both.learner.policy(np.stack([state, state]))[0]
    noise = batch.action[0].numpy() - greedy
    assert 0.08 < noise.std() < 0.12
    assert 0 <= both.outside[0] < 0.1


# --- stages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stage_that_arms_share_is_trained_once(begun, tmp_path, monkeypatch):
    """Two arms differ in their fine-tuning alone; the third takes something else from the same world model."""
    fitted, fit = [], imagination.fit
    monkeypatch.setattr(imagination, "fit", lambda *given, **named: fitted.append(given) or fit(*given, **named))
    runs = [on_data(arm) for arm in ("small_imagining", "small_with_data", "small_noise")]
    assert record(tmp_path, runs, SHORT) == runs
    assert len(fitted) == 1
    assert begun == [0, 0]
    first, same, other = (rows(tmp_path, each).query("phase == 'pretrain'") for each in runs)
    assert first.equals(same)
    assert not first.equals(other)


def record_and_die(folder, which):
    """Records a run, and dies once its pre-training has left a checkpoint."""
    save = run.save

    def last(*given):
        save(*given)
        os.kill(os.getpid(), signal.SIGKILL)

    run.save = last
    record(folder, [which], SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["small_imagining", "small_branch"])
def test_a_pretraining_killed_between_two_tables_ends_as_one_that_was_not(arm, begun, tmp_path):
    """It goes on with what it had imagined, or with what its policy does now: every row is equal bit for bit."""
    which, whole, killed = on_data(arm), tmp_path / "whole", tmp_path / "killed"
    record(whole, [which], SHORT)
    process = FORK.Process(target=record_and_die, args=(killed, which))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    record(killed, [which], SHORT)
    assert begun == [0, 50]
    assert rows(killed, which).equals(rows(whole, which))


@pytest.mark.parametrize(("steps", "apart"), [(1_000_000, 25_000), (100_000, 5_000)])
def test_a_long_training_has_a_checkpoint_at_every_25_000_steps(steps, apart, tmp_path, monkeypatch):
    """A replay of a million rows is large; the others, as short as they are, have one at every evaluation."""
    arm, saved = replace(SCRATCH, finetuning=replace(SCRATCH.finetuning, steps=steps)), []
    population = run.begin([RUN], arm, tmp_path)
    learner = population.learner
    environments, population.replay = run.tasks.Lockstep(learner.task, [0]), [training.replay(learner)]
    monkeypatch.setattr(run, "save", lambda *given: saved.append(learner.environment_steps))
    monkeypatch.setattr(run.files, "write_atomically", lambda *given: None)
    for learner.environment_steps in range(5_000, steps + 1, 5_000):
        run.save_finetuning(tmp_path, population, environments, last=steps)
    assert saved == list(range(apart, steps + 1, apart))


@pytest.mark.slow
def test_what_may_be_shipped_is_kept_beside_the_checkpoints(tmp_path, monkeypatch):
    """The agent at the switch, and its actor on the way; the checkpoints of the fine-tuning go."""
    monkeypatch.setattr(run, "STEPS_KEPT", (50, 150))
    which = on_data("small_imagining")
    record(tmp_path, [which], SHORT)
    folder = tmp_path / "work" / "kept" / str(which)
    kept = {path.stem: safetensors.torch.load_file(path) for path in folder.iterdir()}
    assert set(kept) == {"switch", "50", "150"}
    assert len(kept["50"]["actor"]) == 11 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    assert models.network("critics", kept["switch"]).layers[0][0].shape == (2, 14, 16)
    assert not run.online_folder(run.begin([which], SHORT.apply(IMAGINING), tmp_path / "work")).exists()


def test_a_checkpoint_belongs_to_the_rows_that_were_drawn(tmp_path, monkeypatch):
    """A pool of the same name may be another one by now; from scratch there are no rows."""

    def folder(which, arm):
        return run.online_folder(run.begin([which], TINY.apply(arm), tmp_path))

    first, load = folder(on_data(), OFFLINE), run.read.load
    assert folder(on_data(), OFFLINE) == first != folder(on_data(seed=1), OFFLINE)
    monkeypatch.setattr(run.read, "load", lambda name: load("hopper-medium"))
    assert folder(on_data(), OFFLINE) != first
    assert folder(RUN, SCRATCH) == folder(replace(RUN, arm="other"), SCRATCH) != folder(SECOND, SCRATCH)


@pytest.mark.slow
@pytest.mark.parametrize("which", [RUN, on_data()], ids=str)
def test_a_run_that_went_on_names_all_the_code_that_trained_it(which, tmp_path, monkeypatch):
    """Trained by one commit after the other: the last is its commit, and the checkpoints remember the others."""
    for letter, to in (("a", 200), ("b", 400), ("b", 500), ("c", None)):
        monkeypatch.setattr(run, "commit", lambda letter=letter: letter * 40)
        monkeypatch.setattr(run, "provenance", lambda *given, letter=letter: {"commit": letter * 40})
        population = trained(which, tmp_path / "work", to)
    assert run.origin(population) == {"commit": "c" * 40, "earlier_commits": ["a" * 40, "b" * 40]}
    assert run.origin(trained(which, tmp_path / "other")) == {"commit": "c" * 40}


# --- populations and who diverges -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder in which two runs were trained one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    record(folder, [RUN, SECOND], BRIEF)
    return folder


def test_a_population_records_what_its_agents_record_alone(alone, tmp_path, monkeypatch):
    """Two seeds side by side in one process: the same rows, a record each, and the time is shared among them."""
    monkeypatch.setattr(run.Population, "seconds", 100.0)
    record(tmp_path, [RUN, SECOND], BRIEF, population=2)
    for which in (RUN, SECOND):
        assert rows(tmp_path, which).equals(rows(alone, which))
        assert records.read_metadata(tmp_path / "runs", which)["wall_seconds"] == 50


def test_an_agent_that_becomes_nan_is_recorded_and_its_neighbour_goes_on(alone, tmp_path, monkeypatch):
    """Of two agents in one population the first is poisoned on the way; the second's rows are those of a training alone."""
    evaluate = run.evaluate

    def poisoned(population, phase):
        evaluate(population, phase)
        if population.learner.environment_steps == 200:
            population.learner.agent.critics.network.layers[0][0][0] = float("nan")

    monkeypatch.setattr(run, "evaluate", poisoned)
    record(tmp_path, [RUN, SECOND], BRIEF, population=2)
    metadata = records.read_metadata(tmp_path / "runs", RUN)
    assert (metadata["status"], metadata["diverged_at"]["environment_steps"]) == ("diverged", 250)
    assert rows(tmp_path, RUN).equals(rows(alone, RUN).query("environment_steps <= 200"))
    assert rows(tmp_path, SECOND).equals(rows(alone, SECOND))


@pytest.mark.slow
def test_an_agent_that_diverges_before_its_first_evaluation_is_recorded(tmp_path, monkeypatch):
    """Without rows, and without signatures of a failure that nobody saw; its neighbour goes on."""
    pretrain = training.pretrain

    def poisoned(learner, *given):
        learner.agent.critics.network.layers[0][0][0] = float("nan")
        yield from pretrain(learner, *given)

    monkeypatch.setattr(training, "pretrain", poisoned)
    runs = [on_data(seed=0), on_data(seed=1)]
    record(tmp_path, runs, TINY, population=2)
    lost, whole = (records.read(tmp_path / "runs", which) for which in runs)
    assert (lost.metadata["status"], len(lost.rows)) == ("diverged", 0)
    assert {lost.metadata["watch"][name] for name in ("score_drop", "value_gap", "imagined_outside")} == {None}
    assert (whole.metadata["status"], len(whole.rows)) == ("finished", 1 + 7)
    assert records.load_runs(tmp_path / "runs").groupby("seed").size().tolist() == [1, 8]


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_data_of_another_task_are_refused_before_anything_is_trained(tmp_path):
    """The name of a run says which task and which data; that they fit is checked where they meet."""
    which = records.Run("ant", "hopper-medium-replay", "vanilla", 0)
    with pytest.raises(ValueError, match="hopper-medium-replay: state has 11 dimensions, but in Ant-v5 it has 27"):
        runner.train([which], studies.PROFILES["paper"], tmp_path / "runs", tmp_path / "work")


def test_bfloat16_is_recorded_only_where_it_is_multiplied(tmp_path, monkeypatch):
    """A run in float32 under the name of a bfloat16 arm would be no evidence: it is refused, and nothing is written."""
    monkeypatch.setattr(engine, "has_bfloat16", lambda device="cpu": False)
    which = records.Run("hopper", "none", "td3_bfloat16", 0)
    with pytest.raises(RuntimeError, match=f"{which}: it trains in bfloat16, but this processor cannot multiply bfloat16"):
        record(tmp_path, [which])
    assert not list(tmp_path.rglob("*.*"))
