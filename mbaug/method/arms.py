"""An arm: all settings of one way to an online agent. The registry of algorithms stands here, because an arm names one."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mbaug import checks
from mbaug.checks import choose, given, require, settings
from mbaug.method import bc, iql, layernorm, rlpd, sac, td3
from mbaug.method.algorithm import Algorithm
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


@settings
class Arm:
    """Everything that a run depends on but its task, its dataset and its seed."""

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
        plan, rule, online = self.pretraining, self.augmentation, self.finetuning
        both = "pretraining and finetuning are both None, but an arm has one of them at least"
        require(plan is not None or online is not None, both)
        able = ", ".join(repr(name) for name, one in ALGORITHMS.items() if one.offline_loss is not None)
        unable = f"the algorithm is {self.algorithm!r}, but only {able} have an offline loss: leave pretraining out"
        require(plan is None or plan.updates == 0 or algorithm.offline_loss is not None, unable)
        never = "augmentation is given, but pretraining is None: next states are imagined while an agent learns offline"
        require(rule is None or plan is not None, never)
        source = None if rule is None else choose("augmentation source", rule.source, (*SOURCES, SIMULATOR))
        (picks, branch), simulated = ("random", 0) if rule is None else (rule.picks, rule.branch), source == SIMULATOR
        sentence = f"the augmentation's source is {source!r} and branch is {branch}, but a branch is what {SIMULATOR!r} needs"
        require(simulated == (branch > 0), f"{sentence}, and it alone: give both or neither")
        alone = "an augmentation with a branch needs picks='random' and the horizon 1"
        require(not branch or plan is None or (picks, plan.horizon) == ("random", 1), alone)
        needs = f"the augmentation's source is {source!r}, but model is None: it needs a WorldModel(...)"
        require(source is None or simulated or self.model is not None, needs)
        asked = "a model is given, but augmentation is None or asks the simulator: nothing would ask the model"
        require(self.model is None or (rule is not None and not simulated), asked)
        extra = 0 if online is None else online.critic_updates
        bound = f"critic_updates is {extra}, but the algorithm {self.algorithm!r} cannot move its critics alone"
        require(extra == 0 or algorithm.critics_alone, bound)
        both = f"the algorithm {self.algorithm!r} draws from the offline rows online, too: it needs keep_data=True"
        require(algorithm.rows is None or online is None or online.keep_data, both)

    @property
    def offline(self) -> Pretraining:
        """The pre-training; raises ValueError where there is none."""
        return given(self.pretraining, "this arm has no pretraining: it learns online alone")

    @property
    def online(self) -> Finetuning:
        """The fine-tuning; raises ValueError where there is none."""
        return given(self.finetuning, "this arm has no finetuning: it learns offline alone")

    @property
    def offline_part(self) -> "Arm | None":
        """What arms with the same pre-training share; None if there is none."""
        return None if self.pretraining is None else replace(self, finetuning=None)


def read(plain: Any, where: str, lacking: Collection[str] = ()) -> Arm:
    """Returns the arm that `files.plain` gave as JSON, its algorithm's settings among it; it raises what `checks.read` raises."""
    known = isinstance(plain, dict) and plain.get("algorithm") in (*ALGORITHMS,)
    if known and "learner" in plain:
        own = ALGORITHMS[plain["algorithm"]].settings
        plain = plain | {"learner": checks.read(own, plain["learner"], where, lacking, "settings.learner")}
    return checks.read(Arm, plain, where, lacking, "settings")
