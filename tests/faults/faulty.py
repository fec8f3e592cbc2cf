# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a module that dies, or stops, at one call, in a process of its own.

A fault is `<signal> before|after <call>`, as in `KILL before backupBegin`; empty for none. The call is a method of virDomain or virConnect,
or a function or method of one of our module_utils or of the standard library: `_commit.Way._delete`, `pathlib.Path.rename`. `<call>#3` is
the third such call. A call `far.<module>.<function>` is one of the program at the far end of an ssh:// target, or of the standard library
there, which gets the signal then.
With a number of seconds instead of before or after, libvirtd is killed so long after the call began, and then the module gets its signal.
Or the signal is HANG: libvirtd is stopped instead, and the module gives up what does not answer after seconds rather than minutes; or
DEAF, the same where it does not give libvirt up.
Or a fault is `crawl`: block commits get nowhere, until somebody gives them speed; `creep`: so do pushes; `nosync`: nothing is synced; or
`impatient`: what hangs is given up after seconds.
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

UTILS = "ansible_collections.virtops.live_backup.plugins.module_utils."


# What the far end's program runs before its main().
_FAR = """
import os, signal
place, names = sys.modules.get("far.{module}") or sys.modules["{module}"], "{name}"
real, calls = getattr(place, names), 0
def faulty(*arguments, **options):
    global calls
    calls += 1
    if calls == {number} and "{when}" == "before":
        os.kill(os.getpid(), signal.SIG{signal})
    result = real(*arguments, **options)
    if calls == {number} and "{when}" == "after":
        os.kill(os.getpid(), signal.SIG{signal})
    return result
setattr(place, names, faulty)
server.CALLS.update((key, faulty) for key, value in server.CALLS.items() if value is real)
"""


def be_impatient(keepalive: tuple[int, int] = (1, 1)) -> None:
    """Give up after seconds."""
    connection, signals = (importlib.import_module(UTILS + name) for name in ("_hypervisor.connection", "_base.signals"))
    connection.KEEPALIVE, connection.OPEN_SECONDS, signals.DEAF_SECONDS = keepalive, 2.0, 3.0
    connection.CALL_SECONDS, connection._LOOK_SECONDS = 4.0, 0.5


def arm(signal_name: str, when: str, call: str) -> None:
    """Let the process get the signal at that call."""
    call, _hash, number = call.partition("#")
    if call.startswith("far."):
        arm_far_end(signal_name, when, call, int(number or 1))
        return
    place, name = place_of(call)
    real, calls = getattr(place, name), 0

    def libvirtd() -> int:
        return int(Path("/run/libvirtd.pid").read_text(encoding="ascii"))

    def strike() -> None:
        if signal_name in ("HANG", "DEAF"):
            os.kill(libvirtd(), signal.SIGSTOP)
        else:
            os.kill(os.getpid(), getattr(signal, f"SIG{signal_name}"))

    if signal_name in ("HANG", "DEAF"):
        be_impatient((1, 1) if signal_name == "HANG" else (-1, 0))

    def strike_libvirtd_first() -> None:
        os.kill(libvirtd(), signal.SIGKILL)
        strike()

    def faulty(*arguments, **options):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        now = calls == int(number or 1)
        if now and when == "before":
            strike()
        elif now and when != "after":
            threading.Timer(float(when), strike_libvirtd_first).start()
        result = real(*arguments, **options)
        if now and when == "after":
            strike()
        return result

    for one, known_as in [(place, name), *imported(place, real)]:
        setattr(one, known_as, faulty)


def imported(place: object, function: object) -> list[tuple[object, str]]:
    """Where a function is known that is patched in the module that defines it, as if it had been before others imported it."""
    if not isinstance(place, ModuleType) or getattr(function, "__module__", "") != place.__name__:
        return []
    ours = [module for name, module in sys.modules.items() if name.startswith(UTILS)]
    return [(module, name) for module in ours for name, value in vars(module).items() if value is function]


def is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def place_of(call: str) -> tuple[object, str]:
    """Where a call is looked up, and its name there."""
    if "." not in call:
        kind = "virDomain" if hasattr(importlib.import_module("libvirt").virDomain, call) else "virConnect"
        call = f"libvirt.{kind}.{call}"
    owner, _dot, name = call.rpartition(".")
    prefix, parts = UTILS if owner.startswith("_") else "", owner.split(".")
    depth = next(depth for depth in range(len(parts), 0, -1) if is_module(prefix + ".".join(parts[:depth])))
    place = importlib.import_module(prefix + ".".join(parts[:depth]))
    for part in parts[depth:]:
        place = getattr(place, part)
    return place, name


def arm_far_end(signal_name: str, when: str, call: str, number: int) -> None:
    """Let the far end's program get the signal."""
    module, _dot, name = call.removeprefix("far.").rpartition(".")
    near = importlib.import_module(UTILS + "_target.ssh.client")
    begin, main, rest = near.program().decode().rpartition("sys.exit(server.main())")
    text = begin + _FAR.format(module=module, name=name, number=number, when=when, signal=signal_name) + main + rest
    near.program = text.encode


def crawl() -> None:
    """Let commits begin with a limit of one byte a second."""
    libvirt = importlib.import_module("libvirt")
    real = libvirt.virDomain.blockCommit

    def slow(domain, disk, base, top, bandwidth, flags):  # type: ignore[no-untyped-def]
        return real(domain, disk, base, top, 1, flags | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)

    libvirt.virDomain.blockCommit = slow


def creep() -> None:
    """Let pushes begin with a limit of one byte a second."""
    libvirt = importlib.import_module("libvirt")
    real = libvirt.virDomain.backupBegin

    def slow(domain, *arguments):  # type: ignore[no-untyped-def]
        result = real(domain, *arguments)
        for disk in ElementTree.fromstring(domain.backupGetXMLDesc()).iterfind("disks/disk[@backup='yes']"):
            domain.blockJobSetSpeed(disk.get("name"), 1)
        return result

    libvirt.virDomain.backupBegin = slow


def run(fault: str, module: str) -> None:
    """Run a module as the main program, with this fault."""
    if fault in ("crawl", "creep"):
        {"crawl": crawl, "creep": creep}[fault]()
    elif fault == "impatient":
        be_impatient()
        importlib.import_module(UTILS + "_target.ssh.client").SILENCE_SECONDS = 3.0
    elif fault == "nosync":
        os.fsync = os.fdatasync = lambda _file: None
    elif fault:
        arm(*fault.split())
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__")
