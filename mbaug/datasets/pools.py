"""A pool of offline data: an HDF5 file with D4RL's key names and its card, the JSON beside it; written and listed.

Observations are stored once: a transition's next observation is in the next row or, after an episode's last step, in
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
from mbaug.datasets.read import FOLDERS, bundled

LICENCE = "CC BY 4.0"  # of our own pools, and of D4RL's files
VERIFIED = "verified"  # what `listing` says of a pool that is as its card describes it
CELL = 0.05, 0.25  # m of height, m/s forward: a cell of the plane on which state coverage is counted

# Published of D4RL v2 (github.com/Farama-Foundation/D4RL): transitions, episodes, mean return; what we do not know is left out.
D4RL = {
    "hopper-medium-replay": {"transitions": 402_000, "episodes": 2_041, "mean_return": 467.0},
    "walker2d-medium-replay": {"transitions": 302_000, "episodes": 1_093, "mean_return": 683.0},
    "halfcheetah-medium-replay": {"transitions": 202_000, "episodes": 202, "mean_return": 3_093.0},
    "ant-medium-replay": {"transitions": 302_000},
} | {f"{task.name}-medium": {"mean_return": task.return_medium} for task in tasks.TASKS.values() if task.return_medium}

Rows = Float[np.ndarray, "steps width"]  # packed as transitions.pack does


def episodes(rows: Rows) -> list[np.ndarray]:
    """Returns the row numbers of each finished episode; an unfinished last one is left out."""
    ends = np.flatnonzero(rows[:, -2:].any(axis=1)) + 1
    return np.split(np.arange(ends[-1]), ends[:-1]) if len(ends) else []


def coverage(task: tasks.Task, state: Float[np.ndarray, "rows state"]) -> dict:
    """Returns how much of the plane of height and forward velocity the states cover, counted in cells of `CELL`.

    `visited` are cells with a state, `effective` is the exponential of the entropy of the cells' shares: as many cells, equally
    often visited, would be as diverse. The first grows with the number of states, the second hardly.
    """
    plane = state[:, [0, len(task.positions)]]
    _, counts = np.unique(np.floor(plane / CELL).astype(int), axis=0, return_counts=True)
    share = counts / counts.sum()
    names, effective = [task.positions[0], task.velocities[0]], float(np.exp(-(share * np.log(share)).sum()))
    return {"plane": names, "cell": list(CELL), "visited": len(counts), "effective": effective}


@np.errstate(over="ignore", invalid="ignore")  # what is too large becomes infinite, and the card refuses that in a sentence
def describe(task: tasks.Task, rows: Rows) -> dict:
    """Returns what a card says of finished episodes: counts, returns, score, ends, state coverage."""
    returns = [float(rows[episode, -3].sum()) for episode in episodes(rows)]
    return {
        "transitions": len(rows),
        "episodes": len(returns),
        "mean_return": float(np.mean(returns)),
        "mean_score": float(tasks.normalised_score(task, np.mean(returns))),
        "return_quantiles": dict(zip(("0", "25", "50", "75", "100"), np.percentile(returns, (0, 25, 50, 75, 100)), strict=True)),
        "terminals": int(rows[:, -2].sum()),
        "timeouts": int(rows[:, -1].sum()),
        "state_coverage": coverage(task, rows[:, : task.state_size]),
    }


def write(path: Path, rows: Rows, task: tasks.Task, card: dict) -> None:
    """Writes the finished episodes among `rows` as HDF5, and `card` with their description as JSON beside it.

    Raises:
        FileExistsError: the pool is there.
    """
    if exists(path):
        raise FileExistsError(f"{path.stem} is in {path.parent} already: a pool is never overwritten")
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
    else:  # another recorder's: what it gave as the next state is not what it gave as the state after
        columns["next_observations"] = next_state
    content = io.BytesIO()  # whole before it is written: a pool is there or it is not
    with h5py.File(content, "w", track_order=True) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True, track_times=False)
    about = {"name": path.stem, "task": task.gym_id} | card | {"file": path.name, "sha256": files.sha256(content.getvalue())}
    document = files.plain(about | describe(task, rows) | {"d4rl": D4RL.get(path.stem)})
    written = sealed(checked(document, f"the card of {path.stem}"))
    files.write_together({path: content.getvalue(), path.with_suffix(".json"): written})  # the card last


def exists(path: Path) -> bool:
    """Returns whether a pool is there: its card is written last."""
    return path.with_suffix(".json").exists()


def listing(folders: Sequence[Path] = FOLDERS) -> pd.DataFrame:
    """Returns a row for each pool in `folders`: counts, mean return and score from its card, its size, and its checksum."""
    rows = []
    for name, path in bundled(folders).items():
        try:
            card = read_card(path)
            checksum = VERIFIED if files.sha256(path) == card["sha256"] else "DIFFERS"
        except DatasetDamaged:
            card, checksum = {}, "NO CARD"
        rows.append(card | {"name": name, "MB": path.stat().st_size / 1e6, "checksum": checksum})
    columns = ["transitions", "episodes", "mean_return", "mean_score", "MB", "checksum"]
    table = pd.DataFrame(rows, columns=["name", *columns]).set_index("name").round({"mean_return": 1, "mean_score": 1, "MB": 2})
    return table.rename(columns={"mean_return": "mean return", "mean_score": "score"})


README = f"""# Offline data

`python -m mbaug collect` and `data --readme` write this page from the cards, the `.json` files beside the pools. Nobody typed
these numbers. [data/README.md](../README.md) says how the pools are made and read, and which of them have no file here.

| pool | transitions | episodes | mean return | score | returns: minimum, quartiles, maximum | falls | time limits \
| state coverage | D4RL v2 |
|---|---|---|---|---|---|---|---|---|---|
{{described}}

*Score*: D4RL-normalised mean return. *State coverage*: the number of cells that hold a state. A cell is {CELL[0]} m of
height by {CELL[1]} m/s of forward velocity. In brackets stands the effective number of cells,
the exponential of the entropy of their shares. *D4RL v2*: what D4RL publishes about its dataset of the same name.

## What they look like

Eight moments, within a second, of each pool's episode with the median return.

| pool | |
|---|---|
{{strips}}

## How they were made

| pool | command | commit | processor | MB | SHA-256 |
|---|---|---|---|---|---|
{{origins}}

{{versions}}
"""
TABLES = {  # a pool's row in each table of the page
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


def readme(folder: Path = FOLDERS[0]) -> str:
    """Returns the text of a folder's README.md: what its pools are, and how they were made, from their cards."""
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
    return README.format(**{part: "\n".join(text) for part, text in (lines | {"versions": alike}).items()})


def write_readme(folder: Path = FOLDERS[0]) -> None:
    """Writes a folder's README.md anew."""
    files.write_atomically(folder / "README.md", readme(folder).encode())
