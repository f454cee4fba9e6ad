"""Draws what a reader sees: live source, dots with intervals, curves, and figures with their captions and data.

One call displays a figure with its caption, and saves it as four files: `NN_name.png`, `.svg`, `.csv` (the numbers drawn) and
`.json` (caption and checksums). Saving it twice gives the same bytes.
"""

import ast
import inspect
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from mbaug import checks, files, tasks
from mbaug.reporting import statistics
from mbaug.reporting.looks import LOOKS, absent, in_order, look
from mbaug.reporting.statistics import ENOUGH_SEEDS
from mbaug.reporting.words import count, fold, joined, span


def show(*functions: Callable) -> None:
    """Displays the live source of functions or classes, with the docstring of each as prose above it.

    A class keeps its decorator, which says what it is. A function does not, so that the equation stands out.
    """
    for function in functions:
        text = textwrap.dedent(inspect.getsource(function)).rstrip()
        node = ast.parse(text).body[0]
        assert isinstance(node, ast.FunctionDef | ast.ClassDef)
        lines, first = text.splitlines(), 1 if isinstance(node, ast.ClassDef) else node.lineno
        if prose := ast.get_docstring(node):
            begin, end = node.body[0].lineno - 1, node.body[0].end_lineno or 0
            if lines[end : end + 1] == [""]:
                end += 1
            del lines[begin:end]
        parts = [f"`{function.__module__}`", "", _prose(prose or ""), "", "```python", *lines[first - 1 :], "```"]
        display(Markdown("\n".join(parts)))


def _prose(docstring: str) -> str:
    """Returns a docstring as Markdown, with section headings in italics and entries as list items."""
    text = re.sub(r"(`[^`]*`)|([*<])", lambda found: found[1] or f"\\{found[2]}", docstring)
    text = re.sub(r"(?m)^(\w+):\n(?=    )", r"*\1:*\n\n", text)
    return re.sub(r"(?m)^    (\w[\w., ]*): ", r"- `\1`: ", text)


def style() -> None:
    """Sets the style of all later figures, whatever matplotlibrc says.

    They are 800 pixels wide, with text of at least 9 points.
    """
    plt.rcdefaults()
    plt.rc("figure", figsize=(8, 4.5), dpi=100)  # inches, 800 pixels wide
    plt.rc("figure.constrained_layout", use=True)
    plt.rc("savefig", dpi=150)  # sharp on dense screens, half the bytes of 200
    plt.rc("font", family="DejaVu Sans", size=10)  # comes with matplotlib, so every machine draws the same letters
    plt.rc("axes", titlesize=11, labelsize=10, titlelocation="left", grid=True, axisbelow=True)
    plt.rc("axes.spines", top=False, right=False)
    plt.rc("xtick", labelsize=9)
    plt.rc("ytick", labelsize=9)
    plt.rc("legend", fontsize=9, edgecolor="none")
    plt.rc("grid", color="#E5E5E5", linewidth=0.8)
    plt.rc("lines", linewidth=1.8)


X_LABELS = {
    "pretrain": "updates before going online (thousands)",
    "finetune": "environment interactions, warm-up included (thousands)",
}
QUANTITIES = {
    "score": "D4RL-normalised score",
    "overestimation": "predicted value − return (discounted rewards)",
    "predicted_value": "predicted value at the first state (discounted rewards)",
}


def curves(axis: Axes, table: pd.DataFrame, phase: str = "finetune", bands: bool = True) -> pd.DataFrame:
    """Draws the mean score of each arm in one task's evaluations, and returns what it draws (`summarise`).

    An arm gets a band, its interval, only with ENOUGH_SEEDS: the band of three seeds is so wide that it hides the lines.
    """
    summary = statistics.summarise(table[table["phase"] == phase], ["arm", "steps"], "score")
    for arm in in_order(summary["arm"]):
        rows, (label, colour, line) = summary[summary["arm"] == arm], look(arm)
        axis.plot(rows["steps"] / 1000, rows["score"], color=colour, linestyle=line, label=label)
        if bands and rows["n_seeds"].min() >= ENOUGH_SEEDS:
            axis.fill_between(rows["steps"] / 1000, rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel=X_LABELS[phase], ylabel=QUANTITIES["score"])
    return summary


def panels(figure: Figure | SubFigure, scores: str = "x") -> np.ndarray:
    """Returns a row of panels, one per task, with scores on the x axis (for `dots`) or the y axis (for `multiples`).

    All share both axes, but Ant's scores spread by far the most, so Ant has its own axis of scores.
    """
    axes = figure.subplots(1, len(tasks.TASKS), sharex=scores == "y", sharey=scores == "x")
    first, *others = [axis for axis, task in zip(axes, tasks.TASKS, strict=True) if task != "ant"]
    for axis in others:
        {"x": axis.sharex, "y": axis.sharey}[scores](first)
    return axes


def multiples(axes: Iterable[Axes], table: pd.DataFrame) -> pd.DataFrame:
    """Draws the online curves of a few arms, one panel per task, and returns what it draws. Bands would hide each other."""
    parts = []
    for axis, task in zip(axes, tasks.TASKS, strict=True):
        parts.append(curves(axis, table[table["task"] == task], bands=False).assign(task=task))
        axis.set(title=tasks.find(task).title, xlabel="")
        axis.label_outer()
        axis.tick_params(labelleft=task in (next(iter(tasks.TASKS)), "ant"))  # Ant has its own y axis (`panels`)
    return pd.concat(parts)


def seed_lines(axis: Axes, table: pd.DataFrame, value: str, **drawn_as: Any) -> None:
    """Draws a line for each seed of one task's evaluations. A mean would hide single seeds far away."""
    for (arm, _), rows in table.groupby(["arm", "seed"]):
        label, colour, line = look(str(arm))
        axis.plot(rows["steps"] / 1000, rows[value], **{"color": colour, "ls": line, "label": label, "lw": 1} | drawn_as)


def every_seed(axes: Iterable[Axes], table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Draws a line for each seed, one panel per task (`seed_lines`, `symlog_axis`), and returns what it draws."""
    for axis, task in zip(axes, tasks.TASKS.values(), strict=True):
        own = table[table["task"] == task.name]
        seed_lines(axis, own, value)
        axis.set_title(task.title)
        symlog_axis(axis, own[value])
    return table[[*statistics.RUN, "steps", value]]


LINEAR = 300  # rewards: critics that have not run away mostly stay within


def symlog_axis(axis: Axes, values: pd.Series) -> None:
    """Makes a y axis linear within ±LINEAR rewards and logarithmic beyond, if `values` exceed 1,000 rewards in size.

    Critics that run away can predict millions. About half of the axis is linear, so that the other critics stay apart.
    """
    low, high = values.min(), values.max()
    if not max(-low, high) > 1_000:
        return
    bottom = 3 * low if low < -LINEAR else min(-100.0, 1.2 * low)
    decades = sum(np.log10(max(1.0, end / LINEAR)) for end in (-bottom, 3 * high))
    linear = 1 + min(1.0, -bottom / LINEAR)  # in units of LINEAR
    axis.set_yscale("symlog", linthresh=LINEAR, linscale=max(1.0, decades / linear))
    labels = {0: "0", 100: "100", 200: "200", 300: "300", 1e5: "100,000", 1e7: "10 million", 1e9: "1 billion"}
    labels |= {1e3: "1,000", 1e4: "10,000"} if max(-low, high) < 1e5 else {}
    ticks = {-size: f"−{text}" for size, text in labels.items() if size} | labels
    axis.set_yticks([*ticks], [*ticks.values()])
    axis.minorticks_off()
    axis.set_ylim(bottom, 3 * max(1_000.0, high))


def bar(axis: Axes, x: Sequence, y: Sequence, colour: str) -> None:
    """Draws an interval between two points, without widening the axis.

    The interval of two seeds reaches 13 standard errors to each side, so it would squeeze all dots into one place.
    """
    axis.add_artist(Line2D(x, y, color=colour, label="_bar"))


def mark_cut_bars(figure: Figure) -> bool:
    """Puts an arrowhead on the edge of a panel where a `bar` goes on outside, and returns whether the figure has any."""
    for axis in figure.axes:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        bars = [line for line in axis.lines if line.get_label() == "_bar"]
        for line in bars:
            line.set_label("_marked")  # a figure that is saved twice has the same bytes
        for x, y, colour in [(*end, line.get_color()) for line in bars for end in np.asarray(line.get_xydata())]:
            outside = {"<": x < left, ">": x > right, "v": y < bottom, "^": y > top}
            for marker, cut in outside.items():
                if not cut:
                    continue
                edge = [np.clip(x, left, right)], [np.clip(y, bottom, top)]
                arrow = Line2D(*edge, color=colour, marker=marker, markersize=5, clip_on=False, label="_arrow")
                axis.add_artist(arrow)
    return any(line.get_label() == "_arrow" for axis in figure.axes for line in axis.lines)


SEEDS = {"markersize": 3.2, "alpha": 0.65, "markeredgewidth": 0}  # the small dots of single seeds


def dots(
    axes: Iterable[Axes], measure: pd.Series, arms: Sequence[str], names: Iterable[str] = tuple(tasks.TASKS)
) -> pd.DataFrame:
    """Draws one number per run, with a panel per task and a row per arm: mean, interval, and each seed as a small dot.

    A hollow dot is a single seed, which has no interval. The seeds set the width of a panel, and `save_figure` marks intervals
    that go on outside. Returns what it draws (`summarise`), including the seeds.
    """
    table = measure.reset_index()
    summary = statistics.summarise(table, ["task", "arm"], str(measure.name))
    heights = {arm: -height for height, arm in enumerate(arms)}
    for axis, task in zip(axes, names, strict=True):
        of_task = summary[summary["task"] == task].set_index("arm")
        for arm, height in heights.items():
            seeds, colour = table.loc[(table["task"] == task) & (table["arm"] == arm), measure.name], look(arm).colour
            if seeds.empty:
                axis.text(0.04, height, absent(arm, task), va="center", color="#767676", transform=axis.get_yaxis_transform())
                continue
            bar(axis, [of_task["low"][arm], of_task["high"][arm]], [height, height], colour)
            axis.plot(seeds, [height - 0.33] * len(seeds), "o", color=colour, **SEEDS)
            axis.plot(seeds.mean(), height, "o", color=colour, markersize=4.5, fillstyle="full" if len(seeds) > 1 else "none")
        if of_task.empty:
            axis.set_xticks([])
        labels = [",\n".join(look(arm).label.rsplit(", ", 1)) for arm in arms]
        axis.set(title=tasks.find(task).title, ylim=(0.35 - len(arms), 0.6), yticks=[*heights.values()], yticklabels=labels)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
        axis.label_outer()
    every = summary.merge(table[["task", "arm", "seed", measure.name]], on=["task", "arm"], suffixes=("", "_of_seed"))
    return every[every["arm"].isin(arms) & every["task"].isin([*names])]


def dots_at(axis: Axes, measure: pd.Series, places: Mapping[str, float]) -> pd.DataFrame:
    """Draws one number per run of one task at each arm's place on the x axis: mean, interval, and each seed beside them.

    A hollow dot is a single seed. Returns what it draws, a row per seed, without the arms that have no run.
    """
    groups, rows = {arm: runs.to_numpy() for arm, runs in measure.dropna().groupby("arm")}, []
    for arm, place in places.items():
        if arm not in groups:
            continue
        seeds, found, colour = groups[arm], statistics.interval([groups[arm]]), look(arm).colour
        bar(axis, [place, place], [found.low, found.high], colour)
        beside = offset_copy(axis.transData, axis.get_figure(root=True), x=6, units="points")
        axis.plot([place] * len(seeds), seeds, "o", color=colour, transform=beside, **SEEDS)
        axis.update_datalim([(place, seed) for seed in seeds])  # the shift beside the place keeps `plot` from doing so
        fill = "full" if len(seeds) > 1 else "none"
        axis.plot(place, found.value, "o", color=colour, markersize=4.5, fillstyle=fill, label=look(arm).label)
        rows += [[arm, place, *found[:4], seed] for seed in seeds]
    axis.margins(y=0.25)
    return pd.DataFrame(rows, columns=["arm", "place", "value", "low", "high", "n_seeds", "value_of_seed"])


def legend(figure: Figure) -> None:
    """Puts one legend below a figure that has labelled lines: each label once, in the order of `LOOKS`."""
    lines = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    known = [look.label for look in LOOKS.values() if look.label in lines]
    labels = known + sorted(set(lines) - set(known))
    if labels:
        figure.legend([lines[label] for label in labels], labels, loc="outside lower center", ncols=min(3, len(labels)))


BANDS = f", and bands their 95 % t intervals, drawn for {ENOUGH_SEEDS} seeds or more"
LINES = f"Lines are means over seeds{BANDS}"

HOLLOW = " A hollow dot is a single seed."
ARROW = " An arrowhead marks a bar that goes on outside."
MEANS = "Large dots are means over seeds, bars 95 % t intervals"
DOTS = f"{MEANS}, and small dots seeds.{HOLLOW}{ARROW}"


def caption(text: str, table: pd.DataFrame, records: Mapping[Any, Mapping] | None = None, drawn: str = LINES) -> str:
    """Returns a figure's caption: what it shows and how, seeds, diverged runs; then, after a blank line, its provenance.

    The provenance has the budgets. With `records` (from `records.load_metadata`) it also has the precision and the commits.
    """
    text = text.rstrip()
    if table.empty:
        return f"{text} Not yet recorded."
    seeds = table.groupby(["task", "dataset", "arm"])["seed"].nunique()
    least, most = seeds.min(), seeds.max()
    drawn = drawn if most > 1 or drawn != LINES else "A line is one run, without an interval"
    if most < ENOUGH_SEEDS:
        drawn = drawn.replace(BANDS, "")
    if least > 1:
        drawn = drawn.replace(HOLLOW, "")
    by_arm = {look(arm).label: span(seeds[:, :, arm]) for arm in in_order(table["arm"])}
    each = ", ".join(f"“{label}” ({number})" for label, number in by_arm.items())
    each = f"Seeds: {each}" if least < most else f"{count('seed', seeds).capitalize()} per arm"
    if HOLLOW in drawn and least < most and {*seeds} == {1, most}:
        each = f"{most} seeds per arm, one where the dot is hollow"
    drawn = f"{drawn.rstrip('.')}. {each}" if drawn else each
    diverged = table[table["status"] == "diverged"].drop_duplicates(statistics.RUN).groupby("arm").size()
    diverged = joined([f"{runs} of {look(arm).label}" for arm, runs in diverged.items()])
    scored = f" Diverged, and scored 0 from then on, or as low as before if that is less: {diverged}." if diverged else ""
    facts = []
    for phase, noun in {"pretrain": "update", "finetune": "interaction"}.items():
        last = table[table["phase"] == phase].groupby(statistics.RUN)["steps"].max()
        facts += [] if last.empty else [count(noun, last)]
    if origins := [record["provenance"] for record in (records or {}).values()]:
        commits = {re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", origin["commit"]) for origin in origins}
        code = joined(sorted(commits)) if len(commits) <= 5 else f"of {len(commits)} commits, which the records name"
        facts += [*sorted({origin["precision"] for origin in origins}), f"code {code}"]
    return f"{text} {drawn}.{scored}\n\n{', '.join(facts)}."


def as_markdown(caption: str) -> str:
    """Returns a caption as Markdown, in which <task>-medium must not look like an HTML tag."""
    return caption.replace("<", "&lt;")


def figures_folder(profile: str = "paper") -> Path:
    """Returns the folder that chapters draw into: build/<profile>/figures, or MBAUG_FIGURES, which `make figures` sets."""
    return Path(os.environ.get("MBAUG_FIGURES") or files.repository() / "build" / profile / "figures")


def save_figure(
    figure: Figure, name: str, frame: pd.DataFrame, caption: str, profile: str = "paper", folder: Path | None = None
) -> None:
    """Displays a figure with its caption below, and writes it as PNG, SVG, CSV of its main numbers, and JSON with the caption.

    The bytes depend on the content alone: they hold no dates and no random identifiers. In profiles other than "paper" the
    figure is marked "not evidence", with the smallest `n_seeds` in `frame`. `folder` defaults to `figures_folder(profile)`. If
    `frame` has no rows, there is nothing to see: only the caption is displayed, and nothing is written.

    Raises:
        ValueError: The name does not have the form NN_name, where NN is the chapter's number.
        files.CannotWrite: The folder is full or read-only.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"A figure's name must be its chapter's number and a few words, like 05_online_curves; got {name!r}.")
    shown, _, provenance = caption.partition("\n\n")
    if frame.empty:
        plt.close(figure)
        display(Markdown(f"*{as_markdown(shown)}*"))
        return
    folder = figures_folder(profile) if folder is None else Path(folder)
    shown = shown if mark_cut_bars(figure) else shown.replace(ARROW, "")
    mark = "" if profile == "paper" else _mark(figure, frame, profile)
    table = frame.to_csv(index=False, lineterminator="\n", float_format="%.7g").encode()
    about = {"caption": shown, "csv_sha256": files.sha256(table), "provenance": provenance, "mark": mark, "profile": profile}
    contents = {"csv": table, "json": files.sealed(about)} | _pictures(figure)
    files.write_together({folder / f"{name}.{suffix}": content for suffix, content in contents.items()})
    display(figure, Markdown(f"*{as_markdown(shown)}*"))
    plt.close(figure)  # or the notebook would show it once more at the end of the cell


def _mark(figure: Figure, frame: pd.DataFrame, profile: str) -> str:
    """Marks a figure as no evidence, which then stays on it, so that the notebook shows it too. Returns the mark."""
    seeds = f", {count('seed', [frame['n_seeds'].min()])}" if "n_seeds" in frame else ""
    mark = f"{profile} profile{seeds}: not evidence"
    letters = {"fontsize": 3.2 * figure.get_figwidth(), "weight": "bold", "color": "#D55E00", "alpha": 0.35, "rotation": 15}
    figure.text(0.5, 0.5, mark, ha="center", va="center", zorder=10, **letters).set_in_layout(False)
    return mark


def _pictures(figure: Figure) -> dict[str, bytes]:
    """Returns a figure as PNG and SVG, by suffix."""
    contents = {}
    for suffix, metadata in {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}.items():
        with plt.rc_context({"svg.hashsalt": "mbaug"}), io.BytesIO() as file:
            figure.savefig(file, format=suffix, metadata=metadata)
            contents[suffix] = file.getvalue()
    clips: dict = {}  # matplotlib derives their names from the layout's last bits, which vary: we number them
    contents["svg"] = re.sub(rb"\bp[0-9a-f]{10}\b", lambda x: clips.setdefault(x[0], b"clip%d" % len(clips)), contents["svg"])
    return contents


def gallery(folder: Path) -> str:
    """Returns the text of a folder's README.md: every figure under its chapter, in the order drawn, with its caption and data.

    Raises:
        ValueError: The JSON beside a figure or film is not what `save_figure` or `films.make`
            wrote, or a CSV has changed.
    """
    where = "Under each figure, “Data and provenance” opens a link to its main numbers."
    parts = [f"# Figures\n\nGenerated by `make figures`. {where}\n"]
    for source in sorted((files.repository() / "notebooks").glob("*.py")):
        text, number = source.read_text(encoding="utf-8"), source.stem[:2]
        named = dict.fromkeys(re.findall(rf'"({number}_\w+)"', text))
        drawn = [name for name in named if (folder / f"{name}.json").exists()]
        if drawn:
            heading = text.partition("\n# # ")[2].partition("\n")[0]
            parts.append(f"## [{heading}]({os.path.relpath(source.with_suffix('.ipynb'), folder)})\n")
        for name in drawn:
            about, data = files.unsealed(folder / f"{name}.json", "`make figures` writes it anew"), folder / f"{name}.csv"
            same = files.sha256(files.content(data)) == about["csv_sha256"]
            checks.require(same, f"{data} does not match the SHA-256 in {name}.json: `make figures` writes both anew")
            title = f"{number} · {name[3:].replace('_', ' ').capitalize()}"
            mark = f"**{about['mark']}.** " if about["mark"] else ""
            more = f"{about['provenance']} " if about["provenance"] else ""
            more = fold("Data and provenance", f"{more}[SVG]({name}.svg) · [data]({name}.csv)")
            parts.append(f"### {title}\n\n![{title}]({name}.png)\n\n{mark}{as_markdown(about['caption'])}\n\n{more}\n")
    films = sorted((folder / "films").glob("*.json"))
    if films:
        parts.append("## Films\n")
    for path in films:
        film = files.unsealed(path, "`python -m mbaug films` writes it anew")
        title = f"{tasks.find(path.stem).title}, before and after learning online"
        picture, more = f"![{title}](films/{path.stem}.gif)", fold("Provenance", film["provenance"])
        parts.append(f"### {title}\n\n{picture}\n\n{film['caption']}\n\n{more}\n")
    return "\n".join(parts)


def write_gallery(folder: Path) -> None:
    """Writes a folder's README.md. Raises what `gallery` raises."""
    files.write_atomically(folder / "README.md", gallery(folder).encode())
