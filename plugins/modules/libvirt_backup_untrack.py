#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_backup_untrack
short_description: Remove the checkpoints that incremental backups of a libvirt domain need
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Removes all checkpoints and bitmaps that this collection made for a domain, for all targets. Their names start with C(live-backup.).
  - Libvirt can then revert to internal snapshots of the domain again, and C(virsh undefine) works without C(--checkpoints-metadata).
  - The backup sets stay, and can be restored. In the next backup with O(virtops.live_backup.libvirt_backup_begin#module:level=auto), each
    disk is read as a whole and compared with the newest set. Then changes are tracked again.
  - The domain can be running or shut off. If it is shut off, the module also removes bitmaps without a checkpoint in libvirt.
  - Checkpoints and bitmaps with other names stay. Bitmaps in backing files stay, since other domains may use these files.
  - It is an error if a backup or a restore of the domain is running or was interrupted.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Lists what would be removed.
  diff_mode:
    support: none
    details: The result lists the removed checkpoints.
  idempotent:
    support: full
    details: No change if the domain has none of these checkpoints and bitmaps.
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
  - module: virtops.live_backup.libvirt_backup_recover
"""

EXAMPLES = r"""
- name: Remove all checkpoints of the backups, to revert to an internal snapshot
  virtops.live_backup.libvirt_backup_untrack:
    domain: db1
"""

RETURN = r"""
removed:
  description: The names of the removed checkpoints and bitmaps. In check mode, those that would be removed.
  returned: success
  type: list
  elements: str
  sample: [live-backup.5f0c21aa.20261122T184512Z.93ac0f4be1d27786]
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, DOMAIN, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.untrack import untrack


def main() -> None:
    run(untrack, CONNECTION, DOMAIN)


if __name__ == "__main__":
    main()
