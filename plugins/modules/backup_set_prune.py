#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_prune
short_description: Remove backup sets that the retention rules do not keep
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Keeps, for each domain, the sets that any rule keeps, and removes the others. The rules count as in restic, each one separately,
    in UTC, with weeks as in ISO 8601.
  - >-
    A domain may have rules in its metadata. Each backup notes them in its set. Those of the newest set then replace the rules given
    here, for all sets of the domain, also if no rule is given here. The reasons in RV(kept) say so.
  - Without any rule of either kind, or with all of them V(0), nothing is removed.
  - Never removes a domain's last good set, a set that another one depends on, or a set that is being read.
  - Keeps and reports a set that is damaged, that seems to come from the future, or whose last proof failed. The rules do not count it.
  - While the last proof of one of a domain's sets has failed, no set of that domain is removed, and the module fails.
  - A set loses its name before its files are removed. So a set that is visible is complete. The next run finishes an interrupted removal.
extends_documentation_fragment:
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
attributes:
  check_mode:
    support: full
    details: Returns the plan.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if there is nothing to remove.
options:
  domains:
    description: Names, UUIDs or globs of the domains whose sets are pruned. The default is all domains.
    type: list
    elements: str
    default: []
  keep_last:
    description: The number of newest sets to keep.
    type: int
  keep_hourly:
    description: Keep the newest set of each of this many hours that have a set, counted from the newest.
    type: int
  keep_daily:
    description: Keep the newest set of each of this many days that have a set, counted from the newest.
    type: int
  keep_weekly:
    description: Keep the newest set of each of this many weeks that have a set, counted from the newest.
    type: int
  keep_monthly:
    description: Keep the newest set of each of this many months that have a set, counted from the newest.
    type: int
  keep_yearly:
    description: Keep the newest set of each of this many years that have a set, counted from the newest.
    type: int
  keep_ids:
    description:
      - The names of backups that stay, whatever the rules say.
      - The role names the set that it has just published. If the clock of a hypervisor is years behind, that set looks like the oldest.
    type: list
    elements: str
    default: []
  own_rules:
    description:
      - Follow the rules that a domain has in its metadata, as its sets have noted them.
      - Set it to V(false) for a second target whose rules are given here.
    type: bool
    default: true
seealso:
  - module: virtops.live_backup.backup_set_copy
  - module: virtops.live_backup.backup_set_info
  - module: virtops.live_backup.backup_set_verify
"""

EXAMPLES = r"""
- name: Keep seven daily and twelve monthly sets
  virtops.live_backup.backup_set_prune:
    target: /srv/backup
    keep_daily: 7
    keep_monthly: 12

- name: Show what would be removed from a backup server
  virtops.live_backup.backup_set_prune:
    target: ssh://backup@vault.example.com/srv/backup
    domains: [db1]
    keep_last: 3
  check_mode: true
"""

RETURN = r"""
kept:
  description: The kept sets, each with C(domain), C(uuid), C(backup_id), C(path), C(instant), C(bytes) and the C(reasons).
  returned: success, or failure after the rules were applied
  type: list
  elements: dict
  sample:
    - domain: db1
      uuid: 5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e
      backup_id: 20261122T184512Z
      path: /srv/backup/db1/20261122T184512Z
      instant: '2026-11-22T18:45:12.345Z'
      bytes: 3221225472
      reasons: [last, daily]
removed:
  description: The removed sets, as in RV(kept) without reasons. In check mode, the sets that would be removed.
  returned: success, or failure after the rules were applied
  type: list
  elements: dict
findings:
  description: What is below the target and looks like a set, but is not one.
  returned: success, or failure after the rules were applied
  type: list
  elements: str
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: claim_alive
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.prune import prune
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES


def main() -> None:
    run(
        prune,
        TARGET,
        SSH,
        {"domains": {"type": "list", "elements": "str", "default": []}},
        {f"keep_{rule}": {"type": "int"} for rule in RULES},
        {"keep_ids": {"type": "list", "elements": "str", "default": []}, "own_rules": {"type": "bool", "default": True}},
    )


if __name__ == "__main__":
    main()
