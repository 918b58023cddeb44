"""README and docs: every block of code runs, every text is what is really printed, links lead somewhere.

documentation.py says how blocks are marked. The manual itself is built by `make docs`.
"""

import doctest
import inspect
import os
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from documentation import (
    REPOSITORY,
    blocks,
    commands,
    is_text_of,
    page_name,
    pages,
    run_python,
)
from documentation_errors import NAMES
from installed import cmake_build, output_of, run
from sybil.example import SybilFailure
from torch import nn

import torch_ext

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

# Only how fast the C++ compiler is done, not what it makes.
QUICK = {
    "aot_inductor.precompile_headers": False,
    "aot_inductor.compile_wrapper_opt_level": "O0",
}


BLOCKS = [(page, block) for page in pages() for block in blocks(page)]


def language(block):
    return block.region.lexemes["language"]


def of_language(name):
    """A parameter for each block: its page and the block."""
    found = [(page, block) for page, block in BLOCKS if language(block) == name]
    return [pytest.param(*pair, id=f"{page_name(pair[0])}:{pair[1].line}") for pair in found]


def test_every_block_is_of_a_kind_that_is_checked():
    kinds = {language(block) for _, block in BLOCKS if not language(block).startswith("{")}
    assert kinds == {*("python", "sh", "cpp", "cmake", "text"), ""}  # the last are drawings
    unmarked = [
        page for page, b in BLOCKS if language(b) == "text" and not b.region.lexemes["mark"]
    ]
    assert unmarked == []


# ---- Python ------------------------------------------------------------------------------------


@pytest.fixture
def as_it_was(tmp_path, monkeypatch):
    """Pages write files and set switches."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with torch._inductor.config.patch(QUICK):
        yield
    torch.compiler.reset()
    torch_ext.inductor.set_compile("auto")


def slow(page):
    """What examples show is in the guide, too."""
    return pytest.mark.full if "examples" in page.parts[-3:] else ()


PROGRAM_PAGES = [
    pytest.param(page, marks=slow(page), id=page_name(page))
    for page in dict.fromkeys(page for page, block in BLOCKS if language(block) == "python")
]


@pytest.mark.parametrize("page", PROGRAM_PAGES)
def test_a_page_is_a_program_that_prints_what_it_says(page, as_it_was):
    if "onnx" in page.read_text(encoding="utf-8"):
        pytest.importorskip("onnxscript")
    run_python(page)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("```python\nprint(2)\n```\n<!-- prints -->\n```text\n3\n```\n", "not what is printed:\n2"),
        ("```python\nx = 1\n```\n<!-- prints -->\n```text\n…\n```\n", "not what is printed"),
    ],
)
def test_a_broken_block_fails_where_it_stands(text, said, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Words\n\n```python\nvalue = 1\n```\n\n" + text)
    with pytest.raises((SybilFailure, ZeroDivisionError), match=said) as failure:
        run_python(page)
    lines = {entry.lineno for entry in failure.traceback if str(entry.path) == str(page)}
    assert lines == {7} or "line 11" in str(failure.value)


class SomeWant(doctest.OutputChecker):
    """Examples of docstrings need not show what they print."""

    def check_output(self, want, got, optionflags):
        return want == "" or super().check_output(want, got, optionflags)


def test_the_examples_of_the_docstrings_print_what_they_say(as_it_was):
    documented = [getattr(torch_ext, name) for name in torch_ext.__all__]
    found = [(each.__name__, inspect.getdoc(each) or "") for each in documented if callable(each)]
    runner = doctest.DocTestRunner(SomeWant(), verbose=False, optionflags=doctest.ELLIPSIS)
    for name, text in found:
        model = nn.Sequential(nn.Linear(4, 4), torch_ext.PReLU(4))
        names = {"torch": torch, "torch_ext": torch_ext, "nn": nn, "model": model} | {
            "train": lambda model: model(torch.randn(8, 4)).sum().backward(),
        }
        examples = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
        runner.run(examples, out=lambda line: sys.stderr.write(line), clear_globs=False)
    assert runner.tries >= 5 and runner.failures == 0


# ---- Errors ------------------------------------------------------------------------------------


ERRORS = {b.region.lexemes["detail"]: b for _, b in BLOCKS if b.region.lexemes["mark"] == "error"}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_has_the_text_that_troubleshooting_shows(name, tmp_path, as_it_was):
    actual = NAMES[name](tmp_path)
    assert is_text_of(ERRORS[name].parsed, actual), actual


def test_troubleshooting_shows_every_error():
    assert sorted(ERRORS) == sorted(NAMES)


# ---- C++ ---------------------------------------------------------------------------------------


def build(program, folder):
    """With the one CMakeLists.txt that the pages show."""
    [project] = [block for _, block in BLOCKS if language(block) == "cmake"]
    (folder / "CMakeLists.txt").write_text(project.parsed)
    (folder / "main.cpp").write_text(program)
    cmake_build(folder, folder / "build")
    return folder / "build" / "app"


PROGRAMS = {f"{page_name(p)}:{b.line}": b.parsed for p, b in BLOCKS if language(b) == "cpp"}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """All of them, side by side: each takes half a minute."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        folders = [tmp_path_factory.mktemp("program") for _ in PROGRAMS]
        built = pool.map(build, PROGRAMS.values(), folders)
        return dict(zip(PROGRAMS, built, strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_cpp_program_builds_with_the_cmake_that_is_shown_and_runs(name, programs):
    run(programs[name])


# ---- The shell ---------------------------------------------------------------------------------


def split_commands(line):
    """What `&&` and `;` join, as words without the variables set in front."""
    for command in re.split(r"\s(?:&&|;)\s", line):
        words = shlex.split(command)
        while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
            words.pop(0)
        if words:
            yield words


@pytest.mark.parametrize("page, block", of_language("sh"))
def test_commands_exist(page, block):
    """Targets, files, modules and options are there; what takes minutes is not run for it."""
    for command in commands(block.parsed):
        for words in split_commands(command):
            check_command(page, words)


@pytest.mark.parametrize(
    "command",
    ["make no-such-target", "pip install --no-such-option .", "python no_such.py", "no-such"],
)
def test_a_command_that_does_not_exist_fails(command):
    with pytest.raises(AssertionError):
        check_command(REPOSITORY / "README.md", shlex.split(command))


def check_command(page, words):
    program, *arguments = words
    if program == "make":
        variables = [f"VENV={sys.prefix}", "FORCE_CPU=1"]
        run("make", "--dry-run", "--no-print-directory", *arguments, *variables, cwd=REPOSITORY)
    elif program == "pip":
        assert arguments[0] in ("install", "wheel")
        options = [a for a in arguments if a.startswith("-") and a != "-e"]
        offered = output_of(sys.executable, "-m", "pip", arguments[0], "--help")
        for option in options:
            assert re.search(rf"(^|[\s,]){re.escape(option)}\b", offered), option
        assert all(Path(REPOSITORY, a).exists() for a in arguments if a.startswith("."))
    elif program == "python" and arguments[0] == "-m":
        run(sys.executable, *arguments, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    elif program in ("python", "torchrun"):
        scripts = [a for a in arguments if a.endswith(".py")]
        assert scripts and all((REPOSITORY / script).is_file() for script in scripts)
    elif program == "cmake":
        if "-S" in arguments:
            source = arguments[arguments.index("-S") + 1]
            assert source == "." or (REPOSITORY / source / "CMakeLists.txt").is_file()
    elif program.startswith("build/"):
        assert "cmake --build" in page.read_text(encoding="utf-8")
    elif program == "ctest":
        assert "--test-dir" in arguments
    else:
        assert (REPOSITORY / program).is_file() and os.access(REPOSITORY / program, os.X_OK), words


# ---- What stands in two places -----------------------------------------------------------------


READS_VARIABLE = re.compile(
    r"""environ(?:\.get\(|\[)"(\w+)"|"(\w+)"\ (?:not\ )?in\ os\.environ|flag\("(\w+)\"""",
    re.VERBOSE,
)


def test_the_environment_variables_are_those_that_the_sources_read():
    paths = ["setup.py", "csrc/ops/knobs.cpp", "torch_ext/inductor.py", "build_tools/find_torch.py"]
    text = "".join((REPOSITORY / path).read_text(encoding="utf-8") for path in paths)
    read = {name for names in READS_VARIABLE.findall(text) for name in names if name} - {"PATH"}
    page = (REPOSITORY / "docs" / "reference" / "environment-variables.md").read_text("utf-8")
    documented = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", page))
    assert len(read) >= 8 and read - documented == set()
    assert {name for name in documented if name.startswith("TORCH_EXT_")} <= read
    cmake = (REPOSITORY / "cmake" / "torch_ext-cuda.cmake").read_text(encoding="utf-8")
    assert re.search(r"default `([^`]*)`", page)[1] in cmake


LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def slug(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_links_to_files_lead_to_files_and_headings(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link) or path.startswith("torch_ext."):
            continue  # elsewhere; or Sphinx's, which checks it
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link
