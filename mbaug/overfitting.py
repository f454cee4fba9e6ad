"""What critics know when pre-training ends: do they over-fit, how rough are their values, and are these values right?

The rows' next states are the recorded ones in every arm, so that a critic that learned from imagined ones is asked the same
question. Calibration is asked on states that are the same for every arm and seed of a task (`probes`).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug import td3
from mbaug.networks import TWIN, Critics
from mbaug.settings import TD3
from mbaug.transitions import Batch

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
WIDTHS = (0.1, 0.5)  # of a perturbation: of an action in [-1, 1], or in standard deviations of a state's dimension


@torch.no_grad()
def values(critics: Critics, state: Tensor, action: Tensor) -> Float[Tensor, "population batch"]:
    """Returns min_i Q_i(s, a) for standardised states, in discounted rewards."""
    flat = critics.network.flat
    return critics(state.to(flat), action.to(flat)).amin(dim=TWIN)


@torch.no_grad()
def error(agent: td3.Agent, batch: Batch, settings: TD3) -> Float[Tensor, " population"]:
    """Returns delta = sqrt(1/2 sum_i mean (Q_i(s, a) - y)^2) with y without target noise, in discounted rewards.

    It is the error against the critics' own targets: how consistent they are, not how right.
    """
    target = td3.critic_target(agent, batch, settings, torch.zeros_like(batch.action))
    return (td3.critic_loss(agent.critics, batch, target) / 2).sqrt()


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


def report(
    agent: td3.Agent,
    trained: Batch,
    new: Batch,
    settings: TD3,
    generators: Sequence[torch.Generator],
    elsewhere: Batch | None = None,
) -> list[dict[str, float | dict[str, list[float]]]]:
    """Returns what there is to say of each agent's critics, as plain data, in discounted rewards.

    Keys: `error_trained`, `error_new` and `error_elsewhere`, the `error` on each batch; `value_std`, the standard deviation of
    the values of the trained rows (errors and roughness are small, too, where all values are alike); `percentiles` of those
    values, as recorded and with actions or states `moved` by the largest of WIDTHS; `roughness` at each of WIDTHS, of actions
    and of states.

    Args:
        agent: P agents.
        trained: rows that each agent learned from.
        new: rows that it never saw, of the episodes that the trained rows are from.
        settings: of TD3.
        generators: one an agent, for the perturbations.
        elsewhere: rows of whole episodes of another policy; None: there are none, and no error on them.
    """
    batches = {"trained": trained, "new": new} | ({} if elsewhere is None else {"elsewhere": elsewhere})
    errors = {f"error_{name}": error(agent, batch, settings).tolist() for name, batch in batches.items()}
    recorded = values(agent.critics, trained.state, trained.action)
    percentiles, spread = {"recorded": _percentiles(recorded)}, recorded.std(dim=-1, correction=0).tolist()
    rough = {}
    for part in ("action", "state"):
        shape = getattr(trained, part).shape[1:]
        normal = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(trained.state)
        there = moved(trained, part, WIDTHS[-1], normal)
        percentiles[part] = _percentiles(values(agent.critics, there.state, there.action))
        rough[part] = torch.stack([roughness(agent.critics, trained, part, width, normal) for width in WIDTHS], dim=1).tolist()
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
    `rank_correlation` of value and return, None where one of them is the same everywhere. All but counts and the correlation
    are in discounted rewards.

    Args:
        values: Q_i(s, pi(s)).
        returns: discounted, of the policy from each state.
        group: of each state.
        groups: their names, by number.
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
