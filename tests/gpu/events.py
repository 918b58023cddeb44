"""What a stage found, as lines of JSON in a file that the session names.

Written line by line: a stage that is killed at its limit has told what it knew.
"""

import json
import os
from pathlib import Path

VARIABLE = "TORCH_EXT_GPU_EVENTS"  # the file; without it nothing is written

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def emit(kind, **fields):
    """Adds one event: an `outcome`, a `fact` about the machine or a `row` of the benchmark."""
    if file := os.environ.get(VARIABLE):
        with open(file, "a") as stream:
            stream.write(json.dumps({"kind": kind, **fields}) + "\n")


def outcome(test, result, reason=""):
    """One test: passed, failed or skipped, and why."""
    emit("outcome", test=test, result=result, reason=reason)


def fact(name, value):
    emit("fact", name=name, value=value)


def row(**fields):
    emit("row", **fields)


def read(file):
    """All events; the last line of a killed process may be half a one."""
    path = Path(file)
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
