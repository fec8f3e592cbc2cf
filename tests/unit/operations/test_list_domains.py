# SPDX-License-Identifier: GPL-3.0-or-later
"""Which domains are listed, and what is said of them; and how one's job is ended."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given, strategies as st

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_domains import choose_names, domain_info

from ..support.backup import Backup
from ..support.fake import libvirt
from ..support.raising import raises_code

INFO = {
    "uri": "qemu:///system",
    "domains": ["*"],
    "exclude_domains": [],
    "unmatched": "fail",
    "method": "auto",
    "prefer": "push",
}
NAMES = ["db1", "db2", "odd[1]", "web*", "web-1"]


@pytest.mark.parametrize(
    ("wanted", "excluded", "chosen"),
    [
        (["*"], [], NAMES),
        (["db1"], [], ["db1"]),
        (["db2", "db1", "db*"], [], ["db1", "db2"]),
        (["*"], ["db*"], ["odd[1]", "web*", "web-1"]),
        (["*"], ["nobody"], NAMES),
        (["db1"], ["db1"], []),
        (["odd[1]"], [], ["odd[1]"]),
        (["web*"], [], ["web*", "web-1"]),
        (["db[!1]"], [], ["db2"]),
        (["db?"], ["db2"], ["db1"]),
        ([], [], []),
    ],
)
def test_choose_names(wanted: list[str], excluded: list[str], chosen: list[str]) -> None:
    assert choose_names(NAMES, wanted, excluded) == (chosen, [])


@pytest.mark.parametrize(("pattern", "kind"), [("db3", "no domain 'db3'"), ("DB1", "no domain 'DB1'"), ("x*", "no domain that matches 'x")])
def test_a_wanted_name_that_matches_none(pattern: str, kind: str, backup: Backup) -> None:
    with pytest.raises(LiveBackupError) as caught:
        info(backup, domains=["*", pattern])
    assert kind in caught.value.msg and "it has: db1" in caught.value.msg
    told = info(backup, domains=["*", pattern], unmatched="tell")
    assert (told["matched"], told["unmatched"]) == (["*"], [pattern]) and [row["name"] for row in told["domains"]] == ["db1"]


def test_all_domains_of_a_host_that_has_none() -> None:
    assert choose_names([], ["*"], []) == ([], [])


WORDS = st.lists(st.text("ab[]*?!", max_size=4), max_size=5)


@given(WORDS.map(lambda names: sorted(set(names))), WORDS, WORDS)
def test_choose_names_equals_its_model(names: list[str], wanted: list[str], excluded: list[str]) -> None:
    pairs = [(name, pattern) for pattern in wanted for name in names if name == pattern or fnmatchcase(name, pattern)]
    unmatched = [pattern for pattern in wanted if pattern not in {pattern for _name, pattern in pairs} | {"*"}]
    out = {name for name in names for pattern in excluded if name == pattern or fnmatchcase(name, pattern)}
    assert choose_names(names, wanted, excluded) == (sorted({name for name, _pattern in pairs} - out), unmatched)


def info(backup: Backup, **options: Any) -> dict[str, Any]:
    return domain_info(
        {**INFO, **options},
        False,
        backup.clock,
    )


def test_a_domain_at_rest(backup: Backup) -> None:
    backup.domain.agent, backup.domain.checkpoints = "answers", ["monday"]
    listed = info(backup)
    [domain] = listed["domains"]
    assert not listed["changed"] and listed["host"] == {"libvirt": "9.0.0", "qemu": "7.2.0", "supports_push": True}
    expected = {"name": "db1", "uuid": backup.domain.uuid, "state": "running", "persistent": True, "agent": "connected", "nvram": ""}
    expected |= {"job": None, "block_jobs": [], "checkpoints": ["monday"], "claim": None, "method": "push"}
    assert {key: domain[key] for key in expected} == expected
    assert [(disk["target"], disk["source"], disk["capacity"], disk["skip_reason"]) for disk in domain["disks"]] == [
        ("vda", "/images/vda", 1 << 20, ""),
        ("vdb", "/images/vdb", 1 << 20, ""),
    ]
    assert "open" not in libvirt.host.calls


def test_a_domain_that_is_shut_off_and_an_old_host(backup: Backup) -> None:
    backup.domain.shut_off()
    libvirt.host.libvirt = 7_000_000
    listed = info(backup)
    [domain] = listed["domains"]
    assert (domain["state"], domain["method"], domain["job"]) == ("shutoff", "offline", None)
    assert not listed["host"]["supports_push"]


def test_a_backup_under_way_is_told_once_as_the_job_and_by_its_claim(backup: Backup) -> None:
    backup.begin()
    [domain] = info(backup)["domains"]
    assert domain["job"]["operation"] == "backup" and domain["block_jobs"] == []
    assert {key: domain["claim"][key] for key in ("backup_id", "method", "step", "alive")} == {
        "backup_id": "night-1", "method": "push", "step": "begin", "alive": True
    }  # fmt: skip
    backup.clock.sleep(10_000)
    assert not info(backup)["domains"][0]["claim"]["alive"]


def test_a_block_job(backup: Backup) -> None:
    backup.domain.block_jobs["vdb"] = {"type": 2, "bandwidth": 0, "cur": 1, "end": 2}
    assert info(backup)["domains"][0]["block_jobs"] == [{"disk": "vdb", "type": "copy", "cur": 1, "end": 2}]


@pytest.mark.parametrize("method", ["XMLDesc", "domainListGetStats"])
def test_a_transient_domain_that_goes_while_it_is_listed_does_not_hide_the_others(backup: Backup, method: str) -> None:
    gone = libvirt.DomainState("gone", "22222222-2222-4222-8222-222222222222", persistent=False)
    libvirt.host.domains[gone.uuid] = gone

    def vanish_at_the_second() -> None:
        if libvirt.host.calls.count(method) == 2:
            gone.shut_off()

    libvirt.host.before[method] = vanish_at_the_second
    assert [domain["name"] for domain in info(backup)["domains"]] == ["db1"]


PROOF = "<metadata><p:proof xmlns:p='https://github.com/virtops/live_backup/proof/1' directory='/run/live_backup/abc'/></metadata>"


def add(name: str, number: int, **options: Any) -> libvirt.DomainState:
    state = libvirt.DomainState(name, f"{number:08}-2222-4222-8222-222222222222", **options)
    libvirt.host.domains[state.uuid] = state
    return state


def test_the_guest_of_a_proof_is_no_domain_of_anybody(backup: Backup) -> None:
    add("live-backup-proof-abc", 1, metadata=PROOF)
    add("live-backup-proof-mine", 2)
    add("db2", 3, metadata=PROOF)
    assert [domain["name"] for domain in info(backup)["domains"]] == ["db1", "db2", "live-backup-proof-mine"]
    assert info(backup)["proofs"] == ["live-backup-proof-abc"]
    some = info(backup, domains=["live-*"])
    assert ([domain["name"] for domain in some["domains"]], some["proofs"]) == (["live-backup-proof-mine"], ["live-backup-proof-abc"])
    assert info(backup, domains=["db*"])["proofs"] == info(backup, exclude_domains=["live-*"])["proofs"] == []
    assert "XMLDesc" not in libvirt.host.calls[: libvirt.host.calls.index("listAllDomains")]
    with pytest.raises(LiveBackupError) as caught:
        info(backup, domains=["nobody"])
    assert "proof-abc" not in caught.value.msg and "live-backup-proof-mine" in caught.value.msg
    for unmatched in ("fail", "tell"):
        with pytest.raises(LiveBackupError, match="'live-backup-proof-abc' is not one of your domains: it is the guest of a proof"):
            info(backup, domains=["db1", "live-backup-proof-abc"], unmatched=unmatched)


def test_the_guest_of_a_proof_may_end_while_it_is_looked_at(backup: Backup) -> None:
    gone = add("live-backup-proof-abc", 1, metadata=PROOF, persistent=False)

    def end() -> None:
        if gone.uuid in libvirt.host.domains:
            gone.shut_off()

    libvirt.host.before["XMLDesc"] = end
    assert [domain["name"] for domain in info(backup)["domains"]] == ["db1"]


def test_the_guest_of_a_proof_is_not_backed_up(backup: Backup) -> None:
    backup.domain.metadata = PROOF
    backup.domain.name = "live-backup-proof-abc"
    with raises_code("proof_guest"):
        backup.begin()
    assert list(backup.target.iterdir()) == []


# Abort


@pytest.mark.parametrize("check", [False, True])
def test_without_a_job_there_is_nothing_to_abort(backup: Backup, check: bool) -> None:
    assert backup.abort(check=check) == {"changed": False, "job": None}


@pytest.mark.parametrize("check", [False, True])
def test_another_kind_of_job_is_left_alone(backup: Backup, check: bool) -> None:
    backup.domain.job = libvirt.Job(backup.clock.wall(), operation=5)
    result = backup.abort(check=check)
    assert not result["changed"] and result["job"]["operation"] == "outgoing migration"
    assert "abortJob" not in libvirt.host.calls


def test_a_backup_is_aborted(backup: Backup) -> None:
    backup.begin()
    planned = backup.abort(check=True)
    assert planned["changed"] and backup.domain.job is not None
    assert backup.abort()["changed"] and backup.domain.job is None
    assert not backup.abort()["changed"]
    with pytest.raises(LiveBackupError, match="somebody aborted it"):
        backup.wait()
    backup.assert_nothing_left()
