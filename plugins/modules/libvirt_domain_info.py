#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_domain_info
short_description: List libvirt domains with what a backup of them would find
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Lists domains with their disks, jobs, guest agent, claims, and the backup method that suits them, many in one call.
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
      The method that is wanted of running domains, for RV(domains[].method). V(auto) is push where the host can, otherwise legacy.
    type: str
    choices: [auto, push, legacy]
    default: auto
  domains:
    description:
      - Names or globs of domains. V(*) stands for all there are, even if there is none. For others see O(unmatched).
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
    description: Whether it fails where one of O(domains) matches no domain, or tells that in RV(unmatched), since another host may have it.
    type: str
    choices: [fail, tell]
    default: fail
seealso:
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: Look at every domain
  virtops.live_backup.libvirt_domain_info:
  register: hypervisor

- name: Look at the web servers only
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
          description: The path of the image that the guest writes to. Empty where it has no path on this host.
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
          description: The size that the guest sees, in bytes. V(0) where libvirt does not know it.
          type: int
          sample: 21474836480
        allocation:
          description: What the whole backing chain occupies, in bytes.
          type: int
          sample: 3221225472
        chain:
          description: The backing chain, the image that the guest writes to first.
          type: list
          elements: dict
          sample: [{path: /var/lib/libvirt/images/db1.qcow2, type: file, format: qcow2}]
        skip_reason:
          description: Why a backup skips the disk, V(cdrom), V(floppy), V(empty) or V(read-only). Empty for a disk to capture.
          type: str
        obstacle:
          description: Why the disk cannot be captured, so that a backup fails unless the disk is excluded. Empty for a sound one.
          type: str
    job:
      description: The job that occupies the domain now, as RV(virtops.live_backup.libvirt_job_wait#module:job). V(null) for none.
      type: dict
    block_jobs:
      description: The block jobs on the domain's disks, other than those of a backup.
      type: list
      elements: dict
      sample: [{disk: vda, type: copy, cur: 1048576, end: 67108864}]
    checkpoints:
      description: The names of the domain's checkpoints.
      type: list
      elements: str
    agent:
      description: V(connected), V(disconnected), or V(absent) where the domain has no channel for the guest agent.
      type: str
      sample: connected
    nvram:
      description: The path of the domain's NVRAM. Empty without one.
      type: str
    claim:
      description: The claim of a backup that is under way or was interrupted. V(null) for none.
      type: dict
      contains: &claim
        domain:
          description: The domain's name when it was claimed.
          type: str
        uuid:
          description: The domain's UUID.
          type: str
        backup_id:
          description: The backup.
          type: str
        method:
          description: Its method.
          type: str
        step:
          description: The last step that worked on it.
          type: str
        alive:
          description: Whether a living run owns it. A dead one is for M(virtops.live_backup.libvirt_backup_recover).
          type: bool
        msg:
          description: The same in words.
          type: str
    restore:
      description: A restore of the domain, or over one of its disks, that is under way or was interrupted. V(null) for none.
      type: dict
      contains: &restore
        name:
          description: The name of the domain that is restored.
          type: str
        uuid:
          description: Its UUID.
          type: str
        backup_id:
          description: The backup that it is restored from.
          type: str
        path:
          description: The directory of the set's files.
          type: str
        phase:
          description:
            - V(write) while nothing was replaced, V(swap) while files are replaced and devices are written, V(defined) when only old
              files are left.
            - V(undo) while it is undone, V(broken) where a block device holds only a part of the set.
          type: str
        alive:
          description: Whether it is at work right now. Otherwise it was interrupted.
          type: bool
        msg:
          description: The same in words. M(virtops.live_backup.libvirt_backup_recover) completes or undoes it.
          type: str
    method:
      description: The backup method that suits the domain, V(push), V(legacy) or V(offline).
      type: str
      sample: push
    method_reason:
      description: Why.
      type: str
    error:
      description: Why the domain could not be examined; then the other values say nothing. Empty if it could.
      type: str
claims:
  description: Every claim on the hypervisor, of domains that are gone too.
  returned: success
  type: list
  elements: dict
  contains: *claim
restores:
  description: Every restore that is under way or was interrupted on the hypervisor, also of domains that are not defined.
  returned: success
  type: list
  elements: dict
  contains: *restore
matched:
  description: Those of O(domains) that match a domain here, and V(*).
  returned: success
  type: list
  elements: str
  sample: ["*"]
unmatched:
  description: Those of O(domains) that match no domain here.
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
      description: Whether both are new enough for a push backup.
      type: bool
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_domains import domain_info


def main() -> None:
    run(
        domain_info,
        CONNECTION,
        {
            "method": {"type": "str", "choices": ["auto", "push", "legacy"], "default": "auto"},
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude_domains": {"type": "list", "elements": "str", "default": []},
            "unmatched": {"type": "str", "choices": ["fail", "tell"], "default": "fail"},
        },
    )


if __name__ == "__main__":
    main()
