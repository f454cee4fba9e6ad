"""The networks that the project ships: complete, small, traceable to their runs, and as good as before rounding."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from made import learner_of

from mbaug import streams, tasks
from mbaug.datasets import read
from mbaug.experiments import checkpoint, models, records, run, trained
from mbaug.experiments.studies import ARMS
from mbaug.method import imagination, settings, training, transitions
from mbaug.method.td3 import TD3

HERE = trained.names()


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
    task, arm, (_, about) = name[0], trained.AGENTS[name][0], trained.load(*name)
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


def keep(work, which):
    """Writes an agent's networks as its run keeps them at the switch, and another actor as a later one; returns the learner."""
    standardiser = transitions.Standardiser(torch.ones(1, 17), torch.full((1, 17), 2.0))
    learner = training.learner(ARMS[which.arm], tasks.find(which.task), [3], standardiser, arithmetic=models.FAST)
    path = work / "kept" / str(which) / "switch.safetensors"
    path.parent.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in models.agent(learner, 0).items()}, path)
    safetensors.torch.save_file({"actor": training.actors(learner)[0] + 1}, path.with_name("50000.safetensors"))
    run.kept_digest(work, which).write_text(records.read_metadata(records.root(), which)["csv_sha256"])
    return learner


@pytest.mark.parametrize("arm", ["vanilla", "vanilla_data"])
def test_an_agent_is_made_from_the_networks_that_its_run_kept(arm, tmp_path, monkeypatch):
    """Rounding changes its actions and values only slightly. An existing file is not made again."""
    monkeypatch.setattr(trained, "WORLD_MODELS", {})
    monkeypatch.setattr(trained, "ENSEMBLES", [])
    agents = {("halfcheetah", arm): (arm, "switch"), ("hopper", "noise"): ("noise", "switch")}
    agents["halfcheetah", f"{arm}_50000"] = arm, "50000"
    monkeypatch.setattr(trained, "AGENTS", agents)
    learner = keep(tmp_path / "work", records.Run("halfcheetah", "halfcheetah-medium-replay", arm, 0))
    lines = [*trained.make(records.root(), tmp_path / "work", tmp_path / "models")]
    made = trained.path_of("halfcheetah", arm, tmp_path / "models")
    lacking = f"needs the networks that its recorded run kept, but {tmp_path / 'work'} lacks them"
    assert lines[:2] == [str(made), f"hopper/noise {lacking}"]
    found, state = trained.agent("halfcheetah", arm, folder=tmp_path / "models"), np.ones((1, 5, 17), np.float32)
    np.testing.assert_allclose(found.policy(state), learner.policy(state), atol=5e-3)
    inputs = torch.ones(1, 5, 17), torch.zeros(1, 5, 6)
    torch.testing.assert_close(found.agent.critics(*inputs), learner.agent.critics(*inputs), atol=5e-3, rtol=0)
    np.testing.assert_allclose(found.act(state[0, 0]), found.policy(state)[0, 0], atol=1e-6)
    later = trained.load("halfcheetah", f"{arm}_50000", tmp_path / "models")[0]["actor"]
    torch.testing.assert_close(later, training.actors(learner)[0] + 1, atol=5e-3, rtol=0)
    assert [*trained.make(records.root(), tmp_path / "work", tmp_path / "models")] == [f"hopper/noise {lacking}"]


def test_values_along_actions_are_the_quantiles_of_their_relative_changes():
    """Each agent of a population has its own scale: the second one's values are three times as large."""
    state, action, other = np.array([[0.0, 1.0, -1.0], [0.2, -0.4, 0.6], [1.0, -1.0, 1.0]])
    critics = learner_of(TD3(hidden=()), [0, 1], 1, 1).agent.critics
    weights = torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, -1.0], [6.0, -3.0]]).unsqueeze(-1)  # Q_1 of both agents, then Q_2
    critics.network.layers[0][0].copy_(weights)
    critics.network.layers[0][1].zero_()
    found = trained.along_actions(critics, *(torch.tensor(x).float().expand(2, 3).unsqueeze(-1) for x in (state, action, other)))
    value = lambda action: np.minimum(state + 2 * action, 2 * state - action)  # noqa: E731
    moved = np.stack([value(action + share * (other - action)) for share in trained.SHARES])
    expected = np.quantile((moved - value(action)) / value(action).std(), trained.QUANTILES, axis=1).T
    np.testing.assert_allclose(found, np.stack([expected, expected]), atol=1e-6)


def test_critics_that_a_run_kept_are_evaluated_again_and_other_values_stay(tmp_path):
    """The digest of a run's CSV says which run was evaluated."""
    which, path = records.Run("halfcheetah", "halfcheetah-medium-replay", "vanilla", 0), tmp_path / "11_actions.csv"
    learner = keep(tmp_path / "work", which)
    path.write_text(
        "task,arm,seed,share,low,median,high,record\nhalfcheetah,vanilla,0,1,9,9,9,old\nant,noise,1,1,-0.5,0.25,2,other\n"
    )
    trained.update_along_actions(records.root(), tmp_path / "work", path)
    table = pd.read_csv(path)
    assert table["share"].tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    record = records.read_metadata(records.root(), which)["csv_sha256"][:12]
    assert table["record"].tolist() == [record] * 5 + ["other"]
    drawn, _ = transitions.draw(read.load(which.dataset), 10_000, which.seed)
    state, action = (torch.from_numpy(part[None, :1_000]) for part in (drawn.state, drawn.action))
    corner = torch.randint(0, 2, action.shape, generator=streams.torch_generator(which.seed, "corners")) * 2.0 - 1
    expected = trained.along_actions(learner.agent.critics, (state - 1) / 2, action, corner)[0]
    np.testing.assert_allclose(table[["low", "median", "high"]][:5], expected, rtol=1e-4, atol=1e-6)
    assert (table[["low", "median", "high"]][1:5].to_numpy() != 0).any()
    path.write_text(path.read_text().replace(f"0,0,0,{record}", f"0,7,0,{record}"))
    before = path.read_bytes()
    for work in ("nothing kept", "work"):  # a run that was asked is not asked again
        trained.update_along_actions(records.root(), tmp_path / work, path)
        assert path.read_bytes() == before


def test_world_models_are_fitted_and_can_be_loaded(tmp_path, monkeypatch):
    small = settings.WorldModel(hidden=(8,), transition_hidden=(8,), latent_size=4, epochs=1)
    monkeypatch.setattr(trained, "WORLD_MODELS", {("hopper", "world_model"): replace(ARMS["deterministic"], model=small)})
    monkeypatch.setattr(trained, "ENSEMBLES", [("hopper", "ensemble")])
    monkeypatch.setattr(trained, "MEMBERS", range(2))
    monkeypatch.setattr(trained, "SMALL", replace(trained.SMALL, epochs=1))
    monkeypatch.setattr(trained, "AGENTS", {})
    folder = tmp_path / "models"
    expected = [str(trained.path_of("hopper", name, folder)) for name in ("world_model", "ensemble")]
    assert [*trained.make(records.root(), tmp_path / "work", folder)] == expected
    fitted = trained.world_model("hopper", folder=folder)
    assert fitted.deterministic is not None
    assert {"sample", "deterministic", "persistence"} <= {*fitted.errors}
    monkeypatch.setattr(trained, "existing", lambda task, name, _: trained.path_of(task, name, folder))
    one, other = trained.ensemble("hopper")
    assert not torch.equal(one.network.flat, other.network.flat)
    assert [*trained.make(records.root(), tmp_path / "work", folder)] == [], "Existing files are not made again."


def test_networks_of_another_training_of_a_recorded_run_are_not_shipped(tmp_path, monkeypatch):
    """The record's provenance would describe a training that did not make them."""
    monkeypatch.setattr(trained, "WORLD_MODELS", {})
    monkeypatch.setattr(trained, "ENSEMBLES", [])
    monkeypatch.setattr(trained, "AGENTS", {("halfcheetah", "vanilla"): ("vanilla", "switch")})
    work, which = tmp_path / "work", records.Run("halfcheetah", "halfcheetah-medium-replay", "vanilla", 0)
    keep(work, which)
    run.kept_digest(work, which).write_text("digest of another CSV")
    (line,) = trained.make(records.root(), work, tmp_path / "models")
    assert line.startswith("halfcheetah/vanilla needs the networks")
    trained.update_along_actions(records.root(), work, tmp_path / "11_actions.csv")
    assert pd.read_csv(tmp_path / "11_actions.csv").empty


def test_a_damaged_file_that_a_run_kept_is_named(tmp_path):
    which = records.Run("halfcheetah", "halfcheetah-medium-replay", "vanilla", 0)
    keep(tmp_path, which)
    path = tmp_path / "kept" / str(which) / "switch.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is damaged \("):
        trained.update_along_actions(records.root(), tmp_path, tmp_path / "11_actions.csv")


def test_values_of_critics_come_from_recorded_runs():
    table = pd.read_csv(trained.FOLDER / "drawn" / "11_actions.csv")
    assert table.groupby(["task", "arm", "seed"])["share"].apply(list).map(lambda shares: shares == [*trained.SHARES]).all()
    for task, arm, seed, record in table[["task", "arm", "seed", "record"]].drop_duplicates().itertuples(index=False):
        which = records.Run(task, f"{task}-medium-replay", arm, seed)
        assert records.read_metadata(records.root(), which)["csv_sha256"].startswith(record), which


def test_an_agent_without_shipped_critics_acts_but_its_values_are_nan():
    found, state = trained.agent("walker2d", "augmented"), torch.zeros(1, 5, 17)
    action = torch.from_numpy(found.policy(state.numpy()))
    assert action.abs().max() <= 1
    assert found.agent.critics(state, action).isnan().all()


def test_the_error_for_a_missing_or_damaged_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m mbaug models` makes it"):
        trained.agent("hopper", "vanilla", folder=tmp_path)
    with pytest.raises(ValueError, match="unknown shipped network 'hopper/iql': did you mean 'hopper/"):
        trained.agent("hopper", "iql", folder=tmp_path)
    path = trained.path_of("hopper", "vanilla", tmp_path)
    path.parent.mkdir()
    path.write_bytes(checkpoint.packed({"actor.0.weight": torch.ones(9)}, {"seed": 0})[:-1])
    with pytest.raises(checkpoint.CheckpointDamaged, match="restore it with git"):
        trained.load("hopper", "vanilla", tmp_path)
