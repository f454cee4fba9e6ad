"""Measures of critics: computed by hand for linear critics, and reported for every agent."""

import numpy as np
import pytest
import torch
from made import learner_of, linear

from mbaug import streams
from mbaug.experiments import measures
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch


def rows(*columns):
    """Returns a batch of one agent from state, action, reward, next state and terminal of each row."""
    state, action, reward, next_state, terminal = (torch.tensor(column[None], dtype=torch.float32) for column in columns)
    return Batch(state.unsqueeze(-1), action.unsqueeze(-1), reward, next_state.unsqueeze(-1), terminal)


S, A, R, NEXT, D = (np.array(x) for x in ([0.0, 1.0, -1.0], [0.2, -0.4, 0.6], [1.0, 2.0, 3.0], [1.0, 2.0, -1.0], [0, 0, 1.0]))
THREE = rows(S, A, R, NEXT, D)
Q = np.stack([S + 2 * A, 2 * S - A])


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
    normal = torch.tensor([[[1.0], [-1.0], [2.0]]])  # with the maximum the mean change would differ
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


def test_overfitting_reports_percentiles_and_roughness_of_every_agent():
    learner, trained = learner_of(TD3(hidden=(8, 8)), [0, 1], 3, 2), random_rows(2, 32, 0)
    before, new, elsewhere = learner.agent.critics.network.flat.detach().clone(), random_rows(2, 20, 1), random_rows(2, 20, 2)
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
    assert torch.equal(before, learner.agent.critics.network.flat), "Measuring a critic should not change it."
    lacking = measures.overfitting(learner, trained, random_rows(2, 0, 1), streams.torch_generators([0, 1], "p"))
    assert np.isnan(lacking[0]["error_new"]), "Without new rows there should be no error on them."


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
