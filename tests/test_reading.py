"""How the chapters read: the answer first, a picture soon, plain sentences, a link at each name, nothing shown twice."""

import ast
import re
from collections import Counter
from itertools import chain

import nbformat
import pytest
from conftest import ROOT

from mbaug.reporting import chapters

CONTENTS = [source.stem for source in chapters.find()]
NAMES = pytest.mark.parametrize("name", CONTENTS)
FENCE = re.compile(r"```python\n(.*?)```", re.S)  # what `show` displays of a function
SHOWN = re.compile(r"^`(?:mbaug|benchmarks)[\w.]*`\n")  # and what it begins with
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\](?:\(([^)\s]*)\)|\[\w+\])")
CITED = re.compile(r"[A-Z][\w’-]+(?: et al\.| & [A-Z][\w’-]+)\s+\(?(?:19|20)\d\d|arXiv[ :]\d{4}\.\d{4,5}")
PRINTING = ("Markdown", "print")
CHAPTER = re.compile(r"[Cc]hapters?\s\[?(\d\d)\b")


def read(name):
    """Returns the cells of a chapter's reading copy."""
    return nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells


def texts(cell):
    """Returns what a cell gives to read, in order: markdown, printed text; None where a picture is."""
    if cell.cell_type == "markdown":
        return [cell.source]
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        picture = None if "image/png" in data else ""
        found.append(output.get("text") or data.get("text/markdown") or picture)
    return found


def prose(text):
    """Returns the words of a text without code, equations, addresses and the lines that make a table."""
    text = re.sub(r"<[^>]*>|&\w+;", " ", FENCE.sub(" ", text))
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", " x ", text, flags=re.S)
    return re.sub(r"(?m)^\|[-| ]+\|$", " ", LINK.sub(r"\1", text))


def words(text):
    """Returns how many words a text has."""
    return len(re.findall(r"\w[\w’'.,-]*", prose(text)))


def written(name):
    """Returns all prose of a chapter that is the chapter's own: its markdown, and what it prints as markdown."""
    own = (text for cell in read(name) for text in texts(cell) if text and not SHOWN.match(text))
    return "\n\n".join(own)


def cited_without_link(text):
    """Returns the papers that are no link where they are first cited."""
    links, first = [found.span() for found in LINK.finditer(text)], {}
    for found in CITED.finditer(text):
        first.setdefault(found[0], found.start())
    return [paper for paper, place in first.items() if not any(start <= place < end for start, end in links)]


def named_without_link(text):
    """Returns the numbers of chapters that are named before they are linked."""
    links = [(found.start(), found[2] or "") for found in LINK.finditer(text)]
    named = {found[1]: found.start() for found in reversed([*CHAPTER.finditer(text)])}
    after = {n: place + len("chapters [") for n, place in named.items()}
    return [n for n in named if not any(place <= after[n] and to.startswith(f"{n}_") for place, to in links)]


@NAMES
def test_a_chapter_begins_with_its_answer_in_numbers(name):
    first = read(name)[0].source
    assert first.startswith(f"# {name[:2]} · ")
    question, _, rest = first.partition("<!-- answer -->\n")
    answer, marker, _ = rest.partition("<!-- /answer -->")
    assert marker, "the first cell has no answer between markers"
    assert re.search(r"\*\*[^*]+\?\*\*", question), "no question stands before the answer"
    assert re.search(r"\d", answer), "the answer has no number"


@NAMES
def test_a_picture_follows_within_300_words(name):
    count = 0
    for text in chain.from_iterable(map(texts, read(name))):
        if text is None:
            break
        count += words(text)
    assert count <= 300, f"{count} words stand before the first picture"


@NAMES
def test_sentences_are_not_strung_together(name):
    text = prose(written(name))
    share = 100 * text.count(";") / words(text)
    assert share < 0.5, f"{share:.2f} semicolons in 100 words"


@NAMES
def test_every_paper_and_every_chapter_is_a_link_where_it_is_first_named(name):
    text = written(name)
    assert not cited_without_link(text)
    assert not {*named_without_link(text)} - {name[:2]}


def tries(name):
    """Returns the edits that "Try it" of a chapter proposes: what is there, and what takes its place."""
    part = re.sub(r"\s*\n\s*", " ", written(name).partition("## Try it")[2].partition("## Questions")[0])
    found = [pair[::-1] for pair in re.findall("`([^`]+)` in place of `([^`]+)`", part)]
    return found + re.findall("replace `([^`]+)` by `([^`]+)`", part)


@NAMES
def test_what_is_to_be_tried_replaces_code_that_is_there_by_code(name):
    cells = [cell.source for cell in read(name) if cell.cell_type == "code"]
    for there, new in tries(name):
        edited = [source.replace(there, new) for source in cells if there.partition("...")[0] in source]
        assert edited, there
        for source in edited:
            ast.parse(source)


@NAMES
def test_no_line_of_code_scrolls(name):
    code = [cell.source for cell in read(name) if cell.cell_type == "code"]
    code += [shown for cell in read(name) for text in texts(cell) if text for shown in FENCE.findall(text)]
    assert not [line for text in code for line in text.splitlines() if len(line) > 105]


@NAMES
def test_prose_stands_in_markdown_and_not_in_code_that_prints_it(name):
    """A template is read twice, as code and as text: a computed line may have 20 words of its own."""
    long = []
    for cell in read(name):
        calls = ast.walk(ast.parse(cell.source if cell.cell_type == "code" else ""))
        for call in (node for node in calls if isinstance(node, ast.Call) and getattr(node.func, "id", "") in PRINTING):
            parts = [each.value for each in ast.walk(call) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            if (count := words(" ".join(parts))) > 20:
                long.append(f"{count} words: {' '.join(parts)[:60]}")
    assert not long


def test_no_function_is_shown_twice():
    named = [re.findall(r"\bshow\((.*?)\)", cell.source, re.S) for name in CONTENTS for cell in read(name)]
    shown = [each.strip() for call in chain.from_iterable(named) for each in call.split(",") if "plt" not in each]
    assert shown
    assert not [function for function, times in Counter(shown).items() if times > 1]
