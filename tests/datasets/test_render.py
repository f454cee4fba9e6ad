"""Rendering without a screen: films as MP4 and GIF, strips of pools, and a clear error where no OpenGL library works."""

import shutil
import subprocess
import sys

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pytest

from mbaug import __main__ as commands
from mbaug import tasks
from mbaug.datasets import read, render
from mbaug.method import transitions

DRAW = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 8, 8).render()"


@pytest.mark.slow
def test_each_pool_without_a_strip_gets_one(tmp_path, monkeypatch):
    """Existing strips stay. We skip the test where MuJoCo cannot draw, and try MuJoCo itself, since `render` is under test."""
    trials = ([sys.executable, "-c", f"import os; os.environ['MUJOCO_GL'] = {name!r}; {DRAW}"] for name in render.BACKENDS)
    if all(subprocess.run(trial, capture_output=True).returncode for trial in trials):
        pytest.skip(f"MuJoCo draws with none of {', '.join(render.BACKENDS)} here")
    for suffix in ("hdf5", "json"):
        shutil.copy(read.FOLDER / f"hopper-random.{suffix}", tmp_path)
    monkeypatch.setattr(read, "FOLDER", tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "")
    commands.main(["strips"])
    (count, size), path = render.STRIP, tmp_path / "hopper-random.png"
    images = np.split(imageio.imread(path), count, axis=1)
    assert images[0].shape == (size, size, 3)
    assert (images[0] != images[-1]).any()
    path.write_bytes(b"an existing strip")
    commands.main(["strips"])
    assert path.read_bytes() == b"an existing strip"


def test_the_first_library_that_works_is_used(monkeypatch):
    """A library set in MUJOCO_GL is taken if it works. Unknown libraries and those that hang do not work."""
    assert not render.works("nonsense")
    monkeypatch.setattr(render, "TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(render, "TRIAL_SECONDS", 0.5)
    assert not render.works("egl")
    monkeypatch.setattr(render, "works", lambda backend: backend in ("osmesa", "glfw"))
    for given, taken in (("", "osmesa"), ("glfw", "glfw")):
        monkeypatch.setenv("MUJOCO_GL", given)
        assert render.opengl() == taken


def test_without_an_opengl_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(render, "works", lambda backend: False)
    none = r"no OpenGL library can draw without a screen here \(tried egl, osmesa, glfw\)"
    for given in ("", "osmesa"):
        monkeypatch.setenv("MUJOCO_GL", given)
        with pytest.raises(SystemExit, match=f"^mbaug: {none}: install EGL or OSMesa"):
            commands.main(["strips"])


def test_if_the_library_that_is_set_fails_the_error_names_one_that_works(monkeypatch):
    monkeypatch.setattr(render, "works", lambda backend: backend == "egl")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(
        SystemExit, match=r"^mbaug: MUJOCO_GL=glfw does not work here, but egl does: set MUJOCO_GL=egl or unset it"
    ):
        commands.main(["strips"])


@pytest.mark.slow
def test_mujoco_is_not_imported_before_the_library_is_chosen():
    code = "import sys; from mbaug.datasets import render; print('mujoco' in sys.modules)"
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
        return np.full((32, 32, 3), self.state[0], np.uint8)


@pytest.mark.slow
def test_a_film_skips_steps_and_continues_after_the_end_of_an_episode():
    images, per_second = render.frames(Counting(), lambda state: np.ones(1), 0.2)
    assert images[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 1]
    assert per_second == 25
    for content, suffix, plugin in (render.mp4(images, 25), ".mp4", "pyav"), (render.gif(images, 25), ".gif", "pillow"):
        assert imageio.imread(content, extension=suffix, plugin=plugin).shape == images.shape
    assert imageio.immeta(render.mp4(images, 25), extension=".mp4", plugin="pyav")["fps"] == 25
    for seconds in (0.0, 61.0, float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=f"^{seconds:g} seconds were requested, but a film must have more than 0 and at most 60"
        ):
            render.check_seconds(seconds)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_still_shows_the_requested_state(name, monkeypatch):
    """We ask the simulator for its state while it draws."""
    states, environment, seen = read.load(f"{name}-random").state[[0, 7]], tasks.make(tasks.find(name)), []
    simulator, image = environment.unwrapped, np.zeros((2, 2, 3), np.uint8)
    monkeypatch.setattr(simulator, "render", lambda: seen.append(simulator._get_obs()) or image)
    render.stills(environment, states)
    np.testing.assert_allclose(seen, states, atol=1e-6)


def test_a_strip_shows_the_middle_of_the_episode_with_the_median_return():
    """Episodes of 3, 9 and 5 steps have rewards of 1, 2 and 7 a step, so the second has the median return, 18."""
    episodes = np.repeat([0, 1, 2], [3, 9, 5])
    state, ends = np.arange(17, dtype=np.float32)[:, None], np.append(np.diff(episodes) > 0, True)
    reward = np.array([1, 2, 7], np.float32)[episodes]
    data = transitions.Dataset("three", state, state, reward, state, ends, ~ends & False, episodes, episodes * 0)
    assert render.moments(data, 3, most=5)[:, 0].tolist() == [5, 7, 9]
    assert render.moments(data, 3, most=100)[:, 0].tolist() == [3, 7, 11]
    found = imageio.imread(render.strip(np.stack([np.full((4, 5, 3), value, np.uint8) for value in (0, 9, 255)])))
    assert found.shape == (4, 15, 3)
    assert found[0, ::5, 0].tolist() == [0, 8, 248]


def test_every_bundled_pool_has_a_strip_and_all_take_at_most_a_megabyte():
    strips = list(read.FOLDER.glob("*.png"))
    assert {path.stem for path in strips} == set(read.bundled([read.FOLDER]))
    assert sum(path.stat().st_size for path in strips) <= 1e6
