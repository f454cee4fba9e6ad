"""The whole programme in the smoke budget: every arm of every study lives from nothing to a record."""

from dataclasses import replace
from functools import cache, partial
from itertools import combinations

import numpy as np
import pytest

from mbaug import engine, grid, recording, settings, streams, study, tasks, transitions
from mbaug.settings import Finetuning

# As the profile of that name, but smaller still, because there are over seventy runs: one block of updates a stage.
SMOKE = replace(
    settings.profile("smoke"), updates=50, steps=100, warmup_steps=50, epochs=1, episodes=1, transitions=500, redraw_interval=50
)


def small(one):
    """The study with batches of 32 rows."""
    return replace(one, arms={name: replace(arm, learner=replace(arm.learner, batch_size=32)) for name, arm in one.arms.items()})


@cache
def uniform_pool(name):
    """1,000 transitions of uniformly random actions, in place of the dataset of that name."""
    task = tasks.find(name.split("-")[0])
    environment, rows = tasks.Lockstep(task, [0]), []
    for action in streams.numpy_generator(0, "programme").uniform(-1, 1, (1_000, 1, task.action_size)).astype(np.float32):
        state = environment.state[0]
        step = environment.step(action)
        rows.append((state, action[0], step.reward[0], step.next_state[0], step.terminal[0], step.truncated[0]))
    state, action, reward, next_state, terminal, truncated = map(np.array, zip(*rows, strict=True))
    episode = np.append(0, np.cumsum(terminal | truncated)[:-1])
    return transitions.Dataset(name, state, action, reward, next_state, terminal, truncated, episode)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One folder of records for all studies: what one of them recorded no other trains again."""
    return tmp_path_factory.mktemp("programme")


def check_sharing(pretrained):
    """Two runs of one task, dataset and seed have the same pre-training if and only if all but their fine-tuning is the same.

    Args:
        pretrained: for each run its arm and the rows of its pre-training.
    """
    for (first, (arm, rows)), (second, (other, others)) in combinations(pretrained.items(), 2):
        if (first.task, first.dataset, first.seed) == (second.task, second.dataset, second.seed):
            same = replace(arm, finetuning=Finetuning()) == replace(other, finetuning=Finetuning())
            assert rows.equals(others) == same, f"{first} and {second}"


@pytest.mark.parametrize("name", grid.STUDIES)
def test_every_arm_is_trained(name, root, monkeypatch):
    """Every arm on the study's first task and the last arm on the others, recorded to the end of its budget."""
    monkeypatch.setattr(transitions, "load", uniform_pool)
    monkeypatch.setattr(tasks, "make", partial(tasks.make, max_episode_steps=100))  # two tasks end no episode earlier
    monkeypatch.setattr(engine, "has_bfloat16", lambda device="cpu": True)  # torch multiplies it everywhere, if slowly
    one = small(grid.find(name))
    arms, last = list(one.arms), list(one.arms)[-1]
    for only in (f"/{one.tasks[0]}/*", f"/{last}/seed*"):
        study.record(one, root / "runs", root / "work", SMOKE, only, one.seeds[:1], report=lambda line: None)
    found = recording.recorded(root / "runs", name)
    assert {(run.task, run.arm) for run in found} == {(one.tasks[0], arm) for arm in arms} | {(task, last) for task in one.tasks}
    pretrained = {}
    for run in found:
        rows, metadata = recording.read(root / "runs", run)
        arm = SMOKE.apply(one.arm(run.arm))
        assert metadata["status"] == "finished"
        assert study.difference_from(metadata, arm) is None
        plan = arm.finetuning
        assert rows["environment_steps"].max() == plan.steps
        offline = arm.pretraining.updates if arm.pretraining else 0
        assert (metadata["watch"]["overfitting"] is not None) == (offline > 0)
        assert rows["gradient_steps"].max() == offline + plan.critic_updates + plan.steps - plan.warmup_steps
        assert (metadata["calibration"] is not None) == (offline > 0)
        before = rows[rows.phase == "pretrain"]
        assert np.isfinite(before.imagined_outside).all() if arm.augmentation else before.imagined_outside.isna().all()
        if offline:
            assert len(before) > 0
            pretrained[run] = arm, before
    check_sharing(pretrained)
