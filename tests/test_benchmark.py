"""The benchmark: its count of operations is torch's, its sections measure what they say, and what is kept is kept whole."""

import json
import math
import mmap
import os
import pstats
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import no_space
from torch.utils.flop_counter import FlopCounterMode

from mbaug import benchmark, engine, files, recording, tasks
from mbaug.__main__ import main as command
from mbaug.benchmark import Effort
from mbaug.settings import TD3

SHORT = Effort(
    0.01, 1, populations=(1, 2), growth=(1, 4), rows=(1_000, 500_000)
)  # tests ask what is measured, not how fast it is
TELLS_PEAK = pytest.mark.skipif(math.isnan(benchmark.peak_megabytes()), reason="this system does not tell the peak of a process")


@pytest.fixture(autouse=True)
def one_precision(monkeypatch):
    """A processor with float32 products alone, whatever this one has."""
    monkeypatch.setattr(engine, "processor_flags", lambda: frozenset(["avx2"]))


# --- what is counted and timed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", tasks.TASKS)
def test_operations_are_those_that_torch_counts(monkeypatch, task):
    """In the plain statement of the networks: the engine makes sums of a few of these products."""
    monkeypatch.setattr(engine, "perceptron", engine.plain_perceptron)
    *_, call = benchmark.learning("TD3+BC", task, 1, "float32")
    call()  # in the first one a stretch is captured, and so done several times
    with FlopCounterMode(display=False) as counter:
        call()
    sizes = tasks.find(task).state_size, tasks.find(task).action_size
    assert counter.get_total_flops() / benchmark.UPDATES == benchmark.operations(*sizes, TD3())


def test_an_update_on_hopper_is_by_hand():
    """Per row: forwards of one actor and four critics, backwards of two critics; every other time the actor's part."""
    actor, critic = 11 * 256 + 256 * 256 + 256 * 3, 14 * 256 + 256 * 256 + 256
    backward = critic + 256 * 256 + 256
    actors_part = actor + critic + critic + actor + 256 * 256 + 256 * 3
    by_hand = 2 * 256 * (actor + 4 * critic + 2 * backward + actors_part / 2)
    assert benchmark.operations(11, 3, TD3()) == by_hand
    assert by_hand / 1e9 == pytest.approx(0.404, abs=5e-4)


def test_a_rate_is_that_of_the_fastest_call_and_the_first_one_warms_up(monkeypatch):
    clock, calls = [0.0], []

    def call():
        calls.append(clock[0])
        clock[0] += [0.001, 0.02, 0.002, 0.02][min(len(calls), 4) - 1]

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert benchmark.rate(call, 0.06) == pytest.approx(500)  # the call of 2 ms; the one of 1 ms came first
    assert len(calls) == 5


def count_one_call(monkeypatch):
    """Lets each rate be that of a call of one second; returns a counter of what the calls compute."""
    counter = FlopCounterMode(display=False)

    def rate(call, *_):
        with counter:
            call()
        return 1.0

    monkeypatch.setattr(benchmark, "rate", rate)
    return counter


def test_a_product_rate_is_of_the_operations_that_torch_counts(monkeypatch):
    counter = count_one_call(monkeypatch)
    assert benchmark.product_rate("float32", 11, 256, batch=64) == counter.get_total_flops() > 0


@pytest.mark.parametrize("population", [1, 3])
def test_the_updates_of_all_agents_count(monkeypatch, population):
    count_one_call(monkeypatch)
    found = benchmark.updates_per_second("TD3", "hopper", population, "float32", 1.0, "cpu")
    assert found == benchmark.UPDATES * population


@pytest.mark.parametrize("algorithm", benchmark.ALGORITHMS)
def test_what_is_timed_learns_as_training_does(algorithm):
    learner, table, call = benchmark.learning(algorithm, "hopper", 2, "float32", rows=50)
    before = learner.agent.critics.network.flat.clone()
    call()
    assert learner.gradient_steps == benchmark.UPDATES
    assert not torch.equal(before, learner.agent.critics.network.flat)
    assert table.shape == (2, 50, 28)


def test_only_the_precisions_of_the_processor_are_measured(monkeypatch):
    assert benchmark.precisions() == ["float32"]
    assert [row["precision"] for row in benchmark.products(SHORT)] == ["float32"] * 4
    monkeypatch.setattr(engine, "processor_flags", lambda: frozenset(["avx512_bf16"]))
    assert benchmark.precisions() == ["float32", "bfloat16"]
    low = [row for row in benchmark.products(SHORT) if row["precision"] == "bfloat16"]
    assert [(row["inputs"], row["outputs"]) for row in low] == [(256, 256)]


def test_updates_have_a_row_for_each_size_and_population_and_their_share_of_the_limit(monkeypatch):
    monkeypatch.setattr(benchmark, "product_rate", lambda precision, seconds, device: 1e11)
    rows = list(benchmark.updates(SHORT))
    assert [(row["task"], row["population"]) for row in rows] == [(t, p) for t in benchmark.ALIKE.values() for p in (1, 2)]
    assert all(row["updates_per_second"] > 0 for row in rows)
    hopper = rows[0]["updates_per_second"] * benchmark.operations(11, 3, TD3()) / 1e11
    assert rows[0]["fraction_of_limit"] == pytest.approx(hopper)


def test_acting_measures_both_algorithms(monkeypatch):
    """300 environment steps each, half of what a measurement takes, with their updates."""
    monkeypatch.setattr(benchmark, "online", partial(benchmark.online, steps=300))
    rows = list(benchmark.acting(SHORT))
    assert [row["algorithm"] for row in rows] == ["TD3", "SAC"]
    assert all(row["steps_per_second"] > 0 for row in rows)


def test_the_parts_of_an_update_are_all_found():
    rows = {row["part"]: row["microseconds"] for row in benchmark.parts(SHORT)}
    assert len(rows) == 11
    assert min(rows.values()) > 0, min(rows, key=rows.get)


def test_adam_is_measured_on_the_moments_of_dead_units_too():
    """How much slower they are is the processor's affair; afterwards what is too small for a float32 is zero again."""
    rows = {(row["moments"], row["kept"]): row["microseconds"] for row in benchmark.moments(SHORT)}
    assert list(rows) == [(1e-3, True), (1e-3, False), (1e-39, True), (1e-39, False)]
    assert min(rows.values()) > 0
    assert not (torch.full((1,), 1e-30) * 1e-9).any() or not torch.set_flush_denormal(True)


def test_a_profile_is_split_into_parts_that_add_up_to_the_whole():
    """Two products of a forward pass, one of a backward pass, and what stands around them; seconds made up."""

    def entry(own, total, **callers):
        return 1, 1, own, total, {("engine.py", 1, name): (1, 1, own, spent) for name, spent in callers.items()}

    profile = pstats.Stats()
    profile.stats = {
        ("~", 0, "<built-in method torch.bmm>"): entry(5.0, 5.0, forward=3.0, backward=2.0),
        ("~", 0, "<built-in method torch.randint>"): entry(0.5, 0.5, block=0.5),
        ("/somewhere/engine.py", 1, "forward"): entry(1.0, 4.0),
        ("/somewhere/engine.py", 2, "backward"): entry(0.25, 2.25),
        ("/somewhere/engine.py", 3, "step"): entry(0.75, 0.75),
        ("/elsewhere/another.py", 3, "step"): entry(2.0, 2.0),
    }
    found = benchmark.split(profile)
    assert {part: spent for part, spent in found.items() if spent} == {
        "products, forward": 3.0,
        "products, backward": 2.0,
        "bias, ReLU and last layer, forward": 1.0,
        "bias, ReLU and last layer, backward": 0.25,
        "Adam": 0.75,
        "indices and noise": 0.5,
        "losses, and Python between": 2.0,
    }


# --- processes of their own -----------------------------------------------------------------------------------------------


def test_memory_and_updates_are_measured_for_each_population_in_a_process_of_its_own():
    one, four = benchmark.populations(SHORT)
    assert four["learner_bytes"] == pytest.approx(4 * one["learner_bytes"], rel=1e-3)  # but for the padding
    assert four["table_bytes"] == 4 * one["table_bytes"] == 4 * 10_000 * 28 * 4
    for row in (one, four):
        assert row["updates_per_second"] > 0
        assert math.isnan(row["peak_megabytes"]) or row["peak_megabytes"] > (row["learner_bytes"] + row["table_bytes"]) / 1e6


def test_the_memory_of_a_dataset_is_that_of_its_rows():
    few, many = benchmark.datasets(SHORT)
    assert few["learner_bytes"] == many["learner_bytes"]
    if not math.isnan(few["peak_megabytes"]):
        grown = many["peak_megabytes"] - few["peak_megabytes"]
        assert grown == pytest.approx((many["table_bytes"] - few["table_bytes"]) / 1e6, rel=0.3)


def test_a_new_process_knows_nothing_of_its_parents_state(monkeypatch):
    monkeypatch.setattr(benchmark, "UPDATES", 3)
    assert benchmark.fresh(eval, "__import__('mbaug.benchmark').benchmark.UPDATES") == 10


@TELLS_PEAK
def test_memory_that_is_only_reserved_does_not_count():
    before = benchmark.peak_megabytes()
    with mmap.mmap(-1, 4 << 30):
        assert benchmark.peak_megabytes() < before + 1_000


@TELLS_PEAK
def test_a_new_process_does_not_inherit_its_parents_peak():
    held = np.ones(100_000_000)  # 800 MB
    mine = benchmark.peak_megabytes()
    del held
    assert mine > 800
    assert benchmark.fresh(benchmark.peak_megabytes) < mine - 400


@contextmanager
def noted(names, name):
    """Stands in for `beside`."""
    names.append(name)
    yield


def test_threads_are_measured_alone_and_beside_each_load(monkeypatch):
    names, counts = [], []
    monkeypatch.setattr(benchmark, "beside", lambda name: noted(names, name))
    monkeypatch.setattr(benchmark, "fresh", lambda function, count, seconds: counts.append((function, count)) or 1.0)
    rows = list(benchmark.threads(SHORT))
    assert names == [row["beside"] for row in rows] == ["nothing", "a busy loop", "another training"] * 2
    assert counts == [(benchmark.threaded, count) for count in (1, 1, 1, 2, 2, 2)]


def test_a_process_is_measured_with_the_threads_that_were_asked_for(monkeypatch):
    used = []
    monkeypatch.setattr(benchmark, "updates_per_second", lambda *_: used.append(torch.get_num_threads()) or 1.0)
    try:
        assert [benchmark.threaded(count, 0.01) for count in (2, 1)] == [1.0, 1.0]
    finally:
        torch.set_num_threads(1)
    assert used == [2, 1]


@pytest.mark.parametrize("name", ["a busy loop", "another training"])
def test_a_load_runs_while_something_is_measured_and_no_longer(name):
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not tell a process's children")
    before = set(children.read_text().split())
    with benchmark.beside(name):
        (load,) = set(children.read_text().split()) - before
        ticks = [
            int(Path(f"/proc/{load}/stat").read_text().rpartition(")")[2].split()[11]) for _ in range(2) if not time.sleep(0.3)
        ]
        assert ticks[1] > ticks[0], "the load does not compute"
    assert load not in children.read_text().split()


# --- peers ----------------------------------------------------------------------------------------------------------------


def test_a_peer_is_measured_in_the_same_section():
    pytest.importorskip("stable_baselines3")
    rows = list(benchmark.peers(SHORT))
    assert [(row["algorithm"], row["by"].split()[0]) for row in rows] == [
        ("TD3", "mbaug"),
        ("TD3", "Stable-Baselines3"),
        ("SAC", "mbaug"),
        ("SAC", "Stable-Baselines3"),
    ]
    assert all(row["updates_per_second"] > 0 for row in rows)


def test_the_ratio_to_a_peer_is_of_medians_and_of_the_same_algorithm():
    def row(algorithm, by, precision, *found):
        return {"algorithm": algorithm, "by": by, "precision": precision, "updates_per_second": list(found)}

    rows = [
        row("TD3", "mbaug", "float32", 180.0, 200.0, 900.0),
        row("TD3", "mbaug", "bfloat16", 300.0),
        row("SAC", "mbaug", "float32", 90.0),
        row("TD3", "Peer 1.0", "float32", 100.0),
        row("SAC", "Peer 1.0", "float32", 60.0),
    ]
    assert benchmark.ratios(rows) == [
        "TD3, float32: 2.00 times Peer 1.0",
        "TD3, bfloat16: 3.00 times Peer 1.0",
        "SAC, float32: 1.50 times Peer 1.0",
    ]
    (sentence,) = benchmark.ratios(rows[:3])
    assert sentence.startswith("No peer is installed: after `make setup EXTRAS=peers`")


# --- several times over, and kept -----------------------------------------------------------------------------------------


def products(effort, device="cpu"):
    """Yields the speed of nothing."""
    yield {"precision": "float32", "inputs": 256, "gflops": next(products.numbers)}


def silent(effort, device="cpu"):
    """Yields what nobody could tell."""
    yield {"population": 4, "peak_megabytes": math.nan}


@pytest.fixture
def sections(monkeypatch):
    """Two sections of a row each, in place of all."""
    products.numbers = iter([50.0, 100.0, 70.0, 1.0, 2.0, 3.0])
    for name in ("SECTIONS", "COMPARED"):
        monkeypatch.setattr(benchmark, name, (products, silent))


def test_each_repeat_of_a_measured_number_is_kept(sections):
    (row,) = benchmark.measure(products, Effort(0.01, 3))
    assert row == {"precision": "float32", "inputs": 256, "gflops": [50.0, 100.0, 70.0]}
    (shown,) = benchmark.table([row]).to_dict("records")
    assert shown == {"precision": "float32", "inputs": 256, "gflops": 70.0, "gflops_low": 50.0, "gflops_high": 100.0}


def test_what_is_kept_comes_back_with_its_provenance(sections, tmp_path):
    document = benchmark.measure_all(Effort(0.01, 3), "cpu", benchmark.SECTIONS, report=lambda line: None)
    path = benchmark.keep(document, tmp_path / "benchmarks")
    assert path.name == benchmark.path_of(document, tmp_path).name
    (found,) = benchmark.load(tmp_path / "benchmarks")
    assert found["provenance"] == recording.provenance("float32")
    assert (found["seconds"], found["repeats"]) == (0.01, 3)
    assert found["sections"]["products"][0]["gflops"] == [50.0, 100.0, 70.0]
    assert math.isnan(benchmark.table(found["sections"]["silent"])["peak_megabytes"][0])
    assert "NaN" not in path.read_text()


def test_a_processors_name_makes_its_files():
    document = {"provenance": {"cpu": "AMD EPYC 9R14, family 25 (x)"}}
    assert benchmark.path_of(document, Path("kept")) == Path("kept/amd-epyc-9r14-family-25-x.json")
    document["provenance"]["device"] = "NVIDIA L4"
    assert benchmark.path_of(document, Path("kept")) == Path("kept/nvidia-l4.json")


def test_an_interrupted_measurement_leaves_the_last_one_as_it_was(sections, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "folder", lambda: tmp_path)
    monkeypatch.setattr(benchmark, "FULL", Effort(0.01, 3))
    benchmark.main(record=True)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def interrupted(effort, device="cpu"):
        """Yields nothing."""
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(benchmark, "SECTIONS", (products, interrupted))
    with pytest.raises(SystemExit, match="interrupted"):
        command(["bench", "--record"])
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    monkeypatch.setattr(benchmark, "SECTIONS", (products, silent))
    products.numbers = iter([1.0, 2.0, 3.0])
    command(["bench", "--record"])
    (document,) = benchmark.load(tmp_path)
    assert document["sections"]["products"][0]["gflops"] == [1.0, 2.0, 3.0]


def test_the_fastest_processor_comes_first(sections, tmp_path):
    for name in ("slow", "fast"):
        document = benchmark.measure_all(Effort(0.01, 1), "cpu", benchmark.SECTIONS, report=lambda line: None)
        benchmark.keep({**document, "provenance": {"cpu": name}}, tmp_path)
    assert [document["provenance"]["cpu"] for document in benchmark.load(tmp_path)] == ["fast", "slow"]
    assert benchmark.load(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damage", ["no json", "{}", {"format": 0}, {"sections": {}}])
def test_a_damaged_file_is_named(sections, tmp_path, damage):
    document = benchmark.measure_all(Effort(0.01, 1), "cpu", benchmark.SECTIONS, report=lambda line: None)
    text = damage if isinstance(damage, str) else recording.json_text(document | damage)
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(recording.RecordDamaged, match=r"some\.json is no benchmark of format 1: measure it again"):
        benchmark.load(tmp_path)


def test_a_full_disk_leaves_the_last_measurement_as_it_was(sections, monkeypatch, tmp_path):
    document = benchmark.measure_all(Effort(0.01, 1), "cpu", benchmark.SECTIONS, report=lambda line: None)
    path = benchmark.keep(document, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(recording.os, "fsync", no_space)
    with pytest.raises(files.CannotWrite, match="No space left on device"):
        benchmark.keep(document | {"cores": 0}, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def brief(monkeypatch):
    """Two short sections in place of those that are printed."""

    def peers(effort, device="cpu"):
        """Yields two rows."""
        yield {"algorithm": "TD3", "by": "mbaug", "precision": "float32", "updates_per_second": 150.0}
        yield {"algorithm": "TD3", "by": "Peer 1.0", "precision": "float32", "updates_per_second": 100.0}

    products.numbers = iter([76.0])
    monkeypatch.setattr(benchmark, "SHORT", (products, peers))


def test_the_command_prints_tables_ratios_and_once_what_the_processor_lacks(brief, capsys):
    command(["bench"])
    printed = capsys.readouterr().out
    assert "products\nprecision  inputs  gflops\n  float32     256      76\n" in printed
    assert printed.count("no bfloat16 products") == 1
    assert "TD3, float32: 1.50 times Peer 1.0" in printed


def test_the_command_prints_json(brief, capsys):
    command(["bench", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"]["precision"] == "float32"
    assert found["sections"]["products"][0]["gflops"] == [76.0]


@pytest.mark.parametrize("typed", ["bench --device cuda", "bench --device cuda --record"])
def test_a_gpu_that_is_not_there_is_refused_in_one_sentence(monkeypatch, typed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="mbaug: unknown device 'cuda': allowed are 'cpu'"):
        command(typed.split())


def test_a_load_ends_with_whoever_started_it():
    """Also where that one is killed: nothing goes on spinning on a core of whoever measures next."""
    start = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=-1)"
    start += "; p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", start, benchmark.LOADS["a busy loop"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        load = int(parent.stdout.readline())
        os.kill(load, 0)  # it is there
        parent.kill()
    psutil.wait_procs([psutil.Process(load)] if psutil.pid_exists(load) else [], timeout=20)
    assert not psutil.pid_exists(load) or psutil.Process(load).status() == psutil.STATUS_ZOMBIE
