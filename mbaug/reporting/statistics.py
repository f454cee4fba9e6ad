"""What several runs say together. The unit is the seed: ten episodes of one agent are one score, never ten.

Point estimates are interquartile means and intervals are stratified bootstraps (Agarwal et al. 2021, arXiv 2108.13264). An
interval knows nothing about seeds that were never run: for normal scores it holds the truth in about 75 of 100 cases with
3 seeds, 90 with 5 and 94 with 10. Hence `n_seeds` beside every interval, and `chance` beside every comparison.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import trim_mean

RUN = ["task", "dataset", "arm", "seed"]
RESAMPLES = 10_000  # from one stream to another, an end then moves by less than 1 % of the interval's length
ENDS = [(1 - 0.95) / 2, (1 + 0.95) / 2]  # the percentiles between which an interval lies

Strata = Sequence[Float[np.ndarray, "_"]]  # one array a task, one number a seed


class Interval(NamedTuple):
    """A point estimate with the ends of its 95 % interval, from that many seeds in each task."""

    value: float
    low: float
    high: float
    n_seeds: int


def evaluations(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per evaluation of an agent: the means over its episodes, which are the seed's numbers.

    An agent that diverged scores 0, as a random policy does, at every later evaluation: left out, it would make its arm look
    better. `frame` is what `records.load_runs` returns; here, steps are updates in the phase "pretrain" and interactions with the
    environment in "finetune", and overestimation = predicted_value - discounted_return.
    """
    steps = frame["environment_steps"].where(frame["phase"] == "finetune", frame["gradient_steps"])
    episodes = frame.assign(steps=steps).drop(columns=["episode", "gradient_steps", "environment_steps"])
    table = episodes.groupby([*RUN, "status", "phase", "steps"], as_index=False).mean()
    diverged = frame.loc[frame["status"] == "diverged", [*RUN, "status"]].drop_duplicates()
    missed = [_expected(run, table) for run in diverged.itertuples(index=False)] if len(table) else []
    table = pd.concat([table, *missed]).drop_duplicates([*RUN, "phase", "steps"])  # the first stays: what was measured
    table = table.sort_values([*RUN, "phase", "steps"], ascending=[True] * len(RUN) + [False, True], ignore_index=True)
    return table.assign(overestimation=table["predicted_value"] - table["discounted_return"])


def _expected(run: Any, table: pd.DataFrame) -> pd.DataFrame:
    """Returns, with score 0, the evaluations of those agents of a diverged one's arm that finished; if none did, of its task."""
    others = table[table["task"] == run.task]
    alike = others[(others["arm"] == run.arm) & (others["status"] == "finished")]
    points = (others if alike.empty else alike)[["phase", "steps"]].drop_duplicates()
    points = points[points["phase"] == "finetune"] if run.dataset == "none" else points
    return points.assign(**run._asdict(), score=0.0)


def resampled(strata: Strata, resamples: int = RESAMPLES, seed: int = 0) -> list[Float[np.ndarray, "resamples _"]]:
    """Returns each task's scores, drawn again with replacement; along a curve, the same seeds are drawn at each evaluation."""
    rng = np.random.default_rng(seed)
    return [scores[rng.integers(len(scores), size=(resamples, len(scores)))] for scores in strata]


def interval(strata: Strata) -> Interval:
    """Returns the interquartile mean of the pooled scores with its percentile bootstrap interval, stratified by task.

    The ends are NaN if no task has two seeds, because one seed tells nothing of the next.

    Raises:
        ValueError: A score is not finite.
    """
    strata = [np.asarray(scores, dtype=float) for scores in strata if len(scores)]
    if not strata:
        return Interval(np.nan, np.nan, np.nan, 0)
    pooled, sizes = np.concatenate(strata), [len(scores) for scores in strata]
    if not np.isfinite(pooled).all():
        raise ValueError(f"An interval needs finite scores; got {[scores.tolist() for scores in strata]}.")
    drawn = trim_mean(np.concatenate(resampled(strata), axis=1), 0.25, axis=-1) if max(sizes) > 1 else np.array([np.nan])
    return Interval(float(trim_mean(pooled, 0.25)), *np.quantile(drawn, ENDS).tolist(), n_seeds=min(sizes))


def summarise(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Returns a row a group, whose strata are its tasks: the columns `by`, the interquartile mean of `value`, low, high, n_seeds.

    Raises:
        ValueError: A run is twice in a group: its episodes were not averaged, or `by` lacks a column.
    """
    table, rows = table.dropna(subset=value), []
    for name, group in table.groupby(list(by)):
        if group.duplicated(RUN).any():
            raise ValueError(f"The unit is the seed, but a run has several rows in {dict(zip(by, name, strict=True))}.")
        rows.append([*name, *interval([scores.to_numpy() for _, scores in group.groupby("task")[value]])])
    return pd.DataFrame(rows, columns=[*by, value, "low", "high", "n_seeds"])


def differences(measure: pd.Series, arm: str, other: str) -> list[Float[np.ndarray, "_"]]:
    """Returns `arm` minus `other` in a measure (see below: one number a run) for every seed that both have, an array a task.

    Raises:
        ValueError: An arm has several runs of one task and seed, so that nothing says which to pair.
    """
    table = measure.dropna().rename("value").reset_index()
    table = table[table["arm"].isin([arm, other])]
    if table.duplicated(["task", "seed", "arm"]).any():
        raise ValueError(f"{arm} and {other} are paired by task and seed: select one dataset first.")
    wide = table.pivot(index=["task", "seed"], columns="arm", values="value").reindex(columns=[arm, other]).dropna()
    return [paired.to_numpy() for _, paired in (wide[arm] - wide[other]).groupby("task")]


def chance(strata: Strata) -> float:
    """Returns how often random signs would make the paired differences add up to as much, or to more.

    An exact test of "no difference" (Fisher's sign flips, one-sided) that a few seeds cannot fool: n pairs can never give
    less than 2^-n, so 3 seeds not less than 12.5 %. Above 14 pairs, 10,000 random flips stand for all.
    """
    values = np.concatenate([np.zeros(0), *strata])
    if len(values) <= 14:
        flips = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        flips = np.random.default_rng(0).choice([-1, 1], size=(10_000, len(values)))
        flips[0] = 1  # what was observed is one of the possible outcomes
    rounding = 1e-9 * np.abs(values).sum()
    return float(np.mean(flips @ values >= values.sum() - rounding))


def probability_of_improvement(strata: Strata, others: Strata) -> Interval:
    """Returns how often a run of the first arm beats one of the second, P(X > Y) + P(X = Y) / 2, mean over tasks.

    Both arms have an array a task, in the same order; for the interval, their seeds are drawn independently.

    Raises:
        ValueError: The arms have scores for different numbers of tasks.
    """
    if len(strata) != len(others):
        raise ValueError(f"Both arms need scores for the same tasks; got {len(strata)} and {len(others)} tasks.")
    n_seeds = min((len(scores) for scores in [*strata, *others]), default=0)
    if n_seeds == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    drawn = _wins(resampled(strata), resampled(others, seed=1)) if n_seeds > 1 else np.array([np.nan])
    return Interval(float(_wins(strata, others)), *np.quantile(drawn, ENDS).tolist(), n_seeds=n_seeds)


def _wins(strata: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Float[np.ndarray, "*batch"]:
    """Returns the share of pairs in which the first is larger, a tie counting half: the mean over tasks."""
    signs = [np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)) for x, y in zip(strata, others, strict=True)]
    return np.asarray(np.mean([0.5 + 0.5 * sign for sign in signs], axis=0))


def final_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's score at the evaluation after exactly that many interactions; no run without it."""
    rows = table[(table["phase"] == "finetune") & (table["steps"] == environment_steps)]
    return rows.groupby(RUN)["score"].last().rename("final_score")


def mean_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's area under the online curve from 0 to `environment_steps`, divided by that length.

    Trapezoids between evaluations; before the first one its score counts. Runs that end earlier are left out.
    """
    heights = {}
    for run, rows in table[table["phase"] == "finetune"].groupby(RUN):
        steps = rows["steps"].to_numpy()
        grid = np.unique([0, *steps[steps < environment_steps], environment_steps])
        if steps.max() >= environment_steps:
            heights[run] = np.trapezoid(np.interp(grid, steps, rows["score"]), grid) / environment_steps
    return pd.Series([*heights.values()], pd.MultiIndex.from_tuples(heights, names=RUN), dtype=float, name="mean_score")


def score_drop(table: pd.DataFrame, last: int = 50_000, first: int = 0) -> pd.Series:
    """Returns what each agent loses at the switch: its last offline score minus its lowest soon after.

    Soon is from `first` to `last` interactions: the authors' 25,000 without updates and as many with. The lowest of several
    noisy evaluations lies below their mean, so an agent that never changed shows a drop too, and the more so the more
    evaluations there are: compare only drops over equally many.
    """
    soon = table[(table["phase"] == "finetune") & table["steps"].between(first, last)]
    return (last_offline(table) - soon.groupby(RUN)["score"].min()).dropna().rename("score_drop")


def steps_to_threshold(table: pd.DataFrame, threshold: float) -> pd.Series:
    """Returns the interactions at each run's first evaluation that scores `threshold` or more, inf if none does.

    How many seeds never get there is how many infinities there are; never drop them from a mean, take a median.
    """
    rows = table[table["phase"] == "finetune"]
    reached = rows["steps"].where(rows["score"] >= threshold, np.inf)
    return rows.assign(reached=reached).groupby(RUN)["reached"].min().rename("steps_to_threshold")


def last_offline(table: pd.DataFrame, value: str = "score") -> pd.Series:
    """Returns the last number of a column that each run has before it goes online, as its score; no run from scratch.

    Of "overestimation", by how much each critic overrates its own policy, in rewards; of "overfitting", its error on new rows
    divided by that on trained rows.
    """
    return table[table["phase"] == "pretrain"].dropna(subset=value).groupby(RUN)[value].last()
