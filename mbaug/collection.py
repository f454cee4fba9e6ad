"""The offline data: SAC learns a task from scratch, and what it lived through on the way becomes a dataset.

`medium-replay` is the whole replay until the greedy agent first holds D4RL's medium level over two consecutive evaluations;
a pool of whole episodes, chosen uniformly at random, is kept. Observations are stored once: a transition's next observation is
its successor's, and for an episode's last step `final_observations` has it.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float

from mbaug import recording, streams, training
from mbaug.settings import SAC, Arm, Evaluation, Finetuning, require
from mbaug.tasks import Evaluator, Lockstep, Task, normalised_score

COLLECTOR = Arm("sac", SAC(), finetuning=Finetuning(1_000_000, 5_000, "uniform"), evaluation=Evaluation(10))


def collect(task: Task, seed: int, arm: Arm = COLLECTOR) -> Iterator[tuple[list[dict], Float[np.ndarray, "steps width"]]]:
    """Yields, at each evaluation of a learning SAC, the curve so far and the packed replay so far.

    Args:
        task: to learn.
        seed: of the collecting agent.
        arm: its settings.
    """
    learner = training.learner(arm, task, [seed])
    evaluate = Evaluator(task, [seed], arm.evaluation.episodes, arm.learner.discount)
    buffer, curve = training.replay(learner), []
    for _ in training.finetune(learner, Lockstep(task, [seed]), buffer):
        returns = evaluate(learner.policy, "finetune", learner.environment_steps).undiscounted_return[0]
        curve.append({"environment_steps": learner.environment_steps, "returns": returns.tolist()})
        yield curve, buffer.rows[0, : buffer.size].numpy()


def holds(curve: list[dict], level: float) -> bool:
    """Returns whether the last two evaluations both have a mean return of at least `level`."""
    return len(curve) >= 2 and all(np.mean(point["returns"]) >= level for point in curve[-2:])


def medium_replay(task: Task, seed: int, level: float) -> tuple[list[dict], Float[np.ndarray, "steps width"]]:
    """Returns the curve and the replay of a SAC that was stopped when its greedy return first held `level`."""
    for curve, rows in collect(task, seed):
        point = curve[-1]
        print(f"{point['environment_steps']:>9,} steps: greedy return {np.mean(point['returns']):8.1f}", flush=True)
        if holds(curve, level):
            return curve, rows
    raise RuntimeError(f"{task.name}: the collecting agent never held a greedy return of {level}; try another seed")


def episodes(rows: Float[np.ndarray, "steps width"]) -> list[np.ndarray]:
    """Returns the row numbers of each finished episode; an unfinished last one is left out."""
    ends = np.flatnonzero(rows[:, -2:].any(axis=1)) + 1
    return np.split(np.arange(ends[-1]), ends[:-1]) if len(ends) else []


def choose_episodes(rows: Float[np.ndarray, "steps width"], size: int, seed: int) -> list[np.ndarray]:
    """Returns whole episodes, uniformly at random without replacement, until they hold at least `size` steps."""
    found = episodes(rows)
    order = streams.numpy_generator(seed, "pool").permutation(len(found))
    counts = np.cumsum([len(found[number]) for number in order])
    require(bool(counts[-1] >= size), f"{size} transitions asked for, but the replay has {counts[-1]} in finished episodes")
    return [found[number] for number in sorted(order[: int(np.searchsorted(counts, size)) + 1])]


def write_pool(path: Path, rows: Float[np.ndarray, "steps width"], chosen: list[np.ndarray], task: Task, card: dict) -> None:
    """Writes episodes as HDF5 with D4RL's key names, gzip and shuffle, and `card` as JSON beside it."""
    index = np.concatenate(chosen)
    last = np.array([episode[-1] for episode in chosen])
    state, action, next_state, reward, terminal, truncated = np.split(
        rows, np.cumsum([task.state_size, task.action_size, task.state_size, 1, 1]), axis=1
    )
    columns = {
        "observations": state[index],
        "actions": action[index],
        "rewards": reward[index, 0],
        "terminals": terminal[index, 0] > 0,
        "timeouts": truncated[index, 0] > 0,
        "final_observations": next_state[last],
    }
    content = io.BytesIO()  # whole before it is written: a pool is there or it is not
    with h5py.File(content, "w", track_order=True) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True, track_times=False)
    returns = [float(reward[episode].sum()) for episode in chosen]
    card |= {
        "file": path.name,
        "sha256": recording.sha256(content.getvalue()),
        "transitions": len(index),
        "episodes": len(chosen),
        "mean_return": float(np.mean(returns)),
        "mean_score": float(normalised_score(task, np.mean(returns))),
        "return_quantiles": dict(zip(("0", "25", "50", "75", "100"), np.percentile(returns, (0, 25, 50, 75, 100)), strict=True)),
        "terminals": int(columns["terminals"].sum()),
        "timeouts": int(columns["timeouts"].sum()),
    }
    recording.write_atomically(path, content.getvalue())
    recording.write_atomically(path.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())


def make_medium_replay(task: Task, folder: Path, seed: int = 0, size: int = 45_000) -> None:
    """Makes, writes and describes the task's medium-replay pool.

    Args:
        task: whose `return_medium` says when to stop.
        folder: of the bundled datasets.
        seed: of the collecting agent and of the choice of episodes.
        size: transitions to keep, in whole episodes.
    """
    curve, rows = medium_replay(task, seed, task.return_medium)
    finished = episodes(rows)
    size = min(size, sum(map(len, finished)))
    card = {
        "name": f"{task.name}-medium-replay",
        "task": task.gym_id,
        "command": f"python -m mbaug collect {task.name} --seed {seed}",
        "licence": "CC BY 4.0",
        "seed": seed,
        "settings": recording.plain(COLLECTOR),
        "provenance": recording.provenance(COLLECTOR.precision),
        "stop": f"greedy return of at least {task.return_medium} over two consecutive evaluations",
        "replay_transitions": len(rows),
        "replay_episodes": len(finished),
        "replay_mean_return": float(np.mean([rows[e, -3].sum() for e in finished])),
        "curve": curve,
    }
    chosen = choose_episodes(rows, size, seed)
    write_pool(folder / f"{task.name}-medium-replay.hdf5", rows, chosen, task, card)
