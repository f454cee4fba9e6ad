"""Rendering without a screen: a policy as MP4 and GIF, data as strips; a sentence where no OpenGL library is there."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest
from test_study import SCRATCH, SMALL

from mbaug import __main__ as commands
from mbaug import grid, life, offline_data, pools, recording, rendering, settings, study, tasks, training, transitions

HOPPER = tasks.find("hopper")
INSTALL = "install EGL or OSMesa"
DRAW = """
import mujoco
scene = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>")
state, renderer = mujoco.MjData(scene), mujoco.Renderer(scene, 8, 8)
mujoco.mj_forward(scene, state)
renderer.update_scene(state)
print(renderer.render().any())
"""
LIVED = settings.Profile("lived", steps=200, warmup_steps=50, evaluation_interval=50).apply(SMALL)
(RUN,) = SCRATCH.runs()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of records with a run that kept its actors, of 50 and 200 steps, and one of another seed that kept none."""
    folder = tmp_path_factory.mktemp("watched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "hopper", replace(HOPPER, return_medium=0.0))  # which is held at once
        patch.setattr(life, "LONG", 100)
        study.live([RUN], LIVED, folder / "runs", folder / "work")
        patch.setattr(life, "LONG", 100_000)
        study.live([replace(RUN, seed=1)], LIVED, folder / "runs", folder / "work")
    return folder / "runs"


@pytest.fixture
def programme(monkeypatch, root):
    """A programme whose study is that of the records."""
    monkeypatch.setitem(grid.STUDIES, "tiny", replace(SCRATCH, arms={"small": LIVED}))
    monkeypatch.setattr(recording, "root", lambda: root)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")  # so that what `watch` sets is undone


def draws(backend):
    """Whether MuJoCo by itself draws a ball: not asked of `rendering.works`, so that this has to say so, too."""
    drawn = subprocess.run([sys.executable, "-c", DRAW], env=os.environ | {"MUJOCO_GL": backend}, capture_output=True)
    return drawn.stdout == b"True\n"


@pytest.fixture(scope="module")
def _opengl():
    """Skips a test that draws where nothing does: a library may be installed, but have no device."""
    if not any(map(draws, rendering.BACKENDS)):
        pytest.skip(f"MuJoCo draws with none of {', '.join(rendering.BACKENDS)} here")


@pytest.mark.usefixtures("_opengl")
def test_a_recorded_policy_is_watched(programme, tmp_path):
    """Both files hold the frames of so many seconds."""
    commands.main(["watch", "hopper", "--run", str(RUN), "--seconds", "0.5", "--output", str(tmp_path)])
    name = "tiny-hopper-none-small-seed0-final"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.gif", f"{name}.mp4"]
    for suffix, plugin in (("mp4", "pyav"), ("gif", "pillow")):
        images = imageio.imread(tmp_path / f"{name}.{suffix}", plugin=plugin)
        assert images.shape == (13, 320, 320, 3)  # 63 steps of 8 ms, every fifth
        assert images[0].std() > 10, "a picture, not one colour"
        assert (images[0] != images[-1]).any()
    assert imageio.immeta(tmp_path / f"{name}.mp4", plugin="pyav")["fps"] == 25


@pytest.mark.parametrize(("name", "steps"), [("medium", 50), ("final", 200)])
def test_the_policy_is_the_recorded_one(root, programme, name, steps):
    """In the environment of the evaluation after so many steps it earns the return that was recorded."""
    act, rows = study.policy(RUN, root, name), recording.read(root, RUN).rows
    evaluate = tasks.Evaluator(HOPPER, [RUN.seed], 1, LIVED.learner.discount)
    returns = evaluate(lambda states: act(states[0, 0])[None, None], "finetune", steps).undiscounted_return
    assert returns[0].tolist() == rows[rows.environment_steps == steps]["return"].tolist()


@pytest.mark.parametrize(
    ("run", "policy", "sentence"),
    [
        (replace(RUN, seed=1), "final", "seed1 was recorded without its actors: only runs of more than 100,000 steps keep them"),
        (replace(RUN, seed=2), "final", "seed2 is not recorded"),
        (RUN, "finl", "unknown policy 'finl': did you mean 'final'"),
    ],
)
def test_what_cannot_be_watched_is_said_in_a_sentence(root, programme, run, policy, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        study.policy(run, root, policy)


def test_a_run_of_another_task_or_settings_is_refused(root, programme, monkeypatch):
    monkeypatch.setattr(rendering, "works", lambda backend: True)
    with pytest.raises(SystemExit, match="small/seed0 is a run of hopper, but ant was asked for"):
        commands.main(["watch", "ant", "--run", str(RUN)])
    monkeypatch.setitem(grid.STUDIES, "tiny", SCRATCH)
    with pytest.raises(ValueError, match=r"cannot act today: settings.finetuning.steps is 200 in the record"):
        study.policy(RUN, root, "final")


@pytest.mark.parametrize("command", [["watch", "hopper", "--run", str(RUN)], ["strips"]], ids=["watch", "strips"])
def test_without_an_opengl_library_a_sentence_says_what_to_install(programme, monkeypatch, command):
    monkeypatch.setattr(rendering, "works", lambda backend: False)
    with pytest.raises(SystemExit, match=r"^mbaug: no OpenGL library draws without a screen \(egl, osmesa, glfw\) here: install"):
        commands.main(command)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(RuntimeError, match=f"^MUJOCO_GL=osmesa draws nothing here: {INSTALL}"):
        rendering.opengl()


def test_the_first_library_that_works_is_taken(programme, monkeypatch):
    """What is set is tried alone; what cannot be is not believed."""
    monkeypatch.setattr(rendering, "works", lambda backend: backend in ("osmesa", "glfw"))
    assert rendering.opengl() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert rendering.opengl() == "glfw"
    monkeypatch.undo()
    assert not rendering.works("nonsense")


def test_mujoco_is_not_imported_before_the_library_is_chosen():
    code = "import sys; from mbaug import rendering; print('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


class Counting(gymnasium.Env):
    """An environment whose state counts its steps and whose image shows the state; an episode has seven steps."""

    metadata = {"render_fps": 50}  # noqa: RUF012

    def reset(self, seed=None):
        self.state = np.zeros(1)
        return self.state, {}

    def step(self, action):
        self.state = self.state + action
        return self.state, 0.0, self.state[0] == 7, False, {}

    def render(self):
        return np.full((2, 2, 3), self.state[0], np.uint8)


def test_frames_are_every_so_many_steps_and_go_on_after_an_episode():
    images, per_second = rendering.frames(Counting(), lambda state: np.ones(1), 0.2)
    assert images[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 1]
    assert per_second == 25
    with pytest.raises(ValueError, match=r"0.0 seconds asked for"):
        rendering.frames(Counting(), lambda state: np.ones(1), 0.0)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_still_shows_the_state_that_it_is_of(name, monkeypatch):
    """What the simulator observes when it draws is the state that was asked for."""
    states, environment = transitions.load(f"{name}-random").state[[0, 7]], tasks.make(tasks.find(name))
    simulator, seen = environment.unwrapped, []

    def render():
        seen.append(simulator._get_obs())
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(simulator, "render", render)
    rendering.stills(environment, states)
    np.testing.assert_allclose(seen, states, atol=1e-6)


def test_a_strip_is_a_picture_of_all_images_side_by_side():
    images = np.stack([np.full((4, 5, 3), value, np.uint8) for value in (0, 9, 255)])
    found = imageio.imread(rendering.strip(images), extension=".png")
    assert found.shape == (4, 15, 3)
    assert found[0, ::5, 0].tolist() == [0, 8, 248]


@pytest.mark.usefixtures("_opengl")
def test_each_pool_without_a_strip_gets_one(programme, tmp_path, monkeypatch):
    """And what is there stays."""
    for suffix in ("hdf5", "json"):
        shutil.copy(offline_data.FOLDER / f"hopper-random.{suffix}", tmp_path)
    monkeypatch.setattr(offline_data, "FOLDER", tmp_path)
    monkeypatch.setattr(offline_data, "FOLDERS", (tmp_path, tmp_path))
    commands.main(["strips"])
    count, size = rendering.STRIP
    images = np.split(imageio.imread(tmp_path / "hopper-random.png"), count, axis=1)
    assert images[0].shape == (size, size, 3)
    assert (images[0] != images[-1]).any()
    (tmp_path / "hopper-random.png").write_bytes(b"what is there stays")
    commands.main(["strips"])
    assert (tmp_path / "hopper-random.png").read_bytes() == b"what is there stays"


def test_every_bundled_pool_has_a_strip_and_all_are_small():
    found = {path.stem for path in offline_data.FOLDER.glob("*.png")}
    assert found == {path.stem for path in pools.paths([offline_data.FOLDER])}
    assert sum(path.stat().st_size for path in offline_data.FOLDER.glob("*.png")) <= 1e6


def test_actors_are_small_enough_to_keep():
    """At the recorded sizes, two an agent of each task: 10 MB in all at most."""
    long = grid.STUDIES["long"].arms["sac_million"]
    actors = [training.actors(training.learner(long, task, [0]))[0] for task in tasks.TASKS.values()]
    assert sum(2 * actor.numel() * actor.element_size() for actor in actors) <= 10e6


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["--seconds", "inf"], "inf seconds asked for, but it must be a number above 0, and finite"),
        (["--seconds", "nan"], "nan seconds asked for"),
        (["--policy", "finl"], "unknown policy 'finl'"),
        (["--run", "seed0"], "got 'seed0'"),
    ],
)
def test_what_was_typed_is_looked_at_before_any_opengl_library_is_tried(typed, sentence, programme, monkeypatch):
    monkeypatch.setattr(rendering, "opengl", lambda: pytest.fail("a library is tried"))
    with pytest.raises(SystemExit, match=sentence):
        commands.main(["watch", "hopper", "--run", str(RUN), *typed])


def test_a_library_that_hangs_does_not_work(monkeypatch):
    monkeypatch.setattr(rendering, "TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(rendering, "TRIAL_SECONDS", 0.5)
    assert not rendering.works("egl")


def test_the_library_that_the_shell_names_is_tried_and_not_imported_first(programme, monkeypatch):
    """MuJoCo is imported, when `watch` looks at the run, as if none were named; then it is tried, alone."""
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    seen = []
    monkeypatch.setattr(study, "policy", lambda *rest: seen.append(rendering.os.environ.get("MUJOCO_GL")))
    monkeypatch.setattr(rendering, "works", lambda backend: seen.append(backend))
    with pytest.raises(SystemExit, match="MUJOCO_GL=osmesa draws nothing here"):
        commands.main(["watch", "hopper", "--run", str(RUN)])
    assert seen == [None, "osmesa"]
