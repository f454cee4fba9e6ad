"""Every function of the method is shown, as live source, in a notebook."""

import inspect
import re

import pytest
from conftest import ROOT

from mbaug import augmentation, sac, td3, training, transitions, world_model

SHOWN = set(
    re.findall(
        r"\b(\w+\.\w+)\b",
        " ".join(re.findall(r"\bshow\(([^)]*)\)", "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.py")))),
    )
)
METHOD = {
    td3: ("noise", "critic_target", "critic_loss", "actor_loss", "actor_loss_bc", "track", "update", "explorer"),
    sac: ("sample", "critic_target", "critic_loss", "actor_loss", "temperature_loss", "update"),
    augmentation: ("replaced", "augment", "imagined_table", "replace_", "outside"),
    world_model: ("posterior", "sample", "step", "kl_divergence", "loss", "imagine", "reconstruct", "held_out_error"),
    training: ("pretrain", "finetune", "carry"),
    transitions: ("draw",),
}
NAMES = [(module.__name__.removeprefix("mbaug."), name) for module, names in METHOD.items() for name in names]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_function_of_the_method_is_shown(module, name):
    assert f"{module}.{name}" in SHOWN


@pytest.mark.parametrize("module", [td3, sac], ids=["td3", "sac"])
def test_no_equation_is_forgotten_above(module):
    """Every loss and target of an algorithm is in the list."""
    losses = {name for name, _ in inspect.getmembers(module, inspect.isfunction) if name.endswith(("loss", "target", "loss_bc"))}
    assert losses <= set(METHOD[module])
