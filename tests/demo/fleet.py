# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a fleet: two hypervisors and a controller with SSH between them, two domains on each, three of them captured at one instant."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.rig.fleet import Fleet
from tests.rig.guest import MIB
from tests.rig.oracle import judge

from .run import say

GROUP = ["db1", "web1", "app1"]


def show() -> int:
    say("Two hypervisors, a backup server and a controller, each in namespaces of its own, and SSH between them")
    with Fleet("demo-fleet", 2) as fleet:
        for number, names in enumerate((["db1", "web1"], ["app1", "cache1"])):
            for name in names:
                fleet.hypervisors[number].guest(name, "several" if name == "db1" else "two-disks", rate=50, size=16 * MIB)
                print(f"  {name} runs on hv{number + 1}, and writes", flush=True)
        target = fleet.directory / "backup"
        target.mkdir()
        Path(".build/demo").mkdir(parents=True, exist_ok=True)
        say(f"virtops.live_backup.backup: every domain is a row; {', '.join(GROUP)} are captured at one instant")
        os.environ["ANSIBLE_FORCE_COLOR"] = str(int(sys.stdout.isatty()))
        running = fleet.start(
            "virtops.live_backup.backup",
            backup_target=str(target),
            backup_groups={"shop": GROUP},
            backup_progress_interval=2,
            status_report_directory=str(Path(".build/demo").resolve()),
        )
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
        if running.wait() != 0:
            return 1
        say("The proof, from the images alone")
        good = True
        for path in sorted(target.glob("*/*/manifest.json")):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            verdict = judge([(path.parent / disk["file"], disk["format"]) for disk in manifest["disks"]])
            group = manifest.get("group")
            together = f", group {group['name']} within {group['spread_ms']} ms" if group else ""
            print(f"  {manifest['domain']['name']}: {verdict}{together}")
            good = good and verdict.ok
        say("The end: nothing of it is left")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(show())
