#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_check
short_description: Check a hypervisor for problems that would affect backups
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Finds problems that would fail the backups of this hypervisor, or make them worse, before they start.
  - Plans a backup of every domain, with the checks that M(virtops.live_backup.libvirt_backup_begin) and
    M(virtops.live_backup.libvirt_disk_snapshot) make in check mode. It adds up the disk space that all of them need.
  - Checks with a probe file whether QEMU's user can write at the target. It removes the file again. In check mode it only reads.
  - Checks whether libvirt's daemon sees the target, whether mounts propagate, and what AppArmor or SELinux has denied there.
  - Reports guests whose agent is not connected, what interrupted backups have left, and a clock that is wrong.
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: The module changes nothing without check mode either. In check mode, it writes no probe file.
  diff_mode:
    support: N/A
    details: The module changes nothing.
  idempotent:
    support: full
    details: The module changes nothing.
options:
  target:
    description:
      - The target, an existing directory on the hypervisor as an absolute path, or C(ssh://[user@]host[:port]/directory).
      - Without it, the module checks nothing about the target, and plans no backup.
    type: str
  staging_dir:
    description: The directory on the hypervisor where images are written before they are sent to a O(target) that starts with C(ssh://).
    type: path
  overlay_dir:
    description: As in M(virtops.live_backup.libvirt_disk_snapshot).
    type: path
  scratch_dir:
    description: As in M(virtops.live_backup.libvirt_backup_begin).
    type: path
  domains:
    description: Names or globs of domains. An entry without a match here is a warning, because another hypervisor may have the domain.
    type: list
    elements: str
    default: ["*"]
  exclude_domains:
    description: Names or globs of domains to leave out.
    type: list
    elements: str
    default: []
  exclude_disks:
    description:
      - Disks that the backups leave out, by the domain's name, for example V({"db1":["vdb"]}).
      - For a domain that is not named here, they are those that its own metadata names.
    type: dict
    default: {}
  method:
    description:
      - The method for running domains. V(auto) is push or pull if the host supports it, otherwise legacy.
      - V(auto) is pull if O(target) starts with C(ssh://) and there is no O(staging_dir).
    type: str
    choices: [auto, push, pull, legacy]
    default: auto
  exclusive:
    description: As in M(virtops.live_backup.libvirt_backup_begin).
    type: bool
    default: false
  quiesce:
    description:
      - With V(auto), a running domain without a connected guest agent is a warning. With V(require) it is an error.
      - V(never) does not check the agent.
    type: str
    choices: [auto, require, never]
    default: auto
  denial_hours:
    description: For how many hours back denials are checked.
    type: int
    default: 24
  clock:
    description:
      - The difference between this host's clock and the controller's.
      - If it is not given, it is measured.
    type: dict
    suboptions:
      offset_ms:
        description: The milliseconds by which this host's clock is ahead.
        type: float
        required: true
      error_ms:
        description: The possible error in milliseconds, which is half of the round-trip time.
        type: float
        required: true
  max_skew:
    description: Maximum difference of the two clocks in seconds.
    type: float
    default: 1.0
notes:
  - SELinux often logs only the last part of a path. A denial that may concern the backups is then a warning.
  - If a backup server does not answer, the module reports only that about the backups.
seealso:
  - module: virtops.live_backup.libvirt_domain_info
  - module: virtops.live_backup.libvirt_backup_begin
"""

EXAMPLES = r"""
- name: Check the hypervisor
  virtops.live_backup.hypervisor_check:
    target: /srv/backup
  register: hypervisor

- name: Show the findings
  ansible.builtin.debug:
    msg: "{{ hypervisor.findings | map(attribute='msg') }}"
"""

RETURN = r"""
findings:
  description: The findings, errors first. Empty if everything is well.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description: >-
        The subject of the check. V(target) and V(mounts) - the target. V(backup) - a domain whose backup would fail. V(space) - all
        domains together. V(domains) - names without a match. V(denials) - AppArmor and SELinux. V(claim) - an interrupted backup.
        V(restore) - an interrupted restore. V(agent) - the guest agent. V(clock) - the clock.
      type: str
      sample: agent
    severity:
      description: V(error) if a backup would fail, V(warning) if a backup would be worse or may fail.
      type: str
      sample: warning
    subject:
      description: The domain or the path that has the problem. Empty for the host.
      type: str
      sample: db1
    msg:
      description: The problem, and what to do.
      type: str
host:
  description: The hypervisor's software versions, as RV(virtops.live_backup.libvirt_domain_info#module:host).
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
            "scratch_dir": {"type": "path"},
            "domains": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude_domains": {"type": "list", "elements": "str", "default": []},
            "exclude_disks": {"type": "dict", "default": {}},
            "method": {"type": "str", "choices": ["auto", "push", "pull", "legacy"], "default": "auto"},
            "exclusive": {"type": "bool", "default": False},
            "quiesce": {"type": "str", "choices": ["auto", "require", "never"], "default": "auto"},
            "denial_hours": {"type": "int", "default": 24},
            "clock": {"type": "dict", "options": {name: {"type": "float", "required": True} for name in ("offset_ms", "error_ms")}},
            "max_skew": {"type": "float", "default": 1.0},
        },
    )


if __name__ == "__main__":
    main()
