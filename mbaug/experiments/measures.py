"""What critics know when pre-training ends: do they over-fit, how rough are their values, and are these values right?

The rows' next states are the recorded ones in every arm, so that a critic that learned from imagined ones is asked the same
question. Calibration is asked on states that are the same for every arm and seed of a task (`probes`).
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
WIDTHS = (0.1, 0.5)  # of a perturbation: of an action in [-1, 1], or in standard deviations of a state's dimension


@torch.no_grad()
def values(critics: Critics, state: Tensor, action: Tensor) -> Float[Tensor, "population batch"]:
    """Returns min_i Q_i(s, a) for standardised states, in discounted rewards."""
    flat = critics.network.flat
    return critics(state.to(flat), action.to(flat)).amin(dim=TWIN)


@torch.no_grad()
def error(learner: Learner, batch: Batch) -> Float[Tensor, " population"]:
    """Returns delta = sqrt(1/2 sum_i mean (Q_i(s, a) - y)^2) with y without noise, in discounted rewards.

    It is the error against the critics' own targets: how consistent they are, not how right.
    """
    noise, agent = torch.zeros_like(batch.action), learner.agent
    target = learner.algorithm.critic_target(agent, batch, learner.arm.learner, noise)
    squared = (agent.critics(batch.state, batch.action) - target).square().mean(dim=-1).sum(dim=TWIN)
    return (squared / 2).sqrt()


class Shift(NamedTuple):
    """How far the mean target of each row moves where its next state is always imagined, in discounted rewards."""

    whole: Float[Tensor, " rows"]
    bias: Float[Tensor, " rows"]  # where all samples lie at their mean
    jitter: Float[Tensor, " rows"]  # the rest: that they lie around it
    twins: Float[Tensor, " rows"]  # of the whole: that the two critics disagree more there than at the recorded next state


@torch.no_grad()
def target_shift(
    learner: Learner,
    imagined: Float[Tensor, "rows samples state"],
    next_state: Float[Tensor, "rows state"],
) -> Shift:
    """Returns gamma (E V(s^') - V(s')) with V(s) = min_i Q_i(s, pi(s)), and its parts, of rows that end no episode.

    The states are in the environment's units, the learner is one agent alone. As min(a, b) = (a + b) / 2 - |a - b| / 2, the
    twins' part is -gamma / 2 (E |Q_1 - Q_2|(s^') - |Q_1 - Q_2|(s')).
    """
    agent, discount = learner.agent, learner.arm.learner.discount

    def asked(state: Tensor) -> Tensor:
        known = learner.standardiser.apply(state.reshape(1, -1, state.shape[-1]))
        return agent.critics(known, agent.actor(known)).reshape(2, *state.shape[:-1])

    here, middle, there = map(asked, (next_state, imagined.mean(dim=1), imagined))
    value, apart = (lambda q: q.amin(dim=TWIN)), (lambda q: (q[0] - q[1]).abs())
    whole = value(there).mean(dim=1) - value(here)
    bias = value(middle) - value(here)
    twins = (apart(here) - apart(there).mean(dim=1)) / 2
    return Shift(*(discount * part for part in (whole, bias, whole - bias, twins)))


def moved(batch: Batch, part: str, width: float, normal: Float[Tensor, "population batch _"]) -> Batch:
    """Returns the batch with `part` ("action" or "state") moved by `width` times a standard normal; actions stay in [-1, 1]."""
    where = getattr(batch, part) + width * normal
    return batch._replace(**{part: where.clamp(-1, 1) if part == "action" else where})


def roughness(
    critics: Critics, batch: Batch, part: str, width: float, normal: Float[Tensor, "population batch _"]
) -> Float[Tensor, " population"]:
    """Returns mean |min_i Q_i(s~, a~) - min_i Q_i(s, a)|: how much values change where `part` is `moved`, in rewards."""
    there = moved(batch, part, width, normal)
    change = values(critics, there.state, there.action) - values(critics, batch.state, batch.action)
    return change.abs().mean(dim=-1)


def overfitting(
    learner: Learner, trained: Batch, new: Batch, generators: Sequence[torch.Generator], elsewhere: Batch | None = None
) -> list[dict[str, float | dict[str, list[float]]]]:
    """Returns how each agent's critics are on rows that they learned from and on others, as plain data, in discounted rewards.

    Keys: `error_trained`, `error_new` and `error_elsewhere`, the `error` on each batch; `value_std`, the standard deviation of
    the values of the trained rows (errors and roughness are small, too, where all values are alike); `percentiles` of those
    values, as recorded and with actions or states `moved` by the largest of WIDTHS; `roughness` at each of WIDTHS, of actions
    and of states.

    `trained` are rows that each agent learned from, `new` rows that it never saw of the same episodes, and `elsewhere` rows of
    whole episodes of another policy, if there are any. `generators`, one an agent, are for the perturbations.
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
        there = moved(trained, part, WIDTHS[-1], normal)
        percentiles[part] = _percentiles(values(critics, there.state, there.action))
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


def calibration(
    values: Float[np.ndarray, "twin states"],
    returns: Float[np.ndarray, " states"],
    group: Int[np.ndarray, " states"],
    groups: Sequence[str],
) -> dict[str, dict[str, float | int]]:
    """Returns how right one agent's critics are about its own policy, for all states and for each group of them.

    Keys within a group: `states`, how many; `value` and `return`, the means of min_i Q_i(s, pi(s)) and of what the policy got
    from there; `gap`, their difference, and `gap_std`; `value_std` and `return_std`; `twin_gap`, mean |Q_1 - Q_2|;
    `rank_correlation` of value and return, NaN where one of them is the same everywhere. All but counts and the correlation
    are in discounted rewards.

    `values` are Q_i(s, pi(s)), `returns` what the policy got from each state, `groups` the names of the groups by number.
    """
    chosen = {"all": np.ones(len(group), dtype=bool)} | {name: group == number for number, name in enumerate(groups)}
    return {name: _calibrated(values[:, rows], returns[rows]) for name, rows in chosen.items() if rows.any()}


def _calibrated(values: Float[np.ndarray, "twin states"], returns: Float[np.ndarray, " states"]) -> dict[str, float | int]:
    least = values.min(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        correlation = float(scipy.stats.spearmanr(least, returns).statistic)
    return {
        "states": len(returns),
        "value": float(least.mean()),
        "return": float(returns.mean()),
        "gap": float((least - returns).mean()),
        "gap_std": float((least - returns).std()),
        "value_std": float(least.std()),
        "return_std": float(returns.std()),
        "twin_gap": float(np.abs(values[0] - values[1]).mean()),
        "rank_correlation": correlation,
    }


def _percentiles(values: Float[Tensor, "population batch"]) -> list[list[float]]:
    shares = torch.tensor(PERCENTILES, dtype=values.dtype, device=values.device) / 100
    return values.quantile(shares, dim=-1).T.tolist()


def signatures(rows: list[dict]) -> dict:
    """Returns the signatures of a failure among a run's rows.

    Keys: `score_drop`, the last mean return before the switch minus the lowest mean return after it (returns, not scores; None
    without pre-training); `value_gap`, the largest mean of predicted value minus discounted return, in rewards;
    `imagined_outside`, the largest fraction of imagined components outside the data's range (None without augmentation).
    All are None where there are no rows: the agent diverged before its first evaluation.
    """
    if not rows:
        return dict.fromkeys(("score_drop", "value_gap", "imagined_outside"))
    frame = pd.DataFrame(rows)
    means = frame.groupby(["phase", "gradient_steps", "environment_steps"], sort=False).mean(numeric_only=True)
    drop = None
    if {"pretrain", "finetune"} <= set(frame.phase):
        drop = float(means.loc["pretrain", "return"].iloc[-1] - means.loc["finetune", "return"].min())
    gap = means["predicted_value"] - means["discounted_return"]
    outside = frame["imagined_outside"].max()
    return {
        "score_drop": drop,
        "value_gap": float(gap.max()),
        "imagined_outside": None if np.isnan(outside) else float(outside),
    }


def rate_distortion(
    settings: WorldModel,
    correlation: Float[np.ndarray, "state state"],
    batches: int,
    mode: str = "sample",
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

    `correlation` is that of the states; w_KL = kl_weight / batches; `mode` is "sample" or "mean".

    Raises:
        ValueError: the mode is unknown; the sentence names the nearest.
    """
    variance = np.sort(np.linalg.eigvalsh(correlation))[::-1]
    theta = settings.kl_weight / batches * len(variance) / (2 * (1 + settings.prediction_weight))
    sampled = np.minimum(variance, theta)
    sampled[settings.latent_size :] = variance[settings.latent_size :]  # no latent is left for these
    error = {"sample": sampled, "mean": sampled**2 / variance}
    return float(error[choose("prediction mode", mode, error)].mean())
