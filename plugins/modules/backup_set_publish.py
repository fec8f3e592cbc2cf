#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_publish
short_description: Publish a finished backup as a backup set
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Turns the files of a finished backup into a set, with C(manifest.json) and C(RESTORE.md). Each file is synced, and only root can read
    it.
  - Renames the set into place as the last step. So a set that is visible is complete.
  - Needs the result that M(virtops.live_backup.libvirt_job_wait) recorded, and every planned image.
  - Reads each image once, for its digest.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.libvirt.backup_id
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Fails as the real run would if the backup is not ready to be published.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if the set is published.
options:
  staging_dir:
    description:
      - For a O(target) that starts with C(ssh://), and only then. The directory on this host with which the backup was started, as its
        staging_dir or its target. The default is the same as there.
      - Everything that was not sent yet is sent from there. On the other host, each file is written under another name, read again and
        compared, before the set gets its name. The files in this directory are removed afterwards, even if the transfer fails.
    type: path
  group:
    description:
      - >-
        The domains that were captured together with this one at one moment, this one included
        (O(virtops.live_backup.libvirt_backup_begin#module:at)).
      - The manifest records it. The group is complete when the set of this O(backup_id) of each member is published.
    type: dict
    suboptions:
      name:
        description: The name of the group.
        type: str
        required: true
      spread_ms:
        description: The time from the first member's instant to the last one's, in milliseconds.
        type: int
        required: true
      clock_error_ms:
        description: The possible error of that time in milliseconds, because the hypervisors' clocks were compared over the network.
        type: int
        required: true
      members:
        description: All members.
        type: list
        elements: dict
        required: true
        suboptions:
          domain:
            description: The domain's name.
            type: str
            required: true
          uuid:
            description: The domain's UUID.
            type: str
            required: true
          hypervisor:
            description: The name of its hypervisor in the inventory.
            type: str
            required: true
  consolidate_at:
    description:
      - If the chain of the set has this many sets, a full set is made of it. M(virtops.live_backup.backup_set_consolidate) explains that.
      - V(0) never does that.
      - If that fails, the module shows a warning. The set stays published.
    type: int
    default: 0
seealso:
  - module: virtops.live_backup.libvirt_job_wait
  - module: virtops.live_backup.backup_set_consolidate
"""

EXAMPLES = r"""
- name: Publish the set
  virtops.live_backup.backup_set_publish:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup

- name: Publish it on a backup server
  virtops.live_backup.backup_set_publish:
    domain: db1
    backup_id: 20261122T184512Z
    target: ssh://backup@vault.example.com/srv/backup
    ssh_key: /etc/live_backup/id_ed25519
    staging_dir: /var/lib/live_backup_staging
"""

RETURN = r"""
full:
  description: The full set that was made of the chain, as M(virtops.live_backup.backup_set_consolidate) returns it.
  returned: if the chain has O(consolidate_at) sets
  type: dict
was_published:
  description: Whether the set was published before.
  returned: success, unless in check mode the set is not published
  type: bool
path:
  description: The directory of the set.
  returned: success
  type: str
  sample: /srv/backup/db1/20261122T184512Z
bytes:
  description: The disk space of the images, in bytes.
  returned: success, outside check mode or if the set is published
  type: int
  sample: 3221225472
seconds:
  description: Seconds from the start of the backup to the digest of its last image.
  returned: success, outside check mode or if the set is published
  type: float
  sample: 93.214
manifest:
  description: The set's manifest. C(docs/manifest.schema.json) is its JSON Schema.
  returned: success, outside check mode or if the set is published
  type: dict
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import BACKUP_ID, CONNECTION, DOMAIN, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.publish import publish_set


def main() -> None:
    members = {name: {"type": "str", "required": True} for name in ("domain", "uuid", "hypervisor")}
    group = {
        "name": {"type": "str", "required": True},
        "spread_ms": {"type": "int", "required": True},
        "clock_error_ms": {"type": "int", "required": True},
        "members": {"type": "list", "elements": "dict", "required": True, "options": members},
    }
    run(
        publish_set,
        CONNECTION,
        DOMAIN,
        BACKUP_ID,
        TARGET,
        SSH,
        {"staging_dir": {"type": "path"}, "group": {"type": "dict", "options": group}, "consolidate_at": {"type": "int", "default": 0}},
    )


if __name__ == "__main__":
    main()
