"""LayerNorm in the critics: they equal a computation in NumPy, and values far from the data stay bounded."""

import numpy as np
import torch
from made import DOUBLE, THREE, THREES, close, generators, values

from mbaug import tasks
from mbaug.method import layernorm, td3, training
from mbaug.method.arms import Arm
from mbaug.method.settings import Finetuning
from mbaug.method.td3 import TD3

SMALL = TD3(hidden=(6, 5))


def pair():
    """Returns two agents with LayerNorm in their critics."""
    return layernorm.create(3, 2, SMALL, generators(0, 1), DOUBLE)


def test_critics_have_layernorm_and_start_with_the_parameters_of_td3():
    agent, plain = pair(), td3.create(3, 2, SMALL, generators(0, 1), DOUBLE)
    assert [part.network.normalised for part in (agent.critics, agent.target_critics)] == [True, True]
    assert [part.network.normalised for part in (agent.actor, agent.target_actor)] == [False, False]
    assert torch.equal(agent.critics.network.flat, plain.critics.network.flat)
    for k in range(2):
        wanted = values(agent.critics, k, THREE["state"], THREE["action"])
        close(agent.critics(THREES.state, THREES.action)[:, k], np.stack(wanted))
        close(agent.critics.first(THREES.state, THREES.action)[0, k], wanted[0])


def test_going_online_keeps_layernorm():
    learner = training.learner(Arm("layernorm"), tasks.find("hopper"), [1, 3])
    for carry in (True, False):
        training.carry(learner, Finetuning(carry_critics=carry))
        assert learner.agent.critics.network.normalised
        assert learner.agent.target_critics.network.normalised
