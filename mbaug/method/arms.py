"""An arm: all settings of one way to train an online agent. The registry of algorithms is here, because an arm names one."""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from mbaug import checks
from mbaug.checks import choose, given, require, settings
from mbaug.method import bc, iql, layernorm, rlpd, sac, td3
from mbaug.method.algorithm import Algorithm
from mbaug.method.augmentation import replaced
from mbaug.method.imagination import SIMULATOR, SOURCES
from mbaug.method.settings import PRECISIONS, Augmentation, Evaluation, Finetuning, Pretraining, WorldModel
from mbaug.tasks import CALM, Dynamics

ALGORITHMS: dict[str, Algorithm] = {
    "td3": td3.ALGORITHM,
    "sac": sac.ALGORITHM,
    "layernorm": layernorm.ALGORITHM,
    "rlpd": rlpd.ALGORITHM,
    "iql": iql.ALGORITHM,
    "bc": bc.ALGORITHM,
}


def _names(able: Callable[[Algorithm], bool]) -> str:
    """Returns the quoted names of the algorithms for which `able` is true, for an error message."""
    return ", ".join(repr(name) for name, algorithm in ALGORITHMS.items() if able(algorithm))


@settings
class Arm:
    """Everything that a run depends on, except its task, its dataset and its seed."""

    algorithm: str = "td3"
    learner: Any = td3.TD3()  # the algorithm's settings
    model: WorldModel | None = None
    augmentation: Augmentation | None = None
    pretraining: Pretraining | None = None
    finetuning: Finetuning | None = Finetuning()  # None: offline only
    evaluation: Evaluation = Evaluation()
    dynamics: Dynamics = CALM
    precision: str = "float32"

    def __post_init__(self) -> None:
        algorithm = ALGORITHMS[choose("algorithm", self.algorithm, ALGORITHMS)]
        choose("precision", self.precision, PRECISIONS)
        own, needed = type(self.learner).__name__, algorithm.settings.__name__
        require(own == needed, f"the learner's settings are {own}(...), but the algorithm {self.algorithm!r} needs {needed}(...)")
        if self.finetuning is None and not self.learns_offline:
            raise ValueError("finetuning is None and pretraining is None or has 0 updates, but an arm must learn in one of them")
        if self.learns_offline and algorithm.offline_loss is None:
            able = _names(lambda each: each.offline_loss is not None)
            raise ValueError(f"the algorithm is {self.algorithm!r}, but only {able} have an offline loss: leave pretraining out")
        self._check_augmentation()
        self._check_online(algorithm)

    def _check_augmentation(self) -> None:
        """Raises ValueError if the augmentation lacks what it needs, or ignores the model."""
        rule, batch = self.augmentation, self.learner.batch_size
        uses_model = rule is not None and rule.source != SIMULATOR
        unasked = "a model is given, but augmentation is None or its source is the simulator: nothing would use the model"
        require(self.model is None or uses_model, unasked)
        if rule is None:
            return
        nothing = "augmentation is given, but pretraining is None or has 0 updates"
        require(self.learns_offline, f"{nothing}: next states are imagined while an agent learns offline")
        none = f"rate is {rule.rate}, which replaces no row of a batch of {batch}: leave augmentation out"
        require(replaced(rule.rate, batch) > 0, none)
        source = choose("augmentation source", rule.source, (*SOURCES, SIMULATOR))
        missing = f"the augmentation's source is {source!r}, but model is None: it needs a WorldModel(...)"
        require(self.model is not None or not uses_model, missing)
        given_branch = f"the augmentation's source is {source!r} and branch is {rule.branch}"
        needed = f"only {SIMULATOR!r} has a branch, and it needs one above 0: give both or neither"
        require((source == SIMULATOR) == (rule.branch > 0), f"{given_branch}, but {needed}")
        if rule.branch:
            self._check_branch(self.offline, rule)

    def _check_branch(self, plan: Pretraining, rule: Augmentation) -> None:
        """Raises ValueError if other settings do not fit an augmentation by the simulator."""
        alone = f"picks is {rule.picks!r} and horizon is {plan.horizon}, but a branch needs picks='random' and horizon=1"
        require((rule.picks, plan.horizon) == ("random", 1), alone)
        able = _names(lambda each: issubclass(each.settings, td3.TD3))
        unable = f"the algorithm is {self.algorithm!r}, but only {able} have what a branch needs"
        require(isinstance(self.learner, td3.TD3), f"{unable}: TD3's exploration noise and an actor's loss like TD3's")
        calm = f"dynamics is {self.dynamics}, but the simulator imagines transitions of the calm task: leave one of them out"
        require(self.dynamics == CALM, calm)
        batch = self.learner.batch_size
        both = f"rate is {rule.rate}, but with a branch a batch of {batch} also needs recorded rows, for the actor"
        require(replaced(rule.rate, batch) < batch, both)
        intervals = f"evaluation_interval is {plan.evaluation_interval} and redraw_interval is {rule.redraw_interval}"
        often = f"{intervals}, but with a branch an evaluation must fall on a redraw: a resumed run draws a new table there"
        require(plan.evaluation_interval % rule.redraw_interval == 0, often)

    def _check_online(self, algorithm: Algorithm) -> None:
        """Raises ValueError if the fine-tuning asks the algorithm for what it cannot do."""
        online = self.finetuning
        if online is None:
            return
        alone = f"critic_updates is {online.critic_updates}, but the algorithm {self.algorithm!r} cannot update its critics alone"
        require(online.critic_updates == 0 or algorithm.critics_alone, alone)
        data = f"the algorithm {self.algorithm!r} draws from the offline rows online, too: it needs keep_data=True"
        require(algorithm.rows is None or online.keep_data, data)
        drawn = "keep_data is True, but pretraining is None: it keeps the rows that Pretraining(...) draws, also with updates=0"
        require(self.pretraining is not None or not online.keep_data, drawn)

    @property
    def learns_offline(self) -> bool:
        """Whether it has pre-training with updates; without updates, pre-training only draws the rows."""
        return self.pretraining is not None and self.pretraining.updates > 0

    @property
    def offline(self) -> Pretraining:
        """The settings of the pre-training; raises ValueError if there is none."""
        return given(self.pretraining, "this arm has no pretraining: it learns only online")

    @property
    def online(self) -> Finetuning:
        """The settings of the fine-tuning; raises ValueError if there is none."""
        return given(self.finetuning, "this arm has no finetuning: it learns only offline")

    @property
    def offline_part(self) -> "Arm | None":
        """This arm without fine-tuning, the part that arms can share; None if it does not learn offline."""
        return replace(self, finetuning=None) if self.learns_offline else None


def read(plain: Any, where: str, lacking: Collection[str] = ()) -> Arm:
    """Returns an arm and its algorithm's settings from parsed JSON; raises as `checks.read`."""
    name = plain.get("algorithm") if isinstance(plain, dict) else None
    if isinstance(name, str) and name in ALGORITHMS and "learner" in plain:
        own = ALGORITHMS[name].settings
        plain = plain | {"learner": checks.read(own, plain["learner"], where, lacking, "settings.learner")}
    return checks.read(Arm, plain, where, lacking, "settings")
