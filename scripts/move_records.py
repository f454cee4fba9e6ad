"""Moves records of the old layout, <study>/<task>/<dataset>/<arm>/seed<k>, to today's, where a run has one name.

    python scripts/move_records.py SOURCE [DESTINATION]     from a folder of runs into data/runs, or into another one

A CSV keeps its bytes. A JSON loses its study and gets the number of today's format: 1 becomes 3, 2 becomes 4. Runs that were
recorded under several names must have the same CSV. One is kept, of the first study in ORDER. A run that is there already stays,
unless what arrives is of a later format. The folder that it reads is left as it is, unless it is the destination.
"""

import json
import sys
from pathlib import Path

from mbaug import files
from mbaug.experiments import records

ORDER = ("baselines", "long", "core", "carried", "cold", "states", "sweep", "precision", "hopper")
ARMS = {("precision", "float32"): "td3", ("precision", "bfloat16"): "td3_bfloat16"}


def moved(path: Path) -> tuple[records.Run, dict]:
    """Returns a record's new name and its metadata in today's layout."""
    old = json.loads(path.read_bytes())
    arm = ARMS.get((old["study"], old["arm"]), old["arm"])
    run = records.Run(old["task"], old["dataset"], arm, old["seed"])
    new = {"format": old["format"] + 2, "task": run.task, "dataset": run.dataset, "arm": run.arm, "seed": run.seed}
    kept = {name: value for name, value in old.items() if name not in ("format", "study", "task", "dataset", "arm", "seed")}
    kept["provenance"] = {name: value for name, value in kept["provenance"].items() if name != "copied_from"}
    return run, new | kept


def main(source: Path, destination: Path) -> None:
    paths = [path for study in ORDER for path in sorted((source / study).glob("*/*/*/seed*.json"))]
    chosen: dict[records.Run, tuple[Path, dict]] = {}
    for path in paths:
        run, metadata = moved(path)
        _, first = chosen.setdefault(run, (path, metadata))
        same = first["csv_sha256"] == metadata["csv_sha256"] or first["format"] != metadata["format"]
        assert same, f"{path} is no copy of {chosen[run][0]}, but both are {run}"
    for run, (path, metadata) in chosen.items():
        target = run.path(destination)
        if target.with_suffix(".json").exists() and records.read_metadata(destination, run)["format"] >= metadata["format"]:
            continue
        for suffix in (".csv", ".safetensors"):
            if path.with_suffix(suffix).exists():
                files.write_atomically(target.with_suffix(suffix), path.with_suffix(suffix).read_bytes())
        files.write_atomically(target.with_suffix(".json"), (json.dumps(metadata, indent=2) + "\n").encode())
        records.read(destination, run)
        print(run)
    if source.resolve() == destination.resolve():
        for path in paths:  # file by file: a study and a task may have the same name
            for suffix in (".csv", ".safetensors", ".json"):
                path.with_suffix(suffix).unlink(missing_ok=True)
        for folder in sorted(source.glob("**/"), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else records.root())
