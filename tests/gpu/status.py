"""`make gpu-status`: have the CUDA sources of this tree run on a GPU? One line; nothing is run."""

import argparse
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from gpu import results
from gpu.stages import CORRECTNESS


class State(Enum):
    NEVER = "never"
    STALE = "stale"  # other sources ran
    INCOMPLETE = "incomplete"  # these ran, but not through every stage that proves correctness
    FAILED = "failed"
    VERIFIED = "verified"


# What the README has to say in each state (tests/test_gpu_status.py).
README_PHRASES = {
    State.NEVER: "They have not run on a GPU yet",
    State.STALE: "They have changed since they last ran on a GPU",
    State.INCOMPLETE: "They have run on a GPU, but not through every check",
    State.FAILED: "Their last run on a GPU found faults",
    State.VERIFIED: "They have passed every check on",  # ... an NVIDIA H200
}


@dataclass(frozen=True)
class Status:
    state: State
    line: str


def status(records, sources):
    """Of these sources, by these records."""
    if not records:
        return Status(State.NEVER, "CUDA sources have not been run on a GPU, ever")
    current = [record for record in records if record.sources == sources]
    if not current:
        last = max(records, key=_date)
        changed = sorted(
            name
            for name in {**sources, **last.sources}
            if sources.get(name) != last.sources.get(name)
        )
        since = f"{last.commit or 'an unnamed commit'} ({last.gpu}, {_date(last)})"
        return Status(
            State.STALE,
            f"CUDA sources have not been run on a GPU since {since}; changed: {', '.join(changed)}",
        )
    found = [_of_current(record) for record in sorted(current, key=_date)]
    order = [State.FAILED, State.VERIFIED, State.INCOMPLETE]
    return min(found, key=lambda one: order.index(one.state))


def _of_current(record):
    where = f"{record.gpu}, {_date(record)}, {record.commit or 'commit not noted'}"
    bad = [
        name
        for name, stage in record.stages.items()
        if stage.failures or stage.status in (results.FAILED,)
    ]
    if bad:
        return Status(
            State.FAILED, f"CUDA sources failed on a GPU ({where}) in: {', '.join(sorted(bad))}"
        )
    missing = [
        name
        for name in CORRECTNESS
        if name not in record.stages or record.stages[name].status != results.PASSED
    ]
    if missing:
        return Status(
            State.INCOMPLETE,
            f"CUDA sources were run on a GPU ({where}), but without: {', '.join(missing)}",
        )
    counts = record.counts
    missed = [target["what"] for target in record.targets if target["held"] is False]
    speed = f"; speed targets missed: {', '.join(missed)}" if missed else ""
    return Status(
        State.VERIFIED,
        f"CUDA sources verified on {where}: {counts['passed']} tests passed, "
        f"{counts['skipped']} skipped{speed}",
    )


def _date(record):
    return max(record.dates, default="undated")


def main():
    parser = argparse.ArgumentParser(prog="make gpu-status", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="DIR")
    parser.add_argument("--strict", action="store_true", help="fail unless they are verified")
    options = parser.parse_args()
    found = status(results.stored(options.results), results.source_hashes())
    print(found.line)
    sys.exit(options.strict and found.state is not State.VERIFIED)


if __name__ == "__main__":
    main()
