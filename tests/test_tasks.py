"""The four tasks: scores, stepping in lockstep, snapshots, evaluation; a fall is terminal and a time limit is not."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from mbaug import streams, tasks, transitions
from mbaug.settings import Dynamics
from mbaug.tasks import Evaluator, Lockstep, Stochastic, Task


def limited(name, steps):
    """Returns a task with a time limit of `steps`."""
    task = tasks.find(name)
    return replace(task, options=task.options | {"max_episode_steps": steps})


def actions(task, steps, population, seed=0):
    """Returns random actions for every step of every environment."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, population, task.action_size)).astype(np.float32)


# --- the tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_is_what_gymnasium_makes(name):
    task = tasks.find(name)
    environment = tasks.make(task)
    assert environment.observation_space.shape == (task.state_size,)
    assert environment.action_space.shape == (task.action_size,)
    assert (environment.action_space.low == -1).all()
    assert (environment.action_space.high == 1).all()
    assert environment.spec.max_episode_steps == 1000
    assert environment.spec.id.endswith("-v5")


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_names_of_a_state_are_those_of_mujocos_joints(name):
    task = tasks.find(name)
    environment = tasks.make(task).unwrapped
    body, joints = environment.model, range(environment.model.njnt)
    free = body.jnt_type[0] == 0
    kinds = {2: "m", 3: "rad"}  # MuJoCo's slides and hinges
    angles = [kinds[body.jnt_type[joint]] for joint in joints if body.jnt_type[joint]]
    positions = ["m", *["quaternion"] * 4, *angles] if free else angles[1:]  # nobody observes how far it went
    velocities = [f"{unit}/s" for unit in (["m"] * 3 + ["rad"] * 3 + angles if free else angles)]
    assert [label.split("(")[1][:-1] for label in task.state_names] == positions + velocities
    assert len(set(task.state_names)) == task.state_size


@pytest.mark.parametrize(
    ("task", "joint", "label"),
    [
        ("hopper", "leg_joint", "leg angle (rad)"),
        ("walker2d", "foot_left_joint", "left foot angle (rad)"),
        ("halfcheetah", "bshin", "back shin angle (rad)"),
        ("ant", "ankle_3", "ankle 3 angle (rad)"),
    ],
)
def test_a_name_is_that_of_the_joint_it_shows(task, joint, label):
    task = tasks.find(task)
    environment = tasks.make(task).unwrapped
    place, speed = environment.init_qpos.copy(), environment.init_qvel.copy()
    place[environment.model.joint(joint).qposadr] = 0.123
    environment.set_state(place, speed)
    assert environment._get_obs()[task.state_names.index(label)] == pytest.approx(0.123)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown task 'hoper': did you mean 'hopper'\? allowed are 'hopper', 'walker2d'"):
        tasks.find("hoper")
    with pytest.raises(ValueError, match="unknown task 'humanoid': allowed are 'hopper', 'walker2d', 'halfcheetah', 'ant'"):
        tasks.find("humanoid")


# Returns and their D4RL-normalised scores at 100K, 300K and 1M steps, of TD3 (its paper's curves) and of SAC (Tianshou).
PUBLISHED = {
    "hopper": {660: 21, 2410: 75, 3391: 105, 2613: 81, 3388: 105, 3532: 109},
    "walker2d": {770: 17, 3336: 73, 4413: 96, 1305: 28, 3387: 74, 4961: 108},
    "halfcheetah": {5514: 47, 7697: 64, 9567: 79, 6515: 55, 9059: 75, 12122: 100},
    "ant": {586: 22, 1954: 54, 4243: 109, 1020: 32, 3561: 92, 5714: 144},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_d4rls(name):
    task = tasks.find(name)
    returns = np.array(list(PUBLISHED[name]))
    scores = tasks.normalised_score(task, returns)
    assert np.abs(scores - list(PUBLISHED[name].values())).max() <= 1  # the published scores are rounded returns, rounded
    assert tasks.normalised_score(task, task.return_random) == 0
    assert tasks.normalised_score(task, task.return_expert) == 100


def test_the_reference_returns_are_d4rls():
    """Source: Farama-Foundation/D4RL, d4rl/infos.py."""
    references = {task.name: (task.return_random, task.return_expert) for task in tasks.TASKS.values()}
    assert references == {
        "hopper": (-20.272305, 3234.3),
        "walker2d": (1.629008, 4592.3),
        "halfcheetah": (-280.178953, 12135.0),
        "ant": (-325.6, 3879.7),
    }
    assert tasks.normalised_score(tasks.find("ant"), 1000.0) == pytest.approx(31.5, abs=0.1)  # one that stands still


# --- lockstep -------------------------------------------------------------------------------------------------------------


def test_a_fall_is_terminal_and_not_truncated():
    task = limited("hopper", 200)
    environments, push = Lockstep(task, [0]), np.ones((1, 3), dtype=np.float32)
    step = next(step for step in (environments.step(push) for _ in range(150)) if step.terminal[0] or step.truncated[0])
    assert step.terminal[0], "a Hopper that pushes falls soon"
    assert not step.truncated[0]
    assert not np.array_equal(step.next_state, step.state)  # where it fell, and where it begins again
    assert np.abs(step.state[0] - gymnasium_start(task)).max() < 0.02
    assert np.abs(step.next_state[0] - gymnasium_start(task)).max() > 0.2
    np.testing.assert_array_equal(environments.state, step.state)


def gymnasium_start(task):
    """Returns the state in which an episode begins, up to its small noise."""
    environment = tasks.make(task).unwrapped
    environment.set_state(environment.init_qpos, environment.init_qvel)
    return environment._get_obs()


def test_a_time_limit_is_truncated_and_not_terminal():
    task = limited("halfcheetah", 7)
    environments, random = Lockstep(task, [0, 1]), actions(task, 15, 2)
    for number in range(1, 16):
        step = environments.step(random[number - 1])
        assert not step.terminal.any()
        assert step.truncated.all() == (number % 7 == 0)
        assert step.truncated.any() == (number % 7 == 0)
        assert np.array_equal(step.next_state, step.state) == (number % 7 != 0)


def test_a_fall_at_the_time_limit_is_a_fall():
    environments = Lockstep(limited("hopper", 1000), [0])
    push = np.ones((1, 3), dtype=np.float32)
    length = next(number for number in range(1, 1000) if environments.step(push).terminal[0])
    environments = Lockstep(limited("hopper", length), [0])
    steps = [environments.step(push) for _ in range(length)]
    assert steps[-1].terminal[0]
    assert not steps[-1].truncated[0]
    assert not any(step.terminal[0] or step.truncated[0] for step in steps[:-1])


def run(environments, random):
    """Returns everything that some steps give, stacked."""
    return [np.stack(parts) for parts in zip(*(environments.step(action) for action in random), strict=True)]


def test_an_environment_does_not_feel_its_neighbours():
    task = limited("hopper", 20)
    random = actions(task, 50, 3)
    together = run(Lockstep(task, [5, 3, 9]), random)
    for k, seed in enumerate([5, 3, 9]):
        alone = run(Lockstep(task, [seed]), random[:, k : k + 1])
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours[:, k : k + 1], theirs)


ROUGH = Dynamics(action_noise=0.2, observation_noise=0.01, push_probability=0.3, push_force=50.0)


@pytest.mark.parametrize("dynamics", [Dynamics(), ROUGH], ids=["calm", "rough"])
@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_restored_snapshot_goes_on_bit_for_bit(name, dynamics):
    """From the middle of an episode, over the ends of others, into environments that have been elsewhere."""
    task = limited(name, 30)
    environments, random = Lockstep(task, [0, 1], dynamics), actions(task, 13 + 70, 2)
    run(environments, random[:13])
    arrays, plain = environments.snapshot()
    arrays, plain = {key: array.copy() for key, array in arrays.items()}, json.loads(json.dumps(plain))
    expected = run(environments, random[13:])
    assert (expected[2] | expected[3]).sum() >= 4, "episodes end in between"
    other = Lockstep(task, [7, 8], dynamics)
    run(other, actions(task, 40, 2, seed=1))
    other.restore(arrays, plain)
    np.testing.assert_array_equal(other.state, arrays["state"])
    for ours, theirs in zip(run(other, random[13:]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_closing_frees_every_simulator(monkeypatch):
    environments, closed = Lockstep(tasks.find("hopper"), [0, 1]), []
    for environment in environments.environments:
        monkeypatch.setattr(environment, "close", lambda k=environment: closed.append(k))
    environments.close()
    assert closed == environments.environments


# --- stochastic tasks -----------------------------------------------------------------------------------------------------


def test_a_calm_task_is_the_task_itself():
    task = limited("hopper", 20)
    assert not isinstance(tasks.make(task, Dynamics()), Stochastic)
    random = actions(task, 40, 1)
    for ours, theirs in zip(run(Lockstep(task, [0], Dynamics()), random), run(Lockstep(task, [0]), random), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rough_tasks_of_one_seed_are_equal_and_of_two_differ():
    task, random = limited("hopper", 20), actions(limited("hopper", 20), 30, 1)
    lives = [run(Lockstep(task, [seed], ROUGH), random)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(lives[0], lives[1])
    assert not np.array_equal(lives[0], lives[2])


def test_observations_have_their_noise_and_the_physics_do_not():
    task, noisy = limited("halfcheetah", 1000), Dynamics(observation_noise=0.1)
    random = actions(task, 200, 1)
    environments = Lockstep(task, [0], noisy)
    seen = run(environments, random)[0]
    true = []
    plain = tasks.make(task)
    plain.reset(seed=streams.integer(0, "environment"))
    for action in random[:, 0]:
        state, *_ = plain.step(action)
        true.append(state)
    noise = seen[:, 0] - np.array(true)
    assert noise.std() == pytest.approx(0.1, rel=0.05)
    assert np.abs(noise.mean(axis=0)).max() < 5 * 0.1 / np.sqrt(200)


class Told(gymnasium.Wrapper):
    """Notes the actions that reach the simulator, and the force on the torso at that moment."""

    def __init__(self, environment):
        super().__init__(environment)
        self.actions, self.forces = [], []

    def step(self, action):
        self.actions.append(action)
        self.forces.append(self.unwrapped.data.xfrc_applied.copy())
        return super().step(action)


def test_actions_have_their_noise_and_stay_in_their_bounds():
    told = Told(tasks.make(limited("halfcheetah", 1000)))
    environment = Stochastic(told, Dynamics(action_noise=0.3))
    environment.reset(seed=0)
    for action in (0.0, 1.0):
        for _ in range(300):
            environment.step(np.full(6, action, dtype=np.float32))
    noise = np.array(told.actions)
    assert noise[:300].std() == pytest.approx(0.3, rel=0.1)
    assert noise[300:].max() == 1
    assert (noise[300:] == 1).mean() == pytest.approx(0.5, abs=0.05)
    assert not np.array(told.forces).any()


def test_pushes_come_as_often_as_said_from_either_side_at_the_torso_along_the_track():
    told = Told(tasks.make(limited("halfcheetah", 1000)))
    environment = Stochastic(told, Dynamics(push_probability=0.25, push_force=7.0))
    environment.reset(seed=0)
    for _ in range(800):
        environment.step(np.zeros(6, dtype=np.float32))
    forces = np.array(told.forces)
    along = forces[:, 1, 0].copy()
    forces[:, 1, 0] = 0
    assert not forces.any()
    assert set(along) == {-7.0, 0.0, 7.0}
    assert (along == 7).mean() == pytest.approx(0.125, abs=0.05)
    assert (along == -7).mean() == pytest.approx(0.125, abs=0.05)


# --- evaluation -----------------------------------------------------------------------------------------------------------


def acting(task):
    """Returns a policy whose action depends on each state alone."""
    return lambda state: np.sin(3 * state[..., : task.action_size] + state[..., 5:6]).astype(np.float32)


def one_by_one(task, seed, *occasion, discount):
    """Returns what an episode gives that Gymnasium steps alone."""
    environment = gymnasium.make(task.gym_id, **task.options)
    state, _ = environment.reset(seed=streams.integer(seed, "evaluation", *occasion))
    first, rewards, done = state.astype(np.float32), [], False
    while not done:
        state, reward, terminal, truncated, _ = environment.step(acting(task)(state.astype(np.float32)))
        rewards.append(reward)
        done = terminal or truncated
    return sum(rewards), sum(discount**t * r for t, r in enumerate(rewards)), len(rewards), first


@pytest.mark.parametrize("name", ["hopper", "halfcheetah"])
def test_episodes_in_lockstep_equal_episodes_one_by_one(name):
    task = limited(name, 25)
    found = Evaluator(task, [3, 8], 3, discount=0.9)(acting(task), "finetune", 5000)
    for k, seed in enumerate([3, 8]):
        for episode in range(3):
            expected = one_by_one(task, seed, "finetune", 5000, episode, discount=0.9)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours[k, episode], theirs, rtol=1e-12, atol=0)
    assert (found.length.min() < 25) == (name == "hopper"), "some Hoppers fall, so episodes end at different times"


def test_an_evaluation_depends_on_its_seed_and_occasion_alone():
    task = limited("hopper", 25)
    evaluate = Evaluator(task, [3, 8], 2, discount=0.99)
    first = evaluate(acting(task), "finetune", 5000)
    other = evaluate(acting(task), "finetune", 10_000)
    again = evaluate(acting(task), "finetune", 5000)
    alone = Evaluator(task, [8], 4, discount=0.99)(acting(task), "finetune", 5000)
    for one, two, three in zip(first, again, alone, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one[1], three[0, :2])
    assert not np.array_equal(first.first_state, other.first_state)
    assert len(np.unique(first.first_state.reshape(4, -1), axis=0)) == 4  # every episode begins elsewhere


class FixedRewards(gymnasium.Env):
    """An environment that pays 1, 2, 4 and falls."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2), 2.0 ** (self.steps - 1), self.steps == 3, False, {}


def test_returns_by_hand(monkeypatch):
    monkeypatch.setattr(tasks, "make", lambda task, dynamics: FixedRewards())
    evaluate = Evaluator(Task("fixed", "none", 2, 1, 0.0, 1.0, None), [0], 2, discount=0.5)
    episodes = evaluate(lambda state: np.zeros((1, 2, 1)), "by hand")
    np.testing.assert_array_equal(episodes.undiscounted_return, [[7, 7]])
    np.testing.assert_array_equal(episodes.discounted_return, [[1 + 0.5 * 2 + 0.25 * 4] * 2])
    np.testing.assert_array_equal(episodes.length, [[3, 3]])


# --- data that meet a task ------------------------------------------------------------------------------------------------


def dataset(state=11, action=3, largest=1.0):
    """Returns four transitions with these sizes, of which the third has the largest action."""
    actions = np.zeros((4, action), np.float32)
    actions[2] = largest
    flags = np.array([False, False, False, True])
    states = np.zeros((4, state), np.float32)
    return transitions.Dataset("made", states, actions, np.zeros(4, np.float32), states, flags, ~flags & False, np.zeros(4, int))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"state": 17}, "made: state has 17 dimensions, but in Hopper-v5 it has 11: these are another task's data"),
        ({"action": 6}, "made: action has 6 dimensions, but in Hopper-v5 it has 3"),
        ({"largest": -1.01}, r"made: 1 actions are beyond \[-1, 1\] \(first: row 2\), but Hopper-v5 allows no such action"),
    ],
)
def test_data_that_are_not_the_task_s_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        tasks.check_dataset(tasks.find("hopper"), dataset(**given))


@pytest.mark.parametrize("largest", [1.0, -1.0, 1 + 1e-6])
def test_data_that_are_the_task_s_are_taken(largest):
    """Also where rounding has carried an action just beyond the limit."""
    tasks.check_dataset(tasks.find("hopper"), dataset(largest=largest))
