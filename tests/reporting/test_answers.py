"""The first sentences of the README and of the chapters: the records alone decide their numbers, seeds and conclusions."""

import numpy as np
import pandas as pd
import pytest
from evaluated import runs

from mbaug import files
from mbaug.experiments.studies import TWO
from mbaug.reporting import answers, stored
from mbaug.reporting.answers import ANSWERS, NOTHING
from mbaug.reporting.claims import PRIMARY, Finding, main_runs
from mbaug.reporting.statistics import Interval, mean_score

FOUR = ("ant", "halfcheetah", "hopper", "walker2d")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in place of the one with the tables that chapters store."""
    folder = tmp_path / "figures"
    folder.mkdir()
    monkeypatch.setattr(stored, "DRAWN", folder)
    monkeypatch.setattr(files, "repository", lambda: tmp_path)
    return folder


def told(interval, p=0.01, tasks=FOUR, rest=None, planned=5):
    """Returns the `conclusion` of a comparison over four tasks."""
    finding = Finding(PRIMARY[0], tasks, (interval.n_seeds,), interval, p, (), 3, rest or {})
    return answers.conclusion(finding, "it helps", "it harms", planned)


@pytest.mark.parametrize(
    "name", [name for name in ANSWERS if name[:2] not in ("01", "02", "03", "06", "08", "90")]
)  # the others report computed numbers
def test_an_answer_without_two_recorded_seeds_says_so(name):
    arms = {"augmented": 20, "noise": 20, "vanilla": 40, "td3": 10}
    for frame in (runs(arms).iloc[:0], runs(arms, seeds=1)):
        assert NOTHING in ANSWERS[name](frame)


def test_a_difference_counts_only_with_five_seeds_and_an_interval_without_zero():
    texts = {n: told(Interval(5.0, 1.0, 9.0, n)) for n in (4, 5)}
    assert texts == {4: "we wait for 5 seeds to say whether it helps", 5: "it helps (+5.0 [+1.0, +9.0])"}
    assert told(Interval(-5.0, -9.0, -1.0, 5)) == "it harms (−5.0 [−9.0, −1.0])"
    assert told(Interval(5.0, -1.0, 11.0, 5)) == "with 5 seeds it is open whether it helps (+5.0 [−1.0, +11])"
    assert told(Interval(5.0, 1.0, 9.0, 5), tasks=FOUR[:3]) == "we wait for 5 seeds to say whether it helps"


def test_an_answer_is_as_firm_as_the_verdict_and_names_the_task_that_decides():
    """Holm's correction can leave p above 5 % although zero lies outside the interval. Three seeds never give a verdict."""
    found = told(Interval(5.0, 1.0, 9.0, 5), p=0.12)
    assert found == "the seeds suggest that it helps, but not firmly (+5.0 [+1.0, +9.0]; p 0.12)"
    found = told(Interval(5.0, 1.0, 9.0, 3), planned=3)
    assert found == "the seeds suggest that it helps, but not firmly (+5.0 [+1.0, +9.0])"
    rest = {"hopper": Interval(-11.0, -18.0, -4.2, 5), "ant": Interval(1.6, -2.6, 5.8, 5)}
    found = told(Interval(-8.5, -14.0, -3.4, 5), rest=rest)
    assert found == "it harms (−8.5 [−14, −3.4])", "A difference over two tasks needs both."
    found = told(Interval(-8.5, -14.0, -3.4, 5), rest=rest | {"walker2d": Interval(-9.0, -16.0, -2.0, 5)})
    assert found == "it harms (−8.5 [−14, −3.4]). But the difference is +1.6 [−2.6, +5.8] without Ant"


def test_the_online_answer_has_the_means_and_the_primary_comparisons():
    arms = {"td3_data": 30, "noise": 48, "vanilla": 40, "td3": 10}
    found = answers.online(runs(arms | {"augmented": 20}, seeds=5, tasks=FOUR))
    assert found.startswith("On all four tasks (5 seeds), the mean score over the first 100,000 interactions is 10 [9.6, 10] for")
    assert "30 [30, 30] for TD3 with the data in its replay buffer, 40 [40, 40] after vanilla pre-training, 20 [19, 21]" in found
    assert " Vanilla pre-training scores more than TD3 from scratch (+30 [+29, +31]). " in found
    assert "imagined next states differs by +10 [+9.2, +11] (without Hopper +10 [" in found
    assert "from TD3 from scratch, by −20 [−21, −19] (without Hopper −20 [−21, −19]) from vanilla pre-training, by −28" in found
    poor = answers.online(runs({"noise": 8, "td3_data": 8, "vanilla": 5, "td3": 10, "augmented": 6.5}, seeds=5, tasks=FOUR))
    assert " Vanilla pre-training scores less than TD3 from scratch (−5.0 [" in poor
    other = runs({"vanilla": -60, "td3": 30}, seeds=5, tasks=("ant",))
    assert answers.online(pd.concat([runs(arms | {"augmented": 20}, seeds=5), other])).startswith("On Hopper (5 seeds), the"), (
        "A task that lacks some of the arms should not count."
    )
    mixed = runs(arms | {"augmented": 20}, seeds=4, tasks=FOUR)
    mixed = mixed[(mixed["seed"] < 2) | (mixed["arm"] == "td3") | (mixed["task"] == "ant")]
    found = answers.online(mixed)
    assert found.startswith("On all four tasks (2 to 4 seeds), the"), "The most count too."
    assert " We wait for 5 seeds to say whether vanilla pre-training scores more than TD3 from scratch. " in found


def test_the_offline_answer_counts_the_critics_that_run_away(folder):
    """Vanilla critics predict 117 to 123. The mean, 120, would hide that two of them stay below Ant's limit."""
    rows = [("vanilla", "ant", 119), ("vanilla", "hopper", 200), ("augmented", "ant", 119), ("layernorm", "ant", 119)]
    pd.DataFrame(rows, columns=["arm", "task", "limit"]).to_csv(folder / "04_runaway.csv", index=False)
    arms = {"augmented": 20, "vanilla": 40, "noise": 90, "layernorm": 10, "layernorm_data": 10}
    found = answers.offline(runs(arms, seeds=5, tasks=("ant", "hopper")))
    assert "in 3 of 10 runs with “vanilla pre-training” (Ant), none of 10 with “augmented 50 %” (on Hopper and Ant) and" in found
    assert " “LayerNorm critics” (on Hopper and Ant). Where no" in found, "Offline the arm that keeps the data is the same."
    assert "Where no critic runs away, on Hopper (5 seeds), the return that a critic predicts minus what its" in found
    assert "policy earns is 80 [78, 82] discounted rewards with recorded next states and 40 [36, 44] with imagined ones:" in found
    assert found.endswith("We wait for 5 seeds to say whether imagination raises this difference."), "Two calm tasks are missing."


def test_the_offline_answer_reports_policy_and_critic():
    found = answers.offline(runs({"augmented": 20, "vanilla": 40}, seeds=5, tasks=FOUR))
    assert found.startswith("On all four tasks (5 seeds), the policy scores 40 [")
    assert "Imagination lowers this score (−20 [" in found
    assert found.endswith("Imagination lowers this difference (−40 [−42, −38]).")


def test_the_controls_answer_compares_the_model_with_noise_and_counts_predictions():
    found = answers.controls(runs({"noise": 48, "vanilla": 40, "augmented": 20}, seeds=5, tasks=FOUR))
    assert found.startswith("On all four tasks (5 seeds), an agent that was pre-trained with the model's next states scores 20 [")
    assert "The model scores less than noise (−28 [" in found
    equal = "Equal losses decide only the first prediction."
    assert found.endswith("1 came true, none failed, 1 stayed undecided and 3 lack runs."), equal
    most = runs({"noise": 30, "vanilla": 30, "augmented": 30}, 5, tuple({*FOUR} - {"ant"}), spread=2)
    ant = runs({"noise": 90, "vanilla": 30, "augmented": 0}, seeds=5, tasks=("ant",))
    found = answers.controls(pd.concat([most, ant]))
    assert "2 came true (only with Ant), none failed, none stayed undecided and 3 lack runs." in found
    falls = runs({"noise": 0, "vanilla": 30, "augmented": 0}, 5, ("hopper", "walker2d"), spread=2)
    ant, rest = (
        runs({"noise": noise, "vanilla": 30, "augmented": score}, 5, (task,), spread=2)
        for noise, score, task in ((-90, 0, "ant"), (30, 30, "halfcheetah"))
    )
    found = answers.controls(pd.concat([falls, ant, rest]))
    assert "1 came true, 1 failed" in found, "The one that failed needs Ant."


def test_the_recommended_arm_must_be_recorded_on_every_task():
    """The best arm comes first. One on three tasks is left out, and one with a single seed is named but not recommended."""
    few = runs({"noise": 90}, seeds=2, tasks=FOUR[1:])
    frame = pd.concat([runs({"td3": 10, "vanilla": 40, "augmented": 20}, seeds=2, tasks=FOUR), few])
    said = answers.readme(frame)
    assert said.startswith("With 10,000 transitions we would choose “vanilla pre-training” today. Over four tasks its mean score")
    assert "is 40 [40, 40], with 2 seeds per task. The next best of 3 arms with at least two seeds on every task, " in said
    assert "task, “augmented 50 %”, scores 20 [19, 21]. The difference is +20 [+19, +21], without Hopper +20 [" in said
    assert "named this comparison" not in said
    assert "to recommend" not in said
    near = answers.readme(runs({"td3": 39.8, "vanilla": 40}, seeds=2, tasks=FOUR))
    assert "The difference is +0.2 [−0.2, +0.6], so we cannot tell the two apart. This" in near
    assert said.count("\n\n") == 1, "what we would do and whether imagination helps are two paragraphs"
    single = pd.concat([frame, runs({"layernorm_data": 60}, seeds=1, tasks=FOUR)])
    named = answers.readme(runs({"td3_data": 30, "layernorm_data": 60}, seeds=2, tasks=FOUR))
    assert "The difference is +30 [+30, +30], without Hopper +30 [+30, +30]. We named this comparison in advance. " in named
    assert "“LayerNorm critics, data kept” scores 60 with 1 seed per task, too few to recommend it." in answers.readme(single)


def test_a_choice_is_provisional_until_five_seeds_and_its_counterpart_without_pretraining_are_recorded():
    few, best = "has fewer than 5 seeds on all four tasks", {"layernorm_data": 60}
    fresh = "“LayerNorm critics, no pre-training”"
    untried, scratch = f"{fresh} is not recorded yet", f"“TD3 from scratch” {few}"
    for seeds, arms, expected in (
        (2, {"vanilla": 40}, f" This may change: “vanilla pre-training” {few}, and {scratch}. "),
        (2, best, f" This may change: “LayerNorm critics, data kept” {few}, and {scratch}, and {untried}. "),
        (5, best, f" This may change: {untried}. "),
        (5, best | {"td3_layernorm_data": 30}, ""),
    ):
        said = recommended(runs({"td3": 10} | arms, seeds=seeds, tasks=FOUR))
        assert said.endswith(expected)
        assert ("may change" in said) == bool(expected)
    more = runs({"td3": 10} | best, seeds=5, tasks=FOUR)
    said = recommended(pd.concat([more, runs({"td3_layernorm_data": 30}, seeds=2, tasks=FOUR)]))
    assert said.endswith(f" This may change: {fresh} {few}. "), "It is the second best, and is named once."
    said = recommended(pd.concat([more, runs({"td3_layernorm_data": 5}, seeds=2, tasks=FOUR)]))
    assert said.endswith(f" This may change: {fresh} has too few runs. ")


def recommended(frame):
    return answers.recommendation(mean_score(main_runs(frame)))


def test_the_answer_names_the_task_that_decides_which_arm_is_best():
    most = runs({"td3": 10, "vanilla": 20, "augmented": 30, "td3_data": 40}, seeds=2, tasks=FOUR[1:])
    for on_ant, said in (
        (-90, " Without Ant the means are 10, 20, 30 and 40."),
        (25, "replay buffer instead."),
    ):
        frame = pd.concat([most, runs({"td3": 20, "vanilla": 15, "augmented": on_ant, "td3_data": 0}, seeds=2, tasks=FOUR[:1])])
        assert said in answers.readme(frame)


def test_the_overview_counts_the_claims_and_repeats_the_readmes_answer():
    arms = {"augmented": 20, "vanilla": 40, "td3": 10, "td3_data": 50}
    less = runs(arms, seeds=2)
    text = "We wait for 5 seeds to say whether imagination raises the mean score. "
    text += "On Hopper (2 seeds), the mean score of TD3 over the first 100,000 interactions is 10 [6.8, 13] from scratch, "
    text += "40 [37, 43] after offline pre-training, 20 [14, 26] after pre-training with imagined next states, and 50 [47, 53] "
    text += "with the data in its replay buffer instead."
    assert answers.readme(less) == text
    assert answers.overview(less) == f"We have verdicts on none of the paper's 6 claims so far. {text}"
    more = pd.concat([less, runs(arms, seeds=5, tasks=FOUR)])
    more = more.drop_duplicates(["task", "arm", "seed", "phase", "environment_steps"])
    said = "We have verdicts on 4 of the paper's 6 claims so far: jump-start (a) reproduced, 10x fewer interactions (b) "
    assert answers.overview(more).startswith(f"{said}contradicted, better than vanilla (c) contradicted, ")


def test_the_multi_step_answer_reports_stored_errors_and_then_the_records(folder):
    errors = {"encoded": 0.2, "deterministic": 0.01, "persistence": 0.05}
    tasks = {"hopper": 1, "ant": 2, "walker2d": 30}
    rows = [(task, kind, n, e * n * k) for task, k in tasks.items() for kind, e in errors.items() for n in (1, 2, 5, 50)]
    pd.DataFrame(rows, columns=["task", "predictor", "horizon", "error"]).to_csv(folder / "06_open_loop.csv", index=False)
    arms = {"augmented_horizon1": 20, "augmented_horizon5": 40}
    found = answers.multi_step(runs(arms, seeds=5, tasks=("halfcheetah",)))
    assert found.startswith(
        "After five steps the paper's model, re-encoded at each step, errs less than the guess that nothing moves on none of 3 "
        "tasks, and"
    )
    medians = "0.40, 2.0 and 20 for the model, 0.020, 0.10 and 1.0 for the network, and 0.10, 0.50"
    assert medians in found  # of three tasks
    assert (
        "and 5.0 for the guess (in variances of the states, median of 3 tasks; after 50 steps the network's errors range" in found
    )
    assert " range from 0.50 to 15)." in found
    waits = "we wait for 5 seeds to say whether targets of three steps give a higher score than targets of one."
    assert found.endswith(f"give a higher score than targets of one (+20 [+19, +21]). Without imagination, {waits}")
    not_recorded = " Whether targets of several steps help an agent is not yet recorded."
    assert answers.multi_step(runs(arms).iloc[:0]) == found.partition(" Targets of")[0] + not_recorded


def test_the_reliability_answer_reports_stored_tables_and_then_the_records(folder):
    tasks = {"hopper": 1, "ant": 2}
    where = [("distance to the data", task, n, 0.1 * n**k, n) for task, k in tasks.items() for n in range(1, 6)]
    strange = [("hopper", "sample", 0.9), ("ant", "sample", 1.0), ("ant", "noise", 0.5), ("halfcheetah", "sample", np.nan)]
    areas = {"spread of the samples": (0.5, 0.6), "distance to the data": (0.7, 0.8), "blur of the state": (0.9, 0.7)}
    signals = [("outside", name, task, x) for name, each in areas.items() for task, x in zip(("a", "b"), each, strict=True)]
    for name, rows, columns in (
        ("where", where, ["condition", "task", "fifth", "sample", "persistence"]),
        ("strange", strange, ["task", "source", "standing, of falls"]),
        ("signals", [*signals, ("drawn", "distance to the data", "a", 1.0)], ["place", "signal", "task", "area"]),
    ):
        pd.DataFrame(rows, columns=columns).to_csv(folder / f"08_{name}.csv", index=False)
    arms = {"augmented_trusted_offline": 30, "augmented_distrusted_offline": 10}
    found = answers.reliability(runs(arms, tasks=FOUR[1:3]))
    assert found.startswith("On 2 tasks, the paper's model errs 5.0 to 25.0 times as much in the fifth of the rows")
    assert "the guess that nothing moves errs 5.0 to 5.0 times as much. " in found
    assert "end in a fall (2 tasks), it imagines 90 to 100 % as standing (no target uses these next states). " in found
    assert "Of 3 signals that tell in advance where it errs most, the best on average is the blur of the state (how" in found
    assert "badly the VAE reconstructs it) with an area under the ROC curve of 0.70 to 0.90 (0.5 is" in found
    assert "It is the best on 1 of 2 tasks. " in found
    assert "The spread of the model's samples reaches 0.50 to 0.60. " in found
    suggested = (
        "Offline, the seeds suggest that imagining only the rows that the best signal calls safe scores higher than imagining"
    )
    assert f"{suggested} only the others, but not firmly (+20 [" in found
    not_recorded = " Whether it helps to imagine only the rows that the best signal calls safe is not yet recorded."
    assert answers.reliability(runs(arms).iloc[:0]) == found.partition(" Offline, ")[0] + not_recorded


def test_the_world_model_answer_reports_stored_errors(folder):
    columns = ["task", "quantity", "sample", "persistence", "linear", "deterministic"]
    rows = [["hopper", "a", 0.1, 0.2, 0.04, 0.01], ["hopper", "b", 0.3, 0.1, 0.02, 0.03], ["ant", "a", 0.5, 2, 0.6, 0.7]]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "02_errors.csv", index=False)
    found = answers.world_model(runs({"td3": 10}).iloc[:0])
    assert found.startswith(
        "On held-out rows of Hopper and Ant, the paper's VAE has one-step errors of 0.20 and 0.50, where 1 is "
    )
    assert (
        "nothing moves has errors of 0.15 and 2.0, linear regression of 0.030 and 0.60, and a deterministic network of 0.020 and "
        in found
    )
    assert found.endswith("The VAE beats the guess on 1 of 2 tasks, the regression on 1 and the network on 1.")


def test_the_methods_answer_names_the_best_arm_of_each_task_and_then_the_other_methods():
    arms = {"td3_data": 30, "vanilla_data": 40, "sac": 20}
    found = answers.methods(runs(arms, seeds=5, tasks=FOUR))
    assert "interactions: *vanilla, data kept* on Hopper (40), Walker2d (40), HalfCheetah (40) and Ant (40). " in found
    assert "The methods of this chapter are not yet recorded." in found
    single = runs({"layernorm_data": 60}, seeds=1, tasks=("hopper", "ant"))
    found = answers.methods(pd.concat([runs(arms, seeds=5, tasks=FOUR), single]))
    assert "*LayerNorm critics, data kept* scores 60 on Hopper and 60 on Ant, with too few seeds to compare." in found
    assert "*IQL, data kept* and *behaviour cloning, data kept*. " in found, "These are not recorded yet."
    found = answers.methods(runs(arms | {"layernorm_data": 60}, seeds=5, tasks=FOUR))
    assert "*LayerNorm critics, data kept* on Hopper (60), " in found
    assert "On all four tasks (5 seeds), the mean score of *LayerNorm critics, data kept* differs by +30 [" in found
    assert "from that of *TD3 with the data, no pre-training*, by +20 [" in found
    assert "A verdict" not in found
    found = answers.methods(runs(arms | {"layernorm_data": 60}, seeds=2))
    assert "On Hopper (2 seeds), the mean score of *LayerNorm critics, data kept* differs by +30 [" in found
    assert " from that of *SAC from scratch*. A verdict takes 5 seeds. Not yet recorded on every task: *" in found


def test_the_methods_answer_says_if_the_best_arm_of_a_task_cannot_be_told_from_the_second():
    frame = runs({"td3_data": 30, "sac": 20}, seeds=5, tasks=FOUR)
    found = answers.methods(pd.concat([frame, runs({"vanilla_data": 31}, seeds=5, spread=5.0)]))
    assert "*vanilla, data kept* on Hopper (31, but *TD3 with the data, no pre-training* with 30 may be as good) and" in found
    assert "*TD3 with the data, no pre-training* on Walker2d (30), HalfCheetah (30) and Ant (30)." in found


def test_the_methods_answer_says_what_a_perfect_model_gains():
    assert answers.methods(runs({"td3_data": 30}, seeds=2)).endswith("shows yet whether a perfect world model would help.")
    arms = {"td3_data": 30, "ceiling": 30, "ceiling_50": 40, "ceiling_free": 30, "ceiling_50_free": 20}
    found = answers.methods(runs(arms, seeds=3, tasks=TWO))
    model, firmly = "the simulator in the world model's place", "the mean score over 50,000 interactions, but not firmly"
    assert f"The seeds suggest that {model} raises {firmly} (+10 [" in found
    assert f"Without the cloning term, the seeds suggest that {model} lowers {firmly} (−10 [" in found


def test_the_small_datasets_answer_reports_stored_distances_and_the_pools_card(folder):
    rows = [
        [way, n, far / n, far / n * 1000, n / 125]
        for way, far in (("single rows", 1), ("whole episodes", 2))
        for n in (1_000, 10_000)
    ]
    columns = ["way", "rows", "mean", "steps", "seconds"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "01_neighbours.csv", index=False)
    found = answers.small_datasets(runs({"td3": 10}))
    assert found.startswith("On Hopper 10,000 transitions are 80 seconds of simulated time. We draw them from the 45,044")
    assert found.endswith("is 0.1 simulator steps, and from a new episode 0.2. With 1,000 transitions it would be 1.0 and 2.0.")


def test_the_augmentation_answer_reports_stored_states_and_targets(folder):
    states = pd.DataFrame({"source": ["sample", "noise"], "error": [0.4, 0.5], "step": [1.2, 1.2]})
    states.to_csv(folder / "03_outside.csv", index=False)
    columns = ["source", "mean", "stays", "averages out", "spread"]
    targets = pd.DataFrame([["sample", 15, 41, 27, 148], ["noise", -26, 31, 47, 148]], columns=columns)
    targets.to_csv(folder / "03_targets.csv", index=False)
    found = answers.augmentation(runs({"td3": 10}))
    assert "move by 0.40 standard deviations per dimension, while a step of the simulator moves a state by 1.20. " in found
    assert "148 rewards, and they move by +15 on average. The shift of a single target has two parts (root" in found
    assert " mean squares): 41 rewards stay, and 27 average out over the model's samples. " in found
    assert found.endswith(" With noise of the same size targets move by −26 on average, 31 stay, and 47 average out.")


def test_the_engine_answer_reports_stored_update_rates(folder):
    columns = ["algorithm", "task", "precision", "population", "updates_per_second", "fraction_of_limit", "by", "cpu"]
    rows = [
        ["TD3+BC", "hopper", "float32", 1, 255, 0.66, None, "A CPU"],
        ["TD3+BC", "hopper", "bfloat16", 1, 373, 0.16, None, "A CPU"],
    ]
    rows += [
        ["TD3+BC", "hopper", "float32", 4, 999, 0.5, None, "A CPU"],
        ["TD3", None, "float32", None, 247, None, "mbaug", "A CPU"],
    ]
    peer = [["TD3", None, "float32", None, 133, None, "Stable-Baselines3 2.9.2", "A CPU"]]
    pd.DataFrame(rows + peer, columns=columns).to_csv(folder / "90_updates.csv", index=False)
    found = answers.engine(runs({"td3": 10}))
    assert "an agent on Hopper makes this many updates of TD3+BC a second: 255 in float32 and 373 in bfloat16. " in found
    assert found.endswith(
        "That is 66 % and 16 % of what the matrix products alone allow. TD3 without BC makes, in float32, "
        "247 with mbaug and 133 with Stable-Baselines3."
    )
    pd.DataFrame(rows, columns=columns).to_csv(folder / "90_updates.csv", index=False)
    assert answers.engine(runs({"td3": 10})).endswith("products alone allow.")
