"""Models as tensors and plain data: what a checkpoint keeps of a fit, and what stays of an agent's networks."""

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

FAST = Arithmetic(perceptron.forward, graphs.captured)  # what computes all that is recorded


def layers(name: str, network: Perceptron, first: int = 0, every: int = 1) -> dict[str, Tensor]:
    """Returns copies of the parameters of a network, or of every so many-th of N, by name: `name.0.weight`, `name.0.bias`, ..."""
    return {
        f"{name}.{number}.{kind}": tensor[first::every].clone().cpu()
        for number, layer in enumerate(network.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }


def network(name: str, tensors: Mapping[str, Tensor], arithmetic: Arithmetic = FAST) -> Perceptron:
    """Returns the network that `layers` took apart."""
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
    """Returns an agent's actor, critics and standardiser by name: all that its policy and its values depend on."""
    population, standardiser = len(learner.seeds), learner.standardiser.of(number)
    actor = layers("actor", learner.agent.actor.network, number, population)
    critics = layers("critics", learner.agent.critics.network, number, population)
    return actor | critics | {"standardiser.mean": standardiser.mean, "standardiser.std": standardiser.std}


def save(fitted: Fit, commits: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns all that a fit holds as tensors and plain data; `commits` are of the code that fitted it."""
    model, control = fitted.model, fitted.deterministic
    tensors = {name: tensor for part in PARTS for name, tensor in layers(part, getattr(model, part)).items()}
    tensors |= {"mean": model.standardiser.mean, "std": model.standardiser.std}
    tensors |= {"losses": torch.stack(tuple(fitted.losses)), "history": fitted.history}
    tensors |= {} if control is None else layers("deterministic", control.network)
    low = model.encoder.arithmetic.precision == "bfloat16"
    plain = {"residual": model.residual, "bfloat16": low, "errors": fitted.errors, "epochs": fitted.epochs}
    return tensors, plain | {"commits": commits}


PARTS = ("encoder", "decoder", "transition")


def restore(tensors: Mapping[str, Tensor], plain: Mapping[str, Any], device: str = "cpu") -> Fit:
    """Returns the fit that `save` took apart."""
    standardiser = Standardiser(tensors["mean"], tensors["std"])
    arithmetic = replace(FAST, precision="bfloat16" if plain["bfloat16"] else "float32", device=device)
    parts = {part: network(part, tensors, arithmetic) for part in PARTS}
    model = Model(**parts, standardiser=standardiser, residual=plain["residual"])
    control = None
    if "deterministic.0.weight" in tensors:
        control = Deterministic(network("deterministic", tensors, arithmetic), standardiser)
    return Fit(model, Loss(*tensors["losses"]), plain["epochs"], tensors["history"], plain["errors"], control)
