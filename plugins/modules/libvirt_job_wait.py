#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_job_wait
short_description: Wait for the backup job of a libvirt domain
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Waits for the end of the backup job that M(virtops.live_backup.libvirt_backup_begin) started, and records the result.
  - "'No job' is not success. Libvirt must have statistics of the finished job, they must be of this job, and they must report success."
  - Continues to wait if libvirtd is restarted. If libvirtd loses the statistics of a finished job, the backup has failed.
  - If the job failed, the module removes everything that the backup left, and resumes a guest that an I/O error of the job has paused.
    Then it fails with the reason.
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
    details: Does not wait, and returns the job as it is now.
  diff_mode:
    support: none
    details: Nothing that can be shown as a difference changes.
  idempotent:
    support: full
    details: No change if the result is recorded already.
options:
  timeout:
    description: Maximum time to wait, in seconds.
    type: int
    default: 86400
  on_timeout:
    description:
      - V(fail) leaves the job running. A later task can wait for it again.
      - V(abort) ends the job and removes what it has written.
    type: str
    choices: [fail, abort]
    default: fail
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
  - module: virtops.live_backup.libvirt_job_abort
"""

EXAMPLES = r"""
- name: Wait for the backup, six hours at most
  virtops.live_backup.libvirt_job_wait:
    domain: db1
    backup_id: 20261122T184512Z
    timeout: 21600
    on_timeout: abort
"""

RETURN = r"""
job:
  description: >-
    The finished job, with the values that C(virsh domjobinfo --completed) shows. In check mode, the job as it is now. V(null) if it has
    ended.
  returned: success, and failure if it is known
  type: dict
  contains:
    type:
      description: V(completed), V(failed) or V(cancelled). V(unbounded) while it runs.
      type: str
      sample: completed
    operation:
      description: What the job does.
      type: str
      sample: backup
    success:
      description: Whether it succeeded.
      type: bool
      sample: true
    time_elapsed_ms:
      description: Its duration in milliseconds.
      type: int
      sample: 4213
    data_total:
      description: The total size of all disks in bytes.
      type: int
      sample: 3221225472
    data_processed:
      description: The bytes that are processed.
      type: int
      sample: 3221225472
    data_remaining:
      description: The bytes that remain.
      type: int
      sample: 0
    error:
      description: The error that QEMU reported. Empty if there is none.
      type: str
      sample: ''
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
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.wait import wait_for_job


def main() -> None:
    run(
        wait_for_job,
        CONNECTION,
        DOMAIN,
        BACKUP_ID,
        PROGRESS,
        {
            "timeout": {"type": "int", "default": 86400},
            "on_timeout": {"type": "str", "choices": ["fail", "abort"], "default": "fail"},
        },
    )


if __name__ == "__main__":
    main()
