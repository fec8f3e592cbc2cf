#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_backup_begin
short_description: Begin a full backup of a libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Starts libvirt's backup job in push mode. QEMU then writes an image of every chosen disk, as it was at one instant,
    while the guest runs on.
  - Freezes the guest's file systems before and thaws them after, in one process, with a watchdog beside it that thaws
    when that process dies, hangs, or takes longer than O(freeze_timeout) or O(hook_timeout).
  - Writes a claim to C(/var/lib/live_backup) first, so that no second run meets this one and an interrupted one can be
    recovered with M(virtops.live_backup.libvirt_backup_recover).
  - Saves the domain's XML, with its secrets, and its NVRAM of that instant into the unfinished set.
  - Skips CD-ROMs, floppies, empty drives and read-only disks of itself. Any other disk that cannot be captured is an
    error, unless O(exclude_disks) names it.
extends_documentation_fragment:
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
    details: All that can be checked without writing is checked, and the same errors are raised.
  diff_mode:
    support: partial
    details: O(method=legacy) shows the overlays. The other methods change nothing that was there; their result lists the new files.
  idempotent:
    support: full
    details: No change when the job of this O(backup_id) was begun, or its set is published.
options:
  method:
    description:
      - V(push) starts the backup job of a running domain.
      - >-
        V(offline) is for a domain that is shut off. It claims the domain, saves its XML and NVRAM, and starts nothing.
        M(virtops.live_backup.sparse_copy) then copies the disks.
      - V(legacy) does the same as M(virtops.live_backup.libvirt_disk_snapshot).
    type: str
    choices: [push, legacy, offline]
    default: push
  overlay_dir:
    description: For O(method=legacy), as O(virtops.live_backup.libvirt_disk_snapshot#module:overlay_dir).
    type: path
  exclusive:
    description:
      - Says that no other host uses the domain's block devices. Needed for O(method=offline) where a disk is a block device, since
        QEMU's image lock does not show there whether it is in use elsewhere.
    type: bool
    default: false
  format:
    description: The format of the images that a push writes. Offline it is an option of M(virtops.live_backup.sparse_copy).
    type: str
    choices: [qcow2, raw]
    default: qcow2
notes:
  - O(method=push) needs libvirt 7.2 and QEMU 4.2 or newer on the hypervisor.
seealso:
  - module: virtops.live_backup.libvirt_job_wait
  - module: virtops.live_backup.backup_set_publish
  - name: Efficient live full disk backup
    description: Libvirt's own description of the flow.
    link: https://libvirt.org/kbase/live_full_disk_backup.html
"""

EXAMPLES = r"""
- name: Begin the backup
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup

- name: Begin a backup that must be consistent on file system level, without the scratch disk
  virtops.live_backup.libvirt_backup_begin:
    domain: db1
    backup_id: before-upgrade
    target: /srv/backup
    exclude_disks:
      - vdb
    quiesce: require

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
  description: The disks that are captured.
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
        The file that it is written to; below the published set once that is published. Empty for O(method=offline) until it
        is copied, as is its format.
      type: str
      sample: /srv/backup/db1/.20261122T184512Z.partial/vda.qcow2
    format:
      description: The file's format.
      type: str
      sample: qcow2
skipped_disks:
  description: The disks that are not captured, and why.
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
consistency:
  description: >-
    V(filesystem) when the guest's file systems were frozen at that instant, V(offline) when the domain was shut off, otherwise V(crash).
    In check mode, what is expected.
  returned: success
  type: str
  sample: filesystem
why:
  description: Why the consistency is what it is.
  returned: when a backup was begun or found
  type: str
  sample: 'the guest agent froze file systems: 1'
frozen_ms:
  description:
    - How long the guest could not write, in milliseconds, from its agent's answer to the freeze until the thaw was sent.
    - This is the minimum. The guest could also not write for a part of RV(hook_ms), while it wrote its caches to the disks.
  returned: when a backup was begun or found
  type: int
  sample: 61
hook_ms:
  description:
    - How long the guest agent took to freeze and to thaw, in milliseconds. Nearly all of it is the time of its hooks, during which the
      guest writes. When the hooks ended cannot be seen from the hypervisor.
    - The guest paused for at most RV(frozen_ms) and RV(hook_ms) together.
    - V(null) for a set that was published before this was measured.
  returned: when a backup was begun or found
  type: int
  sample: 42
instant:
  description: When libvirt had begun the job, by the hypervisor's clock; the images show the disks as they were then.
  returned: when a backup was begun or found
  type: str
  sample: '2026-11-22T18:45:12.345Z'
began:
  description: When the job was asked for, in seconds since the epoch.
  returned: when a backup was begun or found under way
  type: float
  sample: 1795373112.311
job:
  description: >-
    The job as RV(virtops.live_backup.libvirt_job_wait#module:job), as it was when it had begun; V(null) if it had ended by then. Of a
    published set, the finished job.
  returned: when a backup was begun or found
  type: dict
path:
  description: Where the set is, or will be, published.
  returned: success
  type: str
  sample: /srv/backup/db1/20261122T184512Z
planned:
  description: Whether this is only a plan, made in check mode.
  returned: success
  type: bool
published:
  description: Whether the set is published already, so that there is nothing to wait for.
  returned: success
  type: bool
bytes_needed:
  description: The room that the images may need, in bytes.
  returned: unless the set is published already, and when there is too little
  type: int
  sample: 3543348019
bytes_free:
  description: The room that there is, in bytes.
  returned: unless the set is published already, and when there is too little
  type: int
  sample: 107374182400
code:
  description: The cause in one word, which stays the same when the message is reworded. The troubleshooting guide has a section for each.
  returned: failure
  type: str
  sample: claim_alive
libvirt_error:
  description: What libvirt said, with its numbers of the error's C(code) and C(domain) and its C(message).
  returned: failure, where libvirt said something
  type: dict
  sample: {code: 38, domain: 7, message: 'Failed to connect socket to ''/run/libvirt/libvirt-sock'': No such file or directory'}
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import (
    BACKUP_ID,
    CAPTURE,
    CONNECTION,
    DOMAIN,
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
        {
            "method": {"type": "str", "choices": ["push", "legacy", "offline"], "default": "push"},
            "overlay_dir": {"type": "path"},
            "exclusive": {"type": "bool", "default": False},
            "format": {"type": "str", "choices": ["qcow2", "raw"], "default": "qcow2"},
        },
    )


if __name__ == "__main__":
    main()
