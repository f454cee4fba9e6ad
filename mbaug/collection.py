"""The offline data: SAC learns a task from scratch, and what it lived through on the way becomes pools.

One training, the run `long/<task>/none/sac_million/seed<k>`, gives all of a task's pools:

- `random`: uniform actions, no agent;
- `replay`: all finished episodes until the greedy agent first holds the medium level over two consecutive evaluations;
- `medium-replay`: whole episodes of it, chosen uniformly at random;
- `medium` and `expert`: the agent of that moment and of the end, acting at random as it does while it learns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mbaug import offline_data, pools, recording, streams, training
from mbaug.pools import Rows, episodes
from mbaug.settings import Arm, require
from mbaug.tasks import Lockstep, Task

REPLAYED = 45_000  # transitions of a medium-replay pool, at least; ours: small enough to ship
ROLLED_OUT = 20_000  # transitions of the other pools, at least: whole episodes
FINAL = 10  # evaluations at the end whose mean is the final return

Report = Callable[[str], None]
Act = Callable[[Float[np.ndarray, " state"], np.random.Generator], Float[np.ndarray, " action"]]


# --- when --------------------------------------------------------------------------------------------------------------


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
    moments = (point["environment_steps"] for number, point in enumerate(curve, start=1) if holds(curve[:number], level))
    return next(moments, None)


def medium_replay(curve: Sequence[dict], replay: Rows, level: float) -> Float[np.ndarray, "earlier width"]:
    """Returns the replay of a SAC as it was when its greedy return first held `level`: a row for each environment step."""
    return replay[: medium_steps(curve, level)]


# --- which transitions ----------------------------------------------------------------------------------------------------


def choose_episodes(rows: Rows, size: int, seed: int) -> list[np.ndarray]:
    """Returns whole episodes, uniformly at random without replacement, until they hold at least `size` steps."""
    found = episodes(rows)
    order = streams.numpy_generator(seed, "pool").permutation(len(found))
    counts = np.cumsum([len(found[number]) for number in order])
    require(bool(counts[-1] >= size), f"{size} transitions asked for, but the replay has {counts[-1]} in finished episodes")
    return [found[number] for number in sorted(order[: int(np.searchsorted(counts, size)) + 1])]


def roll_out(task: Task, quality: str, seed: int, act: Act) -> Rows:
    """Returns whole episodes of `act`, at least `ROLLED_OUT` steps of them, in an environment and with randomness of their own.

    Args:
        task: to act in.
        quality: names the random streams, e.g. "medium".
        seed: of the streams.
        act: returns the action in [-1, 1] in a state, given a generator to draw from.
    """
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


# --- pools ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lived:
    """What a training left, whether it has ended or not: all that pools are made from.

    Attributes:
        task: that was learned.
        seed: of the agent; also chooses episodes and rolls out.
        run: the name of its record, None if that is of another life.
        arm: its settings.
        provenance: of its numbers.
        curve: its evaluations (`curve`).
        replay: packed, a row for each environment step.
        actor: returns the actor's parameters as they were at the evaluation after so many environment steps.
        level: medium return (`medium_level`), None if that is not known yet.
        ended: whether the agent lived to the end of the training.
    """

    task: Task
    seed: int
    run: str | None
    arm: Arm
    provenance: dict
    curve: list[dict]
    replay: Rows
    actor: Callable[[int], Float[Tensor, " parameters"]]
    level: float | None
    ended: bool

    def card(self, quality: str) -> dict:
        """Returns what the card of a pool of this life begins with."""
        run = {} if self.run is None else {"run": self.run}
        return card(self.task, quality, self.seed, self.provenance) | run | {"settings": recording.plain(self.arm)}


def card(task: Task, quality: str, seed: int, provenance: dict) -> dict:
    """Returns what the cards of all pools begin with."""
    return {
        "name": f"{task.name}-{quality}",
        "task": task.gym_id,
        "command": f"python -m mbaug collect {task.name} --seed {seed}",
        "licence": pools.LICENCE,
        "seed": seed,
        "provenance": provenance,
    }


def paths(task: Task, folder: Path, large: Path) -> dict[str, Path]:
    """Returns where the task's pool of each quality is or will be."""
    places = {quality: large if quality == "replay" else folder for quality in offline_data.QUALITIES}
    return {quality: place / f"{task.name}-{quality}.hdf5" for quality, place in places.items()}


def absent(task: Task, folder: Path, large: Path) -> list[str]:
    """Returns the qualities of which the task has no pool yet."""
    return [quality for quality, path in paths(task, folder, large).items() if not pools.exists(path)]


def check_seed(task: Task, seed: int, folder: Path, large: Path) -> None:
    """Checks that the task's pools that are there are of this seed: those of two trainings in one folder would be mixed up.

    Raises:
        ValueError: one is of another seed.
    """
    for path in filter(pools.exists, paths(task, folder, large).values()):
        found = offline_data.read_card(path).get("seed")
        there = f"seed {seed} was asked for, but {path.stem} in {path.parent} is of seed {found}"
        require(found == seed, f"{there}: name another folder with --output, since a folder's pools are of one training")


def once(folder: Path, name: str, make: Callable[[Path], None], report: Report) -> None:
    """Makes a pool, unless it is there: then says so and leaves it as it is."""
    path = folder / f"{name}.hdf5"
    if pools.exists(path):
        report(f"{name} is in {folder} already and stays as it is: a pool is never overwritten")
        return
    make(path)
    report(f"{name} is made: {path}, {path.stat().st_size / 1e6:.2f} MB")


def make_random(task: Task, seed: int, folder: Path, report: Report) -> None:
    """Makes the pool that needs no agent, `random`."""

    def make(path: Path) -> None:
        rows = roll_out(task, "random", seed, uniform(task))
        about = card(task, "random", seed, recording.provenance("float32")) | {"policy": "uniform in [-1, 1]"}
        pools.write(path, rows, episodes(rows), task, about)

    once(folder, f"{task.name}-random", make, report)


def make(lived: Lived, folder: Path, large: Path, report: Report) -> None:
    """Makes the pools that are determined by what was lived so far, and says which are not.

    Args:
        lived: what a training left.
        folder: of the pools that are small enough to be committed.
        large: of the whole replay.
        report: takes a line for each pool.
    """
    name = lived.task.name
    steps = medium_steps(lived.curve, lived.level)
    if steps is not None:
        make_medium(lived, steps, folder, large, report)
    else:
        why = "is known at the end of the training only" if lived.level is None else f"of {lived.level:,.0f} was not held so far"
        report(f"{name}-replay, {name}-medium-replay and {name}-medium are not made: the medium level {why}")
    if lived.ended:
        last = lived.curve[-1]["environment_steps"]
        once(folder, f"{name}-expert", lambda path: write_roll_out(lived, "expert", last, path), report)
    else:
        report(f"{name}-expert is not made: the agent has not lived to the end of the training")


def make_medium(lived: Lived, steps: int, folder: Path, large: Path, report: Report) -> None:
    """Makes the pools of the moment when the medium level was first held: `replay`, `medium-replay` and `medium`."""
    name, rows = lived.task.name, medium_replay(lived.curve, lived.replay, lived.level)
    finished = episodes(rows)
    about = {
        "stop": f"greedy return of at least {lived.level} over two consecutive evaluations",
        "medium_level": lived.level,
        "replay_transitions": len(rows),
        "replay_episodes": len(finished),
        "replay_mean_return": float(np.mean([rows[episode, -3].sum() for episode in finished])),
        "curve": [point for point in lived.curve if point["environment_steps"] <= steps],
    }

    def write(quality: str, chosen: list[np.ndarray], path: Path) -> None:
        pools.write(path, rows, chosen, lived.task, lived.card(quality) | about)

    size = min(REPLAYED, sum(map(len, finished)))
    chosen = choose_episodes(rows, size, lived.seed)
    once(large, f"{name}-replay", lambda path: write("replay", finished, path), report)
    once(folder, f"{name}-medium-replay", lambda path: write("medium-replay", chosen, path), report)
    once(folder, f"{name}-medium", lambda path: write_roll_out(lived, "medium", steps, path), report)


def write_roll_out(lived: Lived, quality: str, steps: int, path: Path) -> None:
    """Writes the roll-outs of the agent as it was after `steps` environment steps."""
    rows = roll_out(lived.task, quality, lived.seed, explorer(lived.task, lived.arm, lived.actor(steps)))
    about = lived.card(quality) | {
        "policy": f"the agent after {steps} environment steps, as random as it is while it learns",
        "greedy_return": float(np.mean(next(p["returns"] for p in lived.curve if p["environment_steps"] == steps))),
    }
    pools.write(path, rows, episodes(rows), lived.task, about)
