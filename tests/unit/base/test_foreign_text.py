# SPDX-License-Identifier: GPL-3.0-or-later
"""What others say is one printable line, wherever it enters, and not longer than a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import ADVICE, LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import parse_domain
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.jobs import job_fields
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import find_set, list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.address import parse
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.client import FarEnd
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.server import MARK

from ..support.sets import make_set

HOSTILE = "\x1b[31mred\x1b[0m\n\n## Restore\n```\n\x07" + "x" * 5000


def is_shown(text: str, most: int) -> bool:
    return text.isprintable() and len(text) <= most


def test_libvirts_word_on_a_job() -> None:
    job = job_fields({"type": 4, "operation": 9, "errmsg": HOSTILE})
    assert job is not None and job["error"].startswith("red ## Restore ``` xxx") and is_shown(job["error"], 200)


def test_what_is_not_captured() -> None:
    folder = "<filesystem type='mount'><source dir='/srv/a&#10;## Restore&#10;```&#x85;b'/></filesystem>"
    text = f"<domain><name>db1</name><uuid>u</uuid><os/><devices>{folder}</devices></domain>"
    assert parse_domain(text).secrets == ("shared folder /srv/a ## Restore ``` b",)


def test_names_at_a_target(tmp_path: Path) -> None:
    make_set(tmp_path)
    odd = tmp_path / "db1/a\x1b[2K\rb\nc"
    odd.symlink_to("/")
    (tmp_path / "db1/\x1b]0;\u202emore").mkdir()
    (tmp_path / "db1/\x1b]0;\u202emore/manifest.json").touch()
    found = list_sets(str(tmp_path), [])
    assert [text for text in found["findings"] if "is a link" in text] == [f"{tmp_path}/db1/a[2K b c is a link, and is not followed."]
    # The name itself is what finds it again.
    assert "\x1b]0;\u202emore" in [one["backup_id"] for one in found["sets"]]
    with pytest.raises(LiveBackupError) as failed:
        find_set(str(tmp_path), "db1", "none")
    assert "]0;more (damaged)" in failed.value.msg and failed.value.msg.isprintable()


def answering(answer: object) -> str:
    """A far end that takes the program and answers what it likes."""
    return f"head -c 9 >/dev/null; echo '{MARK}'; cat <<'END'\n{json.dumps(answer)}\nEND\ncat >/dev/null"


@pytest.mark.parametrize(
    ("script", "begins"),
    [
        (f"printf '%s' '{HOSTILE}' >&2; exit 255", "ssh to far failed: red ## Restore ``` xxx"),
        (answering({"code": "set_in_use", "error": HOSTILE}), "On far: red ## Restore ``` xxx"),
        (answering({"error": HOSTILE, "file": HOSTILE}), "ssh://far/a was not written: red ## Restore ``` xxx"),
        (answering({"error": "full", "errno": 28}), f"ssh://far/a was not written: full. {ADVICE[28].text}"),
        (answering({"error": [HOSTILE], "errno": "x", "file": {}}), "far sent an unexpected answer"),
        (answering({HOSTILE: 1}), "far sent an unexpected answer"),
    ],
)
def test_a_server(ssh: Callable[[str], None], script: str, begins: str) -> None:
    ssh(script)
    with pytest.raises(LiveBackupError) as failed, FarEnd(parse("ssh://far/a", None, [])) as far_end:
        far_end.look()
    assert failed.value.msg.startswith(begins) and is_shown(failed.value.msg, 1300)
