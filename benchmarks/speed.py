"""How fast an update is, against what the processor's products allow, and against peers measured in the same run.

A section is a function of an effort and a device that yields rows. In a row, numbers with a decimal point are measured; all else
says what was measured.
"""

import cProfile
import inspect
import math
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.engine import perceptron
from mbaug.experiments.models import FAST
from mbaug.method import imagination, networks, training, transitions, world_model
from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.settings import Finetuning, WorldModel
from mbaug.method.td3 import TD3

WRITTEN = Arithmetic(perceptron.forward)  # the engine's networks, but each update runs through Python and autograd
ALIKE = {"hopper": "hopper", "halfcheetah": "walker2d, halfcheetah", "ant": "ant"}  # a task of each size, and who has it
LEARNERS = {"TD3+BC": ("td3", "offline_loss"), "TD3": ("td3", "online_loss"), "SAC": ("sac", "online_loss")}
PEERS = {"Stable-Baselines3": "stable_baselines3", "SBX": "sbx"}  # with their modules; SBX is JAX
UPDATES = 10  # whose batches are drawn at once: each call that is timed
LOADS = ("nothing", "a busy loop", "another training")  # of another core


@dataclass(frozen=True)
class Effort:
    """How long, how often and how far is measured."""

    seconds: float  # of wall time, each measurement
    repeats: int  # of each row
    populations: tuple[int, ...] = (1, 4, 10)  # agents side by side, for all sizes
    growth: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # agents side by side, in a process of their own
    rows: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # of a dataset


QUICK, FULL = Effort(0.6, 1), Effort(1.5, 5)
TINY = Effort(0.02, 1, populations=(1, 2), growth=(1, 2), rows=(1_000, 10_000))


def rate(call: Callable[[], object], seconds: float, threads: int = 1) -> float:
    """Returns calls a second: of all short blocks of calls within `seconds` of wall time the best, after some that warm up.

    The best, because whatever else runs on the machine can only slow a call down. On a GPU the timer waits for the result.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return 1 / min(timer.blocked_autorange(min_run_time=seconds).times)


# --- the limit ------------------------------------------------------------------------------------------------------------


def precisions(device: str = "cpu") -> list[str]:
    """Returns the precisions that the device has products of."""
    return ["float32", "bfloat16"] if engine.has_bfloat16(device) else ["float32"]


def product_rate(precision: str, inputs=256, outputs=256, seconds=1.0, device: str = "cpu", batch: int = 256) -> float:
    """Returns the floating-point operations a second of the products of twin networks, [B, inputs] by [inputs, outputs].

    That of 256 by 256 is the limit of an update: nearly all of its operations are such products.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(2, *shape, device=device).to(dtype) for shape in ((batch, inputs), (inputs, outputs)))

    def call() -> None:
        for _ in range(20):
            torch.bmm(left, right)

    return rate(call, seconds) * 20 * 2 * 2 * batch * inputs * outputs


def operations(state_size: int, action_size: int, learner: TD3) -> float:
    """Returns the floating-point operations of the matrix products of one TD3+BC update, averaged over a policy delay.

    Forward: target actor, twin target critics, twin critics; backward of the critics: gradients of all weights and of the
    hidden units. Every `policy_delay` updates: actor and first critic forward, the critic's inputs and the actor backward.
    """
    (first, second), batch = learner.hidden, learner.batch_size

    def forward(inputs: int, outputs: int) -> int:
        return inputs * first + first * second + second * outputs

    actor, critic = forward(state_size, action_size), forward(state_size + action_size, 1)
    hidden_gradients = first * second + second
    every = actor + 2 * critic + 2 * critic + 2 * (critic + hidden_gradients)
    delayed = actor + critic + critic + actor + first * second + second * action_size
    return 2 * batch * (every + delayed / learner.policy_delay)


# --- what is timed --------------------------------------------------------------------------------------------------------


def learning(
    algorithm: str, task: str, population: int, precision: str, device: str = "cpu", rows=10_000, arithmetic: Arithmetic = FAST
) -> tuple[training.Learner, Tensor, Callable[[], None]]:
    """Returns learners, their random tables, and a function that draws UPDATES batches and learns, as training does."""
    name, loss = LEARNERS[algorithm]
    arm = Arm(name, ALGORITHMS[name].settings(), precision=precision)
    learner = training.learner(arm, tasks.find(task), range(population), arithmetic=replace(arithmetic, device=device))
    table = torch.randn(population, rows, 2 * learner.task.state_size + learner.task.action_size + 3, device=device)
    table[..., -2:] = 0  # nothing is terminal
    learn = training.updater(learner, getattr(learner.algorithm, loss))

    def call() -> None:
        _, batches, noise = training.block(learner, table, UPDATES)
        learn(batches, noise)

    return learner, table, call


def alone(seconds: float, device: str, precision: str = "float32", population=1, rows=10_000, threads=1) -> dict:
    """Returns what a population costs, with that many rows for each agent to draw from, and what both hold in bytes."""
    engine.prepare(precision, device)
    learner, table, call = learning("TD3+BC", "hopper", population, precision, device, rows)
    found = rate(call, seconds, threads) * UPDATES * population
    index, *_ = training.block(learner, table, UPDATES)

    def gather() -> None:
        transitions.unpack(transitions.gather(table, index), learner.task.state_size, learner.task.action_size)

    return {
        "learner_bytes": sum(tensor.nbytes for tensor in training.memory(learner).values()),
        "table_bytes": table.nbytes,
        "updates_per_second": found,
        "gather_microseconds": 1e6 / rate(gather, seconds / 4) / UPDATES / population,
        "peak_megabytes": peak_megabytes(device),
    }


def fresh(call: Callable, *arguments, **options) -> Any:
    """Returns what a function returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments, **options).result()


def peak_megabytes(device: str = "cpu") -> float:
    """Returns the most memory that this process ever held, in MB, of the GPU's if that trains; NaN where nobody tells."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")  # of Linux; what getrusage tells is at least the peak of the parent
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    return math.nan if peak is None else int(peak[1]) * 1024 / 1e6


# --- sections -------------------------------------------------------------------------------------------------------------


def products(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the product rate of each shape that an update on Hopper multiplies, by two networks and a batch of 256."""
    for precision in precisions(device):
        for inputs, outputs in ((256, 256), (11, 256), (14, 256), (256, 3)):
            if precision == "float32" or min(inputs, outputs) >= perceptron.WIDE:  # narrow ones are always float32
                found = product_rate(precision, inputs, outputs, effort.seconds, device)
                yield {"precision": precision, "inputs": inputs, "outputs": outputs, "gflops": found / 1e9}


def updates(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second, of all agents together, for the tasks' sizes, both precisions and three populations."""
    for precision in precisions(device):
        limit = product_rate(precision, seconds=effort.seconds, device=device)
        for name, alike in ALIKE.items():
            task, about = tasks.find(name), {"algorithm": "TD3+BC", "task": alike, "precision": precision}
            for population in effort.populations:
                *_, call = learning("TD3+BC", name, population, precision, device)
                found = rate(call, effort.seconds) * UPDATES * population
                share = found * operations(task.state_size, task.action_size, TD3()) / limit
                yield about | {"population": population, "updates_per_second": found, "fraction_of_limit": share}


def acting(effort: Effort, device: str = "cpu", steps: int = 600) -> Iterator[dict]:
    """Yields environment steps a second on Hopper, an update after each, over 600 steps, however long they take."""
    task, plan = tasks.find("hopper"), Finetuning(steps, 100, "uniform", evaluation_interval=100)
    for precision in precisions(device):
        for name in ("td3", "sac"):
            arm = Arm(name, ALGORITHMS[name].settings(), finetuning=plan, precision=precision)
            learner = training.learner(arm, task, [0], arithmetic=FAST)
            passes = training.finetune(learner, tasks.Lockstep(task, [0]), training.replay(learner))
            times = [time.perf_counter() for _ in passes]  # the first interval is the warm-up, the second holds the capture
            found = float(plan.evaluation_interval / np.diff(times[1:]).min())
            yield {"algorithm": name.upper(), "task": "hopper", "precision": precision, "steps_per_second": found}


def peers(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the updates a second of our TD3 and SAC, also without the engine, and of each peer that is installed.

    All are measured at Hopper's sizes with the online loss, and with the drawing of their batches and noise: in turn, each in a
    process of its own with one core, so that nothing that one sets or leaves behind changes another.
    """
    ours = [("mbaug", precision) for precision in precisions(device)]
    others = [(library, "float32") for library, module in PEERS.items() if find_spec(module) is not None]
    for name in ("TD3", "SAC"):
        for by, precision in (*ours, ("plain torch", "float32"), *others):
            label, found = fresh(peer, name, by, precision, effort.seconds, device)
            yield {"algorithm": name, "by": label, "precision": precision, "updates_per_second": found}


def peer(name: str, by: str, precision: str, seconds: float, device: str) -> tuple[str, float]:
    """Returns who updates, with the version, and the updates a second of an algorithm on one core."""
    if hasattr(os, "sched_setaffinity"):  # JAX takes every core that it may
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if by in PEERS:
        return stable_baselines(name, by, seconds)
    if by == "mbaug":
        engine.prepare(precision, device)
    *_, call = learning(name, "hopper", 1, precision, device, arithmetic=FAST if by == "mbaug" else PLAIN)
    return by, rate(call, seconds) * UPDATES


def stable_baselines(name: str, library: str, seconds: float) -> tuple[str, float]:
    """Returns library and version, and the updates a second of its TD3 or SAC, on the CPU, with our sizes."""
    module = import_module(PEERS[library])
    logger = import_module("stable_baselines3.common.logger")
    sizes = {"policy_kwargs": {"net_arch": [256, 256]}, "batch_size": 256}
    environment = tasks.make(tasks.find("hopper"))
    found = getattr(module, name)("MlpPolicy", environment, **sizes, device="cpu", verbose=0)
    found.set_logger(logger.Logger(None, []))
    state, action = np.zeros(11), np.zeros(3)
    for _ in range(1_000):
        found.replay_buffer.add(state, state, action, np.zeros(1), np.zeros(1), [{}])
    pace = rate(lambda: found.train(gradient_steps=UPDATES, batch_size=256), seconds) * UPDATES
    return f"{library} {module.__version__}", pace


def parts(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of each part of an update of TD3+BC on Hopper as it is written, by Python's profiler; and of
    the whole without it, as it is written and as a graph."""
    for precision in precisions(device):
        *_, call = learning("TD3+BC", "hopper", 1, precision, arithmetic=WRITTEN)
        *_, replay = learning("TD3+BC", "hopper", 1, precision)
        pace = rate(call, effort.seconds)
        calls = math.ceil(effort.seconds * pace)
        with cProfile.Profile() as profiler:
            for _ in range(calls):
                call()
        found = {part: spent / calls for part, spent in split(profiler).items()}
        found |= {"whole, without the profiler": 1 / pace, "whole, as a graph": 1 / rate(replay, effort.seconds)}
        for part, spent in found.items():
            yield {"precision": precision, "part": part, "microseconds": spent / UPDATES * 1e6}


def split(profile: cProfile.Profile) -> dict[str, float]:
    """Returns the seconds that a profile spent in each part of the updates it saw; together they are the whole."""
    profile.create_stats()
    seen: dict = profile.stats  # by file, line and name
    bmm = [spent[4] for (_, _, name), spent in seen.items() if re.search(r"\bbmm\b", name)]
    forward, backward = perceptron._Perceptron.forward, perceptron._Perceptron.backward

    def within(*functions: Callable, seen: dict = seen) -> float:
        """Seconds in functions without their decorators, all that they call included."""
        codes = [inspect.unwrap(function).__code__ for function in functions]
        keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
        return math.fsum(seen[key][3] for key in keys if key in seen)

    def multiplied(function: Callable) -> float:
        """Seconds in torch.bmm where that function calls it."""
        return math.fsum(within(function, seen=callers) for callers in bmm)

    found = {
        "products, forward": multiplied(forward),
        "products, backward": multiplied(backward),
        "bias, ReLU and last layer, forward": within(forward) - multiplied(forward),
        "bias, ReLU and last layer, backward": within(backward) - multiplied(backward),
        "Adam": within(networks.Adam.step),
        "targets follow": within(networks.track),
        "batches: gather": within(transitions.gather, transitions.unpack),
        "indices and noise": within(training.block) - within(transitions.gather, transitions.unpack),
    }
    whole = sum(spent[2] for spent in seen.values())
    return found | {"losses, and Python between": whole - sum(found.values())}


def moments(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of Adam's step on Hopper's critics, where moments are of ordinary size and where they are below
    1e-38, as those of dead units; with arithmetic that keeps such numbers and with one that takes them for zero."""
    flat = networks.allocate(2, (14, 256, 256, 1), torch.float32)
    adam, gradient = networks.Adam.zeros(flat), torch.zeros_like(flat)
    for size in (1e-3, 1e-39):
        for kept in (True, False):
            torch.set_flush_denormal(not kept)
            adam.first.fill_(size)
            pace = rate(partial(adam.step, flat, gradient, 0.0), effort.seconds)
            yield {"moments": size, "kept": kept, "microseconds": 1e6 / pace}
    torch.set_flush_denormal(True)


def populations(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second and memory for 1 to 32 agents side by side, each measured in a process of its own."""
    for precision in precisions(device):
        for population in effort.growth:
            found = fresh(alone, effort.seconds, device, precision, population)
            yield {"precision": precision, "population": population, **found}


def datasets(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second, the time of gathering and memory for 1K to 1M rows, each measured in a process of its own."""
    precision = precisions(device)[-1]
    for rows in effort.rows:
        yield {"precision": precision, "rows": rows, **fresh(alone, effort.seconds, device, precision, rows=rows)}


def threads(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second with one and with two threads, alone and beside one other process."""
    for count in (1, 2):
        for name in LOADS:
            command = [sys.executable, "-c", f"from benchmarks import speed; speed.load({name!r})"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
                try:
                    assert other.stdout is not None, "it is a pipe"
                    other.stdout.readline()
                    found = fresh(alone, effort.seconds, device, threads=count)["updates_per_second"]
                finally:
                    other.kill()
            yield {"threads": count, "beside": name, "updates_per_second": found}


def load(name: str) -> None:
    """Does one of LOADS until its process is killed, or its parent is gone; prints a line when it has begun."""
    engine.prepare()
    parent, calls = os.getppid(), {"nothing": partial(time.sleep, 0.1), "a busy loop": int}
    call = calls.get(name) or learning("TD3+BC", "hopper", 1, "float32")[-1]
    call()
    print(flush=True)
    while os.getppid() == parent:
        call()


def model(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields what the paper's world model costs on 10,000 rows: an epoch of its fit, and an imagined next state for each."""
    drawn, _ = transitions.draw(read.load("hopper-medium-replay"), 10_000, seed=0)
    state, action = torch.from_numpy(drawn.state), torch.from_numpy(drawn.action)
    for precision in precisions(device):
        fit = world_model.epochs(WorldModel(epochs=10**6), drawn, 0, replace(FAST, precision=precision, device=device))
        fitted, _ = next(fit)
        epoch = rate(partial(next, fit), effort.seconds)
        imagine = partial(imagination.predict, fitted, state, action, streams.torch_generator(0, "benchmark"))
        yield {"precision": precision, "epoch_seconds": 1 / epoch, "imagine_seconds": 1 / rate(imagine, effort.seconds)}


SECTIONS = (products, updates, acting, peers, parts, moments, populations, datasets, threads, model)
SHORT = (products, updates, acting, peers)  # what is printed in about a minute
LIVE = (products, updates, peers, parts, moments, populations, datasets, threads)  # by a notebook itself, with TINY effort
ON_GPU = (products, updates, populations, datasets)
COMPARED = (products, updates, threads)  # what a processor is held against the others by: no file is without
