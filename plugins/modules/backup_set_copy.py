#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_copy
short_description: Copy backup sets to a second target
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Copies the sets of a target to another one, byte by byte. Each of the two is a directory of this host or a directory on another host. If
    both are on other hosts, the data passes through this host, and no file of it is stored here.
  - A set that depends on others is copied after them. So each set at O(dest) can be restored from O(dest) alone.
  - Each file is read again from the disk of O(dest), and its digest is compared. A set gets its name there when it is complete.
  - >-
    An interrupted copy continues at the next run. Complete files are not sent again. Of a large file only the rest is sent, and about 600
    MiB before it once more. It is read from its start for its digest.
  - The record of the last proof is copied with a set, if the proof succeeded. A newer proof is copied later.
  - >-
    A set is not removed while it is copied. M(virtops.live_backup.backup_set_prune) then fails with the C(code) V(set_in_use).
  - Encrypted sets are copied as they are, and no key is needed.
extends_documentation_fragment:
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.libvirt.progress
  - virtops.live_backup.attributes
attributes:
  check_mode:
    support: full
    details: Lists what would be copied. The free disk space at O(dest) is not checked.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if O(dest) has all sets that are wanted there.
options:
  dest:
    description: The second target. Same forms as O(target). It must exist.
    type: str
    required: true
  dest_ssh_key:
    description: As O(ssh_key), for O(dest).
    type: path
  dest_ssh_options:
    description: As O(ssh_options), for O(dest).
    type: list
    elements: str
    default: []
  domains:
    description: Names, UUIDs or globs of the domains whose sets are copied. The default is all domains.
    type: list
    elements: str
    default: []
  max_age:
    description:
      - Copy only the sets that are not older, as a number and C(s), C(m), C(h), C(d) or C(w).
      - A set that a copied one depends on is copied, whatever its age is.
    type: str
  proven:
    description: Copy only sets whose last proof succeeded, of any level.
    type: bool
    default: false
  groups:
    description: Copy only the sets of backups of these groups (O(virtops.live_backup.backup_set_publish#module:group)).
    type: list
    elements: str
    default: []
  consolidate:
    description:
      - Copy full sets only. If a set depends on others, the first target makes a full set of it, as
        M(virtops.live_backup.backup_set_consolidate) does. The full set stays there too.
      - This is not possible for encrypted sets.
    type: bool
    default: false
  keep_last:
    description:
      - The rules with which M(virtops.live_backup.backup_set_prune) is run at O(dest). A set that they would remove there is not copied.
      - Nothing is removed by this module.
      - Without any rule, all chosen sets are copied.
    type: int
  keep_hourly:
    description: As O(keep_last).
    type: int
  keep_daily:
    description: As O(keep_last).
    type: int
  keep_weekly:
    description: As O(keep_last).
    type: int
  keep_monthly:
    description: As O(keep_last).
    type: int
  keep_yearly:
    description: As O(keep_last).
    type: int
  bandwidth:
    description: Maximum throughput in bytes per second, for example V(50M). The default is not to limit it.
    type: bytes
seealso:
  - module: virtops.live_backup.backup_set_info
  - module: virtops.live_backup.backup_set_prune
  - module: virtops.live_backup.libvirt_domain_restore
"""

EXAMPLES = r"""
- name: Copy the sets of all domains to a server in another building
  virtops.live_backup.backup_set_copy:
    target: /srv/backup
    dest: ssh://backup@vault.example.com/srv/backup
    dest_ssh_key: /etc/live_backup/id_ed25519
    bandwidth: 50M

- name: Copy what a year of monthly sets needs, from one server to another
  virtops.live_backup.backup_set_copy:
    target: ssh://backup@store.example.com/srv/backup
    dest: ssh://backup@vault.example.com/srv/archive
    domains: ["db*"]
    keep_monthly: 12
    consolidate: true

- name: Remove there what these rules do not keep
  virtops.live_backup.backup_set_prune:
    target: ssh://backup@vault.example.com/srv/archive
    domains: ["db*"]
    keep_monthly: 12
    own_rules: false
"""

RETURN = r"""
copied:
  description: The sets that were copied, or would be in check mode, in this order.
  returned: success, or failure after the targets were listed
  type: list
  elements: dict
  contains:
    domain:
      description: The name of the domain.
      type: str
      sample: db1
    uuid:
      description: The UUID of the domain.
      type: str
      sample: 3bfa4bd5-1ab5-4a1e-9f6f-4a5d0b3a7b61
    backup_id:
      description: The name of the backup.
      type: str
      sample: 20261122T184512Z
    path:
      description: The directory of the copy at O(dest). Empty in check mode.
      type: str
      sample: /srv/backup/db1/20261122T184512Z
    bytes:
      description: The bytes that were read for the copy. In check mode, the disk space of the images.
      type: int
      sample: 3221225472
    seconds:
      description: How long it took. V(0) in check mode.
      type: float
      sample: 31.2
present:
  description: The sets that are wanted at O(dest) and were there before.
  returned: success, or failure after the targets were listed
  type: list
  elements: dict
  contains:
    domain:
      description: The name of the domain.
      type: str
      sample: db1
    uuid:
      description: The UUID of the domain.
      type: str
      sample: 3bfa4bd5-1ab5-4a1e-9f6f-4a5d0b3a7b61
    backup_id:
      description: The name of the backup.
      type: str
      sample: 20261121T184512Z
    path:
      description: The directory of the copy at O(dest).
      type: str
      sample: /srv/backup/db1/20261121T184512Z
proofs:
  description: The number of newer proofs whose record was copied, for sets that were there before.
  returned: success, or failure after the targets were listed
  type: int
  sample: 1
bytes:
  description: The sum of RV(copied[].bytes).
  returned: success, or failure after the targets were listed
  type: int
  sample: 3221225472
findings:
  description: Sets that are not good and were not copied, and what is not a backup set and should be one, at both targets.
  returned: success, or failure after the targets were listed
  type: list
  elements: str
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: copy_incomplete
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import PROGRESS, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy_sets import copy_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES


def main() -> None:
    run(
        copy_sets,
        TARGET,
        SSH,
        PROGRESS,
        {f"keep_{rule}": {"type": "int"} for rule in RULES},
        {
            "dest": {"type": "str", "required": True},
            "dest_ssh_key": {"type": "path"},
            "dest_ssh_options": {"type": "list", "elements": "str", "default": []},
            "domains": {"type": "list", "elements": "str", "default": []},
            "max_age": {"type": "str"},
            "proven": {"type": "bool", "default": False},
            "groups": {"type": "list", "elements": "str", "default": []},
            "consolidate": {"type": "bool", "default": False},
            "bandwidth": {"type": "bytes"},
        },
    )


if __name__ == "__main__":
    main()
