"""Where a model errs, and what tells it beforehand: what is known of a row, of a body, and how well a signal finds errors."""

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

NEIGHBOUR = 10  # among the known states: one alone may be a chance, ten are a neighbourhood


def histories(pool: Dataset) -> pd.DataFrame:
    """Returns of each row of a pool the steps until its episode's fall (NaN if it ends otherwise) and that episode's return."""
    episodes = pd.DataFrame({"reward": pool.reward, "fell": pool.terminal}).groupby(pool.episode)
    fell, left = episodes["fell"].transform("any"), episodes.cumcount(ascending=False)
    returns = episodes["reward"].transform("sum")
    return pd.DataFrame({"steps to a fall": left.where(fell), "return": returns})


def distance(
    state: Float[np.ndarray, "rows state"],
    known: Float[np.ndarray, "known state"],
    skipped: int = 0,
) -> np.ndarray:
    """Returns each state's Euclidean distance to its tenth neighbour among the known states; `skipped`: 1 if it is one itself."""
    return KDTree(known).query(state, [NEIGHBOUR + skipped])[0][:, 0]


def bodies(task: tasks.Task, states: Float[np.ndarray, "rows state"]) -> pd.DataFrame:
    """Returns what the simulator makes of each state, which need not be one that a body can be in.

    Columns: `fallen`, as the task ends an episode (never HalfCheetah's); `contact` with anything; `depth`, how far in metres the
    deepest contact is inside the ground or the body itself; `bent`, how far in radians the worst joint is beyond its range.
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


def photographs(task: tasks.Task, states: Float[np.ndarray, "rows state"], pixels: int = 144) -> render.Frames:
    """Returns an image of each state, which need not be one that a body can be in; it needs OpenGL, and no screen."""
    os.environ["MUJOCO_GL"] = render.opengl()
    environment = render.plain(tasks.make(task, render_mode="rgb_array", width=pixels, height=pixels, **render.CLOSE))
    images = render.stills(environment, states)
    environment.close()
    return images


def area(signal: Float[np.ndarray, " rows"], worst: Bool[np.ndarray, " rows"]) -> float:
    """Returns the area under the ROC curve: how likely a row that is among the worst has a larger signal than one that is not.

    Ties count half. 1/2 is chance, 1 a signal that puts every bad row above every good one. By ranks (Mann and Whitney, 1947):
    (sum of the ranks of the worst - n (n + 1) / 2) / (n m), of n worst rows and m others.
    """
    n, m = worst.sum(), (~worst).sum()
    return float((rankdata(signal)[worst].sum() - n * (n + 1) / 2) / (n * m))


def parts(value: Float[np.ndarray, " rows"], count: int = 5) -> Int[np.ndarray, " rows"]:
    """Returns the part of each row, from 0 for those of the smallest values to `count` - 1, as many rows in each."""
    return ((rankdata(value, method="ordinal") - 1) * count // len(value)).astype(int)


def slope(
    predicted: Float[np.ndarray, "rows *size"],
    truth: Float[np.ndarray, "rows *size"],
) -> Float[np.ndarray, "*size"]:
    """Returns cov(predicted, truth) / var(truth) of each dimension: 1 keeps differences as they are, below 1 shrinks them."""
    centred = truth - truth.mean(axis=0)
    return (centred * predicted).mean(axis=0) / centred.var(axis=0)
