#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_verify
short_description: Prove that a backup set is good
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Reads every byte of a backup set, compares it with the digests in its manifest, and runs C(qemu-img check) on its images.
  - On request, boots the set as a transient domain, without network, on throw-away overlays. It measures how long that takes.
  - Fails if the set is not good, and names each bad file and the reason. It also fails if the guest of a set is not up in time.
  - Writes nothing into the set. It records the proof beside the set, in C(<target>/<domain>/.proofs/).
    M(virtops.live_backup.backup_set_info) and M(virtops.live_backup.backup_set_prune) read it there.
  - With O(level=check), an encrypted set can be checked without its key. Then only its digests are compared. O(level=boot) needs the key.
extends_documentation_fragment:
  - virtops.live_backup.encryption
  - virtops.live_backup.libvirt
  - virtops.live_backup.libvirt.domain
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
    details: Proves the set too, but does not record it.
  diff_mode:
    support: none
    details: The module changes nothing.
  idempotent:
    support: full
    details: The module never reports a change.
options:
  domain:
    description: The name or UUID of the domain whose set is proven. The domain itself need not exist any more.
  backup_id:
    description: The name of the backup. The default is the newest one that does not seem to come from the future.
    type: str
  level:
    description:
      - V(check) reads the files. For a O(target) over ssh, the server reads them. C(qemu-img) on the module's host reads the images' tables
        over the same connection.
      - V(deep) also reads each disk through its chain of images, and compares it with what was noted when the set was made. So it finds a
        chain that is put together wrongly. The content is noted for sets that later levels can use.
      - V(boot) does what V(check) does, and starts the set. Not possible for a O(target) over ssh.
    type: str
    choices: [check, deep, boot]
    default: check
  console_pattern:
    description:
      - A regular expression of Python for what the guest's first serial port shows when the guest is up.
      - Without it, the guest agent must answer.
    type: str
  command:
    description:
      - For O(level=boot), a program and its arguments that the guest agent runs in the guest when it is up (C(guest-exec)).
      - Name the program by its full path. No shell is used, unless you name one.
      - The set is proven as soon as the program ends with status 0. If it ends with another status, it runs again, because an agent answers
        before the services of its guest do. If it has not ended with 0 within O(timeout), the set is not good. The finding says how the
        program ended, and what it printed.
      - If the agent refuses to run it, the module fails, and the set counts as neither proven nor bad.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Maximum time in seconds until the guest is up and O(command) has ended.
      - A guest that is not up in time proves nothing. The module fails, and the set counts as not proven, whatever was proven before.
    type: int
    default: 300
  every:
    description:
      - In days, how often a set of the domain is proven. V(0) proves one each time.
      - Nothing is done, and the task counts as skipped, if a set of the domain was proven by this O(level) in that time.
      - A domain that was never proven has its first proof on a day that follows from its UUID. So the proofs of a fleet are spread.
    type: int
    default: 0
  scratch_dir:
    description:
      - For O(level=boot), an existing directory on the module's host. Everything the guest writes is in files without a name there.
      - The files disappear when the proof ends, however it ends.
    type: path
    default: /var/tmp
  scratch_size:
    description:
      - For O(level=boot), the maximum number of bytes that the guest may write, all disks together, for example V(50G).
      - The proof is aborted when the guest has written more, or when O(scratch_dir) is almost full. That says nothing about the set.
    type: bytes
    default: 10G
  max_memory:
    description:
      - For O(level=boot), the maximum memory of the guest in bytes, for example V(4G). The default is the memory of the domain.
      - >-
        The proof is refused if its guest would leave other guests less than a twentieth of the host's memory. It is aborted if less is
        left while it runs. Huge pages are not used.
    type: bytes
  max_vcpus:
    description: For O(level=boot), the maximum number of virtual processors of the guest. They run with low priority.
    type: int
    default: 4
seealso:
  - module: virtops.live_backup.backup_set_info
  - module: virtops.live_backup.libvirt_domain_restore
"""

EXAMPLES = r"""
- name: Check the newest set of a domain
  virtops.live_backup.backup_set_verify:
    domain: db1
    target: /srv/backup

- name: Boot a set until its login prompt shows
  virtops.live_backup.backup_set_verify:
    domain: db1
    backup_id: 20261122T184512Z
    target: /srv/backup
    level: boot
    console_pattern: 'login: $'
    timeout: 120
  register: proof

- name: Boot a set, and ask its database
  virtops.live_backup.backup_set_verify:
    domain: db1
    target: /srv/backup
    level: boot
    command: [/usr/bin/pg_isready]

- name: Show how long a restored domain takes to start
  ansible.builtin.debug:
    msg: "db1 was up after {{ proof.rto_seconds }} s"
"""

RETURN = r"""
verified:
  description: Whether the set was proven good.
  returned: always, if the set was found
  type: bool
  sample: true
outcome:
  description: V(verified), V(failed) if the set is not good, or V(timed out) if its files are right but its guest was not up in time.
  returned: always, if the set was found
  type: str
  sample: verified
findings:
  description: The problems of the set, each with the name of the file.
  returned: always, if the set was found
  type: list
  elements: str
  sample: []
path:
  description: The directory of the set.
  returned: always, if the set was found
  type: str
  sample: /srv/backup/db1/20261122T184512Z
backup_id:
  description: The name of the backup.
  returned: always, if the set was found
  type: str
  sample: 20261122T184512Z
msg:
  description: The outcome in a sentence.
  returned: always
  type: str
  sample: Backup set 20261122T184512Z of domain 'db1' is good, proven by boot, and its guest was up after 8.123 s.
rto_seconds:
  description: For O(level=boot), the seconds from the start of the set's image servers until the guest was up.
  returned: always, if the set was found
  type: float
  sample: 8.123
console:
  description: For O(level=boot), the last lines that the guest printed on its first serial port, as a terminal shows them.
  returned: always, if the set was found
  type: str
  sample: 'db1 login:'
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, DOMAIN, ENCRYPTION, ONE_KEY, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.verify import verify_set


def main() -> None:
    run(
        verify_set,
        CONNECTION,
        DOMAIN,
        TARGET,
        SSH,
        ENCRYPTION,
        {
            "backup_id": {"type": "str"},
            "level": {"type": "str", "choices": ["check", "deep", "boot"], "default": "check"},
            "console_pattern": {"type": "str"},
            "command": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 300},
            "every": {"type": "int", "default": 0},
            "scratch_dir": {"type": "path", "default": "/var/tmp"},
            "scratch_size": {"type": "bytes", "default": "10G"},
            "max_memory": {"type": "bytes"},
            "max_vcpus": {"type": "int", "default": 4},
        },
        mutually_exclusive=[ONE_KEY],
    )


if __name__ == "__main__":
    main()
