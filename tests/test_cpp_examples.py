"""C++ programs that use the package: found by CMake, linked, run without Python. Those of examples/cpp, of
which one trains and the other runs what Python saved; and one that only asks the dispatcher."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cases import random_values
from installed import (
    LIBRARY,
    REPOSITORY,
    cmake_build,
    openmp_runtimes,
    output_of,
    tool,
    without_library_path,
)
from reference import assert_both_branches, assert_same_bits
from saved_models import exact_network, images

import torch_ext

# For the project of the examples: its targets are linked once the project has found the package.
DISPATCHER_ONLY = f"""
add_executable(dispatcher_only "{REPOSITORY}/tests/wheels/consumer/dispatcher.cpp")
target_link_options(dispatcher_only PRIVATE LINKER:--as-needed)
target_link_libraries(dispatcher_only PRIVATE torch_ext::torch_ext)
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder with the programs, which take long to compile."""
    build = tmp_path_factory.mktemp("examples")
    more = build / "dispatcher_only.cmake"
    more.write_text(DISPATCHER_ONLY)
    cmake_build(REPOSITORY / "examples" / "cpp", build, f"-DCMAKE_PROJECT_INCLUDE={more}")
    return build


@pytest.fixture(scope="module")
def spirals(programs):
    return programs / "spirals"


def linked_libraries(program):
    """What the loader opens for a program: name -> path."""
    output = output_of(tool("ldd"), program, env=without_library_path())
    assert "not found" not in output
    return dict(re.findall(r"(\S+) => (\S+)", output))


def test_the_training_program_trains_and_hands_its_state_to_stock(spirals, tmp_path):
    output = output_of(spirals, cwd=tmp_path, env=without_library_path())
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", output)]
    assert losses[-1] < 0.2 * losses[0]
    assert "outputs identical" in output
    assert (tmp_path / "spirals.pt").is_file()


def test_the_training_program_runs_with_one_openmp_runtime_and_without_python(spirals):
    libraries = linked_libraries(spirals)
    assert Path(libraries["libtorch_ext.so"]).samefile(LIBRARY)
    assert len(openmp_runtimes(libraries.values())) == 1
    assert not [name for name in libraries if "python" in name]


@pytest.fixture
def start(programs):
    """Starts run_model and waits for it."""

    def start_with(*arguments):
        return subprocess.run(
            [programs / "run_model", *arguments],
            check=False,
            env=without_library_path(),
            capture_output=True,
            text=True,
        )

    return start_with


@pytest.fixture
def run_model(start, tmp_path):
    """Calls the program on a tensor; what it writes, and what it prints."""

    def run(model, input):
        torch.save(input, tmp_path / "input.pt")
        done = start(model, tmp_path / "input.pt", tmp_path / "output.pt")
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "output.pt", weights_only=True), done.stdout

    return run


def test_a_torchscript_model_of_python_gives_pythons_bits(run_model, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch_ext.PReLU(6), torch.nn.PReLU()).eval()
    torch_ext.replace_prelu(model)
    input = random_values((4, 6, 33), torch.float32)
    torch.jit.script(model).save(tmp_path / "model.pt")
    output, printed = run_model(tmp_path / "model.pt", input)
    assert_both_branches(input, output)
    assert_same_bits(output, model(input).detach())
    assert printed.startswith("[4, 6, 33] -> [4, 6, 33], ")


@pytest.mark.full  # compiles for long; that C++ runs packages is tested in test_aot_inductor.py too
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="AOTInductor needs a C++ compiler"
)
def test_a_package_of_aot_inductor_gives_pythons_numbers(run_model, tmp_path):
    """All of them exact, so the same in any order."""
    model, input = exact_network().eval(), images(3)
    with torch.no_grad():
        expected = model(input)
        program = torch.export.export(model, (input,))
    path = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "model.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    output, _ = run_model(path, input)
    assert torch.equal(output, expected)


def test_what_cannot_be_read_is_an_error(start, tmp_path):
    torch.save(torch.ones(3), tmp_path / "input.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK")
    for model in (tmp_path / "missing.pt", tmp_path / "broken.pt", tmp_path / "missing.pt2"):
        done = start(model, tmp_path / "input.pt", tmp_path / "output.pt")
        assert done.returncode == 1 and done.stdout == "" and done.stderr.strip()
    assert "usage" in start().stderr


def test_a_program_that_only_asks_the_dispatcher_finds_the_operator(programs):
    """It uses no symbol of ours, so a linker that drops unneeded libraries would drop this one."""
    assert output_of(programs / "dispatcher_only", env=without_library_path()) == "-0.25 2\n"
