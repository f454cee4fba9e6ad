"""How readers see results in text: rounded numbers, estimates with their intervals, lists, and pieces of Markdown."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from mbaug import tasks
from mbaug.experiments.studies import FOUR
from mbaug.reporting.statistics import Interval


def number(value: float, signed: bool = False) -> str:
    """Returns a number for readers: one decimal below 10, else none; from 100,000 on "thousand" or "million"; a true minus."""
    (text,), unit = _in_one_unit([value], signed)
    return text + unit


def _in_one_unit(values: Sequence[float], signed: bool) -> tuple[list[str], str]:
    """Returns numbers as `number` does, but without their unit; and the unit that all share, such as " million"."""
    largest = max(map(abs, values))
    scale, unit = 1, ""
    if largest >= 1e6:
        scale, unit = 1e6, " million"
    elif largest >= 1e5:
        scale, unit = 1e3, " thousand"
    sign, texts = "+" if signed else "", []
    for value in (value / scale for value in values):
        text = f"{value:{sign},.{1 if abs(value) < 9.95 else 0}f}".replace("-", "−")
        texts.append(re.sub(r"^[+−](?=0(\.0)?$)", "", text))
    return texts, unit


def two_digits(value: float) -> str:
    """Returns a number with two significant digits, or as a whole number from 100 on, such as "0.40"; a dash if there is none."""
    return "–" if np.isnan(value) else f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:#.2g}".rstrip(".")


def estimate(found: Interval, signed: bool = False) -> str:
    """Returns an estimate as "21 [5.0, 38]"; without brackets if a single seed gives no interval; a dash if there is no value."""
    if np.isnan(found.value):
        return "–"
    (value, *ends), unit = _in_one_unit(found[:1] if np.isnan(found.low) else found[:3], signed)
    return value + (f" [{', '.join(ends)}]" if ends else "") + unit


def without(found: Interval, rest: Mapping[str, Interval]) -> str:
    """Returns a mean over tasks without the task that moves it most, as "without Ant +2.9 [−2.4, +8.2]".

    `rest` has the mean without each task (`statistics.leave_one_out`). If it is empty, so is the text.
    """
    if not rest:
        return ""
    task = max(rest, key=lambda name: abs(rest[name].value - found.value))
    return f"without {tasks.find(task).title} {estimate(rest[task], signed=True)}"


def only_with(needed: Sequence[str]) -> str:
    """Returns the tasks that a verdict needs, as " (only with Ant)"; "" if there are none."""
    return f" (only with {in_words(needed)})" if needed else ""


def span(numbers: Collection) -> str:
    """Returns the range of whole numbers, as "2", "2 or 3" or "2 to 5"."""
    low, high = min(numbers), max(numbers)
    return f"{low:,} {'or' if high == low + 1 else 'to'} {high:,}" if low < high else f"{high:,}"


def count(noun: str, numbers: Collection) -> str:
    """Returns the range of whole numbers with their noun, as "1 seed" or "2 to 5 seeds"."""
    return f"{span(numbers)} {noun}{'s' if max(numbers) != 1 else ''}"


def joined(names: Sequence[str]) -> str:
    """Returns names as a list in words, as "Hopper, Walker2d and Ant"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def in_words(names: Collection[str]) -> str:
    """Returns tasks as a list in words, as "Hopper and Ant" or "all four tasks"."""
    return "all four tasks" if set(names) == set(FOUR) else joined([tasks.find(name).title for name in names])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    header, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return [header, "|---" * len(columns) + "|", *body]


def fold(summary: str, text: str) -> str:
    """Returns Markdown that is folded under its summary until the reader clicks on it."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"
