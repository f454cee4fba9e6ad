"""Analyses of chapters: shifts of targets computed by hand, and the theory of the VAE's error against a fit."""

from dataclasses import replace

import numpy as np
import pytest
import systems
import torch
from made import linear

from mbaug.method import imagination
from mbaug.method.settings import WorldModel
from mbaug.method.transitions import Dataset
from mbaug.reporting import analysis


def test_the_shift_of_a_target_by_hand():
    """The recorded next state is 0, where both linear critics are 0; the imagined ones are 1, 1 and 4."""
    learner, imagined = linear(), np.array([1.0, 1.0, 4.0])

    def q(state):
        action = np.tanh(state / 2)
        return np.stack([state + 2 * action, 2 * state - action])

    found = analysis.target_shift(learner, torch.tensor(imagined, dtype=torch.float32).view(1, 3, 1), torch.zeros(1, 1))
    whole, bias = 0.99 * q(imagined).min(axis=0).mean(), 0.99 * q(np.array([2.0])).min()
    twins = -0.99 / 2 * np.abs(np.diff(q(imagined), axis=0)).mean()
    np.testing.assert_allclose([part.item() for part in found], [whole, bias, whole - bias, twins], rtol=1e-5)


def test_a_perfect_model_shifts_no_target():
    next_state = torch.tensor([[0.3], [-2.0]])
    shift = analysis.target_shift(linear(), next_state.unsqueeze(1).repeat(1, 4, 1), next_state)
    assert all(part.abs().max() < 1e-6 for part in shift)


def test_rate_distortion_predicts_the_error_of_a_linear_vae():
    """The layers are linear and the rows Gaussian with s' = s. The estimate holds for samples and for the mean."""
    mixing = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    state = (np.random.default_rng(0).normal(size=(2_000, 3)) @ mixing.T).astype(np.float32)
    no, zero, rows = np.zeros(2_000, bool), np.zeros((2_000, 1), np.float32), np.arange(2_000)
    still = Dataset("still", state, zero, zero[:, 0], state, no, no, rows, 0 * rows)
    options = replace(systems.LINEAR, kl_weight=6.0, latent_weight=0.0, learning_rate=3e-2, batch_size=1_000, epochs=60)
    errors = imagination.fit(options, still, still, 0, evaluations=1).errors
    for mode in ("sample", "mean"):
        estimate = analysis.rate_distortion(options, np.corrcoef(state.T), batches=2, mode=mode)
        assert np.mean(errors[mode]) == pytest.approx(estimate, rel=0.05), mode


def test_rate_distortion_with_the_papers_settings():
    paper = WorldModel()
    assert analysis.rate_distortion(paper, np.eye(11), batches=3) == pytest.approx(11 / 66)
    narrow = replace(paper, latent_size=10)
    assert analysis.rate_distortion(narrow, np.eye(11), batches=3) == pytest.approx((10 * 11 / 66 + 1) / 11)
    assert analysis.rate_distortion(replace(paper, kl_weight=1e3), np.eye(11), batches=3) == pytest.approx(1)
