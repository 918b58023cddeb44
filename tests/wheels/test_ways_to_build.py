"""Every way to build and install gives the same package: isolated or not, from sources or from the
source distribution, editable, for debugging; with options and without a torch to build for."""

import json
import re
import sys
import tarfile
import zipfile

import pytest
from programs import TORCH_MINOR, Environment, error_of, output_of

# The portable kernels alone: how they are built is the same for all, and takes a third of the time.
PORTABLE = "-DTORCH_EXT_INSTRUCTION_SETS=DEFAULT"

CHECK = """
import torch, torch_ext
torch_ext.prelu(torch.randn(64, 16, 9, 9), torch.ones(16))
print(torch_ext.__file__)
"""


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """A build folder that several builds of one source tree share."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def with_pip(tmp_path_factory):
    """A fresh environment of one who types `pip install .`: this torch, a pip of its own, no tools."""
    return Environment(tmp_path_factory.mktemp("with torch"))


@pytest.fixture(scope="module")
def isolated_wheel(with_pip, source, objects, tmp_path_factory):
    """Built in isolation: pip fetches the build's tools, but no torch."""
    folder = tmp_path_factory.mktemp("isolated")
    log = with_pip.pip(
        *("wheel", "-v", "--no-deps", "--wheel-dir", folder, source),
        TORCH_EXT_BUILD_DIR=str(objects),
        TORCH_EXT_CMAKE_ARGS=PORTABLE,
    )
    assert "Installing build dependencies" in log
    assert not re.search(r"Collecting torch\b", log)
    [wheel] = folder.glob("*.whl")
    return wheel


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_pip_install_isolated_gives_the_wheel_that_the_source_distribution_gives(
    wheel, isolated_wheel
):
    """To the byte, but for the bill of materials and the commit."""
    published, built_here = contents(wheel), contents(isolated_wheel)
    only = {name for name in published.keys() ^ built_here.keys() if "/sboms/" not in name}
    assert only == set()
    may_differ = re.compile(r"_build\.json|libtorch_ext\.so|dist-info/(RECORD|WHEEL)$")
    different = {name for name in built_here if built_here[name] != published[name]}
    assert [name for name in different if not may_differ.search(name)] == []


def test_an_editable_install_is_the_source_tree(isolated_wheel, source, objects, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.pip(
        *("install", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-e", source),
        TORCH_EXT_BUILD_DIR=str(objects),
        TORCH_EXT_CMAKE_ARGS=PORTABLE,
    )
    assert environment.run(CHECK).strip() == str(source / "torch_ext" / "__init__.py")
    prefix = environment.run("import torch_ext; print(torch_ext.cmake_prefix_path)").strip()
    assert prefix == str(source / "torch_ext")


def test_a_build_without_torch_in_the_environment_asks_for_one(source, tmp_path):
    """What an isolated build tells pip to fetch, where the environment has no torch."""
    program = (
        "import sys; sys.path.insert(0, 'build_tools'); import find_torch;"
        "find_torch.find_torch = find_torch.find_torch_outside_isolation = lambda: None;"
        "import backend; print(backend.get_requires_for_build_wheel())"
    )
    assert "torch>=2.11,<2.16" in output_of(sys.executable, "-c", program, cwd=source)


@pytest.mark.parametrize("variable", ["CMAKE_ARGS", "TORCH_EXT_CMAKE_ARGS"])
def test_options_for_cmake_reach_it(source, tmp_path, variable):
    """An option that CMake refuses shows that it was seen."""
    error = error_of(
        *(sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib"),
        cwd=source,
        TORCH_EXT_BUILD_DIR=str(tmp_path / "build"),
        CUDACXX="/nonexistent",
        FORCE_CPU="1",
        **{variable: "-DTORCH_EXT_CUDA=ON -DTORCH_EXT_TORCH_ROOT='/no such folder'"},
    )
    assert "/no such folder" in error
    assert "torch_ext: `cmake -S` failed; its message is above." in error


def test_a_debug_build_optimises_the_kernels_alone_and_works(source, tmp_path, with_pip):
    output_of(
        *(sys.executable, "setup.py", "-q", "build", "--build-lib", tmp_path / "lib"),
        cwd=source,
        TORCH_EXT_BUILD_DIR=str(tmp_path / "build"),
        FORCE_CPU="1",
        DEBUG="1",
        TORCH_EXT_CMAKE_ARGS=PORTABLE,
    )
    commands = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    assert all(" -g " in c["command"] for c in commands)
    optimised = {
        c["file"].removeprefix(f"{source}/csrc/") for c in commands if " -O" in c["command"]
    }
    assert optimised == {"kernels/cpu/prelu.cpp", "kernels/cpu/norm_prelu.cpp"}
    assert len(commands) > len(optimised)
    sections = output_of(
        "readelf", "-SW", tmp_path / "lib" / "torch_ext" / "lib" / "libtorch_ext.so"
    )
    assert ".debug_info" in sections
    printed = with_pip.run(CHECK, PYTHONPATH=str(tmp_path / "lib"))
    assert str(tmp_path / "lib") in printed


def test_the_source_distribution_tells_its_commit(sdist, unpacked):
    with tarfile.open(sdist) as archive:
        [name] = [n for n in archive.getnames() if re.fullmatch(r"[^/]+/COMMIT", n)]
        commit = archive.extractfile(name).read().decode().strip()
    assert commit
    assert f'"{commit}"' in (unpacked / "torch_ext" / "_build.json").read_text()
    assert f"pt{TORCH_MINOR}" in (unpacked / "torch_ext" / "_build.json").read_text()
