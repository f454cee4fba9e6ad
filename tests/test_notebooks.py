"""The chapters themselves: they are complete, their reading copies are theirs, and these still give what they show."""

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
# Figures that are drawn from the records alone. What the others draw is trained or measured, and each processor gives its own.
OF_THE_RECORDS = (
    "00_",
    "04_pretraining.",
    "04_overestimation.",
    "05_",
    "07_rates.",
    "07_carried.",
    "08_trusted.",
    "90_precision.",
)


def test_every_chapter_is_there_and_has_an_answer():
    assert ["README", *(source.stem for source in NOTEBOOKS)] == [*answers.ANSWERS]


@NAMES
def test_parameters_are_profile_and_retrain(source):
    """Literals in one cell: Papermill does not compute again what is derived from a parameter."""
    tagged = [cell for cell in chapters.convert(source).cells if "parameters" in cell.metadata.get("tags", [])]
    statements = [statement for cell in tagged for statement in ast.parse(cell.source).body]
    assert {line.targets[0].id: ast.literal_eval(line.value) for line in statements} == {"profile": "paper", "retrain": False}
    assert len(tagged) == 1


@NAMES
def test_the_reading_copy_is_its_sources(source):
    copied, written = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells, chapters.convert(source).cells
    for number, cells in enumerate(zip_longest(copied, written), start=1):
        found, expected = ([cell and cell[part] for part in ("id", "cell_type", "source", "metadata")] for cell in cells)
        assert found == expected, f"The reading copy is not its source's from cell {number} on: run `make notebooks`."


def test_a_save_in_jupyterlab_writes_that_file_alone(tmp_path):
    """A pairing in pyproject.toml writes source and copy, and cannot open a copy that is newer than its source."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    pair = [tmp_path / shutil.copy(NOTEBOOKS[0].with_suffix(suffix), tmp_path) for suffix in (".py", ".ipynb")]
    os.utime(pair[0], (0, 0))
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)(root_dir=str(tmp_path))
    manager.notary = NotebookNotary(store_factory=MemorySignatureStore)  # not the user's own database
    for saved, other in (pair[::-1], pair):
        before, name = other.read_bytes(), saved.name
        manager.save(manager.get(name, type="notebook"), name)
        assert other.read_bytes() == before


@NAMES
def test_the_reading_copy_checks_results(source):
    """nbval compares the cells that are tagged so, and passes where there is none or where it stored nothing."""
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked, f"{source.stem} has no cell tagged nbval-check-output."
    for cell in checked:
        assert cell.outputs, f"{source.stem} stores no output of the checked cell {cell.source!r}."


@NAMES
def test_the_reading_copy_shows_no_warning(source):
    """A warning names the file that it comes from, which is another one on each machine and in each run."""
    cells = nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    assert not [output.text for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]


@pytest.mark.slow
@NAMES
def test_the_reading_copy_still_gives_what_it_shows(source, tmp_path):
    """Runs every cell of the reading copy; compares the results of the tagged ones (nbval, lax), and the figures' numbers."""
    figures = tmp_path / "figures"
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(source.parent), str(source.with_suffix(".ipynb"))]
    variables = os.environ | chapters.environment() | {"MBAUG_FIGURES": str(figures)}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
    committed = (ROOT / "figures").glob(f"{source.stem[:2]}_*")
    assert {path.name for path in figures.glob("*")} == {path.name for path in committed}
    for path in figures.glob("*"):
        if path.name.startswith(OF_THE_RECORDS) and path.suffix in (".csv", ".json"):
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), f"{path.name} is old: run `make figures`"


@pytest.mark.slow
def test_a_chapter_runs_with_papermill_in_the_smoke_profile(tmp_path):
    """One chapter, training included; `make smoke` runs all of them."""
    chapters.execute(chapters.find("02"), tmp_path, {"profile": "smoke", "retrain": True})
    assert (tmp_path / "02_world_model.ipynb").exists()
