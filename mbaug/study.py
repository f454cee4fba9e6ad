"""What trains the missing runs of the grid, on one machine or a cluster, and trains recorded ones again to compare.

The same command goes on after a kill; two processes, or two studies that share runs, train each of them once.
"""

import fnmatch
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from mbaug import benchmark, collection, engine, grid, recording, settings, tasks, training, transitions
from mbaug.grid import Study
from mbaug.life import LONG, Life, key, prepare
from mbaug.recording import Run
from mbaug.settings import Arm, Profile

# --- one run, or some that share all but the seed -------------------------------------------------------------------------


def twin(run: Run, arm: Arm, root: Path) -> Run | None:
    """Returns a recorded run of another study or arm that is the same in all but name, None if there is none."""
    for path in sorted(root.glob(f"*/{run.task}/{run.dataset}/*/seed{run.seed}.json")):
        other = Run.parse(path.relative_to(root).with_suffix("").as_posix())
        metadata = recording.verify(root, other)
        if not lacks_measures(metadata, arm) and difference_from(metadata, arm) is None:
            return other
    return None


def lacks_measures(metadata: dict, arm: Arm) -> bool:
    """Returns whether a record is of a format that holds less of a pre-trained agent than today's."""
    return arm.pretraining is not None and arm.pretraining.updates > 0 and metadata["format"] < recording.FORMAT


def copy(run: Run, other: Run, root: Path) -> None:
    """Records `run` as what `other` already is: rows, settings and provenance, which names whose copy it is."""
    rows, metadata = recording.read(root, other)
    metadata = {name: metadata.get(name) for name in recording.METADATA}
    metadata["provenance"] = {"copied_from": str(other)} | metadata["provenance"]  # of a copy: the one that was trained
    recording.write(root, run, rows.to_dict("records"), metadata, recording.policies(root, other))


def copy_twins(runs: Sequence[Run], arm: Arm, root: Path) -> list[Run]:
    """Returns the runs that are still missing after those that another study has recorded are copied."""
    for run in recording.missing(root, runs):
        if other := twin(run, arm, root):
            copy(run, other, root)
    return recording.missing(root, runs)


def places(run: Run, arm: Arm, work: Path) -> tuple[Path, Path]:
    """Returns what whoever trains a run claims: its name, and its life, which another study may know by another name."""
    return work / "runs" / str(run), work / "lives" / key(run.task, run.dataset, run.seed, arm)


@contextmanager
def claims(runs: Sequence[Run], arm: Arm, work: Path) -> Iterator[None]:
    """Holds the runs and their lives for this process, after waiting for whoever holds one of them."""
    names, lives = zip(*(places(run, arm, work) for run in runs), strict=True)
    with ExitStack() as held:
        for folder in names + lives:  # in this order everywhere, that of the seeds, so that two processes never wait in a ring
            held.enter_context(recording.claim(folder, wait=True))
        yield


def live(runs: Sequence[Run], arm: Arm, root: Path, work: Path, device: str = "cpu") -> list[Run]:
    """Returns the runs after recording them: trains what no checkpoint holds, waits for whoever records them already.

    Raises:
        ValueError: the device does not multiply in the arm's precision.
    """
    prepare(runs[0], arm, device)
    with claims(runs, arm, work):
        if missing := copy_twins(runs, arm, root):
            life = Life(missing, arm, work, device)
            for _ in life.stages():
                pass
            life.write(root)
    return list(runs)


def policy(run: Run, root: Path, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the greedy action, as a function of a state, of an actor that was kept beside a record: "medium" or "final".

    Raises:
        FileNotFoundError: the run is not recorded, or was recorded without its actors.
        ValueError: there is no such actor, or today's settings of the arm are not the recorded ones.
    """
    metadata, policies = recording.verify(root, run), recording.policies(root, run)
    if not policies:
        raise FileNotFoundError(f"{run} was recorded without its actors: only runs of more than {LONG:,} steps keep them")
    settings.choose("policy", name, policies)
    arm = grid.find(run.study).arm(run.arm)
    difference = difference_from(metadata, arm)
    settings.require(difference is None, f"{run} cannot act today: {difference}")
    learner = training.learner(arm, tasks.find(run.task), [run.seed])
    training.set_actor(learner, policies[name])
    return lambda state: learner.policy(state[None, None])[0, 0]


def collect(
    task: tasks.Task,
    seed: int,
    root: Path,
    work: Path,
    folders: Sequence[Path],
    to: int | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Trains the run of the study `long` that a task's pools come from, records it, and makes the pools that are not there.

    Where the record and `expert` are there, training ends when the medium level is held; where all is there, it never begins.
    On another processor than the record's it is another life: then the cards of what is made name no run.

    Args:
        task: of the pools.
        seed: of the run.
        root: folder of the records.
        work: folder of the checkpoints: those of `record`, so that the two are one training.
        folders: of the pools, and of the whole replay.
        to: environment steps at which to stop, with a checkpoint and the pools that are determined by then; None: the end.
        report: takes a line for each evaluation and each pool.

    Raises:
        ValueError: `to` is no step of the training, the folders hold the task's pools of another seed, or the run is recorded
            with other settings than today's.
    """
    one = grid.find("long")
    ((name, arm),) = one.arms.items()
    run, steps = Run(one.name, task.name, "none", name, seed), arm.finetuning.steps
    settings.require(to is None or 0 <= to <= steps, f"to is {to}, but it must be from 0 to {steps}, the steps of the training")
    collection.check_seed(task, seed, *folders)
    collection.make_random(task, seed, folders[0], report)
    prepare(run, arm)
    with claims([run], arm, work):
        (known, level), absent = recorded_life(root, run, arm), collection.absent(task, *folders)
        if known and not absent:
            report(f"{run} and all pools of {task.name} are there already and stay as they are")
            return
        life, to_the_end = Life([run], arm, work), not known or "expert" in absent
        for _ in life.stages(to):
            curve = collection.curve(life.rows[0])
            report(f"{curve[-1]['environment_steps']:>9,} steps: greedy return {np.mean(curve[-1]['returns']):8.1f}")
            if not to_the_end and collection.medium_steps(curve, level):
                break
        if life.ended and not known:
            life.write(root)
        collection.make(lived(life, known, level, report), *folders, report)


def recorded_life(root: Path, run: Run, arm: Arm) -> tuple[list[dict], float | None]:
    """Returns a run's recorded evaluations (`collection.curve`), none if there is no record, and its medium level if known."""
    task, curve, ended = tasks.find(run.task), [], False
    if not recording.missing(root, [run]):
        ended = current(root, run, arm)["status"] == "finished"
        curve = collection.curve(recording.read(root, run).rows.to_dict("records"))
    return curve, collection.medium_level(task, curve, ended)


def lived(life: Life, known: list[dict], level: float | None, report: Callable[[str], None]) -> collection.Lived:
    """Returns what a life of one agent leaves to make pools from, after saying so if it is not the recorded one.

    Args:
        life: of the run that the pools come from.
        known: evaluations of its record, none if there was none.
        level: medium return, if it is known before the end of the life.
        report: takes a line.
    """
    (run,), curve = life.runs, collection.curve(life.rows[0])
    replay = life.buffer.rows[0, : life.buffer.size].numpy()
    whole = life.ended and None in life.learner.diverged_at
    level = collection.medium_level(life.task, curve, ended=True) if whole else level
    same = not known or curve == known[: len(curve)]
    if not same:
        report(f"{run} is recorded, but here it learned otherwise, as on another processor: the cards of its pools name no run")
    name, provenance = str(run) if same else None, life.provenance()
    return collection.Lived(life.task, run.seed, name, life.arm, provenance, curve, replay, life.actor, level, whole)


# --- many -----------------------------------------------------------------------------------------------------------------


def select(study: Study, only: str = "*", seeds: Sequence[int] | None = None) -> list[Run]:
    """Returns the study's runs whose name matches the pattern `only` (as in a shell), for these seeds.

    Raises:
        ValueError: no run matches.
    """
    runs = (study if seeds is None else replace(study, seeds=tuple(seeds))).runs()
    found = [run for run in runs if fnmatch.fnmatch(str(run), f"*{only}*")]
    settings.require(bool(found), f"no run of {study.name} matches {only!r}; a run's name is, for example, {runs[0]}")
    return found


Job = tuple[list[Run], Arm]  # runs that differ only in their seed: one population, in one process
Outcome = tuple[list[Run], str]  # the runs that were recorded, and the problem if they were not


def populations(study: Study, runs: Sequence[Run], profile: Profile, size: int) -> list[Job]:
    """Returns the runs as populations of at most `size` agents that share everything but the seed.

    With size 1 in the order of `runs`. On a CPU a larger population gains little (notebook 90_engine): the products bind.
    """
    settings.require(size >= 1, f"the population is {size}, but it must be 1 or above")
    alike: dict[tuple, list[list[Run]]] = {}
    for run in runs:
        groups = alike.setdefault((run.task, run.dataset, run.arm), [[]])
        if len(groups[-1]) == size:
            groups.append([])
        groups[-1].append(run)
    found = [(group, profile.apply(study.arm(group[0].arm))) for groups in alike.values() for group in groups]
    order = {run: place for place, run in enumerate(runs)}
    return sorted(found, key=lambda job: order[job[0][0]])


def here(
    jobs: Sequence[Job], root: Path, work: Path, workers: int, device: str = "cpu", report: Callable[[str], None] = tqdm.write
) -> Iterator[list[Run]]:
    """Yields the runs of each job when they are recorded: `workers` processes of one thread on this machine.

    Raises:
        RuntimeError: some jobs failed; all others were recorded first.
    """
    calls = (joblib.delayed(attempt)(*job, root, work, device) for job in unclaimed_first(jobs, work))
    yield from successes(processes(workers)(calls), report)


def attempt(runs: Sequence[Run], arm: Arm, root: Path, work: Path, device: str = "cpu") -> Outcome:
    """Returns what came of one job: `live`, but whatever goes wrong is part of the outcome."""
    try:
        return live(runs, arm, root, work, device), ""
    except Exception as error:
        return [], explain(runs, error)


def explain(runs: Sequence[Run], error: Exception) -> str:
    """Returns what kept runs from being recorded: a sentence, or the traceback of what is a mistake of the code."""
    told = isinstance(error, ValueError | OSError | RuntimeError | ImportError)
    return f"{runs[0]}: {error if told else ''.join(traceback.format_exception(error))}"


def successes(outcomes: Iterable[Outcome], report: Callable[[str], None]) -> Iterator[list[Run]]:
    """Yields the runs that were recorded; reports each problem when it comes.

    Raises:
        RuntimeError: there were problems; all others were recorded first.
    """
    problems = []
    for runs, problem in outcomes:
        if problem:
            problems.append(problem)
            report(problem)
        else:
            yield runs
    if problems:
        raise RuntimeError("\n".join(problems))


def processes(workers: int) -> joblib.Parallel:
    """Returns what runs calls in `workers` processes, each with one thread from before its first import."""
    engine.prepare()  # tells who asked for more threads, since the workers will not
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        return joblib.Parallel(n_jobs=workers, pre_dispatch="n_jobs", return_as="generator_unordered")


def unclaimed_first(jobs: Sequence[Job], work: Path) -> Iterator[Job]:
    """Yields the jobs in order, but those that another process is at last: two processes share a study without waiting."""
    remaining = list(jobs)
    while remaining:
        free = (job for job in remaining if not any(is_claimed(run, job[1], work) for run in job[0]))
        job = next(free, remaining[0])
        remaining.remove(job)
        yield job


def is_claimed(run: Run, arm: Arm, work: Path) -> bool:
    """Returns whether a process trains the run, or the same life under another name."""
    return any(map(recording.claimed, places(run, arm, work)))


def elsewhere(
    jobs: Sequence[Job],
    root: Path,
    work: Path | None,
    address: str,
    device: str = "cpu",
    report: Callable[[str], None] = tqdm.write,
) -> Iterator[list[Run]]:
    """Yields the runs of each job when they are recorded: trained by the workers of a Dask cluster, written here.

    A job whose worker dies is given to another one; on the same machine it goes on from the last checkpoint.

    Args:
        jobs: runs and their settings.
        root: folder of the records, here.
        work: folder of the checkpoints on the workers' machines, None for build/checkpoints/cluster of their clones.
        address: of the scheduler, e.g. "tcp://host:8786".
        device: what trains, on each worker's machine.
        report: takes a line for each job that failed.

    Raises:
        RuntimeError: some jobs failed; all others were recorded first.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise RuntimeError("--cluster needs Dask: `make setup EXTRAS=cluster` installs it, here and on the workers") from None
    with Client(address) as client:
        sent = {}
        for runs, arm in jobs:
            missing = copy_twins(runs, arm, root)
            if there := [run for run in runs if run not in missing]:
                yield there
            if missing:
                name = f"{missing[0]}-{key(arm)}"  # the scheduler gives what has the same name to whoever asks again
                sent[client.submit(live_elsewhere, missing, arm, work, device, key=name)] = missing, arm
        yield from successes((bring_home(future.result, *sent[future], root) for future in as_completed(sent)), report)


def bring_home(result: Callable[[], list], runs: Sequence[Run], arm: Arm, root: Path) -> Outcome:
    """Returns what came of one job after writing its records here, but those that were recorded here meanwhile.

    Args:
        result: returns what `live_elsewhere` does, or raises what went wrong.
        runs: that were sent.
        arm: their settings: no record with others is written.
        root: folder of the records.
    """
    try:
        for run, rows, metadata, policies in result():
            difference = difference_from(metadata, arm)
            settings.require(difference is None, f"it came back with other settings than it was sent with: {difference}")
            if recording.missing(root, [run]):
                recording.write(root, run, rows, metadata, policies)
    except Exception as error:
        return [], explain(runs, error)
    return list(runs), ""


def live_elsewhere(
    runs: Sequence[Run], arm: Arm, work: Path | None, device: str = "cpu"
) -> list[tuple[Run, list[dict], dict, dict]]:
    """Returns what `recording.write` takes for each run, after training it here: what travels home from a cluster's worker."""
    work = work or recording.repository() / "build" / "checkpoints" / "cluster"
    root = work / "records" / key(arm)  # a run of the same name may have been trained with other budgets
    records = [recording.read(root, run) for run in live(runs, arm, root, work, device)]
    return [
        (run, rows.to_dict("records"), {n: metadata[n] for n in recording.METADATA}, recording.policies(root, run))
        for run, (rows, metadata) in zip(runs, records, strict=True)
    ]


def record(
    study: Study,
    root: Path,
    work: Path | None,
    profile: Profile = settings.PROFILES["paper"],
    only: str = "*",
    seeds: Sequence[int] | None = None,
    workers: int = 1,
    cluster: str | None = None,
    population: int = 1,
    device: str = "cpu",
    report: Callable[[str], None] = tqdm.write,
) -> list[Run]:
    """Returns the runs that were missing, after training and recording them. Those whose data are not here are left out.

    Args:
        study: the grid.
        root: folder of the records.
        work: folder of the checkpoints.
        profile: budgets.
        only: pattern that a run's name must match.
        seeds: in place of the study's own, of which a profile may take the first ones only.
        workers: processes on this machine, one thread each.
        cluster: address of a Dask scheduler whose workers train in their place.
        population: agents at most that one process trains side by side.
        device: what trains, "cpu" or "cuda".
        report: takes a line for each finished run, for each job that failed, and for each dataset that is not here.

    Raises:
        FileNotFoundError: no missing run has its data here.
        ValueError: no run matches, or one is recorded with other settings (`missing`).
        RuntimeError: some jobs failed; all others were recorded first.
    """
    runs = missing(study, root, profile, only, seeds)
    runs = runs if cluster else with_data(runs, report)
    jobs = populations(study, runs, profile, population)
    steps = {run: grid.updates(arm) for some, arm in jobs for run in some}
    train, where = (elsewhere, cluster) if cluster else (here, workers)
    done = train(jobs, root, work, where, device, report)
    with tqdm(total=sum(steps.values()), desc=study.name, unit=" updates", unit_scale=True, disable=None) as bar:
        for some in done:
            for run in some:
                report(f"{run}: {recording.verify(root, run)['wall_seconds']:.0f} s")
                bar.update(steps[run])
    return runs


def record_programme(root: Path, work: Path, workers: int = 1, report: Callable[[str], None] = tqdm.write) -> None:
    """Trains and records what is missing of the programme, in its order; a process trains all runs of one pre-training.

    Raises:
        RuntimeError: some runs failed; all others were recorded first.
    """
    problems = []
    for part in grid.PROGRAMME:
        calls = (joblib.delayed(record_cell)(cell, root, work) for cell in grid.cells(part) if recording.missing(root, cell))
        for outcomes in processes(workers)(calls):
            for runs, problem in outcomes:
                report(problem or f"{runs[0]}: {recording.verify(root, runs[0])['wall_seconds']:.0f} s")
                problems += [problem] if problem else []
    if problems:
        raise RuntimeError(f"{len(problems)} runs failed: the lines above say why")


def record_cell(cell: Sequence[Run], root: Path, work: Path) -> list[Outcome]:
    """Returns what came of the missing ones of some runs that share a pre-training, one after the other."""
    return [attempt([run], grid.find(run.study).arm(run.arm), root, work) for run in recording.missing(root, cell)]


def missing(study: Study, root: Path, profile: Profile, only: str = "*", seeds: Sequence[int] | None = None) -> list[Run]:
    """Returns the study's runs that are not recorded, in the order in which they are trained.

    Args:
        study: the grid.
        root: folder of the records.
        profile: budgets, and how many of the study's seeds.
        only: pattern that a run's name must match.
        seeds: in place of those.

    Raises:
        ValueError: no run matches, or one is recorded with other settings than today's (the sentence names the first difference).
    """
    wanted = select(study, only, study.seeds[: profile.seeds] if seeds is None else seeds)
    found = recording.missing(root, wanted)
    for run in wanted:
        if run not in found:
            current(root, run, profile.apply(study.arm(run.arm)))
    return found


def current(root: Path, run: Run, arm: Arm) -> dict:
    """Returns the metadata of a recorded run, verified.

    Raises:
        ValueError: it was recorded with other settings than these.
    """
    metadata = recording.verify(root, run)
    difference, path = difference_from(metadata, arm), run.path(root).with_suffix(".json")
    sentence = f"{run} is recorded with other settings: {difference} To record it anew, remove {path}"
    settings.require(difference is None, sentence)
    return metadata


def with_data(runs: Sequence[Run], report: Callable[[str], None]) -> list[Run]:
    """Returns the runs that need no dataset, or whose dataset is here, after a report of the others.

    Raises:
        FileNotFoundError: there are runs, and none has its data here.
    """
    lacking = {}
    for dataset in sorted({run.dataset for run in runs} - {"none"}):
        try:
            transitions.load(dataset)
        except FileNotFoundError as error:
            lacking[dataset] = error
    found = [run for run in runs if run.dataset not in lacking]
    if runs and not found:
        raise next(iter(lacking.values()))
    for dataset, error in lacking.items():
        report(f"{sum(run.dataset == dataset for run in runs)} runs are left out: {error}")
    return found


def status(study: Study, root: Path, work: Path) -> pd.DataFrame:
    """Returns how many of a study's runs are finished, diverged, running and missing, by task and arm."""
    missing = set(recording.missing(root, study.runs()))
    states = []
    for run in study.runs():
        if run not in missing:
            state = recording.verify(root, run)["status"]
        else:
            state = "running" if is_claimed(run, study.arm(run.arm), work) else "missing"
        states.append({"task": run.task, "arm": run.arm, "state": state})
    table = pd.DataFrame(states).value_counts().unstack("state", fill_value=0)
    order = [(task, arm) for task in study.tasks for arm in study.arms]
    return table.reindex(index=order, columns=["finished", "diverged", "running", "missing"], fill_value=0)


def step_seconds(root: Path) -> dict[str, float]:
    """Returns how long a gradient step of each algorithm takes one worker of this machine, in seconds.

    The median over the runs recorded on this processor; where there are none, what `benchmark.online` measures now.
    """
    processor, known = recording.processor(), {name: [] for name in settings.ALGORITHMS}
    for run, metadata in recording.load_metadata(root).items():
        if metadata["provenance"]["cpu"] == processor and "device" not in metadata["provenance"]:
            arm = grid.find(run.study).arm(run.arm)
            known[arm.algorithm].append(metadata["wall_seconds"] / max(grid.updates(arm), 1))
    return {name: float(np.median(found)) if found else 1 / benchmark.online(name, "float32") for name, found in known.items()}


def to_train(study: Study, runs: Sequence[Run], root: Path) -> list[Run]:
    """Returns those of the missing `runs` that no other study has recorded: the others are only copied."""
    return [run for run in runs if twin(run, study.arm(run.arm), root) is None]


def seconds(study: Study, runs: Sequence[Run], pace: dict[str, float]) -> float:
    """Returns the estimated seconds that training `runs` takes one worker; a pre-training that arms share counts once.

    Args:
        study: of the runs.
        runs: to train.
        pace: seconds a gradient step of each algorithm (`step_seconds`).
    """
    total, shared = 0.0, set()
    for run in runs:
        arm = study.arm(run.arm)
        steps = grid.updates(arm)
        pretraining = key(run.task, run.dataset, run.seed, grid.offline(arm))
        if arm.pretraining is not None and pretraining in shared:
            steps -= arm.pretraining.updates
        shared.add(pretraining)
        total += steps * pace[arm.algorithm]
    return total


def difference_from(metadata: dict, arm: Arm) -> str | None:
    """Returns a sentence that names the first recorded setting that is not today's, None if there is none."""
    return recording.first_difference(settings.completed(metadata["settings"], arm), arm)


def verify(run: Run, root: Path, work: Path, updates: int = 10_000) -> str:
    """Returns a sentence on whether training a recorded run again gives its rows: equal, close, or different and where.

    Args:
        run: a recorded run.
        root: folder of the records.
        work: an empty folder for this verification.
        updates: gradient steps after which to stop.

    Raises:
        ValueError: today's settings of the arm are not the recorded ones (the sentence names the first difference), or this
            processor does not multiply in the arm's precision.
    """
    record, arm = recording.read(root, run), grid.find(run.study).arm(run.arm)
    difference = difference_from(record.metadata, arm)
    settings.require(difference is None, f"{run} cannot be verified: {difference}")
    prepare(run, arm)
    life = Life([run], arm, work)
    for _ in life.stages():
        if life.learner.gradient_steps >= updates:
            break
    again = pd.DataFrame(life.rows[0], columns=list(recording.COLUMNS))
    if len(again) > len(record.rows) or (life.ended and len(again) < len(record.rows)):
        return f"{run}: different: it has {len(again)} rows now, and {len(record.rows)} in its record"
    recorded = record.rows[: len(again)]
    if again.equals(recorded):
        return f"{run}: {len(again)} rows are equal bit for bit"
    numbers = [name for name, kind in recording.COLUMNS.items() if kind is float]
    close = np.isclose(again[numbers], recorded[numbers], rtol=1e-3, equal_nan=True).all(axis=1)
    close &= (again.drop(columns=numbers) == recorded.drop(columns=numbers)).all(axis=1)
    if close.all():
        largest = (again[numbers] - recorded[numbers]).abs().max().max()
        return f"{run}: {len(again)} rows are equal within 0.1 %, the largest difference is {largest:.2g}"
    first = again.loc[~close, ["phase", "gradient_steps", "environment_steps", "episode"]].iloc[0].to_dict()
    return f"{run}: different from row {int((~close).argmax())} on ({first}); another processor or version rounds otherwise"


def runs_folder(profile: str = "paper", retrain: bool = False) -> Path:
    """Returns the folder of the records that a notebook reads: data/runs, or build/<profile>/runs if it trains now."""
    return recording.repository() / "build" / settings.profile(profile).name / "runs" if retrain else recording.root()


def evidence(name: str, profile: str = "paper", retrain: bool = False) -> pd.DataFrame:
    """Returns the evaluation episodes of a study's runs as one tidy frame (recording.load_runs).

    Args:
        name: of the study.
        profile: its budgets, if runs are trained now.
        retrain: False: what is recorded in data/runs. True: train what is missing in build/<profile>/runs now, and read that.
    """
    study, budget, root = grid.find(name), settings.profile(profile), runs_folder(profile, retrain)
    if retrain:
        work = recording.repository() / "build" / "checkpoints" / profile
        record(study, root, work, budget)
    return recording.load_runs(root, name)
