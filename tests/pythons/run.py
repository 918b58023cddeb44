"""`make pythons`: the wheel and the contract with other Pythons than that of CI.

A Python that is installed here is used as it is; of the others, those of Debian's sid, in a chroot (so as root, on
Debian). The Makefile does there what it does for a user: `make wheel PYTHON=...` builds the wheel of this commit. It is
installed, the contract is run on it, and then what one Python has built meets another one.

    make pythons PYTHONS="3.13"      this one; the other lines of tests/pythons_result.txt stay
    make pythons PYTHONS="--keep"    systems, environments and downloads stay, for the next time (6 GB for each)
"""

import argparse
import datetime
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "pythons_result.txt"
FOLDER = ROOT / "build" / "pythons"
# By Python, the newest torch that has it.
PYTHONS = {"3.10": "2.14.1", "3.12": "2.15.0"}
OF_DEBIAN = {"3.13": "2.15.0", "3.14": "2.15.0", "3.15": "2.15.0", "3.14t": "2.15.0"}
PYTHONS |= OF_DEBIAN
TESTS = "-m 'contract and not full'"
ENVIRONMENT = {"FORCE_CPU": "1", "LC_ALL": "C.UTF-8", "OMP_WAIT_POLICY": "passive"}
NOT_THERE = ("PYTHONPATH", "TORCH_EXT_BUILD_DIR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
IN_CHROOT = {"HOME": "/root", "PIP_CACHE_DIR": "/cache"}
IN_CHROOT["PATH"] = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# As this machine reaches the package index. (The mounts end with the process.)
ENTER = """
mkdir -p "$0/cache"; mount --bind "$1" "$0/cache"
for name in proc sys dev dev/shm etc/hosts etc/resolv.conf etc/ssl/certs; do
  test -d "/$name" || touch "$0/$name"; mount --bind "/$name" "$0/$name"
done
exec chroot "$0" /bin/sh -ec "$2"
"""
INSTALL = "apt-get install -y -qq --no-install-recommends "
PREPARE = """
echo 'Acquire::Check-Valid-Until "false";' > /etc/apt/apt.conf.d/old-mirror
sed 's/^deb /deb-src /' /etc/apt/sources.list > /etc/apt/sources.list.d/sources.list
apt-get update -qq
"""
# Debian has a free-threaded Python as a source only. (-O1: it compiles in a third of the time.)
COMPILE = f"""
{INSTALL} dpkg-dev pkgconf libssl-dev zlib1g-dev libffi-dev libbz2-dev liblzma-dev libsqlite3-dev
mkdir -p /usr/src/python && cd /usr/src/python && apt-get source -qq python3.14 && cd python3.14-*/
CFLAGS=-O1 ./configure -q --disable-gil --disable-test-modules
make -s -j${{MAX_JOBS:-2}} && make -s altinstall
"""

# In `host` is the package that this machine's Python has built.
FOREIGN = """
import sys, torch
host = sys.argv[1]
torch.ops.load_library(f"{host}/torch_ext/lib/libtorch_ext.so")
x = torch.tensor([-2.0, 3.0], requires_grad=True)
torch.ops.torch_ext.prelu(x, torch.tensor([0.25])).sum().backward()
assert x.grad.tolist() == [0.25, 1.0]
sys.path.insert(0, host)
try:
    import torch_ext
except ImportError as error:
    assert "built for another Python" in str(error), error
    print(error)
"""


def installed(name):
    """The path of this Python, if this machine has it."""
    paths = [shutil.which(f"python{name}")]
    paths += Path.home().glob(f".pyenv/versions/{name}.*/bin/python")

    def works(path):
        command = [path, "-c", "import ensurepip"]
        return not subprocess.run(command, check=False, capture_output=True).returncode

    return next((path for path in paths if path and works(path)), None)


class Place:
    """Where a Python is tried: a folder here, or a Debian; `path` is the folder as seen from inside."""

    def __init__(self, name, log):
        self.log, self.python = log, installed(name)
        self.debian = self.python is None
        self.folder = FOLDER / ("sid" if self.debian else name)
        self.path = Path("/") if self.debian else self.folder
        if self.debian:
            self.python = f"python{name}"
            self.install(name)
        for each in ("source", "host"):
            shutil.rmtree(self.folder / each, ignore_errors=True)
        self.here("git", "clone", "-q", "--no-hardlinks", ROOT, self.folder / "source")
        shutil.copytree(ROOT / "torch_ext", self.folder / "host" / "torch_ext")

    def install(self, name):
        if not (self.folder / "ready").exists():
            packages = "--include=python3,g++,make,git,ca-certificates"
            self.here("debootstrap", "--variant=minbase", packages, "sid", self.folder)
            self.run(PREPARE)
            (self.folder / "ready").touch()
        if not name.endswith("t"):
            self.run(INSTALL + " ".join(f"python{name}{part}" for part in ("", "-venv", "-dev")))
        elif not (self.folder / "usr/local/bin" / f"python{name}").exists():
            self.run(COMPILE)

    def here(self, *command, **options):
        """What it prints; the log has it, too."""
        print("====", *command, file=self.log, flush=True)
        begin = self.log.tell()
        subprocess.run(command, stdout=self.log, stderr=self.log, check=True, **options)
        self.log.seek(begin)
        return self.log.read()

    def run(self, command):
        environment = {name: value for name, value in os.environ.items() if name not in NOT_THERE}
        environment |= ENVIRONMENT
        if not self.debian:
            return self.here("/bin/sh", "-ec", command, env=environment)
        cache = FOLDER / "cache"
        cache.mkdir(exist_ok=True)
        enter = ("unshare", "--mount", "/bin/sh", "-ec", ENTER, self.folder, cache, command)
        return self.here(*enter, env=environment | IN_CHROOT)


def tried(name, log):
    """The lines of the table about a Python."""
    place = Place(name, log)
    venv, source = place.path / f"venv-{name}", place.path / "source"
    python = f"{venv}/bin/python"
    choice = f"PYTHON={place.python} VENV={venv} TORCH_VERSION={PYTHONS[name]}"
    place.run(f"cd {source} && make wheel {choice}")
    [wheel] = (place.folder / "source" / "dist").glob("*.whl")
    tag = "cp" + name.replace(".", "")
    assert f"-{tag.rstrip('t')}-{tag}-linux_" in wheel.name, wheel
    pip = ("-m", "pip", "install", "--no-deps", "--no-index")
    refused = subprocess.run(
        [sys.executable, *pip, "--dry-run", wheel], check=False, capture_output=True, text=True
    )
    assert refused.returncode and "is not a supported wheel" in refused.stderr, refused
    place.run(f"{python} {' '.join(pip)} --force-reinstall {source}/dist/*.whl")
    (place.folder / "foreign.py").write_text(FOREIGN)
    here, foreign = f"Python {sys.version.split()[0]}", "of another torch, not tried"
    if PYTHONS[name] == importlib.metadata.version("torch").partition("+")[0]:
        said = place.run(f"{python} {place.path}/foreign.py {place.path}/host").strip()
        foreign = f"libtorch_ext.so works; {said.splitlines()[-1]}"
    options = f"-n 2 --dist loadfile -p no:cacheprovider -c {source}/pyproject.toml"
    said = place.run(f"cd {place.path} && {python} -m pytest {options} {TESTS} {source}/tests")
    commit = place.run(f"git -C {source} describe --always").strip()
    version = place.run(f"{python} -c 'import platform; print(platform.python_version())'").strip()
    where = " of Debian" if place.debian else ""
    return [
        f"passed {datetime.date.today()}, {commit}: Python {version}{where}, torch {PYTHONS[name]}",
        f"    {wheel.name}",
        f"    pytest {TESTS}: {re.findall(r'.*passed.* in .*', said)[-1]}",
        f"    what {here} says to it: {refused.stderr.strip().splitlines()[-1]}",
        f"    what {here} has built: {foreign}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=[*PYTHONS], help=", ".join(PYTHONS))
    parser.add_argument("--keep", action="store_true", help="what was made, for the next time")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = RESULT.read_text() if RESULT.exists() else ""
    found = dict(re.findall(r"^([\d.]+t?) +(.*\n(?: .*\n)*)", text, re.MULTILINE))
    failed = False
    for name in options.pythons:
        with (FOLDER / f"{name}.log").open("w+") as log:
            try:
                if not installed(name) and name not in OF_DEBIAN:
                    lines = ["not tested: neither installed here nor in any Debian"]
                else:
                    lines = tried(name, log)
            except (subprocess.CalledProcessError, AssertionError) as error:
                failed, lines = True, [f"FAILED {datetime.date.today()}: {str(error)[-300:]}"]
        found[name] = "\n".join(lines) + "\n"
        rows = [f"{each} {found.get(each, 'not run' + chr(10))}" for each in PYTHONS]
        RESULT.write_text("make pythons: Pythons beside the 3.11 of CI\n\n" + "".join(rows))
        print(name, found[name], flush=True)
        if not options.keep:
            subprocess.run(["rm", "-rf", "--one-file-system", FOLDER / name], check=True)
    if not options.keep:
        subprocess.run(["rm", "-rf", "--one-file-system", FOLDER], check=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
