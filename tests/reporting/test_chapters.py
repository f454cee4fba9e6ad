"""The notebook machinery, on notebooks of a few lines: what is executed, with what, and what is said when it fails."""

import os
import sys
import textwrap

import nbformat
import pytest
from conftest import no_space

from mbaug import chapters

HEADER = '# %% [markdown]\n# # A title\n\n# %% tags=["parameters"]\nprofile = "paper"\nretrain = False\nrate = 0.5\n\n'


@pytest.fixture
def write(tmp_path):
    """Writes a source notebook of the given cells after the title and the parameters, and returns its path."""

    def write(name, *cells, header=HEADER):
        source = tmp_path / "notebooks" / f"{name}.py"
        source.parent.mkdir(exist_ok=True)
        source.write_text(header + "\n\n".join(f"# %%\n{textwrap.dedent(cell).strip()}" for cell in cells) + "\n")
        return source

    return write


@pytest.fixture
def run(tmp_path):
    """chapters.run on the notebooks that a test wrote, all of them named: they are no table of contents."""

    def run(*only, **arguments):
        return chapters.run(only=only, folder=tmp_path / "notebooks", output=tmp_path / "out", **arguments)

    return run


def outputs(path) -> str:
    """Returns all that an executed notebook printed."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


# ------------------------------------------------------------------------------------------------------- execution


def test_notebooks_run_with_their_parameters_and_in_a_tidy_environment(write, run, tmp_path, capsys):
    write("01_first", "import os, sys\nprint(profile, retrain, rate)\nprint(os.getcwd())\nprint(sys.executable)")
    write("02_second", "import os", 'print(os.environ["OMP_NUM_THREADS"])\nopen("MUJOCO_LOG.TXT", "w").close()')
    before = dict(os.environ)
    run("01", "02_second", profile="smoke", parameters={"rate": 1})
    assert dict(os.environ) == before
    printed = outputs(tmp_path / "out/01_first.ipynb").splitlines()
    assert printed == ["smoke True 1", str(tmp_path / "notebooks"), sys.executable]
    assert outputs(tmp_path / "out/02_second.ipynb") == "1\n"
    assert sorted(path.name for path in (tmp_path / "notebooks").iterdir()) == ["01_first.py", "02_second.py"]
    progress, table = capsys.readouterr().out.split("notebook  ")
    assert progress.startswith(f"2 notebooks, 2 at a time, into {tmp_path / 'out'}\n")
    assert "01_first: done in 0:" in progress
    rows = [line.split() for line in table.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["01_first", "3"], ["02_second", "4"], ["all", "7"]]


def test_the_failing_cells_are_shown_and_the_others_run(write, run, tmp_path):
    steps = "\n".join(f"step = {number}" for number in range(20))
    write("01_fails", f"{steps}\nraise ValueError(f'the rate is {{rate}}')")
    write("02_dies", "import os\nos._exit(1)")
    write("03_works", "print('done')")
    with pytest.raises(chapters.NotebookFailed) as failure:
        run("01", "02", "03")
    fails, dies = str(failure.value).split("\n02_dies: ")
    assert fails.startswith("01_fails: In [3] raised ValueError: the rate is 0.5\n")
    assert "step = 19\n    raise ValueError(" in fails
    assert "step = 1\n" not in fails
    assert str(tmp_path / "out/01_fails.ipynb") in fails
    assert len(fails.splitlines()) <= 12
    assert dies.startswith("DeadKernelError: ")
    assert outputs(tmp_path / "out/03_works.ipynb") == "done\n"


def test_an_output_folder_that_cannot_be_written(write, run, tmp_path):
    write("01_first", "1")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"out cannot be written: File exists; choose another one\."):
        run("01")


def test_paper_profile_draws_from_records_and_the_others_train(write, run, monkeypatch):
    write("01_first", "1")
    asked = []
    monkeypatch.setattr(chapters, "execute", lambda given, workers: asked.extend(given) or [])
    for profile in ("paper", "quick", "smoke"):
        run("01", profile=profile)
    run("01", profile="smoke", retrain=False)
    assert [(chapter.parameters["profile"], chapter.parameters["retrain"]) for chapter in asked] == [
        ("paper", False),
        ("quick", True),
        ("smoke", True),
        ("smoke", False),
    ]


# ------------------------------------------------------------------------------------------------- bad parameters


def test_bad_parameters_are_refused_before_anything_runs(write, run, tmp_path):
    write("01_first", "1")
    with pytest.raises(ValueError, match=r"'rtae'.*did you mean 'rate'.*'profile', 'retrain', 'rate'"):
        run("01", parameters={"rtae": 0.5})
    with pytest.raises(ValueError, match="The parameter retrain of 01_first is of type bool; 1 is of type int"):
        run("01", parameters={"retrain": 1})
    with pytest.raises(ValueError, match="The parameter rate of 01_first is of type float; '1' is of type str"):
        run("01", parameters={"rate": "1"})
    with pytest.raises(ValueError, match="unknown profile 'papre': did you mean 'paper'"):
        run("01", profile="papre")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cell", ["steps = 2 * 100", "import os", "a, b = 1, 2", "print(1)"])
def test_a_parameters_cell_holds_literals_alone(write, cell):
    source = write("01_first", header=HEADER.replace("rate = 0.5", cell))
    with pytest.raises(ValueError, match="parameters cell of 01_first may only assign literals to names"):
        chapters.parameters_of(source)


def test_exactly_one_parameters_cell_is_needed(write):
    with pytest.raises(ValueError, match="01_first has 0 cells tagged"):
        chapters.parameters_of(write("01_first", "1", header=""))
    with pytest.raises(ValueError, match="02_second has 2 cells tagged"):
        chapters.parameters_of(write("02_second", header=HEADER + HEADER))


# ---------------------------------------------------------------------------------------------- table of contents


def test_a_lost_or_forgotten_notebook_is_named(write, tmp_path):
    for name in (*chapters.CONTENTS[1:], "99_forgotten"):
        write(name)
    with pytest.raises(FileNotFoundError, match=f"in one of the two alone: {chapters.CONTENTS[0]}, 99_forgotten"):
        chapters.find(folder=tmp_path / "notebooks")
    write(chapters.CONTENTS[0])
    (tmp_path / "notebooks/99_forgotten.py").unlink()
    assert tuple(source.stem for source in chapters.find(folder=tmp_path / "notebooks")) == chapters.CONTENTS


def test_notebooks_are_named_by_number_name_or_file(write, tmp_path):
    sources = [write("01_first"), write("02_second"), write("03_third")]
    folder = tmp_path / "notebooks"
    assert chapters.find("02", folder) == [sources[1]]
    assert chapters.find(["03_third.py", "01_first"], folder) == [sources[0], sources[2]]
    with pytest.raises(ValueError, match="unknown notebook '02_secnd': did you mean '02_second'"):
        chapters.find("02_secnd", folder)


# ------------------------------------------------------------------------------------------------- reading copies


def test_a_reading_copy_is_the_executed_source_and_the_same_bytes_each_time(write, tmp_path):
    source = write(
        "01_first",
        'import sys, time\nprint("one", flush=True)\ntime.sleep(0.2)\nprint("other", file=sys.stderr)\nprint("two")',
        "rate",
    )
    broken = write("02_broken", "1 / 0")
    chapters.reading_copy(broken).write_text("as it was")
    assert "no reading copy" in chapters.stale(source)
    chapters.reading_copies("01", source.parent)
    first = chapters.reading_copy(source).read_bytes()
    assert chapters.stale(source) is None
    with pytest.raises(chapters.NotebookFailed, match=r"^02_broken: .*ZeroDivisionError"):
        chapters.reading_copies(["01", "02"], source.parent)
    assert chapters.reading_copy(source).read_bytes() == first
    assert chapters.reading_copy(broken).read_text() == "as it was"
    notebook = nbformat.reads(first.decode(), as_version=4)
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert [dict(cell.metadata) for cell in notebook.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    assert notebook.metadata == chapters.METADATA
    assert {output.text for output in notebook.cells[2].outputs} == {"one\ntwo\n", "other\n"}
    assert notebook.cells[3].outputs[0].data["text/plain"] == "0.5"
    assert str(tmp_path) not in first.decode()


def test_a_changed_source_makes_its_reading_copy_stale(write):
    source = write("01_first", "1", "2")
    nbformat.write(chapters.convert(source), chapters.reading_copy(source))
    assert chapters.stale(source) is None
    source.write_text(source.read_text().replace("# %%\n2", "# %%\n3"))
    assert "01_first is not its source's from cell 4 on: run `make notebooks`" in chapters.stale(source)
    source.write_text(source.read_text().replace("# %%\n3\n", ""))
    assert "from cell 4 on" in chapters.stale(source)
    source.write_text(source.read_text().replace('"parameters"', '"parameters", "more"'))
    assert "from cell 2 on" in chapters.stale(source)


def test_an_unchanged_cell_keeps_its_id_and_equal_cells_have_different_ones(write):
    before = [cell.id for cell in chapters.convert(write("01_first", "1", "2", "1")).cells]
    after = [cell.id for cell in chapters.convert(write("01_first", "0", "1", "2", "1")).cells]
    assert len(set(before)) == len(before)
    assert after[:2] + after[3:] == before


def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    """A full disk leaves the reading copy, and what describes the kernel, as they were."""
    monkeypatch.setattr(chapters, "ROOT", tmp_path)
    source = tmp_path / "00_one.py"
    source.write_text('# %% tags=["parameters"]\nprofile = "paper"\n')
    kernel = tmp_path / "build/jupyter/kernels/python3/kernel.json"
    chapters.environment()
    for path in (chapters.reading_copy(source), kernel):
        path.write_text("as it was")
    monkeypatch.setattr(chapters, "execute", lambda given, workers: [chapters.Outcome(each.name, 1, 0.0, "") for each in given])
    monkeypatch.setattr(chapters, "_committed_text", lambda executed: "half")
    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match=r"00_one.ipynb: No space left on device"):
        chapters.reading_copies(only="00_one", folder=tmp_path)
    with pytest.raises(OSError, match=r"kernel.json: No space left on device"):
        chapters.environment()
    assert {path.read_text() for path in (chapters.reading_copy(source), kernel)} == {"as it was"}
