"""The records of `make gpu`: written, read, merged from several sessions, shown as a table."""

import json
import sys

import pytest
from gpu import __main__ as session
from gpu import results, table
from gpu.results import Record, StageResult

SOURCES = {"csrc/kernels/cuda/traversal.h": "1234"}


def _record(gpu="NVIDIA H200", sources=None, **fields):
    fields = {"commit": "abc", "dates": ["2026-01-01"], **fields}
    return Record(sources=sources or dict(SOURCES), machine={"gpu": gpu}, **fields)


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    record = _record(stages={"values": StageResult("failed", 1.5, "1 failed", 2, {"a": "b"})})
    record.add_row("layer", {"bytes": 4})
    path = results.save(record, tmp_path)
    assert path.name == "gpu-nvidia-h200.json"
    assert results.load(path) == record
    assert results.stored(tmp_path) == [record]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ("", "{}", '{"format": 99}', "[1]", '{"format": 1, "counts": 1}'))
def test_a_file_that_is_no_record_is_refused(text, tmp_path):
    file = tmp_path / "gpu-x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="is no record"):
        results.load(file)


def test_partial_records_are_merged_the_later_ones_count():
    first = _record(
        stages={
            "values": StageResult("failed", failures={"a": "b"}),
            "large": StageResult("passed", passed=3),
            "suite": StageResult("not run"),
        },
        rows={"layer": {"bytes": 4, "step": {"cold": {"ours": 1.0, "stock": 2.0}}}},
    )
    second = _record(
        commit="def",
        dates=["2026-01-02"],
        stages={
            "values": StageResult("passed", passed=5),
            "large": StageResult("not run"),
            "suite": StageResult("passed", passed=7),
        },
        rows={"layer": {"bytes": 4, "step": {"cold": {"compile": 3.0}}}, "other": {"bytes": 8}},
    )
    before = json.dumps(first.rows)
    merged = results.merge([first, second])
    assert merged.counts == {"passed": 15, "failed": 0, "skipped": 0}
    assert merged.stages["large"].passed == 3
    assert (merged.commit, merged.dates) == ("def", ["2026-01-01", "2026-01-02"])
    assert merged.rows["layer"]["step"]["cold"] == {"ours": 1.0, "stock": 2.0, "compile": 3.0}
    assert set(merged.rows) == {"layer", "other"}
    assert json.dumps(first.rows) == before, "merging must not change what it merges"


@pytest.mark.parametrize(
    ("other", "words"),
    (
        ({"sources": {"x": "y"}}, "different CUDA sources"),
        ({"gpu": "NVIDIA H100"}, "different GPUs"),
        ({"rehearsal": True}, "rehearsal"),
    ),
)
def test_records_of_different_things_are_not_merged(other, words):
    with pytest.raises(ValueError, match=words):
        results.merge([_record(), _record(**other)])


def test_files_from_elsewhere_are_merged_by_the_command(tmp_path, monkeypatch, capsys):
    current = results.source_hashes()
    parts = []
    for i, name in enumerate(("values", "large")):
        record = _record(
            sources=current, commit="", stages={name: StageResult("passed", passed=i + 1)}
        )
        (tmp_path / str(i)).mkdir()
        parts.append(str(results.save(record, tmp_path / str(i))))
    arguments = ["gpu", "--merge", *parts, "--output", str(tmp_path / "all"), "--commit", "abc123"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert session.main() == 0
    merged = results.load(tmp_path / "all" / "gpu-nvidia-h200.json")
    assert set(merged.stages) == {"values", "large"}
    assert merged.commit == "abc123"
    assert "3 passed" in capsys.readouterr().out


def test_a_later_session_continues_the_record_of_the_same_sources_only(tmp_path):
    old = _record(stages={"values": StageResult("passed", passed=5)})
    results.save(old, tmp_path)
    assert "values" in session.continued(_record(), tmp_path).stages
    assert session.continued(_record(sources={"x": "y"}), tmp_path).stages == {}


def test_the_table_shows_stages_skips_failures_and_rows_with_gaps():
    record = _record(
        stages={
            "values": StageResult("failed", 3.0, "1 failed", 4, {"test_x": "bits"}, {"no GPU": 2}),
        },
        rows={"layer 4x4": {"bytes": 64, "aligned": True, "slopes": 1, "copies": False}},
    )
    text = table.render(record)
    for words in ("NVIDIA H200", "commit abc", "2 × no GPU", "test_x", "layer 4x4"):
        assert words in text
    assert "4 passed, 1 failed, 2 skipped" in text
    assert "not passed: values" in table.summary(record)
