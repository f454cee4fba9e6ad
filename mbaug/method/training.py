"""The algorithms as a reader knows them: offline pre-training and online fine-tuning, as generators.

They log, save and plot nothing. Each yields whenever an evaluation is due. The caller evaluates,
records or stops. A `Learner` holds everything that is needed to go on, so that an interrupted run
continues bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from mbaug import streams
from mbaug.checks import require
from mbaug.method import augmentation, transitions
from mbaug.method.algorithm import Algorithm
from mbaug.method.arms import ALGORITHMS, Arm
from mbaug.method.networks import PLAIN, Arithmetic
from mbaug.method.settings import BLOCK, Augmentation, Finetuning
from mbaug.method.transitions import Batch, ReplayBuffer, Standardiser
from mbaug.tasks import Lockstep, Task

ACTING = "exploration", "uniform actions"  # random streams of acting, on the CPU as the simulators are

Table = Float[Tensor, "population rows width"]
BlockNoise = Float[Tensor, "block normals population batch action"]
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (states, standard normals) -> actions, [P, ...] each


@dataclass
class Learner:
    """P agents while they learn."""

    arm: Arm  # the settings they share
    task: Task
    seeds: list[int]  # one per agent; all random streams of agent k come from seeds[k]
    algorithm: Algorithm
    agent: Any  # the networks, of the algorithm's class
    standardiser: Standardiser  # of states, never changed; on the CPU, as the simulators are
    arithmetic: Arithmetic  # how its networks compute
    diverged_at: list[dict | None]  # per agent None, or the counters at which its parameters stopped being finite
    gradient_steps: int = 0
    environment_steps: int = 0
    generators: dict[str, list[torch.Generator]] = field(default_factory=dict)  # [stream][agent]

    @property
    def sizes(self) -> tuple[int, int]:
        """Dimensions of a state and of an action."""
        return self.task.state_size, self.task.action_size

    def stream(self, name: str) -> list[torch.Generator]:
        """Returns the generators of stream `name`, which are made on first use."""
        if name not in self.generators:
            device = "cpu" if name in ACTING else self.arithmetic.device
            self.generators[name] = streams.torch_generators(self.seeds, name, device=device)
        return self.generators[name]

    def random(self, name: str, draw: Callable, *size: int, **kind: Any) -> Shaped[Tensor, "block population *rest"]:
        """Returns what each agent draws from stream `name`; the first of `size` counts updates or steps."""
        return torch.stack([draw(size, generator=generator, **kind) for generator in self.stream(name)], dim=1)

    def check_divergence(self) -> bool:
        """Notes which agents' parameters are no longer finite; returns whether any agent still learns."""
        steps = {"gradient_steps": self.gradient_steps, "environment_steps": self.environment_steps}
        for network in (self.agent.actor.network, self.agent.critics.network):
            if not torch.isfinite(network.flat.detach().sum()):
                for k, tensors in enumerate(networks_of(network, len(self.seeds))):
                    if not all(torch.isfinite(tensor).all() for tensor in tensors):
                        self.diverged_at[k] = self.diverged_at[k] or steps
        return None in self.diverged_at

    @torch.no_grad()
    def policy(self, state: Float[np.ndarray, "population episodes state"]) -> np.ndarray:
        """Returns the greedy actions for states in the environment's units, 0 where an agent has diverged (NaN)."""
        standardised = self.standardiser.apply(torch.from_numpy(state)).to(self.agent.actor.network.flat)
        return torch.nan_to_num(self.algorithm.greedy(self.agent, standardised)).cpu().numpy()

    def act(self, state: Float[np.ndarray, " state"]) -> np.ndarray:
        """Returns the greedy action of the first agent in one state."""
        return self.policy(state[None, None])[0, 0]


def networks_of(network: Any, population: int) -> Iterator[list[Tensor]]:
    """Yields the parameters of each agent in a network of P or, for twin critics, 2 P perceptrons."""
    for k in range(population):
        yield [tensor[k::population] for layer in network.layers for tensor in layer]


def learner(
    arm: Arm, task: Task, seeds: Sequence[int], standardiser: Standardiser | None = None, arithmetic: Arithmetic = PLAIN
) -> Learner:
    """Returns a learner of P = len(seeds) fresh agents. The precision is the arm's.

    `standardiser` is the one that `pretrain`'s table was made with, so that policies see states as in training. Without one,
    states are used as they are.

    Raises:
        ValueError: There are no seeds, or the standardiser is for other agents or another task.
    """
    require(len(seeds) > 0, "seeds is empty, but a learner has one agent per seed, so it needs at least one")
    require(len({*seeds}) == len(seeds), f"seeds is {[*seeds]}, but agents of the same seed would be equal: give each its own")
    arithmetic = replace(arithmetic, precision=arm.precision)
    sizes, generators = (task.state_size, task.action_size), streams.torch_generators(seeds, "initialisation")
    algorithm = ALGORITHMS[arm.algorithm]
    agent = algorithm.create(*sizes, arm.learner, generators, arithmetic)
    standardiser = standardiser or Standardiser.identity(len(seeds), task.state_size)
    for name, moment in vars(standardiser).items():
        _check_shape(f"the standardiser's {name}", moment, task, len(seeds), task.state_size)
    return Learner(arm, task, list(seeds), algorithm, agent, standardiser, arithmetic, [None] * len(seeds))


def _check_shape(what: str, found: Tensor | np.ndarray, task: Task, *needed: int | str) -> None:
    """Raises ValueError unless `found` has the shape that the agents need, in which a word stands for any number."""
    shape = [*found.shape]
    fits = len(shape) == len(needed) and all(isinstance(n, str) or n == size for n, size in zip(needed, shape, strict=True))
    require(fits, f"{what} has the shape {shape}, but these agents of {task.name} need [{', '.join(map(str, needed))}]")


def _update_noise(learner: Learner, updates: int) -> BlockNoise:
    """Returns the noise of a block of updates."""
    settings, size = learner.arm.learner, learner.task.action_size
    shape = updates, learner.algorithm.normals, settings.batch_size, size
    drawn = learner.random("update noise", torch.randn, *shape, device=learner.arithmetic.device)
    return learner.algorithm.noise(drawn.transpose(1, 2).contiguous(), settings)


def block(
    learner: Learner, table: Table, updates: int = BLOCK, doubt: Float[Tensor, "population rows"] | None = None
) -> tuple[Int[Tensor, "block population batch"], Batch, BlockNoise]:
    """Returns the indices of the rows that a block of updates draws, the batches, and the noise.

    If `doubt` is given, each batch is sorted by it (`augmentation.by_doubt`).
    """
    draw = partial(torch.randint, table.shape[1], device=learner.arithmetic.device)
    index = learner.random("batches", draw, updates, learner.arm.learner.batch_size)
    if doubt is not None and learner.arm.augmentation is not None:
        index = augmentation.by_doubt(index, doubt, learner.arm.augmentation.picks)
    batches = transitions.unpack(transitions.gather(table, index), *learner.sizes)
    return index, batches, _update_noise(learner, updates)


def updater(learner: Learner, loss: Callable | None) -> Callable[[Batch, Tensor], None]:
    """Returns a function that takes a block's batches and noise, makes one update with each, and increases `gradient_steps`.

    It works in stretches that end with a policy step. The arithmetic may capture a stretch once and replay it. There is a
    capture for each length of a stretch and each place within the policy delay at which it begins. With loss=None the actor
    stays as it is.
    """
    settings, stretches = learner.arm.learner, {}

    def stretch(place: int, *inputs: Tensor) -> None:
        for number, (*batch, noise) in enumerate(zip(*inputs, strict=True), start=place + 1):
            policy_step = number == settings.policy_delay
            learner.algorithm.update(learner.agent, Batch(*batch), settings, noise, policy_step, loss)

    def learn(batches: Batch, noise: Tensor) -> None:
        start = 0
        while start < len(noise):
            place = learner.gradient_steps % settings.policy_delay  # updates since the last policy step
            end = min(start + settings.policy_delay - place, len(noise))
            inputs = [part[start:end] for part in (*batches, noise)]
            if (place, end - start) not in stretches:
                state = list(memory(learner).values())
                captured = learner.arithmetic.captured(partial(stretch, place), inputs, state)
                stretches[place, end - start] = captured
            stretches[place, end - start](*inputs)
            learner.gradient_steps += end - start
            start = end

    return learn


def _check_table(learner: Learner, table: Table) -> None:
    """Raises ValueError if the table is for other agents or another task."""
    _check_shape("the table", table, learner.task, len(learner.seeds), "rows", transitions.width(*learner.sizes))


def _check_given(learner: Learner, imagine: object, doubt: object) -> None:
    """Raises ValueError if the augmentation lacks what it needs or would not use it."""
    rule = learner.arm.augmentation
    said = ["None" if given is None else "given" for given in (imagine, doubt)]
    has = f"{'no' if rule is None else 'an'} augmentation"
    together = f"imagine is {said[0]}, but the arm has {has}: it must be given if and only if there is one"
    require((imagine is None) == (rule is None), together)
    picks = "random" if rule is None else rule.picks
    require((picks == "random") == (doubt is None), f"picks is {picks!r}, but doubt is {said[1]}: all but 'random' need it")


def _check_imagined(learner: Learner, table: Table, imagined: Any, packed: bool) -> None:
    """Raises ValueError unless imagined next states, or packed transitions, are a tensor of the shape that `table` asks for."""
    kind = getattr(imagined, "dtype", type(imagined).__name__)
    floats = isinstance(imagined, Tensor) and imagined.is_floating_point()
    require(floats, f"imagine returned {kind}, but it must return a torch tensor of floating-point numbers")
    agents, rows, width = table.shape
    needed = (agents, "rows", width) if packed else (agents, rows, "samples", learner.task.state_size)
    _check_shape("what imagine returned", imagined, learner.task, *needed)


def _augmented(learner: Learner, rule: Augmentation, imagined: Tensor, index: Tensor, batches: Batch) -> Batch:
    """Returns the batches with imagined next states or, with a branch, whole imagined transitions in their first rows."""
    count = augmentation.replaced(rule.rate, index.shape[-1])
    if not rule.branch:
        picked = augmentation.pick(imagined, index[..., :count], learner.stream("imagined samples"))
        return augmentation.augment(batches, picked, rule.rate)
    draw = partial(torch.randint, imagined.shape[1], device=imagined.device)
    rows = transitions.gather(imagined, learner.random("imagined samples", draw, len(index), count))
    return augmentation.mix(batches, transitions.unpack(rows, *learner.sizes))


def pretrain(
    learner: Learner,
    table: Table,
    imagine: Callable[[int], Tensor] | None = None,
    doubt: Float[Tensor, "population rows"] | None = None,
) -> Iterator[None]:
    """Yields at every evaluation interval while P agents learn offline with the algorithm's offline loss.

    The learner continues from its current state.

    Args:
        learner: the agents.
        table: each agent's own packed, standardised rows (`transitions.table`).
        imagine: number of a table -> imagined next states [P, rows, K, state], standardised; for an
            augmentation with a branch packed transitions [P, rows, width] (`augmentation.branches`).
            `augmentation.next_states` returns those of one agent, not standardised.
            None: the arm has no augmentation.
        doubt: each row's doubt, for an augmentation that picks by it (`augmentation.by_doubt`).
            None: it picks at random.

    Raises:
        ValueError: `imagine` or `doubt` does not fit the augmentation, or a table has a wrong shape.
    """
    plan, rule, loss = learner.arm.offline, learner.arm.augmentation, learner.algorithm.offline_loss
    _check_table(learner, table)
    _check_given(learner, imagine, doubt)
    if loss and rule and rule.branch:
        count = augmentation.replaced(rule.rate, learner.arm.learner.batch_size)
        loss = augmentation.recorded_only(loss, count)
    imagined, learn = None, updater(learner, loss)
    while learner.gradient_steps < plan.updates:
        index, batches, noise = block(learner, table, doubt=doubt)
        if rule and imagine:
            number, since = divmod(learner.gradient_steps, rule.redraw_interval)
            if imagined is None or since == 0:
                imagined = imagine(number)
                _check_imagined(learner, table, imagined, rule.branch > 0)
                imagined = imagined.to(table)
            batches = _augmented(learner, rule, imagined, index, batches)
        learn(batches, noise)
        if not learner.check_divergence():
            return
        if learner.gradient_steps % plan.evaluation_interval == 0:
            yield


def carry(learner: Learner, plan: Finetuning) -> None:
    """Keeps what `plan` carries into the online phase; the rest starts fresh. Targets become copies."""
    carried = learner.algorithm.carried
    generators = streams.torch_generators(learner.seeds, "initialisation", "online")
    fresh = learner.algorithm.create(*learner.sizes, learner.arm.learner, generators, learner.arithmetic)
    kept = []
    if plan.carry_actor:
        kept += carried["actor"]
    if plan.carry_critics:
        kept += carried["critics"]
    moments = fresh.moments | {name: learner.agent.moments[name] for name in kept if plan.carry_moments}
    learned = {name: getattr(learner.agent, name) for name in kept}
    learner.agent = replace(fresh, moments=moments, **learned)
    for target in [name for name in vars(fresh) if name.startswith("target_")]:
        online = getattr(learner.agent, target.removeprefix("target_"))
        copy = replace(online, network=online.network.copy())
        learner.agent = replace(learner.agent, **{target: copy})


def replay(learner: Learner, table: Table | None = None) -> ReplayBuffer:
    """Returns a replay buffer for the whole online phase: empty or, if the plan keeps the data, starting with `table`.

    Raises:
        ValueError: The plan keeps the data but the table has no rows, or the table has rows but the
            plan does not keep the data, or the table has a wrong shape.
    """
    population, kept = len(learner.seeds), learner.arm.online.keep_data
    table = torch.empty(population, 0, transitions.width(*learner.sizes)) if table is None else table
    _check_table(learner, table)
    start = f"the replay buffer would start with {table.shape[1]} offline rows"
    require(kept == (table.shape[1] > 0), f"keep_data is {kept}, but {start}: they must be there if and only if it is True")
    shape = population, table.shape[1] + learner.arm.online.steps, table.shape[2]
    buffer = ReplayBuffer(learner.agent.actor.network.flat.detach().new_zeros(shape))
    buffer.extend(table)
    return buffer


def warm_up_critics(learner: Learner, buffer: ReplayBuffer, updates: int) -> None:
    """Updates only the critics, on the rows of the replay buffer, so that fresh critics learn to value a carried actor."""
    learn = updater(learner, None)
    for _ in range(0, updates, BLOCK):
        learn(*block(learner, buffer.rows[:, : buffer.size])[1:])


def _behaviour(learner: Learner, act: Act, uniform: bool) -> Callable[[int, np.ndarray], np.ndarray]:
    """Returns the policy of the next BLOCK steps: (index of the step, states) -> actions.

    An agent that has diverged (NaN) does not act: its actions are 0.
    """
    size = learner.task.action_size
    normals = learner.random("exploration", torch.randn, BLOCK, size).numpy()
    if uniform:
        actions = 2 * learner.random("uniform actions", torch.rand, BLOCK, size).numpy() - 1
        return lambda number, state: actions[number]
    return lambda number, state: np.nan_to_num(act(state, normals[number]))


def _online_draws(learner: Learner) -> tuple[BlockNoise, Float[Tensor, "block population batch"]]:
    """Returns the noise of the next BLOCK updates, and uniform numbers in [0, 1) that choose the rows of their batches."""
    kind = {"dtype": torch.float64, "device": learner.arithmetic.device}
    noise = _update_noise(learner, BLOCK)
    return noise, learner.random("batches", torch.rand, BLOCK, learner.arm.learner.batch_size, **kind)


def _check_online(learner: Learner, environments: Lockstep, buffer: ReplayBuffer) -> None:
    """Raises ValueError if the environments are for other agents or another task, or the buffer is not the one they filled."""
    _check_shape("the environments' state", environments.state, learner.task, len(learner.seeds), learner.task.state_size)
    steps = learner.environment_steps
    needed = buffer.rows.shape[1] - learner.arm.online.steps + steps  # it was made with room for all steps
    filled = f"the replay buffer has {buffer.size} rows, but after {steps} interactions it must have {needed}"
    require(buffer.size == needed, f"{filled}: continue with the buffer that these agents have filled")


def finetune(learner: Learner, environments: Lockstep, buffer: ReplayBuffer) -> Iterator[None]:
    """Yields at every evaluation interval while P agents collect data and learn online.

    The first `warmup_steps` only collect data. Then the critics alone learn for `critic_updates`.
    After that, an update follows each step. Every environment step counts, the warm-up included.
    The learner continues from its current state, and `buffer` grows by one transition per agent and
    step.

    Raises:
        ValueError: The environments are for other agents or another task, or the buffer lacks what the agents have collected.
    """
    _check_online(learner, environments, buffer)
    plan = learner.arm.online
    act, learn = acting(learner), updater(learner, learner.algorithm.online_loss)
    rows = learner.algorithm.rows or (lambda places, _, size: (places * size).long())
    mean, std = learner.standardiser.mean.numpy(), learner.standardiser.std.numpy()
    while learner.environment_steps < plan.steps:
        if learner.environment_steps == plan.warmup_steps:
            warm_up_critics(learner, buffer, plan.critic_updates)
        learning = learner.environment_steps >= plan.warmup_steps
        behave = _behaviour(learner, act, uniform=not learning and plan.warmup_policy == "uniform")
        if learning:
            noise, places = _online_draws(learner)
        for number in range(BLOCK):
            state = (environments.state - mean) / std
            action = behave(number, state)
            step = environments.step(action)
            next_state = (step.next_state - mean) / std
            ends = step.terminal, step.truncated
            row = transitions.packed_rows(state, action, next_state, step.reward, *ends)
            buffer.extend(torch.from_numpy(row).unsqueeze(1))
            learner.environment_steps += 1
            if learning:
                offline = buffer.size - learner.environment_steps  # rows that came before the first step
                index = rows(places[number : number + 1], offline, buffer.size)
                batches = transitions.unpack(transitions.gather(buffer.rows, index), *learner.sizes)
                learn(batches, noise[number : number + 1])
        if not learner.check_divergence():
            return
        if learner.environment_steps % plan.evaluation_interval == 0:
            yield


def acting(learner: Learner) -> Act:
    """Returns the exploring policy of all agents: a NumPy function of their states and standard normals, [P, ...] each.

    On the CPU it reads the learner's own parameters, on a GPU a copy that it takes before each step.
    """
    agent, flats = learner.agent, {name: _flat(getattr(learner.agent, name)) for name in learner.algorithm.carried["actor"]}
    here = {name: flat.cpu() for name, flat in flats.items()}
    agent = replace(agent, **here | {"actor": replace(agent.actor, network=agent.actor.network.on(here["actor"]))})
    explorers = [learner.algorithm.explorer(agent, k, learner.arm.learner) for k in range(len(learner.seeds))]

    def act(state: np.ndarray, normal: np.ndarray) -> np.ndarray:
        for name, flat in flats.items():
            here[name].copy_(flat)  # on the CPU they share memory, and nothing is copied
        return np.stack([explore(s, n) for explore, s, n in zip(explorers, state, normal, strict=True)])

    return act


def memory(learner: Learner) -> dict[str, Tensor]:
    """Returns every tensor that the next update depends on, by name, sharing the learner's memory."""
    found = {"standardiser.mean": learner.standardiser.mean, "standardiser.std": learner.standardiser.std}
    found |= {name: _flat(part) for name, part in vars(learner.agent).items() if name != "moments"}
    for name, adam in learner.agent.moments.items():
        found |= {f"{name}_moments.{moment}": tensor for moment, tensor in vars(adam).items()}
    return found


def _flat(part: Any) -> Tensor:
    """Returns the parameters of a part of an agent, a network or a tensor, without gradient."""
    return (part if isinstance(part, Tensor) else part.network.flat).detach()


def actors(learner: Learner) -> list[Float[Tensor, " parameters"]]:
    """Returns a copy of the parameters of each agent's actor, layer by layer, weight before bias."""
    return [torch.cat([t.flatten() for t in own]) for own in networks_of(learner.agent.actor.network, len(learner.seeds))]


def set_actor(learner: Learner, actor: Float[Tensor, " parameters"]) -> None:
    """Sets the actor of a single-agent learner to parameters that `actors` returned.

    Raises:
        ValueError: The learner has several agents, or the number of parameters differs.
    """
    require(len(learner.seeds) == 1, f"the learner has {len(learner.seeds)} agents, but set_actor needs a learner of one agent")
    own = len(actors(learner)[0])
    require(len(actor) == own, f"the actor has {len(actor)} parameters, but {learner.task.name} with these settings needs {own}")
    learner.agent.actor.network.flat.detach()[:own] = actor
