"""The package around the operator: what it says about itself, what importing it loads, and when it
refuses to load."""

import ast
import ctypes
import importlib.metadata
import json
import re
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from installed import LIBRARY, LIBRARY_NAME, PACKAGE, REPOSITORY, openmp_runtimes, run_python

import torch_ext
import torch_ext.info

TORCH_MINOR = ".".join(torch.__version__.split(".")[:2])

contract = pytest.mark.contract

# ---- What it says about itself -----------------------------------------------------------------


@contract
def test_the_public_names_are_these():
    assert sorted(torch_ext.__all__) == [
        "ActivationMonitor",
        "NormPReLU",
        "PReLU",
        "SwapReport",
        "__version__",
        "batch_norm_prelu",
        "build_info",
        "cmake_prefix_path",
        "fuse_norm_prelu",
        "instance_norm_prelu",
        "norm_prelu",
        "override_aten",
        "parametrize_relu",
        "prelu",
        "replace_prelu",
        "restore_prelu",
        "slope_parameters",
    ]
    for public in map(torch_ext.__dict__.get, torch_ext.__all__):
        assert public.__doc__ or not callable(public)


def cpp_version():
    """torch_ext::version(), by its mangled name."""
    version = ctypes.CDLL(str(LIBRARY))._ZN9torch_ext7versionEv
    version.restype = ctypes.c_char_p
    return version().decode()


@contract
def test_python_cpp_and_the_build_agree_on_one_version():
    version = torch_ext.__version__
    assert version == torch_ext.build_info()["version"]
    assert version == json.loads((PACKAGE / "_build.json").read_text())["version"]
    assert version == cpp_version()


def test_the_version_has_one_source():
    [declared] = re.findall(
        r"project\(torch_ext VERSION (\S+)", (REPOSITORY / "CMakeLists.txt").read_text()
    )
    assert torch_ext.__version__.split("+")[0] == declared


def test_an_installed_distribution_has_that_version():
    """Not what building a source distribution leaves in the source tree: an .egg-info."""
    installed = [
        distribution.version
        for distribution in importlib.metadata.distributions(name="torch_ext")
        if distribution.read_text("WHEEL")
    ]
    if not installed:
        pytest.skip("used in place, not installed")
    assert installed[0] == torch_ext.__version__


@contract
def test_the_version_names_torch_and_cuda():
    info = torch_ext.build_info()
    cuda = f"cu{info['cuda'].replace('.', '')}" if info["cuda"] else "cpu"
    assert re.fullmatch(r"\d+\.\d+\.\d+", torch_ext.__version__.split("+")[0])
    assert torch_ext.__version__.split("+")[1] == f"pt{TORCH_MINOR}{cuda}"


@contract
def test_build_info_has_its_keys_and_fits_this_torch():
    info = torch_ext.build_info()
    assert sorted(info) == [
        "archs",
        "cpu_capabilities",
        "cuda",
        "git",
        "openmp",
        "torch",
        "version",
    ]
    assert info["torch"] == TORCH_MINOR
    assert "DEFAULT" in info["cpu_capabilities"]
    assert bool(info["archs"]) == (info["cuda"] is not None)
    assert info == json.loads((PACKAGE / "_build.json").read_text())


@pytest.fixture(scope="module")
def info():
    """What it prints; runpy's warnings are errors."""
    return run_python("", "-W", "error::RuntimeWarning", "-m", "torch_ext.info").stdout


@contract
def test_info_prints_what_a_bug_report_needs(info):
    for needed in (
        torch_ext.__version__,
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(LIBRARY),
        "CUDA available",
        "threads",
        "TORCH_EXT_HUGE_PAGES",
    ):
        assert needed in info


def test_what_info_prints_is_a_function_too(info):
    assert torch_ext.info.describe().splitlines()[:9] == info.splitlines()[:9]


def test_info_shows_how_knobs_are_set():
    knobs = {"TORCH_EXT_HUGE_PAGES": "0", "TORCH_EXT_COMPILE": "opaque"}
    printed = run_python("", "-m", "torch_ext.info", **knobs).stdout
    assert re.search(r"TORCH_EXT_HUGE_PAGES +off \(set to 0\)", printed)
    assert re.search(r"TORCH_EXT_COMPILE +opaque \(set to opaque\)", printed)


def test_info_shows_every_knob_that_the_manual_names(monkeypatch):
    page = REPOSITORY / "docs" / "reference" / "environment-variables.md"
    when_running = (
        page.read_text(encoding="utf-8").split("| when running |")[1].split("| when building |")[0]
    )
    knobs = re.findall(r"^\| `(TORCH_EXT_\w+)=", when_running, re.MULTILINE)
    assert "TORCH_EXT_COMPILE" in knobs
    for knob in knobs:
        monkeypatch.delenv(knob, raising=False)
    described = torch_ext.info.describe()
    assert re.findall(r"^  (TORCH_EXT_\w+) +\w+ \(not set\)$", described, re.MULTILINE) == knobs


def test_the_package_is_marked_as_typed_and_its_stub_names_what_the_module_has():
    assert (PACKAGE / "py.typed").is_file()
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    declared = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert declared == {name for name in dir(torch_ext._C) if not name.startswith("_")}


# ---- What importing it loads -------------------------------------------------------------------

IMPORT = """
import json, torch, torch_ext
torch_ext.prelu(torch.randn(64, 16, 64, 64), torch.ones(16))
with open("/proc/self/maps") as maps:
    print(json.dumps(sorted({line.split()[-1] for line in maps if "/" in line})))
"""


@pytest.fixture(scope="module")
def mapped():
    """Files, by their paths."""
    return json.loads(run_python(IMPORT).stdout)


@contract
def test_one_openmp_runtime_is_in_the_process(mapped):
    assert len(openmp_runtimes(mapped)) == 1


@contract
def test_one_operator_library_is_in_the_process(mapped):
    [library] = [path for path in mapped if "libtorch_ext" in path]
    assert Path(library).samefile(LIBRARY)


# ---- When it refuses to load -------------------------------------------------------------------


def package_copy(folder, build=None, remove=(), replace=None):
    """The package in another place, with changes to _build.json, files missing or replaced."""
    copy = folder / "torch_ext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("lib", "include", "__pycache__"))
    (copy / "lib").mkdir()
    (copy / LIBRARY_NAME).symlink_to(LIBRARY)
    if build is not None:
        built = json.loads((PACKAGE / "_build.json").read_text())
        (copy / "_build.json").write_text(json.dumps({**built, **build}))
    for pattern in remove:
        for path in copy.glob(pattern):
            path.unlink()
    for name, content in (replace or {}).items():
        (copy / name).unlink(missing_ok=True)
        (copy / name).write_bytes(content)


def for_another_processor(library):
    machine = 18  # e_machine of an ELF header
    return library[:machine] + (243).to_bytes(2, "little") + library[machine + 2 :]  # RISC-V


OURS = LIBRARY.read_bytes()
NOT_OURS = {
    "text": b"#!/bin/sh\n",
    "empty": b"",
    "header_only": OURS[:64],
    "first_half": OURS[: len(OURS) // 2],  # loading it would be fatal
    "for_another_processor": for_another_processor(OURS),
    # The last one: it is loaded, and stays so.
    "another_library": (Path(torch.__file__).parent / "lib" / "libshm.so").read_bytes(),
}

# Packages that cannot load, most of them in this torch, some in one that was built otherwise. One
# process tries them all.
BROKEN = {
    "other_torch": {"build": {"torch": "1.13"}},
    "other_torch_broken_library": {
        "build": {"torch": "1.13"},
        "replace": {LIBRARY_NAME: b"broken"},
    },
    "other_cuda": {"build": {"cuda": "7.5"}},
    "torch_without_cuda": {"build": {"cuda": "13.0"}},
    "no_build_note": {"remove": ["_build.json"]},
    "damaged_build_note": {"replace": {"_build.json": b"{"}},
    "incomplete_build_note": {"replace": {"_build.json": b"{}"}},
    "no_library": {"remove": [LIBRARY_NAME]},
    "no_module": {"remove": ["_C*.so"]},
    "other_python": {"remove": ["_C*.so"], "replace": {"_C.cpython-29-x86_64-linux-gnu.so": b""}},
    **{name: {"replace": {LIBRARY_NAME: content}} for name, content in NOT_OURS.items()},
}
TORCH_CUDA = {"other_cuda": "13.0", "torch_without_cuda": None}

TRY_EACH = """
results = {}
for name in names:
    torch.version.cuda = torch_cuda.get(name, built_with)
    sys.path[0] = f"{folder}/{name}"
    for module in [module for module in sys.modules if module.split(".")[0] == "torch_ext"]:
        del sys.modules[module]
    try:
        import torch_ext
    except ImportError as error:
        result = {"message": str(error), "name": error.name, "cause": repr(error.__cause__)}
    else:
        result = {"message": "", "name": "", "cause": ""}
    with open("/proc/self/maps") as maps:
        results[name] = {**result, "loaded": "libtorch_ext" in maps.read()}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    for name, fault in BROKEN.items():
        package_copy(folder / name, **fault)
    return json.loads(
        run_python(
            "import json, sys, torch\n"
            f"names, folder, torch_cuda = {list(BROKEN)}, {str(folder)!r}, {TORCH_CUDA}\n"
            f"built_with = torch.version.cuda\n{TRY_EACH}"
        ).stdout
    )


@contract
@pytest.mark.parametrize("name", ["other_torch", "other_torch_broken_library"])
def test_another_torch_is_refused_before_anything_is_loaded(refusals, name):
    refusal = refusals[name]
    assert "was built for torch 1.13" in refusal["message"]
    assert f"torch {torch.__version__} is installed" in refusal["message"]
    assert f"build torch_ext for torch {TORCH_MINOR}" in refusal["message"]
    assert 'pip install "torch==1.13.*"' in refusal["message"]
    assert not refusal["loaded"]


def test_another_cuda_is_refused_before_anything_is_loaded(refusals):
    assert "built with CUDA 7.5" in refusals["other_cuda"]["message"]
    assert (
        f"torch {torch.__version__} was built with CUDA 13.0" in refusals["other_cuda"]["message"]
    )
    assert not refusals["other_cuda"]["loaded"]


def test_a_cuda_build_is_refused_by_a_torch_without_cuda(refusals):
    assert "built with CUDA 13.0" in refusals["torch_without_cuda"]["message"]
    assert f"torch {torch.__version__} has no CUDA" in refusals["torch_without_cuda"]["message"]
    assert not refusals["torch_without_cuda"]["loaded"]


@pytest.mark.parametrize("name", ["no_build_note", "no_library", "no_module"])
def test_a_source_tree_that_was_not_built_says_what_to_run(refusals, name):
    assert "torch_ext is not built: there is no " in refusals[name]["message"]
    assert "make build" in refusals[name]["message"]
    assert "pip install" in refusals[name]["message"]
    assert not refusals[name]["loaded"]


@contract
def test_another_python_is_refused_before_anything_is_loaded(refusals):
    message = refusals["other_python"]["message"]
    assert "was built for another Python: there is _C.cpython-29-x86_64-linux-gnu.so" in message
    assert f"this one needs _C{EXTENSION_SUFFIXES[0]}. Build it with this one: `make" in message
    assert not refusals["other_python"]["loaded"]


@pytest.mark.parametrize("name", ["damaged_build_note", "incomplete_build_note"])
def test_a_damaged_build_note_is_an_import_error(refusals, name):
    assert "_build.json of torch_ext is damaged" in refusals[name]["message"]
    assert refusals[name]["cause"] != "None"


@pytest.mark.parametrize("name", NOT_OURS)
def test_a_file_that_is_not_our_library_is_an_import_error_that_says_so(refusals, name):
    message = refusals[name]["message"]
    assert message.startswith("the native library of torch_ext does not load: ")
    assert "Build it again: `make build`" in message
    assert refusals[name]["name"] == "torch_ext"


def test_that_error_has_the_loaders_reason_and_the_original_chained(refusals):
    assert re.search("invalid ELF header|file too short", refusals["text"]["message"])
    assert "OSError" in refusals["text"]["cause"]
