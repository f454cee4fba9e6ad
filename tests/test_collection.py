"""The offline data: when collecting stops, what the pools hold, and that a kill changes no byte of them."""

import json
import multiprocessing
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mbaug import __main__ as commands
from mbaug import collection, grid, life, offline_data, pools, recording, sac, streams, study, tasks, training, transitions
from mbaug.settings import SAC, Arm, Evaluation, Finetuning

HOPPER, ANT = replace(tasks.find("hopper"), return_medium=19.0), tasks.find("ant")
PLAN = Finetuning(400, 100, "uniform", evaluation_interval=50)
TINY = Arm("sac", SAC(hidden=(8, 8), batch_size=16), finetuning=PLAN, evaluation=Evaluation(2, 100))
RUN = recording.Run("long", "hopper", "none", "sac_million", 0)
NAMES = [f"hopper-{quality}" for quality in sorted(offline_data.QUALITIES)]
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _programme():
    """The study `long` in a tiny budget, with two checkpoints in a life."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(grid.STUDIES, "long", grid.Study("long", "?", {"sac_million": TINY}, grid.FOUR, seeds=(0,)))
        patch.setitem(tasks.TASKS, "hopper", HOPPER)
        patch.setattr(life, "LONG", 100)
        patch.setattr(life, "CHECKPOINTS", 2)
        patch.setattr(collection, "ROLLED_OUT", 150)
        patch.setattr(collection, "REPLAYED", 100)
        yield


def collect(folder, to=None, report=lambda line: None):
    """Collects the tiny study's pools, all below `folder`."""
    study.collect(HOPPER, 0, folder / "runs", folder / "work", [folder / "pools"] * 2, to, report)


def made(folder):
    """The bytes of everything that is kept: pools, cards, and the record's rows and policies."""
    paths = [*(folder / "pools").iterdir(), *(folder / "runs").rglob("*.csv"), *(folder / "runs").rglob("*.safetensors")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of what was collected in one go."""
    folder = tmp_path_factory.mktemp("whole")
    collect(folder)
    return folder


@pytest.fixture(scope="module")
def replay(whole):
    """The packed replay of the tiny SAC, from its last checkpoint."""
    (folder,) = {path.parent for path in (whole / "work").rglob("2.json")}
    return recording.load_checkpoint(folder)[0]["replay"][0].numpy()


def load(folder, quality):
    """Returns the pool of that quality as a dataset."""
    return transitions.load(f"hopper-{quality}", [folder / "pools"])


def card(folder, quality):
    return json.loads((folder / "pools" / f"hopper-{quality}.json").read_text())


# --- when -----------------------------------------------------------------------------------------------------------------


def curve(*means):
    return [{"environment_steps": 5_000 * k, "returns": [mean - 1.0, mean + 1.0]} for k, mean in enumerate(means, start=1)]


def test_a_level_is_held_over_two_consecutive_evaluations():
    assert not collection.holds(curve(2_000), 1_422.0)
    assert not collection.holds(curve(2_000, 1_000, 1_500), 1_422.0)
    assert collection.holds(curve(100, 1_422, 1_422), 1_422.0)
    assert collection.medium_steps(curve(2_000, 1_000, 1_500, 1_600, 1_700), 1_422.0) == 20_000
    assert collection.medium_steps(curve(2_000, 1_000, 1_500), 1_422.0) is None


def test_the_medium_level_is_d4rls_or_a_third_of_the_way():
    """Ant's is known at the end only: a third of the way from the return that scores 0 to the mean of the last ten."""
    assert collection.medium_level(HOPPER, [], ended=False) == 19.0
    long_curve = curve(*[0.0] * 5, *[3_000.0, 4_000.0] * 5)
    assert collection.medium_level(ANT, long_curve, ended=False) is None
    level = collection.medium_level(ANT, long_curve, ended=True)
    assert level == pytest.approx(-325.6 + (3_500 + 325.6) / 3)
    score = tasks.normalised_score(ANT, np.array([level, 3_500.0]))
    assert score[0] == pytest.approx(score[1] / 3)


def test_a_curve_is_that_of_the_rows():
    rows = [
        {"phase": phase, "environment_steps": steps, "return": value}
        for phase, steps, value in [("pretrain", 0, 9.0), ("finetune", 0, 1.0), ("finetune", 0, 2.0), ("finetune", 5, 3.0)]
    ]
    expected = [{"environment_steps": 0, "returns": [1.0, 2.0]}, {"environment_steps": 5, "returns": [3.0]}]
    assert collection.curve(rows) == expected


# --- which transitions ----------------------------------------------------------------------------------------------------


def test_episodes_are_whole(replay):
    """Every episode ends where the task or the time limit ended it, and none but its last step does."""
    found = pools.episodes(replay)
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


def test_the_pools_of_the_replay_hold_what_was_lived_through(whole, replay):
    """`replay` is all of it until the level was held, and `medium-replay` whole episodes of that."""
    about = card(whole, "replay")
    steps = about["curve"][-1]["environment_steps"]
    assert about["replay_transitions"] == steps
    assert 200 < steps < 400, "the level should be held somewhere on the way"
    assert all(np.mean(point["returns"]) >= 19.0 for point in about["curve"][-2:])
    lived = replay[:steps]
    finished = np.concatenate(pools.episodes(lived))
    assert np.array_equal(transitions.pack(load(whole, "replay")).numpy(), lived[finished])
    chosen = np.concatenate(collection.choose_episodes(lived, 100, seed=0))
    assert np.array_equal(transitions.pack(load(whole, "medium-replay")).numpy(), lived[chosen])


@pytest.mark.parametrize("quality", ["random", "medium", "expert"])
def test_roll_outs_are_whole_episodes_of_their_policy(whole, quality):
    """Every action is the policy's, given the state and the stream of that pool; the last episode is finished."""
    pool = load(whole, quality)
    tasks.check_dataset(HOPPER, pool)
    assert len(pool) >= 150
    assert pool.terminal[-1] | pool.truncated[-1]
    before_last = np.flatnonzero(pool.terminal | pool.truncated)[-2] if len(np.unique(pool.episode)) > 1 else -1
    assert before_last + 1 < 150, "no more episodes than needed"
    if quality == "random":
        act = collection.uniform(HOPPER)
    else:
        name = {"medium": "medium", "expert": "final"}[quality]
        act = collection.explorer(HOPPER, TINY, recording.policies(whole / "runs", RUN)[name])
    random = streams.numpy_generator(0, "pool", quality)
    assert np.array_equal(pool.action, np.stack([act(state, random) for state in pool.state]))


def test_policies_are_their_formulas(whole):
    state, size = load(whole, "medium").state[0], HOPPER.action_size
    act, again = (streams.numpy_generator(0, "formulas") for _ in range(2))
    assert np.array_equal(collection.uniform(HOPPER)(state, act), 2 * again.random(size, dtype=np.float32) - 1)
    actor, learner = recording.policies(whole / "runs", RUN)["final"], training.learner(TINY, HOPPER, [0])
    training.set_actor(learner, actor)
    normal = torch.from_numpy(again.standard_normal(size, dtype=np.float32)).view(1, 1, -1)
    expected, _ = sac.sample(learner.agent.actor, torch.from_numpy(state).view(1, 1, -1), normal)
    assert np.allclose(collection.explorer(HOPPER, TINY, actor)(state, act), expected.detach()[0, 0], atol=1e-5)


# --- one training, killed or not ------------------------------------------------------------------------------------------


def test_one_training_makes_all_pools_and_the_record(whole):
    assert sorted(path.stem for path in (whole / "pools").glob("*.hdf5")) == sorted(NAMES)
    assert recording.verify(whole / "runs", RUN)["status"] == "finished"
    assert study.difference_from(recording.verify(whole / "runs", RUN), TINY) is None


def test_cards_say_how_a_pool_was_made(whole):
    for name in NAMES:
        about = card(whole, name.removeprefix("hopper-"))
        assert about["name"] == name
        assert about["sha256"] == recording.sha256((whole / "pools" / f"{name}.hdf5").read_bytes())
        assert about["command"] == "python -m mbaug collect hopper --seed 0"
        assert {"commit", "torch", "mujoco", "cpu"} <= set(about["provenance"])
        assert (about["licence"], about["seed"]) == ("CC BY 4.0", 0)
        assert about["run"] == str(RUN) if not name.endswith("random") else "run" not in about
        assert about["d4rl"] == pools.D4RL.get(name)
    replayed = card(whole, "medium-replay")
    means = {point["environment_steps"]: np.mean(point["returns"]) for point in replayed["curve"]}
    assert card(whole, "medium")["greedy_return"] == means[replayed["replay_transitions"]]
    assert card(whole, "medium")["greedy_return"] != card(whole, "expert")["greedy_return"]


def test_collecting_killed_ends_with_the_same_bytes(whole, tmp_path):
    """kill -9 between two checkpoints, beyond the first; the same command goes on; pools, cards and record are equal."""
    process = FORK.Process(target=collect, args=(tmp_path,))
    process.start()
    while not list(tmp_path.rglob("actors/250.safetensors")):
        assert process.is_alive(), "the training ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert [path.stem for path in tmp_path.rglob("work/*/*.json")] == ["1"]
    assert not list(tmp_path.rglob("*.csv"))
    collect(tmp_path)
    assert made(tmp_path) == made(whole)


def test_collecting_stops_where_it_is_told(whole, tmp_path):
    """A checkpoint and the pools that are determined stay; those that are not are named; it goes on to the same end."""
    lines = []
    collect(tmp_path, 0, lines.append)
    assert sorted(path.name for path in (tmp_path / "pools").iterdir()) == ["hopper-random.hdf5", "hopper-random.json"]
    assert lines[1].startswith("hopper-replay, hopper-medium-replay and hopper-medium are not made: the medium level of 19")
    assert lines[2] == "hopper-expert is not made: the agent has not lived to the end of the training"
    stop = card(whole, "medium-replay")["curve"][-1]["environment_steps"]
    collect(tmp_path, stop - 20)  # ends at the first evaluation from there on
    (folder,) = {path.parent for path in tmp_path.rglob("work/*/*.json")}
    assert recording.load_checkpoint(folder)[1]["environment_steps"] == stop
    assert sorted(path.stem for path in (tmp_path / "pools").glob("*.hdf5")) == sorted(set(NAMES) - {"hopper-expert"})
    assert not list((tmp_path / "runs").rglob("*.json"))
    with pytest.raises(ValueError, match="to is 500, but it must be from 0 to 400"):
        collect(tmp_path, 500)
    collect(tmp_path)
    assert made(tmp_path) == made(whole)


def test_an_agent_that_becomes_nan_is_recorded_and_is_no_expert(tmp_path, monkeypatch):
    """The record says that it diverged; its last actor that was evaluated stays; no pool is made of what it was not."""
    evaluate, lines = life.Life.evaluate, []

    def poisoned(life, phase):
        evaluate(life, phase)
        if life.learner.environment_steps == 200:
            life.learner.agent.critics.network.layers[0][0][0] = float("nan")

    monkeypatch.setattr(life.Life, "evaluate", poisoned)
    collect(tmp_path, report=lines.append)
    assert recording.verify(tmp_path / "runs", RUN)["status"] == "diverged"
    assert set(recording.policies(tmp_path / "runs", RUN)) == {"final"}
    assert lines[-1] == "hopper-expert is not made: the agent has not lived to the end of the training"
    assert sorted(path.stem for path in (tmp_path / "pools").glob("*.hdf5")) == ["hopper-random"]


def test_the_command_writes_the_table_of_what_it_made(tmp_path, monkeypatch, capsys):
    """In the folder of the bundled pools, not where `--output` sends a copy."""
    monkeypatch.setattr(recording, "repository", lambda: tmp_path)
    monkeypatch.setattr(offline_data, "FOLDERS", (tmp_path / "small", tmp_path / "large"))
    commands.main(["collect", "hopper", "--to", "0", "--output", str(tmp_path / "copy")])
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"hopper-random.hdf5", "hopper-random.json"}
    commands.main(["collect", "hopper", "--to", "0"])
    assert "[hopper-random](hopper-random.json)" in (tmp_path / "small" / "README.md").read_text()
    assert capsys.readouterr().out.count("hopper-random is made") == 2


def test_record_and_collect_are_one_training(whole, tmp_path, monkeypatch):
    """What `record long` trained, `collect` makes the pools of without another step; and the other way round."""
    one = replace(grid.find("long"), tasks=("hopper",))
    study.record(one, tmp_path / "runs", tmp_path / "work", report=lambda line: None)
    monkeypatch.setattr(training, "finetune", lambda *rest: pytest.fail("it trains again"))
    collect(tmp_path)
    assert made(tmp_path) == made(whole)
    assert study.record(one, tmp_path / "runs", tmp_path / "work", report=lambda line: None) == []


def remove(folder, *names):
    """Removes these pools of a copy of `folder`."""
    for name in names:
        for suffix in ("hdf5", "json"):
            (folder / "pools" / f"{name}.{suffix}").unlink()


def test_what_is_not_there_is_made_and_all_else_stays(whole, tmp_path, monkeypatch):
    """From the checkpoint at the end, without a step; the pools that are there are left alone, in a sentence each."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    remove(tmp_path, "hopper-medium")
    monkeypatch.setattr(training, "finetune", lambda *rest: pytest.fail("it trains again"))
    first, second = [], []
    collect(tmp_path, report=first.append)
    assert made(tmp_path) == made(whole)
    stays = [line for line in first if line.endswith("already and stays as it is: a pool is never overwritten")]
    assert sorted(line.split()[0] for line in stays) == sorted(set(NAMES) - {"hopper-medium"})
    shutil.rmtree(tmp_path / "work")
    collect(tmp_path, report=second.append)
    assert second[1:] == [f"{RUN} and all pools of hopper are there already and stay as they are"]


def test_what_the_end_is_not_needed_for_is_made_without_it(whole, tmp_path):
    """A clone has no checkpoints and no replay: training ends where the medium level is held, with the same bytes."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "work")
    remove(tmp_path, "hopper-replay")
    lines = []
    collect(tmp_path, report=lines.append)
    assert made(tmp_path) == made(whole)
    assert len([line for line in lines if "steps: greedy return" in line]) == 6  # 50, 100, ..., 300 steps


def test_a_pool_is_never_overwritten(whole):
    rows = transitions.pack(load(whole, "random")).numpy()
    with pytest.raises(FileExistsError, match=r"hopper-random is in .* already: a pool is never overwritten"):
        pools.write(whole / "pools" / "hopper-random.hdf5", rows, pools.episodes(rows), HOPPER, {})


# --- the actors that are kept ---------------------------------------------------------------------------------------------


def test_the_kept_actors_are_those_that_were_evaluated(whole):
    """Greedy, in the recorded evaluations' own environments, they earn the recorded returns, bit for bit."""
    rows = recording.read(whole / "runs", RUN).rows
    policies = recording.policies(whole / "runs", RUN)
    moments = {"medium": card(whole, "medium-replay")["curve"][-1]["environment_steps"], "final": 400}
    assert set(policies) == set(moments)
    evaluate = tasks.Evaluator(HOPPER, [0], 2, TINY.learner.discount)
    for name, steps in moments.items():
        learner = training.learner(TINY, HOPPER, [7])
        training.set_actor(learner, policies[name])
        returns = evaluate(learner.policy, "finetune", steps).undiscounted_return[0]
        assert returns.tolist() == rows[rows.environment_steps == steps]["return"].tolist()


def test_an_agent_of_a_population_has_its_own_actor():
    """Taken from among others, it acts as it does there; an actor of other sizes is refused."""
    pair, alone = training.learner(TINY, HOPPER, [0, 1]), training.learner(TINY, HOPPER, [0])
    state = np.random.default_rng(0).normal(size=(2, 3, 11)).astype(np.float32)
    training.set_actor(alone, training.actors(pair)[1])
    np.testing.assert_allclose(alone.policy(state[1:]), pair.policy(state)[1:], rtol=1e-5)
    with pytest.raises(ValueError, match="the actor has 7 parameters, but hopper with these settings needs 222"):
        training.set_actor(alone, torch.zeros(7))


def test_policies_that_differ_from_their_record_are_refused(whole, tmp_path):
    record = recording.read(whole / "runs", RUN)
    metadata = {name: record.metadata[name] for name in recording.METADATA}
    recording.write(tmp_path, RUN, record.rows.to_dict("records"), metadata)
    assert recording.policies(tmp_path, RUN) == {}
    other = replace(RUN, seed=1)
    recording.write(tmp_path, other, record.rows.to_dict("records"), metadata, {"final": torch.zeros(3)})
    path = other.path(tmp_path).with_suffix(".safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    with pytest.raises(recording.RecordDamaged, match=r"the SHA-256 of .*seed1.safetensors is not the one in its .json"):
        recording.policies(tmp_path, other)
    path.unlink()
    with pytest.raises(recording.RecordDamaged, match=r"seed1.safetensors is missing"):
        recording.policies(tmp_path, other)


# --- the record is there, the training is not -----------------------------------------------------------------------------


def clone(whole, folder, *lacking):
    """A copy of what was collected as a clone has it: records and pools, without checkpoints and these pools."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "work")
    remove(folder, *lacking)


def test_a_medium_level_that_only_the_end_tells_is_taken_from_the_record(tmp_path, monkeypatch):
    """As Ant's: it is known at the end of the training, and the record has the end; so training ends where the level is held."""
    unknown = replace(HOPPER, return_medium=None)
    monkeypatch.setitem(tasks.TASKS, "hopper", unknown)
    monkeypatch.setattr(tasks, "find", lambda name: unknown)
    first, again, lines = tmp_path / "first", tmp_path / "again", []
    study.collect(unknown, 0, first / "runs", first / "work", [first / "pools"] * 2, report=lambda line: None)
    clone(first, again, "hopper-replay")
    study.collect(unknown, 0, again / "runs", again / "work", [again / "pools"] * 2, report=lines.append)
    assert made(again) == made(first)
    evaluations = [line for line in lines if "steps: greedy return" in line]
    assert len(evaluations) == card(first, "replay")["replay_transitions"] / 50 < 8


def test_pools_of_another_life_than_the_recorded_one_name_no_run(whole, tmp_path, monkeypatch):
    """Another processor rounds otherwise, here by a nudge: what is made anew says where its agent is not known from."""
    clone(whole, tmp_path, "hopper-replay", "hopper-expert")
    evaluate, lines = life.Life.evaluate, []

    def nudged(one, phase):
        if one.learner.environment_steps == 200:
            one.learner.agent.actor.network.flat.data *= 1.01
        evaluate(one, phase)

    monkeypatch.setattr(life.Life, "evaluate", nudged)
    collect(tmp_path, report=lines.append)
    assert [line for line in lines if "name no run" in line] == [
        f"{RUN} is recorded, but here it learned otherwise, as on another processor: the cards of its pools name no run"
    ]
    for quality in ("replay", "expert"):
        assert set(card(whole, quality)) - set(card(tmp_path, quality)) == {"run"}
        assert card(tmp_path, quality)["settings"] == card(whole, quality)["settings"]
    assert card(tmp_path, "medium") == card(whole, "medium")
    assert made(tmp_path)["seed0.csv"] == made(whole)["seed0.csv"]


def test_pools_of_two_seeds_are_not_mixed(whole, tmp_path, monkeypatch):
    """Refused before anything is trained; in a folder of its own another seed is welcome."""
    clone(whole, tmp_path, *(name for name in NAMES if name != "hopper-medium"))
    before = made(tmp_path)
    sentence = "seed 1 was asked for, but hopper-medium in .* is of seed 0: name another folder with --output"
    with pytest.raises(ValueError, match=sentence):
        study.collect(HOPPER, 1, tmp_path / "runs", tmp_path / "work", [tmp_path / "pools"] * 2)
    assert made(tmp_path) == before
    study.collect(HOPPER, 1, tmp_path / "runs", tmp_path / "work", [tmp_path / "one"] * 2, to=0, report=lambda line: None)
    assert json.loads((tmp_path / "one" / "hopper-random.json").read_text())["seed"] == 1


def test_a_record_with_other_settings_gives_no_pools(whole, tmp_path, monkeypatch):
    clone(whole, tmp_path, "hopper-replay")
    other = replace(grid.find("long"), arms={"sac_million": replace(TINY, learner=replace(TINY.learner, discount=0.9))})
    monkeypatch.setitem(grid.STUDIES, "long", other)
    with pytest.raises(ValueError, match=rf"{RUN} is recorded with other settings: settings\.learner\.discount is 0\.99"):
        collect(tmp_path)
