"""Looks: an arm has one label and one colour everywhere, and tables use them."""

import re

import matplotlib
import pandas as pd

from mbaug.reporting import looks
from mbaug.reporting.looks import LOOKS, OFFLINE, PREDICTORS, look


def test_known_arms_have_different_labels_and_colours():
    for part in ("label", "colour"):
        assert len({getattr(one, part) for one in LOOKS.values()}) == len(LOOKS)
        assert len({getattr(one, part) for one in OFFLINE.values()}) == len(OFFLINE)
    for arm in OFFLINE:
        predictor = PREDICTORS.get(arm.removesuffix("_offline"))
        assert predictor is None or look(arm).colour == predictor[1], f"{arm} and its predictor need the same colour"


def test_the_look_of_any_other_arm_never_changes():
    for arm in ("augmented_25", "vanilla_actor", "td3_bfloat16", "rlpd_utd_4"):
        assert re.fullmatch("#[0-9A-F]{6}", look(arm).colour)
    assert look("cql") == looks.Look("cql", "#41A329", (0, (3, 1, 1, 1)))  # the same in every process
    assert look("augmented_25") == looks.Look("augmented 25 %", "#33B6FF", (0, (3, 1, 1, 1)))


def test_the_label_of_a_variant_says_what_varies():
    labels = {
        "augmented_25": "augmented 25 %",
        "augmented_30_short": "augmented 30 %, short",
        "vanilla_actor_cold": "vanilla pre-training, actor only, untrained critics",
        "td3_data_raw": "TD3 with the data, no pre-training, raw states",
        "rlpd_utd_4": "RLPD, utd 4",
        "augmented_data": "augmented, data kept",
    }
    assert {arm: look(arm).label for arm in labels} == labels


def test_a_larger_augmentation_rate_is_drawn_darker():
    lightness = [sum(matplotlib.colors.to_rgb(look(f"augmented_{rate}").colour)) for rate in (25, 75, 100)]
    assert lightness == sorted(lightness, reverse=True)


def test_arms_are_always_drawn_in_the_same_order():
    assert looks.in_order(iter(["zero", "augmented", "td3", "any", "td3"])) == ["td3", "augmented", "any", "zero"]


def test_a_table_calls_tasks_and_arms_as_figures_do():
    table = pd.DataFrame([[1, "2.0 [1.0, 3.0] million"]], ["td3_data"], ["halfcheetah", "noise"])
    assert looks.titled(table).to_numpy().tolist() == [[1, "2.0 [1.0,\xa03.0] million"]], "an interval stays in one line"
    assert [*looks.titled(table).columns] == ["HalfCheetah", "noise"], "a source of next states can be called like an arm"
    found = looks.labelled(table)
    assert [*found.index, *found.columns] == ["TD3 with the data, no pre-training", "HalfCheetah", "matched noise 50 %"]
