"""Graphs: what is replayed is what was written, to the last bit; what cannot be captured runs as it is written."""

from dataclasses import replace

import pytest
import torch

from mbaug import benchmark, engine, graphs, tasks, training
from mbaug.settings import Arm


def add_(first, step, total):
    """A period: adds to `total`, in place."""
    total += first * step


def period_of(total):
    """Returns `add_` to `total` as a function of a number and a tensor."""
    return lambda first, step: add_(first, step, total)


def learned(algorithm, population, precision):
    """Returns agents after 21 updates at small sizes, all their tensors by name."""
    module, settings, loss = benchmark.ALGORITHMS[algorithm]
    arm = Arm(module, replace(settings, hidden=(64, 64), batch_size=32), precision=precision)
    learner, dtype = training.learner(arm, tasks.find("hopper"), range(population)), engine.PARAMETER_DTYPE[precision]
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(population, 500, 28, generator=generator, dtype=dtype)
    update = training.updater(learner, loss)
    for _ in range(3):
        _, batches, noise = training.block(learner, table, 7)
        update(batches, noise.to(dtype))
    return training.memory(learner)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("population", [1, 2, 5])
@pytest.mark.parametrize("algorithm", benchmark.ALGORITHMS)
def test_replayed_updates_are_the_written_ones_to_the_last_bit(monkeypatch, algorithm, population, precision):
    engine.warn_once.cache_clear()  # a capture that fails would warn, which is an error here
    replayed = learned(algorithm, population, precision)
    monkeypatch.setattr(graphs, "captured", lambda period, *_: period)
    written = learned(algorithm, population, precision)
    for name, tensor in written.items():
        assert torch.equal(replayed[name], tensor), name


def test_a_captured_period_reads_its_fixed_buffers_and_its_capture_changes_nothing():
    total, steps = torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])]
    play = graphs.captured(period_of(total), 2, [steps[0]], [total])
    assert total.tolist() == [0, 0]
    for step in steps:
        play(7, step)  # a graph knows the number that it was captured with, 2
    assert total.tolist() == [22, 44]
    assert steps[0].tolist() == [1, 2]


def test_a_replay_needs_neither_python_nor_autograd_nor_memory():
    weight, inputs, ones = torch.ones(3, requires_grad=True), torch.arange(3.0), torch.ones(3)
    called, found = [], torch.zeros(3)

    def call():
        called.append(torch.is_grad_enabled())
        (gradient,) = torch.autograd.grad((weight * inputs).exp(), weight, ones)
        found.copy_(gradient)

    replay = graphs.cpu_graph(call)
    found.zero_()
    with torch.profiler.profile(profile_memory=True) as profile:
        replay()
    torch.testing.assert_close(found, inputs * inputs.exp())
    assert called == [True]
    names = {event.key for event in profile.key_averages()}
    assert "aten::mul" in names
    assert not {name for name in names if "Backward" in name or name.startswith("aten::empty")}


def test_memory_is_used_again_once_nothing_reads_it():
    """Ten results one after the other need the memory of two; one that is read at the end keeps its own."""
    inputs, output = torch.ones(1000), torch.zeros(1000)

    def call():
        value = first = inputs + 1
        for _ in range(9):
            value = value * 2
        output.copy_(value + first)

    made = []
    original = torch.UntypedStorage

    class Counted(original):
        def __new__(cls, *args, **kwargs):
            made.append(args)
            return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "UntypedStorage", Counted)
        replay = graphs.cpu_graph(call)
    output.zero_()
    replay()
    assert output.eq(2 * 2**9 + 2).all()
    assert made == [(4000,)] * 3


def test_an_operation_without_a_variant_that_writes_elsewhere_is_copied():
    inputs, output = torch.randn(4, 3), torch.zeros(3)

    def call():
        values, _ = torch.sort(inputs, dim=0)
        output.copy_(values[0] + torch.ones_like(values[1]))

    replay = graphs.cpu_graph(call)
    inputs.copy_(torch.arange(12.0).view(4, 3))
    replay()
    assert output.tolist() == [1, 2, 3]


def without_capture(period, state, match):
    """Asserts that `period` is not captured, that a warning says why, and that the state is as it was."""
    engine.warn_once.cache_clear()
    before = state.clone()
    with pytest.warns(RuntimeWarning, match=rf"could not be captured as a graph \({match}"):
        assert graphs.captured(period, 1, [torch.ones(2)], [state]) is period
    assert torch.equal(state, before)


def test_a_period_that_needs_a_number_on_the_way_runs_as_it_is_written():
    total = torch.zeros(2)

    def period(first, step):
        total.add_(step * float(step.sum()))

    without_capture(period, total, r"aten\._local_scalar_dense\.default needs a number on the way")


def test_a_replay_that_gives_other_numbers_is_not_used():
    """A period of chance: its replay draws again."""
    total = torch.zeros(2)
    without_capture(lambda first, step: total.add_(torch.randn(2)), total, "its replay gives other numbers")


def test_a_capture_that_fails_leaves_the_state(monkeypatch):
    def capture(call):
        call()
        raise RuntimeError("operation not permitted")

    monkeypatch.setitem(graphs.CAPTURES, "cpu", capture)
    total = torch.zeros(2)
    without_capture(period_of(total), total, "operation not permitted")


def test_agents_that_diverged_are_captured_too():
    total = torch.tensor([torch.nan, 1.0])
    engine.warn_once.cache_clear()
    play = graphs.captured(period_of(total), 1, [torch.ones(2)], [total])
    play(1, torch.ones(2))
    assert total[0].isnan()
    assert total[1] == 2


def test_on_a_device_without_a_capture_a_period_runs_as_it_is_written():
    period = period_of(torch.zeros(2, device="meta"))
    assert graphs.captured(period, 1, [torch.ones(2, device="meta")], []) is period
