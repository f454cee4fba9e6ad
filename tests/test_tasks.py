"""The four tasks: scores, lockstep, snapshots and evaluation; a fall is terminal, a time limit is not."""

import json
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from mbaug import streams, tasks
from mbaug.tasks import Dynamics, Evaluator, Lockstep, Stochastic

HOPPER = tasks.find("hopper")
ROUGH = Dynamics(action_noise=0.2, observation_noise=0.01, push_probability=0.3, push_force=50.0)
calm_and_rough = pytest.mark.parametrize("dynamics", [Dynamics(), ROUGH], ids=["calm", "rough"])


def limited(name, steps):
    """Returns a task with a time limit of `steps`."""
    task = tasks.find(name)
    return replace(task, options=task.options | {"max_episode_steps": steps})


def actions(task, steps, population, seed=0):
    """Returns random actions for all steps of all environments."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, population, task.action_size)).astype(np.float32)


def run(environments, random):
    """Returns the results of the steps and the states that follow, stacked field by field."""
    found = [(*environments.step(action), environments.state) for action in random]
    return [np.stack(parts) for parts in zip(*found, strict=True)]


# --- the tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "joint", "label"),
    [
        ("hopper", "leg_joint", "leg angle (rad)"),
        ("walker2d", "foot_left_joint", "left foot angle (rad)"),
        ("halfcheetah", "bshin", "back shin angle (rad)"),
        ("ant", "ankle_3", "ankle 3 angle (rad)"),
    ],
)
def test_a_task_matches_gymnasiums_and_names_what_its_states_hold(name, joint, label):
    task = tasks.find(name)
    environment = tasks.make(task)
    assert environment.observation_space.shape == (task.state_size,) == (len(set(task.state_names)),)
    assert environment.action_space == gymnasium.spaces.Box(-1, 1, (task.action_size,))
    assert environment.spec.max_episode_steps == 1000
    assert environment.spec.id.endswith("-v5")
    simulator = environment.unwrapped
    assert len(task.velocities) == simulator.model.nv
    position, speed = simulator.init_qpos.copy(), simulator.init_qvel.copy()
    position[simulator.model.joint(joint).qposadr] = 0.123
    speed[simulator.model.joint(joint).dofadr] = 0.456
    simulator.set_state(position, speed)
    shown = dict(zip(task.state_names, simulator._get_obs(), strict=True))
    assert shown[label] == pytest.approx(0.123)
    assert shown[label.replace("angle (rad)", "velocity (rad/s)")] == pytest.approx(0.456)


def test_scores_are_normalised_as_in_d4rl():
    """Source: Farama-Foundation/D4RL, d4rl/infos.py."""
    references = {task.name: (task.return_random, task.return_expert) for task in tasks.TASKS.values()}
    assert references == {
        "hopper": (-20.272305, 3234.3),
        "walker2d": (1.629008, 4592.3),
        "halfcheetah": (-280.178953, 12135.0),
        "ant": (-325.6, 3879.7),
    }
    for task in tasks.TASKS.values():
        assert tasks.normalised_score(task, np.array([task.return_random, task.return_expert])).tolist() == [0, 100]
    assert tasks.normalised_score(tasks.find("ant"), 1000.0) == pytest.approx(31.5, abs=0.1)  # an Ant that stands still
    assert tasks.normalised_score(tasks.find("hopper"), 3532) == pytest.approx(109, abs=1)  # as published for SAC


def test_a_task_of_your_own_has_the_same_time_limit():
    names = {"positions": (*"abcdef",), "velocities": (*"ghij",)}
    reacher = tasks.make(replace(tasks.find("hopper"), gym_id="Reacher-v5", action_size=2, **names))
    assert reacher.spec.max_episode_steps == tasks.STEPS  # Gymnasium's limit is 50
    sentence = r"^the simulator has 4 positions and 4 velocities, but a state has 10 components: we can restore a state only"
    with pytest.raises(ValueError, match=sentence):
        tasks.set_state(reacher, reacher.reset(seed=0)[0])


# --- lockstep -------------------------------------------------------------------------------------------------------------


def test_a_fall_is_terminal_and_not_truncated_even_at_the_time_limit():
    task, push = limited("hopper", 1000), np.ones((1, 3), dtype=np.float32)
    environments, start = Lockstep(task, [0]), tasks.make(task).unwrapped
    length, step = next((n, s) for n, s in enumerate(map(environments.step, [push] * 150), start=1) if s.terminal or s.truncated)
    assert step.terminal[0], "a Hopper that pushes must fall soon"
    assert not step.truncated[0]
    start.set_state(start.init_qpos, start.init_qvel)
    assert np.abs(step.next_state[0] - start._get_obs()).max() > 0.2, "next_state is where it fell"
    apart = np.abs(environments.state[0] - start._get_obs()).max()
    assert apart < 0.02, "the environment is where the next episode begins, up to a small noise"
    *before, last = map(Lockstep(limited("hopper", length), [0]).step, [push] * length)
    assert (last.terminal[0], last.truncated[0]) == (True, False)
    assert not any(step.terminal[0] or step.truncated[0] for step in before)


def test_a_time_limit_is_truncated_and_not_terminal():
    task = limited("halfcheetah", 7)
    found = run(Lockstep(task, [0, 1]), actions(task, 15, 2))
    for number, (next_state, _, terminal, truncated, state) in enumerate(zip(*found, strict=True), start=1):
        assert not terminal.any()
        assert truncated.tolist() == [number % 7 == 0] * 2
        assert np.array_equal(next_state, state) == (number % 7 != 0)


@calm_and_rough
def test_an_environment_gives_the_same_steps_alone_and_among_others(dynamics):
    task = limited("hopper", 20)
    random = actions(task, 50, 3)
    together = run(Lockstep(task, [5, 3, 9], dynamics), random)
    for k, seed in enumerate([5, 3, 9]):
        alone = run(Lockstep(task, [seed], dynamics), random[:, k : k + 1])
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours[:, k : k + 1], theirs)


@calm_and_rough
@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_restored_snapshot_continues_bit_for_bit(name, dynamics):
    """Restores a snapshot from mid-episode into environments with another history, and steps past several episode ends."""
    task = limited(name, 30)
    environments, random = Lockstep(task, [0, 1], dynamics), actions(task, 13 + 70, 2)
    run(environments, random[:13])
    arrays, plain = environments.snapshot()
    arrays, plain = {key: array.copy() for key, array in arrays.items()}, json.loads(json.dumps(plain))
    expected = run(environments, random[13:])
    assert (expected[2] | expected[3]).sum() >= 4, "episodes must end after the snapshot"
    other = Lockstep(task, [7, 8], dynamics)
    run(other, actions(task, 40, 2, seed=1))
    other.restore(arrays, plain)
    np.testing.assert_array_equal(other.state, arrays["state"])
    for ours, theirs in zip(run(other, random[13:]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_environments_start_from_a_random_stream_of_their_own():
    task = tasks.find("hopper")
    for seed, state in zip([5, 3], Lockstep(task, [5, 3]).state, strict=True):
        first, _ = tasks.make(task).reset(seed=streams.integer(seed, "environment"))
        np.testing.assert_array_equal(state, first.astype(np.float32))


# --- stochastic tasks -----------------------------------------------------------------------------------------------------


def test_observation_noise_does_not_change_the_physics():
    task = limited("halfcheetah", 1000)
    assert not isinstance(tasks.make(task, Dynamics()), Stochastic), "a task without noise is not wrapped"
    random = actions(task, 200, 1)
    noisy, true = (run(Lockstep(task, [0], Dynamics(observation_noise=scale)), random)[0][:, 0] for scale in (0.1, 0.0))
    noise = noisy - true
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert np.abs(noise.mean(axis=0)).max() < 5 * 0.1 / np.sqrt(200)


class Logged(gymnasium.Wrapper):
    """Logs the actions that reach the simulator and the forces applied at that moment."""

    def step(self, action):
        self.log.append((action, self.unwrapped.data.xfrc_applied.copy()))
        return super().step(action)


def test_noisy_actions_stay_within_bounds_and_pushes_act_both_ways_along_the_track():
    inner = Logged(tasks.make(limited("halfcheetah", 1000)))
    inner.log, environment = [], Stochastic(inner, Dynamics(action_noise=0.3, push_probability=0.25, push_force=7.0))
    environment.reset(seed=0)
    for action in (0.0, 1.0):
        for _ in range(400):
            environment.step(np.full(6, action, dtype=np.float32))
    noisy, forces = map(np.array, zip(*inner.log, strict=True))
    assert noisy[:400].std() == pytest.approx(0.3, rel=0.1)
    assert noisy[400:].max() == 1
    assert (noisy[400:] == 1).mean() == pytest.approx(0.5, abs=0.05)
    along = forces[:, 1, 0].copy()
    forces[:, 1, 0] = 0
    assert not forces.any(), "pushes act on the torso, along the track"
    assert [(along == force).mean() for force in (7, -7, 0)] == pytest.approx([0.125, 0.125, 0.75], abs=0.05)


# --- evaluation -----------------------------------------------------------------------------------------------------------


def acting(task):
    """Returns a policy whose action depends on the state alone."""
    return lambda state: np.sin(3 * state[..., : task.action_size] + state[..., 5:6]).astype(np.float32)


def played(task, environment, state, discount, steps=1000):
    """Returns return, discounted return, length and first state of an episode, played from the environment's current state."""
    first, rewards, done = state.astype(np.float32), [], False
    while not done and len(rewards) < steps:
        state, reward, terminal, truncated, _ = environment.step(acting(task)(state.astype(np.float32)))
        rewards.append(reward)
        done = terminal or truncated
    return sum(rewards), sum(discount**t * r for t, r in enumerate(rewards)), len(rewards), first


@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
def test_episodes_in_lockstep_equal_episodes_one_by_one(name):
    task = limited(name, 25)
    found = Evaluator(task, [3, 8], 3, discount=0.9)(acting(task), "finetune", 5000)
    for (k, seed), episode in ((row, episode) for row in enumerate([3, 8]) for episode in range(3)):
        environment = gymnasium.make(task.gym_id, **task.options)
        state, _ = environment.reset(seed=streams.integer(seed, "evaluation", "finetune", 5000, episode))
        for ours, theirs in zip(found, played(task, environment, state, 0.9), strict=True):
            np.testing.assert_allclose(ours[k, episode], theirs, rtol=1e-12, atol=0)
    assert (found.length.min() < 25) == (name == "hopper"), "some Hoppers must fall, so that episodes end at different times"


def test_an_evaluation_can_start_from_given_states():
    """Five states take turns in two environments per agent. Each result is that of a simulator set to the state for 4 steps."""
    task = limited("hopper", 1000)
    environment = tasks.make(task)
    environment.reset(seed=0)
    states = np.array([environment.step(action)[0] for action in actions(task, 5, 1)[:, 0]], dtype=np.float32)
    found = Evaluator(task, [3, 8], 2, discount=0.9).from_states(acting(task), states, steps=4)
    for number, state in enumerate(states):
        environment.reset(seed=1)
        tasks.set_state(environment, state)
        for ours, theirs in zip(found, played(task, environment, state, 0.9, 4), strict=True):
            np.testing.assert_allclose(ours[:, number], [theirs, theirs], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"^the state has shape \(10,\), but the environment's observations have \(11,\)$"):
        tasks.set_state(environment, states[0, 1:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "half-swim"}, "name is 'half-swim', but a task's name has letters, digits or _.+"),
        ({"return_expert": HOPPER.return_random}, "return_random is -20.272305 and return_expert is -20.272305, but both"),
        ({"return_expert": np.nan}, "return_random is -20.272305 and return_expert is nan, but both must be finite"),
        ({"velocities": ()}, "velocities is empty, but a state needs at least one"),
    ],
)
def test_a_task_that_cannot_be_scored_named_or_restored_is_refused(change, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        replace(HOPPER, **change)


@pytest.mark.parametrize("key", ["hopper", "jumper"])
def test_an_extra_task_has_its_own_name_as_its_key(key, monkeypatch):
    monkeypatch.setitem(tasks.EXTRA, key, HOPPER)
    with pytest.raises(ValueError, match=rf"^EXTRA has the keys \['{key}'\], but a key must be its task's name, and not one of"):
        tasks._every()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"gym_id": "Hoper-v5"}, "Gymnasium cannot make 'Hoper-v5': "),
        ({"options": {"nonsense": 1}}, "Gymnasium cannot make 'Hopper-v5': "),  # a TypeError
        ({"gym_id": "MountainCarContinuous-v0"}, "MountainCarContinuous-v0 does not run in MuJoCo, but every task must"),
        (
            {"gym_id": "Pusher-v5", "action_size": 7},
            "Pusher-v5 has actions in Box(-2.0, 2.0, (7,), float32), but a task needs Box(-1.0, 1.0, (7,), float32)",
        ),
        (
            {"velocities": HOPPER.velocities[1:]},
            "Hopper-v5 has observations of shape (11,), but the task 'hopper' names 10 components",
        ),
    ],
)
def test_a_task_that_gymnasium_cannot_simulate_or_that_differs_from_its_simulator_is_refused(change, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        tasks.make(replace(HOPPER, **change))


def test_every_episode_from_a_given_state_has_noise_of_its_own():
    """The same state four times, for two agents: eight different episodes, and the same eight again."""
    task = limited("hopper", 1000)
    states = np.stack([Lockstep(task, [0]).state[0]] * 4)
    evaluate = Evaluator(task, [3, 8], 2, discount=0.9, dynamics=ROUGH)
    first, again = (evaluate.from_states(acting(task), states, steps=5).discounted_return for _ in range(2))
    assert len(np.unique(first)) == 8
    np.testing.assert_array_equal(first, again)


def test_an_evaluation_depends_on_its_seed_and_occasion_alone():
    task = limited("hopper", 25)
    evaluate = Evaluator(task, [3, 8], 2, discount=0.99)
    first, other, again = (evaluate(acting(task), "finetune", steps) for steps in (5000, 10_000, 5000))
    alone = Evaluator(task, [8], 4, discount=0.99)(acting(task), "finetune", 5000)
    for one, two, three in zip(first, again, alone, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one[1], three[0, :2])
    starts = np.concatenate([first.first_state, other.first_state]).reshape(8, -1)
    assert len(np.unique(starts, axis=0)) == 8, "every episode must begin in another state"
