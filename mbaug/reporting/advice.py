"""Advice before an agent goes online: what a dataset is worth, what to keep of it, and how often that advice was right.

The rule keeps whichever scores more, the data or the policy that was pre-trained on them. In Li et al. (2025, arXiv 2510.01460)
results agree strongly with it in 45 of 63 cases. Its only parameter is the margin within which two scores count as equal. We
choose it on recorded tasks.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from mbaug import engine, files, provenance, tasks
from mbaug.checks import given, require
from mbaug.datasets import check, read
from mbaug.datasets.cards import read_card
from mbaug.experiments import measures, studies
from mbaug.experiments.models import FAST
from mbaug.method import imagination, training, transitions
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner
from mbaug.method.transitions import Dataset, Standardiser
from mbaug.reporting import answers, claims, statistics, stored
from mbaug.reporting.looks import look
from mbaug.reporting.words import count, number

KEEPS = {  # by regime: the arm to choose, and what it keeps and why
    "superior": ("vanilla", "the policy: it scores more than the data"),
    "comparable": ("vanilla_data", "both: the policy scores about as much as the data"),
    "inferior": ("td3_data", "the data: the policy scores less"),
}
MARGINS = np.arange(51.0)  # candidate margins, in points of score
UPDATES, EPOCHS, EPISODES = 20_000, 60, 10  # short training: a tenth of the recorded arms' updates, a fifth of their epochs
POLICIES = stored.DRAWN / "11_policies.csv"  # table of `update_policies`
NEW_SHARE = 0.1  # smallest share of a dataset that is held out from training


def regime(data: float, policy: float, margin: float) -> str:
    """Returns whether the policy is "superior" or "inferior" to the data by more than `margin`, or else "comparable"."""
    if abs(policy - data) <= margin:
        return "comparable"
    return "superior" if policy > data else "inferior"


def _score(task: tasks.Task, pool: Dataset) -> float:
    """Returns the normalised score of the mean return of complete episodes, or of all episodes if none is complete.

    An episode is complete if it ends in a terminal state or at the time limit. An episode that the end of a file cuts is neither.
    A file without next states lacks the step at the time limit.
    """
    rows = pd.DataFrame({"reward": pool.reward, "terminal": pool.terminal}).groupby(pool.episode)
    episodes = rows.agg(total=("reward", "sum"), terminal=("terminal", "any"), steps=("reward", "size"))
    complete = episodes.loc[episodes["terminal"] | (episodes["steps"] >= tasks.STEPS - 1), "total"]
    return float(tasks.normalised_score(task, (complete if len(complete) else episodes["total"]).mean()))


def cases(frame: pd.DataFrame, updates: int | None = None) -> pd.DataFrame:
    """Returns both scores and each arm's mean score, for seeds with all arms of KEEPS on tasks whose medium-replay pool is here.

    The policy's score is taken after `updates` updates of pre-training, or at the end of pre-training if None.
    """
    table, arms = claims.main_runs(frame), [arm for arm, _ in KEEPS.values()]
    online = statistics.mean_score(table).reset_index().pivot_table("mean_score", ["task", "seed"], "arm")
    known = table if updates is None else table[table["steps"] <= updates]
    policy = statistics.last_offline(known).reset_index()
    policy = policy[policy["arm"] == "vanilla"].set_index(["task", "seed"])["score"].rename("policy")
    found = online.reindex(columns=arms).join(policy, how="inner").dropna().reset_index()
    pools = read.bundled()
    found = found.loc[[f"{task}-medium-replay" in pools for task in found["task"]]]
    return found.assign(data=[read_card(pools[f"{task}-medium-replay"])["mean_score"] for task in found["task"]])


def judged(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Returns the cases with their regime, the arm that the rule names, and the points that it scored less than the best arm."""
    regimes = [regime(row.data, row.policy, margin) for row in rows.itertuples()]
    named = [KEEPS[each][0] for each in regimes]
    arms = rows[[arm for arm, _ in KEEPS.values()]]
    achieved = [row[arm] for (_, row), arm in zip(arms.iterrows(), named, strict=True)]
    return rows.assign(margin=margin, regime=regimes, named=named, lost=arms.max(axis=1) - achieved)


def best_margin(rows: pd.DataFrame) -> float:
    """Returns the margin at which the rule loses least, the middle one of several; 0 if there are no cases."""
    if rows.empty:
        return 0.0
    losses = [judged(rows, margin)["lost"].mean() for margin in MARGINS]
    best = MARGINS[np.isclose(losses, min(losses))]
    return float(best[len(best) // 2])


def leave_one_task_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns what `judged` does, with each task's margin chosen on the other tasks."""
    parts = [judged(part, best_margin(rows[rows["task"] != task])) for task, part in rows.groupby("task", sort=False)]
    return pd.concat(parts)


def track_record(rows: pd.DataFrame) -> str:
    """Returns a sentence that says how often the rule was right on tasks that its margin was not chosen on."""
    if rows["task"].nunique() < 2:
        return "the rule is not tested: it takes two tasks with a medium-replay pool and records of all three arms"
    lost = leave_one_task_out(rows)["lost"]
    arms = rows[[arm for arm, _ in KEEPS.values()]]
    always = arms.rsub(arms.max(axis=1), axis=0)  # points that each arm lost to the best of the three
    steady = always.mean().idxmin()
    where = f"{count('case', [len(rows)])} on {count('task', [rows['task'].nunique()])}"
    return (
        f"with its margin chosen on the other tasks, the rule named the best of {len(KEEPS)} arms in {(lost == 0).sum()} of "
        f"{where}, and lost {number(lost.mean())} points of mean score on average. Always choosing “{look(steady).label}” would "
        f"have been right in {(always[steady] == 0).sum()}, and lost {number(always[steady].mean())}"
    )


def without_rule(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Returns a sentence that compares the rule's choices with the arm that we recommend (`answers.recommendation`); "" if none.

    `rows` is what `cases` returns.
    """
    scores = statistics.mean_score(claims.main_runs(frame))
    best = next(iter(answers.ranked(scores)), None)
    if best is None or rows["task"].nunique() < 2:
        return ""
    tested = leave_one_task_out(rows).set_index(["task", "seed"])
    named = pd.Series([row[row["named"]] for _, row in tested.iterrows()], tested.index, dtype=float)
    gain = (scores.xs(best, level="arm").groupby(["task", "seed"]).first() - named).dropna()
    return (
        f"of all recorded arms we would take {best!r}, “{look(best).label}”: it scored more than the rule's arm in "
        f"{(gain > 0).sum()} of {count('case', [len(gain)])}, by {number(gain.mean())} points on average"
    )


def update_policies(path: Path = POLICIES, updates: int = UPDATES) -> Iterator[str]:
    """Writes the score of a policy after a short pre-training for each task and quality that the table lacks; yields a line each.

    The policies are those of `advise`: seed 0, and `updates` updates of TD3+BC on 10,000 transitions. It takes about two minutes
    for each on one core.
    """
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["task", "quality", "policy", "commit"])
    for task, quality in product(tasks.TASKS, studies.find("qualities").qualities):
        if ((known["task"] == task) & (known["quality"] == quality)).any():
            continue
        drawn, _ = transitions.draw(read.load(f"{task}-{quality}"), studies.VANILLA.offline.transitions, seed=0)
        policy = _policy_score(_pretrained(drawn, tasks.find(task), updates))
        known.loc[len(known)] = [task, quality, policy, provenance.commit()]
        files.write_atomically(path, known.to_csv(index=False, lineterminator="\n", float_format="%.5g").encode())
        yield f"{task}-{quality}: the policy scores {number(policy)} after {updates:,} updates"


# --- your own dataset -----------------------------------------------------------------------------------------------------


def advise(name: str, task_name: str | None, frame: pd.DataFrame, updates: int = UPDATES, epochs: int = EPOCHS) -> Iterator[str]:
    """Yields what we find out about a dataset, line by line, as soon as it is known. This takes minutes on one core.

    Args:
        name: the dataset, as `read.load` takes it.
        task_name: the task; None takes it from the dataset's name.
        frame: the recorded runs that `records.load_runs` returns, as evidence for the rule.
        updates, epochs: budgets of the short training and of the short fit of the world model.

    Raises:
        ValueError: The task is unknown, or the dataset does not belong to it. Also what `read.load`
            raises.
    """
    pool = read.load(name)
    task = tasks.find(_task_in(pool.name) if task_name is None else task_name)
    checked = check.check_dataset(task, pool)
    size = min(studies.VANILLA.offline.transitions, int((1 - NEW_SHARE) * len(pool)))
    few = f"{pool.name} has {len(pool):,} transitions, so we could draw {size:,}, but useful training needs at least 1,000"
    require(size >= 1_000, few)
    drawn, rest = transitions.draw(pool, size, seed=0)
    data, rows = _score(task, pool), cases(frame, updates)
    margin = best_margin(rows)
    yield f"dataset   {pool.name}: {len(pool):,} transitions in {pool.episode.max() + 1:,} episodes; {size:,} are drawn"
    yield f"          {checked}"
    yield f"data      {number(data)}: the mean score of complete episodes (0 is a random policy, 100 an expert)"
    yield f"model     {_model(drawn, rest, epochs)}"
    yield f"          next come {updates:,} updates of TD3+BC, which take minutes"
    learner = _pretrained(drawn, task, updates)
    yield f"critics   {_critics(learner, drawn, rest)}"
    policy = _policy_score(learner)
    yield f"policy    {number(policy)}: its score after {updates:,} updates of TD3+BC, mean of {EPISODES} episodes"
    found = regime(data, policy, margin)
    arm, why = KEEPS[found]
    yield f"regime    {found} (a difference of {number(margin)} points or less counts as none)"
    yield f"advice    keep {why}. The arm is {arm!r}: {look(arm).label}"
    yield f"record    {track_record(rows)}"
    if today := without_rule(frame, rows):
        yield f"today     {today}"
    if len(pool) < (drawn_by_ours := studies.VANILLA.offline.transitions):
        yield f"note      our arms draw {drawn_by_ours:,} transitions: give yours transitions={size}"


def _task_in(name: str) -> str:
    """Returns the task that is a word of a dataset's name, such as "mujoco-hopper-medium-v0" or "walker2d_medium-v2"."""
    words = re.split("[^a-z0-9]+", name.lower())
    found = next((task for task in tasks.EVERY if task in words), None)
    return given(found, f"the name {name!r} has no task in it: add --task with one of {', '.join(tasks.EVERY)}")


def _model(drawn: Dataset, rest: Dataset, epochs: int) -> str:
    """Returns a sentence that compares a short fit of the paper's world model with simpler predictions."""
    engine.prepare()
    errors = imagination.fit(replace(WorldModel(), epochs=epochs), drawn, rest, 0, FAST).errors
    vae, persistence, linear = (float(np.mean(errors[name])) for name in ("sample", "persistence", "linear"))
    verdict = "the VAE is worse than the guess that nothing changes" if vae > persistence else "the VAE beats the guess"
    return (
        f"after {epochs} epochs the error of the VAE is {vae:.2g}, of the guess that nothing changes {persistence:.2g}, and of "
        f"linear regression {linear:.2g} (variances of the states, rows that were not drawn): {verdict}"
    )


def _pretrained(drawn: Dataset, task: tasks.Task, updates: int) -> Learner:
    """Returns an agent after a short vanilla pre-training."""
    plan = replace(studies.VANILLA.offline, updates=updates, transitions=len(drawn), evaluation_interval=updates)
    standardiser = Standardiser.fit([drawn.state], plan.standardiser_epsilon)
    learner = training.learner(replace(studies.VANILLA, pretraining=plan), task, [0], standardiser, FAST)
    for _ in training.pretrain(learner, transitions.table([drawn], standardiser)):
        pass
    return learner


def _policy_score(learner: Learner) -> float:
    """Returns the normalised score of a learner's only agent, the mean of EPISODES episodes."""
    evaluate = tasks.Evaluator(learner.task, [0], EPISODES, learner.arm.learner.discount)
    found = evaluate(learner.policy, "advise", 0).undiscounted_return.mean()
    return float(tasks.normalised_score(learner.task, found))


def _critics(learner: Learner, drawn: Dataset, rest: Dataset) -> str:
    """Returns a sentence that says how much larger the critics' error is on rows that they did not learn from."""
    trained, new = (
        float(measures.error(learner, transitions.unpack(transitions.table([part], learner.standardiser), *learner.sizes)))
        for part in (drawn, rest.rows(np.linspace(0, len(rest) - 1, min(len(rest), 1_000)).astype(int)))
    )
    return f"their error is {number(trained)} on drawn rows and {number(new)} on others, {new / trained:.1f} times as large"
