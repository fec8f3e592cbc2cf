# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The program that is sent to a backup server: the server module, and every module of ours that it imports."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import resolve_name

from ..._base.program import packed, text_of
from . import server


@cache
def program() -> bytes:
    """What the server's Python runs. It needs the standard library only."""
    texts: dict[str, str] = {}
    _add(server.__name__, texts)
    return packed(server.__name__, texts)


def _add(name: str, texts: dict[str, str]) -> None:
    """Add the text of a module, and of the modules of ours that it imports."""
    if name in texts:
        return
    text = texts[name] = text_of(name)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            _add(resolve_name("." * node.level + str(node.module), name.rpartition(".")[0]), texts)
