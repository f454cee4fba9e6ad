"""Every number of the project, once: hyper-parameters with symbol, unit and source, and the budgets of the profiles.

Sources: [C] the authors' development repository (October 2023), [S] and [A] two summaries of the paper, TD3 (Fujimoto et al.
2018), TD3+BC (Fujimoto & Gu 2021), SAC (Haarnoja et al. 2018b, "Algorithms and Applications"). `ours` marks what no source
states, with the reason. A profile changes budgets only, never a hyper-parameter.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

SOURCES = ("none", "sample", "mean", "reconstruction", "noise", "deterministic")
PRECISIONS = ("float32", "bfloat16", "float64")
ALGORITHMS = ("td3", "sac")


def choose(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Returns `given` if it is one of `allowed`.

    Raises:
        ValueError: `kind` `given` is unknown; the sentence names the nearest allowed names and all of them.
    """
    allowed = list(allowed)
    if given in allowed:
        return given
    near = difflib.get_close_matches(str(given), allowed)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {kind} {given!r}: {hint}allowed are {', '.join(map(repr, allowed))}")


def require(holds: bool, sentence: str) -> None:
    """Raises ValueError with `sentence` (what was given, what is allowed) unless it `holds`."""
    if not holds:
        raise ValueError(sentence)


def _whole(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        require(isinstance(value, Integral), f"{name} is {value!r}, but it must be a whole number")


def _positive(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        require(value > 0, f"{name} is {value!r}, but it must be above 0")


def _not_negative(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        require(value >= 0, f"{name} is {value!r}, but it must be 0 or above")


def _units(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        whole = all(isinstance(units, Integral) and units > 0 for units in value)
        require(whole, f"{name} is {value!r}, but each layer must have 1 unit or more, in whole numbers")


def _fraction(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        require(0 <= value <= 1, f"{name} is {value!r}, but it must be in [0, 1]")


@dataclass(frozen=True)
class TD3:
    """TD3 and, with the behaviour-cloning term, TD3+BC."""

    hidden: tuple[int, ...] = (256, 256)  # units a layer, actor and critics; TD3 code, C
    discount: float = 0.99  # gamma, per step; TD3
    target_rate: float = 0.005  # tau, per update of the targets; TD3
    learning_rate: float = 3e-4  # Adam, actor and critics; TD3 code, C
    batch_size: int = 256  # B, transitions; TD3 code, C
    policy_delay: int = 2  # d, critic updates per actor update; TD3
    target_noise: float = 0.2  # sigma~, of an action in [-1, 1]; TD3
    target_noise_clip: float = 0.5  # c, of an action in [-1, 1]; TD3
    exploration_noise: float = 0.1  # sigma, of an action in [-1, 1]; TD3, C
    behaviour_weight: float = 2.5  # alpha of lambda = alpha / mean|Q|; TD3+BC, C

    def __post_init__(self) -> None:
        _units(self, "hidden")
        _whole(self, "batch_size", "policy_delay")
        _positive(self, "learning_rate", "batch_size", "policy_delay", "behaviour_weight")
        _not_negative(self, "target_noise", "target_noise_clip", "exploration_noise")
        _fraction(self, "discount", "target_rate")


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic with a learned temperature."""

    hidden: tuple[int, ...] = (256, 256)  # units a layer; SAC
    discount: float = 0.99  # gamma, per step; SAC
    target_rate: float = 0.005  # tau, per update; SAC
    learning_rate: float = 1e-3  # Adam, actor and critics; Tianshou's MuJoCo benchmark, the strongest published SAC we know
    temperature_learning_rate: float = 3e-4  # Adam, log alpha; the same
    batch_size: int = 256  # B, transitions; SAC
    policy_delay: int = 1  # every update moves the actor; SAC
    initial_temperature: float = 1.0  # alpha at the start; SAC code
    target_entropy_per_action: float = -1.0  # nats per action dimension; SAC
    log_std_min: float = -20.0  # of the Gaussian before tanh; SAC code
    log_std_max: float = 2.0  # of the Gaussian before tanh; SAC code

    def __post_init__(self) -> None:
        _units(self, "hidden")
        rates = "learning_rate", "temperature_learning_rate"
        _whole(self, "batch_size", "policy_delay")
        _positive(self, *rates, "batch_size", "policy_delay", "initial_temperature")
        _fraction(self, "discount", "target_rate")
        require(
            self.log_std_min < self.log_std_max,
            f"log_std_min is {self.log_std_min}, but it must be below log_std_max = {self.log_std_max}",
        )


@dataclass(frozen=True)
class WorldModel:
    """The VAE with a latent transition. Values from [C] unless a line says otherwise."""

    hidden: tuple[int, ...] = (500, 500, 500)  # units a layer, encoder and decoder
    transition_hidden: tuple[int, ...] = (300, 600, 300)  # units a layer, latent transition
    latent_size: int = 12  # dimensions of z, every task
    residual: bool = True  # z' = z + f(z, a); S, A. False: z' = f(z, a), as in C
    kl_weight: float = 1.0  # w_KL times the batches of an epoch: w_KL = kl_weight / batches per epoch
    prediction_weight: float = 10.0  # of the decoded next state's squared error
    latent_weight: float = 1.0  # of the latent squared error
    learning_rate: float = 1e-4  # Adam
    batch_size: int = 4096  # transitions
    epochs: int = 300  # passes over the rows; about 900 gradient steps at 10,000 rows

    def __post_init__(self) -> None:
        _units(self, "hidden", "transition_hidden")
        _whole(self, "latent_size", "batch_size", "epochs")
        _positive(self, "latent_size", "learning_rate", "batch_size", "epochs")
        _not_negative(self, "kl_weight", "prediction_weight", "latent_weight")


@dataclass(frozen=True)
class Augmentation:
    """Which share of a batch's next states is replaced, and by what."""

    rate: float = 0.5  # share of a batch; S, A, C
    source: str = "sample"  # what replaces; z is sampled at prediction time; C
    table_samples: int = 10  # K imagined next states a row; ours: 26 times fewer rows through the model
    redraw_interval: int = 20_000  # updates between two tables; ours: 10 tables in 200,000 updates

    def __post_init__(self) -> None:
        _fraction(self, "rate")
        choose("augmentation source", self.source, SOURCES)
        _whole(self, "table_samples", "redraw_interval")
        _positive(self, "table_samples", "redraw_interval")


@dataclass(frozen=True)
class Pretraining:
    """Offline: TD3+BC on the drawn transitions. Values from [C]."""

    updates: int = 200_000  # gradient steps; 0: the rows are drawn, no more
    transitions: int = 10_000  # rows drawn for a seed
    whole_episodes: bool = False  # True: the rows are drawn as whole episodes, which a horizon above 1 needs
    horizon: int = 1  # n, steps of the target; S, A: multi-step prediction, 2 to 5
    evaluation_interval: int = 10_000  # updates; ours: 20 points, a tenth of a minute each
    standardise: bool = True  # states by the drawn rows' mean and standard deviation; False: as they are
    standardiser_epsilon: float = 1e-3  # added to the standard deviation of a state's dimension

    def __post_init__(self) -> None:
        _whole(self, "updates", "transitions", "horizon", "evaluation_interval")
        _positive(self, "transitions", "horizon", "evaluation_interval")
        _not_negative(self, "updates")
        require(
            self.horizon == 1 or self.whole_episodes,
            f"horizon is {self.horizon}, but above 1 it needs whole_episodes=True: single transitions have no successors",
        )


@dataclass(frozen=True)
class Finetuning:
    """Online: what is carried over, how long nothing is learned, what is in the replay at the start."""

    steps: int = 100_000  # environment steps, warm-up included; ours: where the claim is made
    warmup_steps: int = 25_000  # environment steps without updates; C
    warmup_policy: str = "agent"  # "agent": the carried actor with noise (C); "uniform": actions at random
    keep_data: bool = False  # True: the replay starts with the offline rows; C: False
    carry_actor: bool = True  # C
    carry_critics: bool = True  # C
    carry_moments: bool = True  # both Adam states; C
    critic_updates: int = 0  # of the critics alone, when the warm-up ends; ours: for fresh ones that meet a carried actor
    evaluation_interval: int = 5_000  # environment steps; C

    def __post_init__(self) -> None:
        _whole(self, "steps", "warmup_steps", "critic_updates", "evaluation_interval")
        _positive(self, "steps", "evaluation_interval")
        _not_negative(self, "critic_updates")
        require(
            self.critic_updates == 0 or self.warmup_steps > 0 or self.keep_data,
            f"critic_updates is {self.critic_updates}, but the replay is empty: it needs warmup_steps above 0 or keep_data=True",
        )
        choose("warm-up policy", self.warmup_policy, ("agent", "uniform"))
        require(
            0 <= self.warmup_steps <= self.steps,
            f"warmup_steps is {self.warmup_steps}, but it must be from 0 to steps = {self.steps}",
        )


@dataclass(frozen=True)
class Dynamics:
    """What makes a task stochastic; all zero is the task itself. `ours`: the paper leaves it as an open question."""

    action_noise: float = 0.0  # standard deviation added to an action in [-1, 1]
    observation_noise: float = 0.0  # standard deviation added to every component of an observation, in its own unit
    push_probability: float = 0.0  # per step
    push_force: float = 0.0  # newtons along the track, at the torso, for one step, in either direction

    def __post_init__(self) -> None:
        _fraction(self, "push_probability")
        _not_negative(self, "action_noise", "observation_noise", "push_force")


@dataclass(frozen=True)
class Evaluation:
    """Greedy episodes on environments of their own."""

    episodes: int = 10  # C
    probe_rows: int = 1_000  # dataset rows on which the critic is watched; ours
    probe_steps: int = 500  # of a roll-out from a fixed state; ours: what comes later weighs 0.99^500 = 0.7 %

    def __post_init__(self) -> None:
        _whole(self, "episodes", "probe_rows", "probe_steps")
        _positive(self, "episodes", "probe_rows", "probe_steps")


@dataclass(frozen=True)
class Arm:
    """One way to an online agent: everything a run depends on but task, dataset and seed."""

    algorithm: str = "td3"
    learner: TD3 | SAC = TD3()
    model: WorldModel | None = None
    augmentation: Augmentation | None = None
    pretraining: Pretraining | None = None
    finetuning: Finetuning | None = Finetuning()  # None: offline only
    evaluation: Evaluation = Evaluation()
    dynamics: Dynamics = Dynamics()
    precision: str = "float32"

    def __post_init__(self) -> None:
        choose("algorithm", self.algorithm, ALGORITHMS)
        choose("precision", self.precision, PRECISIONS)
        given, needed = type(self.learner).__name__, self.algorithm.upper()
        require(
            given == needed, f"the learner's settings are {given}(...), but the algorithm {self.algorithm!r} needs {needed}(...)"
        )
        require(
            self.pretraining is None or self.algorithm == "td3",
            f"the algorithm is {self.algorithm!r}, but only 'td3' has an offline loss: leave pretraining out",
        )
        require(
            self.finetuning is None or self.finetuning.critic_updates == 0 or self.algorithm == "td3",
            f"critic_updates is {self.finetuning and self.finetuning.critic_updates}, but only 'td3' can move its critics alone",
        )
        require(
            self.finetuning is not None or self.pretraining is not None,
            "pretraining and finetuning are both None, but an arm has one of them at least",
        )


@dataclass(frozen=True)
class Profile:
    """Budgets: how long, how often, how many. `None` keeps an arm's own number, and no budget raises it."""

    name: str
    updates: int | None = None
    steps: int | None = None
    warmup_steps: int | None = None
    critic_updates: int | None = None
    epochs: int | None = None
    episodes: int | None = None
    probe_steps: int | None = None
    evaluation_interval: int | None = None  # updates and environment steps alike
    transitions: int | None = None
    redraw_interval: int | None = None
    seeds: int | None = None  # how many of a study's seeds

    def apply(self, arm: Arm) -> Arm:
        """Returns `arm` within this profile's budgets."""

        def within(record, **budgets):
            if record is None:
                return None
            own = {name: getattr(record, name) for name in budgets}
            return dataclasses.replace(record, **{k: min(own[k], v) for k, v in budgets.items() if v is not None})

        interval = self.evaluation_interval
        online = {"steps": self.steps, "warmup_steps": self.warmup_steps, "critic_updates": self.critic_updates}
        return dataclasses.replace(
            arm,
            model=within(arm.model, epochs=self.epochs),
            augmentation=within(arm.augmentation, redraw_interval=self.redraw_interval),
            pretraining=within(arm.pretraining, updates=self.updates, evaluation_interval=interval, transitions=self.transitions),
            finetuning=within(arm.finetuning, evaluation_interval=interval, **online),
            evaluation=within(arm.evaluation, episodes=self.episodes, probe_steps=self.probe_steps),
        )


PROFILES = {
    "smoke": Profile("smoke", 100, 200, 100, 50, 2, 2, 5, 50, 2_000, 50, 1),
    "quick": Profile("quick", 20_000, 20_000, 5_000, 1_000, 60, 5, 100, 2_500, None, 10_000, 1),
    "paper": Profile("paper"),
}


def profile(name: str) -> Profile:
    """Returns the profile of that name.

    Raises:
        ValueError: the name is unknown; the sentence names the nearest.
    """
    return PROFILES[choose("profile", name, PROFILES)]


def completed(recorded: dict, today: object) -> dict:
    """Returns recorded settings with those that did not exist then, at the defaults that keep what was done then.

    A new setting's default is the behaviour before it existed; so a record that lacks it was made with the default.

    Args:
        recorded: nested plain data.
        today: the dataclass of today's settings, which knows the names and defaults.
    """
    whole = dict(recorded)
    for part in dataclasses.fields(today):
        value = getattr(today, part.name)
        if part.name not in whole:
            whole[part.name] = part.default
        elif dataclasses.is_dataclass(value) and isinstance(whole[part.name], dict):
            whole[part.name] = completed(whole[part.name], value)
    return whole
