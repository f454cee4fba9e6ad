"""Several steps ahead: windows of recorded steps, n-step targets, imagined roll-outs; with one step all is as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mbaug import augmentation, td3, transitions
from mbaug.settings import TD3, Pretraining
from mbaug.transitions import Batch, Dataset

DISCOUNT = 0.9


def chain(ends: list[str]) -> Dataset:
    """A chain 0, 1, 2, ... of states with reward 1, 2, 3, ...; `ends` says "", "terminal" or "truncated" for each step."""
    rows = len(ends)
    state = np.arange(rows, dtype=np.float32)[:, None]
    done = np.array([end != "" for end in ends])
    return Dataset(
        "chain",
        state,
        np.zeros((rows, 1), np.float32),
        np.arange(1, rows + 1, dtype=np.float32),
        state + 1,
        np.array([end == "terminal" for end in ends]),
        np.array([end == "truncated" for end in ends]),
        np.concatenate([[0], np.cumsum(done)[:-1]]),
    )


ENDS = st.lists(st.sampled_from(["", "", "", "terminal", "truncated"]), min_size=1, max_size=30)


@given(ENDS, st.integers(1, 6))
def test_a_window_is_what_a_loop_over_its_steps_finds(ends, horizon):
    """Rewards are summed and the bootstrap is cut exactly as a walk along the chain says; no window leaves its episode."""
    data = chain(ends)
    found = transitions.windows(data, horizon, DISCOUNT)
    for row in range(len(data)):
        total, steps = 0.0, 0
        for step in range(row, min(row + horizon, len(data))):
            total += DISCOUNT**steps * data.reward[step]
            steps += 1
            if ends[step]:
                break
        last = row + steps - 1
        assert found.length[row] == steps
        assert found.row[row].tolist() == [min(row + k, last) for k in range(horizon)]
        assert found.reward[row] == pytest.approx(total, rel=1e-6)
        assert found.cut[row] == pytest.approx(1 - DISCOUNT ** (steps - 1) * (ends[last] != "terminal"), abs=1e-6)
        assert data.episode[last] == data.episode[row]


@given(ENDS)
def test_one_step_is_the_recorded_transition_bit_for_bit(ends):
    data = chain(ends)
    plain = np.concatenate(
        [data.state, data.action, data.next_state, data.reward[:, None], data.terminal[:, None], data.truncated[:, None]],
        axis=1,
        dtype=np.float32,
    )
    assert np.array_equal(transitions.pack(data, 1, DISCOUNT).numpy(), plain)


def test_the_target_is_the_n_step_return():
    """y = r_0 + g r_1 + g^2 r_2 + g^3 Q(s_3), without a change to TD3."""
    data = chain(["", "", "", ""])
    rows = transitions.pack(data, 3, DISCOUNT)[:1].expand(4, -1).unsqueeze(0)
    batch = Batch(*(part.double() for part in transitions.unpack(rows, 1, 1)))
    settings = TD3(hidden=(8, 8), discount=DISCOUNT)
    agent = td3.create(1, 1, settings, [torch.Generator().manual_seed(0)], "float64")
    noise = torch.zeros_like(batch.action)
    bootstrap = agent.target_critics(batch.next_state, agent.target_actor(batch.next_state)).amin(dim=0)
    by_hand = 1 + DISCOUNT * 2 + DISCOUNT**2 * 3 + DISCOUNT**3 * bootstrap
    torch.testing.assert_close(td3.critic_target(agent, batch, settings, noise), by_hand, rtol=1e-6, atol=0)


@given(ENDS, st.integers(1, 5))
def test_a_roll_out_follows_the_recorded_actions_to_the_window_s_end(ends, horizon):
    """A perfect one-step model, rolled out, ends at the recorded last state of each window."""
    data = chain(ends)
    window = transitions.windows(data, horizon, DISCOUNT)
    parts = (data.action[window.row], data.next_state[window.row], window.length)
    action, next_state, length = (torch.from_numpy(part).unsqueeze(0) for part in parts)
    predict = augmentation.rollout(lambda state, *_: state + 1, action, next_state, length)
    imagined = predict(torch.from_numpy(data.state).unsqueeze(0), None, None, [])
    assert torch.equal(imagined[0], torch.from_numpy(data.next_state[window.row[:, -1]]))


def test_a_roll_out_of_one_step_is_the_prediction_itself():
    state, action = torch.randn(2, 5, 3), torch.randn(2, 5, 1, 2)
    length = torch.ones(2, 5, dtype=torch.long)
    asked = []

    def predict(*arguments):
        asked.append(arguments)
        return arguments[0] * 2

    found = augmentation.rollout(predict, action, torch.randn(2, 5, 1, 3), length)(state, action[:, :, 0], None, "generators")
    assert torch.equal(found, state * 2)
    assert len(asked) == 1
    assert asked[0][3] == "generators"


def test_single_transitions_have_no_second_step():
    with pytest.raises(ValueError, match="horizon is 3, but above 1 it needs whole_episodes=True"):
        Pretraining(horizon=3)
