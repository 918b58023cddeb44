"""`python -m torch_ext.info`: what was built, what it runs on, and the settings. For bug reports."""

import os
import platform

import torch

import torch_ext
from torch_ext import _C, _library, inductor


def describe() -> str:
    """All of it as text."""
    build = torch_ext.build_info()
    sections: dict[str, dict[str, object]] = {
        f"torch_ext {build['version']}": {
            "built for torch": build["torch"],
            "built with CUDA": build["cuda"],
            "CUDA architectures": build["archs"],
            "CPU capabilities": build["cpu_capabilities"],
            "of these in use": _C.instruction_set(),
            "OpenMP": build["openmp"],
            "git commit": build["git"],
            "library": _library.LIBRARY,
            "cmake_prefix_path": torch_ext.cmake_prefix_path,
        },
        f"torch {torch.__version__}": {
            "built with CUDA": torch.version.cuda,
            "CUDA available": torch.cuda.is_available(),
            "CPU capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "Python": f"{platform.python_version()} on {platform.platform()}",
        },
        "knobs": {
            "TORCH_EXT_HUGE_PAGES": _knob("TORCH_EXT_HUGE_PAGES", _C.huge_pages()),
            "TORCH_EXT_NT_STORES": _knob("TORCH_EXT_NT_STORES", _C.nt_stores()),
            "TORCH_EXT_COMPILE": _knob("TORCH_EXT_COMPILE", inductor.compile_policy()),
        },
    }
    lines = []
    for title, entries in sections.items():
        lines += [title, *(f"  {name:22} {_show(value)}" for name, value in entries.items())]
    return "\n".join(lines)


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _knob(variable: str, state: bool | str) -> str:
    setting = f"set to {os.environ[variable]}" if variable in os.environ else "not set"
    in_words = state if isinstance(state, str) else "on" if state else "off"
    return f"{in_words} ({setting})"


if __name__ == "__main__":
    print(describe())
