"""The record of GPU sessions: what ran, how it ended, what was measured, of which sources.

One JSON file a GPU. A session adds to it after each stage; the records of several sessions are
merged if they are of the same sources on the same GPU.
"""

import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FORMAT = 1

# What a GPU executes, and what decides how it is launched.
CUDA_SOURCES = (
    "csrc/kernels/cuda/*",
    "csrc/kernels/accumulator.h",
    "csrc/kernels/channel_values.h",
    "csrc/kernels/channel_view.h",
    "csrc/kernels/operation.h",
    "csrc/kernels/prelu.h",
    "csrc/kernels/step.h",
    "csrc/ops/prelu_cuda.cu",
)

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TIMEOUT = "timeout"  # stopped at its limit; what it had found until then is kept
NOT_RUN = "not run"


# ---- Sources -------------------------------------------------------------------------------------


def source_hashes(root=ROOT):
    """A hash for each CUDA source, of the code alone: comments and spaces may change."""
    files = sorted(path for pattern in CUDA_SOURCES for path in Path(root).glob(pattern))
    return {str(path.relative_to(root)): _hash(_code(path.read_text())) for path in files}


def _code(text):
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text).strip()


def _hash(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def commit(root=ROOT):
    """Of this tree; empty in a copy without .git."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# ---- Stages --------------------------------------------------------------------------------------


@dataclass
class StageResult:
    """How a stage ended."""

    status: str
    seconds: float = 0.0
    reason: str = ""
    passed: int = 0
    failures: dict = field(default_factory=dict)  # test: first line of the error
    skips: dict = field(default_factory=dict)  # reason: how many tests
    log_tail: str = ""  # of a stage that did not pass

    @property
    def skipped(self):
        return sum(self.skips.values())


def judge_stage(events, exit_code, seconds, limit, log_tail=""):
    """A stage passes if its process did and no test failed; without any test it proves nothing."""
    outcomes = [event for event in events if event["kind"] == "outcome"]
    result = StageResult(PASSED, round(seconds, 1))
    result.passed = sum(event["result"] == PASSED for event in outcomes)
    result.failures = {
        event["test"]: event["reason"] for event in outcomes if event["result"] == FAILED
    }
    result.skips = dict(
        Counter(event["reason"] for event in outcomes if event["result"] == SKIPPED)
    )
    if exit_code is None:
        result.status, result.reason = TIMEOUT, f"stopped at its limit of {limit:.0f} s"
    elif result.failures:
        result.status, result.reason = FAILED, f"{len(result.failures)} failed"
    elif exit_code != 0:
        result.status, result.reason = FAILED, f"exit status {exit_code}"
    elif not result.passed and result.skips:
        result.status, result.reason = SKIPPED, "; ".join(result.skips)
    elif not result.passed:
        result.status, result.reason = FAILED, "no test ran"
    if result.status in (FAILED, TIMEOUT):
        result.log_tail = log_tail
    return result


# ---- The record ----------------------------------------------------------------------------------


@dataclass
class Record:
    """Everything that is known of one GPU and one state of the sources."""

    sources: dict
    rehearsal: bool = False
    commit: str = ""
    dates: list = field(default_factory=list)  # of the sessions merged into it
    machine: dict = field(default_factory=dict)
    stages: dict = field(default_factory=dict)  # name: StageResult
    rows: dict = field(default_factory=dict)  # title: figures of the benchmark
    targets: list = field(default_factory=list)
    format: int = FORMAT

    @property
    def gpu(self):
        return self.machine.get("gpu", "")

    @property
    def name(self):
        """Of its files."""
        if self.rehearsal:
            return "gpu-rehearsal"
        slug = re.sub(r"[^a-z0-9]+", "-", (self.gpu or "unknown").lower()).strip("-")
        return f"gpu-{slug}"

    @property
    def counts(self):
        """Of tests: passed, failed, skipped."""
        stages = self.stages.values()
        return {
            "passed": sum(stage.passed for stage in stages),
            "failed": sum(len(stage.failures) for stage in stages),
            "skipped": sum(stage.skipped for stage in stages),
        }

    def add_row(self, title, figures):
        """Two stages may measure parts of one row."""
        self.rows[title] = _merged(self.rows.get(title, {}), figures)


def _merged(old, new):
    if isinstance(old, dict) and isinstance(new, dict):
        return {key: _merged(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}
    return new


def merge(records):
    """The union, later stages and figures in place of earlier ones.

    Raises ValueError for records of other sources, of other GPUs, or of a rehearsal with real ones.
    """
    first, *others = records
    merged = Record(**{**vars(first), "stages": dict(first.stages), "rows": dict(first.rows)})
    merged.dates = list(first.dates)
    for other in others:
        if other.sources != merged.sources:
            raise ValueError("the records are of different CUDA sources")
        if other.gpu and merged.gpu and other.gpu != merged.gpu:
            raise ValueError(f"the records are of different GPUs: {merged.gpu}, {other.gpu}")
        if other.rehearsal != merged.rehearsal:
            raise ValueError("a rehearsal cannot be merged with a session on a GPU")
        merged.machine = {**merged.machine, **other.machine}
        merged.commit = other.commit or merged.commit
        merged.dates += [date for date in other.dates if date not in merged.dates]
        for name, stage in other.stages.items():
            if stage.status != NOT_RUN or name not in merged.stages:
                merged.stages[name] = stage
        for title, figures in other.rows.items():
            merged.add_row(title, figures)
    return merged


def save(record, folder):
    """Writes <folder>/gpu-<name>.json at once or not at all; returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.json"
    draft = path.with_suffix(".json.new")
    content = {**asdict(record), "counts": record.counts}
    draft.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(draft, path)
    return path


def load(path):
    """Raises ValueError if the file is no record."""
    try:
        content = json.loads(Path(path).read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        content.pop("counts")
        content["stages"] = {
            name: StageResult(**stage) for name, stage in content["stages"].items()
        }
        return Record(**content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no record of a GPU session: {error}") from error


def stored(folder=RESULTS):
    """The records of a folder, rehearsals left out."""
    records = [load(path) for path in sorted(Path(folder).glob("gpu-*.json"))]
    return [record for record in records if not record.rehearsal]
