"""The benchmarks: they count operations as torch does, measure what their sections say, and store complete results."""

import json
import math
import re
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest
import torch
from conftest import contents, no_space
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results, speed
from benchmarks.__main__ import main as command
from benchmarks.speed import Effort
from mbaug import files, tasks
from mbaug.engine import process
from mbaug.method.networks import PLAIN
from mbaug.method.td3 import TD3
from mbaug.provenance import provenance

# Too short for reliable speeds: these tests check what is measured.
SHORT = Effort(0.01, 1, populations=(1, 2), growth=(1, 4), rows=(1_000, 500_000))


@pytest.fixture(autouse=True)
def one_precision(monkeypatch):
    """Pretends that this processor has no bfloat16 products."""
    monkeypatch.setattr(process, "processor_flags", lambda: frozenset(["avx2"]))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_operations_are_counted_as_torch_counts_them(task):
    # Without the engine, which computes products with one output as sums: torch would not count those.
    *_, call = speed.learning("TD3+BC", task, 1, "float32", arithmetic=PLAIN)
    with FlopCounterMode(display=False) as counter:
        call()
    sizes = tasks.find(task).state_size, tasks.find(task).action_size
    assert counter.get_total_flops() / speed.UPDATES == speed.operations(*sizes, TD3())


def test_the_rate_of_products_counts_operations_as_torch_does(monkeypatch):
    monkeypatch.setattr(speed, "rate", lambda call, seconds: call() or 1.0)
    with FlopCounterMode(display=False) as counter:
        found = speed.product_rate("float32", 11, 256, batch=64, networks=3)
    assert found == counter.get_total_flops() > 0


@pytest.mark.parametrize("arithmetic", [speed.FAST, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("algorithm", speed.LEARNERS)
def test_the_timed_updates_train_the_agent(algorithm, arithmetic):
    learner, _, call = speed.learning(algorithm, "hopper", 2, "float32", rows=50, arithmetic=arithmetic)
    before = learner.agent.critics.network.flat.clone()
    call()
    assert learner.gradient_steps == speed.UPDATES
    assert not torch.equal(before, learner.agent.critics.network.flat)


def test_only_precisions_that_the_processor_supports_are_measured(monkeypatch):
    assert [row["precision"] for row in speed.products(SHORT)] == ["float32"] * 4
    monkeypatch.setattr(process, "processor_flags", lambda: frozenset(["avx512_bf16"]))
    low = [row for row in speed.products(SHORT) if row["precision"] == "bfloat16"]
    assert [(row["inputs"], row["outputs"]) for row in low] == [(256, 256)]


def test_update_rates_have_a_row_for_each_task_and_population_with_their_fraction_of_the_limit(monkeypatch):
    monkeypatch.setattr(speed, "product_rate", lambda precision, seconds, device, networks: networks * 1e11)
    monkeypatch.setattr(speed, "rate", lambda call, seconds: 20.0)
    rows = list(speed.updates(SHORT))
    assert [(row["task"], row["population"]) for row in rows] == [(t, p) for t in speed.ALIKE.values() for p in (1, 2)]
    assert [row["updates_per_second"] for row in rows[:2]] == [200, 400]  # updates of all agents together
    assert rows[1]["fraction_of_limit"] == pytest.approx(400 * speed.operations(11, 3, TD3()) / 4e11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "count"),
    [
        (speed.critics, 2),
        (partial(speed.acting, steps=300), 2),
        (speed.peers, 4),
        (speed.parts, 11),
        (speed.moments, 4),
        (speed.captures, 4),
        (speed.model, 1),
    ],
)
def test_every_number_of_a_section_is_measured(section, count, monkeypatch):
    draw = speed.transitions.draw
    monkeypatch.setattr(speed.transitions, "draw", lambda pool, rows, seed: draw(pool, 500, seed))  # an epoch takes a second
    monkeypatch.setattr(speed, "PEERS", {})
    monkeypatch.setattr(
        speed, "in_new_process", lambda call, *given: call(*given) if section is not speed.peers else ("mbaug", 1.0)
    )
    rows = list(section(SHORT))
    assert len(rows) == count
    # A function that `speed.parts` looks for and no longer finds would give 0.
    assert all(value > 0 for row in rows for value in row.values() if isinstance(value, float)), rows


@pytest.mark.slow
def test_the_memory_of_populations_and_datasets_is_measured_in_separate_processes():
    ballast = np.ones(150_000_000)  # 1,200 MB, which the separate processes must not count as theirs
    own_peak = speed.peak_megabytes()
    del ballast
    (one, four), (small, large) = speed.populations(SHORT), speed.datasets(SHORT)
    assert four["learner_bytes"] == pytest.approx(4 * one["learner_bytes"], rel=1e-3)  # padding makes the difference
    assert four["table_bytes"] == 4 * one["table_bytes"] == 4 * 10_000 * 28 * 4
    if not math.isnan(own_peak):  # NaN: this system does not report peak memory
        assert (four["learner_bytes"] + four["table_bytes"]) / 1e6 < four["peak_megabytes"] < own_peak - 400
        grown = large["peak_megabytes"] - small["peak_megabytes"]
        assert grown == pytest.approx((large["table_bytes"] - small["table_bytes"]) / 1e6, rel=0.3)


def test_installed_peers_take_turns_each_in_its_own_process(monkeypatch):
    """Each repeat measures every peer once. A peer that is not installed is named at the end."""
    monkeypatch.setattr(speed, "find_spec", lambda module: module == "stable_baselines3" or None)
    monkeypatch.setattr(speed, "in_new_process", lambda call, name, by, precision, *given: (f"{by} 1", float(len(name))))
    found = results.measure(Effort(0.01, 2), "cpu", [speed.peers])["sections"]["peers"]
    assert [(row["algorithm"], row["by"]) for row in found] == [
        (name, f"{by} 1") for name in ("TD3", "SAC") for by in ("mbaug", "plain torch", "Stable-Baselines3")
    ]
    assert {tuple(row["updates_per_second"]) for row in found} == {(3.0, 3.0)}
    assert results.ratios(found)[-1].startswith("SBX was not measured: install it with `.venv/bin/python -m pip install sbx-rl`")


@pytest.mark.slow
@pytest.mark.parametrize("by", ["mbaug", "plain torch", "Stable-Baselines3"])
def test_measuring_a_peer_on_one_core_leaves_this_process_unchanged(by):
    cores, threads = psutil.Process().cpu_affinity(), torch.get_num_threads()
    label, pace = speed.in_new_process(speed.peer, "TD3", by, "float32", 0.02, "cpu")
    assert label.startswith(by)
    assert pace > 0
    assert (psutil.Process().cpu_affinity(), torch.get_num_threads()) == (cores, threads)


@pytest.mark.slow
def test_threads_are_measured_beside_a_busy_process_that_ends_with_the_measurement(monkeypatch):
    loads, this = [], psutil.Process()

    def measured(call, seconds, device, threads):
        (load,) = [child for child in this.children() if "speed.load" in child.cmdline()[-1]]
        before = sum(load.cpu_times()[:2])
        time.sleep(0.5)
        loads.append((load, threads, sum(load.cpu_times()[:2]) - before > 0.05))
        return {"updates_per_second": 1.0}

    monkeypatch.setattr(speed, "in_new_process", measured)
    monkeypatch.setattr(speed, "LOADS", ("nothing", "another training"))
    rows = list(speed.threads(SHORT))
    assert [row["beside"] for row in rows] == ["nothing", "another training"] * 2
    assert [(threads, busy) for _, threads, busy in loads] == [(1, False), (1, True), (2, False), (2, True)]
    assert not any(load.is_running() for load, *_ in loads)


@pytest.mark.slow
def test_a_busy_process_ends_when_its_parent_is_killed():
    start = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=-1)"
    start += "; p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    typed = [sys.executable, "-c", start, "from benchmarks import speed; speed.load('a busy loop')"]
    with subprocess.Popen(typed, stdout=subprocess.PIPE, text=True) as parent:
        load = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([load], timeout=20)
    assert not load.is_running() or load.status() == psutil.STATUS_ZOMBIE


def products(effort, device="cpu"):
    yield {"precision": "float32", "inputs": 256, "gflops": next(products.numbers), "peak": math.nan}


def peers(effort, device="cpu"):
    for by, pace in (("mbaug", 150.0), ("Peer 1.0", 100.0)):
        yield {"algorithm": "TD3", "by": by, "precision": "float32", "updates_per_second": pace}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder for results, and two invented sections in place of the real ones."""
    products.numbers = iter([50.0, 100.0, 70.0, 1.0, 2.0, 3.0])
    for name in ("SECTIONS", "SHORT", "ON_GPU"):
        monkeypatch.setattr(speed, name, (products, peers))
    monkeypatch.setattr(speed, "FULL", Effort(0.01, 3))
    monkeypatch.setattr(results, "keep", partial(results.keep, folder=tmp_path))
    return tmp_path


def test_every_recorded_number_was_measured_as_often_as_its_file_says():
    for document in results.load():
        rows = [row for section in document["sections"].values() for row in section]
        measured = [value for row in rows for value in row.values() if isinstance(value, list)]
        assert measured
        assert all(len(value) == document["repeats"] and min(value) > 0 for value in measured)


def test_a_recorded_measurement_is_read_back_with_its_provenance_and_every_repeat(folder, capsys):
    command(["--record"])
    (path,) = folder.iterdir()
    (found,) = results.load(folder)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert (found["provenance"], found["seconds"], found["repeats"]) == (provenance("float32"), 0.01, 3)
    assert found["sections"]["products"][0]["gflops"] == [50.0, 100.0, 70.0]
    (shown,) = results.table(found["sections"]["products"]).to_dict("records")
    assert [shown[name] for name in ("inputs", "gflops", "gflops_low", "gflops_high")] == [256, 70.0, 50.0, 100.0]
    assert math.isnan(shown["peak"])
    assert "NaN" not in path.read_text()


def test_a_full_disk_leaves_the_previous_measurement_intact(folder, monkeypatch):
    command(["--record"])
    before = contents(folder)
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(SystemExit, match=r"benchmarks: .*No space left on device"):
        command(["--record"])
    assert contents(folder) == before


def test_each_processor_has_its_own_file_and_the_fastest_comes_first(folder):
    command(["--record"])
    ((written, document),) = [(path, json.loads(path.read_text())) for path in folder.iterdir()]
    written.unlink()
    for number, origin in enumerate(({"cpu": "AMD EPYC 9R14, family 25 (x)"}, {"cpu": "x", "device": "NVIDIA L4"})):
        document["sections"]["products"][0]["gflops"] = [number + 1.0] * 3
        results.keep(document | {"provenance": document["provenance"] | origin})
    assert sorted(path.name for path in folder.iterdir()) == ["amd-epyc-9r14-family-25-x.json", "nvidia-l4.json"]
    assert [document["provenance"]["cpu"] for document in results.load(folder)] == ["x", "AMD EPYC 9R14, family 25 (x)"]


def test_a_damaged_file_is_refused_with_its_name_and_what_to_do(folder):
    command(["--record"])
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace("70.0", "71.0", 1))
    remedy = "measure it again with python -m benchmarks --record"
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: its content does not match its SHA-256: {remedy}$"):
        results.load(folder)


def test_the_command_prints_its_results_or_one_error_sentence(folder, capsys, monkeypatch):
    command([])
    printed = capsys.readouterr().out
    assert "products\nprecision  inputs gflops peak\n  float32     256     50  nan\n" in printed
    assert printed.count("no bfloat16 products") == 1
    assert "TD3, float32: 1.50 times Peer 1.0" in printed
    command(["--json"])
    assert json.loads(capsys.readouterr().out)["sections"]["products"][0]["gflops"] == [100.0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="benchmarks: the device is 'cuda', but torch finds no NVIDIA GPU here"):
        command(["--device", "cuda", "--record"])
    with pytest.raises(SystemExit):
        command(["--json", "--record"])
    assert "not allowed with argument --json" in capsys.readouterr().err
