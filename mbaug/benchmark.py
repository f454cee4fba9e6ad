"""How fast an update is, against what the processor's products allow, and against peers measured in the same run.

A section is a function of an effort and a device that yields rows; in a row, numbers with a decimal point are
measured, and all else says what was measured. `python -m mbaug bench` prints a few sections; with `--record` all of them are
measured several times over and kept, every repeat, in data/benchmarks: evidence of one processor, read by notebook 90_engine.
"""

import cProfile
import json
import math
import multiprocessing
import os
import pstats
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mbaug import engine, files, recording, sac, settings, streams, tasks, td3, training, transitions, world_model
from mbaug.recording import RecordDamaged
from mbaug.settings import SAC, TD3, Arm, Finetuning, WorldModel
from mbaug.tasks import Task
from mbaug.transitions import Dataset

FORMAT = 1
ALIKE = {"hopper": "hopper", "halfcheetah": "walker2d, halfcheetah", "ant": "ant"}  # a task of each size, and who has it
ALGORITHMS = {  # the algorithm's module, its settings, and the actor's loss
    "TD3+BC": ("td3", TD3(), td3.actor_loss_bc),
    "TD3": ("td3", TD3(), td3.actor_loss),
    "SAC": ("sac", SAC(), sac.actor_loss),
}
UPDATES = 10  # whose batches are drawn at once: each call that is timed
LOADS = {  # what keeps another core busy while its parent lives, as a program that says when it has begun
    "nothing": None,
    "a busy loop": "import os\nparent = os.getppid()\nprint(flush=True)\nwhile os.getppid() == parent: pass",
    "another training": "from mbaug import benchmark\nbenchmark.train_forever()",
}


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


def rate(call: Callable[[], None], seconds: float, device: str = "cpu") -> float:
    """Returns calls a second: the best within `seconds` of wall time, after a first call that warms up.

    The best, because whatever else runs on the machine can only slow a call down.
    """
    wait = torch.cuda.synchronize if device != "cpu" else int
    call()
    best, end = math.inf, time.perf_counter() + seconds
    while best == math.inf or time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - begin)
    return 1 / best


# --- the limit ------------------------------------------------------------------------------------------------------------


def precisions(device: str = "cpu") -> list[str]:
    """Returns the precisions that the device has products of."""
    return ["float32", "bfloat16"] if engine.has_bfloat16(device) else ["float32"]


def product_rate(
    precision: str, inputs: int = 256, outputs: int = 256, seconds: float = 1.0, device: str = "cpu", batch: int = 256
) -> float:
    """Returns the floating-point operations a second of the products of twin networks, [B, inputs] by [inputs, outputs].

    That of 256 by 256 is the limit of an update: nearly all of its operations are such products.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(2, *shape, device=device).to(dtype) for shape in ((batch, inputs), (inputs, outputs)))

    def call() -> None:
        for _ in range(20):
            torch.bmm(left, right)

    return rate(call, seconds, device) * 20 * 2 * 2 * batch * inputs * outputs


def operations(state_size: int, action_size: int, learner: TD3) -> float:
    """Returns the floating-point operations of the matrix products of one TD3+BC update, averaged over a policy delay.

    Forward: target actor, twin target critics, twin critics; backward of the critics: gradients of all weights and of the
    hidden units. Every `policy_delay` updates: actor and first critic forward, the critic's inputs and the actor backward.
    """
    (first, second), batch = learner.hidden, learner.batch_size

    def forward(inputs, outputs):
        return inputs * first + first * second + second * outputs

    actor, critic = forward(state_size, action_size), forward(state_size + action_size, 1)
    hidden_gradients = first * second + second
    every = actor + 2 * critic + 2 * critic + 2 * (critic + hidden_gradients)
    delayed = actor + critic + critic + actor + first * second + second * action_size
    return 2 * batch * (every + delayed / learner.policy_delay)


# --- what is timed --------------------------------------------------------------------------------------------------------


def random_table(task: Task, population: int, rows: int, device: str = "cpu") -> Tensor:
    """Returns packed rows of standard normal states and rewards, actions in [-1, 1], and nothing terminal."""
    states = task.state_size
    table = torch.randn(population, rows, 2 * states + task.action_size + 3, device=device)
    table[..., states : states + task.action_size].tanh_()
    table[..., -2:] = 0
    return table


def as_written(call: Callable[[], None]) -> Callable[[], None]:
    """Captures nothing: the updates run through Python and autograd, as a reader sees them."""
    return call


def learning(
    algorithm: str,
    task: str,
    population: int,
    precision: str,
    device: str = "cpu",
    rows: int = 10_000,
    capture: Callable | None = None,
) -> tuple[training.Learner, Tensor, Callable[[], None]]:
    """Returns learners, their tables, and a function that draws UPDATES batches and learns from them, as training does."""
    module, learner_settings, loss = ALGORITHMS[algorithm]
    arm = Arm(module, learner_settings, precision=precision)
    learner = training.learner(arm, tasks.find(task), range(population), device=device)
    table, learn = random_table(learner.task, population, rows, device), training.updater(learner, loss, capture)

    def call() -> None:
        _, batches, noise = training.block(learner, table, UPDATES)
        learn(batches, noise)

    return learner, table, call


def updates_per_second(algorithm: str, task: str, population: int, precision: str, seconds: float, device: str) -> float:
    """Returns the updates a second of all agents together, with the drawing of their batches and noise."""
    *_, call = learning(algorithm, task, population, precision, device)
    return rate(call, seconds, device) * UPDATES * population


def online(algorithm: str, precision: str, steps: int = 600) -> float:
    """Returns environment steps a second on Hopper, each followed by an update, acting and stepping included."""
    learner = {"td3": TD3(), "sac": SAC()}[algorithm]
    plan = Finetuning(steps, 100, "uniform", evaluation_interval=100)
    task, arm = tasks.find("hopper"), Arm(algorithm, learner, finetuning=plan, precision=engine.prepare(precision))
    life = training.learner(arm, task, [0])
    best, begin = 0.0, None
    for _ in training.finetune(life, tasks.Lockstep(task, [0]), training.replay(life)):
        now = time.perf_counter()
        if begin is not None and life.environment_steps > 200:
            best = max(best, plan.evaluation_interval / (now - begin))
        begin = now
    return best


# --- sections -------------------------------------------------------------------------------------------------------------


def products(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the product rate of each shape that an update on Hopper multiplies, by two networks and a batch of 256."""
    for precision in precisions(device):
        for inputs, outputs in ((256, 256), (11, 256), (14, 256), (256, 3)):
            if precision == "bfloat16" and min(inputs, outputs) < engine.WIDE:
                continue  # the engine leaves these in float32
            found = product_rate(precision, inputs, outputs, effort.seconds, device)
            yield {"precision": precision, "inputs": inputs, "outputs": outputs, "gflops": found / 1e9}


def updates(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second, of all agents together, for the tasks' sizes, both precisions and three populations."""
    for precision in precisions(device):
        limit = product_rate(precision, seconds=effort.seconds, device=device)
        for task, alike in ALIKE.items():
            for population in effort.populations:
                found = updates_per_second("TD3+BC", task, population, precision, effort.seconds, device)
                work = operations(tasks.find(task).state_size, tasks.find(task).action_size, TD3())
                yield {
                    "algorithm": "TD3+BC",
                    "task": alike,
                    "precision": precision,
                    "population": population,
                    "updates_per_second": found,
                    "fraction_of_limit": found * work / limit,
                }


def acting(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields environment steps a second on Hopper, an update after each, over 600 steps, however long they take."""
    for precision in precisions(device):
        for algorithm in settings.ALGORITHMS:
            found = online(algorithm, precision)
            yield {"algorithm": algorithm.upper(), "task": "hopper", "precision": precision, "steps_per_second": found}


def peers(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the updates a second of our TD3 and SAC and, if it is installed, of Stable-Baselines3's, at Hopper's sizes.

    Ours and the peer's include the drawing of batches and noise; both are TD3 with its online loss.
    """
    for name in ("TD3", "SAC"):
        for precision in precisions(device):
            found = updates_per_second(name, "hopper", 1, precision, effort.seconds, device)
            yield {"algorithm": name, "by": "mbaug", "precision": precision, "updates_per_second": found}
        if find_spec("stable_baselines3") is not None:
            yield {"algorithm": name, **stable_baselines(name, effort.seconds)}


def stable_baselines(name: str, seconds: float) -> dict:
    """Returns the updates a second of Stable-Baselines3's TD3 or SAC, on the CPU, with our sizes."""
    import stable_baselines3

    environment = gymnasium.make(tasks.find("hopper").gym_id)
    sizes = {"policy_kwargs": {"net_arch": [256, 256]}, "batch_size": 256}
    peer = getattr(stable_baselines3, name)("MlpPolicy", environment, **sizes, device="cpu", verbose=0)
    peer.set_logger(stable_baselines3.common.logger.Logger(None, []))
    state, action = np.zeros(11), np.zeros(3)
    for _ in range(1_000):
        peer.replay_buffer.add(state, state, action, np.zeros(1), np.zeros(1), [{}])
    found = rate(lambda: peer.train(gradient_steps=UPDATES, batch_size=256), seconds) * UPDATES
    by = f"Stable-Baselines3 {stable_baselines3.__version__}"
    return {"by": by, "precision": "float32", "updates_per_second": found}


def parts(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of each part of an update of TD3+BC on Hopper as it is written, by Python's profiler; and of
    the whole without it, as it is written and as a graph."""
    for precision in precisions(device):
        *_, call = learning("TD3+BC", "hopper", 1, precision, capture=as_written)
        *_, replay = learning("TD3+BC", "hopper", 1, precision)
        whole, profiler, calls = rate(call, effort.seconds), cProfile.Profile(), 0
        end = time.perf_counter() + effort.seconds
        profiler.enable()
        while calls == 0 or time.perf_counter() < end:
            call()
            calls += 1
        profiler.disable()
        found = {part: spent / calls for part, spent in split(pstats.Stats(profiler)).items()}
        found |= {"whole, without the profiler": 1 / whole, "whole, as a graph": 1 / rate(replay, effort.seconds)}
        for part, spent in found.items():
            yield {"precision": precision, "part": part, "microseconds": spent / UPDATES * 1e6}


def split(profile: pstats.Stats) -> dict[str, float]:
    """Returns the seconds that a profile spent in each part of the updates it saw; together they are the whole."""

    def within(file: str, *names: str) -> float:
        """Seconds in functions of a module, all that they call included."""
        return math.fsum(
            spent[3] for (path, _, name), spent in profile.stats.items() if name in names and Path(path).name == file
        )

    def called(builtin: str, caller: str = "") -> float:
        """Seconds in one of torch's own functions, when called from a function of that name."""
        found = [spent[4] for (_, _, name), spent in profile.stats.items() if re.search(rf"\b{builtin}\b", name)]
        return math.fsum(times[3] for callers in found for (_, _, name), times in callers.items() if caller in ("", name))

    forward, backward = (called("bmm", name) for name in ("forward", "backward"))
    found = {
        "products, forward": forward,
        "products, backward": backward,
        "bias, ReLU and last layer, forward": within("engine.py", "forward") - forward,
        "bias, ReLU and last layer, backward": within("engine.py", "backward") - backward,
        "Adam": within("engine.py", "step"),
        "targets follow": within("td3.py", "track"),
        "batches: gather": within("transitions.py", "gather", "unpack"),
        "indices and noise": within("training.py", "_update_noise") + called("randint"),
    }
    whole = sum(spent[2] for spent in profile.stats.values())
    return found | {"losses, and Python between": whole - sum(found.values())}


def moments(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields the microseconds of Adam's step on Hopper's critics, where moments are of ordinary size and where they are below
    1e-38, as those of dead units; with arithmetic that keeps such numbers and with one that takes them for zero."""
    for size in (1e-3, 1e-39):
        for kept in (True, False):
            learner, *_ = learning("TD3+BC", "hopper", 1, "float32")
            flat, adam = learner.agent.critics.network.frozen.flat, learner.agent.critics_moments
            torch.set_flush_denormal(not kept)
            adam.first.fill_(size)

            def steps(flat=flat, adam=adam) -> None:
                for _ in range(UPDATES):
                    adam.step(flat, torch.zeros_like(flat), 0.0)

            yield {"moments": size, "kept": kept, "microseconds": 1e6 / UPDATES / rate(steps, effort.seconds)}
    torch.set_flush_denormal(True)


def populations(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second and memory for 1 to 32 agents side by side, each measured in a process of its own."""
    for precision in precisions(device):
        for population in effort.growth:
            yield {
                "precision": precision,
                "population": population,
                **fresh(grown, population, 10_000, precision, effort.seconds, device),
            }


def datasets(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second, the time of gathering and memory for 1K to 1M rows, each measured in a process of its own."""
    precision = precisions(device)[-1]
    for rows in effort.rows:
        yield {"precision": precision, "rows": rows, **fresh(grown, 1, rows, precision, effort.seconds, device)}


def grown(population: int, rows: int, precision: str, seconds: float, device: str) -> dict:
    """Returns the cost of a population and of the rows that each agent draws from, and what they hold in bytes."""
    engine.prepare(precision, device)
    learner, table, call = learning("TD3+BC", "hopper", population, precision, device, rows)
    found = rate(call, seconds, device) * UPDATES * population
    index, *_ = training.block(learner, table, UPDATES)

    def gather() -> None:
        transitions.unpack(transitions.gather(table, index), learner.task.state_size, learner.task.action_size)

    gathering = 1e6 / rate(gather, seconds / 4, device) / UPDATES / population
    held = sum(tensor.numel() * tensor.element_size() for tensor in training.memory(learner).values())
    return {
        "learner_bytes": held,
        "table_bytes": table.numel() * table.element_size(),
        "updates_per_second": found,
        "gather_microseconds": gathering,
        "peak_megabytes": peak_megabytes(device),
    }


def peak_megabytes(device: str = "cpu") -> float:
    """Returns the most memory that this process ever held, in MB, of the GPU's if that trains; NaN where nobody tells.

    On Linux VmHWM, which begins anew with a program; what getrusage tells is at least the peak of the parent.
    """
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((float(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), math.nan)


def threads(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields updates a second with one and with two threads, alone and beside one other process."""
    for count in (1, 2):
        for name in LOADS:
            with beside(name):
                found = fresh(threaded, count, effort.seconds)
            yield {"threads": count, "beside": name, "updates_per_second": found}


def threaded(count: int, seconds: float) -> float:
    """Returns the updates a second of TD3+BC on Hopper, float32, with that many threads."""
    engine.prepare()
    torch.set_num_threads(count)
    return updates_per_second("TD3+BC", "hopper", 1, "float32", seconds, "cpu")


def train_forever() -> None:
    """Trains with one thread until it is killed, or its parent is gone; prints a line when it has begun."""
    engine.prepare()
    parent, (*_, call) = os.getppid(), learning("TD3+BC", "hopper", 1, "float32")
    call()
    print(flush=True)
    while os.getppid() == parent:
        call()


@contextmanager
def beside(name: str) -> Iterator[None]:
    """Keeps another process busy with one of LOADS for as long as this lasts."""
    if LOADS[name] is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", LOADS[name]], stdout=subprocess.PIPE) as load:
        try:
            load.stdout.readline()
            yield
        finally:
            load.kill()


def fresh(function: Callable, *arguments):
    """Returns what a function of this module returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def model(effort: Effort, device: str = "cpu") -> Iterator[dict]:
    """Yields what the paper's world model costs on 10,000 rows: an epoch of its fit, and an imagined next state for each."""
    task, rows = tasks.find("hopper"), 10_000
    batch = transitions.unpack(random_table(task, 1, rows), task.state_size, task.action_size)
    state, action, reward, next_state, _ = (part[0].numpy() for part in batch)
    none = np.zeros(rows, dtype=bool)
    drawn = Dataset("made", state, action, reward, next_state, none, none, np.arange(rows))
    generators = streams.torch_generators([0], "benchmark")
    for precision in precisions(device):
        fit = world_model.epochs(replace(WorldModel(), epochs=10**6), drawn, 0, precision, device)
        fitted, _ = next(fit)
        epoch = rate(lambda fit=fit: next(fit), effort.seconds, device)
        imagine = partial(world_model.predict, fitted, batch.state, batch.action, generators)
        yield {"precision": precision, "epoch_seconds": 1 / epoch, "imagine_seconds": 1 / rate(imagine, effort.seconds, device)}


SECTIONS = (products, updates, acting, peers, parts, moments, populations, datasets, threads, model)
SHORT = (products, updates, acting, peers)  # what is printed in under a minute
LIVE = (products, updates, peers, parts, moments, populations, datasets, threads)  # by a notebook itself, with TINY effort
ON_GPU = (products, updates, populations, datasets)
COMPARED = (products, updates, threads)  # what a processor is held against the others by: no file is without


# --- several times over, and kept -----------------------------------------------------------------------------------------


def measure(section: Callable[..., Iterator[dict]], effort: Effort, device: str = "cpu") -> list[dict]:
    """Returns a section's rows, each measured number as the list of its repeats.

    The whole section is repeated, not each row: what changes slowly on a machine then touches all rows alike.
    """
    rounds = [list(section(effort, device)) for _ in range(effort.repeats)]
    return [
        {name: [row[name] for row in rows] if isinstance(value, float) else value for name, value in rows[0].items()}
        for rows in zip(*rounds, strict=True)
    ]


def measure_all(effort: Effort, device: str, sections: Sequence[Callable], report: Callable[[str], None] = print) -> dict:
    """Returns what was measured, how, with what, on what.

    Args:
        effort: of each row.
        device: "cpu" or "cuda".
        sections: to measure.
        report: takes a line before each section.
    """
    found = {}
    for section in sections:
        report(f"{section.__name__}: {section.__doc__.splitlines()[0].removeprefix('Yields ')}")
        found[section.__name__] = measure(section, effort, device)
    provenance = recording.provenance(", ".join(precisions(device)), device)
    about = {"format": FORMAT, "provenance": provenance, "cores": os.cpu_count(), **recording.plain(effort)}
    return about | {"sections": found}


def folder() -> Path:
    """Returns the repository's folder of benchmarks, data/benchmarks: a file for each processor."""
    return recording.repository() / "data" / "benchmarks"


def path_of(document: dict, folder: Path) -> Path:
    """Returns where the document of a processor, or of a GPU, is kept."""
    provenance = document["provenance"]
    name = provenance.get("device", provenance["cpu"])
    return folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def keep(document: dict, folder: Path) -> Path:
    """Writes a document in place of the same processor's last one, in one piece or not at all; returns where.

    Raises:
        files.CannotWrite: the folder is full or read-only; the last one is still there.
    """
    path = path_of(document, folder)
    files.write_atomically(path, (recording.json_text(document) + "\n").encode())
    return path


def load(folder: Path) -> list[dict]:
    """Returns the documents in a folder, the processor with the fastest float32 products first; none where there is none.

    Raises:
        RecordDamaged: a file is not what `keep` writes.
    """
    documents = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
            needed = {section.__name__ for section in (COMPARED if "device" not in document["provenance"] else ON_GPU)}
            whole = document["format"] == FORMAT and needed <= set(document["sections"])
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise RecordDamaged(
                f"{path} is no benchmark of format {FORMAT}: measure it again with python -m mbaug bench --record"
            )
        documents.append(document)
    return sorted(documents, key=lambda document: -max(document["sections"]["products"][0]["gflops"]))


def table(rows: Sequence[dict]) -> pd.DataFrame:
    """Returns rows as a table: each measured number as the median of its repeats, with its lowest and highest beside it."""
    plain = []
    for row in rows:
        plain.append({})
        for name, value in row.items():
            if not isinstance(value, list):
                plain[-1][name] = value
                continue
            known = [math.nan if repeat is None else repeat for repeat in value]
            plain[-1] |= {name: statistics.median(known), f"{name}_low": min(known), f"{name}_high": max(known)}
    return pd.DataFrame(plain)


# --- for a reader ---------------------------------------------------------------------------------------------------------


def text(section: str, rows: Sequence[dict]) -> str:
    """Returns a section's rows as lines of a fixed width: medians."""
    shown = table(rows)
    shown = shown[[name for name in shown if not name.endswith(("_low", "_high"))]]
    return f"{section}\n{shown.to_string(index=False, float_format=lambda x: f'{x:.3g}' if x < 10 else f'{x:.0f}')}\n"


def ratios(rows: Sequence[dict]) -> list[str]:
    """Returns a sentence for each of our rows on how many times as fast as the peer of the same algorithm it is."""
    found = table(rows)
    ours, others = found[found["by"] == "mbaug"], found[found["by"] != "mbaug"]
    if others.empty:
        return ["No peer is installed: after `make setup EXTRAS=peers` Stable-Baselines3 is measured in the same run."]
    pairs = ours.merge(others, on="algorithm", suffixes=("", "_peer"))
    return [
        f"{row.algorithm}, {row.precision}: {row.updates_per_second / row.updates_per_second_peer:.2f} times {row.by_peer}"
        for row in pairs.itertuples()
    ]


def main(as_json: bool = False, device: str = "cpu", record: bool = False) -> None:
    """Prints a few sections, as tables or as JSON, or measures all of them and keeps them."""
    engine.prepare("float32", device)
    if record:
        print(f"{len(SECTIONS)} sections, {FULL.repeats} times each: about twenty minutes; the machine should do nothing else")
        print(keep(measure_all(FULL, device, SECTIONS if device == "cpu" else ON_GPU), folder()))
        return
    found = {}
    for section in SHORT:
        if device == "cpu" or section in ON_GPU:
            found[section.__name__] = measure(section, QUICK, device)
            if not as_json:
                print(text(section.__name__, found[section.__name__]), flush=True)
    if as_json:
        provenance = recording.provenance(", ".join(precisions(device)), device)
        print(recording.json_text({"provenance": provenance, "sections": found}))
        return
    if not engine.has_bfloat16(device):
        print("This processor has no bfloat16 products (avx512_bf16 or amx_bf16): float32 alone is measured.")
    print(*(ratios(found["peers"]) if "peers" in found else []), sep="\n")
