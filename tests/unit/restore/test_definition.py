# SPDX-License-Identifier: GPL-3.0-or-later
"""A set's domain.xml comes from a target, which someone may have written to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._restore.definition import read_definition

GOOD = """<domain type='kvm'><name>web</name><uuid>5c1d3f4a-0000-4000-8000-000000000001</uuid><os><type>hvm</type></os>
<devices><disk><target dev='vda'/></disk></devices></domain>"""


def test_a_definition_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "domain.xml").write_text(GOOD, encoding="utf-8")
    assert read_definition(tmp_path) == GOOD


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<name>web</name>", "<name>web</name><name>../web</name>", "it has 2 elements name, not one"),
        ("</uuid>", "</uuid><uuid>another</uuid>", "it has 2 elements uuid, not one"),
        ("<devices>", "<devices/><devices>", "it has 2 elements devices, not one"),
        ("<name>web</name>", "", "it has 0 elements name, not one"),
        ("<name>web</name>", "<name/>", "it has no name"),
        ("<target dev='vda'/>", "<target/>", "it has a disk without a target"),
        ("<domain ", "<network ", "it is not XML"),
        ("domain", "network", "it does not describe a domain"),
    ],
)
def test_a_damaged_definition_is_refused(tmp_path: Path, old: str, new: str, problem: str) -> None:
    (tmp_path / "domain.xml").write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(LiveBackupError, match=re.escape(f"{tmp_path}/domain.xml is damaged: {problem}")) as caught:
        read_definition(tmp_path)
    assert caught.value.code == "set_damaged"
