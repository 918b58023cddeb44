"""Finds the PyTorch to build for without importing it, which takes seconds and all its dependencies."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

MINORS = range(11, 16)  # of torch 2: the versions that the sources support
SUPPORTED = f"torch>=2.{MINORS.start},<2.{MINORS.stop}"


class Torch(NamedTuple):
    root: Path  # site-packages/torch
    version: str  # "2.15.0+cu130"
    cuda: str | None  # "13.0"

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def is_supported(self) -> bool:
        return self.minor in {f"2.{minor}" for minor in MINORS}


def find_torch() -> Torch | None:
    """The torch in TORCH_EXT_TORCH_ROOT, else the one that this interpreter would import."""
    if root := os.environ.get("TORCH_EXT_TORCH_ROOT"):
        return _read(Path(root)) or sys.exit(
            f"torch_ext: TORCH_EXT_TORCH_ROOT={root} is no PyTorch: it has no version.py"
            " (expected is <site-packages>/torch)."
        )
    spec = importlib.util.find_spec("torch")
    return _read(Path(spec.origin).parent) if spec and spec.origin else None


def find_torch_outside_isolation() -> Torch | None:
    """The torch of the environment that pip was started in.

    For an isolated build pip runs the same interpreter, but shows it other folders by PYTHONPATH;
    without that it sees what it always sees.
    """
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE")
    result = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')",
        ],
        env={name: value for name, value in os.environ.items() if name not in isolation},
        cwd=sys.prefix,
        capture_output=True,
        text=True,
        check=False,
    )
    origin = result.stdout.strip()
    return _read(Path(origin).parent) if origin else None


def _read(root: Path) -> Torch | None:
    try:
        module = ast.parse((root / "version.py").read_text(encoding="utf-8"))
    except OSError:
        return None
    texts: dict[str, str] = {}
    for statement in module.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            [target] = getattr(statement, "targets", None) or [statement.target]
            if isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
                texts[target.id] = statement.value.value
    return Torch(root.resolve(), texts["__version__"], texts.get("cuda"))
