"""Trains the missing runs, in one process per core on this machine or on the workers of a Dask cluster.

The same command resumes after a kill. Two commands side by side train each run once.
"""

import fnmatch
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from filelock import Timeout
from tqdm import tqdm

from mbaug import ending, engine, files, tasks
from mbaug.checks import choose, needs, require
from mbaug.datasets import read
from mbaug.datasets.collect import Recorded, Report, curve
from mbaug.experiments import checkpoint, probes, records, run, studies
from mbaug.experiments.metadata import FORMAT, OWN
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, PROFILES, Profile
from mbaug.method import training
from mbaug.method.arms import Arm
from mbaug.provenance import commit, processor

Outcome = tuple[list[Run], str]  # runs of one population, and the problem that kept them from being recorded, "" if none
Returned = tuple[Run, list[dict], dict, dict]  # a record that a cluster's worker returns: arguments of `records.write`
WARN, GIVE_UP = 60, 600  # seconds without workers on a cluster before a warning, and before an error
POLL = 0.5  # seconds between two checks of a cluster

# --- which runs -----------------------------------------------------------------------------------------------------------


def select(runs: Sequence[Run], only: str) -> list[Run]:
    """Returns the runs with a name that contains a shell pattern; raises ValueError if there is none."""
    found = [each for each in runs if only and fnmatch.fnmatch(str(each), f"*{only}*")]  # "" may be an unset shell variable
    require(bool(found), f"no run matches {only!r}; an example of a run's name is {runs[0]}")
    return found


def missing(runs: Sequence[Run], root: Path, profile: Profile) -> list[Run]:
    """Returns the runs that are not recorded, in the given order; raises as `current` for those that are."""
    return [each for each in runs if current(root, each, profile.apply(ARMS[each.arm])) is None]


def current(root: Path, which: Run, arm: Arm) -> dict[str, Any] | None:
    """Returns a run's verified metadata, None if it is not recorded; raises ValueError if it has other settings than `arm`."""
    metadata, path = records.find(root, which), which.path(root).with_suffix(".json")
    difference = None if metadata is None else records.difference(metadata, arm)
    sentence = f"{which} is recorded with other settings: {difference} To record it again, remove {path}"
    require(difference is None, sentence)
    return metadata


def with_data(runs: Sequence[Run], report: Report) -> list[Run]:
    """Returns the runs that need no data or have them here, and reports the rest.

    Raises:
        FileNotFoundError: No runs remain.
    """
    lacking = {}
    for dataset in sorted({each.dataset for each in runs} - {"none"}):
        try:
            read.load(dataset)
        except FileNotFoundError as error:
            lacking[dataset] = error
    found = [each for each in runs if each.dataset not in lacking]
    if runs and not found:
        raise next(iter(lacking.values()))
    for dataset, error in lacking.items():
        report(f"{sum(each.dataset == dataset for each in runs)} runs are skipped: {error}")
    return found


def work_folder(name: str = "paper") -> Path:
    """Returns the folder of the checkpoints of a profile or, with the name "cluster", of a cluster's workers."""
    return files.repository() / "build" / "checkpoints" / name


# --- one process ----------------------------------------------------------------------------------------------------------


def lock_folder(which: Run, arm: Arm, work: Path) -> Path:
    """Returns the folder whose lock a process holds while it trains a run."""
    return work / "runs" / checkpoint.key(which, arm)


def is_training(which: Run, arm: Arm, work: Path) -> bool:
    """Returns whether a process is training the run: tries to take its lock, then releases it."""
    folder = lock_folder(which, arm, work)
    if not folder.exists():
        return False
    try:
        with checkpoint.lock(folder, blocking=False):
            return False
    except Timeout:
        return True


@contextmanager
def held(runs: Sequence[Run], arm: Arm, work: Path) -> Iterator[None]:
    """Waits for the locks of all runs and holds them. The order is always the same, so there is no deadlock."""
    with ExitStack() as stack:
        for which in sorted(runs):
            stack.enter_context(checkpoint.lock(lock_folder(which, arm, work)))
        yield


def train(runs: Sequence[Run], profile: Profile, root: Path, work: Path, device: str = "cpu") -> None:
    """Records the missing runs of a population, and waits for those that another process is training."""
    arm = profile.apply(ARMS[runs[0].arm])
    run.prepare_for(arm, device)
    with held(runs, arm, work):
        if remaining := [which for which in runs if records.find(root, which) is None]:
            *_, population = run.train(remaining, arm, work, device)
            run.record(population, root)


def outcome(runs: Sequence[Run], call: Callable[[], None]) -> Outcome:
    """Calls a function that records runs and returns the outcome: a failure is a sentence, or a traceback for a bug.

    torch raises RuntimeError for most bugs, such as tensors of unequal shape.
    """
    problem = ""
    try:
        call()
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        problem = f"{runs[0]}: {error}"
    except Exception:
        problem = f"{runs[0]}: {traceback.format_exc()}"
    return list(runs), problem


def attempt(cell: Sequence[Sequence[Run]], profile: Profile, root: Path, work: Path, device: str = "cpu") -> list[Outcome]:
    """Trains the populations of a cell one after the other, and returns their outcomes. Does not raise."""
    return [outcome(runs, partial(train, runs, profile, root, work, device)) for runs in cell]


def attempt_on_worker(
    cell: Sequence[Sequence[Run]], profile: Profile, work: Path | None, device: str = "cpu"
) -> list[tuple[Outcome, list[Returned]]]:
    """Trains a cell on a worker of a cluster, and returns each outcome with its records."""
    work = work or work_folder("cluster")
    # Other profiles, code and settings train runs of the same name.
    root = checkpoint.stage(work / "records", profile, {each.arm: ARMS[each.arm] for runs in cell for each in runs})

    def returned(which: Run) -> Returned:
        rows, metadata = records.read(root, which)
        return which, rows.to_dict("records"), {name: metadata[name] for name in OWN}, records.policies(root, which)

    outcomes = attempt(cell, profile, root, work, device)
    return [((runs, problem), [] if problem else [*map(returned, runs)]) for runs, problem in outcomes]


# --- many processes -------------------------------------------------------------------------------------------------------


def record(
    runs: Sequence[Run],
    root: Path,
    work: Path | None = None,
    profile: Profile = PROFILES["paper"],
    workers: int = 1,
    cluster: str | None = None,
    population: int = 1,
    device: str = "cpu",
    report: Report = tqdm.write,
) -> list[Run]:
    """Trains and records the missing runs whose data are here, in this order, and returns them.

    Without `cluster`, `workers` processes of one thread train on this machine. With it, the workers of the Dask scheduler at that
    address train. Checkpoints go to `work` or, by default, to build/checkpoints in the clone of each worker. Each worker trains
    up to `population` agents side by side, which gains little on a CPU (chapter 90). `report` is called with a line for each
    finished run, each failed population, and each missing dataset.

    Raises:
        FileNotFoundError: None of the missing runs has its data here.
        ValueError: A run is recorded with other settings (`current`).
        files.CannotWrite: `root` cannot be written.
        RuntimeError: Some runs failed. All others were recorded first.
    """
    wanted = missing(runs, root, profile)
    wanted = wanted if cluster else with_data(wanted, report)
    if wanted:
        files.check_writable(root)
    for notice in notices(wanted):
        report(notice)
    steps = {each: studies.updates(profile.apply(ARMS[each.arm])) for each in wanted}
    cells, problems = studies.cells(wanted, population), []
    if cluster:
        outcomes = on_a_cluster(cells, profile, root, work, cluster, device, report)
    else:
        outcomes = on_this_machine(cells, profile, root, work or work_folder(profile.name), workers, device)
    with tqdm(total=sum(steps.values()), unit=" updates", unit_scale=True, disable=None) as bar:
        for group, problem in outcomes:
            if problem:
                problems.append(problem)
                report(problem)
                continue
            for each in group:
                report(finished(each, root))
                bar.update(steps[each])
    if problems:
        raise RuntimeError("\n".join(problems))
    return wanted


def notices(runs: Sequence[Run]) -> Iterator[str]:
    """Yields what somebody should know before these runs are trained: their records will lack something."""
    for task in sorted({each.task for each in runs if studies.offline_updates(ARMS[each.arm])}):
        if not probes.known(tasks.find(task)):
            pool = f"`python -m mbaug data --probes` makes them from a pool {task}-medium-replay"
            yield f"data/probes has no fixed states of {task}, so the records will have no calibration: {pool}"
    if runs and ("+" in commit() or commit() == "unknown"):
        why = " (git is missing, or there is no history here)" if commit() == "unknown" else ""
        yield f"the records will name the commit {commit()}{why}: train in a clean clone if you want to keep them"


def finished(which: Run, root: Path) -> str:
    """Returns a line on a run that was just recorded: its seconds, and what is not as usual."""
    metadata = records.read_metadata(root, which)
    line, trained_by = f"{which}: {metadata['wall_seconds']:.0f} s", metadata["provenance"]["commit"]
    if trained_by != commit():
        line += f", trained by commit {trained_by}, but this clone is at {commit()}"
    if metadata["status"] == "diverged":
        line += ", diverged"
    elif metadata["calibration"] is None and studies.offline_updates(ARMS[which.arm]):
        line += ", without calibration"
    return line


def on_this_machine(cells: Sequence, profile: Profile, root: Path, work: Path, workers: int, device: str) -> Iterator[Outcome]:
    """Yields the outcomes of all cells, trained by processes of one thread on this machine.

    Runs that another command is training come last, so that two commands share the work without waiting for each other.

    Raises:
        RuntimeError: Several workers are wanted, but this machine has no semaphores.
    """
    engine.prepare()  # warns here if more threads are requested; the workers do not warn
    if workers == 1:  # train in this process
        for cell in free_first(cells, profile, work):
            yield from attempt(cell, profile, root, work, device)
        return
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        raise RuntimeError(f"several workers need semaphores, usually in /dev/shm: {error}; train with --workers 1") from None
    # joblib replaces a worker whose memory has grown by 300 MB and blames a leak. Ours grow that much when they fit a model.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
    with joblib.parallel_config("loky", inner_max_num_threads=1, initializer=ending.with_parent, initargs=(os.getpid(),)):
        parallel = joblib.Parallel(n_jobs=workers, pre_dispatch="n_jobs", return_as="generator_unordered")
    calls = (joblib.delayed(attempt)(cell, profile, root, work, device) for cell in free_first(cells, profile, work))
    for outcomes in parallel(calls):
        yield from outcomes


def free_first(cells: Sequence, profile: Profile, work: Path) -> Iterator[Sequence[Sequence[Run]]]:
    """Yields the cells in order, but always first those that no other process is training at that moment."""

    def is_free(cell: Sequence[Sequence[Run]]) -> bool:
        return not any(is_training(each, profile.apply(ARMS[each.arm]), work) for runs in cell for each in runs)

    remaining = list(cells)
    while remaining:
        cell = next(filter(is_free, remaining), remaining[0])
        remaining.remove(cell)
        yield cell


def on_a_cluster(
    cells: Sequence,
    profile: Profile,
    root: Path,
    work: Path | None,
    address: str,
    device: str = "cpu",
    report: Report = tqdm.write,
) -> Iterator[Outcome]:
    """Yields the outcomes of all cells, trained by the workers of a Dask cluster and recorded here.

    If a worker dies, another one takes its cell, and resumes from the last checkpoint if it is on the same machine. A record is
    written only if its settings match those we sent and it is still missing here.

    Raises:
        RuntimeError: The scheduler is lost, or has had no workers for GIVE_UP seconds.
    """
    try:
        from distributed import Client
    except ImportError:
        raise RuntimeError(f"{needs('--cluster', 'Dask')}, here and on the workers") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it logs pages about a lost connection
    with Client(address, set_as_default=False) as client:
        pending = {client.submit(attempt_on_worker, cell, profile, work, device, pure=False): cell for cell in cells}
        last_seen, warned = time.monotonic(), False  # when a worker was last connected
        while pending:
            done = [future for future in pending if future.done()]
            # Only the loss of the scheduler cancels a future.
            if client.status in ("closing", "closed") or any(future.cancelled() for future in done):
                raise RuntimeError(f"the scheduler at {address} is lost: start it and its workers, and run the command again")
            for future in done:
                yield from returned_outcomes(future, pending.pop(future), profile, root)
            if client.scheduler_info().get("workers"):
                last_seen, warned = time.monotonic(), False
            waited = time.monotonic() - last_seen
            if waited > WARN and not warned:
                warned = True
                report(f"the scheduler at {address} has no workers: waiting for `dask worker {address}` on a host with a clone")
            if waited > GIVE_UP:
                unfinished = f"{GIVE_UP / 60:.0f} minutes, and the number of unfinished cells is {len(pending)}"
                raise RuntimeError(
                    f"the scheduler at {address} had no workers for {unfinished}: check the output of `dask worker` on its hosts"
                )
            time.sleep(POLL)


def returned_outcomes(future: Any, cell: Sequence[Sequence[Run]], profile: Profile, root: Path) -> Iterator[Outcome]:
    """Yields the outcomes of a cell that a cluster's worker trained, or a failure if no worker survived it."""
    try:
        outcomes = future.result()
    except Exception as error:
        yield from ((list(runs), f"{runs[0]}: no worker finished it: {error}") for runs in cell)
        return
    for (runs, problem), returned in outcomes:
        yield (runs, problem) if problem else outcome(runs, partial(write_returned, returned, profile, root))


def write_returned(returned: Iterable[Returned], profile: Profile, root: Path) -> None:
    """Writes a worker's records that are still missing here; raises ValueError if their settings are not those we sent."""
    for which, rows, metadata, policies in returned:
        difference = records.difference({"format": FORMAT} | metadata, profile.apply(ARMS[which.arm]))
        require(difference is None, f"the worker returned other settings than we sent: {difference}")
        if records.find(root, which) is None:
            records.write(root, which, rows, metadata, policies)


# --- progress and time ----------------------------------------------------------------------------------------------------


def status(study: studies.Study, root: Path, work: Path) -> pd.DataFrame:
    """Returns how many of a study's runs are finished, diverged, running and missing, by task, dataset and arm."""

    def state(each: Run) -> str:
        if (metadata := records.find(root, each)) is not None:
            return metadata["status"]
        return "running" if is_training(each, ARMS[each.arm], work) else "missing"

    runs, names = study.runs(), ["task", "dataset", "arm"]
    rows = [(each.task, each.dataset, each.arm, state(each)) for each in runs]
    table = pd.DataFrame(rows, columns=[*names, "state"]).value_counts().unstack("state", fill_value=0)
    order = pd.MultiIndex.from_tuples(dict.fromkeys(row[:3] for row in rows), names=names)
    return table.reindex(index=order, columns=["finished", "diverged", "running", "missing"], fill_value=0)


def step_seconds(recorded: Mapping[Run, Mapping[str, Any]]) -> float:
    """Returns the seconds that one worker takes per gradient step.

    This is the median over the runs recorded on this processor, else over all runs recorded on a
    CPU, else 0.01. `recorded` is what `records.load_metadata` returns.
    """
    found = [
        (metadata["provenance"]["cpu"], metadata["wall_seconds"] / max(studies.updates(ARMS[each.arm]), 1))
        for each, metadata in recorded.items()
        if each.arm in ARMS and "device" not in metadata["provenance"]
    ]
    this_cpu = processor()
    here = [pace for cpu, pace in found if cpu == this_cpu]
    return float(np.median(here or [pace for _, pace in found] or [0.01]))


def hours(runs: Sequence[Run], recorded: Mapping[Run, Mapping[str, Any]], profile: Profile = PROFILES["paper"]) -> float:
    """Returns the hours of training with one worker, at the pace of `step_seconds`. Shared pre-training counts once."""
    total, shared = 0, set()
    for each in runs:
        arm = profile.apply(ARMS[each.arm])
        pretraining = each.task, each.dataset, each.seed, arm.offline_part
        total += studies.updates(arm) - (studies.offline_updates(arm) if pretraining in shared else 0)
        shared.add(pretraining)
    return total * step_seconds(recorded) / 3600


# --- recorded agents ------------------------------------------------------------------------------------------------------


def policy(which: Run, root: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the policy of an actor that was kept beside a record ("medium" or "final"): the greedy action for a state.

    Raises:
        FileNotFoundError: The run is not recorded, or was recorded without its actors.
        ValueError: There is no such actor or arm, or the arm's settings are no longer the recorded ones.
    """
    kept, arm = records.policies(root, which), studies.arm(which.arm)
    if not kept:
        others = f"only runs of more than {run.LONG:,} steps keep them, such as hopper/none/sac_million/seed0"
        raise FileNotFoundError(f"{which} was recorded without its actors: {others}")
    difference = records.difference(records.read_metadata(root, which), arm)
    require(difference is None, f"{which} cannot act with the current code: {difference}")
    learner = training.learner(arm, tasks.find(which.task), [which.seed])
    training.set_actor(learner, kept[choose("policy", name, kept)])
    return learner.act


def recorded_curve(which: Run, root: Path) -> Recorded:
    """Returns what is recorded of the run that a task's pools come from."""
    metadata = current(root, which, ARMS[which.arm])
    if metadata is None:
        return Recorded(str(which), [], False)
    rows = records.read(root, which).rows.to_dict("records")
    return Recorded(str(which), curve(rows), metadata["status"] == "finished")


# --- for chapters ---------------------------------------------------------------------------------------------------------


def runs_folder(profile: str = "paper", retrain: bool = False) -> Path:
    """Returns the folder of the records that a notebook reads: data/runs, or build/<profile>/runs with `retrain`."""
    return files.repository() / "build" / studies.profile(profile).name / "runs" if retrain else records.root()


def evidence(name: str, profile: str = "paper", retrain: bool = False) -> pd.DataFrame:
    """Returns the evaluation episodes of a study's recorded runs as one tidy frame (`records.load_runs`).

    With `retrain`, first trains the runs that are missing in build/<profile>/runs, with the profile's budgets, and reads those.
    """
    study, budget, root = studies.find(name), studies.profile(profile), runs_folder(profile, retrain)
    if retrain:
        record(study.runs(budget.seeds), root, profile=budget)
    return records.load_runs(root, study.runs())
