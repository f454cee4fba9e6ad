"""The whole programme as plain data: every arm, every study, all planned runs, and their order.

An arm is one way to train an online agent. It has one name, and each run of it is recorded once. A study asks one question of a
set of runs; studies that need the same run read the same record.
"""

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated

from mbaug.checks import Bound, choose, require, settings
from mbaug.experiments.records import Run
from mbaug.method.arms import Arm
from mbaug.method.iql import IQL
from mbaug.method.sac import SAC
from mbaug.method.settings import Augmentation, Finetuning, Pretraining, WorldModel
from mbaug.method.td3 import TD3
from mbaug.tasks import EVERY, EXTRA, TASKS

FOUR = tuple(TASKS)
TWO = ("hopper", "halfcheetah")

# --- arms -----------------------------------------------------------------------------------------------------------------

SCRATCH = Finetuning(warmup_steps=5_000, warmup_policy="uniform")
KEPT = Finetuning(warmup_steps=5_000, keep_data=True)
TD3_SCRATCH, SAC_SCRATCH = Arm(finetuning=SCRATCH), Arm("sac", SAC(), finetuning=SCRATCH)
TD3_DATA = Arm(pretraining=Pretraining(updates=0), finetuning=replace(SCRATCH, keep_data=True))
VANILLA = Arm(pretraining=Pretraining())
LAYERNORM = replace(VANILLA, algorithm="layernorm")
CLONING = {"weak": 0.1, "free": 1e-6}  # strengths of the cloning term; Adam ignores the loss's scale, so 1e-6 acts like 0


def augmented(source: str = "sample", rate: float = 0.5, **model: int | float) -> Arm:
    """Returns the arm whose batches have a share `rate` of next states from `source`.

    `model` overrides settings of the paper's world model.
    """
    return replace(VANILLA, model=replace(WorldModel(), **model), augmentation=Augmentation(rate, source))


def online(arm: Arm, **changes: bool | int) -> Arm:
    """Returns `arm` with changes to its fine-tuning only, so that it shares the pre-training."""
    return replace(arm, finetuning=replace(arm.online, **changes))


def ahead(arm: Arm, horizon: int) -> Arm:
    """Returns `arm` with an n-step target, n = `horizon`, on whole episodes."""
    return replace(arm, pretraining=replace(arm.offline, whole_episodes=True, horizon=horizon))


def ceiling(rate: float = 0.0, branch: int = 1, cloning: float = 1.0) -> Arm:
    """Returns the LayerNorm arm with short budgets and a share `rate` of each batch from the simulator, as a perfect model.

    `cloning` is the strength of the actor's cloning term, relative to TD3+BC. A quarter of the updates and half of the
    interactions keep the screening of all such arms within 15 core-hours.
    """
    rule = Augmentation(rate, "simulator", redraw_interval=5_000, branch=branch) if rate else None
    learner = TD3(behaviour_weight=TD3().behaviour_weight / cloning)
    budgets = {"pretraining": Pretraining(updates=50_000), "finetuning": replace(KEPT, steps=50_000)}
    return replace(LAYERNORM, learner=learner, augmentation=rule, **budgets)


def carried(name: str, arm: Arm) -> dict[str, Arm]:
    """Returns the arms that share the pre-training of `arm` and carry a part of its agent online, or keep the data."""
    return {
        name: arm,
        f"{name}_data": replace(arm, finetuning=KEPT),
        f"{name}_actor": online(arm, carry_critics=False, critic_updates=5_000),
        f"{name}_actor_cold": online(arm, carry_critics=False),
        f"{name}_critics": online(arm, carry_actor=False),
        # A fresh actor hardly moves, so its data teach nothing. This arm therefore warms up with uniform actions, like `td3`.
        f"{name}_critics_uniform": replace(arm, finetuning=replace(SCRATCH, carry_actor=False)),
    }


ARMS: dict[str, Arm] = {
    "td3": TD3_SCRATCH,
    "td3_fast": replace(TD3_SCRATCH, learner=TD3(learning_rate=1e-3)),
    "td3_late": online(TD3_SCRATCH, warmup_steps=25_000),
    "td3_standardised": Arm(pretraining=Pretraining(updates=0), finetuning=SCRATCH),  # by drawn rows, which it then drops
    "td3_bfloat16": replace(TD3_SCRATCH, precision="bfloat16"),
    "td3_data": TD3_DATA,
    "td3_data_raw": replace(TD3_DATA, pretraining=Pretraining(updates=0, standardise=False)),
    "sac": SAC_SCRATCH,
    "sac_slow": replace(SAC_SCRATCH, learner=SAC(learning_rate=3e-4)),
    "sac_late": online(SAC_SCRATCH, warmup_steps=10_000),
    "sac_million": online(SAC_SCRATCH, steps=1_000_000),
    **carried("vanilla", VANILLA),
    **carried("augmented", augmented()),
    "augmented_no_moments": online(augmented(), carry_moments=False),
    "augmented_no_warmup": online(augmented(), warmup_steps=0),
    "noise": augmented("noise"),
    "deterministic": augmented("deterministic"),
    **{
        f"{source}_offline": replace(augmented(source), finetuning=None)
        for source in ("mean", "jitter", "shrink", "reconstruction")
    },
    **{
        f"augmented_{picks}_offline": replace(augmented(), augmentation=Augmentation(picks=picks), finetuning=None)
        for picks in ("trusted", "distrusted")
    },
    # Its tables are drawn 20 times as often. So a sample is used once or twice, almost as if each batch called the model.
    "augmented_redrawn_offline": replace(augmented(), augmentation=Augmentation(redraw_interval=1_000), finetuning=None),
    "target_noise_offline": replace(VANILLA, learner=TD3(target_noise=0.4, target_noise_clip=1.0), finetuning=None),
    **{f"augmented_{percent}": augmented(rate=percent / 100) for percent in (25, 75, 100)},
    **{f"augmented_horizon{n}": ahead(augmented(), n) for n in (1, 2, 3, 5)},
    **{f"vanilla_horizon{n}": ahead(VANILLA, n) for n in (1, 3)},
    "augmented_latent4": augmented(latent_size=4),
    "augmented_latent32": augmented(latent_size=32),
    "augmented_kl0.1": augmented(kl_weight=0.1),
    "augmented_kl10": augmented(kl_weight=10.0),
    "augmented_next_latent": augmented(residual=False),
    "layernorm": LAYERNORM,
    "layernorm_data": replace(LAYERNORM, finetuning=KEPT),
    "td3_layernorm_data": replace(TD3_DATA, algorithm="layernorm"),
    "augmented_layernorm_data": replace(augmented(), algorithm="layernorm", finetuning=KEPT),
    "rlpd": replace(TD3_DATA, algorithm="rlpd", learner=SAC(learning_rate=3e-4, target_entropy_per_action=-0.5)),
    "iql": Arm("iql", IQL(), pretraining=Pretraining(), finetuning=KEPT),
    "ceiling": ceiling(),
    **{f"ceiling_{percent}": ceiling(percent / 100) for percent in (10, 50)},
    **{f"ceiling_50_branch{n}": ceiling(0.5, n) for n in (3, 5)},
    **{f"ceiling_{name}": ceiling(cloning=strength) for name, strength in CLONING.items()},
    **{f"ceiling_50_{name}": ceiling(0.5, cloning=strength) for name, strength in CLONING.items()},
    "bc": Arm("bc", pretraining=Pretraining(updates=50_000), finetuning=KEPT),
}


def offline_updates(arm: Arm) -> int:
    """Returns the gradient steps of an arm's pre-training."""
    return arm.pretraining.updates if arm.pretraining else 0


def updates(arm: Arm) -> int:
    """Returns the gradient steps of a whole run of an arm, to which its cost is proportional."""
    plan = arm.finetuning
    return offline_updates(arm) + (plan.steps - plan.warmup_steps + plan.critic_updates if plan else 0)


# --- studies --------------------------------------------------------------------------------------------------------------


Names = Annotated[tuple[str, ...], Bound(lambda x: x and all(isinstance(name, str) for name in x), "a tuple of one name or more")]
_seeds = Bound(
    lambda x: x and all(isinstance(seed, int) and seed >= 0 for seed in x), "a tuple of whole numbers, each 0 or above"
)
Seeds = Annotated[tuple[int, ...], _seeds]


@settings
class Study:
    """A question and the runs that answer it: arms x tasks x data qualities x seeds."""

    name: str
    question: str
    arms: Names  # in ARMS
    tasks: Names = ("hopper",)
    qualities: Names = ("medium-replay",)  # of offline data; for your own dataset TASK-NAME: NAME
    seeds: Seeds = (0, 1, 2, 3, 4)  # a seed gives the same draw in every arm

    def __post_init__(self) -> None:
        for kind, names, allowed in (("arm", self.arms, ARMS), ("task", self.tasks, EVERY)):
            for name in names:
                choose(f"{kind} in the study {self.name!r}:", name, allowed)

    def runs(self, seeds: int | None = None) -> list[Run]:
        """Returns the runs of the first `seeds` seeds, or of all.

        They come seed by seed, so that arms can be compared early. Arms from scratch use no data,
        so all qualities share their run.
        """
        places = [(task, quality) for task in self.tasks for quality in self.qualities]
        found = [Run(t, dataset(t, q, arm), arm, seed) for seed in self.seeds[:seeds] for t, q in places for arm in self.arms]
        return list(dict.fromkeys(found))


def by_name(*studies: Study) -> dict[str, Study]:
    """Returns the studies by name; raises ValueError if two have the same name."""
    names = [study.name for study in studies]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    require(not twice, f"two studies have the name {', '.join(map(repr, twice))}, but each must have its own")
    return dict(zip(names, studies, strict=True))


def dataset(task: str, quality: str, arm: str) -> str:
    """Returns the name of the dataset that an arm learns from, "none" for arms from scratch."""
    return "none" if ARMS[arm].pretraining is None else f"{task}-{quality}"


_HOPPER = ("td3", "sac", "vanilla", "augmented", "noise")
_TRUSTED = ("augmented_trusted_offline", "augmented_distrusted_offline")
_TABLE = ("augmented", "augmented_redrawn_offline")
_OFFLINE = tuple(f"{source}_offline" for source in ("mean", "jitter", "shrink", "reconstruction", "target_noise"))
_CARRIED = (*(f"{name}_{part}" for name in ("vanilla", "augmented") for part in ("actor", "critics_uniform")), "deterministic")
_CRITICS = ("vanilla_critics", "augmented_critics")
_RATES = ("vanilla", "augmented_25", "augmented", "augmented_75", "augmented_100")
_ALGORITHMS = ("layernorm", "augmented_layernorm_data", "iql", "bc")
_CEILING = tuple(name for name in ARMS if name.startswith("ceiling"))
_MODELS = tuple(f"augmented_{name}" for name in ("latent4", "latent32", "kl0.1", "kl10", "next_latent"))
_HORIZONS = (*(f"augmented_horizon{n}" for n in (1, 2, 3, 5)), *(f"vanilla_horizon{n}" for n in (1, 3)))
_SWEEP = ("td3", "td3_fast", "td3_late", "sac", "sac_slow", "sac_late")
_QUALITIES = ("random", "medium-replay", "medium", "medium-expert", "expert")

STUDIES = by_name(
    Study("hopper", "Does the method jump-start online learning on Hopper?", _HOPPER, seeds=(0, 1, 2)),
    Study("baselines", "How good are agents without pre-training?", ("td3", "sac", "td3_data"), FOUR),
    Study("long", "What does SAC score after a million steps?", ("sac_million",), FOUR, seeds=(0,)),
    Study("sweep", "Are the baselines handicapped?", _SWEEP, ("hopper", "walker2d"), seeds=(0, 1)),
    Study("precision", "Does bfloat16 learn as float32 does?", ("td3", "td3_bfloat16"), TWO),
    Study("core", "Does imagination help?", ("vanilla", "vanilla_data", "augmented", "augmented_data", "noise"), FOUR),
    Study("carried", "What of the pre-trained agent helps? Is a model without latent state as good?", _CARRIED, TWO),
    Study("still", "Do pre-trained critics survive a warm-up with an untrained actor?", _CRITICS, ("halfcheetah",), seeds=(0,)),
    Study("cold", "Does a pre-trained actor survive untrained critics?", ("vanilla_actor_cold", "augmented_actor_cold")),
    Study("table", "Does it matter that imagined states repeat until they are redrawn?", _TABLE, TWO, seeds=(0, 1, 2)),
    Study("sources", "Which part of the model's error does what?", _OFFLINE, TWO, seeds=(0, 1, 2)),
    Study("trusted", "Does it help to imagine where the model is good?", _TRUSTED, TWO, seeds=(0, 1, 2)),
    Study("rates", "Is 50 % the best rate?", _RATES, ("halfcheetah",)),
    Study("horizons", "Do more steps help?", _HORIZONS, ("halfcheetah",)),
    Study("states", "Does TD3 gain by standardised states?", ("td3_data", "td3_data_raw", "td3_standardised"), TWO),
    Study("qualities", "How poor may the data be?", ("vanilla", "augmented"), qualities=_QUALITIES),
    Study("transfer", "What else matters when going online?", ("augmented", "augmented_no_moments", "augmented_no_warmup")),
    Study("models", "Which world model?", ("augmented", *_MODELS)),
    Study("layernorm", "Does LayerNorm in the critics help more than imagination?", ("layernorm_data",), FOUR),
    Study("methods", "What else can be done with the same data?", ("layernorm_data", "td3_layernorm_data", "rlpd"), FOUR),
    Study("ceiling", "Would a perfect model help?", _CEILING, TWO, seeds=(100, 101, 102)),
    Study("algorithms", "Do other losses, or LayerNorm with imagination, help?", _ALGORITHMS, TWO),
)

PLANNED = {(run.arm, run.task) for study in STUDIES.values() for run in study.runs()}  # every arm on each of its tasks

# Runs are recorded line by line, within a line by seed, and within a seed by task (ORDER). `methods` comes early because it
# shows whether the pre-training of `layernorm_data` matters.
PROGRAMME = (
    ("core", "carried", "cold", "layernorm"),
    ("methods",),
    ("table",),
    ("sources",),
    ("trusted",),
    ("rates",),
    ("horizons",),
    ("states",),
    ("algorithms",),
    ("ceiling",),
    ("baselines", "long", "sweep"),
)
ORDER = ("halfcheetah", "hopper", "walker2d", "ant", *EXTRA)


def arm(name: str) -> Arm:
    """Returns the arm called `name`; raises as `choose`."""
    return ARMS[choose("arm", name, ARMS)]


def find(name: str) -> Study:
    """Returns the study called `name`; raises as `choose`."""
    return STUDIES[choose("study", name, STUDIES)]


def programme(seeds: int | None = None) -> list[Run]:
    """Returns the runs of the programme, of the first (or all) seeds of each study, in the order of recording."""
    parts = [[run for name in part for run in find(name).runs(seeds)] for part in PROGRAMME]
    return list(dict.fromkeys(run for part in parts for run in sorted(part, key=lambda r: (r.seed, ORDER.index(r.task)))))


def with_seeds(runs: Iterable[Run], seeds: Iterable[int]) -> list[Run]:
    """Returns the same runs with `seeds` in place of their own seeds, seed by seed."""
    unique = dict.fromkeys(replace(run, seed=0) for run in runs)
    return list(dict.fromkeys(replace(run, seed=seed) for seed in seeds for run in unique))


# --- budgets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """Upper limits for the settings of an arm. `None` sets no limit."""

    name: str
    _: KW_ONLY
    updates: int | None = None
    steps: int | None = None
    warmup_steps: int | None = None
    critic_updates: int | None = None
    epochs: int | None = None
    episodes: int | None = None
    probe_steps: int | None = None
    evaluation_interval: int | None = None  # in updates and in environment steps
    transitions: int | None = None
    redraw_interval: int | None = None
    seeds: int | None = None  # how many of a study's seeds

    def apply(self, arm: Arm) -> Arm:
        """Returns `arm` with its settings reduced to this profile's limits, and budgets to multiples of the interval."""
        limits = {name: value for name, value in vars(self).items() if isinstance(value, int) and name != "seeds"}

        def within(part):
            if part is None:
                return None
            reduced = {name: min(getattr(part, name), limit) for name, limit in limits.items() if hasattr(part, name)}
            for budget in [name for name in ("updates", "steps") if name in reduced]:
                reduced[budget] -= reduced[budget] % reduced["evaluation_interval"]
            return replace(part, **reduced)

        stages = ("model", "augmentation", "pretraining", "finetuning", "evaluation")
        return replace(arm, **{stage: within(getattr(arm, stage)) for stage in stages})


PROFILES = {
    "smoke": Profile(
        "smoke",
        updates=100,
        steps=200,
        warmup_steps=100,
        critic_updates=50,
        epochs=2,
        episodes=2,
        probe_steps=5,
        evaluation_interval=50,
        transitions=2_000,
        redraw_interval=50,
        seeds=1,
    ),
    "quick": Profile(
        "quick",
        updates=20_000,
        steps=20_000,
        warmup_steps=5_000,
        critic_updates=1_000,
        epochs=60,
        episodes=5,
        probe_steps=100,
        evaluation_interval=2_500,
        redraw_interval=2_500,
        seeds=1,
    ),
    "paper": Profile("paper"),
}


def profile(name: str) -> Profile:
    """Returns the profile called `name`; raises as `choose`."""
    return PROFILES[choose("profile", name, PROFILES)]


def cells(runs: Sequence[Run], population: int = 1) -> list[list[list[Run]]]:
    """Returns the runs as cells. One process trains a cell: populations that share a pre-training, one after the other.

    A population is at most `population` runs that differ only in their seed.
    """
    by_arm: dict[tuple, list[Run]] = {}
    for run in runs:
        by_arm.setdefault((run.task, run.dataset, run.arm), []).append(run)
    populations = [same[k : k + population] for same in by_arm.values() for k in range(0, len(same), population)]
    order = {run: place for place, run in enumerate(runs)}
    found: dict[tuple, list[list[Run]]] = {}
    for group in sorted(populations, key=lambda group: order[group[0]]):
        arm, seeds = ARMS[group[0].arm], tuple(run.seed for run in group)
        found.setdefault((group[0].task, group[0].dataset, seeds, arm.offline_part or arm), []).append(group)
    return list(found.values())
