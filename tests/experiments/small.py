"""Tiny arms, budgets of about a second, and helpers for tests of whole runs."""

import json
import multiprocessing
from dataclasses import replace

import pytest
from safetensors import safe_open

from mbaug.experiments import checkpoint, probes, records, runner, studies
from mbaug.experiments.records import Run
from mbaug.experiments.studies import ARMS, Profile
from mbaug.method.settings import Augmentation, Evaluation, Pretraining, WorldModel
from mbaug.method.td3 import TD3

TINY = Profile("tiny", updates=100, steps=600, warmup_steps=100, epochs=1, episodes=1, evaluation_interval=100, transitions=500)
BRIEF = replace(TINY, steps=300)
SHORT = replace(TINY, updates=150, steps=150, evaluation_interval=50, redraw_interval=100)  # two tables of imagined next states

SCRATCH = replace(ARMS["td3"], learner=TD3(hidden=(16, 16)), evaluation=Evaluation(1, 100, 10))
OFFLINE = replace(SCRATCH, pretraining=Pretraining())
IMAGINING = replace(OFFLINE, model=WorldModel((16,), (16,), latent_size=4), augmentation=Augmentation(table_samples=2))
NOISE = replace(IMAGINING, augmentation=replace(IMAGINING.augmentation, source="noise"))
BRANCH = replace(OFFLINE, augmentation=Augmentation(source="simulator", branch=2, redraw_interval=50))
ARMS_HERE = {
    "small": SCRATCH,
    "small_offline": OFFLINE,
    "small_imagining": IMAGINING,
    "small_with_data": studies.online(IMAGINING, keep_data=True),
    "small_noise": NOISE,
    "small_branch": BRANCH,
}
RUN, SECOND, THIRD = (Run("hopper", "none", "small", seed) for seed in (0, 1, 2))
FORK = multiprocessing.get_context("fork")  # starts in milliseconds, with the imports and the tiny arms of this process


def on_data(arm="small_offline", seed=0):
    """Returns a run that learns from the smallest pool."""
    return Run("hopper", "hopper-random", arm, seed)


def few_states(task, load=probes.load):
    """Returns every 25th of a task's fixed states, since trying a policy on all of them takes seconds."""
    return probes.Probe(*(part[::25] for part in vars(load(task)).values()))


@pytest.fixture(scope="module", autouse=True)
def arms():
    """Registers the tiny arms and reduces the fixed states for one test module, and finally kills processes left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "load", few_states)
        for name, arm in ARMS_HERE.items():
            patch.setitem(ARMS, name, arm)
        yield
    for process in multiprocessing.active_children():
        if isinstance(process, FORK.Process):
            process.kill()


def record(folder, runs, profile=TINY, **more):
    """Records runs into folder/runs, with checkpoints in folder/work."""
    return runner.record(runs, folder / "runs", folder / "work", profile, **{"report": lambda line: None} | more)


def rows(folder, which=RUN):
    """Returns the recorded rows of a run."""
    return records.read(folder / "runs", which).rows


def progress(folder):
    """Returns the environment steps of each checkpoint in folder/work, without reading its tensors."""
    found = []
    for path in (folder / "work").glob(f"*/{checkpoint.NAME}"):
        with safe_open(path, "pt") as file:  # open the file once: a training process may replace it
            text = file.metadata()["state"]
        found.append(json.loads(text).get("environment_steps", 0))  # a world model's checkpoint has none
    return found
