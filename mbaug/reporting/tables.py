"""Tables that nobody typed: what each arm reached, our baselines beside published ones, and the README's generated parts."""

import itertools
from pathlib import Path

import pandas as pd

from mbaug import files, tasks
from mbaug.reporting import statistics
from mbaug.reporting.claims import LEARNING, claims_table, main_runs
from mbaug.reporting.figures import LOOKS, in_order, look, number, words


def found_table(frame: pd.DataFrame) -> str:
    """Returns what the recorded runs (`records.load_runs`) of each arm of `LOOKS` reached, a Markdown table."""
    table = main_runs(frame)
    measures = {
        "mean score, 0 to 100K": statistics.mean_score,
        "25K to 100K": LEARNING,
        "score at 100K": statistics.final_score,
        "score offline": statistics.last_offline,
        "drop after the switch": statistics.score_drop,
    }
    lines = [f"| task | arm | {' | '.join(measures)} | seeds |", "|---" * 8 + "|"]
    for task, rows in table.groupby("task"):
        for arm in in_order(set(rows["arm"]) & set(LOOKS)):
            runs = rows[rows["arm"] == arm]
            cells = [words(statistics.interval([measure(runs).to_numpy()])) for measure in measures.values()]
            lines.append(f"| {' | '.join([task, look(arm).label, *cells, str(runs['seed'].nunique())])} |")
    return "\n".join(lines) if len(table) else "No runs are recorded yet."


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """Returns our baselines' scores, from `claims.main_runs`, beside those that others published."""
    rows = []
    for task in tasks.TASKS.values():
        for algorithm, steps in [(name, steps) for name, found in task.published.items() for steps in found]:
            arm = algorithm if steps == 100_000 else "sac_million"
            runs = table[(table["task"] == task.name) & (table["arm"] == arm)]
            ours = statistics.interval([statistics.final_score(runs, steps).to_numpy()])
            theirs = float(tasks.normalised_score(task, task.published[algorithm][steps]))
            authors = str(task.authors_td3) if algorithm == "td3" else "–"
            found = [words(ours), ours.n_seeds, number(ours.value - theirs, signed=True)]
            found = found if ours.n_seeds else ["not yet recorded", 0, "–"]
            rows.append([task.name, algorithm.upper(), f"{steps:,}", number(theirs), authors, *found])
    columns = ["task", "algorithm", "interactions", "published", "authors' [C]", "ours", "our seeds", "ours − published"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def readme(text: str, frame: pd.DataFrame) -> str:
    """Returns a README with the parts between its markers, as `<!-- claims -->` and `<!-- /claims -->`, made again.

    Raises:
        ValueError: A marker is missing, or there twice.
    """
    for name, part in {"claims": claims_table(frame), "found": found_table(frame)}.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if [text.count(marker) for marker in (begin, end)] != [1, 1] or text.index(end) < text.index(begin):
            raise ValueError(f"The README needs one {begin} and, after it, one {end}.")
        text = f"{text.split(begin)[0]}{begin}\n{part}\n{end}{text.split(end)[1]}"
    return text


def update_readme(path: Path, frame: pd.DataFrame) -> None:
    """Makes the generated parts of a README again, from the recorded runs."""
    files.write_atomically(Path(path), readme(Path(path).read_text(encoding="utf-8"), frame).encode())


def outdated(path: Path, frame: pd.DataFrame) -> str | None:
    """Returns a sentence with the first line of a README that the recorded runs contradict; None if they do not."""
    found = Path(path).read_text(encoding="utf-8").splitlines()
    expected = readme("\n".join(found), frame).splitlines()
    for line, (old, new) in enumerate(itertools.zip_longest(found, expected), start=1):
        if old != new:
            return f"{path}, line {line}, reads {old!r} where the records give {new!r}: run `make figures`."
    return None
