"""Every network of the paper on one page, with a leading population axis.

A network here is N perceptrons of one shape. All their parameters live in one flat buffer, so one Adam and one moving average
serve a population. The twin critics are 2 P perceptrons: the first critics of all agents, then the second ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from mbaug.checks import require

States = Float[Tensor, "population batch state"]
Actions = Float[Tensor, "population batch action"]
Noise = Float[Tensor, "normals population batch action"]  # of one update
Values = Float[Tensor, "population batch"]  # one number per transition
Losses = Float[Tensor, " population"]  # one number per agent
Generators = Sequence[torch.Generator]  # one per network
Layers = tuple[tuple[Tensor, Tensor], ...]  # (weight [N, in, out], bias [N, 1, out]) of each layer

TWIN = 0  # the axis of the two critics
LANES = 64  # a multiple of every vector width, in elements


def layer_norm(hidden: Float[Tensor, "*rows units"]) -> Float[Tensor, "*rows units"]:
    """LN(x) = (x - mean x) / sqrt(var x + 1e-5), mean and variance over the units of a layer, row by row.

    It has no learned gain and offset: the next layer's weights can hold a gain, and the bias before it already shifts a unit.
    Source: Ba, Kiros & Hinton 2016 (arXiv 1607.06450), equation 3.
    """
    return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])


def plain_forward(
    inputs: Tensor, flat: Tensor, layers: Layers, product_dtype: torch.dtype | None = None, normalised: bool = False
) -> Tensor:
    """Returns the outputs [N, batch, out] of N perceptrons, h = relu(h W + b) layer by layer, the last one linear.

    Where `normalised`, h = relu(LN(h W + b)). The gradient goes to `flat`, if it requires one. All
    products are in the dtype of `flat`: only the engine uses `product_dtype`.
    """
    if flat.requires_grad:  # without a gradient `layers` may hold only the first networks, whose place in `flat` is unknown
        layers = layer_views(flat, len(inputs), [layers[0][0].shape[1], *(weight.shape[2] for weight, _ in layers)])
    for weight, bias in layers[:-1]:
        hidden = torch.baddbmm(bias, inputs, weight)
        inputs = (layer_norm(hidden) if normalised else hidden).relu()
    return torch.baddbmm(layers[-1][1], inputs, layers[-1][0])


@dataclass(frozen=True)
class Arithmetic:
    """How networks compute: by which functions, in which precision, on which device. `PLAIN` is ordinary torch."""

    forward: Callable[[Tensor, Tensor, Layers, torch.dtype | None, bool], Tensor] = plain_forward  # a network's outputs
    captured: Callable[..., Callable[..., None]] = lambda period, inputs, state: period  # see engine.graphs
    precision: str = "float32"  # one of settings.PRECISIONS; "bfloat16": only the wide products, everything else in float32
    device: str = "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters, batches and sums."""
        return torch.float64 if self.precision == "float64" else torch.float32


PLAIN = Arithmetic()


def parameter_count(sizes: Sequence[int]) -> int:
    """Returns the number of parameters of a perceptron with these layer sizes."""
    return sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes))


def allocate(population: int, sizes: Sequence[int], dtype: torch.dtype) -> Float[Tensor, " parameters"]:
    """Returns a zero buffer on the CPU for the parameters of `population` perceptrons with these layer sizes.

    Its length is a multiple of LANES. Torch's fused Adam rounds the remainder of an array
    differently from its body, so an agent's last bias would otherwise depend on the number of
    agents.
    """
    return torch.zeros(-(-population * parameter_count(sizes) // LANES) * LANES, dtype=dtype)


def layer_views(flat: Float[Tensor, " parameters"], population: int, sizes: Sequence[int]) -> Layers:
    """Returns (weight [N, in, out], bias [N, 1, out]) of each layer as views of `flat`.

    The order is layer by layer and, within a layer, network by network. So the weights of a layer
    are one contiguous batch for one product.
    """
    shapes = [(population, rows, outputs) for inputs, outputs in pairwise(sizes) for rows in (inputs, 1)]
    counts = [math.prod(shape) for shape in shapes]
    views = [part.view(shape) for part, shape in zip(flat[: sum(counts)].split(counts), shapes, strict=True)]
    return tuple(zip(views[::2], views[1::2], strict=True))


@dataclass(frozen=True, eq=False)
class Perceptron:
    """N multi-layer perceptrons with ReLU between their layers."""

    flat: Float[Tensor, " parameters"]  # all parameters, in the order of `layer_views`
    layers: Layers  # views of `flat` without a gradient
    arithmetic: Arithmetic = PLAIN
    normalised: bool = False  # LayerNorm before each ReLU

    def __call__(self, inputs: Float[Tensor, "networks batch inputs"]) -> Float[Tensor, "networks batch outputs"]:
        product_dtype = torch.bfloat16 if self.arithmetic.precision == "bfloat16" else None
        return self.arithmetic.forward(inputs, self.flat, self.layers, product_dtype, self.normalised)

    def alone(self, inputs: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """Returns the outputs of a single perceptron (N = 1), without the leading axis."""
        return self(inputs.unsqueeze(0)).squeeze(0)

    @property
    def number(self) -> int:
        """N, the number of perceptrons: P of P agents, or 2 P for twin critics."""
        return len(self.layers[0][0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs."""
        return self.layers[0][0].shape[1], *(weight.shape[2] for weight, _ in self.layers)

    def on(self, flat: Float[Tensor, " parameters"]) -> "Perceptron":
        """Returns networks like these whose parameters are `flat`."""
        return replace(self, flat=flat, layers=layer_views(flat.detach(), self.number, self.sizes))

    def copy(self) -> "Perceptron":
        """Returns a copy of these networks without gradient: a target."""
        return self.on(self.flat.detach().clone())


def perceptron(sizes: Sequence[int], generators: Generators, arithmetic: Arithmetic = PLAIN) -> Perceptron:
    """Returns N = len(generators) perceptrons, each from its own generator: uniform in +-1/sqrt(inputs), as torch.nn.Linear."""
    flat = allocate(len(generators), sizes, arithmetic.dtype)  # drawn on the CPU: a GPU gets the same numbers
    for weight, bias in layer_views(flat, len(generators), sizes):
        bound = 1 / math.sqrt(weight.shape[1])
        for network, generator in enumerate(generators):
            weight[network].uniform_(-bound, bound, generator=generator)
            bias[network].uniform_(-bound, bound, generator=generator)
    flat = flat.to(arithmetic.device)
    return Perceptron(flat.requires_grad_(), layer_views(flat.detach(), len(generators), sizes), arithmetic)


@dataclass(frozen=True, eq=False)
class Actor:
    """pi(s) = tanh(MLP(s)): one action in [-1, 1] per state."""

    network: Perceptron

    def __call__(self, state: States) -> Actions:
        return self.network(state).tanh()


@dataclass(frozen=True, eq=False)
class Critics:
    """Q_i(s, a) = MLP_i([s, a]), or V(s) of states alone."""

    network: Perceptron
    twins: int = 2  # critics of each agent

    def __call__(self, *parts: Float[Tensor, "population batch _"]) -> Float[Tensor, "twin population batch"]:
        inputs, agents = torch.cat(parts, dim=-1), self.network.number // self.twins
        require(len(inputs) == agents, f"rows of {len(inputs)} agents were given, but these are the critics of {agents}")
        return self.network(torch.cat([inputs] * self.twins)).view(self.twins, *inputs.shape[:-1])

    @cached_property
    def frozen(self) -> "Critics":
        """The same critics and memory, without gradient: an actor's loss does not train them."""
        return replace(self, network=replace(self.network, flat=self.network.flat.detach()))

    @cached_property
    def first(self) -> "Critics":
        """Q_1 of every agent, without gradient: what TD3's actor maximises."""
        half = self.network.number // self.twins
        layers = tuple((weight[:half], bias[:half]) for weight, bias in self.network.layers)
        return Critics(replace(self.frozen.network, layers=layers), twins=1)


def numpy_forward(network: Perceptron, number: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns perceptron `number` of a network as a NumPy function of one vector.

    It shares the network's memory. A call takes 10 microseconds, compared with 40 in torch.

    Raises:
        ValueError: The network has LayerNorm.
    """
    require(not network.normalised, "the network has LayerNorm, but only networks without it are computed in NumPy")
    *hidden, (last_weight, last_bias) = [(weight[number].numpy(), bias[number, 0].numpy()) for weight, bias in network.layers]

    def forward(vector: np.ndarray) -> np.ndarray:
        for weight, bias in hidden:
            vector = np.maximum(vector @ weight + bias, 0)
        return vector @ last_weight + last_bias

    return forward


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


def adam_step(
    losses: Float[Tensor, "*population"],
    learning_rate: float,
    *learned: tuple[Tensor, Adam],
) -> None:
    """Moves each (parameters, moments) one Adam step down the sum of the population's losses, in place.

    Each loss depends only on its own agent's parameters, so the gradient of the sum holds each agent's own gradient.
    """
    gradients = torch.autograd.grad(losses.sum(), [flat for flat, _ in learned])
    for (flat, moments), gradient in zip(learned, gradients, strict=True):
        moments.step(flat, gradient, learning_rate)


@torch.no_grad()
def soft_update(target: Perceptron, online: Perceptron, rate: float) -> None:
    """theta' <- (1 - tau) theta' + tau theta, in place."""
    target.flat.lerp_(online.flat, rate)
