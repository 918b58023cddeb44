"""`make pythons`: other Pythons, each in the Debian that has it, in a chroot (so as root, on Debian).

There the Makefile does what it does for a user: `make wheel PYTHON=python3` builds the wheel of this commit. It is
installed, the contract is run on it, and then what one Python has built meets another one.

    make pythons PYTHONS="trixie"    in this Debian; the other lines of tests/pythons_result.txt stay
    make pythons PYTHONS="--keep"    the systems and downloads stay, for the next time (10 GB each)
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "pythons_result.txt"
FOLDER = ROOT / "build" / "pythons"
SUITES = (
    "trixie",
    "sid",
)  # bookworm has the 3.11 of CI; Debian before it, no Python that torch supports
UNTESTED = "Not tested, because no Debian has them: Python 3.10, 3.12"
PACKAGES = "python3,python3-venv,python3-dev,g++,make,git,binutils,ca-certificates"
TESTS = "-m 'contract and not full'"
ENVIRONMENT = {"FORCE_CPU": "1", "LC_ALL": "C.UTF-8", "HOME": "/root", "PIP_CACHE_DIR": "/cache"}
ENVIRONMENT |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OMP_WAIT_POLICY": "passive"}
NOT_THERE = ("PYTHONPATH", "TORCH_EXT_BUILD_DIR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
# As this machine reaches the package index.
NETWORK = ("resolv.conf", "hosts", "pip.conf", "ssl/certs/ca-certificates.crt")

# (The mounts end with the process.)
ENTER = """
for name in proc sys dev dev/shm; do mount --bind /$name "$0/$name"; done
mkdir -p "$0/cache"; mount --bind "$1" "$0/cache"
exec chroot "$0" /bin/sh -ec "$2"
"""

# In /host is the package that this machine's Python has built.
FOREIGN = """
import sys, torch
torch.ops.load_library("/host/torch_ext/lib/libtorch_ext.so")
x = torch.tensor([-2.0, 3.0], requires_grad=True)
torch.ops.torch_ext.prelu(x, torch.tensor([0.25])).sum().backward()
assert x.grad.tolist() == [0.25, 1.0]
sys.path.insert(0, "/host")
try:
    import torch_ext
except ImportError as error:
    assert "built for another Python" in str(error), error
    print(torch.__version__, error, sep="\\n")
"""


class System:
    """A Debian with a clone of this tree in /source."""

    def __init__(self, suite, log):
        self.root, self.log = FOLDER / suite, log
        if not (self.root / "ready").exists():
            self.remove()
            self.here("debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, self.root)
            (self.root / "ready").touch()
        for name in NETWORK:
            if Path("/etc", name).exists():
                shutil.copy(Path("/etc", name), self.root / "etc" / name)
        for name in ("source", "host"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        self.here("git", "clone", "-q", "--no-hardlinks", ROOT, self.root / "source")
        shutil.copytree(ROOT / "torch_ext", self.root / "host" / "torch_ext")

    def here(self, *command, **options):
        """What it prints; the log has it, too."""
        print("====", *command, file=self.log, flush=True)
        begin = self.log.tell()
        subprocess.run(command, stdout=self.log, stderr=self.log, check=True, **options)
        self.log.seek(begin)
        return self.log.read()

    def run(self, command):
        cache = FOLDER / "cache"
        cache.mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if name not in NOT_THERE}
        enter = ("unshare", "--mount", "/bin/sh", "-ec", ENTER, self.root, cache, command)
        return self.here(*enter, env=environment | ENVIRONMENT)

    def remove(self):
        subprocess.run(["rm", "-rf", "--one-file-system", self.root], check=True)


def tried(system):
    """The lines of the table about a system's Python."""
    python = "/venv/bin/python"
    version = system.run("python3 -c 'import platform; print(platform.python_version())'").strip()
    system.run("cd /source && make wheel PYTHON=python3 VENV=/venv")
    [wheel] = (system.root / "source" / "dist").glob("*.whl")
    tag = "cp" + "".join(version.split(".")[:2])
    assert f"-{tag}-{tag}-linux_" in wheel.name, wheel
    pip = ("-m", "pip", "install", "--no-deps", "--no-index")
    refused = subprocess.run(
        [sys.executable, *pip, "--dry-run", wheel], check=False, capture_output=True, text=True
    )
    assert refused.returncode and "is not a supported wheel" in refused.stderr, refused
    system.run(f"{python} {' '.join(pip)} --force-reinstall /source/dist/*.whl")
    (system.root / "foreign.py").write_text(FOREIGN)
    torch, message = system.run(f"{python} /foreign.py").splitlines()[-2:]
    pytest = (
        f"{python} -m pytest -n 2 --dist loadfile -p no:cacheprovider -c /source/pyproject.toml"
    )
    said = system.run(f"cd / && {pytest} {TESTS} /source/tests")
    commit = system.run("git -C /source describe --always").strip()
    return [
        f"passed {datetime.date.today()}, {commit}: Python {version}, torch {torch}",
        f"    {wheel.name}",
        f"    pytest {TESTS}: {re.findall(r'.*passed.* in .*', said)[-1]}",
        f"    by Python {sys.version.split()[0]}: {refused.stderr.strip().splitlines()[-1]}",
        f"    of Python {sys.version.split()[0]}: libtorch_ext.so works; {message}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", default=SUITES, help="of Debian")
    parser.add_argument("--keep", action="store_true", help="the systems, for the next time")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = RESULT.read_text() if RESULT.exists() else ""
    found = dict(re.findall(r"^(\w+): (.*\n(?: .*\n)*)", text, re.MULTILINE))
    failed = []
    for suite in options.suites:
        with (FOLDER / f"{suite}.log").open("w+") as log:
            try:
                system = System(suite, log)
                lines = tried(system)
            except (subprocess.CalledProcessError, AssertionError) as error:
                failed.append(suite)
                lines = [f"FAILED {datetime.date.today()}: {str(error)[:300]}"]
        found[suite] = "\n".join(lines) + "\n"
        table = [f"{name}: {text}" for name, text in found.items()]
        RESULT.write_text("\n".join(["make pythons: Debian's Pythons\n", *table, UNTESTED]) + "\n")
        print(f"{suite}: {found[suite]}", flush=True)
        if not options.keep:
            system.remove()
    if not options.keep:
        shutil.rmtree(FOLDER / "cache", ignore_errors=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
