"""Stage: the C++ tests, where GoogleTest was there to build them."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gpu import events

LINE = re.compile(r"Test\s+#\d+: (\S.*?) \.+\s*(\*{3})?\s*(Passed|Failed|Not Run|Skipped)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True)
    options = parser.parse_args()
    ctest = shutil.which("ctest")
    if ctest is None:
        events.outcome("ctest", events.SKIPPED, "ctest is not installed")
        return 0
    jobs = str(os.cpu_count() or 1)
    command = [ctest, "--test-dir", str(options.build), "--output-on-failure", "-j", jobs]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    print(run.stdout, run.stderr)
    found = LINE.findall(run.stdout)
    for name, _, result in found:
        events.outcome(name, events.PASSED if result == "Passed" else events.FAILED, result)
    if not found:
        events.outcome("ctest", events.SKIPPED, "GoogleTest was not there when this was built")
        return 0
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
