# SPDX-License-Identifier: GPL-3.0-or-later
"""Process 1 of a hypervisor: gives the fresh namespaces their own view of the machine, then reaps.

Runs as ``unshare ... --fork python3 init.py NAME DIRECTORY``, so this file stands alone. Its record, DIRECTORY/init
(pid and start time as seen outside), comes first, so that nothing runs which ``down`` could not find;
DIRECTORY/ready comes last.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

PRIVATE = ("/var/lib/libvirt", "/etc/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/var/lib/live_backup")


def mount(*arguments: str) -> None:
    """Mount, or end here with what mount says."""
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])
    # /proc is still the one outside: it shows our pid and start time as `down` will look for them.
    stat = Path("/proc/self/stat").read_text(encoding="ascii")
    (directory / "init").write_text(f"{stat.split()[0]} {stat.rpartition(')')[2].split()[19]}", encoding="ascii")

    socket.sethostname(name)
    # QEMU has a mount namespace of its own: it sees what is mounted later only if mounts propagate into it.
    mount("--make-rshared", "/")
    mount("-t", "proc", "proc", "/proc")
    # A fresh sysfs has no cgroups: equal guests of two hypervisors would share one.
    subprocess.run(["umount", "--lazy", "--recursive", "/sys"], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for path in PRIVATE:
        Path(path).mkdir(parents=True, exist_ok=True)
        mount("--bind", str(directory / "host" / path.strip("/").replace("/", "-")), path)
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {name}\n", encoding="ascii")
    mount("--bind", str(hosts), "/etc/hosts")
    # libvirt asks QEMU anew at every call as long as the two disagree whether KVM can be used: here nobody can use it.
    if Path("/dev/kvm").exists():
        no_kvm = directory / "no-kvm"
        no_kvm.touch(mode=0o600)
        mount("--bind", str(no_kvm), "/dev/kvm")
    # Every `up` is a boot, and claims tell boots apart by this number.
    boot_id = directory / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
    mount("--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    (directory / "ready").touch()
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
