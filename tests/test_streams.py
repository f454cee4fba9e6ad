"""Random streams: a name and a seed always give the same numbers; another name or seed gives others."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbaug import streams

NAMES = st.lists(st.one_of(st.text(min_size=1, max_size=8), st.integers(0, 2**31)), min_size=1, max_size=3)
SEEDS = st.integers(0, 2**31)


@given(SEEDS, SEEDS, NAMES, NAMES)
def test_the_same_name_and_seed_give_the_same_stream_and_others_give_another(seed, other_seed, name, other_name):
    first, again = (streams.numpy_generator(seed, *name).integers(2**62, size=4) for _ in range(2))
    other = streams.numpy_generator(other_seed, *other_name).integers(2**62, size=4)
    np.testing.assert_array_equal(first, again)
    assert (seed, name) == (other_seed, other_name) or not np.array_equal(first, other)
    assert 0 <= streams.integer(seed, *name) < 2**31, "environments take seeds in this range"


def test_the_numbers_of_a_stream_never_change():
    """Recorded runs depend on them: a change would alter every run that is trained again."""
    assert streams.integer(0, "environment") == 1650919450
    numbers = torch.randint(1_000_000, (3,), generator=streams.torch_generator(3, "batches"))
    assert numbers.tolist() == [318652, 351157, 219103]


def test_the_streams_of_training_are_independent():
    """Numbers of any two streams that the project uses, at some seeds and occasions, are uncorrelated."""
    names = ["initialisation", "batches", "update noise", "exploration", "uniform actions", "imagined samples", "draw"]
    named = [(name,) for name in names] + [("evaluation", "finetune", step, k) for step in (0, 5000) for k in range(3)]
    draws = [torch.randn(2000, generator=streams.torch_generator(seed, *name)).numpy() for seed in range(3) for name in named]
    assert np.abs(np.corrcoef(draws) - np.eye(len(draws))).max() < 0.12  # 5 standard errors


def test_drawing_from_one_stream_does_not_advance_another():
    """Neither a stream of another name nor the same stream of another seed."""
    (batches, neighbour), (noise,) = streams.torch_generators([7, 3], "batches"), streams.torch_generators([7], "noise")
    torch.rand(100, generator=batches)
    for generator, seed, name in ((noise, 7, "noise"), (neighbour, 3, "batches")):
        assert torch.equal(torch.rand(5, generator=generator), torch.rand(5, generator=streams.torch_generator(seed, name)))
