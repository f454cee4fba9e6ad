"""RLPD: it mixes its batches, its actor loss equals a computation in NumPy, and it solves a one-step task."""

from dataclasses import replace

import pytest
import torch
from made import DOUBLE, NOISE, THREE, THREES, both, generators, values

from mbaug import tasks
from mbaug.method import rlpd, sac, training
from mbaug.method.arms import Arm
from mbaug.method.sac import SAC
from mbaug.method.settings import Finetuning, Pretraining


@pytest.mark.parametrize(("offline", "size", "expected"), [(10, 14, [0, 5, 9, 10, 12, 13]), (1, 2, [0, 0, 0, 1, 1, 1])])
def test_half_of_a_batch_is_offline_rows(offline, size, expected):
    """Offline and online rows share a batch equally, however many there are of each."""
    places = torch.tensor([0.0, 0.5, 0.999, 0.0, 0.5, 0.999], dtype=torch.float64)
    assert rlpd.rows(places, offline, size).tolist() == expected
    assert rlpd.rows(places.expand(2, 3, 6), offline, size).tolist() == [[expected] * 3] * 2


def test_offline_rows_are_those_that_the_replay_buffer_started_with():
    hopper, calls = tasks.find("hopper"), []
    plan = Finetuning(100, 50, "uniform", keep_data=True, evaluation_interval=50)
    arm = Arm("rlpd", SAC(hidden=(8,), batch_size=8), pretraining=Pretraining(updates=0), finetuning=plan)
    learner = training.learner(arm, hopper, [0])
    learner.algorithm = replace(rlpd.ALGORITHM, rows=lambda *given: calls.append(given[1:]) or rlpd.rows(*given))
    list(training.finetune(learner, tasks.Lockstep(hopper, [0]), training.replay(learner, torch.zeros(1, 30, 28))))
    assert calls == [(30, 30 + steps) for steps in range(51, 101)]


def test_actor_loss_by_hand():
    settings = SAC(hidden=(6, 5))
    agent = rlpd.create(3, 2, settings, generators(0, 1), DOUBLE)
    alpha = torch.tensor([0.2, 0.7], dtype=torch.float64)
    losses, log_density = rlpd.actor_loss(agent.actor, agent.critics, THREES, alpha, both(NOISE))
    action, density = sac.sample(agent.actor, THREES.state, both(NOISE))
    for k in range(2):
        mean = sum(values(agent.critics, k, THREE["state"], action[k].detach().numpy())) / 2
        wanted = (alpha[k].item() * density[k].detach().numpy() - mean).mean()
        assert losses[k].item() == pytest.approx(wanted, abs=1e-12)
        assert log_density[k].item() == pytest.approx(density[k].mean().item(), abs=1e-12)
    assert agent.critics.network.normalised
    assert not agent.actor.network.normalised, "the actor is SAC's, without LayerNorm"
