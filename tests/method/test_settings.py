"""Settings: defaults from the sources, and refusals in sentences that say what was given and what is allowed."""

import dataclasses
import math
import re
from typing import Any

import pytest
from made import refused

from mbaug import checks, files
from mbaug.checks import choose
from mbaug.method.arms import Arm
from mbaug.method.iql import IQL
from mbaug.method.sac import SAC
from mbaug.method.settings import Augmentation, Evaluation, Finetuning, Pretraining, WorldModel
from mbaug.method.td3 import TD3
from mbaug.tasks import Dynamics


@pytest.mark.parametrize("record", [TD3, SAC, IQL, WorldModel, Augmentation, Pretraining, Finetuning, Dynamics, Evaluation, Arm])
def test_settings_cannot_be_changed_in_place(record):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record(), dataclasses.fields(record)[0].name, None)


@pytest.mark.parametrize(
    ("record", "name", "value", "allowed"),
    [
        (TD3, "hidden", (8, 0), "it must be a tuple of layer sizes, each 1 or more"),
        (SAC, "hidden", [8, 8], "it must be a tuple"),
        *((TD3, "batch_size", value, "it must be a whole number") for value in (2.5, True)),
        (SAC, "policy_delay", 0, "it must be above 0"),
        (IQL, "learning_rate", "fast", "it must be a number"),
        *((TD3, "learning_rate", value, "it must be a finite number") for value in (float("nan"), float("inf"))),
        *((IQL, "expectile", value, "it must be in [0, 1]") for value in (-0.1, 1.5)),
        *((record, "log_std_min", 3.0, "it must be below log_std_max = 2.0") for record in (SAC, IQL)),
        (WorldModel, "kl_weight", -0.1, "it must be 0 or above"),
        (Augmentation, "source", 3, "it must be a string"),
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
        (
            lambda: Finetuning(critic_updates=50, steps=100, warmup_steps=100, evaluation_interval=50),
            "critic_updates is 50, but the warm-up never ends: it needs warmup_steps below steps = 100",
        ),
        (
            lambda: Pretraining(updates=15_000),
            "updates is 15000, but it must be a multiple of evaluation_interval = 10000",
        ),
        (lambda: Finetuning(steps=102_000), "steps is 102000, but it must be a multiple of evaluation_interval = 5000"),
        (lambda: Finetuning(warmup_policy="agnet"), "unknown warm-up policy 'agnet': did you mean 'agent'? allowed are 'agent',"),
        (lambda: choose("task", "xyz", ["hopper"]), "unknown task 'xyz': allowed are 'hopper'"),
    ],
)
def test_settings_are_checked_when_they_are_made_and_a_misspelt_name_gets_a_suggestion(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        make()


def test_allowed_values_are_accepted():
    assert choose("task", "ant", iter(["hopper", "ant"])) == "ant"
    assert refused(TD3(), "learning_rate", 1) is None, "a whole number is a number"


# --- settings from JSON ---------------------------------------------------------------------------------------------------


@checks.settings
class Inner:
    rates: tuple[checks.Share, ...]
    count: checks.Count = 1

    def __post_init__(self):
        checks.require(len(self.rates) != self.count, f"count is {self.count}, but it must not be the number of rates")


@checks.settings
class Outer:
    name: str
    level: float | None
    inner: Inner
    pairs: dict[str, float]
    parts: list[Inner]
    free: Any = None


WHOLE = {"name": "a", "level": None, "inner": {"rates": [0, 0.5], "count": 3}, "pairs": {"x": 1}, "parts": [], "free": [[]]}


def test_settings_are_read_from_json():
    assert checks.read(Outer, WHOLE, "a.json") == Outer("a", None, Inner((0.0, 0.5), 3), {"x": 1.0}, [], [[]])
    older = files.plain(Finetuning())
    del older["critic_updates"]
    with pytest.raises(ValueError, match=r"^a.json: finetuning lacks critic_updates; allowed are steps, warmup_steps"):
        checks.read(Finetuning, older, "a.json", parent="finetuning")
    assert checks.read(Finetuning, older, "a.json", ["critic_updates"]) == Finetuning()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"name": 3}, "a.json: name is 3, but it must be a string"),
        ({"level": math.nan}, "a.json: level is nan, but it must be a finite number"),
        ({"level": 10**400}, "0, but it must be a finite number"),
        ({"level": True}, "a.json: level is True, but it must be a number or None"),
        ({"pairs": {"x": math.inf}}, "a.json: pairs.x is inf, but it must be a finite number"),
        ({"pairs": []}, "a.json: pairs is [], but it must be an object of named values"),
        ({"free": [{"x": math.nan}]}, "a.json: free[0].x is nan, but it must be a finite number"),
        ({"inner": {"rates": [0, 2], "count": 3}}, "a.json: inner.rates[1] is 2, but it must be in [0, 1]"),
        ({"inner": {"rates": []}}, "a.json: inner lacks count; allowed are rates, count"),
        ({"inner": {"rates": [0], "count": 1}}, "a.json: inner: count is 1, but it must not be the number of rates"),
        ({"inner": 3}, "a.json: inner is 3, but it must be Inner(...)"),
        ({"parts": [{"rates": [], "count": 0}]}, "a.json: parts[0].count is 0, but it must be above 0"),
        ({"odd": 1}, "a.json: the content has unknown fields: 'odd'; allowed are name, level, inner, pairs, parts, free"),
    ],
)
def test_json_that_does_not_fit_the_settings_is_refused_with_its_file_and_key(changed, sentence):
    with pytest.raises(ValueError, match=f"{re.escape(sentence)}$"):
        checks.read(Outer, WHOLE | changed, "a.json")


def test_json_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match=r"^a.json: the content is \[1\], but it must be an object of named values$"):
        checks.read(Outer, [1], "a.json")
