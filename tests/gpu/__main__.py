"""Tests and measures torch_ext on a GPU: `make gpu`, or `python -m gpu` with tests/ on PYTHONPATH.

Runs stages one after the other, each in a process of its own, and writes the record (JSON and a
table) after each: nothing that was found is lost if a later one fails, hangs or has no time left.
Records of the same sources on the same GPU are merged, so a session may be cut into several calls.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.util
import itertools
import os
import sys
import time
from pathlib import Path

from gpu import results, runner, stages, table
from gpu.results import ROOT, Record, StageResult

BUDGET = 585  # seconds: a lent machine gives one command 10 minutes
LEAST = 8  # seconds below which a stage is not worth starting


def _targets_module():
    """benchmarks/cuda_targets.py, by its path: benchmarks/ and tests/ have modules of one name."""
    path = ROOT / "benchmarks" / "cuda_targets.py"
    spec = importlib.util.spec_from_file_location("cuda_targets", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """Stages, run in turn, and the record that they fill."""

    def __init__(self, record, setting, output, deadline, run=runner.run, say=print):
        self.record = record
        self.setting = setting
        self.output = Path(output)
        self.deadline = deadline
        self._run = run
        self._say = say
        self._judge = _targets_module().judge

    def run(self, chosen):
        """True if every stage passed, or was skipped for a reason that is in the record."""
        self.output.mkdir(parents=True, exist_ok=True)
        with open(log_folder(self.output) / f"{self.record.name}.log", "a") as log:
            for _, lane in itertools.groupby(chosen, lambda stage: stage.lane or stage.name):
                self._lane(list(lane), log)
        good = (results.PASSED, results.SKIPPED)
        return all(self.record.stages[stage.name].status in good for stage in chosen)

    def _lane(self, lane, log):
        """Stages side by side; each is noted as soon as it ends."""
        sharing = sum("pytest" in stage.needs for stage in lane)
        workers = max(1, self.setting.workers // max(1, sharing))
        setting = dataclasses.replace(self.setting, workers=workers)
        for stage in lane:
            self._say(f"{stage.name}: {stage.proves} ...", flush=True)
        with concurrent.futures.ThreadPoolExecutor(len(lane)) as pool:
            running = {pool.submit(self._one, stage, setting, log): stage for stage in lane}
            for future in concurrent.futures.as_completed(running):
                self._note(running[future], *future.result())

    def _one(self, stage, setting, log):
        left = self.deadline - time.monotonic()
        if left < LEAST:
            return StageResult(results.NOT_RUN, reason="no time was left"), []
        build = self.record.stages.get("build")
        if stage.needs_build and build and build.status not in (results.PASSED, results.SKIPPED):
            return StageResult(results.NOT_RUN, reason="the build failed"), []
        return self._run(stage, setting, min(stage.limit, left), log)

    def _note(self, stage, result, told):
        """Into the record, and onto the disk."""
        record = self.record
        before = record.stages.get(stage.name)
        if result.status != results.NOT_RUN or before is None:
            record.stages[stage.name] = result
        for event in told:
            if event["kind"] == "fact":
                record.machine[event["name"]] = event["value"]
            elif event["kind"] == "row":
                record.add_row(event["title"], event["figures"])
        record.targets = self._judge(record.rows)
        write(record, self.output)
        counts = f"{result.passed} passed, {len(result.failures)} failed, {result.skipped} skipped"
        self._say(
            f"{stage.name}: {result.status} in {result.seconds:.0f} s: {counts} {result.reason}"
        )
        for test, reason in list(result.failures.items())[:10]:
            self._say(f"    {test}: {reason}")
        if result.log_tail:
            self._say("\n".join("    | " + line for line in result.log_tail.splitlines()[-25:]))
        sys.stdout.flush()


def log_folder(output):
    """Logs are long: they stay out of the folder of results."""
    if output.resolve() != results.RESULTS:
        return output
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    return folder


def write(record, output):
    results.save(record, output)
    (Path(output) / f"{record.name}.txt").write_text(table.render(record))


def new_record(options):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Record(
        sources=results.source_hashes(),
        rehearsal=options.rehearse,
        commit=options.commit or results.commit(),
        dates=[now],
    )


def continued(record, output):
    """The record with what earlier sessions found of the same sources on the same GPU."""
    path = Path(output) / f"{record.name}.json"
    if record.rehearsal or not path.exists():
        return record
    try:
        return results.merge([results.load(path), record])
    except ValueError as error:
        print(f"the record in {path} is replaced: {error}")
        return record


def look(setting, record, output):
    """The stage `machine` comes before everything: it says where the rest goes."""
    (machine,) = stages.chosen("machine")
    output.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as log:
        result, told = runner.run(machine, setting, machine.limit, log)
    record.machine = {event["name"]: event["value"] for event in told if event["kind"] == "fact"}
    record.stages["machine"] = result
    return result.status == results.PASSED


def merge_files(options):
    """Records from elsewhere, say from a lent machine, into the folder of results."""
    records = [results.load(path) for path in options.merge]
    merged = results.merge(records)
    merged = continued(merged, options.output)
    if not merged.commit and merged.sources == results.source_hashes():
        merged.commit = options.commit or results.commit()
    merged.targets = _targets_module().judge(merged.rows)
    write(merged, options.output)
    print(table.render(merged))
    return 0


def arguments():
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", default="all", help="names or groups, separated by commas")
    parser.add_argument("--quick", action="store_true", help="short for --stages quick")
    parser.add_argument("--list", action="store_true", help="name stages and groups, run nothing")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, to try the session")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="for all")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the record goes")
    parser.add_argument("--commit", default="", help="of this tree, where there is no .git")
    parser.add_argument("--workers", type=int, metavar="N", help="of pytest, with pytest-xdist")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="JSON", help="only merge these")
    options = parser.parse_args()
    rehearsal = ROOT / "build" / "gpu-rehearsal"
    options.output = options.output or (rehearsal if options.rehearse else results.RESULTS)
    if options.workers is None:
        processors = min(os.cpu_count() or 1, 2 if options.rehearse else 12)
        options.workers = processors if importlib.util.find_spec("xdist") else 1
    return options


def show_list():
    print(table.columns([("stage", "limit s", "proves")] + [
        (stage.name, f"{stage.limit:.0f}", stage.proves) for stage in stages.STAGES
    ], left=(0, 2)))  # fmt: skip
    for name, members in stages.GROUPS.items():
        print(f"{name}: {', '.join(members)}")
    return 0


def main():
    began = time.monotonic()
    options = arguments()
    if options.list:
        return show_list()
    if options.merge:
        return merge_files(options)
    chosen = stages.chosen("quick" if options.quick else options.stages)
    record = new_record(options)
    build = str(ROOT / "build" / ("gpu-rehearsal/cmake" if options.rehearse else "gpu"))
    setting = stages.Setting(options.rehearse, workers=options.workers, build=build)
    if not look(setting, record, options.output):
        print(record.stages["machine"].log_tail)
        print("make gpu: no GPU that torch can use was found here; --rehearse runs on the CPU.")
        return 1
    record = continued(record, options.output)
    setting = dataclasses.replace(setting, arch=record.machine.get("arch", ""))
    print(f"{record.gpu}; torch {record.machine['torch']}; {len(chosen)} stages", flush=True)
    session = Session(record, setting, options.output, began + options.budget)
    good = session.run([stage for stage in chosen if stage.name != "machine"])
    print(f"\n{table.render(record)}\n{table.summary(record)}")
    print(f"{time.monotonic() - began:.0f} s; record: {options.output / record.name}.json, .txt")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
