"""Reliability: what is known of rows and of bodies, and how well a signal finds errors, by hand and with the simulator."""

import itertools
from dataclasses import replace

import numpy as np
from made import dataset

from mbaug import tasks
from mbaug.datasets import read
from mbaug.reporting import reliability


def test_histories_by_hand():
    """One episode of three steps ends in a fall, and one of two steps is cut."""
    ends = {"terminal": np.array([0, 0, 1, 0, 0], bool), "truncated": np.array([0, 0, 0, 0, 1], bool)}
    pool = replace(dataset(5), reward=np.arange(5.0), episode=np.array([0, 0, 0, 1, 1]), **ends)
    found = reliability.histories(pool)
    np.testing.assert_array_equal(found["steps to a fall"], [2, 1, 0, np.nan, np.nan])
    assert found["return"].tolist() == [3, 3, 3, 7, 7]


def test_the_tenth_neighbour_by_hand():
    """The known states are whole numbers on a line. A state that is known itself is not its own neighbour."""
    known = np.arange(100.0)[:, None]
    assert reliability.distance(np.array([[-1.0]]), known).tolist() == [10]
    assert reliability.distance(known[:1], known, skipped=1).tolist() == [10]


def test_the_area_is_the_share_of_correctly_ordered_pairs():
    rng = np.random.default_rng(0)
    signal, worst = rng.integers(5, size=60).astype(float), rng.random(60) < 0.2
    pairs = [np.sign(bad - good) for bad, good in itertools.product(signal[worst], signal[~worst])]
    assert np.isclose(reliability.auroc(signal, worst), (np.mean(pairs) + 1) / 2)


def test_parts_are_equally_large_and_ordered():
    assert reliability.quantile_bins(np.array([5.0, 1.0, 1.0, 9.0, 2.0, 8.0]), 3).tolist() == [1, 0, 0, 2, 1, 2]


def test_slope_by_hand():
    truth = np.array([[0.0, 1.0], [1.0, -1.0], [5.0, 2.0]])
    np.testing.assert_allclose(reliability.slope(3 + truth * [0.5, 1.0], truth), [0.5, 1.0])


def test_bodies_reports_falls_depth_in_the_ground_and_bent_joints():
    """Falls agree with the pool. A hopper 30 cm lower is inside the ground, and up to 30 cm deeper."""
    hopper, pool = tasks.find("hopper"), read.load("hopper-medium-replay")
    fell = np.flatnonzero(pool.terminal)[:20]
    rows = np.concatenate([fell, fell - 1])
    assert reliability.bodies(hopper, pool.next_state[rows])["fallen"].tolist() == [True] * 20 + [False] * 20
    stands = pool.state[:1]
    lower, bent = stands.copy(), stands.copy()
    lower[0, 0] -= 0.3
    bent[0, 3] = 0.5  # the knee's range ends at 0
    found = reliability.bodies(hopper, np.concatenate([stands, lower, bent]))
    assert 0.2 < found["depth"][1] - found["depth"][0] <= 0.3001
    assert found["contact"][1]
    assert np.isclose(found["bent"][2], 0.5)
    cheetah = tasks.find("halfcheetah")
    assert not reliability.bodies(cheetah, read.load("halfcheetah-random").state[:3])["fallen"].any()
