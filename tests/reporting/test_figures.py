"""What a reader sees: live source, curves that draw what they return, captions, and reproducible files."""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from evaluated import runs

from mbaug import files
from mbaug.reporting import figures, statistics
from mbaug.reporting.looks import LOOKS


@pytest.fixture(autouse=True)
def drawing():
    """Draws without a screen in the project's style, and resets matplotlib after each test."""
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.style()
        yield
    plt.close("all")


def evaluations(*args, **kwargs):
    return statistics.evaluations(runs(*args, **kwargs))


@functools.cache
@functools.cache
def double(x):
    """Returns 2 x."""
    return 2 * x  # the equation


@dataclass(frozen=True)
class Numbers:
    """Some numbers."""

    rate: float = 0.5  # of a batch


def half(x):
    """Returns x / 2, which is 0.5 * x, but `0.5 * x` in code.

    Args:
        x: A number,
            or several.
        y, z: Nothing.

    Source: ours.
    """
    return x / 2


def bare(x):
    return x


def test_show_displays_docstring_as_prose_and_the_live_source_without_it(monkeypatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda markdown: shown.append(markdown.data))
    figures.show(double, Numbers, files.write_atomically, half, bare)
    assert shown[0] == f"`{__name__}`\n\nReturns 2 x.\n\n```python\ndef double(x):\n    return 2 * x  # the equation\n```"
    code = "@dataclass(frozen=True)\nclass Numbers:\n    rate: float = 0.5  # of a batch"
    assert shown[1] == f"`{__name__}`\n\nSome numbers.\n\n```python\n{code}\n```"
    assert shown[2].startswith("`mbaug.files`\n\n")
    assert "\n\n```python\ndef write_atomically(" in shown[2]
    prose = "Returns x / 2, which is 0.5 \\* x, but `0.5 * x` in code.\n\n*Args:*\n\n- `x`: A number,\n"
    assert prose + "        or several.\n- `y, z`: Nothing.\n\nSource: ours.\n\n```python\ndef half(x):\n    return" in shown[3]
    assert shown[4].endswith("```python\ndef bare(x):\n    return x\n```")


# --- style ----------------------------------------------------------------------------------------------------------------


def test_letters_have_at_least_9_points_at_a_width_of_800_pixels():
    sizes = [matplotlib.rcParams[f"{part}.labelsize"] for part in ("axes", "xtick", "ytick")]
    sizes += [matplotlib.rcParams[name] for name in ("font.size", "legend.fontsize", "axes.titlesize")]
    assert min(sizes) >= 9
    assert matplotlib.rcParams["figure.figsize"][0] * matplotlib.rcParams["figure.dpi"] == 800


# --- curves ---------------------------------------------------------------------------------------------------------------


def test_curves_draw_what_they_return():
    _, axis = plt.subplots()
    summary = figures.curves(axis, evaluations({"augmented": 30.0, "td3": 10.0}))
    assert list(summary) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    assert [line.get_label() for line in axis.lines] == ["TD3 from scratch", "augmented 50 %"]
    augmented = summary[summary["arm"] == "augmented"]
    assert axis.lines[1].get_xdata().tolist() == [0, 25, 50, 75, 100]  # thousands
    assert axis.lines[1].get_ydata().tolist() == augmented["score"].tolist()
    assert axis.lines[1].get_color() == LOOKS["augmented"].colour
    assert not axis.collections  # a band of three seeds would hide the lines
    assert "warm-up included (thousands)" in axis.get_xlabel()
    assert axis.get_ylabel() == "D4RL-normalised score"


def test_curves_of_five_seeds_have_a_band():
    _, (with_bands, without) = plt.subplots(1, 2)
    table = evaluations({"augmented": 30.0, "td3": 10.0}, seeds=5)
    summary = figures.curves(with_bands, table)
    band = with_bands.collections[1].get_paths()[0].vertices[:, 1]
    augmented = summary[summary["arm"] == "augmented"]
    assert (band.min(), band.max()) == (augmented["low"].min(), augmented["high"].max())
    figures.curves(without, table, bands=False)
    assert not without.collections


def test_offline_curves_count_updates():
    _, axis = plt.subplots()
    summary = figures.curves(axis, evaluations({"vanilla": 1.0, "td3": 2.0}), "pretrain")
    assert summary[["arm", "steps", "score"]].to_numpy().tolist() == [["vanilla", 200_000, 1.0]]
    assert axis.get_xlabel().startswith("updates")


def test_multiples_have_one_panel_per_task_and_no_bands():
    _, axes = plt.subplots(1, 4)
    drawn = figures.multiples(axes, evaluations({"augmented": 30.0, "td3": 10.0}, seeds=5, tasks=("hopper", "ant")))
    assert [axis.get_title(loc="left") for axis in axes] == ["Hopper", "Walker2d", "HalfCheetah", "Ant"]
    assert [len(axis.lines) for axis in axes] == [2, 0, 0, 2]
    assert not any(axis.collections for axis in axes)
    assert axes[3].lines[0].get_ydata().tolist() == drawn.query("task == 'ant' and arm == 'td3'")["score"].tolist()


def test_every_seed_has_a_line_in_its_tasks_panel():
    _, axes = plt.subplots(1, 4)
    table = evaluations({"augmented": 30.0, "td3": 10.0}, seeds=3, tasks=("hopper", "ant"))
    drawn = figures.every_seed(axes, table, "score")
    assert [axis.get_title(loc="left") for axis in axes] == ["Hopper", "Walker2d", "HalfCheetah", "Ant"]
    assert [len(axis.lines) for axis in axes] == [6, 0, 0, 6]
    assert list(drawn) == [*statistics.RUN, "steps", "score"]
    first = drawn.query("task == 'ant' and arm == 'augmented' and seed == 0")
    assert axes[3].lines[0].get_ydata().tolist() == first["score"].tolist()
    wide = table.assign(score=table["score"].where(table["task"] == "hopper", 2e6))
    figures.every_seed(axes, wide, "score")
    assert [axis.get_yscale() for axis in axes] == ["linear", "linear", "linear", "symlog"]


def test_panels_share_their_axes_except_ants_axis_of_scores():
    dots, lines = figures.panels(plt.figure()), figures.panels(plt.figure(), "y")
    for axes in (dots, lines):
        axes[0].set(xlim=(3, 4), ylim=(5, 6))
    assert [axis.get_xlim() == (3, 4) for axis in dots] == [axis.get_ylim() == (5, 6) for axis in lines] == [True] * 3 + [False]
    assert [axis.get_ylim() == (5, 6) for axis in dots] == [axis.get_xlim() == (3, 4) for axis in lines] == [True] * 4


def test_dots_show_means_with_intervals_and_each_seed():
    _, axes = plt.subplots(1, 4)
    table = pd.concat([evaluations({"augmented": 30.0, "td3": 10.0}), evaluations({"td3": 20.0}, seeds=1, tasks=("ant",))])
    drawn = figures.dots(axes, statistics.mean_score(table), ["td3", "augmented"])
    assert list(drawn) == ["task", "arm", "mean_score", "low", "high", "n_seeds", "seed", "mean_score_of_seed"]
    expected = statistics.interval([np.array([29.0, 30.0, 31.0])])
    interval, seeds, mean = axes[0].lines[3:]  # the first three lines are TD3's
    assert [*interval.get_xdata()] == [expected.low, expected.high]
    assert (seeds.get_xdata().tolist(), mean.get_xdata().tolist()) == ([29.0, 30.0, 31.0], [30.0])
    assert drawn.query("task == 'hopper' and arm == 'augmented'")["mean_score_of_seed"].tolist() == [29.0, 30.0, 31.0]
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["TD3 from scratch", "augmented 50 %"]
    assert {line.get_color() for line in axes[0].lines} == {LOOKS["td3"].colour, LOOKS["augmented"].colour}
    assert [axes[k].lines[2].get_fillstyle() for k in (0, 3)] == ["full", "none"]  # one seed has a hollow dot
    assert np.isnan(axes[3].lines[0].get_xdata()).all()
    assert [[text.get_text() for text in axis.texts] for axis in axes] == [[], *[["not recorded"] * 2] * 2, ["not recorded"]]


def test_seeds_set_the_width_of_a_panel_and_arrowheads_mark_intervals_that_go_on(tmp_path):
    """With two seeds, 28 and 30 of 29, the interval reaches from 16 to 42. That of five seeds fits."""
    figure, axes = plt.subplots(1, 3)
    few, many = (evaluations({"augmented": 29.0}, seeds=seeds, tasks=(task,)) for seeds, task in ((2, "hopper"), (5, "ant")))
    drawn = figures.dots(axes[:2], statistics.mean_score(pd.concat([few, many])), ["augmented"], ("hopper", "ant"))
    assert figures.dots([plt.figure().add_subplot()], statistics.mean_score(many), ["augmented"], ("hopper",)).empty
    figures.dots_at(axes[2], statistics.mean_score(few), {"augmented": 3.0})
    saved = []
    for _ in range(2):
        figures.save_figure(figure, "05_dots", drawn, f"About dots.{figures.ARROW}", folder=tmp_path)
        saved.append([(tmp_path / f"05_dots.{suffix}").read_bytes() for suffix in ("png", "json")])
    assert saved[0] == saved[1]
    assert b"arrowhead" in saved[0][1]
    heads = [[line.get_marker() for line in axis.lines if line.get_marker() in tuple("<>v^")] for axis in axes]
    assert heads == [["<", ">"], [], ["v", "^"]]
    low, high = axes[0].get_xlim()
    assert [line.get_xdata()[0] for line in axes[0].lines[-2:]] == [low, high]
    assert 27 < low < 28.5 < 29.5 < high < 31
    figure, axis = plt.subplots()
    drawn = figures.dots([axis], statistics.mean_score(many), ["augmented"], ("ant",))
    figures.save_figure(figure, "05_dots", drawn, f"About dots.{figures.ARROW} Seeds.", folder=tmp_path)
    assert b'"caption": "About dots. Seeds."' in (tmp_path / "05_dots.json").read_bytes(), "no bar is cut here"


def test_one_legend_names_each_arm_once():
    figure, axes = plt.subplots(1, 2)
    figures.curves(axes[0], evaluations({"noise": 1.0, "vanilla": 2.0}), "pretrain")
    figures.curves(axes[1], evaluations({"noise": 1.0, "vanilla": 2.0, "td3": 1.0}))
    axes[1].plot([1], label="another")
    figures.legend(figure)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["TD3 from scratch", "vanilla pre-training", "matched noise 50 %", "another"]


# --- captions -------------------------------------------------------------------------------------------------------------


def test_a_caption_says_what_is_drawn_and_then_its_provenance():
    frame = runs({"vanilla": 1.0, "td3": 2.0})
    frame = frame[(frame["arm"] != "td3") | (frame["seed"] != 2)]  # one run is missing
    commits = ["0123456789abcdef", "unknown", "89abcdef01234567+dirty"]
    records = {k: {"provenance": {"commit": commit, "precision": "float32"}} for k, commit in enumerate(commits)}
    assert figures.caption("Scores.", statistics.evaluations(frame), records) == (
        "Scores. Lines are means over seeds. Seeds: “TD3 from scratch” (2), “vanilla pre-training” (3).\n\n"
        "200,000 updates, 100,000 interactions, float32, code 0123456, 89abcde+dirty and unknown."
    )


def test_a_caption_explains_only_the_marks_that_are_drawn():
    hollow = [
        "A hollow dot is a single seed. An arrow" in figures.caption("", evaluations({"td3": 1.0}, n), drawn=figures.DOTS)
        for n in (1, 2)
    ]
    assert hollow == [True, False]
    found = {seeds: figures.caption("", evaluations({"td3": 1.0}, seeds)) for seeds in (1, 5)}
    assert found[5] == f" {figures.LINES}. 5 seeds per arm.\n\n100,000 interactions."
    assert found[1] == " A line is one run, without an interval. 1 seed per arm.\n\n100,000 interactions."
    both = pd.concat([evaluations({"td3": 1.0}, 3), evaluations({"td3": 1.0}, 1, ("ant",))])
    assert figures.caption("Dots.", both, drawn="").startswith("Dots. Seeds: “TD3 from scratch” (1 to 3).\n\n")
    assert " 3 seeds per arm, one where the dot is hollow.\n\n" in figures.caption("Dots.", both, drawn=figures.DOTS)


def test_a_caption_names_a_few_commits_and_counts_many():
    origins = [{"commit": f"{k:07d}", "precision": "float32"} for k in range(6)]
    for number, code in ((2, "code 0000000 and 0000001."), (6, "code of 6 commits, which the records name.")):
        records = {k: {"provenance": origin} for k, origin in enumerate(origins[:number])}
        assert figures.caption("", evaluations({"td3": 1.0}), records).endswith(f"float32, {code}")


def test_a_figure_without_records_says_so():
    nothing = statistics.evaluations(runs({"td3": 1.0}).iloc[:0])
    assert figures.caption("Scores.", nothing) == "Scores. Not yet recorded."
    figure, axis = plt.subplots()
    assert figures.curves(axis, nothing).empty
    figures.legend(figure)
    assert not figure.legends


def test_a_caption_counts_runs_that_diverged():
    frame = runs({"vanilla": 1.0})
    frame.loc[frame["seed"] == 1, "status"] = "diverged"
    found = figures.caption("Scores.", statistics.evaluations(frame))
    assert "Diverged, and scored 0 from then on, or as low as before if that is less: 1 of vanilla pre-training.\n\n" in found


# --- files ----------------------------------------------------------------------------------------------------------------


def draw(folder, profile="paper", seeds=3):
    """Draws and saves one small figure; returns the files in the folder."""
    figure, axis = plt.subplots()
    summary = figures.curves(axis, evaluations({"augmented": 30.0, "td3": 1 / 3}, seeds))
    figures.save_figure(figure, "05_online_curves", summary, "What it shows.\n\nFrom there.", profile, folder)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_figure_is_four_files_with_the_same_bytes_each_time(tmp_path):
    found = draw(tmp_path / "once")
    assert list(found) == [f"05_online_curves.{suffix}" for suffix in ("csv", "json", "png", "svg")]
    assert found == draw(tmp_path / "again")
    about = {"caption": "What it shows.", "csv_sha256": files.sha256(found["05_online_curves.csv"])}
    about |= {"provenance": "From there.", "mark": "", "profile": "paper"}
    assert found["05_online_curves.json"] == files.sealed(about)
    assert b"Date" not in found["05_online_curves.svg"]
    table = pd.read_csv(tmp_path / "once" / "05_online_curves.csv")
    assert list(table) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    assert table.loc[table["arm"] == "td3", "score"].tolist() == [pytest.approx(1 / 3, abs=1e-6)] * 5


def test_a_notebook_shows_a_figure_once_with_its_caption_below(tmp_path, monkeypatch):
    shown, figure = [], plt.figure()
    monkeypatch.setattr(figures, "display", lambda *objects: shown.extend(objects))
    figures.save_figure(figure, "05_curves", pd.DataFrame({"n": [1]}), "Rows of <task>-medium.\n\nFrom there.", folder=tmp_path)
    assert shown[0] is figure
    assert [text.data for text in shown[1:]] == ["*Rows of &lt;task>-medium.*"]
    assert not plt.fignum_exists(figure.number), "The inline backend shows every open figure at the end of a cell."


def test_rounding_in_the_layout_changes_no_byte(tmp_path):
    figure, axis = plt.subplots(layout="none")
    axis.plot([0, 1])
    found = []
    for left in (0.1, np.nextafter(0.1, 1)):
        axis.set_position((left, 0.1, 0.8, 0.8))
        figures.save_figure(figure, "05_curves", pd.DataFrame({"n": [1]}), "", folder=tmp_path)
        found.append((tmp_path / "05_curves.svg").read_text())
    assert 'clip-path="url(#clip0)"' in found[0]
    assert '<clipPath id="clip0">' in found[0]
    assert found[0] == found[1]


def test_a_figure_of_a_small_profile_is_marked_as_no_evidence(tmp_path):
    plain, marked = (draw(tmp_path / profile, profile, seeds=1) for profile in ("paper", "quick"))
    assert json.loads(marked["05_online_curves.json"])["mark"] == "quick profile, 1 seed: not evidence"
    assert marked["05_online_curves.png"] != plain["05_online_curves.png"]
    assert b"not evidence" in marked["05_online_curves.svg"]  # the SVG has the text as a comment above its outlines
    assert b"not evidence" not in plain["05_online_curves.svg"]
    figure, _ = plt.subplots()
    figures.save_figure(figure, "05_curves", pd.DataFrame({"n": [1]}), "", "smoke", tmp_path)
    assert [text.get_text() for text in figure.texts] == ["smoke profile: not evidence"]


@pytest.mark.slow
def test_the_users_matplotlibrc_changes_no_byte(tmp_path):
    """matplotlib reads it at import."""
    (tmp_path / "matplotlibrc").write_text(
        "figure.dpi: 200\nfont.size: 14\nfont.family: serif\nlines.linewidth: 4\naxes.prop_cycle: cycler('color', ['red'])\n"
        "legend.frameon: False\nsavefig.transparent: True\naxes.linewidth: 3\nxtick.direction: in\nsvg.fonttype: none\n"
    )
    script = "import sys, matplotlib.pyplot as plt, pandas as pd\nfrom mbaug.reporting import figures\nfigures.style()\n"
    script += "figure, axis = plt.subplots()\naxis.plot([0, 2], [1, 3], label='a')\naxis.legend()\n"
    script += "figures.save_figure(figure, '05_curves', pd.DataFrame({\"n\": [1]}), '', folder=sys.argv[1])\n"
    variables = {"own": {}, "users": {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}}
    for name, more in variables.items():
        subprocess.run([sys.executable, "-c", script, tmp_path / name], check=True, env=os.environ | {"MPLBACKEND": "agg"} | more)
    for suffix in ("png", "svg"):
        own, users = ((tmp_path / name / f"05_curves.{suffix}").read_bytes() for name in variables)
        assert own == users


def test_a_chapter_draws_into_build_unless_a_batch_names_another_folder(tmp_path, monkeypatch):
    assert figures.figures_folder() == files.repository() / "build" / "paper" / "figures"
    assert figures.figures_folder("quick") == files.repository() / "build" / "quick" / "figures"
    monkeypatch.setenv("MBAUG_FIGURES", str(tmp_path))
    figures.save_figure(plt.figure(), "05_curves", pd.DataFrame({"n": [1]}), "")
    assert (tmp_path / "05_curves.png").is_file()


@pytest.mark.parametrize("name", ["online_curves", "5_online", "05_Online", "05_../x"])
def test_the_name_of_a_figure_must_begin_with_its_chapters_number(tmp_path, name):
    with pytest.raises(ValueError, match="chapter's number"):
        figures.save_figure(plt.figure(), name, pd.DataFrame({"n": [1]}), "", folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.CannotWrite, match="05_online_curves"):
        draw(tmp_path / "file" / "figures")


def test_the_gallery_shows_every_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    folder, notebooks = tmp_path / "figures", tmp_path / "notebooks"
    notebooks.mkdir()
    for name, title, calls in (
        ("01_small_datasets", "01 · Small datasets", ["01_returns", "01_not_yet"]),
        ("05_online_finetuning", "05 · Online fine-tuning", ["05_returns", "05_online_curves", "05_returns"]),
    ):
        code = "".join(f'save_figure(figure, "{call}")\n' for call in calls)
        (notebooks / f"{name}.py").write_text(f"# %% [markdown]\n# # {title}\n#\n# %%\n{code}")
        (notebooks / f"{name}.ipynb").touch()
    for name, profile in (("05_online_curves", "paper"), ("05_returns", "paper"), ("01_returns", "quick")):
        text = f"About {name}.\n\nCode 0123456."
        figures.save_figure(plt.figure(), name, pd.DataFrame({"n_seeds": [2]}), text, profile, folder)
    figures.write_gallery(folder)
    text = (folder / "README.md").read_text()
    assert text == figures.gallery(folder)
    titles = [
        "# Figures",
        "## [01 · Small datasets](../notebooks/01_small_datasets.ipynb)",
        "### 01 · Returns",
        "## [05 · Online fine-tuning](../notebooks/05_online_finetuning.ipynb)",
    ]
    titles += ["### 05 · Returns", "### 05 · Online curves"]
    assert re.findall("(?m)^#+ .*$", text) == titles
    shown = "![05 · Online curves](05_online_curves.png)\n\nAbout 05_online_curves.\n\n<details><summary>Data and provenance"
    assert f"{shown}</summary>\n\nCode 0123456. [SVG](05_online_curves.svg) · [data](05_online_curves.csv)\n\n</details>" in text
    assert "**quick profile, 2 seeds: not evidence.** About 01_returns." in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / link).is_file()


def test_a_changed_caption_is_refused(tmp_path):
    draw(tmp_path)
    path = tmp_path / "05_online_curves.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"caption": "What it does not show."}, indent=2) + "\n")
    sentence = r"05_online_curves\.json: its content does not match its SHA-256: `make figures`"
    with pytest.raises(ValueError, match=sentence):
        figures.write_gallery(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_changed_numbers_beside_a_figure_are_refused(tmp_path):
    """The caption's JSON holds their SHA-256."""
    draw(tmp_path)
    path = tmp_path / "05_online_curves.csv"
    path.write_bytes(path.read_bytes().replace(b"30", b"31"))
    with pytest.raises(ValueError, match=r"05_online_curves\.csv does not match the SHA-256 in 05_online_curves\.json"):
        figures.gallery(tmp_path)


def test_dots_at_given_places_draw_what_they_return():
    index = pd.MultiIndex.from_product([["hopper"], ["d"], ["vanilla", "augmented", "noise"], [0, 1]], names=statistics.RUN)
    measure = pd.Series([1.0, 3.0, 5.0, 5.0, 7.0, np.nan], index)
    axis = plt.figure().add_subplot()
    drawn = figures.dots_at(axis, measure, {"noise": 2.0, "sac": 1.0, "vanilla": 0.0})
    assert drawn["arm"].tolist() == ["noise", "vanilla", "vanilla"], (
        "These should be the arms that ran, in the order of their places."
    )
    assert drawn["n_seeds"].tolist() == [1, 2, 2]
    assert drawn["value_of_seed"].tolist() == [7.0, 1.0, 3.0]
    assert drawn.loc[1, ["place", "value"]].tolist() == [0.0, 2.0]
    interval, seeds, mean = axis.lines[3:]
    assert interval.get_xydata().tolist() == [[0.0, drawn.loc[1, "low"]], [0.0, drawn.loc[1, "high"]]]
    assert (seeds.get_xydata().tolist(), mean.get_xydata().tolist()) == ([[0.0, 1.0], [0.0, 3.0]], [[0.0, 2.0]])
    assert [axis.lines[k].get_fillstyle() for k in (2, 5)] == ["none", "full"]
    low, high = axis.get_ylim()
    assert low < 1.0 < 7.0 < high, "All seeds should lie inside the panel, also those that are farther out than every mean."


def test_a_symlog_axis_contains_all_its_values():
    """A critic that ran away may also end far below zero. Small values leave the axis as it is."""
    _, (axis, other) = plt.subplots(1, 2)
    figures.symlog_axis(axis, pd.Series([-3e5, 2e7]))
    figures.symlog_axis(other, pd.Series([-10.0, 10.0]))
    assert (axis.get_yscale(), other.get_yscale()) == ("symlog", "linear")
    assert axis.get_ylim()[0] < -3e5 < 2e7 < axis.get_ylim()[1]
    assert {"−300", "−100", "0", "10 million"} <= {label.get_text() for label in axis.get_yticklabels()}
    low, zero, small, high = axis.transData.transform([(0, y) for y in (axis.get_ylim()[0], 0, 300, axis.get_ylim()[1])])[:, 1]
    assert (small - zero) / (high - low) > 0.2, "Critics that did not run away should stay apart."
    figures.symlog_axis(other, pd.Series([0.0, 6e3]))
    assert "10,000" in {label.get_text() for label in other.get_yticklabels()}


def test_a_figure_without_numbers_is_not_written(tmp_path, capsys):
    figures.save_figure(plt.figure(), "06_horizons", pd.DataFrame(columns=["n"]), "About n. Not yet recorded.", folder=tmp_path)
    assert not [*tmp_path.iterdir()]
    assert not plt.get_fignums()
