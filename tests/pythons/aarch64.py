"""`make aarch64-package`: the package built for aarch64, and tested in a Debian whose programs an emulator runs.

As root, on Debian. An emulator takes at least ten times as long (compiling the kernels: hours), so this machine's
compiler builds the package, its pip unpacks torch and the tools, and the tests are those of the values in one process.
What came of it: tests/aarch64_result.txt
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

from run import DEBOOTSTRAP, FOLDER, IN_CHROOT, ROOT, inside, logged

RESULT = ROOT / "tests" / "aarch64_result.txt"
DEBIAN = FOLDER / "aarch64"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
REGISTRATION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
PYTHON = "3.13"  # trixie's
TOOLS = "pybind11 packaging numpy pytest hypothesis expecttest"
TAGS = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 40))]
TESTS = (
    "tests/test_prelu_definition.py tests/test_battery_values.py tests/test_flush_denormal.py"
    " tests/test_norm_prelu.py"
)
# oneDNN crashes on the /sys of another processor; PyTorch asks which cores there are.
CORES = """
mount -t tmpfs none /sys && mkdir -p /sys/devices/system/cpu
for name in possible present; do echo 0-1 > /sys/devices/system/cpu/$name; done
"""
# One process: importing torch takes minutes.
PROGRAM = (
    "import sys, pytest, torch_ext as t; print(t.build_info()); sys.exit(pytest.main(sys.argv[1:]))"
)
ENVIRONMENT = IN_CHROOT | {"PYTHONPATH": "/source:/packages"}


def emulated():
    """This kernel starts programs for aarch64."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", BINFMT], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(REGISTRATION.read_text())


def prepare(torch, log):
    """A Debian with the packages; what an earlier run left is used."""
    if not (DEBIAN / "usr" / "bin" / "g++").exists():
        *options, included = DEBOOTSTRAP
        logged(log, *options, f"{included},python3-dev", "--arch=arm64", "trixie", DEBIAN)
    if not (DEBIAN / "packages" / "torch").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", DEBIAN / "packages"]
        pip += [f"--platform={tag}_aarch64" for tag in TAGS]
        pip += ["--python-version", PYTHON, "--only-binary=:all:"]
        logged(log, *pip, f"torch=={torch}", *TOOLS.split())
    for name in ("source", "build"):
        shutil.rmtree(DEBIAN / name, ignore_errors=True)
    logged(log, "git", "clone", "-q", "--no-hardlinks", ROOT, DEBIAN / "source")


def build(log):
    """The package in its source tree, by this machine's compiler and the headers of the other."""
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
        "CMAKE_CXX_FLAGS": f"-idirafter {DEBIAN}/usr/include",  # Python's pyconfig.h is there
        "TORCH_EXT_TORCH_ROOT": DEBIAN / "packages" / "torch",
        "TORCH_EXT_CUDA": "OFF",
        "TORCH_EXT_PYTHON": "ON",
        "pybind11_DIR": DEBIAN / "packages" / "pybind11" / "share" / "cmake" / "pybind11",
        "Python_EXECUTABLE": DEBIAN / "usr" / "bin" / f"python{PYTHON}",
        "Python_INCLUDE_DIR": DEBIAN / "usr" / "include" / f"python{PYTHON}",
    }
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    # (CMake asks the other Python about itself; the emulator has to find its libraries.)
    environment = os.environ | {"QEMU_LD_PREFIX": str(DEBIAN)}
    source, folder = DEBIAN / "source", DEBIAN / "build"
    cmake = ("cmake", "-G", "Ninja", "-S", source, "-B", folder, *definitions)
    logged(log, *cmake, env=environment)
    logged(log, "cmake", "--build", folder)
    logged(log, "cmake", "--install", folder, "--prefix", source / "torch_ext")


def tried(log):
    """The lines of the result."""
    command = f"{CORES} cd /source && python3 -c '{PROGRAM}' -p no:cacheprovider {TESTS}"
    printed = inside(log, DEBIAN, command, ENVIRONMENT).splitlines()
    commit = logged(log, "git", "-C", ROOT, "describe", "--always")
    emulator = logged(log, "qemu-aarch64-static", "--version").splitlines()[0]
    [described] = [line for line in printed if line.startswith("{")]
    return [
        f"passed {datetime.date.today()}, {commit}: {emulator}",
        f"    {described}",
        f"    pytest {TESTS}:",
        f"    {printed[-1]}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torch", help="its version")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    emulated()
    with (FOLDER / "aarch64.log").open("w+") as log:
        prepare(options.torch, log)
        build(log)
        lines = tried(log)
    RESULT.write_text(
        "make aarch64-package: the package under emulation\n\n" + "\n".join(lines) + "\n"
    )
    print(RESULT.read_text(), end="")


if __name__ == "__main__":
    main()
