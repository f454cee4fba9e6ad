"""All hyper-parameters of the method's stages, each with its symbol, unit and source. Those of an algorithm are in its own file.

Sources: [C] the first author's development repository (github.com/ganjiro/ContrastiveWorldModel, branch Pre-Training, 54133b9),
[S] and [A] two summaries of the paper. `ours` marks what no source states, with the reason.
"""

from mbaug.checks import Count, Layers, NotNegative, Positive, Share, Whole, choose, require, settings

BLOCK = 50  # updates and environment steps whose random numbers are drawn at once
PRECISIONS = ("float32", "bfloat16", "float64")
PICKS = ("random", "trusted", "distrusted")


@settings
class WorldModel:
    """The VAE with a latent transition. Values from [C] unless a line says otherwise."""

    hidden: Layers = (500, 500, 500)  # units per layer, encoder and decoder
    transition_hidden: Layers = (300, 600, 300)  # units per layer, latent transition
    latent_size: Count = 12  # dimensions of z, every task
    residual: bool = True  # z' = z + f(z, a); S, A. False: z' = f(z, a), as in C
    kl_weight: NotNegative = 1.0  # w_KL times the batches of an epoch: w_KL = kl_weight / batches per epoch
    prediction_weight: NotNegative = 10.0  # of the decoded next state's squared error
    latent_weight: NotNegative = 1.0  # of the latent squared error
    learning_rate: Positive = 1e-4  # Adam
    batch_size: Count = 4096  # transitions
    epochs: Count = 300  # passes over the rows; about 900 gradient steps at 10,000 rows


@settings
class Augmentation:
    """Which share of a batch's next states is replaced, and by what."""

    rate: Share = 0.5  # share of a batch; S, A, C
    # source of imagined next states, a name in imagination.SOURCES; z is sampled when predicting; C
    source: str = "sample"
    # which rows are imagined: "random" (C); ours: of least doubt, "trusted", or of most, "distrusted"
    picks: str = "random"
    table_samples: Count = 10  # K imagined next states per row; ours: 26 times fewer predictions
    redraw_interval: Count = 20_000  # updates between two tables; ours: 10 tables in 200,000 updates
    # steps along the policy's own actions (augmentation.branches); ours; 0: none, as in the paper
    branch: Whole = 0

    def __post_init__(self) -> None:
        choose("picking rule", self.picks, PICKS)
        _check_blocks(self, "redraw_interval")


def _check_blocks(plan: object, *names: str) -> None:
    """Raises ValueError unless these numbers of updates or steps are whole blocks."""
    for name in names:
        number = getattr(plan, name)
        require(number % BLOCK == 0, f"{name} is {number}, but it must be a multiple of {BLOCK}")


def _check_intervals(name: str, budget: int, interval: int) -> None:
    """Raises ValueError if the end of a phase would be trained, but neither evaluated nor saved."""
    require(budget % interval == 0, f"{name} is {budget}, but it must be a multiple of evaluation_interval = {interval}")


@settings
class Pretraining:
    """Offline: an algorithm's offline loss on the drawn transitions. Values from [C]."""

    updates: Whole = 200_000  # gradient steps; 0: only draw the rows
    transitions: Count = 10_000  # rows drawn per seed
    whole_episodes: bool = False  # True: the rows are drawn as whole episodes, which a horizon above 1 needs
    horizon: Count = 1  # n, steps of the target; A, C: 1
    evaluation_interval: Count = 10_000  # updates; ours: 20 evaluations of about 6 seconds each
    standardise: bool = True  # states, by the drawn rows' mean and standard deviation; False: raw
    standardiser_epsilon: Positive = 1e-3  # added to the standard deviation of a state's dimension

    def __post_init__(self) -> None:
        single = f"horizon is {self.horizon}, but above 1 it needs whole_episodes=True: single transitions have no successors"
        require(self.horizon == 1 or self.whole_episodes, single)
        _check_blocks(self, "updates", "evaluation_interval")
        _check_intervals("updates", self.updates, self.evaluation_interval)


@settings
class Finetuning:
    """Online: what is carried over, what the warm-up does, and how the replay buffer starts."""

    steps: Count = 100_000  # environment steps, warm-up included; ours: the budget of the claims
    warmup_steps: Whole = 25_000  # environment steps without updates; C
    warmup_policy: str = "agent"  # "agent": the carried actor with noise (C); "uniform": actions at random
    keep_data: bool = False  # True: the replay buffer starts with the offline rows; C: False
    carry_actor: bool = True  # C
    carry_critics: bool = True  # C
    carry_moments: bool = True  # the Adam states of what is carried; C
    critic_updates: Whole = 0  # of the critics alone at the end of the warm-up; ours: for fresh critics of a carried actor
    evaluation_interval: Count = 5_000  # environment steps; C

    def __post_init__(self) -> None:
        choose("warm-up policy", self.warmup_policy, ("agent", "uniform"))
        warmup, steps, updates = self.warmup_steps, self.steps, self.critic_updates
        require(warmup <= steps, f"warmup_steps is {warmup}, but it must be from 0 to steps = {steps}")
        empty = f"critic_updates is {updates}, but the replay is empty: it needs warmup_steps above 0 or keep_data=True"
        require(updates == 0 or warmup > 0 or self.keep_data, empty)
        endless = f"critic_updates is {updates}, but the warm-up never ends: it needs warmup_steps below steps = {steps}"
        require(updates == 0 or warmup < steps, endless)
        _check_blocks(self, "steps", "warmup_steps", "critic_updates", "evaluation_interval")
        _check_intervals("steps", steps, self.evaluation_interval)


@settings
class Evaluation:
    """Greedy episodes in separate environments, and measures of critics when pre-training ends."""

    episodes: Count = 10  # C
    probe_rows: Count = 1_000  # dataset rows on which the critics are measured; ours
    probe_steps: Count = 500  # of a roll-out from a fixed state; ours: later rewards weigh less than 0.99^500 = 0.7 %
