"""The sanitizer stages of `make gpu`: a tool that is missing, broken or blind is not a clean bill.

A script stands in for compute-sanitizer; the canaries are compiled where there is an nvcc.
"""

import shutil
import subprocess
import textwrap

import pytest
from gpu import events, sanitize


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The outcomes of a stage, as the session will read them."""
    file = tmp_path / "events"
    monkeypatch.setenv(events.VARIABLE, str(file))
    return lambda: [(event["result"], event["reason"]) for event in events.read(file)]


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts a compute-sanitizer in place that answers as told: (status, text) for each program."""

    def make(clean=(0, ""), faulty=(86, ""), kernels=(0, "========= ERROR SUMMARY: 0 errors")):
        script = tmp_path / "compute-sanitizer"
        answers = {"clean": clean, "faulty": faulty}
        lines = [
            f'*" {kind}") echo "{text}"; exit {status};;'
            for kind, (status, text) in answers.items()
        ]
        script.write_text(
            textwrap.dedent(
                """\
                #!/bin/sh
                test "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 || exit 99
                echo "$*" >> "{log}"
                case "$*" in
                {lines}
                *) echo "{text}"; exit {status};;
                esac
                """
            ).format(
                lines="\n".join(lines),
                text=kernels[1],
                status=kernels[0],
                log=tmp_path / "commands",
            )
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr(sanitize, "build_canaries", lambda folder, arch: "canaries")
        return tmp_path / "commands"

    return make


def _main(monkeypatch, name="racecheck", device="cuda"):
    monkeypatch.setattr("sys.argv", ["sanitize", name, "--device", device])
    return sanitize.main()


def test_a_tool_that_finds_the_canary_and_nothing_else_is_two_passes(tool, told, monkeypatch):
    commands = tool()
    assert _main(monkeypatch) == 0
    assert [result for result, _ in told()] == ["passed", "passed"]
    lines = commands.read_text().splitlines()
    assert len(lines) == 3 and all("--tool racecheck --error-exitcode 86" in line for line in lines)
    assert lines[0].endswith("canaries racecheck clean")
    assert lines[1].endswith("canaries racecheck faulty")
    assert lines[2].endswith("-m gpu.reduced --quiet")


def test_a_missing_tool_is_a_skip(told, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sanitize, "PLACES", ())
    monkeypatch.setattr(sanitize.find, "__defaults__", ((),))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert _main(monkeypatch) == 0
    assert told() == [("skipped", "compute-sanitizer was not found")]


def test_a_tool_that_cannot_run_here_is_a_skip_with_its_own_words(tool, told, monkeypatch):
    tool(clean=(1, "========= COMPUTE-SANITIZER\n========= Error: Device not supported"))
    assert _main(monkeypatch) == 0
    ((result, reason),) = told()
    assert result == "skipped"
    assert "does not work here" in reason and "Device not supported" in reason


@pytest.mark.parametrize("status", (0, 1))
def test_a_tool_that_overlooks_the_canary_is_a_failure(status, tool, told, monkeypatch):
    tool(faulty=(status, ""))
    assert _main(monkeypatch) == 1
    ((result, reason),) = told()
    assert result == "failed" and "planted fault was not reported" in reason


@pytest.mark.parametrize("status", (86, 1, 139))
def test_an_error_in_our_kernels_or_a_crash_is_a_failure(status, tool, told, monkeypatch):
    tool(kernels=(status, "========= Race reported between Write access at run_planes"))
    assert _main(monkeypatch) == 1
    (_, (result, reason)) = told()
    assert result == "failed" and "run_planes" in reason


def test_a_run_without_a_summary_is_a_failure(tool, told, monkeypatch):
    tool(kernels=(0, "nothing was attached"))
    assert _main(monkeypatch) == 1
    assert told()[-1] == ("failed", "there is no summary")


def test_without_a_gpu_it_is_a_skip(told, monkeypatch):
    assert _main(monkeypatch, device="cpu") == 0
    assert told() == [("skipped", "needs a GPU")]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_canaries_compile(tmp_path):
    program = sanitize.build_canaries(tmp_path, "9.0")
    assert program.exists()
    # A word that it does not know ends it before it touches a GPU.
    assert subprocess.run([program], check=False).returncode == 2


def test_every_tool_has_a_canary():
    source = sanitize.SOURCE.read_text()
    assert all(f'"{tool}"' in source for tool in sanitize.TOOLS)
