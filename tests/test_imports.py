"""Imports in mbaug go down only: the method never sees the evidence; a module needs only those above it."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

ORDER = (
    *("__init__", "settings", "files", "streams", "engine", "graphs", "networks", "offline_data", "transitions", "tasks"),
    *("world_model", "augmentation", "td3", "sac", "training"),  # to here the method, then the evidence
    *("overfitting", "recording", "benchmark", "pools", "probes", "collection", "grid", "life", "study", "rendering"),
    *("statistics", "presentation", "chapters", "__main__"),
)
SOURCES = {path.stem: path.read_text() for path in sorted((ROOT / "mbaug").glob("*.py"))}


def imported_modules(source: str) -> set[str]:
    """Returns the names of mbaug's own modules that a source imports, wherever in the source it does."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "mbaug"}
        elif isinstance(node, ast.ImportFrom):
            package = "mbaug" if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            if module == "mbaug":  # `from mbaug import td3, __version__`: what is no module is in __init__
                names |= {f"mbaug.{alias.name}" for alias in node.names}
            elif module.startswith("mbaug."):
                names.add(module)
    modules = {name.split(".")[1] if "." in name else "__init__" for name in names}
    return {module if module in ORDER else "__init__" for module in modules}


def test_every_import_form_is_found():
    source = "import mbaug.td3\nfrom . import sac\nfrom .tasks import find\ndef f():\n    "
    source += "from mbaug import streams, __version__\n"
    assert imported_modules(source) == {"td3", "sac", "tasks", "streams", "__init__"}


def test_every_module_has_its_place():
    assert set(SOURCES) <= set(ORDER), f"No place in the order: {set(SOURCES) - set(ORDER)}."


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_down_only(module):
    for imported in imported_modules(SOURCES[module]):
        assert ORDER.index(imported) < ORDER.index(module), f"{module} imports {imported} from below."


def test_importing_the_package_imports_nothing_heavy():
    code = "import mbaug, sys; print(mbaug.__version__, {'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "0.1.0 set()"
