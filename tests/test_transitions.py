"""What agents learn from: datasets, draws, packed rows, standardisers and replay buffers."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbaug import transitions
from mbaug.transitions import Dataset, ReplayBuffer, Standardiser

quick = settings(deadline=None, max_examples=20)


def dataset(rows, state=3, action=2, seed=0, name="made"):
    """Returns random transitions in episodes of random lengths."""
    rng = np.random.default_rng(seed)
    ends = rng.random(rows) < 0.3
    ends[-1:] = True
    falls = rng.random(rows) < 0.5
    return Dataset(
        name,
        rng.normal(size=(rows, state)).astype(np.float32),
        rng.uniform(-1, 1, (rows, action)).astype(np.float32),
        rng.normal(size=rows).astype(np.float32),
        rng.normal(size=(rows, state)).astype(np.float32),
        ends & falls,
        ends & ~falls,
        np.append(0, np.cumsum(ends)[:-1]).astype(np.int64)[:rows],
    )


DATASETS = st.builds(dataset, st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))


def row_numbers(part, whole):
    """Returns where the transitions of `part` are in `whole`, by their states."""
    return [int(np.flatnonzero((whole.state == row).all(axis=1))[0]) for row in part.state]


# --- datasets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["state", "action", "reward", "next_state"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_dataset_refuses_what_is_not_finite(field, value):
    array = getattr(dataset(5), field).copy()
    array[3] = value
    with pytest.raises(ValueError, match=rf"made: {field} holds NaN or infinity in 1 rows \(first: row 3\)"):
        dataclasses.replace(dataset(5), **{field: array})


def test_the_hash_of_a_dataset_is_that_of_its_contents():
    first = dataset(5)
    assert first.sha256 == dataset(5, name="another name").sha256
    for field in ("state", "action", "reward", "next_state"):
        changed = getattr(first, field).copy()
        changed[2] += 1
        assert dataclasses.replace(first, **{field: changed}).sha256 != first.sha256
    for field in ("terminal", "truncated"):
        assert dataclasses.replace(first, **{field: ~getattr(first, field)}).sha256 != first.sha256
    assert first.rows(np.array([1, 0, 2, 3, 4])).sha256 != first.sha256


@quick
@given(DATASETS, st.data())
def test_rows_are_those_asked_for_in_that_order(pool, data):
    index = np.array(data.draw(st.lists(st.integers(0, len(pool) - 1), min_size=1, max_size=9)))
    chosen = pool.rows(index)
    for field in ("state", "action", "reward", "next_state", "terminal", "truncated", "episode"):
        np.testing.assert_array_equal(getattr(chosen, field), getattr(pool, field)[index])


def test_a_dataset_may_be_empty():
    """What is left when all of a pool is drawn."""
    assert len(dataset(5).rows(np.arange(0))) == 0


# --- draws ----------------------------------------------------------------------------------------------------------------


@quick
@given(DATASETS, st.data(), st.integers(0, 2**31))
def test_a_draw_and_the_rest_are_the_pool_without_repetition(pool, data, seed):
    size = data.draw(st.integers(1, len(pool)))
    drawn, rest = transitions.draw(pool, size, seed)
    assert (len(drawn), len(rest)) == (size, len(pool) - size)
    assert sorted(row_numbers(drawn, pool) + row_numbers(rest, pool)) == list(range(len(pool)))
    again, _ = transitions.draw(pool, size, seed)
    assert drawn.sha256 == again.sha256


def test_each_seed_draws_its_own():
    draws = {transitions.draw(dataset(40), 10, seed)[0].sha256 for seed in range(20)}
    assert len(draws) == 20


def test_every_transition_is_as_likely_as_any_other():
    pool, counts = dataset(5), np.zeros(5)
    for seed in range(300):
        counts[row_numbers(transitions.draw(pool, 2, seed)[0], pool)] += 1
    assert np.abs(counts - 120).max() < 4 * np.sqrt(300 * 0.4 * 0.6)


@quick
@given(DATASETS, st.data(), st.integers(0, 2**31))
def test_drawn_episodes_are_whole_but_the_last(pool, data, seed):
    size = data.draw(st.integers(1, len(pool)))
    drawn, rest = transitions.draw_episodes(pool, size, seed)
    assert len(drawn) == size
    assert not set(drawn.episode) & set(rest.episode)
    boundaries = np.flatnonzero(np.diff(drawn.episode)) + 1
    parts = np.split(np.arange(size), boundaries)
    for number, part in enumerate(parts):
        whole = np.flatnonzero(pool.episode == drawn.episode[part[0]])
        assert number == len(parts) - 1 or len(part) == len(whole)
        np.testing.assert_array_equal(drawn.state[part], pool.state[whole[: len(part)]])  # in the order in which they happened
        assert drawn.terminal[part[-1]] ^ drawn.truncated[part[-1]], "where a recording is cut, it is truncated"
    assert drawn.sha256 == transitions.draw_episodes(pool, size, seed)[0].sha256


def test_drawing_leaves_the_pool_as_it_was():
    pool = dataset(20)
    before = dataset(20).sha256
    transitions.draw(pool, 5, 0)
    transitions.draw_episodes(pool, 5, 0)
    assert Dataset.sha256.func(pool) == before


@pytest.mark.parametrize("draw", [transitions.draw, transitions.draw_episodes])
@pytest.mark.parametrize("size", [0, 6])
def test_more_than_the_pool_has_cannot_be_drawn(draw, size):
    with pytest.raises(ValueError, match=f"^{size} transitions asked for, but made has 5: allowed are 1 to 5$"):
        draw(dataset(5), size, 0)


def test_a_composed_dataset_is_drawn_in_equal_shares():
    """Of 90 and 40 rows a draw of 40 takes 20 of each, pair by pair; the rest is what is left; episodes stay apart."""
    parts = dataset(90, seed=1), dataset(40, seed=2)
    pool = transitions.compose("both", parts)
    assert len(np.unique(pool.episode)) == sum(len(np.unique(part.episode)) for part in parts)
    drawn, rest = transitions.draw(pool, 40, seed=0)
    assert (drawn.part.reshape(20, 2).sum(axis=1) == 1).all(), "one of each, then the next of each"
    for number, part in enumerate(parts):
        from_part = [row.tobytes() for row in drawn.state[drawn.part == number]]
        assert set(from_part) <= {row.tobytes() for row in part.state}
    assert sorted(row_numbers(drawn, pool) + row_numbers(rest, pool)) == list(range(130))
    assert drawn.sha256 != transitions.draw(pool, 40, seed=1)[0].sha256
    with pytest.raises(ValueError, match="both is composed of several pools, but whole episodes are drawn from one alone"):
        transitions.draw_episodes(pool, 40, seed=0)


# --- packed rows ----------------------------------------------------------------------------------------------------------


@quick
@given(DATASETS)
def test_unpacking_packed_rows_gives_back_the_transitions(pool):
    packed = transitions.pack(pool)
    batch = transitions.unpack(packed.unsqueeze(0), pool.state.shape[1], pool.action.shape[1])
    for field in transitions.Batch._fields:
        part = getattr(batch, field)
        assert part.is_contiguous()
        np.testing.assert_array_equal(part[0].numpy(), getattr(pool, field).astype(np.float32))
    np.testing.assert_array_equal(packed[:, -1].numpy(), pool.truncated)


def test_only_a_terminal_cuts_the_bootstrap():
    pool = dataset(30)
    assert pool.terminal.any()
    assert pool.truncated.any()
    batch = transitions.unpack(transitions.pack(pool).unsqueeze(0), 3, 2)
    assert not batch.terminal[0, torch.from_numpy(pool.truncated)].any()
    assert batch.terminal[0, torch.from_numpy(pool.terminal)].all()


@quick
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_gather_takes_each_agents_rows_from_its_own_table(population, rows, block, batch, seed):
    g = torch.Generator().manual_seed(seed)
    tables = torch.randn(population, rows, 5, generator=g)
    index = torch.randint(rows, (block, population, batch), generator=g)
    found = transitions.gather(tables, index)
    assert found.shape == (block, population, batch, 5)
    for b, p, i in np.ndindex(block, population, batch):
        assert torch.equal(found[b, p, i], tables[p, index[b, p, i]])


# --- the standardiser -----------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 20), st.integers(1, 4), st.floats(-100, 100), st.floats(0, 100))
def test_standardising_is_undone_by_inverting(rows, size, mean, scale):
    states = [(mean + scale * dataset(rows, size, seed=seed).state).astype(np.float32) for seed in range(2)]
    standardiser = Standardiser.fit(states, 1e-3)
    state = torch.from_numpy(np.stack(states))
    torch.testing.assert_close(standardiser.invert(standardiser.apply(state)), state, rtol=1e-5, atol=1e-4)


def test_standardised_states_have_mean_0_and_standard_deviation_1():
    states = [7 + 3 * dataset(500, seed=seed).state for seed in range(2)]
    standardiser = Standardiser.fit(states, 0.0)
    applied = standardiser.apply(torch.from_numpy(np.stack(states)))
    torch.testing.assert_close(applied.mean(dim=1), torch.zeros(2, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(applied.std(dim=1, correction=0), torch.ones(2, 3), rtol=0, atol=1e-5)


def test_epsilon_is_added_to_the_standard_deviation():
    constant = np.full((5, 3), 4.0, dtype=np.float32)
    standardiser = Standardiser.fit([constant], 1e-3)
    torch.testing.assert_close(standardiser.std, torch.full((1, 3), 1e-3))
    assert standardiser.apply(torch.from_numpy(constant)[None]).eq(0).all()


def test_the_identity_changes_nothing():
    state = torch.randn(2, 5, 3)
    identity = Standardiser.identity(2, 3)
    assert torch.equal(identity.apply(state), state)
    assert torch.equal(identity.invert(state), state)


def test_a_table_holds_standardised_states_and_all_else_as_it_was():
    pools = [dataset(6, seed=seed) for seed in range(2)]
    standardiser = Standardiser.fit([pool.state for pool in pools], 1e-3)
    batch = transitions.unpack(transitions.table(pools, standardiser), 3, 2)
    for k, pool in enumerate(pools):
        for field in ("state", "next_state"):  # both with the state's mean and standard deviation
            expected = (getattr(pool, field) - pool.state.mean(axis=0)) / (pool.state.std(axis=0) + 1e-3)
            np.testing.assert_allclose(getattr(batch, field)[k].numpy(), expected, rtol=0, atol=1e-5)
        for field in ("action", "reward", "terminal"):
            np.testing.assert_array_equal(getattr(batch, field)[k].numpy(), getattr(pool, field).astype(np.float32))
    assert transitions.table(pools, standardiser, torch.float64).dtype == torch.float64


# --- the replay buffer ----------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 3), st.lists(st.integers(1, 5), max_size=6), st.integers(0, 5))
def test_a_replay_buffer_holds_what_it_was_given_in_that_order(population, counts, spare):
    buffer = ReplayBuffer(population, sum(counts) + spare, 3, 2)
    given_rows = [torch.randn(population, count, 11) for count in counts]
    for number, rows in enumerate(given_rows):
        assert buffer.size == sum(counts[:number])
        buffer.extend(rows)
    assert buffer.size == sum(counts)
    if counts:
        assert torch.equal(buffer.rows[:, : buffer.size], torch.cat(given_rows, dim=1))
    assert buffer.rows[:, buffer.size :].eq(0).all()


def test_a_full_replay_buffer_says_so_and_keeps_what_it_has():
    buffer = ReplayBuffer(2, 4, 3, 2)
    buffer.extend(torch.ones(2, 3, 11))
    with pytest.raises(ValueError, match="5 transitions asked for, but the replay buffer holds at most 4"):
        buffer.extend(torch.ones(2, 2, 11))
    assert buffer.size == 3
    assert buffer.rows[:, 3:].eq(0).all()
