#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain_info
short_description: List libvirt domains and how they would be backed up
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Lists domains with their disks, jobs, guest agent, claims, and backup method. One call lists many domains.
  - Uses a read-only connection.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: The module only reads.
  diff_mode:
    support: N/A
    details: The module only reads.
  idempotent:
    support: full
    details: The module only reads.
options:
  method:
    description: >-
      The wanted method for running domains, for RV(domains[].method). V(auto) is O(prefer) if the host supports it, otherwise legacy.
    type: str
    choices: [auto, push, pull, legacy]
    default: auto
  prefer:
    description: The method that O(method=auto) chooses if libvirt and QEMU have the backup job.
    type: str
    choices: [push, pull]
    default: push
  domains:
    description:
      - Names or globs of domains. V(*) matches all domains, and is never an error. For other entries without a match, see O(unmatched).
      - The default is all domains.
    type: list
    elements: str
    default: ["*"]
  exclude_domains:
    description: Names or globs of domains to leave out. They need not match.
    type: list
    elements: str
    default: []
  unmatched:
    description:
      - What happens if an entry of O(domains) matches no domain.
      - V(fail) fails.
      - V(tell) lists the entry in RV(unmatched), because another host may have the domain.
    type: str
    choices: [fail, tell]
    default: fail
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: List every domain
  virtops.live_backup.libvirt_domain_info:
  register: hypervisor

- name: List the web servers only
  virtops.live_backup.libvirt_domain_info:
    domains:
      - web*
    exclude_domains:
      - web-test
"""

RETURN = r"""
domains:
  description: The domains, sorted by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The domain's name.
      type: str
      sample: db1
    uuid:
      description: The domain's UUID.
      type: str
      sample: 8e6d5a2e-6c44-4c8d-9d3c-0e1f8a6f7b11
    state:
      description: >-
        One of V(running), V(blocked), V(paused), V(shutdown), V(shutoff), V(crashed), V(pmsuspended), V(nostate).
      type: str
      sample: running
    persistent:
      description: Whether the domain is still defined when it is shut off.
      type: bool
    disks:
      description: The domain's disks.
      type: list
      elements: dict
      contains:
        target:
          description: The target dev, by which a disk is named everywhere in this collection.
          type: str
          sample: vda
        device:
          description: V(disk), V(cdrom), V(floppy) or V(lun).
          type: str
          sample: disk
        bus:
          description: The bus.
          type: str
          sample: virtio
        type:
          description: Libvirt's type of the source, such as V(file), V(block), V(network). Empty for an empty drive.
          type: str
          sample: file
        source:
          description: The path of the image that the guest writes to. Empty if it has no path on this host.
          type: str
          sample: /var/lib/libvirt/images/db1.qcow2
        format:
          description: The image's format.
          type: str
          sample: qcow2
        readonly:
          description: Whether the guest cannot write to it.
          type: bool
        shareable:
          description: Whether other domains may write to it.
          type: bool
        capacity:
          description: The size that the guest sees, in bytes. V(0) if libvirt does not know it.
          type: int
          sample: 21474836480
        allocation:
          description: The disk space of the whole backing chain, in bytes.
          type: int
          sample: 3221225472
        chain:
          description: The backing chain. The first entry is the image that the guest writes to.
          type: list
          elements: dict
          sample: [{path: /var/lib/libvirt/images/db1.qcow2, type: file, format: qcow2}]
        skip_reason:
          description: Why a backup skips the disk - V(cdrom), V(floppy), V(empty) or V(read-only). Empty for a disk that is captured.
          type: str
        obstacle:
          description: Why the disk cannot be captured. A backup fails unless the disk is excluded. Empty if it can be captured.
          type: str
    job:
      description: The job that runs on the domain now, as RV(virtops.live_backup.libvirt_job_wait#module:job). V(null) for none.
      type: dict
    block_jobs:
      description: The block jobs on the domain's disks, other than those of a backup.
      type: list
      elements: dict
      sample: [{disk: vda, type: copy, cur: 1048576, end: 67108864}]
    checkpoints:
      description:
        - The names of the domain's checkpoints. Those of this collection start with C(live-backup.). With them, it tracks what changes.
        - While there is one, libvirt cannot revert to an internal snapshot of the domain, and C(virsh undefine) needs
          C(--checkpoints-metadata). M(virtops.live_backup.libvirt_backup_untrack) removes those of this collection.
      type: list
      elements: str
    agent:
      description: V(connected), V(disconnected), or V(absent) if the domain has no channel for the guest agent.
      type: str
      sample: connected
    nvram:
      description: The path of the domain's NVRAM. Empty without one.
      type: str
    claim:
      description: The claim of a backup that is running or was interrupted. V(null) for none.
      type: dict
      contains: &claim
        domain:
          description: The domain's name when it was claimed.
          type: str
        uuid:
          description: The domain's UUID.
          type: str
        backup_id:
          description: The name of the backup.
          type: str
        method:
          description: Its method.
          type: str
        step:
          description: The last step that worked on it.
          type: str
        alive:
          description: Whether a live run owns it. If not, use M(virtops.live_backup.libvirt_backup_recover).
          type: bool
        msg:
          description: The same in words.
          type: str
    restore:
      description: A restore of the domain, or over one of its disks, that is running or was interrupted. V(null) for none.
      type: dict
      contains: &restore
        name:
          description: The name of the domain that is restored.
          type: str
        uuid:
          description: Its UUID.
          type: str
        backup_id:
          description: The name of the backup that it is restored from.
          type: str
        path:
          description: The directory of the set's files.
          type: str
        phase:
          description:
            - V(write) - nothing was replaced yet. V(swap) - files are being replaced and devices are being written. V(defined) - only
              old files are left to remove.
            - V(undo) - it is being undone. V(broken) - a block device holds only a part of the set.
          type: str
        owns_domain:
          description: Whether it replaces disks of the domain. If not, it only writes disks beside them, and the domain may run.
          type: bool
        alive:
          description: Whether it is running now. If not, it was interrupted.
          type: bool
        msg:
          description: The same in words. M(virtops.live_backup.libvirt_backup_recover) completes or undoes it.
          type: str
    method:
      description: The backup method for the domain - V(push), V(pull), V(legacy) or V(offline).
      type: str
      sample: push
    method_reason:
      description: Why this method was chosen.
      type: str
    wanted:
      description: >-
        Whether a run with these O(domains) backs the domain up. V(false) if its own policy says no and O(domains) does not have
        its exact name.
      type: bool
    policy:
      description:
        - What the domain's own metadata says about its backups. C(docs/policy.md) of the collection describes the element.
      type: dict
      sample: {backup: true, exclude_disks: [vdb], keep: {daily: 14}, objectives: {rpo: 4h, proof: 35d}}
    policy_problem:
      description: What is wrong with that policy. A backup of the domain fails by it. Empty if nothing is.
      type: str
    error:
      description: Why the domain could not be examined. The other values are then meaningless. Empty if it could.
      type: str
claims:
  description: Every claim on the hypervisor, including those of domains that no longer exist.
  returned: success
  type: list
  elements: dict
  contains: *claim
restores:
  description: Every restore that is running or was interrupted on the hypervisor, including those of domains that are not defined.
  returned: success
  type: list
  elements: dict
  contains: *restore
matched:
  description: The entries of O(domains) that match a domain here, and V(*).
  returned: success
  type: list
  elements: str
  sample: ["*"]
unmatched:
  description: The entries of O(domains) that match no domain here.
  returned: success
  type: list
  elements: str
  sample: []
proofs:
  description: The domains that match and are left out, since they boot a backup set to prove it.
  returned: success
  type: list
  elements: str
  sample: []
host:
  description: The hypervisor's software.
  returned: success
  type: dict
  contains:
    libvirt:
      description: The version of libvirt.
      type: str
      sample: 9.0.0
    qemu:
      description: The version of QEMU.
      type: str
      sample: 7.2.19
    supports_push:
      description: Whether both are new enough for libvirt's backup job, for push and pull.
      type: bool
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_domains import domain_info


def main() -> None:
    run(
        domain_info,
        CONNECTION,
        {
            "method": {"type": "str", "choices": ["auto", "push", "pull", "legacy"], "default": "auto"},
            "prefer": {"type": "str", "choices": ["push", "pull"], "default": "push"},
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude_domains": {"type": "list", "elements": "str", "default": []},
            "unmatched": {"type": "str", "choices": ["fail", "tell"], "default": "fail"},
        },
    )


if __name__ == "__main__":
    main()
