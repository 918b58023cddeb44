"""`make pythons`: the wheel and the contract with other Pythons than that of CI.

A Python that is installed here is used as it is, another one from Debian's sid in a chroot (so as root, on Debian). The
Makefile does what it does for a user: `make wheel PYTHON=...` builds the wheel of this commit. It is installed, the
contract is run on it, and then what one Python has built meets another one.

    make pythons PYTHONS="3.13"      this one; the other lines of tests/pythons_result.txt stay
    make pythons PYTHONS="--keep"    what was made stays, for the next time (6 GB for each Python)
"""

import argparse
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tests" / "pythons_result.txt"
FOLDER = ROOT / "build" / "pythons"
PYTHONS = ("3.10", "3.12", "3.13", "3.14", "3.15", "3.13t")  # 3.11 is that of CI
# The newest that has this Python; else the one of the Makefile.
NEWEST_TORCH = {"3.10": "2.14.1", "3.13t": "2.12.0"}
IN_DEBIAN = ("3.13", "3.14", "3.15", "3.13t")  # the last as a source
TESTS = "-m 'contract and not full'"
NOT_THERE = ("PYTHONPATH", "TORCH_EXT_BUILD_DIR", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "VENV")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in NOT_THERE}
ENVIRONMENT |= {"FORCE_CPU": "1", "LC_ALL": "C.UTF-8", "OMP_WAIT_POLICY": "passive"}
IN_CHROOT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
IN_CHROOT |= {"HOME": "/root", "PIP_CACHE_DIR": "/cache"}

# The chroot reaches the package index as this machine does. (The mounts end with the process.)
ENTER = """
mkdir -p "$0/cache"; mount --bind "$1" "$0/cache"
for name in proc sys dev dev/shm etc/hosts etc/resolv.conf etc/ssl/certs; do
  test -d "/$name" || touch "$0/$name"; mount --bind "/$name" "$0/$name"
done
exec chroot "$0" /bin/sh -ec "$2"
"""
DEBOOTSTRAP = ("debootstrap", "--variant=minbase", "--include=python3,g++,make,git,ca-certificates")
PREPARE = """
echo 'Acquire::Check-Valid-Until "false";' > /etc/apt/apt.conf.d/old-mirror
sed 's/^deb /deb-src /; s/ sid / trixie /' /etc/apt/sources.list > /etc/apt/sources.list.d/sources.list
apt-get update -qq
"""
INSTALL = "apt-get install -y -qq --no-install-recommends "
BINARY = INSTALL + "python{0} python{0}-venv python{0}-dev"
# (-O1: it compiles in a third of the time.)
FREE_THREADED = f"""
command -v python3.13t && exit
{INSTALL} dpkg-dev pkgconf libssl-dev zlib1g-dev libffi-dev libbz2-dev liblzma-dev libsqlite3-dev
mkdir -p /usr/src/python && cd /usr/src/python && apt-get source -qq --download-only python3.13 && tar -xf python3.13_*.orig.tar.xz && cd Python-3.13*/
CFLAGS=-O1 ./configure -q --disable-gil --disable-test-modules
make -s -j${{MAX_JOBS:-2}} && make -s altinstall
"""

# Not the pinned versions, but the newest that have a wheel for it, and no more than the tests use. (The Makefile leaves
# an environment that has what it needs.)
FREE_THREADED_TOOLS = """
{python} -m venv {venv}
sed 's/[=;].*//; /^#/d; /^mypy/d; /^ruff/d; /^clang-format/d' {source}/tests/requirements.txt | sort -u > /tmp/tools
{venv}/bin/pip install -q --only-binary=:all: torch=={torch} -r /tmp/tools
"""

# Its argument is a folder with the package that this machine's Python has built.
FOREIGN = """
import sys, torch
torch.ops.load_library(f"{sys.argv[1]}/torch_ext/lib/libtorch_ext.so")
x = torch.tensor([-2.0, 3.0], requires_grad=True)
torch.ops.torch_ext.prelu(x, torch.tensor([0.25])).sum().backward()
assert x.grad.tolist() == [0.25, 1.0]
sys.path.insert(0, sys.argv[1])
try:
    import torch_ext
except ImportError as error:
    assert "built for another Python" in str(error), error
    print(f"libtorch_ext.so works; {error}")
"""


def installed(name):
    """The path of this Python, if this machine has it whole."""
    paths = [
        shutil.which(f"python{name}"),
        *Path.home().glob(f".pyenv/versions/{name}.*/bin/python"),
    ]
    for path in filter(None, paths):
        if not subprocess.call([path, "-c", "import ensurepip"], stderr=subprocess.DEVNULL):
            return path
    return None


def logged(log, *command, **options):
    """What a command prints; the log has it, too."""
    print("====", *command, file=log, flush=True)
    begin = log.tell()
    subprocess.run(command, stdout=log, stderr=log, check=True, **options)
    log.seek(begin)
    return log.read().strip()


def inside(log, debian, command, environment):
    """What a shell command prints in a Debian."""
    (FOLDER / "cache").mkdir(exist_ok=True)
    enter = ("unshare", "--mount", "/bin/sh", "-ec", ENTER, debian, FOLDER / "cache")
    return logged(log, *enter, command, env=ENVIRONMENT | environment)


class Place:
    """Where a Python is tried: a folder of this machine, or a Debian; from inside, the folder is `path`."""

    def __init__(self, name, log):
        self.log, self.python = log, installed(name)
        self.is_debian = self.python is None
        self.folder = FOLDER / ("sid" if self.is_debian else name)
        self.path = "" if self.is_debian else self.folder
        if self.is_debian:
            self.python, ready = f"python{name}", self.folder / "ready"
            if not ready.exists():
                self.here(*DEBOOTSTRAP, "sid", self.folder)
                self.run(PREPARE)
                ready.touch()
            self.run(FREE_THREADED if name.endswith("t") else BINARY.format(name))
        for each in ("source", "host"):
            shutil.rmtree(self.folder / each, ignore_errors=True)
        self.here("git", "clone", "-q", "--no-hardlinks", ROOT, self.folder / "source")
        shutil.copytree(ROOT / "torch_ext", self.folder / "host" / "torch_ext")
        (self.folder / "foreign.py").write_text(FOREIGN)

    def here(self, *command, **options):
        return logged(self.log, *command, **options)

    def run(self, command):
        if not self.is_debian:
            return self.here("/bin/sh", "-ec", command, env=ENVIRONMENT)
        return inside(self.log, self.folder, command, IN_CHROOT)


def tried(name, log):
    """The lines of the table about a Python."""
    place = Place(name, log)
    path, venv, source = place.path, f"{place.path}/venv-{name}", f"{place.path}/source"
    python, torch = f"{venv}/bin/python", NEWEST_TORCH.get(name)
    version = f"TORCH_VERSION={torch}" if torch else ""
    if name.endswith("t"):
        given = {"python": place.python, "venv": venv, "source": source, "torch": torch}
        place.run(FREE_THREADED_TOOLS.format(**given))
    place.run(f"cd {source} && make wheel PYTHON={place.python} VENV={venv} {version}")
    [wheel] = (place.folder / "source" / "dist").glob("*.whl")
    tag = "cp" + name.replace(".", "")
    assert f"-{tag.rstrip('t')}-{tag}-linux_" in wheel.name, wheel
    pip = "-m pip install --no-deps --no-index"
    here = [sys.executable, *pip.split(), "--dry-run", wheel]
    refused = subprocess.run(here, check=False, capture_output=True, text=True)
    assert refused.returncode and "is not a supported wheel" in refused.stderr, refused
    place.run(f"{python} {pip} --force-reinstall {source}/dist/*.whl")
    said = "" if torch else place.run(f"{python} {path}/foreign.py {path}/host").splitlines()[-1]
    options = f"-n 2 --dist loadfile -p no:cacheprovider -c {source}/pyproject.toml"
    tests = place.run(f"cd {path}/ && {python} -m pytest {options} {TESTS} {source}/tests")
    commit = place.run(f"git -C {source} describe --always")
    what = "platform.python_version(), 'torch', importlib.metadata.version('torch')"
    found = place.run(f'{python} -c "import importlib.metadata, platform; print({what})"')
    return [
        f"passed {datetime.date.today()}, {commit}: Python {found}{', sid' * place.is_debian}",
        f"    {wheel.name}",
        f"    pytest {TESTS}: {re.findall(r'.*passed.* in .*', tests)[-1]}",
        f"    in {platform.python_version()}: {refused.stderr.strip().splitlines()[-1]}",
        f"    what {platform.python_version()} has built: {said or 'of another torch, not tried'}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=PYTHONS, help=", ".join(PYTHONS))
    parser.add_argument("--keep", action="store_true", help="what was made, for the next time")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = RESULT.read_text() if RESULT.exists() else ""
    found = dict(re.findall(r"^([\d.]+t?) +(.*\n(?: .*\n)*)", text, re.MULTILINE))
    failed = False
    for name in options.pythons:
        lines = ["not tested: neither installed here nor in Debian"]
        if name in IN_DEBIAN or installed(name):
            with (FOLDER / f"{name}.log").open("w+") as log:
                try:
                    lines = tried(name, log)
                except (subprocess.CalledProcessError, AssertionError) as error:
                    failed, lines = True, [f"FAILED {datetime.date.today()}: {str(error)[-300:]}"]
        found[name] = "\n".join(lines) + "\n"
        rows = [f"{each} {found[each]}" for each in PYTHONS if each in found]
        RESULT.write_text("make pythons: Pythons beside the 3.11 of CI\n\n" + "".join(rows))
        print(name, found[name], flush=True)
    if not options.keep:
        folders = filter(Path.is_dir, FOLDER.iterdir())  # the logs stay
        subprocess.run(["rm", "-rf", "--one-file-system", *folders], check=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
