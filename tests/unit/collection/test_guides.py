# SPDX-License-Identifier: GPL-3.0-or-later
"""What the guides point to is there. The site's build checks more, and the guides in docs/ only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UTILS = ROOT / "plugins/module_utils"
GUIDES = sorted(path for glob in ("*.md", "docs/*.md", "docs/internals/*.md", "roles/*/README.md") for path in ROOT.glob(glob))
INTERNALS = {path.name for path in (ROOT / "docs/internals").glob("*.md")}


def prose(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(guide: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(guide)):
        if not link.startswith("https://"):
            name, _hash, anchor = link.partition("#")
            to = (guide.parent / name).resolve() if name else guide
            assert to.exists(), link
            assert not anchor or anchor in anchors(to), link


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_of_the_code_are_there(guide: Path) -> None:
    """`_overlay/decide` is a file, `_overlay/` a room."""
    for name in re.findall(r"`(_[a-z]+/[a-z_/]*)`", prose(guide)):
        assert (UTILS / f"{name}.py").is_file() or (UTILS / name).is_dir(), name


def test_every_room_is_on_the_map() -> None:
    table = re.findall(r"^\| `(_[a-z]+)` \|", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(path.name for path in UTILS.iterdir() if path.is_dir() and not path.name.startswith("__"))


def test_the_code_names_the_page_that_explains_it() -> None:
    named = {name for path in UTILS.rglob("*.py") for name in re.findall(r"docs/internals/([\w-]+\.md)", path.read_text(encoding="utf-8"))}
    assert named == INTERNALS
