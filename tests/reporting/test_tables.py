"""The README: its numbers are the records', its example runs, its links and figures are there."""

import re

import pytest
from conftest import ROOT

from mbaug import presentation, recording, settings, training

TEXT = (ROOT / "README.md").read_text()


def test_the_numbers_are_those_of_the_records():
    assert presentation.outdated(ROOT / "README.md", recording.load_runs(recording.root())) is None


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", TEXT))))
def test_every_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def test_the_gallery_has_every_figure():
    text = (ROOT / "figures" / "README.md").read_text()
    names = sorted(path.stem for path in (ROOT / "figures").glob("*.png"))
    assert names
    assert re.findall(r"\]\((\w+)\.png\)", text) == names


def test_the_example_runs(monkeypatch, capsys):
    """The code block as it stands, with a hundred updates in place of 200,000, an evaluation at each 50."""
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    tiny, learner = settings.PROFILES["smoke"], training.learner
    monkeypatch.setattr(training, "learner", lambda arm, *rest: learner(tiny.apply(arm), *rest))
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["50", "100"]
