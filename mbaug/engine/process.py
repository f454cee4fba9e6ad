"""What a process must be told before it trains: one thread, the fastest product at the wanted precision, memory that stays."""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch

from mbaug.checks import choose

KEPT = {-1: 2**28, -3: 2**25}  # malloc.h: M_TRIM_THRESHOLD, bytes free at the top; M_MMAP_THRESHOLD, the most there is
DEVICES = "cpu", "cuda"
THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS"  # what torch and its libraries read when they are imported


@cache
def warn_once(sentence: str) -> None:
    """Warns with a sentence the first time that this process says it."""
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def tell_of_threads() -> None:
    """Tells who trains with several threads, once a process, what they cost; whatever trains calls it."""
    if (threads := torch.get_num_threads()) > 1:
        warn_once(
            f"torch uses {threads} threads: beside any other load they can train many times slower than one: threads that "
            "wait for each other spin (notebook 90_engine); torch.set_num_threads(1) or engine.prepare() before training"
        )


@cache
def processor_flags() -> frozenset[str]:
    """Returns the processor's instruction-set flags (empty where the system does not tell)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ()))


def has_bfloat16(device: str = "cpu") -> bool:
    """Returns whether the device multiplies bfloat16 itself."""
    return device != "cpu" or bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def keep_memory() -> bool:
    """Tells the C library to keep the memory that an update frees, once a process; returns whether it has such a switch.

    An update needs the same few megabytes as the one before. By default glibc gives them back and asks for them again, at
    times hundreds of page faults an update: which process does so is chance, since it depends on what was freed before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, size) for option, size in KEPT.items())


def devices() -> tuple[str, ...]:
    """Returns what can train here."""
    return DEVICES if torch.cuda.is_available() else DEVICES[:1]


def prepare(precision: str = "float32", device: str = "cpu") -> str:
    """Returns the precision that will really be used, after choosing one thread and the fastest product for it.

    Two intra-op threads beside any other load fall from hundreds of updates a second to a few: their barriers spin. So a
    process trains with one thread, and a study with one process a core; who asked for more threads is told so once.

    Numbers below 1e-38 become zero in this thread. A unit that is never active has no gradient, and its moments in Adam, times
    0.9 a step, end there and stay; a processor is many times slower on such numbers, and in long trainings on Hopper most
    moments of the actor are of that kind (notebook 90_engine). No weight notices: they are far from 1e-38.

    Float32 products go through oneDNN where it keeps all 24 bits, which is a little faster on AMD's Zen 4. Torch offers this
    only under the name "medium". On processors with AMX that name means bfloat16 inside, so there it is not used.
    """
    choose("device", device, devices())
    keep_memory()
    torch.set_flush_denormal(True)
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    for variable in THREADS:  # torch heeds one of them, not always that which was set
        if os.environ.get(variable, "1") == "1":
            continue
        warn_once(
            f"{variable}={os.environ[variable]} was set, but mbaug trains with one thread a "
            "process: beside any other load several can be many times slower, because threads that "
            "wait for each other spin (notebook 90_engine); use more cores by more processes"
        )
    if precision == "bfloat16" and not has_bfloat16(device):
        warn_once("this processor has no bfloat16 products (avx512_bf16 or amx_bf16): using float32")
        precision = "float32"
    if device != "cpu":
        return precision
    exact = not processor_flags() & {"amx_bf16"}
    through_onednn = exact and "avx512f" in processor_flags()
    torch.set_float32_matmul_precision("medium" if through_onednn else "highest")
    return precision
