"""Policies as MP4 and GIF, data as strips of frames, without a screen. Nothing here imports MuJoCo: `opengl` comes first."""

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

BACKENDS = "egl", "osmesa", "glfw"  # values of MUJOCO_GL in the order in which they are tried; the last needs a screen
FRAMES_PER_SECOND = 30  # at most: a GIF's viewer shows no more
LONGEST = 60  # seconds of a film, all images of which are in memory
SIZE = 320  # pixels across and down
FOLLOWED: dict[str, Any] = {"render_mode": "rgb_array", "camera_name": "track"}  # Gymnasium's default camera stays where it is
STRIP = 8, 96  # frames of a strip; pixels of each, across and down
CLOSE = {"camera_id": -1, "default_camera_config": {"type": 1, "trackbodyid": 1, "distance": 3.0, "elevation": -8, "azimuth": 90}}
FLAT, SKY = 0, 2  # kinds of textures: MuJoCo's mjTEXTURE_2D and mjTEXTURE_SKYBOX
SHADES = 32  # of each colour in a strip: a PNG of all 256 is twice as large
TRIAL = "import gymnasium; e = gymnasium.make('Hopper-v5', render_mode='rgb_array', width=8, height=8); e.reset(); e.render()"
TRIAL_SECONDS = 60  # a loaded machine takes ten

Frames = UInt8[np.ndarray, "frames height width 3"]


def works(backend: str) -> bool:
    """Returns whether an image can be drawn with MUJOCO_GL=`backend`, tried in a process of its own: a library may crash it."""
    environment = os.environ | {"MUJOCO_GL": backend}
    try:
        trial = subprocess.run([sys.executable, "-c", TRIAL], env=environment, capture_output=True, timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:  # as a driver may that waits for a screen
        return False
    return trial.returncode == 0


def opengl() -> str:
    """Returns the value of MUJOCO_GL with which MuJoCo draws here: what is set, or the first that works.

    Raises:
        RuntimeError: None works, or not the one that is set; the sentence says what to install or to set.
    """
    given = os.environ.get("MUJOCO_GL")
    if given and works(given):
        return given
    found = next((backend for backend in BACKENDS if backend != given and works(backend)), None)
    if found is None:
        others = f"no OpenGL library draws without a screen here ({', '.join(BACKENDS)})"
        raise RuntimeError(f"{others}: install EGL or OSMesa (Debian and Ubuntu: apt install libegl1, or libosmesa6)")
    if given:
        raise RuntimeError(f"MUJOCO_GL={given} draws nothing here, but {found} does: set MUJOCO_GL={found}, or leave it out")
    return found


def check_seconds(seconds: float) -> None:
    """Raises ValueError unless so many seconds can be rendered."""
    require(0 < seconds <= LONGEST, f"{seconds:g} seconds asked for, but it must be a number above 0, and {LONGEST} at most")


def frames(
    environment: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray], seconds: float, most: int = FRAMES_PER_SECOND
) -> tuple[Frames, int]:
    """Returns the images of a policy, of so many simulated seconds, and how many make a second; after an episode comes another.

    The environment has render_mode="rgb_array"; `act` returns the action in a state; `most` is of frames a second.
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


def plain(environment: gymnasium.Env) -> gymnasium.Env:
    """Returns a MuJoCo environment that has drawn nothing yet with a white sky and a pale floor that mirrors nothing.

    A GIF has few colours: so they are the agent's.
    """
    model: Any = environment.unwrapped.model  # pyright: ignore[reportAttributeAccessIssue]
    model.mat_reflectance[:] = 0
    model.mat_texrepeat[model.mat_texrepeat > 1] = 25  # squares of the floor: fewer edges, which cost bytes
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
    """Returns an image of each state that a MuJoCo environment with render_mode="rgb_array" has given."""
    from mbaug import tasks  # imports MuJoCo, as did whoever made the environment

    environment.reset(seed=0)
    images = []
    for state in states:
        tasks.set_state(environment, state)
        images.append(environment.render())
    return np.stack(images)


def moments(dataset: Dataset, count: int, most: int) -> Float[np.ndarray, "count state"]:
    """Returns `count` evenly spaced states from the middle of the episode with the median return, at most `most` steps of it."""
    returns = pd.Series(dataset.reward).groupby(dataset.episode).sum().sort_values(kind="stable")
    rows = np.flatnonzero(dataset.episode == returns.index[len(returns) // 2])
    span = min(most, len(rows))
    first = (len(rows) - span) // 2
    return dataset.state[rows[first + np.linspace(0, span - 1, count).round().astype(int)]]


def strip(images: Frames) -> bytes:
    """Returns the images side by side as one small PNG."""
    coarse = images // (256 // SHADES) * (256 // SHADES)
    return imageio.imwrite("<bytes>", np.concatenate(list(coarse), axis=1), extension=".png", optimize=True)


def mp4(images: Frames, frames_per_second: int) -> bytes:
    """Returns the images as an MP4 (H.264)."""
    return imageio.imwrite("<bytes>", images, extension=".mp4", plugin="pyav", codec="libx264", fps=frames_per_second)


def gif(images: Frames, frames_per_second: int) -> bytes:
    """Returns the images as a GIF that begins again and again."""
    return imageio.imwrite("<bytes>", images, extension=".gif", duration=1000 / frames_per_second, loop=0)
