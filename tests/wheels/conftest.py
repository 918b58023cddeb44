"""What is built and installed, for tests that look at it from outside. `make check-package` runs them.

TORCH_EXT_DIST names the folder with the source distribution and the wheel that was built from it.
No test here sees the source tree's own package: programs run elsewhere and without PYTHONPATH.
"""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from programs import ROOT, Environment, output_of


@pytest.fixture(scope="session")
def dist():
    return Path(os.environ["TORCH_EXT_DIST"])


@pytest.fixture(scope="session")
def sdist(dist):
    [path] = dist.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(dist):
    [path] = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """The wheel, installed in a folder with spaces in its name."""
    environment = Environment(tmp_path_factory.mktemp("wheel installed here"))
    environment.pip("install", "-q", "--no-index", "--no-deps", wheel)
    return environment


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A copy of the source tree, without what was built in it."""
    folder = tmp_path_factory.mktemp("source tree")
    for name in output_of("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    output_of("git", "init", "-q", cwd=folder)  # else `git describe` tells of a tree above
    return folder
