"""`make gpu` without a GPU: stages that fail, hang or lack a tool, and the session around them.

What the stages run is rehearsed with `make gpu GPU_ARGS=--rehearse`, on the CPU.
"""

import io
import json
import subprocess
import sys
import threading
import time

import pytest
from gpu import __main__ as session
from gpu import events, results, runner, stages
from gpu.results import Record, StageResult

SOURCES = {"csrc/kernels/cuda/traversal.h": "1234"}


def _stage(name, code, limit=60.0, **options):
    """A stage that runs these lines of Python, with `tell(test, result)` at hand."""
    program = f"import os, sys, time\nfrom gpu.events import emit, outcome as tell\n{code}"
    return stages.Stage(
        name,
        f"that {name} works",
        limit,
        lambda setting: [sys.executable, "-c", program],
        **options,
    )


def _run(stage, limit=60.0):
    log = io.StringIO()
    result, told = runner.run(stage, stages.Setting(rehearse=True), limit, log)
    return result, told, log.getvalue()


# ---- One stage -----------------------------------------------------------------------------------


def test_a_stage_that_passes_counts_its_tests_and_its_skips():
    result, _, log = _run(
        _stage(
            "good",
            "tell('a', 'passed'); tell('b', 'passed'); tell('c', 'skipped', 'needs two GPUs')\n"
            "tell('d', 'skipped', 'needs two GPUs'); print('words of it')",
        )
    )
    assert (result.status, result.passed, result.skips) == ("passed", 2, {"needs two GPUs": 2})
    assert result.skipped == 2 and result.failures == {} and result.log_tail == ""
    assert "==== good" in log and "words of it" in log


def test_a_stage_with_a_failing_test_fails_and_keeps_the_end_of_its_log():
    code = "tell('a', 'passed'); tell('b', 'failed', 'bits differ'); print('why'); sys.exit(1)"
    result, _, _ = _run(_stage("bad", code))
    assert (result.status, result.reason) == ("failed", "1 failed")
    assert result.failures == {"b": "bits differ"}
    assert "why" in result.log_tail


@pytest.mark.parametrize(
    ("code", "reason"),
    (
        ("tell('a', 'passed'); sys.exit(3)", "exit status 3"),
        ("tell('a', 'passed'); os.abort()", "exit status -6"),
        ("raise SystemExit('import failed')", "exit status 1"),
        ("pass", "no test ran"),
    ),
    ids=("exit", "crash", "message", "nothing"),
)
def test_a_stage_that_ends_badly_or_proves_nothing_fails(code, reason):
    result, _, _ = _run(_stage("bad", code))
    assert (result.status, result.reason) == ("failed", reason)


def test_a_stage_that_skips_everything_is_skipped_with_the_reason():
    result, _, _ = _run(_stage("idle", "tell('a', 'skipped', 'compute-sanitizer was not found')"))
    assert (result.status, result.reason) == ("skipped", "compute-sanitizer was not found")


def test_a_stage_that_hangs_is_stopped_with_its_children_and_keeps_what_it_told():
    code = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "tell('a', 'passed'); emit('fact', name='child', value=child.pid); time.sleep(60)"
    )
    began = time.monotonic()
    result, told, _ = _run(_stage("slow", code), limit=6.0)
    assert time.monotonic() - began < 30
    assert (result.status, result.passed) == ("timeout", 1)
    assert "limit of 6 s" in result.reason
    child = next(event["value"] for event in told if event["kind"] == "fact")
    assert not _lives(child)


def _lives(pid):
    """Whether the process runs; one that has died may wait for its parent to take note."""
    for _ in range(50):
        try:
            with open(f"/proc/{pid}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


def test_a_command_that_does_not_exist_is_a_failure():
    stage = stages.Stage("none", "nothing", 60, lambda setting: ["/no/such/program"])
    result, _, log = _run(stage)
    assert (result.status, result.reason) == ("failed", "exit status 127")
    assert "/no/such/program" in log


def test_a_module_that_is_missing_is_a_skip_that_names_it():
    result, told, _ = _run(_stage("tests", "tell('a', 'passed')", needs=("no_such_module",)))
    assert (result.status, result.reason, told) == (
        "skipped",
        "no_such_module is not installed",
        [],
    )


def test_half_a_line_of_events_is_no_error(tmp_path):
    file = tmp_path / "events"
    file.write_text('{"kind": "fact", "name": "gpu", "value": "X"}\n{"kind": "fa')
    assert events.read(file) == [{"kind": "fact", "name": "gpu", "value": "X"}]
    assert events.read(tmp_path / "nothing") == []


def test_pytest_tells_every_outcome_line_by_line(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no time')\n"
        "def test_idle(): pass\n"
        "@pytest.fixture\n"
        "def broken():\n    yield\n    raise OSError('in teardown')\n"
        "def test_teardown(broken): pass\n"
    )
    (tmp_path / "test_import.py").write_text("import no_such_module\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.recorder", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    stage = stages.Stage("tests", "tests", 60, lambda setting: command)
    result, told, _ = _run(stage)
    found = {event["test"].rpartition("::")[2]: event["result"] for event in told}
    assert found["test_good"] == "passed" and found["test_idle"] == "skipped"
    assert found["test_bad"] == found["test_teardown"] == found["test_import.py"] == "failed"
    assert len(told) == 5
    assert result.status == "failed" and result.skips == {"no time": 1}
    assert any("assert 1 == 2" in reason for reason in result.failures.values())


# ---- A session -----------------------------------------------------------------------------------


def _session(tmp_path, run=runner.run, deadline=1e9, record=None):
    said = []
    record = record or Record(sources=SOURCES, rehearsal=True, dates=["2026-01-01"])
    one = session.Session(
        record,
        stages.Setting(rehearse=True),
        tmp_path,
        time.monotonic() + deadline,
        run,
        lambda text, **options: said.append(text),
    )
    return one, record, said


def _stored(tmp_path):
    return json.loads((tmp_path / "gpu-rehearsal.json").read_text())


def test_a_stage_that_fails_does_not_stop_those_after_it(tmp_path):
    one, _, said = _session(tmp_path)
    good = one.run(
        [
            _stage("first", "tell('a', 'failed', 'wrong'); sys.exit(1)"),
            _stage("second", "tell('b', 'passed'); emit('fact', name='gpu', value='none')"),
        ]
    )
    assert not good
    stored = _stored(tmp_path)
    assert stored["stages"]["first"]["failures"] == {"a": "wrong"}
    assert stored["stages"]["second"]["status"] == "passed"
    assert stored["machine"] == {"gpu": "none"}
    assert stored["counts"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert "a: wrong" in "\n".join(said)
    assert "FAILED" in (tmp_path / "gpu-rehearsal.txt").read_text()


def test_the_record_is_on_disk_after_each_stage(tmp_path):
    seen = []

    def run(stage, setting, limit, log):
        path = tmp_path / "gpu-rehearsal.json"
        seen.append(sorted(_stored(tmp_path)["stages"]) if path.exists() else [])
        return StageResult("passed", passed=1), []

    one, _, _ = _session(tmp_path, run)
    assert one.run([_stage(name, "") for name in "abc"])
    assert seen == [[], ["a"], ["a", "b"]]


def test_stages_of_one_lane_run_side_by_side_and_share_the_workers(tmp_path):
    together = threading.Barrier(3, timeout=30)
    workers = {}

    def run(stage, setting, limit, log):
        workers[stage.name] = setting.workers
        if stage.lane:
            together.wait()  # all three must be there
        return StageResult("passed", passed=1), []

    one, record, _ = _session(tmp_path, run)
    one.setting = stages.Setting(workers=12)
    lane = {"lane": "x"}
    chosen = [_stage(name, "", needs=("pytest",), **lane) for name in "ab"]
    chosen += [_stage("c", "", **lane), _stage("d", "", needs=("pytest",))]
    assert one.run(chosen)
    assert list(record.stages)[-1] == "d"
    assert workers == {"a": 6, "b": 6, "c": 6, "d": 12}


def test_only_stages_that_measure_no_time_share_a_lane():
    assert not any(stage.lane for stage in stages.STAGES if stage.name.startswith("bench"))
    assert stages.BY_NAME["runtime"].lane == stages.BY_NAME["large"].lane == ""


def test_after_a_build_that_failed_only_what_needs_none_is_run(tmp_path):
    one, record, _ = _session(tmp_path)
    good = one.run(
        [
            _stage("build", "sys.exit(2)", needs_build=False, tells_outcomes=False),
            _stage("tests", "tell('a', 'passed')"),
            _stage("facts", "tell('a', 'passed')", needs_build=False),
        ]
    )
    assert not good
    assert record.stages["tests"] == StageResult("not run", reason="the build failed")
    assert record.stages["facts"].status == "passed"


def test_no_time_left_is_told_and_limits_shrink_to_what_is_left(tmp_path):
    limits = []

    def run(stage, setting, limit, log):
        limits.append(limit)
        return StageResult("passed", passed=1), []

    one, record, _ = _session(tmp_path, run, deadline=30)
    assert one.run([_stage("a", "", limit=200.0), _stage("b", "", limit=5.0)])
    assert limits[0] == pytest.approx(30, abs=1) and limits[1] == 5.0
    one, record, _ = _session(tmp_path, run, deadline=3)
    assert not one.run([_stage("c", "")])
    assert record.stages["c"] == StageResult("not run", reason="no time was left")


def test_a_stage_that_was_not_run_does_not_replace_one_that_was(tmp_path):
    record = Record(sources=SOURCES, rehearsal=True)
    record.stages["a"] = StageResult("passed", passed=3)
    one, record, _ = _session(tmp_path, deadline=0, record=record)
    one.run([_stage("a", "")])
    assert record.stages["a"].passed == 3


def test_rows_are_judged_as_soon_as_they_are_told(tmp_path):
    row = {"bytes": 10**9, "aligned": True, "slopes": 1, "copies": False}
    row["forward"] = {"cold": {"ours": 1.0, "copy": 0.9}}
    told = [{"kind": "row", "title": "a layer", "figures": row}]
    one, record, _ = _session(tmp_path, lambda *_: (StageResult("passed", passed=1), told))
    one.run([_stage("bench", "")])
    (target,) = [target for target in record.targets if target["held"] is not None]
    assert target["what"].startswith("forward, large, aligned")
    assert (target["held"], target["worst"]) == (False, 0.9)
    assert "90%" in (tmp_path / "gpu-rehearsal.txt").read_text()


# ---- The stages that exist -----------------------------------------------------------------------


def test_every_stage_has_a_command_and_every_group_is_made_of_stages():
    setting = stages.Setting(workers=4)
    for stage in stages.STAGES:
        command = stage.command(setting)
        assert all(isinstance(word, str) for word in command), stage.name
        assert all(isinstance(word, str) for word in stage.environment(setting).values())
        for word in command:
            if word.endswith(".py"):
                assert (results.ROOT / word).exists(), word
    for members in stages.GROUPS.values():
        assert set(members) <= set(stages.BY_NAME)


def test_every_test_file_belongs_to_exactly_one_stage():
    setting = stages.Setting()
    files = [word for stage in stages.STAGES for word in stage.command(setting)]
    files = [word for word in files if word.startswith("tests/test_")]
    assert sorted(files) == sorted(set(files))
    existing = {f"tests/{path.name}" for path in (results.ROOT / "tests").glob("test_*.py")}
    assert set(files) == existing


def test_stages_are_chosen_by_name_and_group_and_run_in_their_order():
    names = [stage.name for stage in stages.chosen("large,sanitizers,values")]
    assert names == [stage.name for stage in stages.STAGES if stage.name in names]
    assert {"large", "values", "memcheck", "synccheck", "build"} <= set(names)
    assert len(stages.chosen("all")) == len(stages.STAGES)
    with pytest.raises(ValueError, match="no stage or group 'speed'"):
        stages.chosen("values,speed")


def test_two_sessions_together_run_every_stage():
    """The two commands that the README of the results names."""
    names = {stage.name for word in ("facts", "rest") for stage in stages.chosen(word)}
    assert names == set(stages.BY_NAME)


def test_without_a_gpu_the_command_says_so_and_how_to_rehearse(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "gpu", "--output", str(tmp_path)],
        cwd=results.ROOT,
        env=runner.environment(_stage("any", ""), stages.Setting(), tmp_path / "events")
        | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "no GPU that torch can use" in run.stdout and "--rehearse" in run.stdout
