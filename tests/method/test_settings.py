"""Settings: the sources' numbers, and refusals in sentences that say what was given and what is allowed."""

import dataclasses
import re

import pytest
from made import refused

from mbaug.checks import choose
from mbaug.method.arms import Arm
from mbaug.method.iql import IQL
from mbaug.method.sac import SAC
from mbaug.method.settings import Augmentation, Evaluation, Finetuning, Pretraining, WorldModel
from mbaug.method.td3 import TD3
from mbaug.tasks import Dynamics


def test_the_numbers_are_those_of_the_sources():
    """The algorithms as published; world model, augmentation and protocol as in the authors' development repository."""
    assert TD3() == TD3((256, 256), 0.99, 0.005, 3e-4, 256, 2, 0.2, 0.5, 0.1, 2.5)
    assert SAC() == SAC((256, 256), 0.99, 0.005, 1e-3, 3e-4, 256, 1, 1.0, -1.0, -20.0, 2.0)
    assert IQL() == IQL((256, 256), 0.99, 0.005, 3e-4, 256, 1, 0.7, 3.0, 100.0, -5.0, 2.0)
    assert WorldModel() == WorldModel((500, 500, 500), (300, 600, 300), 12, True, 1.0, 10.0, 1.0, 1e-4, 4096, 300)
    assert (Augmentation().rate, Augmentation().source) == (0.5, "sample")
    assert (Pretraining().updates, Pretraining().transitions, Pretraining().standardiser_epsilon) == (200_000, 10_000, 1e-3)
    online = Finetuning()
    assert (online.steps, online.warmup_steps, online.evaluation_interval) == (100_000, 25_000, 5_000)
    assert (online.keep_data, online.carry_actor, online.carry_critics, online.carry_moments) == (False, True, True, True)
    assert Evaluation().episodes == 10


@pytest.mark.parametrize("record", [TD3, SAC, IQL, WorldModel, Augmentation, Pretraining, Finetuning, Dynamics, Evaluation, Arm])
def test_settings_cannot_be_changed_in_place(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record(), dataclasses.fields(record)[0].name, None)


@pytest.mark.parametrize(
    ("record", "name", "value", "allowed"),
    [
        (TD3, "hidden", (8, 0), "it must be of layers with 1 unit or more each"),
        (WorldModel, "transition_hidden", (8, 2.5), "it must be of layers with 1 unit or more each"),
        (SAC, "hidden", [8, 8], "it must be a tuple"),
        *((TD3, "batch_size", value, "it must be a whole number") for value in (2.5, True, "256", None)),
        *((SAC, "policy_delay", value, "it must be above 0") for value in (0, -1)),
        (IQL, "learning_rate", "fast", "it must be a number"),
        *((TD3, "learning_rate", value, "it must be above 0") for value in (0.0, float("nan"))),
        *((IQL, "expectile", value, "it must be in [0, 1]") for value in (-0.1, 1.5, float("nan"))),
        (SAC, "log_std_min", 3.0, "it must be below log_std_max = 2.0"),
        (WorldModel, "kl_weight", -0.1, "it must be 0 or above"),
        (Augmentation, "source", 3, "it must be a text"),
        (Pretraining, "updates", -50, "it must be 0 or above"),
        (Pretraining, "horizon", 2, "above 1 it needs whole_episodes=True: single transitions have no successors"),
        (Finetuning, "keep_data", "no", "it must be True or False"),
        (Finetuning, "warmup_steps", 100_001, "it must be from 0 to steps = 100000"),
        (Arm, "model", TD3(), "it must be WorldModel(...) or None"),
    ],
    ids=lambda part: getattr(part, "__name__", str(part)),
)
def test_an_impossible_value_is_refused_in_a_sentence(record, name, value, allowed):
    assert refused(record(), name, value) == f"{name} is {value!r}, but {allowed}"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TD3(learning_rate=0.0), "learning_rate is 0.0, but it must be above 0"),
        (lambda: Finetuning(critic_updates=50, warmup_steps=0), "critic_updates is 50, but the replay is empty: it needs warmup"),
        (lambda: Finetuning(warmup_policy="agnet"), "unknown warm-up policy 'agnet': did you mean 'agent'? allowed are 'agent',"),
        (lambda: choose("task", "xyz", ["hopper"]), "unknown task 'xyz': allowed are 'hopper'"),
    ],
)
def test_it_is_refused_when_it_is_made_and_a_name_is_answered_with_the_nearest(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make()


def test_what_is_allowed_is_taken():
    assert choose("task", "ant", iter(["hopper", "ant"])) == "ant"
    assert refused(TD3(), "learning_rate", 1) is None, "a whole number is a number"
