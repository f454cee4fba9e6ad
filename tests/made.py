"""Builders that several tests share: random data, computations in NumPy, short training runs."""

from copy import copy
from dataclasses import replace

import numpy as np
import torch

from mbaug import files, tasks
from mbaug.experiments import run
from mbaug.method import training
from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.iql import IQL
from mbaug.method.networks import Arithmetic
from mbaug.method.sac import SAC
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch, Dataset, Standardiser

SHA256 = 64 * "0"
PROVENANCE = dict.fromkeys(("python", "torch", "numpy", "gymnasium", "mujoco", "mbaug", "cpu"), "1.0")
DOUBLE = Arithmetic(precision="float64")
STATE, ACTION, BATCH = 4, 2, 16  # sizes in the updates on random batches
ABLE = {"hidden": (16, 16), "batch_size": 64, "learning_rate": 3e-3}
LEARNERS = {  # settings that find the best action of the one-step task in 500 updates
    "td3": TD3(**ABLE),
    "sac": SAC(**ABLE, initial_temperature=0.1, temperature_learning_rate=0.03),
    "layernorm": TD3(**ABLE | {"hidden": (32, 32)}),  # with LayerNorm, 16 units are too few
    "rlpd": SAC(**ABLE, initial_temperature=0.1, temperature_learning_rate=0.03),
    "iql": IQL(**ABLE, inverse_temperature=30.0, reward_scale=1.0),
}


def metadata(arm, **changed):
    """Returns the metadata of a record of an arm, with some values changed."""
    return {
        "settings": files.plain(arm),
        "draw_sha256": None if arm.pretraining is None else SHA256,
        "status": "finished",
        "diverged_at": None,
        "watch": {"score_drop": 3.5, "value_gap": None, "imagined_outside": 0.25, "overfitting": None},
        "calibration": None,
        "world_model": None,
        "provenance": PROVENANCE | {"commit": 40 * "0", "precision": arm.precision},
        "wall_seconds": 12.5,
        **changed,
    }


def generators(*seeds):
    """Returns one generator for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def close(one, other, atol=1e-12):
    """Asserts that two arrays or tensors agree within `atol`."""
    one, other = (x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in (one, other))
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def dataset(rows, state=3, action=2, seed=0, name="made"):
    """Returns a dataset of random transitions in episodes of random lengths, about half of which end in a fall."""
    rng = np.random.default_rng(seed)
    ends, falls = rng.random(rows) < 0.3, rng.random(rows) < 0.5
    ends[-1:] = True
    states, next_states = rng.normal(1, 2, (2, rows, state)).astype(np.float32)
    actions, rewards = rng.uniform(-1, 1, (rows, action)).astype(np.float32), rng.normal(size=rows).astype(np.float32)
    episode = np.append(0, np.cumsum(ends)[:-1])[:rows]
    return Dataset(name, states, actions, rewards, next_states, ends & falls, ends & ~falls, episode, np.zeros(rows, int))


def refused(record, name, value):
    """Returns the error sentence with which a settings record refuses a value, or None if it accepts the value.

    We bypass __init__, where the type checks of these tests would refuse the value first.
    """
    changed = copy(record)
    object.__setattr__(changed, name, value)
    try:
        changed.__post_init__()
    except ValueError as error:
        return str(error)
    return None


def diverges_at(monkeypatch, steps):
    """Makes a weight of the first agent's critics NaN after each evaluation at this number of environment steps."""
    evaluate = run.evaluate

    def poisoned(population, phase):
        evaluate(population, phase)
        if population.learner.environment_steps == steps:
            population.learner.agent.critics.network.layers[0][0][0] = float("nan")

    monkeypatch.setattr(run, "evaluate", poisoned)


# --- by hand: three transitions of two agents, in plain NumPy --------------------------------------------------------------

THREE = {
    "state": np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [-1.0, 1.0, 1.0]]),
    "action": np.array([[0.1, -0.9], [1.0, 0.0], [-0.5, 0.5]]),
    "reward": np.array([1.0, -2.0, 0.5]),
    "next_state": np.array([[0.9, 0.1, -1.1], [0.0, 2.2, 0.3], [-3.0, 1.5, 0.0]]),
    "terminal": np.array([0.0, 1.0, 0.0]),
}
NOISE = np.array([[0.3, -0.5], [0.0, 1.1], [-2.2, 0.5]])


def both(array):
    """Returns a tensor that holds the array twice, once for each of two agents."""
    return torch.as_tensor(np.stack([array, array]))


THREES = Batch(**{name: both(array) for name, array in THREE.items()})


def mlp(network, k, x):
    """Returns max(... max(x W_1 + b_1, 0) ...) W_n + b_n of perceptron k; a normalised one has LayerNorm before each max."""
    for number, (weight, bias) in enumerate(network.layers):
        if number and network.normalised:
            x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        x = (np.maximum(x, 0) if number else x) @ weight[k].numpy() + bias[k].numpy()
    return x


def values(critics, k, state, action):
    """Returns Q_1(s, a) and Q_2(s, a) of agent k, the first (0) or the second (1) of two."""
    return [mlp(critics.network, k + 2 * twin, np.hstack([state, action]))[:, 0] for twin in range(2)]


# --- updates --------------------------------------------------------------------------------------------------------------


def learned(name, settings, population=2, updates=50, arithmetic=DOUBLE, **loss):
    """Returns a population of agents after some updates on random batches."""
    algorithm, g = ALGORITHMS[name], torch.Generator().manual_seed(7)
    agent = algorithm.create(STATE, ACTION, settings, generators(*range(population)), arithmetic)
    dtype, shapes = agent.actor.network.flat.dtype, ((STATE,), (ACTION,), (), (STATE,), ())
    for step in range(1, updates + 1):
        batch = Batch(*(2 * torch.rand((population, BATCH, *shape), generator=g, dtype=dtype) - 1 for shape in shapes))
        batch = batch._replace(terminal=(batch.terminal > 0.6).to(dtype))
        normal = torch.randn(algorithm.normals, population, BATCH, ACTION, generator=g, dtype=dtype)
        policy_step = step % settings.policy_delay == 0
        algorithm.update(agent, batch, settings, algorithm.noise(normal, settings), policy_step, **loss)
    return agent


def learner_of(settings, seeds, state_size, action_size):
    """Returns untrained learners for a task with these state and action sizes."""
    task = replace(tasks.find("hopper"), positions=(), velocities=("speed",) * state_size, action_size=action_size)
    return training.learner(Arm(learner=settings), task, seeds, Standardiser.identity(len(seeds), state_size))


def linear():
    """Returns a learner with Q_1 = s + 2 a, Q_2 = 2 s - a and pi = tanh(s / 2), whose target networks are equal to these."""
    learner = learner_of(TD3(hidden=()), [0], 1, 1)
    agent = learner.agent
    for actor, critics in ((agent.actor, agent.critics), (agent.target_actor, agent.target_critics)):
        actor.network.layers[0][0].fill_(0.5)
        critics.network.layers[0][0].copy_(torch.tensor([[[1.0], [2.0]], [[2.0], [-1.0]]]))
        for network in (actor.network, critics.network):
            network.layers[0][1].zero_()
    return learner
