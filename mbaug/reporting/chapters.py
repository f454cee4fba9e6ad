"""The notebooks, run headless: all of them in one batch, or as the executed reading copies beside their sources.

`notebooks/NN_noun.py` (percent format) is what people edit; everything else is made from it, in one direction. Jupytext turns a
source into a notebook, Papermill sets its parameters and executes it. Each notebook is one process with one thread, as many at a
time as asked. What Papermill writes goes to `build/`, never into git.
"""

import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode
from traitlets.config import Config

from mbaug import checks, ending, files

CONTENTS = (
    "00_overview",
    "01_small_datasets",
    "02_world_model",
    "03_augmentation",
    "04_offline_pretraining",
    "05_online_finetuning",
    "06_multi_step",
    "07_controls",
    "08_reliability",
    "11_other_methods",
    "90_engine",
)
LONGEST = "02_world_model"  # begun first, so that it does not run alone at the end
PROFILES = ("smoke", "quick", "paper")
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}


class NotebookFailed(RuntimeError):
    """At least one notebook did not run to its end; the message holds each one's failing cell and error."""


def run(
    profile: str = "paper",
    only: str | Iterable[str] | None = None,
    output: Path | str | None = None,
    folder: Path | str | None = None,
    workers: int = 2,
) -> None:
    """Executes the notebooks with a profile, and prints how far they are.

    Args:
        profile: What sets all budgets; "paper" draws from the recorded runs, any other trains.
        only: Names of notebooks, or the numbers they begin with; None means all of them.
        output, folder: Of the executed notebooks and of the sources; None means `build/<profile>` and `notebooks`.
        workers: Notebooks executed at a time; each takes one core.

    Raises:
        ValueError: A profile or a notebook is unknown. Further what `find` and `execute` raise.
    """
    checks.choose("profile", profile, PROFILES)
    output = Path(output or files.repository() / "build" / profile)
    variables = {"MBAUG_FIGURES": str(committed_figures())} if profile == "paper" else {}
    execute(find(only, folder), output, {"profile": profile, "retrain": profile != "paper"}, workers, variables=variables)


def committed_figures() -> Path:
    """Returns where a batch of the paper profile draws, and nothing else does: figures/, or MBAUG_FIGURES if that is set."""
    return Path(os.environ.get("MBAUG_FIGURES") or files.repository() / "figures")


def reading_copies(only: str | Iterable[str] | None = None, folder: Path | str | None = None, workers: int = 2) -> None:
    """Executes the sources as they stand and writes each result beside its source; of one that fails, the copy stays."""
    execute(find(only, folder), files.repository() / "build" / "reading", {}, workers, copied=True)


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
    """Returns the sources of the notebooks `only` (names, or the numbers they begin with), in reading order; of all if None.

    All must then be those of the table of contents: a notebook that is lost, or forgotten in the table, would pass unseen.

    Raises:
        ValueError: There is no notebook of a name; the sentence names the nearest.
        FileNotFoundError: The folder does not hold the notebooks of the table of contents.
    """
    folder = Path(folder or files.repository() / "notebooks").resolve()
    found = {source.stem: source for source in sorted(folder.glob("[0-9][0-9]_*.py"))}
    if only is None:
        if odd := sorted(set(CONTENTS) ^ set(found)):
            raise FileNotFoundError(
                f"{', '.join(odd)}: in {folder} or in the table of contents (chapters.CONTENTS), but not in both."
            )
        return list(found.values())
    numbers = {name[:2]: name for name in found}
    wanted = [Path(name).stem for name in ([only] if isinstance(only, str) else only)]
    names = {checks.choose("notebook", numbers.get(name, name), found) for name in wanted}
    return [source for name, source in found.items() if name in names]


def convert(source: Path) -> NotebookNode:
    """Returns a source as a notebook without outputs: metadata is tags alone, and a cell's id is that of its text."""
    notebook, seen = _tags_alone(jupytext.read(source)), Counter()
    for cell in notebook.cells:
        seen[cell.source] += 1
        cell.id = hashlib.sha256(f"{seen[cell.source]} {cell.source}".encode()).hexdigest()[:8]
    return notebook


def _tags_alone(notebook: NotebookNode) -> NotebookNode:
    """Returns the notebook free of times and paths: with no metadata but its language and its cells' tags."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
    return notebook


def execute(
    sources: Sequence[Path],
    output: Path,
    parameters: Mapping[str, Any],
    workers: int,
    copied: bool = False,
    variables: Mapping[str, str] | None = None,
) -> None:
    """Executes notebooks, each in its own process, and prints how far they are.

    `copied`: the results become the reading copies. `variables` are added to the environment.

    Raises:
        files.CannotWrite: The output folder cannot be written.
        NotebookFailed: A notebook did not run to its end, or its reading copy cannot be written; all others were executed.
    """
    with files.in_one_sentence(output):
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as probe:
            probe.write(bytes(1_000_000))  # about a notebook with its figures
    print(f"{len(sources)} notebooks, {workers} at a time, into {output}", flush=True)
    started, order = time.monotonic(), sorted(sources, key=lambda source: source.stem != LONGEST)
    chapter = output, parameters, copied, {**environment(), **(variables or {})}
    short = None if len(tempfile.gettempdir()) < 60 else "/tmp"  # the path of a socket has some hundred characters at most
    folder = tempfile.TemporaryDirectory(prefix="mbaug-", dir=short, ignore_cleanup_errors=True)
    with folder as sockets, ThreadPoolExecutor(workers) as threads:
        futures = {source.stem: threads.submit(_alone, source, sockets, *chapter) for source in order}
        try:
            wait(futures.values())
        except KeyboardInterrupt:
            threads.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures.values()):  # one of them may begin just now
                for process in multiprocessing.active_children():
                    process.kill()  # its kernel ends with it
                time.sleep(0.1)
            raise
    print(f"all: {time.monotonic() - started:.0f} s", flush=True)
    if problems := [f"{name}: {future.result()}" for name, future in sorted(futures.items()) if future.result()]:
        raise NotebookFailed("\n".join(problems))


def _alone(*chapter: Any) -> str:
    """Executes one notebook in a process of its own; returns what went wrong, empty if nothing did."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the caller's locks
    receiver, sender = context.Pipe(duplex=False)  # no queue, which needs semaphores and so a writable /dev/shm
    process = context.Process(target=_send, args=(os.getpid(), sender, *chapter))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return "its process was killed; is there enough memory?"
    finally:
        process.join()


def _send(parent: int, sender: Connection, *chapter: Any) -> None:
    """Executes one notebook, sends what went wrong, and ends with the parent, however that ends."""
    os.setsid()  # Ctrl-C reaches the parent alone, which ends this one
    ending.with_parent(parent)  # and its kernel with it, which looks for its parent once a second
    sender.send(_execute(*chapter))


def environment() -> dict[str, str]:
    """Returns what every notebook runs with: one thread, this interpreter, nothing written outside the clone."""
    build = files.repository() / "build"
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    files.write_atomically(build / "jupyter/kernels/python3/kernel.json", json.dumps({**KERNEL, "argv": command}).encode())
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "IPYTHONDIR": str(build / "jupyter/ipython"),
        "JUPYTER_PATH": str(build / "jupyter"),  # searched first: a kernel found elsewhere may be another Python's
        "JUPYTER_RUNTIME_DIR": str(build / "jupyter/runtime"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in JupyterLab: no screen, figures are outputs
        "MPLCONFIGDIR": str(build / "matplotlib"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's warning about frozen modules
    }


def _execute(
    source: Path, sockets: str, output: Path, parameters: Mapping[str, Any], copied: bool, variables: Mapping[str, str]
) -> str:
    """Executes one notebook in a worker process; returns what went wrong, which is no error: it is one notebook among several.

    Its kernel is reached by sockets in a private folder: TCP ports, the default, are chosen and let go before the kernel binds
    them, so that another kernel, started meanwhile, may have taken one.
    """
    import papermill  # takes a second, which only the workers need to spend

    os.environ.update(variables)
    notebook, executed, started, problem = convert(source), output / f"{source.stem}.ipynb", time.monotonic(), ""

    def report(cell: NotebookNode, cell_index: int) -> None:
        if cell_index % 10 == 9:
            print(f"{source.stem}: {cell_index} of {len(notebook.cells)} cells in {time.monotonic() - started:.0f} s", flush=True)

    kernel = {"transport": "ipc" if os.name == "posix" else "tcp", "connection_file": f"{sockets}/{source.stem[:2]}.json"}
    try:
        result = papermill.execute_notebook(
            notebook,
            executed,
            parameters,
            progress_bar=False,
            on_cell_start=report,
            coalesce_streams=True,  # how a stream is cut into pieces is chance
            resources={"metadata": {"path": str(source.parent)}},
            config=Config(KernelManager=kernel),
        )
        if copied:
            files.write_atomically(reading_copy(source), (nbformat.writes(_tags_alone(result)) + "\n").encode())
    except papermill.PapermillExecutionError as error:
        lines = error.source.splitlines()
        shown = textwrap.indent("\n".join(["..."] * (len(lines) > 8) + lines[-8:]), "    ")
        problem = f"In [{error.exec_count}] raised {error.ename}: {error.evalue}\n{shown}\n    (the traceback is in {executed})"
    except Exception as error:  # the kernel died, the disk is full
        problem = f"{type(error).__name__}: {error}"
    print(f"{source.stem}: {'failed' if problem else 'done'} in {time.monotonic() - started:.0f} s", flush=True)
    return problem
