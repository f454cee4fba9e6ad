"""Systems with a known answer and small models, for the tests of the world model and of imagination."""

from dataclasses import replace

import numpy as np
import torch
from made import DOUBLE, generators

from mbaug.method import world_model
from mbaug.method.networks import perceptron
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Dataset, Standardiser

TINY = WorldModel(hidden=(32, 32), transition_hidden=(32,), latent_size=5, learning_rate=3e-3, batch_size=128, epochs=30)
SHORT = replace(TINY, epochs=2)
LINEAR = WorldModel(hidden=(), transition_hidden=(), latent_size=4)  # one linear layer in each part: every prediction is Gaussian
TURN = np.array([[0.8, 0.5, 0], [-0.5, 0.8, 0], [0, 0, 0.7]])
PUSH = np.array([[0.3, 0, 0.4], [0, 0.3, -0.4]])


def linear_system(rows: int, seed: int) -> Dataset:
    """Returns rows of s' = s TURN + a PUSH, a damped rotation, in episodes of 20; components differ in scale and mean."""
    rng = np.random.default_rng(seed)
    scale, mean = np.array([1.0, 10.0, 0.1]), np.array([0.0, 5.0, -1.0])
    state, action = rng.normal(size=(rows, 3)), rng.uniform(-1, 1, (rows, 2))
    next_state = (state @ TURN + action @ PUSH) * scale + mean
    columns = (x.astype(np.float32) for x in (state * scale + mean, action, np.zeros(rows), next_state))
    episode, step = np.divmod(np.arange(rows), 20)
    return Dataset("linear", *columns, step == 19, np.zeros(rows, bool), episode, 0 * episode)


DRAWN, REST = linear_system(600, 0), linear_system(400, 2)


def random_model(options=TINY):
    """Returns an untrained world model of three state and two action components."""
    sizes = world_model.sizes(options, 3, 2)
    parts = {name: perceptron(layers, generators(seed), DOUBLE) for seed, (name, layers) in enumerate(sizes.items())}
    scale = torch.arange(1, 4)
    return world_model.Model(**parts, standardiser=Standardiser(0.1 * scale, 0.5 * scale), residual=options.residual)


def normal(*shape, seed=7):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters(model):
    """Returns all parameters of a model in one vector."""
    parts = [model.network] if hasattr(model, "network") else [model.encoder, model.decoder, model.transition]
    return torch.cat([part.flat for part in parts]).detach()
