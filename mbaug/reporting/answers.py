"""The answer of a chapter in a few plain sentences, written from what is recorded: each chapter and the README begin with it.

Some tell numbers that chapters have drawn, and raise FileNotFoundError where that table is not there.
"""

import re
from collections import Counter
from collections.abc import Callable

import pandas as pd

from mbaug import files, tasks
from mbaug.datasets import read
from mbaug.experiments.studies import find
from mbaug.reporting import claims, statistics, stored
from mbaug.reporting.figures import LOOKS, count, in_order, joined, look, number, words
from mbaug.reporting.predictions import PREDICTIONS, held, judged
from mbaug.reporting.statistics import ENOUGH_SEEDS, Interval, last_offline, mean_score

OURS = claims.METHODS[0].arm  # what chapter 11 holds against the others
NOTHING = "Not yet recorded: on no task has every arm two seeds."


def begun(words: str) -> str:
    """Returns words as the beginning of a sentence."""
    return words[:1].upper() + words[1:]


def reached(measure: pd.Series, *arms: str) -> tuple[str, list[Interval]]:
    """Returns where all arms ran twice and how often, as "Hopper, 3 seeds", with each one's mean there; "" if nowhere."""
    groups = statistics.by_task(measure, *arms)
    found = [statistics.interval([scores[k] for scores in groups.values()]) for k in range(len(arms))]
    where = joined([tasks.find(name).title for name in groups]) if len(groups) < len(claims.FOUR) else "All four tasks"
    return f"{where}, {count('seed', {each.n_seeds for each in found})}" if groups else "", found


def shared(measure: pd.Series, *arms: str) -> pd.Series:
    """Returns the measure on those tasks alone in which all arms ran twice, so that one sentence is about the same tasks."""
    return measure[measure.index.get_level_values("task").isin([*statistics.by_task(measure, *arms)])]


def tell(difference: Interval, positive: str, negative: str, planned: int = ENOUGH_SEEDS) -> str:
    """Returns which of two statements a difference supports, with its size; or that the `planned` seeds do not tell."""
    if difference.n_seeds < planned:
        return f"it takes {planned} seeds to tell whether {positive}"
    size = words(difference, signed=True)
    if difference.low <= 0 <= difference.high:
        return f"{planned} seeds do not tell whether {positive} ({size})"
    return f"{positive if difference.value > 0 else negative} ({size})"


def everywhere(scores: pd.Series, least: int) -> dict[str, Interval]:
    """Returns the mean over tasks of every arm that has so many seeds on each of the four."""
    groups = {arm: [own for (own,) in statistics.by_task(scores, arm, least=least).values()] for arm in LOOKS}
    return {arm: statistics.interval(each) for arm, each in groups.items() if len(each) == len(claims.FOUR)}


def today(scores: pd.Series) -> str:
    """Returns what we would do with 10,000 transitions: the best arm of those that ran twice on every task, beside the next.

    An arm that scored more, but with a single seed somewhere, is named as the one to try next.
    """
    found, tried = everywhere(scores, least=2), everywhere(scores, least=1)
    if len(found) < 2:
        return ""
    (best, its), (second, other), *_ = sorted(found.items(), key=lambda each: -each[1].value)
    highest = max(tried, key=lambda arm: tried[arm].value)
    more = ""
    if highest != best:
        seeds = [len(own) for (own,) in statistics.by_task(scores, highest, least=1).values()]
        had = f"“{look(highest).label}” scores {number(tried[highest].value)}"
        more = f"{had}, but {count('seed', seeds)} a task {'are' if max(seeds) > 1 else 'is'} too few to recommend it. "
    return (
        f"With 10,000 transitions the best choice today is “{look(best).label}”. Over four tasks its mean score in the first "
        f"100,000 interactions is {words(its)}, with {count('seed', [its.n_seeds])} a task. The next best of the {len(found)} "
        f"arms with two seeds or more on every task is “{look(second).label}” with {words(other)}. {more}"
    )


def sentence(frame: pd.DataFrame) -> str:
    """Returns the README's answer: what we would do today, and whether pre-training and imagination pay."""
    scores = mean_score(claims.main_runs(frame))
    where, found = reached(scores, "td3", "vanilla", "augmented")
    if not where:
        return NOTHING
    td3, vanilla, augmented = (number(each.value) for each in found)
    more = statistics.difference(shared(scores, "td3", "vanilla", "augmented"), "augmented", "vanilla")
    helps = tell(more, "imagination helps", "imagination harms")
    return today(scores) + (
        f"{where}: the mean score of TD3 over the first 100,000 interactions is {td3} from scratch, {vanilla} after offline "
        f"pre-training, and {augmented} after pre-training with imagined next states. {begun(helps)}."
    )


def overview(frame: pd.DataFrame) -> str:
    """Returns the answer of 00_overview: the README's, and the claims that have a verdict."""
    table, said = claims.main_runs(frame), []
    for claim in claims.CLAIMS:
        found = claims.findings(claim, table)
        if any(each.interval.n_seeds >= ENOUGH_SEEDS for each in found):
            said.append(f"({claim.letter}) {claims.verdict(found)}")
    told = f"{len(said) or 'none'} of the paper's {len(claims.CLAIMS)} claims can be judged: {'; '.join(said)}"
    return f"{sentence(frame)} So far {told if said else told[:-2]}. A verdict takes {ENOUGH_SEEDS} seeds."


def drawn(name: str) -> pd.DataFrame:
    """Returns the numbers of a committed figure."""
    return pd.read_csv(files.repository() / "figures" / f"{name}.csv")


def small_datasets(frame: pd.DataFrame) -> str:
    """Returns the answer of 01_small_datasets: how long 10,000 transitions are, how good, and how near to a new state."""
    card, expert = read.read_card(read.FOLDER / "hopper-medium-replay.hdf5"), tasks.find("hopper").return_expert
    table = drawn("01_neighbours").set_index(["way", "rows"])
    new, beside = (table["steps"].xs(way, level="way") for way in ("whole episodes", "single rows"))
    return (
        f"10,000 transitions are {table['seconds'].xs(10_000, level='rows').iloc[0]:.0f} seconds of a hopper's life. We draw "
        f"them from {card['transitions']:,} of {card['episodes']} episodes. Half of these episodes return less than "
        f"{card['return_quantiles']['50']:.0f}, where an expert returns {expert:,.0f}. From a new state of the same episodes, "
        f"the nearest drawn state is {beside[10_000]:.1f} steps of the simulator away, and from a state of an episode that was "
        f"not drawn {new[10_000]:.1f}. With 1,000 transitions it would be {beside[1_000]:.1f} and {new[1_000]:.1f} steps."
    )


def world_model(frame: pd.DataFrame) -> str:
    """Returns the answer of 02_world_model: the error of one step, beside what is free or cheap."""
    mean = pd.read_csv(stored.DRAWN / "02_errors.csv").groupby("task", sort=False).mean(numeric_only=True)
    where = joined([tasks.find(str(name)).title for name in mean.index])
    kinds = ("sample", "persistence", "linear", "deterministic")
    vae, still, line, network = (joined([f"{error:.2g}" for error in mean[kind]]) for kind in kinds)
    better = [(mean["sample"] < mean[kind]).sum() or "none" for kind in kinds[1:]]
    return (
        f"On held-out rows of {where} the paper's VAE errs by {vae} in one step, where 1 is the error of always predicting the "
        f"mean state. The guess that nothing moves errs by {still}, a linear regression by {line}, and "
        f"a deterministic network by {network}. The VAE beats the guess on {better[0]} of "
        f"{count('task', [len(mean)])}, the regression on {better[1]} and the network on {better[2]}."
    )


def augmentation(frame: pd.DataFrame) -> str:
    """Returns the answer of 03_augmentation: how far next states move, and the targets of a trained critic."""
    paths = [stored.DRAWN / f"03_{name}.csv" for name in ("outside", "targets")]
    states, targets = (pd.read_csv(path).set_index("source") for path in paths)
    model, noise = targets.loc["sample"], targets.loc["noise"]
    rise, fall = (number(float(each["mean"]), signed=True) for each in (model, noise))
    return (
        f"Half of a batch's next states become imagined, and nothing else changes. On HalfCheetah they move by "
        f"{states.loc['sample', 'error']:.2f} standard deviations a dimension, where a step of the simulator moves a state by "
        f"{states.loc['sample', 'step']:.2f}. The targets of a trained critic have a standard deviation of "
        f"{model['spread']:.0f} rewards, and they move by {rise} on average. A single target moves by {model['stays']:.0f} "
        f"rewards that stay and by {model['averages out']:.0f} that average out over the model's samples. Noise of the same "
        f"size moves them by {fall} on average, by {noise['stays']:.0f} that stay and {noise['averages out']:.0f} that do not."
    )


def runaways() -> str:
    """Returns on which tasks each arm's critics end above the value of the largest reward for ever."""
    last = drawn("04_runaway").groupby(["arm", "task"], sort=False)[["predicted_value", "limit"]].last().reset_index()
    over, told = last["predicted_value"] > last["limit"], []
    for arm in in_order(last["arm"]):
        own = last["arm"] == arm
        where = joined([tasks.find(task).title for task in last["task"][own & over]])
        told.append(f"with “{look(arm).label}” on {where or 'none'} (of {count('task', [int(own.sum())])})")
    meant = "A critic runs away when it promises more than the largest reward in every step would give."
    return f" {meant} That happens {joined(told)}."


def offline(frame: pd.DataFrame) -> str:
    """Returns the answer of 04_offline_pretraining: what imagination makes of the policy, and of its critic."""
    table = claims.main_runs(frame)
    scores, excess = last_offline(table), last_offline(table, "overestimation")
    where, found = reached(scores, "vanilla", "augmented")
    if not where:
        return NOTHING
    vanilla, augmented = map(words, found)
    plain, imagined = map(words, reached(excess, "vanilla", "augmented")[1])
    score, promised = (statistics.difference(measure, "augmented", "vanilla") for measure in (scores, excess))
    return (
        f"{where}: when pre-training ends, the policy scores {vanilla} if all next states were recorded, and {augmented} if half "
        f"were imagined. {begun(tell(score, 'imagination helps', 'imagination harms'))}. The return that the critic predicts, "
        f"minus what its policy earns, is {plain} discounted rewards in the first case and {imagined} in the second. "
        f"{begun(tell(promised, 'imagination adds over-estimation', 'imagination lowers over-estimation'))}."
        f"{runaways()}"
    )


def online(frame: pd.DataFrame) -> str:
    """Returns the answer of 05_online_finetuning: does pre-training pay, and does imagination add to it?"""
    arms = "td3", "vanilla", "augmented", "noise"
    scores = shared(mean_score(claims.main_runs(frame)), *arms)
    where, found = reached(scores, *arms)
    if not where:
        return NOTHING
    td3, vanilla, augmented, noise = map(words, found)
    gain, more = statistics.difference(scores, "vanilla", "td3"), statistics.difference(scores, "augmented", "vanilla", "noise")
    pays = tell(gain, "offline pre-training pays", "offline pre-training costs")
    return (
        f"{where}: {pays}. Over the first 100,000 interactions its mean score is {vanilla}, where TD3 from scratch has {td3}. "
        f"Pre-trained with imagined next states an agent scores {augmented}, with noise of the same size "
        f"{noise}. {begun(tell(more, 'imagination is better than these two', 'imagination is worse than these two'))}."
    )


def multi_step(frame: pd.DataFrame) -> str:
    """Returns the answer of 06_multi_step: how errors grow along a roll-out, and whether targets of several steps help."""
    table = pd.read_csv(stored.DRAWN / "06_open_loop.csv").query("horizon in (1, 5, 50)")
    wide = table.groupby(["predictor", "horizon"])["error"].median().unstack()
    said = ("{:.2g}, {:.2g} and {:.2g}".format(*wide.loc[kind]) for kind in ("encoded", "deterministic", "persistence"))
    vae, network, still = said
    grow = (
        f"After 1, 5 and 50 steps from the last true state the paper's model errs by {vae}, a deterministic network by "
        f"{network}, and the guess that nothing moves by {still} (variances of the states, median of "
        f"{count('task', [table['task'].nunique()])}; 1 is the error of always predicting the mean state)."
    )
    score, (arm, other) = mean_score(claims.main_runs(frame)), ("augmented_horizon5", "augmented_horizon1")
    if not statistics.by_task(score, arm, other):
        return f"{grow} Whether targets of several steps help an agent is not yet recorded."
    helps = tell(statistics.difference(score, arm, other), "five steps score higher than one", "five steps score lower than one")
    return f"{grow} As the target of an agent, {helps}."


def controls(frame: pd.DataFrame) -> str:
    """Returns the answer of 07_controls: is it the model, or its error, and what of the agent is worth carrying?"""
    table = claims.main_runs(frame)
    arms = "augmented", "noise", "vanilla"
    scores = shared(mean_score(table), *arms)
    where, found = reached(scores, *arms)
    if not where:
        return NOTHING
    augmented, noise, vanilla = map(words, found)
    model = tell(statistics.difference(scores, "augmented", "noise"), "the model beats noise", "noise beats the model")
    fates = Counter(judged(each, held(each, table)) for each in PREDICTIONS)
    came, failed = fates["as predicted"], fates["contradicted"]
    return (
        f"{where}: pre-trained with the model's next states an agent scores {augmented} over the first 100,000 interactions, "
        f"with noise as large as the model's error {noise}, with recorded next states {vanilla}. {begun(model)}. A perfect model "
        f"would change nothing, so every difference comes from an error. Of {len(PREDICTIONS)} predictions that follow from "
        f"it, {came} came true, {failed} failed, and {len(PREDICTIONS) - came - failed} are open."
    )


def engine(frame: pd.DataFrame) -> str:
    """Returns the answer of 90_engine: updates a second, beside a peer and beside what the products alone allow."""
    table = drawn("90_updates")
    hopper = table[(table["task"] == "hopper") & (table["population"] == 1)].set_index("precision")
    said = [f"{row['updates_per_second']:.0f} in {name}" for name, row in hopper.iterrows()]
    shares = joined([f"{row['fraction_of_limit']:.0%}" for _, row in hopper.iterrows()])
    peers = table[(table["algorithm"] == "TD3") & (table["precision"] == "float32")].set_index("by")["updates_per_second"]
    each = [f"{pace:.0f} with {re.sub(r' [0-9.]+$', '', str(who))}" for who, pace in peers.items()]
    beside = f" TD3 without BC makes, in float32, {joined(each)}." if len(each) > 1 else ""
    return (
        f"On one core ({table['cpu'].iloc[0]}), an agent on Hopper makes this many updates of TD3+BC a second: {joined(said)}. "
        f"That is {shares} of what the matrix products alone allow.{beside}"
    )


def reliability(frame: pd.DataFrame) -> str:
    """Returns the answer of 08_reliability: where the model errs, what tells it beforehand, and whether it helps to know."""
    where, strange, signals = (pd.read_csv(stored.DRAWN / f"08_{name}.csv") for name in ("where", "strange", "signals"))
    error = where[where["condition"] == "distance to the data"].pivot(index="task", columns="fifth", values="sample")
    thin, stands = error[5] / error[1], 100 * strange[strange["source"] == "sample"]["standing, of falls"].dropna()
    area = signals[signals["place"] == "outside"].pivot(index="signal", columns="task", values="area")
    best = area.mean(axis=1).idxmax()
    own, most = area.loc["spread of the samples"], area.loc[best]
    told = (
        f"The paper's model errs {thin.min():.1f} to {thin.max():.1f} times as much in the fifth of the rows that lie "
        f"farthest from the 10,000 as in the nearest fifth ({count('task', [len(thin)])}). Its errors pull states to the "
        f"middle of the data: of the steps that end in a fall, it imagines {stands.min():.0f} to {stands.max():.0f} % as "
        f"standing. Some signals tell beforehand which rows are the worst tenth. The best of {len(area)} is the {best}, with "
        f"an area under the ROC curve of {most.min():.2f} to {most.max():.2f} (0.5 is chance). The spread of the model's "
        f"samples has {own.min():.2f} to {own.max():.2f}."
    )
    study, offline = find("trusted"), statistics.mean_offline(claims.main_runs(frame))
    trusted, distrusted = study.arms
    if not statistics.by_task(offline, trusted, distrusted):
        return f"{told} Whether it helps to imagine only the rows that the best signal calls safe is not yet recorded."
    difference = statistics.difference(offline, trusted, distrusted)
    safe = "imagining only the rows that the best signal calls safe scores"
    higher, lower = (f"{safe} {word} than imagining only the others" for word in ("higher", "lower"))
    return f"{told} Offline, {tell(difference, higher, lower, len(study.seeds))}."


def methods(frame: pd.DataFrame) -> str:
    """Returns the answer of 11_other_methods: the best use of the same transitions, and the second primary family."""
    table = claims.main_runs(frame)
    scores = mean_score(table)
    means = scores.groupby(["task", "arm"]).agg(["mean", "count"]).query("count > 1")["mean"].unstack("arm")
    means = means[[arm for arm in LOOKS if arm in means]]
    if means.empty:
        return NOTHING
    best: dict[str, list[str]] = {}
    for task, arm in means.dropna(how="all").idxmax(axis=1).items():
        best.setdefault(look(str(arm)).label, []).append(f"{tasks.find(str(task)).title} ({number(means[arm][task])})")
    highest = joined([f"*{label}* on {joined(where)}" for label, where in best.items()])
    found = [each for each in claims.compare(claims.METHODS, table) if each.tasks]
    family = [f"{words(each.interval, signed=True)} against *{look(each.comparison.others[0]).label}*" for each in found]
    lone = statistics.by_task(scores, OURS, least=1)
    ours = "The methods of this chapter are not yet recorded."
    if family or lone:
        each = [f"{number(lone[task][0].mean())} on {tasks.find(task).title}" for task in tasks.TASKS if task in lone]
        told = joined(family) if family else f"{joined(each)}, with too few seeds to compare"
        met = [tasks.find(task).title for task in tasks.TASKS if any(task in finding.tasks for finding in found)]
        seeds = [finding.interval.n_seeds for finding in found]
        where = f" on {joined(met)} ({count('seed', seeds)})" if found else ""
        verdict = f" A verdict takes {ENOUGH_SEEDS} seeds." if found and min(seeds) < ENOUGH_SEEDS else ""
        ours = f"{look(OURS).label}{where}: {told}.{verdict}"
    best_of = "Of the arms with two seeds or more, these have the highest mean scores over the first 100,000 interactions"
    return f"{best_of}: {highest}. {ours}"


ANSWERS: dict[str, Callable[[pd.DataFrame], str]] = {  # by the name of the README or of a chapter
    "README": sentence,
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
