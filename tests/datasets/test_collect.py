"""Collecting offline data: when it stops, what pools and cards contain, and that a killed command ends with the same bytes."""

import contextlib
import json
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import contents, wait_until
from made import diverges_at

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
    """Makes the pools tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "ROLLED_OUT", 150)
        patch.setattr(collect, "REPLAYED", 100)
        yield


@pytest.fixture(scope="module")
def states():
    """States of a tiny training run: before its first step and after each evaluation, every 50 steps up to 400."""
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
    """The tiny training run as data/runs holds it."""
    return collect.Recorded(RUN, states[-1].curve, finished=True)


def collected(folder, states, recorded=NEW):
    """Collects pools into `folder` from a training run with these states, and returns the reported lines."""
    lines = []
    collect.collect(HOPPER, 0, [folder, folder], recorded, lambda: iter(states), lines.append)
    return lines


def must_not_train():
    """Stands in for training that must not start."""
    pytest.fail("Training started, but nothing was left to train.")


@pytest.fixture(scope="module")
def whole(states, tmp_path_factory):
    """A folder with all pools, collected without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    collected(folder, states)
    return folder


def copy_pools(whole, folder, *omitted):
    """Copies all pools except those named in `omitted`."""
    for name, content in contents(whole).items():
        if name.partition(".")[0] not in omitted:
            (folder / name).write_bytes(content)


def load(folder, quality):
    """Returns the pool of one quality as a dataset."""
    return read.load(f"hopper-{quality}", [folder])


def card(folder, quality):
    return json.loads((folder / f"hopper-{quality}.json").read_text())


# --- when the medium level is reached -------------------------------------------------------------------------------------


def curve(*means):
    return [{"environment_steps": 5_000 * k, "returns": [mean - 1.0, mean + 1.0]} for k, mean in enumerate(means, start=1)]


def test_a_level_is_reached_after_two_consecutive_evaluations():
    assert not collect.holds(curve(2_000), 1_422.0)
    assert not collect.holds(curve(2_000, 1_000, 1_500), 1_422.0)
    assert collect.holds(curve(100, 1_422, 1_422), 1_422.0)
    assert collect.medium_steps(curve(2_000, 1_000, 1_500, 1_600, 1_700), 1_422.0) == 20_000
    assert collect.medium_steps(curve(2_000, 1_000, 1_500), 1_422.0) is None
    assert collect.medium_steps(curve(2_000, 1_500), None) is None


def test_the_medium_level_is_d4rls_or_a_third_of_the_final_score():
    """Ant's is known at the end: a third of the way from the return with score 0 to the mean of the last ten evaluations."""
    assert collect.medium_level(HOPPER, [], ended=False) == 19.0
    long_curve = curve(*[0.0] * 5, *[3_000.0, 4_000.0] * 5)
    assert collect.medium_level(ANT, long_curve, ended=False) is None
    level = collect.medium_level(ANT, long_curve, ended=True)
    assert level == pytest.approx(-325.6 + (3_500 + 325.6) / 3)
    score = tasks.normalised_score(ANT, np.array([level, 3_500.0]))
    assert score[0] == pytest.approx(score[1] / 3)


def test_a_curve_holds_the_online_returns_of_each_evaluation():
    rows = [
        {"phase": phase, "environment_steps": steps, "return": value}
        for phase, steps, value in [("pretrain", 0, 9.0), ("finetune", 0, 1.0), ("finetune", 0, 2.0), ("finetune", 5, 3.0)]
    ]
    expected = [{"environment_steps": 0, "returns": [1.0, 2.0]}, {"environment_steps": 5, "returns": [3.0]}]
    assert collect.curve(rows) == expected


# --- which transitions a pool holds ---------------------------------------------------------------------------------------


def test_only_complete_episodes_of_the_replay_buffer_are_used(states):
    """Each ends with a fall or a time-out, and no earlier step is marked as an end."""
    replay = states[-1].replay
    found = pools.episodes(replay)
    assert found[0][0] == 0
    for episode, following in zip(found, [*found[1:], None], strict=True):
        assert replay[episode[-1], -2:].any()
        assert not replay[episode[:-1], -2:].any()
        assert following is None or following[0] == episode[-1] + 1


def test_episodes_are_chosen_without_repeats_until_there_are_enough_rows(states):
    replay = states[-1].replay
    chosen = collect.choose_episodes(replay, 150, seed=0)
    assert sum(map(len, chosen)) >= 150
    assert len({episode[0] for episode in chosen}) == len(chosen)
    found = pools.episodes(replay)
    *before, _ = streams.numpy_generator(0, "pool").permutation(len(found))[: len(chosen)]
    assert sum(len(found[number]) for number in before) < 150, "The last one should be needed."
    other = collect.choose_episodes(replay, 150, seed=1)
    assert [episode[0] for episode in chosen] != [episode[0] for episode in other]
    every = np.concatenate(collect.choose_episodes(replay, 1_000, seed=0))
    np.testing.assert_array_equal(every, np.concatenate(pools.episodes(replay)))


def test_replay_pools_hold_what_the_agent_met_until_the_medium_level(whole, states):
    """`replay` holds all complete episodes up to then, and `medium-replay` a choice of them."""
    about = card(whole, "replay")
    steps = about["curve"][-1]["environment_steps"]
    assert about["replay_transitions"] == steps
    assert 200 < steps < 400, "The level should be reached before the training ends."
    assert all(np.mean(point["returns"]) >= 19.0 for point in about["curve"][-2:])
    met = states[-1].replay[:steps]
    finished = np.concatenate(pools.episodes(met))
    assert np.array_equal(transitions.pack(load(whole, "replay")).numpy(), met[finished])
    chosen = np.concatenate(collect.choose_episodes(met, 100, seed=0))
    assert np.array_equal(transitions.pack(load(whole, "medium-replay")).numpy(), met[chosen])


@pytest.mark.parametrize("quality", ["random", "medium", "expert"])
def test_roll_out_pools_hold_complete_episodes_of_their_policy(whole, states, quality):
    """Each action is what the policy draws for that state from the pool's random stream. The last episode is complete."""
    pool = load(whole, quality)
    check.check_dataset(HOPPER, pool)
    assert len(pool) >= 150
    assert pool.terminal[-1] | pool.truncated[-1]
    assert np.array_equal(pool.state[:1], tasks.Lockstep(HOPPER, [streams.integer(0, "pool", quality)]).state)
    before_last = np.flatnonzero(pool.terminal | pool.truncated)[-2] if len(np.unique(pool.episode)) > 1 else -1
    assert before_last + 1 < 150, "The pool should have no more episodes than needed."
    if quality == "random":
        act = collect.uniform(HOPPER)
    else:
        steps = {"medium": card(whole, "replay")["replay_transitions"], "expert": PLAN.steps}[quality]
        act = collect.explorer(HOPPER, TINY, states[-1].actor(steps))
    random = streams.numpy_generator(0, "pool", quality)
    assert np.array_equal(pool.action, np.stack([act(state, random) for state in pool.state]))


# --- from a training run to pools -----------------------------------------------------------------------------------------


def test_a_card_says_how_its_pool_was_made(whole):
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


def test_training_that_stops_early_makes_the_pools_it_can(whole, states, tmp_path):
    """It names the missing ones. Continuing from there gives the same bytes as training without a stop."""
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


def test_a_diverged_agent_makes_no_expert_pool(states, tmp_path):
    """After divergence, training yields its last state again. That state is reported only once."""
    lines = collected(tmp_path, [*states[:3], states[2]])
    assert [line.split()[0] for line in lines if "steps: greedy return" in line] == ["50", "100"]
    assert lines[-1] == "hopper-expert is not made: training has not reached its end"
    assert {path.stem for path in tmp_path.iterdir()} == {"hopper-random"}


def test_only_missing_pools_are_made(whole, states, recorded, tmp_path):
    """The missing one comes from the final checkpoint, without training. Each existing pool is kept and reported."""
    copy_pools(whole, tmp_path, "hopper-medium")
    lines = collected(tmp_path, states[-1:], recorded)
    assert contents(tmp_path) == contents(whole)
    kept = [line for line in lines if line.endswith("and stays as it is: pools are never overwritten")]
    assert sorted(line.split()[0] for line in kept) == sorted(set(NAMES) - {"hopper-medium"})
    collect.collect(HOPPER, 0, [tmp_path, tmp_path], recorded, must_not_train, lines.append)
    assert lines[-1] == f"{RUN} and all pools of hopper already exist and stay as they are"


def test_a_missing_replay_pool_is_trained_only_up_to_the_medium_level(whole, states, recorded, tmp_path):
    """A fresh clone lacks it, and the checkpoints too. The new pool has the same bytes."""
    copy_pools(whole, tmp_path, "hopper-replay")
    lines = collected(tmp_path, states, recorded)
    assert contents(tmp_path) == contents(whole)
    assert len([line for line in lines if "steps: greedy return" in line]) == 6  # 50, 100, ..., 300 steps


def test_a_medium_level_known_only_at_the_end_is_taken_from_the_record(states, recorded, tmp_path):
    """This is Ant's case. With the final return from the record, training can stop where the level is reached."""
    unknown = replace(HOPPER, return_medium=None)
    states = [replace(state, task=unknown) for state in states]
    first, again, lines = tmp_path / "first", tmp_path / "again", []
    collect.collect(unknown, 0, [first, first], NEW, lambda: iter(states), lines.append)
    again.mkdir()
    copy_pools(first, again, "hopper-replay")
    collect.collect(unknown, 0, [again, again], recorded, lambda: iter(states), lines.append)
    assert contents(again) == contents(first)
    evaluated = [line for line in lines if "steps: greedy return" in line]
    assert len(evaluated) == 8 + card(first, "replay")["replay_transitions"] / 50 < 16
    lines.clear()
    collect.collect(unknown, 0, [tmp_path, tmp_path], NEW, lambda: iter(states[:2]), lines.append)
    assert lines[2].endswith("are not made: the medium level is known only at the end of training")


def test_pools_of_training_that_differs_from_the_record_name_no_run(whole, states, recorded, tmp_path):
    """Another processor rounds differently, which a changed curve imitates here. Only the new pools' cards lack the run."""
    copy_pools(whole, tmp_path, "hopper-replay", "hopper-expert")
    nudged = [{"environment_steps": 0, "returns": [0.0, 0.0]}, *recorded.curve[1:]]
    lines = collected(tmp_path, [replace(state, curve=nudged[: len(state.curve)]) for state in states], recorded)
    assert [line for line in lines if "name no run" in line] == [
        f"{RUN} is recorded, but this training differs from it, as on another processor: the cards of its pools name no run"
    ]
    for quality in ("replay", "expert"):
        assert set(card(whole, quality)) - set(card(tmp_path, quality)) == {"run"}
        assert card(tmp_path, quality)["settings"] == card(whole, quality)["settings"]
    assert card(tmp_path, "medium") == card(whole, "medium")


def test_pools_of_two_seeds_are_not_mixed_in_one_folder(whole, tmp_path):
    """The second seed is refused before anything is trained or written."""
    copy_pools(whole, tmp_path, *(name for name in NAMES if name != "hopper-medium"))
    before = contents(tmp_path)
    sentence = "seed 1 was requested, but hopper-medium in .* has seed 0: name another folder with --output"
    with pytest.raises(ValueError, match=sentence):
        collect.collect(HOPPER, 1, [tmp_path, tmp_path], NEW, must_not_train, print)
    assert contents(tmp_path) == before


def test_the_replay_pool_goes_into_the_folder_for_large_pools(whole, states, tmp_path):
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
    """Runs `mbaug collect` with `folder` as the repository, tiny training and two checkpoints; pools go to folder/pools."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "repository", lambda: folder)
        patch.setattr(run, "LONG", 100)
        patch.setattr(run, "CHECKPOINTS", 2)
        patch.setitem(tasks.EVERY, "hopper", HOPPER)
        patch.setitem(studies.ARMS, "sac_million", arm)
        commands.main(["collect", "hopper", "--output", str(folder / "pools"), *options])


def results(folder):
    """Returns the bytes of all results: pools, cards, and the record's rows and policies."""
    paths = [path for path in (folder / "data").rglob("seed0.*") if path.suffix != ".json"]  # the JSON holds wall seconds
    return contents(folder / "pools") | {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository folder in which the command ran without interruption."""
    folder = tmp_path_factory.mktemp("clone")
    command(folder)
    return folder


@pytest.mark.slow
def test_one_training_run_makes_all_pools_and_the_record(clone):
    """It also keeps the evaluated actors. Acting greedily, they earn the recorded returns, bit for bit."""
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
def test_a_killed_command_ends_with_the_same_bytes_when_repeated(clone, tmp_path):
    """It is killed between two checkpoints. Repeating it gives equal pools, cards and record."""
    process = multiprocessing.get_context("fork").Process(target=command, args=(tmp_path,))
    process.start()
    wait_until("an actor between two checkpoints", lambda: list(tmp_path.rglob("actors/250.safetensors")))
    process.kill()
    process.join()
    assert not list(tmp_path.rglob("*.csv"))
    command(tmp_path)
    assert results(tmp_path) == results(clone)


@pytest.mark.slow
def test_the_to_option_ends_training_early(clone, tmp_path):
    """It leaves a checkpoint and no record. Without the option, the command continues to the usual end."""
    stop = card(clone / "pools", "replay")["replay_transitions"]
    command(tmp_path, "--to", str(stop - 20))  # training ends at the next evaluation
    (folder,) = {path.parent for path in tmp_path.rglob("checkpoints/paper/*/*.safetensors")}
    assert checkpoint.load(folder)[1]["environment_steps"] == stop
    assert {path.stem for path in (tmp_path / "pools").iterdir()} == set(NAMES) - {"hopper-expert"}
    assert not list((tmp_path / "data").rglob("*.json"))
    with pytest.raises(SystemExit, match="to is 500, but it must be from 0 to 400"):
        command(tmp_path, "--to", "500")
    command(tmp_path)
    assert results(tmp_path) == results(clone)


def printing_command(output, folder, *options):
    """Runs `command` and writes what it prints to the file `output`, so that two processes cannot mix their lines."""
    with output.open("w", buffering=1) as stream, contextlib.redirect_stdout(stream):
        command(folder, *options)


@pytest.mark.slow
def test_the_second_of_two_simultaneous_commands_waits_for_the_first(tmp_path):
    """It says so, and then finds the pool that the first one made."""
    waits = f"another process is training {RUN}: waiting until it ends\n"
    outputs, fork = [tmp_path / f"output-{number}.txt" for number in range(2)], multiprocessing.get_context("fork")
    with runner.held([WHICH], TINY, tmp_path / "build" / "checkpoints" / "paper"):
        both = [fork.Process(target=printing_command, args=(output, tmp_path, "--to", "0")) for output in outputs]
        for process in both:
            process.start()
        wait_until("both to wait", lambda: all(output.exists() and waits in output.read_text() for output in outputs))
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    printed = "".join(output.read_text() for output in outputs)
    assert printed.count("hopper-random is made") == printed.count("hopper-random already exists in") == 1
    assert len(load(tmp_path / "pools", "random")) >= 150


@pytest.mark.slow
def test_a_recorded_run_is_neither_trained_nor_recorded_again(clone, tmp_path, monkeypatch):
    """`collect` makes the pools of a run that `record` trained, without another step."""
    root, work = tmp_path / "data" / "runs", tmp_path / "build" / "checkpoints" / "paper"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LONG", 100)
        patch.setitem(tasks.EVERY, "hopper", HOPPER)
        patch.setitem(studies.ARMS, "sac_million", TINY)
        runner.train([WHICH], studies.PROFILES["paper"], root, work)
    monkeypatch.setattr(training, "finetune", lambda *rest: pytest.fail("The run is trained again."))
    before = WHICH.path(root).with_suffix(".json").read_bytes()
    command(tmp_path)
    assert results(tmp_path) == results(clone)
    assert WHICH.path(root).with_suffix(".json").read_bytes() == before


@pytest.mark.slow
def test_a_diverged_agent_is_recorded_with_its_last_evaluated_actor(tmp_path, monkeypatch):
    """A weight of the critics becomes NaN after the evaluation at 200 steps."""
    diverges_at(monkeypatch, 200)
    command(tmp_path)
    root = tmp_path / "data" / "runs"
    assert records.read_metadata(root, WHICH)["status"] == "diverged"
    assert set(records.policies(root, WHICH)) == {"final"}
    assert {path.stem for path in (tmp_path / "pools").iterdir()} == {"hopper-random"}


@pytest.mark.slow
def test_no_pools_are_made_from_a_record_with_other_settings(clone, tmp_path):
    shutil.copytree(clone / "data", tmp_path / "data")
    with pytest.raises(SystemExit, match=rf"{RUN} is recorded with other settings: settings\.learner\.discount is 0\.99"):
        command(tmp_path, arm=replace(TINY, learner=replace(TINY.learner, discount=0.9)))


def test_the_command_updates_the_readme_of_the_bundled_pools(tmp_path, monkeypatch, capsys):
    """It leaves the README alone when `--output` names another folder."""
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    monkeypatch.setattr(read, "FOLDERS", (tmp_path / "small", tmp_path / "large"))
    commands.main(["collect", "hopper", "--to", "0", "--output", str(tmp_path / "copy")])
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"hopper-random.hdf5", "hopper-random.json"}
    commands.main(["collect", "hopper", "--to", "0"])
    assert "[hopper-random](hopper-random.json)" in (tmp_path / "small" / "README.md").read_text()
    assert capsys.readouterr().out.count("hopper-random is made") == 2
