"""How fast an update is, against what the processor's products allow, and against peers measured in the same run."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import gymnasium
import numpy as np
import torch

from mbaug import engine, recording, sac, settings, tasks, td3, training
from mbaug.settings import SAC, TD3, Arm, Finetuning
from mbaug.transitions import Batch

SIZES = {"hopper": (11, 3), "walker2d, halfcheetah": (17, 6), "ant": (27, 8)}
POPULATIONS = (1, 4, 10)


def rate(call: Callable[[], None], seconds: float, chunk: int = 1) -> float:
    """Returns calls a second: the best of chunks within `seconds` of wall time, after a warm-up of one chunk.

    The best, because whatever else runs on the machine can only slow a chunk down.
    """
    best, end = 0.0, None
    while end is None or time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(chunk):
            call()
        if end is None:
            end = time.perf_counter() + seconds
        else:
            best = max(best, chunk / (time.perf_counter() - begin))
    return best


def products(precision: str, size: int = 256, device: str = "cpu", seconds: float = 1.0) -> float:
    """Returns the floating-point operations a second of a pair of square products: the limit of an update."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = torch.randn(2, 2, size, size, device=device, dtype=dtype).unbind()
    return rate(lambda: torch.bmm(left, right), seconds, 20) * 2 * 2 * size**3


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


def update(algorithm: str, state_size: int, action_size: int, population: int, precision: str, device: str = "cpu"):
    """Returns a function of no arguments that does one policy delay of updates on random batches, and how many that is."""
    module, learner = training.ALGORITHMS[algorithm], {"td3": TD3(), "sac": SAC()}[algorithm]
    generators = [torch.Generator(device).manual_seed(k) for k in range(population)]
    agent = module.create(state_size, action_size, learner, generators, precision, device)

    def normal(*shape):
        return torch.randn(shape, device=device)

    shape = population, learner.batch_size
    batch = Batch(
        normal(*shape, state_size),
        normal(*shape, action_size).tanh(),
        normal(*shape),
        normal(*shape, state_size),
        torch.zeros(shape, device=device),
    )
    noise = module.noise(normal(module.NORMALS, *shape, action_size), learner)
    loss = {"td3": td3.actor_loss_bc, "sac": sac.actor_loss}[algorithm]
    count = learner.policy_delay

    def period():
        for number in range(1, count + 1):
            module.update(agent, batch, noise, learner, number, loss)

    return engine.captured(period, device), count


def updates(device: str = "cpu", seconds: float = 1.0) -> Iterator[dict]:
    """Yields a row for each task's sizes, precision and population: updates a second, of all agents together."""
    for precision in ("float32", "bfloat16"):
        used = engine.prepare(precision, device)
        limit = products(used, device=device)
        for task, sizes in SIZES.items():
            for population in POPULATIONS:
                period, count = update("td3", *sizes, population, used, device)
                found = rate(period, seconds, 5) * count * population
                yield {
                    "algorithm": "TD3+BC",
                    "task": task,
                    "precision": used,
                    "population": population,
                    "updates_per_second": found,
                    "product_gflops": limit / 1e9,
                    "fraction_of_limit": found * operations(*sizes, TD3()) / limit,
                }
        period, count = update("sac", *SIZES["hopper"], 1, used, device)
        found = rate(period, seconds, 10) * count
        yield {"algorithm": "SAC", "task": "hopper", "precision": used, "population": 1, "updates_per_second": found}


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


def peers(seconds: float = 3.0) -> Iterator[dict]:
    """Yields the updates a second of Stable-Baselines3's TD3 and SAC at Hopper's sizes; nothing if it is not installed."""
    if find_spec("stable_baselines3") is None:
        return
    import stable_baselines3

    environment = gymnasium.make("Hopper-v5")
    for name in ("TD3", "SAC"):
        peer = getattr(stable_baselines3, name)("MlpPolicy", environment, batch_size=256, device="cpu", verbose=0)
        peer.policy_kwargs = {"net_arch": [256, 256]}
        peer._setup_model()
        peer.set_logger(stable_baselines3.common.logger.Logger(None, []))
        state, action = np.zeros(11), np.zeros(3)
        for _ in range(1_000):
            peer.replay_buffer.add(state, state, action, np.zeros(1), np.zeros(1), [{}])
        found = rate(lambda peer=peer: peer.train(gradient_steps=10, batch_size=256), seconds) * 10
        version = f"Stable-Baselines3 {stable_baselines3.__version__}"
        yield {
            "algorithm": f"{version} {name}",
            "task": "hopper",
            "precision": "float32",
            "population": 1,
            "updates_per_second": found,
        }


def text(rows: list[dict]) -> str:
    """Returns the rows as a table of fixed width."""
    lines = [f"{'algorithm':<30}{'task':<24}{'precision':<11}{'agents':>6}{'updates/s':>11}{'of limit':>10}"]
    for row in rows:
        fraction = row.get("fraction_of_limit")
        share = "" if fraction is None else f"{fraction:.0%}"
        lines.append(
            f"{row['algorithm']:<30}{row['task']:<24}{row['precision']:<11}{row['population']:>6}"
            f"{row['updates_per_second']:>11.0f}{share:>10}"
        )
    return "\n".join(lines)


def main(as_json: bool = False, device: str = "cpu") -> None:
    """Prints updates a second for the four tasks' sizes, precisions and populations, and for peers that are installed."""
    rows = list(updates(device))
    if device == "cpu":
        for algorithm in settings.ALGORITHMS:
            rows.append(
                {
                    "algorithm": f"{algorithm.upper()} online (steps/s)",
                    "task": "hopper",
                    "precision": "float32",
                    "population": 1,
                    "updates_per_second": online(algorithm, "float32"),
                }
            )
        rows += peers()
    if as_json:
        print(json.dumps({"machine": platform.machine(), **recording.provenance("both"), "rows": rows}, indent=1))
        return
    rates = {row["precision"]: row["product_gflops"] for row in rows if "product_gflops" in row}
    print("products: " + ", ".join(f"{precision} {found:.0f} GFLOP/s" for precision, found in rates.items()) + ", one thread")
    print(text(rows))
