"""Reading D4RL's files, the project's own pools and Minari datasets, and clear errors for bad input."""

import hashlib
import sys
import types
import zlib

import h5py
import numpy as np
import pytest

from mbaug import tasks
from mbaug.datasets import hdf5, pools, read
from mbaug.method import transitions
from mbaug.provenance import provenance

TASK = tasks.find("hopper")
# Two episodes end in a fall, the third times out, and the last is unfinished where the file ends.
TERMINALS = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
TIMEOUTS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
EPISODES = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


@pytest.fixture(autouse=True)
def _short(request, monkeypatch):
    """Sets the time limit to three steps, so that data are tiny, except in tests that read bundled pools."""
    if "bundled" not in request.node.name:
        monkeypatch.setattr(tasks, "STEPS", 3)


def d4rl(seed=0, **changed):
    """Returns the columns of a tiny file in D4RL v2's layout; `changed` replaces columns, and None removes one."""
    rng = np.random.default_rng(seed)
    rows = len(TERMINALS)
    observations = rng.normal(size=(rows, 11)).astype(np.float32)
    next_observations = np.roll(observations, -1, axis=0)
    ends = TERMINALS | TIMEOUTS
    ends[-1] = True
    next_observations[ends] = rng.normal(size=(ends.sum(), 11))
    columns = {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (rows, 3)).astype(np.float32),
        "next_observations": next_observations,
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": TERMINALS,
        "timeouts": TIMEOUTS,
        "infos/qpos": np.zeros((rows, 6)),
        "infos/qvel": np.zeros((rows, 6)),
        "infos/action_log_probs": np.zeros(rows),
        "metadata/algorithm": np.bytes_("SAC"),
        "metadata/iteration": np.int64(10),
    }
    return {key: value for key, value in (columns | changed).items() if value is not None}


def written(folder, columns, name="tiny-v2.hdf5"):
    """Writes gzipped columns, as D4RL does, and returns the path."""
    with h5py.File(folder / name, "w") as file:
        for key, value in columns.items():
            file.create_dataset(key, data=value, compression="gzip" if np.ndim(value) else None)
    return folder / name


# --- D4RL -----------------------------------------------------------------------------------------------------------------


def test_reading_a_d4rl_file_keeps_its_values(tmp_path):
    columns = d4rl()
    dataset = read.load(written(tmp_path, columns))
    assert dataset.name == "tiny-v2"
    fields = dataset.state, dataset.action, dataset.reward, dataset.next_state
    for array, key in zip(fields, ("observations", "actions", "rewards", "next_observations"), strict=True):
        np.testing.assert_array_equal(array, columns[key])
        assert array.dtype == np.float32
    np.testing.assert_array_equal(dataset.terminal, TERMINALS)
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncated), [8, 10])  # timed out; unfinished at the file's end
    np.testing.assert_array_equal(dataset.episode, EPISODES)


def test_without_next_observations_rows_with_an_unknown_next_state_are_dropped(tmp_path):
    columns = d4rl(next_observations=None)
    dataset = read.load(str(written(tmp_path, columns)))
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9]
    np.testing.assert_array_equal(dataset.state, columns["observations"][kept])
    np.testing.assert_array_equal(dataset.reward, columns["rewards"][kept])
    successors = [1, 2, 2, 4, 5, 5, 7, 8, 10]  # terminal rows get their own state, which no target uses
    np.testing.assert_array_equal(dataset.next_state, columns["observations"][successors])
    np.testing.assert_array_equal(dataset.terminal, TERMINALS[kept])
    np.testing.assert_array_equal(np.flatnonzero(dataset.truncated), [7, 8])
    np.testing.assert_array_equal(dataset.episode, np.array(EPISODES)[kept])


@pytest.mark.parametrize("forces", [84, 78], ids=["D4RL", "Gymnasium v5"])
def test_contact_forces_are_removed_from_ants_states(tmp_path, forces):
    rng = np.random.default_rng(0)
    rows, ant = len(TERMINALS), tasks.find("ant")
    tiny = d4rl()
    forced = rng.normal(size=(rows + 1, 27 + forces)).astype(np.float32)
    states = {"observations": forced[:-1], "next_observations": forced[1:].copy()}
    states["next_observations"][tiny["terminals"] | tiny["timeouts"]] += 1
    dataset = read.load(written(tmp_path, d4rl(**states, actions=rng.uniform(-1, 1, (rows, 8)))))
    assert dataset.state.shape[1] == ant.state_size
    np.testing.assert_array_equal(dataset.state, states["observations"][:, :27])
    np.testing.assert_array_equal(dataset.next_state, states["next_observations"][:, :27])


def test_flags_may_be_stored_as_numbers(tmp_path):
    columns = d4rl(terminals=TERMINALS.astype(np.float32), timeouts=TIMEOUTS.astype(np.uint8))
    np.testing.assert_array_equal(read.load(written(tmp_path, columns)).terminal, TERMINALS)


# --- the project's own pools ----------------------------------------------------------------------------------------------


CARD = {"command": "made", "licence": "ours", "seed": 0, "policy": "made", "provenance": provenance("float32")}


def pool(folder, name="hopper-tiny", columns=None):
    """Writes a pool with `pools.write`, with different rows for each name, and returns the packed rows that it holds."""
    columns = columns or d4rl(zlib.crc32(name.encode()))
    flags = (columns[key][:, None] for key in ("rewards", "terminals", "timeouts"))
    parts = *(columns[key] for key in ("observations", "actions", "next_observations")), *flags
    rows = np.concatenate(parts, axis=1, dtype=np.float32)
    pools.write(folder / f"{name}.hdf5", rows, TASK, CARD)
    return rows[np.concatenate(pools.episodes(rows))]


@pytest.mark.parametrize("by", ["name", "path"])
def test_a_pool_is_read_back_as_it_was_written(tmp_path, by):
    rows = pool(tmp_path)
    name = "hopper-tiny" if by == "name" else tmp_path / "hopper-tiny.hdf5"
    dataset = read.load(name, [tmp_path])
    assert dataset.name == "hopper-tiny"
    assert len(dataset) == 9  # the unfinished episode is left out
    np.testing.assert_array_equal(transitions.pack(dataset).numpy(), rows)
    np.testing.assert_array_equal(dataset.episode, EPISODES[:9])


@pytest.mark.parametrize("path", read.bundled([read.FOLDER]).values(), ids=lambda path: path.stem)
def test_the_card_of_a_bundled_pool_describes_its_transitions(path):
    """We compute the card's numbers from the transitions again."""
    card, dataset = read.read_card(path), read.load(path.stem)
    task = tasks.find(path.stem.split("-")[0])
    rows = transitions.pack(dataset).numpy()
    found = pools.describe(task, rows)
    for key in ("transitions", "episodes", "terminals", "timeouts"):
        assert card[key] == found[key]
    for key in ("mean_return", "mean_score"):
        assert card[key] == pytest.approx(found[key])
    assert card["return_quantiles"] == pytest.approx(found["return_quantiles"])
    assert card["state_coverage"]["visited"] == found["state_coverage"]["visited"]
    assert card["d4rl"] == pools.D4RL.get(path.stem)
    assert len(np.unique(dataset.episode)) == card["episodes"]


def test_a_pool_that_differs_from_its_card_is_refused(tmp_path):
    pool(tmp_path)
    with open(tmp_path / "hopper-tiny.hdf5", "ab") as file:
        file.write(b"\0")
    with pytest.raises(read.DatasetDamaged, match=r"does not match the SHA-256 in its card, hopper-tiny\.json: restore the pool"):
        read.load("hopper-tiny", [tmp_path])


@pytest.mark.parametrize("card", [None, "", "{}", "[]"])
def test_a_pool_whose_card_is_missing_or_incomplete_is_refused(tmp_path, card):
    pool(tmp_path)
    path = tmp_path / "hopper-tiny.json"
    path.write_text(card) if card is not None else path.unlink()
    with pytest.raises(read.DatasetDamaged, match=r"hopper-tiny.hdf5 has no valid card: .*/hopper-tiny.json.*; restore the pool"):
        read.load("hopper-tiny", [tmp_path])


def test_a_pool_that_lacks_a_final_observation_is_refused(tmp_path):
    pool(tmp_path)
    with h5py.File(tmp_path / "hopper-tiny.hdf5", "a") as file:
        final = file["final_observations"][:-1]
        del file["final_observations"]
        file["final_observations"] = final
    with pytest.raises(ValueError, match="there are 2 final_observations for 3 ends of episodes, but each end must have one"):
        read.load(tmp_path / "hopper-tiny.hdf5")


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_the_error_for_an_unknown_name_suggests_the_nearest_one(tmp_path):
    pool(tmp_path, "hopper-medium-replay")
    pool(tmp_path, "ant-medium")
    assert list(read.bundled([tmp_path])) == ["ant-medium", "hopper-medium-replay"]
    with pytest.raises(ValueError, match=r"unknown dataset 'hoper-medium-repaly': did you mean 'hopper-medium-replay'\?"):
        read.load("hoper-medium-repaly", [tmp_path])


@pytest.mark.parametrize(
    ("name", "lacking", "command"),
    [
        ("hopper-replay", "hopper-replay", "python -m mbaug collect hopper"),
        ("ant-random", "ant-random", "python -m mbaug collect ant --to 0"),
        ("walker2d-medium-expert", "walker2d-medium", "python -m mbaug collect walker2d"),
    ],
)
def test_the_error_for_a_missing_pool_names_the_command_that_makes_it(tmp_path, name, lacking, command):
    with pytest.raises(FileNotFoundError, match=f"^dataset {lacking} does not exist: run `{command}` to make it$"):
        read.load(name, [tmp_path])


def test_medium_expert_joins_the_medium_and_the_expert_pool(tmp_path):
    medium, expert = (pool(tmp_path, f"hopper-{quality}") for quality in ("medium", "expert"))
    both = read.load("hopper-medium-expert", [tmp_path])
    assert both.name == "hopper-medium-expert"
    assert both.part.tolist() == [0] * 9 + [1] * 9
    assert both.episode.tolist() == [*EPISODES[:9], *(episode + 3 for episode in EPISODES[:9])]
    rows = transitions.pack(both).numpy()
    np.testing.assert_array_equal(rows[both.part == 0], medium)
    np.testing.assert_array_equal(rows[both.part == 1], expert)
    assert transitions.draw(both, 10, seed=0)[0].part.sum() == 5


def test_the_first_folder_that_holds_a_pool_is_used(tmp_path):
    """The second folder is for pools that are too large to commit."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, name in [(second, "hopper-replay"), (second, "hopper-medium"), (first, "hopper-medium")]:
        pool(folder, name)
    found = {"hopper-medium": first / "hopper-medium.hdf5", "hopper-replay": second / "hopper-replay.hdf5"}
    assert read.bundled([first, second]) == found
    assert len(read.load("hopper-replay", [first, second])) == 9
    assert read.FOLDERS[1].relative_to(read.FOLDERS[0].parents[1]).as_posix() == "build/offline"


@pytest.mark.parametrize("name", ["absent.hdf5", "folder/absent", "folder.hdf5"])
def test_the_error_for_a_path_without_a_file_says_what_to_give(in_tmp_path, name):
    (in_tmp_path / "folder.hdf5").mkdir()
    what = f"{name} is not a regular file" if name == "folder.hdf5" else f"there is no file {name}"
    with pytest.raises(FileNotFoundError, match=f"^{what}: give the path of a D4RL v2 file or"):
        read.load(name)


COLUMNS = ("observations", "actions", "rewards", "terminals", "timeouts")
BAD = {
    "no timeouts": ({"timeouts": None}, "lacks timeouts: a D4RL v2 file has observations, actions, rewards"),
    "NaN": ({"rewards": np.full(11, np.nan)}, r"reward holds NaN or infinity in 11 rows \(first: row 0\)"),
    "too large for float32": ({"rewards": np.full(11, 1e300)}, "reward holds NaN or infinity in 11 rows"),
    "rows": ({"actions": np.zeros((10, 3))}, "actions has 10 rows, but observations has 11"),
    "columns of rewards": ({"rewards": np.zeros((11, 1))}, r"rewards has the shape \(11, 1\), but it must have 1 axes"),
    "states of two sizes": (
        {"next_observations": np.zeros((11, 4))},
        r"next_observations has the shape \(11, 4\), but observations has the shape \(11, 11\): the numbers of columns must",
    ),
    "flags": ({"terminals": np.full(11, 0.5)}, "terminals has values other than 0 and 1"),
    "no end": (
        {"terminals": np.zeros(11, bool), "timeouts": np.zeros(11, bool)},
        "terminals and timeouts are false in every row",
    ),
    "no row": ({key: np.zeros((0, 2)[: hdf5.DIMENSIONS[key]]) for key in COLUMNS}, "observations has no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lacks_d4rls_layout_is_refused(tmp_path, case):
    changed, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence):
        read.load(written(tmp_path, d4rl(**changed)))


def test_a_file_in_which_no_next_state_is_known_is_refused(tmp_path):
    columns = {key: column[8:9] for key, column in d4rl().items() if key in COLUMNS}
    with pytest.raises(ValueError, match="no row has a known next state: without next_observations"):
        read.load(written(tmp_path, columns))


def test_the_error_for_a_truncated_file_says_how_much_of_it_is_here(tmp_path):
    path = written(tmp_path, d4rl())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    sentence = f"is incomplete: it has {len(content) // 2:,} of {len(content):,} bytes"
    with pytest.raises(read.DatasetDamaged, match=sentence):
        read.load(path)


def test_a_file_with_an_overwritten_chunk_is_reported_as_damaged(tmp_path):
    path = written(tmp_path, d4rl())
    with h5py.File(path) as file:
        chunk = file["observations"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(read.DatasetDamaged, match="is damaged, and parts of it cannot be read"):
        read.load(path)


def test_the_error_for_an_unreadable_file_gives_the_systems_reason(tmp_path, monkeypatch):
    def refuse(path, mode, locking):
        raise PermissionError(13, "Unable to synchronously open file (unable to open file: errno = 13, flags = 0)")

    path = written(tmp_path, d4rl())
    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(PermissionError, match=r"cannot read .*tiny-v2.hdf5: Permission denied$"):
        read.load(path)


# --- episodes must be possible in the task --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"timeouts": TIMEOUTS & False}, "an episode has 5 steps, but the task ends after 3: time-outs are not marked"),
        (
            {"timeouts": np.roll(TIMEOUTS, -1), "next_observations": None},
            r"1 of 1 timeouts are before step 3 \(first: row 7\), but a task times out only at that step or where the file ends",
        ),
    ],
)
def test_episodes_that_are_impossible_in_the_task_are_refused(tmp_path, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        read.load(written(tmp_path, d4rl(**changed)))


def test_a_row_marked_both_terminal_and_timed_out_is_resolved_by_its_step(tmp_path):
    """Before the time limit it is a fall, and at the limit a time-out, also in the last row of the file."""
    early = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1], bool)  # episodes of 2, 3, 3 and 3 steps
    columns = d4rl(terminals=early, timeouts=early, next_observations=None)
    dataset = read.load(written(tmp_path, columns))
    assert np.flatnonzero(dataset.terminal).tolist() == [1]
    assert np.flatnonzero(read.ends("x", columns)[1]).tolist() == [4, 7, 10]


@pytest.mark.parametrize(
    ("row", "like", "sentence"),
    [
        (4, 0, r"1 of 11 next_observations inside an episode differ from the observation in the following row \(first: row 4\)"),
        (5, 6, r"1 of 11 next_observations at an episode's end are the first observation of the next episode \(first: row 5\)"),
        (8, 9, r"at an episode's end are the first observation of the next episode \(first: row 8\)"),
    ],
)
def test_next_observations_must_agree_with_the_following_rows(tmp_path, row, like, sentence):
    columns = d4rl()
    columns["next_observations"][row] = columns["observations"][like]
    with pytest.raises(ValueError, match=f"{sentence}, but they must be what the environment returned before it was reset"):
        read.load(written(tmp_path, columns))


def test_a_value_that_is_not_finite_is_named_and_not_its_neighbours(tmp_path):
    columns = d4rl()
    columns["observations"][4] = np.nan
    with pytest.raises(ValueError, match=r"state holds NaN or infinity in 1 rows \(first: row 4\)"):
        read.load(written(tmp_path, columns))


# --- D4RL's own files, by name --------------------------------------------------------------------------------------------


def test_a_file_named_like_one_of_d4rls_must_have_its_checksum(tmp_path, monkeypatch):
    path = written(tmp_path, d4rl(), "hopper_medium_replay-v2.hdf5")
    with pytest.raises(read.DatasetDamaged, match="is not D4RL's file of that name"):
        read.load(path)
    monkeypatch.setitem(read.D4RL_FILES, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert read.load(path).name == "hopper_medium_replay-v2"


# --- Minari ---------------------------------------------------------------------------------------------------------------


def episode(observations, terminations, actions=None, rewards=None):
    """Returns an episode as Minari stores it, with one more observation than steps."""
    steps = len(terminations)
    return types.SimpleNamespace(
        observations=observations,
        actions=np.zeros((steps, 3), np.float32) if actions is None else actions,
        rewards=np.arange(steps, dtype=np.float64) if rewards is None else rewards,
        terminations=np.array(terminations),
        truncations=np.array([False] * (steps - 1) + [True]),
    )


def minari(monkeypatch, episodes):
    """Replaces Minari, an optional dependency, by a stand-in with one local dataset."""

    def load_dataset(identifier):
        if identifier != "mujoco/hopper/medium-v0":
            raise FileNotFoundError(f"Dataset {identifier} not found locally")
        return types.SimpleNamespace(iterate_episodes=lambda: iter(episodes))

    monkeypatch.setitem(sys.modules, "minari", types.SimpleNamespace(load_dataset=load_dataset))


def test_a_minari_dataset_is_read(monkeypatch):
    first, second = np.arange(44.0).reshape(4, 11), -np.arange(33.0).reshape(3, 11)
    minari(monkeypatch, [episode(first, [False, False, True]), episode(second, [False, False])])
    dataset = read.load("minari:mujoco/hopper/medium-v0")
    assert dataset.name == "mujoco-hopper-medium-v0"
    np.testing.assert_array_equal(dataset.state, np.concatenate([first[:-1], second[:-1]]))
    np.testing.assert_array_equal(dataset.next_state, np.concatenate([first[1:], second[1:]]))
    # The first episode fell in the step that reached the time limit, so it counts as terminal.
    np.testing.assert_array_equal(dataset.terminal, [False, False, True, False, False])
    np.testing.assert_array_equal(dataset.truncated, [False, False, False, False, True])
    np.testing.assert_array_equal(dataset.episode, [0, 0, 0, 1, 1])


def test_a_minari_dataset_that_cannot_be_read_is_reported_in_one_sentence(monkeypatch):
    minari(monkeypatch, [episode({"observation": np.zeros((3, 11))}, [False, False])])
    with pytest.raises(FileNotFoundError, match="not on this machine: run `minari download mujoco/hopper/expert-v0` to get it"):
        read.load("minari:mujoco/hopper/expert-v0")
    with pytest.raises(ValueError, match="it must have episodes whose observations and actions are plain arrays"):
        read.load("minari:mujoco/hopper/medium-v0")
    for damage in (
        {"actions": np.zeros((1, 3))},
        {"rewards": np.zeros(0)},
        {"rewards": None},
        {"actions": np.full((2, 3), "a")},
        {"observations": np.zeros((3, 2, 11))},
    ):
        whole = episode(np.zeros((3, 11)), [False, False])
        minari(monkeypatch, [whole, types.SimpleNamespace(**vars(whole) | damage)])
        with pytest.raises(
            ValueError, match=r"^(minari:mujoco/hopper/medium-v0( cannot be read|: )|mujoco-hopper-medium-v0: )[^\n]+$"
        ):
            read.load("minari:mujoco/hopper/medium-v0")
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ModuleNotFoundError, match="needs Minari: `make setup` installs it"):
        read.load("minari:mujoco/hopper/medium-v0")
