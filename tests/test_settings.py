"""Settings: the sources' numbers, refusals in sentences, and profiles that change budgets only."""

import dataclasses
import re

import pytest

from mbaug import settings
from mbaug.settings import SAC, TD3, Arm, Augmentation, Dynamics, Evaluation, Finetuning, Pretraining, WorldModel

FULL = Arm(model=WorldModel(), augmentation=Augmentation(), pretraining=Pretraining())
RECORDS = (TD3, SAC, WorldModel, Augmentation, Pretraining, Finetuning, Dynamics, Evaluation, Arm)


def test_the_numbers_are_those_of_the_sources():
    """TD3 and TD3+BC as published; world model, augmentation and protocol as in the authors' development repository."""
    assert TD3() == TD3((256, 256), 0.99, 0.005, 3e-4, 256, 2, 0.2, 0.5, 0.1, 2.5)
    assert SAC() == SAC((256, 256), 0.99, 0.005, 1e-3, 3e-4, 256, 1, 1.0, -1.0, -20.0, 2.0)
    assert WorldModel() == WorldModel((500, 500, 500), (300, 600, 300), 12, True, 1.0, 10.0, 1.0, 1e-4, 4096, 300)
    assert (Augmentation().rate, Augmentation().source) == (0.5, "sample")
    assert (Pretraining().updates, Pretraining().transitions, Pretraining().standardiser_epsilon) == (200_000, 10_000, 1e-3)
    online = Finetuning()
    assert (online.steps, online.warmup_steps, online.evaluation_interval) == (100_000, 25_000, 5_000)
    assert (online.keep_data, online.carry_actor, online.carry_critics, online.carry_moments) == (False, True, True, True)
    assert Evaluation().episodes == 10


@pytest.mark.parametrize("record", RECORDS)
def test_settings_cannot_be_changed_in_place(record):
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record(), name, None)


ABOVE_0, NOT_NEGATIVE, FRACTION = "it must be above 0", "it must be 0 or above", "it must be in [0, 1]"
NETWORKS = ((TD3, "hidden"), (SAC, "hidden"), (WorldModel, "hidden"), (WorldModel, "transition_hidden"))
IMPOSSIBLE = [
    *((record, name, (8, 0), "each layer must have 1 unit or more, in whole numbers") for record, name in NETWORKS),
    *((record, name, 0, ABOVE_0) for record in (TD3, SAC) for name in ("batch_size", "policy_delay")),
    *((record, "learning_rate", value, ABOVE_0) for record in (TD3, SAC, WorldModel) for value in (0.0, float("nan"))),
    *((record, name, 1.5, FRACTION) for record in (TD3, SAC) for name in ("discount", "target_rate")),
    (TD3, "behaviour_weight", 0.0, ABOVE_0),
    *((TD3, name, -0.1, NOT_NEGATIVE) for name in ("target_noise", "target_noise_clip", "exploration_noise")),
    (SAC, "initial_temperature", -1.0, ABOVE_0),
    (SAC, "log_std_min", 3.0, "it must be below log_std_max = 2.0"),
    *((WorldModel, name, 0, ABOVE_0) for name in ("latent_size", "batch_size", "epochs")),
    *((WorldModel, name, -0.1, NOT_NEGATIVE) for name in ("kl_weight", "prediction_weight", "latent_weight")),
    *((Augmentation, "rate", rate, FRACTION) for rate in (-0.1, 1.1, float("nan"))),
    *((Augmentation, name, 0, ABOVE_0) for name in ("table_samples", "redraw_interval")),
    *((Pretraining, name, 0, ABOVE_0) for name in ("transitions", "horizon", "evaluation_interval")),
    *((Finetuning, name, -50, ABOVE_0) for name in ("steps", "evaluation_interval")),
    *((Finetuning, "warmup_steps", steps, "it must be from 0 to steps = 100000") for steps in (-1, 100_001)),
    (Pretraining, "updates", -50, NOT_NEGATIVE),
    (Finetuning, "critic_updates", -50, NOT_NEGATIVE),
    (Pretraining, "horizon", 2, "above 1 it needs whole_episodes=True: single transitions have no successors"),
    (Dynamics, "push_probability", 1.1, FRACTION),
    *((Dynamics, name, -0.1, NOT_NEGATIVE) for name in ("action_noise", "observation_noise", "push_force")),
    *((Evaluation, name, 0, ABOVE_0) for name in ("episodes", "probe_rows", "probe_steps")),
]


@pytest.mark.parametrize(
    ("record", "name", "value", "allowed"), IMPOSSIBLE, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_an_impossible_value_is_refused_in_a_sentence(record, name, value, allowed):
    sentence = f"{name} is {value!r}, but {allowed}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        record(**{name: value})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Augmentation(source="sampel"),
            "unknown augmentation source 'sampel': did you mean 'sample'? allowed are 'none',",
        ),
        (lambda: Finetuning(warmup_policy="agnet"), "unknown warm-up policy 'agnet': did you mean 'agent'? allowed are"),
        (lambda: Arm(algorithm="sac"), "the learner's settings are TD3(...), but the algorithm 'sac' needs SAC(...)"),
        (
            lambda: Arm("sac", SAC(), pretraining=Pretraining()),
            "the algorithm is 'sac', but only 'td3' has an offline loss: leave pretraining out",
        ),
        (lambda: Arm(algorithm="td4"), "unknown algorithm 'td4': did you mean 'td3'? allowed are 'td3', 'sac'"),
        (lambda: Arm(precision="float16"), "unknown precision 'float16': did you mean 'bfloat16' or"),
        (lambda: settings.profile("papper"), "unknown profile 'papper': did you mean 'paper'? allowed are"),
        (lambda: settings.choose("task", "xyz", ["hopper"]), "unknown task 'xyz': allowed are 'hopper'"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(make, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()


def test_what_is_allowed_comes_back():
    for name in ("hopper", "ant"):
        assert settings.choose("task", name, iter(["hopper", "ant"])) == name


def leaves(record, prefix=""):
    """Returns every number of nested settings by its path."""
    if not dataclasses.is_dataclass(record):
        return {prefix: record}
    parts = (leaves(getattr(record, field.name), f"{prefix}.{field.name}") for field in dataclasses.fields(record))
    return {path: value for part in parts for path, value in part.items()}


BUDGETS = {
    *(".pretraining.updates", ".pretraining.evaluation_interval", ".pretraining.transitions"),
    *(".finetuning.steps", ".finetuning.warmup_steps", ".finetuning.evaluation_interval"),
    *(".model.epochs", ".augmentation.redraw_interval", ".evaluation.episodes"),
    *(".finetuning.critic_updates", ".evaluation.probe_steps"),
}


@pytest.mark.parametrize("name", ["smoke", "quick"])
def test_a_profile_changes_budgets_and_no_hyper_parameter(name):
    before, after = leaves(FULL), leaves(settings.profile(name).apply(FULL))
    changed = {path for path in before if before[path] != after[path]}
    assert {".pretraining.updates", ".finetuning.steps", ".model.epochs"} <= changed <= BUDGETS


def test_the_papers_profile_changes_nothing():
    assert settings.profile("paper").apply(FULL) == FULL


def test_a_profile_adds_no_stage_and_no_warm_up():
    scratch = Arm(finetuning=Finetuning(warmup_steps=0))
    for profile in settings.PROFILES.values():
        arm = profile.apply(scratch)
        assert (arm.model, arm.augmentation, arm.pretraining) == (None, None, None)
        assert arm.finetuning.warmup_steps == 0


def test_no_budget_raises_an_arm_s_own_number():
    """An arm that only keeps its data is not pre-trained in any profile; a small draw stays small."""
    arm = Arm(pretraining=Pretraining(updates=0, transitions=500))
    for profile in settings.PROFILES.values():
        assert (profile.apply(arm).pretraining.updates, profile.apply(arm).pretraining.transitions) == (0, 500)


def test_a_record_from_before_a_setting_existed_is_completed_with_its_default():
    arm = dataclasses.replace(FULL, learner=TD3(discount=0.9))
    recorded = dataclasses.asdict(arm)
    del recorded["dynamics"], recorded["learner"]["policy_delay"], recorded["pretraining"]["horizon"]
    today = dataclasses.replace(FULL, learner=TD3(policy_delay=7), pretraining=Pretraining(horizon=3, whole_episodes=True))
    whole = settings.completed(recorded, today)
    assert whole["learner"] == recorded["learner"] | {"policy_delay": 2}  # what it did then, not what today's arm does
    assert whole["pretraining"] == recorded["pretraining"] | {"horizon": 1}
    assert whole["dynamics"] == Dynamics()
    assert "policy_delay" not in recorded["learner"]


COUNTS = {
    **dict.fromkeys((TD3, SAC), ("batch_size", "policy_delay")),
    WorldModel: ("latent_size", "batch_size", "epochs"),
    Augmentation: ("table_samples", "redraw_interval"),
    Pretraining: ("updates", "transitions", "horizon", "evaluation_interval"),
    Finetuning: ("steps", "warmup_steps", "critic_updates", "evaluation_interval"),
    Evaluation: ("episodes", "probe_rows", "probe_steps"),
}


def checked(record, name, value):
    """Lets a record check a value that the tests' own checks of types would refuse before it."""
    made = record()
    object.__setattr__(made, name, value)
    made.__post_init__()


@pytest.mark.parametrize(("record", "name"), [(record, name) for record, names in COUNTS.items() for name in names])
def test_a_count_is_a_whole_number(record, name):
    with pytest.raises(ValueError, match=rf"^{name} is 2\.5, but it must be a whole number$"):
        checked(record, name, 2.5)


def test_every_whole_number_of_the_settings_is_a_count():
    """So that none of a new setting is forgotten."""
    fields = [(record, field) for record in COUNTS for field in dataclasses.fields(record)]
    assert {(record, field.name) for record, field in fields if field.type in (int, "int")} == {
        (record, name) for record, names in COUNTS.items() for name in names
    }


@pytest.mark.parametrize(("record", "name"), NETWORKS)
def test_a_layer_has_a_whole_number_of_units(record, name):
    with pytest.raises(ValueError, match=rf"^{name} is \(8, 2\.5\), but each layer must have 1 unit or more, in whole numbers$"):
        checked(record, name, (8, 2.5))
