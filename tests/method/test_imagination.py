"""Sources of imagination: their predictions by hand and in distribution, and the measures of their errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import DOUBLE, generators, mlp
from systems import DRAWN, LINEAR, PUSH, REST, SHORT, TINY, TURN, normal, random_model

from mbaug.method import imagination, world_model
from mbaug.method.imagination import SOURCES, predictor
from mbaug.method.networks import perceptron
from mbaug.method.transitions import Standardiser
from mbaug.method.world_model import Deterministic, Model

ROWS = [torch.from_numpy(x[:50]) for x in (DRAWN.state, DRAWN.action, DRAWN.next_state)]
REPEATS = 40_000


@pytest.fixture(scope="module")
def fitted():
    fit = imagination.fit(TINY, DRAWN, REST, 0, evaluations=3)
    return imagination.with_deterministic(fit, world_model.fit_deterministic(TINY, DRAWN, 0), REST, 0)


def test_on_a_linear_system_the_models_beat_persistence_and_regression_is_exact(fitted):
    mean = {name: np.mean(error) for name, error in fitted.errors.items()}
    assert mean["linear"] < 1e-10
    assert mean["deterministic"] < 0.05 * mean["persistence"]
    assert mean["mean"] < mean["sample"] < 0.5 * mean["persistence"], "the mean lacks a sample's noise, so its error is smaller"


def test_measuring_during_a_fit_uses_the_sampled_prediction_and_changes_no_weight(fitted):
    assert fitted.epochs == [10, 20, 30]
    assert fitted.history[-1].tolist() == fitted.errors["sample"]
    assert fitted.history[-1].mean() < fitted.history[0].mean()
    assert fitted.losses.total.shape == (30,)
    once, often = (imagination.fit(SHORT, DRAWN, REST, 0, evaluations=number) for number in (1, 2))
    assert once.errors == often.errors


def test_held_out_error_by_hand():
    """The error of persistence on held-out rows that end no episode, in standard deviations of the drawn states."""
    standardiser = Standardiser.fit([DRAWN.state], world_model.EPSILON).of(0)
    error = imagination.held_out_error(imagination.persistence, standardiser, REST, seed=0)
    expected = np.mean((REST.next_state - REST.state)[~REST.terminal] ** 2, axis=0) / DRAWN.state.var(axis=0)
    np.testing.assert_allclose(error, expected, rtol=1e-3)


def test_without_held_out_rows_there_are_no_errors():
    fit = imagination.fit(replace(TINY, epochs=1), DRAWN, REST.rows(np.arange(0)), 0, evaluations=1)
    assert fit.errors == {}
    assert fit.history.isnan().all()
    with pytest.raises(ValueError, match="noise matched to the model's held-out error needs held-out rows, but there were none"):
        predictor("noise", fit, DRAWN)


@pytest.mark.parametrize("residual", [True, False], ids=["change of z", "next z"])
def test_distribution_of_the_sampled_prediction(residual):
    """With linear layers s' is Gaussian: its mean is the mean prediction, its covariance comes from the noise of z."""
    model = random_model(replace(LINEAR, residual=residual))
    state, action = normal(1, 3).expand(REPEATS, 3), normal(1, 2, seed=1).expand(REPEATS, 2)
    sampled = imagination.predict(model, state, action, *generators(0))
    mean = imagination.predict(model, state, action, *generators(0), mode="mean")
    assert torch.equal(mean[:1].expand_as(mean), mean)
    log_variance = mlp(model.encoder, 0, model.standardiser.apply(state[:1]).numpy())[0, 4:]
    move = model.transition.layers[0][0][0, :4].numpy() + residual * np.eye(4)
    factor = np.exp(log_variance / 2)[:, None] * (move @ model.decoder.layers[0][0][0].numpy()) * model.standardiser.std.numpy()
    covariance, deviation = factor.T @ factor, (sampled - mean).numpy()
    assert (np.abs(deviation.mean(axis=0)) < 5 * np.sqrt(np.diag(covariance) / REPEATS)).all()
    np.testing.assert_allclose(np.cov(deviation.T), covariance, atol=0.05 * covariance.max())


def test_mean_and_deterministic_predictions_by_hand():
    model, network = random_model(), perceptron((5, 16, 3), generators(0), DOUBLE)
    state, action = normal(3, 3), normal(3, 2, seed=1)
    mean, std = model.standardiser.mean.numpy(), model.standardiser.std.numpy()
    s = (state.numpy() - mean) / std
    z = mlp(model.encoder, 0, s)[:, :5]
    z = z + mlp(model.transition, 0, np.hstack([z, action]))
    predicted = imagination.predict(model, state, action, torch.Generator(), "mean")
    np.testing.assert_allclose(predicted, mlp(model.decoder, 0, z) * std + mean, rtol=1e-6)
    predicted = imagination.predict_deterministic(Deterministic(network, model.standardiser), state, action)
    np.testing.assert_allclose(predicted, (s + mlp(network, 0, np.hstack([s, action]))) * std + mean, rtol=1e-6)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_depends_on_its_generator_alone(fitted, source):
    """The same seed gives the same numbers; another seed gives others if the source is random."""
    predict = predictor(source, fitted, DRAWN)
    first, again, other = (predict(*ROWS, *generators(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (source in ("mean", "shrink", "deterministic"))


def test_noise_is_as_strong_as_the_held_out_error(fitted):
    """Its standard deviation is the root mean squared error of new sampled predictions on the held-out rows."""
    rows = world_model.interior(REST)
    state, action, next_state = (torch.from_numpy(x).repeat(50, 1) for x in (rows.state, rows.action, rows.next_state))
    error = next_state - predictor("sample", fitted, DRAWN)(state, action, next_state, *generators(5))
    noise = predictor("noise", fitted, DRAWN)(state, action, next_state, *generators(6)) - next_state
    assert torch.allclose(noise.square().mean(dim=0), error.square().mean(dim=0), rtol=0.1)
    assert (noise.mean(dim=0).abs() < 5 * noise.std(dim=0) / len(state) ** 0.5).all()


def test_reconstruction_depends_on_the_next_state_alone(fitted):
    state, action, next_state = ROWS
    predict = predictor("reconstruction", fitted, DRAWN)
    blurred = predict(*ROWS, *generators(0))
    assert torch.equal(blurred, predict(state + 1, -action, next_state, *generators(0)))
    assert (((blurred - next_state) / fitted.model.standardiser.std).square().mean(dim=0) < 0.3).all()


def test_jitter_has_the_spread_of_the_samples_around_the_recorded_next_state(fitted):
    """Compares mean and covariance over repeats of one row. With linear layers the samples' mean is the mean prediction."""
    gaussian = replace(fitted, model=random_model(LINEAR))
    state, action, next_state = (x[:1].double().expand(REPEATS, -1) for x in ROWS)
    jitter = predictor("jitter", gaussian, DRAWN)(state, action, next_state, *generators(0)) - next_state
    spread = predictor("sample", gaussian, DRAWN)(state, action, next_state, *generators(1)).T.cov()
    assert (jitter.mean(dim=0).abs() < 5 * spread.diagonal().sqrt() / REPEATS**0.5).all()
    torch.testing.assert_close(jitter.T.cov(), spread, rtol=0, atol=0.05 * spread.diagonal().max().item())


def linear_stand_in(pull: np.ndarray, shift: np.ndarray) -> Model:
    """Returns a model that predicts s' pull + shift: its latent state is s, its transition the system's, its decoder `pull`."""
    weights = {
        "encoder": (np.hstack([np.eye(3), np.zeros((3, 3))]), np.zeros(6)),
        "transition": (np.vstack([TURN - np.eye(3), PUSH]), np.zeros(3)),
        "decoder": (pull, shift),
    }
    parts = {name: perceptron(weight.shape, generators(0)) for name, (weight, _) in weights.items()}
    for name, part in parts.items():
        for view, values in zip(part.layers[0], weights[name], strict=True):
            view[:] = torch.from_numpy(values)
    return Model(**parts, standardiser=Standardiser(torch.zeros(3), torch.ones(3)), residual=True)


def test_shrink_is_the_model_s_linear_map_of_the_next_state(fitted):
    """The map also holds for new rows, and the rows at episode ends do not affect it."""
    rng = np.random.default_rng(0)
    pull, shift = 0.9 * np.eye(3) + 0.05 * rng.normal(size=(3, 3)), rng.normal(size=3)
    state, action = rng.normal(size=(600, 3)), rng.uniform(-1, 1, (600, 2))
    next_state = state @ TURN + action @ PUSH
    next_state[DRAWN.terminal] = 1e6
    state, action, next_state = (x.astype(np.float32) for x in (state, action, next_state))
    seen = replace(DRAWN, state=state, action=action, next_state=next_state)
    shrink = predictor("shrink", replace(fitted, model=linear_stand_in(pull, shift)), seen)
    new = normal(100, 3).float()
    expected = torch.from_numpy(new.numpy() @ pull + shift).float()
    torch.testing.assert_close(shrink(*ROWS[:2], new, torch.Generator()), expected, rtol=0, atol=1e-5)


def test_a_source_that_does_not_exist_is_refused_in_a_sentence(fitted):
    with pytest.raises(ValueError, match="unknown augmentation source 'sampel': did you mean 'sample'"):
        predictor("sampel", fitted, DRAWN)
    with pytest.raises(ValueError, match="the source 'deterministic' needs a deterministic model, but this fit has none"):
        predictor("deterministic", replace(fitted, deterministic=None), DRAWN)
    with pytest.raises(ValueError, match=r"unknown prediction mode 'means': did you mean 'mean'\?"):
        imagination.predict(random_model(), normal(3, 3), normal(3, 2), torch.Generator(), "means")


def test_error_parts_find_a_known_bias_and_spread_and_add_up_to_the_squared_error():
    """Half of the rows have the opposite bias: it must not average out over rows."""
    std, spread = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 2.0])
    next_state = torch.randn(4_000, 2, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).repeat(2_000, 1)
    jitter = spread * torch.randn(4_000, 5, 2, generator=torch.Generator().manual_seed(1))
    imagined = (next_state + bias).unsqueeze(1) + jitter
    found = imagination.error_parts(imagined, next_state, std)
    torch.testing.assert_close(torch.stack(found), torch.tensor([[1.0, 1.0], [0.25, 1.0]]).double(), rtol=0.05, atol=0.02)
    squared = ((imagined - next_state.unsqueeze(1)).double() / std).square().mean(dim=(0, 1))
    torch.testing.assert_close(sum(found), squared)
