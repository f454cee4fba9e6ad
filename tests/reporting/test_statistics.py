"""Statistics against scipy and against hand arithmetic; the unit is the seed."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mbaug import recording, statistics
from mbaug.statistics import RUN

FINITE = st.floats(-1e3, 1e3)


def frame(rows: list[tuple], **fixed) -> pd.DataFrame:
    """Evaluation episodes from (arm, seed, phase, steps, score) and what else is fixed."""
    table = pd.DataFrame(rows, columns=["arm", "seed", "phase", "steps", "score"])
    table = table.assign(study="s", task="hopper", dataset="d", status="finished", episode=0)
    offline = table["phase"] == "pretrain"
    table = table.assign(
        gradient_steps=table["steps"].where(offline, 200_000), environment_steps=table["steps"].where(~offline, 0)
    )
    means = ["return", "length", "discounted_return", "predicted_value", "data_value", "imagined_outside", "overfitting"]
    table = table.drop(columns="steps").assign(**{**dict.fromkeys(means, 1.0), **fixed})
    return table.assign(episode=table.groupby([*RUN, "phase", "gradient_steps", "environment_steps"]).cumcount())


def curve(scores, seed=0, arm="td3", interval=25_000):
    """The rows of an online curve that starts at 0 interactions."""
    return [(arm, seed, "finetune", interval * k, score) for k, score in enumerate(scores)]


def evaluations(*args, **kwargs):
    return statistics.evaluations(frame(*args, **kwargs))


# --- the unit is the seed -------------------------------------------------------------------------


def test_episodes_become_the_score_of_a_seed():
    table = evaluations([("td3", 0, "finetune", 5_000, score) for score in (10.0, 20.0, 60.0)])
    assert table[[*RUN, "phase", "steps", "score"]].to_numpy().tolist() == [
        ["s", "hopper", "d", "td3", 0, "finetune", 5_000, 30.0]
    ]


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
    episodes = frame([("td3", 0, "finetune", 0, 1.0), ("td3", 0, "finetune", 0, 2.0)])
    with pytest.raises(ValueError, match="unit is the seed"):
        statistics.summarise(episodes, ["arm"])


def test_no_runs_give_empty_tables(tmp_path):
    table = statistics.evaluations(recording.load_runs(tmp_path))
    assert len(table) == 0
    assert len(statistics.summarise(table, ["arm", "steps"])) == 0
    measures = [statistics.final_score, statistics.mean_score, statistics.score_drop, statistics.last_overestimation]
    for measure in measures:
        assert statistics.differences(measure(table), "augmented", "td3") == []


def test_what_load_runs_returns_is_understood(tmp_path):
    row = dict.fromkeys(recording.COLUMNS, 1.0) | {"phase": "finetune", "gradient_steps": 1, "environment_steps": 100_000}
    rows = [row | {"episode": k, "length": 1, "return": value} for k, value in enumerate([0.0, 200.0])]
    metadata = dict.fromkeys(recording.METADATA) | {"status": "finished", "watch": {}}
    recording.write(tmp_path, recording.Run("s", "hopper", "none", "td3", 0), rows, metadata)
    score = statistics.final_score(statistics.evaluations(recording.load_runs(tmp_path)))
    assert score.to_dict() == {("s", "hopper", "none", "td3", 0): pytest.approx(100 * 120.272305 / 3254.572305)}


# --- divergence -----------------------------------------------------------------------------------


def test_a_diverged_agent_scores_zero_from_then_on():
    table = frame(curve([10.0, 20.0, 30.0], seed=0) + curve([50.0], seed=1))
    table.loc[table["seed"] == 1, "status"] = "diverged"
    found = statistics.evaluations(table)
    assert found.loc[found["seed"] == 1, "score"].tolist() == [50.0, 0.0, 0.0]
    assert statistics.final_score(found, 50_000).tolist() == [30.0, 0.0]


def test_an_agent_from_scratch_is_not_given_a_pretraining():
    table = frame([*curve([10.0, 20.0], arm="vanilla"), ("vanilla", 0, "pretrain", 10_000, 5.0), *curve([3.0])])
    table.loc[table["arm"] == "td3", ["dataset", "status"]] = ["none", "diverged"]
    found = statistics.evaluations(table)
    rows = found.loc[found["arm"] == "td3", ["phase", "steps", "score"]]
    assert rows.to_numpy().tolist() == [["finetune", 0, 3.0], ["finetune", 25_000, 0.0]]


def test_a_shorter_run_that_finished_is_not_filled():
    found = evaluations(curve([10.0, 20.0], seed=0) + curve([50.0], seed=1))
    assert len(found) == 3


# --- intervals ------------------------------------------------------------------------------------


def test_the_interquartile_mean_by_hand():
    assert statistics.interquartile_mean(np.array([5.0, 1.0, 100.0, 2.0, 3.0, 4.0, 6.0, -50.0])) == (2 + 3 + 4 + 5) / 4
    assert statistics.interquartile_mean(np.array([1.0, 2.0, 9.0])) == 4.0  # of three, none is left out
    assert statistics.interquartile_mean(np.array([1.0, 2.0, 3.0, 100.0])) == 2.5


@given(st.lists(FINITE, min_size=4, max_size=4), st.lists(FINITE, min_size=4, max_size=4))
def test_the_interquartile_mean_is_taken_a_row(first, second):
    rows = np.array([first, second])
    both = statistics.interquartile_mean(rows)
    assert both.tolist() == [statistics.interquartile_mean(row).item() for row in rows]


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
def test_one_task_agrees_with_scipy(n_seeds):
    scores = np.random.default_rng(n_seeds).normal(50, 10, n_seeds)
    ours = statistics.interval([scores])
    theirs = scipy.stats.bootstrap(
        (scores,),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.n_seeds == n_seeds
    assert ours.value == scipy.stats.trim_mean(scores, 0.25)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.6)


def test_two_tasks_agree_with_scipy():
    rng = np.random.default_rng(0)
    hopper, ant = rng.normal(80, 5, 6), rng.normal(20, 5, 6)
    ours = statistics.interval([hopper, ant], statistic=lambda x: x.mean(axis=-1))
    theirs = scipy.stats.bootstrap(
        (hopper, ant),
        lambda x, y, axis: (x.mean(axis=axis) + y.mean(axis=axis)) / 2,
        n_resamples=10_000,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.15)


def test_tasks_are_strata():
    """Pooled without strata, tasks that differ by 90 would spread the interval over tens of points."""
    found = statistics.interval([np.array([5.0, 5.0, 5.0]), np.array([95.0, 95.0, 95.0])])
    assert found == (50.0, 50.0, 50.0, 3)


@given(st.lists(st.lists(FINITE, min_size=1, max_size=6).map(np.array), min_size=1, max_size=4))
def test_an_interval_stays_within_the_scores(strata):
    found = statistics.interval(strata)
    assert found == statistics.interval(strata) or np.isnan(found.low)
    assert found.n_seeds == min(map(len, strata))
    pooled = np.concatenate(strata)
    ends = [found.value] if np.isnan(found.low) else [found.low, found.value, found.high]
    assert all(pooled.min() - 1e-9 <= end <= pooled.max() + 1e-9 for end in ends)
    assert np.isnan(found.low) == (max(map(len, strata)) == 1)


def test_one_seed_has_no_interval():
    value, low, high, n_seeds = statistics.interval([np.array([7.0])])
    assert (value, n_seeds) == (7.0, 1)
    assert np.isnan(low)
    assert np.isnan(high)


def test_no_seed_has_no_value():
    assert statistics.interval([]).n_seeds == 0
    assert np.isnan(statistics.interval([np.array([])]).value)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite scores"):
        statistics.interval([np.array([1.0, np.inf])])


def test_the_docstring_tells_the_coverage_truly():
    """With 3 seeds an interval holds the truth in about 75 of 100 cases, with 5 in 90, with 10 in 94."""
    rng = np.random.default_rng(0)
    for n_seeds, promised in ((3, 0.75), (5, 0.90), (10, 0.94)):
        drawn = statistics.resampled([np.arange(float(n_seeds))], resamples=500)[0]
        scores = rng.normal(size=(1000, n_seeds))
        low, high = np.quantile(statistics.interquartile_mean(scores[:, drawn.astype(int)]), [0.025, 0.975], axis=1)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(promised, abs=0.04)


def test_a_summary_is_a_row_a_group():
    table = evaluations([row for seed, shift in enumerate((0.0, 10.0, 20.0)) for row in curve([shift, 50 + shift], seed)])
    summary = statistics.summarise(table, ["arm", "steps"])
    assert list(summary) == ["arm", "steps", "score", "low", "high", "n_seeds"]
    assert summary[["arm", "steps", "score", "n_seeds"]].to_numpy().tolist() == [
        ["td3", 0, 10.0, 3],
        ["td3", 25_000, 60.0, 3],
    ]
    expected = statistics.interval([np.array([0.0, 10.0, 20.0])])
    assert summary.loc[0, ["low", "high"]].tolist() == [expected.low, expected.high]
    assert (summary["high"] - summary["low"]).nunique() == 1  # the same seeds are drawn along the curve


def test_a_summary_counts_only_seeds_that_have_the_value():
    table = evaluations([row for seed in range(3) for row in curve([1.0], seed)])
    table.loc[0, "data_value"] = np.nan
    assert statistics.summarise(table, ["arm"], "data_value")["n_seeds"].item() == 2


# --- comparisons ----------------------------------------------------------------------------------


def measure(values: dict[tuple, float]) -> pd.Series:
    """A measure from {(task, arm, seed): number}."""
    index = pd.MultiIndex.from_tuples([("s", task, "d", arm, seed) for task, arm, seed in values], names=RUN)
    return pd.Series(list(values.values()), index, dtype=float, name="score")


def test_differences_are_paired_by_task_and_seed():
    scores = measure(
        {
            ("hopper", "td3", 0): 10,
            ("hopper", "td3", 1): 20,
            ("hopper", "td3", 2): 30,  # without a partner
            ("hopper", "augmented", 1): 25,
            ("hopper", "augmented", 0): 11,
            ("ant", "augmented", 0): 5,
            ("ant", "td3", 0): 7,
            ("ant", "sac", 0): 100,
        }
    )
    found = [paired.tolist() for paired in statistics.differences(scores, "augmented", "td3")]
    assert found == [[-2.0], [1.0, 5.0]]  # ant, hopper
    assert statistics.differences(scores, "augmented", "vanilla") == []


def test_a_pair_that_is_not_one_is_refused():
    twice = pd.concat([measure({("ant", "td3", 0): 1.0}), measure({("ant", "td3", 0): 2.0})])
    with pytest.raises(ValueError, match="select one study and dataset"):
        statistics.differences(twice, "augmented", "td3")


def test_pairing_removes_what_the_seeds_share():
    shared = np.array([0.0, 40.0, 90.0])
    paired = statistics.interval([(shared + np.array([1.0, 2.0, 3.0])) - shared])
    assert paired.low > 0
    assert statistics.interval([shared + np.array([1.0, 2.0, 3.0])]).low < statistics.interval([shared]).high


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
    u = scipy.stats.mannwhitneyu(x, y).statistic
    found = statistics.probability_of_improvement([x], [y])
    assert found.value == pytest.approx(u / 35)
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


# --- measures -------------------------------------------------------------------------------------


def test_the_final_score_is_the_one_at_that_step():
    table = evaluations(curve([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) + curve([9.0], seed=1))
    assert statistics.final_score(table).to_dict() == {("s", "hopper", "d", "td3", 0): 5.0}
    assert statistics.final_score(table, 25_000).tolist() == [2.0]


def test_the_mean_score_by_hand():
    table = evaluations(curve([0.0, 10.0, 20.0, 0.0, 40.0, 1000.0]))
    assert statistics.mean_score(table).tolist() == [(5 + 15 + 10 + 20) / 4]
    assert statistics.mean_score(table, 50_000).tolist() == [10.0]
    assert statistics.mean_score(table, 37_500).tolist() == [pytest.approx((5 * 25 + 12.5 * 12.5) / 37.5)]


def test_the_mean_score_of_a_run_that_is_too_short_is_not_known():
    assert len(statistics.mean_score(evaluations(curve([1.0, 2.0])))) == 0


def test_the_mean_score_begins_with_the_first_evaluation():
    late = evaluations([("td3", 0, "finetune", 50_000, 10.0), ("td3", 0, "finetune", 100_000, 20.0)])
    assert statistics.mean_score(late).tolist() == [(10 + 15) / 2]


def test_the_score_drop_by_hand():
    offline = [("td3", 0, "pretrain", 10_000, 99.0), ("td3", 0, "pretrain", 200_000, 60.0)]
    table = evaluations([*curve([61.0, 50.0, 20.0, 0.0]), *offline, *curve([5.0], seed=1)])
    assert statistics.score_drop(table).to_dict() == {("s", "hopper", "d", "td3", 0): 40.0}
    assert statistics.score_drop(table, 25_000).tolist() == [10.0]
    higher = evaluations([*curve([5.0, 50.0, 20.0]), *offline])  # the lowest is the first, before any interaction
    assert statistics.score_drop(higher, last=25_000).tolist() == [55.0]
    assert statistics.score_drop(higher, last=25_000, first=1).tolist() == [10.0]


def test_steps_to_threshold_are_those_of_the_first_evaluation_that_reaches_it():
    table = evaluations(curve([0.0, 30.0, 10.0, 80.0]) + curve([0.0, 29.9], seed=1))
    assert statistics.steps_to_threshold(table, 30.0).tolist() == [25_000, np.inf]
    assert statistics.steps_to_threshold(table, 0.0).tolist() == [0, 0]


def test_the_last_overestimation_is_that_of_the_last_offline_evaluation():
    offline = [("vanilla", 0, "pretrain", 10_000, 1.0), ("vanilla", 0, "pretrain", 20_000, 1.0)]
    table = evaluations([*offline, *curve([1.0], arm="vanilla")], predicted_value=[5.0, 7.0, 100.0])
    assert statistics.last_overestimation(table).tolist() == [6.0]


def test_overfitting_is_one_number_a_run_and_none_where_it_was_not_measured():
    offline = [("vanilla", seed, "pretrain", steps, 1.0) for seed in (0, 1) for steps in (10_000, 20_000)]
    online = curve([1.0], arm="vanilla") + curve([1.0], seed=1, arm="vanilla") + curve([1.0])
    table = evaluations(offline + online, overfitting=[1.5, 1.5, np.nan, np.nan, 1.5, np.nan, np.nan])
    assert statistics.last_overfitting(table).to_dict() == {("s", "hopper", "d", "vanilla", 0): 1.5}


def test_an_agent_that_diverged_before_its_first_evaluation_is_counted(tmp_path):
    """Its record has no rows; it scores 0 wherever another agent of its task was evaluated, and is no agent more there."""
    row = dict.fromkeys(recording.COLUMNS, 1.0) | {"episode": 0, "length": 1, "return": 500.0}
    moments = ("pretrain", 10_000, 0), ("finetune", 10_000, 0), ("finetune", 20_000, 10_000)
    names = ("phase", "gradient_steps", "environment_steps")
    rows = [row | dict(zip(names, moment, strict=True)) for moment in moments]
    runs = [recording.Run("s", "hopper", "hopper-medium", "vanilla", seed) for seed in (0, 1)]
    metadata = dict.fromkeys(recording.METADATA) | {"watch": {}}
    recording.write(tmp_path, runs[0], rows, metadata | {"status": "finished"})
    alone = statistics.evaluations(recording.load_runs(tmp_path))
    recording.write(tmp_path, runs[1], [], metadata | {"status": "diverged"})
    found = statistics.evaluations(recording.load_runs(tmp_path))
    lost = found[found["seed"] == 1]
    assert lost["status"].unique().tolist() == ["diverged"]
    points = [("pretrain", 10_000), ("finetune", 0), ("finetune", 10_000)]
    assert [*lost[["phase", "steps"]].itertuples(index=False, name=None)] == points
    assert (lost["score"] == 0).all()
    pd.testing.assert_frame_equal(found[found["seed"] == 0].reset_index(drop=True), alone)
    assert statistics.summarise(found, ["arm", "phase", "steps"])["n_seeds"].tolist() == [2, 2, 2]


def test_a_copy_of_a_run_is_no_other_seed():
    """A run that two studies have counts once: who takes both must choose one, or keep the studies apart."""
    table = evaluations([("td3", 0, "finetune", 0, 1.0), ("td3", 1, "finetune", 0, 3.0)])
    both = pd.concat([table, table.assign(study="other")])
    with pytest.raises(ValueError, match="The unit is the seed, but a run has several rows"):
        statistics.summarise(both, ["arm"])
    assert statistics.summarise(both, ["study", "arm"])["n_seeds"].tolist() == [2, 2]
