"""What a target of the Makefile needs and a bare machine lacks is installed, or asked for by name."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAKE = shutil.which("make")

# (No packages are of version 0, so these tools are missing everywhere.)
CLANG_0 = "clang-0 clang-tidy-0 llvm-0"


@pytest.fixture
def machine(tmp_path):
    """A folder for PATH with make's shell and nothing else; programs are added by name."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def add(name, script):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)

    def make(*arguments):
        environment = {**os.environ, "PATH": str(programs), "MAKEFLAGS": ""}
        return subprocess.run(
            [MAKE, "--silent", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    make.add = add
    make.installs = tmp_path / "installs"
    return make


@pytest.fixture
def debian(machine):
    machine.add("id", "echo 0")
    machine.add("apt-get", f'echo "$@" >> "{machine.installs}"')
    return machine


def test_missing_checkers_are_installed(debian):
    result = debian("static-tools", "CLANG_VERSION=0")
    assert result.returncode == 0, result.stderr
    update, install = debian.installs.read_text().splitlines()
    assert update.startswith("update")
    assert install.startswith("install -y") and CLANG_0 in install


def test_a_missing_compiler_is_installed(debian):
    assert debian("system").returncode == 0
    assert "g++ libgtest-dev" in debian.installs.read_text()


@pytest.mark.parametrize("lacks", ["apt-get", "rights", "network"])
def test_what_cannot_be_installed_is_asked_for(machine, lacks):
    if lacks != "apt-get":
        machine.add("apt-get", "exit 100")
    machine.add("id", "echo 1000" if lacks == "rights" else "echo 0")
    result = machine("static-tools", "CLANG_VERSION=0")
    assert result.returncode != 0
    assert "torch_ext: this needs cppcheck " + CLANG_0 in result.stderr


def test_a_build_goes_on_without_debian_packages(machine):
    """CMake may know of another compiler and another GoogleTest."""
    result = machine("system")
    assert result.returncode == 0
    assert "torch_ext: this needs g++ libgtest-dev" in result.stderr
