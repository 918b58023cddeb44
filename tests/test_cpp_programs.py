"""C++ programs that use the installed package: found by CMake, linked, run without Python."""

import atexit
import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from installed import (
    LIBRARY,
    REPOSITORY,
    openmp_runtimes,
    output_of,
    tool,
    without_library_path,
)

import torch_ext


def cmake_build(source, build):
    """Configures and builds as examples/cpp/README.md says."""
    environment = {**os.environ, "PATH": f"{Path(tool('ninja')).parent}:{os.environ['PATH']}"}
    tool("c++")
    output_of(
        tool("cmake"), "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PREFIX_PATH={torch_ext.cmake_prefix_path}", env=environment,
    )  # fmt: skip
    output_of(tool("cmake"), "--build", build, env=environment)


def linked_libraries(program):
    """What the loader opens for a program: name -> path."""
    output = output_of(tool("ldd"), program, env=without_library_path())
    assert "not found" not in output
    return dict(re.findall(r"(\S+) => (\S+)", output))


def test_cmake_prefix_path_holds_the_config():
    prefix = torch_ext.cmake_prefix_path
    assert isinstance(prefix, str)
    assert (Path(prefix) / "lib/cmake/torch_ext/torch_ext-config.cmake").is_file()
    assert (Path(prefix) / "include/torch_ext/prelu.h").is_file()
    assert (Path(prefix) / "include/torch_ext/nn.h").is_file()


@functools.cache
def built_examples():
    """The folder with the programs of examples/cpp: compiled once for all tests."""
    build = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, build, ignore_errors=True)
    cmake_build(REPOSITORY / "examples" / "cpp", build)
    return build


@pytest.fixture(scope="module")
def example():
    return built_examples() / "spirals"


def test_the_cpp_example_trains_and_hands_its_state_to_stock(example, tmp_path):
    output = output_of(example, cwd=tmp_path, env=without_library_path())
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", output)]
    assert losses[-1] < 0.2 * losses[0]
    assert "outputs identical" in output
    assert (tmp_path / "spirals.pt").is_file()


def test_the_cpp_example_runs_with_one_openmp_runtime_and_without_python(example):
    libraries = linked_libraries(example)
    assert Path(libraries["libtorch_ext.so"]).samefile(LIBRARY)
    assert len(openmp_runtimes(libraries.values())) == 1
    assert not [name for name in libraries if "python" in name]


DISPATCHER_ONLY = """
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/ones.h>

#include <cstdio>

int main() {
  const auto prelu = c10::Dispatcher::singleton()
                         .findSchemaOrThrow("torch_ext::prelu", "")
                         .typed<at::Tensor(const at::Tensor&, const at::Tensor&)>();
  std::printf("%g\\n", prelu.call(at::ones({3}).neg(), at::ones({1})).sum().item<double>());
}
"""

DISPATCHER_ONLY_CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(dispatcher_only LANGUAGES CXX)
find_package(torch_ext CONFIG REQUIRED)
add_executable(dispatcher_only main.cpp)
target_link_options(dispatcher_only PRIVATE LINKER:--as-needed)
target_link_libraries(dispatcher_only PRIVATE torch_ext::torch_ext)
"""


def test_a_program_that_only_asks_the_dispatcher_finds_the_operator(tmp_path):
    """It uses no symbol of ours, so a linker that drops unneeded libraries would drop this one."""
    (tmp_path / "main.cpp").write_text(DISPATCHER_ONLY)
    (tmp_path / "CMakeLists.txt").write_text(DISPATCHER_ONLY_CMAKE)
    cmake_build(tmp_path, tmp_path / "build")
    program = tmp_path / "build" / "dispatcher_only"
    assert output_of(program, env=without_library_path()).strip() == "-3"
