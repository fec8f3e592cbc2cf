# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A secret of libvirt, which is there only until QEMU has opened the images that need it.

See docs/internals/encryption.md.
"""

from __future__ import annotations

from .bindings import libvirt
from .connection import explained
from .numbers import VIR_ERR_NO_SECRET, VIR_ERR_NO_SUPPORT


def define_secret(connection: libvirt.virConnect, uuid: str, value: bytes) -> None:
    """Give libvirt a secret. It keeps that in memory, and shows it to nobody."""
    xml = f"<secret ephemeral='yes' private='yes'><uuid>{uuid}</uuid><description>of a backup that starts</description></secret>"
    with explained("define the secret of an encrypted backup"):
        connection.secretDefineXML(xml, 0).setValue(value, 0)


def find_secret(connection: libvirt.virConnect, uuid: str) -> libvirt.virSecret | None:
    """The secret, if libvirt has it."""
    with explained("look for the secret of an encrypted backup"):
        try:
            return connection.secretLookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (VIR_ERR_NO_SECRET, VIR_ERR_NO_SUPPORT):
                raise
            return None


def undefine_secret(connection: libvirt.virConnect, uuid: str) -> None:
    """Let libvirt forget the secret."""
    secret = find_secret(connection, uuid)
    if secret is not None:
        with explained("remove the secret of an encrypted backup"):
            secret.undefine()
