"""Makes copies of the chapters for Colab: the notebooks without outputs, with a first cell that installs the project."""

from pathlib import Path

import nbformat

SETUP = """\
# Set-up on Colab: clones the repository and installs it, using Colab's own torch. Takes a minute or two.
import os, subprocess, sys

if not os.path.exists("/content/mbaug"):
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "{repository}", "/content/mbaug"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", "/content/mbaug"], check=True)
sys.path.insert(0, "/content/mbaug")
os.chdir("/content/mbaug/notebooks")"""


def copy(chapter: nbformat.NotebookNode, repository: str) -> nbformat.NotebookNode:
    """Returns a chapter without outputs, with a first cell that installs the project from `repository`."""
    first = nbformat.v4.new_code_cell(SETUP.format(repository=repository), id="colab")
    cells = [cell | {"outputs": [], "execution_count": None} if cell.cell_type == "code" else cell for cell in chapter.cells]
    return nbformat.from_dict(chapter | {"cells": [first, *cells]})


def write(chapters: Path, folder: Path, repository: str) -> None:
    """Writes a copy of each chapter into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in chapters.glob("*.ipynb"):
        nbformat.write(copy(nbformat.read(path, as_version=4), repository), folder / path.name)
