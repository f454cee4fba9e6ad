"""The world model: a VAE whose latent state the action moves one step; its fit, its errors, and what to hold them against.

Every agent has a model of its own, fitted on its own rows. The population axis P leads all records; agents are fitted and asked
one after another, each in memory of its own, so that no bit of a model depends on its neighbours. Batches of 4,096 rows fill the
processor without a population. All random numbers come from the CPU: a GPU gets the same ones.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import engine, graphs, networks, streams
from mbaug.engine import Adam
from mbaug.networks import Perceptron
from mbaug.settings import SOURCES, WorldModel, choose, require
from mbaug.transitions import Dataset, Predict, Standardiser

EPSILON = 1e-5  # added to the standard deviation of a state's dimension; C


# --- the model ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Model:
    """P world models.

    Attributes:
        encoder: s -> mean and log-variance of q(z | s).
        decoder: z -> s.
        transition: [z, a] -> f(z, a).
        standardiser: of states; the networks see nothing else.
        residual: z' = z + f(z, a) (the paper) if True, z' = f(z, a) (the authors' code) if False.
    """

    encoder: Perceptron
    decoder: Perceptron
    transition: Perceptron
    standardiser: Standardiser
    residual: bool


class Posterior(NamedTuple):
    """q(z | s) = N(mu, diag sigma^2), by its mean mu and its log-variance log sigma^2."""

    mean: Float[Tensor, "population batch latent"]
    log_variance: Float[Tensor, "population batch latent"]


def sizes(settings: WorldModel, state_size: int, action_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the layer sizes of encoder, decoder and transition: inputs, hidden units, outputs."""
    latent = settings.latent_size
    return {
        "encoder": (state_size, *settings.hidden, 2 * latent),
        "decoder": (latent, *settings.hidden, state_size),
        "transition": (latent + action_size, *settings.transition_hidden, latent),
    }


def create(
    settings: WorldModel,
    standardiser: Standardiser,
    action_size: int,
    generators: Sequence[torch.Generator],
    precision: str = "float32",
    device: str = "cpu",
) -> Model:
    """Returns P = len(generators) fresh models of states that `standardiser` standardises."""
    layers = sizes(settings, standardiser.mean.shape[1], action_size)
    parts = {name: networks.perceptron(layers[name], generators, precision, device) for name in layers}
    return Model(**parts, standardiser=standardiser, residual=settings.residual)


def posterior(model: Model, state: Float[Tensor, "population batch state"]) -> Posterior:
    """Returns q(z | s) for standardised states."""
    return Posterior(*model.encoder(state).chunk(2, dim=-1))


def sample(q: Posterior, normal: Float[Tensor, "population batch latent"]) -> Float[Tensor, "population batch latent"]:
    """z = mu + sigma n, for standard normal n."""
    return q.mean + (q.log_variance / 2).exp() * normal


def step(
    model: Model, z: Float[Tensor, "population batch latent"], action: Float[Tensor, "population batch action"]
) -> Float[Tensor, "population batch latent"]:
    """z' = z + f(z, a) if the model is residual (the paper), z' = f(z, a) if not (the authors' code)."""
    change = model.transition(torch.cat([z, action], dim=-1))
    return z + change if model.residual else change


# --- the loss -------------------------------------------------------------------------------------------------------------


class Loss(NamedTuple):
    """The four terms, unweighted, and their weighted sum; in a `Fit`, the means of each epoch [epochs, P]."""

    reconstruction: Float[Tensor, " population"]  # mean (D(z) - s)^2
    kl: Float[Tensor, " population"]  # mean KL(q(z | s) || N(0, 1)), nats a row
    prediction: Float[Tensor, " population"]  # mean (D(z') - s')^2
    latent: Float[Tensor, " population"]  # mean (z' - sg mu(s'))^2
    total: Float[Tensor, " population"]


def kl_divergence(q: Posterior) -> Float[Tensor, "population batch"]:
    """KL(q || N(0, 1)) = 1/2 sum_i (mu_i^2 + sigma_i^2 - 1 - log sigma_i^2), in nats a row. Source: Kingma & Welling 2014, B."""
    return 0.5 * (q.mean.square() + q.log_variance.exp() - 1 - q.log_variance).sum(dim=-1)


def squared_error(x: Float[Tensor, "population batch n"], y: Float[Tensor, "population batch n"]) -> Float[Tensor, " population"]:
    """mean (x - y)^2 over the batch and the dimensions."""
    return (x - y).square().mean(dim=(-1, -2))


def loss(
    model: Model,
    state: Float[Tensor, "population batch state"],
    action: Float[Tensor, "population batch action"],
    next_state: Float[Tensor, "population batch state"],
    normal: Float[Tensor, "population batch latent"],
    settings: WorldModel,
    batches: int,
) -> Loss:
    """L = mean (D(z) - s)^2 + w_KL KL(q(z | s) || N(0, 1)) + 10 mean (D(z') - s')^2 + mean (z' - sg mu(s'))^2.

    z = mu(s) + sigma(s) n is a sample of q(z | s) and z' = z + f(z, a) its next latent state; sg stops the gradient. The KL term
    is summed over the latent dimensions and averaged over the batch; the others are averaged over the dimensions as well.
    What the last term compares z' with, a sample of q(z | s') or its mean, no source states. Ours: the mean. Both have the same
    expected gradient, because the sample's noise is independent of z' and stopped; the mean has less variance.
    Source: the authors' code for the terms and weights.

    Args:
        model: P models.
        state, next_state: standardised.
        action: in [-1, 1].
        normal: n, a standard normal vector a row.
        settings: the weights.
        batches: of an epoch; w_KL = kl_weight / batches.
    """
    q = posterior(model, state)
    z = sample(q, normal)
    next_z = step(model, z, action)
    decoded, next_decoded = model.decoder(torch.cat([z, next_z], dim=1)).chunk(2, dim=1)  # one product for both
    reconstruction = squared_error(decoded, state)
    kl = kl_divergence(q).mean(dim=-1)
    prediction = squared_error(next_decoded, next_state)
    latent = squared_error(next_z, posterior(model, next_state).mean.detach())
    weights = 1.0, settings.kl_weight / batches, settings.prediction_weight, settings.latent_weight
    terms = reconstruction, kl, prediction, latent
    return Loss(*terms, total=sum(weight * term for weight, term in zip(weights, terms, strict=True)))


# --- the fit --------------------------------------------------------------------------------------------------------------


def interior(dataset: Dataset) -> Dataset:
    """Returns the rows that end no episode, neither terminal nor truncated. Source: the authors' code."""
    return dataset.rows(np.flatnonzero(~(dataset.terminal | dataset.truncated)))


def epochs(
    settings: WorldModel, dataset: Dataset, seed: int, precision: str = "float32", device: str = "cpu"
) -> Iterator[tuple[Model, Loss]]:
    """Yields, after every epoch of one agent's fit, its model (always the same one, moving) and the mean terms of the loss.

    An epoch is a random permutation of the rows that end no episode, cut into batches, the last one smaller. States are
    standardised by the mean and standard deviation of all rows.
    """
    (generator,) = streams.torch_generators([seed], "world model")
    standardiser, rows = Standardiser.fit([dataset.state], EPSILON), interior(dataset)
    model = create(settings, standardiser, dataset.action.shape[1], [generator], precision, device)
    batches = math.ceil(len(rows) / settings.batch_size)

    def terms(state: Tensor, action: Tensor, next_state: Tensor, normal: Tensor) -> Loss:
        return loss(model, state, action, next_state, normal, settings, batches)

    def draw(count: int) -> list[Tensor]:
        return [_normal([generator], count, settings.latent_size)]

    parts = model.encoder, model.decoder, model.transition
    for means in _descent(parts, terms, len(Loss._fields), rows, standardiser, settings, generator, draw):
        yield model, Loss(*means)


def _descent(
    parts: Sequence[Perceptron],
    loss: Callable[..., Sequence[Tensor]],
    terms: int,
    rows: Dataset,
    standardiser: Standardiser,
    settings: WorldModel,
    generator: torch.Generator,
    draw: Callable[[int], list[Tensor]] = lambda count: [],
) -> Iterator[Float[Tensor, "terms population"]]:
    """Yields the mean terms of every epoch while Adam moves one agent's `parts` down the last of them.

    Args:
        parts: of the model.
        loss: returns its terms, of a batch of states, actions and next states, and of what was drawn for it.
        terms: their number.
        rows: of the dataset.
        standardiser: of the states.
        settings: of the fit.
        generator: of the permutations.
        draw: what a batch of that many rows needs besides.
    """
    engine.tell_of_threads()
    flats, moments = [part.flat for part in parts], [Adam.zeros(part.flat) for part in parts]
    found = flats[0].new_zeros(terms, 1)
    changed = [*flats, *(tensor for adam in moments for tensor in (adam.first, adam.second, adam.steps)), found]

    def descend(_: int, *batch: Tensor) -> None:
        losses = loss(*batch)
        gradients = torch.autograd.grad(losses[-1].sum(), flats)
        for flat, gradient, adam in zip(flats, gradients, moments, strict=True):
            adam.step(flat, gradient, settings.learning_rate)
        found.copy_(torch.stack(tuple(losses)).detach())

    state, action, next_state = (torch.from_numpy(x).unsqueeze(0) for x in (rows.state, rows.action, rows.next_state))
    columns = [x.to(flats[0].detach()) for x in (standardiser.apply(state), action, standardiser.apply(next_state))]
    steps = {}  # one for each size of a batch
    for _ in range(settings.epochs):
        means = 0
        for index in torch.randperm(len(rows), generator=generator).split(settings.batch_size):
            batch = [column.index_select(1, index.to(column.device)) for column in columns]
            batch += [drawn.to(batch[0]) for drawn in draw(len(index))]
            if len(index) not in steps:
                steps[len(index)] = graphs.captured(descend, 0, batch, changed)
            steps[len(index)](0, *batch)
            means = means + found * (len(index) / len(rows))
        yield means


# --- prediction -----------------------------------------------------------------------------------------------------------


def imagine(
    model: Model,
    state: Float[Tensor, "population batch state"],
    action: Float[Tensor, "population batch action"],
    normal: Float[Tensor, "population batch latent"],
) -> Float[Tensor, "population batch state"]:
    """D(z') with z' = z + f(z, a) and z = mu(s) + sigma(s) n, all states standardised; n = 0 gives the mean prediction."""
    z = sample(posterior(model, state), normal)
    return model.decoder(step(model, z, action))


def predict(
    model: Model,
    state: Float[Tensor, "population rows state"],
    action: Float[Tensor, "population rows action"],
    generators: Sequence[torch.Generator],
    mode: str = "sample",
) -> Float[Tensor, "population rows state"]:
    """Returns one imagined next state a row.

    Args:
        model: P models.
        state: in the environment's units, as what is returned.
        action: in [-1, 1].
        generators: one an agent.
        mode: "sample": z ~ q(z | s), the paper's; "mean": z = mu(s).

    Raises:
        ValueError: the mode is unknown; the sentence names the nearest.
    """
    scale = {"sample": 1, "mean": 0}
    normal = _normal(generators, state.shape[1], model.decoder.sizes[0]) * scale[choose("prediction mode", mode, scale)]
    return _each(model, imagine, state, action, normal)


def reconstruct(
    model: Model, next_state: Float[Tensor, "population rows state"], generators: Sequence[torch.Generator]
) -> Float[Tensor, "population rows state"]:
    """Returns D(z), z ~ q(z | s'), in the environment's units: the blur of the VAE without its dynamics."""

    def decode(model: Model, state: Tensor, normal: Tensor) -> Tensor:
        return model.decoder(sample(posterior(model, state), normal))

    return _each(model, decode, next_state, _normal(generators, next_state.shape[1], model.decoder.sizes[0]))


@torch.no_grad()
def _each(
    model: "Model | Deterministic", ask: Callable[..., Tensor], state: Float[Tensor, "population rows state"], *others: Tensor
) -> Float[Tensor, "population rows state"]:
    """Returns what `ask` answers each agent alone, from and to the environment's units."""
    answers = []
    for k in range(len(state)):
        one = alone(model, k)
        inputs = one.standardiser.apply(state[k : k + 1]), *(other[k : k + 1] for other in others)
        flat = next(iter(_parts(one).values())).flat.detach()
        answer = ask(one, *(x.to(flat) for x in inputs))
        answers.append(one.standardiser.invert(answer.to(state)))
    return torch.cat(answers)


def _normal(generators: Sequence[torch.Generator], rows: int, size: int) -> Float[Tensor, "population rows size"]:
    return torch.stack([torch.randn(rows, size, generator=generator) for generator in generators])


# --- what to hold it against ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Deterministic:
    """P networks s' = s + f(s, a), without latent state or sampling, as large as a world model.

    Attributes:
        network: [s, a] -> f(s, a).
        standardiser: of states; the network sees nothing else.
    """

    network: Perceptron
    standardiser: Standardiser


def deterministic_sizes(settings: WorldModel, state_size: int, action_size: int) -> tuple[int, ...]:
    """Returns the layer sizes of the deterministic model: as deep as the encoder, and with as many parameters as the world model.

    That is, with the fewest units a layer that give at least as many.
    """

    def parameters(layers: Sequence[int]) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in pairwise(layers))

    wanted = sum(map(parameters, sizes(settings, state_size, action_size).values()))
    candidates = ((state_size + action_size, *[units] * len(settings.hidden), state_size) for units in count(1))
    return next(layers for layers in candidates if parameters(layers) >= wanted)


def move(
    model: Deterministic,
    state: Float[Tensor, "population batch state"],
    action: Float[Tensor, "population batch action"],
) -> Float[Tensor, "population batch state"]:
    """s' = s + f(s, a), standardised."""
    return state + model.network(torch.cat([state, action], dim=-1))


def predict_deterministic(
    model: Deterministic,
    state: Float[Tensor, "population rows state"],
    action: Float[Tensor, "population rows action"],
) -> Float[Tensor, "population rows state"]:
    """Returns the next state of each row, in the environment's units."""
    return _each(model, move, state, action)


def fit_deterministic(
    settings: WorldModel, dataset: Dataset, seed: int, precision: str = "float32", device: str = "cpu"
) -> Deterministic:
    """Returns one agent's deterministic model: L = mean (s + f(s, a) - s')^2, with as many steps of Adam as the world model."""
    (generator,) = streams.torch_generators([seed], "deterministic model")
    standardiser = Standardiser.fit([dataset.state], EPSILON)
    layers = deterministic_sizes(settings, dataset.state.shape[1], dataset.action.shape[1])
    model = Deterministic(networks.perceptron(layers, [generator], precision, device), standardiser)

    def terms(state: Tensor, action: Tensor, next_state: Tensor) -> Sequence[Tensor]:
        return (squared_error(move(model, state, action), next_state),)

    for _ in _descent((model.network,), terms, 1, interior(dataset), standardiser, settings, generator):
        pass
    return model


def linear_regression(dataset: Dataset) -> Predict:
    """Returns s' = s + [s, a, 1] W with W = argmin sum |[s, a, 1] W - (s' - s)|^2 over the rows that end no episode."""

    def inputs(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        return np.concatenate([state, action, np.ones_like(state[..., :1])], axis=-1, dtype=np.float64)

    rows = interior(dataset)
    weights, *_ = np.linalg.lstsq(inputs(rows.state, rows.action), rows.next_state - rows.state)

    def predict(state: Tensor, action: Tensor, *_) -> Tensor:
        return state + torch.from_numpy(inputs(state.numpy(), action.numpy()) @ weights).to(state)

    return predict


def persistence(state: Tensor, *_) -> Tensor:
    """s' = s: nothing moves."""
    return state


def held_out_error(predict: Predict, standardiser: Standardiser, held_out: Dataset, seed: int) -> Float[np.ndarray, " state"]:
    """mean ((s'_i - s^'_i) / std_i)^2 for every dimension i of the state: the normalised error of one step.

    The mean runs over the held-out rows that end no episode; std_i is the standard deviation of s_i over the rows that the model
    was fitted on. So 1 is the error of who always says the mean state, and the mean over i is one number for a model.

    Args:
        predict: of one agent.
        standardiser: of its states.
        held_out: rows it was not fitted on; none give NaN.
        seed: of the agent; the stream is ("world model", "held-out").
    """
    rows = interior(held_out)
    if len(rows) == 0:
        return np.full(held_out.state.shape[1], np.nan)
    state, action, next_state = (torch.from_numpy(x).unsqueeze(0) for x in (rows.state, rows.action, rows.next_state))
    predicted = predict(state, action, next_state, streams.torch_generators([seed], "world model", "held-out"))
    return ((next_state - predicted).double() / standardiser.std).square().mean(dim=1)[0].numpy()


def held_out_errors(
    dataset: Dataset, held_out: Dataset, seed: int, model: Model, deterministic: Deterministic | None = None
) -> dict[str, Float[np.ndarray, " state"]]:
    """Returns the normalised errors (`held_out_error`) of one agent's model and of what it is held against, on the same rows.

    The keys: "sample", "mean" and "reconstruction" (of s' itself) of the world model, "persistence", "linear" and, if a
    deterministic model is given, "deterministic".
    """
    predicts = {
        "sample": lambda s, a, s_, g: predict(model, s, a, g),
        "mean": lambda s, a, s_, g: predict(model, s, a, g, "mean"),
        "reconstruction": lambda s, a, s_, g: reconstruct(model, s_, g),
        "persistence": persistence,
        "linear": linear_regression(dataset),
    }
    if deterministic is not None:
        predicts["deterministic"] = lambda s, a, s_, g: predict_deterministic(deterministic, s, a)
    return {name: held_out_error(each, model.standardiser, held_out, seed) for name, each in predicts.items()}


def rate_distortion(
    settings: WorldModel, correlation: Float[np.ndarray, "state state"], batches: int, mode: str = "sample"
) -> float:
    """Returns the normalised error that a linear-Gaussian VAE under this loss leaves: 1/d sum_i min(lambda_i, theta).

    Each principal component of the d standardised states, of variance lambda_i, takes a latent of its own. A posterior variance
    sigma^2 there costs w_KL (-1/2 log sigma^2) nats and leaves the sampled reconstruction an error D = lambda_i sigma^2. If s'
    is close to s, the loss asks for it 1 + w_p = 11 times: it is least, over D <= lambda_i, of

        (1 + w_p) D / d + w_KL / 2 log(lambda_i / D)    at    D = theta = w_KL d / (2 (1 + w_p)).

    For w_KL = 1/3 that is theta = d / 66, whatever lambda_i: the KL term is a price, and beyond it detail is not worth its nats.
    The decoder shrinks towards the mean by 1 - D / lambda_i; so the mean reconstruction, without the sample's noise, errs by
    D^2 / lambda_i alone. The term of the latent error, 1/12 a latent beside 11/d, is left out.
    Source: ours; reverse water-filling (Cover & Thomas 2006, 10.3.3).

    Args:
        settings: the weights.
        correlation: of the states.
        batches: of an epoch; w_KL = kl_weight / batches.
        mode: "sample" or "mean".

    Raises:
        ValueError: the mode is unknown; the sentence names the nearest.
    """
    variance = np.sort(np.linalg.eigvalsh(correlation))[::-1]
    theta = settings.kl_weight / batches * len(variance) / (2 * (1 + settings.prediction_weight))
    sampled = np.minimum(variance, theta)
    sampled[settings.latent_size :] = variance[settings.latent_size :]  # no latent is left for these
    error = {"sample": sampled, "mean": sampled**2 / variance}
    return float(error[choose("prediction mode", mode, error)].mean())


# --- a population's fit ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Fit:
    """P fitted models, how they came about, and how good they are.

    Attributes:
        model: after the last epoch.
        deterministic: None if it was not asked for.
        errors: of each agent, by name (`held_out_errors`): a number a dimension; empty without held-out rows.
        losses: each term's mean over the rows of an epoch, [epochs, P].
        epochs: after which `history` was measured.
        history: the normalised error of the sampled prediction then.
    """

    model: Model
    deterministic: Deterministic | None
    errors: list[dict[str, list[float]]]
    losses: Loss
    epochs: list[int]
    history: Float[Tensor, "checks population state"]

    @property
    def noise_std(self) -> Float[Tensor, "population state"]:
        """Root of the mean squared held-out error of the sampled prediction, in the environment's units.

        Raises:
            ValueError: there were no held-out rows.
        """
        require(all(self.errors), "noise matched to the model's held-out error needs held-out rows, but there were none")
        return torch.tensor([errors["sample"] for errors in self.errors]).sqrt() * self.model.standardiser.std


def fit(
    settings: WorldModel,
    datasets: Sequence[Dataset],
    held_out: Sequence[Dataset],
    seeds: Sequence[int],
    precision: str = "float32",
    device: str = "cpu",
    deterministic: bool = False,
    checks: int = 10,
) -> Fit:
    """Returns a fitted model for each agent, with its held-out errors.

    Args:
        settings: of the model and its fit.
        datasets: the drawn rows of each agent.
        held_out: rows of each agent that are not trained on.
        seeds: of each agent.
        precision: "float32", "float64" or "bfloat16" (of the wide products alone).
        device: "cpu" or one that torch knows.
        deterministic: whether to fit the deterministic model as well.
        checks: how often, at even distances, the held-out error is measured on the way; no weight feels it.
    """
    due = sorted({math.ceil(settings.epochs * k / checks) for k in range(1, checks + 1)})
    agents = [
        _fit_one(settings, dataset, rest, seed, precision, device, deterministic, due)
        for dataset, rest, seed in zip(datasets, held_out, seeds, strict=True)
    ]
    models, controls, errors, losses, histories = zip(*agents, strict=True)
    return Fit(
        together(models),
        together(controls) if deterministic else None,
        list(errors),
        Loss(*torch.cat(losses, dim=-1).cpu()),
        due,
        torch.stack(histories, dim=1),
    )


def _fit_one(settings, dataset, held_out, seed, precision, device, deterministic, due):
    """Returns one agent's models, errors, losses [terms, epochs, 1] and history [checks, S]."""
    losses, history = [], []
    for epoch, (model, terms) in enumerate(epochs(settings, dataset, seed, precision, device), start=1):
        losses.append(torch.stack(terms))
        if epoch in due:
            sampled = lambda s, a, s_, g: predict(model, s, a, g)  # noqa: B023, E731
            history.append(held_out_error(sampled, model.standardiser, held_out, seed))
    control = fit_deterministic(settings, dataset, seed, precision, device) if deterministic else None
    errors = held_out_errors(dataset, held_out, seed, model, control)
    plain = {name: error.tolist() for name, error in errors.items() if np.isfinite(error).all()}
    return model, control, plain, torch.stack(losses, dim=1), torch.from_numpy(np.reshape(history, (len(due), -1)))


# --- what augmentation asks -----------------------------------------------------------------------------------------------


def add_noise(
    next_state: Float[Tensor, "population rows state"],
    noise_std: Float[Tensor, "population state"],
    generators: Sequence[torch.Generator],
) -> Float[Tensor, "population rows state"]:
    """s' + std n for standard normal n: the control that is as wrong as the model but knows no dynamics."""
    return next_state + noise_std.unsqueeze(1) * _normal(generators, *next_state.shape[1:])


def predictor(source: str, fitted: Fit | None) -> Predict | None:
    """Returns what replaces next states: predict(state, action, next_state, generators); None for "none".

    Args:
        source: one of settings.SOURCES. "sample", "mean": the model's prediction. "reconstruction": D(z) with z ~ q(z | s').
            "noise": s' and Gaussian noise as strong as the held-out error. "deterministic": the deterministic model's prediction.
        fitted: what it asks.

    Raises:
        ValueError: the source is unknown, or `fitted` does not hold what it asks.
    """
    if choose("augmentation source", source, SOURCES) == "none":
        return None
    require(fitted is not None, f"the augmentation source {source!r} needs a fitted world model, but None is given")
    if source == "noise":
        noise_std = fitted.noise_std
        return lambda state, action, next_state, generators: add_noise(next_state, noise_std, generators)
    if source == "reconstruction":
        return lambda state, action, next_state, generators: reconstruct(fitted.model, next_state, generators)
    if source == "deterministic":
        control = fitted.deterministic
        require(control is not None, "the source 'deterministic' needs a fit with deterministic=True, but this one is without")
        return lambda state, action, next_state, generators: predict_deterministic(control, state, action)
    return lambda state, action, next_state, generators: predict(fitted.model, state, action, generators, source)


# --- one of many, many of one, and checkpoints ----------------------------------------------------------------------------


def tensors(model: Model | Deterministic) -> dict[str, Tensor]:
    """Returns copies of all that the models hold, by name and with the population first."""
    parts = {
        f"{name}.{number}.{kind}": tensor
        for name, part in _parts(model).items()
        for number, layer in enumerate(part.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    parts |= {"standardiser.mean": model.standardiser.mean, "standardiser.std": model.standardiser.std}
    return {name: tensor.clone() for name, tensor in parts.items()}


def save(fitted: Fit) -> tuple[dict[str, Tensor], dict]:
    """Returns all that a fit holds as tensors and plain data: what a checkpoint keeps."""
    models = {"model": fitted.model} | ({"deterministic": fitted.deterministic} if fitted.deterministic else {})
    held = {f"{kind}.{name}": tensor for kind, model in models.items() for name, tensor in tensors(model).items()}
    low = fitted.model.encoder.product_dtype is not None
    plain = {"residual": fitted.model.residual, "bfloat16": low, "errors": fitted.errors, "epochs": fitted.epochs}
    return held | {"losses": torch.stack(fitted.losses), "history": fitted.history}, plain


def restore(held: Mapping[str, Tensor], plain: Mapping, device: str = "cpu") -> Fit:
    """Returns the fit that `save` took apart."""
    low = torch.bfloat16 if plain["bfloat16"] else None

    def parts(kind: str, *names: str) -> dict:
        own = {name.removeprefix(f"{kind}."): tensor for name, tensor in held.items() if name.startswith(f"{kind}.")}
        standardiser = Standardiser(own["standardiser.mean"], own["standardiser.std"])
        return {name: _network(_layers(own, name), low, device) for name in names} | {"standardiser": standardiser}

    model = Model(**parts("model", "encoder", "decoder", "transition"), residual=plain["residual"])
    control = Deterministic(**parts("deterministic", "network")) if "deterministic.standardiser.std" in held else None
    return Fit(model, control, plain["errors"], Loss(*held["losses"]), plain["epochs"], held["history"])


def alone(model: Model | Deterministic, k: int) -> Model | Deterministic:
    """Returns agent k's model in memory of its own.

    A view would give other bits: products of some sizes round by where in memory a weight begins.
    """
    return _filled(model, {name: tensor[k : k + 1] for name, tensor in tensors(model).items()})


def together(models: Sequence[Model | Deterministic]) -> Model | Deterministic:
    """Returns the models of several agents as one record."""
    held = [tensors(model) for model in models]
    return _filled(models[0], {name: torch.cat([each[name] for each in held]) for name in held[0]})


def _parts(model: Model | Deterministic) -> dict[str, Perceptron]:
    values = {field.name: getattr(model, field.name) for field in fields(model)}
    return {name: value for name, value in values.items() if isinstance(value, Perceptron)}


def _filled(model: Model | Deterministic, tensors: Mapping[str, Tensor]) -> Model | Deterministic:
    """Returns a model of the same kind that holds `tensors`."""
    parts = {
        name: _network(_layers(tensors, name), part.product_dtype, str(part.flat.device)) for name, part in _parts(model).items()
    }
    standardiser = Standardiser(tensors["standardiser.mean"], tensors["standardiser.std"])
    return replace(model, **parts, standardiser=standardiser)


def _layers(tensors: Mapping[str, Tensor], name: str) -> engine.Layers:
    numbers = range(sum(key.startswith(f"{name}.") for key in tensors) // 2)
    return tuple((tensors[f"{name}.{number}.weight"], tensors[f"{name}.{number}.bias"]) for number in numbers)


def _network(layers: engine.Layers, product_dtype: torch.dtype | None, device: str) -> Perceptron:
    """Returns perceptrons with the values of `layers` in memory of their own."""
    population, *_ = layers[0][0].shape
    sizes = layers[0][0].shape[1], *(weight.shape[2] for weight, _ in layers)
    flat = engine.allocate(population, sizes, layers[0][0].dtype, device)
    views = engine.layer_views(flat, population, sizes)
    for pair, values in zip(views, layers, strict=True):
        for view, value in zip(pair, values, strict=True):
            view.copy_(value)
    return Perceptron(flat.requires_grad_(), engine.layer_views(flat.detach(), population, sizes), product_dtype)
