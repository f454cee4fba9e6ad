"""The offline data: when collecting stops, what the pools hold, what their cards say, and that a kill changes no byte of them."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import wait_until

from mbaug import __main__ as commands
from mbaug import files, streams, tasks
from mbaug.datasets import check, collect, pools, read
from mbaug.experiments import checkpoint, records, run, runner, studies
from mbaug.method import sac, training, transitions
from mbaug.method.arms import Arm
from mbaug.method.settings import Evaluation, Finetuning
from mbaug.provenance import provenance

HOPPER, ANT = replace(tasks.find("hopper"), return_medium=19.0), tasks.find("ant")
PLAN = Finetuning(400, 100, "uniform", evaluation_interval=50)
TINY = Arm("sac", sac.SAC(hidden=(8, 8), batch_size=16), finetuning=PLAN, evaluation=Evaluation(2, 100))
RUN = "hopper/none/sac_million/seed0"
NEW = collect.Recorded(RUN, [], finished=False)
NAMES = [f"hopper-{quality}" for quality in sorted(read.QUALITIES)]


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Pools of a tiny size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "ROLLED_OUT", 150)
        patch.setattr(collect, "REPLAYED", 100)
        yield


@pytest.fixture(scope="module")
def states():
    """What a tiny training has given before its first step and after each evaluation, every 50 steps up to 400."""
    learner, environments = training.learner(TINY, HOPPER, [0]), tasks.Lockstep(HOPPER, [0])
    evaluator, buffer = tasks.Evaluator(HOPPER, [0], 2, TINY.learner.discount), training.replay(learner)
    found, actors, origin = [], {}, provenance("float32")

    def state(curve):
        steps = learner.environment_steps
        returns = evaluator(learner.policy, "finetune", steps).undiscounted_return[0].tolist()
        actors[steps] = training.actors(learner)[0]
        curve, replay = [*curve, {"environment_steps": steps, "returns": returns}], buffer.rows[0, : buffer.size].numpy()
        return collect.Trained(HOPPER, 0, RUN, TINY, origin, curve, replay, actors.__getitem__, steps == PLAN.steps)

    found.append(state([]))
    for _ in training.finetune(learner, environments, buffer):
        found.append(state(found[-1].curve))
    environments.close()
    return found


@pytest.fixture(scope="module")
def recorded(states):
    """What data/runs holds of the tiny training."""
    return collect.Recorded(RUN, states[-1].curve, finished=True)


def collected(folder, states, recorded=NEW):
    """Collects the pools below `folder` from a training that goes through these states; returns the lines that are reported."""
    lines = []
    collect.collect(HOPPER, 0, [folder, folder], recorded, lambda: iter(states), lines.append)
    return lines


def never():
    """Stands in for a training that must not begin."""
    pytest.fail("it trains")


@pytest.fixture(scope="module")
def whole(states, tmp_path_factory):
    """A folder of what was collected in one go."""
    folder = tmp_path_factory.mktemp("whole")
    collected(folder, states)
    return folder


def contents(folder):
    """Returns the bytes of all pools and cards."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copied(whole, folder, *lacking):
    """Copies all pools but some."""
    for name, content in contents(whole).items():
        if name.partition(".")[0] not in lacking:
            (folder / name).write_bytes(content)


def load(folder, quality):
    """Returns the pool of that quality as a dataset."""
    return read.load(f"hopper-{quality}", [folder])


def card(folder, quality):
    return json.loads((folder / f"hopper-{quality}.json").read_text())


# --- when -----------------------------------------------------------------------------------------------------------------


def curve(*means):
    return [{"environment_steps": 5_000 * k, "returns": [mean - 1.0, mean + 1.0]} for k, mean in enumerate(means, start=1)]


def test_a_level_is_held_over_two_consecutive_evaluations():
    assert not collect.holds(curve(2_000), 1_422.0)
    assert not collect.holds(curve(2_000, 1_000, 1_500), 1_422.0)
    assert collect.holds(curve(100, 1_422, 1_422), 1_422.0)
    assert collect.medium_steps(curve(2_000, 1_000, 1_500, 1_600, 1_700), 1_422.0) == 20_000
    assert collect.medium_steps(curve(2_000, 1_000, 1_500), 1_422.0) is None
    assert collect.medium_steps(curve(2_000, 1_500), None) is None


def test_the_medium_level_is_d4rls_or_a_third_of_the_way():
    """Ant's is known at the end only: a third of the way from the return that scores 0 to the mean of the last ten."""
    assert collect.medium_level(HOPPER, [], ended=False) == 19.0
    long_curve = curve(*[0.0] * 5, *[3_000.0, 4_000.0] * 5)
    assert collect.medium_level(ANT, long_curve, ended=False) is None
    level = collect.medium_level(ANT, long_curve, ended=True)
    assert level == pytest.approx(-325.6 + (3_500 + 325.6) / 3)
    score = tasks.normalised_score(ANT, np.array([level, 3_500.0]))
    assert score[0] == pytest.approx(score[1] / 3)


def test_a_curve_is_that_of_the_rows():
    rows = [
        {"phase": phase, "environment_steps": steps, "return": value}
        for phase, steps, value in [("pretrain", 0, 9.0), ("finetune", 0, 1.0), ("finetune", 0, 2.0), ("finetune", 5, 3.0)]
    ]
    expected = [{"environment_steps": 0, "returns": [1.0, 2.0]}, {"environment_steps": 5, "returns": [3.0]}]
    assert collect.curve(rows) == expected


# --- which transitions ----------------------------------------------------------------------------------------------------


def test_episodes_are_whole(states):
    """Every episode ends where the task or the time limit ended it, and none but its last step does."""
    replay = states[-1].replay
    found = pools.episodes(replay)
    assert found[0][0] == 0
    for episode, following in zip(found, [*found[1:], None], strict=True):
        assert replay[episode[-1], -2:].any()
        assert not replay[episode[:-1], -2:].any()
        assert following is None or following[0] == episode[-1] + 1


def test_chosen_episodes_are_enough_and_all_different(states):
    replay = states[-1].replay
    chosen = collect.choose_episodes(replay, 150, seed=0)
    assert sum(map(len, chosen)) >= 150
    assert len({episode[0] for episode in chosen}) == len(chosen)
    other = collect.choose_episodes(replay, 150, seed=1)
    assert [episode[0] for episode in chosen] != [episode[0] for episode in other]
    every = np.concatenate(collect.choose_episodes(replay, 1_000, seed=0))
    np.testing.assert_array_equal(every, np.concatenate(pools.episodes(replay)))


def test_the_pools_of_the_replay_hold_what_the_agent_met(whole, states):
    """`replay` is all of it until the level was held, and `medium-replay` whole episodes of that."""
    about = card(whole, "replay")
    steps = about["curve"][-1]["environment_steps"]
    assert about["replay_transitions"] == steps
    assert 200 < steps < 400, "the level should be held somewhere on the way"
    assert all(np.mean(point["returns"]) >= 19.0 for point in about["curve"][-2:])
    met = states[-1].replay[:steps]
    finished = np.concatenate(pools.episodes(met))
    assert np.array_equal(transitions.pack(load(whole, "replay")).numpy(), met[finished])
    chosen = np.concatenate(collect.choose_episodes(met, 100, seed=0))
    assert np.array_equal(transitions.pack(load(whole, "medium-replay")).numpy(), met[chosen])


@pytest.mark.parametrize("quality", ["random", "medium", "expert"])
def test_roll_outs_are_whole_episodes_of_their_policy(whole, states, quality):
    """Every action is the policy's, given the state and the stream of that pool; the last episode is finished."""
    pool = load(whole, quality)
    check.check_dataset(HOPPER, pool)
    assert len(pool) >= 150
    assert pool.terminal[-1] | pool.truncated[-1]
    before_last = np.flatnonzero(pool.terminal | pool.truncated)[-2] if len(np.unique(pool.episode)) > 1 else -1
    assert before_last + 1 < 150, "no more episodes than needed"
    if quality == "random":
        act = collect.uniform(HOPPER)
    else:
        steps = {"medium": card(whole, "replay")["replay_transitions"], "expert": PLAN.steps}[quality]
        act = collect.explorer(HOPPER, TINY, states[-1].actor(steps))
    random = streams.numpy_generator(0, "pool", quality)
    assert np.array_equal(pool.action, np.stack([act(state, random) for state in pool.state]))


def test_policies_are_their_formulas(whole, states):
    state, size = load(whole, "medium").state[0], HOPPER.action_size
    act, again = (streams.numpy_generator(0, "formulas") for _ in range(2))
    assert np.array_equal(collect.uniform(HOPPER)(state, act), 2 * again.random(size, dtype=np.float32) - 1)
    actor, learner = states[-1].actor(400), training.learner(TINY, HOPPER, [0])
    training.set_actor(learner, actor)
    normal = torch.from_numpy(again.standard_normal(size, dtype=np.float32)).view(1, 1, -1)
    expected, _ = sac.sample(learner.agent.actor, torch.from_numpy(state).view(1, 1, -1), normal)
    assert np.allclose(collect.explorer(HOPPER, TINY, actor)(state, act), expected.detach()[0, 0], atol=1e-5)


# --- from a training to pools ---------------------------------------------------------------------------------------------


def test_cards_say_how_a_pool_was_made(whole):
    assert sorted(path.stem for path in whole.glob("*.hdf5")) == sorted(NAMES)
    for name in NAMES:
        about = card(whole, name.removeprefix("hopper-"))
        assert about["name"] == name
        assert about["sha256"] == files.sha256((whole / f"{name}.hdf5").read_bytes())
        assert about["command"] == "python -m mbaug collect hopper --seed 0"
        assert {"commit", "torch", "mujoco", "cpu"} <= set(about["provenance"])
        assert (about["licence"], about["seed"]) == ("CC BY 4.0", 0)
        assert about["run"] == RUN if not name.endswith("random") else "run" not in about
        assert about["d4rl"] == pools.D4RL.get(name)
    replayed = card(whole, "medium-replay")
    assert replayed["settings"] == files.plain(TINY)
    means = {point["environment_steps"]: np.mean(point["returns"]) for point in replayed["curve"]}
    assert card(whole, "medium")["greedy_return"] == means[replayed["replay_transitions"]]
    assert card(whole, "medium")["greedy_return"] != card(whole, "expert")["greedy_return"]


def test_training_that_stops_on_the_way_leaves_what_is_determined(whole, states, tmp_path):
    """The pools that are not are named; going on from there gives the same bytes."""
    lines = collected(tmp_path, states[:1])
    assert set(contents(tmp_path)) == {"hopper-random.hdf5", "hopper-random.json"}
    assert lines[1].startswith("hopper-replay, hopper-medium-replay and hopper-medium are not made: the medium level of 19")
    assert lines[2] == "hopper-expert is not made: training has not reached its end"
    stop = card(whole, "medium-replay")["curve"][-1]["environment_steps"] // 50
    lines = collected(tmp_path, states[: stop + 1])
    assert [line.split()[0] for line in lines if "steps: greedy return" in line] == [str(50 * k) for k in range(1, stop + 1)]
    assert {path.stem for path in tmp_path.iterdir()} == set(NAMES) - {"hopper-expert"}
    collected(tmp_path, states[stop:])
    assert contents(tmp_path) == contents(whole)


def test_an_agent_that_diverged_is_no_expert(states, tmp_path):
    """It has no state after its last evaluation; then what there is comes again, and is not told twice."""
    lines = collected(tmp_path, [*states[:3], states[2]])
    assert [line.split()[0] for line in lines if "steps: greedy return" in line] == ["50", "100"]
    assert lines[-1] == "hopper-expert is not made: training has not reached its end"
    assert {path.stem for path in tmp_path.iterdir()} == {"hopper-random"}


def test_what_is_not_there_is_made_and_all_else_stays(whole, states, recorded, tmp_path):
    """From the checkpoint at the end, without a step; the pools that are there are left alone, in a sentence each."""
    copied(whole, tmp_path, "hopper-medium")
    lines = collected(tmp_path, states[-1:], recorded)
    assert contents(tmp_path) == contents(whole)
    stays = [line for line in lines if line.endswith("and stays as it is: pools are never overwritten")]
    assert sorted(line.split()[0] for line in stays) == sorted(set(NAMES) - {"hopper-medium"})
    collect.collect(HOPPER, 0, [tmp_path, tmp_path], recorded, never, lines.append)
    assert lines[-1] == f"{RUN} and all pools of hopper already exist and stay as they are"


def test_what_the_end_is_not_needed_for_is_made_without_it(whole, states, recorded, tmp_path):
    """A clone has no checkpoints and no replay: training ends where the medium level is held, with the same bytes."""
    copied(whole, tmp_path, "hopper-replay")
    lines = collected(tmp_path, states, recorded)
    assert contents(tmp_path) == contents(whole)
    assert len([line for line in lines if "steps: greedy return" in line]) == 6  # 50, 100, ..., 300 steps


def test_a_medium_level_that_only_the_end_tells_is_taken_from_the_record(states, recorded, tmp_path):
    """As Ant's: it is known at the end of the training, and the record has the end; so training ends where the level is held."""
    unknown = replace(HOPPER, return_medium=None)
    states = [replace(state, task=unknown) for state in states]
    first, again, lines = tmp_path / "first", tmp_path / "again", []
    collect.collect(unknown, 0, [first, first], NEW, lambda: iter(states), lines.append)
    again.mkdir()
    copied(first, again, "hopper-replay")
    collect.collect(unknown, 0, [again, again], recorded, lambda: iter(states), lines.append)
    assert contents(again) == contents(first)
    told = [line for line in lines if "steps: greedy return" in line]
    assert len(told) == 8 + card(first, "replay")["replay_transitions"] / 50 < 16
    lines.clear()
    collect.collect(unknown, 0, [tmp_path, tmp_path], NEW, lambda: iter(states[:2]), lines.append)
    assert lines[2].endswith("are not made: the medium level is known only at the end of training")


def test_pools_of_another_training_than_the_recorded_one_name_no_run(whole, states, recorded, tmp_path):
    """Another processor rounds otherwise, here by a nudge: what is made anew says where its agent is not known from."""
    copied(whole, tmp_path, "hopper-replay", "hopper-expert")
    nudged = [{"environment_steps": 0, "returns": [0.0, 0.0]}, *recorded.curve[1:]]
    lines = collected(tmp_path, [replace(state, curve=nudged[: len(state.curve)]) for state in states], recorded)
    assert [line for line in lines if "name no run" in line] == [
        f"{RUN} is recorded, but training took another course here, as on another processor: the cards of its pools name no run"
    ]
    for quality in ("replay", "expert"):
        assert set(card(whole, quality)) - set(card(tmp_path, quality)) == {"run"}
        assert card(tmp_path, quality)["settings"] == card(whole, quality)["settings"]
    assert card(tmp_path, "medium") == card(whole, "medium")


def test_pools_of_two_seeds_are_not_mixed(whole, tmp_path):
    """Refused before anything is trained or made; in a folder of its own another seed is welcome."""
    copied(whole, tmp_path, *(name for name in NAMES if name != "hopper-medium"))
    before = contents(tmp_path)
    sentence = "seed 1 was requested, but hopper-medium in .* has seed 0: name another folder with --output"
    with pytest.raises(ValueError, match=sentence):
        collect.collect(HOPPER, 1, [tmp_path, tmp_path], NEW, never, print)
    assert contents(tmp_path) == before


def test_the_whole_replay_lies_in_a_folder_of_its_own(whole, states, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    collect.collect(HOPPER, 0, [small, large], NEW, lambda: iter(states), lambda line: None)
    assert contents(small) | contents(large) == contents(whole)
    assert {path.stem for path in large.iterdir()} == {"hopper-replay"}


def test_a_pool_is_never_overwritten(whole):
    rows = transitions.pack(load(whole, "random")).numpy()
    with pytest.raises(FileExistsError, match=r"hopper-random already exists in .*: pools are never overwritten"):
        pools.write(whole / "hopper-random.hdf5", rows, HOPPER, {})


# --- the command, from nothing to pools and a record ----------------------------------------------------------------------

WHICH = records.Run.parse(RUN)
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def command(folder, *options, arm=TINY):
    """Calls the command in a clone in `folder`, whose training is tiny and has two checkpoints; the pools go to folder/pools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "repository", lambda: folder)
        patch.setattr(run, "LONG", 100)
        patch.setattr(run, "CHECKPOINTS", 2)
        patch.setitem(tasks.TASKS, "hopper", HOPPER)
        patch.setitem(studies.ARMS, "sac_million", arm)
        commands.main(["collect", "hopper", "--output", str(folder / "pools"), *options])


def made(folder):
    """Returns the bytes of everything that is kept: pools, cards, and the record's rows and policies."""
    paths = [path for path in (folder / "data").rglob("seed0.*") if path.suffix != ".json"]  # the JSON has the wall seconds
    return contents(folder / "pools") | {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which the command went through without an interruption."""
    folder = tmp_path_factory.mktemp("clone")
    command(folder)
    return folder


@pytest.mark.slow
def test_one_training_makes_all_pools_and_the_record(clone):
    """And beside the record the actors that were evaluated: greedy, they earn the recorded returns, bit for bit."""
    assert {path.stem for path in (clone / "pools").iterdir()} == set(NAMES)
    root, medium = clone / "data" / "runs", card(clone / "pools", "replay")["replay_transitions"]
    metadata, rows = records.read_metadata(root, WHICH), records.read(root, WHICH).rows
    assert metadata["status"] == "finished"
    assert records.difference(metadata, TINY) is None
    evaluate, kept = tasks.Evaluator(HOPPER, [0], 2, TINY.learner.discount), records.policies(root, WHICH)
    assert set(kept) == {"medium", "final"}
    for name, steps in (("medium", medium), ("final", 400)):
        learner = training.learner(TINY, HOPPER, [7], arithmetic=run.FAST)
        training.set_actor(learner, kept[name])
        returns = evaluate(learner.policy, "finetune", steps).undiscounted_return[0]
        assert returns.tolist() == rows[rows.environment_steps == steps]["return"].tolist()


@pytest.mark.slow
def test_a_kill_changes_no_byte(clone, tmp_path):
    """kill -9 between two checkpoints, beyond the first; the same command goes on; pools, cards and record are equal."""
    process = multiprocessing.get_context("fork").Process(target=command, args=(tmp_path,))
    process.start()
    wait_until("an actor between two checkpoints", lambda: list(tmp_path.rglob("actors/250.safetensors")))
    process.kill()
    process.join()
    assert not list(tmp_path.rglob("*.csv"))
    command(tmp_path)
    assert made(tmp_path) == made(clone)


@pytest.mark.slow
def test_the_command_stops_where_it_is_told(clone, tmp_path):
    """With a checkpoint, and without a record; it goes on to the same end."""
    stop = card(clone / "pools", "replay")["replay_transitions"]
    command(tmp_path, "--to", str(stop - 20))  # ends at the first evaluation from there on
    (folder,) = {path.parent for path in tmp_path.rglob("checkpoints/paper/*/*.safetensors")}
    assert checkpoint.load(folder)[1]["environment_steps"] == stop
    assert {path.stem for path in (tmp_path / "pools").iterdir()} == set(NAMES) - {"hopper-expert"}
    assert not list((tmp_path / "data").rglob("*.json"))
    with pytest.raises(SystemExit, match="to is 500, but it must be from 0 to 400"):
        command(tmp_path, "--to", "500")
    command(tmp_path)
    assert made(tmp_path) == made(clone)


@pytest.mark.slow
def test_of_two_commands_at_once_the_second_waits_and_both_end_well(tmp_path, capfd):
    """It says so, and finds the pool that the first one made."""
    with runner.held([WHICH], TINY, tmp_path / "build" / "checkpoints" / "paper"):
        both = [multiprocessing.get_context("fork").Process(target=command, args=(tmp_path, "--to", "0")) for _ in range(2)]
        for process in both:
            process.start()
        said, waits = [], f"another process is training {RUN}: waiting until it ends\n"
        wait_until("both to wait", lambda: said.append(capfd.readouterr().out) or "".join(said).count(waits) == 2)
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    made = capfd.readouterr().out
    assert made.count("hopper-random is made") == made.count("hopper-random already exists in") == 1
    assert len(load(tmp_path / "pools", "random")) >= 150


@pytest.mark.slow
def test_what_is_recorded_is_not_trained_again(clone, tmp_path, monkeypatch):
    """Nor recorded: what `record` trained, `collect` makes the pools of without another step."""
    root, work = tmp_path / "data" / "runs", tmp_path / "build" / "checkpoints" / "paper"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LONG", 100)
        patch.setitem(tasks.TASKS, "hopper", HOPPER)
        patch.setitem(studies.ARMS, "sac_million", TINY)
        runner.train([WHICH], studies.PROFILES["paper"], root, work)
    monkeypatch.setattr(training, "finetune", lambda *rest: pytest.fail("it trains again"))
    before = WHICH.path(root).with_suffix(".json").read_bytes()
    command(tmp_path)
    assert made(tmp_path) == made(clone)
    assert WHICH.path(root).with_suffix(".json").read_bytes() == before


@pytest.mark.slow
def test_an_agent_that_becomes_nan_is_recorded(tmp_path, monkeypatch):
    """The record says that it diverged; its last actor that was evaluated stays."""
    evaluate = run.evaluate

    def poisoned(population, phase):
        evaluate(population, phase)
        if population.learner.environment_steps == 200:
            population.learner.agent.critics.network.layers[0][0][0] = float("nan")

    monkeypatch.setattr(run, "evaluate", poisoned)
    command(tmp_path)
    root = tmp_path / "data" / "runs"
    assert records.read_metadata(root, WHICH)["status"] == "diverged"
    assert set(records.policies(root, WHICH)) == {"final"}
    assert {path.stem for path in (tmp_path / "pools").iterdir()} == {"hopper-random"}


@pytest.mark.slow
def test_a_record_with_other_settings_gives_no_pools(clone, tmp_path):
    shutil.copytree(clone / "data", tmp_path / "data")
    with pytest.raises(SystemExit, match=rf"{RUN} is recorded with other settings: settings\.learner\.discount is 0\.99"):
        command(tmp_path, arm=replace(TINY, learner=replace(TINY.learner, discount=0.9)))


def test_the_command_writes_the_table_of_what_it_made(tmp_path, monkeypatch, capsys):
    """In the folder of the bundled pools, not where `--output` sends a copy."""
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    monkeypatch.setattr(read, "FOLDERS", (tmp_path / "small", tmp_path / "large"))
    commands.main(["collect", "hopper", "--to", "0", "--output", str(tmp_path / "copy")])
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"hopper-random.hdf5", "hopper-random.json"}
    commands.main(["collect", "hopper", "--to", "0"])
    assert "[hopper-random](hopper-random.json)" in (tmp_path / "small" / "README.md").read_text()
    assert capsys.readouterr().out.count("hopper-random is made") == 2
