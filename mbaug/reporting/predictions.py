"""What we expected of the controls and what would contradict it, written down before the runs and tested on them afterwards."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from mbaug.experiments.studies import STUDIES, TWO
from mbaug.reporting import statistics, words
from mbaug.reporting.claims import Measure
from mbaug.reporting.statistics import ENOUGH_SEEDS, Interval, mean_offline, mean_score

FALLING = ("hopper", "walker2d", "ant")  # tasks in which an episode can end in a fall
LIKE = 10.0  # largest difference in score between two arms that count as alike


@dataclass(frozen=True)
class Prediction:
    """A difference between two arms, as a mean over tasks, that we expected to lie between two bounds.

    With tasks in `minus`, it is the difference on `tasks` less the difference on the tasks in `minus`.
    """

    text: str
    contradicted_by: str
    arms: tuple[str, str]
    tasks: tuple[str, ...]
    low: float = -np.inf
    high: float = np.inf
    minus: tuple[str, ...] = ()
    measure: Measure = mean_score
    planned: int = ENOUGH_SEEDS  # seeds per arm and task


PREDICTIONS = (
    Prediction(
        "Where robots fall, the model's next states do worse than noise of the same size",
        "augmented above matched noise on Hopper, Walker2d and Ant together",
        ("augmented", "noise"),
        FALLING,
        high=0.0,
    ),
    Prediction(
        "On HalfCheetah, which cannot fall, the model costs less than on the other three tasks",
        "a larger loss against vanilla on HalfCheetah than on the other three",
        ("augmented", "vanilla"),
        ("halfcheetah",),
        low=0.0,
        minus=FALLING,
    ),
    Prediction(
        "On Hopper the deterministic model, which hardly errs, scores about as much as vanilla",
        f"a difference of more than {LIKE:.0f} points",
        ("deterministic", "vanilla"),
        ("hopper",),
        low=-LIKE,
        high=LIKE,
    ),
    Prediction(
        "Offline, the model's pull to the middle alone (`shrink`) does more harm than its jitter alone",
        "`shrink` above `jitter`, on Hopper and HalfCheetah together",
        ("shrink_offline", "jitter_offline"),
        TWO,
        high=0.0,
        measure=mean_offline,
        planned=len(STUDIES["sources"].seeds),
    ),
    Prediction(
        "The more next states are imagined, the worse: 100 % is below 0 %",
        "a rate of 100 % above vanilla on HalfCheetah",
        ("augmented_100", "vanilla"),
        ("halfcheetah",),
        high=0.0,
    ),
)


class Measured(NamedTuple):
    """What the recorded runs say about a prediction."""

    interval: Interval
    missing: tuple[str, ...]  # tasks on which an arm has fewer than two seeds


def measured(prediction: Prediction, table: pd.DataFrame) -> Measured:
    """Returns the measured difference, on the tasks where both arms have two seeds.

    `table` is what `claims.main_runs` returns.
    """
    scores, sides = statistics.by_task(prediction.measure(table), *prediction.arms), (prediction.tasks, prediction.minus)
    missing = tuple(task for task in prediction.tasks + prediction.minus if task not in scores)
    groups, weights = [], []
    for sign, side in zip((1, -1), sides, strict=True):
        recorded = [scores[task] for task in side if task in scores]
        if side and not recorded:
            return Measured(Interval(np.nan, np.nan, np.nan, 0), missing)
        groups += [group for arms in recorded for group in arms]
        weights += [sign / len(recorded), -sign / len(recorded)] * len(recorded) if recorded else []
    return Measured(statistics.contrast(groups, weights), missing)


def leave_one_out(prediction: Prediction, table: pd.DataFrame) -> dict[str, Interval]:
    """Returns the measured difference without each task in turn, by that task, where the rest of its side is recorded."""
    sides, found = (prediction.tasks, prediction.minus), {}
    for task in [task for side in sides if len(side) > 1 for task in side]:
        one, other = (tuple(each for each in side if each != task) for side in sides)
        found[task] = measured(replace(prediction, tasks=one, minus=other), table).interval
    return {task: rest for task, rest in found.items() if rest.n_seeds}


def judged(prediction: Prediction, found: Measured) -> str:
    """Returns "as predicted" if the interval lies within the bounds, "contradicted" if it lies outside, or what is unclear."""
    _, low, high, n_seeds, *_ = found.interval
    if n_seeds < prediction.planned:
        return "too few seeds" if n_seeds else "not yet recorded"
    if found.missing:
        return "tasks missing"
    if prediction.low <= low and high <= prediction.high:
        return "as predicted"
    return "contradicted" if high < prediction.low or low > prediction.high else "undecided"


def needed(prediction: Prediction, table: pd.DataFrame) -> list[str]:
    """Returns the tasks without which a prediction that is decided would not be judged as it is; [] for two tasks or fewer."""
    verdict, rest = judged(prediction, measured(prediction, table)), leave_one_out(prediction, table)
    if verdict not in ("as predicted", "contradicted") or len(rest) < 3:
        return []
    return [task for task, interval in rest.items() if judged(prediction, Measured(interval, ())) != verdict]


def listed() -> str:
    """Returns the predictions as a numbered Markdown table, with what would contradict each."""
    rows = [(str(number), each.text, each.contradicted_by) for number, each in enumerate(PREDICTIONS, start=1)]
    return "\n".join(words.table(["", "we expect", "contradicted by"], rows))
