"""The notebooks show the live source of the whole method, and training calls the functions that they show."""

import importlib
import inspect
import re
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from made import dataset

from mbaug import streams, tasks
from mbaug.datasets import check
from mbaug.method import arms, augmentation, bc, iql, rlpd, sac, td3, training, transitions, world_model
from mbaug.method import imagination as sources
from mbaug.method.arms import Arm
from mbaug.method.settings import Augmentation, Finetuning, Pretraining, WorldModel
from mbaug.method.transitions import Standardiser

ONE_STEP = Pretraining(updates=50, transitions=50, evaluation_interval=50)
CELLS = "".join(path.read_text() for path in sorted((ROOT / "notebooks").glob("*.py")))
SHOWN = set(re.findall(r"\b(\w+)\.(\w+)\b", " ".join(re.findall(r"\bshow\(([^)]*)\)", CELLS))))
METHOD = {
    "td3": ("smoothing_noise", "critic_target", "critic_loss", "actor_loss", "actor_loss_bc", "update", "explorer"),
    "sac": ("sample", "critic_target", "critic_loss", "actor_loss", "temperature_loss", "update"),
    "networks": ("soft_update", "layer_norm"),
    "layernorm": ("normalised",),
    "rlpd": ("rows", "actor_loss"),
    "iql": ("value_loss", "critic_target", "actor_loss"),
    "bc": ("cloning_loss",),
    "augmentation": ("replaced", "augment", "imagined_table", "pick", "by_doubt", "branches", "recorded_only", "outside"),
    "world_model": ("posterior", "sample", "step", "kl_divergence", "loss"),
    "imagination": ("imagine", "reconstruct", "held_out_error", "doubt"),
    "training": ("pretrain", "finetune", "carry"),
    "transitions": ("draw",),
}
NOT_TRAINED = {
    ("augmentation", "outside"): "a measure of the table for the record (experiments.run); no agent learns from it",
    ("imagination", "error_parts"): "chapters 02 and 07 use it to split an error",
    ("imagination", "latent_rollout"): "chapter 06 uses it to predict more steps ahead than any arm does",
    ("imagination", "open_loop"): "as latent_rollout",
}


def of_the_method(module, name):
    """Returns whether a module of the method has a function of this name; classes and other folders do not count."""
    path = ROOT / "mbaug/method" / f"{module}.py"
    return path.is_file() and inspect.isfunction(getattr(importlib.import_module(f"mbaug.method.{module}"), name, None))


FUNCTIONS = sorted(reference for reference in SHOWN if of_the_method(*reference))


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in METHOD.items() for name in names])
def test_a_notebook_shows_each_function_of_the_method(module, name):
    assert (module, name) in FUNCTIONS


@pytest.mark.parametrize("module", [td3, sac, rlpd, iql, bc], ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_loss_and_target_is_among_the_functions_to_show(module):
    functions = [name for name, each in inspect.getmembers(module, inspect.isfunction) if each.__module__ == module.__name__]
    losses = {name for name in functions if name.endswith(("loss", "target", "loss_bc"))}
    assert losses <= set(METHOD[module.__name__.rpartition(".")[2]])


# --- what is shown is what trains -----------------------------------------------------------------------------------------


def train_a_little():
    """Trains for as few steps as possible with every algorithm, every source and every way to draw."""
    hopper, rule, small = tasks.find("hopper"), Augmentation(table_samples=1, picks="trusted"), {"hidden": (8,), "batch_size": 8}
    pool, model = dataset(100, hopper.state_size, hopper.action_size), WorldModel((8,), (8,), latent_size=2, epochs=1)
    online = Finetuning(steps=100, warmup_steps=50, keep_data=True, critic_updates=0, evaluation_interval=100)
    plan = replace(ONE_STEP, whole_episodes=True, horizon=2)
    transitions.draw(pool, 50, 0)
    drawn, rest = transitions.draw_episodes(pool, plan.transitions, 0)
    standardiser = Standardiser.fit([drawn.state], plan.standardiser_epsilon)
    fitted = sources.fit(model, drawn, rest, 0, evaluations=1)
    fitted = sources.with_deterministic(fitted, world_model.fit_deterministic(model, drawn, 0), rest, 0)
    state = torch.from_numpy(drawn.state)
    for source in sources.SOURCES:
        generator = streams.torch_generator(0, "imagination")
        imagined = augmentation.next_states(replace(rule, source=source), fitted, drawn, generator, plan.horizon)
    branches = augmentation.branches(partial(check.replay, hopper), lambda s: np.zeros((len(s), 3)), drawn.state[:1], 1, 50)
    simulator = Augmentation(source="simulator", branch=1, redraw_interval=ONE_STEP.evaluation_interval)
    simulated = Arm(learner=td3.TD3(**small), augmentation=simulator, pretraining=ONE_STEP)
    learner, rows = training.learner(simulated, hopper, [0], standardiser), transitions.table([branches], standardiser)
    list(training.pretrain(learner, rows, lambda number: rows))
    for name, algorithm in arms.ALGORITHMS.items():
        offline = {"model": model, "augmentation": rule, "pretraining": plan}
        if not algorithm.offline_loss:
            offline = {"pretraining": Pretraining(updates=0)}
        arm = Arm(name, algorithm.settings(**small), **offline, finetuning=online)
        learner = training.learner(arm, hopper, [0], standardiser)
        table = transitions.table([drawn], standardiser, horizon=plan.horizon, discount=0.99)
        if arm.learns_offline:
            list(training.pretrain(learner, table, lambda number: imagined[None], sources.doubt(fitted.model, state)[None]))
            training.carry(learner, online)
        list(training.finetune(learner, tasks.Lockstep(hopper, [0]), training.replay(learner, table)))
        learner.policy(pool.state[None, :1])


@pytest.fixture(scope="module")
def called():
    """The code of all functions that `train_a_little` calls, under whatever name it calls them."""
    found = set()
    sys.setprofile(lambda frame, event, _: found.add(frame.f_code))
    try:
        train_a_little()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_training_calls_the_functions_that_the_notebooks_show(called, module, name):
    function = inspect.unwrap(getattr(importlib.import_module(f"mbaug.method.{module}"), name))
    assert (function.__code__ in called) is ((module, name) not in NOT_TRAINED)
