#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_info
short_description: List the backup sets below a target
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Lists the backup sets of one, some or all domains, with the contents of their manifests and the result of their last proof.
  - Lists damaged and unfinished sets as such. The module believes nothing that it has not read, and follows no link.
  - Reads manifests and the sizes of files. To read every byte, use M(virtops.live_backup.backup_set_verify).
extends_documentation_fragment:
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
attributes:
  check_mode:
    support: full
    details: The module only reads.
  diff_mode:
    support: none
    details: The module changes nothing.
  idempotent:
    support: full
options:
  domains:
    description: Names, UUIDs or globs of the domains whose sets are listed. The default is all domains.
    type: list
    elements: str
    default: []
seealso:
  - module: virtops.live_backup.backup_set_verify
  - module: virtops.live_backup.backup_set_prune
"""

EXAMPLES = r"""
- name: List all sets
  virtops.live_backup.backup_set_info:
    target: /srv/backup
  register: found

- name: Fail if one of them is damaged
  ansible.builtin.assert:
    that: found.sets | selectattr('status', 'equalto', 'damaged') | length == 0

- name: List the sets of one domain on a backup server
  virtops.live_backup.backup_set_info:
    target: ssh://backup@vault.example.com/srv/backup
    ssh_key: /etc/live_backup/id_ed25519
    domains: [db1]
"""

RETURN = r"""
sets:
  description: The sets, sorted by domain and age, the oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    domain: {description: The domain's name., type: str, sample: db1}
    uuid: {description: The domain's UUID., type: str, sample: 5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e}
    backup_id: {description: The backup's name., type: str, sample: 20261122T184512Z}
    directory: {description: The directory of the domain's sets., type: str, sample: /srv/backup/db1}
    path: {description: The directory of the set., type: str, sample: /srv/backup/db1/20261122T184512Z}
    status:
      description: >-
        V(good) if the manifest is sound and every file has its size. V(damaged) if not, and C(findings) say why. V(partial) while it is
        written, or after its run was interrupted. V(removing) after its removal was interrupted.
      type: str
      sample: good
    good: {description: Whether its status is V(good) and its last proof did not fail., type: bool, sample: true}
    findings: {description: The problems of the set., type: list, elements: str, sample: []}
    method: {description: 'How it was captured - V(push), V(pull), V(legacy) or V(offline).', type: str, sample: push}
    level: {description: 'What it contains - V(full), V(incremental) or V(differential).', type: str, sample: incremental}
    parent:
      description: The C(backup_id) of the set that it builds on. It cannot be restored without that set. Null for a full backup.
      type: str
      sample: 20261121T184512Z
    consistency: {description: 'V(filesystem), V(crash) or V(offline).', type: str, sample: filesystem}
    instant: {description: The images show the disks at this instant., type: str, sample: '2026-11-22T18:45:12.345Z'}
    ahead:
      description: >-
        Whether a good set seems to come from the future, more than five minutes ahead of the target's clock. Such a set is restored
        and proven only if you name it, and retention leaves it alone.
      type: bool
      sample: false
    finished: {description: When it was published., type: str, sample: '2026-11-22T18:46:45.559Z'}
    bytes: {description: The disk space of its images when it was published., type: int, sample: 3221225472}
    proof:
      description:
        - The last proof of the set, with C(level), C(outcome) (V(verified), V(failed), V(timed out)), C(verified), C(at), C(rto_ms) and
          C(findings). Null if there was none.
      type: dict
      sample: {level: boot, outcome: verified, verified: true, at: '2026-11-22T19:02:01.100Z', rto_ms: 8123, findings: []}
    manifest: {description: 'The manifest, as in C(docs/manifest.schema.json). Null if it is damaged.', type: dict}
findings:
  description: What is below the target and looks like a set, but is not one.
  returned: success
  type: list
  elements: str
  sample: []
free_bytes:
  description: The free disk space at the target, in bytes. What is reserved for root does not count.
  returned: success
  type: int
  sample: 1099511627776
size_bytes:
  description: The size of the target's file system, in bytes.
  returned: success
  type: int
  sample: 4398046511104
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: claim_alive
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_sets import set_info


def main() -> None:
    run(set_info, TARGET, SSH, {"domains": {"type": "list", "elements": "str", "default": []}})


if __name__ == "__main__":
    main()
