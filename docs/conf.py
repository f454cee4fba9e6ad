"""Sphinx configuration of the site, which `make site` builds into build/site from the repository's own pages.

The source folder is the repository itself (`sphinx-build -c docs . build/site`), so links lead to the same pages as on GitHub.
Sphinx executes no cell. Neither building nor reading the site needs a network.
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path

import mathjax
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import colab  # noqa: E402 -- docs/colab.py

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT.get("urls", {}).get("Repository", "").rstrip("/")

project = html_title = PROJECT["name"]
release, author = PROJECT["version"], PROJECT["authors"][0]["name"]
copyright = author
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/*.ipynb", "figures/*", "data/**", "docs/*"]
exclude_patterns = ["build", ".*", "docs/contents.md"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # the outputs contain mathematics
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a chapter's answer is a small heading directly below its title, which skips levels
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "sphinx_book_theme"
html_static_path = ["site.css", str(Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg.js")]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""
html_favicon = "icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as in the reader's system
linkcheck_anchors = False  # GitHub creates its anchors in the browser
mathjax_path = "tex-svg.js"
html_theme_options = {"show_toc_level": 2, "navbar_persistent": []}
if REPOSITORY:
    launch = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": launch | {"notebook_interface": "jupyterlab"},
    }


def link_to_readme(link: re.Match) -> str:
    """Returns a link to a folder changed to link to the nearest README, because the site has no pages for folders."""
    folder = ROOT / link[1]
    nearest = next((each for each in (folder, *folder.parents) if (each / "README.md").is_file()), ROOT)
    return f"]({nearest.relative_to(ROOT)}/README.md)" if folder.is_dir() else link[0]


def complete_front_page(app: Sphinx, page: str, text: list[str]) -> None:
    """Changes the front page, which is the README: adapts links to folders and appends the table of contents."""
    if page == root_doc:
        text[0] = re.sub(r"\]\(([\w/]+)\)", link_to_readme, text[0]) + (ROOT / "docs" / "contents.md").read_text()


def open_copy_in_colab(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Makes the theme's Colab button open the chapter's copy with a set-up cell, which is on the branch gh-pages."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button["text"] == "Colab":
                button["url"] = button["url"].replace(f"/blob/main/{page}", f"/blob/gh-pages/colab/{Path(page).name}")


def finish(app: Sphinx, error: Exception | None) -> None:
    """Copies the front page to index.html, which web servers expect, and writes the copies for Colab."""
    if error is None:
        shutil.copy2(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
        if REPOSITORY:
            colab.write(ROOT / "notebooks", app.outdir / "colab", REPOSITORY)


def escape(app: Sphinx, what: str, name: str, described: object, options: object, lines: list[str]) -> None:
    """Escapes the bars of |u|, a substitution in reStructuredText, and a property's colon, which would end its type."""
    for number, line in enumerate(lines):
        escaped = line.replace("|", r"\|")
        lines[number] = escaped.replace(": ", " – ") if what == "property" else escaped


def shorten(app: Sphinx, what: str, name: str, described: object, options: object, signature: str | None, returned: str | None):
    """Returns a signature without the bounds of settings, which their source shows, and with plain names of functions."""
    bound = r"~?(?:typing\.)?Annotated\[(.+?), ~?mbaug\.checks\.Bound\(.*?\)\]"
    plain = re.sub(r"<function [\w.]*<lambda>>", "...", re.sub(bound, r"\1", signature or ""))
    return signature and re.sub(r"<function (\w+)>", r"\1", plain), returned


def skip_repeated(app: Sphinx, what: str, name: str, member: object, skipped: bool, options: object) -> bool | None:
    """Skips the fields of a named tuple, because its signature already shows them."""
    return str(getattr(member, "__doc__", "")).startswith("Alias for field number") or None


def setup(app: Sphinx) -> None:
    """Connects the functions above to Sphinx's events."""
    app.connect("source-read", complete_front_page)
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip_repeated)
    app.connect("html-page-context", open_copy_in_colab, priority=900)
    app.connect("build-finished", finish)
