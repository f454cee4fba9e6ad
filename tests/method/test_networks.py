"""Networks: a population lies in one buffer, and each network starts from its own stream.

What they compute is tested in test_td3 and test_sac.
"""

import math
from itertools import pairwise

import pytest
import torch
from made import generators, learned

from mbaug.method.arms import ALGORITHMS
from mbaug.method.networks import LANES, Arithmetic, numpy_forward, perceptron
from mbaug.method.settings import PRECISIONS
from mbaug.method.td3 import TD3

SIZES = (5, 8, 8, 3)
SEEDS = (0, 1, 2)


def test_each_network_is_initialised_as_torch_linear_is_from_its_own_stream():
    together = perceptron(SIZES, generators(*SEEDS), Arithmetic(precision="float64"))
    for k, generator in enumerate(generators(*SEEDS)):
        for weight, bias in together.layers:
            bound = 1 / math.sqrt(weight.shape[1])
            for part in (weight[k], bias[k, 0]):
                assert torch.equal(part, torch.empty_like(part).uniform_(-bound, bound, generator=generator))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_two_critics_of_an_agent_start_with_different_parameters(algorithm):
    """Equal ones would stay equal, and their minimum would be either."""
    agent = algorithm.create(3, 2, algorithm.settings(hidden=(4,)), generators(*SEEDS))
    for weight, bias in agent.critics.network.layers:
        for first, second in (weight.split(len(SEEDS)), bias.split(len(SEEDS))):
            assert (first != second).any(dim=(1, 2)).all()


@pytest.mark.parametrize(("agents", "rows"), [(1, 2), (2, 1), (2, 4)])
def test_critics_refuse_rows_of_another_number_of_agents(agents, rows):
    """They would take one agent's twins for two agents, or the critics of two agents for four of one."""
    critics = ALGORITHMS["td3"].create(3, 2, TD3(hidden=(4,)), generators(*range(agents))).critics
    with pytest.raises(ValueError, match=f"^rows of {rows} agents were given, but these are the critics of {agents}$"):
        critics(torch.zeros(rows, 5, 3), torch.zeros(rows, 5, 2))


def test_layer_norm_is_not_computed_in_numpy():
    """Its result would be that of a network without LayerNorm."""
    critics = ALGORITHMS["layernorm"].create(3, 2, TD3(hidden=(4,)), generators(*SEEDS)).critics
    with pytest.raises(ValueError, match=r"^the network has LayerNorm, but only networks without it are computed in NumPy$"):
        numpy_forward(critics.network, 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_layers_fill_the_buffer_without_a_gap_and_its_padding_stays_zero(precision):
    arithmetic = Arithmetic(precision=precision)
    agent = learned("td3", TD3(hidden=(8, 8)), 1, updates=4, arithmetic=arithmetic)
    for net in (perceptron(SIZES, generators(*SEEDS), arithmetic), agent.actor.network, agent.critics.network):
        count = net.number * sum((a + 1) * b for a, b in pairwise(net.sizes))
        assert len(net.flat) % LANES == 0
        assert count < len(net.flat) < count + LANES
        assert net.flat[count:].eq(0).all()
        assert net.flat.dtype == (torch.float64 if precision == "float64" else torch.float32)
        for tensor in (tensor for layer in net.layers for tensor in layer):
            tensor.fill_(7)
        assert net.flat[:count].eq(7).all()
