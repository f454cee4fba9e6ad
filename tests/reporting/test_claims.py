"""Verdicts follow from the records alone, by the rules below the table."""

import re

import pandas as pd
from evaluated import runs

from mbaug.experiments import records, studies
from mbaug.reporting import claims
from mbaug.reporting.claims import CLAIMS

TASKS = ("hopper", "walker2d", "halfcheetah", "ant")


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    """The verdict of each claim as the table gives it."""
    rows = [line.split(" | ") for line in claims.claims_table(frame).splitlines() if re.match(r"\| [a-f] \|", line)]
    assert [row[0] for row in rows] == [f"| {letter}" for letter in "abcdef"]
    return {row[0][-1]: row[4] for row in rows}


def test_without_runs_or_with_one_seed_nothing_is_measured(tmp_path):
    assert set(verdicts(records.load_runs(tmp_path)).values()) == {"not yet measured"}
    alone = runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 30}, seeds=1)
    assert set(verdicts(alone).values()) == {"not yet measured"}


def test_a_task_with_one_seed_says_nothing_beside_one_with_three():
    """Its one difference has no spread: pooled, it would narrow the interval."""
    arms = {"augmented": 50, "td3": 10}
    both = pd.concat([runs(arms), runs(arms, seeds=1, tasks=("walker2d",))], ignore_index=True)
    (finding,), (alone,) = (claims.findings(CLAIMS[0], claims.main_runs(frame)) for frame in (both, runs(arms)))
    assert finding == alone
    assert finding.tasks == ("hopper",)


def test_three_seeds_show_a_direction_only():
    found = verdicts(runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 30}))
    assert found == {
        **dict.fromkeys("abcd", "direction only"),
        "e": "not yet measured",
        "f": "not reproduced",  # over-estimation grows with the score here
    }


def test_five_seeds_can_reproduce():
    found = verdicts(runs({"augmented": 50, "td3": 10, "sac": 20, "vanilla": 60}, seeds=5))
    assert found["a"] == "reproduced"
    assert found["f"] == "reproduced"
    assert found["c"] == "not reproduced"


def test_all_four_tasks_are_needed_where_the_claim_names_them():
    arms = {"augmented": 50, "vanilla": 30}
    assert verdicts(runs(arms, seeds=5, tasks=TASKS[:3]))["c"] == "direction only"
    assert verdicts(runs(arms, seeds=5, tasks=TASKS))["c"] == "reproduced"


def test_an_interval_that_reaches_zero_reproduces_nothing():
    frame = runs({"augmented": 12, "td3": 10}, seeds=5, spread=10)
    (finding,) = claims.findings(CLAIMS[0], claims.main_runs(frame))
    assert finding.interval.low < 0 < finding.interval.value
    assert verdicts(frame)["a"] == "not reproduced"
    assert verdicts(runs({"augmented": 5, "td3": 10}, seeds=5))["a"] == "not reproduced"


def test_ten_times_fewer_interactions_needs_sac_at_a_million():
    def with_sac_at_a_million(score):
        short = runs({"augmented": 80, "sac": 40}, seeds=5)
        last = short[(short["arm"] == "sac") & (short["environment_steps"] == 100_000)]
        return pd.concat([short, last.assign(arm="sac_million", environment_steps=1_000_000, score=score)])

    assert verdicts(with_sac_at_a_million(85.0))["b"] == "reproduced"  # 5 worse: within the margin of 10
    assert verdicts(with_sac_at_a_million(110.0))["b"] == "not reproduced"
    assert verdicts(runs({"augmented": 80, "sac": 40}, seeds=5))["b"] == "direction only"
    assert verdicts(runs({"augmented": 40, "sac": 80}, seeds=5))["b"] == "not reproduced"


def test_the_best_rate_must_beat_every_other():
    rates = {"augmented": 50, "vanilla": 30, "augmented_25": 40, "augmented_75": 40, "augmented_100": 20}
    assert verdicts(runs(rates, seeds=5))["d"] == "reproduced"
    assert verdicts(runs({**rates, "augmented_75": 51}, seeds=5))["d"] == "not reproduced"
    assert verdicts(runs(dict(list(rates.items())[:3]), seeds=5))["d"] == "direction only"


def test_both_parts_must_help():
    critics = {"augmented_critics_uniform": 30, "vanilla_critics_uniform": 20}
    parts = {"td3": 10, "augmented_actor": 40, "vanilla_actor": 35, **critics}
    assert verdicts(runs(parts, seeds=5))["e"] == "reproduced"
    assert verdicts(runs({**parts, "augmented_critics_uniform": 10}, seeds=5))["e"] == "not reproduced"


def test_a_cell_says_what_was_measured_and_how_weakly():
    arms = {"augmented": 50, "td3": 10}
    assert (
        "augmented 50 % − TD3 from scratch: **+40 [+40, +40]** score, mean over 0 to 100K; chance 12 %; "
        "hopper, 3 seeds (a weak interval)"
    ) in claims.claims_table(runs(arms))
    assert "weak interval)" not in claims.claims_table(runs(arms, seeds=5))
    assert "chance below 1 %; ant, hopper" in claims.claims_table(runs(arms, seeds=5, tasks=("hopper", "ant")))


def test_other_data_do_not_mix_in():
    main, other = runs({"augmented": 50, "td3": 10}), runs({"augmented": 0}).assign(dataset="hopper-random")
    assert claims.claims_table(pd.concat([main, other])) == claims.claims_table(main)


def test_every_arm_of_a_claim_is_trained_by_a_study():
    named = {name for claim in CLAIMS for comparison in claim.comparisons for name in (comparison.arm, comparison.other)}
    assert named <= {arm for study in studies.STUDIES.values() for arm in study.arms}
