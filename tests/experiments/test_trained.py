"""The networks that the project ships: complete, small, traceable to their runs, and as good as before rounding."""

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


def test_the_shipped_networks_take_at_most_30_megabytes():
    assert sum(trained.path_of(*name).stat().st_size for name in HERE) <= 30_000_000


@pytest.mark.parametrize("name", HERE, ids="/".join)
def test_a_file_is_complete_and_says_where_it_comes_from(name):
    tensors, about = trained.load(*name)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert about["seed"] == 0
    assert len(about["draw_sha256"]) == 64
    assert {"commit", "torch", "cpu"} <= about["provenance"].keys()


@pytest.mark.parametrize("name", [name for name in HERE if name in trained.AGENTS], ids="/".join)
def test_an_agent_matches_the_record_of_its_run(name):
    (task, arm), (_, about) = name, trained.load(*name)
    metadata = records.read_metadata(records.root(), records.Run.parse(about["run"]))
    assert about["run"] == f"{task}/{task}-medium-replay/{arm}/seed0"
    assert [about[key] for key in ("draw_sha256", "provenance")] == [metadata[key] for key in ("draw_sha256", "provenance")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HERE if name in trained.WORLD_MODELS], ids="/".join)
def test_rounding_does_not_change_the_error_of_a_world_model(name):
    (task, _), fitted = name, trained.world_model(*name)
    drawn, rest = transitions.draw(read.load(f"{task}-medium-replay"), 10_000, 0)
    assert trained.load(*name)[1]["draw_sha256"] == drawn.sha256
    for source in ("mean", *(["deterministic"] if fitted.deterministic else [])):
        predict = imagination.predictor(source, fitted, drawn)
        found = imagination.held_out_error(predict, fitted.model.standardiser, rest, 0).mean()
        assert np.isclose(found, np.mean(fitted.errors[source]), rtol=0.05)


def test_an_agent_is_made_from_the_networks_that_its_run_kept(tmp_path, monkeypatch):
    """Rounding changes its actions and values only slightly. An existing file is not made again."""
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


def test_an_agent_without_shipped_critics_acts_but_its_values_are_nan():
    found, state = trained.agent("walker2d", "augmented"), torch.zeros(1, 5, 17)
    action = torch.from_numpy(found.policy(state.numpy()))
    assert action.abs().max() <= 1
    assert found.agent.critics(state, action).isnan().all()


def test_the_error_for_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m mbaug models` makes it"):
        trained.agent("hopper", "vanilla", folder=tmp_path)
    path = trained.path_of("hopper", "vanilla", tmp_path)
    path.parent.mkdir()
    path.write_bytes(checkpoint.packed({"actor.0.weight": torch.ones(9)}, {"seed": 0})[:-1])
    with pytest.raises(checkpoint.CheckpointDamaged, match="restore it with git"):
        trained.load("hopper", "vanilla", tmp_path)
