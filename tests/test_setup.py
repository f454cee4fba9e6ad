"""Set-up: one lock, one list of names and bounds, and one sentence for whatever a machine may lack."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """scripts/setup.py as a module, at work on a copy of the clone."""
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location("setup", tmp_path / "scripts/setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_python(folder, named="", arguments=("nonsense",), **programs) -> subprocess.CompletedProcess:
    """Runs scripts/setup where only the given programs, each a line of shell, are on the PATH."""
    (folder / "bin").mkdir()
    (folder / "bin/dirname").symlink_to(shutil.which("dirname"))
    for name, line in programs.items():
        program = folder / "bin" / name.replace("_", ".")
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    environment = {"PATH": str(folder / "bin"), "PYTHON": named}
    command = ["/bin/sh", str(folder / "scripts/setup"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def one_sentence(result: subprocess.CompletedProcess) -> str:
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("setup: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


SHIM = "echo 'pyenv: python3.13: command not found' >&2; exit 127"
OLD = 'case "$2" in *version_info*) exit 1;; esac'
NO_VENV = 'case "$2" in *ensurepip*) exit 1;; esac'


def test_no_python_at_all(setup):
    assert "no Python from 3.11 to 3.14" in one_sentence(find_python(setup.ROOT))


def test_unsuitable_pythons_are_passed_over(setup):
    """A shim that only reports an error, a Python too old, and then the real one."""
    real = f'exec "{sys.executable}" "$@"'
    result = find_python(setup.ROOT, python3_13=SHIM, python3=OLD, python=real)
    assert "TORCH=nonsense is not known" in one_sentence(result)


def test_only_unsuitable_pythons(setup):
    result = find_python(setup.ROOT, python3_13=SHIM, python3=OLD)
    assert "no Python from 3.11 to 3.14" in one_sentence(result)


def test_python_without_venv(setup):
    sentence = one_sentence(find_python(setup.ROOT, python3_12=NO_VENV))
    assert "python3.12 has no venv module" in sentence
    assert "apt install python3-venv" in sentence


def test_named_python_is_the_only_one_tried(setup):
    result = find_python(setup.ROOT, named="/nowhere/python", python=f'exec "{sys.executable}" "$@"')
    assert "works as /nowhere/python" in one_sentence(result)


def test_a_folder_that_cannot_be_used(setup):
    """A file stands where the folder of set-up's own tools belongs."""
    setup.TOOLS.touch()
    result = find_python(setup.ROOT, named=sys.executable, arguments=["cpu"])
    assert "cannot be used (File exists): mend that" in one_sentence(result)


def test_index_out_of_reach(setup, monkeypatch):
    """Nothing answers at this address; pip would try it again for half a minute by default."""
    monkeypatch.setattr(setup, "check_space", lambda torch: None)
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "NO_INDEX": "0"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(SystemExit, match="Installing uv failed, the package index is out of reach"):
        setup.main()
    assert not setup.READY.exists()


def test_too_little_disk(setup, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(setup, "bootstrap", lambda: pytest.fail("set-up goes on in spite of the full disk"))
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda path: usage(free=1.5e9))
    with pytest.raises(SystemExit, match=r"has 1\.5 GB of free .* needs 8 GB \(3 GB with TORCH=cpu\)"):
        setup.main()
    with pytest.raises(SystemExit, match="needs 3 GB: make room, then run the same command again"):
        setup.main("cpu")


@pytest.mark.parametrize(
    ("messages", "advice"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "TORCH=default"),
        ("error: Failed to fetch: `http://index.invalid/simple/numpy/`", "out of reach"),
        ("error: something else", "messages above"),
    ],
)
def test_advice_after_a_failed_step(setup, messages, advice):
    assert advice in setup.advice(messages)


def test_a_failed_step_ends_set_up(setup, capsys):
    setup.TOOLS.mkdir()
    with pytest.raises(SystemExit, match="setup: A step failed, its messages above say why"):
        setup.run("A step", sys.executable, "-c", "print('what it says'); raise SystemExit(3)")
    assert "what it says" in capsys.readouterr().err


def test_ready_means_nothing_to_do(setup, monkeypatch):
    """A second call runs no program; a changed lock does, and an unfinished set-up is not called ready."""
    done = []
    (setup.VENV / "bin").mkdir(parents=True)
    setup.PYTHON.touch()
    monkeypatch.setattr(setup, "run", lambda what, *command: done.append(what))
    monkeypatch.setattr(setup, "bootstrap", lambda: None)
    requirements = setup.ROOT / "requirements.txt"
    requirements.write_text("numpy==2.0\n")
    monkeypatch.setattr(setup, "export", lambda torch, extras: (requirements, "2.13.0"))
    setup.main("cpu")
    assert done == ["Making .venv", "Torch for the CPU", "Installing the locked packages", "Installing mbaug"]
    done.clear()
    setup.main()  # without TORCH: what .venv has
    assert done == []
    with open(setup.ROOT / "uv.lock", "a") as lock:
        lock.write("\n")
    setup.main()
    assert done == ["Torch for the CPU", "Installing the locked packages", "Installing mbaug"]
    done.clear()
    setup.main("default")
    assert done == ["Making .venv", "Installing the locked packages", "Installing mbaug"]


def test_extras_are_installed_and_stay(setup, monkeypatch):
    """And one that nobody knows is refused before anything is done."""
    exported = []
    (setup.VENV / "bin").mkdir(parents=True)
    monkeypatch.setattr(setup, "run", lambda what, *command: what.startswith("Reading") and exported.append(command))
    monkeypatch.setattr(setup, "bootstrap", lambda: None)
    with pytest.raises(SystemExit, match="EXTRAS=mujoko is not known: there are minari, cluster, peers"):
        setup.main("cpu", "minari", "mujoko")
    for extras in (["minari"], ["cluster"], []):
        setup.main("cpu", *extras)
    assert [[part for part in command if str(part).startswith("--extra")] for command in exported] == [
        ["--extra=minari"],
        ["--extra=cluster", "--extra=minari"],
    ]


def test_lock_holds_no_address():
    """Which index a machine uses is its own affair; a lock with addresses fails behind every mirror."""
    addresses = set(re.findall(r"https?://[^/\"]+", (ROOT / "uv.lock").read_text()))
    assert addresses == {"https://index.invalid", "https://files.invalid"}


def test_lock_is_of_this_project():
    mbaug = next(package for package in LOCK["package"] if package["name"] == "mbaug")
    locked = mbaug["metadata"]["requires-dist"]
    extras = PROJECT["project"]["optional-dependencies"]
    declared = PROJECT["project"]["dependencies"] + [name for names in extras.values() for name in names]
    assert {(entry["name"], SpecifierSet(entry.get("specifier", ""))) for entry in locked} == {
        (requirement.name, requirement.specifier) for requirement in map(Requirement, declared)
    }


def test_mujoco_and_torch_are_locked_to_one_version():
    """A forked lock would give other trajectories on another Python."""
    for name in ("mujoco", "torch", "gymnasium"):
        assert len([package for package in LOCK["package"] if package["name"] == name]) == 1


def test_every_locked_package_is_a_wheel_with_a_hash():
    """No compiler is needed, and no file is installed that is not the locked one."""
    for package in LOCK["package"]:
        if "registry" in package["source"]:
            assert package["wheels"], package["name"]
            assert all(wheel["hash"].startswith("sha256:") for wheel in package["wheels"]), package["name"]


def test_conda_names_and_bounds_equal_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python, pip, packages = environment
    assert python == f"python{PROJECT['project']['requires-python']}"
    assert pip == "pip"
    assert packages["pip"] == ["--editable .", *PROJECT["project"]["dependencies"]]


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)", makefile, re.M)[1].split()
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == targets
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)
