#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_disk_snapshot
short_description: Put overlays on the disks of a running libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Puts an external overlay on every chosen disk, in one transaction. From that instant on the guest writes to the overlays. The bases do
    not change, so M(virtops.live_backup.sparse_copy) can copy them. No snapshot metadata is left in libvirt.
  - Freezes the guest's file systems before the snapshot and thaws them after it, in one process. A watchdog thaws them if that process
    dies, hangs, or takes longer than O(freeze_timeout) or O(hook_timeout).
  - Writes a claim to C(/var/lib/live_backup) first, and a copy of it beside the overlays. M(virtops.live_backup.libvirt_backup_recover)
    uses it to clean up after an interrupted run.
  - Saves the domain's XML, with its secrets, and its NVRAM of that instant into the partial set.
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
    support: full
  idempotent:
    support: full
    details: No change if the overlays of this O(backup_id) were created, or its set is published.
options:
  overlay_dir:
    description:
      - An existing directory on the hypervisor for the overlays, as an absolute path. QEMU must be able to write there.
      - The default is the directory of each base.
      - >-
        For a block device, the default is one of these: the directories of the domain's other images, C(/var/lib/libvirt/images),
        C(/var/lib/libvirt/qemu). The first that exists, is not in memory (tmpfs), and has enough free disk space is used. RV(overlays)
        shows it, in check mode too.
      - An overlay grows by what the guest writes and frees during the copy. The copy is aborted before the overlays fill the file system.
    type: path
notes:
  - Works with any libvirt and QEMU of a hypervisor that has Python 3.9.
seealso:
  - module: virtops.live_backup.sparse_copy
  - module: virtops.live_backup.libvirt_blockcommit
  - name: Efficient live full disk backup
    description: Libvirt's own description of the flow.
    link: https://libvirt.org/kbase/live_full_disk_backup.html
"""

EXAMPLES = r"""
- name: Put overlays on the disks
  virtops.live_backup.libvirt_disk_snapshot:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup

- name: Put the overlays of block devices on another file system
  virtops.live_backup.libvirt_disk_snapshot:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup
    overlay_dir: /var/lib/libvirt/overlays

- name: Start a backup that is sent directly to a backup server
  virtops.live_backup.libvirt_disk_snapshot:
    domain: db1
    backup_id: 20261122T184512Z
    target: ssh://backup@vault.example.com/srv/backup
    ssh_key: /etc/live_backup/id_ed25519
    staging_dir: /var/lib/live_backup_staging
"""

RETURN = r"""
overlays:
  description: The planned or created overlays.
  returned: unless the set is published already
  type: list
  elements: dict
  contains:
    target:
      description: The disk's target dev.
      type: str
      sample: vda
    base:
      description: The image that does not change while the overlay exists.
      type: str
      sample: /var/lib/libvirt/images/db1.qcow2
    base_format:
      description: The base's format.
      type: str
      sample: qcow2
    base_type:
      description: V(file) or V(block).
      type: str
      sample: file
    path:
      description: The file of the overlay.
      type: str
      sample: /var/lib/libvirt/images/6a7d2f30-7a1f-4c9a-8f3e-0d2f5b1c9e11.vda.20261122T184512Z.overlay
method:
  description: The method of this backup.
  returned: success
  type: str
  sample: legacy
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
        The file that the disk is written to, in the published set once it is published. It and the format are empty until the disk is
        copied.
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
      description: V(null). How much differs is known when the set is published.
      type: int
level:
  description: The level of this backup, V(full), V(incremental) or V(differential).
  returned: success
  type: str
  sample: incremental
level_reason:
  description: The reason for the level.
  returned: success
  type: str
  sample: 'builds on 20261122T184512Z; no checkpoint is made: the method is legacy'
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
    V(filesystem) if the guest's file systems were frozen at that instant, otherwise V(crash). In check mode, the expected value.
  returned: success
  type: str
  sample: filesystem
why:
  description: The reason for the consistency.
  returned: if overlays were created or found
  type: str
  sample: 'the guest agent froze file systems: 1'
frozen_ms:
  description:
    - How long the guest could not write, in milliseconds. This is the minimum.
    - M(virtops.live_backup.libvirt_backup_begin) explains it at RV(virtops.live_backup.libvirt_backup_begin#module:frozen_ms).
  returned: if overlays were created or found
  type: int
  sample: 61
hook_ms:
  description:
    - How long the guest agent took to freeze and to thaw, in milliseconds. Nearly all of it is the time of its hooks.
    - M(virtops.live_backup.libvirt_backup_begin) explains it at RV(virtops.live_backup.libvirt_backup_begin#module:hook_ms).
  returned: if overlays were created or found
  type: int
  sample: 42
instant:
  description: When the overlays were in place, by the hypervisor's clock. The bases show the disks at this instant.
  returned: if overlays were created or found
  type: str
  sample: '2026-11-22T18:45:12.345Z'
began:
  description: When the module asked for the overlays, in seconds since the epoch.
  returned: if overlays were created or found
  type: float
  sample: 1795373112.311
job:
  description: V(null). Only a push or a pull has a job.
  returned: if overlays were created or found
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
  description: Whether the set is published already. Then there is nothing to do.
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
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.begin import snapshot_disks


def main() -> None:
    run(
        snapshot_disks,
        CONNECTION,
        DOMAIN,
        BACKUP_ID,
        TARGET,
        SSH,
        CAPTURE,
        PROGRESS,
        ENCRYPTION,
        ENCRYPT,
        {"overlay_dir": {"type": "path"}},
        mutually_exclusive=[ONE_KEY],
    )


if __name__ == "__main__":
    main()
