"""Imports in mbaug: a folder imports only from earlier folders, the method needs no engine, and there are no cycles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

from mbaug import __version__

ORDER = (
    *("__init__", "files", "checks", "ending", "streams", "provenance", "engine", "tasks", "method"),
    *("datasets", "experiments", "reporting", "__main__"),
)
FOLDER = ROOT / "mbaug"
MODULES = {  # by dotted name without `mbaug.`; a package's __init__ has the package's name
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__"): path for path in FOLDER.rglob("*.py")
}


def imported(source: str) -> set[str]:
    """Returns the modules of mbaug that a source imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports in mbaug must be absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or a name in a module
    found = set()
    for name in (name for name in names if name.split(".")[0] == "mbaug"):
        parts = name.split(".")[1:]
        while parts and ".".join(parts) not in MODULES:
            parts = parts[:-1]
        found.add(".".join(parts) or "__init__")
    return found


GRAPH = {module: imported(path.read_text()) for module, path in sorted(MODULES.items())}


def top(module: str) -> str:
    """Returns the folder or single file at the top of the package that a module belongs to."""
    return module.split(".")[0]


def test_every_import_form_is_found():
    source = "import mbaug.method.td3 as t\nfrom mbaug.tasks import find\nimport numpy\ndef f():\n    "
    source += "from mbaug import streams, __version__\n    from mbaug.method import sac"
    assert imported(source) == {"method.td3", "tasks", "streams", "__init__", "method.sac"}


def test_every_module_belongs_to_a_folder_of_the_order():
    assert set(map(top, MODULES)) == set(ORDER)


@pytest.mark.parametrize("module", GRAPH)
def test_a_module_imports_only_from_its_own_and_earlier_folders(module):
    later = {other for other in GRAPH[module] if ORDER.index(top(other)) > ORDER.index(top(module))}
    assert not later, f"{module} imports {later} from later folders"
    if top(module) == "method":
        assert "engine" not in map(top, GRAPH[module]), "the method must run without the engine"


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter(GRAPH).prepare()


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = "import mbaug, sys; print(mbaug.__version__, {'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == f"{__version__} set()"
