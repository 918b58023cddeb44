"""The package and its build run nothing that came as data: no pickles, no evaluated text, no network.

A reader of the sources, which sees names, not what they are bound to: it is a fence against mistakes,
not against malice.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHON = [ROOT / "setup.py", *ROOT.glob("torch_ext/*.py"), *ROOT.glob("build_tools/*.py")]
CMAKE = [ROOT / "CMakeLists.txt", *ROOT.glob("cmake/*")]
NATIVE = [path for path in ROOT.glob("csrc/**/*") if path.is_file()]

PICKLES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
NETWORK = {
    *("socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "ftplib"),
    *("smtplib", "xmlrpc", "socketserver", "webbrowser"),
}
EVALUATORS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    *("os.system", "os.popen", "cpp_extension.load", "cpp_extension.load_inline"),
}
DOWNLOADS = re.compile(r"(^|\.)(hub\.|load_url$|load_state_dict_from_url$|download_url_to_file$)")


def faults_in_python(source):
    """What a reviewer would stop at, one text each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module.split(".")[0]]
        else:
            names = []
        yield from (f"imports {name}" for name in names if name in PICKLES | NETWORK)
        if isinstance(node, ast.Call):
            yield from _faults_in_call(node)


def _faults_in_call(call):
    name = ast.unparse(call.func)  # "torch.load"; methods such as model.eval() evaluate nothing
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in EVALUATORS:
        yield f"calls {name}"
    if DOWNLOADS.search(name):
        yield f"downloads with {name}"
    if name == "torch.load" and keywords.get("weights_only") != "True":
        yield "calls torch.load without weights_only=True"
    if "shell" in keywords:
        yield "runs a shell"


FORBIDDEN_IN_CMAKE = re.compile(
    r"FetchContent|ExternalProject|CPMAddPackage|file\s*\(\s*DOWNLOAD|https?://|git clone|\bcurl\b|\bwget\b",
    re.IGNORECASE,
)
FORBIDDEN_IN_NATIVE = re.compile(
    r"<sys/socket\.h>|<netdb\.h>|<curl/|\bsystem\s*\(|\bpopen\s*\(|\bexec[lv]p?e?\s*\(|pickle_load"
    r"|torch::load\s*\(|jit::load\b|\bdlopen\s*\("
)


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_no_python_source_unpickles_evaluates_or_downloads(path):
    assert list(faults_in_python(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", CMAKE, ids=lambda path: path.name)
def test_the_build_fetches_nothing(path):
    assert FORBIDDEN_IN_CMAKE.findall(path.read_text(encoding="utf-8")) == []


def test_no_native_source_opens_sockets_or_runs_programs_or_loads_files():
    assert len(NATIVE) > 20
    found = {path.name: FORBIDDEN_IN_NATIVE.findall(path.read_text()) for path in NATIVE}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_the_reader_of_sources_sees_what_it_should_and_lets_the_rest_pass():
    seen = (
        *("import pickle", "from pickle import loads", "import urllib.request", "eval('1')"),
        *("exec(open('x').read())", "compile('1', '', 'eval')", "os.system('ls')"),
        *("torch.load('x.pt')", "torch.load('x.pt', weights_only=False)"),
        *("torch.hub.load('owner/name', 'model')", "subprocess.run('ls', shell=True)"),
    )
    passed = (
        *("model.eval()", "re.compile('x')", "torch.compile(model)", "subprocess.run(['ls'])"),
        *("torch.load('x.pt', weights_only=True)", "from .relu import compile_policy"),
    )
    assert [source for source in seen if not list(faults_in_python(source))] == []
    assert [source for source in passed if list(faults_in_python(source))] == []


def test_every_package_that_builds_the_wheel_has_a_version_and_hashes():
    text = (ROOT / "build_tools" / "requirements.txt").read_text()
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#")]
    assert len(entries) > 5
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.]+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def pinned(path):
    text = (ROOT / path).read_text()
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE))


def test_the_wheel_is_built_by_the_tools_that_have_hashes_and_that_the_tests_use():
    wanted, tested = pinned("build_tools/requirements.in"), pinned("tests/requirements.txt")
    assert wanted.items() <= pinned("build_tools/requirements.txt").items()
    common = wanted.keys() & tested.keys()
    assert {"cmake", "ninja", "pybind11", "setuptools"} <= common
    assert {name: wanted[name] for name in common} == {name: tested[name] for name in common}


def test_git_holds_no_binaries_that_could_be_loaded():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert files
    assert [f for f in files if re.search(r"\.(so|a|o|dll|pyc|pt|pth|pkl|bin|whl)$", f)] == []
