# SPDX-License-Identifier: GPL-3.0-or-later
"""run_checks.py TARGET...: run each make target, whatever became of those before, and sum up."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

RESULTS = Path(".build/results")


def counts() -> tuple[int, int]:
    """Count the passed and the failed tests in what the pytest runs have left."""
    passed = failed = 0
    for path in sorted(RESULTS.glob("*.xml")):
        for suite in ET.parse(path).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            failed += bad
            passed += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))
    return passed, failed


def main(targets: list[str]) -> int:
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = []
    for target in targets:
        print(f"\n=== {target}", flush=True)
        began = time.monotonic()
        status = subprocess.run(["make", "--no-print-directory", target], check=False).returncode
        rows.append((target, "failed" if status else "ok", time.monotonic() - began))
    print()
    for target, result, seconds in rows:
        print(f"{target:12} {result:6} {seconds:5.0f} s")
    passed, failed = counts()
    print(f"{passed} passed, {failed} failed", flush=True)
    return int(any(row[1] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
