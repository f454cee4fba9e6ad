"""Runs the notebooks headless: all of them in one batch, or as executed reading copies beside their sources.

People edit `notebooks/NN_name.py` (percent format), and everything else is made from it. Jupytext
turns a source into a notebook. Papermill sets its parameters, executes it, and writes it into
`build/`, never into git. Each notebook has its own kernel with one thread, and WORKERS of them run
at a time.
"""

import hashlib
import json
import os
import queue
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from jupyter_core.utils import ensure_event_loop
from nbformat import NotebookNode
from traitlets.config import Config

from mbaug import checks, files

WORKERS = 2  # notebooks executed at a time; each takes one core
LONGEST = ("90", "07", "11", "08", "00", "02")  # these begin first, so that none runs alone at the end
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}


def run(profile: str = "paper", only: str | None = None) -> None:
    """Executes the notebooks with a profile of `studies`, writes them into `build/<profile>`, and prints their progress.

    The profile "paper" draws from the recorded runs, and any other one trains. `only` is the name or number of one notebook.

    Raises:
        ValueError: The notebook is unknown. Also what `execute` raises.
    """
    parameters = {"profile": profile, "retrain": profile != "paper"}
    with variables({"MBAUG_FIGURES": str(committed_figures())} if profile == "paper" else {}):
        execute(find(only), files.repository() / "build" / profile, parameters)


def committed_figures() -> Path:
    """Returns the folder that only a batch with the paper profile draws into: figures/, or MBAUG_FIGURES if that is set."""
    return Path(os.environ.get("MBAUG_FIGURES") or files.repository() / "figures")


def reading_copies(only: str | None = None) -> None:
    """Executes the sources as they stand and writes each result beside its source. If one fails, its old copy stays."""
    execute(find(only), files.repository() / "build" / "reading", {}, copied=True)


def find(only: str | None = None) -> list[Path]:
    """Returns the source of the notebook `only`, which is a name or a number, or all sources in reading order.

    Raises:
        ValueError: There is no such notebook; the message names the one with the most similar name.
    """
    found = {source.stem: source for source in sorted((files.repository() / "notebooks").glob("[0-9][0-9]_*.py"))}
    if only is None:
        return list(found.values())
    numbers = {number: name for name in found for number in (name[:2], str(int(name[:2])))}
    return [found[checks.choose("notebook", numbers.get(only, Path(only).stem), found)]]


def convert(source: Path) -> NotebookNode:
    """Returns a source as a notebook without outputs. Tags are its only metadata, and each cell's id is a hash of its text."""
    notebook, seen = _without_metadata(jupytext.read(source)), Counter()
    for cell in notebook.cells:
        seen[cell.source] += 1
        cell.id = hashlib.sha256(f"{seen[cell.source]} {cell.source}".encode()).hexdigest()[:8]
    return notebook


def _without_metadata(notebook: NotebookNode) -> NotebookNode:
    """Returns the notebook without times and paths: of its metadata, only the language and the cells' tags remain."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
    return notebook


def execute(sources: Sequence[Path], output: Path, parameters: Mapping[str, Any], copied: bool = False) -> None:
    """Executes notebooks, each with its own kernel, and prints their progress. If `copied`, the results become reading copies.

    Raises:
        files.CannotWrite: The output folder cannot be written.
        RuntimeError: A notebook failed, or its reading copy cannot be written. All others were executed.
    """
    files.check_writable(output, size=1_000_000)  # about that of a notebook with its figures
    print(f"notebooks: {len(sources)}, {WORKERS} at a time, into {output}", flush=True)
    started = time.monotonic()
    short = None if len(tempfile.gettempdir()) < 60 else "/tmp"  # a socket's path has at most about 100 characters
    slots, results = threading.Semaphore(WORKERS), queue.SimpleQueue()

    def work(source: Path) -> None:
        problem = "its thread failed"
        try:
            with slots:
                problem = _execute(source, Path(sockets), output, parameters, copied)
                ensure_event_loop().close()  # nbclient leaves its thread's loop open
        finally:
            results.put((source.stem, problem))  # always, because the batch waits for it

    folder = tempfile.TemporaryDirectory(prefix="mbaug-", dir=short, ignore_cleanup_errors=True)
    with variables(environment()), folder as sockets:
        places = {number: place for place, number in enumerate(LONGEST)}
        for source in sorted(sources, key=lambda source: places.get(source.stem[:2], len(places))):
            threading.Thread(target=work, args=[source], daemon=True).start()  # daemons: Ctrl-C does not wait for them
        problems = sorted(results.get() for _ in sources)
    print(f"all: {time.monotonic() - started:.0f} s", flush=True)
    if failed := [f"{name}: {problem}" for name, problem in problems if problem]:
        raise RuntimeError("\n".join(failed))


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, which a kernel inherits, and puts back what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment() -> dict[str, str]:
    """Returns the environment variables of every notebook: one thread, this interpreter, nothing written outside the clone."""
    build = files.repository() / "build"
    # Exceptions of cells are in the notebook. All that a kernel logs as an error is the interrupt that ends it.
    options = ["-f", "{connection_file}", "--log-level=CRITICAL"]
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", *options]
    files.write_atomically(build / "jupyter/kernels/python3/kernel.json", json.dumps({**KERNEL, "argv": command}).encode())
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "IPYTHONDIR": str(build / "jupyter/ipython"),
        "JUPYTER_PATH": str(build / "jupyter"),  # searched first, since another kernel.json may name another Python
        "JUPYTER_RUNTIME_DIR": str(build / "jupyter/runtime"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in JupyterLab: figures are outputs, and need no screen
        "MPLCONFIGDIR": str(build / "matplotlib"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # silences the debugger's warning about frozen modules
    }


def _execute(source: Path, sockets: Path, output: Path, parameters: Mapping[str, Any], copied: bool) -> str:
    """Executes one notebook and returns what went wrong, or "". It raises nothing, so that the other notebooks go on.

    Its kernel listens on sockets in a private folder. TCP ports, the default, are chosen and released before the kernel binds
    them, so another kernel might take one in between.
    """
    executed, started, problem = output / f"{source.stem}.ipynb", time.monotonic(), ""

    def say(text: str) -> None:  # in one write, so that chapters that run side by side do not mix their lines
        print(f"{source.stem}: {text} in {time.monotonic() - started:.0f} s\n", end="", flush=True)

    def report(cell: NotebookNode, cell_index: int) -> None:
        if cell_index % 10 == 9:
            say(f"{cell_index} of {len(notebook.cells)} cells")

    kernel = {"transport": "ipc", "connection_file": str(sockets / f"{source.stem[:2]}.json")}
    try:
        notebook = convert(source)
        result = papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            progress_bar=False,
            on_cell_start=report,
            coalesce_streams=True,  # where a stream is split into pieces is random
            resources={"metadata": {"path": str(source.parent)}},
            config=Config(KernelManager=kernel),
        )
        if copied:
            files.write_atomically(source.with_suffix(".ipynb"), (nbformat.writes(_without_metadata(result)) + "\n").encode())
    except papermill.PapermillExecutionError as error:
        lines = error.source.splitlines()
        if len(lines) > 8:
            lines = ["...", *lines[-8:]]
        shown = textwrap.indent("\n".join(lines), "    ")
        problem = f"In [{error.exec_count}] raised {error.ename}: {error.evalue}\n{shown}\n    (the traceback is in {executed})"
    except Exception as error:  # e.g. the kernel died or the disk is full
        problem = f"{type(error).__name__}: {error}"
    say("failed" if problem else "done")
    return problem
