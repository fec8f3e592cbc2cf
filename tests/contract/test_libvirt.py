# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection relies on in libvirt; the fake of the unit tests and the real one say the same."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._capture.freeze import AGENT_REFUSED
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor import numbers as _numbers
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.backup_xml import backup_files, push_backup_xml
from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.domain_xml import parse_domain

from .conftest import Lab, push_xml

INVALID_ARG, DENIED, UNSUPPORTED = 8, 29, 84
COMPLETED, KEEP = 1, 2
NO_JOB = {"type": 0}
UNKNOWN_UUID = "00000000-0000-4000-8000-000000000001"


# Domains


def test_unknown_domains(lab: Lab) -> None:
    assert lab.code(lab.connection.lookupByName, "nobody") == _numbers.VIR_ERR_NO_DOMAIN
    assert lab.code(lab.connection.lookupByUUIDString, UNKNOWN_UUID) == _numbers.VIR_ERR_NO_DOMAIN
    assert lab.code(lab.connection.lookupByUUIDString, "no-uuid") == INVALID_ARG


def test_a_uuid_may_be_written_in_capitals(lab: Lab) -> None:
    assert lab.connection.lookupByUUIDString(lab.uuid.upper()).UUIDString() == lab.uuid


@pytest.mark.parametrize("method", ["XMLDesc", "state", "isActive", "jobStats", "backupGetXMLDesc"])
def test_a_domain_that_is_gone_answers_nothing(lab: Lab, method: str) -> None:
    assert lab.code(getattr(lab.vanished_domain(), method)) == _numbers.VIR_ERR_NO_DOMAIN


def test_a_domain_that_is_gone_is_left_out_of_the_statistics(lab: Lab) -> None:
    assert lab.connection.domainListGetStats([lab.vanished_domain()], lab.libvirt.VIR_DOMAIN_STATS_BLOCK) == []


def test_states(lab: Lab) -> None:
    assert (lab.domain.state()[0], lab.domain.isActive(), lab.domain.isPersistent()) == (1, 1, 1)
    assert (lab.inactive.state()[0], lab.inactive.isActive(), lab.inactive.isPersistent()) == (5, 0, 1)
    assert {domain.UUIDString() for domain in lab.connection.listAllDomains()} >= {lab.uuid, lab.inactive_uuid}


@pytest.mark.parametrize("active", [True, False])
def test_block_statistics_name_every_disk(lab: Lab, active: bool) -> None:
    domain = lab.domain if active else lab.inactive
    [(_domain, stats)] = lab.connection.domainListGetStats([domain], lab.libvirt.VIR_DOMAIN_STATS_BLOCK)
    names = [stats[f"block.{index}.name"] for index in range(stats["block.count"])]
    assert names == (["vda", "vdb", "vdc"] if active else ["vda", "vdb"])
    assert all(stats[f"block.{index}.capacity"] > 0 for index in range(len(names)))


def test_resume_of_a_running_or_inactive_domain_is_refused(lab: Lab) -> None:
    assert lab.code(lab.domain.resume) == lab.code(lab.inactive.resume) == _numbers.VIR_ERR_OPERATION_INVALID


def test_no_checkpoints(lab: Lab) -> None:
    assert lab.domain.listAllCheckpoints() == lab.inactive.listAllCheckpoints() == []


def test_versions(lab: Lab) -> None:
    assert lab.connection.getLibVersion() >= 7_000_000 and lab.connection.getVersion() >= 4_000_000


# Without a job


def test_no_job(lab: Lab) -> None:
    assert lab.domain.jobStats() == NO_JOB
    assert lab.domain.jobStats(COMPLETED | KEEP) == lab.domain.jobStats(COMPLETED) == NO_JOB
    assert lab.code(lab.domain.jobStats, KEEP) == INVALID_ARG
    assert lab.code(lab.domain.backupGetXMLDesc) == _numbers.VIR_ERR_NO_DOMAIN_BACKUP
    assert lab.code(lab.domain.abortJob) == _numbers.VIR_ERR_OPERATION_INVALID


def test_no_block_job(lab: Lab) -> None:
    assert lab.domain.blockJobInfo("vda") == {}
    assert lab.code(lab.domain.blockJobInfo, "vdz") == INVALID_ARG


def test_no_job_on_an_inactive_domain(lab: Lab) -> None:
    assert lab.code(lab.inactive.jobStats) == _numbers.VIR_ERR_OPERATION_INVALID
    assert lab.inactive.jobStats(COMPLETED | KEEP) == NO_JOB
    assert lab.code(lab.inactive.backupGetXMLDesc) == _numbers.VIR_ERR_NO_DOMAIN_BACKUP
    assert lab.code(lab.inactive.abortJob) == lab.code(lab.inactive.blockJobInfo, "vda") == _numbers.VIR_ERR_OPERATION_INVALID


# Begin


def test_backup_of_an_inactive_domain_is_refused(lab: Lab) -> None:
    files = lab.files("vda")
    assert lab.code(lab.inactive.backupBegin, push_xml(files), None, 0) == UNSUPPORTED
    assert not Path(files["vda"]).exists()


@pytest.mark.parametrize("second", [False, True])
def test_an_existing_target_is_refused_and_left_alone(lab: Lab, second: bool) -> None:
    files = lab.files("vda", "vdb")
    mine, other = (Path(files["vdb"]), Path(files["vda"])) if second else (Path(files["vda"]), Path(files["vdb"]))
    mine.write_bytes(b"mine")
    assert lab.code(lab.domain.backupBegin, push_xml(files), None, 0) == INVALID_ARG
    assert mine.read_bytes() == b"mine" and not other.exists()
    assert lab.domain.jobStats() == NO_JOB


def test_a_target_that_cannot_be_created(lab: Lab) -> None:
    assert lab.code(lab.domain.backupBegin, push_xml({"vda": str(lab.directory / "no" / "vda")}), None, 0) == _numbers.VIR_ERR_SYSTEM_ERROR


def test_an_unknown_disk_is_refused(lab: Lab) -> None:
    files = lab.files("vdz")
    assert lab.code(lab.domain.backupBegin, push_xml(files), None, 0) == 67
    assert not Path(files["vdz"]).exists()


def test_what_is_no_xml_is_refused(lab: Lab) -> None:
    assert lab.code(lab.domain.backupBegin, "<", None, 0) == 35


# A job


def test_a_running_backup(lab: Lab) -> None:
    files = lab.files("vda", "vdb")
    lab.begin_slowly(files)
    stats = lab.domain.jobStats()
    assert (stats["type"], stats["operation"]) == (2, 9)
    assert stats["time_elapsed"] >= 0 and "success" not in stats
    assert stats["disk_total"] == stats.get("disk_processed", 0) + stats["disk_remaining"] > 0
    assert lab.domain.jobStats(COMPLETED | KEEP) == NO_JOB
    assert all(Path(path).is_file() for path in files.values())


def test_the_running_backup_names_its_files(lab: Lab) -> None:
    files = lab.files("vda", "vdb")
    lab.begin_slowly(files)
    assert backup_files(lab.domain.backupGetXMLDesc()) == files
    assert backup_files(lab.read_only_domain().backupGetXMLDesc()) == files


def test_the_running_backup_is_a_block_job_of_its_disks_only(lab: Lab) -> None:
    lab.begin_slowly(lab.files("vda"))
    assert lab.domain.blockJobInfo("vda")["type"] == 5
    assert lab.domain.blockJobInfo("vdb") == {}


def test_names_with_every_sort_of_quote_arrive_as_they_are(lab: Lab) -> None:
    path = str(lab.directory / " %41 ö,\"double\" 'single' $HOME `id` & <b> \\n;*?")
    lab.domain.backupBegin(push_backup_xml({"vda": path}, "raw", {}), None, 0)
    lab.end_job()
    assert Path(path).is_file()


@pytest.mark.skipif(not os.environ.get("LIVE_BACKUP_TEST_ALL"), reason="only by make test-all: it takes long")
def test_a_second_backup_does_not_begin_while_one_runs(lab: Lab) -> None:
    """The real one waits 30 seconds for its lock before it says so, which is why plans ask for jobs themselves."""
    first, second = lab.files("vda"), lab.files("vdb")
    lab.begin_slowly(first)
    assert lab.code(lab.domain.backupBegin, push_xml(second), None, 0) == _numbers.VIR_ERR_OPERATION_TIMEOUT
    assert backup_files(lab.domain.backupGetXMLDesc()) == first
    assert not Path(second["vdb"]).exists()


def test_a_completed_backup(lab: Lab) -> None:
    files = lab.files("vda", "vdb")
    lab.begin_slowly(files)
    lab.end_job()
    stats = lab.domain.jobStats(COMPLETED | KEEP)
    assert (stats["type"], stats["operation"], stats["success"]) == (3, 9, True)
    assert stats["disk_total"] == stats["disk_processed"] > 0 and not stats.get("disk_remaining")
    assert "errmsg" not in stats
    assert all(Path(path).stat().st_size > 0 for path in files.values())
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in files.values()} == {0o600}


def test_completed_statistics_are_kept_or_read_once(lab: Lab) -> None:
    lab.begin_slowly(lab.files("vda"))
    lab.end_job()
    kept = lab.domain.jobStats(COMPLETED | KEEP)
    assert kept["type"] == 3
    assert lab.domain.jobStats(COMPLETED | KEEP) == lab.domain.jobStats(COMPLETED) == kept
    assert lab.domain.jobStats(COMPLETED) == NO_JOB


def test_a_new_job_hides_the_statistics_of_the_one_before(lab: Lab) -> None:
    lab.begin_slowly(lab.files("vda"))
    lab.end_job()
    lab.begin_slowly(lab.files("vda"))
    assert lab.domain.jobStats(COMPLETED | KEEP) == NO_JOB


def test_an_aborted_backup_removes_every_file(lab: Lab) -> None:
    files = lab.files("vda", "vdb")
    lab.begin_slowly(files)
    assert lab.domain.abortJob() == 0
    lab.wait_idle()
    stats = lab.domain.jobStats(COMPLETED | KEEP)
    assert (stats["type"], stats["operation"], stats["success"]) == (5, 9, False)
    assert not any(Path(path).exists() for path in files.values())
    assert lab.code(lab.domain.abortJob) == _numbers.VIR_ERR_OPERATION_INVALID


# Freeze and thaw


def test_freeze_and_thaw_count_file_systems(lab: Lab) -> None:
    assert lab.domain.fsFreeze() == 1
    assert lab.domain.fsThaw() == 1
    assert lab.domain.fsThaw() == 0


def test_a_second_freeze_is_refused_and_the_first_one_holds(lab: Lab) -> None:
    lab.domain.fsFreeze()
    assert lab.code(lab.domain.fsFreeze) in AGENT_REFUSED
    assert lab.code(lab.domain.getTime) in AGENT_REFUSED
    assert lab.connection.isAlive() == 1
    assert lab.domain.fsThaw() == 1


def test_freeze_and_thaw_during_a_backup(lab: Lab) -> None:
    lab.begin_slowly(lab.files("vda"))
    assert lab.domain.fsFreeze() == lab.domain.fsThaw() == 1


def test_no_freeze_where_nothing_runs(lab: Lab) -> None:
    assert lab.code(lab.inactive.fsFreeze) == lab.code(lab.inactive.fsThaw) == _numbers.VIR_ERR_OPERATION_INVALID
    lab.pause()
    assert lab.code(lab.domain.fsFreeze) == lab.code(lab.domain.fsThaw) == _numbers.VIR_ERR_OPERATION_INVALID


def test_agent_timeout(lab: Lab) -> None:
    assert lab.domain.agentSetResponseTimeout(5, 0) == lab.domain.agentSetResponseTimeout(-2, 0) == 0
    assert lab.code(lab.domain.agentSetResponseTimeout, -3, 0) == INVALID_ARG
    assert lab.inactive.agentSetResponseTimeout(-2, 0) == 0


# Connections


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("abortJob", ()),
        ("fsFreeze", ()),
        ("fsThaw", ()),
        ("resume", ()),
        ("agentSetResponseTimeout", (5, 0)),
        ("backupBegin", ("<domainbackup/>", None, 0)),
        ("XMLDesc", (1,)),
    ],
)
def test_a_read_only_connection_changes_nothing(lab: Lab, method: str, arguments: tuple[Any, ...]) -> None:
    assert lab.code(getattr(lab.read_only_domain(), method), *arguments) == DENIED


def test_a_read_only_connection_sees_what_check_mode_looks_at(lab: Lab) -> None:
    domain = lab.read_only_domain()
    assert domain.jobStats() == domain.jobStats(COMPLETED | KEEP) == NO_JOB
    assert domain.blockJobInfo("vda") == {} and domain.listAllCheckpoints() == []
    assert "<domain" in domain.XMLDesc(0) and lab.code(domain.backupGetXMLDesc) == _numbers.VIR_ERR_NO_DOMAIN_BACKUP


def test_an_open_connection_is_alive(lab: Lab) -> None:
    assert lab.connection.isAlive() == lab.domain.connect().isAlive() == 1


def test_the_xml_says_what_the_agent_does(lab: Lab) -> None:
    assert parse_domain(lab.domain.XMLDesc(0)).agent == "connected"
    assert parse_domain(lab.inactive.XMLDesc(0)).agent in ("absent", "disconnected")
    assert [disk.target for disk in parse_domain(lab.domain.XMLDesc(0)).disks] == ["vda", "vdb", "vdc"]
