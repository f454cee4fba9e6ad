"""TD3 and TD3+BC against the published reference implementations, against hand arithmetic, and against themselves."""

import numpy as np
import pytest
import torch

from mbaug import td3
from mbaug.settings import TD3
from mbaug.transitions import Batch

LOSSES = {"td3": td3.actor_loss, "td3_bc": td3.actor_loss_bc}


def set_layer(network, number, position, weight, bias):
    """Writes one agent's layer as torch.nn.Linear stores it."""
    network.layers[number][0][position] = torch.as_tensor(weight).T
    network.layers[number][1][position, 0] = torch.as_tensor(bias)


def places(agent):
    """Returns an agent's networks by their names in the reference."""
    names = {"actor": "actor", "critic": "critics", "actor_target": "target_actor", "critic_target": "target_critics"}
    return {kind: getattr(agent, name) for kind, name in names.items()}


def loaded(reference, name, agents, settings):
    """Returns the reference's agents at step 0 as one population in float64."""
    state, action = reference["state"].shape[1], reference["action"].shape[1]
    generators = [torch.Generator().manual_seed(k) for k in agents]
    agent = td3.create(state, action, settings, generators, "float64")
    for kind, module in places(agent).items():
        for k, number in enumerate(agents):
            for layer in range(6 if "critic" in kind else 3):
                key = f"{name}/agent{number}/step0/{kind}.l{layer + 1}"
                position = k + len(agents) * (layer // 3)
                set_layer(module.network, layer % 3, position, reference[f"{key}.weight"], reference[f"{key}.bias"])
    return agent


def largest_difference(reference, name, agents, agent, step):
    """Returns the largest absolute difference of any weight from the reference at `step`."""
    worst = 0.0
    for kind, module in places(agent).items():
        for k, number in enumerate(agents):
            for layer in range(6 if "critic" in kind else 3):
                weight, bias = module.network.layers[layer % 3]
                position = k + len(agents) * (layer // 3)
                key = f"{name}/agent{number}/step{step}/{kind}.l{layer + 1}"
                for ours, theirs in ((weight[position].T, f"{key}.weight"), (bias[position, 0], f"{key}.bias")):
                    worst = max(worst, float((ours - torch.as_tensor(reference[theirs])).abs().max()))
    return worst


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "population"])
def test_parity_with_the_reference(reference, name, together):
    """Every weight agrees with the published implementation within 1e-10 after all K updates, in float64."""
    index, noise = reference["batch_index"], reference["target_noise"]
    updates, population, batch_size = index.shape
    settings = TD3(hidden=(16, 16), batch_size=batch_size)
    groups = [list(range(population))] if together else [[k] for k in range(population)]
    for agents in groups:
        agent = loaded(reference, name, agents, settings)
        for step in range(1, updates + 1):
            rows = index[step - 1][agents]
            columns = (reference[key][rows] for key in ("state", "action", "reward", "next_state", "terminal"))
            batch = Batch(*(torch.as_tensor(np.asarray(column, dtype=np.float64)) for column in columns))
            batch = batch._replace(reward=batch.reward.reshape(rows.shape), terminal=batch.terminal.reshape(rows.shape))
            td3.update(agent, batch, torch.as_tensor(noise[step - 1][None, agents]), settings, step, LOSSES[name])
            if f"{name}/agent0/step{step}/actor.l1.weight" in reference:
                assert largest_difference(reference, name, agents, agent, step) < 1e-10


# --- by hand: three transitions in plain NumPy ----------------------------------------------------------------------------

SMALL = TD3(hidden=(4,))
NOISE = np.array([[0.3, -0.5], [0.0, 0.1], [-0.2, 0.5]])
THREE = {
    "state": np.array([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [-1.0, 1.0, 1.0]]),
    "action": np.array([[0.1, -0.9], [1.0, 0.0], [-0.5, 0.5]]),
    "reward": np.array([1.0, -2.0, 0.5]),
    "next_state": np.array([[0.9, 0.1, -1.1], [0.0, 2.2, 0.3], [-3.0, 1.5, 0.0]]),
    "terminal": np.array([0.0, 1.0, 0.0]),
}


@pytest.fixture
def pair():
    """Two agents whose targets are not copies."""
    agent = td3.create(3, 2, SMALL, [torch.Generator().manual_seed(k) for k in range(2)], "float64")
    for target in (agent.target_actor, agent.target_critics):
        target.network.flat.mul_(1.5)
    return agent


def both(array):
    """Returns an array for each of the two agents."""
    return torch.as_tensor(np.stack([array, array]))


BATCH = Batch(**{name: both(array) for name, array in THREE.items()})


def mlp(network, k, x):
    """max(x W_1 + b_1, 0) W_2 + b_2."""
    (w1, b1), (w2, b2) = (tuple(part[k].numpy() for part in layer) for layer in network.layers)
    return np.maximum(x @ w1 + b1, 0) @ w2 + b2


def values(critics, k, state, action):
    """Returns Q_1 and Q_2 of agent k."""
    return [mlp(critics.network, k + 2 * twin, np.hstack([state, action]))[:, 0] for twin in range(2)]


def target_by_hand(agent, k):
    """Returns y of agent k."""
    next_action = np.clip(np.tanh(mlp(agent.target_actor.network, k, THREE["next_state"])) + NOISE, -1, 1)
    next_value = np.minimum(*values(agent.target_critics, k, THREE["next_state"], next_action))
    return THREE["reward"] + 0.99 * (1 - THREE["terminal"]) * next_value


def test_critic_target_by_hand(pair):
    target = td3.critic_target(pair, BATCH, SMALL, both(NOISE))
    for k in range(2):
        np.testing.assert_allclose(target[k].numpy(), target_by_hand(pair, k), rtol=0, atol=1e-12)
        assert target[k, 1] == -2.0  # terminal: the reward and nothing else
    assert not target.requires_grad


def test_the_target_action_stays_in_its_bounds(pair):
    far, edge = (td3.critic_target(pair, BATCH, SMALL, both(np.full((3, 2), n))) for n in (50.0, 3.0))
    assert torch.equal(far, edge)


def test_critic_loss_by_hand(pair):
    target = both(np.array([0.5, 1.0, -1.0]))
    losses = td3.critic_loss(pair.critics, BATCH, target)
    for k in range(2):
        errors = [value - target[k].numpy() for value in values(pair.critics, k, THREE["state"], THREE["action"])]
        assert losses[k].item() == pytest.approx(sum(np.mean(error**2) for error in errors), abs=1e-12)


def test_actor_losses_by_hand(pair):
    online = td3.actor_loss(pair.actor, pair.critics, BATCH, SMALL)
    offline = td3.actor_loss_bc(pair.actor, pair.critics, BATCH, SMALL)
    for k in range(2):
        action = np.tanh(mlp(pair.actor.network, k, THREE["state"]))
        first, _ = values(pair.critics, k, THREE["state"], action)
        scale = 2.5 / np.mean(np.abs(first))
        assert online[k].item() == pytest.approx(-np.mean(first), abs=1e-12)
        expected = -scale * np.mean(first) + np.mean((action - THREE["action"]) ** 2)
        assert offline[k].item() == pytest.approx(expected, abs=1e-12)


def test_lambda_is_held_fixed_in_the_gradient(pair):
    flat = pair.actor.network.flat
    (online,) = torch.autograd.grad(td3.actor_loss(pair.actor, pair.critics, BATCH, SMALL)[0], flat)
    (cloning,) = torch.autograd.grad((pair.actor(BATCH.state)[0] - BATCH.action[0]).square().mean(), flat)
    (offline,) = torch.autograd.grad(td3.actor_loss_bc(pair.actor, pair.critics, BATCH, SMALL)[0], flat)
    scale = 2.5 / pair.critics.first(BATCH.state, pair.actor(BATCH.state))[0, 0].abs().mean().item()
    torch.testing.assert_close(offline, scale * online + cloning, rtol=0, atol=1e-12)


def test_target_noise_is_scaled_and_clipped():
    normal = torch.tensor([0.0, 1.0, -2.0, 10.0, -10.0])
    torch.testing.assert_close(td3.noise(normal, TD3()), torch.tensor([0.0, 0.2, -0.4, 0.5, -0.5]))


def test_targets_follow_slowly(pair):
    target, online = pair.target_actor.network, pair.actor.network
    expected = 0.9 * target.flat + 0.1 * online.flat.detach()
    td3.track(target, online, 0.1)
    torch.testing.assert_close(target.flat, expected, rtol=0, atol=1e-12)


# --- an update, and acting ------------------------------------------------------------------------------------------------


def parts(agent):
    """Returns the parameters of all networks by name."""
    names = ("actor", "critics", "target_actor", "target_critics")
    return {name: getattr(agent, name).network.flat.detach().clone() for name in names}


def test_actor_and_targets_wait_for_the_policy_delay(pair):
    settings = TD3(hidden=(4,), policy_delay=3)
    for step in range(1, 7):
        before = parts(pair)
        td3.update(pair, BATCH, both(NOISE)[None], settings, step)
        moved = {name for name, flat in parts(pair).items() if not torch.equal(flat, before[name])}
        assert moved == (set(before) if step % 3 == 0 else {"critics"})


def test_critics_move_towards_the_target(pair):
    before = td3.critic_loss(pair.critics, BATCH, td3.critic_target(pair, BATCH, SMALL, both(NOISE)))
    for step in range(1, 101, 2):  # never the actor, never the targets
        td3.update(pair, BATCH, both(NOISE)[None], TD3(hidden=(4,), learning_rate=0.01), step)
    after = td3.critic_loss(pair.critics, BATCH, td3.critic_target(pair, BATCH, SMALL, both(NOISE)))
    assert (after < 0.5 * before).all()


def test_exploring_is_acting_greedily_with_clipped_noise(pair):
    settings, state = TD3(exploration_noise=0.5), THREE["state"][0]
    greedy = td3.greedy(pair, both(THREE["state"]))[:, 0].numpy()
    for k in range(2):
        explore = td3.explorer(pair, k, settings)
        np.testing.assert_allclose(explore(state, np.zeros(2)), greedy[k], rtol=0, atol=1e-12)
        expected = np.clip(greedy[k] + 0.5 * np.array([1.0, -4.0]), -1, 1)
        np.testing.assert_allclose(explore(state, np.array([1.0, -4.0])), expected, rtol=0, atol=1e-12)


def test_td3_solves_a_one_step_task():
    """Reward -(a - 0.3)^2, then the end: two agents find 0.3 wherever they are."""
    settings = TD3(hidden=(16, 16), batch_size=64, learning_rate=3e-3)
    agent = td3.create(1, 1, settings, [torch.Generator().manual_seed(k) for k in range(2)])
    g = torch.Generator().manual_seed(0)
    for step in range(1, 801):
        state, action = torch.rand(2, 64, 1, generator=g), 2 * torch.rand(2, 64, 1, generator=g) - 1
        batch = Batch(state, action, -(action[..., 0] - 0.3).square(), state, torch.ones(2, 64))
        td3.update(agent, batch, td3.noise(torch.randn(1, 2, 64, 1, generator=g), settings), settings, step)
    assert (td3.greedy(agent, torch.rand(2, 100, 1, generator=g)) - 0.3).abs().max() < 0.1
