"""The site, which `make site` builds into build/site: what the repository holds, bound together; nothing is written twice.

Its source folder is the repository itself (`sphinx-build -c docs . build/site`), so links lead where they lead on GitHub.
No cell is executed, and neither building nor reading needs the network.
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

import colab  # noqa: E402 -- beside this file

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
nb_render_markdown_format = "myst"  # of outputs: they hold mathematics, too
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a chapter's answer stands below its title as a small heading
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False

html_theme = "sphinx_book_theme"
html_static_path = ["site.css", str(Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg.js")]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""
html_favicon = "icon.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
linkcheck_anchors = False  # GitHub makes its own in the browser
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


def card(link: re.Match) -> str:
    """Returns a link to a folder as one to the README that describes it, which is the page that the site has."""
    folder = ROOT / link[1]
    described = next((at for at in (folder, *folder.parents) if (at / "README.md").is_file()), ROOT)
    return f"]({described.relative_to(ROOT)}/README.md)" if folder.is_dir() else link[0]


def bind(app: Sphinx, page: str, text: list[str]) -> None:
    """Puts the table of contents at the end of the front page, which is the README."""
    if page == root_doc:
        text[0] = re.sub(r"\]\(([\w/]+)\)", card, text[0]) + (ROOT / "docs" / "contents.md").read_text()


def open_the_copy_in_colab(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Lets the theme's Colab button open a chapter's copy with a set-up cell, which lies beside the published site."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button["text"] == "Colab":
                button["url"] = button["url"].replace(f"/blob/main/{page}", f"/blob/gh-pages/colab/{Path(page).name}")


def finish(app: Sphinx, error: Exception | None) -> None:
    """Gives the front page the name that a web server looks for, and makes the copies for Colab."""
    if error is None:
        shutil.copy2(app.outdir / f"{root_doc}.html", app.outdir / "index.html")
        if REPOSITORY:
            colab.write(ROOT / "notebooks", app.outdir / "colab", REPOSITORY)


def escape(app: Sphinx, what: str, name: str, described: object, options: object, lines: list[str]) -> None:
    """Keeps the bars of |u| from being read as reStructuredText's substitutions, a property's colon as the end of its type."""
    lines[:] = [line.replace("|", r"\|").replace(": ", " – " if what == "property" else ": ") for line in lines]


def shorten(app: Sphinx, what: str, name: str, described: object, options: object, signature: str | None, returned: str | None):
    """Returns a signature with bare types and names: what is allowed as a setting is said in its source."""
    bound = r"~?(?:typing\.)?Annotated\[(.+?), ~?mbaug\.checks\.Bound\(.*?\)\]"
    plain = re.sub(r"<function [\w.]*<lambda>>", "...", re.sub(bound, r"\1", signature or ""))
    return signature and re.sub(r"<function (\w+)>", r"\1", plain), returned


def repeated(app: Sphinx, what: str, name: str, member: object, skipped: bool, options: object) -> bool | None:
    """Leaves out the fields of a named tuple, which its signature has already."""
    return str(getattr(member, "__doc__", "")).startswith("Alias for field number") or None


def setup(app: Sphinx) -> None:
    """Connects the above."""
    app.connect("source-read", bind)
    app.connect("autodoc-process-docstring", escape, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", repeated)
    app.connect("html-page-context", open_the_copy_in_colab, priority=900)
    app.connect("build-finished", finish)
