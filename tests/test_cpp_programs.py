"""C++ programs that use the installed package: found by CMake, linked, run without Python. Those of
examples/cpp are tested in test_cpp_examples.py."""

import os
from pathlib import Path

from installed import output_of, tool, without_library_path

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


def test_cmake_prefix_path_holds_the_config():
    prefix = torch_ext.cmake_prefix_path
    assert isinstance(prefix, str)
    assert (Path(prefix) / "lib/cmake/torch_ext/torch_ext-config.cmake").is_file()
    assert (Path(prefix) / "include/torch_ext/prelu.h").is_file()
    assert (Path(prefix) / "include/torch_ext/nn.h").is_file()


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
