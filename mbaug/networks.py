"""Every network of the paper on one page, with a leading population axis.

A network here is N perceptrons of one shape: `flat` is the buffer of all their parameters. The twin critics are 2 P perceptrons,
the first critics of all agents before the second ones.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import engine

TWIN = 0  # the axis of the two critics


@dataclass(frozen=True, eq=False)
class Perceptron:
    """N multi-layer perceptrons with ReLU between their layers.

    Attributes:
        flat: all parameters (engine.layer_views gives their order).
        layers: (weight [N, in, out], bias [N, 1, out]) of each layer, views of `flat` without a gradient.
        product_dtype: dtype of the wide matrix products, None for that of `flat`.
    """

    flat: Float[Tensor, " parameters"]
    layers: engine.Layers
    product_dtype: torch.dtype | None = None

    def __call__(self, inputs: Float[Tensor, "networks batch inputs"]) -> Float[Tensor, "networks batch outputs"]:
        return engine.perceptron(inputs, self.flat, self.layers, self.product_dtype)

    @property
    def population(self) -> int:
        """N."""
        return len(self.layers[0][0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Inputs, hidden units and outputs."""
        return self.layers[0][0].shape[1], *(weight.shape[2] for weight, _ in self.layers)

    @cached_property
    def frozen(self) -> "Perceptron":
        """The same networks, in the same memory, held fixed: no gradient reaches them."""
        return dataclasses.replace(self, flat=self.flat.detach())

    def first(self, count: int) -> "Perceptron":
        """Returns the first `count` networks, in the same memory, held fixed."""
        layers = tuple((weight[:count], bias[:count]) for weight, bias in self.layers)
        return dataclasses.replace(self.frozen, layers=layers)

    def on_cpu(self) -> "Perceptron":
        """Returns the same networks, held fixed, on the CPU: in the same memory if that is where they are, else copied there."""
        flat = self.frozen.flat.cpu()
        return dataclasses.replace(self, flat=flat, layers=engine.layer_views(flat, self.population, self.sizes))

    def copy(self) -> "Perceptron":
        """Returns the same networks in memory of their own, held fixed: a target."""
        flat = self.flat.detach().clone()
        return dataclasses.replace(self, flat=flat, layers=engine.layer_views(flat, self.population, self.sizes))


def perceptron(
    sizes: Sequence[int],
    generators: Sequence[torch.Generator],
    precision: str = "float32",
    device: str = "cpu",
) -> Perceptron:
    """Returns N = len(generators) perceptrons, initialised as torch.nn.Linear does, each from its own generator on the CPU."""
    flat = engine.allocate(len(generators), sizes, engine.PARAMETER_DTYPE[precision], "cpu")
    engine.uniform_(flat, len(generators), sizes, generators)
    flat = flat.to(device)
    low = torch.bfloat16 if precision == "bfloat16" else None
    return Perceptron(flat.requires_grad_(), engine.layer_views(flat.detach(), len(generators), sizes), low)


@dataclass(frozen=True, eq=False)
class Actor:
    """pi(s) = tanh(MLP(s)): one action in [-1, 1] a state."""

    network: Perceptron

    def __call__(self, state: Float[Tensor, "population batch state"]) -> Float[Tensor, "population batch action"]:
        return self.network(state).tanh()


@dataclass(frozen=True, eq=False)
class GaussianActor:
    """The mean and log standard deviation of SAC's Gaussian before tanh."""

    network: Perceptron
    log_std_min: float
    log_std_max: float

    def __call__(
        self, state: Float[Tensor, "population batch state"]
    ) -> tuple[Float[Tensor, "population batch action"], Float[Tensor, "population batch action"]]:
        mean, log_std = self.network(state).chunk(2, dim=-1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)


@dataclass(frozen=True, eq=False)
class Critics:
    """Q_i(s, a) = MLP_i([s, a]): `count` independent critics an agent."""

    network: Perceptron
    count: int = 2

    def __call__(
        self, state: Float[Tensor, "population batch state"], action: Float[Tensor, "population batch action"]
    ) -> Float[Tensor, "twin population batch"]:
        inputs = torch.cat([state, action], dim=-1)
        return self.network(torch.cat([inputs] * self.count)).view(self.count, *state.shape[:-1])

    @cached_property
    def frozen(self) -> "Critics":
        """The same critics held fixed: how an actor's loss sees them."""
        return Critics(self.network.frozen, self.count)

    @cached_property
    def first(self) -> "Critics":
        """Q_1 of every agent, held fixed: what TD3's actor climbs."""
        return Critics(self.network.first(self.network.population // self.count), 1)


def actor(state_size, action_size, hidden, generators, precision="float32", device="cpu") -> Actor:
    """Returns deterministic actors, one a generator: state_size -> hidden -> action_size."""
    return Actor(perceptron((state_size, *hidden, action_size), generators, precision, device))


def gaussian_actor(
    state_size, action_size, hidden, generators, log_std_range, precision="float32", device="cpu"
) -> GaussianActor:
    """Returns SAC's actors, one a generator: state_size -> hidden -> mean and log_std of every action."""
    return GaussianActor(perceptron((state_size, *hidden, 2 * action_size), generators, precision, device), *log_std_range)


def critics(state_size, action_size, hidden, generators, precision="float32", device="cpu") -> Critics:
    """Returns twin critics, two a generator: [state, action] -> hidden -> value."""
    network = perceptron((state_size + action_size, *hidden, 1), [*generators, *generators], precision, device)
    return Critics(network)
