"""Writes and lists pools. A pool is an HDF5 file with D4RL's key names, and its card, a JSON file beside it.

Each observation is stored once: the next observation of a row is in the following row or, at the end of an episode, in
`final_observations`. A pool exists if and only if its card does, and is never overwritten.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float

from mbaug import files, tasks
from mbaug.datasets.cards import DatasetDamaged, checked, read_card, sealed
from mbaug.datasets.read import FOLDER, FOLDERS, bundled
from mbaug.method.transitions import REWARD, TERMINAL, TRUNCATED

LICENCE = "CC BY 4.0"  # licence of our own pools and of D4RL's files
VERIFIED = "verified"  # entry of `listing` for a pool that matches its card
CELL = 0.05, 0.25  # size of a cell for state coverage: height (m), forward velocity (m/s)

# What D4RL published about its v2 datasets (github.com/Farama-Foundation/D4RL), as far as we know it.
D4RL = {
    "hopper-medium-replay": {"transitions": 402_000, "episodes": 2_041, "mean_return": 467.0},
    "walker2d-medium-replay": {"transitions": 302_000, "episodes": 1_093, "mean_return": 683.0},
    "halfcheetah-medium-replay": {"transitions": 202_000, "episodes": 202, "mean_return": 3_093.0},
    "ant-medium-replay": {"transitions": 302_000},
} | {f"{task.name}-medium": {"mean_return": task.return_medium} for task in tasks.EVERY.values() if task.return_medium}

Rows = Float[np.ndarray, "steps width"]  # packed as transitions.pack does


def episodes(rows: Rows) -> list[np.ndarray]:
    """Returns the row numbers of each finished episode, without an unfinished last one."""
    ends = np.flatnonzero(rows[:, TERMINAL:].any(axis=1)) + 1
    return np.split(np.arange(ends[-1]), ends[:-1]) if len(ends) else []


def coverage(task: tasks.Task, state: Float[np.ndarray, "rows state"]) -> dict:
    """Returns how much of the plane of height and forward velocity the states cover, in cells of size `CELL`.

    `visited` is the number of cells that hold a state. `effective` is exp(-sum p log p), with p the share of states in a cell:
    the number of equally visited cells that would be as diverse. More states increase `visited`, but hardly `effective`.
    """
    plane = state[:, [0, len(task.positions)]]
    _, counts = np.unique(np.floor(plane / CELL).astype(int), axis=0, return_counts=True)
    share = counts / counts.sum()
    names, effective = [task.positions[0], task.velocities[0]], float(np.exp(-(share * np.log(share)).sum()))
    return {"plane": names, "cell": list(CELL), "visited": len(counts), "effective": effective}


@np.errstate(over="ignore", invalid="ignore")  # values that overflow become infinite, which the card refuses
def describe(task: tasks.Task, rows: Rows) -> dict:
    """Returns a card's description of finished episodes: counts, returns, score, ends, state coverage."""
    returns = [float(rows[episode, REWARD].sum()) for episode in episodes(rows)]
    return {
        "transitions": len(rows),
        "episodes": len(returns),
        "mean_return": float(np.mean(returns)),
        "mean_score": float(tasks.normalised_score(task, np.mean(returns))),
        "return_quantiles": dict(zip(("0", "25", "50", "75", "100"), np.percentile(returns, (0, 25, 50, 75, 100)), strict=True)),
        "terminals": int(rows[:, TERMINAL].sum()),
        "timeouts": int(rows[:, TRUNCATED].sum()),
        "state_coverage": coverage(task, rows[:, : task.state_size]),
    }


def write(path: Path, rows: Rows, task: tasks.Task, card: dict) -> None:
    """Writes the finished episodes in `rows` as HDF5, and beside it the card: `card` with a description of the episodes.

    Raises:
        FileExistsError: The pool exists.
    """
    if exists(path):
        raise FileExistsError(f"{path.stem} already exists in {path.parent}: pools are never overwritten")
    index = episodes(rows)
    rows = rows[: index[-1][-1] + 1]
    sizes = task.state_size, task.action_size, task.state_size, 1, 1
    state, action, next_state, reward, terminal, truncated = np.split(rows, np.cumsum(sizes), axis=1)
    columns = {
        "observations": state,
        "actions": action,
        "rewards": reward[:, 0],
        "terminals": terminal[:, 0] > 0,
        "timeouts": truncated[:, 0] > 0,
    }
    if all(np.array_equal(next_state[episode[:-1]], state[episode[1:]]) for episode in index):
        columns["final_observations"] = next_state[[episode[-1] for episode in index]]
    else:  # imported: a next observation may be rounded differently from the same observation in the following row
        columns["next_observations"] = next_state
    content = io.BytesIO()  # in memory first, so that a file on disk is always complete
    with h5py.File(content, "w", track_order=True) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True, track_times=False)
    about = {"name": path.stem, "task": task.gym_id} | card | {"file": path.name, "sha256": files.sha256(content.getvalue())}
    document = files.plain(about | describe(task, rows) | {"d4rl": D4RL.get(path.stem)})
    written = sealed(checked(document, f"the card of {path.stem}"))
    files.write_together({path: content.getvalue(), path.with_suffix(".json"): written})  # the card last: see `exists`


def exists(path: Path) -> bool:
    """Returns whether the pool at `path` has a card, which is written last."""
    return path.with_suffix(".json").exists()


def listing(folders: Sequence[Path] = FOLDERS) -> pd.DataFrame:
    """Returns a table with a row for each pool: counts, mean return and score from its card, its size and its checksum."""
    rows = []
    for name, path in bundled(folders).items():
        try:
            card = read_card(path)
            checksum = VERIFIED if files.sha256(path) == card["sha256"] else "DIFFERS"
        except DatasetDamaged:
            card, checksum = {}, "NO VALID CARD"
        rows.append(card | {"name": name, "MB": path.stat().st_size / 1e6, "checksum": checksum})
    columns = ["transitions", "episodes", "mean_return", "mean_score", "MB", "checksum"]
    table = pd.DataFrame(rows, columns=["name", *columns]).set_index("name").round({"mean_return": 1, "mean_score": 1, "MB": 2})
    return table.rename(columns={"mean_return": "mean return", "mean_score": "score"})


README = f"""# Offline data

`python -m mbaug collect` and `python -m mbaug data --readme` write this page from the cards, the `.json` files beside the
pools. [data/README.md](../README.md) says how the pools are made and read, and which of them have no file here.

| pool | transitions | episodes | mean return | score | returns: minimum, quartiles, maximum | falls | time limits \
| state coverage | D4RL v2 |
|---|---|---|---|---|---|---|---|---|---|
{{described}}

*Score*: D4RL-normalised mean return. *State coverage*: the number of cells that hold a state, where a cell is {CELL[0]} m of
height by {CELL[1]} m/s of forward velocity. The number in brackets is the effective number of cells, the exponential of the
entropy of their shares. *D4RL v2*: what D4RL published about its dataset of the same name.

## What they look like

Each strip shows eight moments within one second, from the middle of the pool's episode with the median return.

| pool | |
|---|---|
{{strips}}

## How they were made

| pool | command | commit | processor | MB | SHA-256 |
|---|---|---|---|---|---|
{{origins}}

{{versions}}
"""
TABLES = {  # format of a pool's row in each table of the page
    "described": "| [{name}]({name}.json) | {transitions:,} | {episodes:,} | {mean_return:,.1f} | {mean_score:.1f} | {quantiles} "
    "| {terminals:,} | {timeouts:,} | {state_coverage[visited]:,} ({state_coverage[effective]:.0f}) | {published} |",
    "strips": "| {name} | ![{name}, eight moments]({name}.png) |",
    "origins": "| {name} | `{command}` | `{provenance[commit]:.7}` | {provenance[cpu]} | {megabytes:.2f} | `{sha256:.12}` |",
}
PUBLISHED = {"transitions": "{:,.0f} transitions", "mean_return": "mean return {:,.0f}"}
VERSIONS = (
    "Python {provenance[python]}, torch {provenance[torch]}, NumPy {provenance[numpy]}, Gymnasium {provenance[gymnasium]}, "
    "MuJoCo {provenance[mujoco]}. Licence: {licence}."
)


def readme(folder: Path = FOLDER) -> str:
    """Returns the text of a folder's README.md, which describes the folder's pools from their cards."""
    lines, versions = {table: [] for table in TABLES}, {}
    for name, path in bundled([folder]).items():
        card: dict[str, Any] = read_card(path)
        known = [PUBLISHED[key].format(value) for key, value in (card["d4rl"] or {}).items() if key in PUBLISHED]
        card |= {"name": name, "published": ", ".join(known) or "–", "megabytes": path.stat().st_size / 1e6}
        card["quantiles"] = ", ".join(f"{value:,.0f}" for value in card["return_quantiles"].values())
        for table, row in TABLES.items():
            lines[table].append(row.format(**card))
        versions.setdefault(VERSIONS.format(**card), []).append(name)
    alike = [f"{'All' if len(versions) == 1 else ', '.join(names)}: {text}" for text, names in versions.items()]
    parts = {part: "\n".join(text) for part, text in lines.items()}
    return README.format(**parts, versions="\n".join(alike))


def write_readme(folder: Path = FOLDER) -> None:
    """Writes a folder's README.md."""
    files.write_atomically(folder / "README.md", readme(folder).encode())
