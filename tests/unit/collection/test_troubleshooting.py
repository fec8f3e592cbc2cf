# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/troubleshooting.md has a section for every code of an error, and the messages it quotes are those that a user can meet."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
QUOTED = re.findall(r"^(?:###|>) `(.+)`\\?$", PAGE, re.MULTILINE)
# Ansible's own.
FOREIGN = {"could not match supplied host pattern, ignoring: hypervisors"}


def trees() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        yield ast.parse(path.read_text(encoding="utf-8"))


def codes() -> Iterator[str]:
    """Every error's code is written out where the error is made, as `code="..."` or by a name beside it."""
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "code":
                yield from _constants(node.value)
            elif isinstance(node, ast.Assign):
                yield from _assigned(node.targets[0], node.value)


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name) and target.id == "code":
        yield from _constants(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts):
            yield from _assigned(one, its)


def _constants(value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from (*_constants(value.body), *_constants(value.orelse))
    elif isinstance(value, ast.Constant):
        yield str(value.value)


def texts() -> Iterator[str]:
    """The texts of the plugins that are no documentation, and the roles and playbooks, with … for what is put in."""
    for tree in trees():
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


def test_every_code_has_one_section_and_every_section_a_code() -> None:
    assert sorted(heading for heading in HEADINGS if not heading.startswith("`")) == sorted(set(codes()))


@pytest.mark.parametrize("code", sorted(set(codes())))
def test_a_code_is_one_plain_word(code: str) -> None:
    assert re.fullmatch("[a-z_]{1,60}", code)


def test_no_error_is_made_whose_code_is_not_seen_here() -> None:
    """A code that is a position's argument, as `LiveBackupError(msg, "some_code")`, would have no section."""
    for tree in trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("LiveBackupError", "Refusal", "NoAnswer")
            ):
                assert not any(isinstance(one, ast.Constant) for one in node.args[1:2]), ast.unparse(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Advice":
                assert [one.arg for one in node.keywords] == ["code"], ast.unparse(node)


@pytest.mark.parametrize("quoted", [quoted for quoted in QUOTED if quoted not in FOREIGN])
def test_the_message_is_there(quoted: str) -> None:
    wanted = re.compile(".*".join(re.escape(piece) for piece in quoted.split("…")))
    assert any(wanted.search(text) for text in TEXTS)
