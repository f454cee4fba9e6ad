"""What imagines next states: the world model, and what stands in its place in the controls. A source is a function and a line.

All predictions are in the environment's units, of the rows of one dataset: `predict(state, action, next_state, generator)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import streams
from mbaug.checks import choose, given, require
from mbaug.method import world_model
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Dataset, Predict, Standardiser
from mbaug.method.world_model import Deterministic, Loss, Model, posterior, sample, step

Rows = Float[Tensor, "rows state"]
Actions = Float[Tensor, "rows action"]


def imagine(model: Model, state: Rows, action: Actions, normal: Float[Tensor, "rows latent"]) -> Rows:
    """D(z') with z' = z + f(z, a) and z = mu(s) + sigma(s) n, all states standardised; n = 0 gives the mean prediction."""
    z = sample(posterior(model, state), normal)
    return model.decoder.alone(step(model, z, action))


@torch.no_grad()
def _asked(model: Model | Deterministic, ask: Callable[..., Tensor], flat: Tensor, state: Rows, *others: Tensor) -> Rows:
    """Returns what `ask` answers, from and to the environment's units."""
    inputs = (x.to(flat.detach()) for x in (model.standardiser.apply(state), *others))
    return model.standardiser.invert(ask(model, *inputs).to(state))


def predict(model: Model, state: Rows, action: Actions, generator: torch.Generator, mode: str = "sample") -> Rows:
    """Returns one imagined next state a row: with mode "sample" of z ~ q(z | s), the paper's; with "mean" of z = mu(s).

    Raises:
        ValueError: the mode is unknown; the sentence names the nearest.
    """
    scale = {"sample": 1, "mean": 0}
    normal = torch.randn(len(state), model.decoder.sizes[0], generator=generator) * scale[choose("prediction mode", mode, scale)]
    return _asked(model, imagine, model.encoder.flat, state, action, normal)


def reconstruct(model: Model, next_state: Rows, generator: torch.Generator) -> Rows:
    """Returns D(z), z ~ q(z | s'), in the environment's units: the blur of the VAE without its dynamics."""
    normal = torch.randn(len(next_state), model.decoder.sizes[0], generator=generator)

    def decode(model: Model, state: Tensor, normal: Tensor) -> Tensor:
        return model.decoder.alone(sample(posterior(model, state), normal))

    return _asked(model, decode, model.encoder.flat, next_state, normal)


def predict_deterministic(model: Deterministic, state: Rows, action: Actions) -> Rows:
    """Returns the deterministic model's next state of each row, in the environment's units."""
    return _asked(model, world_model.move, model.network.flat, state, action)


def add_noise(next_state: Rows, noise_std: Float[Tensor, " state"], generator: torch.Generator) -> Rows:
    """s' + std n for standard normal n: the control that is as wrong as the model but knows no dynamics."""
    return next_state + noise_std * torch.randn(next_state.shape, generator=generator)


def add_jitter(model: Model, state: Rows, action: Actions, next_state: Rows, generator: torch.Generator) -> Rows:
    """s' + (sample - mean): the spread of the model's samples around the recorded next state, almost without its bias."""
    mean = predict(model, state, action, generator, "mean")
    return next_state + predict(model, state, action, generator) - mean


def contraction(model: Model, dataset: Dataset) -> Callable[[Rows], Rows]:
    """Returns s' -> [s', 1] W with W = argmin sum |[s', 1] W - mean prediction|^2 over the rows that end no episode.

    It is the model's linear pull to the mean: its bias without its samples and without its dynamics.
    """
    rows = world_model.interior(dataset)
    state, action = torch.from_numpy(rows.state), torch.from_numpy(rows.action)
    wanted = predict(model, state, action, torch.Generator(), "mean").numpy()
    weights, *_ = np.linalg.lstsq(_with_one(rows.next_state), wanted)
    return lambda next_state: torch.from_numpy(_with_one(next_state.numpy()) @ weights).to(next_state)


def _with_one(*columns: np.ndarray) -> Float[np.ndarray, "rows inputs"]:
    return np.concatenate([*columns, np.ones_like(columns[0][..., :1])], axis=-1, dtype=np.float64)


# --- how wrong ------------------------------------------------------------------------------------------------------------


def linear_regression(dataset: Dataset) -> Predict:
    """Returns s' = s + [s, a, 1] W with W = argmin sum |[s, a, 1] W - (s' - s)|^2 over the rows that end no episode."""
    rows = world_model.interior(dataset)
    weights, *_ = np.linalg.lstsq(_with_one(rows.state, rows.action), rows.next_state - rows.state)

    def predict(state: Tensor, action: Tensor, *_: object) -> Tensor:
        return state + torch.from_numpy(_with_one(state.numpy(), action.numpy()) @ weights).to(state)

    return predict


def persistence(state: Tensor, *_: object) -> Tensor:
    """s' = s: nothing moves."""
    return state


def held_out_error(predict: Predict, standardiser: Standardiser, held_out: Dataset, seed: int) -> Float[np.ndarray, " state"]:
    """mean ((s'_i - s^'_i) / std_i)^2 for every dimension i of the state: the normalised error of one step.

    The mean runs over the held-out rows that end no episode (NaN if there are none); std_i is the standard deviation of s_i over
    the rows that the model was fitted on. So 1 is the error of a model that always predicts the mean state.
    """
    rows = world_model.interior(held_out)
    if len(rows) == 0:
        return np.full(held_out.state.shape[1], np.nan)
    state, action, next_state = map(torch.from_numpy, (rows.state, rows.action, rows.next_state))
    predicted = predict(state, action, next_state, streams.torch_generator(seed, "world model", "held-out"))
    return ((next_state - predicted).double() / standardiser.std).square().mean(dim=0).numpy()


# --- a fit and its sources ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted world model, how it came about, and how good it is."""

    model: Model  # after the last epoch
    losses: Loss  # each term's mean over the rows of an epoch, [epochs]
    epochs: list[int]  # after which `history` was measured
    history: Float[Tensor, "checks state"]  # the error of the sampled prediction then
    errors: dict[str, list[float]]  # by name (`held_out_error`), a number a dimension; empty without held-out rows
    deterministic: Deterministic | None = None  # the model without latent state, if a source needs it

    @property
    def noise_std(self) -> Float[Tensor, " state"]:
        """Root of the mean squared held-out error of the sampled prediction, in the environment's units.

        Raises:
            ValueError: there were no held-out rows.
        """
        require(bool(self.errors), "noise matched to the model's held-out error needs held-out rows, but there were none")
        return torch.tensor(self.errors["sample"]).sqrt() * self.model.standardiser.std


def fit(
    settings: WorldModel,
    dataset: Dataset,
    held_out: Dataset,
    seed: int,
    arithmetic: Arithmetic = PLAIN,
    checks: int = 10,
) -> Fit:
    """Returns a fitted world model with its held-out errors, beside those of persistence and of linear regression.

    The held-out error is measured `checks` times on the way, at even distances; no weight feels it.
    """
    due = sorted({math.ceil(settings.epochs * k / checks) for k in range(1, checks + 1)})
    losses, history = [], []

    def error(ask: Predict) -> Float[np.ndarray, " state"]:
        return held_out_error(ask, model.standardiser, held_out, seed)

    def sampled(s: Tensor, a: Tensor, s_: Tensor, g: torch.Generator) -> Tensor:
        return predict(model, s, a, g)

    passes = world_model.epochs(settings, dataset, seed, arithmetic)
    for epoch, (model, terms) in enumerate(passes, start=1):  # noqa: B007 -- `sampled` asks the model
        losses.append(torch.stack(terms))
        if epoch in due:
            history.append(torch.from_numpy(error(sampled)))
    asked: dict[str, Predict] = {
        "sample": sampled,
        "mean": lambda s, a, s_, g: predict(model, s, a, g, "mean"),
        "reconstruction": lambda s, a, s_, g: reconstruct(model, s_, g),
        "persistence": persistence,
        "linear": linear_regression(dataset),
    }
    errors = {name: error(ask).tolist() for name, ask in asked.items()} if len(world_model.interior(held_out)) else {}
    return Fit(model, Loss(*torch.stack(losses, dim=1).cpu()), due, torch.stack(history), errors)


def with_deterministic(fitted: Fit, model: Deterministic, held_out: Dataset, seed: int) -> Fit:
    """Returns a fit that holds the deterministic model, too, and its held-out error."""
    error = held_out_error(lambda s, a, s_, g: predict_deterministic(model, s, a), model.standardiser, held_out, seed)
    errors = fitted.errors | ({"deterministic": error.tolist()} if fitted.errors else {})
    return replace(fitted, deterministic=model, errors=errors)


def _deterministic(fitted: Fit, dataset: Dataset) -> Predict:
    control = given(
        fitted.deterministic, "the source 'deterministic' needs a fit with its deterministic model: this one has none"
    )
    return lambda s, a, s_, g: predict_deterministic(control, s, a)


def _noise(fitted: Fit, dataset: Dataset) -> Predict:
    noise_std = fitted.noise_std
    return lambda s, a, s_, g: add_noise(s_, noise_std, g)


def _shrink(fitted: Fit, dataset: Dataset) -> Predict:
    contract = contraction(fitted.model, dataset)
    return lambda s, a, s_, g: contract(s_)


# Name -> what makes the prediction, given a fit and the rows that it was fitted to. In the lambdas: s, a, s', generator.
SOURCES: dict[str, Callable[[Fit, Dataset], Predict]] = {
    "sample": lambda fitted, _: lambda s, a, s_, g: predict(fitted.model, s, a, g),
    "mean": lambda fitted, _: lambda s, a, s_, g: predict(fitted.model, s, a, g, "mean"),
    "reconstruction": lambda fitted, _: lambda s, a, s_, g: reconstruct(fitted.model, s_, g),
    "jitter": lambda fitted, _: lambda s, a, s_, g: add_jitter(fitted.model, s, a, s_, g),
    "shrink": _shrink,
    "noise": _noise,
    "deterministic": _deterministic,
}


def predictor(source: str, fitted: Fit, dataset: Dataset) -> Predict:
    """Returns what replaces next states, predict(state, action, next_state, generator), given a fit and its rows.

    "sample", "mean": the world model's prediction. "reconstruction": D(z) with z ~ q(z | s'). "jitter", "shrink": the samples'
    spread alone, the pull to the mean alone. "noise": s' and Gaussian noise as strong as the held-out error. "deterministic":
    the prediction of the model without latent state.

    Raises:
        ValueError: the source is unknown, or `fitted` does not hold what it asks.
    """
    return SOURCES[choose("augmentation source", source, SOURCES)](fitted, dataset)
