"""AOTInductor: a package that Python compiles runs in a C++ program and in a fresh Python.

By default PReLU is taken apart and fused, and the package needs nothing of ours. Kept whole, the
operator is called by its name, through PyTorch's proxy executor, and whoever runs the package must
have the library loaded.
"""

import os
import shutil
import zipfile

import pytest
import torch
from reference import assert_same_bits
from saved_models import (
    cases,
    error_in_cpp,
    exact_network,
    images,
    run_in_cpp,
    run_in_fresh_python,
)

import torch_ext

pytestmark = [
    pytest.mark.skipif(
        shutil.which(os.environ.get("CXX", "g++")) is None,
        reason="AOTInductor needs a C++ compiler",
    ),
    # torch's own, raised while it compiles
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

# The test waits for the C++ compiler, so it should do as little as possible.
QUICK = {
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
}


def compile_package(policy, folder):
    """A package of the network, for any batch size and height, and its cases."""
    network = exact_network().eval()
    sizes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=6)}
    before = torch_ext.inductor.compile_policy()
    torch_ext.inductor.set_compile(policy)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images(2),), dynamic_shapes=(sizes,))
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / "model.pt2"), inductor_configs=QUICK
            )
            return path, cases(network), folder
    finally:
        torch_ext.inductor.set_compile(before)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """With the operator kept whole."""
    return compile_package("opaque", tmp_path_factory.mktemp("opaque"))


def operators_called_by_name(package):
    with zipfile.ZipFile(package) as archive:
        return b"".join(
            archive.read(name) for name in archive.namelist() if name.endswith("wrapper.json")
        )


def test_the_package_calls_the_operator_once_per_layer(package):
    assert operators_called_by_name(package[0]).count(b"torch_ext::prelu") == 2


def test_it_gives_the_bits_of_eager_for_every_size(package):
    path, made, _ = package
    model = torch._inductor.aoti_load_package(path)
    for case in made:
        assert_same_bits(model(case["input"]), case["output"])


def test_a_fresh_process_needs_import_torch_ext_and_says_so(package):
    assert "Could not find schema for torch_ext::prelu" in run_in_fresh_python("aoti", *package)


@pytest.mark.contract
def test_a_cpp_program_runs_it(package):
    run_in_cpp("aoti", *package)


def test_a_cpp_program_without_the_library_says_which_operator_is_missing(package):
    message = error_in_cpp("aoti", *package, with_torch_ext=False)
    assert "Could not find schema for torch_ext::prelu" in message


# ---- As it is compiled by default --------------------------------------------------------------


def test_by_default_a_package_needs_no_torch_ext(tmp_path):
    package = compile_package("auto", tmp_path)
    assert b"torch_ext" not in operators_called_by_name(package[0])
    run_in_cpp("aoti", *package, with_torch_ext=False)
