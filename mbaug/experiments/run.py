"""One population of agents, from the drawing of its data to its record: draw, fit, pre-train, fine-tune.

Each stage is a function. It leaves a checkpoint, so that the same command goes on after a kill, and what several arms share is
trained once: a world model by all arms that use it, a pre-training by all ways online.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

from mbaug import engine, files, streams, tasks
from mbaug.checks import given, require
from mbaug.datasets import check, collect, read
from mbaug.experiments import checkpoint, measures, models, probes, records
from mbaug.experiments.models import FAST
from mbaug.experiments.records import Run
from mbaug.method import augmentation, imagination, training, transitions, world_model
from mbaug.method.arms import Arm
from mbaug.method.imagination import Fit
from mbaug.method.networks import Arithmetic
from mbaug.method.transitions import Batch, Dataset, Standardiser
from mbaug.provenance import commit, provenance
from mbaug.tasks import Task

STEPS_KEPT = 50_000, 100_000  # environment steps after which a pre-trained agent leaves its actor in the folder of checkpoints
LONG = 100_000  # environment steps; a longer training keeps its actors and its replay, for the pools that are made from them
CHECKPOINTS = 40  # of a fine-tuning, about, at most: a replay of a million rows is a quarter of a gigabyte in each


def key(*parts: object) -> str:
    """Returns a name for whatever depends on `parts` alone: what has the same name is trained once."""
    return hashlib.sha256(json.dumps(files.plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def together(*lists: Sequence[str]) -> list[str]:
    """Returns what is in any of some lists, once, in order."""
    return list(dict.fromkeys(item for some in lists for item in some))


def lock(folder: Path) -> FileLock:
    """Returns the lock of a folder: held by one process, and let go of when that process ends, however it ends."""
    with files.in_one_sentence(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "lock")


@dataclass(frozen=True)
class Setup:
    """What is trained, and where: runs that share everything but the seed, side by side in one process."""

    runs: tuple[Run, ...]
    arm: Arm
    work: Path  # folder of checkpoints
    device: str = "cpu"

    @property
    def task(self) -> Task:
        """The runs' task."""
        return tasks.find(self.runs[0].task)

    @property
    def seeds(self) -> list[int]:
        """One a run."""
        return [run.seed for run in self.runs]

    @property
    def arithmetic(self) -> Arithmetic:
        """What computes, in the arm's precision, on the device."""
        return replace(FAST, precision=self.arm.precision, device=self.device)

    @property
    def long(self) -> bool:
        """Whether the actors are kept: of trainings without pre-training, for they need no standardiser beside them."""
        return self.arm.pretraining is None and self.arm.online.steps > LONG


@dataclass(frozen=True, eq=False)
class Data:
    """What each agent drew from the dataset, what it left, and the drawn rows as a learner reads them. From scratch: nothing."""

    drawn: list[Dataset]
    rest: list[Dataset]
    standardiser: Standardiser
    table: Tensor  # [P, rows, width]


@dataclass(eq=False)
class Progress:
    """How far the agents have come, and all that will be recorded of them."""

    learner: training.Learner
    evaluator: tasks.Evaluator
    rows: list[list[dict]]  # of evaluation episodes, an agent
    outside: list[float]  # fraction of imagined components outside the data's range, an agent
    switch: list[dict]  # what was measured when pre-training ended, an agent; empty before
    commits: list[str]  # of the code that trained what came from checkpoints
    before: float  # wall seconds of the time before this process
    online: list["Online"] = field(default_factory=list)  # one, once the fine-tuning has begun
    begin: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """Returns the wall seconds so far, those before a restart included."""
        return self.before + time.perf_counter() - self.begin


@dataclass(frozen=True, eq=False)
class Online:
    """What agents learn in and from while they are fine-tuned."""

    environments: tasks.Lockstep
    buffer: transitions.ReplayBuffer


# --- draw, fit ------------------------------------------------------------------------------------------------------------


def prepare_for(arm: Arm, device: str = "cpu") -> None:
    """Prepares this process for training an arm.

    Raises:
        ValueError: the device does not multiply in the arm's precision: a record holds what its settings say, or nothing.
    """
    require(
        arm.precision != "bfloat16" or engine.has_bfloat16(device),
        "it is trained in bfloat16, of which this processor has no products (avx512_bf16 or amx_bf16): train it on one that has "
        "them, and here what is not in bfloat16, with --only",
    )
    engine.prepare(arm.precision, device)
    commit()  # asked now, because the folder may hold other code before the run is recorded


def draw(setup: Setup) -> Data:
    """Returns what each agent draws."""
    plan, task, population = setup.arm.pretraining, setup.task, len(setup.runs)
    plainly = Standardiser.identity(population, task.state_size)
    if plan is None:
        return Data([], [], plainly, torch.empty(population, 0, 2 * task.state_size + task.action_size + 3))
    pool = read.load(setup.runs[0].dataset)
    check.check_dataset(task, pool)
    choose = transitions.draw_episodes if plan.whole_episodes else transitions.draw
    pairs = [choose(pool, plan.transitions, seed) for seed in setup.seeds]
    drawn, rest = [drawn for drawn, _ in pairs], [rest for _, rest in pairs]
    standardiser = plainly
    if plan.standardise:
        standardiser = Standardiser.fit([dataset.state for dataset in drawn], plan.standardiser_epsilon)
    table = transitions.table(drawn, standardiser, setup.arithmetic.dtype, plan.horizon, setup.arm.learner.discount)
    return Data(drawn, rest, standardiser, table.to(setup.device))


def folder(setup: Setup, data: Data, *parts: object) -> Path:
    """Returns the folder of the stage that depends on `parts`, the task, the data, the seeds and the device."""
    device = [] if setup.device == "cpu" else [setup.device]  # its random numbers go on nowhere else
    drawn = [dataset.sha256 for dataset in data.drawn]  # a pool of the same name may hold other rows
    return setup.work / key(setup.task.name, setup.runs[0].dataset, setup.seeds, setup.arm.precision, *device, *drawn, *parts)


def fit(setup: Setup, data: Data, progress: Progress) -> list[Fit]:
    """Returns each agent's fitted world model, or the one that another arm has fitted; none without augmentation."""
    if setup.arm.model is None or setup.arm.augmentation is None:
        return []
    fits, source = [], setup.arm.augmentation.source
    for seed, drawn, rest in zip(setup.seeds, data.drawn, data.rest, strict=True):
        own = setup.work / key(drawn.sha256, seed, setup.arm.model, setup.arm.precision, setup.device)
        with lock(own):
            if checkpoint.exists(own):
                tensors, state = checkpoint.load(own)
                fitted, commits = models.restore(tensors, state, setup.device), state["commits"]
            else:
                fitted, commits = imagination.fit(setup.arm.model, drawn, rest, seed, setup.arithmetic), [commit()]
                checkpoint.save(own, *models.save(fitted, commits))
            if source == "deterministic" and fitted.deterministic is None:
                model = world_model.fit_deterministic(setup.arm.model, drawn, seed, setup.arithmetic)
                fitted, commits = imagination.with_deterministic(fitted, model, rest, seed), together(commits, [commit()])
                checkpoint.save(own, *models.save(fitted, commits))
        progress.commits = together(progress.commits, commits)
        fits.append(fitted)
    return fits


# --- evaluations and checkpoints ------------------------------------------------------------------------------------------


def begin(setup: Setup, data: Data) -> Progress:
    """Returns agents that have learned nothing yet."""
    arm, population = setup.arm, len(setup.runs)
    learner = training.learner(arm, setup.task, setup.seeds, data.standardiser, setup.arithmetic)
    evaluator = tasks.Evaluator(setup.task, setup.seeds, arm.evaluation.episodes, arm.learner.discount, arm.dynamics)
    return Progress(learner, evaluator, [[] for _ in setup.runs], [np.nan] * population, [], [], 0.0)


def evaluate(setup: Setup, data: Data, progress: Progress, phase: str) -> None:
    """Appends the rows of one evaluation; evaluating shifts no stream that training draws from."""
    learner = progress.learner
    steps = learner.gradient_steps if phase == "pretrain" else learner.environment_steps
    episodes = progress.evaluator(learner.policy, phase, steps)
    first, action = torch.from_numpy(episodes.first_state), torch.from_numpy(learner.policy(episodes.first_state))
    predicted = measures.values(learner.agent.critics, learner.standardiser.apply(first), action).cpu().numpy()
    data_value = np.full(len(setup.runs), np.nan)
    if data.drawn:
        batch = unpacked(setup, data.table[:, : setup.arm.evaluation.probe_rows])
        data_value = measures.values(learner.agent.critics, batch.state, batch.action).cpu().numpy().mean(axis=1)
    for k, rows in enumerate(progress.rows):
        if learner.diverged_at[k] is None:
            rows += [
                {
                    "phase": phase,
                    "gradient_steps": learner.gradient_steps,
                    "environment_steps": learner.environment_steps,
                    "episode": episode,
                    "return": float(episodes.undiscounted_return[k, episode]),
                    "length": int(episodes.length[k, episode]),
                    "discounted_return": float(episodes.discounted_return[k, episode]),
                    "predicted_value": float(predicted[k, episode]),
                    "data_value": float(data_value[k]),
                    "imagined_outside": float(progress.outside[k]),
                }
                for episode in range(episodes.length.shape[1])
            ]


def unpacked(setup: Setup, rows: Tensor) -> Batch:
    """Returns packed rows as batches of the setup's task."""
    return transitions.unpack(rows, setup.task.state_size, setup.task.action_size)


def save(where: Path, progress: Progress, tensors: dict[str, Tensor] | None = None, plain: dict | None = None) -> None:
    """Writes a checkpoint of the agents, their rows so far, and what a stage adds."""
    learned, state = checkpoint.learner_state(progress.learner)
    state |= {name: getattr(progress, name) for name in ("rows", "outside", "switch")} | {"wall_seconds": progress.seconds()}
    state |= {"commits": together(progress.commits, [commit()])}
    checkpoint.save(where, learned | (tensors or {}), state | (plain or {}))


def load(where: Path, progress: Progress) -> tuple[dict[str, Tensor], dict]:
    """Takes the agents back to the checkpoint in `where`, and returns all that it holds."""
    tensors, state = checkpoint.load(where)
    checkpoint.restore_learner(progress.learner, tensors, state)
    for name in ("rows", "outside", "switch"):
        setattr(progress, name, state[name])
    progress.commits = together(progress.commits, state["commits"])
    progress.before, progress.begin = state["wall_seconds"], time.perf_counter()
    return tensors, state


def keep(setup: Setup, name: str, number: int, tensors: dict[str, Tensor]) -> None:
    """Writes an agent's tensors into the folder of checkpoints, where they stay: what is worth shipping is chosen later."""
    content = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    files.write_atomically(setup.work / "kept" / str(setup.runs[number]) / f"{name}.safetensors", content)


# --- offline --------------------------------------------------------------------------------------------------------------


def imagined(setup: Setup, data: Data, fits: Sequence[Fit], progress: Progress, number: int) -> Tensor:
    """Returns the table of imagined next states with that number, standardised; notes how far outside the data it is."""
    tables, plan, rule = [], setup.arm.offline, given(setup.arm.augmentation, "an arm without augmentation imagines nothing")
    for k, (fitted, drawn) in enumerate(zip(fits, data.drawn, strict=True)):
        state, action, next_state = map(torch.from_numpy, (drawn.state, drawn.action, drawn.next_state))
        predict = imagination.predictor(rule.source, fitted, drawn)
        if plan.horizon > 1:
            window = transitions.windows(drawn, plan.horizon, setup.arm.learner.discount)
            recorded = torch.from_numpy(drawn.action[window.row]), torch.from_numpy(drawn.next_state[window.row])
            predict = augmentation.rollout(predict, *recorded, torch.from_numpy(window.length))
        generator = streams.torch_generator(setup.seeds[k], "imagination", number)
        table = augmentation.imagined_table(predict, state, action, next_state, rule.table_samples, generator)
        progress.outside[k] = augmentation.outside(table, next_state)
        tables.append(data.standardiser.of(k).apply(table.flatten(0, 1)).view(table.shape))
    return torch.stack(tables).to(data.table)


def pretrain(setup: Setup, data: Data, fits: Sequence[Fit], progress: Progress) -> Iterator[None]:
    """Yields at every evaluation of the pre-training, or takes what another arm of the same seeds has pre-trained."""
    plan, learner = setup.arm.pretraining, progress.learner
    if plan is None or plan.updates == 0:
        return
    where = folder(setup, data, "pretraining", setup.arm.offline_part)
    imagine = (lambda number: imagined(setup, data, fits, progress, number)) if fits else None
    with lock(where):
        if checkpoint.exists(where):
            load(where, progress)
        if learner.gradient_steps < plan.updates and None in learner.diverged_at:
            for _ in training.pretrain(learner, data.table, imagine):
                evaluate(setup, data, progress, "pretrain")
                save(where, progress)
                yield
        if not progress.switch and None in learner.diverged_at:
            progress.switch = at_the_switch(setup, data, progress)
            save(where, progress)
    for k in range(len(setup.runs)):
        keep(setup, "switch", k, models.agent(learner, k))
    for k, fitted in enumerate(fits):
        keep(setup, "models", k, models.save(fitted, [])[0])


def at_the_switch(setup: Setup, data: Data, progress: Progress) -> list[dict]:
    """Returns what is measured of each agent when pre-training ends: `overfitting` and `calibration` of its critics."""
    learner, seeds = progress.learner, setup.seeds
    trained = unpacked(setup, data.table[:, : setup.arm.evaluation.probe_rows])
    medium = f"{setup.task.name}-medium"
    elsewhere = some(setup, data, [read.load(medium)] * len(seeds)) if medium in read.bundled() else None
    generators = streams.torch_generators(seeds, "perturbations")
    overfitting = measures.overfitting(learner, trained, some(setup, data, data.rest), generators, elsewhere)
    probe = probes.load(setup.task)
    episodes = progress.evaluator.from_states(learner.policy, probe.state, setup.arm.evaluation.probe_steps)
    state = learner.standardiser.apply(torch.from_numpy(episodes.first_state)).to(learner.agent.critics.network.flat)
    with torch.no_grad():
        values = learner.agent.critics(state, learner.algorithm.greedy(learner.agent, state)).cpu().numpy()
    calibration = [
        measures.calibration(values[:, k], returns, probe.group, probes.GROUPS)
        for k, returns in enumerate(episodes.discounted_return)
    ]
    return [{"overfitting": one, "calibration": other} for one, other in zip(overfitting, calibration, strict=True)]


def some(setup: Setup, data: Data, datasets: Sequence[Dataset]) -> Batch:
    """Returns rows of a dataset for each agent, evenly chosen, as its critics see them."""
    plan, dtype, discount = setup.arm.offline, data.table.dtype, setup.arm.learner.discount
    count, chosen = min(setup.arm.evaluation.probe_rows, *map(len, datasets)), []
    for k, dataset in enumerate(datasets):
        rows = transitions.table([dataset], data.standardiser.of(k), dtype, plan.horizon, discount)
        chosen.append(rows[:, torch.linspace(0, len(dataset) - 1, count).long()])
    return unpacked(setup, torch.cat(chosen).to(setup.device))


# --- online ---------------------------------------------------------------------------------------------------------------


def online_folder(setup: Setup, data: Data) -> Path:
    """Returns the folder of the fine-tuning's checkpoints."""
    return folder(setup, data, "finetuning", setup.arm)


def finetune(setup: Setup, data: Data, progress: Progress, to: int | None = None) -> Iterator[None]:
    """Yields what there is before the first step or the last checkpoint's next one, then after every evaluation.

    With `to`, the first evaluation from so many environment steps on is the last one.
    """
    plan, learner = setup.arm.finetuning, progress.learner
    if plan is None or None not in learner.diverged_at:
        return
    environments = tasks.Lockstep(setup.task, setup.seeds, setup.arm.dynamics)
    buffer = training.replay(learner, data.table if plan.keep_data else None)
    progress.online = [Online(environments, buffer)]
    where, last = online_folder(setup, data), plan.steps if to is None else min(to, plan.steps)
    if checkpoint.exists(where):
        tensors, state = load(where, progress)
        arrays = {name: tensors[name].numpy() for name in state["arrays"]}
        environments.restore(arrays, state["environments"])
        buffer.size = 0
        buffer.extend(tensors["replay"])
    else:
        if data.drawn:
            training.carry(learner, plan)
        evaluate(setup, data, progress, "finetune")
    yield
    if learner.environment_steps < last:
        for _ in training.finetune(learner, environments, buffer):
            evaluate(setup, data, progress, "finetune")
            leave(setup, where, progress, last)
            yield
            if learner.environment_steps >= last:
                break
    environments.close()


def leave(setup: Setup, where: Path, progress: Progress, last: int) -> None:
    """Writes a checkpoint, if one is due or this is the `last` step, and the actors that are kept."""
    steps, plan, learner = progress.learner.environment_steps, setup.arm.online, progress.learner
    if steps in STEPS_KEPT and setup.arm.pretraining is not None:
        for k, actor in enumerate(training.actors(learner)):
            keep(setup, str(steps), k, {"actor": actor})
    if setup.long:
        actors = dict(zip(map(str, setup.seeds), training.actors(learner), strict=True))
        files.write_atomically(where / "actors" / f"{steps}.safetensors", safetensors.torch.save(actors))
    if steps >= last or steps % max(plan.steps // CHECKPOINTS, 1) < plan.evaluation_interval:
        (online,) = progress.online
        arrays, plain = online.environments.snapshot()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors["replay"] = online.buffer.rows[:, : online.buffer.size]
        save(where, progress, tensors, {"arrays": list(arrays), "environments": plain})


# --- from nothing to a record ---------------------------------------------------------------------------------------------


def train(setup: Setup, to: int | None = None) -> Iterator[tuple[Data, list[Fit], Progress]]:
    """Yields before anything is learned, then after every evaluation from wherever the last checkpoint is, the same objects.

    Args:
        setup: what is trained.
        to: environment steps; the first evaluation from there on is the last one, and leaves a checkpoint.
    """
    data = draw(setup)
    progress = begin(setup, data)
    fits = fit(setup, data, progress)
    yield data, fits, progress
    for _ in pretrain(setup, data, fits, progress):
        yield data, fits, progress
    for _ in finetune(setup, data, progress, to):
        yield data, fits, progress


def ended(setup: Setup, progress: Progress) -> bool:
    """Returns whether every agent has been trained to its end, or diverged."""
    steps = 0 if setup.arm.finetuning is None else setup.arm.finetuning.steps
    return progress.learner.environment_steps == steps or None not in progress.learner.diverged_at


def origin(setup: Setup, progress: Progress) -> dict:
    """Returns the runs' provenance; `earlier_commits` is there where other code trained a part of them."""
    now = provenance(setup.arm.precision, setup.device)
    earlier = [commit for commit in progress.commits if commit != now["commit"]]
    return now | ({"earlier_commits": earlier} if earlier else {})


def actor_at(where: Path, seed: int, steps: int) -> Tensor:
    """Returns the parameters of an actor as they were at the evaluation after so many environment steps of a long training."""
    return safetensors.torch.load((where / "actors" / f"{steps}.safetensors").read_bytes())[str(seed)]


def policies(setup: Setup, where: Path, rows: list[dict], seed: int) -> dict[str, Tensor]:
    """Returns the actors that are kept beside a record: a long training's at the medium level and at its end."""
    if not setup.long:
        return {}
    curve = collect.curve(rows)
    medium = collect.medium_steps(curve, collect.medium_level(setup.task, curve, ended=True))
    moments = {"medium": medium, "final": curve[-1]["environment_steps"]}
    return {name: actor_at(where, seed, steps) for name, steps in moments.items() if steps}


def record(setup: Setup, data: Data, fits: Sequence[Fit], progress: Progress, root: Path) -> None:
    """Records the runs, and removes the checkpoints of their fine-tuning unless pools are made from them."""
    where = online_folder(setup, data)
    for k, run in enumerate(setup.runs):
        diverged, switch = progress.learner.diverged_at[k], progress.switch[k] if progress.switch else {}
        metadata = {
            "settings": setup.arm,
            "draw_sha256": data.drawn[k].sha256 if data.drawn else None,
            "status": "finished" if diverged is None else "diverged",
            "diverged_at": diverged,
            "watch": measures.signatures(progress.rows[k]) | {"overfitting": switch.get("overfitting")},
            "calibration": switch.get("calibration"),
            "world_model": fits[k].errors or None if fits else None,
            "provenance": origin(setup, progress),
            "wall_seconds": round(progress.seconds() / len(setup.runs), 1),
        }
        records.write(root, run, progress.rows[k], metadata, policies(setup, where, progress.rows[k], run.seed))
    if not setup.long:
        shutil.rmtree(where, ignore_errors=True)  # the record is what stays


def collected(setup: Setup, root: Path, to: int | None = None) -> Iterator[collect.Trained]:
    """Yields what a task's pools are made from: once what the last checkpoint holds, then after every evaluation.

    At the end of the training its run is recorded, unless it is recorded already.
    """
    (run,) = setup.runs
    states = train(setup, to)
    data, fits, progress = next(states)  # before the checkpoint is read
    for data, fits, progress in states:  # noqa: B007 -- recorded below
        (online,) = progress.online
        where, done = online_folder(setup, data), ended(setup, progress) and None in progress.learner.diverged_at
        yield collect.Trained(
            task=setup.task,
            seed=run.seed,
            run=str(run),
            arm=setup.arm,
            provenance=origin(setup, progress),
            curve=collect.curve(progress.rows[0]),
            replay=online.buffer.rows[0, : online.buffer.size].numpy(),
            actor=lambda steps, where=where: actor_at(where, run.seed, steps),
            ended=done,
        )
    if ended(setup, progress) and records.missing(root, [run]):
        record(setup, data, fits, progress, root)
