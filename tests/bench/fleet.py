# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain costs in a fleet, however many there are: they are small and shut off, so that little but the fixed cost is measured."""

from __future__ import annotations

import json
import shutil
import sys
import time

from tests.rig.fleet import Fleet
from tests.rig.guest import MIB

# Hypervisors, and domains on all of them together.
RUNS = ((1, 1), (1, 4), (1, 16), (2, 4), (2, 16), (4, 4), (4, 16))


def measure(hypervisors: int, domains: int) -> float:
    """The seconds of one run of backup.yml."""
    with Fleet("bench-fleet", hypervisors) as fleet:
        for number in range(domains):
            fleet.hypervisors[number % hypervisors].guest(f"d{number}", "shut-off", size=8 * MIB)
        target = fleet.directory / "backup"
        target.mkdir()
        best = float("inf")
        for _round in range(2):
            began = time.monotonic()
            running = fleet.start("virtops.live_backup.backup", backup_target=str(target), forks=20)
            output, _none = running.communicate()
            if running.returncode != 0:
                sys.exit(output)
            best = min(best, time.monotonic() - began)
            found = [json.loads(path.read_text(encoding="utf-8")) for path in target.glob("*/*/manifest.json")]
            assert len(found) == domains, found
            shutil.rmtree(target)
            target.mkdir()
        return best


def main() -> None:
    print("hypervisors  domains  seconds  seconds a domain  beyond the first")
    first = 0.0
    for hypervisors, domains in RUNS:
        seconds = measure(hypervisors, domains)
        first = first or seconds
        beyond = f"{(seconds - first) / (domains - 1):.2f}" if domains > 1 else ""
        print(f"{hypervisors:11}  {domains:7}  {seconds:7.1f}  {seconds / domains:16.2f}  {beyond:>16}", flush=True)


if __name__ == "__main__":
    main()
