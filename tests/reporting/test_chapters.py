"""Running notebooks, tried on tiny ones: which cells run, with which parameters, and what an error says."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import nbformat
import pytest
from conftest import alive, no_space, wait_until
from jupyter_client import LocalPortCache

from mbaug import files
from mbaug.experiments import studies
from mbaug.reporting import chapters

HEADER = '# %% [markdown]\n# # A title\n\n# %% tags=["parameters"]\nprofile = "paper"\nretrain = False\n\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Returns a function that writes a source notebook with title, parameters and the given cells, and returns its path."""
    monkeypatch.setattr(files, "repository", lambda: tmp_path)

    def write(name, *cells, header=HEADER):
        source = tmp_path / "notebooks" / f"{name}.py"
        source.parent.mkdir(exist_ok=True)
        source.write_text(header + "\n\n".join(f"# %%\n{textwrap.dedent(cell).strip()}" for cell in cells) + "\n")
        return source

    return write


def outputs(path) -> str:
    """Returns everything that an executed notebook printed."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.slow
def test_notebooks_run_with_their_parameters_and_the_environment_stays_unchanged(write, tmp_path, capfd):
    write("01_first", "import os, sys\nprint(profile, retrain)\nprint(os.getcwd())\nprint(sys.executable)", *["1"] * 10)
    write("02_second", "import os", 'print(os.environ["OMP_NUM_THREADS"])')
    before = dict(os.environ)
    chapters.run("smoke")
    assert dict(os.environ) == before
    printed = outputs(tmp_path / "build/smoke/01_first.ipynb").splitlines()
    assert printed == ["smoke True", str(tmp_path / "notebooks"), sys.executable]
    assert outputs(tmp_path / "build/smoke/02_second.ipynb") == "1\n"
    first, *progress, last = capfd.readouterr().out.splitlines()
    assert first == f"notebooks: 2, 2 at a time, into {tmp_path / 'build/smoke'}"
    assert sorted(line.rsplit(" in ")[0] for line in progress) == ["01_first: 9 of 13 cells", "01_first: done", "02_second: done"]
    assert last.startswith("all: ")


@pytest.mark.slow
def test_an_error_shows_the_failing_cells_and_the_other_notebooks_run(write, tmp_path):
    steps = "\n".join(f"step = {number}" for number in range(20))
    write("01_fails", f"{steps}\nraise ValueError(f'the profile is {{profile}}')")
    write("02_dies", "import os\nos._exit(1)")
    write("03_works", "print('done')")
    with pytest.raises(RuntimeError) as failure:
        chapters.run()
    fails, dies = str(failure.value).split("\n02_dies: ")
    assert fails.startswith("01_fails: In [3] raised ValueError: the profile is paper\n")
    assert "step = 19\n    raise ValueError(" in fails
    assert "step = 1\n" not in fails
    assert str(tmp_path / "build/paper/01_fails.ipynb") in fails
    assert len(fails.splitlines()) <= 12
    assert dies.startswith("DeadKernelError: ")
    assert outputs(tmp_path / "build/paper/03_works.ipynb") == "done\n"


def test_a_kernel_needs_no_port(write, tmp_path, monkeypatch):
    """Jupyter picks ports before the kernel binds them, so others may take them meanwhile. Here all ports are taken."""
    for name, value in chapters.environment().items():
        monkeypatch.setenv(name, value)
    source = write("01_first", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken, tempfile.TemporaryDirectory(dir="/tmp") as sockets:
        monkeypatch.setattr(LocalPortCache, "find_available_port", lambda self, ip: taken.getsockname()[1])
        assert chapters._execute(source, Path(sockets), tmp_path, {}, False) == ""


@pytest.mark.slow
def test_notebooks_run_with_a_long_temporary_folder_and_read_only_shared_memory(write, tmp_path, monkeypatch):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", no_space)
    write("01_first", "from ipykernel.connect import get_connection_info as found\nprint(found(unpack=True)['ip'])")
    chapters.run()
    folder = os.path.dirname(outputs(tmp_path / "build/paper/01_first.ipynb"))
    assert len(folder) < 80
    assert not os.path.exists(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_however_a_batch_ends_all_its_processes_end(write, tmp_path, name):
    for number in range(1, 4):
        text = f"import os\nopen({str(tmp_path)!r} + '/started{number}', 'w').write(f'{{os.getpid()}} {{os.getppid()}}')"
        write(f"0{number}_slow", f"{text}\nimport time\ntime.sleep(600)")
    script, started = tmp_path / "script.py", [tmp_path / f"started{number}" for number in range(1, 4)]
    script.write_text(
        "from pathlib import Path\n\nfrom mbaug import __main__ as commands, files\nfrom mbaug.reporting import chapters\n\n"
        f"files.repository = lambda: Path({str(tmp_path)!r})\n\ndef figures(given):\n    chapters.run()\n\n"
        "if __name__ == '__main__':\n    commands.COMMANDS = {figures: {}}\n    commands.main(['figures'])\n"
    )
    process = subprocess.Popen([sys.executable, script], start_new_session=True, stderr=subprocess.PIPE)
    wait_until("two notebooks", lambda: all(path.exists() and path.read_text() for path in started[:2]))
    number = getattr(signal, name)
    os.killpg(process.pid, number) if name == "SIGINT" else os.kill(process.pid, number)  # a terminal signals the whole group
    errors = process.communicate(timeout=15)[1]  # seconds; it once took 17
    assert (b"mbaug: interrupted" in errors) == (name != "SIGKILL")
    pids = [int(pid) for path in started[:2] for pid in path.read_text().split()]
    wait_until("the end of chapters and kernels", lambda: not any(map(alive, pids)), seconds=10)
    assert not started[2].exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("failing", "said"), [("_execute", ["01_first: its thread failed"]), ("ensure_event_loop", [])])
def test_a_batch_ends_even_if_a_thread_fails(failing, said, write, tmp_path, monkeypatch):
    """It used to wait for the thread's result for ever."""

    def fail(*given):
        raise SystemExit

    monkeypatch.setattr(chapters, "_execute", lambda *given: "")
    monkeypatch.setattr(chapters, failing, fail)
    problems, source = [], write("01_first", "1")

    def batch():
        try:
            chapters.execute([source], tmp_path / "build", {})
        except RuntimeError as error:
            problems.append(str(error))

    thread = threading.Thread(target=batch, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert problems == said


def test_an_output_folder_that_cannot_be_written_is_named(write, tmp_path):
    write("01_first", "1")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/paper").write_text("a file")
    with pytest.raises(files.CannotWrite, match=r"Cannot write .*paper: File exists"):
        chapters.run()


def test_the_paper_profile_reads_records_and_the_others_train(write, tmp_path, monkeypatch):
    write("01_first", "1")
    calls = []
    monkeypatch.delenv("MBAUG_FIGURES", raising=False)
    execute = lambda sources, output, given: calls.append((given, os.environ.get("MBAUG_FIGURES")))  # noqa: E731
    monkeypatch.setattr(chapters, "execute", execute)
    for profile in studies.PROFILES:
        chapters.run(profile)
    assert [given for given, _ in calls] == [{"profile": name, "retrain": name != "paper"} for name in studies.PROFILES]
    assert [folder for _, folder in calls] == [None, None, str(tmp_path / "figures")]


def test_a_notebook_is_found_by_number_name_or_file(write):
    sources = [write("00_first"), write("02_second")]
    assert chapters.find() == sources
    for name in ("2", "02", "02_second", "02_second.py"):
        assert chapters.find(name) == sources[1:]
    with pytest.raises(ValueError, match="unknown notebook '02_secnd': did you mean '02_second'"):
        chapters.find("02_secnd")
    with pytest.raises(ValueError, match="unknown notebook ''"):
        chapters.find("")


@pytest.mark.slow
def test_a_reading_copy_is_the_executed_source_with_the_same_bytes_each_time(write, tmp_path):
    source = write(
        "01_first",
        'import sys, time\nprint("one", flush=True)\ntime.sleep(0.2)\nprint("other", file=sys.stderr)\nprint("two")',
        "retrain",
    )
    broken = write("02_broken", "1 / 0")
    copy, other = (path.with_suffix(".ipynb") for path in (source, broken))
    other.write_text("as it was")
    chapters.reading_copies("01")
    first = copy.read_bytes()
    with pytest.raises(RuntimeError, match=r"^02_broken: .*ZeroDivisionError"):
        chapters.reading_copies()
    assert copy.read_bytes() == first
    assert other.read_text() == "as it was"
    notebook = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert [dict(cell.metadata) for cell in notebook.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    assert notebook.metadata == chapters.METADATA
    assert [cell.id for cell in notebook.cells] == [cell.id for cell in chapters.convert(source).cells]
    assert {output.text for output in notebook.cells[2].outputs} == {"one\ntwo\n", "other\n"}
    assert notebook.cells[3].outputs[0].data["text/plain"] == "False"
    assert str(tmp_path) not in first.decode()


def test_an_unchanged_cell_keeps_its_id_and_equal_cells_have_different_ids(write):
    before = [cell.id for cell in chapters.convert(write("01_first", "1", "2", "1")).cells]
    after = [cell.id for cell in chapters.convert(write("01_first", "0", "1", "2", "1")).cells]
    assert len(set(before)) == len(before)
    assert after[:2] + after[3:] == before


def test_a_full_disk_leaves_the_old_files_unchanged(write, tmp_path, monkeypatch):
    """They are the reading copy and the kernel's description."""
    source, kernel = write("01_first", "1"), tmp_path / "build/jupyter/kernels/python3/kernel.json"
    chapters.environment()
    for path in (source.with_suffix(".ipynb"), kernel):
        path.write_text("as it was")
    monkeypatch.setattr("papermill.execute_notebook", lambda notebook, *_, **__: notebook)
    monkeypatch.setattr("os.replace", no_space)
    assert "01_first.ipynb: No space left on device" in chapters._execute(source, tmp_path, tmp_path, {}, True)
    with pytest.raises(files.CannotWrite, match=r"kernel.json: No space left on device"):
        chapters.environment()
    assert {path.read_text() for path in (source.with_suffix(".ipynb"), kernel)} == {"as it was"}


def test_running_chapters_does_not_import_torch():
    subprocess.run([sys.executable, "-c", "import sys, mbaug.reporting.chapters; assert 'torch' not in sys.modules"], check=True)
