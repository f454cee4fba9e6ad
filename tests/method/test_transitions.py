"""What agents learn from: datasets, draws, packed rows, standardisers and replay buffers."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import dataset, refused

from mbaug.method import transitions
from mbaug.method.transitions import ROWS, Dataset, ReplayBuffer, Standardiser

quick = settings(max_examples=20)
DATASETS = st.builds(dataset, st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))


def row_numbers(part, whole):
    """Returns the row numbers in `whole` of the transitions in `part`, found by their states."""
    return [int(np.flatnonzero((whole.state == row).all(axis=1))[0]) for row in part.state]


def test_a_dataset_refuses_numbers_that_are_not_finite_and_columns_that_do_not_fit():
    made = dataset(5)
    for field in ("state", "action", "reward", "next_state"):
        for value in (np.nan, np.inf):
            bad = getattr(made, field).copy()
            bad[3] = value
            sentence = f"made: {field} holds NaN or infinity in 1 rows (first: row 3); only finite numbers are allowed"
            assert refused(made, field, bad) == sentence
    assert refused(made, "reward", np.zeros(4)) == "made: reward has 4 rows, but state has 5: they must agree"
    assert refused(made, "action", np.zeros(5)) == "made: action has the shape (5,), but its number of axes must be 2"
    assert refused(made, "next_state", np.zeros((5, 2))) == "made: next_state has shape (5, 2), but state has (5, 3)"


def test_the_hash_of_a_dataset_depends_on_its_contents_alone():
    first = dataset(5)
    assert first.sha256 == dataset(5, name="another name").sha256
    for field in ROWS[:6]:
        changed = getattr(first, field).copy()
        changed[2] = ~changed[2] if changed.dtype == bool else changed[2] + 1
        assert dataclasses.replace(first, **{field: changed}).sha256 != first.sha256
    assert first.rows(np.array([1, 0, 2, 3, 4])).sha256 != first.sha256
    assert len(first.rows(np.arange(0))) == 0, "a dataset may be empty, as the rest is when a whole pool is drawn"


@quick
@given(DATASETS, st.data(), st.integers(0, 2**31))
def test_a_draw_and_the_rest_make_up_the_pool_without_repetition(pool, data, seed):
    size, before = data.draw(st.integers(1, len(pool))), Dataset.sha256.func(pool)
    drawn, rest = transitions.draw(pool, size, seed)
    assert (len(drawn), len(rest)) == (size, len(pool) - size)
    numbers = row_numbers(drawn, pool)
    assert sorted(numbers + row_numbers(rest, pool)) == list(range(len(pool)))
    for field in ROWS:
        np.testing.assert_array_equal(getattr(drawn, field), getattr(pool, field)[numbers])
    assert drawn.sha256 == transitions.draw(pool, size, seed)[0].sha256
    assert len(pool) < 10 or transitions.draw(pool, 9, seed)[0].sha256 != transitions.draw(pool, 9, seed + 1)[0].sha256
    assert Dataset.sha256.func(pool) == before


@quick
@given(DATASETS, st.data(), st.integers(0, 2**31))
def test_drawn_episodes_are_whole_except_the_last(pool, data, seed):
    size, before = data.draw(st.integers(1, len(pool))), Dataset.sha256.func(pool)
    drawn, rest = transitions.draw_episodes(pool, size, seed)
    assert len(drawn) == size
    assert not set(drawn.episode) & set(rest.episode)
    parts = np.split(np.arange(size), np.flatnonzero(np.diff(drawn.episode)) + 1)
    for number, part in enumerate(parts):
        whole = np.flatnonzero(pool.episode == drawn.episode[part[0]])
        assert number == len(parts) - 1 or len(part) == len(whole)
        np.testing.assert_array_equal(drawn.state[part], pool.state[whole[: len(part)]])  # in their recorded order
        assert drawn.terminal[part[-1]] ^ drawn.truncated[part[-1]], "an episode that the draw cuts is marked as truncated"
    assert drawn.sha256 == transitions.draw_episodes(pool, size, seed)[0].sha256
    assert Dataset.sha256.func(pool) == before


@pytest.mark.parametrize("size", [0, 6])
def test_a_draw_of_nothing_or_of_more_than_the_pool_is_refused(size):
    for draw in (transitions.draw, transitions.draw_episodes):
        with pytest.raises(ValueError, match=f"^{size} transitions were requested, but made has 5: allowed are 1 to 5$"):
            draw(dataset(5), size, 0)


def test_a_composed_dataset_is_drawn_in_equal_shares():
    """From parts of 90 and 40 rows, a draw of 40 takes 20 of each, in pairs of one row each."""
    pool = dataclasses.replace(dataset(130), part=np.repeat([0, 1], [90, 40]))
    drawn, rest = transitions.draw(pool, 40, seed=0)
    assert (drawn.part.reshape(20, 2).sum(axis=1) == 1).all(), "each pair of rows has one from each part"
    assert sorted(row_numbers(drawn, pool) + row_numbers(rest, pool)) == list(range(130))
    assert drawn.sha256 != transitions.draw(pool, 40, seed=1)[0].sha256
    with pytest.raises(ValueError, match="made is composed of several pools, but whole episodes are drawn from one alone"):
        transitions.draw_episodes(pool, 40, seed=0)


@quick
@given(DATASETS)
def test_unpacking_packed_rows_gives_back_the_transitions(pool):
    """Bit for bit. A batch has no `truncated`, since only a terminal cuts the bootstrap; the packed row keeps it."""
    packed = transitions.pack(pool)
    batch = transitions.unpack(packed.unsqueeze(0), pool.state.shape[1], pool.action.shape[1])
    for field in transitions.Batch._fields:
        part = getattr(batch, field)
        assert part.is_contiguous()
        np.testing.assert_array_equal(part[0].numpy(), getattr(pool, field).astype(np.float32))
    np.testing.assert_array_equal(packed[:, -1].numpy(), pool.truncated)


def test_a_table_standardises_states_and_changes_nothing_else():
    pools = [dataset(6, seed=seed) for seed in range(2)]
    standardiser = Standardiser.fit([pool.state for pool in pools], 1e-3)
    batch = transitions.unpack(transitions.table(pools, standardiser), 3, 2)
    for k, pool in enumerate(pools):
        for field in ("state", "next_state"):  # both by the mean and standard deviation of the states
            expected = (getattr(pool, field) - pool.state.mean(axis=0)) / (pool.state.std(axis=0) + 1e-3)
            np.testing.assert_allclose(getattr(batch, field)[k].numpy(), expected, rtol=0, atol=1e-5)
        for field in ("action", "reward", "terminal"):
            np.testing.assert_array_equal(getattr(batch, field)[k].numpy(), getattr(pool, field).astype(np.float32))
    assert transitions.table(pools, standardiser, torch.float64).dtype == torch.float64
    with pytest.raises(ValueError, match=r"^there are 2 datasets, but the standardiser is for 1: give one for each$"):
        transitions.table(pools, standardiser.of(0))
    with pytest.raises(ValueError, match=r"^the datasets have \[6, 5\] rows, but all agents of a population need equally many$"):
        transitions.table([pools[0], dataset(5)], standardiser)
    unscaled = transitions.table(pools, Standardiser.identity(2, 3))
    assert torch.equal(unscaled, torch.stack([transitions.pack(pool) for pool in pools]))


def test_each_agents_standardiser_applies_to_all_samples_of_a_row():
    """With as many rows as agents a wrong axis raises no error: only the numbers show it."""
    state = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    standardiser = Standardiser(torch.arange(6.0).view(2, 3), torch.arange(1.0, 7.0).view(2, 3))
    expected = torch.stack([standardiser.of(k).apply(state[k].flatten(0, 1)).view(2, 5, 3) for k in (0, 1)])
    assert torch.equal(standardiser.apply(state), expected)
    torch.testing.assert_close(standardiser.invert(expected), state)
    assert torch.equal(standardiser.apply(state[:, 0, 0]), expected[:, 0, 0])
    assert torch.equal(standardiser.of(1).apply(state[1, 0, 0]), expected[1, 0, 0])


@quick
@given(st.integers(1, 3), st.lists(st.integers(1, 5), max_size=6), st.integers(0, 5))
def test_a_replay_buffer_keeps_rows_in_order_and_refuses_more_than_it_can_hold(population, counts, spare):
    buffer = ReplayBuffer(torch.zeros(population, sum(counts) + spare, 11))
    rows = [torch.randn(population, count, 11) for count in counts]
    for part in rows:
        buffer.extend(part)
    assert buffer.size == sum(counts)
    assert torch.equal(buffer.rows[:, : buffer.size], torch.cat([*rows, torch.zeros(population, 0, 11)], dim=1))
    sentence = f"{buffer.size + spare + 1} transitions were requested, but the replay buffer holds at most {buffer.size + spare}"
    with pytest.raises(ValueError, match=sentence):
        buffer.extend(torch.ones(population, spare + 1, 11))
    assert not buffer.rows[:, buffer.size :].any()
