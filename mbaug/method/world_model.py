"""The world model (a VAE with a latent transition), its loss and fit, and a deterministic model.

Each agent has its own model, which is fitted once to the agent's dataset. The networks see states
only after standardisation by that dataset's mean and standard deviation. All random numbers come
from the CPU, so a GPU gets the same ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import streams
from mbaug.checks import require
from mbaug.method import networks
from mbaug.method.networks import PLAIN, Adam, Arithmetic, Perceptron, adam_step, perceptron
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Action, Dataset, Standardiser, State

EPSILON = 1e-5  # added to the standard deviation of a state's dimension; C

Latent = Float[Tensor, "rows latent"]


@dataclass(frozen=True, eq=False)
class Model:
    """One world model."""

    encoder: Perceptron  # s -> mean and log-variance of q(z | s)
    decoder: Perceptron  # z -> s
    transition: Perceptron  # [z, a] -> f(z, a)
    standardiser: Standardiser  # of states
    residual: bool  # True: z' = z + f(z, a) (the paper). False: z' = f(z, a) (the first author's code)


class Posterior(NamedTuple):
    """q(z | s) = N(mu, diag sigma^2), by its mean mu and its log-variance log sigma^2."""

    mean: Latent
    log_variance: Latent


def sizes(settings: WorldModel, state_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the layer sizes of encoder, decoder and transition: inputs, hidden units, outputs."""
    latent = settings.latent_size
    return {
        "encoder": (state_size, *settings.hidden, 2 * latent),
        "decoder": (latent, *settings.hidden, state_size),
        "transition": (latent + action_size, *settings.transition_hidden, latent),
    }


def posterior(model: Model, state: State) -> Posterior:
    """Returns q(z | s) for standardised states."""
    return Posterior(*model.encoder.alone(state).chunk(2, dim=-1))


def sample(q: Posterior, normal: Latent) -> Latent:
    """z = mu + sigma n, for standard normal n."""
    return q.mean + (q.log_variance / 2).exp() * normal


def step(model: Model, z: Latent, action: Action) -> Latent:
    """z' = z + f(z, a) if the model is residual (the paper), z' = f(z, a) if not (the first author's code)."""
    change = model.transition.alone(torch.cat([z, action], dim=-1))
    return z + change if model.residual else change


class Loss(NamedTuple):
    """The four terms, unweighted, and their weighted sum."""

    reconstruction: Float[Tensor, "*epochs"]  # mean (D(z) - s)^2
    kl: Float[Tensor, "*epochs"]  # mean KL(q(z | s) || N(0, 1)), nats per row
    prediction: Float[Tensor, "*epochs"]  # mean (D(z') - s')^2
    latent: Float[Tensor, "*epochs"]  # mean (z' - sg mu(s'))^2
    total: Float[Tensor, "*epochs"]


def kl_divergence(q: Posterior) -> Float[Tensor, " rows"]:
    """KL(q || N(0, 1)) = 1/2 sum_i (mu_i^2 + sigma_i^2 - 1 - log sigma_i^2), nats (Kingma & Welling 2014, B)."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - 1 - q.log_variance).sum(dim=-1)


def squared_error(x: Float[Tensor, "rows n"], y: Float[Tensor, "rows n"]) -> Float[Tensor, ""]:
    """mean (x - y)^2 over the rows and the dimensions."""
    return (x - y).square().mean(dim=(-1, -2))


def loss(
    model: Model,
    state: State,
    action: Action,
    next_state: State,
    normal: Latent,
    settings: WorldModel,
    batches: int,
) -> Loss:
    """L = mean (D(z) - s)^2 + w_KL KL(q(z | s) || N(0, 1)) + 10 mean (D(z') - s')^2 + mean (z' - sg mu(s'))^2.

    z = mu(s) + sigma(s) n is a sample of q(z | s) and z' = z + f(z, a) its next latent state; sg stops the
    gradient. The KL term is summed over the latent dimensions and averaged over the batch; the others are
    averaged over the dimensions as well. The first author's code compares z' with a sample of q(z | s'); we take its
    mean. Both have the same expected gradient, because the sample's noise is independent of z' and stopped, and
    the mean has less variance.
    w_KL is `kl_weight` divided by the `batches` of an epoch; `normal` is n, and states are standardised.
    Source: the first author's code for the terms and weights.
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


def interior(dataset: Dataset) -> Dataset:
    """Returns the rows that end no episode, neither terminal nor truncated. Source: the first author's code."""
    return dataset.rows(np.flatnonzero(~(dataset.terminal | dataset.truncated)))


def epochs(
    settings: WorldModel,
    dataset: Dataset,
    seed: int,
    arithmetic: Arithmetic = PLAIN,
) -> Iterator[tuple[Model, Loss]]:
    """Yields the model and the mean terms of the loss after every epoch.

    It is always the same model object, which the fit updates in place.

    An epoch is a random permutation of the rows that end no episode, cut into batches, the last one smaller.
    """
    generator = streams.torch_generator(seed, "world model")
    layers = sizes(settings, dataset.state.shape[1], dataset.action.shape[1])
    parts = {name: perceptron(layers[name], [generator], arithmetic) for name in layers}
    standardiser = Standardiser.fit([dataset.state], EPSILON).of(0)
    model = Model(**parts, standardiser=standardiser, residual=settings.residual)
    batches = math.ceil(len(interior(dataset)) / settings.batch_size)
    terms = partial(loss, model, settings=settings, batches=batches)
    number = len(Loss._fields)
    for means in _descent(model, terms, dataset, settings, generator, number, settings.latent_size):
        yield model, Loss(*means)


def _descent(
    model: Any, loss: Callable, dataset: Dataset, settings: WorldModel, generator: torch.Generator, terms: int, latent: int = 0
) -> Iterator[Float[Tensor, " terms"]]:
    """Minimises the last term of a loss with Adam over all networks of a model; yields mean terms.

    `loss` takes a batch of states, actions, next states and standard normals, `latent` of them per
    row. It returns `terms` numbers.
    """
    rows, parts = interior(dataset), [part for part in vars(model).values() if isinstance(part, Perceptron)]
    require(len(rows) > 0, f"{dataset.name}: every row ends an episode, so there is nothing to fit a model to")
    learned, like = [(part.flat, Adam.zeros(part.flat)) for part in parts], parts[0].flat.detach()
    found = like.new_zeros(terms)
    changed = [found, *(tensor for flat, adam in learned for tensor in (flat, adam.first, adam.second, adam.steps))]

    def update(*batch: Tensor) -> None:
        losses = tuple(loss(*batch))
        adam_step(losses[-1], settings.learning_rate, *learned)
        found.copy_(torch.stack(losses).detach())

    state, action, next_state = map(torch.from_numpy, (rows.state, rows.action, rows.next_state))
    columns = [x.to(like) for x in (model.standardiser.apply(state), action, model.standardiser.apply(next_state))]
    updates = {}  # one for each size of a batch
    for _ in range(settings.epochs):
        means = torch.zeros_like(found)
        for index in torch.randperm(len(rows), generator=generator).split(settings.batch_size):
            batch = [column.index_select(0, index.to(column.device)) for column in columns]
            batch.append(torch.randn(len(index), latent, generator=generator).to(like))
            if len(index) not in updates:
                updates[len(index)] = parts[0].arithmetic.captured(update, batch, changed)
            updates[len(index)](*batch)
            means = means + found * (len(index) / len(rows))
        yield means


@dataclass(frozen=True, eq=False)
class Deterministic:
    """A network s' = s + g(s, a), without latent state or sampling, as large as a world model."""

    network: Perceptron  # [s, a] -> g(s, a)
    standardiser: Standardiser  # of states


def deterministic_sizes(settings: WorldModel, state_size: int, action_size: int) -> tuple[int, ...]:
    """Returns the layer sizes of a model as deep as the encoder, with as many parameters as a world model."""
    wanted = sum(map(networks.parameter_count, sizes(settings, state_size, action_size).values()))
    inputs, layers = state_size + action_size, len(settings.hidden)
    candidates = ((inputs, *[units] * layers, state_size) for units in count(1))
    return next(layers for layers in candidates if networks.parameter_count(layers) >= wanted)


def move(model: Deterministic, state: State, action: Action) -> State:
    """s' = s + g(s, a), standardised."""
    return state + model.network.alone(torch.cat([state, action], dim=-1))


def fit_deterministic(
    settings: WorldModel,
    dataset: Dataset,
    seed: int,
    arithmetic: Arithmetic = PLAIN,
) -> Deterministic:
    """Returns the deterministic model, fitted with as many Adam steps as a world model.

    L = mean (s + g(s, a) - s')^2.
    """
    generator = streams.torch_generator(seed, "deterministic model")
    layers = deterministic_sizes(settings, dataset.state.shape[1], dataset.action.shape[1])
    standardiser = Standardiser.fit([dataset.state], EPSILON).of(0)
    model = Deterministic(perceptron(layers, [generator], arithmetic), standardiser)

    def terms(state: State, action: Action, next_state: State, _: Tensor) -> Sequence[Tensor]:
        return (squared_error(move(model, state, action), next_state),)

    list(_descent(model, terms, dataset, settings, generator, terms=1))
    return model
