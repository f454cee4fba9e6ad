"""`make fuzz`: damaged files and random command lines. Each ends in one sentence, or in what the whole files give.

A case is determined by its kind, its number and the seed: what failed is told so, and tried again alone with --only and --case.
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

SECONDS = 20  # of a case, at most
NAMED = "^a: |^fuzz-hopper-v0: |minari:|hopper/none/td3/seed0"  # a file by its stem, a set, a run
SENTENCES = ValueError, OSError, RuntimeError, ImportError  # what the command line turns into one


class Late(BaseException):
    """A case took too long."""


def late(*_) -> None:
    raise Late


def outcome(call, *given) -> tuple[str, object]:
    """Returns what came of a call: "whole" and what it returned, "refused" and the sentence, or "fault" and what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)  # where even the signal waits
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
    """Yields the number, the kind and the text of each case's outcome."""
    with tempfile.TemporaryDirectory() as scratch:
        first, here = Path(scratch, "whole"), Path(scratch, "here")
        first.mkdir()
        subject.make(first)
        shutil.copytree(first, here)
        whole = subject.read(here)
        for number in numbers:
            shutil.rmtree(here)
            shutil.copytree(first, here)
            subject.harm(here, generator(seed, subject.name, number))
            kind, found = outcome(subject.read, here)
            if kind == "whole" and subject.bound and not same(found, whole):
                kind, found = "fault", "other values were taken"
            if kind == "refused" and not re.search(f"{here}|{NAMED}", found):
                kind, found = "fault", f"the file is not named: {found}"
            yield number, kind, found


def main() -> None:
    options = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="kinds whose name holds this")
    options.add_argument("--case", type=int, help="of them, the one case")
    given = options.parse_args()
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("error")
    import commands
    import subjects

    faults, tries = 0, {subject.name: (subject.cases, partial(damage, subject)) for subject in subjects.SUBJECTS}
    tries[commands.NAME] = commands.CASES, commands.tried
    for name in (name for name in tries if given.only in name):
        count, tried = tries[name]
        began, kinds = time.monotonic(), Counter()
        for number, kind, text in tried(given.seed, range(count) if given.case is None else [given.case]):
            kinds[kind] += 1
            if kind == "fault" or given.case is not None:
                print(f"{name}, case {number}: {kind}: {text}\n", flush=True)
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        print(f"{name}: {counts}, in {time.monotonic() - began:.0f} s", flush=True)
        faults += kinds["fault"]
    sys.exit(f"{faults} faults" if faults else 0)


if __name__ == "__main__":
    main()
