# SPDX-License-Identifier: GPL-3.0-or-later
"""A set is seen when it is whole, and not before."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import file_digest, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._operations import publish as _publish
from ansible_collections.virtops.live_backup.plugins.module_utils._sets import publish as _sets_publish
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.read import read_manifest

from ..support.backup import Backup
from ..support.fake import libvirt

WHOLE = {"db1", "db1/.domain.json", "db1/night-1"} | {
    f"db1/night-1/{name}" for name in ("RESTORE.md", "SHA256SUMS", "domain.xml", "manifest.json", "vda.qcow2", "vdb.qcow2")
}


def test_a_qemu_that_keeps_an_image_open_cannot_change_the_set(backup: Backup) -> None:
    backup.finished()
    kept, closed = (backup.partial / name for name in ("vda.qcow2", "vdb.qcow2"))
    inodes = [path.stat().st_ino for path in (kept, closed)]
    with kept.open("r+b") as descriptor:
        descriptor.write(b"what was backed up")
        descriptor.flush()
        manifest = backup.publish()["manifest"]
        descriptor.seek(0)
        descriptor.write(b"what came later")
    [copied, same] = [backup.final / name for name in ("vda.qcow2", "vdb.qcow2")]
    assert copied.read_bytes().startswith(b"what was backed up") and stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert [path.stat().st_ino == inode for path, inode in zip((copied, same), inodes)] == [False, True]
    assert [disk["digest"] for disk in manifest["disks"]] == [image_digest(copied), image_digest(same)]
    assert backup.tree() == WHOLE


def test_the_published_set(backup: Backup) -> None:
    backup.finished()
    (backup.partial / "vda.qcow2").chmod(0o644)
    published = backup.publish()
    assert published["changed"] and published["path"] == str(backup.final)
    assert backup.tree() == WHOLE and backup.claim_files() == []
    assert json.loads((backup.final / "manifest.json").read_text(encoding="utf-8")) == published["manifest"]
    assert stat.S_IMODE(backup.final.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in backup.final.iterdir()} == {0o600}


def test_the_manifest_describes_every_file_but_itself_and_the_guide(backup: Backup) -> None:
    backup.finished()
    manifest = backup.publish()["manifest"]
    for disk in manifest["disks"]:
        path = backup.final / disk["file"]
        assert disk["digest"] == image_digest(path) and disk["size"] == path.stat().st_size
    [xml] = manifest["files"]
    assert (xml["name"], xml["digest"]) == ("domain.xml", file_digest(backup.final / "domain.xml"))


def test_again_changes_nothing(backup: Backup) -> None:
    backup.finished()
    first = backup.publish()
    for check in (False, True):
        assert backup.publish(check=check) == {
            **{key: value for key, value in first.items() if key != "diff"},
            "changed": False,
            "was_published": True,
        }


def test_check_mode_says_where_to_and_does_not(backup: Backup) -> None:
    backup.finished()
    before = backup.tree()
    planned = backup.publish(check=True)
    assert planned["changed"] and planned["diff"] == {"before": f"{backup.partial}\n", "after": f"{backup.final}\n"}
    assert backup.tree() == before
    assert backup.publish()["diff"] == planned["diff"]


def nothing_begun(backup: Backup) -> dict[str, Any]:
    return {}


def not_finished(backup: Backup) -> dict[str, Any]:
    backup.begin()
    return {}


def elsewhere(backup: Backup) -> dict[str, Any]:
    backup.finished()
    other = backup.target.with_name("other")
    other.mkdir()
    return {"target": str(other)}


def image_gone(backup: Backup) -> dict[str, Any]:
    backup.finished()
    (backup.partial / "vdb.qcow2").unlink()
    return {}


def partial_gone(backup: Backup) -> dict[str, Any]:
    backup.finished()
    backup.partial.rename(backup.partial.with_name("moved"))
    return {}


def partial_of_another_run(backup: Backup) -> dict[str, Any]:
    backup.finished()
    (backup.partial / ".claim").write_text("their token", encoding="ascii")
    return {}


def recovered_meanwhile(backup: Backup) -> dict[str, Any]:
    backup.finished()
    backup.clock.sleep(10_000)
    assert backup.recover()["changed"]
    return {}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("trouble", "part"),
    [
        (nothing_begun, "has no backup night-1 under way"),
        (not_finished, "is not finished"),
        (elsewhere, "was started for"),
        (image_gone, r"vdb\.qcow2 is gone"),
        (partial_gone, "is gone or was made by another run"),
        (partial_of_another_run, "is gone or was made by another run"),
        (recovered_meanwhile, "has no backup night-1 under way"),
    ],
)
def test_what_is_not_whole_is_not_published(backup: Backup, trouble: Any, part: str, check: bool) -> None:
    options = trouble(backup)
    before = backup.tree()
    with pytest.raises(LiveBackupError, match=part):
        backup.publish(check=check, **options)
    assert backup.tree() == before and not backup.final.exists()


def test_a_set_is_whole_before_it_is_seen(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.finished()
    seen: list[set[str]] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: (seen.append(set(os.listdir(path))), rename(path, to))[1])
    backup.publish()
    [before] = seen
    assert before - {".claim"} == set(os.listdir(backup.final))


def test_an_interrupted_publishing_can_be_done_again(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.finished()

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_sets_publish, "write_durably", full)
        with pytest.raises(OSError, match="No space"):
            backup.publish()
    assert not backup.final.exists()
    # What a signal leaves of a file that was being written.
    (backup.partial / ".manifest.json.tmp").write_bytes(b"{")
    published = backup.publish()
    assert published["changed"] and backup.tree() == WHOLE
    assert [file["name"] for file in published["manifest"]["files"]] == ["domain.xml"]


def test_a_run_that_died_after_the_rename_leaves_a_set_that_recovery_keeps(backup: Backup, monkeypatch: pytest.MonkeyPatch) -> None:
    backup.finished()

    def die(_claim: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_publish, "end_claim", die)
        with pytest.raises(KeyboardInterrupt):
            backup.publish()
    assert not backup.publish()["changed"]
    assert [repair["what"] for repair in backup.recover(backup_id="night-1")["repairs"]] == ["claim"]
    assert backup.tree() == WHOLE and backup.claim_files() == []


def test_two_domains_of_one_name_have_each_their_own_sets(backup: Backup) -> None:
    backup.finished()
    backup.publish()
    old, backup.domain.uuid = backup.domain.uuid, "11111111-6c44-4c8d-9d3c-0e1f8a6f7b11"

    libvirt.host.domains = {backup.domain.uuid: backup.domain}
    begun = backup.begin()
    assert begun["changed"], "the set of the other domain was taken for this one's"
    backup.domain.end_job()
    backup.wait()
    published = backup.publish()
    assert Path(published["path"]).parent.name == "db1.11111111"
    first = json.loads((backup.final / "manifest.json").read_text(encoding="utf-8"))
    assert (first["domain"]["uuid"], published["manifest"]["domain"]["uuid"]) == (old, backup.domain.uuid)


def test_a_group_stands_in_the_manifest(backup: Backup) -> None:
    backup.finished()
    members = [{"domain": "db1", "uuid": backup.domain.uuid, "hypervisor": "hv1"}]
    group = {"name": "shop", "spread_ms": 12, "clock_error_ms": 3, "members": members}
    published = backup.publish(group=group)
    assert published["manifest"]["group"] == group
    assert read_manifest(backup.final, "night-1")[1] == []
