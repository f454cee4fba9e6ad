"""The whole programme as plain data: every arm, every study, every run that there should be.

An arm is one way to an online agent. A study asks one question: its tasks x data qualities x arms x seeds.
"""

from dataclasses import dataclass, replace

from mbaug import settings
from mbaug.recording import Run
from mbaug.settings import SAC, TD3, Arm, Augmentation, Finetuning, Pretraining, WorldModel

TWO = ("halfcheetah", "hopper")
FOUR = ("hopper", "walker2d", "halfcheetah", "ant")

# --- arms -----------------------------------------------------------------------------------------------------------------

SCRATCH = Finetuning(warmup_steps=5_000, warmup_policy="uniform")
TD3_ARM, SAC_ARM = Arm("td3", TD3(), finetuning=SCRATCH), Arm("sac", SAC(), finetuning=SCRATCH)
VANILLA = Arm(pretraining=Pretraining())


def augmented(source: str = "sample", rate: float = 0.5, model: WorldModel | None = None) -> Arm:
    """Returns the arm whose batches hold a share `rate` of next states from `source`; the paper's model if none is given."""
    return replace(VANILLA, model=model or WorldModel(), augmentation=Augmentation(rate, source))


def finetuned(arm: Arm, **changes) -> Arm:
    """Returns `arm` with a changed fine-tuning protocol; its pre-training is shared."""
    return replace(arm, finetuning=replace(arm.finetuning, **changes))


def with_data(arm: Arm) -> Arm:
    """Returns `arm` with the offline rows in its replay, and a warm-up as short as that of the arms from scratch."""
    return finetuned(arm, keep_data=True, warmup_steps=5_000)


def ahead(horizon: int) -> Arm:
    """Returns the augmented arm with an n-step target, on whole episodes at every horizon."""
    return replace(augmented(), pretraining=Pretraining(whole_episodes=True, horizon=horizon))


ARMS = {
    "td3": TD3_ARM,
    "sac": SAC_ARM,
    "td3_data": replace(TD3_ARM, pretraining=Pretraining(updates=0), finetuning=replace(SCRATCH, keep_data=True)),
    "vanilla": VANILLA,
    "augmented": augmented(),
    "noise": augmented("noise"),
    "deterministic": augmented("deterministic"),
    "reconstruction": augmented("reconstruction"),
}

# --- studies --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A part of the programme.

    Attributes:
        name: of the study, also of its folder in data/runs.
        question: that it answers.
        arms: name and settings.
        tasks: of the paper's four.
        qualities: of the offline data, e.g. "medium-replay".
        seeds: of the runs; the same seed is the same draw in every arm.
    """

    name: str
    question: str
    arms: dict[str, Arm]
    tasks: tuple[str, ...] = ("hopper",)
    qualities: tuple[str, ...] = ("medium-replay",)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def arm(self, name: str) -> Arm:
        """Returns the settings of an arm of this study.

        Raises:
            ValueError: the arm is unknown; the sentence names the nearest.
        """
        return self.arms[settings.choose("arm", name, self.arms)]

    def runs(self) -> list[Run]:
        """Returns the runs in the order in which they are trained: seed by seed, so that comparisons are paired early."""
        found = {
            Run(self.name, task, self.dataset(task, quality, arm), arm, seed): None
            for seed in self.seeds
            for task in self.tasks
            for quality in self.qualities
            for arm in self.arms
        }
        return list(found)  # an arm from scratch is one run for all qualities

    def dataset(self, task: str, quality: str, arm: str) -> str:
        """Returns the name of the dataset that an arm learns from, "none" from scratch."""
        return "none" if self.arm(arm).pretraining is None else f"{task}-{quality}"


def named(*names: str) -> dict[str, Arm]:
    """Returns these of the arms above."""
    return {name: ARMS[name] for name in names}


MILLION = replace(SAC_ARM, finetuning=replace(SCRATCH, steps=1_000_000))
SLOW, EAGER = replace(SAC_ARM, learner=SAC(learning_rate=3e-4)), replace(TD3_ARM, learner=TD3(learning_rate=1e-3))
MODELS = {
    "latent4": WorldModel(latent_size=4),
    "latent32": WorldModel(latent_size=32),
    "kl0.1": WorldModel(kl_weight=0.1),
    "kl10": WorldModel(kl_weight=10.0),
    "next_latent": WorldModel(residual=False),
}
BOTH = augmented()
CORE = {
    "vanilla": VANILLA,
    "vanilla_data": with_data(VANILLA),
    "augmented": BOTH,
    "augmented_data": with_data(BOTH),
    "noise": augmented("noise"),
}
CARRIED = {
    "vanilla_actor": finetuned(VANILLA, carry_critics=False, critic_updates=5_000),
    "vanilla_critics": finetuned(VANILLA, carry_actor=False),
    "augmented_actor": finetuned(BOTH, carry_critics=False, critic_updates=5_000),
    "augmented_critics": finetuned(BOTH, carry_actor=False),
    "deterministic": augmented("deterministic"),
}
COLD = {
    "vanilla_actor_cold": finetuned(VANILLA, carry_critics=False),
    "augmented_actor_cold": finetuned(BOTH, carry_critics=False),
}

STUDIES = {
    study.name: study
    for study in (
        Study("hopper", "Does it jump-start Hopper?", named("td3", "sac", "vanilla", "augmented", "noise"), seeds=(0, 1, 2)),
        Study("baselines", "How good is no pre-training?", named("td3", "sac", "td3_data"), FOUR),
        Study("long", "Where does SAC end?", {"sac_million": MILLION}, FOUR, seeds=(0,)),
        Study(
            "sweep",
            "Are the baselines handicapped?",
            {
                "td3": TD3_ARM,
                "td3_fast": EAGER,
                "td3_late": finetuned(TD3_ARM, warmup_steps=25_000),
                "sac": SAC_ARM,
                "sac_slow": SLOW,
                "sac_late": finetuned(SAC_ARM, warmup_steps=10_000),
            },
            ("hopper", "walker2d"),
            seeds=(0, 1),
        ),
        Study(
            "precision",
            "Does bfloat16 learn as float32 does?",
            {"float32": TD3_ARM, "bfloat16": replace(TD3_ARM, precision="bfloat16")},
            ("hopper", "halfcheetah"),
        ),
        Study(
            "states",
            "Does TD3 with the data gain by standardised states?",
            {"td3_data_raw": replace(ARMS["td3_data"], pretraining=Pretraining(updates=0, standardise=False))},
            TWO,
        ),
        Study("core", "Does imagination help?", CORE, FOUR),
        Study("carried", "What of the pre-trained agent helps, and is a model without a latent state as good?", CARRIED, TWO),
        Study("cold", "Do fresh critics ruin a carried actor?", COLD),
        Study(
            "rates",
            "Is 50 % the best rate?",
            named("vanilla", "augmented") | {f"augmented_{percent}": augmented(rate=percent / 100) for percent in (25, 75, 100)},
        ),
        Study("horizons", "Do more steps help?", {f"horizon{n}": ahead(n) for n in (1, 2, 3, 5)}),
        Study(
            "qualities",
            "How poor may the data be?",
            named("vanilla", "augmented"),
            qualities=("random", "medium-replay", "medium", "medium-expert", "expert"),
        ),
        Study(
            "transfer",
            "What else of the way online matters?",
            {
                "augmented": BOTH,
                "augmented_no_moments": finetuned(BOTH, carry_moments=False),
                "augmented_no_warmup": finetuned(BOTH, warmup_steps=0),
            },
        ),
        Study(
            "models",
            "Which world model?",
            {name: augmented(model=model) for name, model in MODELS.items()} | {"mean": augmented("mean")},
        ),
    )
}


def find(name: str) -> Study:
    """Returns the study of that name.

    Raises:
        ValueError: the name is unknown; the sentence names the nearest.
    """
    return STUDIES[settings.choose("study", name, STUDIES)]


# Studies that are recorded together, seed by seed, in the order of their importance; within a seed, tasks in this order.
PROGRAMME = (("core", "carried", "cold"), ("states",))
ORDER = ("halfcheetah", "hopper", "walker2d", "ant")


def cells(part: tuple[str, ...]) -> list[list[Run]]:
    """Returns the runs of some studies in the order in which they are trained, those that share a pre-training together."""
    found: dict[tuple, list[Run]] = {}
    runs = [run for name in part for run in find(name).runs()]
    for run in sorted(runs, key=lambda run: (run.seed, ORDER.index(run.task))):
        arm = find(run.study).arm(run.arm)
        found.setdefault((run.task, run.dataset, run.seed, offline(arm) or arm), []).append(run)
    return list(found.values())


def offline(arm: Arm) -> Arm | None:
    """Returns the part of an arm that others with the same pre-training share, None if it has none."""
    return None if arm.pretraining is None else replace(arm, finetuning=None)


def updates(arm: Arm) -> int:
    """Returns the gradient steps of an agent's whole life: what its cost is proportional to."""
    offline = arm.pretraining.updates if arm.pretraining else 0
    plan = arm.finetuning
    return offline + (plan.steps - plan.warmup_steps + plan.critic_updates if plan else 0)
