"""Checkpoints, from which an interrupted run resumes: one safetensors file with plain data in its header. No pickle.

Each stage of a run has a folder for its checkpoint, which one process holds at a time.
"""

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, SoftFileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mbaug import files
from mbaug.engine.process import warn_once
from mbaug.method import training
from mbaug.method.training import Learner
from mbaug.provenance import circumstances

NAME = "checkpoint.safetensors"
REMEDY = "remove its folder to start this stage again"
COUNTERS = ("gradient_steps", "environment_steps", "diverged_at")  # counters of a learner that a checkpoint stores
NO_LOCKS = errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP  # errors of flock on file systems without locks


class CheckpointDamaged(ValueError):
    """A checkpoint's content is not what was written."""


# --- folders of stages ----------------------------------------------------------------------------------------------------


def key(*parts: object) -> str:
    """Returns a digest of `parts`, the name of the work that depends only on them."""
    return files.sha256(json.dumps(files.plain(parts), sort_keys=True).encode())[:16]


def stage(work: Path, *parts: object) -> Path:
    """Returns the folder of checkpoints of a stage that depends on `parts`, and on code, versions and processor.

    So a stage starts again after a change of code, versions or processor.
    """
    return work / key(*parts, circumstances())


@contextmanager
def lock(folder: Path, blocking: bool = True) -> Iterator[None]:
    """Holds the lock of a folder. Only one process can hold it, and it is released when that process ends, even by a kill.

    Without `blocking`, raises Timeout if another process holds the lock.
    """
    with files.in_one_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / "lock", blocking=blocking).acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warn_once(
            f"the file system of {folder.parent} has no locks ({error.strerror}), so files named lock.soft replace them. If a "
            "crash of the machine leaves one behind, remove it. It is better to put build/ on a local disk"
        )
        held = SoftFileLock(folder / "lock.soft", blocking=blocking).acquire()
    with held:
        yield


# --- checkpoints ----------------------------------------------------------------------------------------------------------


def packed(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Returns the content of one safetensors file that holds tensors, plain data, and a digest of both.

    Args:
        tensors: on any device; tensors that share memory are stored as separate copies.
        state: anything that `files.plain` accepts. Integers of any size and NaN are restored exactly; tuples become lists.
    """
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(files.plain(state))
    return safetensors.torch.save(copies, {"state": text, "sha256": _digest(copies, text)})


def unpacked(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, on the CPU, and the plain data of a file with the content that `packed` returned.

    Raises:
        CheckpointDamaged: The content is not what was written. The sentence ends with `remedy`.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if {"state", "sha256"} <= {*header} and _digest(tensors, header["state"]) == header["sha256"]:
            return tensors, json.loads(header["state"])
        reason = "its content does not match its SHA-256"
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
    raise CheckpointDamaged(f"{path} is damaged ({reason}): {remedy}")


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Replaces a folder's checkpoint. At any moment the folder holds the old one or the new one."""
    files.write_atomically(folder / NAME, packed(tensors, state))


def exists(folder: Path) -> bool:
    """Returns whether a folder holds a checkpoint."""
    return (folder / NAME).exists()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, on the CPU, and the plain data of a folder's checkpoint; raises as `unpacked`."""
    return unpacked(folder / NAME, REMEDY)


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Raises CheckpointDamaged if a checkpoint cannot be restored because it belongs to another stage or arm."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # RuntimeErrors too, but the device's fault and not the file's
        raise
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it is from another stage: {type(error).__name__} {error}".partition("\n")[0]
        raise CheckpointDamaged(f"{folder / NAME} is damaged ({reason}): {REMEDY}") from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Returns the SHA-256 of a text and of the tensors' names and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict]:
    """Returns everything a learner needs to resume, as tensors and plain data."""
    tensors = training.memory(learner)
    for name, generators in learner.generators.items():
        tensors |= {f"random.{name}.{k}": generator.get_state() for k, generator in enumerate(generators)}
    return tensors, {name: getattr(learner, name) for name in COUNTERS} | {"streams": list(learner.generators)}


def restore_learner(learner: Learner, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Sets a fresh learner to the state that `learner_state` returned."""
    for name, tensor in training.memory(learner).items():
        expected, found = ((x.dtype, tuple(x.shape)) for x in (tensor, tensors[name]))
        if found != expected:  # copy_ would broadcast a smaller tensor and round another dtype
            raise RuntimeError(f"{name} is {found} instead of {expected}")
        tensor.copy_(tensors[name])
    for name in state["streams"]:
        for k, generator in enumerate(learner.stream(name)):
            generator.set_state(tensors[f"random.{name}.{k}"])
    for name in COUNTERS:
        setattr(learner, name, state[name])
