"""Provenance: what numbers depend on besides settings: code, versions, processor, precision."""

import os
import subprocess

import pytest
import torch

from mbaug import provenance

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]


def committed(folder, *names):
    """Makes a folder a git repository, commits these files, and returns the commit."""
    for command in (["init", "-q"], ["add", *names], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*GIT, "-C", str(folder), *command], check=True)
    return subprocess.run(
        [*GIT, "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(autouse=True)
def _only_this_repository():
    """Hides the user's git settings, and variables such as GIT_DIR, which would name another repository."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("GIT_")]:
            patch.delenv(name)
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        yield


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder with a package mbaug, which provenance.py takes for the running code."""
    package = tmp_path / "project" / "mbaug"
    package.mkdir(parents=True)
    for name in ("__init__.py", "provenance.py"):
        (package / name).touch()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    provenance.commit.cache_clear()
    yield package.parent
    provenance.commit.cache_clear()


def test_provenance_names_code_versions_and_processor(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    found = provenance.provenance("float32")
    assert list(found) == ["commit", "python", "torch", "numpy", "gymnasium", "mujoco", "mbaug", "cpu", "precision"]
    assert all(found.values())
    assert found["torch"] == "2.13.0+cu130", "the version names the CUDA build, which a wheel's metadata may omit"
    assert found["precision"] == "float32"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the {device}")
    assert provenance.provenance("float32", "cuda")["device"] == "the cuda"


def test_a_processor_is_named_with_its_family_and_model(monkeypatch):
    first = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: first + "\n" + first.replace("17", "1"))
    assert provenance.processor() == "AMD EPYC, family 25, model 17"
    arm = "processor\t: 0\nFeatures\t: fp\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda path: arm)
    monkeypatch.setattr(provenance.platform, "machine", lambda: "aarch64")
    assert provenance.processor() == "aarch64, CPU implementer 0x41, CPU part 0xd0c"
    monkeypatch.setattr(provenance.sys, "platform", "darwin")
    monkeypatch.setattr(provenance.subprocess, "run", lambda *a, **b: subprocess.CompletedProcess(a, 0, "Apple M2\n"))
    assert provenance.processor() == "Apple M2"


def test_the_commit_is_that_of_the_code_that_was_imported(clone):
    """It is read once, since code that changes during a run did not train it. Earlier uncommitted changes are marked."""
    head = committed(clone, "mbaug")
    assert provenance.commit() == head
    for name in ("provenance.py", "new.py"):
        (clone / "mbaug" / name).write_text("changed")
        assert provenance.commit() == head
        assert provenance.commit.__wrapped__() == f"{head}+dirty"
        subprocess.run([*GIT, "-C", str(clone), "add", "."], check=True)
        subprocess.run([*GIT, "-C", str(clone), "commit", "-q", "-m", "then"], check=True)
        head = provenance.commit.__wrapped__()
        provenance.commit.cache_clear()
        assert provenance.commit() == head
        assert len(head) == 40


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to another user")
def test_a_clone_of_another_user_has_its_commit(clone, monkeypatch):
    """Git alone would refuse it, as in a container whose user differs."""
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    head = committed(clone, "mbaug")
    for path in (clone, *clone.rglob("*")):
        os.chown(path, 12345, 12345)
    assert provenance.commit() == head


def test_code_that_no_repository_tracks_has_no_commit(clone, monkeypatch):
    """Outside any repository, even if GIT_DIR names one; in a folder of another repository; and untracked at its top."""
    assert provenance.commit.__wrapped__() == "unknown"
    other = clone.parent / "other"
    (other / "mbaug").mkdir(parents=True)
    (other / "mbaug" / "__init__.py").touch()
    committed(other, "mbaug")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(clone))
    assert provenance.commit.__wrapped__() == "unknown"
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "__file__", str(clone / "mbaug" / "provenance.py"))
    committed(clone.parent)  # as if a ZIP were unpacked in another repository, or a virtual environment lay there
    assert provenance.commit.__wrapped__() == "unknown"
    committed(clone)
    assert provenance.commit.__wrapped__() == "unknown"


def test_the_digest_of_the_code_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    for part in provenance.TRAINING:
        path = tmp_path / part if part.endswith(".py") else tmp_path / part / "any.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("rate = 1\n")

    def digest(text):
        (tmp_path / "method" / "any.py").write_text(text)
        return provenance.code()

    plain = digest("def loss(x):\n    return 2 * x\n")
    assert digest('"""About."""\n\ndef loss(x):  # twice\n    """Returns twice x."""\n    return (2\n        * x)\n') == plain
    assert digest("def loss(x):\n    return 3 * x\n") != plain
    assert digest("def loss(x):\n    return 2 * x\n") == plain
    (tmp_path / "tasks.py").write_text("rate = 2\n")
    assert provenance.code() != plain
