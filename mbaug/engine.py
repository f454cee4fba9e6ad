"""The engine: a population of small perceptrons, as fast as the processor allows.

An update of TD3 is a dozen matrix products and little else, so the engine does three things and knows nothing of the method:

- `perceptron` multiplies a population through its layers and derives its own backward pass, so that nothing is computed that
  nobody asked for (an actor step needs no gradient of the critics' weights) and no framework stands between two products;
- all parameters of a population live in one flat buffer: one Adam, one average for the targets;
- `prepare` chooses the processor's fastest product at the wanted precision.

The losses of `td3`, `sac` and `world_model` are differentiated as they are written; the tests hold this module to plain autograd.
"""

import ctypes
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from mbaug.settings import choose

Layers = tuple[tuple[Tensor, Tensor], ...]

PARAMETER_DTYPE = {"float32": torch.float32, "bfloat16": torch.float32, "float64": torch.float64}
LANES = 64  # a multiple of every vector width, in elements
WIDE = 64  # a bfloat16 product pays from this many inputs and outputs; below, the casts cost more than they save
KEPT = {-1: 2**28, -3: 2**25}  # malloc.h: M_TRIM_THRESHOLD, bytes free at the top; M_MMAP_THRESHOLD, the most there is
DEVICES = "cpu", "cuda"
THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS"  # what torch and its libraries read when they are imported


# --- threads and precision ------------------------------------------------------------------------------------------------


@cache
def warn_once(sentence: str) -> None:
    """Warns with a sentence the first time that this process says it."""
    warnings.warn(sentence, RuntimeWarning, stacklevel=3)


def tell_of_threads() -> None:
    """Tells who trains with several threads, once a process, what they cost; whatever trains calls it."""
    if (threads := torch.get_num_threads()) > 1:
        warn_once(
            f"torch uses {threads} threads: beside any other load they can train many times slower than one: threads that "
            "wait for each other spin (notebook 90_engine); torch.set_num_threads(1) or engine.prepare() before training"
        )


@cache
def processor_flags() -> frozenset[str]:
    """Returns the processor's instruction-set flags (empty where the system does not tell)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), ()))


def has_bfloat16(device: str = "cpu") -> bool:
    """Returns whether the device multiplies bfloat16 itself."""
    return device != "cpu" or bool(processor_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def keep_memory() -> bool:
    """Tells the C library to keep the memory that an update frees, once a process; returns whether it has such a switch.

    An update needs the same few megabytes as the one before. By default glibc gives them back and asks for them again, at
    times hundreds of page faults an update: which process does so is chance, since it depends on what was freed before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return all(mallopt(option, size) for option, size in KEPT.items())


def devices() -> tuple[str, ...]:
    """Returns what can train here."""
    return DEVICES if torch.cuda.is_available() else DEVICES[:1]


def prepare(precision: str = "float32", device: str = "cpu") -> str:
    """Returns the precision that will really be used, after choosing one thread and the fastest product for it.

    Two intra-op threads beside any other load fall from hundreds of updates a second to a few: their barriers spin. So a
    process trains with one thread, and a study with one process per core. Whoever asked for more threads is told so once.

    Numbers below 1e-38 become zero in this thread. A unit that is never active has no gradient, and its moments in Adam, times
    0.9 a step, end there and stay; a processor is many times slower on such numbers, and in long trainings on Hopper most
    moments of the actor are of that kind (notebook 90_engine). No weight notices: they are far from 1e-38.

    Float32 products go through oneDNN where it keeps all 24 bits: on AMD it is twice as fast as the default library. Torch
    offers that road only under the name "medium", which on processors with AMX means bfloat16 inside; there it stays closed.

    Raises:
        ValueError: there is no such device.
    """
    choose("device", device, devices())
    keep_memory()
    torch.set_flush_denormal(True)
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        for asked in (f"{variable}={os.environ[variable]}" for variable in THREADS if os.environ.get(variable, "1") != "1"):
            warn_once(
                f"{asked} was set, but mbaug trains with one thread a process: beside any other load several can be many times "
                "slower, because threads that wait for each other spin (notebook 90_engine); use more cores by more processes"
            )
    if precision == "bfloat16" and not has_bfloat16(device):
        warn_once("this processor has no bfloat16 products (avx512_bf16 or amx_bf16): using float32")
        precision = "float32"
    if device != "cpu":
        return precision
    exact = not processor_flags() & {"amx_bf16"}
    torch.set_float32_matmul_precision("medium" if exact and "avx512f" in processor_flags() else "highest")
    return precision


# --- a population of perceptrons ------------------------------------------------------------------------------------------


def allocate(population: int, sizes: Sequence[int], dtype: torch.dtype, device: str) -> Float[Tensor, " parameters"]:
    """Returns a zero buffer for the parameters of `population` perceptrons with these layer sizes.

    Its length is a multiple of LANES: torch's fused Adam rounds the rest of an array differently from its body, and an
    agent's last bias would depend on how many neighbours it has.
    """
    count = population * sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))
    return torch.zeros(-(-count // LANES) * LANES, dtype=dtype, device=device)


def layer_views(flat: Float[Tensor, " parameters"], population: int, sizes: Sequence[int]) -> Layers:
    """Returns (weight [N, in, out], bias [N, 1, out]) of each layer as views of `flat`.

    Layer by layer and, within a layer, network by network: so each weight is one contiguous batch for one product.
    """
    layers, start = [], 0
    for inputs, outputs in pairwise(sizes):
        middle, end = start + population * inputs * outputs, start + population * (inputs + 1) * outputs
        weight = flat[start:middle].view(population, inputs, outputs)
        layers.append((weight, flat[middle:end].view(population, 1, outputs)))
        start = end
    return tuple(layers)


class _Perceptron(torch.autograd.Function):
    """h_l = relu(h_{l-1} W_l + b_l); the last layer is linear. N networks at once, any number of layers."""

    @staticmethod
    def forward(ctx, inputs, flat, layers, low):
        hidden, activations, weights = inputs, [], []
        for number, (weight, bias) in enumerate(layers, start=1):
            activations.append(hidden)
            if weight.shape[-1] == 1:  # a single output is a weighted sum; a product would waste the time of sixteen
                hidden = (hidden * weight.transpose(1, 2)).sum(-1, keepdim=True).add_(bias)
            elif low is not None and min(weight.shape[1:]) >= WIDE:
                weight = weight.to(low)
                activations[-1] = (hidden, hidden.to(low))
                hidden = torch.bmm(activations[-1][1], weight).to(bias.dtype).add_(bias)
            else:
                hidden = torch.bmm(hidden, weight).add_(bias)
            weights.append(weight)
            if number < len(layers):
                hidden.relu_()
        ctx.record = activations, weights, layers
        ctx.flat = flat
        return hidden

    @staticmethod
    def backward(ctx, gradient):
        (activations, weights, layers), flat = ctx.record, ctx.flat
        wants_inputs, wants_flat = ctx.needs_input_grad[:2]
        flat_gradient = torch.empty_like(flat) if wants_flat else None
        if wants_flat:
            flat_gradient[-LANES:] = 0  # the padding; what is no padding is overwritten below
        for number in reversed(range(len(weights))):
            hidden, weight = activations[number], weights[number]
            factor = gradient
            if isinstance(hidden, tuple):  # this layer's products ran in low precision
                hidden, low_hidden = hidden
                factor = gradient.to(low_hidden.dtype)
            if wants_flat:
                weight_gradient, bias_gradient = (
                    flat_gradient.as_strided(view.shape, view.stride(), view.storage_offset()) for view in layers[number]
                )
                torch.sum(gradient, 1, keepdim=True, out=bias_gradient)
                if weight.shape[-1] == 1:
                    torch.sum(hidden * gradient, 1, out=weight_gradient.squeeze(-1))
                elif factor is gradient:
                    torch.bmm(hidden.transpose(1, 2), gradient, out=weight_gradient)
                else:
                    weight_gradient.copy_(torch.bmm(low_hidden.transpose(1, 2), factor))
            if number == 0 and not wants_inputs:
                return None, flat_gradient, None, None
            if weight.shape[-1] == 1:
                gradient = gradient * weight.transpose(1, 2)
            else:
                gradient = torch.bmm(factor, weight.transpose(1, 2)).to(gradient.dtype)
            if number > 0:  # where relu was flat, nothing passes; `gradient` is this function's own by now
                torch.ops.aten.threshold_backward.grad_input(gradient, hidden, 0, grad_input=gradient)
        return gradient, flat_gradient, None, None


def perceptron(
    inputs: Float[Tensor, "networks batch features"],
    flat: Float[Tensor, " parameters"],
    layers: Layers,
    product_dtype: torch.dtype | None = None,
) -> Float[Tensor, "networks batch outputs"]:
    """Returns the outputs of N perceptrons: relu(x W + b) layer by layer, the last one linear.

    Args:
        inputs: a batch for each network.
        flat: all parameters; the gradient goes here if it requires one.
        layers: views of `flat` (`layer_views`).
        product_dtype: of the wide products, e.g. torch.bfloat16; None is that of `flat`. Sums, narrow layers and the
            gradient stay in the dtype of `flat`.
    """
    return _Perceptron.apply(inputs, flat, layers, product_dtype)


def plain_perceptron(inputs: Tensor, flat: Tensor, layers: Layers, product_dtype: torch.dtype | None = None) -> Tensor:
    """Returns what `perceptron` returns, in three lines that torch differentiates itself: the statement it is held to."""
    if flat.requires_grad:  # if not, `layers` may be the first networks alone, and their place in `flat` is not known here
        layers = layer_views(flat, len(inputs), [layers[0][0].shape[1], *(weight.shape[2] for weight, _ in layers)])
    for weight, bias in layers[:-1]:
        inputs = torch.baddbmm(bias, inputs, weight).relu()
    return torch.baddbmm(layers[-1][1], inputs, layers[-1][0])


def act_alone(layers: Layers, network: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns one network of a population as a NumPy function of one input vector.

    For a single agent that acts, NumPy needs 10 microseconds where torch needs 40. The arrays share the parameters' memory.
    """
    arrays = [(weight[network].numpy(), bias[network, 0].numpy()) for weight, bias in layers]

    def forward(vector: np.ndarray) -> np.ndarray:
        for weight, bias in arrays[:-1]:
            vector = np.maximum(vector @ weight + bias, 0)
        weight, bias = arrays[-1]
        return vector @ weight + bias

    return forward


# --- Adam -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Adam:
    """The moments of Adam (Kingma & Ba 2015) for one flat buffer, with torch's fused step."""

    first: Float[Tensor, " parameters"]
    second: Float[Tensor, " parameters"]
    steps: Float[Tensor, ""]

    @classmethod
    def zeros(cls, flat: Float[Tensor, " parameters"]) -> "Adam":
        """Returns fresh moments for the parameters `flat`."""
        return cls(torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros((), device=flat.device))

    @torch.no_grad()
    def step(self, flat: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Moves `flat` one step of size `learning_rate` against `gradient`, in place."""
        adam(
            [flat], [gradient], [self.first], [self.second], [], [self.steps],
            fused=True, amsgrad=False, beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def descend(losses: Float[Tensor, " population"], flat: Tensor, optimiser: Adam, learning_rate: float) -> None:
    """Moves `flat` one Adam step down the sum of the population's losses.

    Each loss depends on its own agent's parameters alone, so the sum's gradient holds each agent's own: none feels another.
    """
    (gradient,) = torch.autograd.grad(losses.sum(), flat)
    optimiser.step(flat, gradient, learning_rate)


def uniform_(flat: Tensor, population: int, sizes: Sequence[int], generators: Sequence[torch.Generator]) -> None:
    """Fills `flat` as torch.nn.Linear does: weights and biases uniform in +-1/sqrt(inputs), each network from its own stream."""
    for weight, bias in layer_views(flat, population, sizes):
        bound = 1 / math.sqrt(weight.shape[1])
        for network, generator in enumerate(generators):
            weight[network].uniform_(-bound, bound, generator=generator)
            bias[network].uniform_(-bound, bound, generator=generator)
