"""The augmentation: exactly the asked share of next states is replaced, by the right distribution, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mbaug import augmentation, streams, world_model
from mbaug.settings import WorldModel
from mbaug.transitions import Batch, Standardiser

RATES = st.floats(0, 1)
SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**31)


def generators(*seeds):
    return streams.torch_generators(seeds, "test")


def random_batch(population, size, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(population, size, 3), (population, size, 2), (population, size), (population, size, 3), (population, size)]
    return Batch(*(torch.randn(shape, generator=generator) for shape in shapes))


@given(RATES, SIZES, SEEDS)
def test_exactly_the_asked_share_is_replaced_and_nothing_else(rate, size, seed):
    batch = random_batch(2, size, seed)
    imagined = batch.next_state + 1
    augmented = augmentation.augment(batch, imagined, rate)
    changed = (augmented.next_state != batch.next_state).any(dim=-1)
    assert (changed.sum(dim=1) == round(rate * size)).all()
    assert torch.equal(augmented.next_state[changed], imagined[changed])
    for name in ("state", "action", "reward", "terminal"):
        assert torch.equal(getattr(augmented, name), getattr(batch, name))


@given(SIZES, SEEDS)
def test_rate_0_changes_nothing_and_rate_1_everything(size, seed):
    batch = random_batch(2, size, seed)
    imagined = batch.next_state + 1
    assert torch.equal(augmentation.augment(batch, imagined, 0.0).next_state, batch.next_state)
    assert torch.equal(augmentation.augment(batch, imagined, 1.0).next_state, imagined)


@given(st.floats(allow_nan=True).filter(lambda rate: not 0 <= rate <= 1))
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(ValueError, match=r"the augmentation rate is .*, but it must be in \[0, 1\]"):
        augmentation.replaced(rate, 256)


@given(RATES, SIZES, st.integers(1, 5), SEEDS)
def test_table_replaces_by_samples_of_the_same_row(rate, size, samples, seed):
    """Sample m of row r of agent k is marked (k, r, m): the first n next states of each batch get marks of their own row."""
    rows, block, population = 7, 2, 2
    marks = torch.cartesian_prod(torch.arange(population), torch.arange(rows), torch.arange(samples)).float()
    imagined = marks.view(population, rows, samples, 3)
    index = torch.randint(rows, (block, population, size), generator=torch.Generator().manual_seed(seed))
    next_state = torch.full((block, population, size, 3), -1.0)
    count = augmentation.replaced(rate, size)
    augmentation.replace_(next_state, index, imagined, count, generators(0, 1))
    assert (next_state[:, :, count:] == -1).all()
    got = next_state[:, :, :count]
    assert (got[..., 0] == torch.arange(population)[None, :, None]).all()
    assert (got[..., 1] == index[:, :, :count]).all()
    assert ((got[..., 2] >= 0) & (got[..., 2] < samples)).all()


def test_table_of_one_sample_is_the_rule_itself():
    """With K = 1, replacing by the table is `augment` of each batch with the prediction of its rows."""
    predict = lambda state, action, next_state, _: 2 * next_state + 1  # noqa: E731
    data, index = random_batch(2, 9, 0), torch.randint(9, (1, 2, 6), generator=torch.Generator().manual_seed(1))
    table = augmentation.imagined_table(predict, data, 1, generators(0, 1))
    batch = Batch(*(torch.stack([part[k, index[0, k]] for k in range(2)]) for part in data))
    expected = augmentation.augment(batch, predict(*batch[:2], batch.next_state, None), 0.5).next_state
    next_state = batch.next_state.clone()[None]
    augmentation.replace_(next_state, index, table, augmentation.replaced(0.5, 6), generators(0, 1))
    assert torch.equal(next_state[0], expected)


def test_every_sample_of_a_row_is_equally_likely():
    index, samples = torch.zeros(50, 1, 200, dtype=torch.long), 4
    imagined = torch.arange(samples).float().view(1, 1, samples, 1)
    next_state = torch.full((50, 1, 200, 1), -1.0)
    augmentation.replace_(next_state, index, imagined, 200, generators(0))
    assert stats.chisquare(torch.bincount(next_state.long().flatten(), minlength=samples).numpy()).pvalue > 0.01


def test_an_agent_does_not_depend_on_its_neighbours():
    imagined, index = torch.randn(2, 7, 3, 3), torch.randint(7, (5, 2, 6))
    both, alone = torch.zeros(5, 2, 6, 3), torch.zeros(5, 1, 6, 3)
    augmentation.replace_(both, index, imagined, 4, generators(0, 1))
    augmentation.replace_(alone, index[:, 1:], imagined[1:], 4, generators(1))
    assert torch.equal(both[:, 1:], alone)


def test_table_has_the_distribution_of_direct_sampling():
    """A batch served from the table against the model called on the same batch: Kolmogorov-Smirnov, dimension by dimension.

    All 4,000 rows hold the same state and action, and each is served once from its K = 3 samples: so these are 4,000 independent
    draws, as those of the model are. The mean prediction, which has no spread, fails the same test.
    """
    rows, options = 4_000, WorldModel(hidden=(16,), transition_hidden=(16,), latent_size=4)
    model = world_model.create(options, Standardiser.identity(1, 3), 2, generators(0))
    data = Batch(*(part[:, :1].expand(1, rows, *part.shape[2:]) for part in random_batch(1, 1, 0)))

    def served(mode):
        predict = lambda state, action, next_state, g: world_model.predict(model, state, action, g, mode)  # noqa: E731
        table = augmentation.imagined_table(predict, data, 3, generators(1))
        next_state = torch.zeros(1, 1, rows, 3)
        augmentation.replace_(next_state, torch.arange(rows).view(1, 1, rows), table, rows, generators(2))
        return next_state[0, 0].numpy()

    direct = world_model.predict(model, data.state, data.action, generators(3))[0].numpy()
    for dimension in range(3):
        assert stats.ks_2samp(served("sample")[:, dimension], direct[:, dimension]).pvalue > 0.01
        assert stats.ks_2samp(served("mean")[:, dimension], direct[:, dimension]).pvalue < 1e-6


def test_samples_of_a_table_are_independent():
    predict = lambda state, action, next_state, g: torch.stack([torch.randn(state.shape[1:], generator=h) for h in g])  # noqa: E731
    table = augmentation.imagined_table(predict, random_batch(2, 500, 0), 3, generators(0, 1))
    assert table.shape == (2, 500, 3, 3)
    correlation = np.corrcoef(table.permute(0, 2, 1, 3).reshape(6, -1).numpy())
    assert np.abs(correlation - np.eye(6)).max() < 0.15


def test_a_prediction_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"predict returned shape \(2, 4, 2\), but the next states have \(2, 4, 3\)"):
        augmentation.imagined_table(lambda state, action, *_: action, random_batch(2, 4, 0), 2, generators(0, 1))


def test_outside_by_hand():
    """Of four components of agent 0 one lies above the data and one below, of agent 1 none, of agent 2 one below."""
    next_state = torch.tensor([[[0.0, 0.0], [1.0, 2.0]], [[-9.0, -9.0], [9.0, 9.0]], [[0.0, 0.0], [1.0, 1.0]]])
    imagined = torch.tensor([[[[-0.5, 2.5]], [[0.0, 2.0]]], [[[0.5, 2.5]], [[-9.0, 9.0]]], [[[-0.1, 0.0]], [[1.0, 1.0]]]])
    assert augmentation.outside(imagined, next_state).tolist() == [0.5, 0.0, 0.25]
