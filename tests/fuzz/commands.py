"""Random command lines, from words that the commands know and from junk, run in a temporary clone where nothing trains."""

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import joblib
import numpy as np
from subjects import d4rl, record

from mbaug import __main__ as commands
from mbaug import files, tasks
from mbaug.datasets import collect, export, pools, render
from mbaug.experiments import probes, runner, studies, trained, verify
from mbaug.reporting import chapters, figures, tables

NAME, CASES = "command lines", 400
RUNS = ["hopper/none/td3/seed0", "hopper/none/td3/seed7", "ant/none/sac/seed0", "hopper/none/odd/seed0"]
KNOWN = {
    "study": [*studies.STUDIES],
    "--only": ["*", "td3/*", "*/seed1", "00", "90_engine"],
    "--seeds": ["0-4", "0,2", "7", "0-99"],
    "--workers": ["1", "2"],
    "--population": ["1", "4"],
    "--cluster": ["tcp://127.0.0.1:1"],
    "--device": ["cpu", "cuda"],
    "--profile": [*studies.PROFILES],
    "run": RUNS,
    "--run": RUNS,
    "--updates": ["10"],
    "task": [*tasks.TASKS],
    "--to": ["0", "1000"],
    "--seed": ["0", "7"],
    "--output": ["out", "a/b"],
    "--work": ["work"],
    "source": ["a.hdf5", "minari:x/y-v0", "absent.hdf5", "data/runs"],
    "--as": ["hopper-a", "hopper-random", "ant-a"],
    "--export": ["minari"],
    "--policy": ["final", "medium"],
    "--seconds": ["1", "0.1"],
    "--parquet": ["runs.parquet"],
}
JUNK = ["", " ", "-", "--", "-1", "0", "1", "1e9", "1e999", "nan", "²", "９", "1_0", "99999999999", 5000 * "9", 5000 * "a", "%s"]
JUNK += ["{}", "*", "[", "\x1b[2J", "a\nb", "a\x07.hdf5", "\udcff", "\u202e", "a\x00b", "..", "../x", "~", "pipe", "folder"]
JUNK += ["x.hdf5", "hopper-", "hopper-a/b", "minari:", "minari:../../x", "tcp://", "hopper/none/td3/seed-1", "0-", "-3", "4-0"]
JUNK += ["1,,2", "--help", "--profile", "-x"]


@contextmanager
def clone() -> Iterator[None]:
    """Changes into a temporary clone with one record, a pipe and a folder; functions that train or write a lot do nothing."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch, "a", "b", "clone")  # junk leads at most two folders up
        (here / "folder").mkdir(parents=True)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(files.repository() / name, here)
        shutil.copytree(files.repository() / "notebooks", here / "notebooks")
        record(here / "data" / "runs")
        d4rl(here)
        os.mkfifo(here / "pipe")
        os.chdir(here)
        disabled = [(runner, "on_this_machine"), (runner, "on_a_cluster"), (trained, "make"), (verify, "verify")]
        disabled += [(collect, "collect"), (export, "create"), (chapters, "execute"), (tables, "update")]
        disabled += [(figures, "write_gallery"), (pools, "write_readme"), (probes, "write")]
        patches = [patch.object(module, name, lambda *_, **__: ()) for module, name in disabled]
        patches += [patch.object(files, "repository", lambda: here), patch.object(render, "opengl", lambda: "")]
        patches += [patch.object(joblib, "cpu_count", lambda: 2), patch.dict(os.environ)]
        for each in patches:
            each.start()
        try:
            yield
        finally:
            for each in patches:
                each.stop()
            os.chdir(before)


def command_line(random: np.random.Generator) -> list[str]:
    """Returns a random command line."""

    def one(words: Sequence[str]) -> str:
        return words[random.integers(len(words))]

    call = [*commands.COMMANDS][random.integers(len(commands.COMMANDS))]
    words, options = [], commands.COMMANDS[call]
    for name, option in options.items():
        if random.random() < (0.4 if name.startswith("-") and not option.get("required") else 0.8):
            value = one(KNOWN.get(name, JUNK)) if random.random() < 0.6 else one(JUNK)
            named, flag = name.startswith("-"), option.get("action") == "store_true"
            words.append([*[name] * named, *[value] * (not flag)])
    parts = [word for number in random.permutation(len(words)) for word in words[number]]
    if random.random() < 0.1:
        parts.insert(random.integers(len(parts) + 1), one(JUNK))
    return [one(JUNK) if random.random() < 0.03 else call.__name__, *parts]


def run_line(line: list[str]) -> tuple[object, str]:
    """Runs a command line; returns its exit code, and everything that it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace"))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code: object = commands.main(line)
        except SystemExit as ended:
            code = ended.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
    return code, b"".join(stream.buffer.getvalue() for stream in (out, err)).decode()


def outcomes(seed: int, numbers: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Yields the number, the kind of outcome and the text of each command line."""
    from __main__ import generator, outcome  # the script that imports this module

    with clone():
        for number in numbers:
            line = command_line(generator(seed, NAME, number))
            kind, found = outcome(run_line, line)
            code, text = found if kind == "whole" else (None, str(found))
            bad = sorted({letter for letter in text if not letter.isprintable() and letter != "\n"})
            if kind != "fault":
                if bad:
                    kind, text = "fault", f"{bad} are printed: {text!r}"
                elif "Traceback" in text:
                    kind = "fault"
                elif isinstance(code, str) and "\n" in code:
                    kind, text = "fault", f"not one sentence: {code!r}"
                else:
                    kind = "done" if code in (None, 0) else "refused"
            yield number, kind, f"{line!r:.500}: {text[-3000:]}"
