"""Set-up: one sentence says what a machine lacks, and pip, uv and conda share one list of packages and bounds."""

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKED = (ROOT / "requirements.txt").read_text()
LOCK = re.findall(r"^([\w-]+)==([^ ]+)", LOCKED, re.M)
# Stands in for Python: claims to be suitable, copies itself into .venv and logs each step. Given a file `offline`, pip fails.
GOOD = """case "$*" in
    -c*) command -v python && exit ;;
    -V) echo Python 3.12.1 && exit ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *--editable*) mkdir -p .venv/lib/python3.12/site-packages && pwd >.venv/lib/python3.12/site-packages/mbaug.pth ;;
    *others) [ ! -e offline ] && echo "$*" >how && cp .venv/tmp/others others ;;
    *) [ ! -e offline ] ;;
esac && echo "${*##* }" >>log"""


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """Returns a function that runs scripts/setup in a copy of the files it reads, with shell scripts in place of programs.

    The function returns the steps that were taken or, after a failure, the error messages.
    """
    monkeypatch.chdir(tmp_path)
    Path("scripts").mkdir()
    for name in ("pyproject.toml", "requirements.txt", "scripts/setup"):
        shutil.copy2(ROOT / name, name)
    monkeypatch.setenv("PATH", f"{tmp_path}/scripts", prepend=":")

    def run(torch="", named="", gigabytes=100, programs=()) -> list[str]:
        programs = {"python": GOOD, "df": f"echo; echo disk 0 0 {gigabytes}000000", **dict(programs)}
        for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3", *programs):
            Path("scripts", name).write_text(f"#!/bin/sh\n{programs.get(name, 'exit 1')}\n")
            Path("scripts", name).chmod(0o755)
        result = subprocess.run(["env", f"PYTHON={named}", "scripts/setup", torch], stderr=subprocess.PIPE, text=True)
        return (result.stderr if result.returncode else Path("log").read_text()).splitlines()

    return run


@pytest.mark.parametrize(
    ("sentence", "arguments"),
    [
        (
            "no working Python from 3.11 to 3.14 found as python3.11 to python3.14",
            {"programs": {"python3.13": "echo shim >&2; exit 127", "python": "exit 1"}},
        ),
        ("no working Python from 3.11 to 3.14 found as /no/python", {"named": "/no/python"}),
        ("python3.12 has no venv module .* apt install python3-venv", {"programs": {"python3.12": "exit 3", "python": "exit 1"}}),
        ("TORCH=rocm is not known: choose default", {"torch": "rocm"}),
        (r"has 7\.2 GB of free disk space, but set-up needs 8 GB \(3 GB with TORCH=cpu\)", {"gigabytes": 7}),
        (
            r"has 7\.2 GB of free disk space",  # whatever awk writes with a decimal comma
            {"gigabytes": 7, "programs": {"awk": '[ "$LC_ALL" = C ] && exec /usr/bin/awk "$@"; echo 7,2'}},
        ),
        ("no wheels for Intel Macs", {"programs": {"uname": "echo Darwin x86_64"}}),
        ("needs 3 GB", {"torch": "cpu", "gigabytes": 2, "named": sys.executable}),  # the check accepts a real Python
    ],
)
def test_an_unsuitable_machine_is_refused_in_one_sentence_before_anything_changes(setup, sentence, arguments):
    (line,) = setup(**arguments)
    assert re.match(f"setup: .*{sentence}", line)
    assert not Path(".venv").exists()


def test_set_up_takes_a_python_whose_path_has_a_space(setup):
    Path("my env").mkdir()
    Path("my env/python").write_text(f"#!/bin/sh\n{GOOD}\n")
    Path("my env/python").chmod(0o755)
    assert setup("cpu", named="my env/python")[0] == ".venv"


def test_set_up_waits_for_another_set_up_of_the_same_clone(setup, monkeypatch):
    setup(programs={"python": "exit 1"})  # writes the programs, and changes nothing else
    with open("requirements.txt", "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        process = subprocess.Popen(["env", f"PYTHON={sys.executable}", "scripts/setup", "cpu"], stderr=subprocess.DEVNULL)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
        process.wait()
    assert not Path(".venv").exists()


def test_set_up_takes_only_the_steps_that_are_left(setup):
    """An interrupted set-up continues, a finished one does nothing, and another torch needs a new .venv."""
    Path("offline").touch()
    assert "failed, see the messages above" in setup("cpu")[-1]
    Path("offline").unlink()
    cpu = [".venv", f"torch=={dict(LOCK)['torch']}+cpu", ".venv/tmp/others", "."]
    assert setup() == cpu
    assert setup() == cpu
    Path("requirements.txt").touch()
    assert setup() == [*cpu, *cpu[1:]]
    assert setup("default")[7:] == [".venv", ".venv/tmp/torch", ".venv/tmp/others", "."]


def test_every_set_up_installs_the_extras_and_does_not_ask_for_torch_again(setup):
    """Stable-Baselines3 requires torch, but the CPU-only torch has another hash than the locked one."""
    setup("cpu")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {Requirement(one).name.replace("_", "-") for one in chain(*extras.values())}
    found = {*re.findall(r"^([\w-]+)==", Path("others").read_text(), re.M)}
    assert {*names, "huggingface-hub"} <= found  # `minari download` needs huggingface-hub
    assert "torch" not in found
    assert {"--no-deps", "--require-hashes"} <= {*Path("how").read_text().split()}


def test_a_clone_may_lie_in_a_folder_with_a_non_ascii_name(setup, tmp_path):
    """Copies the .pth file that set-up writes into a real environment. With LC_ALL=C, Python before 3.13 reads it as ASCII."""
    setup()
    path = next(Path(".venv").glob("lib/python*/site-packages/mbaug.pth"))
    clone = tmp_path / "clöne"
    venv.create(clone / ".venv", with_pip=False)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    shutil.copy(path, site)
    shutil.copytree(ROOT / "mbaug", clone / "mbaug")
    command = [clone / ".venv/bin/python", "-c", "import mbaug.files; print(ascii(mbaug.files.__file__))"]
    found = subprocess.run(command, env={"LC_ALL": "C"}, capture_output=True, text=True, check=True, cwd="/").stdout
    assert found.strip() == ascii(str(clone / "mbaug" / "files.py"))


def test_make_ignores_the_packages_of_another_environment(tmp_path):
    """PYTHONPATH names such packages, for example where ROS is set up."""
    (tmp_path / "Makefile").write_text('shown:\n\t@echo "[$$PYTHONPATH]"\n')
    command = ["make", "--silent", "-f", ROOT / "Makefile", "-f", tmp_path / "Makefile", "shown"]
    shown = subprocess.run(command, env=os.environ | {"PYTHONPATH": "/opt/ros"}, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_pip_uv_and_conda_have_the_same_packages_and_bounds():
    project, groups = (tomllib.loads((ROOT / "pyproject.toml").read_text())[key] for key in ("project", "dependency-groups"))
    for requirement in map(Requirement, sum(project["optional-dependencies"].values(), project["dependencies"] + groups["test"])):
        versions = [version for name, version in LOCK if name == requirement.name.replace("_", "-")]
        assert [*requirement.specifier.filter(versions)] == versions != [], f"{requirement} is not locked: `make lock`"
    assert "://" not in LOCKED  # the lock names no package index: each machine uses its own
    assert [sum(name == one for name, _ in LOCK) for one in ("mujoco", "torch")] == [1, 1]  # one for every Python
    python, _, packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (python, *packages["pip"]) == (f"python{project['requires-python']}", "--editable .", *project["dependencies"])


def imports(path: Path) -> set[str]:
    """Returns the names of the packages that a source imports."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [one.name for node in nodes if isinstance(node, ast.Import) for one in node.names]
    return {name.partition(".")[0] for name in names}


def test_every_package_that_the_code_imports_is_declared():
    """Another package's dependency would be missing as soon as that package no longer needs it."""
    project, providers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], metadata.packages_distributions()
    listed = chain(project["dependencies"], *project["optional-dependencies"].values())
    declared = {canonicalize_name(Requirement(one).name) for one in listed}
    sources = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in ("mbaug", "notebooks"))
    imported = set().union(*map(imports, sources)) - {"mbaug", "benchmarks", *sys.stdlib_module_names}
    assert imported
    assert not [name for name in imported if not declared & {*map(canonicalize_name, providers.get(name, [name]))}]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the built wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "flit_core.wheel", "--outdir", folder, ROOT], check=True)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_the_wheel_is_marked_as_typed(installed):
    assert {"py.typed", "files.py"} <= {path.name for path in (installed / "mbaug").iterdir()}


SCRIPT = """
import sys
from mbaug import __main__ as commands
from mbaug.datasets import read

def tried(call, *given):
    try:
        print(call(*given) or "done")
    except BaseException as error:
        print(type(error).__name__, error)

tried(lambda: len(read.load(sys.argv[1])))
tried(read.load, "hopper-medium-replay")
for typed in ("data FILE --as hopper-a --output out", "data FILE --as hopper-a", "data", "figures", "record core", "status"):
    tried(commands.main, typed.replace("FILE", sys.argv[1]).split())
"""


@pytest.mark.slow
def test_from_the_wheel_a_command_works_or_says_that_it_needs_a_clone(installed, in_tmp_path):
    """Nothing is written into the installed package."""
    before = sorted(path for path in installed.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__")
    pool = ROOT / "data" / "offline" / "hopper-random.hdf5"
    command = [sys.executable, "-c", SCRIPT, pool]
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(installed)}, stdout=subprocess.PIPE, text=True).stdout
    length, named, *imported, done = found.splitlines()[:6]
    clone = f"mbaug is installed in {installed} without its repository, which holds the data, the recorded runs and the notebooks"
    assert (length, done) == ("20026", "done")
    assert named.startswith(f"FileNotFoundError {clone}")
    assert imported[-1] == "out/hopper-a.hdf5"
    assert Path("out/hopper-a.hdf5").is_file()
    assert len(found.splitlines()) == 11
    assert all(line.startswith(f"SystemExit mbaug: {clone}") for line in found.splitlines()[6:])
    assert before == sorted(path for path in installed.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__")
