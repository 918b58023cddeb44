"""C++ programs from the installed wheel, with CMake and one path: the project in consumer/."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from programs import TORCH_MINOR, error_of, output_of

CONSUMER = Path(__file__).parent / "consumer"


def configure(installed, source, build, *options):
    """As a user would, with the system's or the environment's CMake and its default generator."""
    return [
        *("cmake", "-S", source, "-B", build),
        *(f"-DCMAKE_PREFIX_PATH={installed.packages / 'torch_ext'}", *options),
    ]


@pytest.fixture(scope="module")
def consumers(installed, tmp_path_factory):
    build = tmp_path_factory.mktemp("consumers")
    output_of(*configure(installed, CONSUMER, build))
    output_of("cmake", "--build", build, "--parallel", "2")
    return build


def needed(program):
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-dW", program))


def test_a_program_calls_the_interface(consumers):
    assert output_of(consumers / "interface") == f"-0.25 2 for torch {TORCH_MINOR}\n"


@pytest.mark.parametrize("program", ["dispatcher", "dispatcher_in_a_library"])
def test_a_program_that_only_asks_the_dispatcher_finds_the_operator(consumers, program):
    """Linked with --as-needed, itself or through a library of its own; no symbol of ours is used."""
    assert output_of(consumers / program) == "-0.25 2\n"


def test_a_program_loads_a_torchscript_file(consumers, installed, tmp_path):
    installed.run(
        "import warnings; warnings.simplefilter('ignore')\n"
        "import torch, torch_ext\n"
        f"torch.jit.script(torch_ext.PReLU()).save({str(tmp_path / 'model.pt')!r})"
    )
    assert output_of(consumers / "torchscript", tmp_path / "model.pt") == "-0.25 2\n"


def test_programs_for_aot_inductor_get_libtorch_and_others_do_not(consumers):
    assert "libtorch.so" in needed(consumers / "aot_inductor")
    assert "libtorch.so" not in needed(consumers / "dispatcher")
    assert output_of(consumers / "aot_inductor") == "-0.25 2\n"


def test_programs_run_without_python(consumers):
    for program in ("interface", "torchscript"):
        assert not [name for name in needed(consumers / program) if "python" in name]


def test_the_installation_may_be_moved(installed, consumers):
    """Programs that were linked find it by the loader's path; a new one is built from the new place."""
    moved = installed.folder.with_name("libraries elsewhere")
    os.rename(installed.packages, moved)
    try:
        libraries = f"{moved}/torch_ext/lib:{moved}/torch/lib"
        assert output_of(consumers / "dispatcher", LD_LIBRARY_PATH=libraries) == "-0.25 2\n"
        build = consumers / "again"
        output_of(
            *("cmake", "-S", CONSUMER, "-B", build, f"-DCMAKE_PREFIX_PATH={moved / 'torch_ext'}")
        )
        output_of("cmake", "--build", build, "--target", "dispatcher")
        assert output_of(build / "dispatcher") == "-0.25 2\n"
        mentioned = re.findall(
            r"/\S*site-packages\S*", output_of("readelf", "-dW", build / "dispatcher")
        )
        assert mentioned == []
    finally:
        os.rename(moved, installed.packages)


# ---- What it refuses (tests/test_cmake_options.py: another torch) --------------------------------


def in_one_line(text):
    return " ".join(text.split())


def test_a_missing_torch_is_named(installed, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(installed.packages / "torch_ext", alone / "torch_ext")
    error = in_one_line(
        error_of(
            *("cmake", "-S", CONSUMER, "-B", tmp_path / "b"),
            f"-DCMAKE_PREFIX_PATH={alone / 'torch_ext'}",
        )
    )
    assert "PyTorch was not found: add its folder (site-packages/torch) to" in error


def test_another_version_of_torch_ext_is_refused(installed, tmp_path):
    error = error_of(*configure(installed, CONSUMER, tmp_path / "b", "-DWANTED_VERSION=99.0"))
    assert 'compatible with requested version "99.0"' in in_one_line(error)


# ---- The source tree in another project --------------------------------------------------------


def test_add_subdirectory_gives_the_same_target(source, installed, tmp_path):
    """Configured only: it links the same sources as the wheel."""
    output_of(
        *("cmake", "-S", CONSUMER, "-B", tmp_path, f"-DTORCH_EXT_SOURCE={source}"),
        *(f"-DTORCH_EXT_TORCH_ROOT={installed.packages / 'torch'}", "-DTORCH_EXT_CUDA=OFF"),
        # Our own build asks for a newer CMake than programs that use the package.
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    link = (tmp_path / "CMakeFiles" / "dispatcher.dir" / "link.txt").read_text()
    assert "--no-as-needed" in link and "libtorch_ext.so" in link and "libtorch_cpu.so" in link
