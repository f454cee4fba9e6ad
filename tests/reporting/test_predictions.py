"""Predictions: how they are judged, by hand, and that the programme has the runs that they are about."""

from dataclasses import replace

import pandas as pd
import pytest
from evaluated import runs

from mbaug.experiments import studies
from mbaug.reporting import claims
from mbaug.reporting.predictions import PREDICTIONS, Measured, Prediction, judged, leave_one_out, listed, measured, needed
from mbaug.reporting.statistics import Interval

BELOW = Prediction("below", "above", ("augmented", "noise"), ("hopper", "ant"), high=0.0)
ALIKE = Prediction("alike", "not alike", ("augmented", "noise"), ("hopper",), low=-10.0, high=10.0)
LESS = Prediction("less", "more", ("augmented", "noise"), ("halfcheetah",), low=0.0, minus=("hopper", "ant"))


def table(scores, seeds=5, tasks=("hopper", "ant")):
    return claims.main_runs(runs(scores, seeds, tasks))


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda each: each.text[:30])
def test_the_programme_has_the_runs_of_every_prediction(prediction):
    planned = {(run.task, run.arm) for run in studies.programme()}
    assert {(task, arm) for task in prediction.tasks + prediction.minus for arm in prediction.arms} <= planned


def test_a_prediction_is_about_a_mean_over_tasks_or_a_difference_between_tasks():
    one = runs({"augmented": 10, "noise": 30}, 5, ("hopper",))
    other = runs({"augmented": 10, "noise": 20}, 5, ("ant", "halfcheetah"))
    found = claims.main_runs(pd.concat([one, other]))
    assert measured(BELOW, found).interval.value == pytest.approx(-15)
    assert measured(LESS, found).interval.value == pytest.approx(-10 - -15)
    assert measured(ALIKE, found) == Measured(measured(ALIKE, found).interval, ())


def test_a_mean_is_also_measured_without_each_of_its_tasks():
    one = runs({"augmented": 10, "noise": 30}, 5, ("hopper",))
    other = runs({"augmented": 10, "noise": 20}, 5, ("ant", "halfcheetah"))
    found = claims.main_runs(pd.concat([one, other]))
    rest = leave_one_out(LESS, found)
    # HalfCheetah's difference is -10, less that of the task that is left: Ant's -10 or Hopper's -20.
    assert {task: each.value for task, each in rest.items()} == pytest.approx({"hopper": 0, "ant": 10})
    assert leave_one_out(ALIKE, found) == {}, "It is about one task."
    assert leave_one_out(BELOW, claims.main_runs(one)).keys() == {"ant"}, "Without Hopper nothing is recorded."


def test_a_prediction_needs_the_tasks_without_which_it_would_be_judged_otherwise():
    most = runs({"augmented": 30, "noise": 30}, 5, ("hopper", "walker2d"), spread=2)
    three = replace(BELOW, tasks=("hopper", "walker2d", "ant"))
    for noise, expected in ((30, []), (90, ["ant"])):
        found = claims.main_runs(pd.concat([most, runs({"augmented": 30, "noise": noise}, 5, ("ant",), spread=2)]))
        assert needed(three, found) == expected
    assert needed(BELOW, found) == [], "It is about two tasks."


def test_a_prediction_with_missing_tasks_arms_or_seeds_is_not_decided():
    part = measured(BELOW, table({"augmented": 10, "noise": 30}, tasks=("hopper",)))
    assert part.missing == ("ant",)
    assert part.interval.value == pytest.approx(-20)
    assert judged(BELOW, part) == "tasks missing"
    assert judged(LESS, measured(LESS, table({"augmented": 10, "noise": 30}))) == "not yet recorded", (
        "There is nothing to subtract from."
    )
    assert judged(BELOW, measured(BELOW, table({"augmented": 10}))) == "not yet recorded"
    assert judged(BELOW, measured(BELOW, table({"augmented": 10, "noise": 30}, seeds=4))) == "too few seeds"


@pytest.mark.parametrize(
    ("prediction", "low", "high", "verdict"),
    [
        (BELOW, -9.0, -1.0, "as predicted"),
        (replace(BELOW, planned=6), -9.0, -1.0, "too few seeds"),
        (BELOW, -9.0, 1.0, "undecided"),
        (BELOW, 1.0, 9.0, "contradicted"),
        (ALIKE, -9.0, 9.0, "as predicted"),
        (ALIKE, -11.0, 9.0, "undecided"),
        (ALIKE, 11.0, 19.0, "contradicted"),
        (ALIKE, -19.0, -11.0, "contradicted"),
    ],
)
def test_the_whole_interval_decides_a_prediction(prediction, low, high, verdict):
    assert judged(prediction, Measured(Interval((low + high) / 2, low, high, 5), ())) == verdict


def test_the_list_numbers_each_prediction_and_says_what_would_contradict_it():
    first, *_, last = listed().splitlines()[2:]
    assert first == f"| 1 | {PREDICTIONS[0].text} | {PREDICTIONS[0].contradicted_by} |"
    assert last.startswith(f"| {len(PREDICTIONS)} |")
