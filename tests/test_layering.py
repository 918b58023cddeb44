"""The layers of csrc/: includes point down only; kernels know no tensors and no dispatcher."""

import pathlib
import re

import pytest

CSRC = pathlib.Path(__file__).resolve().parent.parent / "csrc"
SOURCES = (".h", ".hpp", ".cuh", ".cpp", ".cc", ".cu", ".in")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)[ \t]*[<"]([^>"]+)[>"]', re.MULTILINE)

TORCH = re.compile(r"(ATen|torch|c10|caffe2)/")
NUMBERS = re.compile(r"c10/util/(Half|BFloat16)(-\w+)?\.h$|c10/macros/Macros\.h$")
# The files of the kernels that start them: on PyTorch's threads or stream, with its allocator.
LAUNCH = {
    "kernels/cpu/launch.h": re.compile(r"ATen/Parallel\.h|c10/core/CPUAllocator\.h"),
    "kernels/cpu/launch.cpp": re.compile(r"ATen/Version\.h|c10/util/Exception\.h"),
    "kernels/cuda/launch.cuh": re.compile(r"c10/cuda/"),
}
PYTHON = re.compile(
    r"(Python\.h|pybind11/|torch/extension\.h|torch/python\.h|torch/csrc/(utils/)?py)"
)
DEVICE = re.compile(r"(ATen/cuda|c10/cuda|ATen/cudnn|torch/cuda|cuda|cub/|kernels/(cpu|cuda)/)")

# folder: what its files must not include, each with the reason
RULES = {
    "include": (
        (
            lambda path, name: re.match(r"(ops|kernels|python)/", name),
            "public headers say what, not how",
        ),
        (lambda path, name: PYTHON.match(name), "public headers serve C++ programs"),
    ),
    "kernels": (
        (
            lambda path, name: (
                TORCH.match(name)
                and not NUMBERS.match(name)
                and not (str(path) in LAUNCH and LAUNCH[str(path)].match(name))
            ),
            "kernels know no tensors: of PyTorch only its number types",
        ),
        (lambda path, name: re.match(r"(ops|python|torch_ext)/", name), "includes point down only"),
        (lambda path, name: PYTHON.match(name), "kernels know no Python"),
        (
            lambda path, name: (
                path.parts[1] == "cpu" and re.match(r"(cuda|cub/|kernels/cuda/)", name)
            ),
            "the CPU's kernels know no CUDA",
        ),
        (
            lambda path, name: path.parts[1] == "cuda" and re.match(r"kernels/cpu/", name),
            "CUDA's kernels know no CPU",
        ),
    ),
    "ops": (
        (lambda path, name: PYTHON.match(name), "the operator library has no Python in it"),
        (lambda path, name: name.startswith("python/"), "includes point down only"),
        (
            lambda path, name: not re.search(r"_(cpu|cuda)$", path.stem) and DEVICE.match(name),
            "only *_cpu and *_cuda know a device",
        ),
    ),
    "python": ((lambda path, name: name.startswith("kernels/"), "bindings know no kernels"),),
}


def _without_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def violations(root):
    found = []
    for path in sorted(root.rglob("*")):
        if path.suffix not in SOURCES:
            continue
        relative = path.relative_to(root)
        for name in INCLUDE.findall(_without_comments(path.read_text())):
            target = _own_file(root, path, name)
            for forbidden, reason in RULES[relative.parts[0]]:
                if forbidden(relative, target):
                    found.append(f"{relative} includes {name}: {reason}")
    return found


def _own_file(root, path, name):
    """A relative include under its name from csrc/, so that "../ops/x.h" does not slip through."""
    target = (path.parent / name).resolve()
    return (
        str(target.relative_to(root.resolve()))
        if target.is_relative_to(root.resolve()) and target.exists()
        else name
    )


def test_includes_point_down_only():
    assert violations(CSRC) == []


def test_the_folders_are_those_of_the_design():
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == set(RULES)
    assert list((CSRC / "kernels").rglob("*.h")) and list((CSRC / "ops").rglob("*.cpp"))


BAD_INCLUDES = (
    ("kernels/cpu/x.h", "#include <ATen/core/Tensor.h>"),
    ("kernels/cpu/x.cpp", "#include <torch/library.h>"),
    ("kernels/cuda/x.cuh", "#include <c10/cuda/CUDAStream.h>"),
    ("kernels/cpu/launch.cuh", "#include <c10/cuda/CUDAStream.h>"),
    ("kernels/cuda/launch.cuh", "#include <c10/core/ScalarType.h>"),
    ("kernels/cuda/launch.cuh", "#include <ATen/cuda/CUDAContext.h>"),
    ("kernels/x.h", "#  include <ATen/Parallel.h>"),
    ("kernels/cpu/x.h", "#include <ATen/cpu/vec/vec.h>"),
    ("kernels/cpu/launch.h", "#include <ATen/core/Tensor.h>"),
    ("kernels/x.h", '#include "ops/prelu_args.h"'),
    ("kernels/cpu/x.h", '#include "../../ops/prelu_args.h"'),
    ("kernels/x.h", "#include <torch_ext/prelu.h>"),
    ("kernels/x.h", "#include <c10/core/ScalarType.h>"),
    ("kernels/cpu/x.h", "#include <cuda_runtime.h>"),
    ("kernels/cuda/x.cuh", '#include "kernels/cpu/plan.h"'),
    ("ops/x.cpp", "#include <Python.h>"),
    ("ops/x.cpp", "#include <pybind11/pybind11.h>"),
    ("ops/x_cpu.cpp", "#include <torch/extension.h>"),
    ("ops/prelu_autograd.cpp", "#include <ATen/cuda/CUDAContext.h>"),
    ("ops/prelu.cpp", '#include "kernels/cpu/sweep.h"'),
    ("include/torch_ext/x.h", '#include "kernels/channel_view.h"'),
    ("python/module.cpp", '#include "kernels/cpu/sweep.h"'),
)
GOOD_INCLUDES = (
    (
        "kernels/cpu/x.h",
        "#include <c10/macros/Macros.h>\n#include <c10/util/BFloat16.h>\n#include <vector>",
    ),
    (
        "kernels/cpu/x.h",
        '#include "kernels/channel_view.h"\n// #include <ATen/x.h>\n/* #include <torch/all.h> */',
    ),
    ("kernels/cpu/launch.h", "#include <ATen/Parallel.h>"),
    ("kernels/cuda/x.cuh", "#include <cuda_runtime.h>\n#include <c10/util/Half.h>"),
    ("kernels/cuda/launch.cuh", "#include <c10/cuda/CUDAStream.h>"),
    ("kernels/x.h", "#include <c10/macros/Macros.h>"),
    ("ops/x_cuda.cpp", '#include <c10/cuda/CUDAGuard.h>\n#include "kernels/cuda/launch.h"'),
    (
        "ops/x.cpp",
        "#include <ATen/core/Tensor.h>\n#include <torch/library.h>\n#include <torch_ext/prelu.h>",
    ),
    ("python/module.cpp", "#include <pybind11/pybind11.h>"),
)


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "prelu_args.h").touch()

    def plant(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#pragma once\n{text}\n")
        return tmp_path

    return plant


@pytest.mark.parametrize(
    "name, text", BAD_INCLUDES, ids=lambda value: value.replace("#include ", "")
)
def test_a_planted_include_is_found(name, text, tree):
    assert len(violations(tree(name, text))) >= 1


@pytest.mark.parametrize("name, text", GOOD_INCLUDES, ids=range(len(GOOD_INCLUDES)))
def test_an_honest_include_is_accepted(name, text, tree):
    assert violations(tree(name, text)) == []
