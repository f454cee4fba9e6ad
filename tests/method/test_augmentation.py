"""Augmentation replaces exactly the requested share of next states, with the right distribution, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import generators
from scipy import stats

from mbaug.method import augmentation, imagination, world_model
from mbaug.method.networks import perceptron
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Batch, Standardiser

RATES, SIZES, SEEDS = st.floats(0, 1), st.integers(1, 40), st.integers(0, 2**31)


def random_batch(size, seed, *axes):
    """Returns a batch of random transitions with these leading axes."""
    shapes = (size, 3), (size, 2), (size,), (size, 3), (size,)
    generator = torch.Generator().manual_seed(seed)
    return Batch(*(torch.randn((*axes, *shape), generator=generator) for shape in shapes))


def random_rows(rows, generator=None):
    """Returns random states, actions and next states."""
    return [torch.randn(rows, size, generator=generator) for size in (3, 2, 3)]


def test_too_few_imagined_rows_are_refused():
    """The batch would lose rows of its next states alone."""
    batch = random_batch(4, 0, 1)
    with pytest.raises(ValueError, match=r"^1 imagined rows were given, but a batch needs 2$"):
        augmentation.augment(batch, batch.next_state[:, :1], 0.5)


@given(st.sampled_from([0.0, 0.5, 1.0]) | RATES, SIZES, SEEDS)
def test_exactly_the_requested_share_is_replaced_and_nothing_else(rate, size, seed):
    batch = random_batch(size, seed, 4, 2)  # a block of four batches for two agents
    imagined = batch.next_state + 1
    augmented = augmentation.augment(batch, imagined, rate)
    changed = (augmented.next_state != batch.next_state).any(dim=-1)
    assert (changed.sum(dim=-1) == round(rate * size)).all()
    assert torch.equal(augmented.next_state[changed], imagined[changed])
    for name in ("state", "action", "reward", "terminal"):
        assert getattr(augmented, name) is getattr(batch, name)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(ValueError, match=rf"^the augmentation rate is {rate}, but it must be in \[0, 1\]$"):
        augmentation.replaced(rate, 256)


@given(SIZES, st.integers(1, 5), SEEDS)
def test_picked_samples_belong_to_their_row_and_agent(count, samples, seed):
    """Sample m of row r of agent k is marked (k, r, m)."""
    rows, block, population = 7, 2, 2
    marks = torch.cartesian_prod(torch.arange(population), torch.arange(rows), torch.arange(samples)).float()
    index = torch.randint(rows, (block, population, count), generator=torch.Generator().manual_seed(seed))
    got = augmentation.pick(marks.view(population, rows, samples, 3), index, generators(0, 1))
    assert (got[..., 0] == torch.arange(population)[None, :, None]).all()
    assert (got[..., 1] == index).all()
    assert ((got[..., 2] >= 0) & (got[..., 2] < samples)).all()
    alone = augmentation.pick(marks.view(population, rows, samples, 3)[1:], index[:, 1:], generators(1))
    assert torch.equal(got[:, 1:], alone), "an agent's picks must not depend on the other agents"


def test_rows_are_sorted_by_doubt():
    """Rows 0, 1, 2 have the doubts 3, 1, 2 for one agent and 1, 2, 3 for the other. A batch may hold a row twice."""
    index, doubt = torch.tensor([[[0, 1, 2, 1], [2, 0, 1, 1]]]), torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    assert augmentation.by_doubt(index, doubt, "trusted").tolist() == [[[1, 1, 2, 0], [0, 1, 1, 2]]]
    assert augmentation.by_doubt(index, doubt, "distrusted").tolist() == [[[0, 2, 1, 1], [2, 1, 1, 0]]]


def test_branches_by_hand():
    """Each action adds 1 to the state, and a branch ends at 3 or after two steps: two steps from 0, one from 2."""
    step = lambda state, action: (state + action, state[:, 0], (state + action)[:, 0] >= 3)  # noqa: E731
    rows = augmentation.branches(step, np.ones_like, np.array([[0.0], [2.0]]), steps=2, size=3)
    assert rows.state.ravel().tolist() == [0, 2, 1]
    assert rows.next_state.ravel().tolist() == [1, 3, 2]
    assert rows.reward.tolist() == [0, 2, 1]
    assert rows.terminal.tolist() == [False, True, False]
    assert not rows.truncated.any()
    assert len(augmentation.branches(step, np.ones_like, np.array([[2.0]]), steps=2, size=3)) == 3, "one row is repeated"


def test_branches_may_all_end_before_their_last_step():
    def falls(state, action):
        assert len(state), "a simulator cannot step from no state"
        return state + action, state[:, 0], np.ones(len(state), dtype=bool)

    rows = augmentation.branches(falls, np.ones_like, np.array([[0.0], [2.0]]), steps=2, size=2)
    assert rows.next_state.ravel().tolist() == [1, 3]


def test_imagined_transitions_take_the_first_places_and_the_actor_never_sees_them():
    """They replace every field of the first rows in each batch; the actor's loss gets only the other rows."""
    batches, imagined = (random_batch(size, seed, 4, 2) for size, seed in ((5, 0), (2, 1)))
    mixed = augmentation.mix(batches, imagined)
    for part, new, old in zip(mixed, imagined, batches, strict=True):
        assert torch.equal(part[:, :, :2], new)
        assert torch.equal(part[:, :, 2:], old[:, :, 2:])
    loss = augmentation.recorded_only(lambda actor, critics, batch, settings: batch, count=2)
    for part, old in zip(loss(None, None, Batch(*(part[0] for part in mixed)), None), batches, strict=True):
        assert torch.equal(part, old[0, :, 2:])


def test_every_sample_of_a_row_is_equally_likely():
    imagined, index = torch.arange(4.0).view(1, 1, 4, 1), torch.zeros(50, 1, 200, dtype=torch.long)
    counts = torch.bincount(augmentation.pick(imagined, index, generators(0)).long().flatten(), minlength=4)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_next_states_from_the_table_are_distributed_like_direct_predictions():
    """Compares each dimension with a Kolmogorov-Smirnov test.

    All 4,000 rows hold the same state and action, and each gives one of its K = 3 samples. So these are 4,000 independent
    draws, like the direct predictions. The mean prediction, which has no spread, fails the same test.
    """
    rows, options = 4_000, WorldModel(hidden=(16,), transition_hidden=(16,), latent_size=4)
    parts = {name: perceptron(sizes, generators(0)) for name, sizes in world_model.sizes(options, 3, 2).items()}
    model = world_model.Model(**parts, standardiser=Standardiser.identity(1, 3).of(0), residual=True)
    state, action, next_state = (part.expand(rows, -1) for part in random_rows(1, torch.Generator().manual_seed(0)))

    def served(mode):
        predict = lambda s, a, s_, g: imagination.predict(model, s, a, g, mode)  # noqa: E731
        table = augmentation.imagined_table(predict, state, action, next_state, 3, *generators(1))
        return augmentation.pick(table[None], torch.arange(rows).view(1, 1, rows), generators(2))[0, 0].numpy()

    direct = imagination.predict(model, state, action, *generators(3)).numpy()
    for dimension in range(3):
        assert stats.ks_2samp(served("sample")[:, dimension], direct[:, dimension]).pvalue > 0.01
        assert stats.ks_2samp(served("mean")[:, dimension], direct[:, dimension]).pvalue < 1e-6


def test_samples_of_a_table_are_independent():
    predict = lambda state, action, next_state, g: torch.randn(state.shape, generator=g)  # noqa: E731
    table = augmentation.imagined_table(predict, *random_rows(500), 3, *generators(0))
    assert np.abs(np.corrcoef(table.permute(1, 0, 2).reshape(3, -1).numpy()) - np.eye(3)).max() < 0.15


def test_a_prediction_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"predict returned shape \(4, 2\), but the next states have \(4, 3\): they must agree"):
        augmentation.imagined_table(lambda state, action, *_: action, *random_rows(4), 2, *generators(0))


def test_outside_by_hand():
    """Of four imagined components one lies above the data and one below. No component of the data itself lies outside."""
    next_state = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    assert augmentation.outside(torch.tensor([[[-0.5, 2.5]], [[0.0, 2.0]]]), next_state) == 0.5
    assert augmentation.outside(next_state[:, None], next_state) == 0
