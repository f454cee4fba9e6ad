"""Measures of the critics when pre-training ends: do they over-fit, how rough are their values, and are the values right?

All arms are measured with recorded next states, even if they learned from imagined ones, so that they can be compared.
Calibration is measured on states that are the same for every arm and seed of a task (`probes`).
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug.checks import choose
from mbaug.method.networks import TWIN, Critics
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner
from mbaug.method.transitions import Batch

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from recorded actions to others
QUANTILES = (0.1, 0.5, 0.9)  # over rows, of the changes of values on that way
WIDTHS = (0.1, 0.5)  # sizes of perturbations: of actions in [-1, 1], or of states in standard deviations


@torch.no_grad()
def values(critics: Critics, state: Tensor, action: Tensor) -> Float[Tensor, "population batch"]:
    """Returns min_i Q_i(s, a) for standardised states, in discounted rewards."""
    flat = critics.network.flat
    return critics(state.to(flat), action.to(flat)).amin(dim=TWIN)


@torch.no_grad()
def error(learner: Learner, batch: Batch) -> Float[Tensor, " population"]:
    """Returns delta = sqrt(1/2 sum_i mean (Q_i(s, a) - y)^2) with y without noise, in discounted rewards.

    The targets y are the critics' own, so the error shows whether the critics are consistent, not whether they are right.
    """
    noise, agent = torch.zeros_like(batch.action), learner.agent
    target = learner.algorithm.critic_target(agent, batch, learner.arm.learner, noise)
    squared = (agent.critics(batch.state, batch.action) - target).square().mean(dim=-1).sum(dim=TWIN)
    return (squared / 2).sqrt()


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

    recorded, mean, samples = map(twin_values, (next_state, imagined.mean(dim=1), imagined))
    value, gap = (lambda q: q.amin(dim=TWIN)), (lambda q: (q[0] - q[1]).abs())
    whole = value(samples).mean(dim=1) - value(recorded)
    bias = value(mean) - value(recorded)
    twins = (gap(recorded) - gap(samples).mean(dim=1)) / 2
    return Shift(*(discount * part for part in (whole, bias, whole - bias, twins)))


def moved(batch: Batch, part: str, width: float, normal: Float[Tensor, "population batch _"]) -> Batch:
    """Returns the batch with `part` ("action" or "state") moved by `width * normal`; actions are clipped to [-1, 1]."""
    shifted = getattr(batch, part) + width * normal
    return batch._replace(**{part: shifted.clamp(-1, 1) if part == "action" else shifted})


def roughness(
    critics: Critics, batch: Batch, part: str, width: float, normal: Float[Tensor, "population batch _"]
) -> Float[Tensor, " population"]:
    """Returns mean |min_i Q_i(s~, a~) - min_i Q_i(s, a)|, the change of values when `part` is `moved`, in discounted rewards."""
    perturbed = moved(batch, part, width, normal)
    before = values(critics, batch.state, batch.action)
    return (values(critics, perturbed.state, perturbed.action) - before).abs().mean(dim=-1)


def overfitting(
    learner: Learner, trained: Batch, new: Batch, generators: Sequence[torch.Generator], elsewhere: Batch | None = None
) -> list[dict[str, float | dict[str, list[float]]]]:
    """Returns each agent's measures of over-fitting and roughness, as plain data in discounted rewards.

    Keys: `error_trained`, `error_new` and `error_elsewhere` are the `error` on each batch. `value_std` is the standard deviation
    of the values of the trained rows: if all values are alike, errors and roughness are small, too. `percentiles` are those of
    the same values, as recorded and with actions or states `moved` by the largest of WIDTHS. `roughness` is measured at each of
    WIDTHS, for actions and for states.

    `trained` are rows that each agent learned from. `new` are rows that it never saw: of the same episodes, or of others if
    it learned from whole episodes. `elsewhere`, if given, are rows of whole episodes of another policy. `generators`, one per
    agent, draw the perturbations.
    """
    batches = {"trained": trained, "new": new} | ({} if elsewhere is None else {"elsewhere": elsewhere})
    critics = learner.agent.critics
    errors = {f"error_{name}": error(learner, batch).tolist() for name, batch in batches.items()}
    recorded = values(critics, trained.state, trained.action)
    percentiles, spread = {"recorded": _percentiles(recorded)}, recorded.std(dim=-1, correction=0).tolist()
    rough = {}
    for part in ("action", "state"):
        shape = getattr(trained, part).shape[1:]
        normal = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(trained.state)
        perturbed = moved(trained, part, WIDTHS[-1], normal)
        percentiles[part] = _percentiles(values(critics, perturbed.state, perturbed.action))
        rough[part] = torch.stack([roughness(critics, trained, part, width, normal) for width in WIDTHS], dim=1).tolist()
    return [
        {name: found[k] for name, found in errors.items()}
        | {
            "value_std": spread[k],
            "percentiles": {name: found[k] for name, found in percentiles.items()},
            "roughness": {part: found[k] for part, found in rough.items()},
        }
        for k in range(len(generators))
    ]


@torch.no_grad()
def along_actions(
    critics: Critics,
    state: Float[Tensor, "population batch state"],
    action: Float[Tensor, "population batch action"],
    other: Float[Tensor, "population batch action"],
) -> Float[Tensor, "population shares quantiles"]:
    """v(p) = (Q(s, a + p (o - a)) - Q(s, a)) / SD Q(s, a), Q = min(Q_1, Q_2): how values change from recorded actions a to o.

    Returns the QUANTILES over rows at each of SHARES p. Above zero, a policy could gain by actions that are not in the data.
    """
    recorded, way = values(critics, state, action), other - action
    moved = torch.stack([values(critics, state, action + share * way) for share in SHARES], dim=1)
    change = (moved - recorded[:, None]) / recorded.std(dim=-1, correction=0)[:, None, None]
    return change.quantile(change.new_tensor(QUANTILES), dim=-1).permute(1, 2, 0)


def calibration(
    values: Float[np.ndarray, "twin states"],
    returns: Float[np.ndarray, " states"],
    group: Int[np.ndarray, " states"],
    groups: Sequence[str],
) -> dict[str, dict[str, float | int]]:
    """Returns how well one agent's critics predict the returns of its own policy, for all states and for each group.

    Keys within a group: `states` is the number of states. `value` and `return` are the means of
    min_i Q_i(s, pi(s)) and of the policy's return from these states. `gap` is their difference.
    `gap_std`, `value_std` and `return_std` are standard deviations over states. `twin_gap` is the
    mean of |Q_1 - Q_2|. `rank_correlation` is Spearman's correlation of value and return, NaN if
    one of them is constant. All but `states` and `rank_correlation` are in discounted rewards.

    `values` are Q_i(s, pi(s)), `returns` the policy's discounted return from each state, and `group` its index in `groups`.
    """
    chosen = {"all": np.ones(len(group), dtype=bool)} | {name: group == number for number, name in enumerate(groups)}
    return {name: _calibrated(values[:, rows], returns[rows]) for name, rows in chosen.items() if rows.any()}


def _calibrated(values: Float[np.ndarray, "twin states"], returns: Float[np.ndarray, " states"]) -> dict[str, float | int]:
    smaller = values.min(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        correlation = float(scipy.stats.spearmanr(smaller, returns).statistic)
    return {
        "states": len(returns),
        "value": float(smaller.mean()),
        "return": float(returns.mean()),
        "gap": float((smaller - returns).mean()),
        "gap_std": float((smaller - returns).std()),
        "value_std": float(smaller.std()),
        "return_std": float(returns.std()),
        "twin_gap": float(np.abs(values[0] - values[1]).mean()),
        "rank_correlation": correlation,
    }


def _percentiles(values: Float[Tensor, "population batch"]) -> list[list[float]]:
    shares = torch.tensor(PERCENTILES, dtype=values.dtype, device=values.device) / 100
    return values.quantile(shares, dim=-1).T.tolist()


def signatures(rows: list[dict]) -> dict:
    """Returns signs of a failure in a run's rows.

    Keys: `score_drop` is the last mean return before the switch minus the lowest mean return after it: returns, not scores, and
    None without pre-training. `value_gap` is the largest mean of predicted value minus discounted return, in rewards.
    `imagined_outside` is the largest fraction of imagined components outside the data's range, None without augmentation. All
    are None if there are no rows because the agent diverged before its first evaluation.
    """
    if not rows:
        return dict.fromkeys(("score_drop", "value_gap", "imagined_outside"))
    frame = pd.DataFrame(rows)
    means = frame.groupby(["phase", "gradient_steps", "environment_steps"], sort=False).mean(numeric_only=True)
    drop = None
    if {"pretrain", "finetune"} <= set(frame.phase):
        drop = float(means.loc["pretrain", "return"].iloc[-1] - means.loc["finetune", "return"].min())
    gap, outside = (means["predicted_value"] - means["discounted_return"]).max(), frame["imagined_outside"].max()
    outside = None if np.isnan(outside) else float(outside)
    return {"score_drop": drop, "value_gap": float(gap), "imagined_outside": outside}


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
    theta = settings.kl_weight / batches * len(variance) / (2 * (1 + settings.prediction_weight))
    sampled = np.minimum(variance, theta)
    sampled[settings.latent_size :] = variance[settings.latent_size :]  # no latent is left for these
    error = {"sample": sampled, "mean": sampled**2 / variance}
    return float(error[choose("prediction mode", mode, error)].mean())
