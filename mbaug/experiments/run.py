"""Trains one population of agents, from drawing its data to recording it: draw, fit, pre-train, fine-tune.

Each stage is a function that leaves a checkpoint, so the same command resumes after a kill. What several arms share is trained
once: a world model for all arms that use it, a pre-training for all arms that differ only in their fine-tuning.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from mbaug import engine, files, streams, tasks
from mbaug.datasets import check, collect, read
from mbaug.experiments import checkpoint, measures, models, probes, records
from mbaug.experiments.models import FAST
from mbaug.experiments.records import Run
from mbaug.method import augmentation, imagination, training, transitions, world_model
from mbaug.method.arms import Arm
from mbaug.method.imagination import Fit
from mbaug.method.settings import Augmentation
from mbaug.method.transitions import Batch, Dataset, ReplayBuffer, Standardiser
from mbaug.provenance import circumstances, commit, provenance

STEPS_KEPT = 50_000, 100_000  # environment steps after which we keep the actor of a pre-trained agent
LONG = 100_000  # environment steps; longer runs keep their actors and replay buffer, from which pools are made
CHECKPOINTS = 40  # at most about this many per fine-tuning; a replay buffer of a million rows takes 250 MB in each
SAVED = "rows", "outside", "switch"  # attributes of a population that a checkpoint stores beside its learner


def union(*lists: Sequence[str]) -> list[str]:
    """Returns the items of several lists, each once, in order of first appearance."""
    return list(dict.fromkeys(item for each in lists for item in each))


@dataclass(eq=False)
class Population:
    """Runs that differ only in their seed, one agent each: their data, their progress, and what will be recorded."""

    runs: Sequence[Run]
    work: Path  # folder of checkpoints
    drawn: list[Dataset]  # each agent's draw from the dataset; empty for runs from scratch
    rest: list[Dataset]  # the remaining rows, for each agent
    table: Float[Tensor, "population rows width"]  # the drawn rows in the form that the learner reads
    learner: training.Learner
    evaluator: tasks.Evaluator
    rows: list[list[dict]]  # the evaluation episodes of each agent
    outside: list[float]  # fraction of imagined components outside the data's range, for each agent
    fits: list[Fit] = field(default_factory=list)  # each agent's world model; empty without augmentation
    switch: list[dict] = field(default_factory=list)  # measures of each agent at the end of pre-training; empty before
    replay: list[ReplayBuffer] = field(default_factory=list)  # one buffer, once fine-tuning has begun
    commits: list[str] = field(default_factory=list)  # of the code that trained what was loaded from checkpoints
    started: float = field(default_factory=time.perf_counter)  # moved back by the seconds before a restart

    @property
    def arm(self) -> Arm:
        """The settings that all runs share."""
        return self.learner.arm

    @property
    def long(self) -> bool:
        """Whether pools can be made from the runs: they keep the replay buffer, and the actor of each evaluation."""
        return self.arm.pretraining is None and self.arm.online.steps > LONG

    @property
    def seconds(self) -> float:
        """Wall seconds so far, including those before a restart."""
        return time.perf_counter() - self.started

    @property
    def learning(self) -> bool:
        """Whether at least one agent has not diverged."""
        return None in self.learner.diverged_at

    @property
    def ended(self) -> bool:
        """Whether every agent has been trained to the end or has diverged."""
        if not self.learning:
            return True
        if self.arm.finetuning is None:
            return self.learner.gradient_steps >= self.arm.offline.updates
        return self.learner.environment_steps >= self.arm.finetuning.steps


# --- draw, fit ------------------------------------------------------------------------------------------------------------


def prepare_for(arm: Arm, device: str = "cpu") -> None:
    """Prepares this process for training an arm; raises as `engine.prepare`."""
    engine.prepare(arm.precision, device)
    circumstances()  # this and the commit are cached now, because the folder may hold other code by the time a run is recorded
    commit()


def begin(runs: Sequence[Run], arm: Arm, work: Path, device: str = "cpu") -> Population:
    """Returns a population that has drawn its data but learned nothing yet."""
    task, seeds, plan = tasks.find(runs[0].task), [run.seed for run in runs], arm.pretraining
    drawn, rest, standardiser = [], [], Standardiser.identity(len(seeds), task.state_size)
    arithmetic = replace(FAST, precision=arm.precision, device=device)
    table = torch.empty(len(seeds), 0, 0)  # arms without data read no rows
    if plan is not None:
        pool = read.load(runs[0].dataset)
        check.check_dataset(task, pool)
        choose = transitions.draw_episodes if plan.whole_episodes else transitions.draw
        drawn, rest = map(list, zip(*(choose(pool, plan.transitions, seed) for seed in seeds), strict=True))
        if plan.standardise:
            standardiser = Standardiser.fit([dataset.state for dataset in drawn], plan.standardiser_epsilon)
        table = transitions.table(drawn, standardiser, arithmetic.dtype, plan.horizon, arm.learner.discount)
    learner = training.learner(arm, task, seeds, standardiser, arithmetic)
    evaluator = tasks.Evaluator(task, seeds, arm.evaluation.episodes, arm.learner.discount, arm.dynamics)
    return Population(
        runs=runs,
        work=work,
        drawn=drawn,
        rest=rest,
        table=table.to(device),
        learner=learner,
        evaluator=evaluator,
        rows=[[] for _ in runs],
        outside=[np.nan] * len(runs),
    )


def folder(population: Population, *parts: object) -> Path:
    """Returns the folder of the stage that depends on `parts`, the task, the data, the seeds, the precision and the device."""
    learner, pool = population.learner, population.runs[0].dataset
    device = [] if learner.arithmetic.device == "cpu" else [learner.arithmetic.device]  # only it can continue its random streams
    drawn = [dataset.sha256 for dataset in population.drawn]  # another pool may have the same name
    depends = learner.task.name, pool, learner.seeds, population.arm.precision, *device, *drawn, *parts
    return checkpoint.stage(population.work, *depends)


def fit(population: Population) -> None:
    """Fits each agent's world model, or loads the one that another arm has fitted."""
    arm, arithmetic, device = population.arm, population.learner.arithmetic, population.learner.arithmetic.device
    if arm.model is None or arm.augmentation is None:
        return
    for seed, drawn, rest in zip(population.learner.seeds, population.drawn, population.rest, strict=True):
        where = checkpoint.stage(population.work, drawn.sha256, seed, arm.model, arm.precision, device)
        with checkpoint.lock(where):
            if checkpoint.exists(where):
                with checkpoint.restoring(where):
                    tensors, state = checkpoint.load(where)
                    fitted, commits = models.restore(tensors, state, device), state["commits"]
            else:
                fitted, commits = imagination.fit(arm.model, drawn, rest, seed, arithmetic), [commit()]
                checkpoint.save(where, *models.save(fitted, commits))
            if arm.augmentation.source == "deterministic" and fitted.deterministic is None:
                model = world_model.fit_deterministic(arm.model, drawn, seed, arithmetic)
                fitted, commits = imagination.with_deterministic(fitted, model, rest, seed), union(commits, [commit()])
                checkpoint.save(where, *models.save(fitted, commits))
        population.commits = union(population.commits, commits)
        population.fits.append(fitted)


# --- evaluations and checkpoints ------------------------------------------------------------------------------------------


def evaluate(population: Population, phase: str) -> None:
    """Appends the rows of one evaluation. Evaluating draws nothing from the random streams of training."""
    learner, critics = population.learner, population.learner.agent.critics
    steps = learner.gradient_steps if phase == "pretrain" else learner.environment_steps
    episodes = population.evaluator(learner.policy, phase, steps)
    first, action = torch.from_numpy(episodes.first_state), torch.from_numpy(learner.policy(episodes.first_state))
    predicted = measures.values(critics, learner.standardiser.apply(first), action).cpu().numpy()
    data_value = np.full(len(population.runs), np.nan)
    if population.drawn:
        batch = training_rows(population)
        data_value = measures.values(critics, batch.state, batch.action).cpu().numpy().mean(axis=1)
    for k, rows in enumerate(population.rows):
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
                    "imagined_outside": float(population.outside[k]),
                }
                for episode in range(episodes.length.shape[1])
            ]


def training_rows(population: Population) -> Batch:
    """Returns rows that each agent learned from, on which we measure its values.

    Single transitions were drawn at random, so the first of them are a fair sample. Whole episodes follow one another, so there
    the rows are evenly spaced.
    """
    if population.arm.offline.whole_episodes:
        return spaced_rows(population, population.drawn)
    return transitions.unpack(population.table[:, : population.arm.evaluation.probe_rows], *population.learner.sizes)


def save(where: Path, population: Population, tensors: dict[str, Tensor] | None = None, plain: dict | None = None) -> None:
    """Writes a checkpoint of the agents, their rows so far, and what the stage adds."""
    learned, state = checkpoint.learner_state(population.learner)
    state |= {name: getattr(population, name) for name in SAVED} | {"wall_seconds": population.seconds}
    state |= {"commits": union(population.commits, [commit()])}
    checkpoint.save(where, learned | (tensors or {}), state | (plain or {}))


def load(where: Path, population: Population) -> tuple[dict[str, Tensor], dict]:
    """Restores the agents from the checkpoint in `where`, and returns all that it holds."""
    with checkpoint.restoring(where):
        tensors, state = checkpoint.load(where)
        checkpoint.restore_learner(population.learner, tensors, state)
        for name in SAVED:
            setattr(population, name, state[name])
        population.commits = union(population.commits, state["commits"])
        population.started = time.perf_counter() - state["wall_seconds"]
        return tensors, state


def keep(population: Population, name: str, number: int, tensors: dict[str, Tensor]) -> None:
    """Writes an agent's tensors into the folder of checkpoints, where they stay. `trained` ships some of them later."""
    which = population.runs[number]
    kept_digest(population.work, which).unlink(missing_ok=True)  # it is of an earlier training
    content = safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    files.write_atomically(kept(population.work, which, name), content)


def kept(work: Path, which: Run, name: str) -> Path:
    """Returns the path of what a run keeps: networks ("switch"), or an actor after `name` steps."""
    return which.path(work / "kept") / f"{name}.safetensors"


def kept_digest(work: Path, which: Run) -> Path:
    """Returns the path of the SHA-256 of the CSV that the training behind `kept` recorded: the same run may be trained twice."""
    return which.path(work / "kept") / "csv_sha256"


# --- offline --------------------------------------------------------------------------------------------------------------


def imagined(population: Population, rule: Augmentation, number: int) -> Tensor:
    """Returns table `number` of imagined next states, standardised, and stores how much of it lies outside the data."""
    learner, tables = population.learner, []
    for k, (fitted, drawn) in enumerate(zip(population.fits, population.drawn, strict=True)):
        generator = streams.torch_generator(learner.seeds[k], "imagination", number)
        table = augmentation.next_states(rule, fitted, drawn, generator, population.arm.offline.horizon)
        population.outside[k] = augmentation.outside(table, torch.from_numpy(drawn.next_state))
        tables.append(table)
    return learner.standardiser.apply(torch.stack(tables)).to(population.table)


def branched(population: Population, rule: Augmentation, number: int) -> Float[Tensor, "population rows width"]:
    """Returns table `number` of whole transitions, packed: the simulator's answers to the policies' own actions.

    Branches start in drawn states without clipped velocities, and go on from what the simulator then observes: these velocities
    may be clipped (with uniform actions 0.6 % of rows on Hopper, none on HalfCheetah). Actions have TD3's exploration noise.
    """
    learner, task, tables = population.learner, population.learner.task, []
    for k, drawn in enumerate(population.drawn):
        random = streams.numpy_generator(learner.seeds[k], "imagination", number)
        unclipped = drawn.state[tasks.unclipped(task, drawn.state)]
        start = random.permutation(unclipped)[: max(len(drawn) // rule.branch, 1)]
        replay, act = partial(check.replay, task), partial(explore, learner, k, random)
        rows = augmentation.branches(replay, act, start, rule.branch, len(drawn))
        next_state = torch.from_numpy(rows.next_state).unsqueeze(1)
        population.outside[k] = augmentation.outside(next_state, torch.from_numpy(drawn.next_state))
        tables.append(transitions.table([rows], learner.standardiser.of(k), population.table.dtype))
    return torch.cat(tables).to(population.table)


def explore(learner: training.Learner, k: int, random: np.random.Generator, state: np.ndarray) -> np.ndarray:
    """Returns the actions of agent k in a batch of states, with exploration noise."""
    greedy = learner.policy(np.stack([state.astype(np.float32)] * len(learner.seeds)))[k]
    return np.clip(greedy + learner.arm.learner.exploration_noise * random.standard_normal(greedy.shape), -1, 1)


def doubt(population: Population) -> Float[Tensor, "population rows"] | None:
    """Returns each drawn row's doubt (`imagination.doubt`), or None if the augmentation picks at random."""
    rule = population.arm.augmentation
    if rule is None or rule.picks == "random":
        return None
    pairs = zip(population.fits, population.drawn, strict=True)
    found = [imagination.doubt(fitted.model, torch.from_numpy(drawn.state)) for fitted, drawn in pairs]
    return torch.stack(found).to(population.table)


def pretrain(population: Population) -> Iterator[None]:
    """Yields at every evaluation of the pre-training; loads what another arm with the same seeds has pre-trained."""
    learner, plan, rule = population.learner, population.arm.pretraining, population.arm.augmentation
    if plan is None or plan.updates == 0:
        return
    imagine = None
    if rule is not None:
        imagine = partial(branched if rule.branch else imagined, population, rule)
    where = folder(population, "pretraining", population.arm.offline_part)
    with checkpoint.lock(where):
        if checkpoint.exists(where):
            load(where, population)
        if learner.gradient_steps < plan.updates and population.learning:
            for _ in training.pretrain(learner, population.table, imagine, doubt(population)):
                evaluate(population, "pretrain")
                save(where, population)
                yield
        if not population.switch and population.learning:
            population.switch = measure_at_switch(population)
            save(where, population)
    for k in range(len(population.runs)):
        keep(population, "switch", k, models.agent(learner, k))


def measure_at_switch(population: Population) -> list[dict]:
    """Returns each agent's measures at the end of pre-training: `overfitting` and `calibration`, or nothing if it diverged.

    Without fixed states of the task (`probes.known`), the calibration is None.
    """
    learner, medium = population.learner, f"{population.learner.task.name}-medium"
    elsewhere = spaced_rows(population, [read.load(medium)] * len(population.runs)) if medium in read.bundled() else None
    generators, new = streams.torch_generators(learner.seeds, "perturbations"), spaced_rows(population, population.rest)
    overfitting = measures.overfitting(learner, training_rows(population), new, generators, elsewhere)
    calibration = [None] * len(population.runs)
    if probes.known(learner.task):
        calibration = calibrations(population)
    found = zip(learner.diverged_at, overfitting, calibration, strict=True)
    return [{"overfitting": one, "calibration": other} if at is None else {} for at, one, other in found]


def calibrations(population: Population) -> list[dict]:
    """Returns how well each agent's critics predict the returns of its policy from the task's fixed states."""
    learner, probe = population.learner, probes.load(population.learner.task)
    episodes = population.evaluator.from_states(learner.policy, probe.state, population.arm.evaluation.probe_steps)
    state = learner.standardiser.apply(torch.from_numpy(episodes.first_state)).to(learner.agent.critics.network.flat)
    with torch.no_grad():
        values = learner.agent.critics(state, learner.algorithm.greedy(learner.agent, state)).cpu().numpy()
    return [
        measures.calibration(values[:, k], returns, probe.group, probes.GROUPS)
        for k, returns in enumerate(episodes.discounted_return)
    ]


def spaced_rows(population: Population, datasets: Sequence[Dataset]) -> Batch:
    """Returns evenly spaced rows of one dataset per agent, standardised as the agent's states are."""
    arm, learner, dtype = population.arm, population.learner, population.table.dtype
    count, chosen = min(arm.evaluation.probe_rows, *map(len, datasets)), []
    for k, dataset in enumerate(datasets):
        rows = transitions.table([dataset], learner.standardiser.of(k), dtype)  # of single steps, so that arms can be compared
        chosen.append(rows[:, torch.linspace(0, len(dataset) - 1, count).long()])
    return transitions.unpack(torch.cat(chosen).to(learner.arithmetic.device), *learner.sizes)


# --- online ---------------------------------------------------------------------------------------------------------------


def online_folder(population: Population) -> Path:
    """Returns the folder of the fine-tuning checkpoints."""
    return folder(population, "finetuning", population.arm)


def finetune(population: Population, to: int | None = None) -> Iterator[None]:
    """Yields once at the start, or at the last checkpoint if there is one, then after every evaluation.

    With `to`, stops at the first evaluation after at least that many environment steps.
    """
    learner, plan = population.learner, population.arm.finetuning
    if plan is None or not population.learning:
        return
    environments = tasks.Lockstep(learner.task, learner.seeds, population.arm.dynamics)
    buffer = training.replay(learner, population.table if plan.keep_data else None)
    population.replay = [buffer]
    where, last = online_folder(population), plan.steps if to is None else min(to, plan.steps)
    if checkpoint.exists(where):
        tensors, state = load(where, population)
        with checkpoint.restoring(where):
            environments.restore({name: tensors[name].numpy() for name in state["arrays"]}, state["environments"])
            buffer.size = 0
            buffer.extend(tensors["replay"])
    else:
        if population.drawn:
            training.carry(learner, plan)
        evaluate(population, "finetune")
    yield
    if learner.environment_steps < last:
        for _ in training.finetune(learner, environments, buffer):
            evaluate(population, "finetune")
            save_finetuning(where, population, environments, last)
            yield
            if learner.environment_steps >= last:
                break
    environments.close()


def save_finetuning(where: Path, population: Population, environments: tasks.Lockstep, last: int) -> None:
    """Writes the actors that are kept, and a checkpoint if one is due or if this is the `last` step."""
    learner, plan, steps = population.learner, population.arm.online, population.learner.environment_steps
    if steps in STEPS_KEPT and population.arm.pretraining is not None:
        for k, actor in enumerate(training.actors(learner)):
            keep(population, str(steps), k, {"actor": actor})
    if population.long:
        actors = dict(zip(map(str, learner.seeds), training.actors(learner), strict=True))
        files.write_atomically(where / "actors" / f"{steps}.safetensors", safetensors.torch.save(actors))
    apart = plan.steps // CHECKPOINTS  # steps between two checkpoints
    if steps >= last or steps % apart < plan.evaluation_interval:
        (buffer,), (arrays, plain) = population.replay, environments.snapshot()
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors["replay"] = buffer.rows[:, : buffer.size]
        save(where, population, tensors, {"arrays": list(arrays), "environments": plain})


# --- whole runs -----------------------------------------------------------------------------------------------------------


def train(runs: Sequence[Run], arm: Arm, work: Path, device: str = "cpu", to: int | None = None) -> Iterator[Population]:
    """Yields a population before it learns anything, then after every evaluation from the last checkpoint on.

    With `to`, stops at the first evaluation after at least that many environment steps, with a checkpoint.
    """
    population = begin(runs, arm, work, device)
    fit(population)
    yield population
    for _ in chain(pretrain(population), finetune(population, to)):
        yield population


def origin(population: Population) -> dict:
    """Returns the runs' provenance, with `earlier_commits` if other code trained a part of them."""
    now = provenance(population.arm.precision, population.learner.arithmetic.device)
    earlier = [commit for commit in population.commits if commit != now["commit"]]
    return now | ({"earlier_commits": earlier} if earlier else {})


def actor_at(population: Population, number: int, steps: int) -> Tensor:
    """Returns the parameters of an agent's actor at the evaluation after `steps` environment steps of a long run."""
    content = (online_folder(population) / "actors" / f"{steps}.safetensors").read_bytes()
    return safetensors.torch.load(content)[str(population.learner.seeds[number])]


def policies(population: Population, number: int) -> dict[str, Tensor]:
    """Returns the actors to keep beside an agent's record: in a long run, those at the medium level and at the end."""
    if not population.long:
        return {}
    curve = collect.curve(population.rows[number])
    medium = collect.medium_steps(curve, collect.medium_level(population.learner.task, curve, ended=True))
    moments = {"medium": medium, "final": curve[-1]["environment_steps"]}
    return {name: actor_at(population, number, steps) for name, steps in moments.items() if steps}


def record(population: Population, root: Path) -> None:
    """Records the runs, and removes their fine-tuning checkpoints unless pools are made from them."""
    for k, run in enumerate(population.runs):
        diverged, switch = population.learner.diverged_at[k], population.switch[k] if population.switch else {}
        metadata = {
            "settings": population.arm,
            "draw_sha256": population.drawn[k].sha256 if population.drawn else None,
            "status": "finished" if diverged is None else "diverged",
            "diverged_at": diverged,
            "watch": measures.signatures(population.rows[k]) | {"overfitting": switch.get("overfitting")},
            "calibration": switch.get("calibration"),
            "world_model": (population.fits[k].errors or None) if population.fits else None,
            "provenance": origin(population),
            "wall_seconds": round(population.seconds / len(population.runs), 1),
        }
        records.write(root, run, population.rows[k], metadata, policies(population, k))
        if population.arm.pretraining is not None:
            digest = records.read_metadata(root, run)["csv_sha256"]
            files.write_atomically(kept_digest(population.work, run), digest.encode())
    if not population.long:
        shutil.rmtree(online_folder(population), ignore_errors=True)  # the records replace them


def collected(which: Run, arm: Arm, root: Path, work: Path, to: int | None = None) -> Iterator[collect.Trained]:
    """Yields what a task's pools are made from: first as of the last checkpoint, then after every evaluation.

    When the training ends, records the run unless it is recorded already.
    """
    states = train([which], arm, work, to=to)
    population = next(states)  # not yet restored from the checkpoint
    for _ in states:
        (buffer,) = population.replay
        yield collect.Trained(
            task=population.learner.task,
            seed=which.seed,
            run=str(which),
            arm=arm,
            provenance=origin(population),
            curve=collect.curve(population.rows[0]),
            replay=buffer.rows[0, : buffer.size].numpy(),
            actor=partial(actor_at, population, 0),
            ended=population.ended and population.learning,
        )
    if population.ended and records.find(root, which) is None:
        record(population, root)
