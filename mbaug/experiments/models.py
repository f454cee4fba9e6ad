"""Models as tensors and plain data: the content of a fit's checkpoint, and an agent's networks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mbaug.engine import graphs, perceptron
from mbaug.method.imagination import Fit
from mbaug.method.networks import Arithmetic, Perceptron, allocate, layer_views
from mbaug.method.training import Learner
from mbaug.method.transitions import Standardiser
from mbaug.method.world_model import Deterministic, Loss, Model

PARTS = ("encoder", "decoder", "transition")  # networks of a world model
FAST = Arithmetic(perceptron.forward, graphs.captured)  # computes everything that is recorded


def layers(name: str, network: Perceptron, first: int = 0, every: int = 1) -> dict[str, Tensor]:
    """Returns copies of the parameters of networks `first`, `first + every`, ... by name: `name.0.weight`, `name.0.bias`, ..."""
    return {
        f"{name}.{number}.{kind}": tensor[first::every].clone().cpu()
        for number, layer in enumerate(network.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }


def network(name: str, tensors: Mapping[str, Tensor], arithmetic: Arithmetic = FAST) -> Perceptron:
    """Returns the network whose parameters `layers` returned."""
    numbers = range(sum(key.startswith(f"{name}.") for key in tensors) // 2)
    pairs = [(tensors[f"{name}.{number}.weight"], tensors[f"{name}.{number}.bias"]) for number in numbers]
    population, sizes = len(pairs[0][0]), (pairs[0][0].shape[1], *(weight.shape[2] for weight, _ in pairs))
    flat = allocate(population, sizes, pairs[0][0].dtype).to(arithmetic.device).requires_grad_()
    views = layer_views(flat.detach(), population, sizes)
    for layer, values in zip(views, pairs, strict=True):
        for view, value in zip(layer, values, strict=True):
            view.copy_(value)
    return Perceptron(flat, views, arithmetic)


def agent(learner: Learner, number: int) -> dict[str, Tensor]:
    """Returns an agent's actor, critics and standardiser by name: all that its policy and values depend on."""
    population, standardiser = len(learner.seeds), learner.standardiser.of(number)
    actor = layers("actor", learner.agent.actor.network, number, population)
    critics = layers("critics", learner.agent.critics.network, number, population)
    return actor | critics | {"standardiser.mean": standardiser.mean, "standardiser.std": standardiser.std}


def save(fitted: Fit, commits: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a fit as tensors and plain data; `commits` are those of the code that fitted it."""
    model, control = fitted.model, fitted.deterministic
    tensors = {name: tensor for part in PARTS for name, tensor in layers(part, getattr(model, part)).items()}
    tensors |= {"mean": model.standardiser.mean, "std": model.standardiser.std}
    tensors |= {"losses": torch.stack(tuple(fitted.losses)), "history": fitted.history}
    tensors |= {} if control is None else layers("deterministic", control.network)
    bfloat16 = model.encoder.arithmetic.precision == "bfloat16"
    plain = {"residual": model.residual, "bfloat16": bfloat16, "errors": fitted.errors, "epochs": fitted.epochs}
    return tensors, plain | {"commits": commits}


def restore(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], device: str = "cpu") -> Fit:
    """Returns the fit from the tensors and plain data that `save` returned."""
    standardiser = Standardiser(tensors["mean"], tensors["std"])
    arithmetic = replace(FAST, precision="bfloat16" if plain["bfloat16"] else "float32", device=device)
    parts = {part: network(part, tensors, arithmetic) for part in PARTS}
    model = Model(**parts, standardiser=standardiser, residual=plain["residual"])
    control = None
    if "deterministic.0.weight" in tensors:
        control = Deterministic(network("deterministic", tensors, arithmetic), standardiser)
    return Fit(model, Loss(*tensors["losses"]), plain["epochs"], tensors["history"], plain["errors"], control)
