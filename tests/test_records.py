"""The evidence in data/runs: every record is whole, was made by a clean commit, and by settings that are today's."""

from dataclasses import replace

import numpy as np
import pytest

from mbaug import collection, grid, offline_data, pools, recording, streams, study, tasks, transitions

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


def test_records_that_are_the_same_in_all_but_name_hold_the_same_rows():
    """Whether one is a copy of the other or both were trained: settings, seed and data, versions and processor are the same."""
    twins = {}
    for run, metadata in recording.load_metadata(recording.root()).items():
        place = tuple(item for item in metadata["provenance"].items() if item[0] != "commit")
        key = run.task, run.dataset, run.seed, grid.find(run.study).arm(run.arm), place
        twins.setdefault(key, {})[str(run)] = metadata["csv_sha256"]
    assert max(map(len, twins.values())) > 1
    for hashes in twins.values():
        assert len(set(hashes.values())) == 1, hashes


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


@pytest.mark.parametrize("name", LIVES)
def test_a_pool_is_of_the_life_that_its_card_names(name):
    """That life is recorded; the card's evaluations are those of the record until the moment that the pool is of."""
    card, (rows, _) = CARDS[name], recording.read(recording.root(), LIVES[name])
    task, _, quality = name.partition("-")
    lived = collection.curve(rows.to_dict("records"))
    medium = collection.medium_steps(lived, collection.medium_level(tasks.find(task), lived, ended=True))
    steps = lived[-1]["environment_steps"] if quality == "expert" else medium
    until = [point for point in lived if point["environment_steps"] <= steps]
    if quality == "medium-replay":
        assert card["curve"] == until
    else:
        assert card["policy"].startswith(f"the agent after {steps} environment steps,")
        assert card["greedy_return"] == np.mean(until[-1]["returns"])


def policy_of(name):
    """Returns the policy that acted in a pool: uniform or, of the life that its card names, the actor that was kept."""
    card, (task, _, quality) = CARDS[name], name.partition("-")
    if "run" not in card:
        return collection.uniform(tasks.find(task))
    run, kept = LIVES[name], {"medium": "medium", "expert": "final"}[quality]
    actor = recording.policies(recording.root(), run)[kept]
    return collection.explorer(tasks.find(task), grid.find(run.study).arm(run.arm), actor)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "policy" in card])
def test_a_roll_out_s_actions_are_those_of_the_policy_that_its_card_names(name):
    """The first ones, in the recorded states, with the pool's own random numbers; processors differ in the last digits."""
    act, pool = policy_of(name), transitions.load(name)
    random = streams.numpy_generator(CARDS[name]["seed"], "pool", name.partition("-")[2])
    again = [act(state, random) for state in pool.state[:300]]
    np.testing.assert_allclose(again, pool.action[:300], rtol=0, atol=1e-4)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_where_a_run_is_from(run):
    """All code that trained it is committed, or unknown, as the first checkpoints leave it; a copy holds what its origin does."""
    metadata = recording.verify(recording.root(), run)
    origin = metadata["provenance"]
    assert all(len(commit) == 40 or commit == "unknown" for commit in origin.get("earlier_commits", []))
    if "copied_from" in origin:
        other = recording.verify(recording.root(), recording.Run.parse(origin["copied_from"]))
        assert "copied_from" not in other["provenance"]
        assert other["csv_sha256"] == metadata["csv_sha256"]
        assert {"copied_from": origin["copied_from"]} | other["provenance"] == origin
