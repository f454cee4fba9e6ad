"""The whole programme: no two arms are the same, and each trains with a tiny budget from nothing to a record."""

import re
from dataclasses import replace
from functools import cache, partial
from itertools import combinations

import numpy as np
import pytest
from small import few_states

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.experiments import probes, records, runner, studies
from mbaug.experiments.studies import ARMS, PROFILES, Study
from mbaug.method.settings import Pretraining
from mbaug.method.transitions import Dataset

# Even smaller than the profile: one block of updates in each stage.
SMOKE = replace(
    studies.profile("smoke"), updates=50, steps=100, warmup_steps=50, epochs=1, episodes=1, transitions=500, redraw_interval=50
)
SMALL = {name: replace(arm, learner=replace(arm.learner, batch_size=32)) for name, arm in ARMS.items()}


@cache
def uniform_pool(name):
    """Returns 1,000 transitions of uniformly random actions, as a stand-in for the dataset of that name."""
    task = tasks.find(name.split("-")[0])
    environment, rows = tasks.Lockstep(task, [0]), []
    for action in streams.numpy_generator(0, "programme").uniform(-1, 1, (1_000, 1, task.action_size)).astype(np.float32):
        state = environment.state[0]
        step = environment.step(action)
        rows.append((state, action[0], step.reward[0], step.next_state[0], step.terminal[0], step.truncated[0]))
    state, action, reward, next_state, terminal, truncated = map(np.array, zip(*rows, strict=True))
    episode = np.append(0, np.cumsum(terminal | truncated)[:-1])
    return Dataset(name, state, action, reward, next_state, terminal, truncated, episode, np.zeros(len(state), dtype=int))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One folder of records for all studies, so that a run in several studies is trained once."""
    return tmp_path_factory.mktemp("programme")


def check_sharing(pretrained):
    """Asserts that runs of one dataset and seed share pre-training iff only fine-tuning differs.

    Args:
        pretrained: the arm of each run and the rows of its pre-training.
    """
    for (first, (arm, rows)), (second, (other, others)) in combinations(pretrained.items(), 2):
        if (first.task, first.dataset, first.seed) == (second.task, second.dataset, second.seed):
            assert rows.equals(others) == (arm.offline_part == other.offline_part), (
                f"{first} and {second} share their settings or their pre-training, but not both."
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_arm_trains_to_the_end_of_its_budget(name, root, monkeypatch):
    """For each study we train all arms on its first task and the last arm on the others."""
    monkeypatch.setattr(read, "load", uniform_pool)
    monkeypatch.setattr(probes, "load", few_states)
    monkeypatch.setattr(tasks, "make", partial(tasks.make, max_episode_steps=100))  # two tasks never end an episode early
    monkeypatch.setattr(engine.process, "has_bfloat16", lambda device="cpu": True)  # torch supports it everywhere, but slowly
    for module in (runner, studies):
        monkeypatch.setattr(module, "ARMS", SMALL)
    study = studies.find(name)
    wanted = [run for run in study.runs(1) if run.task == study.tasks[0] or run.arm == study.arms[-1]]
    runner.record(wanted, root / "runs", root / "work", SMOKE, report=lambda line: None)
    pretrained = {}
    for run in wanted:
        rows, metadata = records.read(root / "runs", run)
        arm = SMOKE.apply(SMALL[run.arm])
        plan, offline = arm.finetuning, studies.offline_updates(arm)
        assert metadata["status"] == "finished"
        assert records.difference(metadata, arm) is None
        assert rows["environment_steps"].max() == (plan.steps if plan else 0)
        assert rows["gradient_steps"].max() == studies.updates(arm)
        assert (metadata["watch"]["overfitting"] is not None) == (metadata["calibration"] is not None) == (offline > 0)
        before = rows[rows.phase == "pretrain"]
        assert np.isfinite(before.imagined_outside).all() if arm.augmentation else before.imagined_outside.isna().all()
        if offline:
            assert len(before) > 0
            pretrained[run] = arm, before
    check_sharing(pretrained)


def test_a_profile_keeps_budgets_multiples_of_the_interval():
    """20,000, the updates of the profile quick, are no multiple of 1,500."""
    arm = replace(ARMS["vanilla"], pretraining=Pretraining(updates=48_000, evaluation_interval=1_500))
    plan = PROFILES["quick"].apply(arm).offline
    assert (plan.updates, plan.evaluation_interval) == (19_500, 1_500)


def test_no_two_arms_have_equal_settings():
    for (name, arm), (other, same) in combinations(ARMS.items(), 2):
        assert arm != same, f"{name} and {other} are one arm under two names."


def test_the_studies_use_exactly_the_arms_of_the_registry():
    assert {arm for study in studies.STUDIES.values() for arm in study.arms} == set(ARMS)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Study("mine", "?", ("augmentd",)), "unknown arm in the study 'mine': 'augmentd': did you mean 'augmented'"),
        (lambda: Study("mine", "?", ()), "arms is (), but it must be a tuple of one name or more"),
        (
            lambda: Study("mine", "?", ("td3",), seeds=(0, -1)),
            "seeds is (0, -1), but it must be a tuple of whole numbers, each 0",
        ),
        (lambda: Study("mine", "?", ("td3",), ("hoper",)), "unknown task in the study 'mine': 'hoper': did you mean 'hopper'"),
        (lambda: studies.by_name(*[studies.find("rates")] * 2), "two studies have the name 'rates', but each must have its own"),
    ],
)
def test_a_mistake_in_a_study_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make()


def test_a_study_of_an_extra_task_joins_the_programme(monkeypatch):
    """The paper's four tasks, on which claims rest, stay as they are."""
    joints = "torso angle (rad)", "first angle (rad)", "second angle (rad)"
    speeds = "x velocity (m/s)", "y velocity (m/s)", "torso (rad/s)", "first (rad/s)", "second (rad/s)"
    swimmer = tasks.Task("swimmer", "Swimmer-v5", 2, 0.0, 360.0, None, joints, speeds)
    monkeypatch.setitem(tasks.EVERY, "swimmer", swimmer)
    monkeypatch.setattr(studies, "ORDER", (*studies.ORDER, "swimmer"))
    monkeypatch.setitem(studies.STUDIES, "mine", Study("mine", "?", ("td3",), ("swimmer",), seeds=(0,)))
    monkeypatch.setattr(studies, "PROGRAMME", (*studies.PROGRAMME, ("mine",)))
    assert str(studies.programme()[-1]) == "swimmer/none/td3/seed0"
    assert tasks.Lockstep(tasks.find("swimmer"), [0]).state.shape == (1, swimmer.state_size)
    assert "swimmer" not in studies.FOUR


def test_the_programme_goes_seed_by_seed_and_then_task_by_task():
    places = [(run.seed, run.task) for run in studies.programme() if run.arm == "vanilla"]
    assert places == [(seed, task) for seed in range(5) for task in studies.ORDER if task in studies.FOUR]


def test_runs_that_share_a_pretraining_are_one_cell():
    """One process trains a cell. The first is seed 0 of HalfCheetah."""
    cells = studies.cells(studies.programme())
    first = [str(run) for population in cells[0] for run in population]
    dataset = "halfcheetah/halfcheetah-medium-replay"
    assert first == [f"{dataset}/vanilla{part}/seed0" for part in ("", "_data", "_actor", "_critics_uniform")]
    shared = [(run.task, run.dataset, run.seed, ARMS[run.arm].offline_part) for cell in cells for run in cell[0]]
    pretrained = [key for key in shared if key[3] is not None and key[3].pretraining.updates]
    assert len(pretrained) == len(set(pretrained))


def test_the_runs_of_a_population_differ_only_in_their_seed():
    cells = studies.cells(studies.find("core").runs(), population=3)
    for runs in (population for cell in cells for population in cell):
        assert len({(run.task, run.dataset, run.arm) for run in runs}) == 1
        assert len(runs) <= 3
