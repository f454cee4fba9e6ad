"""The fixed states of each task come from its pool, and the simulator repeats the recorded steps from them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mbaug import tasks
from mbaug.datasets import read
from mbaug.experiments import checkpoint, probes

POOLS = {task.name: read.load(f"{task.name}-medium-replay") for task in tasks.TASKS.values()}
each_task = pytest.mark.parametrize("task", tasks.TASKS.values(), ids=tasks.TASKS)


@each_task
def test_the_committed_states_can_be_made_again_from_the_pool(task, tmp_path):
    kept, made = probes.path_of(task), tmp_path / "made"
    made.write_bytes(probes.content(task))
    (tensors, about), (found, found_about) = (checkpoint.unpacked(path, "") for path in (kept, made))
    assert about == found_about
    assert tensors.keys() == found.keys()
    assert all(torch.equal(tensors[name], found[name]) for name in found)


def test_damaged_states_are_refused(tmp_path):
    task = tasks.find("hopper")
    content = bytearray(probes.path_of(task).read_bytes())
    content[-100] ^= 1
    probes.path_of(task, tmp_path).write_bytes(content)
    remedy = "remove it, then `python -m mbaug data --probes` makes it anew"
    with pytest.raises(ValueError, match=rf"hopper\.safetensors is damaged .*: {remedy}"):
        probes.load(task, tmp_path)


@each_task
def test_every_state_belongs_to_its_group(task):
    probe, pool = probes.load(task), POOLS[task.name]
    assert len(probe.row) == probes.STATES
    returns = np.bincount(pool.episode, pool.reward)
    low, high = np.quantile(returns, (0.25, 0.75))
    last = {episode: row for row, episode in enumerate(pool.episode)}
    for group, row in zip(probe.group, probe.row, strict=True):
        episode = pool.episode[row]
        if probes.GROUPS[group] == "near a fall":
            assert pool.terminal[last[episode]]
            assert last[episode] - row < probes.NEAR
        elif probes.GROUPS[group] == "low return":
            assert returns[episode] <= low + 1e-6
        elif probes.GROUPS[group] == "high return":
            assert returns[episode] >= high - 1e-6


def test_what_a_small_group_lacks_comes_from_anywhere():
    pool = POOLS["hopper"]
    fallen = np.unique(pool.episode[pool.terminal])
    few = pool.rows(np.flatnonzero(~np.isin(pool.episode, fallen[1:])))
    probe = probes.choose(tasks.find("hopper"), few)
    near = (probe.group == probes.GROUPS.index("near a fall")).sum()
    assert 0 < near <= probes.NEAR
    assert len(probe.row) == probes.STATES


@each_task
def test_the_simulator_repeats_the_recorded_step_from_a_state(task):
    """We take the recorded action in every 20th state."""
    probe, pool, environment = probes.load(task), POOLS[task.name], tasks.make(task)
    for row in probe.row[::20]:
        environment.reset(seed=0)
        tasks.set_state(environment, pool.state[row])
        next_state, reward, terminal, *_ = environment.step(pool.action[row])
        np.testing.assert_allclose(next_state, pool.next_state[row], atol=2e-2)
        assert reward == pytest.approx(pool.reward[row], abs=2e-2)
        assert terminal == pool.terminal[row]


def test_a_task_of_your_own_needs_no_fixed_states(tmp_path, monkeypatch):
    """Calibration is measured there only if the file exists, but always on the paper's tasks, whose files are in the clone."""
    hopper = tasks.find("hopper")
    mine = replace(hopper, name="mine")
    found = partial(probes.path_of, folder=tmp_path)
    monkeypatch.setattr(probes, "path_of", found)
    assert (probes.known(hopper), probes.known(mine)) == (True, False)
    found(mine).touch()
    assert probes.known(mine)


def test_only_missing_files_are_written(tmp_path):
    """Existing states stay as they are, because recorded runs were measured in them."""
    probes.path_of(tasks.find("hopper"), tmp_path).write_bytes(b"kept")
    written = list(probes.write(tmp_path))
    assert {path.stem for path in written} == {*tasks.TASKS} - {"hopper"}
    assert {path.stem for path in tmp_path.iterdir()} == {*tasks.TASKS}
    assert probes.path_of(tasks.find("hopper"), tmp_path).read_bytes() == b"kept"
    ant = tasks.find("ant")
    np.testing.assert_array_equal(probes.load(ant, tmp_path).state, probes.load(ant).state)
