"""A card: what the JSON beside a pool says of it. It is read as strictly as settings are, and written by `pools.write`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from mbaug import checks, files, provenance, tasks
from mbaug.checks import Bound, Count, Positive, Whole, require, settings
from mbaug.method import arms
from mbaug.provenance import Provenance

LATER = {"critic_updates", "dynamics", "probe_steps"}  # settings that came after the first cards were written
Sha256 = Annotated[str, Bound(lambda x: len(x) == 64 and set(x) <= set("0123456789abcdef"), "64 hexadecimal digits")]
PUBLISHED = Bound(
    lambda x: x is None or {*x} <= {"transitions", "episodes", "mean_return"}, "of transitions, episodes, mean_return"
)
Published = Annotated[dict[str, float] | None, PUBLISHED]


class DatasetDamaged(ValueError):
    """A file of offline data is not what it should be: half a download, no HDF5, or other contents than its checksum says."""


@settings
class Coverage:
    """How much of a plane the states cover: see `pools.coverage`."""

    plane: tuple[str, ...]
    cell: tuple[float, ...]
    visited: Count
    effective: Positive


@settings
class Point:
    """An evaluation of the agent that collected."""

    environment_steps: Whole
    returns: tuple[float, ...]


@settings
class Card:
    """All that a card says. A pool is of our own training (it has a seed) or is imported (it has a source)."""

    name: str
    task: str  # as Gymnasium names it
    command: str  # that makes the pool
    licence: str
    provenance: Provenance
    file: str
    sha256: Sha256  # of the file
    transitions: Count
    episodes: Count
    mean_return: float
    mean_score: float
    return_quantiles: dict[str, float]
    terminals: Whole
    timeouts: Whole
    state_coverage: Coverage
    d4rl: Published  # of D4RL's dataset of that name, as far as it is known here
    # of an import
    source: str | None = None  # file or Minari id
    source_sha256: str | None = None  # of the file
    # of our own
    seed: Whole | None = None
    run: str | None = None  # that is recorded; None where this training went otherwise, or there was none
    settings: Any = None  # of the training
    policy: str | None = None  # that was rolled out
    greedy_return: float | None = None  # mean of the evaluation at that moment
    stop: str | None = None  # when the replay ends
    medium_level: float | None = None
    replay_transitions: Count | None = None
    replay_episodes: Count | None = None
    replay_mean_return: float | None = None
    curve: tuple[Point, ...] | None = None
    card_sha256: Sha256 | None = None  # of the card without this line; `read_card` refuses a card without it

    def __post_init__(self) -> None:
        checks.choose("task", self.task, [task.gym_id for task in tasks.TASKS.values()])
        require(self.file == f"{self.name}.hdf5", f"file is {self.file!r}, but it must be the name with .hdf5")
        ends = self.terminals + self.timeouts
        require(ends == self.episodes, f"terminals and timeouts are {ends}, but they must be as many as the episodes")
        require(self.episodes <= self.transitions, f"episodes is {self.episodes}, but it must be at most the transitions")
        quantiles = list(self.return_quantiles), list(self.return_quantiles.values())
        rising = quantiles == (["0", "25", "50", "75", "100"], sorted(quantiles[1]))
        require(rising, f"return_quantiles is {self.return_quantiles}, but it must be of 0, 25, 50, 75, 100, and rise")
        require((self.seed is None) != (self.source is None), "a card has either a seed or a source")
        require(
            self.seed is None or (self.policy is None) != (self.curve is None),
            "a card with a seed has either a policy or a curve",
        )


DIGEST = "card_sha256"
OPTIONAL = {field.name for field in dataclasses.fields(Card) if field.default is None}


def checked(plain: Any, where: str) -> dict[str, Any]:
    """Returns what a card says, as it was given; a sentence that begins with `where` names the key that is not as it must be."""
    card = checks.read(Card, plain, where, OPTIONAL | provenance.OPTIONAL)
    if card.settings is not None:
        arms.read(card.settings, where, LATER)
    return plain


def sealed(card: dict[str, Any]) -> bytes:
    """Returns the JSON of a card, with its own digest."""
    return files.sealed(card, DIGEST, indent=1)


def read_card(path: Path) -> dict[str, Any]:
    """Returns what the card of a pool says, the JSON beside it; DatasetDamaged: there is none, or not such a one."""
    card = path.with_suffix(".json")
    try:
        content = files.content(card)
        found = checked(files.parse_json(content, str(card)), str(card))
        require(content == sealed(found), f"the SHA-256 of {card} is not the one in it")
        return found
    except (FileNotFoundError, ValueError) as error:
        why = f"{error}" if isinstance(error, ValueError) else "it is not there"
        raise DatasetDamaged(f"{path} needs its card, {card.name}, but {why}: restore or make both again") from error
