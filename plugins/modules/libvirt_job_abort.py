#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_job_abort
short_description: Abort the backup job of a libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Aborts the backup job of a domain, whoever started it, and returns when the job has ended.
  - Libvirt removes the images that the job has written. The guest keeps running.
  - Does not abort a job of another kind, such as a migration.
  - The claim of a backup of this collection stays. M(virtops.live_backup.libvirt_job_wait) then records the failure and
    removes what is left.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: Nothing that can be shown as a difference changes.
  idempotent:
    support: full
    details: No change if no backup job is running.
options:
  timeout:
    description: Maximum time in seconds for the job to end.
    type: int
    default: 60
seealso:
  - module: virtops.live_backup.libvirt_backup_recover
"""

EXAMPLES = r"""
- name: Stop the backup, because the guest needs its disks
  virtops.live_backup.libvirt_job_abort:
    domain: db1
"""

RETURN = r"""
job:
  description: >-
    The job that was found, as RV(virtops.live_backup.libvirt_job_wait#module:job). V(null) for none.
  returned: success
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, DOMAIN, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.abort import abort_job


def main() -> None:
    run(abort_job, CONNECTION, DOMAIN, {"timeout": {"type": "int", "default": 60}})


if __name__ == "__main__":
    main()
