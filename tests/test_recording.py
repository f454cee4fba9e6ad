"""Records and checkpoints: what is written comes back exactly, or not at all."""

import hashlib
import json
import math
import multiprocessing
import os
import resource
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import no_space, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from mbaug import recording
from mbaug.files import CannotWrite
from mbaug.recording import Run

RUN = Run("hopper", "hopper", "hopper-medium-replay", "augmented", 0)
METADATA = {
    "settings": {"td3": {"discount": 0.99}},
    "draw_sha256": "abc",
    "status": "finished",
    "diverged_at": None,
    "watch": {"score_drop": 3.5},
    "calibration": None,
    "world_model": None,
    "provenance": {"commit": "0123", "precision": "float32"},
    "wall_seconds": 12.5,
}


def rows(count: int = 3, **changed) -> list[dict]:
    return [
        {
            "phase": "finetune",
            "gradient_steps": 200_000,
            "environment_steps": 5_000,
            "episode": episode,
            "return": 100.1 + episode,
            "length": 100,
            "discounted_return": 0.1 + 0.2,
            "predicted_value": np.float32(0.1),
            "data_value": math.nan,
            "imagined_outside": 0.0,
            **changed,
        }
        for episode in range(count)
    ]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- names ----------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_path():
    assert str(RUN) == "hopper/hopper/hopper-medium-replay/augmented/seed0"
    assert RUN.path("data/runs") == Path("data/runs/hopper/hopper/hopper-medium-replay/augmented/seed0")


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,20}", fullmatch=True)
runs = st.builds(Run, names, names, names, names, st.integers(0, 10**6))


@given(runs)
def test_parse_undoes_str(run):
    assert Run.parse(str(run)) == run


@pytest.mark.parametrize("text", ["hopper/seed0", "a/b/c/d/seed", "a/b/c/d/seed01", "a/b/c/../seed0", "a/b/c/d/e/seed0"])
def test_what_is_no_run_is_refused(text):
    with pytest.raises(ValueError, match="run"):
        Run.parse(text)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        Run("hopper", "hopper", "none", "td3", -1)


def test_the_repository_is_found():
    assert (recording.repository() / "mbaug" / "recording.py").is_file()
    assert recording.root() == recording.repository() / "data" / "runs"


def test_a_package_without_its_repository_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "__file__", str(tmp_path / "site-packages" / "mbaug" / "recording.py"))
    with pytest.raises(FileNotFoundError, match="without its repository"):
        recording.root()


# --- runs -----------------------------------------------------------------------------------------

floats = st.floats(allow_nan=True, allow_infinity=True)
row = st.fixed_dictionaries(
    {
        "phase": st.sampled_from(recording.PHASES),
        "gradient_steps": st.integers(0, 10**9),
        "environment_steps": st.integers(0, 10**9),
        "episode": st.integers(0, 9),
        "return": floats,
        "length": st.integers(0, 1000),
        **dict.fromkeys(["discounted_return", "predicted_value", "data_value", "imagined_outside"], floats),
    }
)
episodes = st.lists(row, max_size=20, unique_by=lambda row: tuple(row.values())[:4])


@settings(max_examples=50, deadline=None)
@given(episodes)
def test_rows_come_back_bit_for_bit(tmp_path_factory, episodes):
    folder = tmp_path_factory.mktemp("runs")
    recording.write(folder, RUN, episodes, METADATA)
    frame = recording.read(folder, RUN).rows
    assert list(frame) == list(recording.COLUMNS)
    assert len(frame) == len(episodes)
    for name, kind in recording.COLUMNS.items():
        written, found = [row[name] for row in episodes], frame[name].tolist()
        same = [repr(value) for value in written] == [repr(value) for value in found]  # also NaN, -0.0
        assert same if kind is float else written == found


def test_metadata_come_back_and_name_the_run(tmp_path):
    recording.write(tmp_path, RUN, rows(), METADATA)
    metadata = recording.read(tmp_path, RUN).metadata
    assert metadata == {
        "format": 2,
        "study": "hopper",
        "task": "hopper",
        "dataset": "hopper-medium-replay",
        "arm": "augmented",
        "seed": 0,
        **METADATA,
        "csv_sha256": hashlib.sha256(RUN.path(tmp_path).with_suffix(".csv").read_bytes()).hexdigest(),
    }
    assert recording.verify(tmp_path, RUN) == metadata
    assert recording.load_metadata(tmp_path) == {RUN: metadata}


def test_metadata_are_standard_json(tmp_path):
    @dataclass(frozen=True)
    class Settings:
        sizes: tuple[int, ...] = (256, 256)
        rate: float = 0.5

    watch = {"worst": math.nan, "value": np.float32(0.5), "count": torch.tensor(3)}
    recording.write(tmp_path, RUN, rows(), {**METADATA, "settings": Settings(), "watch": watch})
    text = RUN.path(tmp_path).with_suffix(".json").read_text()
    metadata = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert metadata["settings"] == {"sizes": [256, 256], "rate": 0.5}
    assert metadata["watch"] == {"worst": None, "value": 0.5, "count": 3}


def test_evidence_is_never_overwritten(tmp_path):
    recording.write(tmp_path, RUN, rows(), METADATA)
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="already recorded"):
        recording.write(tmp_path, RUN, rows(1), METADATA)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"phase": "online"}, "pretrain or finetune; got 'online'"),
        ({"gradient_steps": 1.5}, "float"),
        ({"retrun": 1.0}, "retrun is unknown"),
        ({"episode": 0}, "same evaluation episode, finetune 200000 5000 0"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        recording.write(tmp_path, RUN, rows(**wrong), METADATA)
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**METADATA, "status": "ok"}, "finished or diverged; got 'ok'"),
        ({name: value for name, value in METADATA.items() if name != "watch"}, "watch is missing"),
        ({**METADATA, "settings": {3: 4}}, "key in JSON is a string; got 3"),
        ({**METADATA, "settings": {"net": object()}}, "got object"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        recording.write(tmp_path, RUN, rows(), wrong)
    assert files(tmp_path) == {}


def test_a_changed_csv_is_noticed(tmp_path):
    recording.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path).with_suffix(".csv")
    path.write_text(path.read_text().replace("100.1", "900.1"))
    for load in (recording.verify, recording.read):
        with pytest.raises(recording.RecordDamaged, match=r"seed0 is damaged: the SHA-256 of .*seed0\.csv"):
            load(tmp_path, RUN)
    with pytest.raises(recording.RecordDamaged, match="seed0 is damaged"):
        recording.load_runs(tmp_path)


def test_a_missing_csv_is_noticed(tmp_path):
    recording.write(tmp_path, RUN, rows(), METADATA)
    RUN.path(tmp_path).with_suffix(".csv").unlink()
    with pytest.raises(recording.RecordDamaged, match=r"seed0\.csv is missing"):
        recording.read(tmp_path, RUN)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 2', '"format": 3', "has the format 3; this version of mbaug reads formats 1 to 2"),
        ('"format": 2,', "", "has the format None"),
        ('"seed": 0', '"seed": 1', "written for another run"),
        ('"status"', '"state"', "lacks status"),
        ("{", "", "is not JSON"),
    ],
)
def test_a_changed_json_is_noticed(tmp_path, old, new, message):
    recording.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path).with_suffix(".json")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(recording.RecordDamaged, match=message):
        recording.read(tmp_path, RUN)


def test_other_columns_are_noticed(tmp_path):
    recording.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path)
    content = path.with_suffix(".csv").read_bytes()
    changed = content.replace(b"return", b"score", 1)
    path.with_suffix(".csv").write_bytes(changed)
    metadata = path.with_suffix(".json").read_text()
    hashes = [hashlib.sha256(text).hexdigest() for text in (content, changed)]
    path.with_suffix(".json").write_text(metadata.replace(*hashes))
    with pytest.raises(recording.RecordDamaged, match="columns"):
        recording.read(tmp_path, RUN)


def test_an_unrecorded_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="augmented/seed0 is not recorded"):
        recording.read(tmp_path, RUN)


# --- full and read-only ---------------------------------------------------------------------------


@contextmanager
def small_files():
    """Files may not grow over 100 bytes: the write fails in its middle, as on a full disk. pytest's own output is such a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_in_its_middle_leaves_nothing(tmp_path):
    with small_files(), pytest.raises(CannotWrite, match=r"Cannot write .*seed0\.csv: File too large\. Nothing there"):
        recording.write(tmp_path, RUN, rows(), METADATA)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch, call):
    monkeypatch.setattr(recording.os, call, no_space)
    with pytest.raises(CannotWrite, match="No space left on device"):
        recording.write(tmp_path, RUN, rows(), METADATA)
    assert files(tmp_path) == {}


def test_a_run_whose_json_cannot_be_written_does_not_exist(tmp_path, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(recording.os, "replace", lambda a, b: no_space() if str(b).endswith("json") else replace(a, b))
    with pytest.raises(CannotWrite):
        recording.write(tmp_path, RUN, rows(), METADATA)
    assert recording.missing(tmp_path, [RUN]) == [RUN]
    monkeypatch.undo()
    recording.write(tmp_path, RUN, rows(), METADATA)  # and the attempt is not in the way
    assert recording.missing(tmp_path, [RUN]) == []


@pytest.fixture
def closed(tmp_path):
    """A folder in which not even root can write: the way to it leads through a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "runs"


def test_a_read_only_folder_is_said_in_one_sentence(closed):
    with pytest.raises(CannotWrite, match="Cannot write"):
        recording.write(closed, RUN, rows(), METADATA)
    with pytest.raises(CannotWrite, match="Cannot write"):
        recording.save_checkpoint(closed, {}, {})
    with pytest.raises(CannotWrite, match="Cannot write"), recording.claim(closed):
        pass


# --- many runs ------------------------------------------------------------------------------------


def test_recorded_runs_are_in_the_order_of_their_seeds(tmp_path):
    grid = [Run("s", "hopper", "none", arm, seed) for arm in ("sac", "td3") for seed in range(12)]
    for run in reversed(grid):
        recording.write(tmp_path, run, [], METADATA)
    assert recording.recorded(tmp_path) == grid


def test_what_is_missing_is_listed_in_order(tmp_path):
    grid = [Run("s", "hopper", "none", "td3", seed) for seed in (3, 1, 2)]
    recording.write(tmp_path, grid[1], rows(), METADATA)
    assert recording.missing(tmp_path, grid) == [grid[0], grid[2]]


def test_runs_load_as_one_tidy_frame(tmp_path):
    first, second = Run("one", "hopper", "none", "td3", 10), Run("two", "ant", "none", "sac", 2)
    empty = Run("one", "hopper", "none", "td3", 9)
    recording.write(tmp_path, first, rows(2), METADATA)
    recording.write(tmp_path, empty, [], {**METADATA, "status": "diverged"})
    recording.write(tmp_path, second, rows(1, **{"return": 3879.7}), METADATA)
    frame = recording.load_runs(tmp_path)
    assert frame[["study", "task", "dataset", "arm", "seed", "status"]].to_numpy().tolist() == [
        ["one", "hopper", "none", "td3", 9, "diverged"],
        ["one", "hopper", "none", "td3", 10, "finished"],
        ["one", "hopper", "none", "td3", 10, "finished"],
        ["two", "ant", "none", "sac", 2, "finished"],
    ]
    assert frame["score"].tolist() == pytest.approx(
        [
            math.nan,
            100 * (100.1 + 20.272305) / (3234.3 + 20.272305),
            100 * (101.1 + 20.272305) / (3234.3 + 20.272305),
            100,
        ],
        nan_ok=True,
    )
    assert set(recording.COLUMNS) < set(frame)
    assert recording.load_runs(tmp_path, "two")["arm"].tolist() == ["sac"]


@pytest.mark.parametrize(
    ("measured", "ratio"),
    [
        ({"error_new": 3.0, "error_trained": 2.0}, 1.5),
        ({"error_new": math.nan, "error_trained": 2.0}, math.nan),  # no row was left to be new
        (None, math.nan),  # from scratch
    ],
)
def test_overfitting_is_an_error_on_new_rows_per_error_on_trained_ones(tmp_path, measured, ratio):
    recording.write(tmp_path, RUN, rows(1), {**METADATA, "watch": {"overfitting": measured}})
    assert recording.load_runs(tmp_path)["overfitting"].tolist() == pytest.approx([ratio], nan_ok=True)


def test_no_runs_are_an_empty_frame(tmp_path):
    frame = recording.load_runs(tmp_path / "none")
    assert len(frame) == 0
    assert {"arm", "seed", "return", "score"} < set(frame)
    assert (frame["task"] + "-medium-replay").tolist() == []  # texts, though there are none


def test_a_thousand_runs_load_quickly(tmp_path):
    rng = np.random.default_rng(0)
    evaluations = [("pretrain", 10_000 * k, 0) for k in range(1, 21)]
    evaluations += [("finetune", 200_000 + 5_000 * k, 5_000 * k) for k in range(1, 21)]
    episodes = [
        dict(zip(recording.COLUMNS, (*evaluation, episode, value, 500, *rng.random(4).tolist()), strict=True))
        for evaluation in evaluations
        for episode, value in enumerate(rng.normal(1000, 300, 10).tolist())
    ]
    recording.write(tmp_path, Run("grid", "hopper", "none", "td3", 0), episodes, METADATA)
    first = Run("grid", "hopper", "none", "td3", 0).path(tmp_path)
    text = first.with_suffix(".json").read_text()
    for seed in range(1, 1000):  # copies: writing a thousand runs with fsync would be the slow part
        first.with_name(f"seed{seed}.csv").write_bytes(first.with_suffix(".csv").read_bytes())
        first.with_name(f"seed{seed}.json").write_text(text.replace('"seed": 0', f'"seed": {seed}'))
    began = time.process_time()
    for seed in range(100):
        recording.read(tmp_path, Run("grid", "hopper", "none", "td3", seed))
    alone, began = time.process_time() - began, time.process_time()
    frame = recording.load_runs(tmp_path)
    together = time.process_time() - began
    assert len(frame) == 1000 * len(episodes)
    assert frame["seed"].nunique() == 1000
    assert together < 4 * 10 * alone, "a thousand cost more than four times what each costs alone, whatever the machine"


# --- provenance -----------------------------------------------------------------------------------


def test_provenance_names_code_versions_and_processor(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    provenance = recording.provenance("float32")
    names = ["commit", "python", "torch", "numpy", "gymnasium", "mujoco", "mbaug", "cpu", "precision"]
    assert list(provenance) == names
    assert all(provenance.values())
    assert provenance["torch"] == "2.13.0+cu130", "with its CUDA, which a wheel's metadata may leave out"
    assert provenance["precision"] == "float32"


def test_a_processor_is_named_with_its_family_and_model(monkeypatch):
    first = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    monkeypatch.setattr(recording.Path, "read_text", lambda path: first + "\n" + first.replace("17", "1"))
    assert recording.processor() == "AMD EPYC, family 25, model 17"


def test_a_changed_package_is_marked_dirty(monkeypatch):
    answers = {"rev-parse": "0123abcd", "diff": "mbaug/td3.py"}
    monkeypatch.setattr(recording, "_git", lambda command, *_: answers[command])
    monkeypatch.setattr(recording, "commit", recording.commit.__wrapped__)
    assert recording.provenance("float32")["commit"] == "0123abcd+dirty"
    answers["diff"] = ""
    assert recording.provenance("float32")["commit"] == "0123abcd"


def test_code_without_its_history_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "__file__", str(tmp_path / "recording.py"))
    monkeypatch.setattr(recording, "commit", recording.commit.__wrapped__)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert recording.provenance("float32")["commit"] == "unknown"


@pytest.mark.parametrize(
    ("recorded", "current", "sentence"),
    [
        ({"a": 1, "b": (1, 2)}, {"a": 1, "b": [1, 2]}, None),
        ({"a": math.nan}, {"a": math.nan}, None),
        (
            {"td3": {"discount": 0.99}},
            {"td3": {"discount": 0.98}},
            "settings.td3.discount is 0.99 in the record and 0.98",
        ),
        (
            {"td3": {"rate": 0.5}},
            {"td3": {}},
            "settings.td3.rate is 0.5 in the record and 'absent' in today's code",
        ),
        (
            {"td3": {}},
            {"td3": {}, "sac": {"rate": 1}},
            "settings.sac is 'absent' in the record and {'rate': 1}",
        ),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, "settings.a is 1"),
    ],
)
def test_the_first_difference_is_named(recorded, current, sentence):
    found = recording.first_difference(recorded, current)
    assert found is None if sentence is None else sentence in found


# --- checkpoints ----------------------------------------------------------------------------------

state = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.dictionaries(
    st.from_regex(r"[a-z][a-z.]{0,9}", fullmatch=True),
    st.tuples(shapes, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(tensors, st.dictionaries(st.text(), state, max_size=4))
def test_a_checkpoint_comes_back_exactly(tmp_path_factory, tensors, state):
    folder = tmp_path_factory.mktemp("checkpoint")
    written = {name: (100 * torch.randn(shape)).to(kind) for name, (shape, kind) in tensors.items()}
    recording.save_checkpoint(folder, written, state)
    found, found_state = recording.load_checkpoint(folder)
    assert repr(found_state) == repr(state)
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_random_stream_goes_on_after_a_checkpoint(tmp_path):
    stream = np.random.Generator(np.random.PCG64(7))
    stream.random(5)
    recording.save_checkpoint(tmp_path, {}, {"stream": stream.bit_generator.state})
    other = np.random.Generator(np.random.PCG64())
    other.bit_generator.state = recording.load_checkpoint(tmp_path)[1]["stream"]
    assert other.random(5).tolist() == stream.random(5).tolist()


def test_tensors_that_share_memory_are_kept_apart(tmp_path):
    flat = torch.arange(6.0)
    recording.save_checkpoint(tmp_path, {"flat": flat, "view": flat[2:4], "across": flat.view(2, 3).T}, {})
    found = recording.load_checkpoint(tmp_path)[0]
    assert found["view"].tolist() == [2, 3]
    assert found["across"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_only_the_last_checkpoint_is_kept(tmp_path):
    assert not recording.has_checkpoint(tmp_path)
    for step in range(3):
        recording.save_checkpoint(tmp_path, {"step": torch.tensor(step)}, {"step": step})
    assert recording.has_checkpoint(tmp_path)
    assert recording.load_checkpoint(tmp_path)[1] == {"step": 2}
    assert sorted(files(tmp_path)) == ["3.json", "3.safetensors"]


@pytest.mark.parametrize("half", ["safetensors", "json"])
def test_the_last_checkpoint_survives_a_full_disk(tmp_path, monkeypatch, half):
    recording.save_checkpoint(tmp_path, {"step": torch.tensor(1)}, {"step": 1})
    replace = os.replace
    monkeypatch.setattr(recording.os, "replace", lambda a, b: no_space() if str(b).endswith(half) else replace(a, b))
    with pytest.raises(CannotWrite):
        recording.save_checkpoint(tmp_path, {"step": torch.tensor(2)}, {"step": 2})
    monkeypatch.undo()
    tensors, state = recording.load_checkpoint(tmp_path)
    assert (tensors["step"].item(), state["step"]) == (1, 1)
    recording.save_checkpoint(tmp_path, {"step": torch.tensor(3)}, {"step": 3})
    assert recording.load_checkpoint(tmp_path)[1] == {"step": 3}


@pytest.fixture(scope="module")
def processes():
    """Makes processes quickly and safely: by fork, from a server that has one thread and has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def save_forever(folder):
    for step in range(10**9):
        recording.save_checkpoint(folder, {"step": torch.full((1000,), step)}, {"step": step})


def test_a_checkpoint_survives_a_kill_at_any_moment(tmp_path, processes):
    for delay in (0.05, 0.11, 0.17):
        process = processes.Process(target=save_forever, args=(tmp_path,), daemon=True)
        process.start()
        wait_until("the first checkpoint", lambda: recording.has_checkpoint(tmp_path))
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        tensors, state = recording.load_checkpoint(tmp_path)
        assert tensors["step"].unique().tolist() == [state["step"]]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(folder / "1.safetensors"),
        lambda folder: flip_a_bit(folder / "1.json"),
        lambda folder: os.truncate(folder / "1.safetensors", 20),
        lambda folder: os.truncate(folder / "1.json", 20),
        lambda folder: os.truncate(folder / "1.json", 0),
        lambda folder: (folder / "1.safetensors").unlink(),
        lambda folder: (folder / "1.json").write_text("[]"),
        lambda folder: (folder / "1.json").write_text((folder / "1.json").read_text().replace("41", "42")),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    recording.save_checkpoint(tmp_path, {"weights": torch.zeros(100)}, {"step": 41, "note": "x" * 1000})
    damage(tmp_path)
    with pytest.raises(recording.CheckpointDamaged, match=r"is damaged .*: remove its folder"):
        recording.load_checkpoint(tmp_path)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        recording.load_checkpoint(tmp_path / "nothing")


# --- claims ---------------------------------------------------------------------------------------


def hold(folder, connection):
    with recording.claim(folder):
        connection.send("held")
        time.sleep(60)


def start_holding(folder, processes):
    """Starts a process that holds `folder`, and returns it once it does."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=hold, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies ends the waiting
    assert ours.poll(60), "the process holds nothing after 60 s"
    assert ours.recv() == "held"
    return process


def test_one_process_at_a_time_and_none_after_a_kill(tmp_path, processes):
    process = start_holding(tmp_path, processes)
    with (
        pytest.raises(recording.AlreadyRecording, match=f"is being recorded by process {process.pid} on "),
        recording.claim(tmp_path),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with recording.claim(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_who_waits_holds_the_folder_when_the_other_process_has_ended(tmp_path, processes):
    process = start_holding(tmp_path, processes)
    assert recording.claimed(tmp_path)
    threading.Timer(0.2, process.kill).start()
    with recording.claim(tmp_path, wait=True):
        process.join(timeout=10)
        assert process.exitcode == -signal.SIGKILL
        assert recording.claimed(tmp_path)
    assert not recording.claimed(tmp_path)


def test_asking_who_holds_a_folder_makes_none(tmp_path):
    assert not recording.claimed(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_claim_ends_with_its_block(tmp_path):
    with pytest.raises(KeyError), recording.claim(tmp_path):
        raise KeyError
    with recording.claim(tmp_path), pytest.raises(recording.AlreadyRecording), recording.claim(tmp_path):
        pass


def test_asking_who_holds_a_folder_writes_nothing(tmp_path):
    """A clone may be read-only; and the lock still names who held it last."""
    with recording.claim(tmp_path):
        pass
    (tmp_path / "lock").write_text("process 1 on another\n")
    before = (tmp_path / "lock").stat().st_mtime_ns
    assert not recording.claimed(tmp_path)
    assert ((tmp_path / "lock").read_text(), (tmp_path / "lock").stat().st_mtime_ns) == ("process 1 on another\n", before)


def test_the_commit_is_that_of_the_code_that_was_imported(monkeypatch):
    """Asked once: what is committed while a run trains did not train it."""
    answers = {"rev-parse": "0123abcd", "diff": ""}
    monkeypatch.setattr(recording, "_git", lambda command, *_: answers[command])
    recording.commit.cache_clear()
    try:
        assert recording.provenance("float32")["commit"] == "0123abcd"
        answers["rev-parse"] = "4567abcd"
        assert recording.provenance("float32")["commit"] == "0123abcd"
    finally:
        recording.commit.cache_clear()
