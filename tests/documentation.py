"""Pages of documentation as tests see them: fenced blocks of code, each with what is to be done with it.

A comment in front of a block says what its language does not:

    <!-- prints -->            what the Python block before it prints
    <!-- error: NAME -->       a real error text; documentation_errors.py provokes it
    <!-- not run: REASON -->   nothing can run it here

In both kinds of texts `…` stands for anything. Blocks without a language are drawings, and those in
braces are Sphinx's own.
"""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# What a page takes for granted.
PRELUDES = {
    "examples/cpp/README.md": (
        "import torch, torch_ext\n"
        "model, input = torch.nn.Sequential(torch_ext.PReLU(3)), torch.randn(2, 3)"
    )
}

_MARK = re.compile(r"<!--\s*(prints|error|not run)(?::\s*(.*?))?\s*-->\s*\Z")
_FENCED = re.compile(r"^( *)(```+)([^\n]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first line of text
    language: str
    text: str
    mark: str = ""
    detail: str = ""  # what follows the mark: a name, a reason

    def __str__(self):
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages():
    """What newcomers read; in build/ are copies."""
    found = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    for folder in ("docs", "examples"):
        found += sorted((REPOSITORY / folder).rglob("*.md"))
    return found


def blocks(page):
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCED.finditer(source):
        indent, _, language, text = match.groups()
        mark = _MARK.search(source[: match.start()])
        found.append(
            Block(
                page=page,
                line=source.count("\n", 0, match.start()) + 2,
                language=language.strip(),
                text=re.sub(rf"^{indent}", "", text, flags=re.MULTILINE),
                mark=mark[1] if mark else "",
                detail=mark[2] or "" if mark else "",
            )
        )
    return found


def all_blocks():
    return [block for page in pages() for block in blocks(page)]


def run_python(page):
    """Runs a page's Python blocks one after the other, as one program.

    Returns pairs of what a block printed and the block of text that says so. Errors and what
    inspect.getsource finds (torch.jit.script needs it) have the page's own lines.
    """
    namespace = {"__name__": f"documentation.{page.stem}"}
    exec(PRELUDES.get(str(page.relative_to(REPOSITORY)), ""), namespace)  # noqa: S102
    printed, pairs = "", []
    for block in blocks(page):
        if block.mark == "not run":
            continue
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(code, namespace)  # noqa: S102  (the repository's own pages)
            printed = output.getvalue()
        elif block.mark == "prints":
            pairs.append((printed, block))
    return pairs


def is_text_of(block, actual):
    """Whether an actual text is the one that a block shows, apart from its `…` and line breaks."""
    # Colours, and where lines are broken, are the terminal's.
    actual = " ".join(re.sub(r"\x1b\[\d*m", "", actual).split())
    parts = " ".join(block.text.split()).split("…")
    return re.search(r".*?".join(map(re.escape, parts)), actual) is not None


def commands(block):
    """The commands of a shell block; comments and continued lines are joined away."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]
