"""Writes the answers that the README and each chapter begin with: a few plain sentences with numbers from the records.

Some answers quote tables that chapters have drawn. They raise FileNotFoundError if the table does not exist yet.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from mbaug import files, tasks
from mbaug.datasets import read
from mbaug.experiments.studies import find
from mbaug.reporting import claims, statistics, stored, words
from mbaug.reporting.claims import Comparison, Finding
from mbaug.reporting.looks import LOOKS, in_order, look
from mbaug.reporting.predictions import PREDICTIONS, judged, measured, needed
from mbaug.reporting.statistics import ENOUGH_SEEDS, Interval, last_offline, mean_score
from mbaug.reporting.words import count, estimate, in_words, joined, number, two_digits

OURS = claims.METHODS[0].arm  # the arm that chapter 11 compares with the others
NOTHING = "Not yet recorded: no task has two seeds of every arm."


def capitalised(text: str) -> str:
    """Returns a text with its first letter in upper case; the others stay as they are."""
    return text[:1].upper() + text[1:]


def shared_means(measure: pd.Series, *arms: str) -> tuple[str, list[Interval]]:
    """Returns the tasks on which all arms have two seeds, as "Hopper (3 seeds)" ("" if none), and each arm's mean over them."""
    groups = statistics.by_task(measure, *arms)
    found = [statistics.interval([scores[k] for scores in groups.values()]) for k in range(len(arms))]
    return f"{in_words(groups)} ({count('seed', statistics.seed_counts(groups))})" if groups else "", found


def on_common_tasks(table: pd.DataFrame, *arms: str) -> pd.DataFrame:
    """Returns the evaluations on tasks on which all arms have two seeds, so that a sentence compares arms on the same tasks."""
    return table[table["task"].isin([*statistics.by_task(mean_score(table), *arms)])]


def conclusion(finding: Finding, positive: str, negative: str, planned: int = ENOUGH_SEEDS) -> str:
    """Returns what a finding shows, with its size; or that we wait for `planned` seeds, or that it is open.

    Only a verdict by the rules of the claims is told as a fact (`claims.decided`). We name the tasks that it needs.
    """
    difference = finding.interval
    if difference.n_seeds < planned or set(finding.tasks) != set(finding.comparison.tasks):
        return f"we wait for {planned} seeds to say whether {positive}"
    size = estimate(difference, signed=True)
    if difference.low <= 0 <= difference.high:
        return f"with {planned} seeds it is open whether {positive} ({size})"
    said = positive if difference.value > 0 else negative
    firm = claims.decided(finding) in ("reproduced", "contradicted")
    p = f"; p {claims.p_value(finding)}" if planned == ENOUGH_SEEDS else ""
    told = f"{said} ({size})" if firm else f"the seeds suggest that {said}, but not firmly ({size}{p})"
    rest = [f"{estimate(finding.rest[task], signed=True)} without {tasks.find(task).title}" for task in finding.needed]
    return f"{told}. But the difference is {joined(rest)}" if rest else told


def exploratory(comparison: Comparison, table: pd.DataFrame) -> Finding:
    """Returns the finding for an exploratory comparison, in a family of its own."""
    (found,) = claims.compare([comparison], table)
    return found


def on_all_tasks(scores: pd.Series, least: int) -> dict[str, Interval]:
    """Returns the mean over tasks of every arm that has at least `least` seeds on each of the four."""
    groups = {arm: [seeds for (seeds,) in statistics.by_task(scores, arm, least=least).values()] for arm in LOOKS}
    return {arm: statistics.interval(each) for arm, each in groups.items() if len(each) == len(claims.FOUR)}


def ranked(scores: pd.Series) -> dict[str, Interval]:
    """Returns the arms with two seeds on every task and their means over tasks, best first."""
    return dict(sorted(on_all_tasks(scores, least=2).items(), key=lambda each: -each[1].value))


def recommendation(scores: pd.Series) -> str:
    """Returns what we would do with 10,000 transitions: the best arm and the second best of those with two seeds on every task.

    It also names an arm that scored more but has a single seed on some task, and says what is still too little recorded.
    """
    found, tried = ranked(scores), on_all_tasks(scores, least=1)
    if len(found) < 2:
        return ""
    (best, best_mean), (second, second_mean), *_ = found.items()
    highest, gap = max(tried, key=lambda arm: tried[arm].value), statistics.difference(scores, best, second)
    own, others = (seed_counts_of(scores, arm) for arm in (best, highest))
    rest = words.without(gap, statistics.leave_one_out(scores, best, second))
    size = f"{estimate(gap, signed=True)}, {'so we cannot tell the two apart' if gap.low <= 0 else rest}"
    named = " We named this comparison in advance." if Comparison(best, (second,)) in claims.METHODS else ""
    untested = ""
    if highest != best:
        scored = f"“{look(highest).label}” scores {number(tried[highest].value)}"
        untested = f"{scored} with {count('seed', others)} per task, too few to recommend it. "
    return (
        f"With 10,000 transitions we would choose “{look(best).label}” today. Over four tasks its mean score in the first "
        f"100,000 interactions is {estimate(best_mean)}, with {count('seed', own)} per task. The next best of {len(found)} "
        f"arms with at least two seeds on every task, “{look(second).label}”, scores {estimate(second_mean)}. The difference is "
        f"{size}.{named} {untested}{provisional(scores, best, second)}"
    )


def seed_counts_of(scores: pd.Series, arm: str) -> list[int]:
    """Returns how many seeds an arm has on each task where it has any."""
    return statistics.seed_counts(statistics.by_task(scores, arm, least=1))


def provisional(scores: pd.Series, best: str, second: str) -> str:
    """Returns a sentence on what may still change a choice, "" if nothing: few seeds, or the best arm without pre-training."""
    fresh = f"td3_{best}"
    reasons = []
    for arm in (best, second):
        few = [task for task, (own,) in statistics.by_task(scores, arm, least=1).items() if len(own) < ENOUGH_SEEDS]
        reasons += [f"“{look(arm).label}” has fewer than {ENOUGH_SEEDS} seeds on {in_words(few)}"] if few else []
    done = seed_counts_of(scores, fresh)
    if fresh in LOOKS and fresh != second and (len(done) < len(claims.FOUR) or min(done) < ENOUGH_SEEDS):
        state = "has too few runs" if done else "is not recorded yet"
        reasons.append(f"“{look(fresh).label}” {state}")
    return f"This may change: {', and '.join(reasons)}. " if reasons else ""


def without_one(measure: pd.Series, *arms: str, also: tuple[str, ...] = ()) -> str:
    """Returns all means without the task that alone decides which of `arms` is the best; "" if there is no such task."""
    scores = statistics.by_task(measure, *arms, *also)
    if len(scores) < 2:
        return ""
    means = pd.DataFrame({task: map(np.mean, of_task) for task, of_task in scores.items()}, [*arms, *also])
    found = []
    for task in means:
        rest = means.drop(columns=task).mean(axis=1)
        if rest[[*arms]].idxmax() != means.mean(axis=1)[[*arms]].idxmax():
            found.append(f" Without {tasks.find(task).title} the means are {joined([number(mean) for mean in rest])}.")
    return found[0] if len(found) == 1 else ""


def readme(frame: pd.DataFrame) -> str:
    """Returns the README's answer in two paragraphs: what we would do today, and whether pre-training and imagination help."""
    table = claims.main_runs(frame)
    return f"{recommendation(mean_score(table)).rstrip()}\n\n{benefits(table)}".lstrip()


def benefits(table: pd.DataFrame) -> str:
    """Returns the mean scores of TD3 and its three variants, and whether imagination helps."""
    arms = "td3", "vanilla", "augmented", "td3_data"
    table = on_common_tasks(table, *arms)
    scores = mean_score(table)
    where, means = shared_means(scores, *arms)
    if not where:
        return NOTHING
    td3, vanilla, augmented, data = map(estimate, means)
    raises, lowers = "imagination raises the mean score", "imagination lowers the mean score"
    helps = conclusion(claims.compare(claims.PRIMARY, table)[0], raises, lowers)
    return (
        f"{capitalised(helps)}. On {where}, the mean score of TD3 over the first 100,000 interactions is {td3} from scratch, "
        f"{vanilla} after offline pre-training, {augmented} after pre-training with imagined next states, and {data} with the "
        f"data in its replay buffer instead.{without_one(scores, *arms[:3], also=arms[3:])}"
    )


def overview(frame: pd.DataFrame) -> str:
    """Returns the answer of 00_overview: the claims that have all their runs, and the parts of the README's answer."""
    table, verdicts = claims.main_runs(frame), []
    for claim in claims.CLAIMS:
        found = claims.findings(claim, table)
        if {*map(claims.decided, found)}.isdisjoint(("too few seeds", "not attempted")):
            verdicts.append(f"{claim.topic} ({claim.letter}) {claims.verdict(found).replace(', ', ' and ')}")
    so_far = " so far" if len(verdicts) < len(claims.CLAIMS) else ""
    done = f"We have verdicts on {len(verdicts) or 'none'} of the paper's {len(claims.CLAIMS)} claims{so_far}"
    judged = f"{done}{': ' if verdicts else ''}{', '.join(verdicts)}."
    return f"{judged} {benefits(table)}\n\n{recommendation(mean_score(table))}".rstrip()


def figure_data(name: str) -> pd.DataFrame:
    """Returns the numbers of a committed figure."""
    return pd.read_csv(files.repository() / "figures" / f"{name}.csv")


def small_datasets(frame: pd.DataFrame) -> str:
    """Returns the answer of 01_small_datasets: how long 10,000 transitions are, how good, and how near to a new state."""
    card, expert = read.read_card(read.FOLDER / "hopper-medium-replay.hdf5"), tasks.find("hopper").return_expert
    table = figure_data("01_neighbours").set_index(["way", "rows"])
    other, same = (table["steps"].xs(way, level="way") for way in ("whole episodes", "single rows"))
    return (
        f"On Hopper 10,000 transitions are {table['seconds'].xs(10_000, level='rows').iloc[0]:.0f} seconds of simulated time. We "
        f"draw them from the {card['transitions']:,} transitions of {card['episodes']} episodes. Half of these episodes return "
        f"less than {card['return_quantiles']['50']:.0f}, while an expert returns {expert:,.0f}. The typical distance from a new "
        f"state of the same episodes to the nearest drawn state is {same[10_000]:.1f} simulator steps, and from a new episode "
        f"{other[10_000]:.1f}. With 1,000 transitions it would be {same[1_000]:.1f} and {other[1_000]:.1f}."
    )


def world_model(frame: pd.DataFrame) -> str:
    """Returns the answer of 02_world_model: the error of one step, compared with simpler predictions."""
    mean = pd.read_csv(stored.DRAWN / "02_errors.csv").groupby("task", sort=False).mean(numeric_only=True)
    where = joined([tasks.find(str(name)).title for name in mean.index])
    kinds = ("sample", "persistence", "linear", "deterministic")
    vae, persistence, linear, network = (joined([*map(two_digits, mean[kind])]) for kind in kinds)
    better = [(mean["sample"] < mean[kind]).sum() or "none" for kind in kinds[1:]]
    alike = mean.index[mean["sample"].map(two_digits) == mean["persistence"].map(two_digits)]
    tie = f" (about equal on {joined([tasks.find(str(name)).title for name in alike])})" if len(alike) else ""
    coarse = "Only coarsely: linear regression and a deterministic network of the same size predict better on every task. "
    if better[1:] == ["none", "none"]:
        lead, rivals = coarse, ""
    else:
        lead, rivals = "", f", the regression on {better[1]} and the network on {better[2]}"
    return lead + (
        f"On held-out rows of {where}, the paper's VAE has one-step errors of {vae}, where 1 is the error of always predicting "
        f"the mean state. The guess that nothing moves has errors of {persistence}, linear regression of {linear}, and "
        f"a deterministic network of {network}. The VAE beats the guess on {better[0]} of "
        f"{count('task', [len(mean)])}{tie}{rivals}."
    )


def augmentation(frame: pd.DataFrame) -> str:
    """Returns the answer of 03_augmentation: how far next states and a trained critic's targets move."""
    paths = [stored.DRAWN / f"03_{name}.csv" for name in ("outside", "targets")]
    states, targets = (pd.read_csv(path).set_index("source") for path in paths)
    model, noise = targets.loc["sample"], targets.loc["noise"]
    by_model, by_noise = (number(float(each["mean"]), signed=True) for each in (model, noise))
    return (
        "Augmentation replaces half of a batch's next states by imagined ones and changes nothing else. On HalfCheetah these "
        f"states move by {states.loc['sample', 'error']:.2f} standard deviations per dimension, while a step of the simulator "
        f"moves a state by {states.loc['sample', 'step']:.2f}. The targets of a trained critic have a standard deviation of "
        f"{model['spread']:.0f} rewards, and they move by {by_model} on average. The shift of a single target has two parts "
        f"(root mean squares): {model['stays']:.0f} rewards stay, and {model['averages out']:.0f} average out over the model's "
        f"samples. With noise of the same size targets move by {by_noise} on average, {noise['stays']:.0f} stay, and "
        f"{noise['averages out']:.0f} average out."
    )


def runaways(table: pd.DataFrame) -> tuple[list[str], str]:
    """Returns the tasks on which a critic runs away, and sentences that count such critics, by arm, when pre-training ends."""
    figure = figure_data("04_runaway")
    limits, last = figure.groupby("task")["limit"].first(), last_offline(table, "predicted_value").reset_index()
    last = last.replace({"arm": {"layernorm_data": "layernorm"}}).drop_duplicates(statistics.RUN)  # they differ only online
    last, by_arm = last[last["arm"].isin(figure["arm"])], []
    over = last[last["predicted_value"] > last["task"].map(limits)]
    for arm in in_order(last["arm"]):
        where, of_arm = over["task"][over["arm"] == arm], (last["arm"] == arm).sum()
        titles = joined([tasks.find(task).title for task in tasks.TASKS if task in set(where)])
        recorded = [task for task in tasks.TASKS if task in set(last["task"][last["arm"] == arm])]
        runs = "with" if by_arm else "runs with"
        on = f" ({titles})" if titles else f" (on {in_words(recorded)})" if len(recorded) < len(tasks.TASKS) else ""
        by_arm.append(f"{len(where) or 'none'} of {of_arm} {runs} “{look(arm).label}”{on}")
    definition = "A critic has run away if it predicts more than the largest reward at every step would give."
    return [*over["task"].unique()], f"{definition} When pre-training ends, critics have run away in {joined(by_arm)}."


def offline(frame: pd.DataFrame) -> str:
    """Returns the answer of 04_offline_pretraining: what imagination does to the policy and to its critic."""
    table = claims.main_runs(frame)
    where, means = shared_means(last_offline(table), "vanilla", "augmented")
    if not where:
        return NOTHING
    vanilla, augmented = map(estimate, means)
    score, (wild, counted) = exploratory(Comparison("augmented", ("vanilla",), measure=last_offline), table), runaways(table)
    calm = tuple(task for task in claims.FOUR if task not in wild)
    told = conclusion(score, "imagination raises this score", "imagination lowers this score")
    return (
        f"On {where}, the policy scores {vanilla} at the end of pre-training if all next states were recorded, and {augmented} "
        f"if half were imagined.{without_one(last_offline(table), 'vanilla', 'augmented')} {capitalised(told)}. {counted} "
        f"{overrated(table, calm)}"
    ).rstrip()


def overrated(table: pd.DataFrame, calm: tuple[str, ...]) -> str:
    """Returns sentences on the over-estimation of vanilla and augmented critics on `calm` tasks, where none runs away."""
    measure = partial(last_offline, value="overestimation")
    where, means = shared_means(measure(table[table["task"].isin(calm)]), "vanilla", "augmented")
    if not where:
        return ""
    vanilla, augmented = map(estimate, means)
    difference = exploratory(Comparison("augmented", ("vanilla",), calm, measure), table)
    more = conclusion(difference, "imagination raises this difference", "imagination lowers this difference")
    return (
        f"Where no critic runs away, on {where}, the return that a critic predicts minus what its policy earns is {vanilla} "
        f"discounted rewards with recorded next states and {augmented} with imagined ones: below zero it predicts too little. "
        f"{capitalised(more)}."
    )


def online(frame: pd.DataFrame) -> str:
    """Returns the answer of 05_online_finetuning: does pre-training pay, and how do the primary comparisons come out?"""
    arms = "td3", "td3_data", "vanilla", "augmented", "noise"
    table = on_common_tasks(claims.main_runs(frame), *arms)
    where, means = shared_means(mean_score(table), *arms)
    if not where:
        return NOTHING
    td3, data, vanilla, augmented, noise = map(estimate, means)
    pays, jumps = (exploratory(Comparison(arm, ("td3",)), table) for arm in ("vanilla", "augmented"))

    def size(finding: Finding) -> str:
        rest = words.without(finding.interval, finding.rest)
        return estimate(finding.interval, signed=True) + (f" ({rest})" if rest else "")

    sizes = [size(each) for each in (jumps, *claims.compare(claims.PRIMARY, table))]
    names = "TD3 from scratch", "vanilla pre-training", "noise", "TD3 with the data"
    told = joined([f"by {each} from {name}" for name, each in zip(names, sizes, strict=True)])
    return (
        f"On {where}, the mean score over the first 100,000 interactions is {td3} for TD3 from scratch, {data} for TD3 with the "
        f"data in its replay buffer, {vanilla} after vanilla pre-training, {augmented} after pre-training with imagined next "
        f"states, and {noise} with noise of the same size. "
        f"{capitalised(conclusion(pays, f'{names[1]} scores more than {names[0]}', f'{names[1]} scores less than {names[0]}'))}. "
        f"The score after pre-training with imagined next states differs {told}."
    )


def multi_step(frame: pd.DataFrame) -> str:
    """Returns the answer of 06_multi_step: how errors grow along a roll-out, and whether targets of several steps help."""
    table = pd.read_csv(stored.DRAWN / "06_open_loop.csv").query("horizon in (1, 5, 50)")
    wide = table.groupby(["predictor", "horizon"])["error"].median().unstack()
    kinds = "encoded", "deterministic", "persistence"
    vae, network, persistence = (joined([*map(two_digits, wide.loc[kind])]) for kind in kinds)
    five = table[table["horizon"] == 5].pivot(index="task", columns="predictor", values="error")
    last = table[(table["predictor"] == "deterministic") & (table["horizon"] == 50)]["error"]
    beaten = [(five["encoded"] < five[kind]).sum() or "none" for kind in ("persistence", "deterministic")]
    growth = (
        "After five steps the paper's model, re-encoded at each step, errs less than the guess that nothing moves on "
        f"{beaten[0]} of {count('task', [len(five)])}, and less than a deterministic network on {beaten[1]}. After 1, 5 and 50 "
        f"steps the errors are {vae} for the model, {network} for the network, and {persistence} for the guess (in variances of "
        f"the states, median of {count('task', [len(five)])}; after 50 steps the network's errors range from "
        f"{two_digits(last.min())} to {two_digits(last.max())})."
    )
    family = {each.comparison.arm: each for each in claims.compare(claims.HORIZONS, claims.main_runs(frame))}
    found, alone = family["augmented_horizon5"], family["vanilla_horizon3"]
    if not found.tasks:
        return f"{growth} Whether targets of several steps help an agent is not yet recorded."

    def told(finding: Finding, steps: str) -> str:
        more, less = (f"targets of {steps} steps give a {word} score than targets of one" for word in ("higher", "lower"))
        return conclusion(finding, more, less)

    return f"{growth} {capitalised(told(found, 'five'))}. Without imagination, {told(alone, 'three')}."


def controls(frame: pd.DataFrame) -> str:
    """Returns the answer of 07_controls: model against noise of the same size, and how the predictions fared."""
    table = claims.main_runs(frame)
    arms = "augmented", "noise", "vanilla"
    same = on_common_tasks(table, *arms)
    scores = mean_score(same)
    where, means = shared_means(scores, *arms)
    if not where:
        return NOTHING
    augmented, noise, vanilla = map(estimate, means)
    model = conclusion(
        claims.compare(claims.PRIMARY, same)[1], "the model scores more than noise", "the model scores less than noise"
    )
    verdicts = {each: judged(each, measured(each, table)) for each in PREDICTIONS}
    outcomes = Counter(verdicts.values())
    true, failed, undecided = (outcomes[name] for name in ("as predicted", "contradicted", "undecided"))
    helped = [needed(each, table) for each, verdict in verdicts.items() if verdict == "as predicted"]
    only = words.only_with(helped[0]) if helped and helped.count(helped[0]) == true else ""
    counts = [f"{true or 'none'} came true{only}", f"{failed or 'none'} failed", f"{undecided or 'none'} stayed undecided"]
    waiting = len(PREDICTIONS) - true - failed - undecided
    counts += [f"{waiting} lack runs" if waiting > 1 else "1 lacks runs"] if waiting else []
    return (
        f"On {where}, an agent that was pre-trained with the model's next states scores {augmented} over the first 100,000 "
        f"interactions. With recorded next states it scores {vanilla}, and with noise as large as the model's held-out error "
        f"{noise}.{without_one(scores, 'augmented', 'vanilla', also=('noise',))} {capitalised(model)}. With a perfect model the "
        f"method equals vanilla pre-training, so any real difference must come from the model's error. Of {len(PREDICTIONS)} "
        f"predictions about this error, {joined(counts)}."
    )


def engine(frame: pd.DataFrame) -> str:
    """Returns the answer of 90_engine: updates per second, compared with peers and the limit."""
    table = figure_data("90_updates")
    hopper = table[(table["task"] == "hopper") & (table["population"] == 1)].set_index("precision")
    paces = [f"{row['updates_per_second']:.0f} in {name}" for name, row in hopper.iterrows()]
    shares = joined([f"{100 * row['fraction_of_limit']:.0f} %" for _, row in hopper.iterrows()])
    beside = ""
    for algorithm, name in {"TD3": "TD3 without BC", "SAC": "SAC"}.items():
        peers = table[(table["algorithm"] == algorithm) & (table["precision"] == "float32")].set_index("by")["updates_per_second"]
        each = [f"{pace:.0f} with {re.sub(r' [0-9.]+$', '', str(who))}" for who, pace in peers.items()]
        beside += f" {name} makes, in float32, {joined(each)}." if len(each) > 1 else ""
    return (
        f"On one core ({table['cpu'].iloc[0]}), an agent on Hopper makes this many updates of TD3+BC a second: {joined(paces)}. "
        f"That is {shares} of what the matrix products alone allow.{beside}"
    )


def reliability(frame: pd.DataFrame) -> str:
    """Returns the answer of 08_reliability: where the model errs, which signals warn of it, and whether knowing helps."""
    where, strange, signals = (pd.read_csv(stored.DRAWN / f"08_{name}.csv") for name in ("where", "strange", "signals"))
    near = where[where["condition"] == "distance to the data"].pivot(index="task", columns="fifth")
    ratio, moved = (near[kind][5] / near[kind][1] for kind in ("sample", "persistence"))
    standing = 100 * strange[strange["source"] == "sample"]["standing, of falls"].dropna()
    area = signals[signals["place"] == "outside"].pivot(index="signal", columns="task", values="area")
    best = str(area.mean(axis=1).idxmax())
    first = int((area.idxmax() == best).sum())
    spread, highest = area.loc["spread of the samples"], area.loc[best]
    told = {"blur of the state": "the blur of the state (how badly the VAE reconstructs it)"}
    drawn_answer = (
        f"On {count('task', [len(ratio)])}, the paper's model errs {ratio.min():.1f} to {ratio.max():.1f} times as much in the "
        f"fifth of the rows that lie farthest from the 10,000 as in the nearest fifth. This is partly motion: the guess that "
        f"nothing moves errs {two_digits(moved.min())} to {two_digits(moved.max())} times as much. The model's errors pull "
        f"states to the middle of the data: of the steps that end in a fall ({count('task', [len(standing)])}), it imagines "
        f"{standing.min():.0f} to {standing.max():.0f} % as standing (no target uses these next states). Of {len(area)} signals "
        f"that tell in advance where it errs most, the best on average is {told.get(best, f'the {best},')} with an "
        f"area under the ROC curve of {highest.min():.2f} to {highest.max():.2f} (0.5 is chance). It is the best on {first} of "
        f"{count('task', [len(highest)])}. The spread of the model's samples reaches {spread.min():.2f} to {spread.max():.2f}."
    )
    study = find("trusted")
    comparison = Comparison(study.arms[0], study.arms[1:], study.tasks, statistics.mean_offline)
    found = exploratory(comparison, claims.main_runs(frame))
    if not found.tasks:
        return f"{drawn_answer} Whether it helps to imagine only the rows that the best signal calls safe is not yet recorded."
    safe = "imagining only the rows that the best signal calls safe scores"
    higher, lower = (f"{safe} {word} than imagining only the others" for word in ("higher", "lower"))
    return f"{drawn_answer} Offline, {conclusion(found, higher, lower, len(study.seeds))}."


def perfect_model(table: pd.DataFrame) -> str:
    """Returns sentences on what the simulator gains in the world model's place, with the cloning term and without it."""
    held, _, free = claims.compare(claims.CEILING, table)
    if not held.tasks:
        return "No recorded run shows yet whether a perfect world model would help."
    seeds, model = len(find("ceiling").seeds), "the simulator in the world model's place"
    more, less = (f"{model} {word} the mean score over 50,000 interactions" for word in ("raises", "lowers"))
    told, freely = (conclusion(each, more, less, seeds) for each in (held, free))
    return f"{capitalised(told)}. Without the cloning term, {freely}."


def best_arms(scores: pd.Series) -> str:
    """Returns the arm with the highest mean score on each task, of those with two seeds, as a list in words; "" if none has."""
    means = scores.groupby(["task", "arm"]).agg(["mean", "count"]).query("count > 1")["mean"].unstack("arm")
    means = means[[arm for arm in LOOKS if arm in means]]
    best: dict[str, list[str]] = {}
    for task in [task for task in tasks.TASKS if task in means.index]:
        first, *others = means.loc[task].dropna().sort_values(ascending=False).index
        tie = ""
        if others and statistics.difference(scores[scores.index.get_level_values("task") == task], first, others[0]).low <= 0:
            tie = f", but *{look(others[0]).label}* with {number(means[others[0]][task])} may be as good"
        found = f"{tasks.find(task).title} ({number(means[first][task])}{tie})"
        best.setdefault(look(first).label, []).append(found)
    return joined([f"*{label}* on {joined(where)}" for label, where in best.items()])


def our_method(table: pd.DataFrame, scores: pd.Series) -> str:
    """Returns sentences on how OURS compares with the other methods, and on what is not yet recorded of chapter 11."""
    found = [each for each in claims.compare(claims.METHODS, table) if each.tasks]
    few = statistics.by_task(scores, OURS, least=1)
    if not found and not few:
        return "The methods of this chapter are not yet recorded."
    if found:
        family = [f"by {estimate(each.interval, True)} from that of *{look(each.comparison.others[0]).label}*" for each in found]
        compared = [task for task in tasks.TASKS if any(task in finding.tasks for finding in found)]
        seeds = [n for finding in found for n in finding.seeds]
        told = (
            f"On {in_words(compared)} ({count('seed', seeds)}), the mean score of *{look(OURS).label}* differs {joined(family)}."
        )
        told += f" A verdict takes {ENOUGH_SEEDS} seeds." if min(seeds) < ENOUGH_SEEDS else ""
    else:
        alone = [f"{number(own.mean())} on {tasks.find(task).title}" for task, (own,) in few.items()]
        told = f"*{look(OURS).label}* scores {joined(alone)}, with too few seeds to compare."
    planned = [(run.arm, run.task) for name in ("layernorm", "methods", "algorithms") for run in find(name).runs()]
    recorded = {*scores.groupby(["arm", "task"]).groups}
    lacking = dict.fromkeys(arm for arm, task in planned if (arm, task) not in recorded)
    missing = joined([f"*{look(arm).label}*" for arm in lacking])
    return f"{told} Not yet recorded on every task: {missing}." if missing else told


def methods(frame: pd.DataFrame) -> str:
    """Returns the answer of 11_other_methods: the best arm on each task, the second primary family, and a perfect model."""
    table = claims.main_runs(frame)
    scores = mean_score(table)
    highest = best_arms(scores)
    if not highest:
        return NOTHING
    best_of = "Of the arms with two seeds or more, these have the highest mean scores over the first 100,000 interactions"
    return f"{best_of}: {highest}. {our_method(table, scores)} {perfect_model(table)}"


ANSWERS: dict[str, Callable[[pd.DataFrame], str]] = {  # by name: the README or a chapter
    "README": readme,
    "00_overview": overview,
    "01_small_datasets": small_datasets,
    "02_world_model": world_model,
    "03_augmentation": augmentation,
    "04_offline_pretraining": offline,
    "05_online_finetuning": online,
    "06_multi_step": multi_step,
    "07_controls": controls,
    "08_reliability": reliability,
    "11_other_methods": methods,
    "90_engine": engine,
}
