"""Several steps ahead: windows of recorded steps, n-step targets and imagined roll-outs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import DOUBLE
from systems import TINY, random_model

from mbaug.method import augmentation, imagination, td3, transitions, world_model
from mbaug.method.td3 import TD3
from mbaug.method.transitions import Batch, Dataset, Standardiser

DISCOUNT = 0.9
ENDS = st.lists(st.sampled_from(["", "", "", "terminal", "truncated"]), min_size=1, max_size=30)


def chain(ends: list[str]) -> Dataset:
    """Returns states 0, 1, 2, ... with rewards 1, 2, 3, ...; `ends` has "", "terminal" or "truncated" for each step."""
    rows = np.arange(len(ends), dtype=np.float32)
    terminal, truncated = (np.array([end == kind for end in ends]) for kind in ("terminal", "truncated"))
    episode = np.concatenate([[0], np.cumsum(terminal | truncated)[:-1]])
    zeros = np.zeros((len(ends), 1), np.float32)
    parts = rows[:, None], zeros, rows + 1, rows[:, None] + 1, terminal, truncated, episode, np.zeros(len(ends), int)
    return Dataset("chain", *parts)


@given(ENDS, st.integers(1, 6))
def test_a_window_equals_a_walk_over_its_steps(ends, horizon):
    """It sums the rewards and cuts the bootstrap as the walk does, and never leaves its episode."""
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


def test_a_window_ends_where_the_episode_changes_even_if_no_end_is_marked():
    data = replace(chain([""] * 4), episode=np.array([0, 0, 1, 1]))
    assert transitions.windows(data, 3, DISCOUNT).length.tolist() == [2, 1, 2, 1]
    with pytest.raises(ValueError, match=r"^horizon is 0, but a window has at least one step$"):
        transitions.windows(data, 0, DISCOUNT)


def test_the_target_is_the_n_step_return():
    """TD3 itself, unchanged, gives y = r_0 + g r_1 + g^2 r_2 + g^3 Q(s_3)."""
    rows = transitions.pack(chain(["", "", "", ""]), 3, DISCOUNT)[:1].expand(4, -1).unsqueeze(0)
    batch = Batch(*(part.double() for part in transitions.unpack(rows, 1, 1)))
    settings = TD3(hidden=(8, 8), discount=DISCOUNT)
    agent = td3.create(1, 1, settings, [torch.Generator().manual_seed(0)], DOUBLE)
    bootstrap = agent.target_critics(batch.next_state, agent.target_actor(batch.next_state)).amin(dim=0)
    by_hand = 1 + DISCOUNT * 2 + DISCOUNT**2 * 3 + DISCOUNT**3 * bootstrap
    target = td3.critic_target(agent, batch, settings, torch.zeros_like(batch.action))
    torch.testing.assert_close(target, by_hand, rtol=1e-6, atol=0)


def test_a_table_of_several_steps_needs_the_discount():
    """Undiscounted rewards and bootstrap, which TD3 then discounts once, would be neither an n-step nor a one-step target."""
    data, standardiser = chain(["", "", ""]), Standardiser.identity(1, 1)
    with pytest.raises(ValueError, match=r"^horizon is 3, but discount is None: above 1 it needs the learner's discount$"):
        transitions.table([data], standardiser, horizon=3)
    table = transitions.table([data], standardiser, horizon=3, discount=DISCOUNT)
    assert torch.equal(table, transitions.pack(data, 3, DISCOUNT)[None])


@given(ENDS, st.integers(1, 5))
def test_a_roll_out_follows_the_recorded_actions_to_the_window_s_end(ends, horizon):
    """Rolling out a perfect one-step model ends at the last recorded state of each window."""
    data = chain(ends)
    window = transitions.windows(data, horizon, DISCOUNT)
    parts = map(torch.from_numpy, (data.action[window.row], data.next_state[window.row], window.length))
    predict = augmentation.rollout(lambda state, *_: state + 1, *parts)
    imagined = predict(torch.from_numpy(data.state), None, None, torch.Generator())
    assert torch.equal(imagined, torch.from_numpy(data.next_state[window.row[:, -1]]))


def test_a_roll_out_calls_its_source_with_the_action_and_next_state_of_each_step_and_the_generator():
    """Of two windows, one has one step and one has two. The prediction of a step is the state of the next."""
    action, next_state, state, generator = torch.randn(2, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 4), torch.Generator()
    calls = []
    predict = augmentation.rollout(lambda *given: calls.append(given) or given[0] * 2, action, next_state, torch.tensor([1, 2]))
    assert torch.equal(predict(state, action[:, 0], None, generator), torch.stack([state[0] * 2, state[1] * 4]))
    for step, (*parts, passed) in enumerate(calls):
        assert all(map(torch.equal, parts, (state * 2**step, action[:, step], next_state[:, step])))
        assert passed is generator


def test_an_open_loop_of_a_linear_system_equals_its_closed_form():
    """x_n = A^n x_0 + sum_k A^(n-1-k) B a_k at every step n."""
    A, B = np.array([[1.0, 0.2], [-0.2, 0.95]]), np.array([[0.0], [0.5]])
    start, action = np.array([[1.0, -1.0], [0.3, 0.2]]), np.random.default_rng(0).normal(size=(2, 6, 1))
    move = lambda x, a: x @ torch.from_numpy(A.T) + a @ torch.from_numpy(B.T)  # noqa: E731
    found = imagination.open_loop(move, torch.from_numpy(start), torch.from_numpy(action))
    power = [np.linalg.matrix_power(A, n) for n in range(7)]
    for n in range(1, 7):
        by_hand = start @ power[n].T + sum(action[:, k] @ (power[n - 1 - k] @ B).T for k in range(n))
        np.testing.assert_allclose(found[:, n - 1], by_hand, rtol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_a_latent_roll_out_encodes_once_and_decodes_each_later_latent_state(residual):
    """One step equals `predict` with the same noise; the second step starts from the latent state of the first."""
    model = random_model(replace(TINY, residual=residual))
    state, action = torch.randn(4, 3).double(), torch.randn(4, 2, 2).double()
    one, two = (imagination.latent_rollout(model, state, action[:, :n], torch.Generator().manual_seed(0)) for n in (1, 2))
    predicted = imagination.predict(model, state, action[:, 0], torch.Generator().manual_seed(0))
    torch.testing.assert_close(one[:, 0], predicted)
    torch.testing.assert_close(two[:, 0], one[:, 0])
    normal = torch.randn(4, TINY.latent_size, generator=torch.Generator().manual_seed(0))
    z = world_model.sample(world_model.posterior(model, model.standardiser.apply(state)), normal)
    for k in range(2):
        z = world_model.step(model, z, action[:, k])
    torch.testing.assert_close(two[:, 1], model.standardiser.invert(model.decoder.alone(z)))
    assert not two.requires_grad
