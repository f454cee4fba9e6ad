"""Checks of offline data against the simulator, dataset cards, the list of pools, and the import of other people's data."""

import json
import re
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import ROOT
from test_read import d4rl, episode, minari, pool, written

from mbaug import __main__ as commands
from mbaug import files, tasks
from mbaug.datasets import cards, check, imports, pools, read

HOPPER = tasks.find("hopper")


# --- data checked against the simulator -----------------------------------------------------------------------------------


def real(name="hopper-medium-replay", first=0, count=4_000):
    """Returns consecutive rows of a bundled pool; the last episode may be cut."""
    return read.load(name).rows(np.arange(first, first + count))


@pytest.mark.parametrize("largest", [1 + 1e-6, -1 - 1e-6])
def test_an_action_just_beyond_the_limit_from_rounding_is_accepted(largest):
    data = real()
    data.action[np.abs(data.action) == 1] = largest
    check.check_dataset(HOPPER, data)


@pytest.mark.parametrize("name", read.bundled([read.FOLDER]))
def test_bundled_pools_agree_with_the_installed_simulator(name):
    report = check.check_dataset(tasks.find(name.split("-")[0]), read.load(name))
    states, rewards = map(float, re.search("next states agree within (.*), rewards within (.*)$", report).groups())
    assert states < 1e-3
    assert rewards < (0.2 if name.startswith("ant") else 1e-4)  # Ant's reward uses positions that a state does not hold


def rolled(array, by):
    return np.roll(array, by, axis=0)


def one_in(number, array, other):
    """Returns a copy of `array` in which every `number`-th row comes from `other`."""
    mixed = array.copy()
    mixed[::number] = other[::number]
    return mixed


def resets(data):
    """Returns the next states, except that at episode ends they are the first state after the reset."""
    return np.where((data.terminal | data.truncated)[:, None], rolled(data.state, -1), data.next_state)


def swapped(states):
    order = np.arange(states.shape[1])
    order[[2, 3]] = order[[3, 2]]
    return states[:, order]


MIXED = "rows, columns or units are mixed up"
WRONG = {  # plausible mistakes in data: how to make each, and part of its error sentence
    "states of another size": (
        lambda d: {name: getattr(d, name)[:, 1:] for name in ("state", "next_state")},
        "hopper-medium-replay: state has 10 dimensions, but in Hopper-v5 it has 11: the data belong to another task",
    ),
    "actions of another size": (lambda d: {"action": d.action[:, 1:]}, "action has 2 dimensions, but in Hopper-v5 it has 3"),
    "a state far beyond all others": (
        lambda d: {"state": np.where(np.arange(len(d))[:, None] == 2, np.float32(3e38), d.state)},
        "1 states are more than 10,000 times as far from the median as 90 % of the states are (first: row 2): the file is",
    ),
    "an action beyond the limit": (
        lambda d: {"action": np.where(np.arange(len(d))[:, None] == 2, np.float32(-1.01), d.action)},
        "1 actions are outside [-1, 1] (first: row 2), but Hopper-v5 allows no such action: record the actions that the",
    ),
    "actions / 2": (lambda d: {"action": d.action / 2}, MIXED),
    "actions x 0.95": (lambda d: {"action": d.action * np.float32(0.95)}, "next states fit 1.05 times the actions: record the"),
    "actions of the row before": (lambda d: {"action": rolled(d.action, 1)}, MIXED),
    "states with other columns": (lambda d: {"state": swapped(d.state), "next_state": swapped(d.next_state)}, MIXED),
    "standardised states": (
        lambda d: {name: (getattr(d, name) - d.state.mean(0)) / d.state.std(0) for name in ("state", "next_state")},
        MIXED,
    ),
    "one row in 20 of another action": (
        lambda d: {"action": one_in(20, d.action, rolled(d.action, 100))},
        "next states differ by more than half a step: rows are mixed up",
    ),
    "resets for next states": (lambda d: {"next_state": resets(d)}, "of a step: they are not where the episodes ended"),
    "rewards of the row before": (lambda d: {"reward": rolled(d.reward, 1)}, "they belong to other rows or have another unit"),
    "rewards x 2": (lambda d: {"reward": 2 * d.reward}, "they belong to other rows or have another unit"),
    "one reward in 10 of another row": (lambda d: {"reward": one_in(10, d.reward, d.reward[::-1])}, "rewards differ by"),
    "all states clipped": (lambda d: {"state": d.state * 0 + 10}, "every state has a velocity of 10 or more, but in Hopper-v5"),
    "states beyond all bounds": (lambda d: {"next_state": d.next_state * np.float32(1e30)}, MIXED),
    "no falls": (lambda d: {"terminal": d.terminal & False, "truncated": d.terminal | d.truncated}, "a fall is not marked"),
    "time-outs as falls": (lambda d: {"terminal": one_in(99, d.terminal, ~d.terminal)}, "is marked as terminal without a fall"),
}


@pytest.mark.parametrize("case", WRONG)
def test_data_that_do_not_fit_the_task_are_refused(case):
    data = real()
    change, sentence = WRONG[case]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check.check_dataset(HOPPER, replace(data, **change(data)))


def test_data_of_another_task_with_the_same_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"replayed .* rows in HalfCheetah-v5, but next states differ by"):
        check.check_dataset(tasks.find("halfcheetah"), real("walker2d-medium-replay"))


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("friction", [0.5, 1.5])
def test_data_from_another_simulator_version_are_accepted_and_reported(name, friction, monkeypatch):
    """We change the friction, so that the feet slip differently, as in other versions of MuJoCo and in Walker2d-v4."""
    make = tasks.make

    def with_other_friction(task):
        environment = make(task)
        environment.unwrapped.model.geom_friction[:, 0] *= friction
        return environment

    monkeypatch.setattr(tasks, "make", with_other_friction)
    data = real(f"{name}-medium-replay", first=20_000)
    report = check.check_dataset(tasks.find(name), data)
    assert re.search(r"next states differ by .* of a step \(median\), as in another version of the simulator$", report)
    with pytest.raises(ValueError, match="they belong to other rows or have another unit"):
        check.check_dataset(tasks.find(name), replace(data, reward=rolled(data.reward, 1)))


# --- contents of a card ---------------------------------------------------------------------------------------------------


def test_coverage_counts_cells_of_height_and_forward_velocity():
    """Three cells are visited 2, 1 and 1 times: an entropy of 1.5 bits, like 2.83 equally visited cells."""
    state = np.zeros((4, 11), np.float32)
    state[:, 0] = [1.01, 1.04, 1.06, 1.01]
    state[:, HOPPER.state_names.index("forward velocity (m/s)")] = [0.1, 0.2, 0.1, -0.1]
    found = pools.coverage(HOPPER, state)
    assert found["visited"] == 3
    assert found["effective"] == pytest.approx(2**1.5)
    assert found["plane"] == ["height (m)", "forward velocity (m/s)"]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_coverage_uses_height_and_forward_velocity_in_every_task(name):
    task = tasks.find(name)
    plane = pools.coverage(task, np.zeros((1, task.state_size), np.float32))["plane"]
    assert plane == ["height (m)", "x velocity (m/s)" if name == "ant" else "forward velocity (m/s)"]


def test_the_bundled_pools_take_at_most_40_megabytes():
    assert sum(path.stat().st_size for path in read.bundled([read.FOLDER]).values()) <= 40e6


# --- the list of pools ----------------------------------------------------------------------------------------------------


def test_the_readme_of_the_bundled_pools_matches_their_cards():
    """`python -m mbaug data --readme` writes data/offline/README.md."""
    assert (ROOT / "data" / "offline" / "README.md").read_text(encoding="utf-8") == pools.readme()


def hopper_columns(episodes=4, **changed):
    """Returns real columns in D4RL's layout: three falls, then an episode cut by the file's end; `changed` as in `d4rl`."""
    pool = read.load("hopper-random")
    data = pool.rows(np.flatnonzero(pool.episode < episodes)[:-1])
    cut = np.arange(len(data)) == len(data) - 1
    columns = {"observations": data.state, "actions": data.action, "next_observations": data.next_state, "rewards": data.reward}
    columns |= {"terminals": data.terminal, "timeouts": cut} | changed
    return {key: value for key, value in columns.items() if value is not None}


ROWS = len(hopper_columns()["rewards"])


def import_small_file(folder, name="hopper-d4rl"):
    """Imports a small file in D4RL's layout and returns the pool's path."""
    return imports.import_dataset(str(written(folder, hopper_columns())), name, folder / "pools")


def test_the_readme_lists_the_numbers_and_the_origin_of_each_pool(tmp_path):
    """Its tables take them from the cards."""
    card = read.read_card(import_small_file(tmp_path))
    lines = [line for line in pools.readme(tmp_path / "pools").splitlines() if "hopper-d4rl" in line]
    cells, _, origin = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert origin[:2] == ["hopper-d4rl", f"`{card['command']}`"]
    assert origin[2:4] == [f"`{card['provenance']['commit'][:7]}`", card["provenance"]["cpu"]]
    assert origin[-1] == f"`{card['sha256'][:12]}`"
    assert cells[:3] == ["[hopper-d4rl](hopper-d4rl.json)", str(ROWS), "4"]
    assert cells[3] == f"{card['mean_return']:.1f}"


def test_the_readme_states_shared_versions_once_and_shows_the_strips(tmp_path):
    for name in ("hopper-one", "hopper-two"):
        card = read.read_card(import_small_file(tmp_path, name))
    text = f"MuJoCo {card['provenance']['mujoco']}. Licence: {card['licence']}."
    shared = pools.readme(tmp_path / "pools")
    assert shared.splitlines()[-1].startswith("All: Python ")
    assert shared.endswith(f"{text}\n")
    path = tmp_path / "pools" / "hopper-two.json"
    path.write_bytes(cards.sealed(card | {"provenance": card["provenance"] | {"mujoco": "2.1.0"}}))
    separate = pools.readme(tmp_path / "pools")
    assert [line.partition(":")[0] for line in separate.splitlines()[-2:]] == ["hopper-one", "hopper-two"]
    assert separate.endswith("MuJoCo 2.1.0. Licence: " + card["licence"] + ".\n")
    assert "| hopper-two | ![hopper-two, eight moments](hopper-two.png) |\n\n## How" in separate


def test_the_list_verifies_each_pool_and_the_command_names_those_that_fail(tmp_path, monkeypatch, capsys):
    """One pool is intact, one was changed and one has no card."""
    for name in ("hopper-whole", "hopper-changed", "hopper-alone"):
        import_small_file(tmp_path, name)
    folder = tmp_path / "pools"
    with open(folder / "hopper-changed.hdf5", "ab") as file:
        file.write(b"\0")
    (folder / "hopper-alone.json").unlink()
    table = pools.listing([folder])
    assert table.checksum.to_dict() == {"hopper-alone": "NO VALID CARD", "hopper-changed": "DIFFERS", "hopper-whole": "verified"}
    assert table.loc["hopper-whole", ["transitions", "episodes"]].tolist() == [ROWS, 4]
    listing = pools.listing
    monkeypatch.setattr(pools, "listing", lambda: listing([folder]))
    with pytest.raises(
        SystemExit, match=r"^mbaug: these pools do not match their cards: hopper-alone, hopper-changed; restore pool and card"
    ):
        commands.main(["data"])
    assert "hopper-whole" in capsys.readouterr().out


def test_the_data_command_lists_all_bundled_pools(capsys):
    commands.main(["data"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert set(read.bundled()) == {line.split()[0] for line in lines}


# --- import ---------------------------------------------------------------------------------------------------------------


def test_the_command_in_a_card_is_quoted_for_the_shell(tmp_path):
    path = written(tmp_path, hopper_columns(), "my data;ls.hdf5")
    card = read.read_card(imports.import_dataset(str(path), "hopper-mine", tmp_path / "pools"))
    assert card["command"] == "python -m mbaug data 'my data;ls.hdf5' --as hopper-mine"


def test_rows_marked_both_terminal_and_timed_out_are_reported(tmp_path):
    """Before the time limit they count as falls, which the simulator confirms."""
    lines, columns = [], hopper_columns()
    columns["timeouts"] = columns["timeouts"] | columns["terminals"]
    path = imports.import_dataset(str(written(tmp_path, columns)), "hopper-both", tmp_path / "pools", lines.append)
    sentence = (
        "3 rows are marked as terminal and as timed out: we read 3 before step 1,000 as falls and 0 at that step as time-outs"
    )
    assert lines[0] == sentence
    assert read.read_card(path)["terminals"] == 3


@pytest.mark.parametrize("changed", [{}, {"next_observations": None}], ids=["with next observations", "without"])
def test_importing_a_d4rl_file_makes_a_pool(tmp_path, capsys, changed):
    """The pool has the same transitions under a new name. Its card names the source, but no path of this machine."""
    path, folder = written(tmp_path, hopper_columns(**changed)), tmp_path / "pools"
    commands.main(["data", str(path), "--as", "hopper-d4rl", "--output", str(folder)])
    *lost, replayed, counts, where = capsys.readouterr().out.splitlines()
    left_out = "rows left out: 1, because without next_observations in the file their next states are unknown"
    assert lost == ([left_out] if changed else [])
    assert re.fullmatch(
        r"tiny-v2: replayed \d+ of \d+ rows in Hopper-v5: next states agree within .*, rewards within .*", replayed
    )
    assert counts == f"{ROWS if not changed else ROWS - 1} transitions: 4 episodes, 3 falls, 1 time-outs"
    assert where == str(folder / "hopper-d4rl.hdf5")
    given, made = read.load(path), read.load("hopper-d4rl", [folder])
    assert made.sha256 == given.sha256
    np.testing.assert_array_equal(made.episode, given.episode)
    card = read.read_card(folder / "hopper-d4rl.hdf5")
    assert card["source"] == path.name
    assert card["source_sha256"] == files.sha256(path.read_bytes())
    assert card["command"] == "python -m mbaug data tiny-v2.hdf5 --as hopper-d4rl"
    assert card["licence"] == "as its source says"
    assert str(tmp_path) not in json.dumps(card)
    with h5py.File(folder / "hopper-d4rl.hdf5") as file:
        assert "final_observations" in file


def test_next_states_are_kept_even_if_they_differ_from_the_following_states(tmp_path):
    """A recorder may round next observations differently from the observations of the following row. The import keeps both."""
    columns = hopper_columns()
    columns["next_observations"] = columns["next_observations"] + np.float32(1e-5)
    path = imports.import_dataset(str(written(tmp_path, columns)), "hopper-odd", tmp_path / "pools")
    np.testing.assert_array_equal(read.load("hopper-odd", [path.parent]).next_state, columns["next_observations"])


def test_importing_a_minari_dataset_makes_a_pool(tmp_path, monkeypatch):
    first = read.load("hopper-random")
    first = first.rows(np.flatnonzero(first.episode == 0))
    states = np.concatenate([first.state, first.next_state[-1:]])
    minari(monkeypatch, [episode(states, first.terminal, first.action, first.reward)])
    path = imports.import_dataset("minari:mujoco/hopper/medium-v0", "hopper-minari", tmp_path)
    assert read.load("hopper-minari", [tmp_path]).sha256 == first.sha256
    card = read.read_card(path)
    assert (card["source"], card["source_sha256"]) == ("minari:mujoco/hopper/medium-v0", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ant-d4rl", "state has 11 dimensions, but in Ant-v5 it has 27"),
        ("hoper-d4rl", "a pool cannot have the name 'hoper-d4rl': it must be a task's name, a hyphen, and letters"),
        ("hopper-", "a pool cannot have the name 'hopper-': it must"),
        ("hopper-../x", "a pool cannot have the name 'hopper-../x': it must"),
        ("hopper-x.hdf5", "a pool cannot have the name 'hopper-x.hdf5': it must be .*, and must not end in .hdf5 or .h5"),
        (
            "hopper-medium",
            "hopper-medium is reserved for this project's own pools: choose another name, e.g. hopper-medium-imported",
        ),
    ],
)
def test_an_import_with_a_wrong_name_or_of_another_tasks_data_writes_nothing(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        import_small_file(tmp_path, name)
    assert not (tmp_path / "pools").exists()


def test_an_import_never_overwrites_a_pool(tmp_path):
    before = import_small_file(tmp_path).read_bytes()
    with pytest.raises(FileExistsError, match=r"hopper-d4rl already exists in .*: pools are never overwritten"):
        import_small_file(tmp_path)
    assert import_small_file(tmp_path, "hopper-other").read_bytes() == before


# --- cards ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"terminals": -1}, "terminals is -1, but it must be 0 or above"),
        ({"sha256": "abc"}, "sha256 is 'abc', but it must be 64 hexadecimal digits"),
        ({"settings": {"algorithm": "sca"}}, "settings lacks learner, model"),
    ],
)
def test_a_card_with_a_wrong_value_is_refused(tmp_path, changed, sentence):
    """Each function that reads a card raises an error that names the file and the wrong key."""
    for suffix in ("hdf5", "json"):
        shutil.copy(read.FOLDER / f"hopper-random.{suffix}", tmp_path)
    path = tmp_path / "hopper-random.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    whole = f"hopper-random.json: {sentence}"
    for reader in (pools.readme, lambda folder: read.load("hopper-random", [folder])):
        with pytest.raises(read.DatasetDamaged, match=re.escape(whole)):
            reader(tmp_path)
    assert pools.listing([tmp_path]).checksum.tolist() == ["NO VALID CARD"]


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"visited": 74', b'"visited": 75'), (b'"card_sha256": "', b'"run": "')],
    ids=["a number", "the digest itself"],
)
def test_an_edited_card_is_refused(tmp_path, old, new):
    """A card holds its own SHA-256."""
    for suffix in ("hdf5", "json"):
        shutil.copy(read.FOLDER / f"hopper-random.{suffix}", tmp_path)
    path = tmp_path / "hopper-random.json"
    assert path.read_bytes().count(old) == 1
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(read.DatasetDamaged, match=f"{re.escape(str(path))}: its content does not match its SHA-256"):
        read.load("hopper-random", [tmp_path])


@pytest.mark.parametrize("name", ["hopper-random", "hopper-medium", "hopper-medium-replay"])
def test_the_error_for_an_incomplete_card_names_the_missing_key(name):
    """We try each kind of card that this project writes. Keys in `OPTIONAL` may be missing."""
    card = read.read_card(read.FOLDER / f"{name}.hdf5")
    for key in card.keys() - cards.OPTIONAL:
        with pytest.raises(ValueError, match=f"^a.json: the content lacks {key}; allowed are"):
            cards.checked({other: value for other, value in card.items() if other != key}, "a.json")


def test_a_pool_with_an_infinite_mean_return_is_not_written(tmp_path):
    """The sum of two rewards of 3e38 overflows float32, and JSON has no infinity."""
    columns = d4rl()
    columns["rewards"][:2] = 3e38
    with pytest.raises(ValueError, match="the card of hopper-large: mean_return is inf, but it must be a finite number"):
        pool(tmp_path, "hopper-large", columns)
    assert not list(tmp_path.iterdir())
