"""Plants a fault of cuda_faults.py in a copy of the sources, and runs the check that has to find it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


class NotPlanted(Exception):
    """A text to replace is not in its file exactly once: the table is out of date."""


def run(check, folder, fault=None):
    """Runs the check's commands on a copy of the sources in `folder`, with the fault if there is one.

    Returns what the first command that failed said, or None if all of them passed.
    """
    for part in check.folders:
        shutil.copytree(ROOT / part, folder / part)
    if fault is not None:
        replace(folder / fault.file, fault.old, fault.new)
    torch_root = Path(torch.__file__).parent
    names = {
        "cxx": os.environ.get("CXX", "c++") + " -std=c++20",
        "headers": f"-isystem {torch_root}/include",
        "libraries": f"-lgtest_main -lgtest {torch_root}/lib/libc10.so -Wl,-rpath,{torch_root}/lib -pthread",
    }
    for command in check.commands:
        done = subprocess.run(
            command.format_map(names),
            shell=True,
            check=False,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            return done.stdout
    return None


def problem_of(fault, said):
    """Why the fault does not count as found, given what run() returned; None if it does."""
    if said is None:
        return f"{fault.name}: nothing found it"
    if re.search(fault.finding, said) is None:
        return f"{fault.name}: something failed, but not with {fault.finding!r}:\n{said[-3000:]}"
    return None


def replaced(path, old, new):
    """The file's text with `new` in the place of `old`, which has to be there once."""
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise NotPlanted(f"{text.count(old)} times in {path}: {old!r}")
    return text.replace(old, new)


def replace(path, old, new):
    path.write_text(replaced(path, old, new), encoding="utf-8")
