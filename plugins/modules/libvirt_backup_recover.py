#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_backup_recover
short_description: Bring a libvirt domain back to rest after an interrupted backup or restore
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Repairs what a backup left whose run has died, by its claim in C(/var/lib/live_backup), or by the copy of it beside the overlays. It
    thaws the guest, commits the overlays and deletes them, aborts the job, resumes a guest that an I/O error has paused, removes the
    unfinished set, and removes the claim last.
  - Touches nothing that is not provably of that run. Where it cannot be proved that a base holds every write of the guest, it commits
    nothing, deletes nothing, fails with the reason and what to do, and fails again until that is done.
  - Completes a restore that was interrupted, or undoes it where it had replaced nothing yet. It does not start the domain. A restore whose
    set is gone while a block device holds a part of it is an error, since nothing can put that back.
  - The claim of a living run is an error, which says for how long the claim still holds. A claim lives while a step works on it, and for
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
    details: No change when there is nothing to repair.
options:
  backup_id:
    description: The backup that is to go on after this. If its job runs or has finished on the domain, it is left as it is.
    type: str
  take_over:
    description:
      - Recovers although the run's last step ended less than five minutes ago. Use it only if you know that the run is dead, for example
        because you have ended its C(ansible-playbook). If the run lives after all, its next step fails and its backup is lost.
      - A step that works on the domain right now is never disturbed.
    type: bool
    default: false
  base_untouched:
    description:
      - Your word that nothing has written to the bases since the backup put the guest on its overlays, but the domain on its overlays and
        their commit. No guest booted from an old definition did, no other host, and no tool.
      - It is needed where nothing proves this. That can be so for a block device after a restart of the host, a new activation of the
        device, or an end of the guest during a commit that no run watched. Recovery then fails and names this option.
      - If the word is wrong, the commit destroys what is in the base. It changes nothing where it is known that a base was used.
    type: bool
    default: false
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: Heal what the last night left
  virtops.live_backup.libvirt_backup_recover:
    domain: db1

- name: Do not wait for a run that was ended a minute ago
  virtops.live_backup.libvirt_backup_recover:
    domain: db1
    take_over: true

- name: Recover a domain on a block device that nobody else has used
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
  description: What was repaired, in order.
  returned: success
  type: list
  elements: dict
  contains:
    what:
      description: What was found.
      type: str
      sample: backup job
    evidence:
      description: How it is known to be of the interrupted run.
      type: str
      sample: it writes the files that the claim names
    action:
      description: What was done.
      type: str
      sample: abort it
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
