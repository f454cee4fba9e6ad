"""Measures how fast an update is, compared with the matrix products alone and other libraries.

A section is a function of an effort and a device that yields rows. In a row, floats are measured, and all other values say what
was measured.
"""

import cProfile
import gc
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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from mbaug import engine, streams, tasks
from mbaug.datasets import read
from mbaug.engine import graphs, perceptron
from mbaug.experiments.models import FAST
from mbaug.method import imagination, networks, training, transitions, world_model
from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.settings import Finetuning, WorldModel
from mbaug.method.td3 import TD3

WITHOUT_GRAPH = Arithmetic(perceptron.forward)  # the engine's networks, but each update runs through Python and autograd
ALIKE = {"hopper": "hopper", "halfcheetah": "walker2d, halfcheetah", "ant": "ant"}  # one task per size: the tasks of that size
LEARNERS = {  # an algorithm and one of its losses
    "TD3+BC": ("td3", "offline_loss"),
    "TD3+BC, LayerNorm": ("layernorm", "offline_loss"),
    "TD3": ("td3", "online_loss"),
    "SAC": ("sac", "online_loss"),
}
PEERS = {"Stable-Baselines3": "stable_baselines3", "SBX": "sbx"}  # other libraries and their modules; SBX uses JAX
UPDATES = 10  # updates in one timed call, which draws all their batches at once
LOADS = ("nothing", "a busy loop", "another training")  # what keeps the other core busy


@dataclass(frozen=True)
class Effort:
    """How long and how often each number is measured, and for which sizes."""

    seconds: float  # wall time of a measurement
    repeats: int  # repeats of each section
    populations: tuple[int, ...] = (1, 4, 10)  # population sizes in the section `updates`
    growth: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # population sizes in the section `populations`
    rows: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)  # dataset sizes in the section `datasets`


QUICK, FULL = Effort(0.6, 1), Effort(1.5, 5)
FULL_ON_GPU = Effort(0.6, 3, populations=(1, 20), growth=(1, 5, 20, 80))  # about 5 minutes
TINY = Effort(0.02, 1, populations=(1, 2), growth=(1, 2), rows=(1_000, 10_000))


def rate(call: Callable[[], object], seconds: float, threads: int = 1) -> float:
    """Returns calls per second in the fastest short block of calls within `seconds` of wall time, after a warm-up.

    We take the fastest block because other load can only slow a call down. On a GPU the timer waits for the result.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=threads)
    return 1 / min(timer.blocked_autorange(min_run_time=seconds).times)


# --- the limit ------------------------------------------------------------------------------------------------------------


def precisions(device: str = "cpu") -> list[str]:
    """Returns the precisions that the device's matrix products support."""
    return ["float32", "bfloat16"] if engine.has_bfloat16(device) else ["float32"]


def product_rate(
    precision: str, inputs=256, outputs=256, seconds=1.0, device: str = "cpu", batch: int = 256, networks: int = 2
) -> float:
    """Returns the floating-point operations per second of matrix products [B, inputs] x [inputs, outputs], one per network.

    The rate at 256 x 256 limits the speed of an update, because nearly all of its operations are such products. On a GPU the
    products run as a graph, as those of an update do. Otherwise Python's calls would set the rate.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(networks, *shape, device=device).to(dtype) for shape in ((batch, inputs), (inputs, outputs)))

    def call() -> None:
        for _ in range(20):
            torch.bmm(left, right)

    timed = call if device == "cpu" else graphs.cuda_graph(call)
    return rate(timed, seconds) * 20 * 2 * networks * batch * inputs * outputs


def operations(state_size: int, action_size: int, learner: TD3) -> float:
    """Returns the floating-point operations of one TD3+BC update's matrix products, averaged over a policy delay.

    Each update runs the target actor, both target critics and both critics forward, and the critics backward, for the gradients
    of their weights and hidden units. Every `policy_delay` updates, the actor and the first critic also run forward, then
    backward, for the gradients of the critic's inputs and of the actor's weights and hidden units.
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
    """Returns a learner, random transitions, and a function that draws UPDATES batches and makes an update with each."""
    name, loss = LEARNERS[algorithm]
    arm = Arm(name, ALGORITHMS[name].settings(), precision=precision)
    learner = training.learner(arm, tasks.find(task), range(population), arithmetic=replace(arithmetic, device=device))
    table = torch.randn(population, rows, transitions.width(*learner.sizes), device=device)
    table[..., transitions.TERMINAL :] = 0  # no transition is terminal
    learn = training.updater(learner, getattr(learner.algorithm, loss))

    def call() -> None:
        _, batches, noise = training.block(learner, table, UPDATES)
        learn(batches, noise)

    return learner, table, call


def costs(seconds: float, device: str, precision: str = "float32", population=1, rows=10_000, threads=1) -> dict:
    """Returns the updates per second and the memory of a population whose agents each draw from `rows` transitions."""
    engine.prepare(precision, device)
    if device != "cpu":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
    learner, table, call = learning("TD3+BC", "hopper", population, precision, device, rows)
    call()  # captures with one thread, since a capture with two warns
    pace = rate(call, seconds, threads) * UPDATES * population
    index, *_ = training.block(learner, table, UPDATES)

    def gather() -> None:
        transitions.unpack(transitions.gather(table, index), learner.task.state_size, learner.task.action_size)

    return {
        "learner_bytes": sum(tensor.nbytes for tensor in training.memory(learner).values()),
        "table_bytes": table.nbytes,
        "updates_per_second": pace,
        "gather_microseconds": 1e6 / rate(gather, seconds / 4) / UPDATES / population,
        "peak_megabytes": peak_megabytes(device),
    }


def costs_alone(seconds: float, device: str, *given, **options) -> dict:
    """Returns `costs`; on the CPU those of a new process, because the peak memory of a process never falls."""
    if device == "cpu":
        return in_new_process(costs, seconds, device, *given, **options)
    return costs(seconds, device, *given, **options)


def in_new_process(call: Callable, *arguments, **options) -> Any:
    """Returns the result of a function that runs in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments, **options).result()


def peak_megabytes(device: str = "cpu") -> float:
    """Returns the peak memory of this process in MB; on a GPU, that since the last reset. NaN: the system does not report it."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")  # Linux only; getrusage would report at least the parent's peak
    peak = re.search(r"VmHWM:\s*(\d+)", status.read_text()) if status.exists() else None
    return math.nan if peak is None else int(peak[1]) * 1024 / 1e6


# --- sections -------------------------------------------------------------------------------------------------------------


def products(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the product rate of each layer shape in an update on Hopper, for two networks and batches of 256."""
    for precision in precisions(device):
        for inputs, outputs in ((256, 256), (11, 256), (14, 256), (256, 3)):
            if precision == "float32" or min(inputs, outputs) >= perceptron.WIDE:  # narrow layers always use float32
                flops = product_rate(precision, inputs, outputs, effort.seconds, device)
                yield {"precision": precision, "inputs": inputs, "outputs": outputs, "gflops": flops / 1e9}


def updates(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates per second, summed over the agents, for the tasks' sizes, both precisions and several populations.

    The limit of a population is the rate of the products of all its critics at once.
    """
    for precision in precisions(device):
        limits = {
            population: product_rate(precision, seconds=effort.seconds, device=device, networks=2 * population)
            for population in effort.populations
        }
        for (name, alike), population in product(ALIKE.items(), effort.populations):
            task, about = tasks.find(name), {"algorithm": "TD3+BC", "task": alike, "precision": precision}
            *_, call = learning("TD3+BC", name, population, precision, device)
            pace = rate(call, effort.seconds) * UPDATES * population
            share = pace * operations(task.state_size, task.action_size, TD3()) / limits[population]
            yield about | {"population": population, "updates_per_second": pace, "fraction_of_limit": share}


def critics(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the updates per second of an agent on Hopper with plain critics, and with LayerNorm in them."""
    for precision, algorithm in product(precisions(device), ("TD3+BC", "TD3+BC, LayerNorm")):
        *_, call = learning(algorithm, "hopper", 1, precision, device)
        yield {"algorithm": algorithm, "precision": precision, "updates_per_second": rate(call, effort.seconds) * UPDATES}


def acting(effort: Effort, device: str = "cpu", steps: int = 600) -> Iterator[dict]:
    """Yields environment steps per second on Hopper, summed over the agents, with an update after each step.

    They are measured over a fixed number of steps. On the CPU only one agent is measured.
    """
    task, plan = tasks.find("hopper"), Finetuning(steps, 100, "uniform", evaluation_interval=100)
    cases = product(precisions(device), ("td3", "sac"), (1,) if device == "cpu" else effort.populations)
    for precision, name, population in cases:
        arm, seeds = Arm(name, ALGORITHMS[name].settings(), finetuning=plan, precision=precision), range(population)
        learner = training.learner(arm, task, seeds, arithmetic=replace(FAST, device=device))
        passes = training.finetune(learner, tasks.Lockstep(task, seeds), training.replay(learner))
        times = [time.perf_counter() for _ in passes]  # the first interval is the warm-up, the second has the capture
        pace = float(plan.evaluation_interval / np.diff(times[1:]).min()) * population
        about = {"algorithm": name.upper(), "task": "hopper", "precision": precision, "population": population}
        yield about | {"steps_per_second": pace}


def peers(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the updates per second of our TD3 and SAC, with and without the engine, and of each installed library.

    All use Hopper's sizes and the online loss, and their time includes drawing batches and noise. Each is measured in a process
    of its own on one core, one after the other, so that no library affects the next.
    """
    ours = [("mbaug", precision) for precision in precisions(device)]
    others = [(library, "float32") for library, module in PEERS.items() if find_spec(module) is not None]
    for name in ("TD3", "SAC"):
        for by, precision in (*ours, ("plain torch", "float32"), *others):
            label, pace = in_new_process(peer, name, by, precision, effort.seconds, device)
            yield {"algorithm": name, "by": label, "precision": precision, "updates_per_second": pace}


def peer(name: str, by: str, precision: str, seconds: float, device: str) -> tuple[str, float]:
    """Returns the library's name and version, and the updates per second of its `name` algorithm on one core."""
    if hasattr(os, "sched_setaffinity"):  # else JAX would use every core
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if by in PEERS:
        return stable_baselines(name, by, seconds)
    if by == "mbaug":
        engine.prepare(precision, device)
    *_, call = learning(name, "hopper", 1, precision, device, arithmetic=FAST if by == "mbaug" else PLAIN)
    return by, rate(call, seconds) * UPDATES


def stable_baselines(name: str, library: str, seconds: float) -> tuple[str, float]:
    """Returns the library's name and version, and the updates per second of its TD3 or SAC on the CPU, with our sizes."""
    module = import_module(PEERS[library])
    logger = import_module("stable_baselines3.common.logger")
    sizes = {"policy_kwargs": {"net_arch": [256, 256]}, "batch_size": 256}
    environment = tasks.make(tasks.find("hopper"))
    agent = getattr(module, name)("MlpPolicy", environment, **sizes, device="cpu", verbose=0)
    agent.set_logger(logger.Logger(None, []))
    state, action = np.zeros(11), np.zeros(3)
    for _ in range(1_000):
        agent.replay_buffer.add(state, state, action, np.zeros(1), np.zeros(1), [{}])
    pace = rate(lambda: agent.train(gradient_steps=UPDATES, batch_size=256), seconds) * UPDATES
    return f"{library} {module.__version__}", pace


def parts(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of each part of a TD3+BC update on Hopper, run without a graph under Python's profiler, and of
    the whole update without the profiler, run without and with a graph."""
    for precision in precisions(device):
        *_, call = learning("TD3+BC", "hopper", 1, precision, arithmetic=WITHOUT_GRAPH)
        *_, replay = learning("TD3+BC", "hopper", 1, precision)
        pace = rate(call, effort.seconds)
        calls = math.ceil(effort.seconds * pace)
        with cProfile.Profile() as profiler:
            for _ in range(calls):
                call()
        seconds = {part: spent / calls for part, spent in split(profiler).items()}
        seconds |= {"whole, without the profiler": 1 / pace, "whole, as a graph": 1 / rate(replay, effort.seconds)}
        for part, spent in seconds.items():
            yield {"precision": precision, "part": part, "microseconds": spent / UPDATES * 1e6}


def split(profile: cProfile.Profile) -> dict[str, float]:
    """Returns the seconds that a profile spent in each part of an update. The parts add up to the whole."""
    profile.create_stats()
    stats: dict = profile.stats  # keyed by file, line and name
    bmm_callers = [entry[4] for (_, _, name), entry in stats.items() if re.search(r"\bbmm\b", name)]
    forward, backward = perceptron._Perceptron.forward, perceptron._Perceptron.backward

    def within(*functions: Callable, stats: dict = stats) -> float:
        """Returns the seconds in functions (without their decorators), including everything that they call."""
        codes = [inspect.unwrap(function).__code__ for function in functions]
        keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
        return math.fsum(stats[key][3] for key in keys if key in stats)

    def in_products(function: Callable) -> float:
        """Returns the seconds in torch.bmm when that function calls it."""
        return math.fsum(within(function, stats=callers) for callers in bmm_callers)

    seconds = {
        "products, forward": in_products(forward),
        "products, backward": in_products(backward),
        "bias, ReLU and last layer, forward": within(forward) - in_products(forward),
        "bias, ReLU and last layer, backward": within(backward) - in_products(backward),
        "Adam": within(networks.Adam.step),
        "targets follow": within(networks.soft_update),
        "batches: gather": within(transitions.gather, transitions.unpack),
        "indices and noise": within(training.block) - within(transitions.gather, transitions.unpack),
    }
    whole = sum(entry[2] for entry in stats.values())
    return seconds | {"losses, and Python between": whole - sum(seconds.values())}


def moments(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of Adam's step on Hopper's critics, for moments of ordinary size and for moments below 1e-38, as
    dead units have, both if the processor keeps such numbers and if it treats them as zero."""
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
    """Yields updates per second and memory for growing populations, each measured alone (`costs_alone`)."""
    for precision in precisions(device):
        for population in effort.growth:
            found = costs_alone(effort.seconds, device, precision, population)
            yield {"precision": precision, "population": population, **found}


def captures(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates per second for growing populations on Hopper, summed over the agents, with a graph and without."""
    for population, (run, arithmetic) in product(effort.growth, {"with a graph": FAST, "without": WITHOUT_GRAPH}.items()):
        *_, call = learning("TD3+BC", "hopper", population, "float32", device, arithmetic=arithmetic)
        pace = rate(call, effort.seconds) * UPDATES * population
        yield {"population": population, "run": run, "updates_per_second": pace}


def datasets(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates per second, gathering time and memory for growing datasets, each measured alone (`costs_alone`)."""
    precision = precisions(device)[-1]
    for rows in effort.rows:
        yield {"precision": precision, "rows": rows, **costs_alone(effort.seconds, device, precision, rows=rows)}


def threads(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates per second with one and two threads, alone and beside another busy process."""
    for count in (1, 2):
        for name in LOADS:
            command = [sys.executable, "-c", f"from benchmarks import speed; speed.load({name!r})"]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
                try:
                    assert other.stdout is not None, "it is a pipe"
                    other.stdout.readline()
                    pace = in_new_process(costs, effort.seconds, device, threads=count)["updates_per_second"]
                finally:
                    other.kill()
            yield {"threads": count, "beside": name, "updates_per_second": pace}


def load(name: str) -> None:
    """Runs one of LOADS until this process is killed or its parent ends; prints a line once it runs."""
    engine.prepare()
    parent, calls = os.getppid(), {"nothing": partial(time.sleep, 0.1), "a busy loop": int}
    call = calls.get(name) or learning("TD3+BC", "hopper", 1, "float32")[-1]
    call()
    print(flush=True)
    while os.getppid() == parent:
        call()


def model(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the seconds of an epoch of the world model's fit to 10,000 rows, and of imagining a next state for each row."""
    drawn, _ = transitions.draw(read.load("hopper-medium-replay"), 10_000, seed=0)
    state, action = torch.from_numpy(drawn.state), torch.from_numpy(drawn.action)
    for precision in precisions(device):
        fit = world_model.epochs(WorldModel(epochs=10**6), drawn, 0, replace(FAST, precision=precision, device=device))
        fitted, _ = next(fit)
        epoch = rate(partial(next, fit), effort.seconds)
        imagine = partial(imagination.predict, fitted, state, action, streams.torch_generator(0, "benchmark"))
        yield {"precision": precision, "epoch_seconds": 1 / epoch, "imagine_seconds": 1 / rate(imagine, effort.seconds)}


SECTIONS = (products, updates, critics, acting, peers, parts, moments, populations, captures, datasets, threads, model)
SHORT = (products, updates, critics, acting, peers)  # sections that the command prints in about a minute
LIVE = (products, updates, critics, peers, parts, moments, populations, datasets, threads)  # what a notebook measures, TINY
ON_GPU = (products, updates, acting, populations, captures, datasets, model)  # sections that a GPU is measured with
