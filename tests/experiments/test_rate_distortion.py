"""The error that a linear-Gaussian VAE leaves, in theory, is the one that a fitted one leaves."""

from dataclasses import replace

import numpy as np
import pytest
from systems import LINEAR

from mbaug.experiments.measures import rate_distortion
from mbaug.method import imagination
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Dataset


def test_rate_distortion_of_a_linear_vae():
    """A VAE of linear layers, on Gaussian rows with s' = s, ends where the estimate says, for the sample and for the mean."""
    mixing = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    state = (np.random.default_rng(0).normal(size=(2_000, 3)) @ mixing.T).astype(np.float32)
    no, zero, rows = np.zeros(2_000, bool), np.zeros((2_000, 1), np.float32), np.arange(2_000)
    still = Dataset("still", state, zero, zero[:, 0], state, no, no, rows, 0 * rows)
    options = replace(LINEAR, kl_weight=6.0, latent_weight=0.0, learning_rate=3e-2, batch_size=1_000, epochs=60)
    errors = imagination.fit(options, still, still, 0, checks=1).errors
    for mode in ("sample", "mean"):
        estimate = rate_distortion(options, np.corrcoef(state.T), batches=2, mode=mode)
        assert np.mean(errors[mode]) == pytest.approx(estimate, rel=0.05), mode


def test_rate_distortion_of_the_paper():
    paper = WorldModel()
    assert rate_distortion(paper, np.eye(11), batches=3) == pytest.approx(11 / 66)
    few = replace(paper, latent_size=10)
    assert rate_distortion(few, np.eye(11), batches=3) == pytest.approx((10 * 11 / 66 + 1) / 11)
    assert rate_distortion(replace(paper, kl_weight=1e3), np.eye(11), batches=3) == pytest.approx(1)
