"""Cards: the JSON file beside each pool that describes it. `pools.write` writes them. We check them as strictly as settings."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from mbaug import checks, files, provenance
from mbaug.checks import Bound, Count, Positive, Whole, require, settings
from mbaug.method import arms
from mbaug.provenance import Provenance

LATER = {"critic_updates", "dynamics", "probe_steps"}  # settings that did not exist when the first cards were written
Sha256 = Annotated[str, Bound(lambda x: len(x) == 64 and set(x) <= set("0123456789abcdef"), "64 hexadecimal digits")]


class DatasetDamaged(ValueError):
    """A data file is unusable: it is incomplete, is not HDF5, or does not match its checksum."""


@settings
class Coverage:
    """How much of a plane of two state components the states cover: see `pools.coverage`."""

    plane: tuple[str, ...]  # names of the two components, with their units
    cell: tuple[float, ...]  # size of a cell, in the same units
    visited: Count  # number of cells that hold a state
    effective: Positive  # exponential of the entropy of the cells' shares


@settings
class Point:
    """One evaluation of the agent that collected the data."""

    environment_steps: Whole
    returns: tuple[float, ...]


@settings
class Card:
    """The contents of a card. We collected the pool ourselves (the card has a seed) or imported it (the card has a source)."""

    name: str
    task: str  # Gymnasium's id
    command: str  # shell command that makes the pool
    licence: str
    provenance: Provenance
    file: str
    sha256: Sha256  # of the HDF5 file
    transitions: Count
    episodes: Count
    mean_return: float
    mean_score: float
    return_quantiles: dict[str, float]
    terminals: Whole
    timeouts: Whole
    state_coverage: Coverage
    d4rl: dict[str, float] | None  # what D4RL published about its dataset of this name, as far as we know it
    # imported pools only
    source: str | None = None  # file name or Minari id
    source_sha256: str | None = None  # of the source file
    # our own pools only
    seed: Whole | None = None
    run: str | None = None  # recorded training run; None if this run differed, or for `random`
    settings: Any = None  # of the training
    policy: str | None = None  # the policy that was rolled out
    greedy_return: float | None = None  # mean return of that policy's evaluation
    stop: str | None = None  # rule that decides where the replay ends
    medium_level: float | None = None
    replay_transitions: Count | None = None
    replay_episodes: Count | None = None
    replay_mean_return: float | None = None
    curve: tuple[Point, ...] | None = None
    card_sha256: Sha256 | None = None  # of the card without this key; `read_card` requires it


OPTIONAL = {field.name for field in dataclasses.fields(Card) if field.default is None}


def checked(plain: Any, where: str) -> dict[str, Any]:
    """Returns the contents of a card unchanged after checking them.

    Raises:
        ValueError: A key is missing, unknown or has a value that is not allowed; the message begins
            with `where`.
    """
    card = checks.read(Card, plain, where, OPTIONAL | provenance.OPTIONAL)
    if card.settings is not None:
        arms.read(card.settings, where, LATER)
    return plain


def sealed(card: dict[str, Any]) -> bytes:
    """Returns the JSON of a card, including its own SHA-256."""
    return files.sealed(card, "card_sha256", indent=1)


def read_card(path: Path) -> dict[str, Any]:
    """Returns the contents of the card of the pool at `path`.

    Raises:
        DatasetDamaged: The card is missing or invalid.
    """
    card = path.with_suffix(".json")
    try:
        require(card.exists(), f"{card} does not exist")
        content = files.content(card)
        found = checked(files.parse_json(content, str(card)), str(card))
        require(content == sealed(found), f"{card}: its content does not match its SHA-256")
    except ValueError as error:
        raise DatasetDamaged(f"{path} has no valid card: {error}; restore the pool and its card or make both again") from error
    return found
