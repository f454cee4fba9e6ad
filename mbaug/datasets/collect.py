"""Collects the offline data: SAC learns a task from scratch, and we turn its replay buffer and its policies into pools.

All pools of a task come from one training run, `<task>/none/sac_million/seed<k>`. data/README.md says what each pool holds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mbaug import files, streams
from mbaug.checks import require
from mbaug.datasets import pools, read
from mbaug.datasets.pools import Rows, episodes
from mbaug.method import training
from mbaug.method.arms import Arm
from mbaug.method.transitions import REWARD, TERMINAL, packed_rows
from mbaug.provenance import provenance
from mbaug.tasks import Lockstep, Task

REPLAYED = 45_000  # minimum number of transitions in a medium-replay pool; ours: small enough to ship
ROLLED_OUT = 20_000  # minimum number of transitions in a random, medium or expert pool; ours
FINAL = 10  # number of last evaluations whose mean is the final return

Report = Callable[[str], None]
Act = Callable[[Float[np.ndarray, " state"], np.random.Generator], Float[np.ndarray, " action"]]


def curve(rows: Sequence[dict]) -> list[dict]:
    """Returns `environment_steps` and `returns` of each online evaluation among a run's rows."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["phase"] == "finetune":
            found.setdefault(row["environment_steps"], []).append(row["return"])
    return [{"environment_steps": steps, "returns": returns} for steps, returns in found.items()]


def medium_level(task: Task, curve: Sequence[dict], ended: bool) -> float | None:
    """Returns the return at which an agent counts as medium: R_medium, or R_random + (R_final - R_random) / 3.

    R_medium is the return of D4RL's medium dataset. Where we do not know it, the second formula applies, with R_final the mean of
    the last `FINAL` evaluations. Returns None if R_final is needed and training has not `ended`.
    """
    if task.return_medium is not None or not ended:
        return task.return_medium
    final = np.mean([point["returns"] for point in curve[-FINAL:]])
    return float(task.return_random + (final - task.return_random) / 3)


def holds(curve: Sequence[dict], level: float) -> bool:
    """Returns whether the last two evaluations both have a mean return of at least `level`."""
    return len(curve) >= 2 and all(np.mean(point["returns"]) >= level for point in curve[-2:])


def medium_steps(curve: Sequence[dict], level: float | None) -> int | None:
    """Returns the number of environment steps after which the curve first holds `level`, or None if it never does."""
    if level is None:
        return None
    for count in range(2, len(curve) + 1):
        if holds(curve[:count], level):
            return curve[count - 1]["environment_steps"]
    return None


def choose_episodes(rows: Rows, size: int, seed: int) -> list[np.ndarray]:
    """Returns whole episodes, drawn uniformly without replacement until they hold at least `size` steps, or all of them."""
    found = episodes(rows)
    order = streams.numpy_generator(seed, "pool").permutation(len(found))
    counts = np.cumsum([len(found[number]) for number in order])
    return [found[number] for number in sorted(order[: int(np.searchsorted(counts, size)) + 1])]


def roll_out(task: Task, quality: str, seed: int, act: Act) -> Rows:
    """Returns whole episodes of the policy `act`, at least `ROLLED_OUT` steps. `seed` and `quality` name the random streams."""
    environments = Lockstep(task, [streams.integer(seed, "pool", quality)])
    random, rows = streams.numpy_generator(seed, "pool", quality), []
    while len(rows) < ROLLED_OUT or not rows[-1][TERMINAL:].any():
        state = environments.state
        action = act(state[0], random)[None]
        step = environments.step(action)
        rows.append(packed_rows(state, action, step.next_state, step.reward, step.terminal, step.truncated)[0])
    environments.close()
    return np.stack(rows)


def uniform(task: Task) -> Act:
    """Returns the policy whose actions are uniform in [-1, 1]."""
    return lambda state, random: 2 * random.random(task.action_size, dtype=np.float32) - 1


def explorer(task: Task, arm: Arm, actor: Float[Tensor, " parameters"]) -> Act:
    """Returns the policy of an actor that explores as it does in training."""
    learner = training.learner(arm, task, [0])
    training.set_actor(learner, actor)
    explore = learner.algorithm.explorer(learner.agent, 0, arm.learner)
    return lambda state, random: explore(state, random.standard_normal(task.action_size, dtype=np.float32))


class Recorded(NamedTuple):
    """The training run that a task's pools come from, as far as data/runs holds it."""

    run: str  # name of the run
    curve: list[dict]  # evaluations (`curve`); empty if the run is not recorded
    finished: bool  # False if the run diverged or is not recorded


@dataclass(frozen=True, eq=False)
class Trained:
    """The results of a training run so far, from which we make pools."""

    task: Task
    seed: int  # of the agent, of the choice of episodes and of the roll-outs
    run: str | None  # name of the run for the cards; None if this run differs from the recorded one
    arm: Arm
    provenance: dict
    curve: list[dict]  # evaluations (`curve`)
    replay: Rows  # packed replay buffer, one row per environment step
    actor: Callable[[int], Float[Tensor, " parameters"]]  # environment steps of an evaluation -> the actor's parameters then
    ended: bool  # training reached its end and the agent did not diverge


def collect(
    task: Task, seed: int, folders: Sequence[Path], recorded: Recorded, train: Callable[[], Iterator[Trained]], report: Report
) -> None:
    """Makes the missing pools of a task and seed, and trains only as far as they need.

    If the record and `expert` exist, training stops at the medium level. If everything exists, we
    do not train. On a processor other than the record's, training gives different numbers, so the
    cards of new pools name no run.

    Args:
        folders: the folder of the pools, and the folder of the `replay` pool.
        train: starts or continues the training. It yields the results before its first step and after every evaluation.

    Raises:
        ValueError: A folder holds a pool of another seed.
    """
    main, large = folders
    paths = {name: (large if name == "replay" else main) / f"{task.name}-{name}.hdf5" for name in read.QUALITIES}
    for path in filter(pools.exists, paths.values()):
        found = read.read_card(path).get("seed")
        other = f"seed {seed} was requested, but {path.stem} in {path.parent} has seed {found}"
        require(found == seed, f"{other}: name another folder with --output, since all pools in a folder share one seed")
    about = {"provenance": provenance("float32"), "policy": "uniform in [-1, 1]"}
    make(paths["random"], task, seed, lambda: (about, roll_out(task, "random", seed, uniform(task))), report)
    absent = [quality for quality, path in paths.items() if not pools.exists(path)]
    if recorded.curve and not absent:
        report(f"{recorded.run} and all pools of {task.name} already exist and stay as they are")
        return
    level, to_the_end = medium_level(task, recorded.curve, recorded.finished), not recorded.curve or "expert" in absent
    states = train()
    trained = next(states)
    for following in states:
        if len(following.curve) > len(trained.curve):
            point = following.curve[-1]
            report(f"{point['environment_steps']:>9,} steps: greedy return {np.mean(point['returns']):8.1f}")
        trained = following
        if not to_the_end and medium_steps(trained.curve, level):
            break
    if recorded.curve and trained.curve != recorded.curve[: len(trained.curve)]:
        consequence = "this training differs from it, as on another processor: the cards of its pools name no run"
        report(f"{recorded.run} is recorded, but {consequence}")
        trained = replace(trained, run=None)
    make_trained(trained, level, paths, report)


def make_trained(trained: Trained, level: float | None, paths: dict[str, Path], report: Report) -> None:
    """Makes the pools that the training has reached and reports the others. `level` is None if it is not known yet."""
    name, curve = trained.task.name, trained.curve
    level = medium_level(trained.task, curve, ended=True) if trained.ended else level
    medium, last = medium_steps(curve, level), curve[-1]["environment_steps"] if trained.ended else None
    for quality, steps in {"replay": medium, "medium-replay": medium, "medium": medium, "expert": last}.items():
        if steps is not None:
            make(paths[quality], trained.task, trained.seed, partial(content, trained, quality, steps, level), report)
    if medium is None:
        why = "is known only at the end of training" if level is None else f"of {level:,.0f} has not been held yet"
        report(f"{name}-replay, {name}-medium-replay and {name}-medium are not made: the medium level {why}")
    if last is None:
        report(f"{name}-expert is not made: training has not reached its end")


def make(path: Path, task: Task, seed: int, build: Callable[[], tuple[dict, Rows]], report: Report) -> None:
    """Writes a pool unless it exists. `build` returns the pool's part of the card and its rows."""
    if pools.exists(path):
        report(f"{path.stem} already exists in {path.parent} and stays as it is: pools are never overwritten")
        return
    about, rows = build()
    command = f"python -m mbaug collect {task.name} --seed {seed}"
    pools.write(path, rows, task, {"command": command, "licence": pools.LICENCE, "seed": seed} | about)
    report(f"{path.stem} is made: {path}, {path.stat().st_size / 1e6:.2f} MB")


def content(trained: Trained, quality: str, steps: int, level: float | None) -> tuple[dict, Rows]:
    """Returns what a pool's card says about the training up to `steps` environment steps, and the pool's transitions."""
    task, seed, curve = trained.task, trained.seed, trained.curve
    run = {} if trained.run is None else {"run": trained.run}
    about = {"provenance": trained.provenance} | run | {"settings": files.plain(trained.arm)}
    if quality in ("medium", "expert"):
        greedy = next(point["returns"] for point in curve if point["environment_steps"] == steps)
        policy = f"the agent after {steps} environment steps, as random as it is while it learns"
        rows = roll_out(task, quality, seed, explorer(task, trained.arm, trained.actor(steps)))
        return about | {"policy": policy, "greedy_return": float(np.mean(greedy))}, rows
    rows = trained.replay[:steps]
    finished = episodes(rows)
    about |= {
        "stop": f"greedy return of at least {level} over two consecutive evaluations",
        "medium_level": level,
        "replay_transitions": len(rows),
        "replay_episodes": len(finished),
        "replay_mean_return": float(np.mean([rows[episode, REWARD].sum() for episode in finished])),
        "curve": [point for point in curve if point["environment_steps"] <= steps],
    }
    if quality == "medium-replay":
        rows = rows[np.concatenate(choose_episodes(rows, REPLAYED, seed))]
    return about, rows
