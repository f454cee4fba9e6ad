"""Prepares a process for training: one thread, the fastest matrix products, and memory that is kept for reuse."""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch

from mbaug.checks import choose, require

MALLOC_OPTIONS = {-1: 2**28, -3: 2**25}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h, in bytes
DEVICES = "cpu", "cuda"
THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS"  # variables that torch and its libraries read on import


@cache
def warn_once(sentence: str) -> None:
    """Issues a RuntimeWarning the first time that this process calls it with the sentence."""
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def warn_of_threads() -> None:
    """Warns once per process if torch uses several threads, because they are often slower than one."""
    if (threads := torch.get_num_threads()) > 1:
        warn_once(
            f"torch uses {threads} threads, which can train many times slower than one beside any other load, because they "
            "spin while they wait for each other (notebook 90_engine): call torch.set_num_threads(1) or engine.prepare() first"
        )


@cache
def processor_flags() -> frozenset[str]:
    """Returns the processor's instruction-set flags, empty if the system does not report them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ()))


def has_bfloat16(device: str = "cpu") -> bool:
    """Returns whether the device has bfloat16 products in hardware. Torch emulates them elsewhere, which is far slower."""
    if device != "cpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def keep_memory() -> None:
    """Tells the C library to keep the memory that an update frees, if the library has this option.

    An update needs the same few megabytes as the one before. By default glibc may return them to
    the system and request them again, which costs hundreds of page faults per update. Which
    processes are affected depends on earlier frees, and so on chance.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option, size in MALLOC_OPTIONS.items():
        mallopt(option, size)


def check_device(device: str) -> None:
    """Raises ValueError if the device is unknown, or if this machine lacks it."""
    choose("device", device, DEVICES)
    absent = "the device is 'cuda', but torch finds no NVIDIA GPU here: use 'cpu', or install a torch with CUDA for your GPU"
    require(device == "cpu" or torch.cuda.is_available(), absent)


def prepare(precision: str = "float32", device: str = "cpu") -> None:
    """Prepares this process for training.

    When other processes are busy, two threads can be several times slower than one, because they
    spin at their barriers. So each process trains with one thread, and a study runs one process per
    core. Users who request more threads get a warning.

    Numbers below 1e-38 become zero in this thread, because a processor is several times slower on them. A unit that is never
    active has no gradient, so Adam multiplies its moments by 0.9 at each step until they are that
    small. In long runs on Hopper this happens to most moments of the actor (notebook 90_engine).
    Such moments are too small to move a weight.

    Float32 products use oneDNN where it keeps all 24 bits, which is slightly faster on AMD's Zen 4. Torch calls this "medium"
    precision. On processors with AMX, "medium" computes in bfloat16, and on a GPU in TF32, so we do not use it there.

    Raises:
        ValueError: The device is unknown, this machine lacks it, or it cannot multiply in the precision.
    """
    check_device(device)
    lacking = f"precision is 'bfloat16', but the device {device!r} has no bfloat16 products in hardware"
    remedy = "(on a CPU: avx512_bf16 or amx_bf16): use another precision, or a machine that has them"
    require(precision != "bfloat16" or has_bfloat16(device), f"{lacking} {remedy}")
    keep_memory()
    torch.set_flush_denormal(True)
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
    for variable in THREADS:  # torch reads only one of them, not always the one that was set
        if os.environ.get(variable, "1") == "1":
            continue
        warn_once(
            f"{variable}={os.environ[variable]} was set, but mbaug trains with one thread per process, "
            "because several can be many times slower beside any other load: they spin while they wait "
            "for each other (notebook 90_engine); to use more cores, use more processes"
        )
    flags = processor_flags()
    through_onednn = device == "cpu" and "avx512f" in flags and "amx_bf16" not in flags
    torch.set_float32_matmul_precision("medium" if through_onednn else "highest")
