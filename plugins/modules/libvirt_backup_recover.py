#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_backup_recover
short_description: Clean up after an interrupted backup or restore of a libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Repairs what a dead run of a backup left. It works from the run's claim in C(/var/lib/live_backup), or from the copy of the claim beside
    the overlays.
  - Thaws the guest, commits the overlays and deletes them, aborts the job, and resumes a guest that an I/O error has paused. Then it
    removes the partial set, and the claim last.
  - Changes nothing that does not provably belong to that run. If it cannot prove that a base holds every write of the guest, it commits
    nothing and deletes nothing. It fails with the reason and what to do, and fails again until that is done.
  - Completes an interrupted restore, or undoes it if the restore had replaced nothing yet. It does not start the domain. It is an error
    if the set is gone while a block device holds a part of it. Nothing can put that back.
  - The claim of a live run is an error, which says for how long the claim still holds. A claim is live while a step works, and for
    five minutes after each step. O(take_over) ends the five minutes.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Lists what would be repaired, with the evidence.
  diff_mode:
    support: full
  idempotent:
    support: full
    details: No change if there is nothing to repair.
options:
  backup_id:
    description: The backup that will continue after this. If its job is running or has finished on the domain, it is left as it is.
    type: str
  take_over:
    description:
      - Recover even if the run's last step ended less than five minutes ago. Use it only if you know that the run is dead, for example
        because you have ended its C(ansible-playbook). If the run is alive after all, its next step fails and its backup is lost.
      - A step that is working on the domain now is never disturbed.
    type: bool
    default: false
  base_untouched:
    description:
      - Confirms that nothing else has written to the bases since the backup put the guest on its overlays. Only the domain on its overlays
        and their commit may have written. No guest that was started from an old definition, no other host and no tool may have written.
      - Required if nothing proves this. That is possible for a block device after a restart of the host or a new activation of the
        device. It is also possible if a commit was interrupted, or if the guest ended during a commit that no run watched. Recovery then
        fails and names this option.
      - If the confirmation is wrong, the commit destroys what is in the base. The option has no effect if a base is known to have been
        used.
    type: bool
    default: false
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: Clean up after the last night
  virtops.live_backup.libvirt_backup_recover:
    domain: db1

- name: Do not wait for a run that was killed a minute ago
  virtops.live_backup.libvirt_backup_recover:
    domain: db1
    take_over: true

- name: Recover a domain on a block device that nothing else has used
  virtops.live_backup.libvirt_backup_recover:
    domain: db1
    base_untouched: true
"""

RETURN = r"""
planned:
  description: Whether the repairs are only planned, in check mode.
  returned: success
  type: bool
repairs:
  description: The repairs, in order.
  returned: success
  type: list
  elements: dict
  contains:
    what:
      description: What was found.
      type: str
      sample: backup job
    evidence:
      description: Why it is known to belong to the interrupted run.
      type: str
      sample: it writes the files that the claim names
    action:
      description: What was done.
      type: str
      sample: abort it
code:
  description: A stable name of the cause. It stays the same when the message changes. The troubleshooting guide has a section for each
    code.
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
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.recover import recover


def main() -> None:
    run(
        recover,
        CONNECTION,
        DOMAIN,
        {
            "backup_id": {"type": "str"},
            "take_over": {"type": "bool", "default": False},
            "base_untouched": {"type": "bool", "default": False},
        },
    )


if __name__ == "__main__":
    main()
