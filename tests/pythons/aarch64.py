"""`make aarch64-package`: the package built and tested in a Debian for aarch64, whose programs an emulator runs.

As root, on Debian. An emulator takes ten times as long, so torch and the tools are unpacked by this machine's pip, and
the tests are those of the values in one process. What came of it: tests/aarch64_result.txt
"""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from run import DEBOOTSTRAP, ENTER, ENVIRONMENT, FOLDER, IN_CHROOT, ROOT

RESULT = ROOT / "tests" / "aarch64_result.txt"
DEBIAN = FOLDER / "aarch64"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
REGISTRATION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
PYTHON = "3.13"  # trixie's
TOOLS = (
    "setuptools",
    "cmake",
    "ninja",
    "pybind11",
    "packaging",
    "numpy",
    "pytest",
    "hypothesis",
    "expecttest",
)
PLATFORMS = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 40)]
PLATFORMS.append("--platform=manylinux2014_aarch64")
TESTS = (
    "tests/test_prelu_definition.py tests/test_battery_values.py tests/test_flush_denormal.py"
    " tests/test_norm_prelu.py -k 'not larger_than_memory'"
)
IN_DEBIAN = {
    "PYTHONPATH": "/source:/packages",
    "PATH": f"/packages/bin:{IN_CHROOT['PATH']}",
    "HOME": "/root",
    "FORCE_CPU": "1",
}


def emulated() -> None:
    """This kernel starts programs for aarch64."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", BINFMT], check=True)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(REGISTRATION.read_text())


def run(command: str, log) -> str:
    """What a command prints inside; the log has it, too."""
    print("====", command, file=log, flush=True)
    begin = log.tell()
    (FOLDER / "cache").mkdir(exist_ok=True)
    enter = ("unshare", "--mount", "/bin/sh", "-ec", ENTER, DEBIAN, FOLDER / "cache")
    subprocess.run(
        [*enter, command], stdout=log, stderr=log, check=True, env=ENVIRONMENT | IN_DEBIAN
    )
    log.seek(begin)
    return log.read().strip()


def prepared(torch: str, log) -> None:
    """A Debian with the packages; what an earlier run left is used."""
    if not (DEBIAN / "usr" / "bin" / "g++").exists():
        command = [
            *DEBOOTSTRAP[:2],
            f"{DEBOOTSTRAP[2]},python3-dev",
            "--arch=arm64",
            "trixie",
            DEBIAN,
        ]
        subprocess.run(command, stdout=log, stderr=log, check=True)
    if not (DEBIAN / "packages" / "torch").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--target",
            DEBIAN / "packages",
            *PLATFORMS,
        ]
        pip += ["--python-version", PYTHON, "--only-binary=:all:"]
        subprocess.run([*pip, f"torch=={torch}", *TOOLS], stdout=log, stderr=log, check=True)
    subprocess.run(["rm", "-rf", DEBIAN / "source"], check=True)
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, DEBIAN / "source"], check=True)


def tried(torch: str, log) -> list[str]:
    prepared(torch, log)
    run("cd /source && python3 setup.py -q build_ext --inplace", log)
    described = run("cd / && python3 -m torch_ext.info", log)
    tests = run(f"cd /source && python3 -m pytest -p no:cacheprovider {TESTS}", log)
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always"], capture_output=True, text=True, check=True
    ).stdout.strip()
    qemu = subprocess.run(
        ["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True
    )
    return [
        f"passed {datetime.date.today()}, {commit}: {qemu.stdout.splitlines()[0]}",
        *(f"    {line}" for line in described.splitlines()),
        f"    pytest {TESTS}:",
        f"    {tests.splitlines()[-1]}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("torch", help="its version")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    emulated()
    with (FOLDER / "aarch64.log").open("w+") as log:
        lines = tried(options.torch, log)
    RESULT.write_text(
        "make aarch64-package: the package under emulation\n\n" + "\n".join(lines) + "\n"
    )
    print(RESULT.read_text(), end="")


if __name__ == "__main__":
    main()
