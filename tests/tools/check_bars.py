# SPDX-License-Identifier: GPL-3.0-or-later
"""Check the rules of CONTRIBUTING.md that no linter knows: short plugins, no broad except, no sanity ignores."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LIMITS = {"plugins/modules": 100, "plugins/module_utils": 300, "plugins/action": 150}
DOCUMENTATION = {"DOCUMENTATION", "EXAMPLES", "RETURN"}
BROAD = {"Exception", "BaseException"}


def code_lines(source: str, tree: ast.Module) -> int:
    """Count the lines that are neither blank nor a comment nor a module's documentation."""
    documentation = {
        line
        for node in tree.body
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") in DOCUMENTATION for target in node.targets)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for number, line in lines if number not in documentation and line.strip() and not line.strip().startswith("#"))


def broad_excepts(tree: ast.Module) -> Iterator[int]:
    """Those that catch everything and end otherwise than by raising it again."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            last = node.body[-1]
            raises_again = isinstance(last, ast.Raise) and last.exc is None
            if not raises_again and any(kind is None or getattr(kind, "id", "") in BROAD for kind in caught):
                yield node.lineno


def findings(root: Path) -> Iterator[str]:
    for ignore in sorted(root.glob("tests/sanity/ignore*")):
        yield f"{ignore.relative_to(root)}: mend what it ignores"
    for path in sorted((root / "plugins").rglob("*.py")):
        name = path.relative_to(root).as_posix()
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, name)
        for line in broad_excepts(tree):
            yield f"{name}:{line}: broad except"
        for limited, limit in LIMITS.items():
            count = code_lines(source, tree)
            if name.startswith(limited + "/") and count > limit:
                yield f"{name}: {count} code lines, at most {limit}"


if __name__ == "__main__":
    found = list(findings(Path.cwd()))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))
