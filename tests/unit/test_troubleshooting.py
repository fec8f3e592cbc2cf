# SPDX-License-Identifier: GPL-3.0-or-later
"""Every message that docs/troubleshooting.md explains is still one that a user can meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
# Ansible's own.
FOREIGN = {"could not match supplied host pattern, ignoring: hypervisors", "connection closed due to keepalive timeout"}


def texts() -> Iterator[str]:
    """The texts of the plugins that are no documentation, and the roles and playbooks, with … for what is put in."""
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            # A module's documentation has lines, no message has.
            elif isinstance(node, ast.Constant) and node not in docstrings and "\n" not in str(node.value):
                yield re.sub(r"\{\w+\}", "…", str(node.value))
    for folder in ("roles", "playbooks"):
        for path in sorted((ROOT / folder).rglob("*.yml")):
            yield " ".join(re.sub(r"\{\{.*?\}\}", "…", path.read_text(encoding="utf-8"), flags=re.DOTALL).split())


TEXTS = list(texts())


@pytest.mark.parametrize("quoted", [quoted for quoted in QUOTED if quoted not in FOREIGN])
def test_the_message_is_there(quoted: str) -> None:
    wanted = re.compile(".*".join(re.escape(piece) for piece in quoted.split("…")))
    assert any(wanted.search(text) for text in TEXTS)


def test_many_messages_are_explained() -> None:
    assert len(QUOTED) == len(set(QUOTED)) > 30
