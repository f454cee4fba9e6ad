"""The chapters: all are there, their reading copies match the sources, and executing the copies gives the results they show."""

import ast
import os
import shutil
import subprocess
import sys
from itertools import zip_longest

import nbformat
import pytest
from conftest import ROOT
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class
from nbformat.sign import MemorySignatureStore, NotebookNotary

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


def test_saving_in_jupyterlab_writes_only_that_file(tmp_path):
    """Pairing in pyproject.toml would write both source and copy, and refuse to open a copy newer than its source."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    pair = [tmp_path / shutil.copy(NOTEBOOKS[0].with_suffix(suffix), tmp_path) for suffix in (".py", ".ipynb")]
    os.utime(pair[0], (0, 0))
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(tmp_path))
    manager.notary = NotebookNotary(store_factory=MemorySignatureStore)  # spares the user's own database
    for saved, other in (pair[::-1], pair):
        before, name = other.read_bytes(), saved.name
        manager.save(manager.get(name, type="notebook"), name)
        assert other.read_bytes() == before


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


@pytest.mark.slow
def test_a_chapter_runs_with_papermill_in_the_smoke_profile(tmp_path):
    """One chapter, including its training; `make smoke` runs all of them."""
    chapters.execute(chapters.find("02"), tmp_path, {"profile": "smoke", "retrain": True})
    assert (tmp_path / "02_world_model.ipynb").exists()
