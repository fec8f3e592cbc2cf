# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person reads is plain English: none of the words that CONTRIBUTING.md lists, and no long sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MOST_WORDS = 25
# Guides, by glob.
GUIDES = ["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/internals/*.md", "roles/*/README.md"]
# Documentation in Python and YAML.
DOCUMENTED = ["plugins/modules/*.py", "plugins/doc_fragments/*.py", "plugins/filter/*.yml", "roles/*/tasks/*.yml", "playbooks/*.yml"]
# Code whose messages are read.
MESSAGES = ["plugins/module_utils/**/*.py", "plugins/plugin_utils/*.py"]
# Each with what is said instead, as in CONTRIBUTING.md.
UNSAID = {
    r"tell|tells|telling|told": "report, show, say, name",
    r"rooms?": "free disk space",
    r"mend(s|ed|ing)?": "fix",
    r"heal(s|ed|ing)?": "recover, repair",
    r"fares?|fared": "status",
    r"anew": "again",
    r"meanwhile": "in the meantime, or nothing",
    r"of (itself|themselves|its own|their own|one's own|your own)": "automatically; its own ...",
    r"begin|begins|began|begun|beginning": "start",
    r"(?<!there )(is|are|was|were) no(?! longer)": "is not a",
    r"(is|are|was|were) to be": "must, can, will",
    r"so many": "N",
    r"stands?|stood": "is, stays; unchanged",
    r"more rarely": "less often",
    r"looks? whether": "check whether",
    r"the most (bytes|memory|virtual|seconds|processors)": "maximum",
    r"(goes|going|go|went) on": "continue",
    r"of which": "two sentences",
    r"wherein|whereof|thereby|hereby|thereof": "two sentences",
    r"VMs?": "domain, guest",
    r"far ends?": "backup server",
    r"archives?|dumps?": "backup set",
}
# The keys of documentation whose values are sentences.
READ = ("description", "short_description", "details", "notes", "requirements", "returned", "name", "msg", "fail_msg")
# The shape of the code is made of rooms; the list of words names what it is about.
ALLOWED = {("docs/architecture.md", "room"), ("docs/architecture.md", "rooms"), ("CONTRIBUTING.md", "room"), ("CONTRIBUTING.md", "rooms")}


def prose_of_guide(text: str) -> Iterator[str]:
    """The paragraphs, items and cells of Markdown, without code, tables of words and addresses."""
    text = re.sub(r"^```.*?^```", "", re.sub(r"(?m)^ +(?=```)", "", text), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- words -->.*?<!-- /words -->", "", text, flags=re.DOTALL)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "X", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.|\||#))", text):
        for cell in re.split(r"(?<!\\)\|", block) if block.lstrip().startswith("|") else [block]:
            yield " ".join(cell.split())


def prose_of_documentation(value: Any, key: str = "") -> Iterator[str]:
    """The sentences of a module's documentation; names, samples and defaults are none."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("sample", "default", "author", "choices", "link"):
                yield from prose_of_documentation(inner, name)
    elif isinstance(value, list):
        for item in value:
            yield from prose_of_documentation(item, key)
    elif isinstance(value, str) and key in READ:
        yield " ".join(re.sub(r"\b[A-Z]+\([^()]*(?:\([^()]*\))?[^()]*\)|{{.*?}}", "X", value, flags=re.DOTALL).split())


def documentation(path: Path) -> Iterator[Any]:
    if path.suffix == ".yml":
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        yield from (
            yaml.safe_load(part) if isinstance(part, str) else part for part in (found.values() if isinstance(found, dict) else found)
        )
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and "\n" in str(node.value.value):
            yield yaml.safe_load(str(node.value.value))


def messages(path: Path) -> Iterator[str]:
    """The texts in code that have words and are neither docstrings nor programs. X stands for a value that is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    joined = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node] if node not in joined | docstrings else []
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts if isinstance(part, ast.expr))
        if " " in text and not text.lstrip().startswith("import "):
            yield from prose_of_guide(text)


def texts() -> Iterator[tuple[str, str]]:
    guides = {path for glob in GUIDES for path in ROOT.glob(glob)}
    for path in sorted(guides):
        name = str(path.relative_to(ROOT))
        yield from ((name, prose) for prose in prose_of_guide(path.read_text(encoding="utf-8")))
    for path in sorted(path for glob in DOCUMENTED for path in ROOT.glob(glob)):
        name = str(path.relative_to(ROOT))
        yield from ((name, prose) for part in documentation(path) for prose in prose_of_documentation(part))
    for path in sorted(path for glob in MESSAGES for path in ROOT.glob(glob)):
        yield from ((str(path.relative_to(ROOT)), message) for message in messages(path))


TEXTS = list(texts())


def sentences(prose: str) -> list[str]:
    return re.split(r"(?<=[.:;?!])\s+|(?<=[.?!]\*\*)\s+", prose)


def pattern_of(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/-])(?:{words})(?![\w/-])", re.IGNORECASE)


@pytest.mark.parametrize("words", UNSAID)
def test_plain_words_are_used(words: str) -> None:
    pattern = pattern_of(words)
    found = [
        f"{name}: {match[0]!r} in: {prose}" for name, prose in TEXTS for match in pattern.finditer(prose) if (name, match[0]) not in ALLOWED
    ]
    assert not found, f"say {UNSAID[words]} instead:\n" + "\n".join(found)


def test_sentences_are_short() -> None:
    long = [(len(one.split()), name, one) for name, prose in TEXTS for one in sentences(prose)]
    found = [f"{name}: {words} words: {one}" for words, name, one in long if words > MOST_WORDS]
    assert not found, "\n".join(found)


def test_contributors_have_the_same_list() -> None:
    listed = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("<!-- words -->")[1].splitlines()
    unsaid = [word.strip() for line in listed[4:] if line.startswith("|") for word in re.split("[,;]", line.split("|")[2])]
    patterns = [pattern_of(words) for words in UNSAID]
    assert len(unsaid) > 20
    assert [word for word in unsaid if not any(pattern.search(f"{word} ") for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(pattern.search(f"{word} ") for word in unsaid)] == []


def test_something_was_read() -> None:
    assert len(TEXTS) > 800 and len({name for name, _prose in TEXTS}) > 30
