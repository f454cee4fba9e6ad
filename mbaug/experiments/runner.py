"""What trains the missing runs: one process a core on this machine, or the workers of a Dask cluster.

The same command goes on after a kill; two commands side by side train each run once.
"""

import fnmatch
import logging
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from filelock import Timeout
from tqdm import tqdm

from mbaug import ending, engine, files, tasks
from mbaug.checks import choose, needs, require
from mbaug.datasets import read
from mbaug.datasets.collect import Recorded, curve
from mbaug.experiments import records, run, studies
from mbaug.experiments.metadata import FORMAT, OWN
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, PROFILES, Profile
from mbaug.method import training
from mbaug.method.arms import Arm
from mbaug.provenance import commit, processor

Report = Callable[[str], None]
Outcome = tuple[list[Run], str]  # runs of one population, and the problem if they were not recorded
Sent = tuple[Run, list[dict], dict, dict]  # a record on its way home from a cluster's worker: the arguments of records.write
TELL, GIVE_UP = 60, 600  # seconds without a worker of a cluster until that is told, and until it is an error
POLL = 0.5  # seconds between two looks at a cluster

# --- which runs -----------------------------------------------------------------------------------------------------------


def select(runs: Sequence[Run], only: str) -> list[Run]:
    """Returns the runs whose name matches a pattern, as in a shell; raises ValueError if none does."""
    found = [each for each in runs if only and fnmatch.fnmatch(str(each), f"*{only}*")]  # "" may be a variable that is not set
    require(bool(found), f"no run matches {only!r}; a run's name is, for example, {runs[0]}")
    return found


def missing(runs: Sequence[Run], root: Path, profile: Profile) -> list[Run]:
    """Returns the runs that are not recorded, in the order given; raises as `current` of each that is."""
    return [each for each in runs if current(root, each, profile.apply(ARMS[each.arm])) is None]


def current(root: Path, which: Run, arm: Arm) -> dict[str, Any] | None:
    """Returns a run's verified metadata, None if it is not recorded; raises ValueError if it is, but with other settings."""
    metadata, path = records.find(root, which), which.path(root).with_suffix(".json")
    difference = None if metadata is None else records.difference(metadata, arm)
    sentence = f"{which} is recorded with other settings: {difference} To record it anew, remove {path}"
    require(difference is None, sentence)
    return metadata


def with_data(runs: Sequence[Run], report: Report) -> list[Run]:
    """Returns the runs that need no data or have them here, and reports the others; raises FileNotFoundError if all lack them."""
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
        report(f"{sum(each.dataset == dataset for each in runs)} runs are left out: {error}")
    return found


# --- one process ----------------------------------------------------------------------------------------------------------


def claim(which: Run, arm: Arm, work: Path) -> Path:
    """Returns the folder whose lock a process holds while it trains a run."""
    return work / "runs" / run.key(which, arm)


def is_training(which: Run, arm: Arm, work: Path) -> bool:
    """Returns whether a process trains the run; leaves no file."""
    folder = claim(which, arm, work)
    try:
        with run.lock(folder, blocking=False) if folder.exists() else nullcontext():
            return False
    except Timeout:
        return True


@contextmanager
def held(runs: Sequence[Run], arm: Arm, work: Path) -> Iterator[None]:
    """Holds the locks of some runs, once others release them; always in the same order, so that nobody waits in a circle."""
    with ExitStack() as stack:
        for which in sorted(runs):
            stack.enter_context(run.lock(claim(which, arm, work)))
        yield


def train(runs: Sequence[Run], profile: Profile, root: Path, work: Path, device: str = "cpu") -> None:
    """Records the runs of a population that are missing, and waits for those that another process records."""
    arm = profile.apply(ARMS[runs[0].arm])
    run.prepare_for(arm, device)
    with held(runs, arm, work):
        if left := records.missing(root, runs):
            *_, population = run.train(left, arm, work, device)
            run.record(population, root)


def outcome(runs: Sequence[Run], call: Callable[[], None]) -> Outcome:
    """Returns what came of a call that records runs: a failure is a sentence, or a traceback where the code is at fault."""
    problem = ""
    try:
        call()
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        problem = f"{runs[0]}: {error}"
    except Exception:
        problem = f"{runs[0]}: {traceback.format_exc()}"
    return list(runs), problem


def attempt(cell: Sequence[Sequence[Run]], profile: Profile, root: Path, work: Path, device: str = "cpu") -> list[Outcome]:
    """Trains a cell's populations one after the other; returns their outcomes, and a failure is one."""
    return [outcome(runs, partial(train, runs, profile, root, work, device)) for runs in cell]


def attempt_on_worker(
    cell: Sequence[Sequence[Run]], profile: Profile, work: Path | None, device: str = "cpu"
) -> list[tuple[Outcome, list[Sent]]]:
    """Trains a cell on a cluster's worker; returns its outcomes, each with its records, which are sent back."""
    work = work or files.repository() / "build" / "checkpoints" / "cluster"
    root = work / "records" / run.key(profile)  # a run of the same name may have been trained with other budgets

    def sent(which: Run) -> Sent:
        rows, metadata = records.read(root, which)
        return which, rows.to_dict("records"), {name: metadata[name] for name in OWN}, records.policies(root, which)

    outcomes = attempt(cell, profile, root, work, device)
    return [((runs, problem), [] if problem else [*map(sent, runs)]) for runs, problem in outcomes]


# --- many -----------------------------------------------------------------------------------------------------------------


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
    """Trains and records the runs that are missing, in this order, if their data are here; returns them.

    On this machine, as many worker processes train, with one thread each. On a cluster, the workers of the Dask scheduler at
    that address train. Checkpoints are in `work` or, without it, in build/checkpoints of the clone of whoever trains. Each
    trains up to `population` agents side by side, which gains little on a CPU (chapter 90). `report` is called with a line for
    each finished run, each failed population, and each missing dataset.

    Raises:
        FileNotFoundError: no missing run has its data here.
        ValueError: a run is recorded with other settings (`current`).
        RuntimeError: some runs failed; all others were recorded first.
    """
    wanted = missing(runs, root, profile)
    wanted = wanted if cluster else with_data(wanted, report)
    if wanted and ("+" in commit() or commit() == "unknown"):
        report(f"the records will name their code {commit()}: train with a clean clone if they are to be kept")
    steps = {each: studies.updates(profile.apply(ARMS[each.arm])) for each in wanted}
    jobs, problems = studies.cells(wanted, population), []
    if cluster:
        outcomes = on_a_cluster(jobs, profile, root, work, cluster, device, report)
    else:
        folder = work or files.repository() / "build" / "checkpoints" / profile.name
        outcomes = on_this_machine(jobs, profile, root, folder, workers, device)
    with tqdm(total=sum(steps.values()), unit=" updates", unit_scale=True, disable=None) as bar:
        for some, problem in outcomes:
            if problem:
                problems.append(problem)
                report(problem)
                continue
            for each in some:
                found = records.read_metadata(root, each)
                there = found["provenance"]["commit"]
                other = "" if there == commit() else f", trained by the code {there}, while it is {commit()} here"
                report(f"{each}: {found['wall_seconds']:.0f} s{other}")
                bar.update(steps[each])
    if problems:
        raise RuntimeError("\n".join(problems))
    return wanted


def on_this_machine(jobs: Sequence, profile: Profile, root: Path, work: Path, workers: int, device: str) -> Iterator[Outcome]:
    """Yields what came of the populations of all cells, trained by processes of one thread on this machine.

    A run that another command trains comes last: two commands share the work without waiting for each other. RuntimeError says
    where processes cannot work side by side.
    """
    engine.prepare()  # tells who asked for more threads, since the workers will not
    if workers == 1:  # it is this process
        for cell in free_first(jobs, profile, work):
            yield from attempt(cell, profile, root, work, device)
        return
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as error:
        raise RuntimeError(f"several workers need semaphores, as in /dev/shm: {error}; train with --workers 1") from None
    with joblib.parallel_config("loky", inner_max_num_threads=1, initializer=ending.with_parent, initargs=(os.getpid(),)):
        parallel = joblib.Parallel(n_jobs=workers, pre_dispatch="n_jobs", return_as="generator_unordered")
    calls = (joblib.delayed(attempt)(cell, profile, root, work, device) for cell in free_first(jobs, profile, work))
    for outcomes in parallel(calls):
        yield from outcomes


def free_first(jobs: Sequence, profile: Profile, work: Path) -> Iterator[Sequence[Sequence[Run]]]:
    """Yields the cells in order, those last that another process trains at that moment."""

    def is_free(cell: Sequence[Sequence[Run]]) -> bool:
        return not any(is_training(each, profile.apply(ARMS[each.arm]), work) for runs in cell for each in runs)

    remaining = list(jobs)
    while remaining:
        cell = next(filter(is_free, remaining), remaining[0])
        remaining.remove(cell)
        yield cell


def on_a_cluster(
    jobs: Sequence,
    profile: Profile,
    root: Path,
    work: Path | None,
    address: str,
    device: str = "cpu",
    report: Report = tqdm.write,
) -> Iterator[Outcome]:
    """Yields what came of the populations of all cells: trained by the workers of a Dask cluster, recorded here.

    A cell whose worker dies is given to another one; on the same machine it goes on from the last checkpoint. No record with
    other settings than were sent, and none that is here by now, is written.

    Raises:
        RuntimeError: the scheduler is lost, or had no worker for so long (GIVE_UP).
    """
    try:
        from distributed import Client
    except ImportError:
        raise RuntimeError(f"{needs('--cluster', 'Dask')}, here and on the workers") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # of a lost connection it says pages
    with Client(address, set_as_default=False) as client:
        pending = {client.submit(attempt_on_worker, cell, profile, work, device, pure=False): cell for cell in jobs}
        alone, told = time.monotonic(), False  # since when no worker is known
        while pending:
            done = [future for future in pending if future.done()]
            if client.status in ("closing", "closed") or any(future.cancelled() for future in done):  # nobody else cancels
                raise RuntimeError(f"the scheduler at {address} is lost: start it and its workers, and the same command goes on")
            for future in done:
                yield from came_home(future, pending.pop(future), profile, root)
            if client.scheduler_info().get("workers"):
                alone, told = time.monotonic(), False
            waited = time.monotonic() - alone
            if waited > TELL and not told:
                told = True
                report(f"the scheduler at {address} has no workers: waiting for `dask worker {address}` on a host with a clone")
            if waited > GIVE_UP:
                looked = f"for {GIVE_UP / 60:.0f} minutes, and {len(pending)} cells wait"
                raise RuntimeError(
                    f"the scheduler at {address} had no workers {looked}: look at what `dask worker` says on its hosts"
                )
            time.sleep(POLL)


def came_home(future: Any, cell: Sequence[Sequence[Run]], profile: Profile, root: Path) -> Iterator[Outcome]:
    """Yields the outcomes of a cell that a cluster's worker trained, or the failure if all its workers died."""
    try:
        outcomes = future.result()
    except Exception as error:
        yield from ((list(runs), f"{runs[0]}: no worker finished it: {error}") for runs in cell)
        return
    for (runs, problem), sent in outcomes:
        yield (runs, problem) if problem else outcome(runs, partial(bring_home, sent, profile, root))


def bring_home(sent: Iterable[Sent], profile: Profile, root: Path) -> None:
    """Writes the records that a cluster's worker sent and that are not here by now; raises ValueError for other settings."""
    for which, rows, metadata, policies in sent:
        difference = records.difference({"format": FORMAT} | metadata, profile.apply(ARMS[which.arm]))
        require(difference is None, f"it came back with other settings than it was sent with: {difference}")
        if records.missing(root, [which]):
            records.write(root, which, rows, metadata, policies)


# --- how far, how long ----------------------------------------------------------------------------------------------------


def status(study: studies.Study, root: Path, work: Path) -> pd.DataFrame:
    """Returns how many of a study's runs are finished, diverged, running and missing, by task and arm."""

    def state(each: Run) -> str:
        if (metadata := records.find(root, each)) is not None:
            return metadata["status"]
        return "running" if is_training(each, ARMS[each.arm], work) else "missing"

    states = [{"task": each.task, "arm": each.arm, "state": state(each)} for each in study.runs()]
    table = pd.DataFrame(states).value_counts().unstack("state", fill_value=0)
    order = [(task, arm) for task in study.tasks for arm in study.arms]
    return table.reindex(index=order, columns=["finished", "diverged", "running", "missing"], fill_value=0)


def step_seconds(root: Path) -> float:
    """Returns how long a gradient step takes one worker, in seconds: the median over recorded runs, of this processor if any."""
    found = [
        (metadata["provenance"]["cpu"], metadata["wall_seconds"] / max(studies.updates(ARMS[each.arm]), 1))
        for each, metadata in records.load_metadata(root).items()
        if each.arm in ARMS and "device" not in metadata["provenance"]
    ]
    here = processor()
    own = [pace for cpu, pace in found if cpu == here]
    return float(np.median(own or [pace for _, pace in found] or [0.01]))


def seconds(runs: Sequence[Run], pace: float, profile: Profile = PROFILES["paper"]) -> float:
    """Returns the seconds that training takes one worker at `pace` seconds a gradient step; what arms share counts once."""
    total, shared = 0, set()
    for each in runs:
        arm = profile.apply(ARMS[each.arm])
        pretraining = each.task, each.dataset, each.seed, arm.offline_part
        total += studies.updates(arm) - (studies.offline_updates(arm) if pretraining in shared else 0)
        shared.add(pretraining)
    return total * pace


# --- recorded agents ------------------------------------------------------------------------------------------------------


def policy(which: Run, root: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the greedy action, as a function of a state, of an actor that was kept beside a record: "medium" or "final".

    Raises:
        FileNotFoundError: the run is not recorded, or was recorded without its actors.
        ValueError: there is no such actor, or today's settings of the arm are not the recorded ones.
    """
    kept, arm = records.policies(root, which), ARMS[which.arm]
    if not kept:
        raise FileNotFoundError(f"{which} was recorded without its actors: only runs of more than {run.LONG:,} steps keep them")
    difference = records.difference(records.read_metadata(root, which), arm)
    require(difference is None, f"{which} cannot act today: {difference}")
    learner = training.learner(arm, tasks.find(which.task), [which.seed])
    training.set_actor(learner, kept[choose("policy", name, kept)])
    return lambda state: learner.policy(state[None, None])[0, 0]


def recorded(which: Run, root: Path) -> Recorded:
    """Returns what there is of the run that a task's pools come from."""
    metadata = current(root, which, ARMS[which.arm])
    if metadata is None:
        return Recorded(str(which), [], False)
    rows = records.read(root, which).rows.to_dict("records")
    return Recorded(str(which), curve(rows), metadata["status"] == "finished")


# --- for chapters ---------------------------------------------------------------------------------------------------------


def runs_folder(profile: str = "paper", retrain: bool = False) -> Path:
    """Returns the folder of the records that a notebook reads: data/runs, or build/<profile>/runs if it trains now."""
    return files.repository() / "build" / studies.profile(profile).name / "runs" if retrain else records.root()


def evidence(name: str, profile: str = "paper", retrain: bool = False) -> pd.DataFrame:
    """Returns the evaluation episodes of a study's runs as one tidy frame (records.load_runs): those that are recorded.

    With `retrain`, it first trains what is missing in build/<profile>/runs, with the profile's budgets, and reads that.
    """
    study, budget, root = studies.find(name), studies.profile(profile), runs_folder(profile, retrain)
    if retrain:
        seeds = study.seeds[: budget.seeds]
        runs = [each for each in study.runs() if each.seed in seeds]
        record(runs, root, profile=budget)
    return records.load_runs(root, study.runs())
