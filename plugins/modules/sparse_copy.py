#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sparse_copy
short_description: Copy disk images, their holes kept
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Copies an image, O(src), to O(dest), or all disks of a capture, of which O(domain) and O(backup_id) are given, into its unfinished
    backup set, side by side.
  - >-
    Where the format stays, the kernel copies the bytes: by sharing blocks where the file system can (reflink), otherwise the data
    alone, and its digest is computed while it passes. C(qemu-img) converts and compresses, and flattens an image that has a backing
    or data file and whose format O(src_format) names.
  - A copy has its name only when it is whole and on the disk. An interrupted copy leaves none.
  - >-
    Of a capture by M(virtops.live_backup.libvirt_disk_snapshot), the commit of each overlay begins as soon as its base is copied and
    is proved to have stood still. If the overlays threaten to fill their file system, the copy is given up and they are committed,
    even if the target hangs.
  - >-
    A capture that was begun for an C(ssh://) target is sent straight there, each image that is raw or qcow2 and holds all of its disk. The
    commit waits for the sending then, so an overlay lives as long as that takes.
  - The disks of a domain that is shut off are copied under QEMU's image lock, and nothing is kept if it is started meanwhile.
  - Only of a capture it is shown how far it is (O(progress_interval)).
extends_documentation_fragment:
  - virtops.live_backup.libvirt
  - virtops.live_backup.target.ssh
  - virtops.live_backup.libvirt.progress
  - virtops.live_backup.attributes
  - virtops.live_backup.attributes.actiongroup
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details: For O(src) and O(dest); a capture's copies are in a directory that nobody sees yet.
  idempotent:
    support: full
    details:
      - No change when a record beside O(dest) says that it was copied from O(src), and neither was changed since.
      - A block device is always copied again, since nothing shows whether it was written.
      - A disk of a capture is copied once.
options:
  src:
    description: The image to copy, a file or a block device, as an absolute path. Nothing may write to it meanwhile.
    type: path
  src_format:
    description:
      - The format of O(src). It is never guessed, since a guest can begin its raw disk with the header of any image, which names files of
        the hypervisor.
      - Without it the bytes of O(src) are copied as they are. Then O(format) must be V(keep), O(compress) must be V(none), and O(src) must
        not look like a qcow2 image that needs another file.
      - Name it to convert or compress O(src), or to flatten an image that has a backing or data file. With V(raw) the bytes are the disk.
    type: str
    choices: [raw, qcow2, qed, vdi, vhdx, vmdk, vpc]
    version_added: 1.0.0
  dest:
    description:
      - The file to write, as an absolute path. A file that is there is replaced when the copy is whole.
      - >-
        Or V(ssh://[user@]host[:port]/path), a file on another host, which the hypervisor reaches with C(ssh). The path is taken as it
        stands, nothing in it is decoded. That host needs sshd, a POSIX shell and C(python3) 3.9 or newer. Its host key must be known.
      - >-
        Over ssh the bytes are copied, so the copy has the format of O(src), which must be raw or qcow2, without a backing or data file.
        Only data passes, zeroes never do. What was written is read again from the disk there, and has its name only if its digest is right.
    type: path
  domain:
    description: The name or UUID of the domain whose capture is copied.
    type: str
  backup_id:
    description: The name of the capture's backup.
    type: str
  format:
    description:
      - The format of the copy. V(keep) is that of the source, if that is raw or qcow2, otherwise qcow2.
      - For an image, O(src), the others need O(src_format).
    type: str
    choices: [keep, raw, qcow2]
    default: keep
  compress:
    description:
      - Compress the data of a qcow2 copy. V(zstd) needs QEMU 5.1 or newer, there and where it is restored.
      - For an image, O(src), this needs O(src_format).
    type: str
    choices: [none, zlib, zstd]
    default: none
  find_zeroes:
    description:
      - Leave zeroes out that are data in a file, as in a preallocated image, so that the copy has holes there. Where the file system can
        share blocks, it shares them piece by piece then, if at all.
      - In a block device, over ssh and where C(qemu-img) converts, zeroes are always found.
    type: bool
    default: false
  bandwidth:
    description:
      - The most bytes that are copied in a second, all disks together, for example V(50M). The default is no limit.
      - For a copy that C(qemu-img) makes it needs QEMU 6.0 or newer.
    type: bytes
  mode:
    description: The permissions of O(dest), as an octal number. The images of a set are always V(0600).
    type: str
    default: '0600'
seealso:
  - module: virtops.live_backup.libvirt_disk_snapshot
  - module: virtops.live_backup.libvirt_blockcommit
"""

EXAMPLES = r"""
- name: Copy the disks of a capture, at most 100 MiB a second
  virtops.live_backup.sparse_copy:
    domain: db1
    backup_id: 20261122T184512Z
    bandwidth: 100M

- name: Keep a compressed copy of a template
  virtops.live_backup.sparse_copy:
    src: /var/lib/libvirt/images/template.raw
    src_format: raw
    dest: /srv/backup/template.qcow2
    format: qcow2
    compress: zstd

- name: Copy it to a backup server, which must be known to ssh
  virtops.live_backup.sparse_copy:
    src: /srv/backup/template.qcow2
    dest: ssh://backup@vault.example.com/srv/backup/template.qcow2
    ssh_key: /root/.ssh/id_backup
    ssh_options:
      - Compression=yes
"""

RETURN = r"""
size:
  description: The length of the copy in bytes.
  returned: when O(src) was copied, or had been
  type: int
  sample: 21474836480
data_bytes:
  description: How many of them are data and not in holes.
  returned: when O(src) was copied, or had been
  type: int
  sample: 1073741824
allocated:
  description: The room that the copy takes, in bytes.
  returned: when O(src) was copied, or had been
  type: int
  sample: 1073745920
digest:
  description: The copy's digest, the SHA-256 of the joined SHA-256 digests of its 64 KiB chunks.
  returned: when O(src) was copied, or had been
  type: str
  sample: sha256-64k:8f0cb2a1cf51d84d0c4f67ad1e8f6a7a7be8e1fd56f34e5c27ce4a0a1f6b2f11
seconds:
  description: How long the copy took.
  returned: when O(src) was copied, or had been
  type: float
  sample: 3.841
method:
  description: V(reflink), V(copy), V(ssh), or V(qemu-img convert).
  returned: when O(src) was copied, or had been
  type: str
  sample: copy
disks:
  description: The disks of the capture that are copied, each with its C(target), C(src), C(dest) and the values above.
  returned: when a capture is copied
  type: list
  elements: dict
planned:
  description: Whether this is only a plan, made in check mode.
  returned: success
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, PROGRESS, SSH, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy import sparse_copy


def main() -> None:
    run(
        sparse_copy,
        CONNECTION,
        SSH,
        PROGRESS,
        {
            "src": {"type": "path"},
            "src_format": {"type": "str", "choices": ["raw", "qcow2", "qed", "vdi", "vhdx", "vmdk", "vpc"]},
            "dest": {"type": "path"},
            "domain": {"type": "str"},
            "backup_id": {"type": "str"},
            "format": {"type": "str", "choices": ["keep", "raw", "qcow2"], "default": "keep"},
            "compress": {"type": "str", "choices": ["none", "zlib", "zstd"], "default": "none"},
            "find_zeroes": {"type": "bool", "default": False},
            "bandwidth": {"type": "bytes"},
            "mode": {"type": "str", "default": "0600"},
        },
        required_one_of=[("src", "domain")],
        mutually_exclusive=[("src", "domain"), ("src_format", "domain")],
        required_together=[("src", "dest"), ("domain", "backup_id")],
    )


if __name__ == "__main__":
    main()
