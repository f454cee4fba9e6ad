"""The whole programme as plain data: every arm, every study, every run that there should be.

An arm is one way to an online agent. A study asks one question: its tasks x data qualities x arms x seeds.
"""

from dataclasses import dataclass, replace

from mbaug import settings
from mbaug.recording import Run
from mbaug.settings import SAC, TD3, Arm, Augmentation, Dynamics, Finetuning, Pretraining, WorldModel

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


def ahead(horizon: int) -> Arm:
    """Returns the augmented arm with an n-step target, on whole episodes at every horizon."""
    return replace(augmented(), pretraining=Pretraining(whole_episodes=True, horizon=horizon))


def sized(arm: Arm, transitions: int) -> Arm:
    """Returns `arm` with that many offline transitions."""
    return replace(arm, pretraining=replace(arm.pretraining, transitions=transitions))


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
NOISY = {
    "action_noise": Dynamics(action_noise=0.2),
    "observation_noise": Dynamics(observation_noise=0.02),
    "pushes": Dynamics(push_probability=0.02, push_force=100.0),
}
MODELS = {
    "latent4": WorldModel(latent_size=4),
    "latent32": WorldModel(latent_size=32),
    "kl0.1": WorldModel(kl_weight=0.1),
    "kl10": WorldModel(kl_weight=10.0),
    "next_latent": WorldModel(residual=False),
}
BOTH = augmented()

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
            ("halfcheetah", "hopper"),
        ),
        Study("core", "Does imagination help?", named("vanilla", "augmented", "noise", "deterministic"), FOUR),
        Study(
            "rates",
            "Is 50 % the best rate?",
            named("vanilla", "augmented") | {f"augmented_{percent}": augmented(rate=percent / 100) for percent in (25, 75, 100)},
        ),
        Study("horizons", "Do more steps help?", {f"horizon{n}": ahead(n) for n in (1, 2, 3, 5)}),
        Study(
            "sizes",
            "How small is small?",
            {
                f"{name}{size}": sized(ARMS[name], size)
                for size in (1_000, 3_000, 10_000, 30_000, 100_000)
                for name in ("vanilla", "augmented")
            },
            qualities=("replay",),  # whole, because a bundled pool has 45,000; `python -m mbaug collect hopper` makes it
        ),
        Study(
            "qualities",
            "How poor may the data be?",
            named("vanilla", "augmented"),
            qualities=("random", "medium-replay", "medium", "medium-expert", "expert"),
        ),
        Study(
            "transfer",
            "What of the pre-trained agent helps online?",
            {
                "augmented": BOTH,
                "augmented_actor": finetuned(BOTH, carry_critics=False),
                "augmented_critic": finetuned(BOTH, carry_actor=False),
                "augmented_no_moments": finetuned(BOTH, carry_moments=False),
                "augmented_with_data": finetuned(BOTH, keep_data=True),
                "augmented_no_warmup": finetuned(BOTH, warmup_steps=0),
                "vanilla": VANILLA,
                "vanilla_actor": finetuned(VANILLA, carry_critics=False),
                "vanilla_critic": finetuned(VANILLA, carry_actor=False),
            },
        ),
        Study(
            "models",
            "Which world model?",
            {name: augmented(model=model) for name, model in MODELS.items()} | {"mean": augmented("mean")},
        ),
        Study(
            "stochastic",
            "What if the world is noisy?",
            {
                f"{arm}_{name}": replace(ARMS[arm], dynamics=d)
                for name, d in NOISY.items()
                for arm in ("td3", "vanilla", "augmented")
            },
        ),
    )
}


def find(name: str) -> Study:
    """Returns the study of that name.

    Raises:
        ValueError: the name is unknown; the sentence names the nearest.
    """
    return STUDIES[settings.choose("study", name, STUDIES)]


def updates(arm: Arm) -> int:
    """Returns the gradient steps of an agent's whole life: what its cost is proportional to."""
    offline = arm.pretraining.updates if arm.pretraining else 0
    return offline + arm.finetuning.steps - arm.finetuning.warmup_steps
