"""Sources of imagined next states: the world model and, in the controls, what replaces it.

A source is a function `predict(state, action, next_state, generator)` of the rows of one dataset, in the environment's units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import streams
from mbaug.checks import choose, given, require
from mbaug.method import world_model
from mbaug.method.networks import PLAIN, Arithmetic, Perceptron
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Action, Dataset, Predict, Standardiser, State
from mbaug.method.world_model import Deterministic, Latent, Loss, Model, posterior, sample, step


def imagine(model: Model, state: State, action: Action, normal: Latent) -> State:
    """D(z') with z' = z + f(z, a) and z = mu(s) + sigma(s) n, standardised; n = 0 gives the mean prediction."""
    z = sample(posterior(model, state), normal)
    return model.decoder.alone(step(model, z, action))


def _normal(model: Model, rows: int, generator: torch.Generator, mode: str) -> Latent:
    """Returns standard normal noise for `sample`, or zeros in the mode "mean"."""
    scale = {"sample": 1, "mean": 0}
    normal = torch.randn(rows, model.decoder.sizes[0], generator=generator)
    return normal * scale[choose("prediction mode", mode, scale)]


@torch.no_grad()
def _in_units(
    function: Callable[..., Tensor], standardiser: Standardiser, network: Perceptron, state: State, *others: Tensor
) -> Float[Tensor, "rows *steps state"]:
    """Returns function(standardised state, *others) in the environment's units, computed on the device of `network`."""
    inputs = (x.to(network.flat.detach()) for x in (standardiser.apply(state), *others))
    return standardiser.invert(function(*inputs).to(state))


def predict(
    model: Model,
    state: State,
    action: Action,
    generator: torch.Generator,
    mode: str = "sample",
) -> State:
    """Returns one imagined next state per row: mode "sample" uses z ~ q(z | s), as the paper does, and "mean" uses z = mu(s)."""
    normal = _normal(model, len(state), generator, mode)
    return _in_units(partial(imagine, model), model.standardiser, model.encoder, state, action, normal)


def reconstruct(model: Model, next_state: State, generator: torch.Generator) -> State:
    """Returns D(z), z ~ q(z | s'), in the environment's units: the blur of the VAE without its dynamics."""
    normal = torch.randn(len(next_state), model.decoder.sizes[0], generator=generator)

    def decoded(state: State, normal: Latent) -> State:
        return model.decoder.alone(sample(posterior(model, state), normal))

    return _in_units(decoded, model.standardiser, model.encoder, next_state, normal)


@torch.no_grad()
def doubt(model: Model, state: State) -> Float[Tensor, " rows"]:
    """mean_i ((D(mu(s))_i - s_i) / std_i)^2: how much the VAE blurs s. It needs no next state.

    It signals where the prediction from s is wrong. Of the signals in chapter 08 it has the largest mean area under the ROC
    curve over the tasks.
    """
    known = model.standardiser.apply(state).to(model.encoder.flat.detach())
    return (model.decoder.alone(posterior(model, known).mean) - known).square().mean(dim=-1).to(state)


def predict_deterministic(model: Deterministic, state: State, action: Action) -> State:
    """Returns the deterministic model's next state of each row, in the environment's units."""
    return _in_units(partial(world_model.move, model), model.standardiser, model.network, state, action)


def open_loop(
    move: Callable[[Tensor, Tensor], Tensor],
    start: Float[Tensor, "rows size"],
    action: Float[Tensor, "rows horizon action"],
) -> Float[Tensor, "rows horizon size"]:
    """x_1, ..., x_n with x_(k+1) = move(x_k, a_k) and x_0 = start: each prediction is the input of the next step."""
    path = [start]
    for step_action in action.unbind(dim=1):
        path.append(move(path[-1], step_action))
    return torch.stack(path[1:], dim=1)


def latent_rollout(
    model: Model,
    state: State,
    action: Float[Tensor, "rows horizon action"],
    generator: torch.Generator,
    mode: str = "sample",
) -> Float[Tensor, "rows horizon state"]:
    """D(z_1), ..., D(z_n) with z_(k+1) = z_k + f(z_k, a_k) and z_0 ~ q(z | s_0), in the environment's units.

    The start is encoded once and no decoded state is encoded again. With one action this is `predict`, in the same mode.
    """
    normal = _normal(model, len(state), generator, mode)

    def decoded(state: State, action: Tensor, normal: Latent) -> Tensor:
        latent = open_loop(partial(step, model), sample(posterior(model, state), normal), action)
        return model.decoder.alone(latent.flatten(0, 1)).unflatten(0, latent.shape[:2])

    return _in_units(decoded, model.standardiser, model.encoder, state, action, normal)


def add_noise(
    next_state: State,
    noise_std: Float[Tensor, " state"],
    generator: torch.Generator,
) -> State:
    """s' + std xi for standard normal xi: errors of the model's size, but without dynamics."""
    return next_state + noise_std * torch.randn(next_state.shape, generator=generator)


def add_jitter(model: Model, state: State, action: Action, next_state: State, generator: torch.Generator) -> State:
    """s' + (sample - mean): the spread of the model's samples around the recorded s', almost without bias."""
    mean = predict(model, state, action, generator, "mean")
    return next_state + predict(model, state, action, generator) - mean


def contraction(model: Model, dataset: Dataset) -> Callable[[State], State]:
    """Returns the part of the bias that is linear in s'.

    s' -> [s', 1] W with W = argmin sum |[s', 1] W - mean prediction|^2 over rows that end no episode.
    """
    rows = world_model.interior(dataset)
    mean = predict(model, torch.from_numpy(rows.state), torch.from_numpy(rows.action), torch.Generator(), "mean")
    return _least_squares(mean.numpy(), rows.next_state)


def _least_squares(wanted: np.ndarray, *columns: np.ndarray) -> Callable[..., Tensor]:
    """Returns x -> [x, 1] W, of the columns of x, with W = argmin sum |[x, 1] W - wanted|^2 over rows."""

    def with_one(*columns: np.ndarray) -> np.ndarray:
        return np.concatenate([*columns, np.ones_like(columns[0][..., :1])], axis=-1, dtype=np.float64)

    weights, *_ = np.linalg.lstsq(with_one(*columns), wanted)
    return lambda *x: torch.from_numpy(with_one(*(column.numpy() for column in x)) @ weights).to(x[0])


def linear_regression(dataset: Dataset) -> Predict:
    """Returns s' = s + [s, a, 1] W, W = argmin sum |[s, a, 1] W - (s' - s)|^2 over rows that end no episode."""
    rows = world_model.interior(dataset)
    change = _least_squares(rows.next_state - rows.state, rows.state, rows.action)
    return lambda state, action, *_: state + change(state, action)


def persistence(state: State, *_: object) -> State:
    """s' = s: nothing moves."""
    return state


def held_out_error(
    predict: Predict,
    standardiser: Standardiser,
    held_out: Dataset,
    seed: int,
) -> Float[np.ndarray, " state"]:
    """mean ((s'_i - s^'_i) / std_i)^2 for every dimension i of the state: the normalised error of one step.

    The mean runs over the held-out rows that end no episode (NaN if there are none), std_i over all drawn rows. So 1 is
    the error of a model that always predicts the mean state.
    """
    rows = world_model.interior(held_out)
    state, action, next_state = map(torch.from_numpy, (rows.state, rows.action, rows.next_state))
    generator = streams.torch_generator(seed, "world model", "held-out")
    predicted = predict(state, action, next_state, generator)
    return ((next_state - predicted).double() / standardiser.std).square().mean(dim=0).numpy()


def error_parts(
    imagined: Float[Tensor, "rows samples state"], next_state: State, std: Float[Tensor, " state"]
) -> tuple[Float[Tensor, " state"], Float[Tensor, " state"]]:
    """Returns the mean squared error of imagined next states as bias^2 and jitter^2, in variances of each dimension.

    Let e = s^' - s', with E and Var over a row's K samples. Then jitter^2 = mean Var(e), unbiased,
    and bias^2 = mean |E e|^2 - jitter^2 / K, because an average of K samples still has that much
    jitter. Their sum is exactly the mean of e^2. K is at least 2.
    """
    error = (imagined - next_state.unsqueeze(1)).double() / std
    jitter = error.var(dim=1).mean(dim=0)
    return error.mean(dim=1).square().mean(dim=0) - jitter / error.shape[1], jitter


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted world model, the history of its fit, and its held-out errors."""

    model: Model  # after the last epoch
    losses: Loss  # each term's mean over the rows of an epoch, [epochs]
    epochs: list[int]  # after which `history` was measured
    # `held_out_error` of the sampled prediction after each of these epochs
    history: Float[Tensor, "evaluations state"]
    # `held_out_error` of each source in the end, per dimension; empty without held-out rows
    errors: dict[str, list[float]]
    deterministic: Deterministic | None = None  # the model without latent state, if a source needs it

    @property
    def noise_std(self) -> Float[Tensor, " state"]:
        """Root of the mean squared held-out error of the sampled prediction, in the environment's units."""
        require(bool(self.errors), "noise matched to the model's held-out error needs held-out rows, but there were none")
        return torch.tensor(self.errors["sample"]).sqrt() * self.model.standardiser.std


def fit(
    settings: WorldModel, dataset: Dataset, held_out: Dataset, seed: int, arithmetic: Arithmetic = PLAIN, evaluations: int = 10
) -> Fit:
    """Returns a fitted world model with its held-out errors, beside those of persistence and of linear regression.

    The held-out error is measured `evaluations` >= 1 times during the fit, evenly spaced. It does not affect the weights.
    """
    due = sorted({math.ceil(settings.epochs * k / evaluations) for k in range(1, evaluations + 1)})
    losses, history, errors = [], [], {}
    for epoch, (model, terms) in enumerate(world_model.epochs(settings, dataset, seed, arithmetic), start=1):
        losses.append(torch.stack(terms))
        if epoch in due:
            error = held_out_error(_of_model(model)["sample"], model.standardiser, held_out, seed)
            history.append(torch.from_numpy(error))
    if len(world_model.interior(held_out)):
        asked = _of_model(model) | {"persistence": persistence, "linear": linear_regression(dataset)}
        errors = {name: held_out_error(ask, model.standardiser, held_out, seed).tolist() for name, ask in asked.items()}
    return Fit(model, Loss(*torch.stack(losses, dim=1).cpu()), due, torch.stack(history), errors)


def with_deterministic(fitted: Fit, model: Deterministic, held_out: Dataset, seed: int) -> Fit:
    """Returns a fit with the deterministic model and its held-out error added."""
    fitted = replace(fitted, deterministic=model)
    if not fitted.errors:  # there are no held-out rows
        return fitted
    error = held_out_error(predictor("deterministic", fitted, held_out), model.standardiser, held_out, seed)
    return replace(fitted, errors=fitted.errors | {"deterministic": error.tolist()})


def _of_model(model: Model) -> dict[str, Predict]:
    """Returns the sources that need only the world model, by name. Their arguments: s, a, s', generator."""
    return {
        "sample": lambda s, a, s_, g: predict(model, s, a, g),
        "mean": lambda s, a, s_, g: predict(model, s, a, g, "mean"),
        "reconstruction": lambda s, a, s_, g: reconstruct(model, s_, g),
    }


SIMULATOR = "simulator"  # not a model: the task itself, at the policy's own actions (`augmentation.branches`)
SOURCES = ("sample", "mean", "reconstruction", "jitter", "shrink", "noise", "deterministic")


def predictor(source: str, fitted: Fit, dataset: Dataset) -> Predict:
    """Returns a source of imagined next states, predict(state, action, next_state, generator), for a fit and its rows.

    "sample", "mean": the world model's prediction. "reconstruction": D(z) with z ~ q(z | s').
    "jitter": only the spread of the samples. "shrink": only the linear part of the bias. "noise": s' plus Gaussian
    noise of the size of the held-out error, which is a little larger than the error on `dataset`. "deterministic": the
    prediction of the model without latent state.

    Raises:
        ValueError: The source is unknown, or `fitted` lacks what it needs.
    """
    match choose("augmentation source", source, SOURCES):
        case "jitter":
            return lambda s, a, s_, g: add_jitter(fitted.model, s, a, s_, g)
        case "shrink":
            pull = contraction(fitted.model, dataset)
            return lambda s, a, s_, g: pull(s_)
        case "noise":
            noise_std = fitted.noise_std
            return lambda s, a, s_, g: add_noise(s_, noise_std, g)
        case "deterministic":
            missing = "the source 'deterministic' needs a deterministic model, but this fit has none"
            control = given(fitted.deterministic, missing)
            return lambda s, a, s_, g: predict_deterministic(control, s, a)
    return _of_model(fitted.model)[source]
