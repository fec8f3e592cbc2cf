# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read out of a hypervisor's log and its mounts."""

from __future__ import annotations

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._hypervisor.signs import denials, mounted_apart

TIME = 1_700_000_000
APPARMOR = (
    'audit: type=1400 audit({time}.768:170): apparmor="DENIED" operation="open" profile="{profile}" name={path} pid=11689 '
    'comm="qemu-system-x86" requested_mask="wc" denied_mask="wc" fsuid=64055 ouid=0'
)
SELINUX = (
    'type=AVC msg=audit({time}.243:24287): avc:  denied  {{ write }} for  pid=2465 comm="qemu-kvm" {path} dev="vdb1" ino=131 '
    "scontext=system_u:system_r:{profile}:s0:c107,c434 tcontext=unconfined_u:object_r:var_t:s0 tclass=file permissive=0"
)
GUEST = "libvirt-dba8a0f2-29f4-4043-8357-b58458282000"


@pytest.mark.parametrize(
    ("line", "profile", "path", "found"),
    [
        (APPARMOR, GUEST, '"/srv/backup/db1/vda.qcow2"', ("AppArmor", "/srv/backup/db1/vda.qcow2")),
        (APPARMOR, GUEST, '"/srv/backup"', ("AppArmor", "/srv/backup")),
        (APPARMOR, "virt-aa-helper", '"/srv/backup/x"', ("AppArmor", "/srv/backup/x")),
        (APPARMOR, GUEST, b"/srv/backup/a b".hex().upper(), ("AppArmor", "/srv/backup/a b")),
        (APPARMOR, GUEST, '"/srv/backups/x"', None),
        (APPARMOR, GUEST, '"/etc/shadow"', None),
        (APPARMOR, "/usr/bin/man", '"/srv/backup/x"', None),
        (APPARMOR.replace("DENIED", "ALLOWED"), GUEST, '"/srv/backup/x"', None),
        (SELINUX, "svirt_t", 'path="/overlays/x"', ("SELinux", "/overlays/x")),
        (SELINUX, "virtqemud_t", 'path="/overlays/x"', ("SELinux", "/overlays/x")),
        (SELINUX, "svirt_t", 'name="vda.qcow2"', ("SELinux", "vda.qcow2")),
        (SELINUX, "svirt_t", 'name="x" path="/etc/x"', None),
        (SELINUX, "httpd_t", 'path="/overlays/x"', None),
        ("the backup of libvirt-x was DENIED", "", "", None),
    ],
)
def test_denials(line: str, profile: str, path: str, found: tuple[str, str] | None) -> None:
    text = line.format(time=TIME, profile=profile, path=path)
    got = denials([text], TIME - 10, ["/srv/backup/", "/overlays"])
    assert [(one.system, one.path) for one in got] == ([found] if found else [])
    assert all(one.line.startswith(f"audit({TIME}.") for one in got)


def test_denials_of_old_and_of_one_path() -> None:
    lines = [
        APPARMOR.format(time=TIME + age, profile=GUEST, path=f'"/srv/backup/{name}"') for age, name in ((-20, "old"), (0, "x"), (5, "x"))
    ]
    found = denials(lines, TIME - 10, ["/srv/backup"])
    assert [one.path for one in found] == ["/srv/backup/x"] and f"audit({TIME + 5}." in found[0].line


MOUNTINFO = """\
22 1 254:1 / / rw,relatime {root} - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
30 22 254:17 / /srv rw,relatime {srv} - ext4 /dev/vdb1 rw
31 30 0:45 / /srv/with\\040blank rw,relatime - nfs4 vault:/x rw
32 31 0:46 / /srv/with\\040blank rw,relatime shared:9 - nfs4 vault:/y rw
"""


@pytest.mark.parametrize(
    ("path", "root", "srv", "found"),
    [
        ("/var/backup", "", "shared:1", ""),
        ("/srv/backup", "shared:1", "", ""),
        ("/srv/backup", "shared:1", "shared:1", ""),
        ("/srv/backup", "", "shared:1", "/srv"),
        ("/srv", "master:4", "", "/srv"),
        ("/srv", "shared:1 master:4", "", ""),
        ("/srvother", "", "", ""),
        # It lies on one that lies on /srv's.
        ("/srv/with blank/x", "", "shared:1", "/srv/with blank"),
    ],
)
def test_mounted_apart(path: str, root: str, srv: str, found: str) -> None:
    assert mounted_apart(MOUNTINFO.format(root=root, srv=srv).replace("  ", " "), path) == found
