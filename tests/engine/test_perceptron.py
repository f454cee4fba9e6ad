"""The fast perceptron equals the plain one, which uses torch's autograd."""

from dataclasses import fields, replace

import pytest
import torch
from made import BATCH, DOUBLE, generators, learned
from systems import DRAWN, SHORT, parameters

from mbaug.engine import perceptron
from mbaug.method import networks, rlpd, td3, world_model
from mbaug.method.iql import IQL
from mbaug.method.networks import Arithmetic
from mbaug.method.sac import SAC
from mbaug.method.td3 import TD3

FAST = Arithmetic(perceptron.forward, precision="float64")
SIZES = (5, 8, 8, 3)


def network(population=2, sizes=SIZES, precision="float64", arithmetic=FAST, normalised=False):
    """Returns a population of perceptrons and a batch of inputs for each."""
    inputs = torch.randn(population, BATCH, sizes[0], generator=torch.Generator().manual_seed(9))
    net = networks.perceptron(sizes, generators(*range(population)), replace(arithmetic, precision=precision))
    return replace(net, normalised=normalised), inputs.to(net.flat.dtype)


def close(ours, theirs, atol=1e-10):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("population", [1, 2, 5])
@pytest.mark.parametrize("sizes", [SIZES, (5, 8, 1), (5, 3), (5, 1)], ids=str)
@pytest.mark.parametrize("normalised", [False, True], ids=["", "LayerNorm"])
def test_outputs_and_gradients_equal_autograds(population, sizes, normalised):
    """Compares both gradients together and each alone, as when an actor learns through frozen critics.

    A gradient that nobody needs is not computed.
    """
    results = []
    for arithmetic in (FAST, DOUBLE):
        net, inputs = network(population, sizes, arithmetic=arithmetic, normalised=normalised)
        frozen = replace(net, flat=net.flat.detach())
        leaf, before = inputs.clone().requires_grad_(), inputs.clone()
        both = torch.autograd.grad(net(leaf).pow(3).sum(), (leaf, net.flat))
        (through,) = torch.autograd.grad(frozen(leaf).pow(3).sum(), leaf)
        (alone,) = torch.autograd.grad(net(inputs).pow(3).sum(), net.flat)
        results.append((net(inputs), *both, through, alone))
        assert torch.equal(inputs, before)
        assert not frozen(inputs).requires_grad
    close(*results)
    close(results[0][1:3], results[0][3:])


CASES = {
    "td3": ("td3", TD3(hidden=(8, 8)), {"loss": td3.actor_loss}),
    "td3_bc": ("td3", TD3(hidden=(8, 8)), {"loss": td3.actor_loss_bc}),
    "sac": ("sac", SAC(hidden=(8, 8)), {}),
    "layernorm": ("layernorm", TD3(hidden=(8, 8)), {"loss": td3.actor_loss_bc}),
    "rlpd": ("rlpd", SAC(hidden=(8, 8)), {"loss": rlpd.actor_loss}),
    "iql": ("iql", IQL(hidden=(8, 8)), {}),
}


def flats(agent):
    """Returns all parameters of a population by part."""
    parts = [getattr(agent, part.name) for part in fields(agent) if part.name != "moments"]
    return [(part if isinstance(part, torch.Tensor) else part.network.flat).detach() for part in parts]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("population", [1, 5])
def test_fifty_updates_equal_autograds(case, population):
    """Compares every network, target, temperature and spread in float64."""
    name, settings, loss = CASES[case]
    ours, theirs = (flats(learned(name, settings, population, arithmetic=each, **loss)) for each in (FAST, DOUBLE))
    close(ours, theirs)
    assert (ours[0] - flats(learned(name, settings, population, updates=0))[0]).abs().mean() > 1e-3, "the actor must learn"


def test_world_models_after_two_epochs_equal_autograds():
    results = []
    for arithmetic in (FAST, DOUBLE):
        *_, (model, _) = world_model.epochs(SHORT, DRAWN, 0, arithmetic)
        control = world_model.fit_deterministic(SHORT, DRAWN, 0, arithmetic)
        results.append((parameters(model), parameters(control)))
    close(*results)


@pytest.mark.parametrize("normalised", [False, True], ids=["", "LayerNorm"])
def test_wide_products_in_bfloat16_are_close_to_float32_and_narrow_ones_stay_float32(normalised):
    results = {}
    for precision in ("float32", "bfloat16"):
        net, inputs = network(2, (5, 64, 64, 3), precision, normalised=normalised)
        inputs.requires_grad_()
        outputs = net(inputs)
        assert outputs.dtype == net.flat.dtype == torch.float32
        results[precision] = outputs, *torch.autograd.grad(outputs.square().sum(), (inputs, net.flat))
    for low, full in zip(results["bfloat16"], results["float32"], strict=True):
        error = (low - full).norm() / full.norm()
        assert 0 < error < 0.03, "bfloat16 keeps 8 bits, so a gradient may be wrong by one or two percent"
    (narrow, inputs), (same, _) = network(precision="bfloat16"), network(precision="float32")
    assert torch.equal(narrow(inputs), same(inputs)), "narrow layers must stay in float32"
