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
    numbers = torch.randint(1_000_000, (3,), generator=streams.torch_generator(3, "evaluation", "finetune", 5000))
    assert numbers.tolist() == [851333, 317011, 704280]
