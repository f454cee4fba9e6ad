"""Verdicts on the paper's claims follow from the records alone, by the rules stated below the table."""

import re

import pandas as pd
import pytest
from evaluated import runs

from mbaug import tasks
from mbaug.experiments import records, studies
from mbaug.reporting import claims, published
from mbaug.reporting.claims import CLAIMS, PRIMARY

TASKS = ("hopper", "walker2d", "halfcheetah", "ant")


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    """Returns the verdict of each claim as the table shows it."""
    rows = [line.split(" | ") for line in claims.claims_table(frame).splitlines() if re.match(r"\| [a-f] \|", line)]
    assert [row[0] for row in rows] == [f"| {letter}" for letter in "abcdef"]
    return {row[0][-1]: row[4] for row in rows}


def findings(letter: str, frame: pd.DataFrame) -> list[claims.Finding]:
    (claim,) = (claim for claim in CLAIMS if claim.letter == letter)
    return claims.findings(claim, claims.main_runs(frame))


def test_without_runs_every_claim_is_not_attempted(tmp_path):
    assert set(verdicts(records.load_runs(tmp_path)).values()) == {"not attempted"}


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_fewer_than_five_seeds_decide_nothing(seeds):
    """This holds however far apart the arms are. From two seeds on, the table shows the interval."""
    frame = runs({"augmented": 80, "td3": 10, "vanilla": 30}, seeds=seeds, tasks=TASKS)
    found = verdicts(frame)
    assert (found["a"], found["c"], found["d"]) == ("too few seeds", "too few seeds", "not attempted")
    cell = "augmented 50 % minus TD3 from scratch: **+70 ["
    assert (cell in claims.claims_table(frame)) == (seeds > 1)
    assert ", p " not in claims.claims_table(frame)


def test_a_task_with_one_seed_does_not_count_beside_one_with_three():
    arms = {"augmented": 50, "td3": 10}
    both = pd.concat([runs(arms), runs(arms, seeds=1, tasks=("walker2d",))], ignore_index=True)
    assert findings("a", both) == findings("a", runs(arms))
    assert findings("a", both)[0].tasks == ("hopper",)


def test_the_table_shows_the_fewest_and_the_most_seeds_behind_a_number():
    frame = pd.concat([runs({"augmented": 50}, seeds=2), runs({"vanilla": 40, "td3": 10}, seeds=5)], ignore_index=True)
    assert claims.claims_table(frame).splitlines()[2].endswith("| Hopper, 2 to 5 seeds |")


def test_five_seeds_on_all_tasks_reproduce_or_contradict_a_claim():
    arms = {"augmented": 50, "td3": 10, "vanilla": 30}
    assert verdicts(runs(arms, seeds=5, tasks=TASKS))["a"] == "reproduced"
    assert verdicts(runs(arms, seeds=5, tasks=TASKS[:3]))["a"] == "too few seeds", "Ant has none."
    less = {"augmented": 10, "td3": 50}
    assert verdicts(runs(less, seeds=5, tasks=TASKS))["a"] == "contradicted"


def test_a_verdict_names_the_tasks_that_it_needs():
    """+10 on three tasks and -90 on Ant: -15 over all four. Without Ant the difference has the other sign."""
    most = runs({"augmented": 20, "td3": 10}, seeds=5, tasks=TASKS[:3])
    frame = pd.concat([most, runs({"augmented": -60, "td3": 30}, seeds=5, tasks=("ant",))])
    assert verdicts(frame)["a"] == "contradicted (only with Ant)"
    found = claims.claims_table(frame)
    assert ", 5 seeds (above zero on 3 of 4 tasks, without Ant +10 [+9.0, +11]), p below 0.001" in found
    alike = pd.concat([most, runs({"augmented": 60, "td3": 30}, seeds=5, tasks=("ant",))])
    assert "(above zero on 4 of 4 tasks, without Ant +10 [+9.0, +11])" in claims.claims_table(alike)
    assert verdicts(alike)["a"] == "reproduced", "Ant moves the mean most, but the verdict does not need it."
    few = [runs({"augmented": 10, "td3": 10}, seeds=5, tasks=(task,), spread=3) for task in ("walker2d", "halfcheetah")]
    few = pd.concat([*few, runs({"augmented": 30, "td3": 10}, seeds=5, tasks=("hopper",))])
    even = runs({"augmented": 10.5, "td3": 10}, seeds=5, tasks=("ant",), spread=3)
    assert verdicts(pd.concat([few, even]))["a"] == "reproduced (only with Hopper)", "Without it the interval holds zero."
    close = pd.concat([most, runs({"augmented": -1, "td3": 30}, seeds=5, tasks=("ant",), spread=20)])
    assert verdicts(close)["a"] == "undecided", "The interval holds zero: no task decides anything."


def test_an_interval_that_contains_zero_leaves_a_claim_undecided():
    frame = runs({"augmented": 12, "td3": 10}, seeds=5, tasks=TASKS, spread=10)
    (finding,) = findings("a", frame)
    assert finding.interval.low < 0 < finding.interval.value
    assert verdicts(frame)["a"] == "undecided"


def test_primary_comparisons_are_corrected_for_their_number():
    """The difference is so small that p is below 5 % for a single test, but not for one of three."""
    others = {comparison.others[0]: 45.0 for comparison in PRIMARY}
    frame = runs({"augmented": 50, **others, "td3": 45}, seeds=5, tasks=TASKS, spread=5.0)
    alone, corrected = findings("a", frame)[0], findings("c", frame)[0]
    assert corrected.interval == alone.interval
    assert corrected.p == pytest.approx(3 * alone.p)
    assert (verdicts(frame)["a"], verdicts(frame)["c"]) == ("reproduced", "direction only")
    less = verdicts(runs({"augmented": 40, **others, "td3": 45}, seeds=5, tasks=TASKS, spread=5.0))
    assert (less["a"], less["c"]) == ("contradicted", "opposite direction only")
    first = claims.claims_table(frame).splitlines()[2]
    pattern = r"\| vanilla pre-training \|( .*\[.*\] \|){2} .*\[.*\] \(2 to 5 seeds\) \| 0\.\d+ \| all four tasks, 5 seeds \|"
    assert re.fullmatch(pattern, first)


def test_primary_comparisons_are_also_shown_without_the_seeds_known_before():
    """The known seeds, three of Hopper and one of HalfCheetah, score 100 more. The last column leaves them out."""
    frame = runs({"augmented": 50, "vanilla": 40}, seeds=5, tasks=TASKS, spread=0.0)
    for task, arm, seed in claims.KNOWN:
        if arm == "augmented":
            frame.loc[(frame["task"] == task) & (frame["arm"] == arm) & (frame["seed"] == seed), "score"] += 100
    first = claims.claims_table(frame).splitlines()[2].split(" | ")
    assert first[1].startswith("+30 [")
    assert first[3] == "+10 [+10, +10], without Hopper +10 [+10, +10] (2 to 5 seeds)"
    few = frame[(frame["task"] != "ant") & (frame["seed"] < 2)]  # one seed of HalfCheetah and none of Hopper are new
    assert claims.claims_table(few).splitlines()[2].split(" | ")[3] == "+10 [+10, +10] (Walker2d, 2 seeds)"


def test_claim_b_compares_each_task_with_the_published_score_of_sac():
    bars = {task: published.end(task) - claims.MARGIN for task in TASKS}
    assert bars["hopper"] == pytest.approx(tasks.normalised_score(tasks.find("hopper"), 3456) - claims.MARGIN)
    scores = {task: bars[task] + above for task, above in zip(TASKS, (9, 9, -9, 0), strict=True)}
    near = pd.concat([runs({"augmented": score}, seeds=5, tasks=(task,)) for task, score in scores.items()])
    assert [claims.decided(found) for found in findings("b", near)] == ["reproduced", "reproduced", "contradicted", "undecided"]
    assert verdicts(near)["b"] == "reproduced in 2 of 4 parts, contradicted in 1 of 4 parts, undecided in 1 of 4 parts"
    short = near[near["task"] == "hopper"]
    ours = short.assign(arm="sac_million", dataset="none", seed=0, score=77.0)
    ours["environment_steps"] = 10 * ours["environment_steps"]
    ours.loc[ours["environment_steps"] < 750_000, "score"] = 0.0  # only the last 100,000 of a million interactions count
    text = claims.claims_table(pd.concat([near, ours], ignore_index=True))
    assert "augmented 50 % minus a threshold, in mean score, 75K to 100K:<br>Hopper: **+9.0 [" in text
    assert text.count("** (threshold 97, our SAC 77, itself below it; 5 seeds, p below 0.001)") == 1
    assert "itself below it" not in claims.claims_table(pd.concat([near, ours.assign(score=98.0)])), "It reaches the threshold."
    assert "all seeds end at the same score" not in text
    alike = runs({"augmented": 50}, seeds=5, tasks=TASKS, spread=0.0)
    assert claims.claims_table(alike).count(", all seeds end at the same score)") == 4


def test_the_second_window_of_the_primary_comparisons_begins_at_25000_interactions():
    """A lead at the start counts only in the first window."""
    frame = runs({"augmented": 50, "vanilla": 40}, seeds=5, tasks=TASKS, spread=0.0)
    frame.loc[(frame["arm"] == "augmented") & (frame["environment_steps"] == 0), "score"] += 80
    first = claims.claims_table(frame).splitlines()[2].split(" | ")
    assert [column[:5] for column in first[1:3]] == ["+20 [", "+10 ["]


def test_the_best_rate_must_exceed_the_mean_of_the_others_and_each_of_them():
    place = {"seeds": 5, "tasks": ("halfcheetah",)}
    rates = {"augmented": 50, "vanilla": 30, "augmented_25": 40, "augmented_75": 40, "augmented_100": 20}
    (found,) = findings("d", runs(rates, **place))
    assert found.interval.value == 50 - (30 + 40 + 40 + 20) / 4
    assert verdicts(runs(rates, **place))["d"] == "reproduced"
    higher = runs({**rates, "augmented_75": 51}, **place)
    assert verdicts(higher)["d"] == "direction only"
    assert "; higher still: augmented 75 %" in claims.claims_table(higher)
    assert verdicts(runs({**rates, "augmented": 10}, **place))["d"] == "contradicted"
    assert verdicts(runs(dict(list(rates.items())[:4]), **place))["d"] == "not attempted"  # one rate is missing


def test_a_claim_of_several_parts_reports_how_many_of_them_hold():
    critics = {"augmented_critics_uniform": 30, "vanilla_critics_uniform": 20}
    parts = {"td3": 10, "augmented_actor": 40, "vanilla_actor": 35, **critics}
    place = {"seeds": 5, "tasks": TASKS[:1] + TASKS[2:3]}
    assert verdicts(runs(parts, **place))["e"] == "reproduced"
    half = runs({**parts, "augmented_critics_uniform": 5}, **place)
    assert verdicts(half)["e"] == "reproduced in 2 of 3 parts, contradicted in 1 of 3 parts"


def test_claim_f_is_that_vanilla_critics_overestimate_and_overfit_more():
    frame = runs({"augmented": 20, "vanilla": 60}, seeds=5, tasks=TASKS)  # over-estimation is twice the score in these runs
    assert [found.interval.value for found in findings("f", frame)] == [80, 40]
    assert verdicts(frame)["f"] == "reproduced"


def test_runs_on_other_datasets_do_not_count():
    main, other = runs({"augmented": 50, "td3": 10}), runs({"augmented": 0}).assign(dataset="hopper-random")
    assert claims.claims_table(pd.concat([main, other])) == claims.claims_table(main)
    assert claims.main_runs(runs({"td3": 10}, tasks=("swimmer",))).empty, "Extra tasks are not the paper's."


def test_the_studies_train_five_seeds_of_every_comparison():
    trained = {(run.task, run.arm, run.seed) for run in studies.programme()}
    for comparison in [*PRIMARY, *claims.METHODS, *claims.HORIZONS, *(part for claim in CLAIMS for part in claim.parts)]:
        arms = (comparison.arm, *comparison.others)
        assert {(task, arm, seed) for task in comparison.tasks for arm in arms for seed in range(5)} <= trained, comparison
