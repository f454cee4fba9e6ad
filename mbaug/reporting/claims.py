"""The paper's claims, the comparisons that decide each, and the verdicts that follow from the recorded runs alone.

We wrote each comparison down here, with its tasks and five seeds, before the pre-trained runs that decide it. `KNOWN` lists the
exceptions. The baselines were recorded before.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd

from mbaug.experiments.studies import FOUR, TWO
from mbaug.reporting import published, statistics, words
from mbaug.reporting.looks import look
from mbaug.reporting.statistics import ENOUGH_SEEDS, LEVEL, Interval, last_offline, mean_score
from mbaug.reporting.words import count, estimate, fold, in_words, number

Measure = Callable[[pd.DataFrame], pd.Series]  # from evaluations to one number per run
LEARNING = partial(mean_score, since=25_000)  # starts after the longest warm-up, so that every arm learns
END = partial(mean_score, since=75_000)  # a single evaluation is too noisy: the score jumps by tens of points
MARGIN = 10.0  # points below the published score that still count as comparable


@dataclass(frozen=True)
class Comparison:
    """A difference that should be positive if a claim holds: measure(arm) minus the mean of measure(others) over the tasks."""

    arm: str
    others: tuple[str, ...]  # if empty: SAC's published score after a million interactions, less MARGIN
    tasks: tuple[str, ...] = FOUR
    measure: Measure = mean_score
    unit: str = "in mean score, 0 to 100K"


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: what the sources say, the notebook that draws it, and a comparison for each of its parts."""

    letter: str
    topic: str  # in two words or three
    text: str
    said: str
    notebook: str
    parts: tuple[Comparison, ...]
    caveat: str = ""  # what the measures cannot show

    @property
    def kind(self) -> str:
        """Whether the claim rests on a comparison that we named as decisive: "primary" or "exploratory"."""
        return "primary" if self.parts[0] in PRIMARY else "exploratory"


class Finding(NamedTuple):
    """What the recorded runs say about a comparison."""

    comparison: Comparison
    tasks: tuple[str, ...]  # tasks on which every arm has two seeds
    seeds: tuple[int, ...]  # how many seeds each arm has on each of these tasks
    interval: Interval  # n_seeds is 1 if no task has two seeds of every arm, but some task has one
    p: float  # with Holm's correction for all comparisons of the family
    better: tuple[str, ...]  # if there are several others: those with a higher mean than the arm
    above: int  # on how many of the tasks the difference is above zero
    rest: dict[str, Interval]  # by task, if there are several: the difference without it

    @property
    def needed(self) -> list[str]:
        """The tasks without which the sign changes, or the interval holds zero; [] if there are fewer than three."""
        if len(self.rest) < 3:
            return []
        value = self.interval.value
        return [task for task, other in self.rest.items() if other.low <= 0 <= other.high or other.value * value < 0]


PRIMARY = tuple(Comparison("augmented", (other,)) for other in ("vanilla", "noise", "td3_data"))
KNOWN = {  # task, arm and seed of the pre-trained runs that were recorded before we wrote PRIMARY down
    *product(["hopper"], ["vanilla", "augmented", "noise"], (0, 1, 2)),
    *product(["halfcheetah"], ["vanilla", "augmented"], (0,)),
}
METHODS = tuple(Comparison("layernorm_data", (other,)) for other in ("td3_data", "vanilla_data", "sac"))  # primary, too
HORIZONS = (  # the paper claims nothing here: it imagines one step
    *(Comparison(f"augmented_horizon{n}", ("augmented_horizon1",), ("halfcheetah",)) for n in (2, 3, 5)),
    Comparison("augmented_horizon3", ("vanilla_horizon3",), ("halfcheetah",)),
    Comparison("vanilla_horizon3", ("vanilla_horizon1",), ("halfcheetah",)),
)
HALF = partial(mean_score, until=50_000)  # the arms of the ceiling stop there
CEILING = tuple(
    Comparison(f"ceiling_50{kind}", (f"ceiling{kind}",), TWO, HALF, "in mean score, 0 to 50K") for kind in ("", "_weak", "_free")
)
RATES = ("vanilla", "augmented_25", "augmented_75", "augmented_100")
ONLINE, CONTROLS = "05_online_finetuning", "07_controls"
CRITIC = {
    "overestimation": "rewards by which a critic over-estimates its policy at the first state, when pre-training ends",
    "overfitting": "in a critic's error on new rows divided by its error on trained rows, when pre-training ends",
}
CLAIMS = (
    Claim("a", "jump-start", "It jump-starts online learning", "yes [S]", ONLINE, (Comparison("augmented", ("td3",)),)),
    Claim(
        "b",
        "10x fewer interactions",
        "In some cases it needs 10x fewer interactions",
        "at 100K it is comparable to SAC at 1M [S]",
        ONLINE,
        tuple(Comparison("augmented", (), (task,), END, "in mean score, 75K to 100K") for task in FOUR),
    ),
    Claim(
        "c",
        "better than vanilla",
        "It is clearly better than vanilla offline pre-training",
        "on Ant, Hopper, Walker2d and HalfCheetah [S]",
        ONLINE,
        PRIMARY[:1],
    ),
    # We compare with the mean of the other rates. A trend over |rate - 50 %| would be as steep if a neighbour of 50 % were best
    # and both ends poor. If another rate has a higher mean, the verdict cannot be "reproduced".
    Claim("d", "best rate", "50 % is the best rate", "yes [S]", CONTROLS, (Comparison("augmented", RATES, ("halfcheetah",)),)),
    Claim(
        "e",
        "actor and critic both help",
        "The pre-trained actor and the pre-trained critic both help, and the actor is important without augmentation",
        "yes [A]",
        CONTROLS,
        (
            Comparison("augmented_actor", ("td3",), TWO),
            Comparison("augmented_critics_uniform", ("td3",), TWO),
            Comparison("vanilla_actor", ("vanilla_critics_uniform",), TWO),
        ),
        "The first two parts include what standardised states gain: see the rules below.",
    ),
    Claim(
        "f",
        "smoother critic",
        "Augmentation smooths the critic's over-fitting",
        "visible in the distributions of Q-values [S, A]",
        "04_offline_pretraining",
        tuple(Comparison("vanilla", ("augmented",), FOUR, partial(last_offline, value=x), unit) for x, unit in CRITIC.items()),
        "Both measures mislead where critics run away: see the rules below.",
    ),
)
RULES = f"""\
A number is the difference between two arms, averaged over seeds and then over tasks, with its 95 % t interval in brackets
(Welch's; over tasks Satterthwaite's). The interval covers the luck of seeds on these tasks. It says nothing about other tasks, or
about other data of these tasks: each task has one pool, and two draws from it share rows. It assumes roughly normal scores. So it
is too narrow where a few seeds of an arm collapse, or where two seeds of one arm decide a mean over tasks.

When we named a comparison, we fixed its tasks and its {ENOUGH_SEEDS} seeds. Two families of three comparisons are primary: the
table above, and that of [chapter 11](notebooks/11_other_methods.ipynb). We named the second family before any run with
LayerNorm. By then TD3 with the data and SAC were recorded with all seeds, and “vanilla, data kept” with one. Holm's method
corrects each family separately. All other comparisons are exploratory. The parts of such a claim are a family, too.

Arms from scratch see raw states, and every pre-trained arm sees standardised ones. Claims (a) and (e) and the comparison with SAC
include what standardised states gain. The study `states` separates the two: [chapter 05](notebooks/05_online_finetuning.ipynb),
section 7, shows what is recorded of it.

Claim (b) subtracts a threshold: SAC's published mean score over the last 100K of a million interactions, less {MARGIN:.0f}
points. The table also gives the mean of our one run of SAC over the same interactions.

- *Reproduced*: the difference over all its tasks is above zero, as the claim says, with p at most {LEVEL} after
  Holm's correction. *Contradicted*: the difference is below zero, by the same test.
- *Direction only*, *opposite direction only*: zero lies outside the interval, but p is larger, or another rate has a higher mean.
- *Undecided*: zero lies inside the interval. *Too few seeds*: with fewer than {ENOUGH_SEEDS} of an arm on a task we show an
  interval but decide nothing. *Not attempted*: we have not run it yet.
- *Only with Ant* beside a verdict: without Ant the difference has the other sign, or an interval that holds zero.
- A claim of several parts has a verdict for each. Claim (b) says “in some cases”, so one task is enough for it. Claims (e) and
  (f) need all their parts.

How small a difference can we see? With {ENOUGH_SEEDS} seeds per arm we find a difference in 80 of 100 cases if it is \
{statistics.detectable(ENOUGH_SEEDS):.1f} standard
deviations of one arm's seeds, or {statistics.detectable(ENOUGH_SEEDS, 4):.1f} over four tasks if these deviations are alike. \
They are not alike, and the largest
count most. Holm tests the first of three comparisons at a third of the level. At this level the two numbers are
{statistics.detectable(ENOUGH_SEEDS, tests=3):.1f} and {statistics.detectable(ENOUGH_SEEDS, 4, tests=3):.1f}. Smaller \
differences mostly stay undecided.

Both measures of claim (f) mislead where critics run away. The first is in rewards, so one task can decide the mean of four. It
also measures only the first state of an episode. At other states even the sign can differ:
[chapter 04](notebooks/04_offline_pretraining.ipynb), section 6, has the values at 400 states, and counts the critics that ran
away. The second divides by the error on trained rows, which is then huge itself. We keep both because we named them in
advance."""


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the evaluations that the claims are about: those on the paper's tasks, with medium-replay data or without data."""
    data = (frame["dataset"] == "none") | (frame["dataset"] == frame["task"] + "-medium-replay")
    return statistics.evaluations(frame[data & frame["task"].isin(FOUR)])


def findings(claim: Claim, table: pd.DataFrame) -> list[Finding]:
    """Returns the finding for each part of a claim. Holm's family is the claim's parts, or PRIMARY if it contains them."""
    found = compare(PRIMARY if claim.kind == "primary" else claim.parts, table)
    return [each for each in found if each.comparison in claim.parts]


def compare(family: Sequence[Comparison], table: pd.DataFrame) -> list[Finding]:
    """Returns the finding for each comparison of a family, with p values corrected for their number."""
    found = []
    for comparison in family:
        arm, others = comparison.arm, comparison.others
        scores = comparison.measure(table[table["arm"].isin([arm, *others]) & table["task"].isin(comparison.tasks)])
        groups = statistics.by_task(scores, arm, *others)
        threshold = 0.0 if others else published.end(comparison.tasks[0]) - MARGIN
        difference = partial(statistics.difference, minus=threshold)
        interval, task = difference(scores, arm, *others), scores.index.get_level_values("task")
        apart = [difference(scores[task == name], arm, *others).value for name in groups]
        rest = statistics.leave_one_out(scores, arm, *others)
        if not groups and statistics.by_task(scores, arm, *others, least=1):
            interval = interval._replace(n_seeds=1)
        seeds = tuple(statistics.seed_counts(groups))
        better = [other for other in others if statistics.difference(scores, other, arm).value > 0]
        better = tuple(better) if len(others) > 1 else ()
        above = sum(value > 0 for value in apart)
        found.append(Finding(comparison, tuple(groups), seeds, interval, interval.p, better, above, rest))
    corrected = statistics.holm([finding.p for finding in found])
    return [finding._replace(p=float(p)) for finding, p in zip(found, corrected, strict=True)]


def decided(finding: Finding) -> str:
    """Returns the verdict on one part of a claim, by `RULES`."""
    _, low, high, n_seeds, *_ = finding.interval
    firm, whole = finding.p <= LEVEL, set(finding.tasks) == set(finding.comparison.tasks)
    if n_seeds < ENOUGH_SEEDS or not whole:
        return "too few seeds" if n_seeds else "not attempted"
    if low <= 0 <= high:
        return "undecided"
    if low > 0:
        return "reproduced" if firm and not finding.better else "direction only"
    return "contradicted" if firm else "opposite direction only"


def verdict(found: Sequence[Finding]) -> str:
    """Returns the verdict on a claim: the one that all its parts share, or each verdict with its number of parts."""
    verdicts = Counter(f"{decided(each)}{_needed(each)}" for each in found)
    return ", ".join(name if n == len(found) else f"{name} in {n} of {len(found)} parts" for name, n in verdicts.items())


def _needed(finding: Finding) -> str:
    """Returns the tasks that a verdict needs, as " (only with Ant)"; "" if it needs no single task or says nothing."""
    silent = decided(finding) in ("undecided", "too few seeds", "not attempted")
    return "" if silent else words.only_with(finding.needed)


def claims_table(frame: pd.DataFrame) -> str:
    """Returns Markdown: the primary comparisons, each claim beside what we measured, and the rules for a verdict."""
    table, rows = main_runs(frame), []
    for claim in CLAIMS:
        found, link = findings(claim, table), f"[{claim.notebook}](notebooks/{claim.notebook}.ipynb)"
        measured = [_measured(each) if each.comparison.others else _beside_sac(each, table) for each in found if each.tasks]
        first, lead = claim.parts[0], []
        if measured and not first.others:
            lead = [f"{look(first.arm).label} minus a threshold, {first.unit}:"]
        if measured and claim.caveat:
            measured.append(claim.caveat)
        text, sizes = f"{claim.text} *({claim.kind})*", "<br>".join(lead + measured) or "–"
        rows.append([claim.letter, text, claim.said, sizes, verdict(found), link])
    lines = words.table(["", "claim", "the paper", "we measured", "verdict", "notebook"], rows)
    return "\n".join([*_primary(table), "", *lines, "", fold("How a verdict is reached", RULES)])


def _primary(table: pd.DataFrame) -> list[str]:
    """Returns the lines of the table of the primary comparisons."""
    windows = {"mean score, 0 to 100K": mean_score, "25K to 100K, where all arms learn": LEARNING}
    found = [compare([replace(each, measure=measure) for each in PRIMARY], table) for measure in windows.values()]
    unknown = table[~pd.MultiIndex.from_frame(table[["task", "arm", "seed"]]).isin([*KNOWN])]
    later = "0 to 100K, without the pre-trained runs that we knew"
    columns = [f"{look(PRIMARY[0].arm).label} minus", *windows, later, "p", "tasks and seeds"]
    rows = []
    for first, second, unseen in zip(*found, compare(PRIMARY, unknown), strict=True):
        three = first, second, unseen
        numbers = [f"{estimate(each.interval, signed=True)}{_without(each)}" if each.tasks else "–" for each in three]
        where = f"{in_words(unseen.tasks)}, " if unseen.tasks != first.tasks else ""
        numbers[2] += f" ({where}{count('seed', unseen.seeds)})" if unseen.tasks else ""
        rows.append([look(first.comparison.others[0]).label, *numbers, p_value(first), _runs(first)])
    return words.table(columns, rows)


def _without(finding: Finding) -> str:
    """Returns the difference without the task that moves it most, as ", without Ant +1.6 [−2.6, +5.8]"; "" for one task."""
    rest = words.without(finding.interval, finding.rest)
    return f", {rest}" if rest else ""


def p_value(finding: Finding) -> str:
    """Returns the corrected p value in words, or a dash until all seeds are recorded."""
    p = "below 0.001" if finding.p < 0.001 else f"{finding.p:.2g}"
    return p if finding.interval.n_seeds >= ENOUGH_SEEDS else "–"


def _runs(finding: Finding) -> str:
    """Returns the tasks and the number of seeds of each arm that a finding rests on, or a dash."""
    return f"{in_words(finding.tasks)}, {count('seed', finding.seeds)}" if finding.tasks else "–"


def _measured(finding: Finding) -> str:
    """Returns a finding as Markdown for a table cell: the difference with its interval and unit, tasks and seeds."""
    arm, others = finding.comparison.arm, [look(other).label for other in finding.comparison.others]
    other = f"the mean of {', '.join(others)}" if len(others) > 1 else "".join(others)
    size = f"**{estimate(finding.interval, signed=True)}** {finding.comparison.unit}"
    text = f"{look(arm).label} minus {other}: {size}; {_runs(finding)}"
    if len(finding.tasks) > 1:
        text += f" (above zero on {finding.above} of {len(finding.tasks)} tasks{_without(finding)})"
    text += f", p {p_value(finding)}" if finding.interval.n_seeds >= ENOUGH_SEEDS else ""
    return text + (f"; higher still: {', '.join(look(arm).label for arm in finding.better)}" if finding.better else "")


def _beside_sac(finding: Finding, table: pd.DataFrame) -> str:
    """Returns a finding on one task that compares with SAC's published score, as Markdown for a table cell."""
    (task,) = finding.tasks
    own = statistics.arm_mean(mean_score(table, 1_000_000, since=900_000), task, "sac_million")
    below = ", itself below it" if own.value < published.end(task) - MARGIN else ""
    about = f"threshold {number(published.end(task) - MARGIN)}, our SAC {estimate(own)}{below}; {count('seed', finding.seeds)}"
    about += f", p {p_value(finding)}" if finding.interval.n_seeds >= ENOUGH_SEEDS else ""
    about += ", all seeds end at the same score" if finding.interval.high - finding.interval.low < 0.1 else ""
    return f"{in_words(finding.tasks)}: **{estimate(finding.interval, signed=True)}** ({about})"
