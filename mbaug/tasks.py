"""Makes the paper's four MuJoCo tasks and your own, steps many in lockstep, evaluates policies and normalises returns."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv
from jaxtyping import Bool, Float

from mbaug import checks, streams
from mbaug.checks import NotNegative, Share

mujoco.set_mju_user_warning(lambda message: None)  # HalfCheetah's solver warns in C and writes MUJOCO_LOG.TXT

STEPS = 1_000  # time limit of every task, in steps
STATE = mujoco.mjtState.mjSTATE_INTEGRATION  # the parts of the simulator's state that a snapshot holds


@checks.settings
class Dynamics:
    """How stochastic a task is. All zeros: the original task. Ours: the paper has none."""

    action_noise: NotNegative = 0.0  # standard deviation of noise on an action in [-1, 1]
    observation_noise: NotNegative = 0.0  # standard deviation of noise on every component of an observation, in its unit
    push_probability: Share = 0.0  # per step
    push_force: NotNegative = 0.0  # newtons on the torso for one step, forwards or backwards along the track


CALM = Dynamics()


@dataclass(frozen=True)
class Task:
    """One task. Actions are in [-1, 1], and returns are undiscounted."""

    name: str  # as in the names of runs and datasets
    gym_id: str  # Gymnasium's id
    action_size: int
    return_random: float  # return that scores 0 (D4RL, d4rl/infos.py)
    return_expert: float  # return that scores 100 (same source)
    return_medium: float | None  # mean return of D4RL's medium dataset; None if we do not know it
    positions: tuple[str, ...]  # names of the first components of a state, with their units
    velocities: tuple[str, ...]  # names of the other components, with their units
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of gymnasium.make
    velocity_limit: float = np.inf  # bound to which the environment clips the velocities in an observation

    def __post_init__(self) -> None:
        plain = f"name is {self.name!r}, but a task's name has letters, digits or _.+, since a dataset's name is TASK-QUALITY"
        checks.require(re.fullmatch(r"[A-Za-z0-9_.+]+", self.name) is not None, plain)
        low, high = self.return_random, self.return_expert
        finite = f"return_random is {low} and return_expert is {high}, but both must be finite and the second the larger"
        checks.require(np.isfinite([low, high]).all() and low < high, finite)
        checks.require(len(self.velocities) > 0, "velocities is empty, but a state needs at least one")

    @property
    def title(self) -> str:
        """Name for use in prose, as Gymnasium spells it."""
        return self.gym_id.partition("-")[0]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of a state's components, with their units."""
        return self.positions + self.velocities

    @property
    def state_size(self) -> int:
        """Number of a state's components."""
        return len(self.state_names)


def _body(place: Sequence[str], motion: Sequence[str], joints: Sequence[str]) -> dict[str, Any]:
    """Returns the names of a task's positions and velocities: torso first, then joints."""
    return {
        "positions": (*place, *(f"{joint} angle (rad)" for joint in joints)),
        "velocities": (*motion, *(f"{joint} velocity (rad/s)" for joint in joints)),
    }


FLAT = ("height (m)", "torso angle (rad)"), ("forward velocity (m/s)", "upward velocity (m/s)", "torso velocity (rad/s)")
SPACE = (
    ("height (m)", *(f"orientation {axis} (quaternion)" for axis in "wxyz")),
    (*(f"{axis} velocity (m/s)" for axis in "xyz"), *(f"torso velocity about {axis} (rad/s)" for axis in "xyz")),
)
LEG = ("thigh", "leg", "foot")
BOTH_LEGS = (*LEG, *(f"left {part}" for part in LEG))
CHEETAH = [f"{side} {part}" for side in ("back", "front") for part in ("thigh", "shin", "foot")]
ANT = [f"{part} {number}" for number in (1, 2, 3, 4) for part in ("hip", "ankle")]

TASKS = {
    task.name: task
    for task in (
        Task(
            name="hopper",
            gym_id="Hopper-v5",
            action_size=3,
            return_random=-20.272305,
            return_expert=3234.3,
            return_medium=1422.0,
            velocity_limit=10.0,
            **_body(*FLAT, LEG),
        ),
        Task(
            name="walker2d",
            gym_id="Walker2d-v5",
            action_size=6,
            return_random=1.629008,
            return_expert=4592.3,
            return_medium=2852.0,
            velocity_limit=10.0,
            **_body(*FLAT, BOTH_LEGS),
        ),
        Task(
            name="halfcheetah",
            gym_id="HalfCheetah-v5",
            action_size=6,
            return_random=-280.178953,
            return_expert=12135.0,
            return_medium=4770.0,
            **_body(*FLAT, CHEETAH),
        ),
        Task(
            name="ant",
            gym_id="Ant-v5",
            action_size=8,
            return_random=-325.6,
            return_expert=3879.7,
            return_medium=None,
            options={"include_cfrc_ext_in_observation": False},
            **_body(*SPACE, ANT),
        ),
    )
}
EXTRA: dict[str, Task] = {}  # tasks of your own: a study may name them, while claims and figures keep to the paper's four


def _every() -> dict[str, Task]:
    """Returns the paper's tasks and EXTRA, by name."""
    wrong = [key for key, task in EXTRA.items() if key != task.name or key in TASKS]
    checks.require(not wrong, f"EXTRA has the keys {wrong}, but a key must be its task's name, and not one of {[*TASKS]}")
    return TASKS | EXTRA


EVERY = _every()


def find(name: str) -> Task:
    """Returns the task with this name. Raises ValueError if there is none."""
    return EVERY[checks.choose("task", name, EVERY)]


def unclipped(task: Task, state: Float[np.ndarray, "rows state"]) -> Bool[np.ndarray, " rows"]:
    """Returns which states have no clipped velocity. `set_state` can restore only these."""
    return np.abs(state[:, -len(task.velocities) :]).max(axis=1) < task.velocity_limit


def normalised_score(task: Task, undiscounted_return):
    """Returns D4RL's normalised score, 100 (R - R_random) / (R_expert - R_random), of a number or an array."""
    return 100 * (undiscounted_return - task.return_random) / (task.return_expert - task.return_random)


def make(task: Task, dynamics: Dynamics = CALM, **options) -> gymnasium.Env:
    """Returns an environment with a time limit of 1,000 steps and the given `dynamics`. Passes `options` to gymnasium.make.

    Raises:
        ValueError: Gymnasium does not know the task, its actions are not `task.action_size` numbers in [-1, 1], or its
            observations do not have `task.state_size` components.
    """
    arguments = {"max_episode_steps": STEPS, "disable_env_checker": True} | task.options | options
    try:
        environment = gymnasium.make(task.gym_id, **arguments)
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"Gymnasium cannot make {task.gym_id!r}: {error}") from None
    simulated = isinstance(environment.unwrapped, MujocoEnv)
    checks.require(simulated, f"{task.gym_id} does not run in MuJoCo, but every task must, because we restore its states")
    found, needed = environment.action_space, gymnasium.spaces.Box(-1, 1, (task.action_size,))
    checks.require(found == needed, f"{task.gym_id} has actions in {found}, but a task needs {needed}")
    shape = environment.observation_space.shape
    named = f"{task.gym_id} has observations of shape {shape}, but the task {task.name!r} names {task.state_size} components"
    checks.require(shape == (task.state_size,), named)
    return environment if dynamics == CALM else Stochastic(environment, dynamics)


class Stochastic(gymnasium.Wrapper):
    """A task with noisy actions, noisy observations and random pushes, drawn from the environment's own random stream."""

    def __init__(self, environment: gymnasium.Env, dynamics: Dynamics) -> None:
        super().__init__(environment)
        self.dynamics = dynamics

    def observed(self, observation: np.ndarray) -> np.ndarray:
        """Returns an observation plus noise."""
        noise = self.unwrapped.np_random.standard_normal(observation.shape)
        return observation + self.dynamics.observation_noise * noise

    def reset(self, **options):
        observation, information = super().reset(**options)
        return self.observed(observation), information

    def step(self, action):
        random, dynamics = self.unwrapped.np_random, self.dynamics
        action = np.clip(action + dynamics.action_noise * random.standard_normal(np.shape(action)), -1, 1)
        pushed = random.random() < dynamics.push_probability
        force = pushed * random.choice((-1.0, 1.0)) * dynamics.push_force
        simulator: Any = self.unwrapped
        simulator.data.xfrc_applied[1, 0] = force  # body 0 is the world, 1 the torso
        observation, *rest = super().step(action)
        return self.observed(observation), *rest


def set_state(environment: gymnasium.Env, state: Float[np.ndarray, " state"]) -> None:
    """Puts a freshly reset simulator into an observed state.

    The position along the track becomes zero, because no state contains it.

    Raises:
        ValueError: The state does not have the size of the environment's observations, or these are not the simulator's
            positions and velocities.
    """
    needed, found = environment.observation_space.shape, state.shape
    checks.require(found == needed, f"the state has shape {found}, but the environment's observations have {needed}")
    simulator: Any = environment.unwrapped
    positions, velocities = simulator.model.nq, simulator.model.nv
    hidden = positions + velocities - len(state)
    parts = f"the simulator has {positions} positions and {velocities} velocities, but a state has {len(state)} components"
    checks.require(0 <= hidden <= positions, f"{parts}: we can restore a state only if it holds all velocities")
    state = state.astype(np.float64)
    simulator.set_state(np.concatenate([np.zeros(hidden), state[: positions - hidden]]), state[-velocities:])


# --- P environments in lockstep -------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """The results of one step of P environments. Where an episode ends, `next_state` is its last state."""

    next_state: Float[np.ndarray, "population state"]
    reward: Float[np.ndarray, " population"]
    terminal: Bool[np.ndarray, " population"]
    truncated: Bool[np.ndarray, " population"]


class Lockstep:
    """P environments that step together. Each has its own random stream, from which it is reset when its episode ends."""

    def __init__(self, task: Task, seeds: Sequence[int], dynamics: Dynamics = CALM) -> None:
        self.environments = [make(task, dynamics) for _ in seeds]
        pairs = zip(self.environments, seeds, strict=True)
        first = [environment.reset(seed=streams.integer(seed, "environment"))[0] for environment, seed in pairs]
        self.state = np.asarray(first, dtype=np.float32)

    def step(self, action: Float[np.ndarray, "population action"]) -> Step:
        """Steps every environment once and resets those whose episode ends."""
        next_state, state, population = np.empty_like(self.state), np.empty_like(self.state), len(self.environments)
        reward, terminal, truncated = (np.zeros(population, dtype=kind) for kind in (np.float32, bool, bool))
        for k, environment in enumerate(self.environments):
            next_state[k], reward[k], terminal[k], truncated[k], _ = environment.step(action[k])
            truncated[k] &= not terminal[k]
            state[k] = environment.reset()[0] if terminal[k] or truncated[k] else next_state[k]
        self.state = state
        return Step(next_state, reward, terminal, truncated)

    def snapshot(self) -> tuple[dict[str, np.ndarray], list[dict]]:
        """Returns everything that the next step depends on: arrays, and JSON data for each environment."""
        arrays, plain = {"state": self.state}, []
        for k, environment in enumerate(self.environments):
            simulator: Any = environment.unwrapped
            physics = np.empty(mujoco.mj_stateSize(simulator.model, STATE))
            mujoco.mj_getState(simulator.model, simulator.data, physics, STATE)
            # Setting the state alone is not enough: kinematics lag one sub-step behind it, and Ant's reward reads them.
            arrays |= {f"physics{k}": physics, f"xpos{k}": simulator.data.xpos.copy()}
            elapsed, random = environment.get_wrapper_attr("_elapsed_steps"), simulator.np_random.bit_generator.state
            plain.append({"elapsed_steps": elapsed, "random": random})
        return arrays, plain

    def restore(self, arrays: dict[str, np.ndarray], plain: list[dict]) -> None:
        """Restores the environments from the results of `snapshot`."""
        self.state = np.array(arrays["state"], dtype=np.float32)
        for k, (environment, extra) in enumerate(zip(self.environments, plain, strict=True)):
            simulator: Any = environment.unwrapped
            model, data = simulator.model, simulator.data
            mujoco.mj_setState(model, data, np.array(arrays[f"physics{k}"]), STATE)
            mujoco.mj_forward(model, data)
            mujoco.mj_setState(model, data, np.array(arrays[f"physics{k}"]), STATE)  # mj_forward changed the warm start
            data.xpos[:] = arrays[f"xpos{k}"]
            environment.set_wrapper_attr("_elapsed_steps", extra["elapsed_steps"])
            simulator.np_random.bit_generator.state = extra["random"]

    def close(self) -> None:
        """Closes the environments."""
        for environment in self.environments:
            environment.close()


# --- evaluation -----------------------------------------------------------------------------------------------------------

# Maps the current states of all episodes to actions. The actions of finished episodes are ignored.
Policy = Callable[[Float[np.ndarray, "population episodes state"]], Float[np.ndarray, "population episodes action"]]


class Episodes(NamedTuple):
    """The evaluation episodes of P agents."""

    undiscounted_return: Float[np.ndarray, "population episodes"]
    discounted_return: Float[np.ndarray, "population episodes"]
    length: Float[np.ndarray, "population episodes"]
    first_state: Float[np.ndarray, "population episodes state"]


class Evaluator:
    """Environments used only for evaluation. Each evaluation resets them with seeds of its own."""

    def __init__(self, task: Task, seeds: Sequence[int], episodes: int, discount: float, dynamics: Dynamics = CALM) -> None:
        self.seeds, self.episodes, self.discount = list(seeds), episodes, discount
        self.environments = [[make(task, dynamics) for _ in range(episodes)] for _ in seeds]

    def __call__(self, policy: Policy, *occasion: str | int) -> Episodes:
        """Returns the evaluation episodes of all agents, stepped in lockstep.

        `occasion` names the random stream, e.g. ("finetune", 5000), so that extra evaluations do not change other evaluations.
        """
        first = [
            [one.reset(seed=streams.integer(seed, "evaluation", *occasion, e))[0] for e, one in enumerate(row)]
            for seed, row in zip(self.seeds, self.environments, strict=True)
        ]
        return self._play(policy, np.array(first, dtype=np.float32))

    def from_states(self, policy: Policy, states: Float[np.ndarray, "starts state"], steps: int) -> Episodes:
        """Returns an episode of every agent's policy from each of these states, cut after `steps` steps."""
        chunks = []
        for first in range(0, len(states), self.episodes):
            chunk = states[first : first + self.episodes].astype(np.float32)
            for seed, row in zip(self.seeds, self.environments, strict=True):
                for number, (environment, state) in enumerate(zip(row, chunk, strict=False), start=first):
                    environment.reset(seed=streams.integer(seed, "evaluation", "from states", number))  # of its noise, if any
                    set_state(environment, state)
            chunks.append(self._play(policy, np.stack([chunk] * len(self.seeds)), steps))
        return Episodes(*(np.concatenate(part, axis=1) for part in zip(*chunks, strict=True)))

    def _play(
        self, policy: Policy, state: Float[np.ndarray, "population episodes state"], steps: int | float = np.inf
    ) -> Episodes:
        """Returns the episodes that begin in `state`, each cut after `steps` steps.

        The environments are already in these states.
        """
        first_state = state.copy()
        total, discounted, length = (np.zeros(state.shape[:2]) for _ in range(3))
        alive = {(k, e) for k in range(len(self.seeds)) for e in range(state.shape[1])}
        while alive and length.max() < steps:
            action = policy(state)
            for k, e in tuple(alive):
                state[k, e], reward, terminal, truncated, _ = self.environments[k][e].step(action[k, e])
                discounted[k, e] += self.discount ** length[k, e] * reward
                total[k, e] += reward
                length[k, e] += 1
                if terminal or truncated:
                    alive.discard((k, e))
        return Episodes(total, discounted, length, first_state)
