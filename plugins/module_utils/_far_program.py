# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that is sent to the far end of an ssh connection."""

from __future__ import annotations

import inspect

from . import (
    _backup_set,
    _check,
    _clock,
    _daemon_threads,
    _digest,
    _errors,
    _far_end,
    _files,
    _filesystem,
    _manifest_schema,
    _prune,
    _receive_set,
    _retention,
    _sets,
    _text,
)

# The far end and the modules that it imports, which come first.
FAR_MODULES = (
    _text,
    _errors,
    _clock,
    _files,
    _daemon_threads,
    _digest,
    _filesystem,
    _backup_set,
    _manifest_schema,
    _text,
    _sets,
    _check,
    _retention,
    _prune,
    _receive_set,
    _far_end,
)
_BEGIN = """
import sys, types
sys.modules["far"] = types.ModuleType("far")
sys.modules["far"].__path__ = []
for name, text in {texts!r}:
    module = sys.modules["far." + name] = types.ModuleType("far." + name)
    module.__package__ = "far"
    exec(compile(text, name + ".py", "exec"), module.__dict__)
sys.exit(module.main())
"""


def program() -> bytes:
    """What the far end's Python runs: the modules as a package of their own."""
    return _BEGIN.format(texts=[(one.__name__.rpartition(".")[2], inspect.getsource(one)) for one in FAR_MODULES]).encode()
