"""Made-up evaluation episodes in the form that `records.load_runs` returns."""

import pandas as pd

from mbaug.reporting.statistics import RUN


def episodes(rows: list[tuple], **fixed) -> pd.DataFrame:
    """Returns evaluation episodes from (arm, seed, phase, steps, score); `fixed` sets other columns."""
    table = pd.DataFrame(rows, columns=["arm", "seed", "phase", "steps", "score"])
    means = ["return", "length", "discounted_return", "predicted_value", "data_value", "imagined_outside", "overfitting"]
    table = table.assign(**{**dict.fromkeys(means, 1.0), "task": "hopper", "dataset": "d", "status": "finished", **fixed})
    offline = table["phase"] == "pretrain"
    table["gradient_steps"] = table["steps"].where(offline, 200_000)
    table["environment_steps"] = table["steps"].where(~offline, 0)
    table["episode"] = table.groupby([*RUN, "phase", "gradient_steps", "environment_steps"]).cumcount()
    return table.drop(columns="steps")


def curve(scores, seed=0, arm="td3", interval=25_000):
    """Returns the rows of an online curve that starts at 0 interactions."""
    return [(arm, seed, "finetune", interval * k, score) for k, score in enumerate(scores)]


def runs(arms: dict[str, float], seeds: int = 3, tasks=("hopper",), spread: float = 1.0) -> pd.DataFrame:
    """Returns episodes of arms with a constant score plus an offset for each seed, which is twice as large for "augmented"."""
    rows, columns = [], []
    for task in tasks:
        for arm, score in arms.items():
            for seed in range(seeds):
                seed_score = score + spread * (seed - (seeds - 1) / 2) * (1 if arm == "augmented" else 0.5)
                some = curve([seed_score] * 5, seed, arm)
                some += [] if arm in ("td3", "sac") else [(arm, seed, "pretrain", 200_000, seed_score)]
                dataset = "none" if arm in ("td3", "sac") else f"{task}-medium-replay"
                rows += some
                columns += [(task, dataset, 3.0 * seed_score, seed_score, seed_score)] * len(some)
    names = "task", "dataset", "predicted_value", "discounted_return", "overfitting"
    return episodes(rows, **dict(zip(names, map(list, zip(*columns, strict=True)), strict=True)))
