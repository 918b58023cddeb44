"""What a build finds: the torch that it is for, and with it what the package asks for; its tools.

tests/test_packaging_missing.py has what it says where it finds nothing.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import installed
import pytest
from packaging.requirements import Requirement

from torch_ext import _library


def run(*command, code=0, **variables):
    environment = {**os.environ, "FORCE_CPU": "1", "FORCE_CUDA": "0", **variables}
    return installed.run(*command, code=code, cwd=installed.REPOSITORY, env=environment)


def output_of(*command, **variables):
    return run(*command, **variables).stdout.strip()


# ---- torch -------------------------------------------------------------------------------------


@pytest.fixture
def torch_of(tmp_path):
    """Environment variables of a build for a torch of a version."""

    def torch_root(version):
        root = tmp_path / "torch"
        root.mkdir()
        (root / "version.py").write_text(f"__version__ = {version!r}\ncuda = None\n")
        return {"TORCH_EXT_TORCH_ROOT": str(root)}

    return torch_root


UNSUPPORTED = ["1.13.1", "2.9.1+cu128", "2.10.0", "2.16.0.dev20270101+cu130", "3.11.0"]


@pytest.mark.parametrize("version", UNSUPPORTED)
def test_a_torch_that_is_not_supported_is_refused_in_one_sentence(torch_of, version):
    done = run(sys.executable, "setup.py", "--version", code=1, **torch_of(version))
    assert done.stderr.strip() == (
        f"torch_ext: torch {version} was found, but 2.11 to 2.15 are supported: install one of "
        "these, or set TORCH_EXT_ANY_TORCH=1 to try this one."
    )


@pytest.mark.parametrize("version", UNSUPPORTED[1:3])
def test_a_torch_that_is_not_supported_can_be_tried(torch_of, version):
    printed = output_of(
        *(sys.executable, "setup.py", "--version"), TORCH_EXT_ANY_TORCH="1", **torch_of(version)
    )
    minor = ".".join(version.split(".")[:2])
    assert re.fullmatch(rf"\d+\.\d+\.\d+\+pt{re.escape(minor)}cpu", printed)


def test_a_source_distribution_can_be_made_beside_any_torch(torch_of, tmp_path):
    environment = torch_of("2.10.0")
    hook = (
        "import sys; sys.path.insert(0, 'build_tools'); import backend;"
        "print(backend.get_requires_for_build_sdist())"
    )
    assert output_of(sys.executable, "-c", hook, **environment) == "[]"
    output_of(sys.executable, "setup.py", "-q", "sdist", "--help", **environment)


# What it is built for, and a later and an earlier one of the same minor version.
REQUIREMENTS = {
    "2.15.0": (">=2.15.0,<2.16", "2.15.1", "2.15.0rc2"),
    "2.15.1+cu130": (">=2.15.0,<2.16", "2.15.0", "2.15.0rc2"),
    "2.15.0a0+5228986c39.nv25.6": (">=2.15.0a0,<2.16", "2.15.0+cu130", "2.15.0.dev20260101"),
    "2.15.0.dev20260101+cu130": (">=2.15.0.dev20260101,<2.16", "2.15.0a0", "2.15.0.dev20251231"),
    "2.11.0rc1": (">=2.11.0rc1,<2.12", "2.11.0", "2.11.0a0"),
}


@pytest.mark.parametrize("version", REQUIREMENTS)
def test_the_torch_that_it_was_built_for_is_one_that_it_asks_for(torch_of, tmp_path, version):
    output_of(
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path), **torch_of(version)
    )
    [path] = tmp_path.glob("*.egg-info/requires.txt")
    asked = Requirement(path.read_text().splitlines()[0]).specifier
    wanted, later, earlier = REQUIREMENTS[version]
    assert asked == Requirement(f"torch{wanted}").specifier
    assert all(asked.contains(each, prereleases=True) for each in (version, later))
    assert not asked.contains(earlier, prereleases=True)
    assert not asked.contains("2.16.0a0", prereleases=True)


def test_the_remedy_that_import_errors_name_installs_nothing_else(tmp_path):
    """Not torch, of which another one would be what it is not built for. pip tells what it would do."""
    [command] = re.findall(r"`pip (install .*)`", _library._BUILD)
    output_of(
        *(sys.executable, "-m", "pip", "-q", *shlex.split(command)),
        *("--dry-run", "--no-index", "--report", tmp_path / "report.json"),
    )
    installs = json.loads((tmp_path / "report.json").read_text())["install"]
    assert [each["metadata"]["name"] for each in installs] == ["torch_ext"]


# ---- CMake -------------------------------------------------------------------------------------

SHOW_STEPS = """
import json, runpy, sys, types
sys.argv = ["setup.py", "--version"]
namespace = runpy.run_path("setup.py", run_name="__main__")
command = types.SimpleNamespace(inplace=True, debug=False, with_ninja=lambda: [])
steps = namespace["CMakeBuild"].steps(command, namespace["torch_found"], "package")
print(json.dumps(list(steps)))
"""


@pytest.mark.parametrize("generator", ["Ninja", "Ninja Multi-Config"])
def test_what_is_built_is_what_is_installed(generator):
    environment = {"CMAKE_GENERATOR": generator, "CMAKE_BUILD_TYPE": "RelWithDebInfo"}
    steps = json.loads(output_of(sys.executable, "-c", SHOW_STEPS, **environment).splitlines()[-1])
    configure, build, install = map(" ".join, steps)
    assert "-DCMAKE_BUILD_TYPE=RelWithDebInfo" in configure
    for step in (build, install):
        assert ("--config RelWithDebInfo" in step) == ("Multi-Config" in generator)


# ---- Tools -------------------------------------------------------------------------------------

SHOW_TOOLS = (
    "import runpy, shutil, sys; sys.argv = ['setup.py', '--version'];"
    "path = runpy.run_path('setup.py', run_name='__main__')['CMakeBuild'].search_path();"
    "print(path, *(shutil.which(name, path=path) for name in ('cmake', 'ninja')), sep='\\n')"
)


@pytest.fixture
def system_python(tmp_path):
    """An interpreter with tools beside it that are not those of its packages, as in an isolated build."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "usr"], check=True)
    [packages] = tmp_path.glob("usr/lib/python*/site-packages")
    (packages / "outer.pth").write_text(sysconfig.get_path("purelib"))
    folder = tmp_path / "usr" / "bin"
    for name in ("cmake", "ninja"):
        (folder / name).write_text("#!/bin/sh\necho too old\n")
        (folder / name).chmod(0o755)
    return folder / "python"


def test_the_tools_that_packages_bring_come_before_those_beside_the_interpreter(system_python):
    pytest.importorskip("cmake")
    pytest.importorskip("ninja")
    path, *tools = output_of(system_python, "-c", SHOW_TOOLS).splitlines()[-3:]
    for tool in tools:
        assert Path(tool).parent != system_python.parent
        assert re.search(r"\d+\.\d+", output_of(tool, "--version"))
    assert str(system_python.parent) in path.split(os.pathsep)
    assert "" not in path.split(os.pathsep)[:-1]  # it would be the current folder


def test_the_tools_beside_the_interpreter_come_before_those_of_the_path(system_python, tmp_path):
    decoys = tmp_path / "decoys"
    shutil.copytree(system_python.parent, decoys, symlinks=True)
    hidden = "import importlib.metadata; importlib.metadata.files = lambda name: None;"
    tools = output_of(system_python, "-c", hidden + SHOW_TOOLS, PATH=str(decoys)).splitlines()[-2:]
    assert [Path(tool).parent for tool in tools] == [system_python.parent] * 2
