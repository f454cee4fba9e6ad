"""Does a critic over-fit? Its error on rows that it learned from and on new ones, and how rough its values are around them.

The next states are the recorded ones in every arm, so that a critic that learned from imagined ones is asked the same question.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
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
    agent: td3.Agent, trained: Batch, new: Batch, settings: TD3, generators: Sequence[torch.Generator]
) -> list[dict[str, float | dict[str, list[float]]]]:
    """Returns what there is to say of each agent's critics, as plain data, in discounted rewards.

    Keys: `error_trained` and `error_new`, the `error` on either batch; `percentiles` of the values of the trained rows, as
    recorded and with actions or states `moved` by the largest of WIDTHS; `roughness` at each of WIDTHS, of actions and of states.

    Args:
        agent: P agents.
        trained: rows that each agent learned from.
        new: rows that it never saw.
        settings: of TD3.
        generators: one an agent, for the perturbations.
    """
    errors = [error(agent, batch, settings).tolist() for batch in (trained, new)]
    percentiles = {"recorded": _percentiles(values(agent.critics, trained.state, trained.action))}
    rough = {}
    for part in ("action", "state"):
        shape = getattr(trained, part).shape[1:]
        normal = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(trained.state)
        there = moved(trained, part, WIDTHS[-1], normal)
        percentiles[part] = _percentiles(values(agent.critics, there.state, there.action))
        rough[part] = torch.stack([roughness(agent.critics, trained, part, width, normal) for width in WIDTHS], dim=1).tolist()
    return [
        {
            "error_trained": errors[0][k],
            "error_new": errors[1][k],
            "percentiles": {name: found[k] for name, found in percentiles.items()},
            "roughness": {part: found[k] for part, found in rough.items()},
        }
        for k in range(len(generators))
    ]


def _percentiles(values: Float[Tensor, "population batch"]) -> list[list[float]]:
    shares = torch.tensor(PERCENTILES, dtype=values.dtype, device=values.device) / 100
    return values.quantile(shares, dim=-1).T.tolist()
