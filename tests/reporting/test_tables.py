"""The README and the other pages: their numbers match the records, their links lead somewhere, and the example runs."""

import re
import tomllib

import pytest
from conftest import ROOT
from evaluated import runs

from mbaug.datasets import pools
from mbaug.experiments import checkpoint, records, studies
from mbaug.method import training
from mbaug.reporting import answers, claims, figures, stored, tables

TEXT = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def recorded():
    return records.load_runs(records.root())


@pytest.mark.parametrize("path", tables.generated(), ids=lambda path: path.stem)
def test_generated_pages_match_the_records(path, recorded):
    assert path.read_text().splitlines() == tables.written(path, recorded).splitlines(), "Run `make figures`."


def prose(path):
    """Returns the text of a Markdown file, or of a chapter's Markdown cells, without code blocks."""
    text = path.with_suffix(".py" if path.suffix == ".ipynb" else path.suffix).read_text()
    if path.suffix != ".md":
        text = re.sub("^# ?", "", "\n".join(re.findall(r"# %% \[markdown\]\n((?:#.*\n?)*)", text)), flags=re.M)
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(path):
    """Returns the anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


PAGES = [
    path for part in ("*.md", "data/**/*.md", "figures/*.md", "docs/*.md", "notebooks/*.py") for path in sorted(ROOT.glob(part))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http|mailto)([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        to = page.parent / target if target else page
        assert to.exists(), f"{target} does not exist."
        assert not anchor or anchor in anchors(to), f"{target} has no heading #{anchor}."


def test_the_gallery_has_every_figure():
    """Its captions are those written with the figures, so no word and no number was changed since."""
    text = (ROOT / "figures" / "README.md").read_text()
    assert text == figures.gallery(ROOT / "figures")
    names = sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
    assert names
    shown = re.findall(r"\]\((\w+)\.png\)", text)
    assert sorted(shown) == names
    drawn = "".join(path.read_text() for path in sorted((ROOT / "notebooks").glob("*.py")))
    waiting = set() if records.load_metadata(records.root(), studies.find("horizons").runs()) else {"06_horizons"}
    assert sorted({*re.findall(r'save_figure\(figure, "(\w+)"', drawn)} - waiting) == names, (
        "Each chapter's figures should be there, and no others."
    )
    places = [drawn.index(f'"{name}"') for name in shown]
    assert places == sorted(places), "Figures should stand in the order in which the chapters draw them."
    assert not re.search(r"<(?!/?(details|summary)>)", text), "GitHub would take this for a tag, and hide it."
    films = sorted(path.stem for path in (ROOT / "figures" / "films").glob("*.gif"))
    assert re.findall(r"\]\(films/(\w+)\.gif\)", text) == films


def test_the_badges_match_the_projects_metadata():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    badges = dict(re.findall(r"\[!\[(\w+):? (.+?)\]\(docs/badges", TEXT))
    first, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert badges["Python"] == f"3.{first} to 3.{int(end) - 1}"
    ran = re.search(r"We ran everything.*?\n\n", TEXT, re.S)[0]
    assert {f"3.{minor}" for minor in range(int(first), int(end))} == {*re.findall(r"\b3\.\d+", ran)}, (
        "The README should say which of these versions we ran."
    )
    assert badges["Code"] == project["license"]
    assert badges["Data"] == pools.LICENCE
    for path in (ROOT / "docs" / "badges").glob("*.svg"):
        (label,) = re.findall(r"<title>(.+)</title>", path.read_text())
        assert (
            f"![{label}](docs/badges/{path.name})".lower().replace("arxiv: ", "arxiv ").replace("python: ", "python ")
            in TEXT.lower()
        )


def test_no_example_opens_a_server_to_everybody():
    """Dask schedulers and Jupyter servers run the code of anybody who reaches them, and Dask listens on all addresses."""
    texts = [path.read_text() for part in ("*.md", "docs/*.*", "notebooks/*.py", "mbaug/*/*.py") for path in ROOT.glob(part)]
    schedulers = [line for text in texts for line in text.splitlines() if "dask scheduler" in line]
    assert schedulers
    assert all(re.search(r"dask scheduler --host (HOST|127\.0\.0\.1)\b", line) for line in schedulers)
    assert not any(re.search(r"0\.0\.0\.0|--ip|--allow-root", text) for text in texts)


def test_the_table_of_results_has_a_row_for_each_arm_and_a_column_for_each_task(tmp_path):
    frame = runs({"augmented": 50, "td3": 10, "vanilla_data": 30, "augmented_25": 40}, tasks=("ant", "hopper"))
    lines = tables.found_table(frame[(frame["task"] == "hopper") | (frame["arm"] == "td3")]).splitlines()
    assert lines[:5] == [
        "| mean score, 0 to 100K | Hopper | Ant |",
        "|---|---|---|",
        "| TD3 from scratch | 10 [8.8, 11] (3) | 10 [8.8, 11] (3) |",
        "| augmented 50 % | 50 [48, 52] (3) | – |",
        "",
    ]
    more = [line for line in lines if line.startswith(("| Hopper", "| Ant"))]
    assert [line.split(" | ")[1] for line in more] == [
        "TD3 from scratch",
        "vanilla, data kept",
        "augmented 50 %",
        "TD3 from scratch",
    ]
    assert more[0] == "| Hopper | TD3 from scratch | 10 [8.8, 11] | 10 [8.8, 11] | 10 [8.8, 11] | – | – | 3 |"
    assert more[2].endswith("| augmented 50 % | 50 [48, 52] | 50 [48, 52] | 50 [48, 52] | 50 [48, 52] | 0.0 [0.0, 0.0] | 3 |")
    assert tables.found_table(records.load_runs(tmp_path)) == "No runs are recorded yet."


def test_the_table_of_results_says_that_one_failure_on_ant_decides_the_mean():
    at_limit = -63.7  # the score of a return of -3,000
    for scores, expected in ((at_limit, (3, 3)), (at_limit + 1, (0, 3))):
        frame = runs({"augmented": scores}, tasks=("ant",), spread=0.0)
        assert tables.at_limits(claims.main_runs(frame), "augmented") == expected
        told = "On Ant 3 of 3 augmented agents end with every joint at its limit" in tables.found_table(frame)
        assert told == (expected[0] == 3)


def test_the_main_table_has_at_most_six_rows():
    assert len(tables.MAIN) <= 6
    assert [*tables.MAIN] == tables.in_order(tables.MAIN)


def test_our_baselines_stand_beside_published_ones():
    frame = tables.beside_published(claims.main_runs(runs({"td3": 10.0, "sac": 90.0}, tasks=("hopper", "ant"))))
    found = dict(zip(frame.index, frame.to_numpy().tolist(), strict=True))
    assert len(found) == 12
    assert found["Hopper", "TD3", "100,000"] == ["21", "12", "10 [8.8, 11]", 3, "−11"]
    assert found["Ant", "SAC", "100,000"] == ["29", "–", "90 [89, 91]", 3, "+61"]
    assert found["Hopper", "SAC", "1,000,000"] == ["109", "–", "not yet recorded", 0, "–"]
    assert {row[2] for (task, *_), row in found.items() if task == "Walker2d"} == {"not yet recorded"}


README = "# Title\n\n<!-- answer -->\n<!-- /answer -->\n"
README += "<!-- found -->\nold\n<!-- /found -->\n\nwords\n<!-- claims --><!-- /claims -->\nend\n"


def test_text_between_the_readmes_markers_is_generated_and_edits_are_lost(tmp_path):
    path, frame = tmp_path / "README.md", runs({"augmented": 50, "td3": 10})
    path.write_text(README)
    text = tables.written(path, frame)
    assert text.startswith(f"# Title\n\n<!-- answer -->\n{answers.NOTHING}\n<!-- /answer -->\n<!-- found -->\n| mean score")
    assert f"words\n<!-- claims -->\n{claims.claims_table(frame)}\n<!-- /claims -->\nend\n" in text
    for old in (text, text.replace("+40", "+60")):
        path.write_text(old)
        assert tables.written(path, frame) == text


def test_a_line_of_an_answer_never_begins_with_a_per_cent_sign(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(README)
    monkeypatch.setitem(answers.ANSWERS, "README", lambda frame: 30 * "at 50 % ")
    text = tables.written(path, runs({"td3": 10})).partition("<!-- /answer -->")[0]
    assert text.count("50 %") == 30
    assert "\n%" not in text


def test_an_answer_without_its_stored_tables_says_so(tmp_path, monkeypatch):
    """The first `make figures` of a new chapter writes its answer before the chapter runs, and again afterwards."""
    path = tmp_path / "02_world_model.py"
    path.write_text("# <!-- answer -->\n# <!-- /answer -->\n")
    assert "# Only coarsely: " in tables.written(path, runs({"td3": 10}))
    monkeypatch.setattr(stored, "DRAWN", tmp_path)
    assert tables.written(path, runs({"td3": 10})) == "# <!-- answer -->\n# Its numbers are not yet drawn.\n# <!-- /answer -->\n"


def test_an_answer_is_a_comment_in_a_chapters_source_and_nothing_else_changes(tmp_path):
    path = tmp_path / "05_online_finetuning.py"
    path.write_text("# %% [markdown]\n# # 05\n#\n# <!-- answer -->\n# old\n# <!-- /answer -->\n#\n# more\n")
    frame = runs({"augmented": 50, "noise": 50, "vanilla": 40, "td3": 10, "td3_data": 30}, seeds=5)
    lines = tables.written(path, frame).splitlines()
    assert lines[:4] + lines[-3:] == ["# %% [markdown]", "# # 05", "#", "# <!-- answer -->", "# <!-- /answer -->", "#", "# more"]
    assert lines[4].startswith("# On Hopper (5 seeds), the mean score over the first 100,000 interactions is 10 [")
    assert all(line.startswith("# ") and len(line) <= 130 for line in lines[4:-3])


@pytest.mark.parametrize("text", ["", README.replace("<!-- /found -->", ""), README + README])
def test_a_readme_without_its_markers_is_refused(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(ValueError, match="needs one <!-- "):
        tables.written(path, runs({"td3": 10}))


@pytest.mark.slow
def test_the_examples_in_the_readme_run(monkeypatch, capsys, tmp_path):
    """We run all code blocks as they stand, but with 100 updates in place of 2,000 and an evaluation every 50."""
    example = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    tiny, learner = studies.PROFILES["smoke"], training.learner
    monkeypatch.setattr(training, "learner", lambda arm, *rest, **options: learner(tiny.apply(arm), *rest, **options))
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(
        r"(50|100) updates: score -?\d+\.\d\n" * 2 + r"torch.Size\(\[1, 10000, 10, 11\]\)\n50\n", capsys.readouterr().out
    )
    assert checkpoint.load(tmp_path / "build" / "mine")[1]["gradient_steps"] == 100
