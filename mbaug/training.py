"""The algorithms as a reader knows them: offline pre-training and online fine-tuning, as generators.

They log, save and draw nothing; each yields whenever an evaluation is due, and whoever consumes it evaluates, records or stops.
A `Learner` holds everything that is needed to go on, so that a run killed in the night continues bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mbaug import augmentation, engine, graphs, sac, streams, td3, transitions
from mbaug.engine import Adam
from mbaug.settings import Arm, Finetuning, require
from mbaug.tasks import Lockstep, Task
from mbaug.transitions import Batch, ReplayBuffer, Standardiser

ALGORITHMS = {"td3": td3, "sac": sac}
BLOCK = 50  # updates whose batches and noise are drawn at once
ACTING = "exploration", "uniform actions"  # streams of who acts, beside the simulators: on the CPU

Imagine = Callable[[int], Float[Tensor, "population rows samples state"]]


@dataclass
class Learner:
    """P agents in the middle of their lives.

    Attributes:
        arm: the settings they share.
        task: they live in.
        seeds: one an agent; all random streams of agent k come from seeds[k].
        agent: the networks (td3.Agent or sac.Agent).
        standardiser: of states, frozen once made.
        gradient_steps, environment_steps: so far.
        diverged_at: per agent None, or the counters at which its parameters stopped being finite.
    """

    arm: Arm
    task: Task
    seeds: list[int]
    agent: td3.Agent | sac.Agent
    standardiser: Standardiser
    gradient_steps: int = 0
    environment_steps: int = 0
    diverged_at: list[dict | None] = field(default_factory=list)
    generators: dict[str, list[torch.Generator]] = field(default_factory=dict)

    @property
    def algorithm(self):
        """The module that implements the arm's algorithm."""
        return ALGORITHMS[self.arm.algorithm]

    @property
    def device(self) -> torch.device:
        """Where the agent is, and what it learns from; the standardiser and the simulators are on the CPU."""
        return self.agent.actor.network.flat.device

    def stream(self, name: str) -> list[torch.Generator]:
        """Returns the generators of stream `name`, made when first asked for."""
        if name not in self.generators:
            device = "cpu" if name in ACTING else self.device.type
            self.generators[name] = streams.torch_generators(self.seeds, name, device=device)
        return self.generators[name]

    def watch(self) -> bool:
        """Notes which agents' parameters are no longer finite; returns whether any agent is still alive."""
        for network in (self.agent.actor.network, self.agent.critics.network):
            if torch.isfinite(network.flat.detach().sum()):
                continue
            for k, tensors in enumerate(networks_of(network, len(self.seeds))):
                if self.diverged_at[k] is None and not all(torch.isfinite(t).all() for t in tensors):
                    self.diverged_at[k] = {
                        "gradient_steps": self.gradient_steps,
                        "environment_steps": self.environment_steps,
                    }
        return None in self.diverged_at

    @torch.no_grad()
    def policy(self, state: Float[np.ndarray, "population episodes state"]) -> np.ndarray:
        """Returns the greedy actions for states in the environment's units."""
        standardised = self.standardiser.apply(torch.from_numpy(state)).to(self.agent.actor.network.flat)
        return torch.nan_to_num(self.algorithm.greedy(self.agent, standardised)).cpu().numpy()


def networks_of(network, population: int) -> Iterator[list[Tensor]]:
    """Yields the parameters of each agent in a network of P or, for twin critics, 2 P perceptrons."""
    for k in range(population):
        yield [tensor[k::population] for layer in network.layers for tensor in layer]


def learner(arm: Arm, task: Task, seeds: Sequence[int], standardiser: Standardiser | None = None, device: str = "cpu") -> Learner:
    """Returns P = len(seeds) fresh learners on `device`; without a standardiser states are used as they are."""
    algorithm = ALGORITHMS[arm.algorithm]
    generators = streams.torch_generators(seeds, "initialisation")
    agent = algorithm.create(task.state_size, task.action_size, arm.learner, generators, arm.precision, device)
    standardiser = standardiser or Standardiser.identity(len(seeds), task.state_size)
    return Learner(arm, task, list(seeds), agent, standardiser, diverged_at=[None] * len(seeds))


def _normals(generators: Sequence[torch.Generator], *shape: int) -> Float[Tensor, "block population ..."]:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators], dim=1)


def _update_noise(learner: Learner, updates: int) -> Float[Tensor, "block normals population batch action"]:
    """Returns what the updates of a block draw."""
    settings, size = learner.arm.learner, learner.task.action_size
    shape = updates, learner.algorithm.NORMALS, settings.batch_size, size
    drawn = [torch.randn(shape, generator=g, device=learner.device) for g in learner.stream("update noise")]
    return learner.algorithm.noise(torch.stack(drawn, dim=2), settings)


def block(
    learner: Learner, table: Float[Tensor, "population rows width"], updates: int = BLOCK
) -> tuple[Int[Tensor, "block population batch"], Batch, Float[Tensor, "block normals population batch action"]]:
    """Returns the rows that a block of updates draws from the table, their batches, and the noise."""
    shape, device = (updates, learner.arm.learner.batch_size), learner.device
    drawn = [torch.randint(table.shape[1], shape, generator=g, device=device) for g in learner.stream("batches")]
    index = torch.stack(drawn, dim=1)
    batches = transitions.unpack(transitions.gather(table, index), learner.task.state_size, learner.task.action_size)
    return index, batches, _update_noise(learner, updates)


def updater(learner: Learner, loss: Callable | None, capture: Callable | None = None) -> Callable[[Batch, Tensor], None]:
    """Returns a function of a block's batches and noise that does an update with each and counts `gradient_steps` on.

    It goes in stretches that end where the actor moves. A stretch is captured once and replayed (graphs.captured), one graph
    for each length and each place within the policy delay that it begins at.

    Args:
        learner: its agent is changed in place.
        loss: of the actor; None: it stays as it is.
        capture: of a stretch, for `graphs.captured`; None: that of the learner's device.
    """
    settings, stretches = learner.arm.learner, {}

    def stretch(first: int, *inputs: Tensor) -> None:
        for number, (*batch, noise) in enumerate(zip(*inputs, strict=True), start=first):
            learner.algorithm.update(learner.agent, Batch(*batch), noise, settings, number, loss)

    def learn(batches: Batch, noise: Tensor) -> None:
        start = 0
        while start < len(noise):
            place, first = learner.gradient_steps % settings.policy_delay, learner.gradient_steps + 1
            end = min(start + settings.policy_delay - place, len(noise))
            inputs = [part[start:end] for part in (*batches, noise)]
            if (place, end - start) not in stretches:
                state = list(memory(learner).values())
                stretches[place, end - start] = graphs.captured(stretch, first, inputs, state, capture)
            stretches[place, end - start](first, *inputs)
            learner.gradient_steps += end - start
            start = end

    return learn


def _on_grid(name: str, number: int) -> None:
    require(number % BLOCK == 0, f"{name} is {number}, but it must be a multiple of {BLOCK}")


def pretrain(learner: Learner, table: Float[Tensor, "population rows width"], imagine: Imagine | None = None) -> Iterator[None]:
    """Yields at every evaluation interval while P agents learn offline with the behaviour-cloning loss.

    Args:
        learner: goes on from where it is.
        table: packed, standardised rows (transitions.table), each agent its own, on the learner's device.
        imagine: returns the imagined next states of all rows, standardised, for the table number given; None: no augmentation.
    """
    arm, settings = learner.arm, learner.arm.learner
    plan, rule = arm.pretraining, arm.augmentation
    _on_grid("updates", plan.updates)
    _on_grid("evaluation_interval", plan.evaluation_interval)
    engine.tell_of_threads()
    imagined, learn = None, updater(learner, td3.actor_loss_bc)
    while learner.gradient_steps < plan.updates:
        if imagine is not None and (imagined is None or learner.gradient_steps % rule.redraw_interval == 0):
            imagined = imagine(learner.gradient_steps // rule.redraw_interval).to(learner.device)
        index, batches, noise = block(learner, table)
        if imagined is not None:
            count = augmentation.replaced(rule.rate, settings.batch_size)
            augmentation.replace_(batches.next_state, index, imagined, count, learner.stream("imagined samples"))
        learn(batches, noise)
        if not learner.watch():
            return
        if learner.gradient_steps % plan.evaluation_interval == 0:
            yield


def carry(learner: Learner, plan: Finetuning) -> None:
    """Keeps what `plan` carries into the online phase; the rest starts fresh. Targets become copies."""
    arm, old = learner.arm, learner.agent
    generators = streams.torch_generators(learner.seeds, "initialisation", "online")
    sizes = learner.task.state_size, learner.task.action_size
    fresh = learner.algorithm.create(*sizes, arm.learner, generators, arm.precision, learner.device.type)
    actor = old.actor if plan.carry_actor else fresh.actor
    critics = old.critics if plan.carry_critics else fresh.critics
    learner.agent = replace(
        fresh,
        actor=actor,
        critics=critics,
        target_actor=networks_copy(actor),
        target_critics=networks_copy(critics),
        actor_moments=old.actor_moments if plan.carry_actor and plan.carry_moments else fresh.actor_moments,
        critics_moments=old.critics_moments if plan.carry_critics and plan.carry_moments else fresh.critics_moments,
    )


def networks_copy(network):
    """Returns an actor or critics with a network of its own, held fixed."""
    return replace(network, network=network.network.copy())


def replay(learner: Learner, table: Float[Tensor, "population rows width"] | None = None) -> ReplayBuffer:
    """Returns a replay buffer for the whole online phase: empty or, given a table, starting with the offline rows."""
    plan, rows = learner.arm.finetuning, 0 if table is None else table.shape[1]
    sizes = learner.task.state_size, learner.task.action_size
    dtype = learner.agent.actor.network.flat.dtype
    buffer = ReplayBuffer(len(learner.seeds), plan.steps + rows, *sizes, dtype, learner.device)
    if table is not None:
        buffer.extend(table)
    return buffer


def finetune(learner: Learner, environments: Lockstep, buffer: ReplayBuffer) -> Iterator[None]:
    """Yields at every evaluation interval while P agents collect and learn online; every interaction counts.

    For the first `warmup_steps` nothing is learned; then the critics alone learn for `critic_updates`; then each environment step
    is followed by one update.

    Args:
        learner: goes on from where it is.
        environments: P of them, in lockstep.
        buffer: what is learned from; grows by one transition an agent and step.
    """
    settings, plan = learner.arm.learner, learner.arm.finetuning
    for name in ("steps", "warmup_steps", "critic_updates", "evaluation_interval"):
        _on_grid(name, getattr(plan, name))
    engine.tell_of_threads()
    population, action_size, actor = len(learner.seeds), learner.task.action_size, learner.agent.actor
    acting = replace(learner.agent, actor=replace(actor, network=actor.network.on_cpu()))
    explorers = [learner.algorithm.explorer(acting, k, settings) for k in range(population)]
    learn = updater(learner, learner.algorithm.actor_loss)
    mean, std = learner.standardiser.mean.numpy(), learner.standardiser.std.numpy()
    while learner.environment_steps < plan.steps:
        if learner.environment_steps == plan.warmup_steps:
            settle(learner, buffer, plan.critic_updates)
        warming = learner.environment_steps < plan.warmup_steps
        uniform = warming and plan.warmup_policy == "uniform"
        normals = _normals(learner.stream("exploration"), BLOCK, action_size).numpy()
        if uniform:
            draws = [torch.rand((BLOCK, action_size), generator=g) for g in learner.stream("uniform actions")]
            normals = (2 * torch.stack(draws, dim=1) - 1).numpy()
        if not warming:
            noise = _update_noise(learner, BLOCK)
            shape = {"size": (BLOCK, settings.batch_size), "dtype": torch.float64, "device": learner.device}
            places = torch.stack([torch.rand(**shape, generator=g) for g in learner.stream("batches")], dim=1)
        for number in range(BLOCK):
            state = (environments.state - mean) / std
            action = normals[number]
            if not uniform:
                action = np.stack([explore(s, n) for explore, s, n in zip(explorers, state, action, strict=True)])
                action = np.nan_to_num(action)
            step = environments.step(action)
            next_state = (step.next_state - mean) / std
            scalars = (array[:, None] for array in (step.reward, step.terminal, step.truncated))
            row = np.concatenate([state, action, next_state, *scalars], axis=1, dtype=np.float32)
            buffer.extend(torch.from_numpy(row).unsqueeze(1))
            learner.environment_steps += 1
            if warming:
                continue
            index = (places[number : number + 1] * buffer.size).long()
            rows = transitions.gather(buffer.rows, index)
            learn(transitions.unpack(rows, learner.task.state_size, action_size), noise[number : number + 1])
            acting.actor.network.flat.copy_(actor.network.frozen.flat)  # on the CPU the two are one: nothing to copy
        if not learner.watch():
            return
        if learner.environment_steps % plan.evaluation_interval == 0:
            yield


def settle(learner: Learner, buffer: ReplayBuffer, updates: int) -> None:
    """Moves the critics alone, so many updates on what the replay holds: they come to know an actor that they never saw learn."""
    learn = updater(learner, None)
    for _ in range(0, updates, BLOCK):
        _, batches, noise = block(learner, buffer.rows[:, : buffer.size])
        learn(batches, noise)


# --- a learner in a checkpoint --------------------------------------------------------------------------------------------


def memory(learner: Learner) -> dict[str, Tensor]:
    """Returns every tensor that the next update depends on, by name, in the learner's own memory."""
    tensors = {"standardiser.mean": learner.standardiser.mean, "standardiser.std": learner.standardiser.std}
    for part in fields(learner.agent):
        value = getattr(learner.agent, part.name)
        if isinstance(value, Tensor):
            tensors[part.name] = value.detach()
        elif isinstance(value, Adam):
            tensors |= {f"{part.name}.{name}": getattr(value, name) for name in ("first", "second", "steps")}
        else:
            tensors[part.name] = value.network.flat.detach()
    return tensors


def own_memory(learner: Learner) -> list[dict[str, Tensor]]:
    """Returns copies of each agent's actor, critics and standardiser, by name: all that its policy and values depend on."""
    found = []
    networks = {"actor": learner.agent.actor.network, "critics": learner.agent.critics.network}
    population = len(learner.seeds)
    for k in range(population):
        tensors = {
            f"{part}.{number}.{kind}": tensor[k::population].clone().cpu()
            for part, network in networks.items()
            for number, layer in enumerate(network.layers)
            for kind, tensor in zip(("weight", "bias"), layer, strict=True)
        }
        standardiser = learner.standardiser.of(k)
        found.append(tensors | {"standardiser.mean": standardiser.mean, "standardiser.std": standardiser.std})
    return found


def actors(learner: Learner) -> list[Float[Tensor, " parameters"]]:
    """Returns a copy of the parameters of each agent's actor, layer by layer, weight before bias."""
    return [torch.cat([t.flatten() for t in own]) for own in networks_of(learner.agent.actor.network, len(learner.seeds))]


def set_actor(learner: Learner, actor: Float[Tensor, " parameters"]) -> None:
    """Gives a learner of one agent an actor that `actors` returned."""
    flat = learner.agent.actor.network.flat.detach()
    own = sum(t.numel() for layer in learner.agent.actor.network.layers for t in layer)
    require(len(actor) == own, f"the actor has {len(actor)} parameters, but {learner.task.name} with these settings needs {own}")
    flat[:own] = actor


def save(learner: Learner) -> tuple[dict[str, Tensor], dict]:
    """Returns what a checkpoint of the learner holds: tensors, and plain data."""
    tensors = memory(learner)
    for name, generators in learner.generators.items():
        tensors |= {f"random.{name}.{k}": generator.get_state() for k, generator in enumerate(generators)}
    names = ("gradient_steps", "environment_steps", "diverged_at")
    plain = {name: getattr(learner, name) for name in names} | {"streams": list(learner.generators)}
    return tensors, plain


def restore(learner: Learner, tensors: dict[str, Tensor], plain: dict) -> None:
    """Sets a fresh learner to what `save` returned."""
    for name, tensor in memory(learner).items():
        tensor.copy_(tensors[name])
    for name in plain["streams"]:
        for k, generator in enumerate(learner.stream(name)):
            generator.set_state(tensors[f"random.{name}.{k}"])
    for name in ("gradient_steps", "environment_steps", "diverged_at"):
        setattr(learner, name, plain[name])
