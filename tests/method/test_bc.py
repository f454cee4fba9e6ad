"""Behaviour cloning: its loss equals a computation in NumPy, and the clone imitates the data."""

import numpy as np
import pytest
import torch
from made import ABLE, DOUBLE, THREE, THREES, generators, mlp

from mbaug.method import bc
from mbaug.method.td3 import TD3, update
from mbaug.method.transitions import Batch


def test_cloning_loss_by_hand():
    agent = bc.ALGORITHM.create(3, 2, TD3(hidden=(4,)), generators(0, 1), DOUBLE)
    losses = bc.cloning_loss(agent.actor, agent.critics, THREES, TD3())
    for k in range(2):
        action = np.tanh(mlp(agent.actor.network, k, THREE["state"]))
        assert losses[k].item() == pytest.approx(np.mean((action - THREE["action"]) ** 2), abs=1e-12)


def test_offline_the_clone_follows_the_data_and_not_its_critics():
    """In the data a = s / 2 and the reward is -a, highest at a = -1. The critics learn the value of a = s / 2."""
    settings, g = TD3(**ABLE), torch.Generator().manual_seed(0)
    agent = bc.ALGORITHM.create(1, 1, settings, generators(0), DOUBLE)
    for step in range(1, 801):
        state = 2 * torch.rand(1, 64, 1, generator=g, dtype=torch.float64) - 1
        batch = Batch(state, state / 2, -state[..., 0] / 2, state, torch.ones(1, 64, dtype=torch.float64))
        update(agent, batch, settings, torch.zeros(1, 1, 64, 1, dtype=torch.float64), step % 2 == 0, bc.ALGORITHM.offline_loss)
    assert (agent.actor(state) - state / 2).abs().max() < 0.05
    assert (agent.critics(state, state / 2)[0, 0] + state[0, :, 0] / 2).abs().max() < 0.05
