"""A record's metadata: what the JSON beside its CSV says. It is read as strictly as settings are, and carries its own digest."""

from typing import Annotated, Any

from mbaug import checks, provenance
from mbaug.checks import Bound, NotNegative, Share, Whole, require, settings
from mbaug.datasets.cards import Sha256
from mbaug.method import arms
from mbaug.provenance import Provenance

FORMAT = 7
LATER = {  # names that came with a format after 3, the oldest
    **dict.fromkeys(("calibration", "overfitting", "value_std", "probe_steps", "critic_updates", "standardise", "dynamics"), 4),
    "sha256": 5,
    "picks": 6,
    "branch": 7,
}
OPTIONAL = {"error_elsewhere", "policies_sha256"} | provenance.OPTIONAL  # in every format

Number = float | None  # null where it was not finite


def keys(*names: str, more: str = "") -> Bound:
    """Returns the bound of an object that has these keys and, perhaps, one `more`."""
    return Bound(lambda x: {*x} - {more} == {*names}, f"of {', '.join(names)}")


def numbers(count: int) -> Bound:
    """Returns the bound of a list of so many numbers."""
    return Bound(lambda x: len(x) == count, f"{count} numbers")


Percentiles = Annotated[tuple[Number, ...], numbers(7)]
Roughness = Annotated[tuple[NotNegative | None, ...], numbers(2)]
CALIBRATED = keys("states", "value", "return", "gap", "gap_std", "value_std", "return_std", "twin_gap", "rank_correlation")
PREDICTED = keys("sample", "mean", "reconstruction", "persistence", "linear", more="deterministic")
GROUPS = Bound(lambda x: {"all"} < {*x} <= {"all", "anywhere", "near a fall", "low return", "high return"}, "of all and groups")


@settings
class Overfitting:
    """Of critics when pre-training ends: see `measures.overfitting`."""

    error_trained: NotNegative | None
    error_new: NotNegative | None
    percentiles: Annotated[dict[str, Percentiles], keys("recorded", "action", "state")]
    roughness: Annotated[dict[str, Roughness], keys("action", "state")]
    value_std: NotNegative | None = None
    error_elsewhere: NotNegative | None = None


@settings
class Signatures:
    """Of a failure: see `measures.signatures`."""

    score_drop: Number
    value_gap: Number
    imagined_outside: Share | None
    overfitting: Overfitting | None = None


@settings
class Metadata:
    """All that a record's JSON says."""

    format: int
    task: str
    dataset: str
    arm: str
    seed: Whole
    settings: arms.Arm
    draw_sha256: Sha256 | None  # of the transitions that this seed drew from its dataset; None from scratch
    status: Annotated[str, Bound(lambda x: x in ("finished", "diverged"), "finished or diverged")]
    diverged_at: Annotated[dict[str, Whole], keys("gradient_steps", "environment_steps")] | None
    watch: Signatures
    world_model: Annotated[dict[str, tuple[Number, ...]], PREDICTED] | None  # its held-out errors
    provenance: Provenance
    wall_seconds: NotNegative  # of training and evaluation; of a population's, the share of one agent
    csv_sha256: Sha256
    calibration: Annotated[dict[str, Annotated[dict[str, Number], CALIBRATED]], GROUPS] | None = None  # measures.calibration
    policies_sha256: Sha256 | None = None  # of the actors that were kept
    sha256: Sha256 | None = None  # of this JSON without it

    def __post_init__(self) -> None:
        where = self.diverged_at
        require((self.status == "diverged") == (where is not None), f"status is {self.status!r}, but diverged_at is {where}")
        scratch = self.settings.pretraining is None
        for name, value, none in (("draw_sha256", self.draw_sha256, None), ("dataset", self.dataset, "none")):
            require((value == none) == scratch, f"{name} is {value!r}, but pretraining is {'' if scratch else 'not '}None")
        sizes = {len(errors) for errors in (self.world_model or {}).values()}
        require(len(sizes) <= 1, f"world_model has errors of {sorted(sizes)} dimensions, but all must be of as many")
        own, said = self.settings.precision, self.provenance.precision
        require(own == said, f"provenance.precision is {said!r}, but it must be that of the settings, {own!r}")


OWN = ("settings", "draw_sha256", "status", "diverged_at", "watch", "calibration", "world_model", "provenance", "wall_seconds")


def arm(metadata: dict[str, Any], where: str = "a record") -> arms.Arm:
    """Returns the settings of a record; a setting newer than its format takes its default, which is what was done then."""
    return arms.read(metadata.get("settings"), where, _lacking(metadata))


def checked(metadata: Any, where: str) -> dict[str, Any]:
    """Returns metadata as they were given; raises ValueError with `where` and the key that is not as it must be."""
    number = metadata.get("format") if isinstance(metadata, dict) else None
    known = type(number) is int and 3 <= number <= FORMAT
    require(known, f"{where} has the format {number!r}; this version of mbaug reads formats 3 to {FORMAT}")
    checks.read(Metadata, metadata | {"settings": arm(metadata, where)}, where, _lacking(metadata))
    return metadata


def _lacking(metadata: dict[str, Any]) -> set[str]:
    return OPTIONAL | {name for name, since in LATER.items() if metadata["format"] < since}
