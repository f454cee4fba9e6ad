"""Imports in mbaug go down only, from room to room; the method runs without the engine, and nothing goes in a circle."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

ROOMS = (
    *("__init__", "files", "checks", "ending", "streams", "provenance", "engine", "tasks", "method"),
    *("datasets", "experiments", "reporting", "__main__"),
)
FOLDER = ROOT / "mbaug"
MODULES = {  # by dotted name within mbaug; a room's __init__ has the room's name
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__"): path for path in FOLDER.rglob("*.py")
}


def imported(source: str) -> set[str]:
    """Returns the modules of mbaug that a source imports, wherever in the source it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "in mbaug imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or something in one
    found = set()
    for name in (name for name in names if name.split(".")[0] == "mbaug"):
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in MODULES:
            parts = parts[:-1]
        found.add(".".join(parts) or "__init__")
    return found


GRAPH = {module: imported(path.read_text()) for module, path in sorted(MODULES.items())}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_import_form_is_found():
    source = "import mbaug.method.td3 as t\nfrom mbaug.tasks import find\nimport numpy\ndef f():\n    "
    source += "from mbaug import streams, __version__\n    from mbaug.method import sac"
    assert imported(source) == {"method.td3", "tasks", "streams", "__init__", "method.sac"}


def test_every_module_has_its_room():
    assert set(map(room, MODULES)) == set(ROOMS)


@pytest.mark.parametrize("module", GRAPH)
def test_imports_go_down_only(module):
    above = {other for other in GRAPH[module] if ROOMS.index(room(other)) > ROOMS.index(room(module))}
    assert not above, f"{module} imports {above} from rooms that come later"
    if room(module) == "method":
        assert "engine" not in map(room, GRAPH[module]), "the method runs without the engine"


def test_no_room_imports_in_a_circle():
    TopologicalSorter(GRAPH).prepare()


def test_importing_the_package_imports_nothing_heavy():
    code = "import mbaug, sys; print(mbaug.__version__, {'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "0.1.0 set()"
