"""`make aarch64-package`: the package built and tested in a Debian for aarch64, whose programs an emulator runs.

As root, on Debian. An emulator takes ten times as long, so torch and the tools are unpacked by this machine's pip, and
the tests are those of the values in one process. What came of it: tests/aarch64_result.txt
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from run import DEBOOTSTRAP, FOLDER, IN_CHROOT, ROOT, inside, logged

RESULT = ROOT / "tests" / "aarch64_result.txt"
DEBIAN = FOLDER / "aarch64"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
REGISTRATION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
PYTHON = "3.13"  # trixie's
TOOLS = "setuptools cmake ninja pybind11 packaging numpy pytest hypothesis expecttest"
TAGS = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 40))]
TESTS = (
    "tests/test_prelu_definition.py tests/test_battery_values.py tests/test_flush_denormal.py"
    " tests/test_norm_prelu.py"
)
ENVIRONMENT = IN_CHROOT | {
    "PYTHONPATH": "/source:/packages",
    "PATH": f"/packages/bin:{IN_CHROOT['PATH']}",
}


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
    logged(log, "rm", "-rf", DEBIAN / "source")
    logged(log, "git", "clone", "-q", "--no-hardlinks", ROOT, DEBIAN / "source")


def tried(log):
    """The lines of the result."""

    def run(command):
        return inside(log, DEBIAN, command, ENVIRONMENT)

    run("cd /source && python3 setup.py -q build_ext --inplace")
    described = run("cd / && python3 -m torch_ext.info")
    tests = run(f"cd /source && python3 -m pytest -p no:cacheprovider {TESTS}")
    commit = logged(log, "git", "-C", ROOT, "describe", "--always")
    emulator = logged(log, "qemu-aarch64-static", "--version").splitlines()[0]
    return [
        f"passed {datetime.date.today()}, {commit}: {emulator}",
        *(f"    {line}" for line in described.splitlines()),
        f"    pytest {TESTS}:",
        f"    {tests.splitlines()[-1]}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torch", help="its version")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    emulated()
    with (FOLDER / "aarch64.log").open("w+") as log:
        prepare(options.torch, log)
        lines = tried(log)
    RESULT.write_text(
        "make aarch64-package: the package under emulation\n\n" + "\n".join(lines) + "\n"
    )
    print(RESULT.read_text(), end="")


if __name__ == "__main__":
    main()
