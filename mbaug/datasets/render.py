"""Renders policies as MP4 and GIF, and data as strips of frames, without a screen.

This module does not import MuJoCo, so that `opengl` can choose MUJOCO_GL before the import.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import imageio.v3 as imageio
import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from mbaug.checks import require
from mbaug.method.transitions import Dataset

BACKENDS = "egl", "osmesa", "glfw"  # values of MUJOCO_GL, in the order in which we try them; the last needs a screen
FRAMES_PER_SECOND = 30  # upper limit: GIF viewers show no more
LONGEST = 60  # upper limit for the seconds of a film, since all its images are in memory
SIZE = 320  # width and height of a film, in pixels
FOLLOWED: dict[str, Any] = {"render_mode": "rgb_array", "camera_name": "track"}  # a camera that follows; the default stands still
STRIP = 8, 96  # number of frames in a strip; width and height of each, in pixels
CLOSE: dict[str, Any] = {  # a camera beside the torso
    "render_mode": "rgb_array",
    "camera_id": -1,
    "default_camera_config": {"type": 1, "trackbodyid": 1, "distance": 3.0, "elevation": -8, "azimuth": 90},
}
FLAT, SKY = 0, 2  # types of textures: MuJoCo's mjTEXTURE_2D and mjTEXTURE_SKYBOX
SHADES = 32  # levels of each colour in a strip; with all 256 a PNG is twice as large
TRIAL = "import gymnasium; e = gymnasium.make('Hopper-v5', render_mode='rgb_array', width=8, height=8); e.reset(); e.render()"
TRIAL_SECONDS = 60  # time limit of a trial, which takes ten seconds on a loaded machine

Frames = UInt8[np.ndarray, "frames height width 3"]


def works(backend: str) -> bool:
    """Returns whether MUJOCO_GL=`backend` can draw an image. A separate process tries it, since a bad library may crash."""
    environment = os.environ | {"MUJOCO_GL": backend}
    try:
        trial = subprocess.run([sys.executable, "-c", TRIAL], env=environment, capture_output=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:  # a driver may wait for a screen
        return False
    return trial.returncode == 0


def opengl() -> str:
    """Returns a value of MUJOCO_GL that works here: the one that is set, or the first in `BACKENDS` that works.

    Raises:
        RuntimeError: The value that is set does not work, or none does. The message says what to set or to install.
    """
    given = os.environ.get("MUJOCO_GL")
    if given and works(given):
        return given
    found = next((backend for backend in BACKENDS if backend != given and works(backend)), None)
    if found is None:
        problem = f"no OpenGL library can draw without a screen here (tried {', '.join(BACKENDS)})"
        raise RuntimeError(f"{problem}: install EGL or OSMesa (Debian and Ubuntu: apt install libegl1, or libosmesa6)")
    if given:
        raise RuntimeError(f"MUJOCO_GL={given} does not work here, but {found} does: set MUJOCO_GL={found} or unset it")
    return found


def check_seconds(seconds: float) -> None:
    """Raises ValueError unless a film can have this length."""
    require(0 < seconds <= LONGEST, f"{seconds:g} seconds were requested, but a film must have more than 0 and at most {LONGEST}")


def frames(
    environment: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray], seconds: float, most: int = FRAMES_PER_SECOND
) -> tuple[Frames, int]:
    """Returns images of a policy for `seconds` of simulated time, and their frame rate.

    The frame rate is at most `most` per second. The environment has render_mode="rgb_array". When
    an episode ends, the next one begins.
    """
    steps_per_second = environment.metadata["render_fps"]
    every = math.ceil(steps_per_second / most)
    state, images = environment.reset(seed=0)[0], []
    for step in range(math.ceil(seconds * steps_per_second)):
        if step % every == 0:
            images.append(environment.render())
        state, _, terminal, truncated, _ = environment.step(act(state.astype(np.float32)))
        if terminal or truncated:
            state, _ = environment.reset()
    return np.stack(images), round(steps_per_second / every)


def without_scenery(environment: gymnasium.Env) -> gymnasium.Env:
    """Returns the MuJoCo environment after giving it a white sky and a pale floor without reflections.

    A GIF has few colours, and this leaves most of them for the agent. Call it before the first image is drawn.
    """
    model: Any = environment.unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
    model.mat_reflectance[:] = 0
    model.mat_texrepeat[model.mat_texrepeat > 1] = 25  # fewer squares on the floor: their edges make a file larger
    for kind, first, *size in zip(
        model.tex_type, model.tex_adr, model.tex_height, model.tex_width, model.tex_nchannel, strict=True
    ):
        texture = model.tex_data[first : first + math.prod(map(int, size))]
        if kind == SKY:
            texture[:] = 255
        elif kind == FLAT:
            texture[:] = np.where(texture > 0, 250, 190)
    return environment


def stills(environment: gymnasium.Env, states: Float[np.ndarray, "frames state"]) -> Frames:
    """Returns an image of each state. The MuJoCo environment must have render_mode="rgb_array"."""
    from mbaug import tasks  # imports MuJoCo, which the caller has already imported to make the environment

    environment.reset(seed=0)
    images = []
    for state in states:
        tasks.set_state(environment, state)
        images.append(environment.render())
    return np.stack(images)


def moments(dataset: Dataset, count: int, most: int) -> Float[np.ndarray, "count state"]:
    """Returns `count` evenly spaced states from the middle `most` steps of the episode with the median return."""
    returns = pd.Series(dataset.reward).groupby(dataset.episode).sum().sort_values(kind="stable")
    rows = np.flatnonzero(dataset.episode == returns.index[len(returns) // 2])
    span = min(most, len(rows))
    first = (len(rows) - span) // 2
    return dataset.state[rows[first + np.linspace(0, span - 1, count).round().astype(int)]]


def strip(images: Frames) -> bytes:
    """Returns the images side by side in one small PNG."""
    coarse = images // (256 // SHADES) * (256 // SHADES)
    return imageio.imwrite("<bytes>", np.concatenate(list(coarse), axis=1), extension=".png", optimize=True)


def mp4(images: Frames, frames_per_second: int) -> bytes:
    """Returns the images as an MP4 (H.264)."""
    return imageio.imwrite("<bytes>", images, extension=".mp4", plugin="pyav", codec="libx264", fps=frames_per_second)


def gif(images: Frames, frames_per_second: int) -> bytes:
    """Returns the images as a GIF that loops forever."""
    return imageio.imwrite("<bytes>", images, extension=".gif", duration=1000 / frames_per_second, loop=0)
