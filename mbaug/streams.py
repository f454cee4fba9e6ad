"""Independent, named random streams under one seed.

Each purpose of each agent has its own stream. So evaluating more often, adding a figure or training other agents alongside
never changes which batches an agent draws.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch


def sequence(seed: int, *name: str | int) -> np.random.SeedSequence:
    """Returns the seed sequence of a stream. Its `name` consists of words and counters, e.g. "evaluation", "finetune", 5000."""
    key = tuple(part if isinstance(part, int) else zlib.crc32(part.encode()) for part in name)
    return np.random.SeedSequence(seed, spawn_key=key)


def numpy_generator(seed: int, *name: str | int) -> np.random.Generator:
    """Returns a NumPy generator for the stream `name` under `seed`."""
    return np.random.default_rng(sequence(seed, *name))


def torch_generator(seed: int, *name: str | int, device: str = "cpu") -> torch.Generator:
    """Returns a torch generator for the stream `name` under `seed`. (On the CPU torch reads 32 bits of its seed.)"""
    return torch.Generator(device).manual_seed(int(sequence(seed, *name).generate_state(1, np.uint64)[0] >> 1))


def torch_generators(seeds: Sequence[int], *name: str | int, device: str = "cpu") -> list[torch.Generator]:
    """Returns one torch generator per seed, for the stream `name`."""
    return [torch_generator(seed, *name, device=device) for seed in seeds]


def integer(seed: int, *name: str | int) -> int:
    """Returns a 31-bit integer from the stream `name`, to seed an environment with."""
    return int(sequence(seed, *name).generate_state(1)[0] >> 1)
