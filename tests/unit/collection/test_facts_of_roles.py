# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of roles. A fact ranks above the vars of a task or of an import: whoever passes a name that is a fact passes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILES = sorted([*(ROOT / "roles").rglob("tasks/*.yml"), *(ROOT / "playbooks").glob("*.yml")])


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document: plays, blocks and tasks among them."""
    if isinstance(node, dict):
        yield node
    for one in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from mappings(one)


def facts(document: Any) -> set[str]:
    return {name for one in mappings(document) for name in one.get("ansible.builtin.set_fact") or {} if name != "cacheable"}


def passed(document: Any) -> set[str]:
    return {name for one in mappings(document) if isinstance(one.get("vars"), dict) for name in one["vars"]}


def documents(paths: list[Path]) -> dict[str, Any]:
    return {path.relative_to(ROOT).as_posix(): yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


DOCUMENTS = documents(FILES)
FACTS = {name for document in DOCUMENTS.values() for name in facts(document)}


def test_there_are_facts_and_vars() -> None:
    assert "backup_result" in FACTS and any(passed(document) for document in DOCUMENTS.values())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_passed_is_never_a_fact(name: str) -> None:
    assert passed(DOCUMENTS[name]) & FACTS == set()
