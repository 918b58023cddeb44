"""Runs one stage: a process of its own, with a time limit, a log and a file of events."""

import importlib.util
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from gpu import events, results
from gpu.results import ROOT, StageResult

CUDA_TOOLS = "/usr/local/cuda/bin"  # where they are, if PATH does not say
TAIL = 6000  # characters of a failed stage's log that the record keeps


def environment(stage, setting, events_file):
    added = stage.environment(setting) if stage.environment else {}
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), CUDA_TOOLS]),
        "PYTHONUNBUFFERED": "1",
        events.VARIABLE: str(events_file),
        **added,
    }


def missing_module(stage):
    return next((name for name in stage.needs if importlib.util.find_spec(name) is None), None)


def run(stage, setting, limit, log):
    """Its result and its other events; the log gets all that it printed.

    Never raises for what a stage does: a command that cannot be started is a failed stage.
    """
    if module := missing_module(stage):
        return StageResult(results.SKIPPED, reason=f"{module} is not installed"), []
    with tempfile.TemporaryDirectory() as folder:
        events_file = Path(folder) / "events.jsonl"
        output_file = Path(folder) / "output"
        began = time.monotonic()
        with open(output_file, "w") as output:
            try:
                exit_code = _wait(
                    stage.command(setting), environment(stage, setting, events_file), limit, output
                )
            except OSError as error:
                output.write(f"{error}\n")
                output.flush()
                exit_code = 127
        seconds = time.monotonic() - began
        text = output_file.read_text(errors="replace")
        told = events.read(events_file)
    log.write(f"\n==== {stage.name} ({seconds:.1f} s) ====\n{text}")
    log.flush()
    if not stage.tells_outcomes and exit_code == 0:
        told.append({"kind": "outcome", "test": stage.name, "result": "passed", "reason": ""})
    return results.judge_stage(told, exit_code, seconds, limit, text[-TAIL:]), told


def _wait(command, environment, limit, output):
    """The exit status; None if it was stopped at its limit, with everything that it had started."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        # What it left behind would disturb the stages after it; and so would an interrupted one.
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
