"""The evidence in data/runs: every record is complete, comes from clean commits, and has today's settings."""

from functools import cache

import numpy as np
import pytest

from mbaug import streams, tasks
from mbaug.datasets import collect, read
from mbaug.experiments import records, studies
from mbaug.method import transitions

ROOT = records.root()
RUNS = records.recorded(ROOT)


def test_there_is_evidence():
    assert RUNS, "data/runs holds no record"


@cache  # many runs share a draw
def draw_sha256(dataset, transitions_drawn, whole_episodes, seed):
    draw = transitions.draw_episodes if whole_episodes else transitions.draw
    return draw(read.load(dataset), transitions_drawn, seed)[0].sha256


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_record_fits_todays_arm_and_draw_and_comes_from_clean_commits(run):
    """Reading the metadata also compares the CSV with its hash."""
    metadata, arm = records.read_metadata(ROOT, run), studies.ARMS[run.arm]
    assert records.difference(metadata, arm) is None
    assert run.dataset == studies.dataset(run.task, run.dataset.removeprefix(f"{run.task}-"), run.arm)
    origin = metadata["provenance"]
    assert len(origin["commit"]) == 40, f"{run} was recorded by {origin['commit']!r}, which is not a clean commit"
    assert all(len(commit) == 40 or commit == "unknown" for commit in origin.get("earlier_commits", []))
    if arm.pretraining is not None:
        plan = arm.pretraining
        assert metadata["draw_sha256"] == draw_sha256(run.dataset, plan.transitions, plan.whole_episodes, run.seed)


def test_a_finished_run_has_every_evaluation():
    """There is one at every interval of both phases, with all its episodes."""
    for run in RUNS:
        rows, metadata = records.read(ROOT, run)
        if metadata["status"] == "diverged":
            continue
        arm, expected = studies.ARMS[run.arm], []
        if plan := arm.pretraining:
            expected += [("pretrain", n, 0) for n in range(plan.evaluation_interval, plan.updates + 1, plan.evaluation_interval)]
        if plan := arm.finetuning:
            before, extra = studies.offline_updates(arm), plan.critic_updates
            for steps in range(0, plan.steps + 1, plan.evaluation_interval):
                learned = steps - plan.warmup_steps + extra if steps > plan.warmup_steps else 0
                expected.append(("finetune", before + learned, steps))
        found = rows.groupby(["phase", "gradient_steps", "environment_steps"], sort=False).size()
        assert found.index.tolist() == expected, run
        assert set(found) == {arm.evaluation.episodes}, run


# Lowest and highest possible mean reward per step of an episode: speed along the track in m/s, plus 1 while healthy (not in
# HalfCheetah), minus the cost of actions. One or two legs run forwards at 6 m/s at most. Backwards, an episode of Hopper or
# Walker2d ends when the torso has sunk from 1.25 m to 0.7 or 0.8 m. Falling that far gives a final speed of
# sqrt(2 g 0.55 m) = 3.3 m/s, which bounds the average. Actions cost at most 0.006 per step there, 0.6 in HalfCheetah, and 4 in
# Ant. Ant's body is symmetric, so it is as fast backwards as forwards, and its contacts cost at most 0.1.
POSSIBLE = {"hopper": (-2.3, 4.2), "walker2d": (-2.3, 7.0), "halfcheetah": (-2.0, 14.0), "ant": (-10.1, 7.0)}


def test_returns_are_plausible():
    """The return of each recorded episode is physically possible in an episode of its length."""
    for name, part in records.load_runs(ROOT).groupby("task"):
        possible = (part["return"] / part["length"]).between(*POSSIBLE[name])
        assert possible.all(), part[~possible].to_string()


CARDS = {name: read.read_card(path) for name, path in read.bundled([read.FOLDER]).items()}
TRAININGS = {name: records.Run.parse(card["run"]) for name, card in CARDS.items() if "run" in card}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_pool_comes_from_the_run_that_its_card_names(name):
    """That run is recorded, and up to the step at which the pool was taken its evaluations are those on the card."""
    card, (rows, _) = CARDS[name], records.read(ROOT, TRAININGS[name])
    task, _, quality = name.partition("-")
    curve = collect.curve(rows.to_dict("records"))
    medium = collect.medium_steps(curve, collect.medium_level(tasks.find(task), curve, ended=True))
    steps = curve[-1]["environment_steps"] if quality == "expert" else medium
    until = [point for point in curve if point["environment_steps"] <= steps]
    if quality == "medium-replay":
        assert card["curve"] == until
    else:
        assert card["policy"].startswith(f"the agent after {steps} environment steps,")
        assert card["greedy_return"] == np.mean(until[-1]["returns"])


def policy_of(name):
    """Returns the policy that collected a pool: uniform, or the stored actor of the run that its card names."""
    card, (task, _, quality) = CARDS[name], name.partition("-")
    if "run" not in card:
        return collect.uniform(tasks.find(task))
    run, kept = TRAININGS[name], {"medium": "medium", "expert": "final"}[quality]
    actor = records.policies(ROOT, run)[kept]
    return collect.explorer(tasks.find(task), studies.ARMS[run.arm], actor)


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if "policy" in card])
def test_the_actions_of_a_pool_are_those_of_the_policy_that_its_card_names(name):
    """Computes the first 300 again, with the pool's own random numbers; processors differ in the last digits."""
    act, pool = policy_of(name), read.load(name)
    random = streams.numpy_generator(CARDS[name]["seed"], "pool", name.partition("-")[2])
    actions = [act(state, random) for state in pool.state[:300]]
    np.testing.assert_allclose(actions, pool.action[:300], rtol=0, atol=1e-4)
