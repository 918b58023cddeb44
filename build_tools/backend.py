"""setuptools' build backend (PEP 517), which also ensures that there is a torch to build for.

The binary fits one minor version of torch, so it must be built for the version that it will be used
with. If `torch` were among the build requirements, an isolated build would download the newest one,
which takes gigabytes, and build for that. Instead an isolated build uses the torch of the environment
that it installs into, and requires one only if there is none.
"""

import os

from find_torch import SUPPORTED, find_torch, find_torch_outside_isolation
from setuptools import build_meta
from setuptools.build_meta import *

_torch = find_torch() or find_torch_outside_isolation()
if _torch is not None:
    os.environ["TORCH_EXT_TORCH_ROOT"] = str(_torch.root)


def get_requires_for_build_wheel(config_settings=None):
    missing = [] if _torch else [SUPPORTED]
    return build_meta.get_requires_for_build_wheel(config_settings) + missing


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings=None):
    """Nothing. (setuptools would run setup.py to find out, which may refuse the installed torch.)"""
    return []
