"""What a number depends on beside its settings is named: code, versions, processor, arithmetic."""

import pytest
import torch

from mbaug import provenance


@pytest.fixture
def git(monkeypatch):
    """What git answers to a process that has not asked yet."""
    answers = {"rev-parse": "0123abcd", "diff": ""}
    monkeypatch.setattr(provenance, "_git", lambda command, *_: answers[command])
    provenance.commit.cache_clear()
    yield answers
    provenance.commit.cache_clear()


def test_provenance_names_code_versions_and_processor(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    found = provenance.provenance("float32")
    assert list(found) == ["commit", "python", "torch", "numpy", "gymnasium", "mujoco", "mbaug", "cpu", "precision"]
    assert all(found.values())
    assert found["torch"] == "2.13.0+cu130", "with its CUDA, which a wheel's metadata may leave out"
    assert found["precision"] == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the {device}")
    assert provenance.provenance("float32", "cuda")["device"] == "the cuda"


def test_a_processor_is_named_with_its_family_and_model(monkeypatch):
    first = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: first + "\n" + first.replace("17", "1"))
    assert provenance.processor() == "AMD EPYC, family 25, model 17"


def test_the_commit_is_that_of_the_code_that_was_imported(git):
    """Asked once: what is committed while a run trains did not train it. A package that was changed since is marked."""
    assert provenance.commit() == "0123abcd"
    git |= {"rev-parse": "4567abcd", "diff": "mbaug/td3.py"}
    assert provenance.commit() == "0123abcd"
    provenance.commit.cache_clear()
    assert provenance.commit() == "4567abcd+dirty"


def test_code_without_its_history_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit.__wrapped__() == "unknown"
