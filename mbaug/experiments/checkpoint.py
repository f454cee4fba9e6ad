"""What lets an interrupted run go on: one safetensors file, whose header holds the plain data, replaced as a whole. No pickle."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mbaug import files
from mbaug.method import training
from mbaug.method.training import Learner

NAME = "checkpoint.safetensors"
REMEDY = "remove its folder to begin this stage again"
COUNTERS = ("gradient_steps", "environment_steps", "diverged_at")  # of a learner


class CheckpointDamaged(ValueError):
    """A checkpoint does not hold what was written."""


def packed(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> bytes:
    """Returns tensors and plain data as the content of one safetensors file, with a digest of both.

    Args:
        tensors: on any device; those that share memory are stored apart.
        state: what `files.plain` takes; integers of any size and NaN come back as they were, tuples as lists.
    """
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(files.plain(state))
    return safetensors.torch.save(apart, {"state": text, "sha256": _digest(apart, text)})


def unpacked(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, on the CPU, and the plain data of a file that holds what `packed` returned.

    Raises:
        CheckpointDamaged: the file is not what was written; the sentence ends with the remedy.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        tensors = safetensors.torch.load_file(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        if {"state", "sha256"} <= {*header} and _digest(tensors, header["state"]) == header["sha256"]:
            return tensors, json.loads(header["state"])
        reason = "its SHA-256 is not the one that was written"
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
    raise CheckpointDamaged(f"{path} is damaged ({reason}): {remedy}")


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes the checkpoint of a folder in place of its last one: at any moment there is the old one or the new one."""
    files.write_atomically(folder / NAME, packed(tensors, state))


def exists(folder: Path) -> bool:
    """Returns whether a folder holds a checkpoint."""
    return (folder / NAME).exists()


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors, on the CPU, and the state of a folder's checkpoint; raises as `unpacked`."""
    return unpacked(folder / NAME, REMEDY)


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Raises CheckpointDamaged where a checkpoint does not fit what is restored, as that of another arm would not."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"it is not of this stage: {type(error).__name__} {error}".partition("\n")[0]
        raise CheckpointDamaged(f"{folder / NAME} is damaged ({reason}): {REMEDY}") from error


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def learner_state(learner: Learner) -> tuple[dict[str, Tensor], dict]:
    """Returns all that a learner needs to go on, as tensors and plain data."""
    tensors = training.memory(learner)
    for name, generators in learner.generators.items():
        tensors |= {f"random.{name}.{k}": generator.get_state() for k, generator in enumerate(generators)}
    return tensors, {name: getattr(learner, name) for name in COUNTERS} | {"streams": list(learner.generators)}


def restore_learner(learner: Learner, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Sets a fresh learner to what `learner_state` returned."""
    for name, tensor in training.memory(learner).items():
        here, there = ((x.dtype, tuple(x.shape)) for x in (tensor, tensors[name]))
        if here != there:  # a smaller one would fill it, and another type be rounded
            raise RuntimeError(f"{name} is {there} instead of {here}")
        tensor.copy_(tensors[name])
    for name in state["streams"]:
        for k, generator in enumerate(learner.stream(name)):
            generator.set_state(tensors[f"random.{name}.{k}"])
    for name in COUNTERS:
        setattr(learner, name, state[name])
