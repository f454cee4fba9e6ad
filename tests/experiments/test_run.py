"""One population from nothing to its records: shared stages, kills, divergence, and what is refused."""

import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from made import diverges_at
from small import BRIEF, FORK, IMAGINING, OFFLINE, RUN, SCRATCH, SECOND, SHORT, TINY, arms, on_data, record, rows  # noqa: F401

from mbaug import engine, provenance, tasks
from mbaug.datasets import check, read
from mbaug.experiments import checkpoint, models, records, run, runner, studies
from mbaug.experiments.studies import ARMS
from mbaug.method import imagination, training, transitions

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def trained(which, work, to=None):
    """Trains a run with a tiny budget and returns its population."""
    *_, population = run.train([which], TINY.apply(ARMS[which.arm]), work, to=to)
    return population


@pytest.fixture
def pretraining_starts(monkeypatch):
    """The gradient steps at which each pre-training in this process starts, in order."""
    found, pretrain = [], training.pretrain

    def note(learner, *given):
        found.append(learner.gradient_steps)
        return pretrain(learner, *given)

    monkeypatch.setattr(training, "pretrain", note)
    return found


@pytest.mark.slow
def test_other_code_versions_or_processors_train_a_stage_anew(pretraining_starts, tmp_path):
    """Otherwise edited code would record what the old code trained, and a new MuJoCo would continue the runs of an old one."""
    here = checkpoint.stage(tmp_path, "a stage")
    with pytest.MonkeyPatch.context() as patch:
        for changed in ({"mujoco": "3.9.9"}, {"cpu": "another"}, {"code": "edited"}):
            patch.setattr(checkpoint, "circumstances", lambda changed=changed: provenance.circumstances() | changed)
            assert checkpoint.stage(tmp_path, "a stage") != here
        trained(on_data("small_offline"), tmp_path)
    for _ in range(2):
        trained(on_data("small_offline"), tmp_path)
    assert pretraining_starts == [0, 0], "The third training finds the checkpoint of the second."


def test_doubt_is_the_models_reconstruction_error_of_each_drawn_row(tmp_path, monkeypatch):
    """An arm with random picks has none."""
    rule = replace(IMAGINING.augmentation, picks="trusted")
    monkeypatch.setitem(ARMS, "small_trusted", replace(IMAGINING, augmentation=rule, finetuning=None))
    population = trained(on_data("small_trusted"), tmp_path)
    model, state = population.fits[0].model, torch.from_numpy(population.drawn[0].state)
    standardised = model.standardiser.apply(state)
    reconstructed = model.decoder.alone(model.encoder.alone(standardised)[:, :4])
    torch.testing.assert_close(run.doubt(population), (reconstructed - standardised).square().mean(dim=1)[None])
    assert run.doubt(trained(on_data("small_imagining"), tmp_path)) is None


def test_branches_are_simulator_steps_of_each_agent_from_its_drawn_states(tmp_path):
    """Half the steps start in drawn states and half continue from there. An agent's table does not depend on its neighbours."""
    arm, runs = TINY.apply(ARMS["small_branch"]), [on_data("small_branch", seed) for seed in (0, 1)]
    both, alone = (run.begin(some, arm, tmp_path) for some in (runs, runs[1:]))
    table = run.branched(both, arm.augmentation, 3)
    assert table.shape == both.table.shape
    assert torch.equal(table[1:], run.branched(alone, arm.augmentation, 3))
    batch, task = transitions.unpack(table, 11, 3), both.learner.task
    state, next_state = (both.learner.standardiser.invert(part)[0].numpy() for part in (batch.state, batch.next_state))
    drawn, half = both.drawn[0], len(state) // 2
    distance = np.abs(state[:half, None] - drawn.state).max(axis=2).min(axis=1)
    assert distance.max() < 1e-4
    assert np.abs(state[:, -6:]).max() < task.velocity_limit
    found, _, terminal = check.replay(task, state, batch.action[0].numpy())
    np.testing.assert_allclose(found, next_state, atol=0.05)
    np.testing.assert_array_equal(terminal, batch.terminal[0].numpy() > 0)
    greedy = both.learner.policy(np.stack([state, state]))[0]
    noise = batch.action[0].numpy() - greedy
    assert 0.08 < noise.std() < 0.12
    assert 0 <= both.outside[0] < 0.1


def test_noisy_dynamics_reach_evaluations_and_fine_tuning(tmp_path, monkeypatch):
    noisy, lockstep, given = tasks.Dynamics(action_noise=0.1), tasks.Lockstep, []
    monkeypatch.setattr(tasks, "Lockstep", lambda *arguments: given.append(arguments[2:]) or lockstep(*arguments))
    population = run.begin([RUN], replace(TINY.apply(SCRATCH), dynamics=noisy), tmp_path)
    assert isinstance(population.evaluator.environments[0][0], tasks.Stochastic)
    next(run.finetune(population))
    assert given == [(noisy,)]


def test_rows_are_drawn_and_states_standardised_as_the_plan_says(tmp_path):
    arm, pool = TINY.apply(OFFLINE), read.load("hopper-random")
    for whole, draw in ((False, transitions.draw), (True, transitions.draw_episodes)):
        plan = replace(arm.pretraining, whole_episodes=whole, standardise=not whole)
        population = run.begin([on_data()], replace(arm, pretraining=plan), tmp_path)
        assert population.drawn[0].sha256 == draw(pool, 500, 0)[0].sha256
        assert (population.learner.standardiser.std == 1).all() == whole


def test_imagined_next_states_are_those_at_the_end_of_each_window(tmp_path, monkeypatch):
    """A source that repeats the recorded next states gives those of the learner's own table, three steps ahead."""
    monkeypatch.setattr(imagination, "predictor", lambda *given: lambda state, action, next_state, generator: next_state)
    population = run.begin([on_data("small_imagining")], studies.ahead(TINY.apply(IMAGINING), 3), tmp_path)
    population.fits = [object.__new__(imagination.Fit)]  # the source does not look at it
    recorded = transitions.unpack(population.table, 11, 3).next_state
    for imagined in run.imagined(population, population.arm.augmentation, 0).unbind(dim=2):
        torch.testing.assert_close(imagined, recorded)


def test_an_evaluation_records_the_values_of_its_first_state_and_of_drawn_rows(tmp_path):
    population = run.begin([on_data()], TINY.apply(OFFLINE), tmp_path)
    run.evaluate(population, "pretrain")
    learner, ((row,),) = population.learner, population.rows
    first = torch.from_numpy(population.evaluator(learner.policy, "pretrain", 0).first_state)
    state, drawn = learner.standardiser.apply(first), transitions.unpack(population.table[:, :100], 11, 3)
    for name, given in (("predicted_value", (state, learner.agent.actor(state))), ("data_value", (drawn.state, drawn.action))):
        assert row[name] == pytest.approx(learner.agent.critics(*given).amin(dim=0).mean().item(), rel=1e-4)


def test_rows_to_measure_come_from_all_episodes_where_whole_ones_were_drawn(tmp_path):
    """The first rows would come from the first episodes alone."""
    arm = studies.ahead(TINY.apply(OFFLINE), 1)
    population = run.begin([on_data()], arm, tmp_path)
    (drawn,), rows = population.drawn, run.training_rows(population).state[0]
    spaced = torch.linspace(0, 499, 100).long()
    torch.testing.assert_close(rows, population.learner.standardiser.of(0).apply(torch.from_numpy(drawn.state))[spaced])
    assert len(np.unique(drawn.episode[spaced])) > 2 * len(np.unique(drawn.episode[:100]))


def test_critics_with_targets_of_several_steps_are_measured_on_single_steps(tmp_path):
    """So that all arms can be compared."""
    one, three = (run.begin([on_data()], studies.ahead(TINY.apply(OFFLINE), horizon), tmp_path) for horizon in (1, 3))
    assert not torch.equal(one.table, three.table)
    for single, other in zip(run.spaced_rows(one, one.rest), run.spaced_rows(three, three.rest), strict=True):
        assert torch.equal(single, other)


def test_critics_are_measured_on_drawn_rows_on_the_rest_and_on_another_pool(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(run.measures, "overfitting", lambda *given: found.append(given) or [None])
    population = run.begin([on_data(seed=1)], TINY.apply(OFFLINE), tmp_path)
    run.measure_at_switch(population)
    ((learner, trained_on, new, _, elsewhere),) = found
    datasets = population.drawn[0], population.rest[0], read.load("hopper-medium")
    for batch, dataset in zip((trained_on, new, elsewhere), datasets, strict=True):
        state = learner.standardiser.invert(batch.state)[0].numpy()
        assert np.abs(state[:, None] - dataset.state).max(axis=2).min(axis=1).max() < 1e-4


# --- stages ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stage_that_arms_share_is_trained_once(pretraining_starts, tmp_path, monkeypatch):
    """Two arms differ only in their fine-tuning. The third uses the same world model, but another source of next states."""
    fitted, fit = [], imagination.fit
    monkeypatch.setattr(imagination, "fit", lambda *given, **named: fitted.append(given) or fit(*given, **named))
    runs = [on_data(arm) for arm in ("small_imagining", "small_with_data", "small_noise")]
    assert record(tmp_path, runs, SHORT) == runs
    assert len(fitted) == 1
    assert pretraining_starts == [0, 0]
    first, same, other = (rows(tmp_path, each).query("phase == 'pretrain'") for each in runs)
    assert first.equals(same)
    assert not first.equals(other)


def record_and_die(folder, which):
    """Records a run, and kills this process after the first checkpoint of its pre-training."""
    save = run.save

    def save_and_die(*given):
        save(*given)
        os.kill(os.getpid(), signal.SIGKILL)

    run.save = save_and_die
    record(folder, [which], SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["small_imagining", "small_branch"])
def test_pretraining_killed_between_two_tables_records_the_same_rows(arm, pretraining_starts, tmp_path):
    """It draws the imagined table again, or branches of its present policy. All rows are equal, bit for bit."""
    which, whole, killed = on_data(arm), tmp_path / "whole", tmp_path / "killed"
    record(whole, [which], SHORT)
    process = FORK.Process(target=record_and_die, args=(killed, which))
    process.start()
    process.join(timeout=600)
    assert process.exitcode == -signal.SIGKILL
    record(killed, [which], SHORT)
    assert pretraining_starts == [0, 50]
    assert rows(killed, which).equals(rows(whole, which))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arm", ["small_imagining", "small_branch"])
def test_a_population_on_a_gpu_that_was_stopped_online_continues_with_the_same_rows(arm, tmp_path):
    runs, arm = [on_data(arm, seed) for seed in (0, 1)], TINY.apply(ARMS[arm])
    *_, whole = run.train(runs, arm, tmp_path / "whole", "cuda")
    for to in (300, None):
        *_, stopped = run.train(runs, arm, tmp_path / "stopped", "cuda", to)
    assert whole.ended
    assert stopped.ended
    assert {tensor.device.type for tensor in (whole.table, whole.learner.agent.critics.network.flat)} == {"cuda"}
    for one, other in zip(whole.rows, stopped.rows, strict=True):
        pd.testing.assert_frame_equal(pd.DataFrame(one), pd.DataFrame(other), check_exact=True)
    run.record(whole, tmp_path / "runs")
    metadata = records.read_metadata(tmp_path / "runs", runs[0])
    assert metadata["provenance"]["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize(("steps", "apart"), [(1_000_000, 25_000), (100_000, 5_000)])
def test_long_training_writes_a_checkpoint_every_25_000_steps(steps, apart, tmp_path, monkeypatch):
    """A replay buffer of a million rows is large. Shorter training writes one at every evaluation."""
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
def test_networks_that_may_be_shipped_are_kept_beside_the_checkpoints(tmp_path, monkeypatch):
    """They are the agent at the switch and its actor at later steps, with the digest of the record that they belong to.

    The checkpoints of the fine-tuning are removed. A second training of the run removes the digest until it is recorded.
    """
    monkeypatch.setattr(run, "STEPS_KEPT", (50, 150))
    which = on_data("small_imagining")
    record(tmp_path, [which], SHORT)
    folder = tmp_path / "work" / "kept" / str(which)
    kept = {path.stem: safetensors.torch.load_file(path) for path in folder.glob("*.safetensors")}
    assert set(kept) == {"switch", "50", "150"}
    assert len(kept["50"]["actor"]) == 11 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    assert models.network("critics", kept["switch"]).layers[0][0].shape == (2, 14, 16)
    assert not run.online_folder(run.begin([which], SHORT.apply(IMAGINING), tmp_path / "work")).exists()
    digest = run.kept_digest(tmp_path / "work", which)
    assert digest.read_text() == records.read_metadata(tmp_path / "runs", which)["csv_sha256"]
    run.keep(run.begin([which], SHORT.apply(IMAGINING), tmp_path / "work"), "50", 0, {"actor": torch.zeros(1)})
    assert not digest.exists()


def test_a_checkpoint_belongs_to_the_rows_that_were_drawn(tmp_path, monkeypatch):
    """A pool of the same name may hold other rows by now. Training from scratch draws none."""

    def folder(which, arm):
        return run.online_folder(run.begin([which], TINY.apply(arm), tmp_path))

    first, load = folder(on_data(), OFFLINE), run.read.load
    assert folder(on_data(), OFFLINE) == first != folder(on_data(seed=1), OFFLINE)
    monkeypatch.setattr(run.read, "load", lambda name: load("hopper-medium"))
    assert folder(on_data(), OFFLINE) != first
    assert folder(RUN, SCRATCH) == folder(replace(RUN, arm="other"), SCRATCH) != folder(SECOND, SCRATCH)


@pytest.mark.slow
@pytest.mark.parametrize("which", [RUN, on_data()], ids=str)
def test_a_resumed_run_names_every_commit_that_trained_it(which, tmp_path, monkeypatch):
    """The last commit is the run's own, and the checkpoints remember the earlier ones."""
    for letter, to in (("a", 200), ("b", 400), ("b", 500), ("c", None)):
        monkeypatch.setattr(run, "commit", lambda letter=letter: letter * 40)
        monkeypatch.setattr(run, "provenance", lambda *given, letter=letter: {"commit": letter * 40})
        population = trained(which, tmp_path / "work", to)
    assert run.origin(population) == {"commit": "c" * 40, "earlier_commits": ["a" * 40, "b" * 40]}
    assert run.origin(trained(which, tmp_path / "other")) == {"commit": "c" * 40}


# --- populations and divergence -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with two runs that were trained one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    record(folder, [RUN, SECOND], BRIEF)
    return folder


def test_agents_in_a_population_record_the_same_rows_as_alone(alone, tmp_path, monkeypatch):
    """Two seeds train side by side in one process. Each gets its own record, with an equal share of the time."""
    monkeypatch.setattr(run.Population, "seconds", 100.0)
    record(tmp_path, [RUN, SECOND], BRIEF, population=2)
    for which in (RUN, SECOND):
        assert rows(tmp_path, which).equals(rows(alone, which))
        assert records.read_metadata(tmp_path / "runs", which)["wall_seconds"] == 50


@pytest.mark.slow
def test_agents_that_learn_from_data_record_the_same_in_a_population_as_alone(tmp_path):
    """Rows, and the measures of their critics and world models."""
    runs = [on_data("small_imagining", seed) for seed in (0, 1)]
    for name, population in (("together", 2), ("alone", 1)):
        record(tmp_path / name, runs, SHORT, population=population)
    for which in runs:
        one, other = (records.read(tmp_path / name / "runs", which) for name in ("together", "alone"))
        pd.testing.assert_frame_equal(one.rows, other.rows, rtol=1e-6)
        for key in ("draw_sha256", "world_model"):
            assert one.metadata[key] == other.metadata[key]
        assert one.metadata["calibration"]["all"] == pytest.approx(other.metadata["calibration"]["all"], rel=1e-4, nan_ok=True)
        (first, second) = (each.metadata["watch"]["overfitting"] for each in (one, other))
        assert first["roughness"]["state"] == pytest.approx(second["roughness"]["state"], rel=1e-4)
        assert first["error_new"] == pytest.approx(second["error_new"], rel=1e-4)


def test_a_diverged_agent_is_recorded_and_its_neighbour_continues(alone, tmp_path, monkeypatch):
    """The first of two agents becomes NaN after 200 steps. The second's rows equal those of training alone."""
    diverges_at(monkeypatch, 200)
    record(tmp_path, [RUN, SECOND], BRIEF, population=2)
    metadata = records.read_metadata(tmp_path / "runs", RUN)
    assert (metadata["status"], metadata["diverged_at"]["environment_steps"]) == ("diverged", 250)
    assert rows(tmp_path, RUN).equals(rows(alone, RUN).query("environment_steps <= 200"))
    assert rows(tmp_path, SECOND).equals(rows(alone, SECOND))


@pytest.mark.slow
def test_an_agent_that_diverges_before_its_first_evaluation_is_recorded(tmp_path, monkeypatch):
    """Its record has no rows and no signatures that need an evaluation. Its neighbour continues."""
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
    """The name of a run may combine any task with any dataset."""
    which = records.Run("ant", "hopper-medium-replay", "vanilla", 0)
    with pytest.raises(ValueError, match="hopper-medium-replay: state has 11 dimensions, but in Ant-v5 it has 27"):
        runner.train([which], studies.PROFILES["paper"], tmp_path / "runs", tmp_path / "work")


def test_a_bfloat16_arm_is_refused_on_a_processor_without_bfloat16(tmp_path, monkeypatch):
    """A float32 run under the name of a bfloat16 arm would be false evidence. Nothing is written."""
    monkeypatch.setattr(engine.process, "has_bfloat16", lambda device="cpu": False)
    which = records.Run("hopper", "none", "td3_bfloat16", 0)
    with pytest.raises(RuntimeError, match=f"{which}: precision is 'bfloat16', but the device 'cpu' has no bfloat16 products"):
        record(tmp_path, [which])
    assert not list(tmp_path.rglob("*.*"))
