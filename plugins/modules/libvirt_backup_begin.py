#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_backup_begin
short_description: Start a backup of a libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Starts libvirt's backup job. In push mode, QEMU writes a point-in-time image of every chosen disk while the guest keeps running. In pull
    mode, it serves the disks as they were at that instant, and M(virtops.live_backup.sparse_copy) reads them.
  - Freezes the guest's file systems before the start and thaws them after it, in one process. A watchdog thaws them if that process dies,
    hangs, or takes longer than O(freeze_timeout) or O(hook_timeout).
  - Writes a claim to C(/var/lib/live_backup) first. The claim keeps other runs away. M(virtops.live_backup.libvirt_backup_recover) uses it
    to clean up after an interrupted run.
  - Saves the domain's XML, with its secrets, and its NVRAM of that instant into the partial set.
  - Can make incremental and differential backups. Libvirt's checkpoints track which parts of a disk change. A disk that cannot be tracked
    is read as a whole, and only what differs is kept.
  - Skips only CD-ROMs, floppies, empty drives and read-only disks automatically. Any other disk that cannot be captured is an
    error, unless O(exclude_disks) names it.
  - The set is encrypted if O(encrypt) is set. QEMU encrypts the images (qcow2 with LUKS), and C(openssl)
    encrypts the domain's XML and NVRAM. The same key must be named in M(virtops.live_backup.sparse_copy).
extends_documentation_fragment:
  - virtops.live_backup.encryption
  - virtops.live_backup.encryption.encrypt
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.libvirt.backup_id
  - virtops.live_backup.libvirt.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.libvirt.capture
  - virtops.live_backup.libvirt.progress
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Checks everything that can be checked without writing, and fails with the same errors.
  diff_mode:
    support: none
    details: The result lists the new files. No existing file changes.
  idempotent:
    support: full
    details: No change if the job of this O(backup_id) was started, or its set is published.
options:
  method:
    description:
      - V(push) starts the backup job of a running domain. M(virtops.live_backup.libvirt_job_wait) then waits for it.
      - >-
        V(pull) starts it too. M(virtops.live_backup.sparse_copy) then copies the disks, and ends the job. It can send them directly to an
        C(ssh://) target, and limit the bandwidth. If the copy dies, a watchdog ends the job within seconds. If no step follows, it ends the
        job after an hour, or when disk space is short.
      - >-
        V(offline) is for a domain that is shut off. It claims the domain, saves its XML and NVRAM, and starts nothing.
        M(virtops.live_backup.sparse_copy) then copies the disks.
      - V(legacy) does the same as M(virtops.live_backup.libvirt_disk_snapshot).
    type: str
    choices: [push, pull, legacy, offline]
    default: push
  overlay_dir:
    description: For O(method=legacy), as O(virtops.live_backup.libvirt_disk_snapshot#module:overlay_dir).
    type: path
  scratch_dir:
    description:
      - For O(method=pull), an existing directory for the scratch files. QEMU keeps there what the guest overwrites during the copy.
      - The default is the directory of each disk's image. For a block device, it is the directory of another image of the domain, or
        C(/var/lib/libvirt/images).
      - If the scratch files threaten to fill their file system, the backup is given up.
    type: path
    version_added: 1.0.0
  exclusive:
    description:
      - Confirms that no other host uses the domain's block devices.
      - Required for O(method=offline) if a disk is a block device. QEMU's image lock does not show whether another host uses a block
        device.
    type: bool
    default: false
  format:
    description: The format of the images of a push. For O(method=pull) and O(method=offline), set it in M(virtops.live_backup.sparse_copy).
    type: str
    choices: [qcow2, raw]
    default: qcow2
notes:
  - Checkpoints need O(method=push) or O(method=pull), O(format=qcow2), libvirt 7.6 and QEMU 6.1 or newer.
  - O(method=push) and O(method=pull) need libvirt 7.2 and QEMU 4.2 or newer on the hypervisor.
  - O(method=pull) needs python3-libnbd on the hypervisor (Debian, Ubuntu, EL).
seealso:
  - module: virtops.live_backup.libvirt_job_wait
  - module: virtops.live_backup.backup_set_publish
  - name: Efficient live full disk backup
    description: Libvirt's own description of the flow.
    link: https://libvirt.org/kbase/live_full_disk_backup.html
"""

EXAMPLES = r"""
- name: Start the backup
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup

- name: Start a backup that must be consistent on file system level, without the scratch disk
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: before-upgrade
    target: /srv/backup
    exclude_disks:
      - vdb
    quiesce: require

- name: Start a nightly backup of what changed since the last one
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: 20261123T184512Z
    target: /srv/backup
    level: auto

- name: Start a backup that goes directly to a backup server
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: 20261122T184512Z
    target: ssh://backup@vault.example.com/srv/backup
    method: pull
    level: auto

- name: Claim a domain that is shut off, to copy its disks
  virtops.live_backup.libvirt_backup_begin:
    domain: archive
    backup_id: 20261122T184512Z
    target: /srv/backup
    method: offline
"""

RETURN = r"""
overlays:
  description: For O(method=legacy), as RV(virtops.live_backup.libvirt_disk_snapshot#module:overlays).
  returned: for O(method=legacy), unless the set is published already
  type: list
  elements: dict
method:
  description: The method of this backup.
  returned: success
  type: str
  sample: push
disks:
  description: The captured disks.
  returned: success
  type: list
  elements: dict
  contains:
    target:
      description: The disk's target dev.
      type: str
      sample: vda
    path:
      description: >-
        The file that the disk is written to, in the published set once it is published. For O(method=pull) and O(method=offline), it and
        the format are empty until the disk is copied.
      type: str
      sample: /srv/backup/db1/.20261122T184512Z.partial/vda.qcow2
    format:
      description: The file's format.
      type: str
      sample: qcow2
    level:
      description: What the file contains. V(full) for all data of the disk, otherwise as RV(level).
      type: str
      sample: incremental
    dirty:
      description:
        - The bytes that changed since the parent set, in whole clusters of 64 KiB, shortly before the backup.
        - V(null) for a disk that is read as a whole.
      type: int
      sample: 266338304
level:
  description: The level of this backup, V(full), V(incremental) or V(differential).
  returned: success
  type: str
  sample: incremental
level_reason:
  description: The reason for the level.
  returned: success
  type: str
  sample: builds on 20261122T184512Z
parent:
  description: The O(backup_id) of the set that this backup builds on. V(null) for a full backup.
  returned: success
  type: str
  sample: 20261122T184512Z
not_due:
  description: The reason for which no backup was started, because of O(every). The other values are missing then.
  returned: if no backup was started
  type: str
  sample: its last good backup is 20 h old, and it is backed up every 7d
skipped_disks:
  description: The disks that are not captured, and the reason.
  returned: success
  type: list
  elements: dict
  sample: [{target: sda, reason: cdrom}]
not_captured:
  description: What the domain needs and the set lacks, such as the state of a virtual TPM or a secret of libvirt.
  returned: success
  type: list
  elements: str
  sample: [the state of its virtual TPM (/var/lib/libvirt/swtpm)]
keep:
  description: The rules of retention that the domain's own metadata has, by C(last), C(hourly) and so on. Empty without any.
  returned: success
  type: dict
  sample: {daily: 14}
consistency:
  description: >-
    V(filesystem) if the guest's file systems were frozen at that instant, V(offline) if the domain was shut off, otherwise V(crash).
    In check mode, the expected value.
  returned: success
  type: str
  sample: filesystem
why:
  description: The reason for the consistency.
  returned: if a backup was started or found
  type: str
  sample: 'the guest agent froze file systems: 1'
frozen_ms:
  description:
    - How long the guest could not write, in milliseconds. It is the time from its agent's answer to the freeze until the thaw was sent.
    - This is the minimum. The guest could also not write for a part of RV(hook_ms), while it wrote its caches to the disks.
  returned: if a backup was started or found
  type: int
  sample: 61
hook_ms:
  description:
    - How long the guest agent took to freeze and to thaw, in milliseconds. Nearly all of it is the time of its hooks. The guest writes
      during that time. A hypervisor cannot see when a hook ends.
    - The guest paused for at most RV(frozen_ms) and RV(hook_ms) together.
    - V(null) for a set that was published before this was measured.
  returned: if a backup was started or found
  type: int
  sample: 42
instant:
  description: When libvirt had started the job, by the hypervisor's clock. The images show the disks at this instant.
  returned: if a backup was started or found
  type: str
  sample: '2026-11-22T18:45:12.345Z'
began:
  description: When the module asked for the job, in seconds since the epoch.
  returned: if a backup was started or found running
  type: float
  sample: 1795373112.311
job:
  description: >-
    The job as RV(virtops.live_backup.libvirt_job_wait#module:job), just after its start. V(null) if it had ended by then. For a
    published set, the finished job.
  returned: if a backup was started or found
  type: dict
path:
  description: The directory where the set is, or will be, published.
  returned: success
  type: str
  sample: /srv/backup/db1/20261122T184512Z
planned:
  description: Whether this is only a plan, made in check mode.
  returned: success
  type: bool
published:
  description: Whether the set is published already. Then there is nothing to wait for.
  returned: success
  type: bool
bytes_needed:
  description: The disk space that the images may need, in bytes.
  returned: unless the set is published already, and if there is too little disk space
  type: int
  sample: 3543348019
bytes_free:
  description: The free disk space, in bytes.
  returned: unless the set is published already, and if there is too little disk space
  type: int
  sample: 107374182400
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: claim_alive
libvirt_error:
  description: The error of libvirt, with its C(code), C(domain) and C(message). The first two are libvirt's numbers.
  returned: failure, if libvirt reported an error
  type: dict
  sample: {code: 38, domain: 7, message: 'Failed to connect socket to ''/run/libvirt/libvirt-sock'': No such file or directory'}
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import (
    BACKUP_ID,
    CAPTURE,
    CONNECTION,
    DOMAIN,
    ENCRYPT,
    ENCRYPTION,
    ONE_KEY,
    PROGRESS,
    SSH,
    TARGET,
    run,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.begin import begin_backup


def main() -> None:
    run(
        begin_backup,
        CONNECTION,
        DOMAIN,
        BACKUP_ID,
        TARGET,
        SSH,
        CAPTURE,
        PROGRESS,
        ENCRYPTION,
        ENCRYPT,
        {
            "method": {"type": "str", "choices": ["push", "pull", "legacy", "offline"], "default": "push"},
            "overlay_dir": {"type": "path"},
            "scratch_dir": {"type": "path"},
            "exclusive": {"type": "bool", "default": False},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
        },
        mutually_exclusive=[ONE_KEY],
    )


if __name__ == "__main__":
    main()
