"""The networks of the paper: what an agent's network gives does not depend on who stands beside it."""

import pytest
import torch
from torch.nn.functional import linear

from mbaug import engine, networks

STATE, ACTION, HIDDEN = 4, 2, (8, 8)


def generators(*seeds):
    """Returns one generator an agent."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def by_hand(network, k, inputs):
    """Returns the outputs of the k-th perceptron as torch.nn.functional computes them."""
    for number, (weight, bias) in enumerate(network.layers, start=1):
        inputs = linear(inputs, weight[k].T, bias[k, 0])
        inputs = inputs.relu() if number < len(network.layers) else inputs
    return inputs


def inputs(population=3, size=STATE):
    """Returns a batch for each agent."""
    return torch.randn(population, 5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_an_actor_is_tanh_of_its_perceptron():
    actor = networks.actor(STATE, ACTION, HIDDEN, generators(0, 1, 2), "float64")
    state = inputs()
    assert actor.network.sizes == (STATE, *HIDDEN, ACTION)
    for k in range(3):
        torch.testing.assert_close(actor(state)[k], by_hand(actor.network, k, state[k]).tanh(), rtol=0, atol=1e-12)


def test_the_first_critics_of_all_agents_come_before_the_second():
    critics = networks.critics(STATE, ACTION, HIDDEN, generators(0, 1, 2), "float64")
    state, action = inputs(), inputs(size=ACTION)
    value = critics(state, action)
    assert value.shape == (2, 3, 5)
    for twin in range(2):
        for k in range(3):
            expected = by_hand(critics.network, 3 * twin + k, torch.cat([state[k], action[k]], dim=-1))[:, 0]
            torch.testing.assert_close(value[twin, k], expected, rtol=0, atol=1e-12)
    assert not torch.equal(value[0], value[1])
    torch.testing.assert_close(critics.first(state, action)[0], value[0], rtol=0, atol=1e-12)


def test_a_gaussian_actor_clamps_its_log_std():
    actor = networks.gaussian_actor(STATE, ACTION, HIDDEN, generators(0, 1, 2), (-0.05, 0.02), "float64")
    mean, log_std = actor(inputs())
    outputs = by_hand(actor.network, 1, inputs()[1])
    torch.testing.assert_close(mean[1], outputs[:, :ACTION], rtol=0, atol=1e-12)
    torch.testing.assert_close(log_std[1], outputs[:, ACTION:].clamp(-0.05, 0.02), rtol=0, atol=1e-12)
    assert log_std.min() == -0.05
    assert log_std.max() == 0.02


MAKERS = {
    "actor": lambda g: networks.actor(STATE, ACTION, HIDDEN, g),
    "gaussian_actor": lambda g: networks.gaussian_actor(STATE, ACTION, HIDDEN, g, (-20.0, 2.0)),
    "critics": lambda g: networks.critics(STATE, ACTION, HIDDEN, g),
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_agents_network_starts_alike_alone_and_among_neighbours(name):
    alone, among = MAKERS[name](generators(7)).network, MAKERS[name](generators(3, 7, 5)).network
    for (weight, bias), (all_weights, all_biases) in zip(alone.layers, among.layers, strict=True):
        assert torch.equal(weight, all_weights[1::3])  # of critics, both
        assert torch.equal(bias, all_biases[1::3])
        assert not torch.equal(all_weights[0], all_weights[1])


def test_a_copy_has_its_own_memory_and_a_frozen_one_shares_it():
    network = networks.actor(STATE, ACTION, HIDDEN, generators(0, 1)).network
    copy, frozen, first = network.copy(), network.frozen, network.first(1)
    assert torch.equal(copy.flat, network.flat)
    with torch.no_grad():
        network.flat.add_(1)
    assert torch.equal(frozen.flat, network.flat)
    assert torch.equal(first.layers[0][0][0], network.layers[0][0][0])
    torch.testing.assert_close(copy.flat + 1, network.flat.detach())
    assert network.flat.requires_grad
    assert not any(held.flat.requires_grad for held in (copy, frozen, first))


def test_no_gradient_reaches_frozen_critics_but_one_reaches_the_action():
    critics = networks.critics(STATE, ACTION, HIDDEN, generators(0, 1, 2), "float64")
    state, action = inputs(), inputs(size=ACTION).requires_grad_()
    for held in (critics.frozen, critics.first):
        value = held(state, action).sum()
        (gradient,) = torch.autograd.grad(value, action, retain_graph=True)
        assert gradient.abs().sum() > 0
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(value, critics.network.flat)


@pytest.mark.parametrize(("precision", "dtype"), engine.PARAMETER_DTYPE.items())
def test_parameters_have_the_precisions_dtype(precision, dtype):
    network = networks.perceptron((STATE, 64, 64, 1), generators(0), precision)
    assert network.flat.dtype == dtype
    assert network.product_dtype == (torch.bfloat16 if precision == "bfloat16" else None)
