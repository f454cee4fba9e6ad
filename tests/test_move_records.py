"""scripts/move_records.py, on a small folder of runs in the layout of before."""

import importlib.util
import json

import pytest
from conftest import ROOT
from made import metadata

from mbaug import files
from mbaug.experiments import records
from mbaug.experiments.studies import ARMS

CSV = (",".join(records.COLUMNS) + "\nfinetune,0,100,0,1.5,10,1.25,0.5,nan,nan\n").encode()
COPY = "halfcheetah/none/td3/seed0"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("move_records", ROOT / "scripts/move_records.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def old(folder, name, number=1, csv=CSV, **more):
    """Writes a record of the old layout, named study/task/dataset/arm/seed."""
    study, task, dataset, arm, seed = name.split("/")
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".csv").write_bytes(csv)
    document = {"format": number, "study": study, "task": task, "dataset": dataset, "arm": arm, "seed": int(seed[4:])}
    own = metadata(ARMS[{"float32": "td3", "bfloat16": "td3_bfloat16"}.get(arm, arm)])
    document |= own | {"provenance": own["provenance"] | {"mbaug": study}, "csv_sha256": files.sha256(csv)} | more
    if number == 1:
        del document["calibration"]  # came with format 2
    path.with_suffix(".json").write_text(json.dumps(document))
    return path


@pytest.fixture
def source(tmp_path):
    """Two studies that share a run, one with an actor, and one whose arms have other names today."""
    folder = tmp_path / "old"
    old(folder, "hopper/hopper/none/td3/seed0")
    copied = metadata(ARMS["td3"])["provenance"] | {"mbaug": "baselines", "copied_from": "hopper/hopper/none/td3/seed0"}
    old(folder, "baselines/hopper/none/td3/seed0", provenance=copied)
    actor = old(folder, "long/ant/none/sac_million/seed0", number=2, policies_sha256=files.sha256(b"actor"))
    actor.with_suffix(".safetensors").write_bytes(b"actor")
    old(folder, "precision/halfcheetah/none/float32/seed0")
    old(folder, "precision/halfcheetah/none/bfloat16/seed0")
    return folder


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_move_to_their_one_name(source, tmp_path, script):
    """With their bytes; a JSON loses its study, and what two studies recorded is one run."""
    before, home = tree(source), tmp_path / "home"
    script.main(source, home)
    names = ["ant/none/sac_million/seed0", COPY, "halfcheetah/none/td3_bfloat16/seed0", "hopper/none/td3/seed0"]
    assert list(map(str, records.recorded(home))) == names
    origins = [(4, "long"), (3, "precision"), (3, "precision"), (3, "baselines")]
    for run, (number, commit) in zip(records.recorded(home), origins, strict=True):
        found = records.read_metadata(home, run)
        assert (found["format"], found["provenance"]["mbaug"]) == (number, commit)
        assert "copied_from" not in found["provenance"]
        assert "study" not in found
        assert run.path(home).with_suffix(".csv").read_bytes() == CSV
    assert (home / names[0]).with_suffix(".safetensors").read_bytes() == b"actor"
    assert tree(source) == before, "what is read stays as it is"


def test_a_folder_can_be_moved_in_place(source, script):
    """A study and a task may have the same name, as hopper has."""
    script.main(source, source)
    assert {path.name for path in source.iterdir()} == {"ant", "halfcheetah", "hopper"}
    assert len(records.recorded(source)) == 4
    assert not list(source.glob("*/*/*/*/*"))


def test_what_is_there_gives_way_to_a_later_format_alone(source, tmp_path, script):
    home, other = tmp_path / "home", CSV.replace(b"1.5", b"2.5")
    script.main(source, home)
    before = tree(home)
    for number, same in ((1, True), (2, False), (1, False)):
        again = tmp_path / f"again{number}{same}"
        old(again, f"core/{COPY}", number=number, csv=other)
        script.main(again, home)
        assert (tree(home) == before) == same
    assert records.read(home, records.Run.parse(COPY)).rows["return"].tolist() == [2.5]


def test_two_records_of_one_name_with_other_rows_are_refused(source, tmp_path, script):
    old(source, "hopper/hopper/none/td3/seed0", csv=CSV.replace(b"1.5", b"2.5"))
    with pytest.raises(AssertionError, match=r"is no copy of .*baselines.*, but both are hopper/none/td3/seed0"):
        script.main(source, tmp_path / "home")
    assert not (tmp_path / "home").exists()
