"""Arms: a wrong combination of settings is refused in one sentence that says what was given and what is needed."""

import re
from dataclasses import replace

import pytest

from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.iql import IQL
from mbaug.method.sac import SAC
from mbaug.method.settings import Augmentation, Finetuning, Pretraining, WorldModel
from mbaug.method.td3 import TD3
from mbaug.tasks import Dynamics

OFFLINE = {"model": WorldModel(), "augmentation": Augmentation(), "pretraining": Pretraining()}
SIMULATED = Augmentation(source="simulator", branch=1)
PLAIN_SAC = {"algorithm": "sac", "learner": SAC()}
LIKE_TD3 = ", ".join(repr(name) for name, algorithm in ALGORITHMS.items() if issubclass(algorithm.settings, TD3))
OFFLINE_ALGORITHMS = ", ".join(repr(name) for name, algorithm in ALGORITHMS.items() if algorithm.offline_loss)


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        ({"algorithm": "td4"}, "unknown algorithm 'td4': did you mean 'td3'? allowed are 'td3', 'sac',"),
        ({"precision": "float16"}, "unknown precision 'float16': did you mean "),
        ({"learner": IQL()}, "the learner's settings are IQL(...), but the algorithm 'td3' needs TD3(...)"),
        (
            {"finetuning": None, "pretraining": Pretraining(updates=0)},
            "finetuning is None and pretraining is None or has 0 updates, but an arm must learn in one of them",
        ),
        (
            PLAIN_SAC | {"pretraining": Pretraining()},
            f"the algorithm is 'sac', but only {OFFLINE_ALGORITHMS} have an offline loss",
        ),
        (
            PLAIN_SAC | {"finetuning": Finetuning(critic_updates=50)},
            "critic_updates is 50, but the algorithm 'sac' cannot update its critics alone",
        ),
        (
            {"algorithm": "rlpd", "learner": SAC()},
            "the algorithm 'rlpd' draws from the offline rows online, too: it needs keep_data=True",
        ),
        (OFFLINE | {"model": None}, "the augmentation's source is 'sample', but model is None: it needs a WorldModel(...)"),
        (OFFLINE | {"augmentation": None}, "a model is given, but augmentation is None"),
        ({"finetuning": Finetuning(keep_data=True)}, "keep_data is True, but pretraining is None: it keeps the rows that"),
        (
            OFFLINE | {"pretraining": Pretraining(updates=0)},
            "augmentation is given, but pretraining is None or has 0 updates: next states",
        ),
        (OFFLINE | {"augmentation": Augmentation(rate=0.001)}, "rate is 0.001, which replaces no row of a batch of 256"),
        (
            OFFLINE | {"augmentation": Augmentation(source="sampel")},
            "unknown augmentation source 'sampel': did you mean 'sample'? allowed are 'sample', 'mean',",
        ),
        (
            OFFLINE | {"augmentation": Augmentation(branch=1)},
            "the augmentation's source is 'sample' and branch is 1, but only 'simulator' has a branch, and it needs one above 0",
        ),
        (
            OFFLINE | {"model": None, "augmentation": Augmentation(source="simulator")},
            "the augmentation's source is 'simulator' and",
        ),
        (OFFLINE | {"augmentation": SIMULATED}, "a model is given, but augmentation is None or its source is the simulator"),
        (
            {"augmentation": SIMULATED, "pretraining": Pretraining(whole_episodes=True, horizon=3)},
            "picks is 'random' and horizon is 3, but a branch needs picks='random' and horizon=1",
        ),
        (
            {"algorithm": "iql", "learner": IQL(), "augmentation": SIMULATED, "pretraining": Pretraining()},
            f"the algorithm is 'iql', but only {LIKE_TD3} have what a branch needs: TD3's exploration noise",
        ),
        (
            {"augmentation": SIMULATED, "pretraining": Pretraining(), "dynamics": Dynamics(action_noise=0.1)},
            "dynamics is Dynamics(action_noise=0.1, observation_noise=0.0, push_probability=0.0, push_force=0.0), but the",
        ),
        (
            {"augmentation": replace(SIMULATED, rate=0.999), "pretraining": Pretraining()},
            "rate is 0.999, but with a branch a batch of 256 also needs recorded rows, for the actor",
        ),
        (
            {"augmentation": SIMULATED, "pretraining": Pretraining()},
            "evaluation_interval is 10000 and redraw_interval is 20000, but with a branch an evaluation must fall on",
        ),
    ],
    ids=lambda part: part[:40] if isinstance(part, str) else "",
)
def test_a_wrong_combination_is_refused_in_one_sentence(arm, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}[^\n]*$"):
        Arm(**arm)


@pytest.mark.parametrize(("name", "algorithm"), ALGORITHMS.items(), ids=ALGORITHMS)
def test_every_algorithm_can_be_used_in_each_phase_that_it_supports(name, algorithm):
    settings = {"algorithm": name, "learner": algorithm.settings(), "finetuning": Finetuning(keep_data=True)}
    keeping = Arm(**settings, pretraining=Pretraining(updates=0))
    assert keeping.offline_part is None, "every algorithm may fill its replay buffer with the offline rows, and learns none"
    if algorithm.offline_loss:
        fresh, carried = (Arm(**settings | OFFLINE | {"finetuning": Finetuning(carry_critics=carry)}) for carry in (False, True))
        assert fresh != carried
        assert fresh.offline_part == carried.offline_part != Arm(**settings, pretraining=Pretraining()).offline_part
