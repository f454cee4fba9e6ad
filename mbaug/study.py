"""What trains the missing runs of the grid.

A run is one agent through its whole life: draw its transitions, fit its world model, pre-train, fine-tune. Each stage leaves a
checkpoint, so that the same command goes on after a kill; stages that several arms share are trained once.
"""

import fnmatch
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from mbaug import (
    augmentation,
    benchmark,
    collection,
    engine,
    grid,
    overfitting,
    recording,
    settings,
    streams,
    tasks,
    training,
    transitions,
    world_model,
)
from mbaug.grid import Study
from mbaug.recording import Run
from mbaug.settings import Arm, Finetuning, Profile
from mbaug.transitions import Dataset

LONG = 100_000  # environment steps; a longer life keeps its actors, and its replay, for the pools that are made from them
CHECKPOINTS = 40  # of a fine-tuning, about, at most: a replay of a million rows is a quarter of a gigabyte in each

# --- stages ---------------------------------------------------------------------------------------------------------------


def key(*parts) -> str:
    """Returns a name for whatever depends on `parts` alone: what has the same name is trained once."""
    return hashlib.sha256(json.dumps(recording.plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def checkpoint_due(plan: Finetuning, steps: int) -> bool:
    """Returns whether the evaluation after `steps` environment steps leaves a checkpoint: not each does in a long life."""
    return steps % max(plan.steps // CHECKPOINTS, 1) < plan.evaluation_interval


@contextmanager
def waiting_claim(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process, after waiting for another one that does."""
    while True:
        try:
            with recording.claim(folder):
                yield
                return
        except recording.AlreadyRecording:
            time.sleep(1)


def draws(arm: Arm, task: tasks.Task, dataset: str, seeds: Sequence[int]) -> tuple[list[Dataset], list[Dataset]]:
    """Returns what each seed drew from the pool, and what it left."""
    pool = transitions.load(dataset)
    tasks.check_dataset(task, pool)
    draw = transitions.draw_episodes if arm.pretraining.whole_episodes else transitions.draw
    pairs = [draw(pool, arm.pretraining.transitions, seed) for seed in seeds]
    return [drawn for drawn, _ in pairs], [rest for _, rest in pairs]


def evaluation_rows(
    learner: training.Learner, phase: str, episodes: tasks.Episodes, data_value: np.ndarray, outside: np.ndarray
) -> list[list[dict]]:
    """Returns one row an evaluation episode, for each agent."""
    first = torch.from_numpy(episodes.first_state)
    action = torch.from_numpy(learner.policy(episodes.first_state))
    predicted = overfitting.values(learner.agent.critics, learner.standardiser.apply(first), action).cpu().numpy()
    columns = episodes.undiscounted_return, episodes.length, episodes.discounted_return, predicted
    return [
        [
            {
                "phase": phase,
                "gradient_steps": learner.gradient_steps,
                "environment_steps": learner.environment_steps,
                "episode": episode,
                "return": float(columns[0][k, episode]),
                "length": int(columns[1][k, episode]),
                "discounted_return": float(columns[2][k, episode]),
                "predicted_value": float(columns[3][k, episode]),
                "data_value": float(data_value[k]),
                "imagined_outside": float(outside[k]),
            }
            for episode in range(episodes.length.shape[1])
        ]
        for k in range(len(learner.seeds))
    ]


def watch(rows: list[dict]) -> dict:
    """Returns the failure signatures of a run's life.

    Keys: `score_drop`, the last mean return before the switch minus the lowest mean return after it (returns, not scores; None
    without pre-training); `value_gap`, the largest mean of predicted value minus discounted return, in rewards;
    `imagined_outside`, the largest fraction of imagined components outside the data's range (None without augmentation).
    """
    frame = pd.DataFrame(rows)
    means = frame.groupby(["phase", "gradient_steps", "environment_steps"], sort=False).mean(numeric_only=True)
    drop = None
    if {"pretrain", "finetune"} <= set(frame.phase):
        drop = float(means.loc["pretrain", "return"].iloc[-1] - means.loc["finetune", "return"].min())
    gap = means["predicted_value"] - means["discounted_return"]
    outside = frame["imagined_outside"].max()
    return {
        "score_drop": drop,
        "value_gap": float(gap.max()),
        "imagined_outside": None if np.isnan(outside) else float(outside),
    }


# --- one population through its whole life --------------------------------------------------------------------------------


class Life:
    """A population of runs that share everything but the seed, on their way from nothing to a record.

    Attributes:
        runs: what is recorded at the end.
        arm: the settings they share.
        work: folder of checkpoints.
        device: what trains, "cpu" or "cuda".
    """

    def __init__(self, runs: Sequence[Run], arm: Arm, work: Path, device: str = "cpu") -> None:
        self.runs, self.arm, self.work, self.device = list(runs), arm, work, device
        self.task, self.dataset = tasks.find(runs[0].task), runs[0].dataset
        self.seeds = [run.seed for run in runs]
        self.population = len(runs)
        self.drawn, self.rest, self.standardiser, self.table, self.fitted = [], [], None, None, None
        self.rows: list[list[dict]] = [[] for _ in runs]
        self.wall_seconds, self.begin = 0.0, time.perf_counter()
        self.environments, self.buffer = None, None  # of the fine-tuning
        if arm.pretraining is not None:
            self.drawn, self.rest = draws(arm, self.task, self.dataset, self.seeds)
            states = [dataset.state for dataset in self.drawn]
            self.standardiser = transitions.Standardiser.fit(states, arm.pretraining.standardiser_epsilon)
            dtype = engine.PARAMETER_DTYPE[arm.precision]
            table = transitions.table(self.drawn, self.standardiser, dtype, arm.pretraining.horizon, arm.learner.discount)
            self.table = table.to(device)
        self.outside = np.full(self.population, np.nan)
        self.overfitting: list[dict | None] = [None] * self.population
        self.learner = training.learner(arm, self.task, self.seeds, self.standardiser, device)
        self.evaluator = tasks.Evaluator(self.task, self.seeds, arm.evaluation.episodes, arm.learner.discount, arm.dynamics)

    def folder(self, *parts) -> Path:
        """Returns the folder of the stage that depends on `parts`, the task, the data, the seeds and the device."""
        device = [] if self.device == "cpu" else [self.device]  # its random numbers go on nowhere else
        return self.work / key(self.task.name, self.dataset, self.seeds, self.arm.precision, *device, *parts)

    def data_value(self) -> np.ndarray:
        """Returns the mean of min_i Q_i(s, a) over the first rows drawn, NaN where there are none."""
        if self.table is None:
            return np.full(self.population, np.nan)
        rows = self.table[:, : self.arm.evaluation.probe_rows]
        batch = transitions.unpack(rows, self.task.state_size, self.task.action_size)
        return overfitting.values(self.learner.agent.critics, batch.state, batch.action).cpu().numpy().mean(axis=1)

    def evaluate(self, phase: str) -> None:
        """Appends the rows of one evaluation; evaluating shifts no stream that training draws from."""
        steps = self.learner.gradient_steps if phase == "pretrain" else self.learner.environment_steps
        episodes = self.evaluator(self.learner.policy, phase, steps)
        new = evaluation_rows(self.learner, phase, episodes, self.data_value(), self.outside)
        for k, rows in enumerate(new):
            if self.learner.diverged_at[k] is None:
                self.rows[k] += rows

    def imagine(self, number: int) -> Tensor:
        """Returns the table of imagined next states, standardised, with that number; notes how far outside the data it is."""
        batch = transitions.unpack(transitions.table(self.drawn, self.unscaled()), *self.sizes())
        generators = streams.torch_generators(self.seeds, "imagination", number)
        predict = self.predict if self.arm.pretraining.horizon == 1 else self.follow_windows(self.predict)
        imagined = augmentation.imagined_table(predict, batch, self.arm.augmentation.table_samples, generators)
        self.outside = augmentation.outside(imagined, batch.next_state).numpy()
        flat = self.standardiser.apply(imagined.flatten(1, 2))
        return flat.view(imagined.shape).to(self.table)

    def follow_windows(self, predict: augmentation.Predict) -> augmentation.Predict:
        """Returns the prediction along each row's window of recorded actions."""
        horizon, discount = self.arm.pretraining.horizon, self.arm.learner.discount
        windows = [transitions.windows(dataset, horizon, discount) for dataset in self.drawn]
        pairs = list(zip(self.drawn, windows, strict=True))
        action = torch.stack([torch.from_numpy(dataset.action[window.row]) for dataset, window in pairs])
        next_state = torch.stack([torch.from_numpy(dataset.next_state[window.row]) for dataset, window in pairs])
        length = torch.stack([torch.from_numpy(window.length) for window in windows])
        return augmentation.rollout(predict, action, next_state, length)

    def unscaled(self) -> transitions.Standardiser:
        """Returns the standardiser that leaves states in the environment's units."""
        return transitions.Standardiser.identity(self.population, self.task.state_size)

    def sizes(self) -> tuple[int, int]:
        """Returns the sizes of a state and an action."""
        return self.task.state_size, self.task.action_size

    # --- checkpoints

    def save(self, folder: Path, extra: dict[str, Tensor] | None = None, plain: dict | None = None) -> None:
        """Writes a checkpoint of the learner, the rows so far, and what a stage adds."""
        tensors, state = training.save(self.learner)
        state |= {"rows": self.rows, "wall_seconds": self.elapsed(), "outside": self.outside.tolist(), **(plain or {})}
        recording.save_checkpoint(folder, tensors | (extra or {}), state)

    def load(self, folder: Path) -> tuple[dict[str, Tensor], dict]:
        """Goes back to the checkpoint in `folder` and returns all that it holds."""
        tensors, state = recording.load_checkpoint(folder)
        training.restore(self.learner, tensors, state)
        self.rows = state["rows"]
        self.wall_seconds, self.begin = state["wall_seconds"], time.perf_counter()
        self.outside = np.array(state["outside"], dtype=float)
        return tensors, state

    def elapsed(self) -> float:
        """Returns the wall seconds of this life so far, those before a restart included."""
        return self.wall_seconds + time.perf_counter() - self.begin

    # --- stages

    def fit(self) -> None:
        """Fits the world model, or takes the one that another arm of the same seeds has fitted."""
        if self.arm.model is None:
            return
        deterministic = self.arm.augmentation.source == "deterministic"
        folder = self.folder("model", self.arm.model, self.arm.pretraining.transitions, deterministic)
        with waiting_claim(folder):
            if recording.has_checkpoint(folder):
                self.fitted = world_model.restore(*recording.load_checkpoint(folder), self.device)
            else:
                self.fitted = world_model.fit(
                    self.arm.model, self.drawn, self.rest, self.seeds, self.arm.precision, self.device, deterministic
                )
                recording.save_checkpoint(folder, *world_model.save(self.fitted))
        self.predict = world_model.predictor(self.arm.augmentation.source, self.fitted)

    def stages(self, to: int | None = None) -> Iterator[None]:
        """Yields after every evaluation, from wherever the last checkpoint is to the end of life.

        Args:
            to: environment steps; the first evaluation from there on is the last one, and leaves a checkpoint.
        """
        self.fit()
        yield from self.pretrain()
        yield from self.finetune(to)

    def pretrain(self) -> Iterator[None]:
        """Pre-trains, or takes what another arm of the same seeds has pre-trained."""
        if self.arm.pretraining is None:
            return
        folder = self.folder("pretraining", replace(self.arm, finetuning=Finetuning()))
        with waiting_claim(folder):
            if recording.has_checkpoint(folder):
                self.load(folder)
            if self.learner.gradient_steps < self.arm.pretraining.updates and None in self.learner.diverged_at:
                imagine = None if self.arm.augmentation is None else self.imagine
                for _ in training.pretrain(self.learner, self.table, imagine):
                    self.evaluate("pretrain")
                    self.save(folder)
                    yield
        if self.arm.pretraining.updates > 0:
            self.overfitting = self.ask_critics()

    def ask_critics(self) -> list[dict]:
        """Returns each agent's `overfitting.report` on rows that it drew and on rows, evenly chosen, that it left."""
        plan, count = self.arm.pretraining, min(self.arm.evaluation.probe_rows, *map(len, self.rest))
        left = []
        for k, rest in enumerate(self.rest):
            rows = transitions.table([rest], self.standardiser.of(k), self.table.dtype, plan.horizon, self.arm.learner.discount)
            left.append(rows[:, torch.linspace(0, len(rest) - 1, count).long()])
        rows = self.table[:, : self.arm.evaluation.probe_rows], torch.cat(left).to(self.device)
        trained, new = (transitions.unpack(each, *self.sizes()) for each in rows)
        generators = streams.torch_generators(self.seeds, "perturbations")
        return overfitting.report(self.learner.agent, trained, new, self.arm.learner, generators)

    def finetune(self, to: int | None = None) -> Iterator[None]:
        """Fine-tunes online, until the first evaluation from `to` environment steps on if that is given."""
        plan = self.arm.finetuning
        if None not in self.learner.diverged_at:
            return
        environments = self.environments = tasks.Lockstep(self.task, self.seeds, self.arm.dynamics)
        buffer = self.buffer = training.replay(self.learner, self.table if plan.keep_data else None)
        if recording.has_checkpoint(self.online):
            tensors, state = self.load(self.online)
            environments.restore({k: v.numpy() for k, v in tensors.items() if k in state["arrays"]}, state["environments"])
            buffer.size = 0
            buffer.extend(tensors["replay"])
        else:
            if self.arm.pretraining is not None:
                training.carry(self.learner, plan)
            self.evaluate("finetune")
        last = plan.steps if to is None else min(to, plan.steps)
        if self.learner.environment_steps < last:
            for _ in training.finetune(self.learner, environments, buffer):
                self.evaluate("finetune")
                self.keep(last)
                yield
                if self.learner.environment_steps >= last:
                    break
        environments.close()

    @property
    def online(self) -> Path:
        """The folder of the fine-tuning's checkpoints."""
        return self.folder("finetuning", self.arm)

    @property
    def long(self) -> bool:
        """Whether the actors are kept: those that were never pre-trained, for they need no standardiser beside them."""
        return self.arm.finetuning.steps > LONG and self.arm.pretraining is None

    def keep(self, last: int) -> None:
        """Writes a checkpoint, if one is due or this is the `last` step, and a long life's actors."""
        steps, plan = self.learner.environment_steps, self.arm.finetuning
        if self.long:
            actors = dict(zip(map(str, self.seeds), training.actors(self.learner), strict=True))
            recording.write_atomically(self.online / "actors" / f"{steps}.safetensors", safetensors.torch.save(actors))
        if steps < last and not checkpoint_due(plan, steps):
            return
        arrays, plain = self.environments.snapshot()
        extra = {name: torch.from_numpy(array) for name, array in arrays.items()}
        extra["replay"] = self.buffer.rows[:, : self.buffer.size]
        self.save(self.online, extra, {"arrays": list(arrays), "environments": plain})

    # --- what stays

    @property
    def ended(self) -> bool:
        """Whether every agent has lived to the end of the fine-tuning, or diverged."""
        return self.learner.environment_steps == self.arm.finetuning.steps or None not in self.learner.diverged_at

    def actor(self, steps: int, number: int = 0) -> Tensor:
        """Returns the parameters of an agent's actor as they were at the evaluation after `steps` environment steps."""
        content = (self.online / "actors" / f"{steps}.safetensors").read_bytes()
        return safetensors.torch.load(content)[str(self.seeds[number])]

    def policies(self, number: int) -> dict[str, Tensor]:
        """Returns the actors of an agent that are kept beside its record: a long life's at the medium level and at its end."""
        if not self.long:
            return {}
        curve = collection.curve(self.rows[number])
        medium = collection.medium_steps(curve, collection.medium_level(self.task, curve, ended=True))
        moments = {"medium": medium, "final": curve[-1]["environment_steps"]}
        return {name: self.actor(steps, number) for name, steps in moments.items() if steps}

    def write(self, root: Path) -> None:
        """Records the runs."""
        errors = self.fitted.errors if self.fitted is not None else None
        for k, run in enumerate(self.runs):
            diverged = self.learner.diverged_at[k]
            metadata = {
                "settings": self.arm,
                "draw_sha256": self.drawn[k].sha256 if self.drawn else None,
                "status": "finished" if diverged is None else "diverged",
                "diverged_at": diverged,
                "watch": watch(self.rows[k]) | {"overfitting": self.overfitting[k]},
                "world_model": errors[k] if errors else None,
                "provenance": recording.provenance(self.arm.precision, self.device),
                "wall_seconds": round(self.elapsed() / self.population, 1),
            }
            recording.write(root, run, self.rows[k], metadata, self.policies(k))
        if not self.long:
            shutil.rmtree(self.online, ignore_errors=True)  # the record is what stays


def twin(run: Run, arm: Arm, root: Path) -> Run | None:
    """Returns a recorded run of another study or arm that is the same in all but name, None if there is none."""
    for path in sorted(root.glob(f"*/{run.task}/{run.dataset}/*/seed{run.seed}.json")):
        other = Run.parse(path.relative_to(root).with_suffix("").as_posix())
        if difference_from(recording.verify(root, other), arm) is None:
            return other
    return None


def copy(run: Run, other: Run, root: Path) -> None:
    """Records `run` as what `other` already is: rows, settings and provenance."""
    rows, metadata = recording.read(root, other)
    metadata = {name: metadata[name] for name in recording.METADATA}
    recording.write(root, run, rows.to_dict("records"), metadata, recording.policies(root, other))


def prepare(run: Run, arm: Arm, device: str = "cpu") -> None:
    """Prepares this process for training a run.

    Raises:
        ValueError: the device does not multiply in the arm's precision: a record holds what its settings say, or nothing.
    """
    settings.require(
        arm.precision != "bfloat16" or engine.has_bfloat16(device),
        f"{run} is trained in bfloat16, of which this processor has no products (avx512_bf16 or amx_bf16): train it on one that "
        "has them, and here what is not in bfloat16, with --only",
    )
    engine.prepare(arm.precision, device)


def live(runs: Sequence[Run], arm: Arm, root: Path, work: Path, device: str = "cpu") -> list[Run]:
    """Returns the runs after recording them: trains what no checkpoint holds, waits for whoever records them already.

    Raises:
        ValueError: the device does not multiply in the arm's precision.
    """
    prepare(runs[0], arm, device)
    with ExitStack() as claims:
        for run in runs:  # in the order of their seeds everywhere, so that two processes never wait for each other
            claims.enter_context(waiting_claim(work / "runs" / str(run)))
        for run in recording.missing(root, runs):
            if other := twin(run, arm, root):
                copy(run, other, root)
        if missing := recording.missing(root, runs):
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

    Args:
        task: of the pools.
        seed: of the run.
        root: folder of the records.
        work: folder of the checkpoints: those of `record`, so that the two are one training.
        folders: of the pools, and of the whole replay.
        to: environment steps at which to stop, with a checkpoint and the pools that are determined by then; None: the end.
        report: takes a line for each evaluation and each pool.
    """
    one = grid.find("long")
    ((name, arm),) = one.arms.items()
    run, steps = Run(one.name, task.name, "none", name, seed), arm.finetuning.steps
    settings.require(to is None or 0 <= to <= steps, f"to is {to}, but it must be from 0 to {steps}, the steps of the training")
    collection.make_random(task, seed, folders[0], report)
    prepare(run, arm)
    with waiting_claim(work / "runs" / str(run)):
        missing, absent = recording.missing(root, [run]), collection.absent(task, *folders)
        if not missing and not absent:
            report(f"{run} and all pools of {task.name} are there already and stay as they are")
            return
        life, to_the_end = Life([run], arm, work), bool(missing) or "expert" in absent
        for _ in life.stages(to):
            curve = collection.curve(life.rows[0])
            report(f"{curve[-1]['environment_steps']:>9,} steps: greedy return {np.mean(curve[-1]['returns']):8.1f}")
            if not to_the_end and collection.medium_steps(curve, collection.medium_level(task, curve, ended=False)):
                break
        if life.ended and missing:
            life.write(root)
        curve, replay = collection.curve(life.rows[0]), life.buffer.rows[0, : life.buffer.size].numpy()
        whole = life.ended and None in life.learner.diverged_at
        lived = collection.Lived(task, seed, str(run), arm, curve, replay, life.actor, whole)
        collection.make(lived, *folders, report)


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


def here(jobs: Sequence[Job], root: Path, work: Path, workers: int, device: str = "cpu") -> Iterator[list[Run]]:
    """Yields the runs of each job when they are recorded: `workers` processes of one thread on this machine."""
    calls = (joblib.delayed(live)(*job, root, work, device) for job in unclaimed_first(jobs, work))
    yield from processes(workers)(calls)


def processes(workers: int) -> joblib.Parallel:
    """Returns what runs calls in `workers` processes, each with one thread from before its first import."""
    engine.prepare()  # tells who asked for more threads, since the workers will not
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        return joblib.Parallel(n_jobs=workers, pre_dispatch="n_jobs", return_as="generator_unordered")


def unclaimed_first(jobs: Sequence[Job], work: Path) -> Iterator[Job]:
    """Yields the jobs in order, but those that another process is at last: two processes share a study without waiting."""
    remaining = list(jobs)
    while remaining:
        free = (job for job in remaining if not any(claimed(work / "runs" / str(run)) for run in job[0]))
        job = next(free, remaining[0])
        remaining.remove(job)
        yield job


def elsewhere(jobs: Sequence[Job], root: Path, work: Path | None, address: str, device: str = "cpu") -> Iterator[list[Run]]:
    """Yields the runs of each job when they are recorded: trained by the workers of a Dask cluster, written here.

    A job whose worker dies is given to another one; on the same machine it goes on from the last checkpoint.

    Args:
        jobs: runs and their settings.
        root: folder of the records, here.
        work: folder of the checkpoints on the workers' machines, None for build/checkpoints/cluster of their clones.
        address: of the scheduler, e.g. "tcp://host:8786".
        device: what trains, on each worker's machine.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise RuntimeError("--cluster needs Dask: pip install 'mbaug[cluster]', here and on the workers") from None
    with Client(address) as client:
        futures = [client.submit(live_elsewhere, runs, arm, work, device, key=str(runs[0])) for runs, arm in jobs]
        for future in as_completed(futures):
            records = future.result()
            for record in records:
                recording.write(root, *record)
            yield [run for run, *_ in records]


def live_elsewhere(
    runs: Sequence[Run], arm: Arm, work: Path | None, device: str = "cpu"
) -> list[tuple[Run, list[dict], dict, dict]]:
    """Returns what `recording.write` takes for each run, after training it here: what travels home from a cluster's worker."""
    work = work or recording.repository() / "build" / "checkpoints" / "cluster"
    root = work / "records"
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
        seeds: in place of the study's own.
        workers: processes on this machine, one thread each.
        cluster: address of a Dask scheduler whose workers train in their place.
        population: agents at most that one process trains side by side.
        device: what trains, "cpu" or "cuda".
        report: takes a line for each finished run, and for each dataset that is not here.

    Raises:
        FileNotFoundError: no missing run has its data here.
    """
    missing = recording.missing(root, select(study, only, seeds))
    missing = missing if cluster else with_data(missing, report)
    jobs = populations(study, missing, profile, population)
    steps = {run: grid.updates(arm) for runs, arm in jobs for run in runs}
    done = elsewhere(jobs, root, work, cluster, device) if cluster else here(jobs, root, work, workers, device)
    with tqdm(total=sum(steps.values()), desc=study.name, unit=" updates", unit_scale=True, disable=None) as bar:
        for runs in done:
            for run in runs:
                report(f"{run}: {recording.verify(root, run)['wall_seconds']:.0f} s")
                bar.update(steps[run])
    return missing


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
            state = "running" if claimed(work / "runs" / str(run)) else "missing"
        states.append({"task": run.task, "arm": run.arm, "state": state})
    table = pd.DataFrame(states).value_counts().unstack("state", fill_value=0)
    order = [(task, arm) for task in study.tasks for arm in study.arms]
    return table.reindex(index=order, columns=["finished", "diverged", "running", "missing"], fill_value=0)


def claimed(folder: Path) -> bool:
    """Returns whether a process holds `folder`."""
    if not folder.exists():
        return False
    try:
        with recording.claim(folder):
            return False
    except recording.AlreadyRecording:
        return True


def step_seconds(root: Path) -> dict[str, float]:
    """Returns how long a gradient step of each algorithm takes one worker of this machine, in seconds.

    The median over the runs recorded on this processor; where there are none, what `benchmark.online` measures now.
    """
    processor, known = recording.provenance("any")["cpu"], {name: [] for name in settings.ALGORITHMS}
    for run, metadata in recording.load_metadata(root).items():
        if metadata["provenance"]["cpu"] == processor and "device" not in metadata["provenance"]:
            arm = grid.find(run.study).arm(run.arm)
            known[arm.algorithm].append(metadata["wall_seconds"] / max(grid.updates(arm), 1))
    return {name: float(np.median(found)) if found else 1 / benchmark.online(name, "float32") for name, found in known.items()}


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
        pretraining = key(run.task, run.dataset, run.seed, replace(arm, finetuning=Finetuning()))
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
    again = pd.DataFrame(life.rows[0])
    recorded = record.rows[: len(again)]
    columns = ["return", "predicted_value"]
    differences = (again[columns] - recorded[columns]).abs().max(axis=1)
    close = np.isclose(again[columns], recorded[columns], rtol=1e-3).all(axis=1)
    if not differences.any():
        return f"{run}: {len(again)} rows are equal bit for bit"
    if close.all():
        return f"{run}: {len(again)} rows are equal within 0.1 %, the largest difference is {differences.max():.2g}"
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
        record(study, root, work, budget, seeds=study.seeds[: budget.seeds])
    return recording.load_runs(root, name)
