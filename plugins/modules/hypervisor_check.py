#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_check
short_description: Find what would trouble the backups of a hypervisor
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Looks for what backups of this hypervisor would fail with, or be worse for, before they begin.
  - Plans a backup of every domain, with the checks that M(virtops.live_backup.libvirt_backup_begin) and
    M(virtops.live_backup.libvirt_disk_snapshot) make in check mode, and sums up the room that all of them need.
  - Tries whether QEMU's user can write at the target, with a probe file that is removed again; in check mode only by looking.
  - Looks whether libvirt's daemon sees the target, whether mounts propagate, and what AppArmor or SELinux has denied there.
  - Tells guests whose agent is not connected, what interrupted backups have left, and a clock that is wrong.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Without check mode, too, nothing is changed. With it, no probe file is written.
  diff_mode:
    support: N/A
    details: The module changes nothing.
  idempotent:
    support: full
    details: The module changes nothing.
options:
  target:
    description:
      - The export target, an existing directory on the hypervisor as an absolute path, or C(ssh://[user@]host[:port]/directory).
      - Without it what concerns the target is not checked, and no backup is planned.
    type: str
  staging_dir:
    description: Where the sets are made for a O(target) that begins with C(ssh://). Needed there.
    type: path
  overlay_dir:
    description: As of M(virtops.live_backup.libvirt_disk_snapshot).
    type: path
  domains:
    description: Names or globs of domains. One that matches none here is a warning; another hypervisor may have it.
    type: list
    elements: str
    default: ["*"]
  exclude_domains:
    description: Names or globs of domains to leave out.
    type: list
    elements: str
    default: []
  exclude_disks:
    description: Disks that the backups leave out, by the domain's name, for example V({"db1":["vdb"]}).
    type: dict
    default: {}
  method:
    description: The method for running domains. V(auto) is push where the host can, otherwise legacy.
    type: str
    choices: [auto, push, legacy]
    default: auto
  exclusive:
    description: As of M(virtops.live_backup.libvirt_backup_begin).
    type: bool
    default: false
  quiesce:
    description:
      - V(auto) warns of a running domain without a connected guest agent, for V(require) that is an error.
      - V(never) does not care.
    type: str
    choices: [auto, require, never]
    default: auto
  denial_hours:
    description: How many hours back denials are looked for.
    type: int
    default: 24
  clock:
    description:
      - How far this host's clock is from the controller's.
      - It is measured anew unless it is given.
    type: dict
    suboptions:
      offset_ms:
        description: The milliseconds by which this host's clock is ahead.
        type: float
        required: true
      error_ms:
        description: How many milliseconds that may be off, which is half the time of the way there and back.
        type: float
        required: true
  max_skew:
    description: The most seconds by which the two clocks may differ.
    type: float
    default: 1.0
notes:
  - SELinux often logs the last part of a path only. What may concern the backups is then a warning.
  - Where a backup server does not answer, that is all that is told of the backups.
seealso:
  - module: virtops.live_backup.libvirt_domain_info
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: Look for trouble
  virtops.live_backup.hypervisor_check:
    target: /srv/backup
  register: hypervisor

- name: Say what was found
  ansible.builtin.debug:
    msg: "{{ hypervisor.findings | map(attribute='msg') }}"
"""

RETURN = r"""
findings:
  description: What was found, errors first. Empty where all is well.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: >-
        V(target) and V(mounts) are about the target, V(backup) about a domain that a backup would fail for, V(space) about all of them
        together, V(domains) about names that match none, V(denials) about AppArmor and SELinux, V(claim) about an interrupted backup,
        V(restore) about an interrupted restore, V(agent) and V(clock) about these.
      type: str
      sample: agent
    severity:
      description: V(error) for what would fail a backup, V(warning) for what makes it worse or may fail it.
      type: str
      sample: warning
    subject:
      description: The domain, or the path, that it is about. Empty for the host.
      type: str
      sample: db1
    msg:
      description: What is wrong, and what to do.
      type: str
host:
  description: The hypervisor's software, as RV(virtops.live_backup.libvirt_domain_info#module:host).
  returned: success
  type: dict
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, SSH, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.check_host import check_host


def main() -> None:
    run(
        check_host,
        CONNECTION,
        SSH,
        {
            "target": {"type": "str"},
            "staging_dir": {"type": "path"},
            "overlay_dir": {"type": "path"},
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude_domains": {"type": "list", "elements": "str", "default": []},
            "exclude_disks": {"type": "dict", "default": {}},
            "method": {"type": "str", "choices": ["auto", "push", "legacy"], "default": "auto"},
            "exclusive": {"type": "bool", "default": False},
            "quiesce": {"type": "str", "choices": ["auto", "require", "never"], "default": "auto"},
            "denial_hours": {"type": "int", "default": 24},
            "clock": {"type": "dict", "options": {name: {"type": "float", "required": True} for name in ("offset_ms", "error_ms")}},
            "max_skew": {"type": "float", "default": 1.0},
        },
    )


if __name__ == "__main__":
    main()
