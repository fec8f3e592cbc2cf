#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_set_extract
short_description: List and copy files out of a backup set
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Lists files and directories in the guest's file systems, or copies them to a directory of the module's host.
  - The set may be full, incremental, differential or encrypted, and may be on a backup server. Nothing is restored for it, and the
    domain need not exist.
  - libguestfs reads the file systems in its own virtual machine. The host mounts nothing, and the set is not changed. So a harmful
    file system cannot attack the host's kernel.
  - libguestfs knows LVM, and the file systems that its kernel has, such as ext4, XFS and btrfs, and often NTFS. It cannot read what the
    guest itself has encrypted.
  - Needs root on the module's host.
  - Does not compare the set's digests. M(virtops.live_backup.backup_set_verify) does that.
requirements:
  - python3-guestfs (Debian, Ubuntu) or python3-libguestfs (EL)
extends_documentation_fragment:
  - virtops.live_backup.encryption
  - virtops.live_backup.target
  - virtops.live_backup.target.ssh
  - virtops.live_backup.attributes
attributes:
  check_mode:
    support: full
    details: Reads and compares the files, and writes nothing.
  diff_mode:
    support: none
  idempotent:
    support: full
    details: Compares each file with what is below O(dest) already.
options:
  domain:
    description: The name or UUID of the domain in whose set the files are. The domain itself need not exist any more.
    type: str
    required: true
  backup_id:
    description: The name of the backup. The default is the newest good one that does not seem to come from the future.
    type: str
  paths:
    description:
      - Absolute paths of files and directories in the guest.
      - A directory is copied with everything below it. Without O(dest), only its own entries are listed.
    type: list
    elements: str
    default: [/]
  filesystem:
    description:
      - The file system that the paths are in, as RV(filesystems) names it, for example V(/dev/vda1) or V(/dev/vg0/data).
      - By default, all file systems are mounted as the guest's operating system does. Without an operating system, the only file system is
        used. If there are more, this option is required, and the error lists them.
    type: str
  dest:
    description:
      - An existing directory of the module's host. Each path appears below it with its whole name, as in C(<dest>/etc/fstab). Only the user
        who runs the module may enter the directories above it.
      - Nothing outside of this directory is written, whatever the names and the links in the guest are.
      - Files that are there already and differ are replaced. Other files stay.
      - If the module fails, files that it has written may be incomplete. It names what it could not read.
      - If it is not set, the files are only listed.
    type: path
  keep_owner:
    description:
      - Whether the files get the numeric owner and group that they have in the guest. Otherwise they belong to the user who runs the
        module. A file system without owners needs V(false).
      - Modes and the times of files are kept. The bits setuid and setgid, extended attributes and ACLs are not.
    type: bool
    default: true
  limit:
    description: Without O(dest), the maximum number of entries in RV(files).
    type: int
    default: 1000
  scratch_dir:
    description:
      - An existing directory on the module's host, for files without a name. They hold what mounting a file system writes, which is
        little. They disappear when the module ends, however it ends.
    type: path
    default: /var/tmp
  timeout:
    description: For a O(target) over ssh, the maximum time in seconds. The files are read over one connection.
    type: int
    default: 86400
seealso:
  - module: virtops.live_backup.libvirt_domain_restore
  - module: virtops.live_backup.backup_set_verify
"""

EXAMPLES = r"""
- name: List the file systems and the root directory of the newest set
  virtops.live_backup.backup_set_extract:
    domain: db1
    target: /srv/backup
  register: found

- name: Get back a directory of a certain night
  virtops.live_backup.backup_set_extract:
    domain: db1
    backup_id: 20261122T184512Z
    target: ssh://backup@vault.example.com/srv/backup
    paths: [/etc/postgresql]
    dest: /root/rescued

- name: Get back a file of a disk without an operating system
  virtops.live_backup.backup_set_extract:
    domain: db1
    target: /srv/backup
    filesystem: /dev/vdb1
    paths: [/dumps/last.sql.gz]
    dest: /root/rescued
    keep_owner: false
"""

RETURN = r"""
backup_id:
  description: The name of the backup.
  returned: success
  type: str
  sample: 20261122T184512Z
domain:
  description: The name of the domain.
  returned: success
  type: str
  sample: db1
filesystems:
  description: The file systems on the disks. C(mounted) is the place where one was mounted, null if it was not.
  returned: success, and if O(filesystem) is missing or wrong
  type: list
  elements: dict
  sample: [{name: /dev/vda1, type: ext4, mounted: /}, {name: /dev/vg0/data, type: xfs, mounted: null}]
files:
  description: The entries at O(paths), if O(dest) is not set. Names that are not UTF-8 are left out.
  returned: success, without O(dest)
  type: list
  elements: dict
  contains:
    path: {description: The path in the guest., type: str, sample: /etc/fstab}
    type:
      description: V(file), V(directory), V(link), V(block device), V(character device), V(named pipe) or V(socket).
      type: str
      sample: file
    size: {description: The bytes of a file. 0 for everything else., type: int, sample: 664}
    mode: {description: The mode in octal., type: str, sample: '0644'}
    uid: {description: The number of the owner., type: int, sample: 0}
    gid: {description: The number of the group., type: int, sample: 0}
    mtime: {description: When it was changed last., type: str, sample: '2026-11-22T18:45:12.000Z'}
truncated:
  description: Whether there are more entries than O(limit).
  returned: success, without O(dest)
  type: bool
  sample: false
copied:
  description: >-
    How much was found. C(entries) and C(bytes) are below O(dest) now, C(changed) of them were written or changed, and C(skipped) were left
    out.
  returned: success, with O(dest)
  type: dict
  sample: {entries: 12, changed: 12, bytes: 48231, skipped: 1}
skipped:
  description: >-
    The first 100 entries that were left out, with the reason. Devices and pipes are always left out. Sockets are left out too, and not
    counted.
  returned: success, with O(dest)
  type: list
  elements: dict
  sample: [{path: /etc/pipe, reason: it is a named pipe}]
code:
  description: The stable name of the cause, even if the message changes. The troubleshooting guide has a section for each code.
  returned: failure
  type: str
  sample: filesystem_needed
"""

from ansible_collections.virtops.live_backup.plugins.module_utils._module import DOMAIN, ENCRYPTION, ONE_KEY, SSH, TARGET, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.extract import extract_files


def main() -> None:
    run(
        extract_files,
        DOMAIN,
        TARGET,
        SSH,
        ENCRYPTION,
        {
            "backup_id": {"type": "str"},
            "paths": {"type": "list", "elements": "str", "default": ["/"]},
            "filesystem": {"type": "str"},
            "dest": {"type": "path"},
            "keep_owner": {"type": "bool", "default": True},
            "limit": {"type": "int", "default": 1000},
            "scratch_dir": {"type": "path", "default": "/var/tmp"},
            "timeout": {"type": "int", "default": 86400},
        },
        mutually_exclusive=[ONE_KEY],
    )


if __name__ == "__main__":
    main()
