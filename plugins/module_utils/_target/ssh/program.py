# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that is sent to a backup server: the server module, every module of ours that it imports, and an importer for them."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from importlib.util import resolve_name

from . import server

_ROOT = server.__name__[: -len("._target.ssh.server")]
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
from far._target.ssh import server
sys.exit(server.main())
"""


@cache
def program() -> bytes:
    """What the server's Python runs. It needs the standard library only."""
    texts: dict[str, str] = {}
    _add(server.__name__, texts)
    return _START.format(texts=texts).encode()


def _add(name: str, texts: dict[str, str]) -> None:
    """Add the text of a module, and of the modules of ours that it imports."""
    short = f"far{name[len(_ROOT) :]}"
    if short in texts:
        return
    text = texts[short] = inspect.getsource(sys.modules[name])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            _add(resolve_name("." * node.level + str(node.module), name.rpartition(".")[0]), texts)
