"""`make gpu`: builds torch_ext, tests it and measures it on the GPU of this machine, in at most 10 minutes.

Stages run in the order of their worth, each with a time limit. The record (record.py) is written after each, into $OUT
or the benchmarks' results, so nothing is lost if a later one hangs; a later call goes on with what has not passed.
"""

import argparse
import collections
import datetime
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree
from dataclasses import dataclass
from pathlib import Path

from record import RESULTS, ROOT, sources_hash

# isort: split
import cuda_targets
import records

LEAST = 8  # seconds below which a stage is not worth starting
FOLDER = ROOT / "build" / "gpu"
JUNIT = FOLDER / "junit.xml"  # where tests tell how they ended
ROWS = FOLDER / "rows"  # where the benchmark tells what it measured

FACTS = """
import json, os, platform, torch
facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": platform.python_version(),
         "processors": os.cpu_count(), "gpu": ""}
if torch.cuda.is_available():
    one = torch.cuda.get_device_properties(0)
    facts |= {"gpu": one.name, "arch": f"{one.major}.{one.minor}", "memory": one.total_memory,
              "multiprocessors": one.multi_processor_count, "l2": one.L2_cache_size,
              "driver": torch._C._cuda_getDriverVersion()}
print(json.dumps(facts))
"""


@dataclass(frozen=True)
class Stage:
    name: str
    limit: float  # seconds, on an H200
    command: str  # with the words of `words` in braces
    proves: str


STAGES = (
    Stage("build", 300, "{python} tests/gpu/build.py {build}", "it builds, without network"),
    Stage("smallest", 60, "{pytest} {several} tests/test_smallest.py", "one problem of each kind"),
    Stage("cuda", 150, "{pytest} {several} {cuda}", "bits of the CPU, layouts, repeats"),
    Stage("alone", 200, "{pytest} {alone}", "graphs, streams, memory, > 2^31 elements"),
    Stage("contract", 200, "{pytest} {files} -m 'contract and not full' {others}", "the contract"),
    Stage("bench-targets", 120, "{bench} --set=targets --seconds=100", "large and small layers"),
    Stage("sanitizers", 200, "{pytest} {several} {sanitizers}", "no race, no stray access"),
    Stage("bench-compile", 150, "{bench} --set=compile --seconds=130", "against torch.compile"),
    Stage("bench-core", 100, "{bench} --set=core --seconds=80", "the core cases"),
    Stage("suite", 400, "{pytest} {files} -m 'not contract and not full' {others}", "all else"),
)

ALONE = [f"tests/test_cuda_{name}.py" for name in ("graphs", "streams", "memory", "large")]
SANITIZERS = "tests/test_cuda_sanitizers.py"
OTHERS = ["tests/test_cuda_machine_code.py"]  # looks at what nvcc made, on any machine
NOT_HERE = ["tests/test_documentation.py", "tests/test_documented_figures.py"]  # of no GPU


def words(workers):
    """What stands in braces in the commands of stages."""
    cuda = [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("tests/test_cuda_*.py"))]
    cuda = [file for file in cuda if file not in OTHERS]
    ignored = [f"--ignore={file}" for file in [*cuda, "tests/test_smallest.py", *NOT_HERE]]
    options = f"-v -p no:cacheprovider --tb=short --maxfail=40 --junitxml={JUNIT}"
    several = workers > 1 and importlib.util.find_spec("xdist") is not None
    return {
        "python": sys.executable,
        "pytest": f"{sys.executable} -m pytest {options}",
        "several": f"-n {workers} --dist worksteal" if several else "",
        # Each file on one worker: what its tests share is made once.
        "files": f"-n {workers} --dist loadfile" if several else "",
        "bench": f"{sys.executable} benchmarks/cuda_prelu.py --rows={ROWS}",
        "cuda": " ".join(file for file in cuda if file not in [*ALONE, SANITIZERS]),
        "alone": " ".join(ALONE),
        "sanitizers": SANITIZERS,
        "others": " ".join([*ignored, "tests"]),
        "build": FOLDER / "native",
    }


# ---- One stage -----------------------------------------------------------------------------------


def run(command, limit, log, arch):
    """How a stage ended, for the record; the log gets all that it printed."""
    JUNIT.unlink(missing_ok=True)
    cuda = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")  # if PATH does not say
    programs = (str(Path(sys.executable).parent), os.environ["PATH"], *cuda)
    # (Wheels of Python alone are imported as they are.)
    python = [str(ROOT), str(ROOT / "tests"), *map(str, sorted(FOLDER.glob("wheels/*.whl")))]
    python += [os.environ.get("PYTHONPATH", "")]
    variables = {"PATH": os.pathsep.join(programs), "PYTHONPATH": os.pathsep.join(python)}
    variables |= {"TORCH_EXT_TEST_DEVICES": "cuda", "TORCH_CUDA_ARCH_LIST": arch}
    variables |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    print(f"\n==== {' '.join(command)}", file=log, flush=True)
    began, begin = time.monotonic(), log.tell()
    # With everything that it has started; interrupted first, so that pytest writes what it knows.
    timed = ["timeout", "--signal=INT", "--kill-after=15", str(limit), *command]
    done = subprocess.run(
        timed, cwd=ROOT, env={**os.environ, **variables}, check=False, stdout=log, stderr=log
    )
    seconds = round(time.monotonic() - began, 1)
    # A command without tests is its own test.
    passed, failures, skips = outcomes(JUNIT) if JUNIT.exists() else (not done.returncode, {}, {})
    result = _result("passed", seconds, passed, failures, skips)
    if done.returncode in (124, 137):
        result |= {"status": "timeout", "reason": f"stopped at its limit of {limit:.0f} s"}
    elif failures or done.returncode:
        result |= {"status": "failed", "reason": f"exit status {done.returncode}"}
    elif not passed:
        result |= {"status": "skipped" if skips else "failed", "reason": "no test ran"}
    if result["status"] in ("failed", "timeout"):
        text = Path(log.name).read_text(errors="replace")[begin:]
        result["tail"] = text.splitlines()[-40:]
    return result


def _result(status, seconds=0.0, passed=0, failures=(), skips=(), reason=""):
    result = {"status": status, "seconds": seconds, "passed": int(passed), "reason": reason}
    return result | {"failures": dict(failures), "skips": dict(skips)}


def outcomes(junit):
    """Of a JUnit file: how many tests passed, failures with their first line, reasons of skips."""
    passed, failures, skips = 0, {}, collections.Counter()
    for case in xml.etree.ElementTree.parse(junit).iter("testcase"):
        parts = {part.tag: part.get("message") or part.text or "" for part in case}
        bad = parts.get("failure", parts.get("error"))
        if bad is not None:
            failures[f"{case.get('classname')}::{case.get('name')}"] = bad.partition("\n")[0][:300]
        elif "skipped" in parts:
            skips[parts["skipped"]] += 1
        else:
            passed += 1
    return passed, failures, skips


# ---- The session ---------------------------------------------------------------------------------


def session(record, stages, words, output, deadline, run=run):
    """Runs the stages; true if none of them failed or was left out for want of time."""
    arch = record["machine"].get("arch", "9.0")
    with open(output / "gpu.log", "a+") as log:
        for stage in stages:
            left = deadline - time.monotonic()
            built = record["stages"].get("build", {}).get("status", "passed")
            if left < LEAST:
                result = _result("not run", reason="no time was left")
            elif stage.name != "build" and built != "passed":
                result = _result("not run", reason="the build failed")
            else:
                print(f"{stage.name}: {stage.proves} ...", flush=True)
                command = shlex.split(stage.command.format_map(words))
                result = run(command, min(stage.limit, left), log, arch)
            # What was not run leaves what is known of it.
            if result["status"] != "not run" or stage.name not in record["stages"]:
                record["stages"][stage.name] = result
            add_rows(record)
            records.write(record, output / f"{name_of(record)}.json")
            show(stage.name, result)
    return all(record["stages"][s.name]["status"] in ("passed", "skipped") for s in stages)


def add_rows(record):
    """What the benchmark has told, a line a row; two stages may measure parts of one."""
    for line in ROWS.read_text().splitlines() if ROWS.exists() else ():
        title, figures = json.loads(line)
        record["rows"][title] = record["rows"].get(title, {}) | figures
    ROWS.unlink(missing_ok=True)
    record["targets"] = cuda_targets.judge(record["rows"])


def show(name, result):
    counts = f"{result['passed']} passed, {len(result['failures'])} failed"
    print(f"{name}: {result['status']} in {result['seconds']} s: {counts}. {result['reason']}")
    for reason, count in result["skips"].items():
        print(f"    skipped {count}: {reason}")
    for test, reason in list(result["failures"].items())[:10]:
        print(f"    FAILED {test}: {reason}")
    for line in result.get("tail", ()):
        print(f"    | {line}", flush=True)


def name_of(record):
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", record["gpu"].lower()).strip("-")


def begun(machine, output):
    """The record so far of these sources on this GPU, here or in the results; else a new one."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    git = subprocess.run(describe, check=False, capture_output=True, text=True)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes")
    record = {"gpu": machine.pop("gpu"), "commit": git.stdout.strip(), "dates": []}
    record |= {"sources": sources_hash(), "machine": machine}
    record |= {"stages": {}, "targets": [], "rows": {}}
    for folder in (RESULTS, output):
        file = folder / f"{name_of(record)}.json"
        old = json.loads(file.read_text()) if file.exists() else {}
        if old.get("sources") == record["sources"]:
            record |= {key: old[key] for key in ("dates", "stages", "targets", "rows")}
    record["dates"] = [*record["dates"], now]
    return record


def chosen(options, record):
    """The stages to run, in their order."""
    names = [stage.name for stage in STAGES]
    if wanted := [name for name in options.only.split(",") if name]:
        if wrong := [name for name in wanted if name not in names]:
            sys.exit(f"make gpu: no stage {', '.join(wrong)}; there are {', '.join(names)}")
    else:  # built anew: a record may come from another machine
        done = [name for name, stage in record["stages"].items() if stage["status"] == "passed"]
        wanted = [name for name in names if name == "build" or name not in done]
    return [stage for stage in STAGES if stage.name in wanted]


def main():
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="A,B: these; else all that have not passed")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")
    parser.add_argument("--budget", type=float, default=585, metavar="SECONDS", help="for all")
    options = parser.parse_args()
    facts = subprocess.run([sys.executable, "-c", FACTS], check=False, capture_output=True)
    machine = json.loads(facts.stdout or '{"gpu": ""}')
    if not machine["gpu"] and not options.dry_run:
        print(facts.stderr.decode(), "make gpu: no GPU that torch can use was found here.")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    output = Path(os.environ.get("OUT") or RESULTS)
    output.mkdir(parents=True, exist_ok=True)
    record = begun(machine, output)
    stages = chosen(options, record)
    filled = words(min(os.cpu_count() or 1, 12))
    print(f"{record['gpu'] or 'no GPU'}; stages: {', '.join(stage.name for stage in stages)}")
    if options.dry_run:
        for stage in stages:
            command = stage.command.format_map(filled)
            print(f"{stage.name} ({stage.limit} s): {stage.proves}\n    {command}")
        return 0
    good = session(record, stages, filled, output, began + options.budget)
    for target in record["targets"]:
        if target["held"] is not None:
            print(f"target {target['what']}: {target['worst']:.3g}, wanted {target['wanted']}")
    print(f"{time.monotonic() - began:.0f} s; record: {output / name_of(record)}.json")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
