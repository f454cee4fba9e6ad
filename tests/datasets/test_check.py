"""What a card says of a pool, that pools are listed and verified, and that data of others are checked and become one."""

import json
import math
import re
import shutil

import h5py
import numpy as np
import pytest
from conftest import ROOT
from test_read import d4rl, episode, minari, pool, written

from mbaug import __main__ as commands
from mbaug import files, tasks
from mbaug.datasets import cards, check, pools, read
from mbaug.method import transitions

HOPPER = tasks.find("hopper")


# --- data that meet a task ------------------------------------------------------------------------------------------------


def dataset(state=11, action=3, largest=1.0):
    """Returns four transitions with these sizes, of which the third has the largest action."""
    actions = np.zeros((4, action), np.float32)
    actions[2] = largest
    flags, states, zeros = np.array([False, False, False, True]), np.zeros((4, state), np.float32), np.zeros(4, int)
    return transitions.Dataset("made", states, actions, np.zeros(4, np.float32), states, flags, ~flags & False, zeros, zeros)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"state": 17}, "made: state has 17 dimensions, but in Hopper-v5 it has 11: these are another task's data"),
        ({"action": 6}, "made: action has 6 dimensions, but in Hopper-v5 it has 3"),
        ({"largest": -1.01}, r"made: 1 actions are beyond \[-1, 1\] \(first: row 2\), but Hopper-v5 allows no such action"),
    ],
)
def test_data_that_are_not_the_task_s_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        check.check_dataset(HOPPER, dataset(**given))


@pytest.mark.parametrize("largest", [1.0, -1.0, 1 + 1e-6])
def test_data_that_are_the_task_s_are_taken(largest):
    """Also where rounding has carried an action just beyond the limit."""
    check.check_dataset(HOPPER, dataset(largest=largest))


# --- what a card says -----------------------------------------------------------------------------------------------------


def test_coverage_counts_cells_of_height_and_forward_velocity():
    """Three cells, the first twice: an entropy of 1.5 bits, so as diverse as 2.83 cells equally often visited."""
    state = np.zeros((4, 11), np.float32)
    state[:, 0] = [1.01, 1.04, 1.06, 1.01]
    state[:, HOPPER.state_names.index("forward velocity (m/s)")] = [0.1, 0.2, 0.1, -0.1]
    found = pools.coverage(HOPPER, state)
    assert found["visited"] == 3
    assert found["effective"] == pytest.approx(2**1.5)
    assert found["plane"] == ["height (m)", "forward velocity (m/s)"]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_plane_is_that_of_height_and_forward_velocity_in_every_task(name):
    task = tasks.find(name)
    plane = pools.coverage(task, np.zeros((1, task.state_size), np.float32))["plane"]
    assert plane == ["height (m)", "x velocity (m/s)" if name == "ant" else "forward velocity (m/s)"]


def test_all_bundled_pools_together_are_small_enough_to_ship():
    assert sum(path.stat().st_size for path in read.bundled([read.FOLDER]).values()) <= 40e6


# --- list -----------------------------------------------------------------------------------------------------------------


def test_the_table_of_the_bundled_pools_is_that_of_their_cards():
    """data/offline/README.md is written by `python -m mbaug data --readme`."""
    assert (ROOT / "data" / "offline" / "README.md").read_text(encoding="utf-8") == pools.readme()


def made(folder, name="hopper-d4rl"):
    """Imports a tiny file of D4RL's layout and returns the path of the pool."""
    return check.import_dataset(str(written(folder, d4rl())), name, folder / "pools")


def test_each_table_has_a_line_for_each_pool(tmp_path):
    """With its numbers and its origin: what stands in the card."""
    card = read.read_card(made(tmp_path))
    lines = [line for line in pools.readme(tmp_path / "pools").splitlines() if "hopper-d4rl" in line]
    cells, origin = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert origin[:3] == ["hopper-d4rl", f"`{card['command']}`", "–"]
    assert origin[3] == f"`{card['provenance']['commit'][:7]}`"
    assert f"mujoco {card['provenance']['mujoco']}" in origin[5]
    assert origin[-1] == card["licence"]
    assert cells[:3] == ["[hopper-d4rl](hopper-d4rl.json)", "11", "4"]
    assert cells[3] == f"{card['mean_return']:.1f}"
    assert cells[-1] == f"`{card['sha256'][:12]}`"


def test_what_is_there_is_listed_and_verified(tmp_path, monkeypatch, capsys):
    """A whole pool, one that was changed, one without a card: each is told, and the command ends in a sentence."""
    for name in ("hopper-whole", "hopper-changed", "hopper-alone"):
        made(tmp_path, name)
    folder = tmp_path / "pools"
    with open(folder / "hopper-changed.hdf5", "ab") as file:
        file.write(b"\0")
    (folder / "hopper-alone.json").unlink()
    table = pools.listing([folder])
    assert table.checksum.to_dict() == {"hopper-alone": "NO CARD", "hopper-changed": "DIFFERS", "hopper-whole": "verified"}
    assert table.loc["hopper-whole", ["transitions", "episodes"]].tolist() == [11, 4]
    listing = pools.listing
    monkeypatch.setattr(pools, "listing", lambda: listing([folder]))
    with pytest.raises(SystemExit, match=r"^mbaug: not as their cards say: hopper-alone, hopper-changed; restore"):
        commands.main(["data"])
    assert "hopper-whole" in capsys.readouterr().out


def test_the_bundled_pools_are_listed(capsys):
    commands.main(["data"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert set(read.bundled()) == {line.split()[0] for line in lines}


# --- import ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"next_observations": None}], ids=["with next observations", "without"])
def test_a_d4rl_file_becomes_a_pool(tmp_path, capsys, changed):
    """The same transitions under a new name, and a card that says where they came from, without a path of this machine."""
    path, folder = written(tmp_path, d4rl(**changed)), tmp_path / "pools"
    commands.main(["data", str(path), "--as", "hopper-d4rl", "--output", str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "hopper-d4rl.hdf5")
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


def test_next_states_that_are_not_the_states_after_are_kept(tmp_path):
    """A recorder may give other next observations than it gives as observations a row later; nothing of that is lost."""
    columns = d4rl()
    columns["next_observations"] = columns["next_observations"] + 1
    path = check.import_dataset(str(written(tmp_path, columns)), "hopper-odd", tmp_path / "pools")
    np.testing.assert_array_equal(read.load("hopper-odd", [path.parent]).next_state, columns["next_observations"])


def test_a_minari_set_becomes_a_pool(tmp_path, monkeypatch):
    minari(monkeypatch, [episode(np.arange(44.0).reshape(4, 11), [False, False, True])])
    path = check.import_dataset("minari:mujoco/hopper/medium-v0", "hopper-minari", tmp_path)
    assert read.load("hopper-minari", [tmp_path]).state.shape == (3, 11)
    card = read.read_card(path)
    assert (card["source"], card["source_sha256"]) == ("minari:mujoco/hopper/medium-v0", None)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ant-d4rl", "state has 11 dimensions, but in Ant-v5 it has 27"),
        ("hoper-d4rl", "a pool's name is 'hoper-d4rl', but it must be a task's, a hyphen and a word"),
        ("hopper", "a pool's name is 'hopper', but"),
        ("hopper-", "a pool's name is 'hopper-', but"),
        ("hopper-../x", "a pool's name is 'hopper-../x', but"),
        ("hopper-medium", "hopper-medium is a name of this project's own pools: choose another one, e.g. hopper-medium-imported"),
    ],
)
def test_a_name_or_data_that_do_not_fit_are_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(tmp_path, name)
    assert not (tmp_path / "pools").exists()


def test_an_imported_pool_is_never_overwritten(tmp_path):
    before = made(tmp_path).read_bytes()
    with pytest.raises(FileExistsError, match=r"hopper-d4rl is in .* already: a pool is never overwritten"):
        made(tmp_path)
    assert made(tmp_path, "hopper-other").read_bytes() == before


# --- cards ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"terminals": None}, "terminals is None, but it must be a whole number"),
        ({"terminals": -1}, "terminals is -1, but it must be 0 or above"),
        ({"terminals": 890}, "terminals and timeouts are 890, but they must be as many as the episodes"),
        ({"mean_return": math.inf}, "mean_return is inf, but it must be a finite number"),
        ({"sha256": "abc"}, "sha256 is 'abc', but it must be 64 hexadecimal digits"),
        ({"file": "../x.hdf5"}, "file is '../x.hdf5', but it must be the name with .hdf5"),
        ({"task": "Hoper-v5"}, "unknown task 'Hoper-v5': did you mean 'Hopper-v5'"),
        ({"colour": "red"}, "the content has the unknown 'colour'; allowed are name, task"),
        ({"source": "x.hdf5"}, "a card has either a seed or a source"),
        ({"settings": {"algorithm": "sca"}}, "settings lacks learner, model"),
        ({"d4rl": {"return": 3}}, "d4rl is {'return': 3}, but it must be of transitions, episodes, mean_return"),
        ({"state_coverage": {"plane": []}}, "state_coverage lacks cell, visited, effective"),
        ({"provenance": []}, r"provenance is [], but it must be Provenance(...)"),
    ],
)
def test_a_card_is_read_strictly(tmp_path, changed, sentence):
    """Whatever is wrong is named, with its file and key, by everything that reads cards."""
    for suffix in ("hdf5", "json"):
        shutil.copy(read.FOLDER / f"hopper-random.{suffix}", tmp_path)
    path = tmp_path / "hopper-random.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    whole = f"hopper-random.json: {sentence}"
    for reader in (pools.readme, lambda folder: read.load("hopper-random", [folder])):
        with pytest.raises(read.DatasetDamaged, match=re.escape(whole)):
            reader(tmp_path)
    assert pools.listing([tmp_path]).checksum.tolist() == ["NO CARD"]


@pytest.mark.parametrize("name", ["hopper-random", "hopper-medium", "hopper-medium-replay"])
def test_a_key_that_a_card_lacks_is_named(name):
    """Of every kind of our own cards; what only some have may be missing."""
    card = read.read_card(read.FOLDER / f"{name}.hdf5")
    for key in card.keys() - cards.OPTIONAL:
        with pytest.raises(ValueError, match=f"^a.json: the content lacks {key}; allowed are"):
            cards.checked({other: value for other, value in card.items() if other != key}, "a.json")


def test_a_pool_whose_card_would_not_be_json_is_not_written(tmp_path):
    """Two rewards of 3e38 are no finite return in float32, and JSON has no infinity."""
    columns = d4rl()
    columns["rewards"][:2] = 3e38
    with pytest.raises(ValueError, match="the card of hopper-large: mean_return is inf, but it must be a finite number"):
        pool(tmp_path, "hopper-large", columns)
    assert not list(tmp_path.iterdir())
