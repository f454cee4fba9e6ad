"""The networks that come with the project: whole, small, where they say they are from, and as good as before the rounding."""

import numpy as np
import pytest
import safetensors.torch
import torch

from mbaug import tasks
from mbaug.datasets import read
from mbaug.experiments import checkpoint, models, records, trained
from mbaug.experiments.studies import ARMS
from mbaug.method import imagination, training, transitions

HERE = [name for name in trained.names() if trained.path_of(*name).exists()]


def test_they_are_small():
    assert sum(trained.path_of(*name).stat().st_size for name in HERE) <= 30_000_000


@pytest.mark.parametrize("name", HERE, ids="/".join)
def test_a_file_is_whole_and_says_where_it_is_from(name):
    tensors, about = trained.load(*name)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert about["seed"] == 0
    assert len(about["draw_sha256"]) == 64
    assert {"commit", "torch", "cpu"} <= about["provenance"].keys()


@pytest.mark.parametrize("name", [name for name in HERE if name in trained.AGENTS], ids="/".join)
def test_an_agent_is_that_of_its_record(name):
    (task, arm), (_, about) = name, trained.load(*name)
    metadata = records.read_metadata(records.root(), records.Run.parse(about["run"]))
    assert about["run"] == f"{task}/{task}-medium-replay/{arm}/seed0"
    assert [about[key] for key in ("draw_sha256", "provenance")] == [metadata[key] for key in ("draw_sha256", "provenance")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HERE if name in trained.WORLD_MODELS], ids="/".join)
def test_a_world_model_errs_as_before_the_rounding(name):
    (task, _), fitted = name, trained.world_model(*name)
    drawn, rest = transitions.draw(read.load(f"{task}-medium-replay"), 10_000, 0)
    assert trained.load(*name)[1]["draw_sha256"] == drawn.sha256
    for source in ("mean", *(["deterministic"] if fitted.deterministic else [])):
        predict = imagination.predictor(source, fitted, drawn)
        found = imagination.held_out_error(predict, fitted.model.standardiser, rest, 0).mean()
        assert np.isclose(found, np.mean(fitted.errors[source]), rtol=0.05)


def test_an_agent_comes_back_from_what_its_run_kept(tmp_path, monkeypatch):
    """Rounded: its actions and values are the kept ones', nearly; and what is there is not made again."""
    monkeypatch.setattr(trained, "WORLD_MODELS", {})
    monkeypatch.setattr(trained, "ENSEMBLES", {})
    which = records.Run("halfcheetah", "halfcheetah-medium-replay", "vanilla", 0)
    standardiser = transitions.Standardiser(torch.ones(1, 17), torch.full((1, 17), 2.0))
    learner = training.learner(ARMS["vanilla"], tasks.find("halfcheetah"), [3], standardiser, arithmetic=models.FAST)
    kept = tmp_path / "work" / "kept" / str(which) / "switch.safetensors"
    kept.parent.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in models.agent(learner, 0).items()}, kept)
    lines = [*trained.make(tmp_path / "work", records.root(), tmp_path / "models")]
    assert [line for line in lines if "needs its run" not in line] == [
        str(trained.path_of("halfcheetah", "vanilla", tmp_path / "models"))
    ]
    assert any(line == "hopper/noise needs its run: python -m mbaug record core" for line in lines)
    found, state = trained.agent("halfcheetah", "vanilla", folder=tmp_path / "models"), np.ones((1, 5, 17), np.float32)
    np.testing.assert_allclose(found.policy(state), learner.policy(state), atol=5e-3)
    inputs = torch.ones(1, 5, 17), torch.zeros(1, 5, 6)
    torch.testing.assert_close(found.agent.critics(*inputs), learner.agent.critics(*inputs), atol=5e-3, rtol=0)
    assert trained.policy("halfcheetah", "vanilla", folder=tmp_path / "models")(state[0, 0]).shape == (6,)
    assert all("needs its run" in line for line in trained.make(tmp_path / "work", records.root(), tmp_path / "models"))


def test_an_agent_whose_critics_are_not_kept_acts_and_values_nothing():
    found, state = trained.agent("walker2d", "augmented"), torch.zeros(1, 5, 17)
    action = torch.from_numpy(found.policy(state.numpy()))
    assert action.abs().max() <= 1
    assert found.agent.critics(state, action).isnan().all()


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m mbaug models` makes it"):
        trained.agent("hopper", "vanilla", folder=tmp_path)
    path = trained.path_of("hopper", "vanilla", tmp_path)
    path.parent.mkdir()
    path.write_bytes(checkpoint.packed({"actor.0.weight": torch.ones(9)}, {"seed": 0})[:-1])
    with pytest.raises(checkpoint.CheckpointDamaged, match="restore it with git"):
        trained.load("hopper", "vanilla", tmp_path)
