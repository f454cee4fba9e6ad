"""The world model: a VAE whose latent state the action moves one step, its loss and its fit; and a model without latent state.

A model is one agent's: it is fitted once to a dataset. States are standardised by that dataset's mean and standard deviation; the
networks see nothing else. All random numbers come from the CPU: a GPU gets the same ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import streams
from mbaug.method.networks import PLAIN, Adam, Arithmetic, Perceptron, perceptron
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Dataset, Standardiser

EPSILON = 1e-5  # added to the standard deviation of a state's dimension; C


@dataclass(frozen=True, eq=False)
class Model:
    """One world model."""

    encoder: Perceptron  # s -> mean and log-variance of q(z | s)
    decoder: Perceptron  # z -> s
    transition: Perceptron  # [z, a] -> f(z, a)
    standardiser: Standardiser  # of states
    residual: bool  # True: z' = z + f(z, a) (the paper). False: z' = f(z, a) (the authors' code)


class Posterior(NamedTuple):
    """q(z | s) = N(mu, diag sigma^2), by its mean mu and its log-variance log sigma^2."""

    mean: Float[Tensor, "batch latent"]
    log_variance: Float[Tensor, "batch latent"]


def sizes(settings: WorldModel, state_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the layer sizes of encoder, decoder and transition: inputs, hidden units, outputs."""
    latent = settings.latent_size
    return {
        "encoder": (state_size, *settings.hidden, 2 * latent),
        "decoder": (latent, *settings.hidden, state_size),
        "transition": (latent + action_size, *settings.transition_hidden, latent),
    }


def posterior(model: Model, state: Float[Tensor, "batch state"]) -> Posterior:
    """Returns q(z | s) for standardised states."""
    return Posterior(*model.encoder.alone(state).chunk(2, dim=-1))


def sample(q: Posterior, normal: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
    """z = mu + sigma n, for standard normal n."""
    return q.mean + (q.log_variance / 2).exp() * normal


def step(model: Model, z: Float[Tensor, "batch latent"], action: Float[Tensor, "batch action"]) -> Float[Tensor, "batch latent"]:
    """z' = z + f(z, a) if the model is residual (the paper), z' = f(z, a) if not (the authors' code)."""
    change = model.transition.alone(torch.cat([z, action], dim=-1))
    return z + change if model.residual else change


# --- the loss -------------------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """The four terms, unweighted, and their weighted sum."""

    reconstruction: Float[Tensor, "*epochs"]  # mean (D(z) - s)^2
    kl: Float[Tensor, "*epochs"]  # mean KL(q(z | s) || N(0, 1)), nats a row
    prediction: Float[Tensor, "*epochs"]  # mean (D(z') - s')^2
    latent: Float[Tensor, "*epochs"]  # mean (z' - sg mu(s'))^2
    total: Float[Tensor, "*epochs"]


def kl_divergence(q: Posterior) -> Float[Tensor, " batch"]:
    """KL(q || N(0, 1)) = 1/2 sum_i (mu_i^2 + sigma_i^2 - 1 - log sigma_i^2), in nats a row. Source: Kingma & Welling 2014, B."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - 1 - q.log_variance).sum(dim=-1)


def squared_error(x: Float[Tensor, "batch n"], y: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    """mean (x - y)^2 over the batch and the dimensions."""
    return (x - y).square().mean(dim=(-1, -2))


def loss(
    model: Model,
    state: Float[Tensor, "batch state"],
    action: Float[Tensor, "batch action"],
    next_state: Float[Tensor, "batch state"],
    normal: Float[Tensor, "batch latent"],
    settings: WorldModel,
    batches: int,
) -> Loss:
    """L = mean (D(z) - s)^2 + w_KL KL(q(z | s) || N(0, 1)) + 10 mean (D(z') - s')^2 + mean (z' - sg mu(s'))^2.

    z = mu(s) + sigma(s) n is a sample of q(z | s) and z' = z + f(z, a) its next latent state; sg stops the gradient. The KL term
    is summed over the latent dimensions and averaged over the batch; the others are averaged over the dimensions as well.
    The authors' code compares z' with a sample of q(z | s'); we take its mean. Both have the same expected gradient, because the
    sample's noise is independent of z' and stopped, and the mean has less variance.
    w_KL is `kl_weight` divided by the `batches` of an epoch; `normal` is n, and states are standardised.
    Source: the authors' code for the terms and weights.
    """
    q = posterior(model, state)
    z = sample(q, normal)
    next_z = step(model, z, action)
    decoded, next_decoded = model.decoder.alone(torch.cat([z, next_z])).chunk(2)  # one product for both
    reconstruction = squared_error(decoded, state)
    kl = kl_divergence(q).mean(dim=-1)
    prediction = squared_error(next_decoded, next_state)
    latent = squared_error(next_z, posterior(model, next_state).mean.detach())
    total = reconstruction + settings.kl_weight / batches * kl
    total = total + settings.prediction_weight * prediction + settings.latent_weight * latent
    return Loss(reconstruction, kl, prediction, latent, total)


# --- the fit --------------------------------------------------------------------------------------------------------------


def interior(dataset: Dataset) -> Dataset:
    """Returns the rows that end no episode, neither terminal nor truncated. Source: the authors' code."""
    return dataset.rows(np.flatnonzero(~(dataset.terminal | dataset.truncated)))


def epochs(
    settings: WorldModel,
    dataset: Dataset,
    seed: int,
    arithmetic: Arithmetic = PLAIN,
) -> Iterator[tuple[Model, Loss]]:
    """Yields, after every epoch of a fit, the model (always the same one, moving) and the mean terms of the loss.

    An epoch is a random permutation of the rows that end no episode, cut into batches, the last one smaller. States are
    standardised by the mean and standard deviation of all rows.
    """
    generator, rows = streams.torch_generator(seed, "world model"), interior(dataset)
    standardiser = Standardiser.fit([dataset.state], EPSILON).of(0)
    layers = sizes(settings, dataset.state.shape[1], dataset.action.shape[1])
    parts = {name: perceptron(layers[name], [generator], arithmetic) for name in layers}
    model = Model(**parts, standardiser=standardiser, residual=settings.residual)
    batches = math.ceil(len(rows) / settings.batch_size)

    def terms(state: Tensor, action: Tensor, next_state: Tensor, normal: Tensor) -> Loss:
        return loss(model, state, action, next_state, normal, settings, batches)

    def draw(count: int) -> list[Tensor]:
        return [torch.randn(count, settings.latent_size, generator=generator)]

    descent = _descent([*parts.values()], terms, rows, standardiser, settings, generator, arithmetic, draw)
    for means in descent:
        yield model, Loss(*means)


def _descent(
    parts: Sequence[Perceptron],
    loss: Callable[..., Sequence[Tensor]],
    rows: Dataset,
    standardiser: Standardiser,
    settings: WorldModel,
    generator: torch.Generator,
    arithmetic: Arithmetic,
    draw: Callable[[int], list[Tensor]] = lambda count: [],
) -> Iterator[Float[Tensor, " terms"]]:
    """Yields the mean terms of every epoch while Adam moves `parts` of a model down the last of them.

    `loss` returns its terms, of a batch of states, actions and next states and of what `draw` drew for as many rows.
    """
    flats, moments = [part.flat for part in parts], [Adam.zeros(part.flat) for part in parts]
    found = flats[0].new_zeros(len(Loss._fields) if len(parts) > 1 else 1)
    changed = [*flats, *(tensor for adam in moments for tensor in (adam.first, adam.second, adam.steps)), found]

    def descend(_: int, *batch: Tensor) -> None:
        losses = loss(*batch)
        gradients = torch.autograd.grad(losses[-1], flats)
        for flat, gradient, adam in zip(flats, gradients, moments, strict=True):
            adam.step(flat, gradient, settings.learning_rate)
        found.copy_(torch.stack(tuple(losses)).detach())

    state, action, next_state = map(torch.from_numpy, (rows.state, rows.action, rows.next_state))
    columns = [x.to(flats[0].detach()) for x in (standardiser.apply(state), action, standardiser.apply(next_state))]
    steps = {}  # one for each size of a batch
    for _ in range(settings.epochs):
        means = torch.zeros_like(found)
        for index in torch.randperm(len(rows), generator=generator).split(settings.batch_size):
            batch = [column.index_select(0, index.to(column.device)) for column in columns]
            batch += [drawn.to(batch[0]) for drawn in draw(len(index))]
            if len(index) not in steps:
                steps[len(index)] = arithmetic.captured(descend, 0, batch, changed)
            steps[len(index)](0, *batch)
            means = means + found * (len(index) / len(rows))
        yield means


# --- what to hold it against ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Deterministic:
    """A network s' = s + f(s, a), without latent state or sampling, as large as a world model."""

    network: Perceptron  # [s, a] -> f(s, a)
    standardiser: Standardiser  # of states


def deterministic_sizes(settings: WorldModel, state_size: int, action_size: int) -> tuple[int, ...]:
    """Returns the layer sizes of a model as deep as the encoder, with as many units as give a world model's parameters."""

    def parameters(layers: Sequence[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(layers))

    wanted = sum(map(parameters, sizes(settings, state_size, action_size).values()))
    candidates = ((state_size + action_size, *[units] * len(settings.hidden), state_size) for units in count(1))
    return next(layers for layers in candidates if parameters(layers) >= wanted)


def move(
    model: Deterministic, state: Float[Tensor, "batch state"], action: Float[Tensor, "batch action"]
) -> Float[Tensor, "batch state"]:
    """s' = s + f(s, a), standardised."""
    return state + model.network.alone(torch.cat([state, action], dim=-1))


def fit_deterministic(
    settings: WorldModel,
    dataset: Dataset,
    seed: int,
    arithmetic: Arithmetic = PLAIN,
) -> Deterministic:
    """Returns the deterministic model: L = mean (s + f(s, a) - s')^2, with as many steps of Adam as the world model."""
    generator = streams.torch_generator(seed, "deterministic model")
    standardiser = Standardiser.fit([dataset.state], EPSILON).of(0)
    layers = deterministic_sizes(settings, dataset.state.shape[1], dataset.action.shape[1])
    model = Deterministic(perceptron(layers, [generator], arithmetic), standardiser)

    def terms(state: Tensor, action: Tensor, next_state: Tensor) -> Sequence[Tensor]:
        return (squared_error(move(model, state, action), next_state),)

    for _ in _descent([model.network], terms, interior(dataset), standardiser, settings, generator, arithmetic):
        pass
    return model
