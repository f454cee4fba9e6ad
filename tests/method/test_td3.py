"""TD3 and TD3+BC: they equal the published implementations and computations in NumPy, and solve a one-step task."""

import numpy as np
import pytest
import torch
from made import DOUBLE, NOISE, THREE, THREES, both, close, generators, mlp, values

from mbaug.method import td3
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch

LOSSES = {"td3": td3.actor_loss, "td3_bc": td3.actor_loss_bc}
PARTS = {"actor": "actor", "critic": "critics", "actor_target": "target_actor", "critic_target": "target_critics"}


def pairs(reference, name, agents, agent, step):
    """Yields each weight and bias of a population and its reference at `step`, in the layout of torch.nn.Linear."""
    for kind, part in PARTS.items():
        for k, number in enumerate(agents):
            for layer in range(6 if "critic" in kind else 3):
                weight, bias = getattr(agent, part).network.layers[layer % 3]
                position, key = k + len(agents) * (layer // 3), f"{name}/agent{number}/step{step}/{kind}.l{layer + 1}"
                yield weight[position].T, torch.as_tensor(reference[f"{key}.weight"])
                yield bias[position, 0], torch.as_tensor(reference[f"{key}.bias"])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("together", [False, True], ids=["alone", "population"])
def test_parity_with_the_reference(reference, name, together):
    """Every weight agrees with the published implementation within 1e-10 after all K updates, in float64."""
    index, noise = reference["batch_index"], reference["target_noise"]
    updates, population, batch_size = index.shape
    units, state_size = reference[f"{name}/agent0/step0/actor.l1.weight"].shape
    settings, compared = TD3(hidden=(units, units), batch_size=batch_size), []
    for agents in [[*range(population)]] if together else [[k] for k in range(population)]:
        agent = td3.create(state_size, noise.shape[-1], settings, generators(*agents), DOUBLE)
        for ours, theirs in pairs(reference, name, agents, agent, 0):
            ours.copy_(theirs)
        for step in range(1, updates + 1):
            rows = index[step - 1][agents]
            columns = (torch.as_tensor(reference[key][rows].astype(np.float64)) for key in Batch._fields)
            batch = Batch(*columns)
            batch = batch._replace(reward=batch.reward.reshape(rows.shape), terminal=batch.terminal.reshape(rows.shape))
            td3.update(agent, batch, settings, torch.as_tensor(noise[step - 1][None, agents]), step % 2 == 0, LOSSES[name])
            if f"{name}/agent0/step{step}/actor.l1.weight" in reference:
                compared.append(step)
                assert max((ours - theirs).abs().max() for ours, theirs in pairs(reference, name, agents, agent, step)) < 1e-10
    assert max(compared) == updates


SMALL = TD3(hidden=(4,))


@pytest.fixture
def pair():
    """Two agents whose target networks differ from their networks."""
    agent = td3.create(3, 2, SMALL, generators(0, 1), DOUBLE)
    for target in (agent.target_actor, agent.target_critics):
        target.network.flat.mul_(1.5)
    return agent


def test_critic_target_by_hand(pair):
    target = td3.critic_target(pair, THREES, SMALL, both(NOISE))
    for k in range(2):
        next_action = np.clip(np.tanh(mlp(pair.target_actor.network, k, THREE["next_state"])) + NOISE, -1, 1)
        next_value = np.minimum(*values(pair.target_critics, k, THREE["next_state"], next_action))
        by_hand = THREE["reward"] + 0.99 * (1 - THREE["terminal"]) * next_value
        close(target[k], by_hand)
        assert target[k, 1] == -2.0  # a terminal transition: the reward alone
    assert not target.requires_grad


def test_target_noise_is_scaled_and_clipped():
    normal = torch.tensor([0.0, 1.0, -2.0, 10.0, -10.0])
    torch.testing.assert_close(td3.smoothing_noise(normal, TD3()), torch.tensor([0.0, 0.2, -0.4, 0.5, -0.5]))


@pytest.mark.parametrize("loss", [td3.actor_loss, None], ids=["actor", "critics alone"])
def test_actor_and_targets_move_only_in_a_policy_step(pair, loss):
    for step in range(1, 7):
        before = {name: getattr(pair, name).network.flat.detach().clone() for name in PARTS.values()}
        td3.update(pair, THREES, TD3(hidden=(4,)), both(NOISE)[None], step % 3 == 0, loss)
        moved = {name for name, flat in before.items() if not torch.equal(getattr(pair, name).network.flat, flat)}
        delayed = {*before} - ({"actor"} if loss is None else set())
        assert moved == (delayed if step % 3 == 0 else {"critics"})
        online = pair.critics.network.flat if step % 3 == 0 else before["target_critics"]
        close(pair.target_critics.network.flat, 0.995 * before["target_critics"] + 0.005 * online)


def test_exploration_adds_noise_to_the_greedy_action_and_clips_the_sum(pair):
    settings, noise = TD3(exploration_noise=0.5), np.array([1.0, -4.0])
    greedy = td3.greedy(pair, THREES.state)[:, 0].numpy()
    for k in range(2):
        explore = td3.explorer(pair, k, settings)
        close(explore(THREE["state"][0], 0 * noise), greedy[k])
        close(explore(THREE["state"][0], noise), np.clip(greedy[k] + 0.5 * noise, -1, 1))
