# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program of modules of ours: for a host that has none of them, or for later, when this module's files are gone."""

from __future__ import annotations

import inspect
import sys

_ROOT = __name__[: -len("._base.program")]
_START = """
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import spec_from_loader

TEXTS = {texts!r}


class Importer(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        is_package = any(one.startswith(name + ".") for one in TEXTS)
        return spec_from_loader(name, self, is_package=is_package) if is_package or name in TEXTS else None

    def exec_module(self, module):
        exec(compile(TEXTS.get(module.__name__, ""), module.__name__, "exec"), module.__dict__)


sys.meta_path.insert(0, Importer())
from {package} import {module}
sys.exit({module}.main())
"""


def text_of(name: str) -> str:
    """The text of a module that is imported."""
    return inspect.getsource(sys.modules[name])


def loaded_texts() -> dict[str, str]:
    """The texts of all modules of ours that are imported here."""
    ours = [name for name in sorted(sys.modules) if name.startswith(f"{_ROOT}._")]
    # The packages have no text. In Ansible's archive of a module each has an empty file all the same.
    return {name: text_of(name) for name in ours if not hasattr(sys.modules[name], "__path__")}


def packed(start: str, texts: dict[str, str]) -> bytes:
    """What a Python runs to call `main()` of the module `start`, of these."""
    package, _dot, module = _short(start).rpartition(".")
    return _START.format(texts={_short(name): text for name, text in texts.items()}, package=package, module=module).encode()


def _short(name: str) -> str:
    return f"far{name[len(_ROOT) :]}"
