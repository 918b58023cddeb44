"""What plain CMake is told, and what it finds: options, torch, nvcc. Everything is configured, nothing built.

For a PyTorch that is nothing but the files which the build looks at. tests/test_packaging_*.py have what setup.py does
with its environment.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from installed import REPOSITORY, tool

MODERN = "torch/headeronly/version.h"  # where the version is, in a torch's include/
OLD = "torch/csrc/api/include/torch/version.h"

# Our two files about torch and CUDA, in a project without a compiler. CUDA is taken for enabled.
PROJECT = f"""
cmake_minimum_required(VERSION 3.26)
project(options LANGUAGES NONE)
set(TORCH_EXT_CUDA AUTO CACHE STRING "")
list(APPEND CMAKE_MODULE_PATH "{REPOSITORY}/cmake" ${{CMAKE_CURRENT_LIST_DIR}}/modules)
function(enable_language)
  set(CMAKE_CUDA_COMPILER_VERSION 13.0.88 PARENT_SCOPE)
endfunction()
include(torch_ext-torch)
include(torch_ext-cuda)
message(STATUS "root ${{TORCH_EXT_TORCH_ROOT}}")
message(STATUS "CUDA ${{TORCH_EXT_CUDA}} ${{TORCH_EXT_ARCH_LIST}} (${{reason}})")
"""
MODULES = {
    # As CMake's own, but without compiling anything.
    "CheckLanguage": """
macro(check_language language)
  if(NOT DEFINED CMAKE_CUDA_COMPILER)
    find_program(CMAKE_CUDA_COMPILER NAMES $ENV{CUDACXX} NO_DEFAULT_PATH PATHS /)
  endif()
endmacro()
""",
    "FindCUDAToolkit": "set(CUDAToolkit_FOUND ON)",
}

# The package as it is installed, and a program that finds it.
CONSUMER = f"""
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES NONE)
set(TORCH_EXT_TORCH_MINOR 2.15)
set(package ${{CMAKE_CURRENT_BINARY_DIR}}/torch_ext/lib/cmake/torch_ext)
configure_file("{REPOSITORY}/cmake/torch_ext-config.cmake.in" ${{package}}/torch_ext-config.cmake @ONLY)
file(COPY "{REPOSITORY}/cmake/torch_ext-torch.cmake" DESTINATION ${{package}})
unset(TORCH_EXT_TORCH_MINOR)
find_package(torch_ext CONFIG REQUIRED PATHS ${{package}} NO_DEFAULT_PATH)
"""


class Torch:
    """What of a PyTorch the build looks at."""

    def __init__(self, root, header=MODERN, version="2.15", cuda="13.2"):
        self.root = root
        major, minor = version.split(".")
        self._write("include/ATen/core/Tensor.h", "")
        if header == MODERN:
            self._write(f"include/{OLD}", f"#include <{MODERN}>\n")
        if header:
            numbers = (
                f"#define TORCH_VERSION_MAJOR {major}\n\n#define TORCH_VERSION_MINOR {minor}\n"
            )
            self._write(f"include/{header}", f"#pragma once\n\n{numbers}")
        if cuda:
            self._write("lib/libtorch_cuda.so", "")
        self._write("version.py", f"debug = False\ncuda: Optional[str] = {cuda!r}\nhip = None\n")
        (root / "share" / "cmake" / "Torch").mkdir(parents=True)

    def _write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cmake(*arguments, **environment):
    """Runs it, with no variable of ours or of CUDA's but these. Gives the result and what it says."""
    of_builds = ("TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDAFLAGS", "CMAKE_PREFIX_PATH", "CXXFLAGS")
    path = f"{Path(tool('ninja')).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        [tool("cmake"), *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if k not in of_builds}
        | {"PATH": path, "CMAKE_GENERATOR": "Ninja"}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result, " ".join((result.stdout + result.stderr).split())


def printed(*arguments, **environment):
    result, text = cmake(*arguments, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return text


def refused(*arguments, **environment):
    result, text = cmake(*arguments, **environment)
    assert result.returncode != 0, result.stdout
    assert text.count("CMake Error") == 1, result.stderr
    return text


def project_in(folder):
    (folder / "modules").mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(PROJECT)
    for name, text in MODULES.items():
        (folder / "modules" / f"{name}.cmake").write_text(text)
    return folder


def nvcc_of(path, release):
    path.write_text(f"#!/bin/sh\necho Cuda compilation tools, release {release}, V{release}.88\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def torch(tmp_path):
    return Torch(tmp_path / "torch")


@pytest.fixture
def project(tmp_path):
    """Arguments that configure it; options are added."""
    return ["-S", project_in(tmp_path / "project"), "-B", tmp_path / "build"]


class Choice:
    """The project for a torch with CUDA, beside an nvcc that fits."""

    def __init__(self, project, root, nvcc):
        self.arguments = [*project, f"-DTORCH_EXT_TORCH_ROOT={root}"]
        self.environment = {"CUDACXX": str(nvcc)}

    def of(self, *options, **environment):
        """Whether CUDA kernels would be built, for what or why not."""
        text = printed(*self.arguments, *options, **{**self.environment, **environment})
        return re.search(r"-- CUDA (.*?) --", text)[1]

    def refused(self, *options, **environment):
        return refused(*self.arguments, *options, **{**self.environment, **environment})


@pytest.fixture
def cuda(project, torch, tmp_path):
    return Choice(project, torch.root, nvcc_of(tmp_path / "nvcc", "13.0"))


# ---- torch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [MODERN, OLD])
def test_programs_find_that_torch_is_another_one(tmp_path, header):
    """An old one has its version in another file."""
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    other = Torch(tmp_path / "other", header, "1.13")
    text = refused(
        *("-S", tmp_path, "-B", tmp_path / "build", f"-DTORCH_EXT_TORCH_ROOT={other.root}")
    )
    assert (
        f"torch_ext was built for torch 2.15, but found torch 1.13 at {other.root}: reinstall "
        "torch_ext for that version." in text
    )


def test_programs_find_the_torch_that_fits(tmp_path, torch):
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    printed("-S", tmp_path, "-B", tmp_path / "build", f"-DTORCH_EXT_TORCH_ROOT={torch.root}")


@pytest.mark.parametrize("found", ["no header", "no folder"])
def test_a_folder_that_is_no_torch_is_named(project, tmp_path, found):
    root = tmp_path / "torch"
    if found == "no header":
        Torch(root, header=None)
    text = refused(*project, f"-DTORCH_EXT_TORCH_ROOT={root}")
    assert (
        f"torch_ext: {root} is no PyTorch: it has no version.h (expected is <site-packages>/torch)."
        in text
    )


@pytest.mark.parametrize("prefix", [".", "share/cmake"])
@pytest.mark.parametrize("how", ["variable", "environment"])
def test_torch_is_found_by_its_folder_and_by_its_own_cmake_prefix(project, torch, prefix, how):
    """torch.utils.cmake_prefix_path is <site-packages>/torch/share/cmake."""
    prefix = str(torch.root / prefix)
    if how == "variable":
        text = printed(*project, f"-DCMAKE_PREFIX_PATH=/nonexistent;{prefix}")
    else:
        text = printed(*project, CMAKE_PREFIX_PATH=f"/nonexistent:{prefix}")
    assert f"-- root {torch.root} --" in text


# ---- Whether CUDA kernels are built ------------------------------------------------------------


@pytest.mark.parametrize("value", ["ON", "yes"])
def test_cuda_can_be_demanded_in_cmakes_words(cuda, value):
    assert cuda.of(f"-DTORCH_EXT_CUDA={value}").startswith("ON ")
    assert "CUDA kernels were asked for, but nvcc was not found" in cuda.refused(
        f"-DTORCH_EXT_CUDA={value}", "-UCMAKE_CUDA_COMPILER", CUDACXX="no_nvcc"
    )


@pytest.mark.parametrize("value", ["OFF", "0"])
def test_cuda_can_be_switched_off_in_cmakes_words(cuda, value):
    assert cuda.of(f"-DTORCH_EXT_CUDA={value}") == "OFF (switched off)"


def test_cuda_is_built_where_it_can_be(cuda):
    assert cuda.of("-DTORCH_EXT_CUDA=AUTO").startswith("ON ")
    reason = cuda.of("-DTORCH_EXT_CUDA=AUTO", "-UCMAKE_CUDA_COMPILER", CUDACXX="no_nvcc")
    assert reason.startswith("OFF (nvcc was not found")


@pytest.mark.parametrize("value", ["", "CPU"])
def test_another_word_about_cuda_is_refused(cuda, value):
    assert f"torch_ext: TORCH_EXT_CUDA is '{value}'; expected ON, OFF or AUTO." in cuda.refused(
        f"-DTORCH_EXT_CUDA={value}"
    )


def test_a_torch_without_cuda_gets_no_kernels(project, tmp_path):
    root = Torch(tmp_path / "cpu", cuda=None).root
    options = [*project, f"-DTORCH_EXT_TORCH_ROOT={root}"]
    assert f"-- CUDA OFF (the PyTorch at {root} has no CUDA) --" in printed(*options)
    assert f"asked for, but the PyTorch at {root} has no CUDA." in refused(
        *options, "-DTORCH_EXT_CUDA=ON"
    )


def test_an_nvcc_of_another_cuda_than_torchs_is_refused(cuda, torch, tmp_path):
    older = str(nvcc_of(tmp_path / "older", "12.4"))
    reason = "nvcc is of CUDA 12.4, not PyTorch's 13.2 (set CUDACXX to an nvcc of CUDA 13)"
    assert f"CUDA kernels were asked for, but {reason}." in cuda.refused(
        "-DTORCH_EXT_CUDA=ON", CUDACXX=older
    )
    assert cuda.of("-DTORCH_EXT_CUDA=AUTO", CUDACXX=older) == f"OFF ({reason})"
    # What it advises to do helps, in this build folder too.
    assert cuda.of("-DTORCH_EXT_CUDA=ON").startswith("ON ")


def test_an_unpacked_libtorch_does_not_say_which_cuda_it_is_for(cuda, torch):
    (torch.root / "version.py").unlink()
    assert cuda.of().startswith("ON ")


# ---- For which GPUs ----------------------------------------------------------------------------

ALL = "8.0;8.6;9.0;10.0;12.0+PTX"
LISTS = {"9.0": "9.0", "8.0 9.0+PTX ": "8.0;9.0+PTX", ";8.0; 9.0": "8.0;9.0", " ": ALL, "": ALL}


@pytest.mark.parametrize("given", LISTS)
def test_gpus_are_named_as_in_pytorchs_builds(cuda, given):
    assert cuda.of(TORCH_CUDA_ARCH_LIST=given) == f"ON {LISTS[given]} ()"
    option = f"-DTORCH_CUDA_ARCH_LIST={given}"
    expected = LISTS[given] if given.strip() else "7.5"
    assert cuda.of(option, TORCH_CUDA_ARCH_LIST="7.5") == f"ON {expected} ()"


def test_a_build_in_place_is_for_the_gpus_of_the_machine_or_for_one(cuda, tmp_path):
    """A list that is given wins there, too."""
    program = tmp_path / "nvidia-smi"
    path = {"PATH": f"{tmp_path}:{Path(tool('ninja')).parent}:{os.environ['PATH']}"}

    def found(said, *options):
        program.write_text(f"#!/bin/sh\n{said}\n")
        program.chmod(0o755)
        return cuda.of("-DTORCH_EXT_IN_PLACE=ON", *options, **path)

    assert found("echo 8.6; echo 10.3; echo 8.6") == "ON 8.6;10.3 ()"
    assert found("echo No devices were found; exit 6") == "ON 9.0+PTX ()"
    assert found("echo 8.6", "-DTORCH_CUDA_ARCH_LIST=8.0") == "ON 8.0 ()"


def test_what_is_no_gpu_is_named(cuda):
    assert (
        "torch_ext: TORCH_CUDA_ARCH_LIST has 'Hopper'; expected entries like 9.0 or 9.0+PTX."
        in cuda.refused("-DTORCH_CUDA_ARCH_LIST=9.0;Hopper")
    )


# ---- Folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize("character", "'$")
def test_a_folder_that_nvcc_cannot_name_is_refused(torch, tmp_path, character):
    folder = project_in(tmp_path / f"torch_ext{character}s")
    options = ["-S", folder, "-B", tmp_path / "build", f"-DTORCH_EXT_TORCH_ROOT={torch.root}"]
    assert f"-- CUDA OFF (nvcc fails with {character} in the path" in printed(*options)
    assert f"asked for, but nvcc fails with {character} in the path" in refused(
        *options, "-DTORCH_EXT_CUDA=ON"
    )


def linked_sources(folder):
    """The repository's sources under another path."""
    folder.mkdir()
    for name in ("CMakeLists.txt", "cmake", "csrc"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def commands(build, source):
    text = (build / "compile_commands.json").read_text()
    return [shlex.split(entry["command"]) for entry in json.loads(text) if source in entry["file"]]


@pytest.mark.parametrize("generator", ["Ninja", "Unix Makefiles"])
def test_nvcc_and_its_shell_take_folders_of_any_other_name(tmp_path, generator):
    """The flags of the kernels, for files that name themselves."""
    nvcc = tool("nvcc", "/usr/local/cuda/bin")
    folder = linked_sources(tmp_path / "torch_ext (1) & é #2 *[x]{y}!?~^")
    root = Torch(tmp_path / "(torch) <&").root
    (root / "version.py").unlink()  # so that any nvcc fits
    build = tmp_path / "build (1)"
    printed(
        *("-S", folder, "-B", build, f"-DTORCH_EXT_TORCH_ROOT={root}"),
        *("-DTORCH_EXT_CUDA=ON", "-DTORCH_EXT_OPENMP=OFF", "-DTORCH_CUDA_ARCH_LIST=9.0"),
        *(f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_GENERATOR={generator}"),
    )
    [command] = commands(build, "cuda/prelu.cu")
    source, preprocessed = folder / "name.cu", tmp_path / "name.ii"
    source.write_text("#include <ATen/core/Tensor.h>\nconst char* ours = __FILE__;\n")
    (root / "include" / "ATen" / "core" / "Tensor.h").write_text("const char* torchs = __FILE__;\n")
    flags = command[: command.index("-c")]
    subprocess.run([*flags, "-E", source, "-o", preprocessed], cwd=build, check=True)
    names = re.findall(r'(\w+ = ".*");', preprocessed.read_text())
    assert names == ['torchs = "ATen/core/Tensor.h"', 'ours = "name.cu"']


# ---- Generators --------------------------------------------------------------------------------


def test_each_configuration_of_a_generator_of_many_has_its_flags(torch, tmp_path):
    printed(
        *("-S", REPOSITORY, "-B", tmp_path / "build", "-G", "Ninja Multi-Config"),
        *(f"-DTORCH_EXT_TORCH_ROOT={torch.root}", "-DTORCH_EXT_CUDA=OFF"),
        *("-DTORCH_EXT_OPENMP=OFF", "-DCMAKE_CONFIGURATION_TYPES=Debug;Release"),
        "-DTORCH_EXT_UNITY=OFF",  # each source has a command of its own
    )
    for source, in_debug, in_release in (
        ("kernels/cpu/prelu.cpp", "-O3", "-O3"),  # optimised in both: CMakeLists.txt says why
        ("ops/prelu.cpp", None, "-D_FORTIFY_SOURCE=3"),
    ):
        found = commands(tmp_path / "build", source)
        debug = [command for command in found if "-DNDEBUG" not in command]
        release = [command for command in found if "-DNDEBUG" in command]
        assert len(debug) == len(release) > 0
        assert all(in_release in command for command in release)
        assert in_debug == in_release or not any(in_release in command for command in debug)
        if in_debug:
            assert all(in_debug in command for command in debug)
