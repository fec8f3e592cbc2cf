# SPDX-License-Identifier: GPL-3.0-or-later
"""run_checks.py GROUP...: run make targets, whatever became of those before, and sum up.

The groups run one after another. The lanes of a group, with `|` between them, run at the same time, and the targets of a lane one after
another: "lint docs | molecule" unit.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(".build/results")


class Row(NamedTuple):
    target: str
    status: int
    seconds: float


def counts() -> tuple[int, int]:
    """Count the passed and the failed tests in what the pytest runs have left."""
    passed = failed = 0
    for path in sorted(RESULTS.glob("*.xml")):
        for suite in ET.parse(path).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            failed += bad
            passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
    return passed, failed


def run_lane(lane: str, alone: bool) -> list[Row]:
    """Run its targets. What they print comes at once if no other lane prints, or else when each has ended."""
    rows = []
    for target in lane.split():
        began = time.monotonic()
        make = ["make", "--no-print-directory", target]
        if alone:
            print(f"\n=== {target}", flush=True)
            done = subprocess.run(make, check=False)
        else:
            done = subprocess.run(make, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            print(f"\n=== {target}\n{done.stdout}", end="", flush=True)
        rows.append(Row(target, done.returncode, time.monotonic() - began))
    return rows


def main(groups: list[str]) -> int:
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for group in groups:
        lanes = group.split("|")
        with ThreadPoolExecutor(len(lanes)) as pool:
            for done in pool.map(run_lane, lanes, [len(lanes) == 1] * len(lanes)):
                rows += done
    print()
    for target, status, seconds in rows:
        print(f"{target:12} {'failed' if status else 'ok':6} {seconds:5.0f} s")
    passed, failed = counts()
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(any(row.status for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
