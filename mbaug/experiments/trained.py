"""The small trained networks that chapters read: `data/models/<task>/<name>.safetensors`, of seed 0.

- `world_model` is a task's fitted world model with its deterministic control.
- `world_model_kl0.01` is a world model with a hundredth of the KL weight.
- `ensemble` is five small deterministic models.
- `<arm>` is an arm's agent at the switch, `<arm>_50000` its actor after 50,000 environment steps.
- `drawn/11_actions.csv` has values of more critics than we ship here, computed from what their
  recorded runs kept.

Weights are rounded to bfloat16, which halves the files; chapters compute with the rounded weights. Each file's header holds its
provenance and a digest. `python -m mbaug models` makes the missing files.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from mbaug import files, streams, tasks
from mbaug.checks import choose
from mbaug.datasets import read
from mbaug.experiments import checkpoint, measures, models, records, run
from mbaug.experiments.models import FAST
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, TWO, augmented, find
from mbaug.method import training, transitions
from mbaug.method.imagination import Fit
from mbaug.method.networks import Critics
from mbaug.method.settings import WorldModel
from mbaug.method.training import Learner
from mbaug.method.transitions import Standardiser
from mbaug.method.world_model import Deterministic, fit_deterministic
from mbaug.provenance import provenance
from mbaug.tasks import TASKS

FOLDER = files.CLONE / "data" / "models"
DETERMINISTIC = ARMS["deterministic"]  # its fit also holds the world model
KL = augmented(kl_weight=0.01)
WORLD_MODELS = {(task, "world_model"): DETERMINISTIC for task in TASKS} | {("hopper", "world_model_kl0.01"): KL}
# Deterministic models of 50 units per layer. A fit takes a second or two; the errors are 1.3 to 1.5 times those of full size.
SMALL = WorldModel(hidden=(32, 32, 32), transition_hidden=(16,), learning_rate=1e-3, batch_size=256, epochs=60)
MEMBERS = range(5)  # of an ensemble, the seeds of their fits
ENSEMBLES = [(task, "ensemble") for task in TASKS]
ACTION_ARMS = "vanilla", "augmented", "noise", "layernorm_data"  # arms for which we compute `values_along_actions`
ACTION_ROWS = 1_000  # first transitions of each run's draw
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from recorded actions to others
QUANTILES = (0.1, 0.5, 0.9)  # over rows, of the changes of values on that way
AT_SWITCH = [(task, "augmented") for task in TASKS] + [(task, arm) for task in TWO for arm in ("vanilla", "noise")]
AGENTS = {(task, arm): (arm, "switch") for task, arm in AT_SWITCH} | {  # values are the arm and the moment in its run
    (task, f"augmented_{steps}"): ("augmented", str(steps)) for task in TASKS for steps in run.STEPS_KEPT
}


def names() -> list[tuple[str, str]]:
    """Returns the task and the name of every file that should exist."""
    return [*WORLD_MODELS, *ENSEMBLES, *AGENTS]


def path_of(task: str, name: str, folder: Path = FOLDER) -> Path:
    """Returns the path of a file."""
    return folder / task / f"{name}.safetensors"


def existing(task: str, name: str, folder: Path = FOLDER) -> Path:
    """Returns the path of a file, which must exist.

    Raises:
        ValueError: No such file is shipped.
        FileNotFoundError: It is missing; the message has the command that makes it.
    """
    choose("shipped network", f"{task}/{name}", ["/".join(each) for each in names()])
    path = path_of(task, name, folder)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: `python -m mbaug models` makes it, once its run is recorded")
    return path


def load(task: str, name: str, folder: Path = FOLDER) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a file's tensors, in float32, and the plain data of its header; raises as `existing`, or CheckpointDamaged."""
    path = existing(task, name, folder)
    tensors, about = checkpoint.unpacked(path, "restore it with git, or remove it and run `python -m mbaug models`")
    return {name: tensor.float() for name, tensor in tensors.items()}, about


def world_model(task: str, name: str = "world_model", folder: Path = FOLDER) -> Fit:
    """Returns the fit on a task's medium-replay data, with its `errors` before the rounding; raises as `load`."""
    tensors, about = load(task, name, folder)
    return models.restore(tensors, about["fit"])


def ensemble(task: str) -> list[Deterministic]:
    """Returns the small models of a task's medium-replay data, which differ only in their seeds; raises as `load`."""
    tensors, about = load(task, "ensemble")
    standardiser = Standardiser(tensors["mean"], tensors["std"])
    return [Deterministic(models.network(str(seed), tensors), standardiser) for seed in about["seeds"]]


def agent(task: str, arm: str, moment: str = "switch", folder: Path = FOLDER) -> Learner:
    """Returns a learner with an arm's actor and critics at the switch; raises as `load`.

    It can act and predict values, but not resume training: targets and moments are fresh. For
    Walker2d and Ant, whose critics are not kept, all values are NaN. At a later `moment`, "50000"
    or "100000" environment steps, only the actor is from that moment.
    """
    tensors, about = load(task, arm, folder)
    learner = restored(task, arm, about["seed"], tensors)
    if moment != "switch":
        training.set_actor(learner, load(task, f"{arm}_{moment}", folder)[0]["actor"])
    return learner


def restored(task: str, arm: str, seed: int, tensors: dict[str, Tensor]) -> Learner:
    """Returns a learner with the networks and the standardiser in `tensors`; without a network, its parameters are NaN."""
    standardiser = Standardiser(*(tensors[f"standardiser.{part}"].view(1, -1) for part in ("mean", "std")))
    learner = training.learner(ARMS[arm], tasks.find(task), [seed], standardiser, arithmetic=FAST)
    for part in ("actor", "critics"):
        parameters = getattr(learner.agent, part).network.flat.detach()
        parameters.fill_(torch.nan)
        if f"{part}.0.weight" in tensors:
            parameters.copy_(models.network(part, tensors).flat.detach())
    return learner


# --- making them ----------------------------------------------------------------------------------------------------------


def make(root: Path, work: Path, folder: Path = FOLDER) -> Iterator[str]:
    """Writes the missing files that can be made, and yields a line for each missing file.

    World models are fitted, or loaded if an arm has fitted them. Agents come from what their
    recorded runs (`python -m mbaug record core`) kept in `work`/kept.
    """
    for task, name in names():
        path = path_of(task, name, folder)
        if path.exists():
            continue
        if (task, name) in ENSEMBLES:
            found = _ensemble(task)
        elif (task, name) in WORLD_MODELS:
            found = _fitted(task, name, work)
        else:
            found = _kept(task, *AGENTS[task, name], root, work)
        if found is None:
            yield f"{task}/{name} needs the networks that its recorded run kept, but {work} lacks them"
            continue
        tensors, about = found
        files.write_atomically(path, checkpoint.packed(rounded(tensors), about))
        yield str(path)


def rounded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with weights and biases rounded to the nearest bfloat16."""
    exact = ("mean", "std", "losses", "history")
    return {name: tensor if name.rpartition(".")[2] in exact else tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def _fitted(task: str, name: str, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the header of one of WORLD_MODELS, loaded if an arm has fitted it."""
    arm, which = WORLD_MODELS[task, name], Run(task, f"{task}-medium-replay", "deterministic", 0)
    run.prepare_for(arm)
    population = run.begin([which], arm, work)
    run.fit(population)
    (fitted,) = population.fits
    if arm.augmentation != DETERMINISTIC.augmentation:  # the control is already in `world_model`
        fitted = replace(fitted, deterministic=None)
    tensors, plain = models.save(fitted, population.commits)
    about = {"dataset": which.dataset, "seed": 0, "settings": arm.model, "draw_sha256": population.drawn[0].sha256}
    return tensors, about | {"fit": plain, "provenance": provenance(arm.precision)}


def _ensemble(task: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the header of a task's small deterministic models, after fitting them."""
    run.prepare_for(DETERMINISTIC)
    pool = f"{task}-medium-replay"
    drawn, _ = transitions.draw(read.load(pool), DETERMINISTIC.offline.transitions, seed=0)
    fitted = {str(seed): fit_deterministic(SMALL, drawn, seed, FAST) for seed in MEMBERS}
    tensors = {name: tensor for seed, model in fitted.items() for name, tensor in models.layers(seed, model.network).items()}
    tensors |= {"mean": fitted["0"].standardiser.mean, "std": fitted["0"].standardiser.std}
    about = {"dataset": pool, "seed": 0, "seeds": [*fitted], "settings": SMALL, "draw_sha256": drawn.sha256}
    return tensors, about | {"provenance": provenance(DETERMINISTIC.precision)}


def _tensors(path: Path) -> dict[str, Tensor]:
    """Returns what a run kept; raises ValueError if the file is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged ({reason}): remove it, then its run's networks count as kept elsewhere") from None


def _recorded(which: Run, moment: str, root: Path, work: Path) -> dict[str, Any] | None:
    """Returns the metadata of a run that kept its networks at a `moment` in `work`; None if another training is recorded."""
    digest = run.kept_digest(work, which)
    if not digest.exists() or not run.kept(work, which, moment).exists():
        return None
    metadata = records.find(root, which)
    return metadata if metadata is not None and metadata["csv_sha256"] == digest.read_text() else None


def _kept(task: str, arm: str, moment: str, root: Path, work: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Returns what a recorded run kept of an agent at a `moment`; None as `_recorded`."""
    which = Run(task, f"{task}-medium-replay", arm, 0)
    metadata = _recorded(which, moment, root, work)
    if metadata is None:
        return None
    about = {name: metadata[name] for name in ("settings", "draw_sha256", "provenance")}
    tensors = _tensors(run.kept(work, which, moment))
    if task not in TWO:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("critics.")}
    return tensors, about | {"run": str(which), "seed": which.seed, "moment": moment}


# --- values along actions -------------------------------------------------------------------------------------------------


@torch.no_grad()
def along_actions(
    critics: Critics,
    state: Float[Tensor, "population batch state"],
    action: Float[Tensor, "population batch action"],
    other: Float[Tensor, "population batch action"],
) -> Float[Tensor, "population shares quantiles"]:
    """v(p) = (Q(s, a + p (o - a)) - Q(s, a)) / SD Q(s, a), Q = min(Q_1, Q_2): how values change from recorded actions a to o.

    Returns the QUANTILES over rows at each of SHARES p. Above zero, a policy could gain by actions that are not in the data.
    """
    recorded, way = measures.values(critics, state, action), other - action
    moved = [measures.values(critics, state, action + share * way) - recorded for share in SHARES]
    change = torch.stack(moved, dim=1) / recorded.std(dim=-1, correction=0)[:, None, None]
    return change.quantile(change.new_tensor(QUANTILES), dim=-1).permute(1, 2, 0)


def values_along_actions(learner: Learner) -> pd.DataFrame:
    """Returns `along_actions` for the first rows of one agent's draw, one row per share.

    Each line leads from a recorded action to a random corner of the action space. The corners
    depend only on the seed.
    """
    seed, size = learner.seeds[0], learner.arm.offline.transitions
    drawn, _ = transitions.draw(read.load(f"{learner.task.name}-medium-replay"), size, seed)
    state, action = (torch.from_numpy(part[None, :ACTION_ROWS]) for part in (drawn.state, drawn.action))
    corner = torch.randint(0, 2, action.shape, generator=streams.torch_generator(seed, "corners")) * 2.0 - 1
    found = along_actions(learner.agent.critics, learner.standardiser.apply(state), action, corner)[0]
    return pd.DataFrame(found.numpy(), columns=["low", "median", "high"]).assign(share=SHARES)


def update_along_actions(root: Path, work: Path, path: Path = FOLDER / "drawn" / "11_actions.csv") -> None:
    """Writes the missing rows of `values_along_actions`, those of recorded runs whose networks are in `work`; other rows stay.

    The column `record` is the beginning of the digest of the run's CSV.
    """
    columns = ["task", "arm", "seed", "share", "low", "median", "high", "record"]
    known = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=columns)
    parts = []
    for task, arm, seed in product(TASKS, ACTION_ARMS, find("core").seeds):
        which = Run(task, f"{task}-medium-replay", arm, seed)
        own = known[(known["task"] == task) & (known["arm"] == arm) & (known["seed"] == seed)]
        metadata = _recorded(which, "switch", root, work)
        if metadata is not None and not own["record"].eq(metadata["csv_sha256"][:12]).any():
            rows = values_along_actions(restored(task, arm, seed, _tensors(run.kept(work, which, "switch"))))
            parts.append(rows.assign(task=task, arm=arm, seed=seed, record=metadata["csv_sha256"][:12])[columns])
        else:
            parts.append(own)
    table = pd.concat([part for part in parts if len(part)] or [known])
    files.write_atomically(path, table.to_csv(index=False, lineterminator="\n", float_format="%.5g").encode())
