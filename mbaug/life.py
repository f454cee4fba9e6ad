"""One population of agents through its whole life: draw transitions, fit a world model, pre-train, fine-tune, be recorded.

Each stage leaves a checkpoint, so that the same command goes on after a kill; stages that several arms share are trained once.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from mbaug import (
    augmentation,
    collection,
    engine,
    files,
    offline_data,
    overfitting,
    probes,
    recording,
    settings,
    streams,
    tasks,
    training,
    transitions,
    world_model,
)
from mbaug.recording import Run
from mbaug.settings import Arm, Finetuning
from mbaug.transitions import Dataset

KEPT = 50_000, 100_000  # environment steps after which a pre-trained agent leaves its actor in the folder of checkpoints
LONG = 100_000  # environment steps; a longer life keeps its actors, and its replay, for the pools that are made from them
CHECKPOINTS = 40  # of a fine-tuning, about, at most: a replay of a million rows is a quarter of a gigabyte in each

# --- parts ----------------------------------------------------------------------------------------------------------------


def key(*parts) -> str:
    """Returns a name for whatever depends on `parts` alone: what has the same name is trained once."""
    return hashlib.sha256(json.dumps(recording.plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def checkpoint_due(plan: Finetuning, steps: int) -> bool:
    """Returns whether the evaluation after `steps` environment steps leaves a checkpoint: not each does in a long life."""
    return steps % max(plan.steps // CHECKPOINTS, 1) < plan.evaluation_interval


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


def signatures(rows: list[dict]) -> dict:
    """Returns the failure signatures of a run's life.

    Keys: `score_drop`, the last mean return before the switch minus the lowest mean return after it (returns, not scores; None
    without pre-training); `value_gap`, the largest mean of predicted value minus discounted return, in rewards;
    `imagined_outside`, the largest fraction of imagined components outside the data's range (None without augmentation).
    All are None where there are no rows: the agent diverged before its first evaluation.
    """
    if not rows:
        return dict.fromkeys(("score_drop", "value_gap", "imagined_outside"))
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
    recording.commit()  # asked now, because the folder may hold other code before the run is recorded


# --- a life ---------------------------------------------------------------------------------------------------------------


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
        self.commits: list[str] = []  # of the code that trained what came from checkpoints
        self.wall_seconds, self.begin = 0.0, time.perf_counter()
        self.environments, self.buffer = None, None  # of the fine-tuning
        if arm.pretraining is not None:
            self.drawn, self.rest = draws(arm, self.task, self.dataset, self.seeds)
            states = [dataset.state for dataset in self.drawn]
            if arm.pretraining.standardise:
                self.standardiser = transitions.Standardiser.fit(states, arm.pretraining.standardiser_epsilon)
            else:
                self.standardiser = self.unscaled()
            dtype = engine.PARAMETER_DTYPE[arm.precision]
            table = transitions.table(self.drawn, self.standardiser, dtype, arm.pretraining.horizon, arm.learner.discount)
            self.table = table.to(device)
        self.outside = np.full(self.population, np.nan)
        self.overfitting: list[dict | None] = [None] * self.population
        self.calibration: list[dict | None] = [None] * self.population
        self.learner = training.learner(arm, self.task, self.seeds, self.standardiser, device)
        self.evaluator = tasks.Evaluator(self.task, self.seeds, arm.evaluation.episodes, arm.learner.discount, arm.dynamics)

    def folder(self, *parts) -> Path:
        """Returns the folder of the stage that depends on `parts`, the task, the data, the seeds and the device."""
        device = [] if self.device == "cpu" else [self.device]  # its random numbers go on nowhere else
        drawn = [dataset.sha256 for dataset in self.drawn]  # a pool of the same name may hold other rows
        return self.work / key(self.task.name, self.dataset, self.seeds, self.arm.precision, *device, *drawn, *parts)

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
        state |= {"commits": list(dict.fromkeys([*self.commits, recording.commit()]))}
        recording.save_checkpoint(folder, tensors | (extra or {}), state)

    def load(self, folder: Path) -> tuple[dict[str, Tensor], dict]:
        """Goes back to the checkpoint in `folder` and returns all that it holds."""
        tensors, state = recording.load_checkpoint(folder)
        training.restore(self.learner, tensors, state)
        self.remember(state)
        self.rows = state["rows"]
        self.wall_seconds, self.begin = state["wall_seconds"], time.perf_counter()
        self.outside = np.array(state["outside"], dtype=float)
        return tensors, state

    def remember(self, state: dict) -> None:
        """Notes whose code trained what a checkpoint holds; the first ones did not say."""
        self.commits = state.get("commits", ["unknown"])

    def provenance(self) -> dict:
        """Returns the runs' provenance; `earlier_commits` is there where other code trained a part of their life."""
        now = recording.provenance(self.arm.precision, self.device)
        earlier = [commit for commit in self.commits if commit != now["commit"]]
        return now | ({"earlier_commits": earlier} if earlier else {})

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
        with recording.claim(folder, wait=True):
            if recording.has_checkpoint(folder):
                tensors, state = recording.load_checkpoint(folder)
                self.fitted = world_model.restore(tensors, state, self.device)
                self.remember(state)
            else:
                self.fitted = world_model.fit(
                    self.arm.model, self.drawn, self.rest, self.seeds, self.arm.precision, self.device, deterministic
                )
                tensors, state = world_model.save(self.fitted)
                recording.save_checkpoint(folder, tensors, state | {"commits": [recording.commit()]})
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
        folder = self.folder("pretraining", replace(self.arm, finetuning=None))
        with recording.claim(folder, wait=True):
            if recording.has_checkpoint(folder):
                self.load(folder)
            if self.learner.gradient_steps < self.arm.pretraining.updates and None in self.learner.diverged_at:
                imagine = None if self.arm.augmentation is None else self.imagine
                for _ in training.pretrain(self.learner, self.table, imagine):
                    self.evaluate("pretrain")
                    self.save(folder)
                    yield
        if self.arm.pretraining.updates > 0 and None in self.learner.diverged_at:
            self.overfitting = self.ask_critics()
            self.calibration = self.try_out()
            self.leave("switch", dict(enumerate(training.own_memory(self.learner))))
            if self.fitted is not None:
                tensors, _ = world_model.save(self.fitted)
                held = {name: tensor for name, tensor in tensors.items() if "." in name}  # not the curves of the fit
                self.leave("models", {k: {name: part[k] for name, part in held.items()} for k in range(self.population)})

    def ask_critics(self) -> list[dict]:
        """Returns each agent's `overfitting.report`: on rows that it drew, rows that it left, and rows of the medium policy."""
        trained = transitions.unpack(self.table[:, : self.arm.evaluation.probe_rows], *self.sizes())
        new = self.some(self.rest)
        generators = streams.torch_generators(self.seeds, "perturbations")
        medium = f"{self.task.name}-medium"
        elsewhere = self.some([transitions.load(medium)] * self.population) if medium in offline_data.bundled() else None
        return overfitting.report(self.learner.agent, trained, new, self.arm.learner, generators, elsewhere)

    def some(self, datasets: Sequence[Dataset]) -> transitions.Batch:
        """Returns rows of a dataset for each agent, evenly chosen, as its critics see them."""
        count, chosen = min(self.arm.evaluation.probe_rows, *map(len, datasets)), []
        plan, dtype, discount = self.arm.pretraining, self.table.dtype, self.arm.learner.discount
        for k, dataset in enumerate(datasets):
            rows = transitions.table([dataset], self.standardiser.of(k), dtype, plan.horizon, discount)
            chosen.append(rows[:, torch.linspace(0, len(dataset) - 1, count).long()])
        return transitions.unpack(torch.cat(chosen).to(self.device), *self.sizes())

    def try_out(self) -> list[dict]:
        """Returns each agent's `overfitting.calibration`: its policy is rolled out from the task's fixed states."""
        probe = probes.load(self.task)
        episodes = self.evaluator.from_states(self.learner.policy, probe.state, self.arm.evaluation.probe_steps)
        flat = self.learner.agent.critics.network.flat
        state = self.standardiser.apply(torch.from_numpy(episodes.first_state)).to(flat)
        with torch.no_grad():
            values = self.learner.agent.critics(state, self.learner.algorithm.greedy(self.learner.agent, state)).cpu().numpy()
        returns = episodes.discounted_return
        return [overfitting.calibration(values[:, k], returns[k], probe.group, probes.GROUPS) for k in range(self.population)]

    def leave(self, name: str, found: dict[int, dict[str, Tensor]]) -> None:
        """Writes an agent's tensors into the folder of checkpoints, where they stay: what is worth shipping is chosen later."""
        for k, tensors in found.items():
            content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
            files.write_atomically(self.work / "kept" / str(self.runs[k]) / f"{name}.safetensors", content)

    def finetune(self, to: int | None = None) -> Iterator[None]:
        """Fine-tunes online, until the first evaluation from `to` environment steps on if that is given."""
        plan = self.arm.finetuning
        if plan is None or None not in self.learner.diverged_at:
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
        return self.arm.pretraining is None and self.arm.finetuning.steps > LONG

    def keep(self, last: int) -> None:
        """Writes a checkpoint, if one is due or this is the `last` step, and a long life's actors."""
        steps, plan = self.learner.environment_steps, self.arm.finetuning
        if steps in KEPT and self.arm.pretraining is not None:
            self.leave(str(steps), {k: {"actor": actor} for k, actor in enumerate(training.actors(self.learner))})
        if self.long:
            actors = dict(zip(map(str, self.seeds), training.actors(self.learner), strict=True))
            files.write_atomically(self.online / "actors" / f"{steps}.safetensors", safetensors.torch.save(actors))
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
        steps = 0 if self.arm.finetuning is None else self.arm.finetuning.steps
        return self.learner.environment_steps == steps or None not in self.learner.diverged_at

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
                "watch": signatures(self.rows[k]) | {"overfitting": self.overfitting[k]},
                "calibration": self.calibration[k],
                "world_model": errors[k] if errors else None,
                "provenance": self.provenance(),
                "wall_seconds": round(self.elapsed() / self.population, 1),
            }
            recording.write(root, run, self.rows[k], metadata, self.policies(k))
        if not self.long:
            shutil.rmtree(self.online, ignore_errors=True)  # the record is what stays
