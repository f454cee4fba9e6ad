"""What a number depends on beside its settings: the code, the versions, the processor, the arithmetic."""

import importlib.metadata
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

import torch

from mbaug import __version__
from mbaug.checks import settings


@settings
class Provenance:
    """What `provenance` gives, as records and cards hold it."""

    commit: str
    python: str
    torch: str
    numpy: str
    gymnasium: str
    mujoco: str
    mbaug: str
    cpu: str
    precision: str
    device: str | None = None  # what trained, where it is not the processor
    earlier_commits: tuple[str, ...] = ()  # of the code that trained a part


def provenance(precision: str, device: str = "cpu") -> dict[str, str]:
    """Returns commit, versions, processor and precision as plain data.

    Args:
        precision: The arithmetic that training used, "float32" or "bfloat16".
        device: What trained; it is named where it is not the processor.
    """
    gpu = {} if device == "cpu" else {"device": torch.cuda.get_device_name(device)}
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "gymnasium", "mujoco")}
    torch_version = str(torch.__version__)  # names its CUDA, where the metadata of the default wheel do not
    versions = {"python": platform.python_version(), "torch": torch_version, **packages, "mbaug": __version__}
    return {"commit": commit(), **versions, "cpu": processor(), **gpu, "precision": precision}


@cache
def commit() -> str:
    """Returns the commit of the code that runs, with "+dirty" where a tracked file of the package differs from it.

    Asked once a process, before it trains: hours later the folder may hold other code than was imported.
    """
    try:
        head, changes = _git("rev-parse", "HEAD"), _git("diff", "--name-only", "HEAD", "--", ".")
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy of the code without its history
        return "unknown"
    return f"{head}+dirty" if changes else head


def _git(*arguments: str) -> str:
    """Returns what git answers in the package's folder."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor() -> str:
    """Returns the processor's name, on Linux with its family and model: a virtual machine often tells the brand alone."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)$", first, re.MULTILINE))
    name = facts.pop("model name", platform.machine())
    return ", ".join([name, *(f"{fact.removeprefix('cpu ')} {value}" for fact, value in facts.items())])
