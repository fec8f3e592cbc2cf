#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_consolidate
short_description: Make a full backup set of an incremental one, at the target
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Makes a new full set that contains the same disks as a set that depends on others. Nothing is read from a domain. For a O(target) over
    ssh, the server makes it, and no image passes the network.
  - The new set is named after the other one, with C(.full) at the end. Later incremental backups are made from it. So a chain never needs
    a new full backup of the domain.
  - No published file changes. The other sets stay until M(virtops.live_backup.backup_set_prune) removes them. There, the new set counts in
    place of the one that it was made of.
  - Each image of the new set is compared with what was backed up, before the set gets its name. So a damaged image does not pass into it.
extends_documentation_fragment:
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
attributes:
  check_mode:
    support: full
    details: Checks the set and the free disk space, and returns the plan.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if the set is a full one, or its full set exists.
options:
  domain:
    description: The name or UUID of the domain. The domain itself need not exist any more.
    type: str
    required: true
  backup_id:
    description: The name of the backup. The default is the newest good one.
    type: str
notes:
  - The images of the chain must be qcow2 images of version 3 with clusters of 64 KiB, without compression. All images of incremental sets
    are. A compressed full set under them cannot be read.
seealso:
  - module: virtops.live_backup.backup_set_prune
  - module: virtops.live_backup.backup_set_verify
"""

EXAMPLES = r"""
- name: Make a full set of the newest set
  virtops.live_backup.backup_set_consolidate:
    target: /srv/backup
    domain: db1

- name: Make a full set on a backup server
  virtops.live_backup.backup_set_consolidate:
    target: ssh://backup@vault.example.com/srv/backup
    domain: db1
    backup_id: 20261122T184512Z
"""

RETURN = r"""
backup_id:
  description: The name of the full set.
  returned: success
  type: str
  sample: 20261122T184512Z.full
path:
  description: The directory of the full set.
  returned: success
  type: str
  sample: /srv/backup/db1/20261122T184512Z.full
bytes:
  description: The disk space of its images, in bytes. In check mode, the maximum that is needed.
  returned: success
  type: int
  sample: 3221225472
made_of:
  description: The sets that it was made of, the oldest first. Empty for a set that was backed up as a full one.
  returned: success
  type: list
  elements: str
  sample: [20261120T184512Z, 20261121T184512Z, 20261122T184512Z]
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: set_damaged
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import DOMAIN, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.consolidate import consolidate


def main() -> None:
    run(consolidate, DOMAIN, TARGET, SSH, {"backup_id": {"type": "str"}})


if __name__ == "__main__":
    main()
