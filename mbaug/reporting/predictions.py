"""What we expected of the controls, and what would contradict it: written down before the runs, held to them afterwards."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from mbaug.experiments.studies import STUDIES, TWO
from mbaug.reporting import statistics
from mbaug.reporting.claims import Measure
from mbaug.reporting.statistics import ENOUGH_SEEDS, Interval, mean_offline, mean_score

FALLING = ("hopper", "walker2d", "ant")  # where an episode can end in a fall
LIKE = 10.0  # points of score within which two arms count as alike


@dataclass(frozen=True)
class Prediction:
    """A difference of two arms that we expected to lie between two bounds, as a mean over tasks.

    With tasks in `minus`, it is the difference on `tasks` less the difference on these.
    """

    text: str
    contradicted_by: str
    arms: tuple[str, str]
    tasks: tuple[str, ...]
    low: float = -np.inf
    high: float = np.inf
    minus: tuple[str, ...] = ()
    measure: Measure = mean_score
    planned: int = ENOUGH_SEEDS  # seeds of each arm and task


PREDICTIONS = (
    Prediction(
        "Where robots fall, the model's next states do worse than noise of the same size",
        "augmented above matched noise on Hopper, Walker2d and Ant together",
        ("augmented", "noise"),
        FALLING,
        high=0.0,
    ),
    Prediction(
        "On HalfCheetah, which cannot fall, the model costs less than there",
        "a larger loss against vanilla on HalfCheetah than on the other three",
        ("augmented", "vanilla"),
        ("halfcheetah",),
        low=0.0,
        minus=FALLING,
    ),
    Prediction(
        "On Hopper the deterministic model, which hardly errs, does as vanilla does",
        f"a difference of more than {LIKE:.0f} points",
        ("deterministic", "vanilla"),
        ("hopper",),
        low=-LIKE,
        high=LIKE,
    ),
    Prediction(
        "Offline, the model's bias alone does more harm than its jitter alone",
        "the bias alone above the jitter alone, on Hopper and HalfCheetah together",
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


class Held(NamedTuple):
    """What the recorded runs say to a prediction."""

    interval: Interval
    missing: tuple[str, ...]  # those of its tasks in which not both arms have two seeds


def held(prediction: Prediction, table: pd.DataFrame) -> Held:
    """Returns what the evaluations (`claims.main_runs`) say to a prediction, over the tasks in which both arms ran twice."""
    scores, sides = statistics.by_task(prediction.measure(table), *prediction.arms), (prediction.tasks, prediction.minus)
    missing = tuple(task for task in prediction.tasks + prediction.minus if task not in scores)
    groups, weights = [], []
    for sign, side in zip((1, -1), sides, strict=True):
        there = [scores[task] for task in side if task in scores]
        if side and not there:
            return Held(Interval(np.nan, np.nan, np.nan, 0), missing)
        groups += [group for arms in there for group in arms]
        weights += [sign / len(there), -sign / len(there)] * len(there) if there else []
    return Held(statistics.contrast(groups, weights), missing)


def judged(prediction: Prediction, found: Held) -> str:
    """Returns how a prediction fared: as predicted if the whole interval is within its bounds, contradicted if all is outside."""
    low, high, n_seeds = found.interval[1:4]
    if n_seeds < prediction.planned:
        return "too few seeds" if n_seeds else "not yet recorded"
    if found.missing:
        return "tasks missing"
    if prediction.low <= low and high <= prediction.high:
        return "as predicted"
    return "contradicted" if high < prediction.low or low > prediction.high else "undecided"


def listed() -> str:
    """Returns the predictions as a Markdown table, numbered, with what would contradict each."""
    rows = [f"| {number} | {each.text} | {each.contradicted_by} |" for number, each in enumerate(PREDICTIONS, start=1)]
    return "\n".join(["| | we expect | contradicted by |", "|---|---|---|", *rows])
