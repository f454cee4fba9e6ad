"""Set-up: one sentence for whatever a machine lacks, and one list of names and bounds for pip, uv and conda."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

LOCKED = (ROOT / "requirements.txt").read_text()
LOCK = re.findall(r"^([\w-]+)==([^ ]+)", LOCKED, re.M)
# Stands in for Python: finds itself suitable, copies itself into .venv, and notes each step in `log`; pip fails when `offline`.
GOOD = """case "$*" in
    -c*) command -v python && exit ;;
    -V) echo Python 3.12.1 && exit ;;
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *) [ ! -e offline ] ;;
esac && echo "${*##* }" >>log"""


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """Runs scripts/setup in a copy of what it reads, beside `programs` of shell. Returns its steps, or why it failed."""
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
        ("works as python3.14 to python3.11", {"programs": {"python3.13": "echo shim >&2; exit 127", "python": "exit 1"}}),
        ("no Python from 3.11 to 3.14 works as /no/python", {"named": "/no/python"}),
        ("python3.12 has no venv module .* apt install python3-venv", {"programs": {"python3.12": "exit 3", "python": "exit 1"}}),
        ("TORCH=rocm is not known", {"torch": "rocm"}),
        (r"has 7\.2 GB of free disk space, and set-up needs 8 GB \(3 GB with TORCH=cpu\)", {"gigabytes": 7}),
        ("needs 3 GB", {"torch": "cpu", "gigabytes": 2, "named": sys.executable}),  # a real Python is found suitable
    ],
)
def test_refused_in_one_sentence_before_anything_is_done(setup, sentence, arguments):
    (line,) = setup(**arguments)
    assert re.match(f"setup: .*{sentence}", line)
    assert not Path(".venv").exists()


def test_steps(setup):
    """An interrupted set-up goes on, one that is ready does nothing, and another torch means another .venv."""
    Path("offline").touch()
    assert "failed, as the messages above say" in setup("cpu")[-1]
    Path("offline").unlink()
    cpu = [".venv", f"torch=={dict(LOCK)['torch']}+cpu", ".venv/tmp/others", "."]
    assert setup() == cpu
    assert setup() == cpu
    Path("requirements.txt").touch()
    assert setup() == [*cpu, *cpu[1:]]
    assert setup("default")[7:] == [".venv", ".venv/tmp/torch", ".venv/tmp/others", "."]


def test_one_list_of_names_and_bounds():
    project, groups = (tomllib.loads((ROOT / "pyproject.toml").read_text())[key] for key in ("project", "dependency-groups"))
    for requirement in map(Requirement, sum(project["optional-dependencies"].values(), project["dependencies"] + groups["test"])):
        versions = [version for name, version in LOCK if name == requirement.name.replace("_", "-")]
        assert [*requirement.specifier.filter(versions)] == versions != [], f"{requirement} is not locked: `make lock`"
    assert "://" not in LOCKED  # which index a machine uses is its own affair
    assert [sum(name == one for name, _ in LOCK) for one in ("mujoco", "torch")] == [1, 1]  # else results hang on the Python
    python, _, packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert (python, *packages["pip"]) == (f"python{project['requires-python']}", "--editable .", *project["dependencies"])


def test_wheel_is_marked_as_typed(tmp_path):
    subprocess.run([sys.executable, "-m", "flit_core.wheel", "--outdir", tmp_path, ROOT], check=True)
    assert {"mbaug/py.typed", "mbaug/files.py"} <= {*zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()}
