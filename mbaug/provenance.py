"""What a result depends on besides its settings: commit, versions, processor and precision."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Annotated

import torch

from mbaug import __version__
from mbaug.checks import Bound, settings

COMMIT = r"([0-9a-f]{40}|[0-9a-f]{64})(\+dirty)?|unknown"
Commit = Annotated[str, Bound(lambda x: bool(re.fullmatch(COMMIT, x)), "a commit, perhaps with +dirty, or unknown")]

VERSIONED = "numpy", "gymnasium", "mujoco"  # packages on which a result depends, besides torch
TRAINING = (  # code of this package that decides what a run learns and what its record holds
    "streams.py",
    "engine",
    "tasks.py",
    "method",
    "datasets/check.py",
    "experiments/models.py",
    "experiments/measures.py",
    "experiments/run.py",
)
OPTIONAL = {"device", "earlier_commits"}  # fields of `Provenance` that a file may lack


@settings
class Provenance:
    """The result of `provenance`, as records and cards store it."""

    commit: Commit
    python: str
    torch: str
    numpy: str
    gymnasium: str
    mujoco: str
    mbaug: str
    cpu: str
    precision: str
    device: str | None = None  # name of the GPU that trained, None for the processor
    earlier_commits: tuple[Commit, ...] = ()  # other commits whose code trained a part of the run


def provenance(precision: str, device: str = "cpu") -> dict[str, str]:
    """Returns commit, versions, processor and precision as plain data, and the GPU's name if a GPU trains."""
    gpu = {} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}
    versions = {"python": platform.python_version(), **_versions(), "mbaug": __version__}
    return {"commit": commit(), **versions, "cpu": processor(), **gpu, "precision": precision}


@cache
def circumstances() -> dict[str, str]:
    """Returns what a trained number depends on, apart from settings and data: versions, processor, and the code that trains.

    Cached, and first called before training, for the same reason as `commit`.
    """
    return {**_versions(), "cpu": processor(), "code": code()}


def _versions() -> dict[str, str]:
    """Returns the versions of the packages on which a result depends."""
    found = str(torch.__version__)  # includes the CUDA version, which the default wheel's metadata leaves out
    return {"torch": found, **{name: importlib.metadata.version(name) for name in VERSIONED}}


def code() -> str:
    """Returns the SHA-256 of the training code (TRAINING), without comments and docstrings.

    Line breaks do not count either. Minor versions of Python parse the same code to different
    trees. So only the Python version that wrote a checkpoint can continue it.
    """
    package, digest = Path(__file__).resolve().parent, hashlib.sha256()
    for part in TRAINING:
        for path in sorted((package / part).glob("*.py")) or [package / part]:
            tree = ast.parse(path.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:]
            digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@cache
def commit() -> str:
    """Returns the commit of the running code, with "+dirty" if a file of the package has changed since or is not in it.

    Returns "unknown" if the package has no git repository of its own. A repository around it, such as a user's project, does
    not count. Cached, and first called before training, because hours later the folder may hold other code than was imported.
    """
    package = Path(__file__).resolve().parent
    try:
        top, tracked = _git(package, "rev-parse", "--show-toplevel"), _git(package, "ls-files", "--", "__init__.py")
        if Path(top).resolve() != package.parent or not tracked:
            return "unknown"
        head, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository at all
        return "unknown"
    return f"{head}+dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    """Returns the output of a git command in a folder, without variables such as GIT_DIR, which may name another repository.

    Git refuses a clone that another user owns, as in containers. We run its code anyway, so we trust it.
    """
    environment = {name: value for name, value in os.environ.items() if not re.match("GIT_(?!CONFIG_)", name)}
    command = ["git", "-c", f"safe.directory={folder.parent}", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def processor() -> str:
    """Returns the processor's name, on Linux with family and model, because a virtual machine's name is often only a brand.

    Linux gives no name on ARM, but numbers of the implementer and of the part.
    """
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    named = r"^(model name|cpu family|model|CPU implementer|CPU part)\s*:\s*(.+)$"
    facts = dict(re.findall(named, first, re.MULTILINE))
    name = facts.pop("model name", platform.machine())
    return ", ".join([name, *(f"{fact.removeprefix('cpu ')} {value}" for fact, value in facts.items())])
