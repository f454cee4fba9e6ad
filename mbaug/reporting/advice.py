"""Before an agent goes online: what a dataset is worth, what to keep of it, and how often such advice was right.

The rule keeps what scores more, the data or the policy that was pre-trained on them (Li et al. 2025, arXiv 2510.01460, who find
it right in 45 of 63 cases). Its one number, how far apart two scores must be to differ, is chosen on recorded tasks.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from mbaug import engine, tasks
from mbaug.checks import given, require
from mbaug.datasets import check, read
from mbaug.datasets.cards import read_card
from mbaug.experiments import measures, studies
from mbaug.experiments.models import FAST
from mbaug.method import imagination, training, transitions
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner
from mbaug.method.transitions import Dataset, Standardiser
from mbaug.reporting import claims, statistics
from mbaug.reporting.figures import count, look, number

KEEPS = {  # by regime: the arm that keeps what is better, and what that is
    "superior": ("vanilla", "the policy: it scores more than the data"),
    "comparable": ("vanilla_data", "both: the policy scores about as much as the data"),
    "inferior": ("td3_data", "the data: the policy scores less than they do"),
}
MARGINS = np.arange(51.0)  # points of score that are tried
UPDATES, EPOCHS, EPISODES = 20_000, 60, 10  # of the short training: a tenth of the paper's updates, a fifth of its epochs
NEW_SHARE = 0.1  # of a small dataset, at least, that is not trained on


def regime(data: float, policy: float, margin: float) -> str:
    """Returns "superior" or "inferior" where two scores differ by more than `margin`, seen from the policy; or "comparable"."""
    gap = policy - data
    return "comparable" if abs(gap) <= margin else "superior" if gap > 0 else "inferior"


def _score(task: tasks.Task, pool: Dataset) -> float:
    rows = pd.DataFrame({"reward": pool.reward, "ended": pool.terminal.astype(bool) | pool.truncated.astype(bool)})
    episodes = rows.groupby(pool.episode).agg(total=("reward", "sum"), ended=("ended", "any"))
    whole = episodes.loc[episodes["ended"], "total"]
    return float(tasks.normalised_score(task, (whole if len(whole) else episodes["total"]).mean()))


def cases(frame: pd.DataFrame, updates: int | None = None) -> pd.DataFrame:
    """Returns a row for each task and seed in which every arm of KEEPS is recorded: both scores, and each arm's mean score.

    The policy's score is that after so many updates of its pre-training; None: at their end.
    """
    table, arms = claims.main_runs(frame), [arm for arm, _ in KEEPS.values()]
    online = statistics.mean_score(table).reset_index().pivot_table("mean_score", ["task", "seed"], "arm")
    known = table if updates is None else table[table["steps"] <= updates]
    policy = statistics.last_offline(known).reset_index()
    policy = policy[policy["arm"] == "vanilla"].set_index(["task", "seed"])["score"].rename("policy")
    found = online.reindex(columns=arms).join(policy, how="inner").dropna().reset_index()
    pools = read.bundled()
    return found.assign(data=[read_card(pools[f"{task}-medium-replay"])["mean_score"] for task in found["task"]])


def judged(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Returns the cases with the arm that the rule names, and by how much the best of the three scored more."""
    named = [KEEPS[regime(row.data, row.policy, margin)][0] for row in rows.itertuples()]
    arms = rows[[arm for arm, _ in KEEPS.values()]]
    own = [row[arm] for (_, row), arm in zip(arms.iterrows(), named, strict=True)]
    return rows.assign(margin=margin, named=named, lost=arms.max(axis=1) - own)


def best_margin(rows: pd.DataFrame) -> float:
    """Returns the margin at which the rule loses least, the middle one of several; without cases that of no difference."""
    losses = [judged(rows, margin)["lost"].mean() for margin in MARGINS] if len(rows) else [0.0]
    best = MARGINS[: len(losses)][np.isclose(losses, min(losses))]
    return float(best[len(best) // 2])


def left_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the cases with what the rule names and loses, where a task's margin is chosen on the other tasks."""
    parts = [judged(own, best_margin(rows[rows["task"] != task])) for task, own in rows.groupby("task", sort=False)]
    return pd.concat(parts)


def track_record(rows: pd.DataFrame) -> str:
    """Returns in words how often the rule was right about tasks on which its margin was not chosen."""
    if rows["task"].nunique() < 2:
        return "the rule is not tested: it takes two tasks on which all three arms are recorded"
    found = left_out(rows)
    right = int((found["lost"] == 0).sum())
    where = f"{count('case', [len(found)])} of {count('task', [found['task'].nunique()])}"
    chance = f"{len(found) / len(KEEPS):.1f}"
    return (
        f"with its margin chosen on the other tasks, the rule named the best of {len(KEEPS)} arms in {right} of {where}. "
        f"A random choice is right in {chance}. On average the rule lost {number(found['lost'].mean())} points of mean score"
    )


# --- a dataset of one's own -----------------------------------------------------------------------------------------------


def advise(name: str, task_name: str | None, frame: pd.DataFrame, updates: int = UPDATES, epochs: int = EPOCHS) -> Iterator[str]:
    """Yields what is found of a dataset, a line each, as soon as it is known: minutes on one core.

    Args:
        name: what `read.load` takes.
        task_name: of the task; None: the dataset's name has it as a word.
        frame: what `records.load_runs` returns: the evidence for the rule.
        updates, epochs: of the short training, and of the short fit of the world model.

    Raises:
        ValueError: the task is unknown, or the dataset is not the task's. Further what `read.load` raises.
    """
    pool = read.load(name)
    task = tasks.find(_named(pool.name) if task_name is None else task_name)
    checked = check.check_dataset(task, pool)
    size = min(studies.VANILLA.offline.transitions, int((1 - NEW_SHARE) * len(pool)))
    require(size >= 1_000, f"{pool.name} has {len(pool)} transitions, but a training of any use needs 1,112 or more")
    drawn, rest = transitions.draw(pool, size, seed=0)
    data = _score(task, pool)
    yield f"dataset   {pool.name}: {len(pool):,} transitions in {pool.episode.max() + 1:,} episodes; {size:,} are drawn"
    yield f"          {checked}"
    yield f"data      {number(data)}: the mean score of whole episodes (0 is a random policy, 100 an expert)"
    yield f"model     {_model(drawn, rest, epochs)}"
    learner = _pretrained(drawn, task, updates)
    yield f"critics   {_critics(learner, drawn, rest)}"
    evaluate = tasks.Evaluator(task, [0], EPISODES, learner.arm.learner.discount)
    policy = float(tasks.normalised_score(task, evaluate(learner.policy, "advise", 0).undiscounted_return.mean()))
    yield f"policy    {number(policy)}: its score after {updates:,} updates of TD3+BC, {EPISODES} episodes"
    rows = cases(frame, updates)
    margin = best_margin(rows)
    found = regime(data, policy, margin)
    arm, why = KEEPS[found]
    yield f"regime    {found} (a difference of {number(margin)} points or less counts as none)"
    yield f"advice    keep {why}. The arm is {arm!r}: {look(arm).label}"
    yield f"record    {track_record(rows)}"


def _named(name: str) -> str:
    """Returns the task that a dataset's name has as a word, as "mujoco-hopper-medium-v0" and "walker2d_medium-v2" do."""
    words = re.split("[^a-z0-9]+", name.lower())
    found = next((task for task in tasks.TASKS if task in words), None)
    return given(found, f"the name {name!r} has no task in it: add --task with one of {', '.join(tasks.TASKS)}")


def _model(drawn: Dataset, rest: Dataset, epochs: int) -> str:
    """Returns the error of a short fit of the paper's world model, beside what is free or cheap."""
    engine.prepare()
    errors = imagination.fit(replace(WorldModel(), epochs=epochs), drawn, rest, 0, FAST).errors
    vae, still, line = (float(np.mean(errors[name])) for name in ("sample", "persistence", "linear"))
    text = (
        f"after {epochs} epochs the VAE errs by {vae:.2g}, the guess that nothing changes by {still:.2g}, linear regression by "
    )
    verdict = "the VAE is worse than the guess that nothing changes" if vae > still else "the VAE beats the guess"
    return f"{text}{line:.2g} (variances of the states, rows that were not drawn): {verdict}"


def _pretrained(drawn: Dataset, task: tasks.Task, updates: int) -> Learner:
    """Returns an agent after a short vanilla pre-training."""
    plan = replace(studies.VANILLA.offline, updates=updates, transitions=len(drawn), evaluation_interval=updates)
    standardiser = Standardiser.fit([drawn.state], plan.standardiser_epsilon)
    learner = training.learner(replace(studies.VANILLA, pretraining=plan), task, [0], standardiser, FAST)
    for _ in training.pretrain(learner, transitions.table([drawn], standardiser)):
        pass
    return learner


def _critics(learner: Learner, drawn: Dataset, rest: Dataset) -> str:
    """Returns how much larger the critics' error is on rows that they did not learn from."""
    trained, new = (
        float(measures.error(learner, transitions.unpack(transitions.table([part], learner.standardiser), *learner.sizes)))
        for part in (drawn, rest.rows(np.linspace(0, len(rest) - 1, min(len(rest), 1_000)).astype(int)))
    )
    return f"their error is {number(trained)} on drawn rows and {number(new)} on others, {new / trained:.1f} times as much"
