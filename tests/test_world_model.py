"""The world model: its loss by hand, its fit on systems with a known answer, what it predicts, and what it is held against."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch

from mbaug import networks, settings, streams, world_model
from mbaug.settings import WorldModel
from mbaug.transitions import Dataset, Standardiser

TINY = WorldModel(hidden=(32, 32), transition_hidden=(32,), latent_size=5, learning_rate=3e-3, batch_size=128, epochs=30)
LINEAR = WorldModel(hidden=(), transition_hidden=(), latent_size=4)  # one linear layer each: everything is Gaussian


def generators(*seeds):
    return streams.torch_generators(seeds, "test")


def linear_system(rows: int, seed: int) -> Dataset:
    """s' = A s + B a: a slow rotation with damping, in episodes of 20 rows; states of unequal scale and mean."""
    rng = np.random.default_rng(seed)
    turn = np.array([[0.8, 0.5, 0], [-0.5, 0.8, 0], [0, 0, 0.7]])
    scale, mean = np.array([1.0, 10.0, 0.1]), np.array([0.0, 5.0, -1.0])
    state, action = rng.normal(size=(rows, 3)), rng.uniform(-1, 1, (rows, 2))
    next_state = state @ turn + action @ np.array([[0.3, 0, 0.4], [0, 0.3, -0.4]])
    terminal = np.arange(rows) % 20 == 19
    return Dataset(
        "linear",
        (state * scale + mean).astype(np.float32),
        action.astype(np.float32),
        np.zeros(rows, np.float32),
        (next_state * scale + mean).astype(np.float32),
        terminal,
        np.zeros(rows, bool),
        np.arange(rows) // 20,
    )


DRAWN, REST = [linear_system(600, 0), linear_system(500, 1)], [linear_system(400, 2), linear_system(300, 3)]


@pytest.fixture(scope="module")
def fitted():
    """Two agents, with data of unequal length."""
    return world_model.fit(TINY, DRAWN, REST, [0, 1], deterministic=True, checks=3)


def random_model(options, population=2, state_size=3, action_size=2, precision="float64"):
    scale = torch.arange(1, population * state_size + 1).view(population, state_size)
    standardiser = Standardiser(0.1 * scale, 0.5 * scale)
    return world_model.create(options, standardiser, action_size, generators(*range(population)), precision)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(first, second):
    """Whether two models hold the same bits."""
    first, second = world_model.tensors(first), world_model.tensors(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the loss -------------------------------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions():
    q = world_model.Posterior(normal(2, 5, 4), normal(2, 5, 4, seed=8))
    torch_q = torch.distributions.Normal(q.mean, (q.log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(torch_q, torch.distributions.Normal(0.0, 1.0)).sum(dim=-1)
    torch.testing.assert_close(world_model.kl_divergence(q), expected)


def by_hand(network, agent, x):
    """One agent's perceptron in NumPy."""
    for number, (weight, bias) in enumerate(network.layers):
        x = (np.maximum(x, 0) if number else x) @ weight[agent].numpy() + bias[agent].numpy()
    return x


@pytest.mark.parametrize("residual", [True, False], ids=["change of z", "next z"])
def test_loss_by_hand(residual):
    """Three rows, two agents, in NumPy with the weights of the authors' code at three batches an epoch."""
    options = replace(TINY, residual=residual)
    model = random_model(options)
    state, action, next_state, n = normal(2, 3, 3), normal(2, 3, 2, seed=1), normal(2, 3, 3, seed=2), normal(2, 3, 5, seed=3)
    with torch.no_grad():
        loss = world_model.loss(model, state, action, next_state, n, options, batches=3)
    for k in range(2):
        s, a, s_ = state[k].numpy(), action[k].numpy(), next_state[k].numpy()
        mu, log_variance = np.split(by_hand(model.encoder, k, s), 2, axis=1)
        z = mu + np.exp(log_variance / 2) * n[k].numpy()
        f = by_hand(model.transition, k, np.hstack([z, a]))
        z_ = z + f if residual else f
        target = by_hand(model.encoder, k, s_)[:, :5]
        reconstruction = np.mean((by_hand(model.decoder, k, z) - s) ** 2)
        kl = np.mean(np.sum(mu**2 + np.exp(log_variance) - 1 - log_variance, axis=1) / 2)
        prediction = np.mean((by_hand(model.decoder, k, z_) - s_) ** 2)
        latent = np.mean((z_ - target) ** 2)
        expected = [reconstruction, kl, prediction, latent, reconstruction + kl / 3 + 10 * prediction + latent]
        np.testing.assert_allclose([term[k].item() for term in loss], expected, rtol=1e-12)


def test_no_gradient_through_the_latent_target():
    model = random_model(TINY)
    state, action, next_state, n = normal(2, 3, 3), normal(2, 3, 2, seed=1), normal(2, 3, 3, seed=2), normal(2, 3, 5, seed=3)
    latent = world_model.loss(model, state, action, next_state, n, TINY, batches=1).latent
    target = world_model.posterior(model, next_state).mean.detach()
    z = world_model.sample(world_model.posterior(model, state), n)
    expected = world_model.squared_error(world_model.step(model, z, action), target)
    ours, held = (torch.autograd.grad(term.sum(), model.encoder.flat)[0] for term in (latent, expected))
    torch.testing.assert_close(ours, held)
    assert ours.abs().max() > 0


# --- the fit --------------------------------------------------------------------------------------------------------------


def test_the_model_beats_persistence_on_a_linear_system(fitted):
    for errors in fitted.errors:
        mean = {name: np.mean(error) for name, error in errors.items()}
        assert mean["sample"] < 0.5 * mean["persistence"]
        assert mean["mean"] < mean["sample"], "without the sample's noise the error is smaller"


def test_baselines_recover_a_linear_system(fitted):
    for errors in fitted.errors:
        assert np.max(errors["linear"]) < 1e-10
        assert np.max(errors["deterministic"]) < 0.05 * np.max(errors["persistence"])


def test_an_agent_does_not_depend_on_its_neighbours(fitted):
    one = world_model.fit(TINY, DRAWN[1:], REST[1:], [1], deterministic=True, checks=1)
    assert same(one.model, world_model.alone(fitted.model, 1))
    assert same(one.deterministic, world_model.alone(fitted.deterministic, 1))
    assert one.errors[0] == fitted.errors[1]
    assert torch.equal(torch.stack(one.losses), torch.stack(fitted.losses)[..., 1:])
    state, action = (torch.from_numpy(np.stack([getattr(x, name)[:7] for x in DRAWN])) for name in ("state", "action"))
    for source in settings.SOURCES[1:]:
        both = world_model.predictor(source, fitted)(state, action, state, generators(0, 1))
        alone = world_model.predictor(source, one)(state[1:], action[1:], state[1:], generators(1))
        assert torch.equal(both[1:], alone), source


def test_same_seed_twice_is_equal_and_another_is_not():
    short = replace(TINY, epochs=2)
    first, again, other = (world_model.fit(short, DRAWN[:1], REST[:1], [seed]).model for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_rows_at_episode_ends_are_not_fitted():
    """Whatever the next state of a terminal or truncated row: no bit of the model changes."""
    short = replace(TINY, epochs=2)
    truncated = np.arange(600) % 50 == 7
    plain = replace(DRAWN[0], truncated=truncated)
    ends = plain.terminal | truncated
    other = replace(plain, next_state=np.where(ends[:, None], np.float32(1e6), plain.next_state))
    assert same(*(world_model.fit(short, [x], REST[:1], [0]).model for x in (plain, other)))
    assert len(world_model.interior(plain)) == 600 - ends.sum()


def test_kl_weight_is_one_over_the_batches_of_an_epoch(fitted):
    """570 rows are five batches of 128 at most, 475 are four."""
    losses = fitted.losses
    expected = losses.reconstruction + losses.kl / torch.tensor([5, 4]) + 10 * losses.prediction + losses.latent
    torch.testing.assert_close(losses.total, expected)
    assert losses.total.shape == (TINY.epochs, 2)


def test_history_measures_the_sampled_prediction(fitted):
    assert fitted.epochs == [10, 20, 30]
    assert fitted.history.shape == (3, 2, 3)
    assert fitted.history[-1].tolist() == [errors["sample"] for errors in fitted.errors]
    assert (fitted.history[-1].mean(dim=-1) < fitted.history[0].mean(dim=-1)).all()


def test_deterministic_model_is_as_large_as_the_world_model():
    def parameters(layers):
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(layers))

    paper = WorldModel()
    wanted = sum(map(parameters, world_model.sizes(paper, 11, 3).values()))
    layers = world_model.deterministic_sizes(paper, 11, 3)
    assert parameters(layers) == pytest.approx(wanted, rel=5e-3)
    assert (len(layers), layers[0], layers[-1]) == (5, 14, 11)


# --- prediction -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False], ids=["change of z", "next z"])
def test_distribution_of_the_sampled_prediction(residual):
    """With linear layers s' is Gaussian: its mean is the mean prediction, its covariance that of the noise of z."""
    model, rows = random_model(replace(LINEAR, residual=residual)), 40_000
    state, action = normal(2, 1, 3).expand(2, rows, 3), normal(2, 1, 2, seed=1).expand(2, rows, 2)
    sampled = world_model.predict(model, state, action, generators(0, 1))
    mean = world_model.predict(model, state, action, generators(0, 1), mode="mean")
    assert torch.equal(mean[:, :1].expand_as(mean), mean)
    for k in range(2):
        log_variance = by_hand(model.encoder, k, model.standardiser.apply(state)[k, :1].numpy())[0, 4:]
        move = model.transition.layers[0][0][k, :4].numpy() + residual * np.eye(4)
        factor = np.exp(log_variance / 2)[:, None] * (move @ model.decoder.layers[0][0][k].numpy())
        factor = factor * model.standardiser.std[k].numpy()
        deviation = (sampled - mean)[k].numpy()
        covariance = factor.T @ factor
        tolerance = 5 * np.sqrt(np.diag(covariance) / rows)
        assert (np.abs(deviation.mean(axis=0)) < tolerance).all()
        np.testing.assert_allclose(np.cov(deviation.T), covariance, atol=0.05 * covariance.max())


def test_mean_prediction_by_hand():
    model = random_model(TINY)
    state, action = normal(2, 3, 3), normal(2, 3, 2, seed=1)
    predicted = world_model.predict(model, state, action, generators(0, 1), mode="mean")
    for k in range(2):
        mean, std = model.standardiser.mean[k].numpy(), model.standardiser.std[k].numpy()
        z = by_hand(model.encoder, k, (state[k].numpy() - mean) / std)[:, :5]
        z = z + by_hand(model.transition, k, np.hstack([z, action[k].numpy()]))
        np.testing.assert_allclose(predicted[k], by_hand(model.decoder, k, z) * std + mean, rtol=1e-6)


def test_deterministic_prediction_by_hand():
    standardiser = random_model(TINY).standardiser
    network = networks.perceptron((5, 16, 3), generators(0, 1), "float64")
    state, action = normal(2, 3, 3), normal(2, 3, 2, seed=1)
    predicted = world_model.predict_deterministic(world_model.Deterministic(network, standardiser), state, action)
    for k in range(2):
        mean, std = standardiser.mean[k].numpy(), standardiser.std[k].numpy()
        s = (state[k].numpy() - mean) / std
        expected = (s + by_hand(network, k, np.hstack([s, action[k].numpy()]))) * std + mean
        np.testing.assert_allclose(predicted[k], expected, rtol=1e-6)


def test_unknown_prediction_mode():
    state, action = normal(2, 3, 3), normal(2, 3, 2)
    with pytest.raises(ValueError, match=r"unknown prediction mode 'means': did you mean 'mean'\?"):
        world_model.predict(random_model(TINY), state, action, generators(0, 1), "means")


# --- errors ---------------------------------------------------------------------------------------------------------------


def test_held_out_error_by_hand():
    """Persistence, in units of the drawn states' standard deviation, over the held-out rows that end no episode."""
    drawn, rest = DRAWN[0], REST[0]
    standardiser = Standardiser.fit([drawn.state], world_model.EPSILON)
    error = world_model.held_out_error(world_model.persistence, standardiser, rest, seed=0)
    rows = ~rest.terminal
    expected = np.mean((rest.next_state - rest.state)[rows] ** 2, axis=0) / drawn.state.var(axis=0)
    np.testing.assert_allclose(error, expected, rtol=1e-3)


def test_no_held_out_rows_no_errors():
    nothing = REST[0].rows(np.arange(0))
    fitted = world_model.fit(replace(TINY, epochs=1), DRAWN[:1], [nothing], [0], checks=1)
    assert fitted.errors == [{}]
    assert fitted.history.isnan().all()
    with pytest.raises(ValueError, match="needs held-out rows, but there were none"):
        world_model.predictor("noise", fitted)


def test_rate_distortion_of_a_linear_vae():
    """A VAE of linear layers, on Gaussian rows with s' = s, ends where the estimate says, for the sample and for the mean."""
    rng = np.random.default_rng(0)
    mixing = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    state = (rng.normal(size=(2_000, 3)) @ mixing.T).astype(np.float32)
    no = np.zeros(len(state), bool)
    still = Dataset(
        "still", state, np.zeros((2_000, 1), np.float32), np.zeros(2_000, np.float32), state, no, no, np.arange(2_000)
    )
    options = replace(LINEAR, kl_weight=6.0, latent_weight=0.0, learning_rate=3e-2, batch_size=1_000, epochs=60)
    errors = world_model.fit(options, [still], [still], [0], checks=1).errors[0]
    correlation = np.corrcoef(state.T)
    for mode in ("sample", "mean"):
        estimate = world_model.rate_distortion(options, correlation, batches=2, mode=mode)
        assert np.mean(errors[mode]) == pytest.approx(estimate, rel=0.05), mode


def test_rate_distortion_of_the_paper():
    paper = WorldModel()
    assert world_model.rate_distortion(paper, np.eye(11), batches=3) == pytest.approx(11 / 66)
    few = replace(paper, latent_size=10)
    assert world_model.rate_distortion(few, np.eye(11), batches=3) == pytest.approx((10 * 11 / 66 + 1) / 11)
    assert world_model.rate_distortion(replace(paper, kl_weight=1e3), np.eye(11), batches=3) == pytest.approx(1)


# --- what augmentation asks, and checkpoints ------------------------------------------------------------------------------


def test_noise_is_as_strong_as_the_held_out_error(fitted):
    """Its standard deviation is the root of the squared error of fresh sampled predictions on the held-out rows."""
    rows = world_model.interior(REST[0])
    state, action, next_state = (torch.from_numpy(x)[None].repeat(1, 50, 1) for x in (rows.state, rows.action, rows.next_state))
    one = replace(fitted, model=world_model.alone(fitted.model, 0), errors=fitted.errors[:1])
    error = next_state - world_model.predictor("sample", one)(state, action, next_state, generators(5))
    noise = world_model.predictor("noise", one)(state, action, next_state, generators(6)) - next_state
    assert torch.allclose(noise.square().mean(dim=1), error.square().mean(dim=1), rtol=0.1)
    assert (noise.mean(dim=1).abs() < 5 * noise.std(dim=1) / state.shape[1] ** 0.5).all()


def test_reconstruction_looks_at_the_next_state_alone(fitted):
    state, action = (torch.from_numpy(np.stack([getattr(x, name)[:50] for x in DRAWN])) for name in ("state", "action"))
    next_state = torch.from_numpy(np.stack([x.next_state[:50] for x in DRAWN]))
    predict = world_model.predictor("reconstruction", fitted)
    blurred = predict(state, action, next_state, generators(0, 1))
    assert torch.equal(blurred, predict(state + 1, -action, next_state, generators(0, 1)))
    error = ((blurred - next_state) / fitted.model.standardiser.std[:, None]).square().mean(dim=1)
    assert (error < 0.3).all()
    assert not torch.equal(blurred, predict(state, action, next_state, generators(2, 3)))


def test_sources_are_refused_in_a_sentence(fitted):
    assert world_model.predictor("none", None) is None
    with pytest.raises(ValueError, match="unknown augmentation source 'sampel': did you mean 'sample'"):
        world_model.predictor("sampel", fitted)
    with pytest.raises(ValueError, match="'mean' needs a fitted world model, but None is given"):
        world_model.predictor("mean", None)
    with pytest.raises(ValueError, match="needs a fit with deterministic=True"):
        world_model.predictor("deterministic", replace(fitted, deterministic=None))


def test_alone_and_together_undo_each_other():
    model = random_model(TINY)
    agents = [world_model.alone(model, k) for k in range(2)]
    assert same(world_model.together(agents), model)
    whole = world_model.tensors(model)
    assert all(torch.equal(tensor, whole[name][1:]) for name, tensor in world_model.tensors(agents[1]).items())
    assert agents[1].encoder.flat.data_ptr() % 64 == 0, "a buffer of its own, where every model's begins"


def test_a_restored_fit_is_the_same(fitted):
    """Through the bytes of safetensors and JSON, as in a checkpoint."""
    held, plain = world_model.save(fitted)
    held, plain = safetensors.torch.load(safetensors.torch.save(held)), json.loads(json.dumps(plain))
    restored = world_model.restore(held, plain)
    assert same(restored.model, fitted.model)
    assert same(restored.deterministic, fitted.deterministic)
    assert restored.model.residual == fitted.model.residual
    assert (restored.errors, restored.epochs) == (fitted.errors, fitted.epochs)
    assert torch.equal(restored.history, fitted.history)
    assert all(map(torch.equal, restored.losses, fitted.losses))
    without = world_model.restore(*world_model.save(replace(fitted, deterministic=None)))
    assert without.deterministic is None
