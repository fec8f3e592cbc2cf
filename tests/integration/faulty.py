# SPDX-License-Identifier: GPL-3.0-or-later
"""faulty.py FAULT MODULE: run a module that dies, or stops, at one call of libvirt.

FAULT is `<signal> before|after <method of virDomain>`, as in `KILL before backupBegin`; empty for none. Only the tests load this.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

fault, module = sys.argv[1:]
if fault:
    import libvirt

    number, when, method = fault.split()
    real = getattr(libvirt.virDomain, method)

    def faulty(self, *arguments):  # type: ignore[no-untyped-def]
        if when == "before":
            os.kill(os.getpid(), getattr(signal, f"SIG{number}"))
        result = real(self, *arguments)
        if when == "after":
            os.kill(os.getpid(), getattr(signal, f"SIG{number}"))
        return result

    setattr(libvirt.virDomain, method, faulty)
sys.argv = [module]
runpy.run_module(module, run_name="__main__")
