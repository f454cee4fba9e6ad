"""Writes the answers that the README and each chapter begin with: a few plain sentences with numbers from the records.

Some answers quote tables that chapters have drawn. They raise FileNotFoundError if the table does not exist yet.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from mbaug import files, tasks
from mbaug.datasets import read
from mbaug.experiments.studies import find
from mbaug.reporting import claims, statistics, stored
from mbaug.reporting.figures import LOOKS, count, in_order, joined, look, number, words
from mbaug.reporting.predictions import PREDICTIONS, held, judged
from mbaug.reporting.statistics import ENOUGH_SEEDS, Interval, last_offline, mean_score

OURS = claims.METHODS[0].arm  # the arm that chapter 11 compares with the others
NOTHING = "Not yet recorded: no task has two seeds of every arm."


def capitalised(text: str) -> str:
    """Returns a text with its first letter in upper case; the others stay as they are."""
    return text[:1].upper() + text[1:]


def shared_means(measure: pd.Series, *arms: str) -> tuple[str, list[Interval]]:
    """Returns the tasks on which all arms have two seeds, as "Hopper, 3 seeds" ("" if none), and each arm's mean over them."""
    groups = statistics.by_task(measure, *arms)
    found = [statistics.interval([scores[k] for scores in groups.values()]) for k in range(len(arms))]
    where = joined([tasks.find(name).title for name in groups]) if len(groups) < len(claims.FOUR) else "All four tasks"
    return f"{where}, {count('seed', statistics.seeds(groups))}" if groups else "", found


def shared(measure: pd.Series, *arms: str) -> pd.Series:
    """Returns the measure on the tasks on which all arms have two seeds, so that a sentence compares arms on the same tasks."""
    return measure[measure.index.get_level_values("task").isin([*statistics.by_task(measure, *arms)])]


def tell(difference: Interval, positive: str, negative: str, planned: int = ENOUGH_SEEDS) -> str:
    """Returns what a difference shows, with its size; or that we wait for `planned` seeds, or that they do not tell."""
    if difference.n_seeds < planned:
        return f"we wait for {planned} seeds to say whether {positive}"
    size = words(difference, signed=True)
    if difference.low <= 0 <= difference.high:
        return f"{planned} seeds do not tell whether {positive} ({size})"
    return f"{positive if difference.value > 0 else negative} ({size})"


def on_all_tasks(scores: pd.Series, least: int) -> dict[str, Interval]:
    """Returns the mean over tasks of every arm that has at least `least` seeds on each of the four."""
    groups = {arm: [seeds for (seeds,) in statistics.by_task(scores, arm, least=least).values()] for arm in LOOKS}
    return {arm: statistics.interval(each) for arm, each in groups.items() if len(each) == len(claims.FOUR)}


def recommendation(scores: pd.Series) -> str:
    """Returns what we would do with 10,000 transitions: the best arm and the second best of those with two seeds on every task.

    It also names an arm that scored more but has a single seed on some task, and says what is still too little recorded.
    """
    found, tried = on_all_tasks(scores, least=2), on_all_tasks(scores, least=1)
    if len(found) < 2:
        return ""
    (best, best_mean), (second, second_mean), *_ = sorted(found.items(), key=lambda each: -each[1].value)
    highest = max(tried, key=lambda arm: tried[arm].value)
    own, others = (statistics.seeds(statistics.by_task(scores, arm, least=1)) for arm in (best, highest))
    untested = ""
    if highest != best:
        scored = f"“{look(highest).label}” scores {number(tried[highest].value)}"
        untested = f"{scored}, but {too_few(others)} to recommend it. "
    return (
        f"With 10,000 transitions we would choose “{look(best).label}” today. Over four tasks its mean score in the first "
        f"100,000 interactions is {words(best_mean)}, with {count('seed', own)} per task. The next best of "
        f"{len(found)} arms, “{look(second).label}”, scores {words(second_mean)}. The difference is "
        f"{words(statistics.difference(scores, best, second), signed=True)}, likely too high, since we chose the best of "
        f"several. {untested}{provisional(best, own, [*found])}"
    )


def too_few(seeds: list[int]) -> str:
    """Returns the start of a sentence about an arm's numbers of seeds, as "2 or 3 seeds per task are too few"."""
    return f"{count('seed', seeds)} per task {'are' if max(seeds) > 1 else 'is'} too few"


def provisional(arm: str, seeds: list[int], compared: Sequence[str]) -> str:
    """Returns a sentence on what may still change a choice, "" if nothing: few seeds, or the same arm without pre-training."""
    fresh = f"td3_{arm}"
    few = f"{too_few(seeds)} for a verdict"
    untried = f"“{look(fresh).label}” has too few runs to say whether pre-training matters here"
    reasons = [few] * (min(seeds) < ENOUGH_SEEDS) + [untried] * (fresh in LOOKS and fresh not in compared)
    return f"This may change: {', and '.join(reasons)}. " if reasons else ""


def without_one(measure: pd.Series, *arms: str, also: str) -> str:
    """Returns all means without each task that decides which of `arms` is the best; "" if there is no such task."""
    scores = statistics.by_task(measure, *arms, also)
    means = pd.DataFrame({task: map(np.mean, of_task) for task, of_task in scores.items()}, [*arms, also])
    found = []
    for task in means if len(means.columns) > 1 else ():
        rest = means.drop(columns=task).mean(axis=1)
        if rest.drop(also).idxmax() != means.drop(also).mean(axis=1).idxmax():
            found.append(f" Without {tasks.find(task).title} the means are {joined([number(mean) for mean in rest])}.")
    return "".join(found)


def readme(frame: pd.DataFrame) -> str:
    """Returns the README's answer in two paragraphs: what we would do today, and whether pre-training and imagination help."""
    scores = mean_score(claims.main_runs(frame))
    return f"{recommendation(scores).rstrip()}\n\n{benefits(scores)}".lstrip()


def benefits(scores: pd.Series) -> str:
    """Returns the mean scores of TD3 from scratch, pre-trained, with imagination or with the data, and if imagination helps."""
    arms = "td3", "vanilla", "augmented", "td3_data"
    where, means = shared_means(scores, *arms)
    if not where:
        return NOTHING
    td3, vanilla, augmented, data = map(words, means)
    gain = statistics.difference(shared(scores, *arms), "augmented", "vanilla")
    helps = tell(gain, "imagination helps", "imagination does harm")
    return (
        f"{where}: the mean score of TD3 over the first 100,000 interactions is {td3} from scratch, {vanilla} after offline "
        f"pre-training, {augmented} after pre-training with imagined next states, and {data} with the data in its replay buffer "
        f"instead.{without_one(scores, *arms[:3], also=arms[3])} {capitalised(helps)}."
    )


def overview(frame: pd.DataFrame) -> str:
    """Returns the answer of 00_overview: the claims that have a verdict, and the parts of the README's answer."""
    table, verdicts = claims.main_runs(frame), []
    for claim in claims.CLAIMS:
        found = claims.findings(claim, table)
        if any(each.interval.n_seeds >= ENOUGH_SEEDS for each in found):
            verdicts.append(f"({claim.letter}) {claims.verdict(found)}")
    judged = f"{len(verdicts) or 'None'} of the paper's {len(claims.CLAIMS)} claims can be judged so far"
    scores = mean_score(table)
    return f"{judged}{': ' if verdicts else ''}{'; '.join(verdicts)}. {benefits(scores)}\n\n{recommendation(scores)}".rstrip()


def drawn(name: str) -> pd.DataFrame:
    """Returns the numbers of a committed figure."""
    return pd.read_csv(files.repository() / "figures" / f"{name}.csv")


def small_datasets(frame: pd.DataFrame) -> str:
    """Returns the answer of 01_small_datasets: how long 10,000 transitions are, how good, and how near to a new state."""
    card, expert = read.read_card(read.FOLDER / "hopper-medium-replay.hdf5"), tasks.find("hopper").return_expert
    table = drawn("01_neighbours").set_index(["way", "rows"])
    other, same = (table["steps"].xs(way, level="way") for way in ("whole episodes", "single rows"))
    return (
        f"10,000 transitions are {table['seconds'].xs(10_000, level='rows').iloc[0]:.0f} seconds of simulated time. We draw "
        f"them from the {card['transitions']:,} transitions of {card['episodes']} episodes. Half of these episodes return less "
        f"than {card['return_quantiles']['50']:.0f}, while an expert returns {expert:,.0f}. The nearest drawn state is "
        f"{same[10_000]:.1f} simulator steps away from a new state of the same episodes, and {other[10_000]:.1f} steps from a "
        f"state of an episode that was not drawn. With 1,000 transitions the distances would be {same[1_000]:.1f} and "
        f"{other[1_000]:.1f} steps."
    )


def world_model(frame: pd.DataFrame) -> str:
    """Returns the answer of 02_world_model: the error of one step, compared with simpler predictions."""
    mean = pd.read_csv(stored.DRAWN / "02_errors.csv").groupby("task", sort=False).mean(numeric_only=True)
    where = joined([tasks.find(str(name)).title for name in mean.index])
    kinds = ("sample", "persistence", "linear", "deterministic")
    vae, persistence, linear, network = (joined([f"{error:.2g}" for error in mean[kind]]) for kind in kinds)
    better = [(mean["sample"] < mean[kind]).sum() or "none" for kind in kinds[1:]]
    return (
        f"On held-out rows of {where}, the paper's VAE has one-step errors of {vae}, where 1 is the error of always predicting "
        f"the mean state. The guess that nothing moves has errors of {persistence}, linear regression of {linear}, and "
        f"a deterministic network of {network}. The VAE beats the guess on {better[0]} of "
        f"{count('task', [len(mean)])}, the regression on {better[1]} and the network on {better[2]}."
    )


def augmentation(frame: pd.DataFrame) -> str:
    """Returns the answer of 03_augmentation: how far next states and a trained critic's targets move."""
    paths = [stored.DRAWN / f"03_{name}.csv" for name in ("outside", "targets")]
    states, targets = (pd.read_csv(path).set_index("source") for path in paths)
    model, noise = targets.loc["sample"], targets.loc["noise"]
    by_model, by_noise = (number(float(each["mean"]), signed=True) for each in (model, noise))
    return (
        f"Augmentation replaces half of a batch's next states by imagined ones and changes nothing else. On HalfCheetah they "
        f"move by {states.loc['sample', 'error']:.2f} standard deviations per dimension, while a step of the simulator moves a "
        f"state by {states.loc['sample', 'step']:.2f}. The targets of a trained critic have a standard deviation of "
        f"{model['spread']:.0f} rewards, and they move by {by_model} on average. The shift of a single target has two parts: "
        f"{model['stays']:.0f} rewards stay, and {model['averages out']:.0f} average out over the model's samples. With noise of "
        f"the same size the three numbers are {by_noise}, {noise['stays']:.0f} and {noise['averages out']:.0f}."
    )


def runaways(table: pd.DataFrame) -> tuple[list[str], str]:
    """Returns the tasks on which a critic runs away, and sentences that count such critics, by arm, when pre-training ends."""
    figure = drawn("04_runaway")
    limits, last = figure.groupby("task")["limit"].first(), last_offline(table, "predicted_value").reset_index()
    last = last.replace({"arm": {"layernorm_data": "layernorm"}}).drop_duplicates(statistics.RUN)  # they differ only online
    last, by_arm = last[last["arm"].isin(figure["arm"])], []
    over = last[last["predicted_value"] > last["task"].map(limits)]
    for arm in in_order(last["arm"]):
        where, of_arm = over["task"][over["arm"] == arm], (last["arm"] == arm).sum()
        titles = joined([tasks.find(task).title for task in tasks.TASKS if task in set(where)])
        by_arm.append(f"{len(where) or 'none'} of {of_arm} with “{look(arm).label}”{f' ({titles})' * bool(titles)}")
    definition = "A critic runs away when it predicts more than the largest reward at every step would give."
    return [*over["task"].unique()], f"{definition} When pre-training ends, {joined(by_arm)} have done so."


def offline(frame: pd.DataFrame) -> str:
    """Returns the answer of 04_offline_pretraining: what imagination does to the policy and to its critic."""
    table = claims.main_runs(frame)
    scores, excess = last_offline(table), last_offline(table, "overestimation")
    where, means = shared_means(scores, "vanilla", "augmented")
    if not where:
        return NOTHING
    vanilla, augmented = map(words, means)
    score, (wild, counted) = statistics.difference(scores, "augmented", "vanilla"), runaways(table)
    calm = excess[~excess.index.get_level_values("task").isin(wild)]
    return (
        f"{where}: when pre-training ends, the policy scores {vanilla} if all next states were recorded, and {augmented} if half "
        f"were imagined. {capitalised(tell(score, 'imagination helps', 'imagination does harm'))}. {counted} {overrated(calm)}"
    ).rstrip()


def overrated(excess: pd.Series) -> str:
    """Returns sentences on the over-estimation of vanilla and augmented critics, on tasks where none runs away."""
    where, means = shared_means(excess, "vanilla", "augmented")
    if not where:
        return ""
    vanilla, augmented = map(words, means)
    difference = statistics.difference(excess, "augmented", "vanilla")
    more = tell(difference, "imagination raises over-estimation", "imagination lowers over-estimation")
    return (
        f"Where no critic runs away ({where}), over-estimation, the return that a critic predicts minus what its policy earns, "
        f"is {vanilla} discounted rewards with recorded next states and {augmented} with imagined ones. {capitalised(more)}."
    )


def online(frame: pd.DataFrame) -> str:
    """Returns the answer of 05_online_finetuning: does pre-training pay, and how do the primary comparisons come out?"""
    arms = "td3", "td3_data", "vanilla", "augmented", "noise"
    scores = shared(mean_score(claims.main_runs(frame)), *arms)
    where, means = shared_means(scores, *arms)
    if not where:
        return NOTHING
    td3, data, vanilla, augmented, noise = map(words, means)
    pays = statistics.difference(scores, "vanilla", "td3")
    others = [words(statistics.difference(scores, "augmented", other), signed=True) for other in ("vanilla", "noise", "td3_data")]
    return (
        f"{where}: over the first 100,000 interactions the mean score is {td3} for TD3 from scratch, {data} for TD3 with the "
        f"data in its replay buffer, {vanilla} after vanilla pre-training, {augmented} after pre-training with imagined next "
        f"states, and {noise} with noise of the same size. "
        f"{capitalised(tell(pays, 'vanilla pre-training pays off', 'vanilla pre-training lowers the score'))}. "
        f"Compared with vanilla pre-training, imagined next states change the score by {others[0]}, compared with noise by "
        f"{others[1]}, and compared with TD3 with the data by {others[2]}."
    )


def multi_step(frame: pd.DataFrame) -> str:
    """Returns the answer of 06_multi_step: how errors grow along a roll-out, and whether targets of several steps help."""
    table = pd.read_csv(stored.DRAWN / "06_open_loop.csv").query("horizon in (1, 5, 50)")
    wide = table.groupby(["predictor", "horizon"])["error"].median().unstack()
    kinds = "encoded", "deterministic", "persistence"
    vae, network, persistence = ("{:.2g}, {:.2g} and {:.2g}".format(*wide.loc[kind]) for kind in kinds)
    growth = (
        f"After 1, 5 and 50 steps from a true state, the paper's model has errors of {vae} if it re-encodes every step, "
        f"a deterministic network has {network}, and the guess that nothing moves has {persistence} (in variances of the states, "
        f"median of {count('task', [table['task'].nunique()])}; 1 is the error of always predicting the mean state)."
    )
    score, (arm, other) = mean_score(claims.main_runs(frame)), ("augmented_horizon5", "augmented_horizon1")
    if not statistics.by_task(score, arm, other):
        return f"{growth} Whether targets of several steps help an agent is not yet recorded."
    more, less = (f"targets of five steps give a {word} score than targets of one" for word in ("higher", "lower"))
    helps = tell(statistics.difference(score, arm, other), more, less)
    return f"{growth} {capitalised(helps)}."


def controls(frame: pd.DataFrame) -> str:
    """Returns the answer of 07_controls: model against noise of the same size, and how the predictions fared."""
    table = claims.main_runs(frame)
    arms = "augmented", "noise", "vanilla"
    scores = shared(mean_score(table), *arms)
    where, means = shared_means(scores, *arms)
    if not where:
        return NOTHING
    augmented, noise, vanilla = map(words, means)
    model = tell(statistics.difference(scores, "augmented", "noise"), "the model beats noise", "noise beats the model")
    outcomes = Counter(judged(each, held(each, table)) for each in PREDICTIONS)
    true, failed = outcomes["as predicted"], outcomes["contradicted"]
    return (
        f"{where}: an agent that was pre-trained with the model's next states scores {augmented} over the first 100,000 "
        f"interactions. With recorded next states it scores {vanilla}, and with noise as large as the model's error {noise}."
        f"{without_one(scores, 'augmented', 'vanilla', also='noise')} {capitalised(model)}. With a perfect model the method "
        f"equals vanilla pre-training, so a true effect must come from the model's error. Of {len(PREDICTIONS)} predictions that "
        f"follow from this, {true} came true, {failed} failed, and {len(PREDICTIONS) - true - failed} are open."
    )


def engine(frame: pd.DataFrame) -> str:
    """Returns the answer of 90_engine: updates a second, compared with peers and with the limit of the matrix products."""
    table = drawn("90_updates")
    hopper = table[(table["task"] == "hopper") & (table["population"] == 1)].set_index("precision")
    paces = [f"{row['updates_per_second']:.0f} in {name}" for name, row in hopper.iterrows()]
    shares = joined([f"{row['fraction_of_limit']:.0%}" for _, row in hopper.iterrows()])
    peers = table[(table["algorithm"] == "TD3") & (table["precision"] == "float32")].set_index("by")["updates_per_second"]
    each = [f"{pace:.0f} with {re.sub(r' [0-9.]+$', '', str(who))}" for who, pace in peers.items()]
    beside = f" TD3 without BC makes, in float32, {joined(each)}." if len(each) > 1 else ""
    return (
        f"On one core ({table['cpu'].iloc[0]}), an agent on Hopper makes this many updates of TD3+BC a second: {joined(paces)}. "
        f"That is {shares} of what the matrix products alone allow.{beside}"
    )


def reliability(frame: pd.DataFrame) -> str:
    """Returns the answer of 08_reliability: where the model errs, which signals warn of it, and whether knowing helps."""
    where, strange, signals = (pd.read_csv(stored.DRAWN / f"08_{name}.csv") for name in ("where", "strange", "signals"))
    error = where[where["condition"] == "distance to the data"].pivot(index="task", columns="fifth", values="sample")
    ratio, standing = error[5] / error[1], 100 * strange[strange["source"] == "sample"]["standing, of falls"].dropna()
    area = signals[signals["place"] == "outside"].pivot(index="signal", columns="task", values="area")
    best = str(area.mean(axis=1).idxmax())
    first = int((area.idxmax() == best).sum())
    spread, highest = area.loc["spread of the samples"], area.loc[best]
    drawn_answer = (
        f"The paper's model errs {ratio.min():.1f} to {ratio.max():.1f} times as much in the fifth of the rows that lie "
        f"farthest from the 10,000 as in the nearest fifth ({count('task', [len(ratio)])}). Its errors pull states to the "
        f"middle of the data: of the steps that end in a fall, it imagines {standing.min():.0f} to {standing.max():.0f} % as "
        f"standing ({count('task', [len(standing)])}), which does no harm in itself. Some signals tell in advance which rows "
        f"have the largest errors. The best of {len(area)} on average is the {best}, with an area under the ROC curve of "
        f"{highest.min():.2f} to "
        f"{highest.max():.2f} (0.5 is chance). It is the best on {first} of {count('task', [len(highest)])}. The spread of the "
        f"model's samples has {spread.min():.2f} to {spread.max():.2f}."
    )
    study, offline = find("trusted"), statistics.mean_offline(claims.main_runs(frame))
    trusted, distrusted = study.arms
    if not statistics.by_task(offline, trusted, distrusted):
        return f"{drawn_answer} Whether it helps to imagine only the rows that the best signal calls safe is not yet recorded."
    difference = statistics.difference(offline, trusted, distrusted)
    safe = "imagining only the rows that the best signal calls safe scores"
    higher, lower = (f"{safe} {word} than imagining only the others" for word in ("higher", "lower"))
    return f"{drawn_answer} Offline, {tell(difference, higher, lower, len(study.seeds))}."


def methods(frame: pd.DataFrame) -> str:
    """Returns the answer of 11_other_methods: the best arm on each task, and the second family of primary comparisons."""
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
    family = [f"{words(each.interval, signed=True)} compared with *{look(each.comparison.others[0]).label}*" for each in found]
    few = statistics.by_task(scores, OURS, least=1)
    ours = "The methods of this chapter are not yet recorded."
    if family or few:
        alone = [f"{number(few[task][0].mean())} on {tasks.find(task).title}" for task in tasks.TASKS if task in few]
        scored = joined(family) if family else f"{joined(alone)}, with too few seeds to compare"
        compared = [tasks.find(task).title for task in tasks.TASKS if any(task in finding.tasks for finding in found)]
        seeds = [n for finding in found for n in finding.seeds]
        where = f" on {joined(compared)} ({count('seed', seeds)})" if found else ""
        verdict = f" A verdict takes {ENOUGH_SEEDS} seeds." if found and min(seeds) < ENOUGH_SEEDS else ""
        planned = dict.fromkeys(arm for name in ("layernorm", "methods", "algorithms") for arm in find(name).arms)
        missing = joined([f"*{look(arm).label}*" for arm in planned if arm not in set(table["arm"])])
        ours = f"*{look(OURS).label}*{where} scores {scored}.{verdict}{f' Not recorded yet: {missing}.' * bool(missing)}"
    best_of = "Of the arms with two seeds or more, these have the highest mean scores over the first 100,000 interactions"
    return f"{best_of}: {highest}. {ours}"


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
