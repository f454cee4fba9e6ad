"""TD3 and TD3+BC with LayerNorm in the hidden layers of the critics: everything else is `td3`.

It keeps values from running away where there are no data (Ball et al. 2023, arXiv 2302.02948; Yue et al. 2023, arXiv 2310.04411).

Where it differs from Ball et al.: 1. LayerNorm has no learned gain and offset, and adds 1e-5 to the variance where theirs adds
1e-6. 2. The learner is TD3+BC and then TD3. Theirs is SAC (see `rlpd`).
"""

from dataclasses import replace
from typing import Any

from mbaug.method import td3
from mbaug.method.networks import PLAIN, Arithmetic, Critics, Generators
from mbaug.method.td3 import TD3


def normalised(agents: Any) -> Any:
    """Returns P agents, of any algorithm, with critics and target critics whose hidden layers are h = relu(LN(h W + b))."""
    names = "critics", "target_critics"
    networks = {name: getattr(agents, name).network for name in names}
    critics = {name: Critics(replace(each, normalised=True)) for name, each in networks.items()}
    return replace(agents, **critics)


def create(state_size: int, action_size: int, settings: TD3, generators: Generators, arithmetic: Arithmetic = PLAIN) -> td3.Agent:
    """Returns the P agents of `td3.create`, with LayerNorm in their critics."""
    return normalised(td3.create(state_size, action_size, settings, generators, arithmetic))


ALGORITHM = replace(td3.ALGORITHM, create=create)
