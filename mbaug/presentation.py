"""What a reader sees: live source, one look per arm, figures with their data, and tables that nobody typed.

A figure is three files that come from the same call, `NN_name.png`, `.svg` and `.csv` (what is drawn), beside
`NN_name.json` with its caption; saving it twice gives the same bytes. Tables and verdicts in the README are computed
from the recorded runs by the rules that stand below them.
"""

import ast
import colorsys
import dataclasses
import functools
import hashlib
import inspect
import io
import itertools
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mbaug import files, recording, statistics, tasks
from mbaug.statistics import Interval

ENOUGH_SEEDS = 5  # fewer make a weak interval
CHANCE = 0.05  # the largest with which a claim counts as reproduced

# --- live source ----------------------------------------------------------------------------------


def show(*functions: Callable) -> None:
    """Displays the source that runs, docstring and all, under the name of its module."""
    for function in functions:
        display(Markdown(f"`{function.__module__}`\n```python\n{source(function)}\n```"))


def source(function: Callable) -> str:
    """Returns the live source of a function or a class, without the decorators of a function.

    A dataclass keeps its decorator, which says what it is; of a function, the equation is what matters.
    """
    text = textwrap.dedent(inspect.getsource(function)).rstrip()
    node = ast.parse(text).body[0]
    return text if isinstance(node, ast.ClassDef) else "\n".join(text.splitlines()[node.lineno - 1 :])


# --- one look for each arm ------------------------------------------------------------------------


class Look(NamedTuple):
    """How an arm looks in every figure: its name for readers, its colour, its line style."""

    label: str
    colour: str
    line: str | tuple


# Okabe and Ito's colours, safe for the colour-blind; dashes are from scratch, dash-dots are controls.
LOOKS = {
    "td3": Look("TD3 from scratch", "#000000", "--"),
    "sac": Look("SAC from scratch", "#56B4E9", "--"),
    "td3_data": Look("TD3 with the data, no pre-training", "#CC79A7", "--"),
    "vanilla": Look("vanilla pre-training", "#E69F00", "-"),
    "augmented": Look("augmented 50 %", "#0072B2", "-"),
    "noise": Look("matched noise 50 %", "#009E73", "-."),
    "deterministic": Look("deterministic model 50 %", "#D55E00", "-."),
}
VARIANT_LINES = [":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 1, 1, 1))]


def look(arm: str) -> Look:
    """Returns the look of an arm, the same wherever it is asked for.

    An arm named after a known one, as "augmented_25" or "vanilla_actor", has its colour, lighter or darker, and dashes
    of its own, and a number is a percentage; any other arm has a colour from its name.
    """
    if arm in LOOKS:
        return LOOKS[arm]
    digest = hashlib.sha256(arm.encode()).digest()
    line = VARIANT_LINES[digest[0] % len(VARIANT_LINES)]
    family = max((name for name in LOOKS if arm.startswith(f"{name}_")), key=len, default=None)
    if family is None:
        return Look(arm.replace("_", " "), _hex(colorsys.hls_to_rgb(digest[1] / 256, 0.4, 0.6)), line)
    variant = arm.removeprefix(f"{family}_").replace("_", " ")
    if variant.isdecimal():
        return Look(f"{family} {variant} %", _shade(LOOKS[family].colour, 1 - int(variant) / 100), line)
    return Look(f"{LOOKS[family].label}, {variant}", _shade(LOOKS[family].colour, digest[2] / 256), line)


def _shade(colour: str, share: float) -> str:
    """Returns the colour with its lightness between 0.3 (share 0) and 0.7 (share 1)."""
    hue, _, saturation = colorsys.rgb_to_hls(*matplotlib.colors.to_rgb(colour))
    return _hex(colorsys.hls_to_rgb(hue, 0.3 + 0.4 * min(max(share, 0), 1), saturation))


def _hex(colour: tuple[float, float, float]) -> str:
    return matplotlib.colors.to_hex(colour).upper()


def in_order(arms: Iterable[str]) -> list[str]:
    """Returns the arms in the order of figures and tables: as in `LOOKS`, then by name."""
    known = list(LOOKS)
    return sorted(set(arms), key=lambda arm: (known.index(arm) if arm in LOOKS else len(known), arm))


def style() -> None:
    """Sets how figures look from here on: 800 px wide on GitHub, letters of 9 points and more, a light grid."""
    matplotlib.rcParams.update(
        {
            "figure.figsize": (8, 4.5),  # inches: 800 pixels at 100 dots an inch
            "figure.dpi": 100,
            "savefig.dpi": 150,  # sharp on dense screens, half the bytes of 200
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.edgecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E5E5E5",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "lines.linewidth": 1.8,
        }
    )


# --- curves ---------------------------------------------------------------------------------------

STEPS = {
    "pretrain": "updates before going online (thousands)",
    "finetune": "environment interactions, warm-up included (thousands)",
}
BUDGETS = {"pretrain": "update", "finetune": "interaction"}
QUANTITIES = {
    "score": "D4RL-normalised score",
    "return": "return (rewards)",
    "overestimation": "predicted value − discounted return (rewards)",
    "predicted_value": "predicted value at the first state (rewards)",
    "discounted_return": "discounted return (rewards)",
    "data_value": "value of the data's actions (rewards)",
    "imagined_outside": "imagined components outside the data's range (fraction)",
    "length": "episode length (steps)",
}


def curves(axis: Axes, table: pd.DataFrame, phase: str = "finetune", value: str = "score") -> pd.DataFrame:
    """Draws a line with its interval for each arm, and returns the numbers that are drawn.

    Args:
        axis: Where to draw.
        table: Evaluations of one task, as `statistics.evaluations` returns them.
        phase: "pretrain" or "finetune".
        value: The column to draw.

    Returns:
        The columns arm, steps, the value's interquartile mean over seeds, low, high, n_seeds.
    """
    summary = statistics.summarise(table[table["phase"] == phase], ["arm", "steps"], value)
    for arm in in_order(summary["arm"]):
        rows, (label, colour, line) = summary[summary["arm"] == arm], look(arm)
        axis.plot(rows["steps"] / 1000, rows[value], color=colour, linestyle=line, label=label)
        axis.fill_between(rows["steps"] / 1000, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel=STEPS[phase], ylabel=QUANTITIES.get(value, value.replace("_", " ")))
    return summary


def legend(figure: Figure) -> None:
    """Puts one legend for all axes below the figure, if they have lines: every arm once, in the order of `LOOKS`."""
    lines = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = {look(arm).label: place for place, arm in enumerate(LOOKS)}
    labels = sorted(lines, key=lambda label: (order.get(label, len(order)), label))
    if labels:
        figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=min(3, len(labels)))


# Undiscounted returns of others' online runs, means of 10 seeds on older versions of the tasks, by arm, interactions and task.
# Sources: TD3 from its authors' curves (github.com/sfujim/TD3, learning_curves, Gym v1); SAC from Tianshou's benchmark
# (github.com/thu-ml/tianshou, examples/mujoco/benchmark, v3), whose axis begins after 10,000 uniform steps: they are added here.
PUBLISHED = {
    ("td3", 100_000): {"hopper": 660, "walker2d": 770, "halfcheetah": 5514, "ant": 586},
    ("sac", 100_000): {"hopper": 1766, "walker2d": 844, "halfcheetah": 6213, "ant": 901},
    ("sac_million", 1_000_000): {"hopper": 3515, "walker2d": 4909, "halfcheetah": 12139, "ant": 5813},
}
# The same of SAC over the last 100,000 of the million interactions, mean of twenty evaluations.
PUBLISHED_AT_THE_END = {"hopper": 3456, "walker2d": 4885, "halfcheetah": 11863, "ant": 5470}
# Scores of TD3 from scratch after 100,000 interactions in the authors' repository [C].
AUTHORS_TD3 = {"hopper": 12, "walker2d": 7, "halfcheetah": 37, "ant": 23}


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores of our baselines beside those that others published, a row a task, algorithm and number of interactions.

    Args:
        table: Evaluations of the main runs (`main_runs`).
    """
    rows = []
    for task, (arm, steps) in itertools.product(tasks.TASKS.values(), PUBLISHED):
        runs = table[(table["task"] == task.name) & (table["arm"] == arm)]
        ours = statistics.interval([statistics.final_score(runs, steps).to_numpy()])
        theirs = float(tasks.normalised_score(task, PUBLISHED[arm, steps][task.name]))
        row = {
            "task": task.name,
            "algorithm": arm.split("_")[0].upper(),
            "interactions": f"{steps:,}",
            "published": number(theirs),
            "authors' [C]": str(AUTHORS_TD3[task.name]) if arm == "td3" else "–",
            "ours": words(ours) if ours.n_seeds else "not yet recorded",
            "our seeds": ours.n_seeds,
            "ours − published": number(ours.value - theirs, signed=True) if ours.n_seeds else "–",
        }
        rows.append(row)
    return pd.DataFrame(rows).set_index(["task", "algorithm", "interactions"])


# --- captions and figures -------------------------------------------------------------------------


def caption(text: str, table: pd.DataFrame, records: Mapping[Any, Mapping] | None = None) -> str:
    """Returns a figure's caption: what it shows, then seeds, budgets, divergences and code, all from the records.

    Args:
        text: What the figure shows, in one or two sentences.
        table: The evaluations that it is drawn from.
        records: Their metadata, as `recording.load_metadata` returns them.
    """
    if table.empty:
        return f"{text} Not yet recorded."
    last = table.groupby([*statistics.RUN, "phase"], as_index=False)["steps"].max()
    seeds = table.groupby(["task", "dataset", "arm"])["seed"].nunique()
    facts = [
        f"{_range(seeds, 'seed')} an arm",
        *(_range(rows["steps"], BUDGETS[phase]) for phase, rows in reversed(list(last.groupby("phase")))),
        *_provenance(records or {}),
    ]
    return f"{text} {_drawn(int(seeds.min()))}; {', '.join(facts)}.{_diverged(table)}"


def _drawn(n_seeds: int) -> str:
    """Returns what lines and bands are, from that many seeds."""
    if n_seeds < 2:
        return "A line is one run, without an interval"
    weak = "" if n_seeds >= ENOUGH_SEEDS else ", a weak one with so few seeds"
    return f"Interquartile mean and bootstrap 95 % interval{weak}"


def _range(numbers: pd.Series, noun: str) -> str:
    """Returns "3 seeds" or, where they differ, "2 to 3 seeds"."""
    low, high = int(numbers.min()), int(numbers.max())
    return _count(high, noun) if low == high else f"{low:,} to {_count(high, noun)}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _provenance(records: Mapping[Any, Mapping]) -> list[str]:
    """Returns the commits and precisions of the records, as phrases."""
    origins = [record["provenance"] for record in records.values()]
    commits = sorted({re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", origin["commit"]) for origin in origins})
    precisions = sorted({origin["precision"] for origin in origins})
    return [", ".join(precisions), f"code {' and '.join(commits)}"] if origins else []


def _diverged(table: pd.DataFrame) -> str:
    """Returns a sentence that counts the runs which diverged, or nothing."""
    runs = table[[*statistics.RUN, "status"]].drop_duplicates()
    lost = runs[runs["status"] == "diverged"].groupby("arm").size()
    if lost.empty:
        return ""
    counts = " and ".join(f"{number} of {look(arm).label}" for arm, number in lost.items())
    return f" Diverged, and counted with score 0 from there: {counts}."


def figures_folder(profile: str = "paper") -> Path:
    """Returns where figures of a profile go: the committed gallery for "paper", build/<profile>/figures for others.

    The environment variable MBAUG_FIGURES names another folder for all of them: who only tests a notebook changes no file.
    """
    if elsewhere := os.environ.get("MBAUG_FIGURES"):
        return Path(elsewhere)
    folder = recording.repository() if profile == "paper" else recording.repository() / "build" / profile
    return folder / "figures"


def save_figure(
    figure: Figure, name: str, frame: pd.DataFrame, caption: str, profile: str = "paper", folder: Path | None = None
) -> Path:
    """Writes a figure as PNG, SVG, the CSV of what it draws and its caption; returns the PNG's path.

    The bytes depend on the content alone: no dates, no random identifiers. A figure of another profile than "paper" is
    marked as no evidence.

    Args:
        figure: What to write.
        name: NN_name, after the notebook that draws it.
        frame: The numbers that are drawn; `n_seeds`, where it has that column, is part of a mark.
        caption: What it shows, as `caption` returns it.
        profile: The profile that it was drawn with.
        folder: Where to write; None: `figures_folder(profile)`.

    Raises:
        ValueError: The name is not NN_name.
        files.CannotWrite: The folder is full or read-only.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"A figure's name is its chapter's number and words, as in 05_online_curves; got {name!r}.")
    folder = figures_folder(profile) if folder is None else Path(folder)
    mark = "" if profile == "paper" else _mark(profile, frame)
    if mark:  # it stays, so that a notebook shows it too
        letters = {"color": "#D55E00", "alpha": 0.35, "fontsize": 26, "weight": "bold", "rotation": 15, "zorder": 10}
        figure.text(0.5, 0.5, mark, ha="center", va="center", **letters).set_in_layout(False)
    about = {"caption": caption, "mark": mark, "profile": profile}
    contents = {
        "png": _rendered(figure, "png"),
        "svg": _rendered(figure, "svg"),
        "csv": frame.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode(),
        "json": (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for suffix, content in contents.items():
        files.write_atomically(folder / f"{name}.{suffix}", content)
    return folder / f"{name}.png"


def _mark(profile: str, frame: pd.DataFrame) -> str:
    """Returns the words that keep a figure of small budgets from being taken for evidence."""
    seeds = f", {_count(int(frame['n_seeds'].min()), 'seed')}" if "n_seeds" in frame and len(frame) else ""
    return f"{profile} profile{seeds}: not evidence"


def _rendered(figure: Figure, kind: str) -> bytes:
    """Returns the figure's bytes, the same for the same figure."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    file = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "mbaug"}):
        figure.savefig(file, format=kind, metadata=metadata)
    return numbered_clips(file.getvalue()) if kind == "svg" else file.getvalue()


def numbered_clips(svg: bytes) -> bytes:
    """Returns the SVG with its clip paths numbered: matplotlib names them after the last bits of the layout, which are chance."""
    numbers: dict[bytes, bytes] = {}
    return re.sub(rb"\bp[0-9a-f]{10}\b", lambda found: numbers.setdefault(found[0], b"clip%d" % len(numbers)), svg)


def gallery(folder: Path) -> str:
    """Writes the folder's README.md, every figure with its caption and data, and returns its text."""
    parts = ["# Figures\n\nGenerated by `make figures`; beside each picture, the numbers that it draws.\n"]
    for path in sorted(Path(folder).glob("*.json")):
        about, name = json.loads(path.read_text(encoding="utf-8")), path.stem
        title = name[3:].replace("_", " ").capitalize()
        mark = f"**{about['mark']}.** " if about["mark"] else ""
        chapters = sorted((recording.repository() / "notebooks").glob(f"{name[:2]}_*.ipynb"))
        links = [f"[SVG]({name}.svg)", f"[data]({name}.csv)"]
        links += [f"[{chapter.stem}]({os.path.relpath(chapter, folder)})" for chapter in chapters]
        parts.append(f"## {title}\n\n![{title}]({name}.png)\n\n{mark}{about['caption']}\n\n{' · '.join(links)}\n")
    text = "\n".join(parts)
    files.write_atomically(Path(folder) / "README.md", text.encode())
    return text


# --- numbers in words -----------------------------------------------------------------------------


def number(value: float, signed: bool = False) -> str:
    """Returns a score as a reader wants it: one digit below 10, none above, a true minus."""
    digits = 1 if abs(value) < 9.95 else 0
    text = f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return re.sub(r"^[+−](?=0(\.0)?$)", "", text)


def words(found: Interval, signed: bool = False) -> str:
    """Returns an interval as "+21 [5.0, 38]", without brackets where one seed gives no interval."""
    value, low, high, n_seeds = found
    if n_seeds == 0:
        return "–"
    ends = "" if np.isnan(low) else f" [{number(low, signed)}, {number(high, signed)}]"
    return number(value, signed) + ends


# --- the paper's claims ---------------------------------------------------------------------------

Measure = Callable[[pd.DataFrame], pd.Series]  # evaluations to one number a run


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A paired difference that a claim says is positive: measure(arm) - measure(other) + margin > 0."""

    arm: str
    other: str
    measure: Measure
    unit: str  # what a difference of 1 is
    other_measure: Measure | None = None  # where the other is measured in another way
    margin: float = 0.0  # how much worse still counts as equal


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, where it is said, the comparisons that must all hold, and the notebook that draws them."""

    letter: str
    text: str
    said: str
    comparisons: tuple[Comparison, ...]
    notebook: str
    n_tasks: int = 1  # how many tasks the claim speaks of


class Finding(NamedTuple):
    """What the recorded runs say to a comparison."""

    comparison: Comparison
    tasks: tuple[str, ...]
    interval: Interval
    chance: float


def _less_overestimation(table: pd.DataFrame) -> pd.Series:
    return -statistics.last_overestimation(table)


def _less_overfitting(table: pd.DataFrame) -> pd.Series:
    return -statistics.last_overfitting(table)


MEAN = (statistics.mean_score, "score, mean over 0 to 100K")
FINAL = (statistics.final_score, "score at 100K")
AT_MILLION = functools.partial(statistics.final_score, environment_steps=1_000_000)
CLAIMS = (
    Claim(
        "a",
        "It jump-starts online learning",
        "yes [S]",
        (Comparison("augmented", "td3", *MEAN),),
        "05_online_finetuning",
    ),
    Claim(
        "b",
        "In some cases it needs 10x fewer interactions",
        "at 100K it is comparable to SAC at 1M [S]",
        (
            Comparison("augmented", "sac", *FINAL),
            Comparison("augmented", "sac_million", statistics.final_score, "score at 100K, SAC at 1M", AT_MILLION, margin=10.0),
        ),
        "05_online_finetuning",
    ),
    Claim(
        "c",
        "It is clearly better than vanilla offline pre-training",
        "on ant, hopper, walker2d and halfcheetah [S]",
        (Comparison("augmented", "vanilla", *MEAN),),
        "05_online_finetuning",
        n_tasks=4,
    ),
    Claim(
        "d",
        "50 % is the best rate",
        "yes [S]",
        tuple(Comparison("augmented", rate, *MEAN) for rate in ("vanilla", *map("augmented_{}".format, (25, 75, 100)))),
        "07_controls",
    ),
    Claim(
        "e",
        "The pre-trained actor and the pre-trained critic both help, the actor most without augmentation",
        "yes [A]",
        (
            Comparison("augmented_actor", "td3", *MEAN),
            Comparison("augmented_critic", "td3", *MEAN),
            Comparison("vanilla_actor", "vanilla_critic", *MEAN),
        ),
        "07_controls",
    ),
    Claim(
        "f",
        "Augmentation smooths the critic's over-fitting",
        "visible in the distributions of Q-values [S, A]",
        (
            Comparison("augmented", "vanilla", _less_overestimation, "rewards less over-estimation"),
            Comparison("augmented", "vanilla", _less_overfitting, "less over-fitting (error on new rows / on trained rows)"),
        ),
        "04_offline_pretraining",
    ),
)
RULES = f"""\
Numbers are the interquartile mean of the paired differences (same seed, same 10,000 transitions) and its stratified
bootstrap 95 % interval. Fewer than {ENOUGH_SEEDS} seeds make a weak interval: with 3 it holds the truth in about 75 of
100 cases. *Chance* is how often random signs would favour the claim as much. *Reproduced*: every interval lies on the
claim's side of zero, and every chance is at most {CHANCE * 100:.0f} % (5 pairs can show that, 3 or 4 cannot). *Direction only*:
every interval that is measured lies on its side, but chance is larger, or a part of the claim is not measured. *Not
reproduced*: an interval reaches zero or lies beyond it. [S] and [A] are summaries of the paper: see 00_overview."""


def findings(claim: Claim, table: pd.DataFrame) -> list[Finding]:
    """Returns what the evaluations say to each comparison of a claim that two or more seeds have measured."""
    found = [_finding(comparison, table) for comparison in claim.comparisons]
    return [finding for finding in found if not np.isnan(finding.interval.low)]


def _finding(comparison: Comparison, table: pd.DataFrame) -> Finding:
    """Returns what the evaluations say to one comparison."""
    arm, other = (table[table["arm"] == name] for name in (comparison.arm, comparison.other))
    other_measure = comparison.other_measure or comparison.measure
    scores = pd.concat([comparison.measure(arm), other_measure(other)]).rename("score")
    strata = {task: statistics.differences(rows, comparison.arm, comparison.other) for task, rows in scores.groupby("task")}
    paired = {task: differences[0] for task, differences in strata.items() if differences}
    better = [differences + comparison.margin for differences in paired.values()]
    return Finding(comparison, tuple(paired), statistics.interval([*paired.values()]), statistics.chance(better))


def verdict(claim: Claim, found: Sequence[Finding]) -> str:
    """Returns "reproduced", "direction only", "not reproduced" or "not yet measured", by `RULES`."""
    if not found:
        return "not yet measured"
    if any(finding.interval.low + finding.comparison.margin <= 0 for finding in found):
        return "not reproduced"
    measured = len(found) == len(claim.comparisons) and all(len(finding.tasks) >= claim.n_tasks for finding in found)
    return "reproduced" if measured and all(finding.chance <= CHANCE for finding in found) else "direction only"


def _measured(finding: Finding) -> str:
    """Returns a finding as a table's cell: the difference, its interval, chance, tasks and seeds."""
    comparison, found_tasks, found, chance = finding
    weak = " (a weak interval)" if found.n_seeds < ENOUGH_SEEDS else ""
    names = f"{look(comparison.arm).label} − {look(comparison.other).label}"
    return (
        f"{names}: **{words(found, signed=True)}** {comparison.unit}; chance {_percent(chance)}; "
        f"{', '.join(found_tasks)}, {_count(found.n_seeds, 'seed')}{weak}"
    )


def _percent(share: float) -> str:
    return "below 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the evaluations that the claims are about: medium-replay data or none, each run from one study.

    Several studies may hold a run of the same task, arm and seed; the first by name counts.
    """
    frame = frame[(frame["dataset"] == "none") | (frame["dataset"] == frame["task"] + "-medium-replay")]
    first = frame.groupby(["task", "arm", "seed"])["study"].transform("min")
    return statistics.evaluations(frame[frame["study"] == first])


def claims_table(frame: pd.DataFrame) -> str:
    """Returns the paper's claims beside what the recorded runs say to them, a Markdown table with its rules.

    Args:
        frame: Evaluation episodes as `recording.load_runs` returns them.
    """
    table = main_runs(frame)
    lines = ["| | claim | the paper | we measured | verdict | notebook |", "|---|---|---|---|---|---|"]
    for claim in CLAIMS:
        found = findings(claim, table)
        measured = "<br>".join(map(_measured, found)) or "–"
        cells = [claim.letter, claim.text, claim.said, measured, verdict(claim, found), _link(claim.notebook)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", RULES])


def _link(notebook: str) -> str:
    """Returns a link to a notebook's reading copy, or its name while there is none."""
    path = f"notebooks/{notebook}.ipynb"
    return f"[{notebook}]({path})" if (recording.repository() / path).exists() else notebook


def found_table(frame: pd.DataFrame) -> str:
    """Returns what each arm of `LOOKS` reached, a Markdown table: scores before, at and over the first 100,000 interactions.

    Args:
        frame: Evaluation episodes as `recording.load_runs` returns them.
    """
    table = main_runs(frame)
    columns = [statistics.last_offline_score, statistics.final_score, statistics.mean_score, statistics.score_drop]
    lines = [
        "| task | arm | score offline | score at 100K | mean score, 0 to 100K | drop after the switch | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, rows in table.groupby("task"):
        for arm in in_order(set(rows["arm"]) & set(LOOKS)):
            runs = rows[rows["arm"] == arm]
            cells = [words(statistics.interval([measure(runs).to_numpy()])) for measure in columns]
            lines.append(f"| {' | '.join([task, look(arm).label, *cells, str(runs['seed'].nunique())])} |")
    return "\n".join(lines) if len(table) else "No runs are recorded yet."


# --- the README -----------------------------------------------------------------------------------


def readme(text: str, frame: pd.DataFrame) -> str:
    """Returns a README with the parts between its markers, as `<!-- claims -->` and `<!-- /claims -->`, made again.

    Raises:
        ValueError: A marker is missing, or there twice.
    """
    for name, part in {"claims": claims_table(frame), "found": found_table(frame)}.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if [text.count(marker) for marker in (begin, end)] != [1, 1] or text.index(end) < text.index(begin):
            raise ValueError(f"The README needs one {begin} and, after it, one {end}.")
        head, tail = text.split(begin)[0], text.split(end)[1]
        text = f"{head}{begin}\n{part}\n{end}{tail}"
    return text


def update_readme(path: Path, frame: pd.DataFrame) -> None:
    """Makes the generated parts of a README again, from the recorded runs."""
    text = readme(Path(path).read_text(encoding="utf-8"), frame)
    files.write_atomically(Path(path), text.encode())


def outdated(path: Path, frame: pd.DataFrame) -> str | None:
    """Returns a sentence with the first line of a README that the recorded runs contradict; None if they do not."""
    found = Path(path).read_text(encoding="utf-8").splitlines()
    expected = readme("\n".join(found), frame).splitlines()
    for line, (old, new) in enumerate(itertools.zip_longest(found, expected), start=1):
        if old != new:
            return f"{path}, line {line}, reads {old!r} where the records give {new!r}: run `make figures`."
    return None
