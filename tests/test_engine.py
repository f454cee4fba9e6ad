"""The engine against plain autograd, torch's own Adam and torch.nn.Linear."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mbaug import engine, networks, sac, td3, world_model
from mbaug.settings import SAC, TD3, WorldModel
from mbaug.transitions import Batch, Dataset, Standardiser

SIZES = (5, 8, 8, 3)
STATE, ACTION, BATCH = 4, 2, 16


def generators(population, start=0):
    """Returns one generator an agent, seeded with start, start + 1, ..."""
    return [torch.Generator().manual_seed(start + k) for k in range(population)]


def network(population, sizes=SIZES, precision="float64"):
    """Returns N perceptrons and a batch for each."""
    inputs = torch.randn(population, BATCH, sizes[0], generator=torch.Generator().manual_seed(9)).double()
    return networks.perceptron(sizes, generators(population), precision), inputs.to(engine.PARAMETER_DTYPE[precision])


# --- the perceptron -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [1, 2, 5])
@pytest.mark.parametrize("sizes", [SIZES, (5, 8, 1), (5, 3), (5, 1)], ids=str)
def test_outputs_and_gradients_equal_autograds(population, sizes):
    net, inputs = network(population, sizes)
    weights = torch.randn(population, BATCH, sizes[-1], dtype=torch.float64)
    results = []
    for function in (engine.perceptron, engine.plain_perceptron):
        at = inputs.clone().requires_grad_()
        outputs = function(at, net.flat, net.layers)
        gradients = torch.autograd.grad((outputs * weights).square().sum(), (at, net.flat))
        results.append((outputs, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_only_the_gradient_that_is_asked_for_is_computed():
    """With respect to the inputs alone (an actor's step through frozen critics) and to the parameters alone."""
    net, inputs = network(2)
    at = inputs.clone().requires_grad_()
    (frozen,) = torch.autograd.grad(net.frozen(at).sum(), at)
    at_too, flat = torch.autograd.grad(engine.plain_perceptron(at, net.flat, net.layers).sum(), (at, net.flat))
    torch.testing.assert_close(frozen, at_too, rtol=0, atol=1e-10)
    (alone,) = torch.autograd.grad(net(inputs).sum(), net.flat)
    torch.testing.assert_close(alone, flat, rtol=0, atol=1e-10)
    assert not net.frozen(inputs).requires_grad


def test_the_inputs_are_left_as_they_were():
    net, inputs = network(2)
    before = inputs.clone()
    net(inputs).sum().backward()
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


def batches(population, number=0):
    """Returns one random batch for each agent, in float64."""
    g = torch.Generator().manual_seed(100 + number)
    state, next_state = (torch.randn(population, BATCH, STATE, generator=g).double() for _ in range(2))
    action = (2 * torch.rand(population, BATCH, ACTION, generator=g) - 1).double()
    reward, terminal = torch.randn(population, BATCH, generator=g), torch.rand(population, BATCH, generator=g) < 0.2
    return Batch(state, action, reward.double(), next_state, terminal.double())


def trained(module, settings, population, updates=50, precision="float64", **loss):
    """Returns P agents after some updates on random batches."""
    agent = module.create(STATE, ACTION, settings, generators(population), precision)
    dtype = agent.actor.network.flat.dtype
    g = torch.Generator().manual_seed(7)
    for step in range(1, updates + 1):
        normal = torch.randn(module.NORMALS, population, BATCH, ACTION, generator=g).double()
        batch = Batch(*(part.to(dtype) for part in batches(population, step)))
        module.update(agent, batch, module.noise(normal, settings).to(dtype), settings, step, **loss)
    return agent


def parameters(agent):
    """Returns all parameters of a population in one vector, SAC's log alpha included."""
    networks = agent.actor.network.flat, agent.critics.network.flat, agent.target_critics.network.flat
    return torch.cat([*networks, getattr(agent, "log_temperature", torch.empty(0))]).detach()


CASES = {
    "td3": (td3, TD3(hidden=(8, 8)), {"loss": td3.actor_loss}),
    "td3_bc": (td3, TD3(hidden=(8, 8)), {"loss": td3.actor_loss_bc}),
    "sac": (sac, SAC(hidden=(8, 8)), {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("population", [1, 2, 5])
def test_fifty_updates_equal_autograds(monkeypatch, case, population):
    module, settings, loss = CASES[case]
    ours = trained(module, settings, population, **loss)
    monkeypatch.setattr(engine, "perceptron", engine.plain_perceptron)
    theirs = trained(module, settings, population, **loss)
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-10)
    fresh = module.create(STATE, ACTION, settings, generators(population), "float64")
    assert (parameters(ours) - parameters(fresh)).abs().mean() > 1e-3  # something was learned


LOSSES = {
    "td3.critic_loss": lambda agent, batch, noise: td3.critic_loss(
        agent.critics, batch, td3.critic_target(agent, batch, TD3(), noise)
    ),
    "td3.actor_loss": lambda agent, batch, noise: td3.actor_loss(agent.actor, agent.critics, batch, TD3()),
    "td3.actor_loss_bc": lambda agent, batch, noise: td3.actor_loss_bc(agent.actor, agent.critics, batch, TD3()),
    "sac.critic_loss": lambda agent, batch, noise: sac.critic_loss(
        agent.critics, batch, sac.critic_target(agent, batch, SAC(), noise)
    ),
    "sac.actor_loss": lambda agent, batch, noise: sac.actor_loss(
        agent.actor, agent.critics, batch, sac.temperature(agent), noise
    )[0],
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("population", [1, 2, 5])
def test_losses_and_their_gradients_equal_autograds(monkeypatch, name, population):
    module, settings = (td3, TD3(hidden=(8, 8))) if name.startswith("td3") else (sac, SAC(hidden=(8, 8)))
    agent = module.create(STATE, ACTION, settings, generators(population), "float64")
    flat = (agent.critics if "critic" in name else agent.actor).network.flat
    noise = torch.randn(population, BATCH, ACTION, dtype=torch.float64)
    results = []
    for function in (engine.perceptron, engine.plain_perceptron):
        monkeypatch.setattr(engine, "perceptron", function)
        losses = LOSSES[name](agent, batches(population), noise)
        assert losses.shape == (population,)
        results.append((losses, *torch.autograd.grad(losses.sum(), flat)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


WORLD = WorldModel(hidden=(8, 8), transition_hidden=(6,), latent_size=3, batch_size=BATCH, epochs=10)


def world_parts(model):
    """Returns the parameters of a world model, part by part."""
    return [part.flat for part in (model.encoder, model.decoder, model.transition)]


@pytest.mark.parametrize("population", [1, 2, 5])
def test_the_world_models_loss_and_its_gradients_equal_autograds(monkeypatch, population):
    standardiser = Standardiser.identity(population, STATE)
    model = world_model.create(WORLD, standardiser, ACTION, generators(population), "float64")
    batch, normal = batches(population), torch.randn(population, BATCH, WORLD.latent_size, dtype=torch.float64)
    results = []
    for function in (engine.perceptron, engine.plain_perceptron):
        monkeypatch.setattr(engine, "perceptron", function)
        losses = world_model.loss(model, batch.state, batch.action, batch.next_state, normal, WORLD, 3)
        assert losses.total.shape == (population,)
        results.append((*losses, *torch.autograd.grad(losses.total.sum(), world_parts(model))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_a_world_model_after_fifty_updates_equals_autograds(monkeypatch):
    """Ten epochs of five batches, and the deterministic model after as many: each agent is fitted alone, P is 1."""
    state, action, _, next_state, _ = (part.flatten(0, 1).float().numpy() for part in batches(5))
    rows, none = len(state), np.zeros(len(state), bool)
    drawn = Dataset("made", state, action, np.zeros(rows, np.float32), next_state, none, none, np.arange(rows))
    results = []
    for function in (engine.perceptron, engine.plain_perceptron):
        monkeypatch.setattr(engine, "perceptron", function)
        *_, (model, _) = world_model.epochs(WORLD, drawn, 0, "float64")
        control = world_model.fit_deterministic(WORLD, drawn, 0, "float64")
        results.append(torch.cat([*world_parts(model), control.network.flat]).detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


# --- precision ------------------------------------------------------------------------------------------------------------


def test_bfloat16_products_are_close_to_float32_where_they_pay():
    results = {}
    for precision in ("float32", "bfloat16"):
        net, inputs = network(2, (5, 64, 64, 3), precision)
        inputs = inputs.float().requires_grad_()
        outputs = net(inputs)
        assert outputs.dtype == net.flat.dtype == torch.float32
        results[precision] = outputs, *torch.autograd.grad(outputs.square().sum(), (inputs, net.flat))
    for low, full in zip(results["bfloat16"], results["float32"], strict=True):
        error = (low - full).norm() / full.norm()
        assert 0 < error < 0.03, "bfloat16 keeps 8 bits: a percent or two of a gradient is what it may cost"


def test_bfloat16_leaves_narrow_layers_alone():
    (net, inputs), (same, _) = network(2, precision="bfloat16"), network(2, precision="float32")
    assert torch.equal(net(inputs), same(inputs))


@pytest.fixture
def processor(monkeypatch):
    """Lets a test choose the processor's flags, and puts torch's global choice back."""
    before = torch.get_float32_matmul_precision()
    engine.warn_once.cache_clear()
    yield lambda *flags: monkeypatch.setattr(engine, "processor_flags", lambda: frozenset(flags))
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("flags", "choice"), [(["avx512f"], "medium"), (["avx512f", "amx_bf16"], "highest"), ([], "highest")], ids=str
)
def test_the_fast_road_for_float32_is_taken_only_where_it_keeps_24_bits(processor, flags, choice):
    processor(*flags)
    assert engine.prepare("float32") == "float32"
    assert torch.get_float32_matmul_precision() == choice


def test_bfloat16_without_its_products_falls_back_with_a_warning(processor):
    processor("avx512_bf16")
    assert engine.prepare("bfloat16") == "bfloat16"
    processor("avx2")
    with pytest.warns(RuntimeWarning, match="no bfloat16 products .* using float32"):
        assert engine.prepare("bfloat16") == "float32"
    assert engine.prepare("bfloat16") == "float32"  # what is said once is not said again


@pytest.fixture
def flushing():
    """A processor that can take numbers below 1e-38 for zero, and for now does not."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps numbers below 1e-38")
    torch.set_flush_denormal(False)


def test_what_is_too_small_for_a_float32_becomes_zero(flushing):
    small = torch.full((engine.LANES,), 1e-30)
    assert (small * 1e-9).all()
    engine.prepare("float32")
    assert not (small * 1e-9).any()


def test_no_weight_notices_that_the_moments_of_dead_units_become_zero(flushing):
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        agent = td3.create(STATE, ACTION, TD3(hidden=(8, 8)), generators(2), "float32")
        for network, moments in ((agent.critics.network, agent.critics_moments), (agent.actor.network, agent.actor_moments)):
            weight, bias = network.layers[0]
            bias[..., :4] -= 100  # units that are never active
            moments.first[: weight.numel() + bias.numel()] = 1e-36
        for step in range(1, 100):
            batch = Batch(*(part.float() for part in batches(2, step)))
            td3.update(agent, batch, torch.zeros(td3.NORMALS, 2, BATCH, ACTION), TD3(), step)
        first = agent.critics_moments.first
        below = (first != 0) & (first.abs() < torch.finfo(torch.float32).tiny)
        assert below.any() != flush
        results.append(parameters(agent))
    assert torch.equal(*results)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="unknown device 'cuda': allowed are 'cpu'"):
        engine.prepare("float32", "cuda")


@pytest.fixture
def threads(processor, monkeypatch):
    """A process of two threads: the list of those that torch was then told to use."""
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: [2, *chosen][-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for variable in engine.THREADS:
        monkeypatch.delenv(variable, raising=False)
    return chosen


def test_a_process_trains_with_one_thread(threads):
    """Nobody asked for two; so nobody needs to be told."""
    engine.prepare("float32")
    assert threads == [1]


@pytest.mark.parametrize("variable", engine.THREADS)
def test_who_asked_for_more_threads_is_told_once_what_they_cost(threads, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.warns(RuntimeWarning, match=f"{variable}=2 was set, but mbaug trains with one thread .* many times slower"):
        engine.prepare("float32")
    assert threads == [1]
    threads.clear()
    engine.prepare("float32")  # a second warning would be an error


def test_who_trains_with_two_threads_is_told_once_what_they_cost(threads):
    with pytest.warns(RuntimeWarning, match="torch uses 2 threads: beside any other load they can train many times slower"):
        engine.tell_of_threads()
    engine.tell_of_threads()
    engine.prepare("float32")
    engine.warn_once.cache_clear()
    engine.tell_of_threads()  # one thread costs nothing


# --- one buffer -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("population", [1, 2, 5])
def test_the_layers_fill_the_buffer_without_a_gap_or_an_overlap(population):
    flat = engine.allocate(population, SIZES, torch.float64, "cpu")
    count = population * sum((a + 1) * b for a, b in pairwise(SIZES))
    assert len(flat) % engine.LANES == 0
    assert count <= len(flat) < count + engine.LANES
    for layer in engine.layer_views(flat, population, SIZES):
        for tensor in layer:
            tensor += 1
    assert flat[:count].eq(1).all()
    assert flat[count:].eq(0).all()


def test_initialisation_is_that_of_torch_linear_from_each_networks_own_stream():
    together, _ = network(3)
    for k in range(3):
        (generator,) = generators(1, start=k)
        for weight, bias in together.layers:
            inputs, outputs = weight.shape[1:]
            bound = 1 / math.sqrt(inputs)
            expected = torch.empty(inputs, outputs, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
            assert torch.equal(weight[k], expected)
            expected = torch.empty(outputs, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
            assert torch.equal(bias[k, 0], expected)


def test_a_network_acts_alone_as_in_its_population():
    net, inputs = network(3)
    outputs = net(inputs).detach().numpy()
    for k in range(3):
        forward = engine.act_alone(net.layers, k)
        np.testing.assert_allclose([forward(row) for row in inputs[k].numpy()], outputs[k], rtol=0, atol=1e-12)
    net.flat.detach().mul_(2)
    assert not np.allclose(forward(inputs[2, 0].numpy()), outputs[2, 0])  # it shares the parameters' memory


# --- Adam -----------------------------------------------------------------------------------------------------------------


def test_adam_is_torchs():
    ours = torch.randn(engine.LANES, dtype=torch.float64)
    theirs = torch.nn.Parameter(ours.clone())
    moments, optimiser = engine.Adam.zeros(ours), torch.optim.Adam([theirs], lr=0.01)
    for _ in range(20):
        theirs.grad = torch.randn_like(ours)
        moments.step(ours, theirs.grad, 0.01)
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)
    assert moments.steps == 20


def test_no_agent_feels_another_in_the_sum_of_losses():
    """Scaling one agent's loss changes no other agent's step."""
    flats = []
    for scale in (1.0, 100.0):
        net, inputs = network(2)
        losses = net(inputs).square().mean(dim=(1, 2)) * torch.tensor([1.0, scale], dtype=torch.float64)
        engine.descend(losses, net.flat, engine.Adam.zeros(net.flat), 0.1)
        flats.append(net.layers)
    for (weight, bias), (same_weight, same_bias) in zip(*flats, strict=True):
        assert torch.equal(weight[0], same_weight[0])
        assert torch.equal(bias[0], same_bias[0])


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_padding_never_moves(precision):
    settings = replace(TD3(), hidden=(8, 8))
    agent = trained(td3, settings, 1, updates=4, precision=precision)
    for net in (agent.actor.network, agent.critics.network):
        used = sum(weight.numel() + bias.numel() for weight, bias in net.layers)
        assert used < len(net.flat)
        assert net.flat[used:].eq(0).all()


# --- memory ---------------------------------------------------------------------------------------------------------------


FREED = """
import resource, torch
from mbaug import engine

kept = engine.keep_memory()
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.zeros(3 * 2**18) for _ in range(10)]
    del arrays
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before if kept else 0)
"""


def test_memory_that_an_update_frees_is_kept_for_the_next():
    """Ten arrays of 3 MB are 7,300 pages, all of them faults in each round where freed memory goes back.

    In a process of its own, whose heap holds nothing else: in the first rounds it grows.
    """
    result = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    faults = [int(line) for line in result.stdout.split()]
    assert sum(faults[5:]) < 100, faults
