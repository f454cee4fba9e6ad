"""Behaviour cloning before TD3: offline the actor imitates the data and the critics learn what the imitation is worth.

The critics follow TD3's target, so they value the clone. Online everything is `td3`.

Where it differs from plain cloning: 1. There are critics; cloning (Pomerleau 1988) has none. 2. As in TD3, the actor moves in
every second update only. 3. The policy is bounded by tanh, and states are standardised.
"""

from dataclasses import replace

from mbaug.method import td3
from mbaug.method.networks import Actor, Critics, Losses
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch


def cloning_loss(actor: Actor, critics: Critics, batch: Batch, settings: TD3) -> Losses:
    """L = mean (pi(s) - a)^2 over the batch and the action's dimensions. Source: Pomerleau 1988; the second term of TD3+BC."""
    return (actor(batch.state) - batch.action).square().mean(dim=(-1, -2))


ALGORITHM = replace(td3.ALGORITHM, offline_loss=cloning_loss)
