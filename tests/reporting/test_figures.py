"""What a reader sees: live source, deterministic figures, and verdicts that follow from the records alone."""

import functools
import json
import re
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from mbaug import presentation, recording, statistics
from mbaug.files import CannotWrite
from mbaug.presentation import CLAIMS, LOOKS
from mbaug.statistics import Interval

TASKS = ("hopper", "walker2d", "halfcheetah", "ant")


@pytest.fixture(autouse=True)
def drawing():
    """Draws without a screen, in this project's style; nothing of it is left for the next test."""
    matplotlib.use("agg")
    with matplotlib.rc_context():
        presentation.style()
        yield
    plt.close("all")


def runs(arms: dict[str, float], seeds: int = 3, tasks=("hopper",), end: int = 100_000, spread: float = 1.0) -> pd.DataFrame:
    """Evaluation episodes of arms whose online scores are a constant each, up to what a seed adds to it."""
    rows = []
    for task in tasks:
        for arm, score in arms.items():
            scratch = arm in ("td3", "sac")
            dataset = "none" if scratch else f"{task}-medium-replay"
            for seed in range(seeds):
                points = [("finetune", steps) for steps in range(0, end + 1, 25_000)]
                points += [] if scratch else [("pretrain", 200_000)]
                for phase, steps in points:
                    own = score + spread * (seed - (seeds - 1) / 2) * (1 if arm == "augmented" else 0.5)
                    value = {"score": own, "predicted_value": 3.0 * own, "discounted_return": own, "overfitting": own}
                    name = {"study": "s", "task": task, "dataset": dataset, "arm": arm, "seed": seed}
                    at = {"pretrain": {"gradient_steps": steps}, "finetune": {"environment_steps": steps}}[phase]
                    rows.append({**dict.fromkeys(recording.COLUMNS, 0), **name, "phase": phase, **at, **value})
    return pd.DataFrame(rows).assign(status="finished")


def test_baselines_stand_beside_published_ones():
    table = presentation.main_runs(runs({"td3": 10.0, "sac": 90.0}, seeds=3, tasks=("hopper", "ant")))
    frame = presentation.beside_published(table)
    found = dict(zip(frame.index, frame.to_numpy().tolist(), strict=True))
    assert len(found) == 12
    assert found["hopper", "TD3", "100,000"] == ["21", "12", "10 [9.5, 10]", 3, "−11"]
    assert found["ant", "SAC", "100,000"] == ["29", "–", "90 [90, 90]", 3, "+61"]
    assert found["hopper", "SAC", "1,000,000"] == ["109", "–", "not yet recorded", 0, "–"]
    assert {found["walker2d", name, steps][2] for _, name, steps in found} == {"not yet recorded"}


# --- live source ----------------------------------------------------------------------------------


def shout(function):
    @functools.wraps(function)
    def wrapped(*arguments):
        return function(*arguments)

    return wrapped


@shout
@shout
def double(x):
    """Returns 2 x."""
    return 2 * x  # the equation


@dataclass(frozen=True)
class Numbers:
    """Some numbers."""

    rate: float = 0.5  # of a batch


def test_source_is_live_and_without_decorators():
    assert presentation.source(double) == 'def double(x):\n    """Returns 2 x."""\n    return 2 * x  # the equation'


def test_source_of_a_record_says_what_it_is():
    assert presentation.source(Numbers).startswith("@dataclass(frozen=True)\nclass Numbers:\n")
    assert "rate: float = 0.5  # of a batch" in presentation.source(Numbers)


def test_source_of_a_method_begins_at_the_margin():
    assert presentation.source(recording.Run.path).startswith("def path(self, root")


def test_show_displays_each_function_with_its_module(monkeypatch):
    shown = []
    monkeypatch.setattr(presentation, "display", shown.append)
    presentation.show(double, recording.missing)
    assert shown[0].data == f"`{__name__}`\n```python\n{presentation.source(double)}\n```"
    assert shown[1].data.startswith("`mbaug.recording`\n```python\ndef missing(")


# --- looks ----------------------------------------------------------------------------------------


def test_known_arms_have_colours_of_their_own():
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.label for look in LOOKS.values()}) == len(LOOKS)


def test_other_arms_have_a_look_that_never_changes():
    for arm in ("augmented_25", "vanilla_actor", "iql", "rlpd_utd_4"):
        assert presentation.look(arm) == presentation.look(arm)
        assert re.fullmatch("#[0-9A-F]{6}", presentation.look(arm).colour)
    assert presentation.look("iql") == presentation.Look("iql", "#29A37E", (0, (5, 1, 1, 1, 1, 1)))  # in every process


def test_the_label_of_a_variant_says_what_varies():
    assert presentation.look("augmented_25").label == "augmented 25 %"
    assert presentation.look("vanilla_actor_only").label == "vanilla pre-training, actor only"
    assert presentation.look("td3_data_late").label == "TD3 with the data, no pre-training, late"


def test_a_larger_rate_is_darker():
    def lightness(rate):
        return sum(matplotlib.colors.to_rgb(presentation.look(f"augmented_{rate}").colour))

    assert lightness(25) > lightness(75) > lightness(100)


def test_arms_are_in_one_order():
    assert presentation.in_order(["zero", "augmented", "td3", "any", "td3"]) == ["td3", "augmented", "any", "zero"]


def test_letters_are_readable_at_800_pixels():
    sizes = [matplotlib.rcParams[f"{part}.labelsize"] for part in ("axes", "xtick", "ytick")]
    sizes += [matplotlib.rcParams[name] for name in ("font.size", "legend.fontsize", "axes.titlesize")]
    assert min(sizes) >= 9
    assert matplotlib.rcParams["figure.figsize"][0] * matplotlib.rcParams["figure.dpi"] == 800


# --- curves ---------------------------------------------------------------------------------------


def test_curves_draw_what_they_return():
    table = statistics.evaluations(runs({"augmented": 30.0, "td3": 10.0}))
    _, axis = plt.subplots()
    summary = presentation.curves(axis, table)
    assert list(summary) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    labels = [line.get_label() for line in axis.lines]
    assert labels == ["TD3 from scratch", "augmented 50 %"]
    augmented = summary[summary["arm"] == "augmented"]
    assert axis.lines[1].get_xdata().tolist() == [0, 25, 50, 75, 100]  # thousands
    assert axis.lines[1].get_ydata().tolist() == augmented["score"].tolist()
    assert axis.lines[1].get_color() == LOOKS["augmented"].colour
    band = axis.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (augmented["low"].min(), augmented["high"].max())
    assert "warm-up included (thousands)" in axis.get_xlabel()
    assert axis.get_ylabel() == "D4RL-normalised score"


def test_curves_before_going_online_count_updates():
    _, axis = plt.subplots()
    summary = presentation.curves(axis, statistics.evaluations(runs({"vanilla": 1.0, "td3": 2.0})), "pretrain", "overestimation")
    assert summary[["arm", "steps", "overestimation"]].to_numpy().tolist() == [["vanilla", 200_000, 2.0]]
    assert axis.get_xlabel().startswith("updates")
    assert "(rewards)" in axis.get_ylabel()


def test_one_seed_has_a_line_and_no_band():
    _, axis = plt.subplots()
    summary = presentation.curves(axis, statistics.evaluations(runs({"td3": 2.0}, seeds=1)))
    assert summary["low"].isna().all()
    assert len(axis.collections[0].get_paths()) == 0
    assert len(axis.lines) == 1


def test_one_legend_names_each_arm_once():
    figure, axes = plt.subplots(1, 2)
    presentation.curves(axes[0], statistics.evaluations(runs({"noise": 1.0, "vanilla": 2.0})), "pretrain")
    presentation.curves(axes[1], statistics.evaluations(runs({"noise": 1.0, "vanilla": 2.0, "td3": 1.0})))
    presentation.legend(figure)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["TD3 from scratch", "vanilla pre-training", "matched noise 50 %"]


# --- captions -------------------------------------------------------------------------------------


def test_a_caption_counts_what_the_records_hold():
    frame = runs({"vanilla": 1.0, "td3": 2.0})
    frame = frame[(frame["arm"] != "td3") | (frame["seed"] != 2)]  # one run is missing
    origins = [{"commit": "0123456789abcdef", "precision": "float32"}, {"commit": "unknown", "precision": "float32"}]
    records = {key: {"provenance": origin} for key, origin in enumerate(origins)}
    assert presentation.caption("Scores.", statistics.evaluations(frame), records) == (
        "Scores. Interquartile mean and bootstrap 95 % interval, a weak one with so few seeds; "
        "2 to 3 seeds an arm, 200,000 updates, 100,000 interactions, float32, code 0123456 and unknown."
    )


def test_a_caption_says_how_sure_its_bands_are():
    def found(seeds):
        return presentation.caption("", statistics.evaluations(runs({"td3": 1.0}, seeds)))

    assert found(5) == " Interquartile mean and bootstrap 95 % interval; 5 seeds an arm, 100,000 interactions."
    assert found(1) == " A line is one run, without an interval; 1 seed an arm, 100,000 interactions."


def test_where_nothing_is_recorded_a_figure_says_so():
    nothing = statistics.evaluations(runs({"td3": 1.0}).iloc[:0])
    assert presentation.caption("Scores.", nothing) == "Scores. Not yet recorded."
    figure, axis = presentation.plt.subplots()
    assert presentation.curves(axis, nothing).empty
    presentation.legend(figure)
    assert not figure.legends


def test_a_caption_keeps_dirty_code_visible():
    records = {0: {"provenance": {"commit": "0123456789abcdef+dirty", "precision": "bfloat16"}}}
    assert "code 0123456+dirty" in presentation.caption("", statistics.evaluations(runs({"td3": 1.0})), records)


def test_a_caption_counts_runs_that_diverged():
    frame = runs({"vanilla": 1.0})
    frame.loc[frame["seed"] == 1, "status"] = "diverged"
    found = presentation.caption("Scores.", statistics.evaluations(frame))
    assert found.endswith("Diverged, and counted with score 0 from there: 1 of vanilla pre-training.")


# --- figures --------------------------------------------------------------------------------------


def draw(profile="paper", seeds=3, **options):
    """Draws and saves one small figure."""
    figure, axis = plt.subplots()
    summary = presentation.curves(axis, statistics.evaluations(runs({"augmented": 30.0, "td3": 1 / 3}, seeds)))
    axis.legend()
    return presentation.save_figure(figure, "05_online_curves", summary, "What it shows.", profile, **options)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_figure_is_four_files_with_the_same_bytes_each_time(tmp_path):
    path = draw(folder=tmp_path / "once")
    draw(folder=tmp_path / "again")
    assert path == tmp_path / "once" / "05_online_curves.png"
    found = files(tmp_path / "once")
    assert list(found) == [f"05_online_curves.{suffix}" for suffix in ("csv", "json", "png", "svg")]
    assert found == files(tmp_path / "again")
    assert json.loads(found["05_online_curves.json"]) == {"caption": "What it shows.", "mark": "", "profile": "paper"}
    assert b"Date" not in found["05_online_curves.svg"]


def test_the_last_bits_of_a_layout_change_no_byte(tmp_path):
    figure, axis = plt.subplots(layout="none")
    axis.plot([0, 1])
    found = []
    for left in (0.1, np.nextafter(0.1, 1)):
        axis.set_position((left, 0.1, 0.8, 0.8))
        path = presentation.save_figure(figure, "05_curves", pd.DataFrame(), "", folder=tmp_path)
        found.append(path.with_suffix(".svg").read_text())
    assert 'clip-path="url(#clip0)"' in found[0]
    assert '<clipPath id="clip0">' in found[0]
    assert found[0] == found[1]


def test_the_csv_is_what_is_drawn(tmp_path):
    draw(folder=tmp_path)
    table = pd.read_csv(tmp_path / "05_online_curves.csv")
    assert list(table) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    assert table.loc[table["arm"] == "td3", "score"].tolist() == [pytest.approx(1 / 3, abs=1e-6)] * 5


def test_a_small_profile_is_marked(tmp_path):
    plain = files(draw(folder=tmp_path / "paper").parent)
    marked = files(draw("quick", seeds=1, folder=tmp_path / "quick").parent)
    assert json.loads(marked["05_online_curves.json"])["mark"] == "quick profile, 1 seed: not evidence"
    unmarked = files(draw(seeds=1, folder=tmp_path / "one").parent)
    assert marked["05_online_curves.png"] != unmarked["05_online_curves.png"]
    assert b"not evidence" in marked["05_online_curves.svg"]  # the text stands in a comment above its outlines
    assert b"not evidence" not in plain["05_online_curves.svg"]


def test_a_mark_shows_in_the_notebook_too(tmp_path):
    figure, _ = plt.subplots()
    presentation.save_figure(figure, "05_curves", pd.DataFrame(), "", "smoke", tmp_path)
    assert [text.get_text() for text in figure.texts] == ["smoke profile: not evidence"]


def test_each_profile_has_its_folder():
    repository = recording.repository()
    assert presentation.figures_folder() == repository / "figures"
    assert presentation.figures_folder("quick") == repository / "build" / "quick" / "figures"


def test_figures_go_elsewhere_if_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MBAUG_FIGURES", str(tmp_path))
    assert draw() == tmp_path / "05_online_curves.png"


@pytest.mark.parametrize("name", ["online_curves", "5_online", "05_Online", "05_../x"])
def test_a_figure_is_named_after_its_chapter(tmp_path, name):
    with pytest.raises(ValueError, match="chapter's number"):
        presentation.save_figure(plt.figure(), name, pd.DataFrame(), "", folder=tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="05_online_curves"):
        draw(folder=tmp_path / "file" / "figures")


def test_the_gallery_shows_every_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "repository", lambda: tmp_path)
    folder, notebook = tmp_path / "figures", tmp_path / "notebooks" / "05_online_finetuning.ipynb"
    notebook.parent.mkdir()
    notebook.touch()
    for name, profile in (("05_online_curves", "paper"), ("01_returns", "quick")):
        frame = pd.DataFrame({"n_seeds": [2]})
        presentation.save_figure(plt.figure(), name, frame, f"About {name}.", profile, folder)
    text = presentation.gallery(folder)
    assert (folder / "README.md").read_text() == text
    assert text.index("## Returns") < text.index("## Online curves")
    assert "![Online curves](05_online_curves.png)\n\nAbout 05_online_curves." in text
    assert "**quick profile, 2 seeds: not evidence.** About 01_returns." in text
    assert "[05_online_finetuning](../notebooks/05_online_finetuning.ipynb)" in text
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / link).is_file()


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (3.14, False, "3.1"),
        (9.94, False, "9.9"),
        (9.96, False, "10"),
        (-21.4, False, "−21"),
        (21.6, True, "+22"),
        (0.0, True, "0.0"),
        (-0.04, True, "0.0"),
        (0.05, True, "+0.1"),
        (-0.6, True, "−0.6"),
    ],
)
def test_numbers_are_short(value, signed, text):
    assert presentation.number(value, signed) == text


def test_intervals_in_words():
    assert presentation.words(Interval(21.2, 5.0, 38.4, 3), signed=True) == "+21 [+5.0, +38]"
    assert presentation.words(Interval(21.2, -5.0, 38.4, 3)) == "21 [−5.0, 38]"
    assert presentation.words(Interval(21.2, np.nan, np.nan, 1)) == "21"
    assert presentation.words(Interval(np.nan, np.nan, np.nan, 0)) == "–"


# --- claims ---------------------------------------------------------------------------------------


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    """The verdict of each claim as the table gives it."""
    rows = [line.split(" | ") for line in presentation.claims_table(frame).splitlines() if re.match(r"\| [a-f] \|", line)]
    assert [row[0] for row in rows] == [f"| {letter}" for letter in "abcdef"]
    return {row[0][-1]: row[4] for row in rows}


def test_without_runs_nothing_is_measured(tmp_path):
    assert set(verdicts(recording.load_runs(tmp_path)).values()) == {"not yet measured"}
    assert presentation.found_table(recording.load_runs(tmp_path)) == "No runs are recorded yet."


def test_one_seed_measures_nothing():
    assert set(verdicts(runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 30}, seeds=1)).values()) == {"not yet measured"}


def test_three_seeds_show_a_direction_only():
    found = verdicts(runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 30}))
    assert found == {
        "a": "direction only",
        "b": "direction only",
        "c": "direction only",
        "d": "direction only",
        "e": "not yet measured",
        "f": "not reproduced",  # over-estimation grows with the score here
    }


def test_five_seeds_can_reproduce():
    found = verdicts(runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 60}, seeds=5))
    assert found["a"] == "reproduced"
    assert found["f"] == "reproduced"
    assert found["c"] == "not reproduced"


def test_all_four_tasks_are_needed_where_the_claim_names_them():
    arms = {"augmented": 50, "vanilla": 30}
    assert verdicts(runs(arms, seeds=5, tasks=TASKS[:3]))["c"] == "direction only"
    assert verdicts(runs(arms, seeds=5, tasks=TASKS))["c"] == "reproduced"


def test_an_interval_that_reaches_zero_reproduces_nothing():
    frame = runs({"augmented": 12, "td3": 10}, seeds=5, spread=10)
    (finding,) = presentation.findings(CLAIMS[0], presentation.main_runs(frame))
    assert finding.interval.low < 0 < finding.interval.value
    assert verdicts(frame)["a"] == "not reproduced"
    assert verdicts(runs({"augmented": 5, "td3": 10}, seeds=5))["a"] == "not reproduced"


def test_ten_times_fewer_interactions_needs_sac_at_a_million():
    def with_sac_at_a_million(score):
        short = runs({"augmented": 80, "sac": 40}, seeds=5)
        last = short[(short["arm"] == "sac") & (short["environment_steps"] == 100_000)]
        return pd.concat([short, last.assign(arm="sac_million", environment_steps=1_000_000, score=score)])

    assert verdicts(with_sac_at_a_million(85.0))["b"] == "reproduced"  # 5 worse: within the margin of 10
    assert verdicts(with_sac_at_a_million(110.0))["b"] == "not reproduced"
    assert verdicts(runs({"augmented": 80, "sac": 40}, seeds=5))["b"] == "direction only"
    assert verdicts(runs({"augmented": 40, "sac": 80}, seeds=5))["b"] == "not reproduced"


def test_the_best_rate_must_beat_every_other():
    rates = {"augmented": 50, "vanilla": 30, "augmented_25": 40, "augmented_75": 40, "augmented_100": 20}
    assert verdicts(runs(rates, seeds=5))["d"] == "reproduced"
    assert verdicts(runs({**rates, "augmented_75": 51}, seeds=5))["d"] == "not reproduced"
    assert verdicts(runs(dict(list(rates.items())[:3]), seeds=5))["d"] == "direction only"


def test_both_parts_must_help():
    parts = {"td3": 10, "augmented_actor": 40, "augmented_critic": 30, "vanilla_actor": 35, "vanilla_critic": 20}
    assert verdicts(runs(parts, seeds=5))["e"] == "reproduced"
    assert verdicts(runs({**parts, "augmented_critic": 10}, seeds=5))["e"] == "not reproduced"


def test_a_cell_says_what_was_measured_and_how_weakly():
    table = presentation.claims_table(runs({"augmented": 50, "td3": 10}))
    assert (
        "augmented 50 % − TD3 from scratch: **+40 [+40, +40]** score, mean over 0 to 100K; chance 12 %; "
        "hopper, 3 seeds (a weak interval)"
    ) in table
    assert "weak interval)" not in presentation.claims_table(runs({"augmented": 50, "td3": 10}, seeds=5))
    assert "chance below 1 %; ant, hopper" in presentation.claims_table(
        runs({"augmented": 50, "td3": 10}, seeds=5, tasks=("hopper", "ant"))
    )


def test_other_data_and_other_studies_do_not_mix_in():
    main = runs({"augmented": 50, "td3": 10})
    other = runs({"augmented": 0}).assign(dataset="hopper-random")
    later = runs({"augmented": 0, "td3": 90}).assign(study="t")
    assert presentation.claims_table(pd.concat([main, other, later])) == presentation.claims_table(main)


def test_the_papers_claims_are_the_six():
    assert [claim.letter for claim in CLAIMS] == list("abcdef")


def test_what_was_found_is_a_row_an_arm():
    table = presentation.found_table(runs({"augmented": 50, "td3": 10, "augmented_25": 40}))  # the main arms only
    lines = table.splitlines()
    assert lines[2] == "| hopper | TD3 from scratch | – | 10 [9.5, 10] | 10 [9.5, 10] | – | 3 |"
    assert len(lines) == 4
    assert lines[3] == "| hopper | augmented 50 % | 50 [49, 51] | 50 [49, 51] | 50 [49, 51] | 0.0 [0.0, 0.0] | 3 |"


# --- the README -----------------------------------------------------------------------------------

README = "# Title\n\n<!-- found -->\nold\n<!-- /found -->\n\nwords\n<!-- claims --><!-- /claims -->\nend\n"


def test_the_readme_is_made_again_between_its_markers(tmp_path):
    path, frame = tmp_path / "README.md", runs({"augmented": 50, "td3": 10})
    path.write_text(README)
    assert "line 4, reads 'old' where" in presentation.outdated(path, frame)
    presentation.update_readme(path, frame)
    text = path.read_text()
    assert presentation.outdated(path, frame) is None
    assert text.startswith("# Title\n\n<!-- found -->\n| task |")
    assert f"words\n<!-- claims -->\n{presentation.claims_table(frame)}\n<!-- /claims -->\nend\n" in text
    presentation.update_readme(path, frame)
    assert path.read_text() == text


def test_a_number_that_was_typed_is_found(tmp_path):
    path, frame = tmp_path / "README.md", runs({"augmented": 50, "td3": 10})
    path.write_text(README)
    presentation.update_readme(path, frame)
    path.write_text(path.read_text().replace("+40", "+60"))
    assert "reads '| a |" in presentation.outdated(path, frame)


@pytest.mark.parametrize("text", ["", README.replace("<!-- /found -->", ""), README + README])
def test_a_readme_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="needs one <!-- "):
        presentation.readme(text, runs({"td3": 10}))
