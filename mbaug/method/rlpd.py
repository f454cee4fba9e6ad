"""RLPD (Ball, Smith, Kostrikov & Levine 2023, arXiv 2302.02948): SAC with offline and new data.

There is no pre-training. Half of each batch comes from the offline rows, and the critics have LayerNorm.

Where it differs from the authors' code: 1. There are two critics. The authors have ten, and a target takes the minimum of two of
them. 2. There is one update per step instead of up to twenty. 3. LayerNorm has no learned gain and offset, and adds 1e-5 to the
variance where theirs adds 1e-6. 4. States are standardised. 5. The temperature's loss is log alpha (H - target) for the policy's
entropy H, as in `sac` (theirs is alpha (H - target)). 6. Parameters start as torch.nn.Linear's do (theirs are Glorot-uniform).
7. Recorded actions are not clipped to +-(1 - 1e-5).
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug.method import sac
from mbaug.method.layernorm import normalised
from mbaug.method.networks import PLAIN, Actions, Arithmetic, Critics, Generators, Losses
from mbaug.method.sac import SAC, GaussianActor
from mbaug.method.transitions import Batch


def create(state_size: int, action_size: int, settings: SAC, generators: Generators, arithmetic: Arithmetic = PLAIN) -> sac.Agent:
    """Returns the P agents of `sac.create`, with LayerNorm in their critics."""
    return normalised(sac.create(state_size, action_size, settings, generators, arithmetic))


def rows(places: Float[Tensor, "*axes batch"], offline: int, size: int) -> Int[Tensor, "*axes batch"]:
    """Returns the indices of a batch's rows in a replay buffer that holds `size` rows.

    Half come from its first `offline` rows, and half from those added since. `places` are uniform
    in [0, 1). Source: Ball et al. 2023, section 4.1, symmetric sampling.
    """
    old, new = places.tensor_split([places.shape[-1] // 2], dim=-1)
    return torch.cat([old * offline, offline + new * (size - offline)], dim=-1).long()


def actor_loss(
    actor: GaussianActor,
    critics: Critics,
    batch: Batch,
    alpha: Losses,
    noise: Actions,
) -> tuple[Losses, Losses]:
    """L = mean (alpha log pi(a|s) - mean_i Q_i(s, a)), and mean log pi: the mean of the critics where SAC takes their minimum.

    The arguments are those of `sac.actor_loss`. Source: Ball et al. 2023, Algorithm 1.
    """
    return sac.actor_loss(actor, critics, batch, alpha, noise, over_critics=torch.mean)


ALGORITHM = replace(sac.ALGORITHM, create=create, online_loss=actor_loss, rows=rows)
