"""How arms and predictors look everywhere: one label and colour for each, and tables that use these labels."""

import colorsys
import hashlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.colors import to_hex, to_rgb

from mbaug import tasks
from mbaug.experiments import studies


class Look(NamedTuple):
    """How an arm looks in every figure: label, colour and line style."""

    label: str
    colour: str
    line: str | tuple


# Colours of Okabe and Ito, safe for the colour-blind. Dashed: no pre-training. Dotted: data kept online. Others: controls.
LOOKS = {
    "td3": Look("TD3 from scratch", "#000000", "--"),
    "sac": Look("SAC from scratch", "#56B4E9", "--"),
    "td3_data": Look("TD3 with the data, no pre-training", "#CC79A7", "--"),
    "vanilla": Look("vanilla pre-training", "#E69F00", "-"),
    "vanilla_data": Look("vanilla, data kept", "#8F6300", ":"),
    "augmented": Look("augmented 50 %", "#0072B2", "-"),
    "augmented_data": Look("augmented, data kept", "#003F63", ":"),
    "noise": Look("matched noise 50 %", "#009E73", "-."),
    "deterministic": Look("deterministic model 50 %", "#D55E00", (0, (5, 1))),
    "layernorm": Look("LayerNorm critics", "#7B3294", "-"),
    "layernorm_data": Look("LayerNorm critics, data kept", "#54208A", ":"),
    "td3_layernorm_data": Look("LayerNorm critics, no pre-training", "#B58ACB", "--"),
    "augmented_layernorm_data": Look("augmented, LayerNorm critics, data kept", "#2C115F", ":"),
    "rlpd": Look("RLPD", "#882255", "--"),
    "iql": Look("IQL, data kept", "#8C8C8C", ":"),
    "bc": Look("behaviour cloning, data kept", "#999933", ":"),
}
PREDICTORS = {  # predictors of the next state: label, colour, marker
    "reconstruction": ("VAE, reconstruction of s'", "#CC79A7", "v"),
    "sample": ("VAE, sampled (the paper's)", "#0072B2", "o"),
    "mean": ("VAE, mean", "#56B4E9", "o"),
    "persistence": ("persistence (nothing moves)", "#000000", "s"),
    "linear": ("linear regression", "#E69F00", "^"),
    "deterministic": ("deterministic network", "#D55E00", "D"),
}
OFFLINE = {  # arms that learn only offline, each with another source of next states; `PREDICTORS` has the same colours
    "mean_offline": Look("model's mean, offline only", "#56B4E9", "-."),
    "jitter_offline": Look("model's jitter, offline only", "#7F7F7F", "-."),
    "shrink_offline": Look("pull to the middle, offline only", "#A6761D", "-."),
    "reconstruction_offline": Look("reconstruction of s', offline only", "#CC79A7", "-."),
    "target_noise_offline": Look("doubled target noise, offline only", "#B2182B", "-."),
}
PARTS = {  # label of each suffix that an arm's name adds to that of a known arm
    "actor": "actor only",
    "actor_cold": "actor only, untrained critics",
    "critics": "critics only",
    "critics_uniform": "critics only, uniform warm-up",
    "million": "1M interactions",
    "raw": "raw states",
    "standardised": "standardised states",
    "redrawn_offline": "redrawn 20 times as often",
    "trusted_offline": "in trusted rows",
    "distrusted_offline": "in distrusted rows",
}
VARIANT_LINES = [":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (3, 1, 1, 1))]


def look(arm: str) -> Look:
    """Returns the look of an arm, which is the same in every figure.

    An arm named after a known one, such as "augmented_25" (per cent) or "vanilla_actor", gets a lighter or darker shade of its
    colour and other dashes. The name of any other arm determines its colour.
    """
    if known := LOOKS.get(arm) or OFFLINE.get(arm):
        return known
    digest = hashlib.sha256(arm.encode()).digest()
    label, hue, lightness, saturation = arm.replace("_", " "), digest[1] / 256, 0.4, 0.6
    if families := [name for name in LOOKS if arm.startswith(f"{name}_")]:
        family = max(families, key=len)
        variant, share = arm.removeprefix(f"{family}_"), digest[2] / 256
        label = LOOKS[family].label
        percent, _, rest = variant.partition("_")
        if percent.isdecimal():
            label, share, variant = f"{family} {percent} %", max(0, 1 - int(percent) / 100), rest
        if variant:
            label += f", {PARTS.get(variant, variant.replace('_', ' '))}"
        hue, _, saturation = colorsys.rgb_to_hls(*to_rgb(LOOKS[family].colour))
        lightness = 0.3 + 0.4 * share
    colour = to_hex(colorsys.hls_to_rgb(hue, lightness, saturation)).upper()
    return Look(label, colour, VARIANT_LINES[digest[0] % len(VARIANT_LINES)])


def absent(arm: str, task: str) -> str:
    """Returns why an arm has no run on a task, in two words."""
    return "not recorded" if (arm, task) in studies.PLANNED else "not planned"


def titled(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with the titles of tasks in its rows and columns, as in figures. An interval stays on one line."""
    names = {name: task.title for name, task in tasks.EVERY.items()}
    return table.map(_glued).rename(index=names, columns=names)


def _glued(cell: Any) -> Any:
    """Returns a cell of a table in which no interval is broken over two lines."""
    return re.sub(r"\[.*?\]", lambda found: found[0].replace(" ", "\xa0"), cell) if isinstance(cell, str) else cell


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with the titles of tasks and the labels of arms in its rows and columns. Its columns have no name."""
    names = {arm: look(arm).label for arm in studies.ARMS}
    return titled(table).rename(index=names, columns=names).rename_axis(columns=None)


def arms_by_task(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of arms by tasks with labels, in the order of figures. A cell without a run says why (`absent`)."""
    table = table.reindex(index=in_order(table.index), columns=[*tasks.TASKS])
    blank = pd.DataFrame({task: [absent(arm, task) for arm in table.index] for task in table}, table.index)
    return labelled(table.fillna(blank)).rename_axis(None)


def in_order(arms: Iterable[str]) -> list[str]:
    """Returns the arms in the order in which figures and tables list them: that of `LOOKS`, then by name."""
    given = set(arms)
    return [arm for arm in LOOKS if arm in given] + sorted(given - set(LOOKS))
