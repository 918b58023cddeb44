"""`make gpu` and `make gpu-status` without a GPU: stages that fail or hang, the record, what the README says of it."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "gpu"))
import record
import session
from record import ROOT
from session import Stage

SKIPPED = '<testcase><skipped message="no GPU"/></testcase>'
FAILED = '<testcase classname="t" name="b"><failure message="bits differ&#10;more"/></testcase>'


@pytest.fixture
def stages_run(tmp_path, monkeypatch):
    """Runs stages that are lines of Python (those of pytest write `junit`); gives success and the record on disk."""
    monkeypatch.setattr(session, "JUNIT", tmp_path / "junit.xml")
    monkeypatch.setattr(session, "ROWS", tmp_path / "rows")

    def run(programs, seconds=1000, stages=None, limit=60):
        head = f"import os, pathlib, sys, time; junit = pathlib.Path({str(session.JUNIT)!r}); "
        files = {name: tmp_path / f"{name}.py" for name in programs}
        for name, code in programs.items():
            files[name].write_text(head + code)
        chosen = [Stage(n, limit, f"{sys.executable} {f}", "that") for n, f in files.items()]
        machine = {"gpu": "NVIDIA H200", "arch": "9.0"}
        found = session.begun(machine, tmp_path)
        found["stages"] |= stages or {}
        good = session.session(found, chosen, {}, tmp_path, time.monotonic() + seconds)
        return good, json.loads((tmp_path / "gpu-nvidia-h200.json").read_text())

    return run


def test_a_stage_that_fails_or_crashes_or_proves_nothing_stops_none_after_it(
    stages_run, tmp_path, capsys
):
    def told(*cases):
        return f"junit.write_text({'<s>' + ''.join(cases) + '</s>'!r}); "

    good, found = stages_run(
        {
            "bad": told("<testcase/>", FAILED, SKIPPED, SKIPPED) + "print('why'); sys.exit(1)",
            "crash": "os.abort()",
            "empty": told(),
            "idle": told(SKIPPED),
            "good": "",
        }
    )
    statuses = {name: stage["status"] for name, stage in found["stages"].items()}
    assert not good and statuses == {
        **dict.fromkeys(("bad", "crash", "empty"), "failed"), "idle": "skipped", "good": "passed",
    }  # fmt: skip
    bad = found["stages"]["bad"]
    assert (bad["passed"], bad["failures"]) == (1, {"t::b": "bits differ"})
    assert bad["skips"] == {"no GPU": 2} and "why" in bad["tail"]
    assert "skipped 2: no GPU" in capsys.readouterr().out


def test_a_stage_that_hangs_is_stopped_and_keeps_what_it_wrote_when_told_to_end(stages_run):
    """As pytest does; and what it measured stays as it came, a line a row."""
    row = json.dumps(["a layer", {"bytes": 1, "aligned": True, "slopes": 1}])
    code = "import signal\ntry:\n    (junit.parent / 'rows').write_text(%r)\n    time.sleep(60)\n"
    code += "except KeyboardInterrupt:\n    junit.write_text('<s><testcase/></s>')"
    good, found = stages_run({"slow": code % row}, limit=8)
    assert not good and found["stages"]["slow"]["status"] == "timeout"
    assert found["stages"]["slow"]["passed"] == 1
    assert "a layer" in found["rows"] and found["targets"]


def test_after_a_failed_build_and_without_time_nothing_runs_and_what_is_known_stays(stages_run):
    good, found = stages_run({"build": "sys.exit(2)", "tests": ""})
    assert found["stages"]["tests"]["reason"] == "the build failed" and not good
    known = session._result("passed", passed=3)
    good, found = stages_run({"a": "", "b": ""}, seconds=1, stages={"a": known})
    assert found["stages"]["a"] == known and not good
    assert found["stages"]["b"]["reason"] == "no time was left"
    assert len(found["dates"]) == 2, "the second session goes on with the record of the first"


def dry_run(*options):
    command = [sys.executable, ROOT / "tests/gpu/session.py", "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_dry_run_names_commands_whose_files_are_there_and_each_test_file_has_a_stage():
    code, said = dry_run()
    assert code == 0 and len(re.findall(r"\(\d+ s\)", said)) == len(session.STAGES)
    named = set(re.findall(r"(?<=[ =])(?:tests|benchmarks)/\S+\.py", said))
    assert all((ROOT / name).is_file() for name in named)
    run = {name for name in named if f"--ignore={name}" in said} - set(session.NOT_HERE)
    assert run == {name for name in named if re.search(rf"(?<!=){name}", said)} - {
        "tests/gpu/build.py", "benchmarks/cuda_prelu.py",
    }  # fmt: skip
    assert dry_run("--only=cuda,build")[1].count(" s):") == 2
    assert dry_run("--only=speed")[0] != 0


# ---- gpu-status ----------------------------------------------------------------------------------


def test_the_state_of_the_sources_follows_from_the_records(tmp_path):
    passed = {name: session._result("passed", passed=2) for name in record.PROOFS}
    one = {"gpu": "NVIDIA H200", "commit": "abc", "dates": ["2026-01-02"], "sources": "s"}
    one |= {"stages": passed, "targets": [{"what": "backward", "held": False}], "rows": {}}

    def state(*records, sources="s"):
        for i, each in enumerate(records):
            (tmp_path / f"gpu-{i}.json").write_text(json.dumps(each))
        return record.status(tmp_path, sources)

    assert state()[0] == "never"
    found, line = state(one)
    assert found == "verified" and "NVIDIA H200, 2026-01-02, abc: 14 tests passed" in line
    assert line.endswith("speed targets missed: backward")
    assert state(one, sources="other")[0] == "stale"
    partly = {**one, "stages": {**passed, "sanitizers": session._result("timeout")}}
    assert state(partly) == (
        "incomplete",
        "were run on a GPU (NVIDIA H200, 2026-01-02, abc), but without: sanitizers",
    )
    bad = {**one, "stages": {**passed, "alone": session._result("failed")}}
    assert state(one, bad)[0] == "failed"


def test_code_changes_the_hash_and_a_comment_or_cpu_code_does_not(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = record.sources_hash(tmp_path)
    assert before == record.sources_hash()
    (tmp_path / "csrc/kernels/cpu/plan.cpp").write_text("int other;")
    for name in (
        "csrc/kernels/prelu.h",
        "csrc/kernels/cuda/launch.cuh",
        "csrc/ops/operators_cuda.cpp",
        "csrc/ops/prelu_run.h",
    ):
        file = tmp_path / name
        file.write_text("// another comment\n" + file.read_text().replace("\n", "\n\n"))
        assert record.sources_hash(tmp_path) == before
        file.write_text(file.read_text() + "int changed;\n")
        assert record.sources_hash(tmp_path) != before
        before = record.sources_hash(tmp_path)


def test_the_readme_says_what_the_records_say():
    """The phrase of the present state stands in it, and no other's."""
    state, line = record.status(record.RESULTS, record.sources_hash())
    readme = (ROOT / "README.md").read_text()
    said = {name for name, phrase in record.PHRASES.items() if phrase in readme}
    assert said == {state}, f"README.md should say {record.PHRASES[state]!r}: {line}"
