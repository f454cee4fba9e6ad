"""Results in words: rounded numbers, estimates with their intervals, lists and tables."""

import numpy as np

from mbaug.reporting import words
from mbaug.reporting.statistics import Interval


def test_numbers_are_rounded_for_reading():
    texts = {3.14: "3.1", 9.94: "9.9", 9.96: "10", -21.4: "−21", 0.0: "0.0", -33e6: "−33 million", 5_204_376.0: "5.2 million"}
    texts |= {45_044.0: "45,044", -123_938.0: "−124 thousand"}
    assert {value: words.number(value) for value in texts} == texts
    digits = {0.4: "0.40", 2.04: "2.0", 20.4: "20", 99.6: "100", 5304.0: "5,304", np.nan: "–"}
    assert {value: words.two_digits(value) for value in digits} == digits
    signed = {21.6: "+22", 0.0: "0.0", -0.04: "0.0", 0.05: "+0.1", -0.6: "−0.6"}
    assert {value: words.number(value, signed=True) for value in signed} == signed


def test_an_interval_is_written_as_its_value_and_bounds():
    assert words.estimate(Interval(21.2, 5.0, 38.4, 3), signed=True) == "+21 [+5.0, +38]"
    assert words.estimate(Interval(21.2, -5.0, 38.4, 3)) == "21 [−5.0, 38]"
    assert words.estimate(Interval(21.2, np.nan, np.nan, 1)) == "21"
    assert words.estimate(Interval(123_938.0, -9_859.0, 257_736.0, 3)) == "124 [−9.9, 258] thousand"
    assert words.estimate(Interval(np.nan, np.nan, np.nan, 0)) == "–"
    assert words.estimate(Interval(np.nan, np.nan, np.nan, 1), signed=True) == "–"


def test_a_mean_is_told_without_the_task_that_moves_it_most():
    whole = Interval(-8.0, -12.0, -4.0, 5)
    rest = {"hopper": Interval(-9.0, -13.0, -5.0, 5), "ant": Interval(2.9, -2.4, 8.2, 5)}
    assert words.without(whole, rest) == "without Ant +2.9 [−2.4, +8.2]"
    assert words.without(whole, {}) == ""


def test_lists_are_written_as_in_prose():
    assert [words.joined(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert [words.count("seed", numbers) for numbers in ([1], [2, 2], [1, 2], [2, 5])] == [
        "1 seed", "2 seeds", "1 or 2 seeds", "2 to 5 seeds",
    ]  # fmt: skip
    assert words.in_words(["ant", "hopper", "halfcheetah", "walker2d"]) == "all four tasks"
    assert words.in_words(["hopper", "ant"]) == "Hopper and Ant"


def test_a_table_has_a_line_below_its_heading():
    assert words.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]
