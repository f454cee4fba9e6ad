"""Graphs: a replay equals the code as written, to the last bit; code that cannot be captured runs as written."""

from dataclasses import replace

import pytest
import torch

from mbaug import engine, tasks
from mbaug.engine import graphs, perceptron, process
from mbaug.method import training
from mbaug.method.arms import Arm
from mbaug.method.iql import IQL
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.sac import SAC
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch

SMALL = {"hidden": (64, 64), "batch_size": 32}
CASES = {"sac": SAC(**SMALL), "iql": IQL(**SMALL), "layernorm": TD3(**SMALL)} | {
    f"td3 {delay}": TD3(**SMALL, policy_delay=delay) for delay in (1, 2, 3)
}


def period_of(total):
    """Returns a function that adds a tensor to `total`, in place."""
    return lambda step: total.add_(step)


def learned(case, population, precision, captured, device="cpu"):
    """Returns a learner after 21 updates in blocks of 7, which begin at different points within a policy delay.

    All devices learn from the same batches and noise.
    """
    arm, arithmetic = Arm(case.split()[0], CASES[case], precision=precision), Arithmetic(perceptron.forward, captured)
    source = training.learner(arm, tasks.find("hopper"), range(population))
    learner = training.learner(arm, source.task, source.seeds, arithmetic=replace(arithmetic, device=device))
    dtype = learner.arithmetic.dtype
    table = torch.randn(population, 500, 28, generator=torch.Generator().manual_seed(0), dtype=dtype)
    loss = learner.algorithm.offline_loss or learner.algorithm.online_loss
    update = training.updater(learner, loss)
    for _ in range(3):
        _, batches, noise = training.block(source, table, 7)
        update(Batch(*(part.to(device) for part in batches)), noise.to(device, dtype))
    return learner


@pytest.mark.parametrize("device", engine.DEVICES if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize(("precision", "population"), [("float32", 1), ("bfloat16", 5)])
@pytest.mark.parametrize("case", CASES)
def test_replayed_updates_equal_the_code_as_written_to_the_last_bit(case, population, precision, device):
    process.warn_once.cache_clear()  # a capture that fails would warn, which is an error here
    replayed, written = (learned(case, population, precision, how, device) for how in (graphs.captured, PLAIN.captured))
    for name, tensor in training.memory(written).items():
        assert torch.equal(training.memory(replayed)[name], tensor), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_learns_what_the_cpu_learns(case):
    """In float64, where the order of a sum hardly changes its result."""
    on_gpu, on_cpu = (training.memory(learned(case, 2, "float64", graphs.captured, device)) for device in ("cuda", "cpu"))
    on_gpu = {name: tensor.cpu() for name, tensor in on_gpu.items()}
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-8, atol=1e-10)


def test_a_capture_is_made_once_for_each_kind_of_stretch():
    made = []
    learned("td3 3", 1, "float32", lambda period, *_: made.append(period) or period)
    # Cut after every third update, the blocks of 7 are 3+3+1, 2+3+2 and 1+3+3: whole periods, two first parts, two last parts.
    assert len(made) == 5


def test_a_replay_reads_new_inputs_through_fixed_buffers_and_the_capture_changes_nothing():
    total, steps = torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    play = graphs.captured(period_of(total), [steps[0]], [total])
    assert total.tolist() == [0, 0]
    for step in steps:
        play(step)
    assert total.tolist() == [11, 22]
    assert steps[0].tolist() == [1, 2]


def test_a_replay_needs_neither_python_nor_autograd_nor_memory():
    weight, inputs, found, called = torch.ones(3, requires_grad=True), torch.arange(3.0), torch.zeros(3), []

    def call():
        called.append(torch.is_grad_enabled())
        found.copy_(*torch.autograd.grad((weight * inputs).exp(), weight, torch.ones(3)))

    replay = graphs.cpu_graph(call)
    found.zero_()
    with torch.profiler.profile(profile_memory=True) as profile:
        replay()
    torch.testing.assert_close(found, inputs * inputs.exp())
    assert called == [True]
    names = {event.key for event in profile.key_averages()}
    assert "aten::mul" in names
    assert not {name for name in names if "Backward" in name or name.startswith("aten::empty")}


@pytest.mark.parametrize("changed", [False, True])
def test_a_replay_makes_a_constant_only_if_it_is_changed_in_place(changed):
    inputs, found = torch.arange(3.0), torch.zeros(3)

    def call():
        two = inputs.new_full((3,), 2.0)
        found.copy_(two.mul_(inputs) if changed else two * inputs)

    replay = graphs.cpu_graph(call)
    with torch.profiler.profile() as profile:
        for _ in range(2):
            replay()
    assert found.tolist() == [0, 2, 4]
    assert ("aten::new_full" in {event.key for event in profile.key_averages()}) == changed


def fails(call):
    call()
    raise RuntimeError("operation not permitted")


@pytest.mark.parametrize(
    ("period", "capture", "reason"),
    [
        (
            lambda total, step: total.add_(step * float(step.sum())),
            None,
            r"aten\._local_scalar_dense\.default returns a Python number, which every replay would repeat",
        ),
        (lambda total, step: total.add_(torch.randn(2)), None, "the replay gives different numbers"),
        (lambda total, step: total.add_(step), fails, "operation not permitted"),
        (lambda total, step: total.add_(step.nonzero().sum()), None, r"the shape of what aten\.nonzero\.default returns depends"),
        (lambda total, step: total.add_(step[step > 0].sum()), None, r"the shape of what aten\.\w+\.\w+ returns depends"),
    ],
    ids=["needs a number on the way", "draws by chance", "fails halfway", "finds rows", "masks rows"],
)
def test_code_that_cannot_be_captured_runs_as_written_and_its_state_is_unchanged(period, capture, reason, monkeypatch):
    if capture is not None:
        monkeypatch.setitem(graphs.CAPTURES, "cpu", capture)
    process.warn_once.cache_clear()
    total = torch.tensor([3.0, 4.0])
    written = lambda step: period(total, step)  # noqa: E731
    with pytest.warns(RuntimeWarning, match=rf"could not be captured as a graph \({reason}"):
        assert graphs.captured(written, [torch.ones(2)], [total]) is written
    assert total.tolist() == [3, 4]


def test_agents_that_diverged_are_captured_too():
    total = torch.tensor([torch.nan, 1.0])
    graphs.captured(period_of(total), [torch.ones(2)], [total])(torch.ones(2))
    assert total[0].isnan()
    assert total[1] == 2


def test_a_period_runs_as_written_on_a_device_without_graphs():
    period = period_of(torch.zeros(2, device="meta"))
    assert graphs.captured(period, [torch.ones(2, device="meta")], []) is period
