"""The offline data: when collecting stops, which episodes are kept, and that a pool holds what was lived through."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mbaug import collection, recording, tasks, transitions
from mbaug.settings import SAC, Evaluation, Finetuning

HOPPER = tasks.find("hopper")
TINY = replace(
    collection.COLLECTOR,
    learner=SAC(hidden=(8, 8), batch_size=16),
    finetuning=Finetuning(400, 100, "uniform", evaluation_interval=100),
    evaluation=Evaluation(1),
)


@pytest.fixture(scope="module")
def replay():
    """The packed replay of 400 steps of a tiny SAC on Hopper."""
    *_, (_, rows) = collection.collect(HOPPER, 0, TINY)
    return rows


def curve(*means):
    return [{"environment_steps": 5_000 * k, "returns": [mean - 1.0, mean + 1.0]} for k, mean in enumerate(means, start=1)]


def test_a_level_is_held_over_two_consecutive_evaluations():
    assert not collection.holds(curve(2_000), 1_422.0)
    assert not collection.holds(curve(2_000, 1_000, 1_500), 1_422.0)
    assert collection.holds(curve(100, 1_422, 1_422), 1_422.0)


def test_episodes_are_whole(replay):
    """Every episode ends where the task or the time limit ended it, and none but its last step does."""
    found = collection.episodes(replay)
    assert found[0][0] == 0
    for episode, following in zip(found, [*found[1:], None], strict=True):
        assert replay[episode[-1], -2:].any()
        assert not replay[episode[:-1], -2:].any()
        assert following is None or following[0] == episode[-1] + 1


def test_chosen_episodes_are_enough_and_all_different(replay):
    chosen = collection.choose_episodes(replay, 150, seed=0)
    assert sum(map(len, chosen)) >= 150
    assert len({episode[0] for episode in chosen}) == len(chosen)
    other = collection.choose_episodes(replay, 150, seed=1)
    assert [episode[0] for episode in chosen] != [episode[0] for episode in other]
    with pytest.raises(ValueError, match="1000 transitions asked for, but the replay has"):
        collection.choose_episodes(replay, 1_000, seed=0)


def test_a_pool_holds_what_was_lived_through(replay, tmp_path):
    """Written once with shared observations, read back: the same transitions; written twice: the same bytes."""
    chosen = collection.choose_episodes(replay, 150, seed=0)
    for name in ("first", "second"):
        collection.write_pool(tmp_path / f"{name}.hdf5", replay, chosen, HOPPER, {"name": "tiny"})
    assert (tmp_path / "first.hdf5").read_bytes() == (tmp_path / "second.hdf5").read_bytes()
    pool = transitions.load("first", tmp_path)
    assert np.array_equal(transitions.pack(pool).numpy(), replay[np.concatenate(chosen)])
    card = json.loads((tmp_path / "first.json").read_text())
    assert card["sha256"] == recording.sha256((tmp_path / "first.hdf5").read_bytes())
    assert (card["transitions"], card["episodes"]) == (len(pool), len(chosen))


def test_the_same_seed_lives_the_same_life(replay):
    *_, (_, again) = collection.collect(HOPPER, 0, TINY)
    assert np.array_equal(replay, again)
