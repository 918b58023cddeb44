"""Programs in environments of their own, and what they print."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TORCH = Path(torch.__file__).parent
TORCH_MINOR = ".".join(torch.__version__.split(".")[:2])


def clean_environment(**changes):
    dropped = ("PYTHONPATH", "LD_LIBRARY_PATH", "CMAKE_GENERATOR", "TORCH_EXT_BUILD_DIR")
    return {**{k: v for k, v in os.environ.items() if k not in dropped}, **changes}


def _run(*command, cwd=None, **environment):
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**environment),
        check=False,
        capture_output=True,
        text=True,
    )


def output_of(*command, **options):
    result = _run(*command, **options)
    assert result.returncode == 0, f"{command}:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def error_of(*command, **options):
    result = _run(*command, **options)
    assert result.returncode != 0, result.stdout
    return result.stdout + result.stderr


class Environment:
    """A virtual environment that has this one's torch, by links, and nothing of torch_ext."""

    def __init__(self, folder):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        [self.packages] = folder.glob("lib/python*/site-packages")
        # torch beside torch_ext, as pip leaves them; what torch needs comes from where it is.
        (self.packages / "torch").symlink_to(TORCH)
        (self.packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def pip(self, *arguments, **environment):
        return output_of(
            *(sys.executable, "-m", "pip", "--python", self.python, *arguments),
            cwd=self.folder,
            **environment,
        )

    def run(self, program, **environment):
        return output_of(self.python, "-c", program, cwd=self.folder, **environment)
