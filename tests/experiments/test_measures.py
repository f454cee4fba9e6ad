"""Measures of critics: computed by hand for linear critics, and able to detect memorised rows."""

from dataclasses import replace

import numpy as np
import pytest
import systems
import torch

from mbaug import streams, tasks
from mbaug.experiments import measures
from mbaug.method import imagination, td3, training
from mbaug.method.arms import Arm
from mbaug.method.settings import WorldModel
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch, Dataset, Standardiser

LINEAR = TD3(hidden=())


def learner_of(settings, seeds, state_size, action_size):
    """Returns untrained learners for a task with these state and action sizes."""
    task = replace(tasks.find("hopper"), positions=("place",) * state_size, velocities=(), action_size=action_size)
    return training.learner(Arm(learner=settings), task, seeds, Standardiser.identity(len(seeds), state_size))


def linear():
    """Returns a learner with Q_1 = s + 2 a, Q_2 = 2 s - a and pi = tanh(s / 2), whose target networks are equal to these."""
    learner = learner_of(LINEAR, [0], 1, 1)
    agent = learner.agent
    for actor, critics in ((agent.actor, agent.critics), (agent.target_actor, agent.target_critics)):
        actor.network.layers[0][0].fill_(0.5)
        critics.network.layers[0][0].copy_(torch.tensor([[[1.0], [2.0]], [[2.0], [-1.0]]]))
        for network in (actor.network, critics.network):
            network.layers[0][1].zero_()
    return learner


def rows(*columns):
    """Returns a batch of one agent from state, action, reward, next state and terminal of each row."""
    state, action, reward, next_state, terminal = (torch.tensor(column[None], dtype=torch.float32) for column in columns)
    return Batch(state.unsqueeze(-1), action.unsqueeze(-1), reward, next_state.unsqueeze(-1), terminal)


S, A, R, NEXT, D = (np.array(x) for x in ([0.0, 1.0, -1.0], [0.2, -0.4, 0.6], [1.0, 2.0, 3.0], [1.0, 2.0, -1.0], [0, 0, 1.0]))
THREE = rows(S, A, R, NEXT, D)
Q = np.stack([S + 2 * A, 2 * S - A])


def test_a_value_is_the_minimum_of_both_critics():
    found = measures.values(linear().agent.critics, THREE.state, THREE.action)
    np.testing.assert_allclose(found, Q.min(axis=0)[None], atol=1e-6)


def test_values_along_actions_are_the_quantiles_of_their_relative_changes():
    """Each agent of a population has its own scale: the second one's values are three times as large."""
    other = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1)
    critics = learner_of(LINEAR, [0, 1], 1, 1).agent.critics
    weights = torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, -1.0], [6.0, -3.0]]).unsqueeze(-1)  # Q_1 of both agents, then Q_2
    critics.network.layers[0][0].copy_(weights)
    critics.network.layers[0][1].zero_()
    found = measures.along_actions(critics, *(part.expand(2, 3, 1) for part in (THREE.state, THREE.action, other)))
    value = lambda action: np.minimum(S + 2 * action, 2 * S - action)  # noqa: E731
    moved = np.stack([value(A + share * (other.numpy().ravel() - A)) for share in measures.SHARES])
    expected = np.quantile((moved - value(A)) / value(A).std(), measures.QUANTILES, axis=1).T
    np.testing.assert_allclose(found, np.stack([expected, expected]), atol=1e-6)


def test_the_error_is_the_root_mean_square_of_both_critics_against_a_noiseless_target():
    action = np.tanh(NEXT / 2)
    target = R + 0.99 * (1 - D) * np.minimum(NEXT + 2 * action, 2 * NEXT - action)
    expected = np.sqrt(np.mean((Q - target) ** 2))
    assert measures.error(linear(), THREE).tolist() == pytest.approx([expected], rel=1e-5)


def test_moved_actions_are_clipped_and_moved_states_are_not():
    normal = torch.tensor([[[1.0], [-10.0], [0.0]]])
    assert measures.moved(THREE, "action", 0.5, normal).action.flatten().tolist() == pytest.approx([0.7, -1, 0.6])
    moved = measures.moved(THREE, "state", 0.5, normal)
    assert moved.state.flatten().tolist() == pytest.approx([0.5, -4, -1])
    assert torch.equal(moved.action, THREE.action)


def test_roughness_is_the_mean_change_of_the_minimum_of_both_critics():
    normal = torch.tensor([[[1.0], [-1.0], [0.0]]])
    moved = np.stack([S + 0.1 * normal.flatten().numpy() + 2 * A, 2 * S + 0.2 * normal.flatten().numpy() - A])
    expected = np.abs(moved.min(axis=0) - Q.min(axis=0)).mean()
    assert measures.roughness(linear().agent.critics, THREE, "state", 0.1, normal).tolist() == pytest.approx([expected], rel=1e-5)


def random_rows(population, count, seed):
    """Returns rows of pure noise, which a critic can fit only by memorising them."""
    g = torch.Generator().manual_seed(seed)
    state, next_state = torch.randn(2, population, count, 3, generator=g)
    action = torch.rand(population, count, 2, generator=g) * 2 - 1
    reward = torch.randn(population, count, generator=g)
    return Batch(state, action, reward, next_state, torch.ones(population, count))


def learned(population):
    """Returns learners whose critics were updated 200 times on the same 32 rows, and those rows."""
    learner = learner_of(TD3(hidden=(64, 64), learning_rate=1e-2), list(range(population)), 3, 2)
    trained = random_rows(population, 32, 0)
    for step in range(1, 201):
        td3.update(learner.agent, trained, torch.zeros(1, population, 32, 2), learner.arm.learner, step % 2 == 0)
    return learner, trained


def test_critics_that_overfit_have_a_larger_error_on_new_rows():
    learner, trained = learned(1)
    before = learner.agent.critics.network.flat.detach().clone()
    (found,) = measures.overfitting(learner, trained, random_rows(1, 32, 1), streams.torch_generators([0], "p"))
    assert found["error_new"] > 3 * found["error_trained"]
    assert torch.equal(before, learner.agent.critics.network.flat), "Measuring a critic should not change it."
    (found,) = measures.overfitting(learner, trained, random_rows(1, 0, 1), streams.torch_generators([0], "p"))
    assert np.isnan(found["error_new"]), "Without new rows there should be no error on them."


def test_overfitting_reports_percentiles_and_roughness_of_every_agent():
    learner, trained = learned(2)
    new, elsewhere = (random_rows(2, 20, seed) for seed in (1, 2))
    found = measures.overfitting(learner, trained, new, streams.torch_generators([0, 1], "p"), elsewhere)
    for k, each in enumerate(found):
        values = measures.values(learner.agent.critics, trained.state, trained.action)[k].numpy()
        np.testing.assert_allclose(each["percentiles"]["recorded"], np.percentile(values, measures.PERCENTILES), rtol=1e-4)
        assert each["percentiles"]["action"] != each["percentiles"]["recorded"] != each["percentiles"]["state"]
        for part in ("action", "state"):
            assert 0 < each["roughness"][part][0] < each["roughness"][part][1]
        assert each["value_std"] == pytest.approx(values.std(), rel=1e-4)
        errors = [measures.error(learner, batch)[k].item() for batch in (trained, new, elsewhere)]
        assert [each[f"error_{name}"] for name in ("trained", "new", "elsewhere")] == errors
    assert found[0] != found[1]


def test_calibration_by_hand():
    """Four states in two groups: the minimum of two values against the return of the policy."""
    values, returns = np.array([[1.0, 2.0, 3.0, 8.0], [3.0, 1.0, 4.0, 7.0]]), np.array([0.0, 1.0, 5.0, 6.0])
    found = measures.calibration(values, returns, np.array([0, 0, 1, 1]), ("low", "high", "none"))
    assert set(found) == {"all", "low", "high"}
    assert found["low"] == {
        "states": 2,
        "value": 1.0,
        "return": 0.5,
        "gap": 0.5,
        "gap_std": 0.5,
        "value_std": 0.0,
        "return_std": 0.5,
        "twin_gap": 1.5,
        "rank_correlation": pytest.approx(np.nan, nan_ok=True),
    }
    assert found["high"]["gap"] == pytest.approx((3 - 5 + 7 - 6) / 2)
    assert found["all"]["states"] == 4
    assert found["all"]["rank_correlation"] == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])


def test_the_signatures_of_a_failure_by_hand():
    """They are the drop of the score at the switch and the gap between value and return."""
    row = {"episode": 0, "length": 1, "data_value": 0.0, "imagined_outside": float("nan"), "gradient_steps": 1}
    table = [("pretrain", 0, 100.0, 10.0, 15.0), ("finetune", 5, 40.0, 8.0, 9.0), ("finetune", 10, 70.0, 7.0, 6.0)]
    rows = [
        {**row, "phase": phase, "environment_steps": steps, "return": total, "discounted_return": part, "predicted_value": value}
        for phase, steps, total, part, value in table
    ]
    assert measures.signatures(rows) == {"score_drop": 60.0, "value_gap": 5.0, "imagined_outside": None}
    assert measures.signatures(rows[1:])["score_drop"] is None
    rows[0]["imagined_outside"] = 0.25
    assert measures.signatures(rows)["imagined_outside"] == 0.25


def test_the_shift_of_a_target_by_hand():
    """The recorded next state is 0, where both linear critics are 0; the imagined ones are 1, 1 and 4."""
    learner, imagined = linear(), np.array([1.0, 1.0, 4.0])

    def q(state):
        action = np.tanh(state / 2)
        return np.stack([state + 2 * action, 2 * state - action])

    found = measures.target_shift(learner, torch.tensor(imagined, dtype=torch.float32).view(1, 3, 1), torch.zeros(1, 1))
    whole, bias = 0.99 * q(imagined).min(axis=0).mean(), 0.99 * q(np.array([2.0])).min()
    twins = -0.99 / 2 * np.abs(np.diff(q(imagined), axis=0)).mean()
    np.testing.assert_allclose([part.item() for part in found], [whole, bias, whole - bias, twins], rtol=1e-5)


def test_a_perfect_model_shifts_no_target():
    next_state = torch.tensor([[0.3], [-2.0]])
    shift = measures.target_shift(linear(), next_state.unsqueeze(1).repeat(1, 4, 1), next_state)
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
        estimate = measures.rate_distortion(options, np.corrcoef(state.T), batches=2, mode=mode)
        assert np.mean(errors[mode]) == pytest.approx(estimate, rel=0.05), mode


def test_rate_distortion_with_the_papers_settings():
    paper = WorldModel()
    assert measures.rate_distortion(paper, np.eye(11), batches=3) == pytest.approx(11 / 66)
    narrow = replace(paper, latent_size=10)
    assert measures.rate_distortion(narrow, np.eye(11), batches=3) == pytest.approx((10 * 11 / 66 + 1) / 11)
    assert measures.rate_distortion(replace(paper, kl_weight=1e3), np.eye(11), batches=3) == pytest.approx(1)
