"""Makes .venv from uv.lock, inside the clone, with the standard library alone: `make setup`.

The lock is committed without the addresses that uv writes into it: `uv sync` downloads from these alone,
whatever index this machine is set up for, so a lock with addresses works for nobody behind a mirror. What
identifies a file is its hash. Set-up therefore exports names, versions and hashes from the lock, and lets uv
find the files at this machine's index. After a change in pyproject.toml, `scripts/setup lock` locks anew.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS, VENV = ROOT / ".uv", ROOT / ".venv"
UV, PYTHON, READY = TOOLS / "venv/bin/uv", VENV / "bin/python", VENV / "ready"
BASE_PYTHON = sys._base_executable  # not a virtual environment's: that may be the one to be replaced
FREE_BYTES = {"default": 8e9, "cpu": 3e9}
CUDA = ("cuda-", "nvidia-", "triton")
NETWORK = re.compile(r"connect|resolve|timed? ?out|No matching distribution|not found in|fetch", re.I)


def main(torch: str = "", *arguments: str) -> None:
    """Brings .venv up to date; `torch` is default, cpu, or empty for what .venv has; or locks anew (`lock`).

    `arguments` are extras, which .venv then has besides those that it had; or, for `lock`, arguments of `uv lock`.
    """
    if torch not in ("", "lock", *FREE_BYTES):
        raise SystemExit(f"setup: TORCH={torch} is not known: it is default (with CUDA on Linux) or cpu.")
    TOOLS.mkdir(exist_ok=True)
    with open(TOOLS / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # `make figures` and `make test` may be started side by side
        relock(*arguments) if torch == "lock" else install(torch, arguments)


def install(torch: str, extras: Sequence[str]) -> None:
    """Installs the locked packages and this one, unless .venv already holds them."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if unknown := sorted({*extras} - {*known}):
        raise SystemExit(f"setup: EXTRAS={' '.join(unknown)} is not known: there are {', '.join(known)}.")
    before = READY.read_text().split() if READY.exists() else []
    torch = torch or next(iter(before), "default")
    extras = sorted({*before[3:], *extras} & {*known})
    content = b"".join((ROOT / name).read_bytes() for name in ("uv.lock", "pyproject.toml"))
    now = [torch, sys.version.split()[0], hashlib.sha256(content).hexdigest(), *extras]
    if before != now:
        check_space(torch)
        bootstrap()
        READY.unlink(missing_ok=True)
        if before[:2] != now[:2] or not PYTHON.exists():
            run("Making .venv", UV, "venv", "--clear", "--quiet", "--python", BASE_PYTHON, VENV)
        requirements, torch_version = export(torch, extras)
        if torch == "cpu":
            pip = [TOOLS / "venv/bin/python", "-m", "pip", "--python", PYTHON]
            run("Torch for the CPU", *pip, "install", "--quiet", "--no-deps", f"torch=={torch_version}+cpu")
        pip = [UV, "pip", "install", "--compile-bytecode", "--python", PYTHON]
        run("Installing the locked packages", *pip, "--require-hashes", "-r", requirements)
        run("Installing mbaug", *pip, "--quiet", "--no-deps", "--editable", ROOT)
        for folder in ("cache", "tmp"):  # kept until here, so that an interrupted set-up goes on where it was
            shutil.rmtree(TOOLS / folder, ignore_errors=True)
        READY.write_text(" ".join(now) + "\n")
        print("setup: .venv is ready.", file=sys.stderr)
    READY.touch()  # make compares times


def relock(*arguments: str) -> None:
    """Locks anew, with arguments for `uv lock` such as `--upgrade`, and takes the addresses out."""
    bootstrap()
    run("Locking", UV, "lock", "--python", BASE_PYTHON, *arguments)
    path = ROOT / "uv.lock"
    text = re.sub(r'registry = "[^"]+"', 'registry = "https://index.invalid/simple"', path.read_text())
    path.write_text(re.sub(r'url = "[^"]+/([^"/]+)"', r'url = "https://files.invalid/\1"', text))


def check_space(torch: str) -> None:
    """Refuses to start what the disk cannot hold."""
    free = shutil.disk_usage(ROOT).free
    if not PYTHON.exists() and free < FREE_BYTES[torch]:
        smaller = " (3 GB with TORCH=cpu)" if torch == "default" else ""
        raise SystemExit(
            f"setup: {ROOT} has {free / 1e9:.1f} GB of free disk space, and set-up needs "
            f"{FREE_BYTES[torch] / 1e9:.0f} GB{smaller}: make room, then run the same command again."
        )


def bootstrap() -> None:
    """Installs the version of uv that pyproject.toml asks for, into a virtual environment of its own."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["required-version"]
    if not UV.exists() or f"=={output(UV, '--version').split()[1]}" != version:
        run("Making .uv", BASE_PYTHON, "-m", "venv", "--clear", TOOLS / "venv")
        run("Installing uv", TOOLS / "venv/bin/python", "-m", "pip", "install", "--quiet", f"uv{version}")


def export(torch: str, extras: Sequence[str]) -> tuple[Path, str]:
    """Returns the file of locked requirements, without torch and CUDA for `cpu`, and torch's locked version."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    names = {package["name"] for package in packages if package["name"].startswith(("torch", *CUDA))}
    left_out = sorted(names) if torch == "cpu" else []
    requirements = TOOLS / "requirements.txt"
    options = ["--quiet", "--frozen", "--no-emit-project", "-o", requirements, *(f"--extra={extra}" for extra in extras)]
    run("Reading uv.lock", UV, "export", *options, *(f"--no-emit-package={name}" for name in left_out))
    return requirements, next(p["version"] for p in packages if p["name"] == "torch")


def environment() -> dict[str, str]:
    """Returns the environment for pip and uv: nothing is written outside the clone; both use pip's index."""
    ours = {
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "TMPDIR": str(TOOLS / "tmp"),
        "UV_CACHE_DIR": str(TOOLS / "cache"),
        "UV_PYTHON_DOWNLOADS": "never",
    }
    (TOOLS / "tmp").mkdir(exist_ok=True)
    if "UV_DEFAULT_INDEX" not in os.environ and (index := pip_index()):
        ours["UV_DEFAULT_INDEX"] = index
    return os.environ | ours


def pip_index() -> str:
    """Returns the index that pip is set up for, empty where that is its own default."""
    configured = output(BASE_PYTHON, "-m", "pip", "config", "get", "global.index-url")
    return os.environ.get("PIP_INDEX_URL") or configured.strip()


def output(*command: str | Path) -> str:
    """Returns what a program says, nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def run(what: str, *command: str | Path) -> None:
    """Runs one step, passing its messages on; a step that fails ends set-up with one sentence."""
    print(f"setup: {what} ...", file=sys.stderr, flush=True)
    lines = []
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(list(map(str, command)), env=environment(), cwd=ROOT, **streams) as process:
        for line in process.stdout:
            lines.append(line)
            if not line.startswith(" + "):
                print("   ", line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SystemExit(f"setup: {what} failed, {advice(''.join(lines))}, then run the same command again.")


def advice(messages: str) -> str:
    """Returns what to do after a failed step, judged by its messages."""
    if "No space left" in messages or shutil.disk_usage(ROOT).free < 1e8:
        return "the disk is full: make room"
    if "torch" in messages and "+cpu" in messages and "No matching distribution" in messages:
        return "pip's index has no such file: point pip at one that has it, or say TORCH=default"
    if NETWORK.search(messages):
        return "the package index is out of reach or lacks a file: check the network, or set PIP_INDEX_URL"
    return "its messages above say why: mend that"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        problem = f"{error.filename} cannot be used ({error.strerror})"
        raise SystemExit(f"setup: {problem}: mend that, then run the same command again.") from None
