"""`make fuzz`: damaged files and random command lines. Each gives one error sentence, or the same values as intact files.

The kind, the number and the seed determine a case. Each fault is printed with its number: repeat it with --only and --case.
"""

import argparse
import faulthandler
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

SECONDS = 20  # time limit for a case
NAMED = "^a: |^fuzz-hopper-v0: |minari:|hopper/none/td3/seed0"  # a file's stem, a Minari dataset or a run in an error sentence
SENTENCES = ValueError, OSError, RuntimeError, ImportError  # errors that the command line prints as one sentence


class Late(BaseException):
    """Raised when a case takes too long."""


def raise_late(*_) -> None:
    raise Late


def outcome(call, *given) -> tuple[str, object]:
    """Returns the outcome of a call: "whole" and its result, "refused" and the error sentence, or "fault" and the problem."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)  # in case the call blocks the signal too
    try:
        return "whole", call(*given)
    except SENTENCES as error:
        text = str(error)
        return ("refused", text) if text and "\n" not in text else ("fault", f"not one sentence: {text!r}")
    except Late:
        return "fault", f"more than {SECONDS} seconds"
    except Exception:
        return "fault", traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def same(one: list, other: list) -> bool:
    """Returns whether two lists of texts and arrays are equal."""
    alike = (
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") and a.dtype == b.dtype if isinstance(a, np.ndarray) else a == b
        for a, b in zip(one, other, strict=False)
    )
    return len(one) == len(other) and all(alike)


def generator(seed: int, name: str, case: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), case])


def damage(subject, seed: int, numbers: Iterable[int]) -> Iterator[tuple[int, str, object]]:
    """Yields the number, the kind of outcome and the text of each case."""
    with tempfile.TemporaryDirectory() as scratch:
        intact, here = Path(scratch, "whole"), Path(scratch, "here")
        intact.mkdir()
        subject.make(intact)
        shutil.copytree(intact, here)
        whole = subject.read(here)
        for number in numbers:
            shutil.rmtree(here)
            shutil.copytree(intact, here)
            subject.harm(here, generator(seed, subject.name, number))
            kind, found = outcome(subject.read, here)
            if kind == "whole" and subject.bound and not same(found, whole):
                kind, found = "fault", "other values were read without an error"
            if kind == "refused" and not re.search(f"{here}|{NAMED}", found):
                kind, found = "fault", f"the error does not name the file: {found}"
            yield number, kind, found


def main() -> None:
    options = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="only kinds of cases whose name contains this text")
    options.add_argument("--case", type=int, help="only the case with this number")
    given = options.parse_args()
    signal.signal(signal.SIGALRM, raise_late)
    warnings.simplefilter("error")
    import commands
    import subjects

    faults, cases = 0, {subject.name: (subject.cases, partial(damage, subject)) for subject in subjects.SUBJECTS}
    cases[commands.NAME] = commands.CASES, commands.outcomes
    for name in (name for name in cases if given.only in name):
        count, outcomes = cases[name]
        began, counts = time.monotonic(), Counter()
        for number, kind, text in outcomes(given.seed, range(count) if given.case is None else [given.case]):
            counts[kind] += 1
            if kind == "fault" or given.case is not None:
                print(f"{name}, case {number}: {kind}: {text}\n", flush=True)
        summary = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
        print(f"{name}: {summary}, in {time.monotonic() - began:.0f} s", flush=True)
        faults += counts["fault"]
    sys.exit(f"{faults} faults" if faults else 0)


if __name__ == "__main__":
    main()
