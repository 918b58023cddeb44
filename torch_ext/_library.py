"""Loads the native libraries, and only into the torch that they were built for.

A C++ extension is compiled against one minor version of torch. With another version the result is
an undefined symbol at best and a crash at worst. So the build records in `_build.json` what it was
made for, and this file is read before anything is loaded.
"""

import ctypes
import importlib
import importlib.machinery
import json
import os
import struct
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).parent
LIBRARY = PACKAGE / "lib" / "libtorch_ext.so"

_BUILD = (
    "`make build` in a source tree that is used in place, else "
    "`pip install --no-build-isolation --no-deps .` in the source tree"
)


def load() -> str:
    """Loads both libraries into the process and returns the version of this build.

    Raises ImportError, with the remedy, if they are missing, broken, or made for another torch.
    """
    built = _read_build()
    _check_torch(built)
    _check_files()
    _check_other_copies()
    try:
        torch.ops.load_library(str(LIBRARY))  # type: ignore[no-untyped-call]
        importlib.import_module("torch_ext._C")
    except Exception as error:
        # torch's own message only repeats the path; the cause says what is wrong with the file.
        raise _import_error(
            f"the native library of torch_ext does not load: {error.__cause__ or error}. "
            f"Build it again: {_BUILD}."
        ) from error
    return str(built["version"])


def _read_build() -> dict[str, Any]:
    path = PACKAGE / "_build.json"
    try:
        built = json.loads(path.read_text(encoding="utf-8"))
        return {key: built[key] for key in ("version", "torch", "cuda")}
    except FileNotFoundError:
        raise _not_built(path) from None
    except (ValueError, LookupError, TypeError) as error:
        raise _import_error(
            f"{path} of torch_ext is damaged: {error!r}. Build it again: {_BUILD}."
        ) from error


def _check_torch(built: dict[str, Any]) -> None:
    this, found = f"torch_ext {built['version']}", f"torch {torch.__version__}"
    minor = ".".join(torch.__version__.split(".")[:2])
    if minor != built["torch"]:
        raise _import_error(
            f"{this} was built for torch {built['torch']}, but {found} is installed. "
            f"Either build torch_ext for torch {minor} ({_BUILD}), or install the torch that "
            f'it was built for (`pip install "torch=={built["torch"]}.*"`).'
        )
    if built["cuda"] is not None:
        # Minor versions of the CUDA runtime are compatible with each other, major versions are not.
        major, running = built["cuda"].split(".")[0], torch.version.cuda
        if running is None or running.split(".")[0] != major:
            has = "has no CUDA" if running is None else f"was built with CUDA {running}"
            raise _import_error(
                f"{this} was built with CUDA {built['cuda']}, but the installed {found} {has}. "
                f"Either build torch_ext for this torch ({_BUILD}), or install a torch "
                f"{built['torch']} for CUDA {major}."
            )


def _check_files() -> None:
    modules = [PACKAGE / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    if not LIBRARY.is_file():
        raise _not_built(LIBRARY)
    if not any(module.is_file() for module in modules):
        if others := sorted(path.name for path in PACKAGE.glob("_C.*.so")):
            raise _import_error(
                f"torch_ext was built for another Python: there is {', '.join(others)}, and this "
                f"one needs {modules[0].name}. Build it with this one: {_BUILD}."
            )
        raise _not_built(modules[0])
    if _is_truncated(LIBRARY):
        raise _import_error(
            f"the native library of torch_ext does not load: {LIBRARY} is not whole. "
            f"Build it again: {_BUILD}."
        )


def _is_truncated(path: Path) -> bool:
    """Whether an ELF file ends before its last part: loading it would end the process (SIGBUS)."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False  # the loader refuses it, and says why
    (sections,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return bool(path.stat().st_size < sections + size * count)


def _check_other_copies() -> None:
    """A second definition of the operators would end the process: PyTorch has one of each name."""
    if not torch._C._jit_get_schemas_for_operator("torch_ext::prelu"):
        return
    try:
        ctypes.CDLL(str(LIBRARY), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        raise _import_error(
            f"another copy of torch_ext is loaded in this process already; {LIBRARY} cannot be "
            f"loaded beside it. Import torch_ext from one place."
        ) from None


def _not_built(missing: Path) -> ImportError:
    return _import_error(f"torch_ext is not built: there is no {missing}. Build it: {_BUILD}.")


def _import_error(message: str) -> ImportError:
    return ImportError(message, name="torch_ext")
