"""Set-up and fixtures that all tests share: checked types and shapes, one torch thread, the TD3 reference."""

import errno
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import hypothesis
import jaxtyping
import psutil
import pytest

# This must run before the first import of mbaug: beartype then checks every annotated shape and type in the package.
jaxtyping.install_import_hook("mbaug", "beartype.beartype")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    torch.set_num_threads(1)
    # Hypothesis times each example; on a busy machine that time says nothing about the code.
    hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("untimed")
    # A shell's background jobs ignore SIGINT, and jobs under nohup also ignore SIGHUP. Child processes would inherit that, and
    # the commands that tests interrupt would not end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # joblib's loky mistakes memory that torch keeps for a leak (joblib, issue 869) and replaces the worker with a warning. Raised
    # as an error, that warning would end the thread that hands out work, and the test would wait for ever.
    config.addinivalue_line("filterwarnings", "ignore:A worker stopped while some jobs were given to the executor:UserWarning")
    # tqdm's own lock is shared with forked processes. One that is killed while it holds the lock would stop all others.
    tqdm.set_lock(threading.RLock())


# The files that take longest, which come first: else a worker would end with one of them while the other has nothing to do.
LONGEST = ("test_notebooks", "test_runner", "test_programme", "test_site", "test_benchmarks", "test_chapters", "test_cluster")


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keeps the tests of a file in one process, but schedules each test of a notebook on its own.

    `--dist loadgroup` cannot do this: with pytest 9.2 it ignores groups (pytest-xdist, issue 1386).
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def plain_arithmetic():
    """Restores torch's defaults after each test: engine.prepare may allow fast products and flush tiny numbers to zero."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)


def wait_until(what, condition, seconds=120.0):
    """Waits until `condition()` is true; fails after `seconds` with a message that names `what` it waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.01)


def alive(process):
    """Returns whether a process, or one with this number, runs. One that has ended but was not yet waited for does not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def no_space(*_):
    """Raises the OSError of a full disk; tests put it in place of a system call."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def contents(folder):
    """Returns the bytes of each file in a folder and below it, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """The reference trajectories; tests/reference/README.md explains the keys."""
    with np.load(ROOT / "tests/reference/td3_float64.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
