"""Writes generated text: tables of what each arm scored, and the generated parts of the README and of the chapters."""

import textwrap
from pathlib import Path

import pandas as pd

from mbaug import files, tasks
from mbaug.reporting import published, statistics, words
from mbaug.reporting.answers import ANSWERS
from mbaug.reporting.claims import LEARNING, claims_table, main_runs
from mbaug.reporting.looks import LOOKS, in_order, look
from mbaug.reporting.words import estimate, fold, number

MAIN = ("td3", "sac", "td3_data", "vanilla", "augmented", "noise")  # not folded: six arms at most, in the order of LOOKS
# Score on Ant with every joint at its limit: a step costs 0.5 for each of 8 joints, and earns 1 for a healthy height.
AT_LIMITS = tasks.normalised_score(tasks.find("ant"), -3.0 * tasks.STEPS)


def found_table(frame: pd.DataFrame) -> str:
    """Returns Markdown: the scores of the arms in `MAIN`, with a column per task, and below, folded, the table of all arms."""
    table = main_runs(frame)
    if table.empty:
        return "No runs are recorded yet."
    scores, recorded = statistics.mean_score(table), [task for task in tasks.TASKS if (table["task"] == task).any()]
    columns, rows = ["mean score, 0 to 100K", *(tasks.find(task).title for task in recorded)], []
    for arm in in_order({*scores.index.get_level_values("arm")} & {*MAIN}):
        means = [statistics.arm_mean(scores, task, arm) for task in recorded]
        cells = [f"{estimate(mean)} ({mean.n_seeds})" if mean.n_seeds else "–" for mean in means]
        rows.append([look(arm).label, *cells])
    folded = fold("More arms, and more measures", _each_arm(table))
    return "\n".join([*words.table(columns, rows), "", *_failure(table), folded])


def at_limits(table: pd.DataFrame, arm: str) -> tuple[int, int]:
    """Returns how many of an arm's runs on Ant end with every joint at its limit at each step, and how many end at all."""
    scores = statistics.final_score(table[(table["task"] == "ant") & (table["arm"] == arm)])
    return int((abs(scores - AT_LIMITS) < 0.5).sum()), len(scores)


def _failure(table: pd.DataFrame) -> list[str]:
    """Returns lines that say how many augmented agents fail on Ant; [] if most do not."""
    stuck, runs = at_limits(table, "augmented")
    if 2 * stuck <= runs:
        return []
    chapter = "[05_online_finetuning](notebooks/05_online_finetuning.ipynb), section 6"
    told = f"On Ant {stuck} of {runs} augmented agents end with every joint at its limit, at a score of {number(AT_LIMITS)} "
    told += (
        f"({chapter}). This one failure decides each mean of the arm over four tasks, so read its differences without Ant, too."
    )
    return [*textwrap.wrap(told, 126, break_on_hyphens=False), ""]


def _each_arm(table: pd.DataFrame) -> str:
    """Returns a table with a line for each task and each arm of `LOOKS`, and with every measure."""
    measures = {
        "mean score, 0 to 100K": statistics.mean_score,
        "25K to 100K": LEARNING,
        "score at 100K": statistics.final_score,
        "score offline": statistics.last_offline,
        "drop after the switch": statistics.score_drop,
    }
    found, rows = [measure(table) for measure in measures.values()], []
    for task in tasks.TASKS:
        own = table[table["task"] == task]
        seeds = own.groupby("arm")["seed"].nunique()
        for arm in in_order({*seeds.index} & {*LOOKS}):
            cells = [estimate(statistics.arm_mean(scores, task, arm)) for scores in found]
            rows.append([tasks.find(task).title, look(arm).label, *cells, str(seeds[arm])])
    lines = words.table(["task", "arm", *measures, "seeds"], rows)
    return "\n".join([*lines, "", "The chapters have the other recorded arms."])


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores of our baselines (from `claims.main_runs`) beside the published scores."""
    rows = []
    for task in tasks.TASKS.values():
        for algorithm, steps in [(name, steps) for name, scores in published.RETURNS[task.name].items() for steps in scores]:
            arm = algorithm if steps == 100_000 else "sac_million"
            ours = statistics.arm_mean(statistics.final_score(table, steps), task.name, arm)
            theirs = published.score(task.name, algorithm, steps)
            authors = str(published.AUTHORS_TD3[task.name]) if algorithm == "td3" else "–"
            cells = [estimate(ours), ours.n_seeds, number(ours.value - theirs, signed=True)]
            cells = cells if ours.n_seeds else ["not yet recorded", 0, "–"]
            rows.append([task.title, algorithm.upper(), f"{steps:,}", number(theirs), authors, *cells])
    columns = ["task", "algorithm", "interactions", "published", "[C]", "ours", "our seeds", "ours − published"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def written(path: Path, frame: pd.DataFrame) -> str:
    """Returns the README or a chapter's source with new text between markers such as `<!-- answer -->` and `<!-- /answer -->`.

    Raises:
        ValueError: A marker is missing or occurs twice.
    """
    text, comment = path.read_text(encoding="utf-8"), "# " if path.suffix == ".py" else ""
    try:
        answer = ANSWERS[path.stem](frame)
    except FileNotFoundError:
        answer = "Its numbers are not yet drawn."
    together = answer.replace(" %", "\xa0%").split("\n\n")  # the site takes a line that begins with % for a comment
    paragraphs = [textwrap.fill(paragraph, 126, break_on_hyphens=False) for paragraph in together]
    parts = {"answer": "\n\n".join(paragraphs).replace("\xa0", " ")}
    if not comment:
        parts |= {"claims": claims_table(frame), "found": found_table(frame)}
    for name, part in parts.items():
        begin, end = f"{comment}<!-- {name} -->", f"{comment}<!-- /{name} -->"
        if [text.count(marker) for marker in (begin, end)] != [1, 1] or text.index(end) < text.index(begin):
            raise ValueError(f"{path.name} needs one {begin} and, after it, one {end}.")
        lines = "\n".join(f"{comment}{line}".rstrip() for line in part.splitlines())
        text = f"{text.split(begin)[0]}{begin}\n{lines}\n{end}{text.split(end)[1]}"
    return text


def generated() -> list[Path]:
    """Returns the files with generated parts: the README and the sources of the chapters that begin with their answer."""
    repository = files.repository()
    return [repository / (f"{name}.md" if name == "README" else f"notebooks/{name}.py") for name in ANSWERS]


def update(frame: pd.DataFrame) -> None:
    """Writes all generated parts again from the recorded runs."""
    for path in generated():
        files.write_atomically(path, written(path, frame).encode())
