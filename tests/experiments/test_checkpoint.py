"""Checkpoints: a folder always holds the last complete one, damage is refused, and a world model is restored exactly."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import no_space
from hypothesis import given, settings
from hypothesis import strategies as st
from made import dataset

from mbaug import files
from mbaug.experiments import checkpoint, models, run
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS
from mbaug.files import CannotWrite
from mbaug.method import imagination, world_model
from mbaug.method.settings import WorldModel

state = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.dictionaries(
    st.from_regex(r"[a-z][a-z.]{0,9}", fullmatch=True),
    st.tuples(shapes, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])),
    max_size=4,
)


@settings(max_examples=30)
@given(tensors, st.dictionaries(st.text(), state, max_size=4))
def test_a_checkpoint_is_restored_exactly(tmp_path_factory, tensors, state):
    folder = tmp_path_factory.mktemp("checkpoint")
    written = {name: (100 * torch.rand(shape)).to(kind) for name, (shape, kind) in tensors.items()}
    checkpoint.save(folder, written, state)
    found, found_state = checkpoint.load(folder)
    assert repr(found_state) == repr(state)
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_tensors_that_share_memory_are_saved_separately(tmp_path):
    flat = torch.arange(6.0)
    checkpoint.save(tmp_path, {"flat": flat, "view": flat[2:4], "across": flat.view(2, 3).T}, {})
    found = checkpoint.load(tmp_path)[0]
    assert found["view"].tolist() == [2, 3]
    assert found["across"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_only_the_last_complete_checkpoint_is_kept_even_on_a_full_disk(tmp_path, monkeypatch):
    assert not checkpoint.exists(tmp_path)
    for step in range(3):
        checkpoint.save(tmp_path, {"step": torch.tensor(step)}, {"step": step})
    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(CannotWrite, match="No space left on device"):
        checkpoint.save(tmp_path, {"step": torch.tensor(3)}, {"step": 3})
    found, state = checkpoint.load(tmp_path)
    assert (found["step"].item(), state["step"]) == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def mutated(content, random):
    """Returns the content of a file as a bad disk or a broken copy might leave it."""
    place, other = random.integers(len(content), size=2)
    changed = bytearray(content)
    changed[place] ^= 1 << random.integers(8)
    ways = bytes(changed), content[:place], content[place:], content[:place] + bytes(len(content) - place), content + content
    return [*ways, content[: min(place, other)] + content[max(place, other) + 1 :]][random.integers(6)]


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """We try 60 random damages. Each gives an error of one sentence that names the file."""
    checkpoint.save(tmp_path, {"weights": torch.rand(100), "bias": torch.rand(3).double()}, {"step": 41, "rows": [{"a": 0.5}]})
    path, random = tmp_path / checkpoint.NAME, np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(mutated(whole, random))
        with pytest.raises(
            checkpoint.CheckpointDamaged, match=rf"^{re.escape(str(path))} is damaged \([^\n]+\): remove its folder[^\n]*$"
        ):
            checkpoint.load(tmp_path)


def test_a_file_that_is_no_checkpoint_of_this_stage_is_refused(tmp_path):
    """We try another program's safetensors, a pipe, which would block, and checkpoints of another stage with a valid digest."""
    path = tmp_path / checkpoint.NAME
    path.write_bytes(safetensors.torch.save({"weights": torch.zeros(3)}, {"format": "pt"}))
    with pytest.raises(checkpoint.CheckpointDamaged, match="its content does not match its SHA-256"):
        checkpoint.load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(checkpoint.CheckpointDamaged, match="it is not a regular file"):
        checkpoint.load(tmp_path)
    path.unlink()
    population = run.begin([Run("hopper", "none", "td3", 0)], ARMS["td3"], tmp_path)
    tensors, state = checkpoint.learner_state(population.learner)
    whole = state | {"rows": [[]], "outside": [0.0], "switch": [], "wall_seconds": 0.0, "commits": []}
    first = next(iter(tensors))
    for damage in (
        ({}, whole),
        (tensors, state),
        ({name: tensor for name, tensor in tensors.items() if name != first}, whole),
        (tensors | {first: torch.zeros(())}, whole),
        (tensors, whole | {"streams": ["odd"]}),
    ):
        checkpoint.save(tmp_path, *damage)
        with pytest.raises(
            checkpoint.CheckpointDamaged, match=rf"^{re.escape(str(path))} is damaged \(it is from another stage: .*\): remove"
        ):
            run.load(tmp_path, population)
    checkpoint.save(tmp_path, tensors, whole)
    run.load(tmp_path, population)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error", 2)])
def test_an_error_of_the_device_is_not_blamed_on_the_checkpoint(error, tmp_path):
    with pytest.raises(type(error), match="CUDA"), checkpoint.restoring(tmp_path):
        raise error


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_world_model_is_restored_exactly(precision, tmp_path):
    """Its errors are the same, and so are its predictions with the same random generator."""
    arithmetic = replace(models.FAST, precision=precision)
    rows, settings = dataset(64), WorldModel((8,), (8, 8), latent_size=2, epochs=2, batch_size=16)
    fitted = imagination.fit(settings, rows, dataset(32, seed=1), 0, arithmetic)
    control = world_model.fit_deterministic(settings, rows, 0, arithmetic)
    fitted = imagination.with_deterministic(fitted, control, dataset(32, seed=1), 0)
    checkpoint.save(tmp_path, *models.save(fitted, ["commit"]))
    tensors, state = checkpoint.load(tmp_path)
    found = models.restore(tensors, state)
    assert (found.errors, found.epochs, state["commits"]) == (fitted.errors, fitted.epochs, ["commit"])
    assert torch.equal(found.history, fitted.history)
    given = [torch.from_numpy(part) for part in (rows.state, rows.action, rows.next_state)]
    for source in ("sample", "mean", "noise", "reconstruction", "deterministic"):
        predictions = [
            imagination.predictor(source, one, rows)(*given, torch.Generator().manual_seed(3)) for one in (fitted, found)
        ]
        assert torch.equal(*predictions), f"The predictions of {source!r} differ."
