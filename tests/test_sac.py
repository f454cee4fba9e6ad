"""SAC against torch.distributions and against hand arithmetic on three transitions in plain NumPy."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from mbaug import sac
from mbaug.settings import SAC
from mbaug.transitions import Batch

SMALL = SAC(hidden=(4,), initial_temperature=0.5)
NOISE = np.array([[0.3, -0.5], [0.0, 1.1], [-2.2, 0.5]])
THREE = {
    "state": np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [-1.0, 1.0, 1.0]]),
    "action": np.array([[0.1, -0.9], [1.0, 0.0], [-0.5, 0.5]]),
    "reward": np.array([1.0, -2.0, 0.5]),
    "next_state": np.array([[0.9, 0.1, -1.1], [0.0, 2.2, 0.3], [-3.0, 1.5, 0.0]]),
    "terminal": np.array([0.0, 1.0, 0.0]),
}


def both(array):
    """Returns an array for each of the two agents."""
    return torch.as_tensor(np.stack([array, array]))


BATCH = Batch(**{name: both(array) for name, array in THREE.items()})


@pytest.fixture
def pair():
    """Two agents whose target critics are not copies and whose temperatures differ."""
    agent = sac.create(3, 2, SMALL, [torch.Generator().manual_seed(k) for k in range(2)], "float64")
    agent.target_critics.network.flat.mul_(1.5)
    agent.log_temperature.detach()[1] = np.log(0.2)
    return agent


def mlp(network, k, x):
    """max(x W_1 + b_1, 0) W_2 + b_2."""
    (w1, b1), (w2, b2) = (tuple(part[k].numpy() for part in layer) for layer in network.layers)
    return np.maximum(x @ w1 + b1, 0) @ w2 + b2


def least(critics, k, state, action):
    """min_i Q_i(s, a) of agent k."""
    return np.minimum(*(mlp(critics.network, k + 2 * twin, np.hstack([state, action]))[:, 0] for twin in range(2)))


def drawn(agent, k, state):
    """Returns a = tanh(mu + sigma n) of agent k and log pi(a | s), with the plain change of variables."""
    mean, log_std = np.split(mlp(agent.actor.network, k, state), 2, axis=1)
    before = mean + np.exp(log_std) * NOISE
    log_density = -(NOISE**2) / 2 - log_std - np.log(2 * np.pi) / 2 - np.log(1 - np.tanh(before) ** 2)
    return np.tanh(before), log_density.sum(axis=1)


# --- the density ----------------------------------------------------------------------------------------------------------


def test_the_log_density_is_that_of_a_squashed_gaussian(pair):
    state = torch.randn(2, 500, 3, dtype=torch.float64)
    normal = torch.randn(2, 500, 2, dtype=torch.float64)
    action, log_density = sac.sample(pair.actor, state, normal)
    mean, log_std = pair.actor(state)
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    torch.testing.assert_close(action, (mean + log_std.exp() * normal).tanh(), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_density, squashed.log_prob(action).sum(dim=-1), rtol=0, atol=1e-8)


def test_the_log_density_stays_finite_where_tanh_saturates(pair):
    state = torch.zeros(2, 2, 3, dtype=torch.float64)
    normal = both(np.array([[100.0, -100.0], [1000.0, 1000.0]]))
    action, log_density = sac.sample(pair.actor, state, normal)
    assert (action.abs() == 1).any()
    assert log_density.isfinite().all()


# --- by hand --------------------------------------------------------------------------------------------------------------


def test_critic_target_by_hand(pair):
    target = sac.critic_target(pair, BATCH, SMALL, both(NOISE))
    for k, alpha in enumerate((0.5, 0.2)):
        next_action, log_density = drawn(pair, k, THREE["next_state"])
        soft = least(pair.target_critics, k, THREE["next_state"], next_action) - alpha * log_density
        expected = THREE["reward"] + 0.99 * (1 - THREE["terminal"]) * soft
        np.testing.assert_allclose(target[k].numpy(), expected, rtol=0, atol=1e-10)
        assert target[k, 1] == -2.0  # terminal: the reward and nothing else
    assert not target.requires_grad


def test_critic_loss_by_hand(pair):
    target = both(np.array([0.5, 1.0, -1.0]))
    losses = sac.critic_loss(pair.critics, BATCH, target)
    for k in range(2):
        inputs = np.hstack([THREE["state"], THREE["action"]])
        errors = [mlp(pair.critics.network, k + 2 * twin, inputs)[:, 0] - target[k].numpy() for twin in range(2)]
        assert losses[k].item() == pytest.approx(sum(np.mean(error**2) / 2 for error in errors), abs=1e-12)


def test_actor_loss_by_hand(pair):
    losses, log_densities = sac.actor_loss(pair.actor, pair.critics, BATCH, sac.temperature(pair), both(NOISE))
    for k, alpha in enumerate((0.5, 0.2)):
        action, log_density = drawn(pair, k, THREE["state"])
        expected = np.mean(alpha * log_density - least(pair.critics, k, THREE["state"], action))
        assert losses[k].item() == pytest.approx(expected, abs=1e-10)
        assert log_densities[k].item() == pytest.approx(log_density.mean(), abs=1e-10)
    assert not log_densities.requires_grad


# --- the temperature ------------------------------------------------------------------------------------------------------


def test_temperature_loss_by_hand():
    losses = sac.temperature_loss(torch.tensor([-1.0, 2.0]), torch.tensor([3.0, -1.0]), -2.0)
    assert losses.tolist() == [1.0 * (3.0 - 2.0), -2.0 * (-1.0 - 2.0)]


@pytest.mark.parametrize(("target_entropy", "grows"), [(50.0, True), (-50.0, False)])
def test_the_temperature_grows_while_the_entropy_is_below_its_target(pair, target_entropy, grows):
    settings = SAC(hidden=(4,), target_entropy_per_action=target_entropy)
    before = sac.temperature(pair).clone()
    sac.update(pair, BATCH, torch.stack([both(NOISE)] * 2), settings, 1)
    assert ((sac.temperature(pair) > before) == grows).all()


def test_temperatures_start_where_they_should():
    agent = sac.create(3, 2, SAC(hidden=(4,), initial_temperature=0.3), [torch.Generator()] * 3)
    torch.testing.assert_close(sac.temperature(agent), torch.full((3,), 0.3))


# --- an update, and acting ------------------------------------------------------------------------------------------------


def test_an_update_moves_the_actor_only_at_the_policy_delay_and_the_targets_always(pair):
    settings = SAC(hidden=(4,), policy_delay=2)
    for step in range(1, 5):
        names = {"actor": pair.actor, "critics": pair.critics, "targets": pair.target_critics}
        before = {name: part.network.flat.detach().clone() for name, part in names.items()}
        temperature = sac.temperature(pair).clone()
        sac.update(pair, BATCH, torch.stack([both(NOISE)] * 2), settings, step)
        moved = {name for name, part in names.items() if not torch.equal(part.network.flat.detach(), before[name])}
        assert moved == {"critics", "targets"} | ({"actor"} if step % 2 == 0 else set())
        assert torch.equal(sac.temperature(pair), temperature) == (step % 2 == 1)
        expected = 0.995 * before["targets"] + 0.005 * pair.critics.network.flat.detach()
        torch.testing.assert_close(pair.target_critics.network.flat, expected, rtol=0, atol=1e-12)


def test_the_noise_at_the_next_state_moves_the_critics_and_that_at_the_state_the_actor(pair):
    """The two are drawn apart: the first belongs to the target, the second to the actor's loss."""
    zero, one = both(np.zeros((3, 2))), both(np.ones((3, 2)))
    results = {}
    for name, noise in {"zero": (zero, zero), "first": (one, zero), "second": (zero, one)}.items():
        agent = sac.create(3, 2, SMALL, [torch.Generator().manual_seed(k) for k in range(2)], "float64")
        sac.update(agent, BATCH, torch.stack(noise), SMALL, 1)
        results[name] = agent.critics.network.flat.detach(), agent.actor.network.flat.detach()
    assert not torch.equal(results["first"][0], results["zero"][0])
    assert torch.equal(results["second"][0], results["zero"][0])
    assert not torch.equal(results["second"][1], results["zero"][1])


def test_exploring_is_sampling_and_greedy_is_the_mean(pair):
    state = BATCH.state
    actions, _ = sac.sample(pair.actor, state, both(NOISE))
    greedy = sac.greedy(pair, state)
    torch.testing.assert_close(greedy, sac.sample(pair.actor, state, torch.zeros_like(actions))[0], rtol=0, atol=1e-12)
    for k in range(2):
        explore = sac.explorer(pair, k, SMALL)
        for row in range(3):
            found = explore(THREE["state"][row], NOISE[row])
            np.testing.assert_allclose(found, actions[k, row].detach().numpy(), rtol=0, atol=1e-12)


def test_exploring_clamps_the_log_std(pair):
    settings = SAC(hidden=(4,), log_std_min=-30.0, log_std_max=-25.0)
    found = sac.explorer(pair, 0, settings)(THREE["state"][0], np.ones(2))
    np.testing.assert_allclose(found, sac.greedy(pair, BATCH.state)[0, 0].numpy(), rtol=0, atol=1e-8)


def test_sac_solves_a_one_step_task():
    """Reward -(a - 0.3)^2, then the end: two agents find 0.3 wherever they are, and grow sure of it."""
    settings = SAC(hidden=(16, 16), batch_size=64, learning_rate=3e-3, initial_temperature=0.1, temperature_learning_rate=0.01)
    agent = sac.create(1, 1, settings, [torch.Generator().manual_seed(k) for k in range(2)])
    g = torch.Generator().manual_seed(0)
    for step in range(1, 601):
        state, action = torch.rand(2, 64, 1, generator=g), 2 * torch.rand(2, 64, 1, generator=g) - 1
        batch = Batch(state, action, -(action[..., 0] - 0.3).square(), state, torch.ones(2, 64))
        sac.update(agent, batch, torch.randn(2, 2, 64, 1, generator=g), settings, step)
    assert (sac.greedy(agent, torch.rand(2, 100, 1, generator=g)) - 0.3).abs().max() < 0.1
    assert (sac.temperature(agent) < 0.05).all()
