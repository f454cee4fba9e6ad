"""Measures of the critics when pre-training ends: do they over-fit, how rough are their values, and are the values right?

All arms are measured with recorded next states, even if they learned from imagined ones, so that they can be compared.
Calibration is measured on states that are the same for every arm and seed of a task (`probes`).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug.method.networks import TWIN, Critics
from mbaug.method.training import Learner
from mbaug.method.transitions import Batch

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
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
    """Returns the keys of one group, as `calibration` describes them."""
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
    """Returns the PERCENTILES of each agent's values."""
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
