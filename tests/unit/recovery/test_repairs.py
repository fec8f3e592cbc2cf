# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery repairs what a dead run left, and nothing that is not proved to be its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._capture import backup_job as _backup_job
from ansible_collections.virtops.live_backup.plugins.module_utils._capture.freeze import Watchdog
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.claim import Claim, read_claim, save_claim
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.lock import hold
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import recover as _recover

from ..support.backup import UUID, Backup, Killed
from ..support.fake import libvirt
from ..support.raising import raises_code

NOTHING = {"changed": False, "planned": False, "repairs": [], "diff": {"before": "", "after": ""}}


def claim_of(backup: Backup) -> Claim:
    claim = read_claim(backup.domain.uuid)
    assert claim is not None
    return claim


def die(backup: Backup, **fields: Any) -> None:
    """The run is dead: its claim is left by a step that ended without a word."""
    claim = claim_of(backup)
    for name, value in {"in_step": True, **fields}.items():
        setattr(claim, name, value)
    save_claim(claim)


def repaired(result: dict[str, Any]) -> list[str]:
    return [repair["what"] for repair in result["repairs"]]


@pytest.fixture
def dead(backup: Backup) -> Backup:
    """A backup whose run died while it waited for the job, which runs on."""
    backup.begin()
    die(backup, step="wait")
    return backup


def test_nothing_to_repair(backup: Backup) -> None:
    for check in (False, True):
        assert backup.recover(check=check) == {**NOTHING, "planned": check}
    backup.assert_nothing_left()


def test_an_unknown_domain_is_an_error(backup: Backup) -> None:
    with pytest.raises(LiveBackupError, match="There is no domain 'nobody'"):
        backup.recover(domain="nobody")


def test_job_partial_set_and_claim_go_in_this_order(dead: Backup) -> None:
    listed = dead.recover(check=True)
    assert listed["changed"] and repaired(listed) == ["backup job", "unfinished backup set", "claim"]
    assert dead.domain.job is not None and dead.partial.exists() and "abortJob" not in libvirt.host.calls
    assert dead.recover() == {**listed, "planned": False}
    dead.assert_nothing_left()
    assert dead.recover() == NOTHING


def test_a_file_that_qemu_has_open_and_no_job_writes(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirtd was killed as the push began."""
    monkeypatch.setattr(_backup_job, "qemu_has_open", lambda _domain, path: bool(backup.domain.unused.get(path)))
    begun = backup.begin()
    die(backup, step="begin")
    backup.domain.job = None
    backup.domain.unused[begun["disks"][0]["path"]] = ["libvirt-3-format", "libvirt-3-storage"]
    listed = backup.recover(check=True)
    assert repaired(listed) == ["open file", "unfinished backup set", "claim"]
    assert backup.recover() == {**listed, "planned": False}
    assert not any(backup.domain.unused.values()), "they would be in the way of libvirt's next backup"
    backup.assert_nothing_left()


@pytest.mark.parametrize("domain", ["db1", "8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11", "8E6D5A2E-6C44-4C8D-9D3C-0E1F8A6F7B11"])
def test_by_name_and_by_uuid(dead: Backup, domain: str) -> None:
    assert dead.recover(domain=domain)["changed"]
    dead.assert_nothing_left()


@pytest.mark.parametrize("check", [False, True])
def test_a_living_run_is_left_alone(backup: Backup, check: bool) -> None:
    backup.begin()
    with raises_code("claim_alive"):
        backup.recover(check=check)
    assert backup.domain.job is not None and backup.partial.exists()


def test_an_error_says_when_it_can_be_recovered_and_how_at_once(backup: Backup) -> None:
    backup.begin()
    backup.clock.sleep(1)
    with pytest.raises(LiveBackupError, match=r"holds it for another 299 s\. .* use take_over"):
        backup.recover()


def test_a_person_takes_over_a_run_whose_lease_is_not_over(backup: Backup) -> None:
    backup.begin()
    listed = backup.recover(take_over=True, check=True)
    assert repaired(listed) == ["backup job", "unfinished backup set", "claim"] and backup.domain.job is not None
    assert backup.recover(take_over=True) == {**listed, "planned": False}
    backup.assert_nothing_left()


@pytest.mark.parametrize("check", [False, True])
def test_nobody_takes_over_while_a_step_works(backup: Backup, check: bool) -> None:
    backup.begin()
    with hold(backup.domain.uuid, backup.clock), raises_code("claim_alive") as refused:
        backup.recover(take_over=True, check=check)
    assert "take_over" not in str(refused.value)
    assert backup.domain.job is not None and backup.partial.exists()


def test_a_run_that_went_on_between_look_and_lock_is_not_taken_over(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step came and went: it lives, whatever the person thought."""
    backup.begin()

    def late(uuid: str, clock: Any) -> Any:
        die(backup, in_step=False, step="wait", lease_until=clock.boottime() + 300)
        return hold(uuid, clock)

    monkeypatch.setattr(_recover, "hold", late)
    with pytest.raises(LiveBackupError, match="just now"):
        backup.recover(take_over=True)
    assert backup.domain.job is not None and backup.partial.exists()


def test_a_run_of_another_boot_is_dead_though_its_lease_runs(backup: Backup) -> None:
    backup.begin()
    die(backup, in_step=False, boot_id="another boot")
    backup.recover()
    backup.assert_nothing_left()


def test_a_run_whose_lease_is_over_is_dead(backup: Backup) -> None:
    backup.begin()
    backup.clock.sleep(301)
    backup.recover()
    backup.assert_nothing_left()


@pytest.mark.parametrize("finished", [False, True])
def test_the_same_backup_can_go_on(dead: Backup, finished: bool) -> None:
    if finished:
        dead.domain.end_job()
        dead.wait()
        die(dead, step="publish")
    assert dead.recover(backup_id="night-1") == NOTHING
    assert dead.partial.exists()
    if not finished:
        dead.domain.end_job()
        dead.wait()
    assert dead.publish()["changed"]


def test_the_same_backup_cannot_go_on_when_its_job_is_gone(dead: Backup) -> None:
    dead.domain.end_job(libvirt.CANCELLED)
    assert repaired(dead.recover(backup_id="night-1")) == ["unfinished backup set", "claim"]
    dead.assert_nothing_left()


def test_the_same_backup_cannot_go_on_after_a_reboot(dead: Backup) -> None:
    dead.domain.end_job()
    dead.wait()
    die(dead, in_step=False, boot_id="another boot")
    assert repaired(dead.recover(backup_id="night-1")) == ["unfinished backup set", "claim"]
    dead.assert_nothing_left()


def test_the_same_backup_cannot_go_on_when_its_transient_domain_is_gone(dead: Backup) -> None:
    dead.domain.persistent = False
    dead.domain.shut_off()
    assert repaired(dead.recover(backup_id="night-1")) == ["unfinished backup set", "claim"]
    dead.assert_nothing_left()


def test_a_gone_transient_domain_is_recovered_by_its_name(dead: Backup) -> None:
    dead.domain.persistent = False
    dead.domain.shut_off()
    assert repaired(dead.recover()) == ["unfinished backup set", "claim"]
    dead.assert_nothing_left()


def test_a_foreign_job_is_left_alone(dead: Backup, tmp_path: Path) -> None:
    dead.domain.end_job(libvirt.CANCELLED)
    dead.domain.job = libvirt.Job(dead.clock.wall(), {"vda": str(tmp_path / "theirs")})
    assert repaired(dead.recover()) == ["unfinished backup set", "claim"]
    assert dead.domain.job is not None and "abortJob" not in libvirt.host.calls


def test_a_job_that_writes_only_some_of_our_files_is_not_ours(dead: Backup) -> None:
    assert dead.domain.job is not None
    dead.domain.job.targets = {"vda": dead.domain.job.targets["vda"]}
    assert "backup job" not in repaired(dead.recover(check=True))


def test_a_partial_set_of_another_hypervisor_is_never_removed(dead: Backup) -> None:
    (dead.partial / ".claim").write_text("their token", encoding="ascii")
    assert repaired(dead.recover()) == ["backup job", "claim"]
    assert (dead.partial / "domain.xml").exists()


def test_an_empty_partial_set_is_not_proved_to_be_ours(dead: Backup) -> None:
    for path in dead.partial.iterdir():
        path.unlink()
    assert repaired(dead.recover()) == ["backup job", "claim"]
    assert dead.partial.exists()


@pytest.mark.parametrize("marked", [False, True])
def test_a_run_that_died_while_it_made_its_partial_set(dead: Backup, marked: bool) -> None:
    dead.domain.end_job(libvirt.CANCELLED)
    for path in dead.partial.iterdir():
        path.unlink()
    unmarked = dead.partial.rename(dead.partial.with_name(f".{claim_of(dead).token}.new"))
    (unmarked / ("..claim.tmp" if marked else ".claim")).touch()
    dead.recover()
    dead.assert_nothing_left()


@pytest.mark.parametrize("left", ["", f"..domain.json.{UUID}.tmp"])
def test_a_run_that_died_while_it_marked_its_domains_directory(dead: Backup, left: str) -> None:
    dead.domain.end_job(libvirt.CANCELLED)
    for path in [*dead.partial.iterdir(), dead.partial.parent / ".domain.json"]:
        path.unlink()
    dead.partial.rmdir()
    if left:
        (dead.partial.parent / left).touch()
    dead.recover()
    dead.assert_nothing_left()


def test_a_run_that_died_while_it_wrote_its_claim(dead: Backup) -> None:
    (dead.claims / f".{dead.domain.uuid}.json.tmp").write_text("{", encoding="ascii")
    dead.recover()
    dead.assert_nothing_left()


def test_other_sets_of_the_domain_stay(backup: Backup) -> None:
    backup.finished()
    backup.publish()
    published = backup.tree()
    backup.begin(backup_id="night-2")
    die(backup)
    backup.recover()
    assert backup.tree() == published and backup.claim_files() == []


@pytest.mark.parametrize(
    ("fields", "thaws"),
    [
        ({"step": "begin", "in_step": True}, True),
        ({"step": "wait", "in_step": True}, False),
        ({"step": "begin", "in_step": False, "lease_until": 0.0}, False),
    ],
)
def test_a_freeze_of_a_run_that_died_while_it_froze_is_ended(backup: Backup, fields: dict[str, Any], thaws: bool) -> None:
    backup.domain.agent = "answers"
    backup.begin()
    libvirt.host.calls.clear()
    backup.domain.frozen = True
    die(backup, **fields)
    result = backup.recover()
    assert ("possibly frozen file systems" in repaired(result)) == thaws
    assert ("fsThaw" in libvirt.host.calls) == thaws and backup.domain.frozen != thaws


def test_without_a_freeze_of_ours_nobody_is_thawed(backup: Backup) -> None:
    backup.domain.agent = "answers"
    backup.begin(quiesce="never")
    backup.domain.frozen = True
    die(backup, step="begin")
    backup.recover()
    assert backup.domain.frozen and "fsThaw" not in libvirt.host.calls


@pytest.mark.parametrize(
    ("reason", "before", "resumed"),
    [
        (libvirt.VIR_DOMAIN_PAUSED_IOERROR, "running", True),
        (libvirt.VIR_DOMAIN_PAUSED_IOERROR, "paused", False),
        (libvirt.VIR_DOMAIN_PAUSED_USER, "running", False),
    ],
)
def test_only_a_domain_that_our_job_paused_is_resumed(dead: Backup, reason: int, before: str, resumed: bool) -> None:
    die(dead, plan=replace(claim_of(dead).plan, state=before))
    dead.domain.state, dead.domain.reason = libvirt.VIR_DOMAIN_PAUSED, reason
    assert ("paused domain" in repaired(dead.recover())) == resumed
    assert (dead.domain.state == libvirt.VIR_DOMAIN_RUNNING) == resumed


def test_a_claim_that_came_to_life_between_look_and_lock_is_left_alone(dead: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = _recover.hold

    def late(uuid: str, clock: Any) -> Any:
        die(dead, in_step=False, lease_until=dead.clock.boottime() + 60)
        return hold(uuid, clock)

    monkeypatch.setattr(_recover, "hold", late)
    with pytest.raises(LiveBackupError, match="just now"):
        dead.recover()
    assert dead.domain.job is not None and dead.partial.exists()


def test_after_recovery_every_later_step_of_the_old_run_fails(dead: Backup) -> None:
    dead.recover()
    for late in (dead.wait, dead.publish):
        with pytest.raises(LiveBackupError, match="has no backup night-1 under way"):
            late()


def test_a_domain_can_be_backed_up_again_after_recovery(dead: Backup) -> None:
    with raises_code("recovery_needed"):
        dead.begin(backup_id="night-2")
    dead.recover()
    assert dead.begin(backup_id="night-2")["changed"]


@pytest.mark.parametrize("method", ["isActive", "state", "backupGetXMLDesc"])
def test_when_libvirt_fails_the_claim_stays(dead: Backup, method: str) -> None:
    def fail() -> None:
        raise libvirt.libvirtError(1, "internal error: broken")

    libvirt.host.before[method] = fail
    with pytest.raises((LiveBackupError, libvirt.libvirtError), match="broken"):
        dead.recover()
    assert claim_of(dead).backup_id == "night-1" and dead.partial.exists()
    libvirt.host.before.clear()
    dead.recover()
    dead.assert_nothing_left()


def test_a_run_killed_at_each_call_of_libvirt_while_it_begins_is_recovered(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    def die_too(watchdog: Watchdog) -> bool:
        watchdog._process.kill()
        watchdog._process.wait()
        return True

    def kill() -> None:
        raise Killed

    monkeypatch.setattr(Watchdog, "leave", die_too)
    backup.domain.agent = "answers"
    for method in ("XMLDesc", "jobStats", "backupBegin", "fsFreeze", "fsThaw"):
        libvirt.host.before[method] = kill
        with pytest.raises(Killed):
            backup.begin()
        libvirt.host.before.clear()
        backup.recover()
        backup.assert_nothing_left()
