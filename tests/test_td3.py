"""TD3 and TD3+BC against the published reference implementations, against hand arithmetic, and against themselves."""

import numpy as np
import pytest
import torch

from mbaug import engine, networks, td3
from mbaug.settings import TD3
from mbaug.transitions import Batch

LOSSES = {"td3": td3.actor_loss, "td3_bc": td3.actor_loss_bc}


def set_layer(network, number, position, weight, bias):
    """Writes one agent's layer as torch.nn.Linear stores it."""
    network.layers[number][0][position] = torch.as_tensor(weight).T
    network.layers[number][1][position, 0] = torch.as_tensor(bias)


def loaded(reference, name, agents, settings):
    """Returns the reference's agents at step 0 as one population in float64."""
    state, action = reference["state"].shape[1], reference["action"].shape[1]
    generators = [torch.Generator().manual_seed(k) for k in agents]
    agent = td3.create(state, action, settings, generators, "float64")
    places = {
        "actor": agent.actor, "critic": agent.critics, "actor_target": agent.target_actor, "critic_target": agent.target_critics
    }  # fmt: skip
    for kind, module in places.items():
        for k, number in enumerate(agents):
            for layer in range(6 if "critic" in kind else 3):
                key = f"{name}/agent{number}/step0/{kind}.l{layer + 1}"
                position = k + len(agents) * (layer // 3)
                set_layer(module.network, layer % 3, position, reference[f"{key}.weight"], reference[f"{key}.bias"])
    return agent


def largest_difference(reference, name, agents, agent, step):
    """Returns the largest absolute difference of any weight from the reference at `step`."""
    worst = 0.0
    places = {"actor": agent.actor, "critic": agent.critics, "actor_target": agent.target_actor, "critic_target": agent.target_critics}  # fmt: skip
    for kind, module in places.items():
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
