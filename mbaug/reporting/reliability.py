"""Finds where a model errs and what warns of it: the history of a row, the state of a body, how well a signal finds errors."""

import os
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from scipy.stats import rankdata

from mbaug import tasks
from mbaug.datasets import render
from mbaug.method.transitions import Dataset

NEIGHBOUR = 10  # rank of the neighbour to which we measure distance; the nearest may be near by chance


def histories(pool: Dataset) -> pd.DataFrame:
    """Returns for each row of a pool the steps until its episode ends in a fall (or NaN), and the episode's return."""
    episodes = pd.DataFrame({"reward": pool.reward, "fell": pool.terminal}).groupby(pool.episode)
    fell, left = episodes["fell"].transform("any"), episodes.cumcount(ascending=False)
    returns = episodes["reward"].transform("sum")
    return pd.DataFrame({"steps to a fall": left.where(fell), "return": returns})


def distance(
    state: Float[np.ndarray, "rows state"],
    known: Float[np.ndarray, "known state"],
    skipped: int = 0,
) -> np.ndarray:
    """Returns each state's Euclidean distance to its tenth nearest known state.

    Set `skipped` to 1 if the states are known states themselves, so that none is its own neighbour.
    """
    return KDTree(known).query(state, [NEIGHBOUR + skipped])[0][:, 0]


def bodies(task: tasks.Task, states: Float[np.ndarray, "rows state"]) -> pd.DataFrame:
    """Returns what the simulator says about each state, even about one that is impossible for the body.

    Columns: `fallen`, whether the task would end the episode (never on HalfCheetah); `contact` with anything; `depth` in metres
    of the deepest contact inside the ground or the body; `bent`, by how many radians the worst joint exceeds its range.
    """
    environment = tasks.make(task)
    environment.reset(seed=0)
    simulator: Any = environment.unwrapped
    model, data, found = simulator.model, simulator.data, []
    joints = np.flatnonzero(model.jnt_limited)
    (low, high), place = model.jnt_range[joints].T, model.jnt_qposadr[joints]
    for state in states:
        tasks.set_state(environment, state)
        angle, gap = data.qpos[place], data.contact.dist
        bent = np.maximum(low - angle, angle - high).max(initial=0)
        fell, deep = not getattr(simulator, "is_healthy", True), max(0.0, -gap.min(initial=0))
        found.append([fell, len(gap) > 0, deep, bent])
    environment.close()
    return pd.DataFrame(found, columns=["fallen", "contact", "depth", "bent"])


def photographs(task: tasks.Task, states: Float[np.ndarray, "rows state"]) -> render.Frames:
    """Returns an image of each state, even of one that is impossible for the body. It needs OpenGL but no screen."""
    os.environ["MUJOCO_GL"] = render.opengl()
    environment = render.without_scenery(tasks.make(task, width=144, height=144, **render.CLOSE))
    images = render.stills(environment, states)
    environment.close()
    return images


def auroc(signal: Float[np.ndarray, " rows"], worst: Bool[np.ndarray, " rows"]) -> float:
    """Returns the area under the ROC curve: the probability that one of the worst rows has a larger signal than another row.

    Ties count half. 1/2 is chance, and 1 is a signal that ranks every bad row above every good one. With n worst rows and m
    others it is (sum of the ranks of the worst - n (n + 1) / 2) / (n m) (Mann and Whitney, 1947).
    """
    n, m = worst.sum(), (~worst).sum()
    return float((rankdata(signal)[worst].sum() - n * (n + 1) / 2) / (n * m))


def quantile_bins(value: Float[np.ndarray, " rows"], count: int = 5) -> Int[np.ndarray, " rows"]:
    """Returns for each row which of `count` equal parts its value lies in, from 0 for the smallest values to `count` - 1."""
    return ((rankdata(value, method="ordinal") - 1) * count // len(value)).astype(int)


def slope(
    predicted: Float[np.ndarray, "rows *size"],
    truth: Float[np.ndarray, "rows *size"],
) -> Float[np.ndarray, "*size"]:
    """Returns cov(predicted, truth) / var(truth) for each dimension: 1 preserves differences, and less than 1 shrinks them."""
    centred = truth - truth.mean(axis=0)
    return (centred * predicted).mean(axis=0) / centred.var(axis=0)
