"""Runs on a Dask cluster: records are written here, even if a worker is killed."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import dask
import distributed
import psutil
import pytest
from conftest import wait_until
from small import TINY, progress, record, rows

from mbaug.engine.process import THREADS
from mbaug.experiments import runner
from mbaug.experiments.records import Run

pytestmark = pytest.mark.slow
RUN = Run("hopper", "none", "td3", 0)  # a worker is a new process, which knows only the programme's arms


@pytest.fixture
def scheduler(tmp_path):
    """Starts a Dask scheduler without workers in another process; yields the process and its address."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--scheduler-file", str(file)], **quiet) as process:
        try:
            wait_until("the scheduler", lambda: file.exists() and file.read_text().endswith("}"))
            yield process, json.loads(file.read_text())["address"]
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore")  # Dask warns while a worker dies
@pytest.mark.parametrize("workers", ["none came", "all died"])
def test_a_cluster_without_workers_is_reported_and_given_up(workers, scheduler, tmp_path, monkeypatch):
    """Dask alone would wait for workers in silence."""
    for name, seconds in {"WARN": 0.2, "GIVE_UP": 1, "POLL": 0.1}.items():
        monkeypatch.setattr(runner, name, seconds)
    (_, address), reported, thread = scheduler, [], ThreadPoolExecutor(1)
    trains = nullcontext() if workers == "none came" else worker(address)
    with trains as process:
        home = runner.on_a_cluster([[[RUN]]], TINY, tmp_path, tmp_path / "work", address, report=reported.append)
        recorded = thread.submit(list, home)
        if process is not None:
            wait_until("a checkpoint", lambda: recorded.done() or progress(tmp_path))
            process.kill()
        waited = f"{address} had no workers for 0 minutes, and the number of unfinished cells is 1"
        sentence = f"{waited}: check the output of `dask worker`"
        with pytest.raises(RuntimeError, match=sentence):
            recorded.result(timeout=600)
    assert reported == [f"the scheduler at {address} has no workers: waiting for `dask worker {address}` on a host with a clone"]


@contextmanager
def worker(address):
    """Starts a worker without a nanny, so that nobody restarts it; yields its process once the scheduler knows it."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with distributed.Client(address, set_as_default=False) as client:
                client.wait_for_workers(1, timeout=600)
            yield process
        finally:
            process.kill()


@pytest.mark.filterwarnings("ignore")  # Dask warns while its scheduler dies
def test_a_lost_scheduler_is_reported_in_one_sentence(scheduler, tmp_path, monkeypatch, capfd):
    process, address = scheduler
    thread, submitted, submit = ThreadPoolExecutor(1), threading.Event(), distributed.Client.submit
    monkeypatch.setattr(distributed.Client, "submit", lambda *given, **named: (submit(*given, **named), submitted.set())[0])
    with dask.config.set({"distributed.comm.timeouts.connect": "2s"}):
        recorded = thread.submit(list, runner.on_a_cluster([[[RUN]]], TINY, tmp_path, tmp_path, address))
        assert submitted.wait(120)
        process.kill()
        with pytest.raises(RuntimeError, match=f"^the scheduler at {address} is lost: start it and its workers"):
            recorded.result(timeout=600)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore")  # Dask warns while a worker dies
def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch):
    """We kill one of two workers while it trains. The record equals that of an undisturbed run, bit for bit."""
    for variable in THREADS:
        monkeypatch.delenv(variable, raising=False)  # Dask's nanny sets them before the worker imports anything
    record(tmp_path / "here", [RUN])
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        with distributed.Client(cluster) as client:
            assert [client.submit(os.getenv, variable).result(timeout=600) for variable in THREADS] == ["1", "1"]
            workers = list(client.run(os.getpid).values())
        home = runner.on_a_cluster([[[RUN]]], TINY, tmp_path / "home/runs", tmp_path / "far/work", cluster.scheduler_address)
        thread = ThreadPoolExecutor(1)
        recorded = thread.submit(list, home)
        thread.shutdown(wait=False)  # no `with`: it would wait forever if the cluster never answered
        wait_until("the second checkpoint", lambda: recorded.done() or max(progress(tmp_path / "far"), default=0) >= 200)
        assert not recorded.done(), "The run ended before its worker could be killed."
        max(map(psutil.Process, workers), key=lambda worker: sum(worker.cpu_times()[:2])).kill()
        assert recorded.result(timeout=600) == [([RUN], "")]
    assert rows(tmp_path / "home", RUN).equals(rows(tmp_path / "here", RUN))
