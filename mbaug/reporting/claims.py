"""The paper's claims, the comparisons that must hold for each, and the verdicts that follow from the recorded runs alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from mbaug import files
from mbaug.reporting import statistics
from mbaug.reporting.figures import ENOUGH_SEEDS, count, look, words
from mbaug.reporting.statistics import Interval, final_score, last_offline, mean_score

CHANCE = 0.05  # the largest with which a claim counts as reproduced
RULES = f"""\
Numbers are the interquartile mean of the paired differences (same seed, same 10,000 transitions) and its stratified
bootstrap 95 % interval. Fewer than {ENOUGH_SEEDS} seeds make a weak interval: with 3 it holds the truth in about 75 of
100 cases. *Chance* is how often random signs would favour the claim as much. *Reproduced*: every interval lies on the
claim's side of zero, and every chance is at most {CHANCE * 100:.0f} % (5 pairs can show that, 3 or 4 cannot). *Direction only*:
every interval that is measured lies on its side, but chance is larger, or a part of the claim is not measured. *Not
reproduced*: an interval reaches zero or lies beyond it. [S] and [A] are summaries of the paper: see 00_overview."""
Measure = Callable[[pd.DataFrame], pd.Series]  # evaluations to one number a run


@dataclass(frozen=True)
class Comparison:
    """A paired difference that a claim says is positive: measure(arm) - measure(other) + margin > 0."""

    arm: str
    other: str
    measure: Measure = mean_score
    unit: str = "score, mean over 0 to 100K"  # what a difference of 1 is
    other_measure: Measure | None = None  # where the other is measured in another way
    margin: float = 0.0  # how much worse still counts as equal


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, where it is said, the notebook that draws it, and the comparisons that must all hold."""

    letter: str
    text: str
    said: str
    notebook: str
    comparisons: tuple[Comparison, ...]
    n_tasks: int = 1  # how many tasks the claim speaks of


class Finding(NamedTuple):
    """What the recorded runs say to a comparison."""

    comparison: Comparison
    tasks: tuple[str, ...]
    interval: Interval
    chance: float


RATIO = "error on new rows / on trained rows"
ONLINE, BETTER = "05_online_finetuning", Comparison("augmented", "vanilla")
MILLION = partial(final_score, environment_steps=1_000_000)
CLAIMS = (
    Claim("a", "It jump-starts online learning", "yes [S]", ONLINE, (Comparison("augmented", "td3"),)),
    Claim(
        "b",
        "In some cases it needs 10x fewer interactions",
        "at 100K it is comparable to SAC at 1M [S]",
        ONLINE,
        (
            Comparison("augmented", "sac", final_score, "score at 100K"),
            Comparison("augmented", "sac_million", final_score, "score at 100K, SAC at 1M", MILLION, margin=10.0),
        ),
    ),
    Claim(
        "c",
        "It is clearly better than vanilla offline pre-training",
        "on ant, hopper, walker2d and halfcheetah [S]",
        ONLINE,
        (BETTER,),
        n_tasks=4,
    ),
    Claim(
        "d",
        "50 % is the best rate",
        "yes [S]",
        "07_controls",
        (BETTER, *(Comparison("augmented", f"augmented_{percent}") for percent in (25, 75, 100))),
    ),
    Claim(
        "e",
        "The pre-trained actor and the pre-trained critic both help, the actor most without augmentation",
        "yes [A]",
        "07_controls",
        (
            Comparison("augmented_actor", "td3"),
            Comparison("augmented_critics_uniform", "td3"),
            Comparison("vanilla_actor", "vanilla_critics_uniform"),
        ),
    ),
    Claim(
        "f",
        "Augmentation smooths the critic's over-fitting",
        "visible in the distributions of Q-values [S, A]",
        "04_offline_pretraining",
        (
            replace(BETTER, measure=lambda table: -last_offline(table, "overestimation"), unit="rewards less over-estimation"),
            replace(BETTER, measure=lambda table: -last_offline(table, "overfitting"), unit=f"less over-fitting ({RATIO})"),
        ),
    ),
)


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the evaluations that the claims are about: those of runs with medium-replay data or none."""
    return statistics.evaluations(frame[(frame["dataset"] == "none") | (frame["dataset"] == frame["task"] + "-medium-replay")])


def findings(claim: Claim, table: pd.DataFrame) -> list[Finding]:
    """Returns what the evaluations say to each comparison of a claim that two or more seeds have measured."""
    found = []
    for comparison in claim.comparisons:
        arm, other, measure = comparison.arm, comparison.other, comparison.measure
        ours, theirs = (table[table["arm"] == name] for name in (arm, other))
        scores = pd.concat([measure(ours), (comparison.other_measure or measure)(theirs)])
        strata = {task: statistics.differences(rows, arm, other) for task, rows in scores.groupby("task")}
        # A task with one pair stays out: one seed tells nothing of the next, and it would narrow the interval of the others.
        paired = {task: differences[0] for task, differences in strata.items() if differences and len(differences[0]) > 1}
        chance = statistics.chance([differences + comparison.margin for differences in paired.values()])
        found.append(Finding(comparison, tuple(paired), statistics.interval([*paired.values()]), chance))
    return [finding for finding in found if not np.isnan(finding.interval.low)]


def verdict(claim: Claim, found: Sequence[Finding]) -> str:
    """Returns "reproduced", "direction only", "not reproduced" or "not yet measured", by `RULES`."""
    if not found:
        return "not yet measured"
    if any(finding.interval.low + finding.comparison.margin <= 0 for finding in found):
        return "not reproduced"
    measured = len(found) == len(claim.comparisons) and all(len(finding.tasks) >= claim.n_tasks for finding in found)
    return "reproduced" if measured and all(finding.chance <= CHANCE for finding in found) else "direction only"


def claims_table(frame: pd.DataFrame) -> str:
    """Returns the paper's claims beside what recorded runs (`records.load_runs`) say to them, a Markdown table with its rules."""
    table = main_runs(frame)
    lines = ["| | claim | the paper | we measured | verdict | notebook |", "|---|---|---|---|---|---|"]
    for claim in CLAIMS:
        found, copy = findings(claim, table), f"notebooks/{claim.notebook}.ipynb"
        measured = "<br>".join(map(_measured, found)) or "–"
        link = f"[{claim.notebook}]({copy})" if (files.repository() / copy).exists() else claim.notebook
        lines.append(f"| {' | '.join([claim.letter, claim.text, claim.said, measured, verdict(claim, found), link])} |")
    return "\n".join([*lines, "", RULES])


def _measured(finding: Finding) -> str:
    """Returns a finding as a table's cell: the difference, its interval, chance, tasks and seeds."""
    comparison, tasks, found, chance = finding
    odds = "below 1 %" if chance < 0.01 else f"{100 * chance:.0f} %"
    names = f"{look(comparison.arm).label} − {look(comparison.other).label}"
    seeds = f"{', '.join(tasks)}, {count('seed', [found.n_seeds])}{' (a weak interval)' if found.n_seeds < ENOUGH_SEEDS else ''}"
    return f"{names}: **{words(found, signed=True)}** {comparison.unit}; chance {odds}; {seeds}"
