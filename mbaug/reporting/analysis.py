"""What chapters compute beside the figures: the error that the VAE's loss leaves, and how imagined states move targets."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug.checks import choose
from mbaug.method.networks import TWIN
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner


def water_level(settings: WorldModel, dimensions: int, batches: int) -> float:
    """Returns theta = w_KL d / (2 (1 + w_p)), the error that the loss allows each of d components (`rate_distortion`)."""
    return settings.kl_weight / batches * dimensions / (2 * (1 + settings.prediction_weight))


def rate_distortion(
    settings: WorldModel,
    correlation: Float[np.ndarray, "state state"],
    batches: int,
    mode: str = "sample",
) -> float:
    """Returns the normalised error that this loss leaves to a linear-Gaussian VAE: 1/d sum_c min(lambda_c, theta).

    Each principal component of the d standardised states, of variance lambda_c, has a latent of its own. A posterior variance
    sigma^2 costs w_KL (-1/2 log sigma^2) nats and gives the sampled reconstruction an error delta = lambda_c sigma^2. Because s'
    is close to s, the loss counts this error 1 + w_p = 11 times. So the cost of delta <= lambda_c is

        (1 + w_p) delta / d + w_KL / 2 log(lambda_c / delta),    smallest at    delta = theta = w_KL d / (2 (1 + w_p)).

    For w_KL = 1/3, theta is d / 66, whatever lambda_c is: the KL term sets a price, and detail below theta is not worth it.
    The decoder multiplies deviations from the mean by 1 - delta / lambda_c. The mean reconstruction has no sampling noise, so its
    error is only delta^2 / lambda_c. We leave out the term of the latent error, which is 1/12 per latent beside 11/d.
    Source: ours; reverse water-filling (Cover & Thomas 2006, 10.3.3).

    `correlation` is the states' correlation matrix; w_KL = kl_weight / batches; `mode` is "sample" or "mean".

    Raises:
        ValueError: The mode is unknown. The message suggests the nearest one.
    """
    variance = np.sort(np.linalg.eigvalsh(correlation))[::-1]
    sampled = np.minimum(variance, water_level(settings, len(variance), batches))
    sampled[settings.latent_size :] = variance[settings.latent_size :]  # no latent is left for these
    error = {"sample": sampled, "mean": sampled**2 / variance}
    return float(error[choose("prediction mode", mode, error)].mean())


class Shift(NamedTuple):
    """How far the mean target of each row moves if its next state is always imagined, in discounted rewards."""

    whole: Float[Tensor, " rows"]
    bias: Float[Tensor, " rows"]  # the shift if all samples were at their mean
    jitter: Float[Tensor, " rows"]  # the rest, due to the spread of the samples
    twins: Float[Tensor, " rows"]  # the part of `whole` due to more disagreement between the two critics


@torch.no_grad()
def target_shift(
    learner: Learner,
    imagined: Float[Tensor, "rows samples state"],
    next_state: Float[Tensor, "rows state"],
) -> Shift:
    """Returns gamma (E V(s^') - V(s')) with V(s) = min_i Q_i(s, pi(s)), and its parts, for rows that do not end an episode.

    The states are in the environment's units, and the learner holds a single agent. The twins' part follows from
    min(a, b) = (a + b) / 2 - |a - b| / 2: it is -gamma / 2 (E |Q_1 - Q_2|(s^') - |Q_1 - Q_2|(s')).
    """
    agent, discount = learner.agent, learner.arm.learner.discount

    def twin_values(state: Tensor) -> Tensor:
        standardised = learner.standardiser.apply(state.reshape(1, -1, state.shape[-1]))
        return agent.critics(standardised, agent.actor(standardised)).reshape(2, *state.shape[:-1])

    def value(q: Tensor) -> Tensor:
        return q.amin(dim=TWIN)

    def gap(q: Tensor) -> Tensor:
        return (q[0] - q[1]).abs()

    recorded, mean, samples = map(twin_values, (next_state, imagined.mean(dim=1), imagined))
    whole = value(samples).mean(dim=1) - value(recorded)
    bias = value(mean) - value(recorded)
    twins = (gap(recorded) - gap(samples).mean(dim=1)) / 2
    return Shift(*(discount * part for part in (whole, bias, whole - bias, twins)))
