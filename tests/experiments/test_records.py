"""Records: they are read back exactly as written, and changed ones are refused in one sentence."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents, no_space
from hypothesis import given, settings
from hypothesis import strategies as st
from made import metadata

from mbaug import files
from mbaug.experiments import records
from mbaug.experiments.metadata import FORMAT
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS
from mbaug.files import CannotWrite, sealed
from mbaug.tasks import Dynamics

RUN = Run("hopper", "hopper-medium-replay", "augmented", 0)
METADATA, SCRATCH = metadata(ARMS["augmented"]), metadata(ARMS["td3"])
NOW = b'"format": %d' % FORMAT
ACTOR = {"final": torch.tensor([1.0, 2.0])}


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


# --- names ----------------------------------------------------------------------------------------------------------------

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,20}", fullmatch=True)


@given(st.builds(Run, names, names, names, st.integers(0, 10**6)))
def test_a_run_is_named_by_its_path(run):
    assert Run.parse(str(run)) == run
    assert run.path(Path("data/runs")) == Path(f"data/runs/{run.task}/{run.dataset}/{run.arm}/seed{run.seed}")


@pytest.mark.parametrize("text", ["hopper/seed0", "a/b/c/seed", "a/b/c/seed01", "a/b/../seed0", "a/b/c/d/seed0"])
def test_a_text_that_names_no_run_is_refused(text):
    with pytest.raises(ValueError, match=r"A run is named task/dataset/arm/seed<k>|A part of a run's name must begin"):
        Run.parse(text)


# --- writing and reading --------------------------------------------------------------------------------------------------

floats = st.floats(allow_nan=True, allow_infinity=True)
row = st.fixed_dictionaries(
    {
        "phase": st.sampled_from(["pretrain", "finetune"]),
        "gradient_steps": st.integers(0, 10**9),
        "environment_steps": st.integers(0, 10**9),
        "episode": st.integers(0, 9),
        "return": floats,
        "length": st.integers(0, 1000),
        **dict.fromkeys(["discounted_return", "predicted_value", "data_value", "imagined_outside"], floats),
    }
)
episodes = st.lists(row, max_size=20, unique_by=lambda row: tuple(row.values())[:4])


@settings(max_examples=30)
@given(episodes)
def test_rows_are_read_back_bit_for_bit(tmp_path_factory, episodes):
    folder = tmp_path_factory.mktemp("runs")
    records.write(folder, RUN, episodes, METADATA)
    frame = records.read(folder, RUN).rows
    assert list(frame) == list(records.COLUMNS)
    assert frame.dtypes.astype(str).to_dict() == records.COLUMNS
    for name in records.COLUMNS:
        assert list(map(repr, frame[name].tolist())) == [repr(row[name]) for row in episodes]  # repr tells NaN and -0.0 too


def test_metadata_are_read_back_and_name_the_run(tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA, ACTOR)
    files_of = {"csv_sha256": ".csv", "policies_sha256": ".safetensors"}
    hashes = {name: files.sha256(RUN.path(tmp_path).with_suffix(suffix).read_bytes()) for name, suffix in files_of.items()}
    identity = {"format": FORMAT, "task": "hopper", "dataset": "hopper-medium-replay", "arm": "augmented", "seed": 0}
    found = records.read_metadata(tmp_path, RUN)
    assert found == identity | METADATA | hashes | {"sha256": found["sha256"]}
    assert records.load_metadata(tmp_path) == {RUN: found}
    assert records.load_metadata(tmp_path, [replace(RUN, seed=1)]) == {}
    assert records.read(tmp_path, RUN).metadata == found
    assert records.policies(tmp_path, RUN)["final"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("wrong", "changed", "message"),
    [
        ({"retrun": 1.0}, {}, "A row must have the columns phase, .*, but it has .*, retrun"),
        ({"episode": 0}, {}, "same evaluation episode, finetune 200000 5000 0"),
        ({}, {"status": "ok"}, "the record of .*: status is 'ok', but it must be finished or diverged"),
        ({}, {"wach": {}}, "has unknown fields: 'wach'"),
        ({}, {"settings": {3: 4}}, "JSON keys must be strings, but got 3"),
        ({}, {"settings": {"net": object()}}, "got object"),
    ],
)
def test_wrong_rows_or_metadata_are_refused_and_nothing_is_written(tmp_path, wrong, changed, message):
    with pytest.raises((ValueError, TypeError), match=message):
        records.write(tmp_path, RUN, rows(**wrong), METADATA | changed)
    assert contents(tmp_path) == {}


# --- records are kept and never replaced ----------------------------------------------------------------------------------


def change(path, **changed):
    """Changes a record's JSON and its digest, which formats below 5 lack; a key with the value `...` is removed."""
    path, text = path.with_suffix(".json"), path.with_suffix(".json").read_text()
    document = {name: value for name, value in (json.loads(text) | changed).items() if value is not ...}
    digested = document.get("format", FORMAT) >= 5
    path.write_bytes(sealed(document) if digested else json.dumps({k: v for k, v in document.items() if k != "sha256"}).encode())


def test_a_complete_record_is_never_overwritten(tmp_path):
    """Records of older formats are complete too; format 3 lacks the calibration of the critics."""
    run = Run("hopper", "hopper-medium-replay", "td3_data", 0)
    records.write(tmp_path, run, rows(), metadata(ARMS[run.arm]))
    change(run.path(tmp_path), format=3, calibration=...)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="already recorded"):
        records.write(tmp_path, run, rows(1), metadata(ARMS[run.arm]))
    assert contents(tmp_path) == before
    assert records.find(tmp_path, run) is not None


# --- damage ---------------------------------------------------------------------------------------------------------------


def replaced(suffix, old, new):
    """Returns a function that replaces some bytes in one of a record's files."""

    def damage(path):
        path = path.with_suffix(suffix)
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    return damage


def other_columns(path):
    content = path.with_suffix(".csv").read_bytes()
    changed = content.replace(b"return", b"score", 1)
    path.with_suffix(".csv").write_bytes(changed)
    change(path, csv_sha256=files.sha256(changed))


DAMAGES = [
    (replaced(".csv", b"100.1", b"900.1"), r"seed0\.csv does not match the SHA-256 in its \.json"),
    (lambda path: path.with_suffix(".csv").unlink(), r"seed0\.csv is missing"),
    (other_columns, "its CSV has the columns phase,.*,score,"),
    (replaced(".json", NOW, NOW + b"1"), f"has the format {FORMAT}1; this version of mbaug reads formats 3 to {FORMAT}"),
    (replaced(".json", NOW + b",", b""), "has the format None"),
    (replaced(".json", b'"wall_seconds": 12.5', b'"wall_seconds": 12.6'), r"seed0\.json: its content does not match its SHA-256"),
    (replaced(".json", NOW, b'"format": 4'), "has unknown fields|does not match its SHA-256"),
    (replaced(".json", b'"seed": 0', b'"seed": 1'), "written for another run"),
    (replaced(".json", b'"status"', b'"state"'), "lacks status"),
    (replaced(".json", b'"sha256"', b'"sha"'), "lacks sha256"),
    (replaced(".json", b"{", b""), "is not JSON"),
    (replaced(".safetensors", b"\x00\x00\x80?", b"\x00\x00\x00?"), r"seed0\.safetensors does not match"),
    (lambda path: path.with_suffix(".safetensors").unlink(), r"seed0\.safetensors is missing"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_changed_record_is_refused_in_one_sentence(tmp_path, damage, message):
    records.write(tmp_path, RUN, rows(), METADATA, ACTOR)
    damage(RUN.path(tmp_path))
    sentence = f"{RUN} is damaged: .*({message})"
    of_rows = () if "safetensors" in message else (records.read, records.read_metadata, lambda root, run: records.load_runs(root))
    for call in (records.policies, *of_rows):
        with pytest.raises(records.RecordDamaged, match=sentence):
            call(tmp_path, RUN)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"status": "diverged"}, "status is 'diverged', but diverged_at is None"),
        ({"wall_seconds": -1}, "wall_seconds is -1, but it must be 0 or above"),
        ({"draw_sha256": None}, "draw_sha256 is None, but pretraining is not None"),
        ({"dataset": "none"}, "dataset is 'none', but pretraining is not None"),
        ({"calibration": {"all": {}}}, "calibration"),
        ({"provenance": METADATA["provenance"] | {"precision": "bfloat16"}}, "it must be that of the settings, 'float32'"),
        (
            {"world_model": {"sample": [0.5]}},
            "world_model is .*, but it must be an object with the keys sample, mean, reconstruction",
        ),
        ({"settings": METADATA["settings"] | {"learner": {}}}, "settings.learner lacks hidden"),
        ({"policies_sha256": ...}, "lacks policies_sha256"),
    ],
)
def test_a_record_with_a_missing_or_wrong_key_is_refused(tmp_path, changed, sentence):
    """The error names the file and the key. Format 4 has no digest, which would reveal the change first."""
    records.write(tmp_path, RUN, rows(), METADATA, ACTOR)
    change(RUN.path(tmp_path), format=4, **changed)
    with pytest.raises(records.RecordDamaged, match=rf"{RUN} is damaged: .*seed0.*{sentence}"):
        records.read_metadata(tmp_path, RUN)


def test_a_record_with_a_changed_bit_or_a_missing_line_is_refused(tmp_path):
    """We remove each line and flip each of 200 random bits, in today's format."""
    records.write(tmp_path, RUN, rows(), METADATA, ACTOR)
    path, random = RUN.path(tmp_path).with_suffix(".json"), np.random.default_rng(0)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changes = [b"".join(lines[:k] + lines[k + 1 :]) for k in range(len(lines))]
    for place in random.choice(8 * len(whole), 200, replace=False):
        bits = bytearray(whole)
        bits[place // 8] ^= 1 << place % 8
        changes.append(bytes(bits))
    for content in changes:
        path.write_bytes(content)
        with pytest.raises(records.RecordDamaged, match=f"^{RUN} is damaged: "):
            records.read_metadata(tmp_path, RUN)


OLD = [
    run
    for run in records.recorded(records.root())
    if json.loads(run.path(records.root()).with_suffix(".json").read_text())["format"] < 5
]


@pytest.mark.parametrize("run", OLD[:: max(len(OLD) // 4, 1)], ids=str)
def test_a_missing_line_shows_in_a_record_without_a_digest(run, tmp_path):
    """Such a record is refused, or its settings differ from today's, unless the key is optional."""
    source, path = run.path(records.root()), run.path(tmp_path)
    path.parent.mkdir(parents=True)
    for file in source.parent.glob(f"{source.name}.*"):
        path.with_suffix(file.suffix).write_bytes(file.read_bytes())
    lines = path.with_suffix(".json").read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        path.with_suffix(".json").write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
        try:
            found = records.read_metadata(tmp_path, run)
        except records.RecordDamaged:
            continue
        optional = b'"error_elsewhere"' in line or (b'"standardise"' in line and found["format"] == 3)
        assert optional or records.difference(found, ARMS[run.arm]) is not None, line


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_pipe_in_place_of_a_file_does_not_block(suffix, tmp_path):
    records.write(tmp_path, RUN, rows(), METADATA)
    path = RUN.path(tmp_path).with_suffix(suffix)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(records.RecordDamaged, match=f"{re.escape(str(path))} is not a regular file"):
        records.read_metadata(tmp_path, RUN)


def test_a_run_whose_json_could_not_be_written_is_missing(tmp_path, monkeypatch):
    move = os.replace
    monkeypatch.setattr(files.os, "replace", lambda a, b: no_space() if str(b).endswith("json") else move(a, b))
    with pytest.raises(CannotWrite):
        records.write(tmp_path, RUN, rows(), METADATA)
    assert records.find(tmp_path, RUN) is None
    monkeypatch.undo()
    records.write(tmp_path, RUN, rows(), METADATA)  # the failed attempt is not in the way
    assert records.find(tmp_path, RUN) is not None


# --- many runs ------------------------------------------------------------------------------------------------------------


def test_recorded_runs_are_sorted(tmp_path):
    grid = [Run("hopper", "none", arm, seed) for arm in ("sac", "td3") for seed in range(12)]
    for run in reversed(grid):
        if run.seed != 3:
            records.write(tmp_path, run, [], metadata(ARMS[run.arm]))
    assert records.recorded(tmp_path) == [run for run in grid if run.seed != 3]


def test_files_that_are_not_records_of_known_tasks_are_named(tmp_path):
    """A file manager's copy beside a record, and a record of a task of your own that was removed again."""
    run = Run("swimmer", "none", "td3", 0)
    records.write(tmp_path, run, rows(), SCRATCH)
    sentence = f"{tmp_path / 'swimmer'} holds runs of a task that mbaug/tasks.py lacks: add it to EXTRA, or move the folder away"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        records.load_runs(tmp_path)
    stray = run.path(tmp_path).with_name("seed0 (copy).json")
    stray.write_text("{}")
    with pytest.raises(ValueError, match=f"^{re.escape(str(stray))} is not the name of a record, which is seed<k>.json: move"):
        records.recorded(tmp_path)


def test_the_error_for_a_run_that_is_not_recorded_suggests_the_nearest(tmp_path):
    records.write(tmp_path, Run("hopper", "none", "td3", 3), [], metadata(ARMS["td3"]))
    with pytest.raises(
        FileNotFoundError, match=r"^Hopper/none/td3/seed3 is not recorded in .*: did you mean 'hopper/none/td3/seed3'"
    ):
        records.read(tmp_path, Run("Hopper", "none", "td3", 3))


def test_runs_load_as_one_tidy_frame(tmp_path):
    first, second, empty = Run("hopper", "none", "td3", 10), Run("ant", "none", "sac", 2), Run("hopper", "none", "td3", 9)

    def watched(new):
        shapes = {"percentiles": {name: 7 * [0.0] for name in ("recorded", "action", "state")}}
        shapes |= {"roughness": {name: 2 * [0.0] for name in ("action", "state")}, "value_std": 1.0}
        return {"watch": SCRATCH["watch"] | {"overfitting": {"error_new": new, "error_trained": 2.0} | shapes}}

    records.write(tmp_path, first, rows(2), SCRATCH | watched(3.0))
    lost = {"status": "diverged", "diverged_at": {"gradient_steps": 50, "environment_steps": 0}}
    records.write(tmp_path, empty, [], SCRATCH | lost | watched(math.nan))
    records.write(tmp_path, second, rows(1, **{"return": 3879.7}), SCRATCH)
    frame = records.load_runs(tmp_path)
    assert frame[["task", "dataset", "arm", "seed", "status"]].to_numpy().tolist() == [
        ["ant", "none", "sac", 2, "finished"],
        ["hopper", "none", "td3", 9, "diverged"],
        ["hopper", "none", "td3", 10, "finished"],
        ["hopper", "none", "td3", 10, "finished"],
    ]
    scores = [100, math.nan, *(100 * (value + 20.272305) / (3234.3 + 20.272305) for value in (100.1, 101.1))]
    assert frame["score"].tolist() == pytest.approx(scores, nan_ok=True)
    assert frame["overfitting"].tolist() == pytest.approx([math.nan, math.nan, 1.5, 1.5], nan_ok=True)
    assert set(records.COLUMNS) < set(frame)
    assert records.load_runs(tmp_path, [second, RUN])["arm"].tolist() == ["sac"]
    none = records.load_runs(tmp_path / "none")
    assert none.dtypes.to_dict() == frame.dtypes.to_dict(), "The columns and their types should be the same without runs."


# --- settings of old records and of today's code --------------------------------------------------------------------------


def test_the_first_setting_that_differs_is_named():
    arm, recorded = ARMS["td3"], files.plain(ARMS["td3"])
    assert records.difference({"format": FORMAT, "settings": recorded}, arm) is None
    recorded["learner"] |= {"discount": 0.98, "policy_delay": 3}
    found = records.difference({"format": FORMAT, "settings": recorded}, arm)
    assert found == "settings.learner.discount is 0.98 in the record and 0.99 in today's code."
    found = records.difference({"format": FORMAT, "settings": recorded}, ARMS["sac"])
    assert found == "settings.algorithm is 'td3' in the record and 'sac' in today's code."


def test_a_setting_missing_in_an_old_record_counts_as_its_default():
    """A different value today is named. From format 4 on, every setting must be there."""
    arm, old = ARMS["td3"], files.plain(ARMS["td3"])
    del old["dynamics"], old["finetuning"]["critic_updates"]
    assert records.difference({"format": 3, "settings": old}, arm) is None
    noisy = replace(arm, dynamics=Dynamics(action_noise=0.1))
    assert "settings.dynamics.action_noise is 0.0 in the record" in records.difference({"format": 3, "settings": old}, noisy)
    with pytest.raises(ValueError, match="settings lacks dynamics"):
        records.difference({"format": 4, "settings": old}, arm)
