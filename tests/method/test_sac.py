"""SAC: its losses equal computations in NumPy on three transitions, and it solves a one-step task."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import DOUBLE, NOISE, THREE, THREES, both, close, generators, mlp, values

from mbaug.method import sac
from mbaug.method.sac import SAC

SMALL = SAC(hidden=(4,), initial_temperature=0.5)
ALPHAS = 0.5, 0.2  # temperatures of the two agents


def agents():
    return sac.create(3, 2, SMALL, generators(0, 1), DOUBLE)


@pytest.fixture
def pair():
    """Two agents with different temperatures, whose target critics differ from their critics."""
    agent = agents()
    close(sac.temperature(agent), np.full(2, 0.5))
    agent.target_critics.network.flat.mul_(1.5)
    agent.log_temperature.detach()[1] = np.log(0.2)
    return agent


def drawn(agent, k, state):
    """Returns a = tanh(mu + sigma n) of agent k and log pi(a | s), by the change of variables."""
    mean, log_std = np.split(mlp(agent.actor.network, k, state), 2, axis=1)
    before = mean + np.exp(log_std) * NOISE
    log_density = -(NOISE**2) / 2 - log_std - np.log(2 * np.pi) / 2 - np.log(1 - np.tanh(before) ** 2)
    return np.tanh(before), log_density.sum(axis=1)


def test_the_log_density_stays_finite_where_tanh_saturates(pair):
    action, log_density = sac.sample(pair.actor, torch.zeros(2, 2, 3).double(), both(np.array([[1e2, -1e2], [1e3, 1e3]])))
    assert (action.abs() == 1).any()
    assert log_density.isfinite().all()


def test_critic_target_by_hand(pair):
    target = sac.critic_target(pair, THREES, SMALL, both(NOISE))
    for k, alpha in enumerate(ALPHAS):
        next_action, log_density = drawn(pair, k, THREE["next_state"])
        soft = np.minimum(*values(pair.target_critics, k, THREE["next_state"], next_action)) - alpha * log_density
        expected = THREE["reward"] + 0.99 * (1 - THREE["terminal"]) * soft
        close(target[k], expected, 1e-10)
        assert target[k, 1] == -2.0  # a terminal transition: the reward alone
    assert not target.requires_grad


def test_critic_loss_by_hand(pair):
    target = both(np.array([0.5, 1.0, -1.0]))
    losses = sac.critic_loss(pair.critics, THREES, target)
    for k in range(2):
        errors = [value - target[k].numpy() for value in values(pair.critics, k, THREE["state"], THREE["action"])]
        assert losses[k].item() == pytest.approx(sum(np.mean(error**2) / 2 for error in errors), abs=1e-12)


def test_actor_loss_by_hand(pair):
    losses, log_densities = sac.actor_loss(pair.actor, pair.critics, THREES, sac.temperature(pair), both(NOISE))
    for k, alpha in enumerate(ALPHAS):
        action, log_density = drawn(pair, k, THREE["state"])
        expected = np.mean(alpha * log_density - np.minimum(*values(pair.critics, k, THREE["state"], action)))
        assert losses[k].item() == pytest.approx(expected, abs=1e-10)
        assert log_densities[k].item() == pytest.approx(log_density.mean(), abs=1e-10)
    assert not log_densities.requires_grad


def test_temperature_loss_by_hand():
    losses = sac.temperature_loss(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -1.0]), -2.0)
    assert losses.tolist() == [1.0 * (3.0 - 2.0), -2.0 * (-1.0 - 2.0)]


def updated(settings, *noise):
    """Returns two agents after one update with this noise in the actions at s' and at s."""
    agent = agents()
    sac.update(agent, THREES, settings, torch.stack([both(part) for part in noise]), True)
    return agent


def test_the_target_entropy_counts_each_action_and_the_temperature_has_its_own_learning_rate():
    """Two actions have a target of -2 nats, so alpha falls at an entropy of -1.5. Adam's first step is as long as its rate."""
    settings, agent = replace(SMALL, target_entropy_per_action=-1.0, temperature_learning_rate=0.01), agents()
    loss = lambda *given: (sac.actor_loss(*given)[0], torch.full((2,), 1.5).double())  # noqa: E731
    sac.update(agent, THREES, settings, torch.stack([both(NOISE)] * 2), True, loss)
    close(agent.log_temperature[:2], np.full(2, np.log(0.5) - 0.01), 1e-6)


def test_noise_at_the_next_state_affects_the_critics_and_noise_at_the_state_the_actor():
    zero, first, second = updated(SMALL, 0 * NOISE, 0 * NOISE), updated(SMALL, NOISE, 0 * NOISE), updated(SMALL, 0 * NOISE, NOISE)
    assert torch.equal(second.critics.network.flat, zero.critics.network.flat)
    assert not torch.equal(first.critics.network.flat, zero.critics.network.flat)
    assert not torch.equal(second.actor.network.flat, zero.actor.network.flat)


def test_an_update_moves_the_actor_only_in_a_policy_step_and_the_targets_always(pair):
    names = {"actor": pair.actor, "critics": pair.critics, "targets": pair.target_critics}
    for step in range(1, 5):
        before = {name: part.network.flat.detach().clone() for name, part in names.items()}
        temperature = sac.temperature(pair).clone()
        sac.update(pair, THREES, SAC(hidden=(4,)), torch.stack([both(NOISE)] * 2), step % 2 == 0)
        moved = {name for name, part in names.items() if not torch.equal(part.network.flat.detach(), before[name])}
        assert moved == {"critics", "targets"} | ({"actor"} if step % 2 == 0 else set())
        assert torch.equal(sac.temperature(pair), temperature) == (step % 2 == 1)
        expected = 0.995 * before["targets"] + 0.005 * pair.critics.network.flat.detach()
        close(pair.target_critics.network.flat, expected)


def test_exploration_samples_the_policy_and_the_greedy_action_is_its_mean(pair):
    actions, _ = sac.sample(pair.actor, THREES.state, both(NOISE))
    greedy = sac.greedy(pair, THREES.state)
    close(greedy, sac.sample(pair.actor, THREES.state, both(0 * NOISE))[0])
    for k in range(2):
        explore = sac.explorer(pair, k, SMALL)
        found = [explore(state, normal) for state, normal in zip(THREE["state"], NOISE, strict=True)]
        close(found, actions[k])


def test_the_log_std_is_clamped_where_it_learns_and_where_it_explores(pair):
    actor = sac.GaussianActor(pair.actor.network, -30.0, -25.0)
    assert (actor(THREES.state)[1] == -25).all()
    found = sac.explorer(pair, 0, SAC(hidden=(4,), log_std_min=-30.0, log_std_max=-25.0))(THREE["state"][0], np.ones(2))
    close(found, sac.greedy(pair, THREES.state)[0, 0], 1e-8)
