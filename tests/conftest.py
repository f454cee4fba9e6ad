"""What all tests share: checked shapes, one thread, and the oracle of the equations."""

import errno
import os
import signal
import time
from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# Before any import of mbaug: from here on beartype checks every annotated shape and type of the package.
jaxtyping.install_import_hook("mbaug", "beartype.beartype")

import numpy as np  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    torch.set_num_threads(1)
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("any", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("any")
    # A shell's background job ignores Ctrl-C, one under nohup also a closed terminal, and so would the commands that tests end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # joblib's loky takes what torch keeps for a leak (joblib, issue 869), and starts a new worker with a warning. As an error it
    # would end the thread that hands out the work, and the test would wait for ever.
    config.addinivalue_line("filterwarnings", "ignore:A worker stopped while some jobs were given to the executor:UserWarning")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keeps the tests of a file in one process; but each notebook is executed wherever there is time.

    Not by `--dist loadgroup`: with pytest 9.2 it no longer sees any group (pytest-xdist, issue 1386).
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if file.endswith("test_notebooks.py") else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def plain_arithmetic():
    """Takes back, after each test, what engine.prepare chose: fast products, and that numbers below 1e-38 are zero."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.set_flush_denormal(False)


def wait_until(what, condition, seconds=120.0):
    """Waits until `condition` returns something that is true; fails where it does not, with `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.001)


def no_space(*_):
    """Stands in for a call that finds the disk full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """The reference trajectories, by the keys of tests/reference/README.md."""
    with np.load(ROOT / "tests/reference/td3_float64.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the working directory for this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
