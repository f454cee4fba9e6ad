"""A pool of offline data: an HDF5 file with D4RL's key names and its card, the JSON beside it; written, listed, imported.

Observations are stored once: a transition's next observation is its successor's, and for an episode's last step
`final_observations` has it. A pool is there if and only if its card is, and what is there is never overwritten.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float

from mbaug import files, offline_data, recording, tasks, transitions
from mbaug.offline_data import FOLDERS
from mbaug.settings import require
from mbaug.tasks import Task
from mbaug.transitions import Dataset

LICENCE = "CC BY 4.0"  # of our own pools, and of D4RL's files
CELL = 0.05, 0.25  # m of height, m/s forward: a cell of the plane on which state coverage is counted
FORWARD = ("forward velocity (m/s)", "x velocity (m/s)")  # its name among a task's states: on a track, in space

# Published of D4RL v2 (github.com/Farama-Foundation/D4RL): transitions, episodes, mean return; what we do not know is left out.
D4RL = {
    "hopper-medium-replay": {"transitions": 402_000, "episodes": 2_041, "mean_return": 467.0},
    "walker2d-medium-replay": {"transitions": 302_000, "episodes": 1_093, "mean_return": 683.0},
    "halfcheetah-medium-replay": {"transitions": 202_000, "episodes": 202, "mean_return": 3_093.0},
    "ant-medium-replay": {"transitions": 302_000},
    "hopper-medium": {"mean_return": 1_422.0},
    "walker2d-medium": {"mean_return": 2_852.0},
    "halfcheetah-medium": {"mean_return": 4_770.0},
}

Rows = Float[np.ndarray, "steps width"]  # packed as transitions.pack does

# --- describe and write ---------------------------------------------------------------------------------------------------


def episodes(rows: Rows) -> list[np.ndarray]:
    """Returns the row numbers of each finished episode; an unfinished last one is left out."""
    ends = np.flatnonzero(rows[:, -2:].any(axis=1)) + 1
    return np.split(np.arange(ends[-1]), ends[:-1]) if len(ends) else []


def coverage(task: Task, state: Float[np.ndarray, "rows state"]) -> dict:
    """Returns how much of the plane of height and forward velocity the states cover, counted in cells of `CELL`.

    Keys: `visited`, cells with at least one state; `effective`, the exponential of the entropy of the cells' shares: as many
    cells, equally often visited, would be as diverse. The first grows with the number of states, the second hardly.
    """
    names = next(name for name in FORWARD if name in task.state_names)
    plane = state[:, [0, task.state_names.index(names)]]
    _, counts = np.unique(np.floor(plane / CELL).astype(int), axis=0, return_counts=True)
    share = counts / counts.sum()
    return {"plane": [task.state_names[0], names], "cell": list(CELL), "visited": len(counts), "effective": _perplexity(share)}


def _perplexity(share: Float[np.ndarray, " cells"]) -> float:
    return float(np.exp(-(share * np.log(share)).sum()))


def describe(task: Task, rows: Rows, chosen: Sequence[np.ndarray]) -> dict:
    """Returns what a card says of the transitions themselves: counts, returns, score, ends, state coverage."""
    index = np.concatenate(chosen)
    returns = [float(rows[episode, -3].sum()) for episode in chosen]
    return {
        "transitions": len(index),
        "episodes": len(chosen),
        "mean_return": float(np.mean(returns)),
        "mean_score": float(tasks.normalised_score(task, np.mean(returns))),
        "return_quantiles": dict(zip(("0", "25", "50", "75", "100"), np.percentile(returns, (0, 25, 50, 75, 100)), strict=True)),
        "terminals": int(rows[index, -2].sum()),
        "timeouts": int(rows[index, -1].sum()),
        "state_coverage": coverage(task, rows[index, : task.state_size]),
    }


def write(path: Path, rows: Rows, chosen: Sequence[np.ndarray], task: Task, card: dict) -> None:
    """Writes episodes as HDF5 with D4RL's key names, gzip and shuffle, and `card` with their description as JSON beside it.

    Raises:
        FileExistsError: the pool is there.
    """
    refuse_if_there(path)
    index = np.concatenate(chosen)
    sizes = task.state_size, task.action_size, task.state_size, 1, 1
    state, action, next_state, reward, terminal, truncated = np.split(rows, np.cumsum(sizes), axis=1)
    columns = {
        "observations": state[index],
        "actions": action[index],
        "rewards": reward[index, 0],
        "terminals": terminal[index, 0] > 0,
        "timeouts": truncated[index, 0] > 0,
    }
    if all(np.array_equal(next_state[episode[:-1]], state[episode[1:]]) for episode in chosen):
        columns["final_observations"] = next_state[[episode[-1] for episode in chosen]]
    else:  # another recorder's: what it gave as the next state is not what it gave as the state after
        columns["next_observations"] = next_state[index]
    content = io.BytesIO()  # whole before it is written: a pool is there or it is not
    with h5py.File(content, "w", track_order=True) as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True, track_times=False)
    found = {"file": path.name, "sha256": recording.sha256(content.getvalue())} | describe(task, rows, chosen)
    files.write_atomically(path, content.getvalue())
    document = card | found | {"d4rl": D4RL.get(path.stem)}
    files.write_atomically(card_of(path), (json.dumps(document, indent=1) + "\n").encode())


def card_of(path: Path) -> Path:
    """Returns where the card of a pool lies."""
    return path.with_suffix(".json")


def exists(path: Path) -> bool:
    """Returns whether a pool is there: its card is written last."""
    return card_of(path).exists()


def refuse_if_there(path: Path) -> None:
    """Raises FileExistsError if a pool is there."""
    if exists(path):
        raise FileExistsError(f"{path.stem} is in {path.parent} already: a pool is never overwritten")


# --- list -----------------------------------------------------------------------------------------------------------------


VERIFIED = "verified"


def paths(folders: Sequence[Path] = FOLDERS) -> list[Path]:
    """Returns the paths of the pools in `folders`."""
    return [path for folder in folders for path in sorted(folder.glob("*.hdf5"))]


def checksum(path: Path) -> str:
    """Returns in a word or two whether a pool is the one that its card describes."""
    try:
        promised = offline_data.read_card(path)["sha256"]
    except offline_data.DatasetDamaged:
        return "NO CARD"
    return VERIFIED if offline_data.sha256(path) == promised else "DIFFERS"


def listing(folders: Sequence[Path] = FOLDERS) -> pd.DataFrame:
    """Returns a row for each pool in `folders`: counts, mean return and score from its card, its size, and its checksum."""
    columns = {"transitions": "transitions", "episodes": "episodes", "mean return": "mean_return", "score": "mean_score"}
    rows = []
    for path in paths(folders):
        found = checksum(path)
        card = {} if found == "NO CARD" else offline_data.read_card(path)
        numbers = {column: round(card[key], 1) if key in card else None for column, key in columns.items()}
        rows.append({"name": path.stem} | numbers | {"MB": round(path.stat().st_size / 1e6, 2), "checksum": found})
    return pd.DataFrame(rows, columns=["name", *columns, "MB", "checksum"]).set_index("name")


HEAD = """# Offline data

`python -m mbaug collect` and `data --readme` write this page from the cards, the `.json` beside each pool; nobody typed these
numbers. How the pools are made and read: [data/README.md](../README.md).
"""
COLUMNS = (
    *("pool", "transitions", "episodes", "mean return", "score", "return: least, quartiles, most", "falls", "time limits"),
    *("state coverage", "D4RL v2", "MB", "SHA-256"),
)
ORIGIN = ("pool", "command", "seed", "commit", "processor", "versions", "licence")
SHOWN = (  # what they show of a card
    *("transitions", "episodes", "mean_return", "mean_score", "return_quantiles", "terminals", "timeouts"),
    *("state_coverage", "d4rl", "command", "provenance", "licence"),
)
PACKAGES = ("python", "torch", "numpy", "gymnasium", "mujoco")
NOTES = f"""
*Score*: D4RL-normalised mean return. *State coverage*: cells of {CELL[0]} m of height by {CELL[1]} m/s forward velocity that
hold a state, and in brackets how many equally frequent cells would be as diverse (the exponential of the shares' entropy).
*D4RL v2*: what is published of the dataset of that name, transitions and mean return. `medium-expert` has no file: half of a draw
is from `medium`, half from `expert`. `<task>-replay`, the whole replay until the medium level, is too large to be committed:
`python -m mbaug collect <task>` makes it, in `build/offline`.
"""


def readme(folder: Path = FOLDERS[0]) -> str:
    """Returns the text of a folder's README.md: what its pools are, and how they were made, from their cards."""
    cards = {path: _whole_card(path) for path in paths([folder])}
    first = _table(COLUMNS, [_described(path, card) for path, card in cards.items()])
    second = _table(ORIGIN, [_origin(path, card) for path, card in cards.items()])
    return "\n".join([HEAD, *first, NOTES, *second, ""])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _whole_card(path: Path) -> dict:
    """Returns a pool's card, or raises DatasetDamaged if it lacks what the tables show."""
    card = offline_data.read_card(path)
    if lacking := [key for key in SHOWN if key not in card]:
        raise offline_data.DatasetDamaged(f"{card_of(path)} lacks {', '.join(lacking)}: restore it, or make the pool again")
    return card


def _described(path: Path, card: dict) -> tuple[str, ...]:
    """Returns a pool's row in the table of what the pools are."""
    quantiles = ", ".join(f"{value:,.0f}" for value in card["return_quantiles"].values())
    area, published = card["state_coverage"], card["d4rl"] or {}
    known = [f"{published[key]:,.0f}" for key in ("transitions", "mean_return") if key in published]
    return (
        *(f"[{path.stem}]({card_of(path).name})", f"{card['transitions']:,}", f"{card['episodes']:,}"),
        *(f"{card['mean_return']:,.1f}", f"{card['mean_score']:.1f}", quantiles),
        *(f"{card['terminals']:,}", f"{card['timeouts']:,}", f"{area['visited']:,} ({area['effective']:.0f})"),
        *(", ".join(known) or "–", f"{path.stat().st_size / 1e6:.2f}", f"`{card['sha256'][:12]}`"),
    )


def _origin(path: Path, card: dict) -> tuple[str, ...]:
    """Returns a pool's row in the table of how the pools were made."""
    made = card["provenance"]
    versions = ", ".join(f"{package} {made[package]}" for package in PACKAGES)
    seed = str(card.get("seed", "–"))  # an import has none
    return path.stem, f"`{card['command']}`", seed, f"`{made['commit'][:7]}`", made["cpu"], versions, card["licence"]


def write_readme(folder: Path = FOLDERS[0]) -> None:
    """Writes a folder's README.md anew."""
    files.write_atomically(folder / "README.md", readme(folder).encode())


def strip_of(path: Path) -> Path:
    """Returns where the strip of frames of a pool lies."""
    return path.with_suffix(".png")


def moments(dataset: Dataset, count: int, most: int) -> Float[np.ndarray, "count state"]:
    """Returns evenly spaced states from the middle of a typical episode: the one with the median return.

    Args:
        dataset: whole episodes.
        count: how many states.
        most: steps that they span at most; all of an episode that is shorter.
    """
    returns = pd.Series(dataset.reward).groupby(dataset.episode).sum().sort_values(kind="stable")
    rows = np.flatnonzero(dataset.episode == returns.index[len(returns) // 2])
    span = min(most, len(rows))
    first = (len(rows) - span) // 2
    return dataset.state[rows[first + np.linspace(0, span - 1, count).round().astype(int)]]


# --- import ---------------------------------------------------------------------------------------------------------------


def import_dataset(source: str, name: str, folder: Path = FOLDERS[1]) -> Path:
    """Returns the path of a new pool that holds the transitions of a D4RL v2 file or a Minari set.

    Args:
        source: path of the file, or "minari:" and a Minari id.
        name: of the pool: a task's name, a hyphen and whatever says what it is, e.g. "hopper-d4rl-medium-replay".
        folder: to write into.

    Raises:
        ValueError: the name is not of that form or is a bundled pool's, or the data are not the task's.
        FileExistsError: there is such a pool.
    """
    path = folder / f"{name}.hdf5"
    refuse_if_there(path)
    task_name, _, quality = name.partition("-")
    form = f"a pool's name is {name!r}, but it must be a task's, a hyphen and a word of letters, digits and _.+-"
    require(task_name in tasks.TASKS and bool(re.fullmatch(recording.NAME, name) and quality), form)
    own = (*offline_data.QUALITIES, *offline_data.COMPOSED)
    require(quality not in own, f"{name} is a name of this project's own pools: choose another one, e.g. {name}-imported")
    task, dataset = tasks.find(task_name), transitions.load(source)
    tasks.check_dataset(task, dataset)
    rows = transitions.pack(dataset).numpy()
    is_minari = source.startswith(offline_data.MINARI)
    card = {
        "name": name,
        "task": task.gym_id,
        "command": f"python -m mbaug data {source if is_minari else Path(source).name} --as {name}",
        "licence": LICENCE if Path(source).name in offline_data.D4RL_FILES else "as its source says",
        "source": source if is_minari else Path(source).name,
        "source_sha256": None if is_minari else offline_data.sha256(Path(source)),
        "provenance": recording.provenance("float32"),
    }
    write(path, rows, episodes(rows), task, card)
    return path
