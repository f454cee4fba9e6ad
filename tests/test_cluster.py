"""The study on a Dask cluster: results come home, also when a worker is killed."""

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor

import distributed
import pytest
from conftest import wait_until
from test_study import SCRATCH, TINY

from mbaug import engine, recording, study


def test_a_clusters_worker_has_one_thread_from_its_start(monkeypatch):
    """Dask's nanny sets the variables before the worker imports anything."""
    for variable in engine.THREADS:
        monkeypatch.delenv(variable, raising=False)
    cluster = distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        found = [client.submit(os.getenv, variable).result(timeout=60) for variable in engine.THREADS]
    assert found == ["1", "1"]


@pytest.mark.filterwarnings("ignore")  # Dask's own, while a worker dies
def test_a_killed_worker_loses_nothing(tmp_path):
    """Two workers, one is killed while it trains; the record is the one of an undisturbed run, bit for bit."""
    (run,) = SCRATCH.runs()
    study.record(SCRATCH, tmp_path / "here", tmp_path / "work", TINY, report=lambda line: None)
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        jobs = [([run], TINY.apply(SCRATCH.arm(run.arm)))]
        home = study.elsewhere(jobs, tmp_path / "home", tmp_path / "far", cluster.scheduler_address)
        thread = ThreadPoolExecutor(1)
        recorded = thread.submit(list, home)
        thread.shutdown(wait=False)  # and no `with`, which would wait for a cluster that never answers
        wait_until("the second checkpoint", lambda: recorded.done() or list((tmp_path / "far").rglob("2.json")))
        assert not recorded.done(), "the run ended before its worker could be killed"
        holder = (tmp_path / "far" / "runs" / str(run) / "lock").read_text()
        os.kill(int(re.search(r"process (\d+)", holder)[1]), signal.SIGKILL)
        assert recorded.result(timeout=120) == [[run]]
    far, near = (recording.read(tmp_path / place, run).rows for place in ("home", "here"))
    assert far.equals(near)
