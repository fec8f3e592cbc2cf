# SPDX-License-Identifier: GPL-3.0-or-later
"""What a domain's metadata says about its backups, and what is refused in it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import is_duration, rfc3339
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.policy import Policy, policy_of, why_not_due
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.bindings import libvirt
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domains import read_policy

XML = """<domain type='kvm'><name>db1</name><uuid>00000000-0000-0000-0000-000000000001</uuid><metadata>
<other:policy xmlns:other="https://example.org/1" backup="never"/>
<live_backup:policy xmlns:live_backup="https://github.com/virtops/live_backup/policy/1" {}</live_backup:policy></metadata></domain>"""


@dataclass
class Defined:
    """A domain that runs with no policy yet, and has one in its definition."""

    definition: str

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        return self.definition if flags == libvirt.VIR_DOMAIN_XML_INACTIVE else "<domain/>"


def read(attributes: str, children: str = "") -> Policy:
    return policy_of("db1", read_policy(Defined(XML.format(f"{attributes}>{children}"))))


def test_a_domain_without_a_policy() -> None:
    assert policy_of("db1", read_policy(Defined("<domain/>"))) == Policy(backup=True, exclude_disks=[], keep={}, objectives={})


def test_all_that_a_policy_says() -> None:
    found = read("backup='no' every='7d' exclude_disks=' vdb\tvdc ' keep_daily='14' keep_last='0' rpo='4h' rto='90s' proof='1.5w'")
    assert found == Policy(False, "7d", ["vdb", "vdc"], {"last": 0, "daily": 14}, {"rpo": "4h", "rto": "90s", "proof": "1.5w"})
    assert read("", "<!-- why -->") == Policy()


@pytest.mark.parametrize(
    ("attributes", "children", "says"),
    [
        ("keep='7'", "", "it has keep, and may have backup, exclude_disks, keep_last,"),
        ("", "<keep daily='7'/>", "it has <keep>, and may have"),
        ("x:rpo='4h' xmlns:x='urn:x'", "", "it has {urn:x}rpo, and may have"),
        ("backup='never'", "", "backup is 'never', and may be yes or no"),
        ("backup=''", "", "backup is '', and may be yes or no"),
        ("keep_daily='-1'", "", "keep_daily is '-1', and must be a number"),
        ("keep_daily='7 '", "", "keep_daily is '7', and must be a number"),
        ("keep_daily='٣'", "", "must be a number"),
        ("keep_daily='0' keep_last='0'", "", "its rules keep no backup at all"),
        ("rpo='4'", "", "rpo is '4', and must be a number with s, m, h, d or w"),
        ("proof='0d'", "", "proof is '0d', and must be a number with"),
        ("rto='&#10;5m'", "", "rto is '5m', and must be a number with"),
    ],
)
def test_what_is_not_understood_is_refused(attributes: str, children: str, says: str) -> None:
    with pytest.raises(LiveBackupError, match="domain 'db1' has a backup policy that is not valid") as caught:
        read(attributes, children)
    assert says in caught.value.msg and caught.value.code == "policy_invalid"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("1s", True), ("0.5h", True), ("010d", True), ("0s", False), ("0.0s", False), ("5", False), ("1h ", False), (5, False)],
)
def test_a_duration(text: object, is_one: bool) -> None:
    assert is_duration(text) is is_one


NOW = 1_788_480_000.0


@pytest.mark.parametrize(
    ("days", "due"), [([], True), ([7], True), ([6.76], True), ([6.74], False), ([20, 0.1], False), ([20, 9], True), ([-1], True)], ids=str
)
def test_whether_a_backup_is_due(days: list[float], due: bool) -> None:
    why = why_not_due("7d", [rfc3339(NOW - age * 86400) for age in days], NOW)
    assert (why == "") is due
    assert due or "backed up every 7d" in why
