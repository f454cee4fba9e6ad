"""The chapters: all are there, their reading copies match the sources, and executing the copies gives the results they show."""

import ast
import os
import subprocess
import sys
import tomllib
from itertools import zip_longest

import jupytext
import nbformat
import pytest
from conftest import ROOT

from mbaug.reporting import answers, chapters

NOTEBOOKS = chapters.find()
NAMES = pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda source: source.stem)


def test_every_chapter_is_there_and_has_an_answer():
    assert ["README", *(source.stem for source in NOTEBOOKS)] == [*answers.ANSWERS]


@NAMES
def test_parameters_are_profile_and_retrain(source):
    """They are literals in one cell: Papermill does not recompute what is derived from a parameter."""
    tagged = [cell for cell in chapters.convert(source).cells if "parameters" in cell.metadata.get("tags", [])]
    statements = [statement for cell in tagged for statement in ast.parse(cell.source).body]
    assert {line.targets[0].id: ast.literal_eval(line.value) for line in statements} == {"profile": "paper", "retrain": False}
    assert len(tagged) == 1


@NAMES
def test_the_reading_copy_matches_its_source(source):
    copied, written = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells, chapters.convert(source).cells
    for number, cells in enumerate(zip_longest(copied, written), start=1):
        found, expected = ([cell and cell[part] for part in ("id", "cell_type", "source", "metadata")] for cell in cells)
        assert found == expected, f"The reading copy differs from its source from cell {number} on: run `make notebooks`."


def test_no_notebook_is_paired():
    """Saving in JupyterLab would write both source and copy, and refuse to open a copy newer than its source."""
    paired = [tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["jupytext"]]
    paired += [jupytext.read(source).metadata.get("jupytext", {}) for source in NOTEBOOKS]
    assert not any("formats" in each for each in paired)
    assert not [path for folder in (ROOT, ROOT / "notebooks") for path in folder.glob("*jupytext*")]


@NAMES
def test_the_reading_copy_has_results_to_check(source):
    """nbval compares only tagged cells, and passes if no cell is tagged or if a tagged one has no stored output."""
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked, f"{source.stem} has no cell tagged nbval-check-output."
    for cell in checked:
        assert cell.outputs, f"{source.stem} stores no output of the checked cell {cell.source!r}."


@NAMES
def test_the_reading_copy_shows_no_warning(source):
    """A warning names the file that raised it, by a path that differs between machines and runs."""
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    assert not [output.text for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]


@pytest.mark.slow
@NAMES
def test_executing_the_reading_copy_gives_the_results_that_it_shows(source, tmp_path):
    """Compares the outputs of tagged cells (nbval, lax) and the bytes of all figures, the same on every processor."""
    figures = tmp_path / "figures"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "nbval.plugin", "--nbval-lax", "--nbval-current-env"]
    command += ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(source.parent), str(source.with_suffix(".ipynb"))]
    variables = {"MBAUG_FIGURES": str(figures), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plug-ins take seconds to import
    variables = os.environ | chapters.environment() | variables
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    committed = (ROOT / "figures").glob(f"{source.stem[:2]}_*")
    assert {path.name for path in figures.glob("*")} == {path.name for path in committed}
    for path in figures.glob("*"):
        assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), f"{path.name} is stale: run `make figures`"


def is_set(node: ast.AST) -> bool:
    """Returns whether an expression is a set by its form, so that its order differs from process to process."""
    if isinstance(node, ast.BinOp):
        return is_set(node.left) or is_set(node.right)
    called = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("set", "frozenset")
    return called or isinstance(node, (ast.Set, ast.SetComp))


@pytest.mark.parametrize("folder", ["mbaug", "notebooks", "benchmarks"])
def test_no_loop_goes_over_a_set(folder):
    """It would draw the parts of a figure in another order at each run, and so write other bytes."""
    sources = [*(ROOT / folder).rglob("*.py")]
    loops = [
        (path.name, node.iter) for path in sources for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "iter")
    ]
    assert loops
    assert not [f"{name}, line {over.lineno}" for name, over in loops if is_set(over)]


@pytest.mark.slow
def test_a_chapter_runs_with_papermill_in_the_smoke_profile(tmp_path):
    """One chapter, including its training; `make smoke` runs all of them."""
    chapters.execute(chapters.find("02"), tmp_path, {"profile": "smoke", "retrain": True})
    assert (tmp_path / "02_world_model.ipynb").exists()
