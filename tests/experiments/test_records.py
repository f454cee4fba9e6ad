"""Records: written once in one piece, verified whenever they are read, and one tidy frame of them all."""

import hashlib
import json
import math
import os
import resource
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import no_space
from hypothesis import given, settings
from hypothesis import strategies as st

from mbaug import files
from mbaug.experiments import records
from mbaug.experiments.records import Run
from mbaug.files import CannotWrite
from mbaug.method.arms import Arm
from mbaug.method.settings import Finetuning, Pretraining

RUN = Run("hopper", "hopper-medium-replay", "augmented", 0)
METADATA = {
    "settings": {"td3": {"discount": 0.99}, "pretraining": None},
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


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- names ----------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_path():
    assert str(RUN) == "hopper/hopper-medium-replay/augmented/seed0"
    assert RUN.path("data/runs") == Path("data/runs/hopper/hopper-medium-replay/augmented/seed0")


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,20}", fullmatch=True)
runs = st.builds(Run, names, names, names, st.integers(0, 10**6))


@given(runs)
def test_parse_undoes_str(run):
    assert Run.parse(str(run)) == run


@pytest.mark.parametrize("text", ["hopper/seed0", "a/b/c/seed", "a/b/c/seed01", "a/b/../seed0", "a/b/c/d/seed0"])
def test_what_is_no_run_is_refused(text):
    with pytest.raises(ValueError, match="run"):
        Run.parse(text)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        Run("hopper", "none", "td3", -1)


# --- runs -----------------------------------------------------------------------------------------

floats = st.floats(allow_nan=True, allow_infinity=True)
row = st.fixed_dictionaries(
    {
        "phase": st.sampled_from(records.PHASES),
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
    records.write(folder, RUN, episodes, METADATA)
    frame = records.read(folder, RUN).rows
    assert list(frame) == list(records.COLUMNS)
    assert len(frame) == len(episodes)
    for name, kind in records.COLUMNS.items():
        written, found = [row[name] for row in episodes], frame[name].tolist()
        same = [repr(value) for value in written] == [repr(value) for value in found]  # also NaN, -0.0
        assert same if kind == "float64" else written == found


def test_metadata_come_back_and_name_the_run(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    metadata = records.read(tmp_path, RUN).metadata
    assert metadata == {
        "format": 4,
        "task": "hopper",
        "dataset": "hopper-medium-replay",
        "arm": "augmented",
        "seed": 0,
        **METADATA,
        "csv_sha256": hashlib.sha256(RUN.path(tmp_path).with_suffix(".csv").read_bytes()).hexdigest(),
    }
    assert records.verify(tmp_path, RUN) == metadata
    assert records.load_metadata(tmp_path) == {RUN: metadata}


def test_metadata_are_standard_json(tmp_path):
    @dataclass(frozen=True)
    class Settings:
        pretraining: None = None
        sizes: tuple[int, ...] = (256, 256)
        rate: float = 0.5

    watch = {"worst": math.nan, "value": np.float32(0.5), "count": torch.tensor(3)}
    records.write(tmp_path, RUN, rows(), {**METADATA, "settings": Settings(), "watch": watch})
    text = RUN.path(tmp_path).with_suffix(".json").read_text()
    metadata = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert metadata["settings"] == {"pretraining": None, "sizes": [256, 256], "rate": 0.5}
    assert metadata["watch"] == {"worst": None, "value": 0.5, "count": 3}


def test_evidence_is_never_overwritten(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="already recorded"):
        records.write(tmp_path, RUN, rows(1), METADATA)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"phase": "online"}, "pretrain or finetune; got 'online'"),
        ({"gradient_steps": 1.5}, "gradient_steps must be whole numbers; got"),
        ({"retrun": 1.0}, "retrun is unknown"),
        ({"episode": 0}, "same evaluation episode, finetune 200000 5000 0"),
    ],
)
def test_wrong_rows_are_refused(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        records.write(tmp_path, RUN, rows(**wrong), METADATA)
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**METADATA, "status": "ok"}, "finished or diverged; got 'ok'"),
        ({name: value for name, value in METADATA.items() if name != "watch"}, "watch is missing"),
        ({**METADATA, "settings": {3: 4, "pretraining": None}}, "key in JSON is a string; got 3"),
        ({**METADATA, "settings": {"net": object(), "pretraining": None}}, "got object"),
    ],
)
def test_wrong_metadata_are_refused(tmp_path, wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        records.write(tmp_path, RUN, rows(), wrong)
    assert content(tmp_path) == {}


def test_a_changed_csv_is_noticed(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path).with_suffix(".csv")
    path.write_text(path.read_text().replace("100.1", "900.1"))
    for load in (records.verify, records.read):
        with pytest.raises(records.RecordDamaged, match=r"seed0 is damaged: the SHA-256 of .*seed0\.csv"):
            load(tmp_path, RUN)
    with pytest.raises(records.RecordDamaged, match="seed0 is damaged"):
        records.load_runs(tmp_path)


def test_a_missing_csv_is_noticed(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    RUN.path(tmp_path).with_suffix(".csv").unlink()
    with pytest.raises(records.RecordDamaged, match=r"seed0\.csv is missing"):
        records.read(tmp_path, RUN)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 4', '"format": 5', "has the format 5; this version of mbaug reads formats 3 to 4"),
        ('"format": 4,', "", "has the format None"),
        ('"seed": 0', '"seed": 1', "written for another run"),
        ('"status"', '"state"', "lacks status"),
        ("{", "", "is not JSON"),
    ],
)
def test_a_changed_json_is_noticed(tmp_path, old, new, message):
    records.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path).with_suffix(".json")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(records.RecordDamaged, match=message):
        records.read(tmp_path, RUN)


def test_other_columns_are_noticed(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path)
    content = path.with_suffix(".csv").read_bytes()
    changed = content.replace(b"return", b"score", 1)
    path.with_suffix(".csv").write_bytes(changed)
    metadata = path.with_suffix(".json").read_text()
    hashes = [hashlib.sha256(text).hexdigest() for text in (content, changed)]
    path.with_suffix(".json").write_text(metadata.replace(*hashes))
    with pytest.raises(records.RecordDamaged, match="columns"):
        records.read(tmp_path, RUN)


def test_an_unrecorded_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="augmented/seed0 is not recorded"):
        records.read(tmp_path, RUN)


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
        records.write(tmp_path, RUN, rows(), METADATA)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_is_said_in_one_sentence(tmp_path, monkeypatch, call):
    monkeypatch.setattr(files.os, call, no_space)
    with pytest.raises(CannotWrite, match="No space left on device"):
        records.write(tmp_path, RUN, rows(), METADATA)
    assert content(tmp_path) == {}


def test_a_run_whose_json_cannot_be_written_does_not_exist(tmp_path, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: no_space() if str(b).endswith("json") else replace(a, b))
    with pytest.raises(CannotWrite):
        records.write(tmp_path, RUN, rows(), METADATA)
    assert records.missing(tmp_path, [RUN]) == [RUN]
    monkeypatch.undo()
    records.write(tmp_path, RUN, rows(), METADATA)  # and the attempt is not in the way
    assert records.missing(tmp_path, [RUN]) == []


@pytest.fixture
def closed(tmp_path):
    """A folder in which not even root can write: the way to it leads through a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "runs"


def test_a_read_only_folder_is_said_in_one_sentence(closed):
    with pytest.raises(CannotWrite, match="Cannot write"):
        records.write(closed, RUN, rows(), METADATA)


# --- many runs ------------------------------------------------------------------------------------


def test_recorded_runs_are_in_the_order_of_their_seeds(tmp_path):
    grid = [Run("hopper", "none", arm, seed) for arm in ("sac", "td3") for seed in range(12)]
    for run in reversed(grid):
        records.write(tmp_path, run, [], METADATA)
    assert records.recorded(tmp_path) == grid


def test_what_is_missing_is_listed_in_order(tmp_path):
    grid = [Run("hopper", "none", "td3", seed) for seed in (3, 1, 2)]
    records.write(tmp_path, grid[1], rows(), METADATA)
    assert records.missing(tmp_path, grid) == [grid[0], grid[2]]


def test_runs_load_as_one_tidy_frame(tmp_path):
    first, second = Run("hopper", "none", "td3", 10), Run("walker2d", "none", "sac", 2)
    empty = Run("hopper", "none", "td3", 9)
    records.write(tmp_path, first, rows(2), METADATA)
    records.write(tmp_path, empty, [], {**METADATA, "status": "diverged"})
    records.write(tmp_path, second, rows(1, **{"return": 4592.3}), METADATA)
    frame = records.load_runs(tmp_path)
    assert frame[["task", "dataset", "arm", "seed", "status"]].to_numpy().tolist() == [
        ["hopper", "none", "td3", 9, "diverged"],
        ["hopper", "none", "td3", 10, "finished"],
        ["hopper", "none", "td3", 10, "finished"],
        ["walker2d", "none", "sac", 2, "finished"],
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
    assert set(records.COLUMNS) < set(frame)
    assert records.load_runs(tmp_path, [second])["arm"].tolist() == ["sac"]


@pytest.mark.parametrize(
    ("measured", "ratio"),
    [
        ({"error_new": 3.0, "error_trained": 2.0}, 1.5),
        ({"error_new": math.nan, "error_trained": 2.0}, math.nan),  # no row was left to be new
        (None, math.nan),  # from scratch
    ],
)
def test_overfitting_is_an_error_on_new_rows_per_error_on_trained_ones(tmp_path, measured, ratio):
    records.write(tmp_path, RUN, rows(1), {**METADATA, "watch": {"overfitting": measured}})
    assert records.load_runs(tmp_path)["overfitting"].tolist() == pytest.approx([ratio], nan_ok=True)


def test_no_runs_are_an_empty_frame(tmp_path):
    frame = records.load_runs(tmp_path / "none")
    assert len(frame) == 0
    assert {"arm", "seed", "return", "score"} < set(frame)
    assert (frame["task"] + "-medium-replay").tolist() == []  # texts, though there are none


def test_a_thousand_runs_load_quickly(tmp_path):
    rng = np.random.default_rng(0)
    evaluations = [("pretrain", 10_000 * k, 0) for k in range(1, 21)]
    evaluations += [("finetune", 200_000 + 5_000 * k, 5_000 * k) for k in range(1, 21)]
    episodes = [
        dict(zip(records.COLUMNS, (*evaluation, episode, value, 500, *rng.random(4).tolist()), strict=True))
        for evaluation in evaluations
        for episode, value in enumerate(rng.normal(1000, 300, 10).tolist())
    ]
    records.write(tmp_path, Run("hopper", "none", "td3", 0), episodes, METADATA)
    first = Run("hopper", "none", "td3", 0).path(tmp_path)
    text = first.with_suffix(".json").read_text()
    for seed in range(1, 1000):  # copies: writing a thousand runs with fsync would be the slow part
        first.with_name(f"seed{seed}.csv").write_bytes(first.with_suffix(".csv").read_bytes())
        first.with_name(f"seed{seed}.json").write_text(text.replace('"seed": 0', f'"seed": {seed}'))
    began = time.process_time()
    for seed in range(100):
        records.read(tmp_path, Run("hopper", "none", "td3", seed))
    alone, began = time.process_time() - began, time.process_time()
    frame = records.load_runs(tmp_path)
    together = time.process_time() - began
    assert len(frame) == 1000 * len(episodes)
    assert frame["seed"].nunique() == 1000
    assert together < 4 * 10 * alone, "a thousand cost more than four times what each costs alone, whatever the machine"


# --- settings, then and now -----------------------------------------------------------------------


def described(arm, number=4, **changed):
    """Returns the metadata of a record of `arm` with some of its pre-training's settings changed, or left out where None."""
    settings = files.plain(arm)
    settings["pretraining"] = {k: v for k, v in (settings["pretraining"] | changed).items() if v is not None}
    return {"format": number, "settings": settings}


ARM = Arm(pretraining=Pretraining(), finetuning=Finetuning())


def test_the_first_setting_that_differs_is_named():
    assert records.difference(described(ARM), ARM) is None
    sentence = records.difference(described(ARM, transitions=500), ARM)
    assert sentence == "settings.pretraining.transitions is 500 in the record and 10000 in today's code."


def test_a_setting_that_came_later_was_at_its_default_then_and_must_be_there_now():
    assert records.difference(described(ARM, 3, standardise=None), ARM) is None
    assert "standardise is 'absent'" in records.difference(described(ARM, 4, standardise=None), ARM)


def test_a_moved_record_of_a_pretrained_agent_gives_way_to_one_that_tells_more(tmp_path):
    """One of format 3 lacks the calibration: it is missing, and is replaced; one of today's format is not."""
    records.write(tmp_path, RUN, rows(), METADATA | {"settings": ARM})
    path = RUN.path(tmp_path).with_suffix(".json")
    document = json.loads(path.read_text())
    del document["calibration"]
    path.write_text(json.dumps(document | {"format": 3}))
    assert records.missing(tmp_path, [RUN]) == [RUN]
    records.write(tmp_path, RUN, rows(1), METADATA | {"settings": ARM})
    assert records.missing(tmp_path, [RUN]) == []
    assert len(records.read(tmp_path, RUN).rows) == 1
