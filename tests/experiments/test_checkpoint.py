"""Checkpoints: they come back exactly, are replaced as a whole, and what is damaged is refused."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from conftest import no_space, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from mbaug import files
from mbaug.experiments import checkpoint

floats = st.floats(allow_nan=True, allow_infinity=True)
state = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.dictionaries(
    st.from_regex(r"[a-z][a-z.]{0,9}", fullmatch=True),
    st.tuples(shapes, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(tensors, st.dictionaries(st.text(), state, max_size=4))
def test_a_checkpoint_comes_back_exactly(tmp_path_factory, tensors, state):
    folder = tmp_path_factory.mktemp("checkpoint")
    written = {name: (100 * torch.randn(shape)).to(kind) for name, (shape, kind) in tensors.items()}
    checkpoint.save(folder, written, state)
    found, found_state = checkpoint.load(folder)
    assert repr(found_state) == repr(state)
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_random_stream_goes_on_after_a_checkpoint(tmp_path):
    stream = np.random.Generator(np.random.PCG64(7))
    stream.random(5)
    checkpoint.save(tmp_path, {}, {"stream": stream.bit_generator.state})
    other = np.random.Generator(np.random.PCG64())
    other.bit_generator.state = checkpoint.load(tmp_path)[1]["stream"]
    assert other.random(5).tolist() == stream.random(5).tolist()


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    flat = torch.arange(6.0)
    checkpoint.save(tmp_path, {"flat": flat, "view": flat[2:4], "across": flat.view(2, 3).T}, {})
    found = checkpoint.load(tmp_path)[0]
    assert found["view"].tolist() == [2, 3]
    assert found["across"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_only_the_last_checkpoint_is_kept(tmp_path):
    assert not checkpoint.exists(tmp_path)
    for step in range(3):
        checkpoint.save(tmp_path, {"step": torch.tensor(step)}, {"step": step})
    assert checkpoint.exists(tmp_path)
    assert checkpoint.load(tmp_path)[1] == {"step": 2}
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_the_last_checkpoint_survives_a_full_disk(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"step": torch.tensor(1)}, {"step": 1})
    monkeypatch.setattr(files.os, "replace", no_space)
    with pytest.raises(files.CannotWrite):
        checkpoint.save(tmp_path, {"step": torch.tensor(2)}, {"step": 2})
    monkeypatch.undo()
    tensors, state = checkpoint.load(tmp_path)
    assert (tensors["step"].item(), state["step"]) == (1, 1)


@pytest.fixture(scope="module")
def processes():
    """Makes processes quickly and safely: by fork, from a server that has one thread and has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def save_forever(folder):
    for step in range(10**9):
        checkpoint.save(folder, {"step": torch.full((1000,), step)}, {"step": step})


def test_a_checkpoint_survives_a_kill_at_any_moment(tmp_path, processes):
    for delay in (0.05, 0.11, 0.17):
        process = processes.Process(target=save_forever, args=(tmp_path,), daemon=True)
        process.start()
        wait_until("the first checkpoint", lambda: checkpoint.exists(tmp_path))
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        tensors, state = checkpoint.load(tmp_path)
        assert tensors["step"].unique().tolist() == [state["step"]]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_over(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda path: os.truncate(path, 20),
        lambda path: os.truncate(path, 0),
        lambda path: write_over(path, b"41", b"42"),
        lambda path: path.write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    checkpoint.save(tmp_path, {"weights": torch.zeros(1000)}, {"step": 41})
    damage(tmp_path / checkpoint.NAME)
    with pytest.raises(checkpoint.CheckpointDamaged, match=r"is damaged .*: remove its folder"):
        checkpoint.load(tmp_path)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(tmp_path / "nothing")
