"""The site: it builds without warnings, needs no network, and links to Binder and Colab once the repository has an address."""

import ast
import importlib.util
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

from mbaug.method.arms import ALGORITHMS
from mbaug.reporting import chapters

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTENTS = [source.stem for source in chapters.find()]
ADDRESS = "https://github.com/someone/mbaug"


def test_the_site_describes_every_algorithm():
    described = (ROOT / "docs/method.rst").read_text()
    lacking = [name for name in ALGORITHMS if f"automodule:: mbaug.method.{name}\n" not in described]
    assert not lacking, "docs/method.rst needs a section for each algorithm"


class Page(HTMLParser):
    """The ids of a page, its links, and its parts: the files that a browser fetches to show it."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.parts = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found.get("id"), found.get("name")}
        if "href" in found:
            (self.parts if tag == "link" and "stylesheet" in found.get("rel", "") else self.links).append(found["href"])
        if "src" in found:
            self.parts.append(found["src"])


def build(root, folder, *options):
    command = [sys.executable, "-m", "sphinx", "--quiet", *options, "-c", "docs", "-d", str(folder / "doctrees"), "."]
    result = subprocess.run([*command, str(folder / "site")], cwd=root, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx_book_theme", reason="the site's packages are not installed: `make setup`")
    return build(ROOT, tmp_path_factory.mktemp("site"), "-W", "--keep-going")


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_is_fetched_from_elsewhere(site):
    """Pages link to Binder and Colab only if the address of the repository is known."""
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    assert {site / "index.html", *(site / f"notebooks/{name}.html" for name in CONTENTS)} <= {*pages}
    broken = []
    for path, page in pages.items():
        for link in page.links + page.parts:
            target, fragment = urldefrag(unquote(link))
            target = target.partition("?")[0]
            if link in page.parts and not link.startswith("data:"):
                assert "//" not in link, f"{path.name} fetches {link}"
            if "//" in link or (link.startswith(("data:", "mailto:", "#")) and fragment in page.ids):
                continue
            found = (path.parent / target).resolve() if target else path
            if not found.is_file() or (found in pages and fragment not in pages[found].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken
    known = PROJECT.get("urls", {}).get("Repository") is not None
    assert any(place in link for page in pages.values() for link in page.links for place in ("mybinder", "colab")) == known


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on the PATH")
@pytest.mark.parametrize("page", ["index", *(f"notebooks/{name}" for name in CONTENTS)])
def test_a_browser_reports_no_error(site, page):
    command = ["chromium", "--headless=new", "--no-sandbox", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    command += ["--window-size=390,900", "--dump-dom", f"file://{site}/{page}.html"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert "<h1>" in result.stdout
    logged = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in logged if '"[PST]: ' not in line], "only notes of the theme, marked [PST], may be logged"
    assert ("mjx-container" in result.stdout) == ('class="math' in (site / f"{page}.html").read_text())  # formulas are typeset


@pytest.mark.slow
def test_pages_link_to_colab_and_binder_where_the_address_is_known(tmp_path):
    pytest.importorskip("sphinx_book_theme", reason="the site's packages are not installed: `make setup`")
    (tmp_path / "notebooks").mkdir()
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copy(ROOT / "notebooks/90_engine.ipynb", tmp_path / "notebooks")
    project = (ROOT / "pyproject.toml").read_text().replace("\n[project.urls]\n", "\n[project.other]\n")
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n\n{project}')
    missing = "suppress_warnings=myst,toc,ref,image,download,git"  # this copy lacks the files that README and chapter link to
    site = build(tmp_path, tmp_path, "-D", "include_patterns=README.md,notebooks/*", "-D", missing)
    links = Page(site / "notebooks/90_engine.html").links
    assert "https://colab.research.google.com/github/someone/mbaug/blob/gh-pages/colab/90_engine.ipynb" in links
    assert "https://mybinder.org/v2/gh/someone/mbaug/main?urlpath=lab/tree/notebooks/90_engine.ipynb" in links
    assert (site / "colab/90_engine.ipynb").is_file()


@pytest.mark.parametrize("name", CONTENTS)
def test_the_copy_for_colab_begins_with_its_set_up(name):
    specification = importlib.util.spec_from_file_location("colab", ROOT / "docs/colab.py")
    colab = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(colab)
    chapter = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    copy = colab.copy(chapter, ADDRESS)
    nbformat.validate(copy)
    assert ADDRESS in copy.cells[0].source
    assert [cell.source for cell in copy.cells[1:]] == [cell.source for cell in chapter.cells]
    assert not any(cell.get("outputs") for cell in copy.cells)
    for cell in copy.cells:
        ast.parse(cell.source if cell.cell_type == "code" else "")  # no magics, not even in the set-up


def test_binder_installs_what_the_project_needs():
    """Binder heeds the version of Python only if it is pinned, and resolves paths from the folder of the file."""
    *conda, packages = yaml.safe_load((ROOT / ".binder/environment.yml").read_text())["dependencies"]
    python, version = conda[0].split("=")
    assert Requirement(f"{python}{PROJECT['requires-python']}").specifier.contains(f"{version}.0")
    torch = Requirement(next(one for one in PROJECT["dependencies"] if one.startswith("torch")))
    assert conda[1:] == ["pip", f"pytorch-cpu{torch.specifier}"]
    assert packages["pip"] == ["-e .."]


def test_citation_and_package_name_the_same_repository_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.get("repository-code") == PROJECT.get("urls", {}).get("Repository")
    assert citation["version"] == PROJECT["version"]
