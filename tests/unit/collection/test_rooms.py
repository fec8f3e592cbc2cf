# SPDX-License-Identifier: GPL-3.0-or-later
"""The rooms of module_utils: arrows go down only, and what docs/architecture.md says of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._capture.methods import METHODS
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.schema import CLAIM

ROOT = Path(__file__).parents[3] / "plugins/module_utils"
# From the lowest floor to the highest: a room imports from those before it.
ROOMS = (
    *("_base", "_image", "_hypervisor", "_sets", "_target", "_claim", "_overlay", "_capture", "_copy", "_recovery"),
    *("_restore", "_proof", "_files", "_operations"),
)
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
# What runs on a backup server, and what that may import.
ON_SERVER = ("_base", "_image", "_sets")


def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def rooms_imported(name: str, tree: ast.Module) -> Iterator[str]:
    """The other rooms that a file imports from."""
    here = name.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = here[: len(here) - node.level + 1]
            path = [*above, *(node.module or node.names[0].name).split(".")]
            if path[0] != here[0]:
                yield path[0]


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> list[str]:
    given = function.args
    return [one.arg for one in [*given.posonlyargs, *given.args, *given.kwonlyargs] if one.arg not in ("self", "cls")]


def test_every_file_is_in_a_room() -> None:
    assert {name.split("/")[0] for name in FILES} == {*ROOMS, "_module.py"}


@pytest.mark.parametrize("name", [name for name in FILES if "/" in name])
def test_arrows_go_down(name: str) -> None:
    floor = ROOMS.index(name.split("/")[0])
    assert [room for room in rooms_imported(name, tree_of(name)) if room not in ROOMS[:floor]] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.split("/")[0] == "_sets"])
def test_sets_can_be_read_on_a_server(name: str) -> None:
    assert set(rooms_imported(name, tree_of(name))) <= set(ON_SERVER)


def test_an_arrow_up_is_found() -> None:
    tree = ast.parse("from .._operations.begin import begin\nfrom . import server")
    assert list(rooms_imported("_target/x.py", tree)) == ["_operations"]
    assert list(rooms_imported("_target/ssh/x.py", ast.parse("from ..._sets.read import SUMS"))) == ["_sets"]


@pytest.mark.parametrize("name", FILES)
def test_only_operations_see_the_options_of_a_module(name: str) -> None:
    seen = [function.name for function in functions(tree_of(name)) if "params" in parameters(function)]
    assert not seen or name.startswith("_operations/") or name == "_module.py"


@pytest.mark.parametrize("name", FILES)
def test_functions_are_small(name: str) -> None:
    large = [
        function.name
        for function in functions(tree_of(name))
        if len(parameters(function)) > 6 or (function.end_lineno or 0) - function.lineno >= 60
    ]
    assert large == []


@pytest.mark.parametrize("name", FILES)
def test_no_code_asks_for_a_method_by_its_name(name: str) -> None:
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in METHODS for part in [node.left, *node.comparators])
    ]
    assert compared == []


def test_a_claim_names_a_method_that_there_is() -> None:
    assert set(CLAIM["properties"]["method"]["enum"]) == set(METHODS)
