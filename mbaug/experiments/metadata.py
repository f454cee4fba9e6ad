"""A record's metadata: the JSON beside its CSV. It is checked as strictly as settings are, and holds its own digest."""

from typing import Annotated, Any

from mbaug import checks, provenance
from mbaug.checks import Bound, NotNegative, Share, Whole, require, settings
from mbaug.datasets.cards import Sha256
from mbaug.experiments import probes
from mbaug.method import arms
from mbaug.provenance import Provenance

FORMAT = 7
ADDED_IN = {  # the format that introduced each key; all others are in every format from 3, the oldest
    **dict.fromkeys(("calibration", "overfitting", "value_std", "probe_steps", "critic_updates", "standardise", "dynamics"), 4),
    "sha256": 5,
    "picks": 6,
    "branch": 7,
}
# Keys that a record of any format may lack: some tasks have no second pool, and some runs keep no actors.
OPTIONAL = {"error_elsewhere", "policies_sha256"} | provenance.OPTIONAL

Number = float | None  # null if it was not finite


def keys(*names: str, more: str = "") -> Bound:
    """Returns the bound of an object that has exactly these keys and, optionally, the key `more`."""
    return Bound(lambda x: {*x} - {more} == {*names}, f"an object with the keys {', '.join(names)}")


def numbers(count: int) -> Bound:
    """Returns the bound of a list of `count` numbers."""
    return Bound(lambda x: len(x) == count, f"a list of {count} numbers")


Percentiles = Annotated[tuple[Number, ...], numbers(7)]
Roughness = Annotated[tuple[NotNegative | None, ...], numbers(2)]
CALIBRATED = keys("states", "value", "return", "gap", "gap_std", "value_std", "return_std", "twin_gap", "rank_correlation")
PREDICTED = keys("sample", "mean", "reconstruction", "persistence", "linear", more="deterministic")
GROUPS = Bound(
    lambda x: {"all"} < {*x} <= {"all", *probes.GROUPS},
    "an object with the key 'all' and at least one group of states",
)


@settings
class Overfitting:
    """Errors and roughness of an agent's critics when pre-training ends (`measures.overfitting`)."""

    error_trained: NotNegative | None
    error_new: NotNegative | None
    percentiles: Annotated[dict[str, Percentiles], keys("recorded", "action", "state")]
    roughness: Annotated[dict[str, Roughness], keys("action", "state")]
    value_std: NotNegative | None = None
    error_elsewhere: NotNegative | None = None


@settings
class Signatures:
    """Signs of a failure in a run (`measures.signatures`), and the measures of over-fitting."""

    score_drop: Number
    value_gap: Number
    imagined_outside: Share | None
    overfitting: Overfitting | None = None


@settings
class Metadata:
    """The content of a record's JSON."""

    format: int
    task: str
    dataset: str
    arm: str
    seed: Whole
    settings: arms.Arm
    draw_sha256: Sha256 | None  # of the transitions that this seed drew from its dataset; None for runs from scratch
    status: Annotated[str, Bound(lambda x: x in ("finished", "diverged"), "finished or diverged")]
    diverged_at: Annotated[dict[str, Whole], keys("gradient_steps", "environment_steps")] | None
    watch: Signatures
    world_model: Annotated[dict[str, tuple[Number, ...]], PREDICTED] | None  # held-out errors, a number per state dimension
    provenance: Provenance
    wall_seconds: NotNegative  # of training and evaluation; in a population, one agent's share
    csv_sha256: Sha256
    calibration: Annotated[dict[str, Annotated[dict[str, Number], CALIBRATED]], GROUPS] | None = None  # `measures.calibration`
    policies_sha256: Sha256 | None = None  # of the file of kept actors
    sha256: Sha256 | None = None  # of this JSON without this key

    def __post_init__(self) -> None:
        where = self.diverged_at
        require((self.status == "diverged") == (where is not None), f"status is {self.status!r}, but diverged_at is {where}")
        scratch = self.settings.pretraining is None
        for name, value, none in (("draw_sha256", self.draw_sha256, None), ("dataset", self.dataset, "none")):
            require((value == none) == scratch, f"{name} is {value!r}, but pretraining is {'' if scratch else 'not '}None")
        sizes = {len(errors) for errors in (self.world_model or {}).values()}
        require(len(sizes) <= 1, f"world_model has lists of {sorted(sizes)} errors, but all lists must be equally long")
        expected, found = self.settings.precision, self.provenance.precision
        require(found == expected, f"provenance.precision is {found!r}, but it must be that of the settings, {expected!r}")


# The keys that the caller of `records.write` supplies. The function adds the others.
OWN = ("settings", "draw_sha256", "status", "diverged_at", "watch", "calibration", "world_model", "provenance", "wall_seconds")


def arm(metadata: dict[str, Any], where: str = "a record") -> arms.Arm:
    """Returns a record's settings. A setting newer than its format takes its default, which reproduces the earlier behaviour."""
    return arms.read(metadata.get("settings"), where, _may_lack(metadata))


def checked(metadata: Any, where: str) -> dict[str, Any]:
    """Returns valid metadata unchanged; raises ValueError with `where` and the first invalid key."""
    number = metadata.get("format") if isinstance(metadata, dict) else None
    known = type(number) is int and 3 <= number <= FORMAT
    require(known, f"{where} has the format {number!r}; this version of mbaug reads formats 3 to {FORMAT}")
    checks.read(Metadata, metadata | {"settings": arm(metadata, where)}, where, _may_lack(metadata))
    return metadata


def _may_lack(metadata: dict[str, Any]) -> set[str]:
    """Returns the keys that a record of this format may lack."""
    return OPTIONAL | {name for name, since in ADDED_IN.items() if metadata["format"] < since}
