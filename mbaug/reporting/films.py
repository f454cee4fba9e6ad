"""Films a trained agent at the switch, after 50,000 and after 100,000 interactions, side by side, with its recorded scores.

A film is `figures/films/<task>.gif`, with a `.json` that holds its caption and its sources. `python -m mbaug films` makes one
film per task from three actors in data/models. The same actors and the same OpenGL library give the same bytes.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import mujoco
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mbaug import files, tasks
from mbaug.checks import require
from mbaug.datasets import render
from mbaug.datasets.render import Frames
from mbaug.experiments import records, run, trained
from mbaug.experiments.records import Run
from mbaug.reporting import statistics
from mbaug.reporting.looks import look
from mbaug.reporting.words import number

ARM = "augmented"
MOMENTS = {"switch": 0} | {str(steps): steps for steps in run.STEPS_KEPT}  # number of interactions at each moment
SECONDS = 3.0  # simulated time that a film shows
PANEL = 190, 130  # width and height in pixels
HEAD = 44  # height in pixels of the text above a panel
FRAMES_PER_SECOND = 20  # upper limit
COLOURS = 32, 24, 20, 16, 12, 8, 4  # sizes of a film's palette: the first that keeps it within BYTES
BYTES = 400_000  # largest size of a film


def about(task: str, root: Path) -> dict[str, Any]:
    """Returns the content of the JSON beside a film: caption, provenance, run, scores, and checksums of the actors.

    Raises:
        ValueError: The run, or one of the evaluations, is not recorded.
        FileNotFoundError: An actor is missing.
    """
    which = Run(task, f"{task}-medium-replay", ARM, 0)
    evaluations = statistics.evaluations(records.load_runs(root, [which]))
    online = evaluations[evaluations["phase"] == "finetune"].set_index("steps")["score"]
    missing = [f"{steps:,}" for steps in MOMENTS.values() if steps not in online]
    require(not missing, f"{root} has no evaluation of {which} after {', '.join(missing)} interactions, which its film needs")
    scores = [float(online[steps]) for steps in MOMENTS.values()]
    actors = [trained.existing(task, ARM if moment == "switch" else f"{ARM}_{moment}") for moment in MOMENTS]
    name = tasks.find(task).title
    return {
        "caption": f"{name}, {look(ARM).label}, seed 0: the agent at the switch, after 50,000 and after 100,000 interactions. "
        f"Nothing is learned before 25,000. Each begins from the same state and acts without exploration for {SECONDS:.0f} s. A "
        "score is the recorded evaluation at that moment, the mean of ten episodes.",
        "provenance": f"{which}, actors rounded to bfloat16, drawn with MuJoCo {mujoco.__version__}.",
        "run": str(which),
        "scores": scores,
        "actors": {path.stem: files.sha256(path) for path in actors},
    }


def film(panels: Sequence[Frames], words: Sequence[str], frames_per_second: int) -> bytes:
    """Returns a looping GIF of panels side by side, each below its text.

    All panels have the same number of frames.

    Raises:
        ValueError: The GIF has more than BYTES even with the fewest colours.
    """
    width = panels[0].shape[2]
    head = Image.new("RGB", (width * len(panels), HEAD), "white")
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 14)
    for place, text in enumerate(words):
        middle = width * (place + 0.5), HEAD / 2
        ImageDraw.Draw(head).multiline_text(middle, text, "black", font, anchor="mm", align="center")
    drawn = np.concatenate(list(panels), axis=2)
    drawn[:, :, width::width] = 255  # a white line between two panels
    images = [Image.fromarray(np.concatenate([np.asarray(head), image])) for image in drawn]
    ends = 10 * np.round(100 / frames_per_second * np.arange(len(images) + 1))  # ms: a GIF counts in hundredths of a second
    for colours in COLOURS:
        content = _encoded(images, colours, np.diff(ends).astype(int).tolist())
        if len(content) <= BYTES:
            return content
    raise ValueError(f"a film of {len(images)} frames has more than {BYTES:,} bytes even with {COLOURS[-1]} colours")


def _encoded(images: Sequence[Image.Image], colours: int, milliseconds: list[int]) -> bytes:
    """Returns the images as a GIF with one palette for all; `milliseconds` says how long it shows each."""
    sample = Image.fromarray(np.concatenate([np.asarray(image) for image in images[::10]]))
    palette = sample.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    with io.BytesIO() as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
        return file.getvalue()


def make(folder: Path, root: Path) -> Iterator[Path]:
    """Writes a film and its JSON for each task whose film is missing or out of date, and yields the film's path."""
    for task in tasks.TASKS:
        path, content = folder / f"{task}.gif", about(task, root)
        text = files.sealed(content)
        if path.is_file() and path.with_suffix(".json").is_file() and path.with_suffix(".json").read_bytes() == text:
            continue
        panels, words, frames_per_second = [], [], 0
        for (moment, steps), score in zip(MOMENTS.items(), content["scores"], strict=True):
            environment = render.without_scenery(tasks.make(tasks.find(task), width=PANEL[0], height=PANEL[1], **render.FOLLOWED))
            learner = trained.agent(task, ARM, moment)
            images, frames_per_second = render.frames(environment, learner.act, SECONDS, most=FRAMES_PER_SECOND)
            environment.close()
            panels.append(images)
            words.append(f"{f'after {steps:,}' if steps else 'at the switch'}\nscore {number(score)}")
        files.write_together({path: film(panels, words, frames_per_second), path.with_suffix(".json"): text})
        yield path
