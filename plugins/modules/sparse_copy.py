#!/usr/bin/python
# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sparse_copy
short_description: Copy disk images and keep them sparse
version_added: 1.0.0
author:
  - The virtops.live_backup contributors (@virtops)
description:
  - Has two forms. The first copies one image, O(src), to O(dest).
  - The second copies all disks of a capture, which O(domain) and O(backup_id) name, into the partial set. The disks are copied in
    parallel.
  - >-
    If the format stays, the kernel copies the bytes. It shares blocks if the file system supports that (reflink), otherwise it copies only
    the data. The digest is computed while the data passes.
  - >-
    C(qemu-img) converts and compresses. It also flattens an image that has a backing or data file, if O(src_format) names its format.
  - A copy gets its name only when it is complete and on the disk. An interrupted copy leaves nothing.
  - >-
    After a capture by M(virtops.live_backup.libvirt_disk_snapshot), the commit of each overlay starts as soon as its base is copied and
    has been proven unchanged. If the overlays threaten to fill their file system, the copy is aborted and they are committed,
    even if the target hangs.
  - >-
    A capture that was started for an C(ssh://) target is sent directly to it. This applies to each image that is raw or qcow2 and holds
    all of its disk. The commit then waits for the transfer, so an overlay exists as long as that takes.
  - The disks of a capture by O(virtops.live_backup.libvirt_backup_begin#module:method=pull) are read from QEMU, which serves them on a
    socket. The backup job is ended when all of them are copied. If its scratch files threaten to fill their file system, the backup is
    given up.
  - The disks of a domain that is shut off are copied under QEMU's image lock. If the domain is started during the copy, nothing is kept.
  - Progress is shown only when copying a capture (O(progress_interval)).
  - The copies of a capture that was started with a key are encrypted, and need the same key here. They cannot be compressed as well.
extends_documentation_fragment:
  - virtops.live_backup.encryption
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
    details: For O(src) and O(dest). The copies of a capture are in a directory that nobody sees yet.
  idempotent:
    support: full
    details:
      - No change if a record beside O(dest) says that it was copied from O(src), and neither was changed since.
      - A block device is always copied again, because nothing shows whether it was written.
      - A disk of a capture is copied once.
options:
  src:
    description: The image to copy, a file or a block device, as an absolute path. Nothing may write to it during the copy.
    type: path
  src_format:
    description:
      - The format of O(src). The module never guesses it. A guest can write the header of any image to its raw disk, and such a header
        names files of the hypervisor.
      - Without it, the bytes of O(src) are copied as they are. Then O(format) must be V(keep) and O(compress) must be V(none). O(src) must
        not look like a qcow2 image that needs another file.
      - Set it to convert or compress O(src), or to flatten an image that has a backing or data file. With V(raw) the bytes are the disk.
    type: str
    choices: [raw, qcow2, qed, vdi, vhdx, vmdk, vpc]
    version_added: 1.0.0
  dest:
    description:
      - The file to write, as an absolute path. An existing file is replaced when the copy is complete.
      - >-
        Or V(ssh://[user@]host[:port]/path), a file on another host, which the hypervisor reaches with C(ssh). The path is used as it is,
        nothing in it is decoded. That host needs sshd, a POSIX shell and C(python3) 3.9 or newer. Its host key must be known.
      - >-
        Over ssh the bytes are copied. So the copy has the format of O(src), which must be raw or qcow2, without a backing or data file.
      - >-
        Only data is sent, zeroes never are. The copy is read again from the disk of that host. It gets its name only if its digest is
        right.
    type: path
  domain:
    description: The name or UUID of the domain whose capture is copied.
    type: str
  backup_id:
    description: The name of the capture's backup.
    type: str
  format:
    description:
      - The format of the copy. V(keep) is the format of the source if that is raw or qcow2, otherwise qcow2.
      - For a single image, O(src), V(raw) and V(qcow2) need O(src_format).
    type: str
    choices: [keep, raw, qcow2]
    default: keep
  compress:
    description:
      - Compress the data of a qcow2 copy. V(zstd) needs QEMU 5.1 or newer, on this host and on the host where it is restored.
      - A pull can only be compressed with V(zlib). What changed of a disk that is shut off is compressed with V(zlib) too.
      - For a single image, O(src), this needs O(src_format).
    type: str
    choices: [none, zlib, zstd]
    default: none
  find_zeroes:
    description:
      - Leave out zeroes that are data in a file, as in a preallocated image. The copy then has holes there. If the file system can
        share blocks, it shares them piece by piece, or not at all.
      - Zeroes are always found in a block device, over ssh, and if C(qemu-img) converts.
    type: bool
    default: false
  bandwidth:
    description:
      - Maximum throughput in bytes per second, for all disks together, for example V(50M). By default there is no limit.
      - For a copy by C(qemu-img), this needs QEMU 6.0 or newer.
    type: bytes
  bandwidth_total:
    description:
      - Maximum throughput in bytes per second for all captures that are copied on this hypervisor at the same time. Each copy has the same
        share. The default is not to limit the copies.
      - A copy by C(qemu-img) keeps the share that it has at its start.
    type: bytes
    version_added: 1.0.0
  latency_limit:
    description:
      - For a capture of a running domain. Maximum average latency of the guest's writes and flushes, in milliseconds.
      - While the latency of one of its disks is longer, the copy becomes slower, down to 1 MiB per second. The manifest says for how long.
      - V(0) means no limit.
    type: int
    default: 0
    version_added: 1.0.0
  mode:
    description: The permissions of O(dest), as an octal number. The images of a set always have V(0600).
    type: str
    default: '0600'
seealso:
  - module: virtops.live_backup.libvirt_disk_snapshot
  - module: virtops.live_backup.libvirt_blockcommit
"""

EXAMPLES = r"""
- name: Copy the disks of a capture, at most 100 MiB per second
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

- name: Copy it to a backup server, whose host key ssh must know
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
  returned: if O(src) was copied, now or earlier
  type: int
  sample: 21474836480
data_bytes:
  description: The bytes that are data, without holes.
  returned: if O(src) was copied, now or earlier
  type: int
  sample: 1073741824
allocated:
  description: The disk space of the copy, in bytes.
  returned: if O(src) was copied, now or earlier
  type: int
  sample: 1073745920
digest:
  description: The copy's digest. It is the SHA-256 of the joined SHA-256 digests of its 64 KiB chunks.
  returned: if O(src) was copied, now or earlier
  type: str
  sample: sha256-64k:8f0cb2a1cf51d84d0c4f67ad1e8f6a7a7be8e1fd56f34e5c27ce4a0a1f6b2f11
seconds:
  description: The duration of the copy in seconds.
  returned: if O(src) was copied, now or earlier
  type: float
  sample: 3.841
method:
  description: How the image was copied - V(reflink), V(copy), V(nbd), V(ssh), or V(qemu-img convert).
  returned: if O(src) was copied, now or earlier
  type: str
  sample: copy
disks:
  description: The copied disks of the capture, each with its C(target), C(src), C(dest) and the values above.
  returned: if a capture is copied
  type: list
  elements: dict
planned:
  description: Whether this is only a plan, made in check mode.
  returned: success
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

from ansible_collections.virtops.live_backup.plugins.module_utils._module import CONNECTION, ENCRYPTION, ONE_KEY, PROGRESS, SSH, run
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.copy import sparse_copy


def main() -> None:
    run(
        sparse_copy,
        CONNECTION,
        SSH,
        PROGRESS,
        ENCRYPTION,
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
            "bandwidth_total": {"type": "bytes"},
            "latency_limit": {"type": "int", "default": 0},
            "mode": {"type": "str", "default": "0600"},
        },
        required_one_of=[("src", "domain")],
        mutually_exclusive=[
            ("src", "domain"),
            ("src_format", "domain"),
            ONE_KEY,
            ("src", "encryption_key"),
            ("src", "encryption_key_file"),
        ],
        required_together=[("src", "dest"), ("domain", "backup_id")],
    )


if __name__ == "__main__":
    main()
