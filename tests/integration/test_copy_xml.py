# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt takes the XML of a copy beside the original, whatever devices the original had. No guest is started."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator

from ansible_collections.virtops.live_backup.plugins.module_utils._restore.domain_xml import Guest, Place, restored_xml
from tests.fuzz.domains import NUMBERS, OWN, REACHING, UUID, Part, domain_xml
from tests.rig.hypervisor import Hypervisor

OTHER = "0c1c1c1c-5b5a-4bb6-9e2c-2f0f5a5f9d3e"
DISKS = {"vda": Place("/new/vda", "qcow2", False)}
# Each domain is defined, asked for as a backup asks, and undefined.
_DEFINE = """
import json, sys, libvirt
libvirt.registerErrorHandler(lambda context, error: None, None)
connection = libvirt.open("qemu:///system")
answers = []
for text in json.load(sys.stdin):
    try:
        domain = connection.defineXMLFlags(text, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        answers.append([domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE), ""])
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    except libvirt.libvirtError as error:
        answers.append(["", str(error)])
print(json.dumps(answers))
"""


def defined(hypervisor: Hypervisor, texts: list[str]) -> list[tuple[str, str]]:
    """What libvirt makes of each XML, or why it takes it not."""
    done = hypervisor.run([sys.executable, "-c", _DEFINE], input=json.dumps(texts), timeout=300)
    return list(map(tuple, json.loads(done.stdout)))


def mixes() -> Iterator[list[Part]]:
    """Each part alone, and domains with many, of each kind of device one; libvirt knows no two of some."""
    # It needs swtpm, which the rig's hypervisors have not.
    parts = [part for part in OWN + REACHING if part.kept != "tpm-crb"]
    yield from ([part] for part in parts)
    chance = random.Random(7)
    for _time in range(40):
        chance.shuffle(parts)
        kinds = {part.xml.partition(" ")[0].partition(">")[0]: part for part in parts}
        yield list(kinds.values())


def copied(text: str) -> str:
    copy = restored_xml(text, Guest("copy", OTHER, True, {"backup_id": "n1"}), disks=DISKS, nvram="", there=[])
    for sign in ("orig", UUID, *NUMBERS):
        assert sign not in copy.xml, sign
    return copy.xml


def test_libvirt_takes_every_copy(hypervisor: Hypervisor) -> None:
    chosen = list(mixes())
    originals = defined(hypervisor, [domain_xml(parts) for parts in chosen])
    refused = {part.told or part.kept: why for [part, *more], (_made, why) in zip(chosen, originals) if why and not more}
    # The corpus is of domains that there are.
    assert len(refused) <= 3, refused
    texts = [copied(made or domain_xml(parts)) for parts, (made, _why) in zip(chosen, originals)]
    bad = [(why, text) for (_made, why), text in zip(defined(hypervisor, texts), texts) if why]
    assert not bad, bad[0]
