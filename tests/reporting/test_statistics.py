"""Statistics against scipy and against hand arithmetic; the unit is the seed."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from evaluated import curve, episodes
from hypothesis import given
from hypothesis import strategies as st

from mbaug.experiments import records
from mbaug.reporting import statistics
from mbaug.reporting.statistics import RUN

FINITE = st.floats(-1e3, 1e3)
RECORD = dict.fromkeys(records.METADATA) | {"watch": {}, "status": "finished"}


def evaluations(*args, **kwargs):
    return statistics.evaluations(episodes(*args, **kwargs))


def trimmed(*scores, axis=-1):
    """The interquartile mean of pooled scores, by scipy."""
    return scipy.stats.trim_mean(np.concatenate(scores, axis=axis), 0.25, axis=axis)


# --- evaluations: the unit is the seed ------------------------------------------------------------------------------------


def test_episodes_become_the_score_of_a_seed():
    table = evaluations([("td3", 0, "finetune", 5_000, score) for score in (10.0, 20.0, 60.0)])
    assert table[[*RUN, "phase", "steps", "score"]].to_numpy().tolist() == [["hopper", "d", "td3", 0, "finetune", 5_000, 30.0]]


def test_steps_are_updates_offline_and_interactions_online():
    table = evaluations([("vanilla", 0, "finetune", 5_000, 1.0), ("vanilla", 0, "pretrain", 10_000, 2.0)])
    assert table[["phase", "steps"]].to_numpy().tolist() == [["pretrain", 10_000], ["finetune", 5_000]]


def test_overestimation_is_value_minus_discounted_return():
    table = evaluations(curve([1.0]), predicted_value=70.0, discounted_return=50.0)
    assert table["overestimation"].item() == 20.0


def test_ten_episodes_do_not_narrow_an_interval():
    scores = [(10.0, 0), (20.0, 1), (60.0, 2)]
    once = evaluations([("td3", seed, "finetune", 0, score) for score, seed in scores])
    often = evaluations([("td3", seed, "finetune", 0, score) for score, seed in scores for _ in range(10)])
    by = ["arm", "steps"]
    pd.testing.assert_frame_equal(statistics.summarise(once, by), statistics.summarise(often, by))


def test_episodes_are_refused_where_seeds_are_meant():
    found = episodes([("td3", 0, "finetune", 0, 1.0), ("td3", 0, "finetune", 0, 2.0)])
    with pytest.raises(ValueError, match="unit is the seed"):
        statistics.summarise(found, ["arm"])


def test_no_runs_give_empty_tables(tmp_path):
    table = statistics.evaluations(records.load_runs(tmp_path))
    assert len(table) == 0
    assert len(statistics.summarise(table, ["arm", "steps"])) == 0
    for measure in (statistics.final_score, statistics.mean_score, statistics.score_drop, statistics.last_offline):
        assert statistics.differences(measure(table), "augmented", "td3") == []


def test_what_load_runs_returns_is_understood(tmp_path):
    row = dict.fromkeys(records.COLUMNS, 1.0) | {"phase": "finetune", "gradient_steps": 1, "environment_steps": 100_000}
    rows = [row | {"episode": k, "length": 1, "return": value} for k, value in enumerate([0.0, 200.0])]
    records.write(tmp_path, records.Run("hopper", "none", "td3", 0), rows, RECORD)
    score = statistics.final_score(statistics.evaluations(records.load_runs(tmp_path)))
    assert score.to_dict() == {("hopper", "none", "td3", 0): pytest.approx(100 * 120.272305 / 3254.572305)}


# --- divergence -----------------------------------------------------------------------------------------------------------


def test_a_diverged_agent_scores_zero_from_then_on():
    longer = curve([1.0] * 5, arm="sac_million")  # of another arm, which says nothing of this one's budget
    table = episodes(curve([10.0, 20.0, 30.0], seed=0) + curve([50.0], seed=1) + longer)
    table.loc[(table["arm"] == "td3") & (table["seed"] == 1), "status"] = "diverged"
    found = statistics.evaluations(table)
    assert found.loc[found["seed"] == 1, "score"].tolist() == [50.0, 0.0, 0.0]
    assert statistics.final_score(found, 50_000)[:, :, "td3"].tolist() == [30.0, 0.0]


def test_an_agent_from_scratch_is_not_given_a_pretraining():
    table = episodes([*curve([10.0, 20.0], arm="vanilla"), ("vanilla", 0, "pretrain", 10_000, 5.0), *curve([3.0])])
    table.loc[table["arm"] == "td3", ["dataset", "status"]] = ["none", "diverged"]
    found = statistics.evaluations(table)
    rows = found.loc[found["arm"] == "td3", ["phase", "steps", "score"]]
    assert rows.to_numpy().tolist() == [["finetune", 0, 3.0], ["finetune", 25_000, 0.0]]


def test_a_shorter_run_that_finished_is_not_filled():
    assert len(evaluations(curve([10.0, 20.0], seed=0) + curve([50.0], seed=1))) == 3


def test_an_agent_that_diverged_before_its_first_evaluation_is_counted(tmp_path):
    """Its record has no rows; it scores 0 wherever another agent of its arm was evaluated."""
    row = dict.fromkeys(records.COLUMNS, 1.0) | {"episode": 0, "length": 1, "return": 500.0}
    moments = ("pretrain", 10_000, 0), ("finetune", 10_000, 0), ("finetune", 20_000, 10_000)
    names = ("phase", "gradient_steps", "environment_steps")
    rows = [row | dict(zip(names, moment, strict=True)) for moment in moments]
    runs = [records.Run("hopper", "hopper-medium", "vanilla", seed) for seed in (0, 1)]
    records.write(tmp_path, runs[0], rows, RECORD)
    alone = statistics.evaluations(records.load_runs(tmp_path))
    records.write(tmp_path, runs[1], [], RECORD | {"status": "diverged"})
    found = statistics.evaluations(records.load_runs(tmp_path))
    lost = found[found["seed"] == 1]
    assert lost["status"].unique().tolist() == ["diverged"]
    points = [("pretrain", 10_000), ("finetune", 0), ("finetune", 10_000)]
    assert [*lost[["phase", "steps"]].itertuples(index=False, name=None)] == points
    assert (lost["score"] == 0).all()
    pd.testing.assert_frame_equal(found[found["seed"] == 0].reset_index(drop=True), alone)
    assert statistics.summarise(found, ["arm", "phase", "steps"])["n_seeds"].tolist() == [2, 2, 2]


# --- intervals ------------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_by_hand():
    scores = {(5.0, 1.0, 100.0, 2.0, 3.0, 4.0, 6.0, -50.0): 3.5, (1.0, 2.0, 9.0): 4.0, (1.0, 2.0, 3.0, 100.0): 2.5}
    assert {values: statistics.interval([np.array(values)]).value for values in scores} == scores


@pytest.mark.parametrize("n_seeds", [[3], [5], [10], [6, 6]])
def test_an_interval_agrees_with_scipys(n_seeds):
    rng = np.random.default_rng(sum(n_seeds))
    scores = [rng.normal(50, 10, n) for n in n_seeds]
    ours = statistics.interval(scores)
    options = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(1)}
    theirs = scipy.stats.bootstrap(scores, trimmed, **options).confidence_interval
    assert (ours.value, ours.n_seeds) == (pytest.approx(trimmed(*scores)), n_seeds[0])
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.6)


def test_tasks_are_strata():
    """Pooled without strata, tasks that differ by 90 would spread the interval over tens of points."""
    assert statistics.interval([np.full(3, 5.0), np.full(3, 95.0)]) == (50.0, 50.0, 50.0, 3)


@given(st.lists(st.lists(FINITE, min_size=1, max_size=6).map(np.array), min_size=1, max_size=4))
def test_an_interval_stays_within_the_scores_and_one_seed_has_none(strata):
    found = statistics.interval(strata)
    assert found == statistics.interval(strata) or np.isnan(found.low)
    assert found.n_seeds == min(map(len, strata))
    pooled = np.concatenate(strata)
    ends = [found.value] if np.isnan(found.low) else [found.low, found.value, found.high]
    assert all(pooled.min() - 1e-9 <= end <= pooled.max() + 1e-9 for end in ends)
    assert np.isnan([found.low, found.high]).all() == (max(map(len, strata)) == 1)


def test_no_seed_has_no_value_and_a_score_that_is_not_finite_is_refused():
    assert statistics.interval([]).n_seeds == 0
    assert np.isnan(statistics.interval([np.array([])]).value)
    with pytest.raises(ValueError, match="finite scores"):
        statistics.interval([np.array([1.0, np.inf])])


def test_the_docstring_tells_the_coverage_truly():
    """With 3 seeds an interval holds the truth in about 75 of 100 cases, with 5 in 90, with 10 in 94."""
    rng = np.random.default_rng(0)
    for n_seeds, promised in ((3, 0.75), (5, 0.90), (10, 0.94)):
        drawn = statistics.resampled([np.arange(float(n_seeds))], resamples=500)[0]
        scores = rng.normal(size=(1000, n_seeds))
        low, high = np.quantile(trimmed(scores[:, drawn.astype(int)]), [0.025, 0.975], axis=1)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(promised, abs=0.04)


def test_a_summary_is_a_row_a_group():
    table = evaluations([row for seed, shift in enumerate((0.0, 10.0, 20.0)) for row in curve([shift, 50 + shift], seed)])
    summary = statistics.summarise(table, ["arm", "steps"])
    assert list(summary) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    assert summary[["arm", "steps", "score", "n_seeds"]].to_numpy().tolist() == [["td3", 0, 10.0, 3], ["td3", 25_000, 60.0, 3]]
    expected = statistics.interval([np.array([0.0, 10.0, 20.0])])
    assert summary.loc[0, ["low", "high"]].tolist() == [expected.low, expected.high]
    assert (summary["high"] - summary["low"]).nunique() == 1  # the same seeds are drawn along the curve
    table.loc[0, "data_value"] = np.nan
    assert statistics.summarise(table, ["arm", "steps"], "data_value")["n_seeds"].tolist() == [2, 3]  # only those that have it


# --- comparisons ----------------------------------------------------------------------------------------------------------


def measure(values: dict[tuple, float]) -> pd.Series:
    """A measure from {(task, arm, seed): number}."""
    index = pd.MultiIndex.from_tuples([(task, "d", arm, seed) for task, arm, seed in values], names=RUN)
    return pd.Series(list(values.values()), index, dtype=float, name="score")


def test_differences_are_paired_by_task_and_seed():
    hopper = {("hopper", "td3", 0): 10, ("hopper", "td3", 1): 20, ("hopper", "augmented", 1): 25, ("hopper", "augmented", 0): 11}
    ant = {("ant", "augmented", 0): 5, ("ant", "td3", 0): 7, ("ant", "sac", 0): 100}
    scores = measure({**hopper, **ant, ("hopper", "td3", 2): 30})  # the last has no partner
    found = [paired.tolist() for paired in statistics.differences(scores, "augmented", "td3")]
    assert found == [[-2.0], [1.0, 5.0]]  # ant, hopper
    assert statistics.differences(scores, "augmented", "vanilla") == []
    with pytest.raises(ValueError, match="select one dataset"):
        statistics.differences(pd.concat([scores, scores]), "augmented", "td3")


def test_chance_by_hand():
    assert statistics.chance([np.array([1.0, 2.0, 4.0])]) == 1 / 8
    assert statistics.chance([np.array([1.0, 2.0]), np.array([4.0])]) == 1 / 8
    assert statistics.chance([np.array([-1.0, 2.0, 4.0])]) == 2 / 8  # sums 7 and 5 of -7 ... 7
    assert statistics.chance([np.array([-1.0, -2.0, -4.0])]) == 1
    assert statistics.chance([np.array([0.1, 0.2, -0.3])]) == 5 / 8  # a tie, but for rounding
    assert statistics.chance([]) == 1


@pytest.mark.parametrize("n_pairs", [8, 20])
def test_chance_agrees_with_scipy(n_pairs):
    values = np.random.default_rng(3).normal(0.3, 1, n_pairs)
    theirs = scipy.stats.permutation_test(
        (values, np.zeros(n_pairs)),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert statistics.chance([values]) == pytest.approx(theirs.pvalue, abs=0.01 if n_pairs > 14 else 1e-12)


def test_the_probability_of_improvement_is_mann_whitneys():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, 1, 7), rng.normal(0, 1, 5)
    found = statistics.probability_of_improvement([x], [y])
    assert found.value == pytest.approx(scipy.stats.mannwhitneyu(x, y).statistic / 35)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n_seeds == 5


def test_the_probability_of_improvement_by_hand():
    first, second = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0])
    assert statistics.probability_of_improvement([first], [second]).value == pytest.approx((0 + 1 + 2) / 9)
    both = statistics.probability_of_improvement([first, second], [second, np.zeros(3)])
    assert both.value == pytest.approx((3 / 9 + 1) / 2)
    assert np.isnan(statistics.probability_of_improvement([np.array([1.0])], [np.array([0.0])]).low)
    assert statistics.probability_of_improvement([], []).n_seeds == 0
    with pytest.raises(ValueError, match="same tasks; got 1 and 0"):
        statistics.probability_of_improvement([first], [])


# --- measures -------------------------------------------------------------------------------------------------------------


def test_the_final_score_is_the_one_at_that_step():
    table = evaluations(curve([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) + curve([9.0], seed=1))
    assert statistics.final_score(table).to_dict() == {("hopper", "d", "td3", 0): 5.0}
    assert statistics.final_score(table, 25_000).tolist() == [2.0]


def test_the_mean_score_by_hand():
    table = evaluations(curve([0.0, 10.0, 20.0, 0.0, 40.0, 1000.0]) + curve([1.0, 2.0], seed=1))  # the second is too short
    assert statistics.mean_score(table).tolist() == [(5 + 15 + 10 + 20) / 4]
    assert statistics.mean_score(table, 50_000).tolist() == [10.0]
    assert statistics.mean_score(table, 37_500).tolist() == [pytest.approx((5 * 25 + 12.5 * 12.5) / 37.5)]
    late = evaluations([("td3", 0, "finetune", 50_000, 10.0), ("td3", 0, "finetune", 100_000, 20.0)])
    assert statistics.mean_score(late).tolist() == [(10 + 15) / 2]  # before the first evaluation its score counts


def test_the_score_drop_by_hand():
    offline = [("td3", 0, "pretrain", 10_000, 99.0), ("td3", 0, "pretrain", 200_000, 60.0)]
    table = evaluations([*curve([61.0, 50.0, 20.0, 0.0]), *offline, *curve([5.0], seed=1)])
    assert statistics.score_drop(table).to_dict() == {("hopper", "d", "td3", 0): 40.0}
    assert statistics.score_drop(table, 25_000).tolist() == [10.0]
    higher = evaluations([*curve([5.0, 50.0, 20.0]), *offline])  # the lowest is the first, before any interaction
    assert statistics.score_drop(higher, last=25_000).tolist() == [55.0]
    assert statistics.score_drop(higher, last=25_000, first=1).tolist() == [10.0]


def test_steps_to_threshold_are_those_of_the_first_evaluation_that_reaches_it():
    table = evaluations(curve([0.0, 30.0, 10.0, 80.0]) + curve([0.0, 29.9], seed=1))
    assert statistics.steps_to_threshold(table, 30.0).tolist() == [25_000, np.inf]
    assert statistics.steps_to_threshold(table, 0.0).tolist() == [0, 0]


def test_what_an_agent_was_when_it_went_online():
    offline = [("vanilla", seed, "pretrain", steps, 1.0) for seed in (0, 1) for steps in (10_000, 20_000)]
    measured = {"predicted_value": [5.0, 7.0, 3.0, 4.0, 100.0, 100.0], "overfitting": [1.5, 1.5, np.nan, np.nan, 1.5, np.nan]}
    table = evaluations([*offline, *curve([1.0], arm="vanilla"), *curve([1.0])], **measured)
    first, second = (("hopper", "d", "vanilla", seed) for seed in (0, 1))
    assert statistics.last_offline(table, "overestimation").to_dict() == {first: 6.0, second: 3.0}
    assert statistics.last_offline(table, "overfitting").to_dict() == {first: 1.5}  # none where it was not measured
