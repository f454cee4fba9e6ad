"""The world model: its loss by hand, and its fit."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from made import mlp
from systems import DRAWN, SHORT, TINY, normal, parameters, random_model

from mbaug import streams
from mbaug.method import world_model
from mbaug.method.networks import perceptron
from mbaug.method.settings import WorldModel

ROWS = normal(3, 3), normal(3, 2, seed=1), normal(3, 3, seed=2), normal(3, 5, seed=3)  # state, action, next state, n


def test_the_kl_divergence_equals_torchs():
    q = world_model.Posterior(normal(5, 4), normal(5, 4, seed=8))
    torch_q = torch.distributions.Normal(q.mean, (q.log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(torch_q, torch.distributions.Normal(0.0, 1.0)).sum(dim=-1)
    torch.testing.assert_close(world_model.kl_divergence(q), expected)


@pytest.mark.parametrize("residual", [True, False], ids=["change of z", "next z"])
def test_loss_by_hand(residual):
    """Computes the loss of three rows in NumPy, with the weights of the authors' code at three batches per epoch."""
    options = replace(TINY, residual=residual)
    model, (s, a, s_, n) = random_model(options), (part.numpy() for part in ROWS)
    with torch.no_grad():
        loss = world_model.loss(model, *ROWS, options, batches=3)
    mu, log_variance = np.split(mlp(model.encoder, 0, s), 2, axis=1)
    z = mu + np.exp(log_variance / 2) * n
    f = mlp(model.transition, 0, np.hstack([z, a]))
    z_ = z + f if residual else f
    reconstruction = np.mean((mlp(model.decoder, 0, z) - s) ** 2)
    kl = np.mean(np.sum(mu**2 + np.exp(log_variance) - 1 - log_variance, axis=1) / 2)
    prediction = np.mean((mlp(model.decoder, 0, z_) - s_) ** 2)
    latent = np.mean((z_ - mlp(model.encoder, 0, s_)[:, :5]) ** 2)
    expected = [reconstruction, kl, prediction, latent, reconstruction + kl / 3 + 10 * prediction + latent]
    np.testing.assert_allclose([term.item() for term in loss], expected, rtol=1e-12)


def test_no_gradient_flows_through_the_latent_target():
    model, (state, action, next_state, n) = random_model(), ROWS
    latent = world_model.loss(model, *ROWS, TINY, batches=1).latent
    z = world_model.sample(world_model.posterior(model, state), n)
    target = world_model.posterior(model, next_state).mean.detach()
    expected = world_model.squared_error(world_model.step(model, z, action), target)
    ours, wanted = (torch.autograd.grad(term, model.encoder.flat)[0] for term in (latent, expected))
    torch.testing.assert_close(ours, wanted)
    assert ours.abs().max() > 0


def fitted(dataset=DRAWN, seed=0):
    *_, (model, _) = world_model.epochs(SHORT, dataset, seed)
    return parameters(model)


def test_the_same_seed_gives_the_same_fit_and_another_seed_another():
    first = fitted()
    assert torch.equal(first, fitted())
    assert not torch.equal(first, fitted(seed=1))


def test_rows_at_episode_ends_are_not_fitted():
    """The next state of a terminal or truncated row changes no bit of the models."""
    plain = replace(DRAWN, truncated=np.arange(600) % 50 == 7)
    ends = plain.terminal | plain.truncated
    other = replace(plain, next_state=np.where(ends[:, None], np.float32(1e6), plain.next_state))
    assert torch.equal(fitted(plain), fitted(other))
    assert torch.equal(*(parameters(world_model.fit_deterministic(SHORT, x, 0)) for x in (plain, other)))
    assert len(world_model.interior(plain)) == 600 - ends.sum()


def test_rows_that_all_end_an_episode_are_refused():
    ends = replace(DRAWN, terminal=np.ones(len(DRAWN), dtype=bool))
    with pytest.raises(ValueError, match=r"every row ends an episode, so there is nothing to fit a model to$"):
        next(world_model.epochs(TINY, ends, 0))


def test_kl_weight_is_one_over_the_batches_of_an_epoch():
    """The 570 rows that end no episode make five batches of at most 128."""
    for _, loss in islice(world_model.epochs(TINY, DRAWN, 0), 3):
        expected = loss.reconstruction + loss.kl / 5 + 10 * loss.prediction + loss.latent
        torch.testing.assert_close(loss.total, expected)


def test_each_kind_of_model_starts_from_a_random_stream_of_its_own():
    still = replace(SHORT, epochs=1, learning_rate=1e-12)
    (model, _), control = next(world_model.epochs(still, DRAWN, 3)), world_model.fit_deterministic(still, DRAWN, 3)
    for network, name in ((model.encoder, "world model"), (control.network, "deterministic model")):
        start = perceptron(network.sizes, [streams.torch_generator(3, name)])
        torch.testing.assert_close(network.flat, start.flat, rtol=0, atol=1e-8)


def test_the_terms_of_an_epoch_are_means_over_its_rows():
    """The KL term has no noise. At a tiny learning rate it is that of the model over all rows that end no episode."""
    model, terms = next(world_model.epochs(replace(TINY, learning_rate=1e-9), DRAWN, 0))
    state = model.standardiser.apply(torch.from_numpy(world_model.interior(DRAWN).state))
    expected = world_model.kl_divergence(world_model.posterior(model, state)).mean().detach()
    torch.testing.assert_close(terms.kl, expected, rtol=1e-4, atol=0)


def test_the_deterministic_model_is_as_large_as_the_world_model():
    layers = [*world_model.sizes(WorldModel(), 11, 3).values(), world_model.deterministic_sizes(WorldModel(), 11, 3)]
    *parts, whole = (sum((inputs + 1) * outputs for inputs, outputs in pairwise(one)) for one in layers)
    assert whole == pytest.approx(sum(parts), rel=5e-3)
    assert (len(layers[-1]), layers[-1][0], layers[-1][-1]) == (5, 14, 11)
