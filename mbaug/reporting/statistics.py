"""Statistics that are valid with five seeds: means with t intervals, differences, contrasts, and what they can detect.

The seed is the unit: ten episodes of one agent are one score, never ten. Welch's t compares two
arms as if their seeds were independent. But arms with the same seed share draws or a whole
pre-training. If their scores rise and fall together for that reason, the interval is too wide.
Tasks are fixed and not sampled: each task's mean counts the same, and Satterthwaite's formula gives
the degrees of freedom. For normal scores such an interval contains the truth in about 95 of 100
cases: in 93 to 97 with three seeds, whether one arm's scores vary more or not. With three seeds it
is wide. Agarwal et al. (2021, arXiv 2108.13264) recommend interquartile means with a bootstrap for
a few runs of many tasks. Here such a mean drops whole tasks, and for three seeds of one task its
bootstrap contains the truth in 76 of 100 cases.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, stats

from mbaug.experiments.studies import ARMS, offline_updates
from mbaug.tasks import EVERY

RUN = ["task", "dataset", "arm", "seed"]
ENOUGH_SEEDS = 5  # smallest number of seeds for a verdict, fixed before the runs
LEVEL = 0.05  # significance level of every test; intervals have level 1 - LEVEL

Strata = Sequence[Float[np.ndarray, "_"]]  # one array per task, one number per seed


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float
    n_seeds: int  # smallest number of seeds in any arm and task
    p: float = np.nan  # two-sided p value: probability of an estimate at least as far from zero if the truth were zero


def evaluations(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per evaluation of an agent: the means over its episodes.

    A diverged agent gets a score at every evaluation that it missed: 0, as a random policy, or its own lowest score if that is
    less. Leaving it out would make its arm look better. `frame` is what `records.load_runs` returns. In the result, `steps` are
    updates in the phase "pretrain" and environment interactions in "finetune", and `overestimation` is predicted_value minus
    discounted_return.
    """
    steps = frame["environment_steps"].where(frame["phase"] == "finetune", frame["gradient_steps"])
    episodes = frame.assign(steps=steps).drop(columns=["episode", "gradient_steps", "environment_steps"])
    table = episodes.groupby([*RUN, "status", "phase", "steps"], as_index=False).mean()
    diverged = frame.loc[frame["status"] == "diverged", [*RUN, "status"]].drop_duplicates()
    missed = [_expected(run, table) for run in diverged.itertuples(index=False)] if len(table) else []
    table = pd.concat([table, *missed]).drop_duplicates([*RUN, "phase", "steps"])  # a measured row comes first and stays
    table = table.sort_values([*RUN, "phase", "steps"], ascending=[True] * len(RUN) + [False, True], ignore_index=True)
    return table.assign(overestimation=table["predicted_value"] - table["discounted_return"])


def _expected(run: Any, table: pd.DataFrame) -> pd.DataFrame:
    """Returns a diverged agent's rows, scored 0 or its lowest score, one for each evaluation that its arm has.

    The evaluations are those of finished agents of its arm or, if there are none, those of the task's other agents within the
    budgets of its arm.
    """
    others = table[table["task"] == run.task]
    alike = others[(others["arm"] == run.arm) & (others["status"] == "finished")]
    points = (others if alike.empty else alike)[["phase", "steps"]].drop_duplicates()
    points = points[points["phase"] == "finetune"] if run.dataset == "none" else points
    if (arm := ARMS.get(run.arm)) is not None:  # other arms may train longer, or in a phase that this one lacks
        ends = {"pretrain": offline_updates(arm), "finetune": arm.finetuning.steps if arm.finetuning else -1}
        points = points[points["steps"] <= points["phase"].map(ends)]
    measured = table.merge(pd.DataFrame([run._asdict()])[RUN])
    return points.assign(**run._asdict(), score=min([0.0, *measured["score"]]))


def contrast(groups: Strata, weights: Sequence[int | float] | np.ndarray, minus: float = 0.0) -> Interval:
    """Returns sum_j w_j mean(x_j) - minus of independent groups, with its t interval and two-sided p value.

    One group gives Student's interval, and two groups with weights 1 and -1 give Welch's. Group j adds the variance v_j = w_j^2
    var(x_j) / n_j. The degrees of freedom are (sum_j v_j)^2 / sum_j (v_j^2 / (n_j - 1)). If a group has only one seed, the
    value has no interval.

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
    variances = np.square(weights) * [group.var(ddof=1) for group in groups] / sizes
    squares = (np.square(variances) / (sizes - 1)).sum()
    if not squares:  # all seeds scored the same, up to rounding
        return Interval(value, value, value, int(sizes.min()), float(value == 0))
    error, freedom = np.sqrt(variances.sum()), variances.sum() ** 2 / squares
    half_width, p = stats.t.isf(LEVEL / 2, freedom) * error, 2 * stats.t.sf(abs(value) / error, freedom)
    return Interval(value, float(value - half_width), float(value + half_width), int(sizes.min()), float(p))


def interval(strata: Strata) -> Interval:
    """Returns the mean over tasks, weighted equally, of the mean over seeds, with its t interval."""
    strata = [scores for scores in strata if len(scores)]
    return contrast(strata, np.full(len(strata), 1 / max(1, len(strata))))


def arm_mean(measure: pd.Series, task: str, arm: str) -> Interval:
    """Returns the mean of an arm's seeds on one task in a measure, with its t interval."""
    tasks, arms = (measure.index.get_level_values(name) for name in ("task", "arm"))
    return interval([measure[(tasks == task) & (arms == arm)].to_numpy()])


def by_task(measure: pd.Series, *arms: str, least: int = 2) -> dict[str, list[Float[np.ndarray, "_"]]]:
    """Returns {task: [array of each arm]} for the tasks on which all arms have at least `least` seeds, in the order of figures.

    A `measure` has one number per run, as the functions below return it.

    Raises:
        ValueError: An arm has several runs of one task and seed.
    """
    if measure.reset_index().duplicated(["task", "seed", "arm"]).any():
        raise ValueError("Several runs have the same task, arm and seed: select one dataset first.")
    groups = {(task, arm): rows.dropna().to_numpy() for (task, arm), rows in measure.groupby(["task", "arm"], sort=False)}
    names = sorted({task for task, _ in groups}, key=lambda task: [*EVERY, task].index(task))
    found = {task: [groups.get((task, arm), np.zeros(0)) for arm in arms] for task in names}
    return {task: scores for task, scores in found.items() if min(map(len, scores)) >= least}


def seed_counts(groups: Mapping[str, Strata]) -> list[int]:
    """Returns how many seeds each arm has on each task, from what `by_task` returns."""
    return [len(scores) for arms in groups.values() for scores in arms]


def difference(measure: pd.Series, arm: str, *others: str, minus: float = 0.0) -> Interval:
    """Returns `arm` minus the mean of `others` in a measure, with its t interval. All tasks of `by_task` count the same."""
    tasks = [*by_task(measure, arm, *others).values()]
    weights = [1 / len(tasks), *(-1 / len(tasks) / len(others) for _ in others)] * len(tasks) if tasks else []
    return contrast([group for groups in tasks for group in groups], weights, minus)


def leave_one_out(measure: pd.Series, arm: str, *others: str) -> dict[str, Interval]:
    """Returns `difference` without each task in turn, by that task; nothing if there is only one."""
    found, task = by_task(measure, arm, *others), measure.index.get_level_values("task")
    return {name: difference(measure[task != name], arm, *others) for name in found} if len(found) > 1 else {}


def holm(p: Sequence[float]) -> Float[np.ndarray, "_"]:
    """Returns p values corrected for their number n: the k-th smallest is multiplied by n - k + 1. Their order stays.

    At a level of 5 %, some true null hypothesis is then rejected in at most 5 of 100 cases. A NaN is a test still to come.

    Source: Holm (1979).
    """
    values = np.asarray(p, dtype=float)
    order, found = np.argsort(values), np.empty(len(values))  # NaN comes last
    found[order] = np.maximum.accumulate((len(values) - np.arange(len(values))) * values[order])
    return found.clip(max=1)


def detectable(n_seeds: int, n_tasks: int = 1, tests: int = 1) -> float:
    """Returns the difference between two arms that a test finds in 80 of 100 cases, in standard deviations of a task's seeds.

    The arms are compared by their equal-weight means over `n_tasks`. Seeds are normal with the same standard deviation, so the
    noncentral t distribution gives the power. With several `tests`, the result holds for the first that `holm` rejects.
    """
    freedom, scale = 2 * n_tasks * (n_seeds - 1), np.sqrt(n_tasks * n_seeds / 2)
    critical = stats.t.isf(LEVEL / 2 / tests, freedom)
    return float(optimize.brentq(lambda shift: stats.nct.sf(critical, freedom, shift * scale) - 0.8, 0, 100))


def summarise(table: pd.DataFrame, by: Sequence[str], value: str = "score") -> pd.DataFrame:
    """Returns a row per group: the columns `by`, the mean of `value` (tasks weighted equally), low, high, n_seeds.

    Raises:
        ValueError: A group has two rows of one run: its episodes were not averaged, or `by` lacks a column.
    """
    table, rows = table.dropna(subset=value), []
    for name, group in table.groupby(list(by)):
        if group.duplicated(RUN).any():
            raise ValueError(f"The unit is the seed, but a run has several rows in {dict(zip(by, name, strict=True))}.")
        rows.append([*name, *interval([scores.to_numpy() for _, scores in group.groupby("task")[value]])[:4]])
    return pd.DataFrame(rows, columns=[*by, value, "low", "high", "n_seeds"])


def paired_differences(measure: pd.Series, arm: str, other: str) -> list[Float[np.ndarray, "_"]]:
    """Returns `arm` minus `other` in a measure for each seed that both have, an array per task. Raises what `by_task` raises."""
    by_task(measure, arm, other)
    wide = measure.dropna().unstack("arm").reindex(columns=[arm, other])
    wide = wide.groupby(["task", "seed"]).first().dropna()  # the dataset "none" pairs with any
    return [paired.to_numpy() for _, paired in (wide[arm] - wide[other]).groupby("task")]


def sign_flip_p(strata: Strata) -> float:
    """Returns the share of random signs with which the paired differences add up to at least the observed sum.

    This is Fisher's exact one-sided test of "no difference" by sign flips. We show it but decide nothing by it: n pairs never
    give less than 2^-n, and five pairs never less than 3 %. Above 20 pairs, random flips stand for all.
    """
    values = np.concatenate([np.zeros(0), *strata])
    if len(values) <= 20:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
    else:
        flips = np.random.default_rng(0).choice([-1, 1], size=(10_000, len(values)))
        flips[0] = 1  # what was observed is one of the possible outcomes
        sums = flips @ values
    return float(np.mean(sums >= values.sum() - 1e-9 * np.abs(values).sum()))


def probability_of_improvement(strata: Strata, others: Strata) -> float:
    """Returns how often a run of the first arm beats one of the second, P(X > Y) + P(X = Y) / 2, as a mean over tasks.

    Both arms have an array per task, in the same order. The number describes the recorded runs and decides nothing.

    Source: Agarwal et al. (2021).
    """
    signs = [np.sign(np.subtract.outer(x, y)).mean() for x, y in zip(strata, others, strict=True)]
    return float(0.5 + 0.5 * np.mean(signs)) if signs else np.nan


def final_score(table: pd.DataFrame, environment_steps: int = 100_000) -> pd.Series:
    """Returns each run's score after exactly `environment_steps` interactions. Runs without that evaluation are left out."""
    rows = table[(table["phase"] == "finetune") & (table["steps"] == environment_steps)]
    return rows.groupby(RUN)["score"].last().rename("final_score")


def mean_score(table: pd.DataFrame, until: int = 100_000, since: int = 0) -> pd.Series:
    """Returns each run's area under the online curve from `since` to `until` interactions, divided by that length.

    The area is made of trapezoids between evaluations, and the first score also counts for the time before it. Runs that end
    before `until` are left out.
    """
    scores = {}
    for run, rows in table[table["phase"] == "finetune"].groupby(RUN):
        steps = rows["steps"].to_numpy()
        between = steps[(steps > since) & (steps < until)]
        grid = np.unique([since, *between, until])
        if steps.max() >= until:
            area = np.trapezoid(np.interp(grid, steps, rows["score"]), grid)
            scores[run] = area / (until - since)
    index = pd.MultiIndex.from_tuples(scores, names=RUN)
    return pd.Series([*scores.values()], index, dtype=float, name="mean_score")


def score_drop(table: pd.DataFrame, until: int = 50_000, since: int = 0) -> pd.Series:
    """Returns what each agent loses at the switch: its last offline score minus its lowest online score soon after.

    Soon after means from `since` to `until` interactions. The default spans the authors' 25,000 without updates and 25,000 more
    with updates. The lowest of several noisy evaluations lies below their mean, so even an agent that never changes shows a
    drop, and it grows with the number of evaluations. Compare drops only over equally many evaluations.
    """
    soon = table[(table["phase"] == "finetune") & table["steps"].between(since, until)]
    return (last_offline(table) - soon.groupby(RUN)["score"].min()).dropna().rename("score_drop")


def steps_to_threshold(table: pd.DataFrame, threshold: float) -> pd.Series:
    """Returns the interactions at each run's first evaluation that scores `threshold` or more, inf if none does.

    Each infinity is a run that never gets there. Do not drop these runs to take a mean: take a median.
    """
    rows = table[table["phase"] == "finetune"]
    reached = rows["steps"].where(rows["score"] >= threshold, np.inf)
    return rows.assign(reached=reached).groupby(RUN)["reached"].min().rename("steps_to_threshold")


def calibration(metadata: Mapping[Any, Mapping], key: str = "gap") -> pd.Series:
    """Returns a measure of each run's critics over all fixed states when pre-training ends, a key of `measures.calibration`.

    `metadata` is what `records.load_metadata` returns. Runs without a calibration are left out.
    """
    found = {run: about["calibration"]["all"][key] for run, about in metadata.items() if about.get("calibration")}
    index = pd.MultiIndex.from_tuples([(run.task, run.dataset, run.arm, run.seed) for run in found], names=RUN)
    return pd.Series([*found.values()], index, dtype=float, name=key)


def last_offline(table: pd.DataFrame, value: str = "score") -> pd.Series:
    """Returns the last value of a column in each run's pre-training. Runs from scratch are left out.

    The column "overestimation" is by how much a critic overrates its own policy, in rewards. "overfitting" is its error on new
    rows divided by its error on trained rows.
    """
    return table[table["phase"] == "pretrain"].dropna(subset=value).groupby(RUN)[value].last()


def mean_offline(table: pd.DataFrame) -> pd.Series:
    """Returns each run's mean score over the second half of its pre-training. Runs from scratch are left out.

    The score of a policy that learns offline jumps from one evaluation to the next, so the last one alone says little.
    """
    rows = table[table["phase"] == "pretrain"]
    late = rows[rows["steps"] > rows.groupby(RUN)["steps"].transform("max") / 2]
    return late.groupby(RUN)["score"].mean().rename("mean_offline")
