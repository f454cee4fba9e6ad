"""What `engine.prepare` sets in a process before it trains, and its warnings about settings that cost time."""

import pytest
import torch
from made import ACTION, BATCH, STATE, generators

from mbaug import engine
from mbaug.engine import graphs, process
from mbaug.method import td3
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch


@pytest.fixture
def processor(monkeypatch):
    """A function that sets the processor's flags, in a process that has not warned yet."""
    process.warn_once.cache_clear()
    return lambda *flags: monkeypatch.setattr(process, "processor_flags", lambda: frozenset(flags))


@pytest.mark.parametrize(
    ("flags", "choice"), [(["avx512f"], "medium"), (["avx512f", "amx_bf16"], "highest"), ([], "highest")], ids=str
)
def test_fast_float32_products_are_allowed_only_where_they_keep_24_bits(processor, flags, choice):
    processor(*flags)
    engine.prepare("float32")
    assert torch.get_float32_matmul_precision() == choice


def test_a_gpu_never_trains_in_tf32(processor, monkeypatch):
    """Torch's "medium" precision means TF32 on a GPU. A process that was prepared for the CPU first may have chosen it."""
    processor("avx512f")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine.prepare("float32")
    engine.prepare("float32", "cuda")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("hardware", [True, False])
def test_a_gpu_has_bfloat16_only_in_hardware(monkeypatch, hardware):
    """Torch emulates it on older GPUs, where it is many times slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or hardware)
    assert engine.has_bfloat16("cuda") == hardware


def test_bfloat16_is_refused_on_a_processor_without_it(processor):
    processor("avx512_bf16")
    engine.prepare("bfloat16")
    processor("avx2")
    with pytest.raises(ValueError, match=r"^precision is 'bfloat16', but the device 'cpu' has no bfloat16 products in"):
        engine.prepare("bfloat16")


def test_an_unavailable_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="the device is 'cuda', but torch finds no NVIDIA GPU here"):
        engine.prepare("float32", "cuda")


def test_flushing_numbers_below_1e_38_to_zero_changes_no_weight():
    """Moments of dead units fall below 1e-38. On a processor that cannot flush them there is nothing to test."""
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(False)
        if flush:
            engine.prepare("float32")
        agent, g = td3.create(STATE, ACTION, TD3(hidden=(8, 8)), generators(0, 1)), torch.Generator().manual_seed(0)
        for network, moments in (
            (agent.critics.network, agent.moments["critics"]),
            (agent.actor.network, agent.moments["actor"]),
        ):
            weight, bias = network.layers[0]
            bias[..., :4] -= 100  # units that are never active
            moments.first[: weight.numel() + bias.numel()] = 1e-36
        for step in range(1, 100):
            shapes = (STATE,), (ACTION,), (), (STATE,), ()
            batch = Batch(*(torch.rand((2, BATCH, *shape), generator=g) for shape in shapes))
            td3.update(agent, batch, TD3(), torch.zeros(1, 2, BATCH, ACTION), step % 2 == 0)
        first = agent.moments["critics"].first
        below = (first != 0) & (first.abs() < torch.finfo(torch.float32).tiny)
        assert below.any() != flush or not torch.set_flush_denormal(True)
        results.append(torch.cat([agent.actor.network.flat, agent.critics.network.flat]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.fixture
def threads(processor, monkeypatch):
    """The numbers of threads that torch is set to, one after the other, in a process that begins with two."""
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: [2, *chosen][-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for variable in process.THREADS:
        monkeypatch.delenv(variable, raising=False)
    return chosen


def test_a_request_for_threads_gets_a_warning_even_if_torch_heeds_another_variable(processor, monkeypatch):
    """The commands give each unset variable the value 1, and with MKL_NUM_THREADS=1 torch uses one thread."""
    processor()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.warns(RuntimeWarning, match="^OMP_NUM_THREADS=2 was set, but mbaug trains with one thread"):
        engine.prepare()


@pytest.mark.parametrize("variable", process.THREADS)
def test_a_request_for_more_threads_gets_one_warning_that_names_their_cost(threads, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    with pytest.warns(RuntimeWarning, match=f"{variable}=2 was set, but mbaug trains with one thread .* many times slower"):
        engine.prepare("float32")
    assert threads == [1]
    threads.clear()
    engine.prepare("float32")  # a second warning would be an error
    monkeypatch.delenv(variable)
    threads.clear()
    process.warn_once.cache_clear()
    engine.prepare("float32")  # nobody asked for more threads, so a warning would be an error
    assert threads == [1]


def test_training_with_two_threads_gives_one_warning_that_names_their_cost(threads):
    train = lambda: graphs.captured(lambda step: step.add_(1), [torch.ones(2)], [])  # noqa: E731
    with pytest.warns(
        RuntimeWarning, match="torch uses 2 threads, which can train many times slower than one beside any other load"
    ):
        train()
    train()
    engine.prepare("float32")
    process.warn_once.cache_clear()
    train()  # with one thread a warning would be an error
