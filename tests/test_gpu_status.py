"""Have the CUDA sources of this tree run on a GPU? `make gpu-status`, and what the README says."""

import re
import shutil

import pytest
from gpu import results, status, table
from gpu.results import ROOT, Record, StageResult
from gpu.stages import CORRECTNESS
from gpu.status import README_PHRASES, State

SOURCES = {"a.cuh": "1", "b.cu": "2"}


def _record(sources=SOURCES, date="2026-01-02", **stages):
    every = {name: StageResult("passed", passed=1) for name in CORRECTNESS}
    return Record(
        sources=dict(sources),
        commit="abc123",
        dates=[date],
        machine={"gpu": "NVIDIA H200"},
        stages={**every, **stages},
    )


def test_without_a_record_they_have_never_run():
    found = status.status([], SOURCES)
    assert found.state is State.NEVER
    assert found.line == "CUDA sources have not been run on a GPU, ever"


def test_a_complete_record_of_these_sources_verifies_them():
    found = status.status([_record()], SOURCES)
    assert found.state is State.VERIFIED
    assert "verified on NVIDIA H200, 2026-01-02, abc123" in found.line
    assert f"{len(CORRECTNESS)} tests passed" in found.line


def test_a_record_of_other_sources_is_stale_and_says_what_changed():
    changed = {**SOURCES, "b.cu": "3", "c.cuh": "4"}
    found = status.status([_record(date="2026-01-01"), _record()], changed)
    assert found.state is State.STALE
    assert "since abc123 (NVIDIA H200, 2026-01-02); changed: b.cu, c.cuh" in found.line


@pytest.mark.parametrize("result", ("timeout", "not run", "skipped"))
def test_a_stage_that_is_missing_leaves_it_incomplete(result):
    record = _record(racecheck=StageResult(result))
    found = status.status([record], SOURCES)
    assert found.state is State.INCOMPLETE and "without: racecheck" in found.line
    del record.stages["racecheck"]
    assert status.status([record], SOURCES).state is State.INCOMPLETE


def test_a_failure_is_told_before_anything_else():
    bad = _record(large=StageResult("failed", failures={"x": "y"}))
    found = status.status([_record(), bad], SOURCES)
    assert found.state is State.FAILED and "in: large" in found.line
    slow = _record(suite=StageResult("timeout", failures={"x": "y"}))
    assert status.status([slow], SOURCES).state is State.FAILED


def test_a_target_that_was_missed_is_part_of_the_line():
    record = _record()
    record.targets = [{"what": "backward x stock", "held": False}, {"what": "b", "held": None}]
    found = status.status([record], SOURCES)
    assert found.state is State.VERIFIED
    assert found.line.endswith("speed targets missed: backward x stock")


# ---- Hashes --------------------------------------------------------------------------------------


def test_the_sources_are_those_that_a_gpu_executes():
    files = set(results.source_hashes())
    engine = {f"csrc/kernels/cuda/{path.name}" for path in (ROOT / "csrc/kernels/cuda").iterdir()}
    assert engine < files
    assert {"csrc/ops/prelu_cuda.cu", "csrc/kernels/prelu.h"} < files
    assert not any("cpu/" in file for file in files)


def test_every_file_that_the_cuda_source_includes_is_among_them():
    """Those of kernels/; what checks and folds tensors is the CPU's too, and is proven there."""
    text = (ROOT / "csrc/ops/prelu_cuda.cu").read_text()
    included = {f"csrc/{name}" for name in re.findall(r'#include "(.*?)"', text)}
    assert included - set(results.source_hashes()) == {
        "csrc/ops/prelu_args.h",
        "csrc/ops/tensors.h",
    }


def test_code_changes_the_hash_and_a_comment_does_not(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = results.source_hashes(tmp_path)
    assert before == results.source_hashes()
    file = tmp_path / "csrc/kernels/prelu.h"
    file.write_text("// another comment\n" + file.read_text().replace("\n", "\n\n"))
    assert results.source_hashes(tmp_path) == before
    file.write_text(file.read_text() + "int changed;\n")
    after = results.source_hashes(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"csrc/kernels/prelu.h"}


# ---- This tree -----------------------------------------------------------------------------------


def test_the_readme_says_what_the_records_say():
    """The phrase of the present state stands in it, and no other's. `make gpu-status` tells it."""
    found = status.status(results.stored(), results.source_hashes())
    readme = (ROOT / "README.md").read_text()
    said = {state for state, phrase in README_PHRASES.items() if phrase in readme}
    assert said == {found.state}, (
        f"README.md should say {README_PHRASES[found.state]!r}: {found.line}"
    )


def test_stored_records_have_their_table_beside_them():
    for record in results.stored():
        text = (results.RESULTS / f"{record.name}.txt").read_text()
        assert text == table.render(record)
