# SPDX-License-Identifier: GPL-3.0-or-later
"""faulty.py FAULT MODULE: run a module that dies, or stops, at one call. Only the tests load this.

FAULT is `<signal> before|after <call>`, as in `KILL before backupBegin`; empty for none. The call is a method of virDomain or virConnect,
or a function or method of one of our module_utils or of the standard library: `_commit.Way._delete`, `pathlib.Path.rename`.
With a number of seconds instead of before or after, libvirtd is killed so long after the call began, and then the module gets its signal.
Or the signal is HANG: libvirtd is stopped instead, and the module gives up what does not answer after seconds rather than minutes; or
DEAF, the same where it does not give libvirt up.
Or FAULT is `crawl`: block commits get nowhere, until somebody gives them speed; or `impatient`: what hangs is given up after seconds.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

UTILS = "ansible_collections.virtops.live_backup.plugins.module_utils."


def be_impatient(keepalive: tuple[int, int] = (1, 1)) -> None:
    """Give up after seconds."""
    connection, signals = (importlib.import_module(UTILS + name) for name in ("_connection", "_signals"))
    connection.KEEPALIVE, connection.OPEN_SECONDS, signals.DEAF_SECONDS = keepalive, 2.0, 3.0


def arm(number: str, when: str, call: str) -> None:
    """Let the process get the signal at its first such call."""

    def libvirtd() -> int:
        return int(Path("/run/libvirtd.pid").read_text(encoding="ascii"))

    def strike() -> None:
        if number in ("HANG", "DEAF"):
            os.kill(libvirtd(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), getattr(signal, f"SIG{number}"))

    if number in ("HANG", "DEAF"):
        be_impatient((1, 1) if number == "HANG" else (-1, 0))

    def strike_libvirtd_first() -> None:
        os.kill(libvirtd(), signal.SIGKILL)
        strike()

    if "." not in call:
        kind = "virDomain" if hasattr(importlib.import_module("libvirt").virDomain, call) else "virConnect"
        call = f"libvirt.{kind}.{call}"
    owner, _dot, name = call.rpartition(".")
    first, *rest = owner.split(".")
    place = importlib.import_module(UTILS + first if first.startswith("_") else first)
    for part in rest:
        place = getattr(place, part)
    real = getattr(place, name)

    def faulty(*arguments, **options):  # type: ignore[no-untyped-def]
        if when == "before":
            strike()
        elif when != "after":
            threading.Timer(float(when), strike_libvirtd_first).start()
        result = real(*arguments, **options)
        if when == "after":
            strike()
        return result

    setattr(place, name, faulty)


def crawl() -> None:
    """Let commits begin with a limit of one byte a second."""
    libvirt = importlib.import_module("libvirt")
    real = libvirt.virDomain.blockCommit

    def slow(domain, disk, base, top, bandwidth, flags):  # type: ignore[no-untyped-def]
        return real(domain, disk, base, top, 1, flags | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)

    libvirt.virDomain.blockCommit = slow


if __name__ == "__main__":
    fault, module = sys.argv[1:]
    if fault == "crawl":
        crawl()
    elif fault == "impatient":
        be_impatient()
    elif fault:
        arm(*fault.split())
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")
