"""The notebooks, run headless: all of them in one batch, or as the executed reading copies beside their sources.

``notebooks/NN_noun.py`` (percent format) is what people edit; everything else is made from it, in one direction.
Jupytext turns a source into a notebook, Papermill sets its parameters and executes it, and each notebook is one
process with one thread, as many at a time as asked. What Papermill writes goes to ``build/``, never into git.
"""

import ast
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import queue
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.managers import BaseProxy
from pathlib import Path
from typing import Any, NamedTuple

import jupytext
import nbformat
from nbformat import NotebookNode

from mbaug import files, settings

ROOT = Path(__file__).resolve().parents[1]  # as recording.repository(), without torch in every worker process
CONTENTS = (
    "00_overview",
    "01_small_datasets",
    "02_world_model",
    "03_augmentation",
    "04_offline_pretraining",
    "05_online_finetuning",
    "90_engine",
)
LONGEST = "02_world_model"  # begun first, so that it does not run alone at the end
METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    "language_info": {"name": "python"},
}
STATUS_SECONDS = 10  # between two lines of progress where the terminal cannot rewrite one


class NotebookFailed(RuntimeError):
    """At least one notebook did not run to its end; the message holds each one's failing cell and error."""


class Chapter(NamedTuple):
    """One notebook to execute: its source, the executed copy, and the parameters that replace the source's."""

    source: Path
    executed: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        return self.source.stem


class Outcome(NamedTuple):
    """What came of one notebook: its cells, how long they took, and what went wrong (empty if nothing did)."""

    name: str
    cells: int
    wall_seconds: float
    problem: str


def run(
    profile: str = "paper",
    retrain: bool | None = None,
    only: str | Iterable[str] | None = None,
    output: Path | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    folder: Path | str | None = None,
    workers: int = 2,
) -> None:
    """Executes the notebooks with a profile, and prints progress and a table of times.

    Args:
        profile: The profile that sets all budgets; "paper" draws from the recorded runs.
        retrain: Whether the notebooks train instead of reading records; None means in every profile but "paper".
        only: Names of notebooks, or the numbers they begin with; None means all of them.
        output: The folder for the executed notebooks; None means ``build/<profile>``.
        parameters: Further Papermill parameters, by name; each notebook must have them.
        folder: The folder of the sources; None means the repository's ``notebooks``.
        workers: Notebooks executed at a time; each takes one core.

    Raises:
        ValueError: A profile, a notebook or a parameter is unknown, or a parameter has another type than its default.
        FileNotFoundError: The folder does not hold the notebooks of the table of contents.
        OSError: The output folder cannot be written.
        NotebookFailed: A cell of a notebook raised an error; all other notebooks were executed first.
    """
    settings.profile(profile)
    retrain = profile != "paper" if retrain is None else retrain
    output = Path(output or ROOT / "build" / profile)
    given = {"profile": profile, "retrain": retrain, **(parameters or {})}
    chapters = [Chapter(source, output / f"{source.stem}.ipynb", given) for source in find(only, folder)]
    for chapter in chapters:
        check_parameters(chapter.source, given)
    _refuse_failures(execute(chapters, workers))


def reading_copies(only: str | Iterable[str] | None = None, folder: Path | str | None = None, workers: int = 2) -> None:
    """Executes the sources as they stand and writes each result beside its source.

    Raises:
        NotebookFailed: A cell of a notebook raised an error; that one's reading copy stays as it was.
    """
    output = ROOT / "build" / "reading"
    chapters = [Chapter(source, output / f"{source.stem}.ipynb", {}) for source in find(only, folder)]
    outcomes = execute(chapters, workers)
    for chapter, outcome in zip(chapters, outcomes, strict=True):
        if not outcome.problem:
            files.write_atomically(reading_copy(chapter.source), _committed_text(chapter.executed).encode())
    _refuse_failures(outcomes)


def _refuse_failures(outcomes: Sequence[Outcome]) -> None:
    if problems := [f"{outcome.name}: {outcome.problem}" for outcome in outcomes if outcome.problem]:
        raise NotebookFailed("\n".join(problems))


def reading_copy(source: Path) -> Path:
    """Returns where the reading copy of a source lies."""
    return source.with_suffix(".ipynb")


def stale(source: Path) -> str | None:
    """Returns a sentence with the first cell of a reading copy that is not its source's; None if all are."""
    if not reading_copy(source).exists():
        return f"{source.stem} has no reading copy: make one with `make notebooks`."
    copied, written = nbformat.read(reading_copy(source), as_version=4).cells, convert(source).cells
    for number, cells in enumerate(itertools.zip_longest(copied, written), start=1):
        if None in cells or any(cells[0][part] != cells[1][part] for part in ("id", "cell_type", "source", "metadata")):
            return f"The reading copy of {source.stem} is not its source's from cell {number} on: run `make notebooks`."
    return None


def find(only: str | Iterable[str] | None = None, folder: Path | str | None = None) -> list[Path]:
    """Returns the sources of the notebooks, in reading order.

    Args:
        only: Names, or the numbers that names begin with; None means the whole table of contents, which must then
            be what the folder holds: a notebook that is lost, or forgotten in the table, would pass unseen.
        folder: Where the sources are; None means the repository's ``notebooks``.

    Raises:
        ValueError: There is no notebook of a name; the sentence names the nearest.
        FileNotFoundError: The folder does not hold the notebooks of the table of contents.
    """
    folder = Path(folder or ROOT / "notebooks").resolve()
    found = {source.stem: source for source in sorted(folder.glob("[0-9][0-9]_*.py"))}
    if only is None:
        if odd := sorted(set(CONTENTS) ^ set(found)):
            raise FileNotFoundError(
                f"{folder} holds {len(found)} notebooks and the table of contents {len(CONTENTS)}; "
                f"these are in one of the two alone: {', '.join(odd)}."
            )
        return list(found.values())
    wanted = [only] if isinstance(only, str) else list(only)
    numbers = {name[:2]: name for name in found}
    names = {settings.choose("notebook", numbers.get(Path(name).stem, Path(name).stem), found) for name in wanted}
    return [source for name, source in found.items() if name in names]


def parameters_of(source: Path) -> dict[str, Any]:
    """Returns the parameters of a notebook with their defaults: the literals assigned in the cell tagged so.

    Raises:
        ValueError: There is not exactly one such cell, or it holds something else than assignments of literals.
    """
    cells = [cell for cell in convert(source).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f'{source.stem} has {len(cells)} cells tagged "parameters"; exactly one is needed.')
    try:
        statements = ast.parse(cells[0].source).body
        return {node.targets[0].id: ast.literal_eval(node.value) for node in statements}
    except (AttributeError, SyntaxError, ValueError):
        # Papermill replaces values after this cell: what is computed in it would keep the old ones.
        raise ValueError(f"The parameters cell of {source.stem} may only assign literals to names.") from None


def check_parameters(source: Path, given: Mapping[str, Any]) -> None:
    """Refuses parameters that a notebook does not have, or of another type than their defaults.

    Raises:
        ValueError: A name is unknown or a type is wrong; the sentence has what is given and what is allowed.
    """
    defaults = parameters_of(source)
    for name, value in given.items():
        settings.choose(f"parameter of {source.stem}", name, defaults)
        expected = type(defaults[name])
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ValueError(
                f"The parameter {name} of {source.stem} is of type {expected.__name__}; "
                f"{value!r} is of type {type(value).__name__}."
            )


# ------------------------------------------------------------------------------------------ from source to notebook


def convert(source: Path) -> NotebookNode:
    """Returns a source as a notebook without outputs: metadata is tags alone, and a cell's id is that of its text."""
    notebook = jupytext.read(source)
    notebook.metadata = NotebookNode(METADATA)
    seen = Counter()
    for cell in notebook.cells:
        seen[cell.source] += 1
        cell.id = hashlib.sha256(f"{seen[cell.source]} {cell.source}".encode()).hexdigest()[:8]
        cell.metadata = _tags_alone(cell)
    return notebook


def _tags_alone(cell: NotebookNode) -> NotebookNode:
    tags = cell.metadata.get("tags")
    return NotebookNode(tags=tags) if tags else NotebookNode()


def _committed_text(executed: Path) -> str:
    """Returns an executed notebook free of times and paths: the same source and results give the same bytes."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = _tags_alone(cell)
    return nbformat.writes(notebook) + "\n"


# -------------------------------------------------------------------------------------------------------- execution


def execute(chapters: Sequence[Chapter], workers: int) -> list[Outcome]:
    """Executes notebooks, each in its own process, with progress and a table of times; returns what came of each.

    Raises:
        OSError: An output folder cannot be written.
    """
    for folder in {chapter.executed.parent for chapter in chapters}:
        _check_writable(folder)
    variables, started = environment(), time.monotonic()
    print(f"{len(chapters)} notebooks, {workers} at a time, into {chapters[0].executed.parent}", flush=True)
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads and locks of whoever calls
    with context.Manager() as manager, ProcessPoolExecutor(workers, context) as pool:
        progress = manager.Queue()
        order = sorted(chapters, key=lambda chapter: chapter.name != LONGEST)
        futures = {chapter.name: pool.submit(_execute, chapter, variables, progress) for chapter in order}
        _watch(progress, futures, started)
        outcomes = [_outcome(chapter.name, futures[chapter.name]) for chapter in chapters]
    _print_table(outcomes, time.monotonic() - started)
    return outcomes


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1_000_000))  # about a notebook with its figures
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OSError(f"The output folder {folder} cannot be written: {reason}; choose another one.") from None


def environment() -> dict[str, str]:
    """Returns what every notebook runs with: one thread, this interpreter, nothing written outside the clone."""
    build = ROOT / "build"
    kernel = build / "jupyter/kernels" / METADATA["kernelspec"]["name"] / "kernel.json"
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    files.write_atomically(kernel, json.dumps({**METADATA["kernelspec"], "argv": command}).encode())
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "IPYTHONDIR": str(build / "jupyter/ipython"),
        "JUPYTER_PATH": str(build / "jupyter"),  # searched first: a kernel found elsewhere may be another Python's
        "JUPYTER_RUNTIME_DIR": str(build / "jupyter/runtime"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in JupyterLab: no screen, figures are outputs
        "MPLCONFIGDIR": str(build / "matplotlib"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's warning about frozen modules
    }


def _execute(chapter: Chapter, variables: dict[str, str], progress: BaseProxy) -> Outcome:
    """Executes one notebook in a worker process; what goes wrong is part of the outcome, not an error."""
    import papermill  # takes a second, which only the workers need to spend

    os.environ.update(variables)
    notebook, started = convert(chapter.source), time.monotonic()
    cells = len(notebook.cells) + bool(chapter.parameters)  # Papermill adds one that sets them

    def report(cell: NotebookNode, cell_index: int) -> None:
        progress.put((chapter.name, f"cell {cell_index + 1}/{cells}"))

    try:
        papermill.execute_notebook(
            notebook,
            chapter.executed,
            chapter.parameters,
            progress_bar=False,
            on_cell_start=report,
            coalesce_streams=True,  # how a stream is cut into pieces is chance
            resources={"metadata": {"path": str(chapter.source.parent)}},
        )
        problem = ""
    except papermill.PapermillExecutionError as error:
        problem = _explain(error.exec_count, f"{error.ename}: {error.evalue}", error.source, chapter.executed)
    except Exception as error:  # the kernel died, the disk is full: still one notebook among several
        problem = f"{type(error).__name__}: {error}"
    (chapter.source.parent / "MUJOCO_LOG.TXT").unlink(missing_ok=True)  # MuJoCo's warnings, in the working directory
    return Outcome(chapter.name, len(notebook.cells), time.monotonic() - started, problem)


def _explain(number: int | None, error: str, source: str, executed: Path) -> str:
    """Returns what failed in a few lines: the error, the cell's last lines, and where the whole traceback is."""
    lines = source.splitlines()
    shown = textwrap.indent("\n".join(["...", *lines[-8:]] if len(lines) > 8 else lines), "    ")
    return f"In [{number}] raised {error}\n{shown}\n    (the traceback is in {executed})"


def _outcome(name: str, future: Future) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:  # of all notebooks that ran at that moment, one is to blame: which, nobody knows
        return Outcome(name, 0, math.nan, "its process, or one beside it, was killed; is there enough memory?")


# ----------------------------------------------------------------------------------------------------- the terminal


def _watch(progress: BaseProxy, futures: Mapping[str, Future], started: float) -> None:
    """Prints which cell each running notebook is at, until all are done: in one line, or now and then in a new one."""
    one_line = sys.stdout.isatty()
    running, shown_at = {}, started
    waiting = dict(futures)
    while waiting:
        with contextlib.suppress(queue.Empty):
            name, cell = progress.get(timeout=0.2)
            running[name] = cell
        for name in [name for name, future in waiting.items() if future.done()]:
            outcome = _outcome(name, waiting.pop(name))
            running.pop(name, None)
            _say(f"{name}: {'failed' if outcome.problem else 'done'} in {_clock(outcome.wall_seconds)}\n", one_line)
        now = time.monotonic()
        if running and now - shown_at > (0.2 if one_line else STATUS_SECONDS):
            cells = "  ".join(f"{name} {cell}" for name, cell in sorted(running.items()))
            _say(f"{_clock(now - started)}  {cells}" + ("" if one_line else "\n"), one_line)
            shown_at = now


def _say(text: str, rewrite: bool) -> None:
    print(f"\r\x1b[K{text}" if rewrite else text, end="", flush=True)


def _clock(wall_seconds: float) -> str:
    return "-:--" if math.isnan(wall_seconds) else f"{int(wall_seconds) // 60}:{int(wall_seconds) % 60:02d}"


def _print_table(outcomes: Sequence[Outcome], wall_seconds: float) -> None:
    width = max(len("notebook"), *(len(outcome.name) for outcome in outcomes))
    print(f"\n{'notebook':{width}}  cells  minutes")
    for name, cells, seconds, problem in outcomes:
        print(f"{name:{width}}  {cells:5d}  {_clock(seconds):>7}{'  failed' if problem else ''}")
    print(f"{'all':{width}}  {sum(o.cells for o in outcomes):5d}  {_clock(wall_seconds):>7}", flush=True)
