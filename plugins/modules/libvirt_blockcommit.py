#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_blockcommit
short_description: Bring a libvirt domain from its overlays back to its bases
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Commits the overlays of M(virtops.live_backup.libvirt_disk_snapshot) into their own bases, and never deeper into a chain. Then it pivots
    the domain to the bases, and deletes the overlays.
  - A commit counts as ready only when libvirt reports it ready to pivot. It is not enough that the commit has caught up.
  - Also works on a domain that was shut down in the meantime, under QEMU's image lock.
  - Deletes an overlay only if no live XML, definition, saved memory or snapshot of any domain names it.
  - If it cannot prove that the base holds every write of the guest, it commits nothing, deletes nothing, and says why.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.libvirt.backup_id
  - virtops.live_backup.libvirt.progress
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Lists the overlays that would be committed.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if no disk of the domain is on an overlay of this O(backup_id).
options:
  disks:
    description: The target devs of the disks to bring back. The default is all disks that have an overlay.
    type: list
    elements: str
  timeout:
    description:
      - Maximum time to wait, in seconds. A guest may write faster than its overlay can be committed.
      - After this time the module fails and the commits continue. A later call waits for them again.
    type: int
    default: 3600
seealso:
  - module: virtops.live_backup.libvirt_disk_snapshot
  - module: virtops.live_backup.libvirt_backup_recover
"""

EXAMPLES = r"""
- name: Bring the domain back to its bases
  virtops.live_backup.libvirt_blockcommit:
    domain: db1
    backup_id: 20261122T184512Z
    timeout: 600
"""

RETURN = r"""
committed:
  description: The overlays that were committed and deleted. In check mode, those that would be.
  returned: success
  type: list
  elements: dict
  contains:
    target:
      description: The disk's target dev.
      type: str
      sample: vda
    base:
      description: The image that the disk uses again.
      type: str
      sample: /var/lib/libvirt/images/db1.qcow2
    overlay:
      description: The deleted overlay.
      type: str
      sample: /var/lib/libvirt/images/6a7d2f30-7a1f-4c9a-8f3e-0d2f5b1c9e11.vda.20261122T184512Z.overlay
    bytes:
      description: The disk space of the overlay when it was deleted, in bytes.
      type: int
      sample: 7340032
planned:
  description: Whether the commits are only planned, in check mode.
  returned: success
  type: bool
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import BACKUP_ID, CONNECTION, DOMAIN, PROGRESS, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.commit import commit_overlays


def main() -> None:
    run(
        commit_overlays,
        CONNECTION,
        DOMAIN,
        BACKUP_ID,
        PROGRESS,
        {"disks": {"type": "list", "elements": "str"}, "timeout": {"type": "int", "default": 3600}},
    )


if __name__ == "__main__":
    main()
