"""IQL: its losses equal computations in NumPy on three transitions, and it solves a one-step task."""

import numpy as np
import pytest
import torch
from made import DOUBLE, NOISE, THREE, THREES, both, close, generators, mlp, values

from mbaug import tasks
from mbaug.method import iql, training
from mbaug.method.arms import Arm
from mbaug.method.iql import IQL
from mbaug.method.settings import Finetuning

SMALL = IQL(hidden=(4,), inverse_temperature=60.0, reward_scale=0.5, log_std_max=0.1)
PARTS = "actor", "critics", "value", "target_critics"


@pytest.fixture
def pair():
    """Two agents with different spreads, one of which is clipped, whose target critics differ from their critics."""
    agent = iql.create(3, 2, SMALL, generators(0, 1), DOUBLE)
    agent.target_critics.network.flat.mul_(1.5)
    agent.log_std.detach()[:4] = torch.tensor([-0.3, 0.5, -1.0, 0.0], dtype=torch.float64)
    return agent


def least(agent, k):
    """Returns min_i Q'_i(s, a) of agent k."""
    return np.minimum(*values(agent.target_critics, k, THREE["state"], THREE["action"]))


def value(agent, k, state="state"):
    """Returns V(s) of agent k."""
    return mlp(agent.value.network, k, THREE[state])[:, 0]


def test_value_loss_by_hand(pair):
    """An expectile of 0.7 weights errors by 0.7 where the target is above the value, and by 0.3 where it is below."""
    target = both(np.array([1.0, -1.0, 0.2]))
    losses = iql.value_loss(pair.value(THREES.state)[0], target, 0.7)
    for k in range(2):
        surplus = target[k].numpy() - value(pair, k)
        expected = np.mean(np.where(surplus < 0, 0.3, 0.7) * surplus**2)
        assert losses[k].item() == pytest.approx(expected, abs=1e-12)


def test_critic_target_by_hand(pair):
    target = iql.critic_target(pair, THREES, SMALL, both(NOISE))
    for k in range(2):
        expected = THREE["reward"] + 0.99 * (1 - THREE["terminal"]) * value(pair, k, "next_state")
        close(target[k], expected)
        assert target[k, 1] == -2.0  # a terminal transition: the reward alone
    assert not target.requires_grad


def test_actor_loss_by_hand(pair):
    advantage = np.stack([least(pair, k) - value(pair, k) for k in range(2)])
    advantage[:, 0] = 1.0  # exp(30) exceeds the largest weight, 100
    spread = iql.clipped_log_std(pair, 2, SMALL)
    losses = iql.actor_loss(pair.actor(THREES.state), spread, THREES.action, torch.from_numpy(advantage), SMALL)
    for k, log_std in enumerate(([-0.3, 0.1], [-1.0, 0.0])):
        weight = np.minimum(np.exp(30 * advantage[k]), 100)
        assert weight[0] == 100
        surprise = ((THREE["action"] - np.tanh(mlp(pair.actor.network, k, THREE["state"]))) / np.exp(log_std)) ** 2
        density = (-surprise / 2 - log_std - np.log(2 * np.pi) / 2).sum(axis=1)
        assert losses[k].item() == pytest.approx(-np.mean(weight * density), abs=1e-9)


def test_an_update_moves_values_then_the_actor_then_the_critics(pair, monkeypatch):
    """Each loss gets what its equation names, with the parameters that the losses before it have moved."""
    value_loss, critic_loss, order = iql.value_loss, iql.critic_loss, []

    def of_values(found, target, expectile):
        close(target, np.stack([least(pair, k) for k in range(2)]))
        order.append(("values", expectile))
        return value_loss(found, target, expectile)

    def of_actor(mean, spread, action, advantage, settings):
        close(advantage, np.stack([least(pair, k) - value(pair, k) for k in range(2)]))
        order.append("actor")
        return iql.actor_loss(mean, spread, action, advantage, settings)

    def of_critics(critics, batch, target):
        close(target, iql.critic_target(pair, batch, SMALL, both(NOISE)))
        order.append("critics")
        return critic_loss(critics, batch, target)

    monkeypatch.setattr(iql, "value_loss", of_values)
    monkeypatch.setattr(iql, "critic_loss", of_critics)
    iql.update(pair, THREES, SMALL, both(NOISE)[None], True, of_actor)
    assert order == [("values", 0.7), "actor", "critics"]


def test_only_the_actor_waits_for_a_policy_step_and_the_target_moves_slowly(pair):
    moved = {name: [] for name in PARTS}
    for step in range(1, 5):
        before = {name: getattr(pair, name).network.flat.detach().clone() for name in PARTS}
        spread = pair.log_std.detach().clone()
        iql.update(pair, THREES, SMALL, both(NOISE)[None], step % 2 == 0)
        for name in PARTS:
            moved[name].append(not torch.equal(getattr(pair, name).network.flat, before[name]))
        learns = [True, False, True, True] if step % 2 == 0 else [False] * 4  # a clipped spread has no gradient
        assert (pair.log_std != spread)[:4].tolist() == learns
        expected = 0.995 * before["target_critics"] + 0.005 * pair.critics.network.flat.detach()
        close(pair.target_critics.network.flat, expected)
    assert moved == {name: [False, True] * 2 if name == "actor" else [True] * 4 for name in PARTS}


def test_exploration_adds_noise_with_the_learned_spread_to_the_greedy_action(pair):
    """An explorer reads the agent's current network and spread, so one explorer serves the whole training."""
    explorers = [iql.explorer(pair, k, SMALL) for k in range(2)]
    for _ in range(2):
        spread = iql.clipped_log_std(pair, 2, SMALL).detach()[:, 0].exp().numpy()
        wanted = np.clip(iql.greedy(pair, THREES.state)[:, 0].numpy() + spread * NOISE[0], -1, 1)
        close([explore(THREE["state"][0], NOISE[0]) for explore in explorers], wanted)
        for _ in range(20):
            iql.update(pair, THREES, IQL(hidden=(4,), learning_rate=0.01), both(NOISE)[None], True)
    assert not np.allclose(spread, np.exp([[-0.3, 0.1], [-1.0, 0.0]]), atol=0.01), "the spread must change in between"


@pytest.mark.parametrize(("group", "carried"), [("actor", ("actor", "log_std")), ("critics", ("critics", "value"))])
def test_the_spread_is_carried_with_the_actor_and_the_value_with_the_critics(group, carried):
    learner = training.learner(Arm("iql", IQL(hidden=(8, 8))), tasks.find("hopper"), [1, 3])
    learner.agent.log_std.detach().add_(-0.5)
    before = learner.agent
    training.carry(learner, Finetuning(carry_actor=group == "actor", carry_critics=group == "critics"))
    for name in ("actor", "log_std", "critics", "value"):
        assert (getattr(learner.agent, name) is getattr(before, name)) == (name in carried)
        assert (learner.agent.moments[name] is before.moments[name]) == (name in carried)
    assert torch.equal(learner.agent.target_critics.network.flat, learner.agent.critics.network.flat)
