"""Pages of documentation as tests see them: blocks of code, found by Sybil, each with what is to be done with it.

A comment in front of a block says what its language does not:

    <!-- prints -->            what the Python block before it prints
    <!-- error: NAME -->       a real error text; documentation_errors.py provokes it

In both `…` stands for anything. Blocks without a language are drawings, and those in braces are Sphinx's own.
"""

import contextlib
import io
import re
from pathlib import Path

from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

REPOSITORY = Path(__file__).resolve().parent.parent

# What a page takes for granted.
PRELUDES = {
    "examples/cpp/README.md": (
        "import torch, torch_ext\n"
        "model, input = torch.nn.Sequential(torch_ext.PReLU(3)), torch.randn(2, 3)"
    )
}

_MARK = re.compile(r"<!--\s*(prints|error)(?::\s*(.*?))?\s*-->\s*\Z")
_FENCED = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[^\n]*)$\n", re.MULTILINE))
_run = PythonEvaluator()


def _run_and_note(example):
    """One page is one program; what a block prints is kept for the block that says so."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        _run(example)
    example.namespace["__printed__"] = output.getvalue()


def _compare(example):
    printed = example.namespace.get("__printed__", "")
    if not printed or not is_text_of(example.parsed, printed):
        return f"this is not what is printed:\n{printed}"


def _parser(document):
    for region in _FENCED(document):
        mark = _MARK.search(document.text[: region.start])
        region.lexemes |= {"mark": mark[1] if mark else "", "detail": mark[2] if mark else ""}
        region.parsed = region.lexemes["source"]
        if region.lexemes["language"] == "python":
            region.evaluator = _run_and_note
        elif region.lexemes["mark"] == "prints":
            region.evaluator = _compare
        yield region


SYBIL = Sybil([_parser])


def pages():
    """What newcomers read; in build/ are copies."""
    found = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    for folder in ("docs", "examples"):
        found += sorted((REPOSITORY / folder).rglob("*.md"))
    return found


def page_name(page):
    return str(page.relative_to(REPOSITORY))


def blocks(page):
    """A page's blocks, in order: `parsed` is the text, `region.lexemes` has language, mark and detail."""
    return list(SYBIL.parse(page).examples())


def run_python(page):
    """Runs a page's Python blocks one after the other and compares what they print; raises at the first fault."""
    found = blocks(page)
    found[0].namespace["__name__"] = f"documentation.{page.stem}"
    if page.is_relative_to(REPOSITORY):
        exec(PRELUDES.get(page_name(page), ""), found[0].namespace)  # noqa: S102
    for block in found:
        block.evaluate()


def is_text_of(shown, actual):
    """Whether an actual text is the one that is shown, apart from its `…` and line breaks."""
    # Colours, and where lines are broken, are the terminal's.
    actual = " ".join(re.sub(r"\x1b\[\d*m", "", actual).split())
    parts = " ".join(shown.split()).split("…")
    return re.search(r".*?".join(map(re.escape, parts)), actual) is not None


def commands(text):
    """The commands of a shell block; comments and continued lines are joined away."""
    text = re.sub(r"\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]
