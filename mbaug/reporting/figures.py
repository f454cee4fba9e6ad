"""What a reader sees: live source, one look per arm, dots with intervals, curves, captions, and figures with their data.

A figure is three files that come from the same call, `NN_name.png`, `.svg` and `.csv` (what is drawn), beside `NN_name.json` with
its caption, the digest of the CSV and its own; saving it twice gives the same bytes.
"""

import ast
import colorsys
import hashlib
import inspect
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from mbaug import checks, files, tasks
from mbaug.checks import Bound, settings
from mbaug.datasets.cards import Sha256
from mbaug.reporting import statistics
from mbaug.reporting.statistics import ENOUGH_SEEDS


def show(*functions: Callable) -> None:
    """Displays the source that runs under its module's name, with its docstring as prose above it.

    A dataclass keeps its decorator, which says what it is; of a function, the equation is what matters.
    """
    for function in functions:
        text = textwrap.dedent(inspect.getsource(function)).rstrip()
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        lines, first = text.splitlines(), 1 if isinstance(node, ast.ClassDef) else node.lineno
        if prose := ast.get_docstring(node):
            end = node.body[0].end_lineno or 0
            lines[node.body[0].lineno - 1 : end + (lines[end : end + 1] == [""])] = []
        parts = [f"`{function.__module__}`", "", _prose(prose or ""), "", "```python", *lines[first - 1 :], "```"]
        display(Markdown("\n".join(parts)))


def _prose(docstring: str) -> str:
    """Returns a docstring as Markdown: its sections are headed in italics, and their entries are lists."""
    text = re.sub(r"(`[^`]*`)|([*<])", lambda found: found[1] or f"\\{found[2]}", docstring)
    text = re.sub(r"(?m)^(\w+):\n(?=    )", r"*\1:*\n\n", text)
    return re.sub(r"(?m)^    (\w[\w., ]*): ", r"- `\1`: ", text)


class Look(NamedTuple):
    """How an arm looks in every figure: its name for readers, its colour, its line style."""

    label: str
    colour: str
    line: str | tuple


# Okabe and Ito's colours, safe for the colour-blind; dashes are from scratch, dots keep the data online, dash-dots are controls.
LOOKS = {
    "td3": Look("TD3 from scratch", "#000000", "--"),
    "sac": Look("SAC from scratch", "#56B4E9", "--"),
    "td3_data": Look("TD3 with the data, no pre-training", "#CC79A7", "--"),
    "vanilla": Look("vanilla pre-training", "#E69F00", "-"),
    "vanilla_data": Look("vanilla, data kept", "#8F6300", ":"),
    "augmented": Look("augmented 50 %", "#0072B2", "-"),
    "augmented_data": Look("augmented, data kept", "#003F63", ":"),
    "noise": Look("matched noise 50 %", "#009E73", "-."),
    "deterministic": Look("deterministic model 50 %", "#D55E00", "-."),
    "layernorm": Look("LayerNorm critics", "#7B3294", "-"),
    "layernorm_data": Look("LayerNorm critics, data kept", "#54208A", ":"),
    "td3_layernorm_data": Look("LayerNorm critics, no pre-training", "#B58ACB", "--"),
    "augmented_layernorm_data": Look("augmented, LayerNorm critics, data kept", "#2C115F", ":"),
    "rlpd": Look("RLPD", "#8C510A", "--"),
    "iql": Look("IQL, data kept", "#4D4D4D", ":"),
    "bc": Look("behaviour cloning, data kept", "#999933", ":"),
}
PREDICTORS = {  # of the next state: label, colour, marker
    "reconstruction": ("VAE, reconstruction of s'", "#CC79A7", "v"),
    "sample": ("VAE, sampled (the paper's)", "#0072B2", "o"),
    "mean": ("VAE, mean", "#56B4E9", "o"),
    "persistence": ("nothing moves", "#000000", "s"),
    "linear": ("linear regression", "#E69F00", "^"),
    "deterministic": ("deterministic network", "#D55E00", "D"),
}
VARIANT_LINES = [":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 1, 1, 1))]


def look(arm: str) -> Look:
    """Returns the look of an arm, the same wherever it is asked for.

    An arm named after a known one, as "augmented_25" or "vanilla_actor", has its colour, lighter or darker, and its own dashes;
    a number is a percentage. Any other arm has a colour from its name.
    """
    if arm in LOOKS:
        return LOOKS[arm]
    digest = hashlib.sha256(arm.encode()).digest()
    label, hue, lightness, saturation = arm.replace("_", " "), digest[1] / 256, 0.4, 0.6
    if families := [name for name in LOOKS if arm.startswith(f"{name}_")]:
        family = max(families, key=len)
        variant, share = arm.removeprefix(f"{family}_").replace("_", " "), digest[2] / 256
        label = f"{LOOKS[family].label}, {variant}"
        if variant.isdecimal():
            label, share = f"{family} {variant} %", max(0, 1 - int(variant) / 100)
        hue, _, saturation = colorsys.rgb_to_hls(*to_rgb(LOOKS[family].colour))
        lightness = 0.3 + 0.4 * share
    colour = to_hex(colorsys.hls_to_rgb(hue, lightness, saturation)).upper()
    return Look(label, colour, VARIANT_LINES[digest[0] % len(VARIANT_LINES)])


def in_order(arms: Iterable[str]) -> list[str]:
    """Returns the arms in the order of figures and tables: as in `LOOKS`, then by name."""
    return [arm for arm in LOOKS if arm in set(arms)] + sorted(set(arms) - set(LOOKS))


def style() -> None:
    """Sets how figures look from here on, whatever matplotlibrc there is: 800 px wide on GitHub, letters of 9 points and more."""
    plt.rcdefaults()
    plt.rc("figure", figsize=(8, 4.5), dpi=100)  # inches: 800 pixels
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=150)  # sharp on dense screens, half the bytes of 200
    plt.rc("font", family="DejaVu Sans", size=10)  # comes with matplotlib, so that every machine draws the same
    plt.rc("axes", titlesize=11, labelsize=10, titlelocation="left", grid=True, axisbelow=True)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("xtick", labelsize=9)
    plt.rc("ytick", labelsize=9)
    plt.rc("legend", fontsize=9, edgecolor="none")
    plt.rc("grid", color="#E5E5E5", linewidth=0.8)
    plt.rc("lines", linewidth=1.8)


STEPS = {
    "pretrain": "updates before going online (thousands)",
    "finetune": "environment interactions, warm-up included (thousands)",
}
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


def curves(axis: Axes, table: pd.DataFrame, phase: str = "finetune", value: str = "score", bands: bool = True) -> pd.DataFrame:
    """Draws a column of one task's evaluations, the mean of each arm; returns what is drawn (`summarise`).

    A band is the interval where ENOUGH_SEEDS are in: of three seeds it is so wide that it hides the lines.
    """
    summary = statistics.summarise(table[table["phase"] == phase], ["arm", "steps"], value)
    for arm in in_order(summary["arm"]):
        rows, (label, colour, line) = summary[summary["arm"] == arm], look(arm)
        axis.plot(rows["steps"] / 1000, rows[value], color=colour, linestyle=line, label=label)
        if bands and rows["n_seeds"].min() >= ENOUGH_SEEDS:
            axis.fill_between(rows["steps"] / 1000, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel=STEPS[phase], ylabel=QUANTITIES.get(value, value.replace("_", " ")))
    return summary


def multiples(axes: Iterable[Axes], table: pd.DataFrame, phase: str = "finetune", value: str = "score") -> pd.DataFrame:
    """Draws the curves of a few arms, a panel a task and no bands, which nobody can tell apart; returns what is drawn."""
    parts = []
    for axis, task in zip(axes, tasks.TASKS, strict=True):
        parts.append(curves(axis, table[table["task"] == task], phase, value, bands=False).assign(task=task))
        axis.set(title=tasks.find(task).title, xlabel="")
        axis.label_outer()
    return pd.concat(parts)


def wide_values(axis: Axes, values: pd.Series) -> None:
    """Makes a y axis of values linear within ±1,000 rewards and logarithmic beyond: critics that run away promise millions."""
    axis.set_yscale("symlog", linthresh=1_000, linscale=2)
    least, most = min(-1_000.0, 3 * values.min()), 3 * max(1_000.0, values.max())
    named = {0: "0", 500: "500", 1_000: "1,000", 1e5: "100,000", 1e7: "10 million"}
    ticks = {sign * size: f"−{text}" if sign * size < 0 else text for sign in (-1, 1) for size, text in named.items()}
    axis.set_yticks([*ticks], [*ticks.values()])
    axis.set_ylim(least, most)


def dots(
    axes: Iterable[Axes], measure: pd.Series, arms: Sequence[str], names: Iterable[str] = tuple(tasks.TASKS)
) -> pd.DataFrame:
    """Draws one number a run, a panel a task and a row an arm: the mean, its interval, and every seed as a small dot.

    A hollow dot is a single seed, which has no interval. Returns what is drawn (`summarise`), the seeds included.
    """
    table = measure.reset_index()
    summary = statistics.summarise(table, ["task", "arm"], str(measure.name))
    heights = {arm: -height for height, arm in enumerate(arms)}
    for axis, task in zip(axes, names, strict=True):
        own = summary[summary["task"] == task].set_index("arm")
        for arm, height in heights.items():
            seeds, colour = table.loc[(table["task"] == task) & (table["arm"] == arm), measure.name], look(arm).colour
            if seeds.empty:
                axis.text(0.04, height, "not recorded", va="center", color="#767676", transform=axis.get_yaxis_transform())
                continue
            axis.plot([own["low"][arm], own["high"][arm]], [height, height], color=colour)
            axis.plot(seeds, [height - 0.3] * len(seeds), "o", color=colour, markersize=3, alpha=0.4, markeredgewidth=0)
            axis.plot(seeds.mean(), height, "o", color=colour, markersize=7, fillstyle="full" if len(seeds) > 1 else "none")
        if own.empty:
            axis.set_xticks([])
        labels = [",\n".join(look(arm).label.rsplit(", ", 1)) for arm in arms]
        axis.set(title=tasks.find(task).title, ylim=(0.6 - len(arms), 0.6), yticks=[*heights.values()], yticklabels=labels)
        axis.grid(axis="y", visible=False)
        axis.label_outer()
    every = summary.merge(table[["task", "arm", "seed", measure.name]], on=["task", "arm"], suffixes=("", "_of_seed"))
    return every[every["arm"].isin(arms)]


def dots_at(axis: Axes, measure: pd.Series, places: Mapping[str, float]) -> pd.DataFrame:
    """Draws one number a run of one task, at each arm's place on the x axis: the mean, its interval, and beside it every seed.

    A hollow dot is a single seed. Returns what is drawn; an arm without a run is left out.
    """
    groups, rows = {arm: runs.to_numpy() for arm, runs in measure.dropna().groupby("arm")}, []
    for arm, place in ((arm, place) for arm, place in places.items() if arm in groups):
        seeds, found, colour = groups[arm], statistics.interval([groups[arm]]), look(arm).colour
        axis.plot([place, place], [found.low, found.high], color=colour)
        beside = offset_copy(axis.transData, axis.get_figure(root=True), x=6, units="points")
        small = {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0, "transform": beside}
        axis.plot([place] * len(seeds), seeds, "o", color=colour, **small)
        fill = "full" if len(seeds) > 1 else "none"
        axis.plot(place, found.value, "o", color=colour, markersize=7, fillstyle=fill, label=look(arm).label)
        rows.append([arm, place, *found[:4]])
    return pd.DataFrame(rows, columns=["arm", "place", "value", "low", "high", "n_seeds"])


def legend(figure: Figure) -> None:
    """Puts one legend for all axes below the figure, if they have lines: every arm once, in the order of `LOOKS`."""
    lines = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    known = [look.label for look in LOOKS.values() if look.label in lines]
    labels = known + sorted(set(lines) - set(known))
    if labels:
        figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=min(3, len(labels)))


def number(value: float, signed: bool = False) -> str:
    """Returns a score as a reader wants it: one digit below 10, none above, a comma after thousands, a true minus."""
    digits = 1 if abs(value) < 9.95 else 0
    text = f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")
    return re.sub(r"^[+−](?=0(\.0)?$)", "", text)


def words(found: statistics.Interval, signed: bool = False) -> str:
    """Returns an interval as "+21 [5.0, 38]", without brackets where one seed gives no interval."""
    if np.isnan(found.value):
        return "–"
    ends = "" if np.isnan(found.low) else f" [{number(found.low, signed)}, {number(found.high, signed)}]"
    return number(found.value, signed) + ends


def span(numbers: Iterable) -> str:
    """Returns "2" or, of whole numbers that differ, "2 or 3" or "2 to 5"."""
    low, high = min(numbers), max(numbers)
    return f"{low:,} {'or' if high == low + 1 else 'to'} {high:,}" if low < high else f"{high:,}"


def count(noun: str, numbers: Iterable) -> str:
    """Returns "1 seed" or, of numbers that differ, "2 to 5 seeds"."""
    return f"{span(numbers)} {noun}{'s' if max(numbers) != 1 else ''}"


def joined(names: Sequence[str]) -> str:
    """Returns names as a reader says them: "Hopper, Walker2d and Ant"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


LINES = f"Lines are means over seeds, bands their 95 % t intervals, drawn from {ENOUGH_SEEDS} seeds on"

DOTS = "Dots are means over seeds, bars 95 % t intervals, small dots seeds; a hollow dot is one seed"


def caption(text: str, table: pd.DataFrame, records: Mapping[Any, Mapping] | None = None, drawn: str = LINES) -> str:
    """Returns a figure's caption: what it shows and how, seeds and divergences; after a blank line its provenance.

    That is budgets and, with their metadata, as `records.load_metadata` returns them, also precision and code.
    """
    if table.empty:
        return f"{text} Not yet recorded."
    seeds = table.groupby(["task", "dataset", "arm"])["seed"].nunique()
    least, most = seeds.min(), seeds.max()
    drawn = drawn if most > 1 or drawn != LINES else "A line is one run, without an interval"
    by_arm = {look(arm).label: span(seeds[:, :, arm]) for arm in in_order(table["arm"])}
    each = "; ".join(f"{label}: {number}" for label, number in by_arm.items())
    drawn = f"{drawn}. " * bool(drawn) + (f"Seeds of {each}" if least < most else f"{count('seed', seeds).capitalize()} an arm")
    lost = table[table["status"] == "diverged"].drop_duplicates(statistics.RUN).groupby("arm").size()
    lost = joined([f"{runs} of {look(arm).label}" for arm, runs in lost.items()])
    diverged = f" Diverged, and counted with score 0 from there, or their lowest if below: {lost}." if lost else ""
    facts = []
    for phase, noun in {"pretrain": "update", "finetune": "interaction"}.items():
        last = table[table["phase"] == phase].groupby(statistics.RUN)["steps"].max()
        facts += [] if last.empty else [count(noun, last)]
    if origins := [record["provenance"] for record in (records or {}).values()]:
        commits = {re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", origin["commit"]) for origin in origins}
        facts += [*sorted({origin["precision"] for origin in origins}), f"code {joined(sorted(commits))}"]
    return f"{text} {drawn}.{diverged}\n\n{', '.join(facts)}."


def figures_folder(profile: str = "paper") -> Path:
    """Returns where a chapter draws: build/<profile>/figures, or MBAUG_FIGURES, which `make figures` sets to figures/."""
    return Path(os.environ.get("MBAUG_FIGURES") or files.repository() / "build" / profile / "figures")


def save_figure(
    figure: Figure, name: str, frame: pd.DataFrame, caption: str, profile: str = "paper", folder: Path | None = None
) -> Path:
    """Writes a figure as PNG, SVG, the CSV of what it draws and its caption; returns the PNG's path.

    The bytes depend on the content alone: no dates, no random identifiers. In any profile but "paper" the figure is marked as no
    evidence, with the least `n_seeds` in `frame`. None as the folder means `figures_folder(profile)`.

    Raises:
        ValueError: The name is not NN_name, after the notebook that draws it.
        files.CannotWrite: The folder is full or read-only.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"A figure's name is its chapter's number and words, as in 05_online_curves; got {name!r}.")
    folder = figures_folder(profile) if folder is None else Path(folder)
    mark = ""
    if profile != "paper":  # the mark stays, so that a notebook shows it too
        seeds = f", {count('seed', [frame['n_seeds'].min()])}" if "n_seeds" in frame and len(frame) else ""
        mark = f"{profile} profile{seeds}: not evidence"
        letters = {"color": "#D55E00", "alpha": 0.35, "fontsize": 26, "weight": "bold", "rotation": 15, "zorder": 10}
        figure.text(0.5, 0.5, mark, ha="center", va="center", **letters).set_in_layout(False)
    shown, _, provenance = caption.partition("\n\n")
    table = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode()
    about = {"caption": shown, "csv_sha256": files.sha256(table), "provenance": provenance, "mark": mark, "profile": profile}
    contents = {"csv": table, "json": files.sealed(about)}
    for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
        with plt.rc_context({"svg.hashsalt": "mbaug"}), io.BytesIO() as file:
            figure.savefig(file, format=suffix, metadata=metadata)
            contents[suffix] = file.getvalue()
    clips: dict = {}  # matplotlib names them after the last bits of the layout, which are chance: we number them
    contents["svg"] = re.sub(rb"\bp[0-9a-f]{10}\b", lambda x: clips.setdefault(x[0], b"clip%d" % len(clips)), contents["svg"])
    files.write_together({folder / f"{name}.{suffix}": content for suffix, content in contents.items()})
    return folder / f"{name}.png"


About = TypeVar("About", "Caption", "Filmed")
Text = Annotated[str, Bound(lambda x: x.replace("\n", "").isprintable(), "printable")]


@settings
class Caption:
    """What the JSON beside a figure says."""

    caption: Text
    csv_sha256: Sha256  # of what is drawn
    provenance: Text
    mark: Text
    profile: Text
    sha256: Sha256  # of this JSON without it


@settings
class Filmed:
    """What the JSON beside a film says: `films.about`."""

    caption: Text
    provenance: Text
    run: Text
    scores: tuple[float, ...]
    actors: dict[str, str]  # SHA-256 of each file
    sha256: Sha256  # of this JSON without it


def told(cls: type[About], path: Path, command: str) -> About:
    """Returns what the JSON beside a figure or a film says.

    Raises:
        ValueError: it is not what the command wrote.
    """
    content = files.content(path)
    plain = files.parse_json(content, str(path))
    about = checks.read(cls, plain, str(path))
    checks.require(content == files.sealed(plain), f"{path}: its SHA-256 is not the one in it: `{command}` writes it anew")
    return about


def fold(summary: str, text: str) -> str:
    """Returns Markdown that a reader unfolds by its summary."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def gallery(folder: Path) -> str:
    """Returns the text of a folder's README.md: every figure under its chapter, in the order drawn, with its caption and data.

    Raises:
        ValueError: the JSON beside a figure or a film is not as `save_figure` and `films.make` write it, or its CSV is another.
    """
    parts = ["# Figures\n\nGenerated by `make figures`; beside each picture, the numbers that it draws.\n"]
    for source in sorted((files.repository() / "notebooks").glob("*.py")):
        text, number = source.read_text(encoding="utf-8"), source.stem[:2]
        named = dict.fromkeys(re.findall(rf'"({number}_\w+)"', text))
        drawn = [name for name in named if (folder / f"{name}.json").exists()]
        if drawn:
            heading = text.partition("\n# # ")[2].partition("\n")[0]
            parts.append(f"## [{heading}]({os.path.relpath(source.with_suffix('.ipynb'), folder)})\n")
        for name in drawn:
            about, data = told(Caption, folder / f"{name}.json", "make figures"), folder / f"{name}.csv"
            same = files.sha256(files.content(data)) == about.csv_sha256
            checks.require(same, f"{data}: its SHA-256 is not the one in {name}.json: `make figures` writes both anew")
            title = f"{number} · {name[3:].replace('_', ' ').capitalize()}"
            mark = f"**{about.mark}.** " if about.mark else ""
            shown = about.caption.replace("<", "&lt;")  # as in <task>-medium, which is no tag
            more = f"{about.provenance} " if about.provenance else ""
            more = fold("Data and provenance", f"{more}[SVG]({name}.svg) · [data]({name}.csv)")
            parts.append(f"### {title}\n\n![{title}]({name}.png)\n\n{mark}{shown}\n\n{more}\n")
    parts += ["## Films\n"] * bool(moving := sorted((folder / "films").glob("*.json")))
    for path in moving:
        film = told(Filmed, path, "python -m mbaug films")
        title = f"{tasks.find(path.stem).title}, before and after learning online"
        picture, more = f"![{title}](films/{path.stem}.gif)", fold("Provenance", film.provenance)
        parts.append(f"### {title}\n\n{picture}\n\n{film.caption}\n\n{more}\n")
    return "\n".join(parts)


def write_gallery(folder: Path) -> None:
    """Writes a folder's README.md anew; raises as `gallery`."""
    files.write_atomically(folder / "README.md", gallery(folder).encode())
