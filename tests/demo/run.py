# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a live backup: a hypervisor, a guest that writes, the playbook, the published set, and the proof; `stop` ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.rig.hypervisor import Hypervisor
from tests.rig.oracle import judge

NAME, GUEST = "demo", "web"
PYTHON = Path(sys.executable)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def show() -> int:
    say(f"A hypervisor of its own, with a guest that writes numbered blocks to three disks: {NAME}")
    hypervisor = Hypervisor.up(NAME)
    guest = next((one for one in hypervisor.guests() if one.name == GUEST), None) or hypervisor.guest(GUEST, "several")
    if guest.state() != "running":
        guest.start()
    subprocess.run([PYTHON, "-m", "tests.rig", "status", NAME], check=True)

    target = hypervisor.directory / "backup"
    target.mkdir(exist_ok=True)
    inventory = hypervisor.directory / "inventory.yml"
    host = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    inventory.write_text(json.dumps({"hypervisors": {"hosts": {NAME: host}}}), encoding="utf-8")
    command = [PYTHON.with_name("ansible-playbook"), "-i", inventory, "virtops.live_backup.backup", "-e", f"backup_target={target}"]
    durable = guest.durable()
    say("The backup, as on any hypervisor: " + " ".join([command[0].name, *map(str, command[1:])]))
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": str(int(sys.stdout.isatty()))}
    if hypervisor.popen(command, env=environment).wait() != 0:
        return 1

    newest = max(path for path in (target / GUEST).iterdir() if not path.name.startswith("."))
    say(f"What it published: {newest}")
    subprocess.run(["ls", "-l", newest], check=True)
    manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
    print(json.dumps({key: manifest[key] for key in ("domain", "method", "consistency", "job")}, indent=2))

    say("The proof, from the images alone: they hold exactly what the guest had written at one instant")
    verdict = judge([(newest / disk["file"], disk["format"]) for disk in manifest["disks"]], durable)
    print(verdict)
    print(f"The guest had told write {durable} to be durable before the backup began, and is at {guest.durable()} now.")

    say("Look around, and stop")
    print(f"  cat {newest}/RESTORE.md")
    print(f"  {PYTHON} -m tests.rig exec {NAME} -- virsh list --all")
    print(f"  tail -f {guest.directory}/console.log")
    print("  make demo        # once more: another set")
    print("  make demo-stop   # the end; nothing is left")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["stop"]:
        Hypervisor(NAME).down()
    else:
        sys.exit(show())
