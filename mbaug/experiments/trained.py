"""The small trained networks that chapters read: `data/models/<task>/<name>.safetensors`, of seed 0.

`world_model` is a task's fitted world model with its deterministic control, `world_model_kl0.01` one with a hundredth of the KL
weight, `ensemble` five small deterministic models; a file named after an arm holds its agent at the switch, and `<arm>_50000` its
actor after so many environment steps. Weights are rounded to bfloat16, which halves the files: what a chapter draws is computed
from the rounded ones. Each file's header says where it comes from and holds a digest. `python -m mbaug models` makes what is
missing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from mbaug import files, tasks
from mbaug.datasets import read
from mbaug.experiments import checkpoint, models, records, run
from mbaug.experiments.models import FAST
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, TWO, augmented
from mbaug.method import training, transitions
from mbaug.method.imagination import Fit
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner
from mbaug.method.transitions import Standardiser
from mbaug.method.world_model import Deterministic, fit_deterministic
from mbaug.provenance import provenance
from mbaug.tasks import TASKS

FOLDER = read.FOLDER.parent / "models"
DETERMINISTIC = ARMS["deterministic"]  # its fit holds the world model, too
KL = augmented(kl_weight=0.01)
WORLD_MODELS = {(task, "world_model"): DETERMINISTIC for task in TASKS} | {("hopper", "world_model_kl0.01"): KL}
# Deterministic models of 50 units a layer: a second or two each, and they err 1.3 to 1.5 times as much as that of full size.
SMALL = WorldModel(hidden=(32, 32, 32), transition_hidden=(16,), learning_rate=1e-3, batch_size=256, epochs=60)
ENSEMBLES = {(task, "ensemble"): range(5) for task in TASKS}  # and the seeds of their fits
AGENTS = [(task, "augmented") for task in TASKS] + [(task, arm) for task in TWO for arm in ("vanilla", "noise")]


def names() -> list[tuple[str, str]]:
    """Returns task and name of every file that there should be."""
    actors = [(task, f"augmented_{steps}") for task in TASKS for steps in run.STEPS_KEPT]
    return [*WORLD_MODELS, *ENSEMBLES, *AGENTS, *actors]


def path_of(task: str, name: str, folder: Path = FOLDER) -> Path:
    """Returns where a file lies."""
    return folder / task / f"{name}.safetensors"


def existing(task: str, name: str, folder: Path = FOLDER) -> Path:
    """Returns where a file lies; FileNotFoundError, if it does not lie there, names the command that makes it."""
    path = path_of(task, name, folder)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: `python -m mbaug models` makes it, once its run is recorded")
    return path


def load(task: str, name: str, folder: Path = FOLDER) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a file's tensors, in float32, and what its header says; raises as `existing`, and CheckpointDamaged."""
    path = existing(task, name, folder)
    tensors, about = checkpoint.unpacked(path, "restore it with git, or remove it and run `python -m mbaug models`")
    return {name: tensor.float() for name, tensor in tensors.items()}, about


def world_model(task: str, name: str = "world_model", folder: Path = FOLDER) -> Fit:
    """Returns the fit of a task's medium-replay data, with what `load` raises; its `errors` are those before the rounding."""
    tensors, about = load(task, name, folder)
    return models.restore(tensors, about["fit"])


def ensemble(task: str, folder: Path = FOLDER) -> list[Deterministic]:
    """Returns the small models of a task's medium-replay data, which differ in their seeds alone; raises as `load`."""
    tensors, about = load(task, "ensemble", folder)
    standardiser = Standardiser(tensors["mean"], tensors["std"])
    return [Deterministic(models.network(str(seed), tensors), standardiser) for seed in about["seeds"]]


def agent(task: str, arm: str, moment: str = "switch", folder: Path = FOLDER) -> Learner:
    """Returns a learner whose actor and critics are an arm's at the switch, with what `load` raises.

    Its targets and moments are fresh: it acts and values, and is not trained on. Of Walker2d and Ant, whose critics are not kept,
    every value is NaN. At another `moment`, "50000" or "100000" environment steps, the actor alone is that of the moment.
    """
    tensors, about = load(task, arm, folder)
    standardiser = Standardiser(*(tensors[f"standardiser.{part}"].view(1, -1) for part in ("mean", "std")))
    learner = training.learner(ARMS[arm], tasks.find(task), [about["seed"]], standardiser, arithmetic=FAST)
    for part in ("actor", "critics"):
        own = getattr(learner.agent, part).network.flat.detach()
        own.fill_(torch.nan)
        if f"{part}.0.weight" in tensors:
            own.copy_(models.network(part, tensors).flat.detach())
    if moment != "switch":
        training.set_actor(learner, load(task, f"{arm}_{moment}", folder)[0]["actor"])
    return learner


def policy(
    task: str, arm: str = "augmented", moment: str = "switch", folder: Path = FOLDER
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the greedy action of an agent, as a function of a state."""
    learner = agent(task, arm, moment, folder)
    return lambda state: learner.policy(state[None, None])[0, 0]


# --- making them ----------------------------------------------------------------------------------------------------------


def make(work: Path, root: Path, folder: Path = FOLDER) -> Iterator[str]:
    """Writes every file that is missing and can be made, and yields a line for each.

    A world model is fitted, or read if an arm has fitted it; an agent is what its recorded run kept in `work`/kept.
    """
    for task, name in names():
        path = path_of(task, name, folder)
        if path.exists():
            continue
        if (task, name) in ENSEMBLES:
            found = _ensemble(task, ENSEMBLES[task, name])
        else:
            found = _fitted(task, name, work) if (task, name) in WORLD_MODELS else _kept(task, name, work, root)
        if found is None:
            yield f"{task}/{name} waits for its run: python -m mbaug record core"
            continue
        tensors, about = found
        files.write_atomically(path, checkpoint.packed(rounded(tensors), about))
        yield str(path)


def rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with weights and biases in bfloat16, to the nearest."""
    exact = ("mean", "std", "losses", "history")
    return {name: tensor if name.rpartition(".")[2] in exact else tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def _fitted(task: str, name: str, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    arm, which = WORLD_MODELS[task, name], Run(task, f"{task}-medium-replay", "deterministic", 0)
    run.prepare_for(arm)
    population = run.begin([which], arm, work)
    run.fit(population)
    (fitted,) = population.fits
    if arm.augmentation != DETERMINISTIC.augmentation:  # another arm may have fitted the control: it is in the task's own file
        fitted = replace(fitted, deterministic=None)
    tensors, plain = models.save(fitted, population.commits)
    about = {"dataset": which.dataset, "seed": 0, "settings": arm.model, "draw_sha256": population.drawn[0].sha256}
    return tensors, about | {"fit": plain, "provenance": provenance(arm.precision)}


def _ensemble(task: str, seeds: Iterable[int]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    run.prepare_for(DETERMINISTIC)
    pool = f"{task}-medium-replay"
    drawn, _ = transitions.draw(read.load(pool), DETERMINISTIC.offline.transitions, seed=0)
    fitted = {str(seed): fit_deterministic(SMALL, drawn, seed, FAST) for seed in seeds}
    tensors = {name: tensor for seed, model in fitted.items() for name, tensor in models.layers(seed, model.network).items()}
    tensors |= {"mean": fitted["0"].standardiser.mean, "std": fitted["0"].standardiser.std}
    about = {"dataset": pool, "seed": 0, "seeds": [*fitted], "settings": SMALL, "draw_sha256": drawn.sha256}
    return tensors, about | {"provenance": provenance(DETERMINISTIC.precision)}


def _kept(task: str, name: str, work: Path, root: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns what a recorded run kept of an agent; None if it is not recorded, or kept elsewhere."""
    arm, _, steps = name.partition("_")
    which = Run(task, f"{task}-medium-replay", arm, 0)
    path = work / "kept" / str(which) / f"{steps or 'switch'}.safetensors"
    metadata = records.find(root, which)
    if metadata is None or not path.exists():
        return None
    about = {name: metadata[name] for name in ("settings", "draw_sha256", "provenance")}
    tensors = safetensors.torch.load_file(path)
    if task not in TWO:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("critics.")}
    return tensors, about | {"run": str(which), "seed": which.seed, "moment": steps or "switch"}
