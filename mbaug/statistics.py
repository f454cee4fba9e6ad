"""What several runs say together. The unit is the seed: ten episodes of one agent are one score, never ten.

Point estimates are interquartile means and intervals are stratified bootstraps (Agarwal et al. 2021,
arXiv 2108.13264). An interval knows nothing about seeds that were never run: for normal scores it holds the
truth in about 75 of 100 cases with 3 seeds, 90 with 5 and 94 with 10. Hence `n_seeds` beside every interval, and
`chance` beside every comparison.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

RUN = ["study", "task", "dataset", "arm", "seed"]
RESAMPLES = 10_000  # from one stream to another, an end then moves by less than 1 % of the interval's length
CONFIDENCE = 0.95

Strata = Sequence[Float[np.ndarray, "_"]]  # one array a task


class Interval(NamedTuple):
    """A point estimate with the ends of its 95 % interval, from that many seeds in each task."""

    value: float
    low: float
    high: float
    n_seeds: int


# --- evaluations ----------------------------------------------------------------------------------


def evaluations(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per evaluation of an agent: the means over its episodes, which are the seed's numbers.

    An agent that diverged scores 0, as a random policy does, at every evaluation that it did not live to see:
    left out, it would make its arm look better.

    Args:
        frame: Evaluation episodes as `recording.load_runs` returns them.

    Returns:
        The columns of a run, status, phase, steps (updates in "pretrain", environment interactions in
        "finetune"), the means, and overestimation = predicted_value - discounted_return.
    """
    steps = frame["environment_steps"].where(frame["phase"] == "finetune", frame["gradient_steps"])
    episodes = frame.assign(steps=steps).drop(columns=["episode", "gradient_steps", "environment_steps"])
    table = episodes.groupby([*RUN, "status", "phase", "steps"], as_index=False).mean()
    table = pd.concat([table, _after_divergence(table, frame)], ignore_index=True) if len(table) else table
    order = table["phase"].map({"pretrain": 0, "finetune": 1})
    table = table.assign(order=order).sort_values([*RUN, "order", "steps"], ignore_index=True)
    return table.assign(overestimation=table["predicted_value"] - table["discounted_return"]).drop(columns="order")


def _after_divergence(table: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a row with score 0 for each evaluation that a diverged agent missed and any other of its task had.

    The agents are those of `frame`: one that diverged before its first evaluation is not in the table.
    """
    points = table[["study", "task", "phase", "steps"]].drop_duplicates()
    diverged = frame.loc[frame["status"] == "diverged", [*RUN, "status"]].drop_duplicates()
    expected = diverged.merge(points, on=["study", "task"])
    expected = expected[(expected["dataset"] != "none") | (expected["phase"] == "finetune")]
    marked = expected.merge(table[[*RUN, "phase", "steps"]], how="left", indicator=True)
    return marked[marked["_merge"] == "left_only"].drop(columns="_merge").assign(score=0.0)


# --- intervals ------------------------------------------------------------------------------------


def interquartile_mean(scores: Float[np.ndarray, "*batch seeds"]) -> Float[np.ndarray, "*batch"]:
    """Returns the mean of the middle half: floor(n / 4) values are left out at each end, none of fewer than 4."""
    return np.asarray(scipy.stats.trim_mean(scores, 0.25, axis=-1))


def resampled(strata: Strata, resamples: int = RESAMPLES, seed: int = 0) -> list[Float[np.ndarray, "resamples _"]]:
    """Returns each task's scores, drawn again with replacement: seeds are drawn, tasks are not.

    The stream is the same at every call, so that along a curve the same seeds are drawn at each evaluation.
    """
    rng = np.random.default_rng(seed)
    return [scores[rng.integers(len(scores), size=(resamples, len(scores)))] for scores in strata]


def interval(strata: Strata, statistic: Callable = interquartile_mean) -> Interval:
    """Returns the statistic of the pooled scores with its percentile bootstrap interval, stratified by task.

    Args:
        strata: One array of scores a task, a score a seed.
        statistic: What reduces the last axis of an array of scores.

    Returns:
        The interval; its ends are NaN where no task has two seeds, because one seed tells nothing of the next.

    Raises:
        ValueError: A score is not finite.
    """
    strata = [np.asarray(scores, dtype=float) for scores in strata if len(scores)]
    if not strata:
        return Interval(np.nan, np.nan, np.nan, 0)
    if not all(np.isfinite(scores).all() for scores in strata):
        raise ValueError(f"An interval needs finite scores; got {[scores.tolist() for scores in strata]}.")
    n_seeds = min(map(len, strata))
    value = float(statistic(np.concatenate(strata)))
    if max(map(len, strata)) < 2:
        return Interval(value, np.nan, np.nan, n_seeds)
    return Interval(value, *_ends(statistic(np.concatenate(resampled(strata), axis=1))), n_seeds)


def _ends(values: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Returns the percentiles between which `CONFIDENCE` of the values lie."""
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def summarise(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Returns a row a group: the columns `by`, the interquartile mean named as `value`, low, high, n_seeds.

    Args:
        table: One row a run in each group; rows without the value are left out.
        by: Columns that name a group; the tasks within a group are its strata.
        value: The column that is summarised.

    Raises:
        ValueError: A run is twice in a group: its episodes were not averaged, `by` lacks a column, or two studies have it.
    """
    table, rows = table.dropna(subset=value), []
    for name, group in table.groupby(list(by)):
        if group.duplicated([column for column in RUN if column != "study"]).any():  # a copy of a run is no other seed
            raise ValueError(f"The unit is the seed, but a run has several rows in {dict(zip(by, name, strict=True))}.")
        rows.append([*name, *interval([scores.to_numpy() for _, scores in group.groupby("task")[value]])])
    return pd.DataFrame(rows, columns=[*by, value, "low", "high", "n_seeds"])


# --- comparisons ----------------------------------------------------------------------------------


def differences(measure: pd.Series, arm: str, other: str) -> list[Float[np.ndarray, "_"]]:
    """Returns arm minus other for every seed that both have, an array a task.

    Args:
        measure: One number a run, with the index `RUN`, as the measures below return it.
        arm: The arm from which the other is subtracted.
        other: The other.

    Raises:
        ValueError: An arm has several runs of one task and seed, so that nothing says which to pair.
    """
    name = measure.name or "measure"
    table = measure.dropna().rename(name).reset_index()
    table = table[table["arm"].isin([arm, other])]
    if table.duplicated(["task", "seed", "arm"]).any():
        raise ValueError(f"{arm} and {other} are paired by task and seed: select one study and dataset first.")
    wide = table.pivot(index=["task", "seed"], columns="arm", values=name).reindex(columns=[arm, other]).dropna()
    return [paired.to_numpy() for _, paired in (wide[arm] - wide[other]).groupby("task")]


def chance(strata: Strata) -> float:
    """Returns how often random signs would make the paired differences add up to as much, or to more.

    An exact test of "no difference" (Fisher's sign flips, one-sided) that a few seeds cannot fool: n pairs can
    never give less than 2^-n, so 3 seeds not less than 12.5 %. Above 14 pairs, 10,000 random flips stand for all.
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

    Args:
        strata: Scores of the first arm, an array a task.
        others: Scores of the second arm, an array a task, in the same order.

    Returns:
        The probability with its interval; seeds of both arms are drawn independently.

    Raises:
        ValueError: The arms have scores for different numbers of tasks.
    """
    if len(strata) != len(others):
        raise ValueError(f"Both arms need scores for the same tasks; got {len(strata)} and {len(others)} tasks.")
    n_seeds = min((len(scores) for scores in [*strata, *others]), default=0)
    if n_seeds == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    value = float(np.mean([_wins(x, y) for x, y in zip(strata, others, strict=True)]))
    if n_seeds < 2:
        return Interval(value, np.nan, np.nan, n_seeds)
    drawn = zip(resampled(strata), resampled(others, seed=1), strict=True)
    return Interval(value, *_ends(np.mean([_wins(x, y) for x, y in drawn], axis=0)), n_seeds)


def _wins(x: Float[np.ndarray, "*batch n"], y: Float[np.ndarray, "*batch m"]) -> Float[np.ndarray, "*batch"]:
    """Returns the share of pairs in which x is larger; a tie counts half."""
    return np.asarray(0.5 + 0.5 * np.sign(x[..., :, None] - y[..., None, :]).mean(axis=(-2, -1)))


# --- measures: one number a run -------------------------------------------------------------------


def final_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's score at the evaluation after exactly that many interactions; no run without it."""
    rows = table[(table["phase"] == "finetune") & (table["steps"] == environment_steps)]
    return _per_run(rows, "final_score", lambda run: run["score"].item())


def mean_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's area under the online curve from 0 to `environment_steps`, divided by that length.

    Trapezoids between evaluations; before the first one its score counts. Runs that end earlier are left out.
    """
    rows = table[table["phase"] == "finetune"]
    return _per_run(rows, "mean_score", lambda run: _mean_height(run, environment_steps))


def _mean_height(run: pd.DataFrame, end: int) -> float:
    """Returns the area under a run's curve from 0 to `end` divided by `end`, NaN if it does not reach that far."""
    steps, scores = run["steps"].to_numpy(), run["score"].to_numpy()
    if steps.max() < end:
        return np.nan
    grid = np.unique([0, *steps[steps < end], end])
    return float(np.trapezoid(np.interp(grid, steps, scores), grid) / end)


def last_offline_score(table: pd.DataFrame) -> pd.Series:
    """Returns each run's score at the end of pre-training; no run from scratch."""
    rows = table[table["phase"] == "pretrain"]
    return _per_run(rows, "last_offline_score", lambda run: run["score"].iloc[-1])


def score_drop(table: pd.DataFrame, last: int = 50_000, first: int = 0) -> pd.Series:
    """Returns what each agent loses at the switch: its last offline score minus its lowest soon after.

    Soon is from `first` to `last` interactions: the authors' 25,000 without updates and as many with. The lowest of
    several noisy evaluations lies below their mean, so an agent that never changed shows a drop too, and the more
    so the more evaluations there are: compare only drops over equally many.
    """
    soon = table[(table["phase"] == "finetune") & table["steps"].between(first, last)]
    lowest = _per_run(soon, "lowest_score", lambda run: run["score"].min())
    return (last_offline_score(table) - lowest).dropna().rename("score_drop")


def steps_to_threshold(table: pd.DataFrame, threshold: float) -> pd.Series:
    """Returns the interactions at each run's first evaluation that scores `threshold` or more, inf if none does.

    How many seeds never get there is how many infinities there are; never drop them from a mean, take a median.
    """
    rows = table[table["phase"] == "finetune"]
    return _per_run(rows, "steps_to_threshold", lambda run: min(run["steps"][run["score"] >= threshold], default=np.inf))


def last_overestimation(table: pd.DataFrame) -> pd.Series:
    """Returns by how much each critic overrates its own policy at the end of pre-training, in rewards."""
    rows = table[table["phase"] == "pretrain"].dropna(subset="overestimation")
    return _per_run(rows, "overestimation", lambda run: run["overestimation"].iloc[-1])


def last_overfitting(table: pd.DataFrame) -> pd.Series:
    """Returns each critic's error on new rows divided by that on trained rows, at the end of pre-training."""
    rows = table[table["phase"] == "pretrain"].dropna(subset="overfitting")
    return _per_run(rows, "overfitting", lambda run: run["overfitting"].iloc[-1])


def _per_run(rows: pd.DataFrame, name: str, measure: Callable[[pd.DataFrame], float]) -> pd.Series:
    """Returns the measure of each run's rows, which are in the order of steps; runs that have none are left out."""
    values = {run: float(measure(group)) for run, group in rows.groupby(RUN)}
    index = pd.MultiIndex.from_tuples(values, names=RUN)
    return pd.Series(list(values.values()), index, dtype=float, name=name).dropna()
