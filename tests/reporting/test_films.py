"""Films: small, made from the actors and records in the repository, the same bytes each time, and shown in their chapter."""

import io
import json
import re
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageSequence

from mbaug import files, tasks
from mbaug.datasets import render
from mbaug.experiments import records, trained
from mbaug.reporting import films
from mbaug.reporting.looks import look
from mbaug.reporting.words import number

FOLDER = ROOT / "figures" / "films"
HERE = sorted(path.stem for path in FOLDER.glob("*.gif"))


def test_all_films_together_take_at_most_4_megabytes():
    assert HERE
    assert sum(path.stat().st_size for path in FOLDER.glob("*.gif")) <= 4_000_000


@pytest.mark.parametrize("task", HERE)
def test_a_film_matches_the_actors_and_the_record_in_the_repository(task):
    path = FOLDER / f"{task}.gif"
    assert path.stat().st_size <= films.BYTES
    found, about = json.loads(path.with_suffix(".json").read_text()), films.about(task, records.root())
    assert {**found, **about, "provenance": found["provenance"]} == found  # the provenance names MuJoCo's version
    with Image.open(path) as film:
        assert film.size == (3 * films.PANEL[0], films.PANEL[1] + films.HEAD)
        seconds = sum(image.info["duration"] for image in ImageSequence.Iterator(film)) / 1000
    assert abs(seconds - films.SECONDS) < 0.1, "The film should run in real time."


def test_the_chapter_shows_every_film():
    text = (ROOT / "notebooks/05_online_finetuning.py").read_text()
    shown = re.findall(r"\]\(../figures/films/(\w+)\.gif\)", text)
    assert shown == [task for task in tasks.TASKS if task in HERE], "in the order of the figures"
    assert sorted(shown) == HERE
    assert look(films.ARM).label in text


def panels(frames=4, noise=0):
    """Returns three panels of grey frames that get brighter, with some noise."""
    random, shape = np.random.default_rng(0), (40, 90, 3)
    return [
        np.stack([np.full(shape, 60 * k) + random.integers(0, noise + 1, shape) for k in range(frames)]).astype(np.uint8)
        for _ in range(3)
    ]


def test_a_film_shows_its_panels_side_by_side_under_their_titles():
    content = films.film(panels(), ["one", "two", "three"], 20)
    assert content == films.film(panels(), ["one", "two", "three"], 20)
    images = [np.asarray(image.convert("L")) for image in ImageSequence.Iterator(Image.open(io.BytesIO(content)))]
    assert [image.shape for image in images] == [(films.HEAD + 40, 270)] * 4
    for x in (45, 135, 225):
        assert (images[0][: films.HEAD, x - 40 : x + 40] < 128).any(), "Each panel should have words above it."
        assert [int(image[-20, x]) for image in images] == pytest.approx([0, 60, 120, 180], abs=6)
    for rate, milliseconds in ((20, [50, 50, 50, 50]), (18, [60, 50, 60, 50])):
        film = Image.open(io.BytesIO(films.film(panels(), ["one", "two", "three"], rate)))
        assert [image.info["duration"] for image in ImageSequence.Iterator(film)] == milliseconds


def test_a_film_has_as_many_colours_as_its_size_allows(monkeypatch):
    def colours(limit):
        monkeypatch.setattr(films, "BYTES", limit)
        image = Image.open(io.BytesIO(films.film(panels(noise=200), ["", "", ""], 20)))
        return len(image.convert("RGB").getcolors())

    assert 16 < colours(400_000) <= 32
    assert colours(20_000) < 16
    with pytest.raises(ValueError, match="a film of 4 frames has more than 100 bytes even with 4 colours"):
        colours(100)


def test_a_film_is_made_for_each_task_and_only_once(tmp_path, monkeypatch):
    made, said, film, path = [], [], films.film, tmp_path / "halfcheetah.gif"
    monkeypatch.setattr(films, "film", lambda panels, words, rate: said.append(words) or film(panels, words, rate))
    monkeypatch.setattr(trained, "agent", lambda *given: made.append(given) or SimpleNamespace(act=None))
    monkeypatch.setattr(tasks, "TASKS", {"halfcheetah": tasks.find("halfcheetah")})
    monkeypatch.setattr(tasks, "make", lambda task, **options: tasks.gymnasium.make(task.gym_id))
    monkeypatch.setattr(render, "frames", lambda *given, most: (panels(noise=9)[0], 20))
    assert [*films.make(tmp_path, records.root())] == [path]
    assert made == [("halfcheetah", "augmented", moment) for moment in ("switch", "50000", "100000")]
    about = films.about("halfcheetah", records.root())
    assert path.with_suffix(".json").read_bytes() == files.sealed(about)
    assert about["caption"].startswith("HalfCheetah, augmented 50 %, seed 0: the agent at the switch")
    moments = "at the switch", "after 50,000", "after 100,000"
    assert said == [[f"{when}\nscore {number(score)}" for when, score in zip(moments, about["scores"], strict=True)]]
    assert [*films.make(tmp_path, records.root())] == []
    path.unlink()
    assert [*films.make(tmp_path, records.root())] == [path]
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(tmp_path))} has no evaluation of halfcheetah/.*/seed0 after 0, 50,000, 100,000 inter"
    ):
        next(films.make(tmp_path, tmp_path))


def test_the_error_for_a_missing_actor_names_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "path_of", lambda task, name, folder: tmp_path / task / f"{name}.safetensors")
    with pytest.raises(
        FileNotFoundError, match=r"^there is no .*/hopper/augmented\.safetensors: `python -m mbaug models` makes it"
    ):
        next(films.make(tmp_path, records.root()))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_plain_scene_has_a_white_sky_and_a_pale_floor(name):
    kinds = mujoco.mjtTexture
    assert (int(kinds.mjTEXTURE_2D), int(kinds.mjTEXTURE_SKYBOX)) == (render.FLAT, render.SKY)
    environment = tasks.make(tasks.find(name))
    before = environment.unwrapped.model.tex_data.copy()
    model = render.without_scenery(environment).unwrapped.model
    assert not model.mat_reflectance.any()
    for kind, first in zip(model.tex_type, model.tex_adr, strict=True):
        pixels = set(model.tex_data[first : first + 3000].tolist())
        expected = {render.FLAT: {190, 250}, render.SKY: {255}}.get(int(kind), set(before[first : first + 3000].tolist()))
        assert pixels == expected
