"""Streams: a name and a seed give the same numbers for ever; another name or seed gives others."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbaug import streams

NAMES = st.lists(st.one_of(st.text(min_size=1, max_size=8), st.integers(0, 2**31)), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**31)


@settings(deadline=None)
@given(SEEDS, NAMES)
def test_a_stream_is_the_same_whenever_it_is_asked_for(seed, name):
    first, again = (streams.numpy_generator(seed, *name).integers(2**62, size=4) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@settings(deadline=None)
@given(SEEDS, SEEDS, NAMES, NAMES)
def test_another_name_or_seed_is_another_stream(seed, other_seed, name, other_name):
    first = streams.numpy_generator(seed, *name).integers(2**62, size=4)
    other = streams.numpy_generator(other_seed, *other_name).integers(2**62, size=4)
    assert (seed, name) == (other_seed, other_name) or not np.array_equal(first, other)


def test_the_numbers_are_these():
    """Recorded runs depend on them: a change here changes every run that is trained again."""
    assert streams.integer(0, "environment") == 1650919450
    (generator,) = streams.torch_generators([3], "batches")
    assert torch.randint(1_000_000, (3,), generator=generator).tolist() == [318652, 351157, 219103]


def test_the_streams_of_training_are_independent():
    """What the project draws from, for some seeds and occasions: no two streams are related."""
    names = ["initialisation", "batches", "update noise", "exploration", "uniform actions", "imagined samples", "draw"]
    named = [(name,) for name in names] + [("evaluation", "finetune", step, k) for step in (0, 5000) for k in range(3)]
    draws = [streams.numpy_generator(seed, *name).normal(size=2000) for seed in range(3) for name in named]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.12  # 5 standard errors


def test_drawing_from_one_stream_leaves_another_where_it_was():
    batches, noise = (streams.torch_generators([0], name)[0] for name in ("batches", "noise"))
    torch.rand(100, generator=batches)
    (fresh,) = streams.torch_generators([0], "noise")
    assert torch.equal(torch.rand(5, generator=noise), torch.rand(5, generator=fresh))


def test_an_agents_generator_does_not_depend_on_its_neighbours():
    alone, (_, among, _) = streams.torch_generators([7], "batches"), streams.torch_generators([3, 7, 5], "batches")
    assert torch.equal(torch.rand(5, generator=alone[0]), torch.rand(5, generator=among))


def test_integers_are_what_environments_take():
    numbers = [streams.integer(seed, "evaluation", "pretrain", step) for seed, step in itertools.product(range(50), range(20))]
    assert all(0 <= number < 2**31 for number in numbers)
    assert len(set(numbers)) == len(numbers)
