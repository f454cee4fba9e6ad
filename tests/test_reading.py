"""How the chapters read: answer first, an early picture, short sentences, links to papers and chapters, no repetition."""

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
FENCE = re.compile(r"```python\n(.*?)```", re.S)  # the code of a function, as `show` displays it
SHOWN = re.compile(r"^`(?:mbaug|benchmarks)[\w.]*`\n")  # how such a display begins
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\](?:\(([^)\s]*)\)|\[\w+\])")
CITED = re.compile(r"[A-Z][\w’-]+(?: et al\.| & [A-Z][\w’-]+)\s+\(?(?:19|20)\d\d|arXiv[ :]\d{4}\.\d{4,5}")
PRINTING = ("Markdown", "print")
CHAPTER = re.compile(r"[Cc]hapters?\s\[?(\d\d)\b")


def read(name):
    """Returns the cells of a chapter's reading copy."""
    return nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells


def texts(cell):
    """Returns the texts that a cell shows the reader, in order, with None in place of a picture."""
    if cell.cell_type == "markdown":
        return [cell.source]
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        picture = None if "image/png" in data else ""
        found.append(output.get("text") or data.get("text/markdown") or picture)
    return found


def prose(text):
    """Returns a text without its code, equations, addresses and the separator lines of tables."""
    text = re.sub(r"<[^>]*>|&\w+;", " ", FENCE.sub(" ", text))
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", " x ", text, flags=re.S)
    return re.sub(r"(?m)^\|[-| ]+\|$", " ", LINK.sub(r"\1", text))


def words(text):
    """Returns the number of words in a text's prose."""
    return len(re.findall(r"\w[\w’'.,-]*", prose(text)))


def written(name):
    """Returns the markdown and printed text of a chapter, without the functions that it shows."""
    parts = (text for cell in read(name) for text in texts(cell) if text and not SHOWN.match(text))
    return "\n\n".join(parts)


def cited_without_link(text):
    """Returns the papers whose first citation is not a link."""
    links, first = [found.span() for found in LINK.finditer(text)], {}
    for found in CITED.finditer(text):
        first.setdefault(found[0], found.start())
    return [paper for paper, place in first.items() if not any(start <= place < end for start, end in links)]


def named_without_link(text):
    """Returns the numbers of the chapters that are named before they are linked."""
    links = [(found.start(), found[2] or "") for found in LINK.finditer(text)]
    named = {found[1]: found.start() for found in reversed([*CHAPTER.finditer(text)])}
    after = {n: place + len("chapters [") for n, place in named.items()}
    return [n for n in named if not any(place <= after[n] and to.startswith(f"{n}_") for place, to in links)]


@NAMES
def test_a_chapter_begins_with_its_question_and_an_answer_in_numbers(name):
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
def test_only_computed_text_tells_what_is_recorded(name):
    """Answers and tables change with the records, hand-written text does not."""
    cells = [cell.source for cell in read(name) if cell.cell_type == "markdown"]
    text = re.sub(r"<!-- answer -->.*?<!-- /answer -->", "", "\n".join(cells), flags=re.S)
    assert not re.findall(r"not (?:yet )?recorded(?: yet)?|recorded so far|once \S+ (?:\S+ )*?recorded", text)


def test_no_line_is_a_comment_on_the_site():
    """The site's parser drops a line of Markdown that begins with %, such as the end of "50 %" after a line break."""
    pages = [path.read_text() for part in ("*.md", "data/**/*.md", "docs/*.md", "figures/*.md") for path in ROOT.glob(part)]
    cells = [cell.source for name in CONTENTS for cell in read(name) if cell.cell_type == "markdown"]
    assert not [line for text in pages + cells for line in text.splitlines() if line.startswith("%")]


@NAMES
def test_chapters_use_few_semicolons(name):
    text = prose(written(name))
    share = 100 * text.count(";") / words(text)
    assert share < 0.5, f"{share:.2f} semicolons in 100 words"


@NAMES
def test_the_first_mention_of_a_paper_or_chapter_is_a_link(name):
    text = written(name)
    assert not cited_without_link(text)
    assert not {*named_without_link(text)} - {name[:2]}


def proposed_edits(name):
    """Returns the edits that "Try it" proposes, as pairs of old and new code."""
    part = re.sub(r"\s*\n\s*", " ", written(name).partition("## Try it")[2].partition("## Questions")[0])
    found = [pair[::-1] for pair in re.findall("`([^`]+)` in place of `([^`]+)`", part)]
    return found + re.findall("replace `([^`]+)` by `([^`]+)`", part)


@NAMES
def test_the_edits_under_try_it_fit_the_code_and_can_be_parsed(name):
    cells = [cell.source for cell in read(name) if cell.cell_type == "code"]
    assert proposed_edits(name)
    for old, new in proposed_edits(name):
        edited = [source.replace(old, new) for source in cells if old in source]
        assert edited, f"no code cell holds {old!r}"
        for source in edited:
            ast.parse(source)


@NAMES
def test_code_can_be_read_without_scrolling(name):
    code = [cell.source for cell in read(name) if cell.cell_type == "code"]
    code += [shown for cell in read(name) for text in texts(cell) if text for shown in FENCE.findall(text)]
    assert not [line for text in code for line in text.splitlines() if len(line) > 105]


@NAMES
def test_prose_stands_in_markdown_and_not_in_code_that_prints_it(name):
    """Readers see a template twice, in the code and in its output, so it may have at most 20 words."""
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
