"""Statistics over seeds that hold at five of them: means with t intervals, differences, contrasts and what they can see.

The seed is the unit: ten episodes of one agent are one score, never ten. Two arms are compared by Welch's t, as if their seeds
were independent. Arms that share a seed share draws or a whole pre-training. Where their scores rise and fall together for that,
the interval is too wide. Over tasks, which are fixed and not sampled, each mean counts the same, and Satterthwaite gives the
degrees of freedom. For normal scores such an interval holds the truth in 95 of 100 cases with three seeds as with ten: with three
it is wide. An interquartile mean drops whole tasks, and its bootstrap holds the truth in 76 of 100 cases with three seeds
(Agarwal et al. 2021, arXiv 2108.13264, recommend both for a few runs of many tasks).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, stats

RUN = ["task", "dataset", "arm", "seed"]
ENOUGH_SEEDS = 5  # announced before the runs: with fewer there is an interval, but no verdict
LEVEL = 0.05  # of every test: an interval holds 1 - LEVEL

Strata = Sequence[Float[np.ndarray, "_"]]  # one array a task, one number a seed


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval, from at least that many seeds in each arm and task."""

    value: float
    low: float
    high: float
    n_seeds: int
    p: float = np.nan  # how often luck alone would take the estimate as far from zero, if the truth were zero


def evaluations(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per evaluation of an agent: the means over its episodes, which are the seed's numbers.

    An agent that diverged scores 0, as a random policy does, at every later evaluation, or as little as it ever did if that is
    less: left out, it would make its arm look better. `frame` is what `records.load_runs` returns. Here, steps are updates in
    the phase "pretrain" and interactions with the environment in "finetune"; overestimation is predicted_value minus
    discounted_return.
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
    """Returns a diverged agent's missing evaluations, those that others of its arm or task had, with 0 or its lowest score."""
    others = table[table["task"] == run.task]
    alike = others[(others["arm"] == run.arm) & (others["status"] == "finished")]
    points = (others if alike.empty else alike)[["phase", "steps"]].drop_duplicates()
    points = points[points["phase"] == "finetune"] if run.dataset == "none" else points
    own = table.merge(pd.DataFrame([run._asdict()])[RUN])
    return points.assign(**run._asdict(), score=min([0.0, *own["score"]]))


def contrast(groups: Strata, weights: Sequence[int | float] | np.ndarray, minus: float = 0.0) -> Interval:
    """Returns sum_j w_j mean(x_j) - minus of independent groups, with its t interval and two-sided p value.

    One group gives Student's interval, two with the weights 1 and -1 Welch's: v_j = w_j^2 var(x_j) / n_j is what a group adds to
    the variance, and the degrees of freedom are (sum_j v_j)^2 / sum_j v_j^2 / (n_j - 1). A group of one seed tells nothing of the
    next: then value alone is known.

    Raises:
        ValueError: A score is not finite.

    Source: Welch (1947); Satterthwaite (1946).
    """
    groups = [np.asarray(group, dtype=float) for group in groups]
    sizes = np.array([len(group) for group in groups])
    if not sizes.all() or not groups:
        return Interval(np.nan, np.nan, np.nan, 0)
    if not all(np.isfinite(group).all() for group in groups):
        raise ValueError(f"An interval needs finite scores; got {[group.tolist() for group in groups]}.")
    value = float(np.dot(weights, [group.mean() for group in groups])) - minus
    if sizes.min() < 2:
        return Interval(value, np.nan, np.nan, int(sizes.min()))
    parts = np.square(weights) * [group.var(ddof=1) for group in groups] / sizes
    squares = (np.square(parts) / (sizes - 1)).sum()
    if not squares:  # all seeds scored the same, up to rounding
        return Interval(value, value, value, int(sizes.min()), float(value == 0))
    error, freedom = np.sqrt(parts.sum()), parts.sum() ** 2 / squares
    reach, p = stats.t.isf(LEVEL / 2, freedom) * error, 2 * stats.t.sf(abs(value) / error, freedom)
    return Interval(value, float(value - reach), float(value + reach), int(sizes.min()), float(p))


def interval(strata: Strata) -> Interval:
    """Returns the equal-weight mean over tasks of the mean over seeds, with its t interval."""
    strata = [scores for scores in strata if len(scores)]
    return contrast(strata, np.full(len(strata), 1 / max(1, len(strata))))


def by_task(measure: pd.Series, *arms: str, least: int = 2) -> dict[str, list[Float[np.ndarray, "_"]]]:
    """Returns each arm's numbers in a measure (see below: one a run), for every task in which all arms have `least` seeds.

    Raises:
        ValueError: An arm has several runs of one task and seed.
    """
    if measure.reset_index().duplicated(["task", "seed", "arm"]).any():
        raise ValueError("A task, an arm and a seed name several runs: select one dataset first.")
    groups = {(task, arm): rows.dropna().to_numpy() for (task, arm), rows in measure.groupby(["task", "arm"], sort=False)}
    found = {task: [groups.get((task, arm), np.zeros(0)) for arm in arms] for task, _ in groups}
    return {task: scores for task, scores in found.items() if min(map(len, scores)) >= least}


def difference(measure: pd.Series, arm: str, *others: str, minus: float = 0.0) -> Interval:
    """Returns `arm` minus the mean of `others` in a measure, equal weight to each task of `by_task`, with its t interval."""
    tasks = [*by_task(measure, arm, *others).values()]
    weights = [1 / len(tasks), *(-1 / len(tasks) / len(others) for _ in others)] * len(tasks) if tasks else []
    return contrast([group for groups in tasks for group in groups], weights, minus)


def holm(p: Sequence[float]) -> Float[np.ndarray, "_"]:
    """Returns p values corrected for their number: the k-th smallest of n times n - k + 1, and never below a smaller one's.

    One of n true null hypotheses is then rejected by mistake in 5 of 100 cases at most. A NaN is a test that is still to come.

    Source: Holm (1979).
    """
    values = np.asarray(p, dtype=float)
    order, found = np.argsort(values), np.empty(len(values))  # NaN is last
    found[order] = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    return found.clip(max=1)


def detectable(n_seeds: int, n_tasks: int = 1, tests: int = 1) -> float:
    """Returns the difference of two arms that is told from zero in 80 of 100 cases, in standard deviations of a task's seeds.

    That of equal-weight means over `n_tasks`, all seeds normal with one standard deviation; by the noncentral t distribution. Of
    several `tests` it is the first that `holm` rejects.
    """
    freedom, scale = 2 * n_tasks * (n_seeds - 1), np.sqrt(n_tasks * n_seeds / 2)
    beyond = stats.t.isf(LEVEL / 2 / tests, freedom)
    return float(optimize.brentq(lambda shift: stats.nct.sf(beyond, freedom, shift * scale) - 0.8, 0, 100))


def summarise(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Returns a row a group, equal weight to each of its tasks: the columns `by`, the mean of `value`, low, high, n_seeds.

    Raises:
        ValueError: A run is twice in a group: its episodes were not averaged, or `by` lacks a column.
    """
    table, rows = table.dropna(subset=value), []
    for name, group in table.groupby(list(by)):
        if group.duplicated(RUN).any():
            raise ValueError(f"The unit is the seed, but a run has several rows in {dict(zip(by, name, strict=True))}.")
        rows.append([*name, *interval([scores.to_numpy() for _, scores in group.groupby("task")[value]])[:4]])
    return pd.DataFrame(rows, columns=[*by, value, "low", "high", "n_seeds"])


def differences(measure: pd.Series, arm: str, other: str) -> list[Float[np.ndarray, "_"]]:
    """Returns `arm` minus `other` in a measure for every seed that both have, an array a task; raises what `by_task` does."""
    by_task(measure, arm, other)
    wide = measure.dropna().unstack("arm").reindex(columns=[arm, other])
    wide = wide.groupby(["task", "seed"]).first().dropna()  # an arm without data has another dataset
    return [paired.to_numpy() for _, paired in (wide[arm] - wide[other]).groupby("task")]


def chance(strata: Strata) -> float:
    """Returns how often random signs would make the paired differences add up to as much, or to more.

    An exact test of "no difference" (Fisher's sign flips, one-sided), which is shown and decides nothing: n pairs never give
    less than 2^-n, so five pairs not less than 3 %. Above 14 pairs, 10,000 random flips stand for all.
    """
    values = np.concatenate([np.zeros(0), *strata])
    if len(values) <= 14:
        flips = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
    else:
        flips = np.random.default_rng(0).choice([-1, 1], size=(10_000, len(values)))
        flips[0] = 1  # what was observed is one of the possible outcomes
    return float(np.mean(flips @ values >= values.sum() - 1e-9 * np.abs(values).sum()))


def probability_of_improvement(strata: Strata, others: Strata) -> float:
    """Returns how often a run of the first arm beats one of the second, P(X > Y) + P(X = Y) / 2, mean over tasks.

    Both arms have an array a task, in the same order. It describes the runs that are there and decides nothing.

    Source: Agarwal et al. (2021).
    """
    signs = [np.sign(np.subtract.outer(x, y)).mean() for x, y in zip(strata, others, strict=True)]
    return float(0.5 + 0.5 * np.mean(signs)) if signs else np.nan


def final_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's score at the evaluation after exactly that many interactions; no run without it."""
    rows = table[(table["phase"] == "finetune") & (table["steps"] == environment_steps)]
    return rows.groupby(RUN)["score"].last().rename("final_score")


def mean_score(table: pd.DataFrame, environment_steps: int = 100_000, since: int = 0) -> pd.Series:
    """Returns each run's area under the online curve from `since` to `environment_steps`, divided by that length.

    Trapezoids between evaluations; before the first one its score counts. Runs that end earlier are left out.
    """
    heights = {}
    for run, rows in table[table["phase"] == "finetune"].groupby(RUN):
        steps = rows["steps"].to_numpy()
        between = steps[(steps > since) & (steps < environment_steps)]
        grid = np.unique([since, *between, environment_steps])
        if steps.max() >= environment_steps:
            area = np.trapezoid(np.interp(grid, steps, rows["score"]), grid)
            heights[run] = area / (environment_steps - since)
    index = pd.MultiIndex.from_tuples(heights, names=RUN)
    return pd.Series([*heights.values()], index, dtype=float, name="mean_score")


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


def calibration(metadata: Mapping[Any, Mapping]) -> pd.Series:
    """Returns the gap of each run's critics in all fixed states, when pre-training ends (`measures.calibration`).

    `metadata` is what `records.load_metadata` returns; runs whose critics were not asked are left out.
    """
    asked = {run: about["calibration"]["all"]["gap"] for run, about in metadata.items() if about["calibration"]}
    index = pd.MultiIndex.from_tuples([(run.task, run.dataset, run.arm, run.seed) for run in asked], names=RUN)
    return pd.Series([*asked.values()], index, dtype=float, name="gap")


def last_offline(table: pd.DataFrame, value: str = "score") -> pd.Series:
    """Returns the last number of a column that each run has before it goes online, as its score; no run from scratch.

    Of "overestimation", by how much each critic overrates its own policy, in rewards; of "overfitting", its error on new rows
    divided by that on trained rows.
    """
    return table[table["phase"] == "pretrain"].dropna(subset=value).groupby(RUN)[value].last()


def mean_offline(table: pd.DataFrame) -> pd.Series:
    """Returns each run's mean score over the second half of its pre-training; no run from scratch.

    A policy that learns offline leaps from one evaluation to the next, so that its last one says little.
    """
    rows = table[table["phase"] == "pretrain"]
    late = rows[rows["steps"] > rows.groupby(RUN)["steps"].transform("max") / 2]
    return late.groupby(RUN)["score"].mean().rename("mean_offline")
