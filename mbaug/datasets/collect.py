"""The offline data: SAC learns a task from scratch, and the transitions that it sees on the way become pools.

One training, the run `<task>/none/sac_million/seed<k>`, gives all of a task's pools; data/README.md says what each holds.
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
from mbaug.provenance import provenance
from mbaug.tasks import Lockstep, Task

REPLAYED = 45_000  # transitions of a medium-replay pool, at least; ours: small enough to ship
ROLLED_OUT = 20_000  # transitions of the other pools, at least: whole episodes
FINAL = 10  # evaluations at the end whose mean is the final return

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
    """Returns the greedy return that is half good: D4RL's or, where that is not known, a third of the way to the final return.

    The way begins at the return that scores 0 and ends at the mean of the last `FINAL` evaluations; None: not known yet.
    """
    if task.return_medium is not None or not ended:
        return task.return_medium
    final = np.mean([point["returns"] for point in curve[-FINAL:]])
    return float(task.return_random + (final - task.return_random) / 3)


def holds(curve: Sequence[dict], level: float) -> bool:
    """Returns whether the last two evaluations both have a mean return of at least `level`."""
    return len(curve) >= 2 and all(np.mean(point["returns"]) >= level for point in curve[-2:])


def medium_steps(curve: Sequence[dict], level: float | None) -> int | None:
    """Returns the environment steps after which the greedy return first held `level`, None if it never did."""
    if level is None:
        return None
    parts = (curve[:count] for count in range(len(curve) + 1))
    return next((part[-1]["environment_steps"] for part in parts if holds(part, level)), None)


def choose_episodes(rows: Rows, size: int, seed: int) -> list[np.ndarray]:
    """Returns whole episodes, uniformly at random without replacement, until they hold at least `size` steps, or all."""
    found = episodes(rows)
    order = streams.numpy_generator(seed, "pool").permutation(len(found))
    counts = np.cumsum([len(found[number]) for number in order])
    return [found[number] for number in sorted(order[: int(np.searchsorted(counts, size)) + 1])]


def roll_out(task: Task, quality: str, seed: int, act: Act) -> Rows:
    """Returns whole episodes of `act`, at least `ROLLED_OUT` steps of them; `seed` and `quality` name the random streams."""
    environments = Lockstep(task, [streams.integer(seed, "pool", quality)])
    random, rows = streams.numpy_generator(seed, "pool", quality), []
    while len(rows) < ROLLED_OUT or not rows[-1][-2:].any():
        state = environments.state
        action = act(state[0], random)[None]
        step = environments.step(action)
        scalars = (array[:, None] for array in (step.reward, step.terminal, step.truncated))
        rows.append(np.concatenate([state, action, step.next_state, *scalars], axis=1, dtype=np.float32)[0])
    environments.close()
    return np.stack(rows)


def uniform(task: Task) -> Act:
    """Returns the policy of actions that are uniform in [-1, 1]."""
    return lambda state, random: 2 * random.random(task.action_size, dtype=np.float32) - 1


def explorer(task: Task, arm: Arm, actor: Float[Tensor, " parameters"]) -> Act:
    """Returns the policy of an actor that acts as it does while it learns, with its randomness."""
    learner = training.learner(arm, task, [0])
    training.set_actor(learner, actor)
    explore = learner.algorithm.explorer(learner.agent, 0, arm.learner)
    return lambda state, random: explore(state, random.standard_normal(task.action_size, dtype=np.float32))


class Recorded(NamedTuple):
    """What data/runs holds of the run that a task's pools come from."""

    run: str  # its name
    curve: list[dict]  # its evaluations (`curve`), none if it is not recorded
    finished: bool  # False: it diverged, or is not recorded


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training has given so far: all that pools are made from."""

    task: Task
    seed: int  # of the agent; also chooses episodes and rolls out
    run: str | None  # the name that cards give, None if the recorded training went otherwise
    arm: Arm
    provenance: dict
    curve: list[dict]  # its evaluations (`curve`)
    replay: Rows  # packed, a row for each environment step
    actor: Callable[[int], Float[Tensor, " parameters"]]  # its parameters at the evaluation after so many environment steps
    ended: bool  # the agent was trained to the end and did not diverge


def collect(
    task: Task, seed: int, folders: Sequence[Path], recorded: Recorded, train: Callable[[], Iterator[Trained]], report: Report
) -> None:
    """Makes the pools of a task and seed that are not there, after training as far as they need it.

    If the record and `expert` exist, training ends when the medium level is held. If everything exists, it never begins. On a
    processor other than the record's, training takes another course, so the cards of new pools name no run.

    `folders` are that of the pools and that of the whole replay. `train` yields what a training has given: first before any step
    from here, then after every evaluation.
    """
    places = {quality: folders[quality == "replay"] / f"{task.name}-{quality}.hdf5" for quality in read.QUALITIES}
    for path in filter(pools.exists, places.values()):
        found = read.read_card(path).get("seed")
        other = f"seed {seed} was asked for, but {path.stem} in {path.parent} is of seed {found}"
        require(found == seed, f"{other}: name another folder with --output, since a folder's pools are of one training")
    about = {"provenance": provenance("float32"), "policy": "uniform in [-1, 1]"}
    make(places["random"], task, seed, lambda: (about, roll_out(task, "random", seed, uniform(task))), report)
    absent = [quality for quality, path in places.items() if not pools.exists(path)]
    if recorded.curve and not absent:
        report(f"{recorded.run} and all pools of {task.name} are there already and stay as they are")
        return
    level, to_the_end = medium_level(task, recorded.curve, recorded.finished), not recorded.curve or "expert" in absent
    states = train()
    trained = next(states)
    for following in states:
        if len(following.curve) > len(trained.curve):
            steps, returns = following.curve[-1].values()
            report(f"{steps:>9,} steps: greedy return {np.mean(returns):8.1f}")
        trained = following
        if not to_the_end and medium_steps(trained.curve, level):
            break
    if recorded.curve and trained.curve != recorded.curve[: len(trained.curve)]:
        otherwise = "here it learned otherwise, as on another processor: the cards of its pools name no run"
        report(f"{recorded.run} is recorded, but {otherwise}")
        trained = replace(trained, run=None)
    make_trained(trained, level, places, report)


def make_trained(trained: Trained, level: float | None, places: dict[str, Path], report: Report) -> None:
    """Makes the pools that the training so far determines, and reports the others; `level` may be known."""
    name, curve = trained.task.name, trained.curve
    level = medium_level(trained.task, curve, ended=True) if trained.ended else level
    medium, last = medium_steps(curve, level), curve[-1]["environment_steps"] if trained.ended else None
    for quality, steps in {"replay": medium, "medium-replay": medium, "medium": medium, "expert": last}.items():
        if steps is not None:
            make(places[quality], trained.task, trained.seed, partial(content, trained, quality, steps, level), report)
    if medium is None:
        why = "is known at the end of the training only" if level is None else f"of {level:,.0f} was not held so far"
        report(f"{name}-replay, {name}-medium-replay and {name}-medium are not made: the medium level {why}")
    if last is None:
        report(f"{name}-expert is not made: the training has not reached its end")


def make(path: Path, task: Task, seed: int, content: Callable[[], tuple[dict, Rows]], report: Report) -> None:
    """Writes a pool from its card and the finished episodes of rows; an existing pool stays as it is."""
    if pools.exists(path):
        report(f"{path.stem} is in {path.parent} already and stays as it is: a pool is never overwritten")
        return
    about, rows = content()
    command = f"python -m mbaug collect {task.name} --seed {seed}"
    pools.write(path, rows, task, {"command": command, "licence": pools.LICENCE, "seed": seed} | about)
    report(f"{path.stem} is made: {path}, {path.stat().st_size / 1e6:.2f} MB")


def content(trained: Trained, quality: str, steps: int, level: float | None) -> tuple[dict, Rows]:
    """Returns what the card of a pool says of the training until so many steps, and the pool's transitions."""
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
        "replay_mean_return": float(np.mean([rows[episode, -3].sum() for episode in finished])),
        "curve": [point for point in curve if point["environment_steps"] <= steps],
    }
    if quality == "medium-replay":
        rows = rows[np.concatenate(choose_episodes(rows, REPLAYED, seed))]
    return about, rows
