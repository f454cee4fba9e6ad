"""Runs on a Dask cluster: results come home, also when a worker is killed."""

import os
from concurrent.futures import ThreadPoolExecutor

import distributed
import psutil
import pytest
from conftest import wait_until
from small import TINY, progress, record, rows

from mbaug.engine.process import THREADS
from mbaug.experiments import runner
from mbaug.experiments.records import Run

pytestmark = pytest.mark.slow
RUN = Run("hopper", "none", "td3", 0)  # a worker knows the programme's arms alone


@pytest.mark.filterwarnings("ignore")  # Dask's own, while a worker dies
def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch):
    """Two workers of one thread each, one is killed while it trains; the record is that of an undisturbed run, bit for bit."""
    for variable in THREADS:
        monkeypatch.delenv(variable, raising=False)  # Dask's nanny sets them before the worker imports anything
    record(tmp_path / "here", [RUN])
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            assert [client.submit(os.getenv, variable).result(timeout=60) for variable in THREADS] == ["1", "1"]
            workers = list(client.run(os.getpid).values())
        home = runner.on_a_cluster([[[RUN]]], TINY, tmp_path / "home/runs", tmp_path / "far/work", cluster.scheduler_address)
        thread = ThreadPoolExecutor(1)
        recorded = thread.submit(list, home)
        thread.shutdown(wait=False)  # and no `with`, which would wait for a cluster that never answers
        wait_until("the second checkpoint", lambda: recorded.done() or max(progress(tmp_path / "far"), default=0) >= 200)
        assert not recorded.done(), "the run ended before its worker could be killed"
        max(map(psutil.Process, workers), key=lambda worker: sum(worker.cpu_times()[:2])).kill()
        assert recorded.result(timeout=120) == [([RUN], "")]
    assert rows(tmp_path / "home", RUN).equals(rows(tmp_path / "here", RUN))
