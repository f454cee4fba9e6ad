"""The evidence in data/runs: every record is whole, was made by a clean commit, and by settings that are today's."""

from dataclasses import replace

import numpy as np
import pytest

from mbaug import collection, grid, offline_data, pools, recording, study, tasks, transitions

RUNS = recording.recorded(recording.root())


def test_there_is_evidence():
    assert RUNS, "data/runs holds no record"


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_recorded_run(run):
    """The hash holds, the settings are those of today's arm, the commit is known and clean, the draw is today's draw."""
    metadata = recording.verify(recording.root(), run)
    arm = grid.find(run.study).arm(run.arm)
    assert study.difference_from(metadata, arm) is None
    assert run in replace(grid.find(run.study), seeds=(run.seed,)).runs()  # anyone may record another seed
    commit = metadata["provenance"]["commit"]
    assert len(commit) == 40, f"{run} was recorded by {commit!r}, which is not a clean commit"
    if arm.pretraining is not None and run.dataset != f"{run.task}-replay":  # which is too large to be committed
        drawn, _ = transitions.draw(transitions.load(run.dataset), arm.pretraining.transitions, run.seed)
        assert metadata["draw_sha256"] == drawn.sha256


def test_every_evaluation_is_there():
    """A finished run has an evaluation at every interval of both phases, with all of its episodes."""
    for run in RUNS:
        rows, metadata = recording.read(recording.root(), run)
        if metadata["status"] == "diverged":
            continue
        arm = grid.find(run.study).arm(run.arm)
        plan = arm.finetuning
        expected = list(range(0, plan.steps + 1, plan.evaluation_interval))
        online = rows[rows.phase == "finetune"]
        assert online.environment_steps.unique().tolist() == expected
        counts = rows.groupby(["phase", "gradient_steps", "environment_steps"]).size()
        assert set(counts) == {arm.evaluation.episodes}
        if arm.pretraining is not None:
            offline = rows[rows.phase == "pretrain"].gradient_steps.unique().tolist()
            interval = arm.pretraining.evaluation_interval
            assert offline == list(range(interval, arm.pretraining.updates + 1, interval))


# Rewards a step that nobody leaves for 1,000 steps: forward speed in m/s, 1 for health where a task has it, minus the actions'
# cost. That is at most 4 for Ant, which may thrash on its back to the time limit; a hopper or walker that falls is out.
POSSIBLE = {"hopper": (-0.1, 4.2), "walker2d": (-0.1, 7.0), "halfcheetah": (-2.0, 14.0), "ant": (-4.0, 7.0)}


def test_returns_are_plausible():
    """No recorded return is beyond what a task can give."""
    for name, part in recording.load_runs(recording.root()).groupby("task"):
        low, high = POSSIBLE[name]
        assert part["return"].between(1000 * low, 1000 * high).all(), tasks.find(name)


CARDS = {path.stem: offline_data.read_card(path) for path in pools.paths([offline_data.FOLDER])}
LIVES = {name: recording.Run.parse(card["run"]) for name, card in CARDS.items() if "run" in card}


@pytest.mark.parametrize("name", [name for name, run in LIVES.items() if run in RUNS])
def test_a_pool_is_of_the_life_that_its_card_names(name):
    """The card's evaluations are those of the record, and so the agent that acted is one that the record knows."""
    card, (rows, _) = CARDS[name], recording.read(recording.root(), LIVES[name])
    lived = collection.curve(rows.to_dict("records"))
    if "curve" in card:
        assert card["curve"] == lived[: len(card["curve"])]
    else:
        assert card["greedy_return"] in [np.mean(point["returns"]) for point in lived]
