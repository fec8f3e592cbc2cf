# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of domain XML of which a domain can be put together: what is the guest's own, and what reaches out of it.

Whatever names something of the original's has `orig` in it, or a number that is found nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

UUID = "5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e"
# Numbers of the original's own: a PCI and an SCSI address, a port, a vsock's number.
NUMBERS = ("0x7b", "5977", "4711", "52:54:00", "00:16:3e")


@dataclass(frozen=True)
class Part:
    """Some XML, where it stands, and what is told of a copy that goes without it; empty where the copy keeps it."""

    xml: str
    told: str = ""
    on_domain: bool = False
    kept: str = ""


OWN = [
    Part("<controller type='scsi' index='0' model='virtio-scsi'/>", kept="virtio-scsi"),
    Part("<controller type='virtio-serial' index='0'/>", kept="virtio-serial"),
    Part(
        "<interface type='network'><mac address='52:54:00:01:02:03'/><source network='lan'/><model type='virtio'/></interface>", kept="lan"
    ),
    Part(
        "<interface type='bridge'><mac address='00:16:3e:01:02:03'/><source bridge='br0'/><target dev='orig7'/><model type='e1000'/>"
        "<driver name='vhost' queues='2'/><link state='up'/><mtu size='1500'/></interface>",
        kept="br0",
    ),
    Part("<interface type='user'><model type='virtio'/></interface>", kept="user"),
    Part("<input type='tablet' bus='usb'/>", kept="tablet"),
    Part("<graphics type='vnc' port='5977' autoport='no'/>", kept="vnc"),
    Part("<video><model type='virtio' heads='1' primary='yes'/></video>", kept="video"),
    Part("<sound model='ich9'/>", kept="ich9"),
    Part("<watchdog model='i6300esb' action='reset'/>", kept="i6300esb"),
    Part("<rng model='virtio'><rate bytes='1024' period='1000'/><backend model='random'>/dev/urandom</backend></rng>", kept="/dev/urandom"),
    Part("<rng model='virtio'><backend model='builtin'/></rng>", kept="builtin"),
    Part("<memballoon model='virtio'><stats period='10'/></memballoon>", kept="stats"),
    Part("<panic model='isa'/>", kept="panic"),
    Part("<serial type='pty'><target port='0'/></serial>", kept="serial"),
    Part("<console type='pty'><target type='serial' port='0'/></console>", kept="console"),
    Part(
        "<channel type='unix'><source mode='bind' path='/orig/agent'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>",
        kept="agent.0",
    ),
    Part(
        "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>",
        "virtual TPM: the copy starts with an empty one",
        kept="tpm-crb",
    ),
    Part("<vsock model='virtio'><cid auto='yes' address='4711'/></vsock>", kept="vsock"),
    Part("<cpu mode='host-model' check='partial'/>", on_domain=True, kept="host-model"),
    Part(
        "<clock offset='timezone' timezone='Europe/Berlin'><timer name='rtc' tickpolicy='catchup'/></clock>",
        on_domain=True,
        kept="Europe/Berlin",
    ),
    Part("<on_crash>restart</on_crash>", on_domain=True, kept="restart"),
    Part("<iothreads>2</iothreads>", on_domain=True, kept="iothreads"),
    Part("<memoryBacking><nosharepages/></memoryBacking>", on_domain=True, kept="nosharepages"),
]
REACHING = [
    Part(
        "<interface type='hostdev'><source><address type='pci' domain='0' bus='0x7b' slot='1' function='0'/></source></interface>",
        "device interface (hostdev)",
    ),
    Part(
        "<interface type='vhostuser'><source type='unix' path='/orig/vhost' mode='client'/><model type='virtio'/></interface>",
        "device interface (vhostuser)",
    ),
    Part(
        "<interface type='ethernet'><target dev='orig0' managed='no'/><script path='/orig/script'/></interface>",
        "device interface (ethernet)",
    ),
    Part("<interface type='direct'><source dev='orig1' mode='passthrough'/></interface>", "device interface (direct)"),
    Part(
        "<interface type='bridge'><source bridge='br0'/><script path='/orig/up'/><downscript path='/orig/down'/></interface>",
        "script of device interface (bridge)",
    ),
    Part(
        "<interface type='bridge'><source bridge='br0'/><virtualport type='openvswitch'>"
        "<parameters interfaceid='09b11c53-8b5c-4eeb-8f00-0417011b4711'"
        " "
        "profileid='orig-port'/></virtualport></interface>",
        "parameters of virtualport (openvswitch) of device interface (bridge)",
    ),
    Part("<interface type='network'><source network='lan'/><rom file='/orig/rom'/></interface>", "file /orig/rom of rom"),
    Part(
        "<interface type='network'><source network='lan'/><backend tap='/orig/tun' vhost='/orig/vhost-net'/></interface>",
        "backend of device interface",
    ),
    Part(
        "<interface type='network'><source network='lan'/><filterref filter='clean-traffic'>"
        "<parameter name='IP' value='10.0.0.orig'/></filterref>"
        "</interface>",
        "parameter (IP) of filterref",
    ),
    Part("<lease><lockspace>orig-space</lockspace><key>orig</key><target path='/orig/lease'/></lease>", "device lease"),
    Part("<input type='evdev'><source dev='/dev/input/orig' grab='all'/></input>", "device input (evdev)"),
    Part("<input type='passthrough' bus='virtio'><source evdev='/dev/input/orig'/></input>", "device input (passthrough)"),
    Part("<graphics type='vnc' socket='/orig/vnc'/>", "socket /orig/vnc of device graphics (vnc)"),
    Part(
        "<graphics type='vnc' port='5977' autoport='no'><listen type='address' address='192.0.2.99'/></graphics>",
        "address 192.0.2.99 of listen",
    ),
    Part("<graphics type='egl-headless'><gl rendernode='/dev/dri/orig'/></graphics>", "device graphics (egl-headless)"),
    Part(
        "<rng model='virtio'><backend model='egd' type='unix'><source mode='connect' path='/orig/egd'/></backend></rng>",
        "device rng (virtio)",
    ),
    Part("<rng model='virtio'><backend model='random'>/dev/orig</backend></rng>", "device rng (virtio)"),
    Part("<vsock model='virtio'><cid auto='no' address='4711'/></vsock>", "address 4711 of cid"),
    Part("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/orig'/></backend></tpm>", "device tpm (tpm-tis)"),
    Part(
        "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0x7b' slot='0' function='0'/></source></hostdev>",
        "device hostdev (pci)",
    ),
    Part(
        "<hostdev mode='subsystem' type='usb'><source><vendor id='0x4711'/><product id='0x4711'/></source></hostdev>",
        "device hostdev (usb)",
    ),
    Part(
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>"
        "<address uuid='c2177883-f1bb-47f0-914d-32a22e3a4711'/></source></hostdev>",
        "device hostdev (mdev)",
    ),
    Part("<filesystem type='mount'><source dir='/orig/shared'/><target dir='shared'/></filesystem>", "device filesystem (mount)"),
    Part("<shmem name='orig-memory'><model type='ivshmem-plain'/><size unit='M'>4</size></shmem>", "device shmem (orig-memory)"),
    Part("<redirdev bus='usb' type='tcp'><source mode='connect' host='orig' service='4000'/></redirdev>", "device redirdev (tcp)"),
    Part("<serial type='file'><source path='/orig/log'/><target port='0'/></serial>", "where a serial led (file /orig/log)"),
    Part("<serial type='dev'><source path='/dev/orig'/><target port='0'/></serial>", "where a serial led (dev /dev/orig)"),
    Part(
        "<serial type='tcp'><source mode='connect' host='orig' service='4555'/><protocol type='telnet'/><target port='0'/></serial>",
        "where a serial led (tcp",
    ),
    Part("<serial type='pty'><log file='/orig/console.log'/><target port='0'/></serial>", "log (/orig/console.log) of device serial (pty)"),
    Part("<parallel type='dev'><source path='/dev/orig'/><target port='0'/></parallel>", "where a parallel led"),
    Part(
        "<channel type='tcp'><source mode='connect' host='orig' service='4444'/>"
        "<target type='guestfwd' address='10.0.2.1' port='4600'/></channel>",
        "device channel",
    ),
    Part("<audio id='1' type='oss'><input dev='/dev/orig'/></audio>", "device audio (oss)"),
    Part("<watchdog model='i6300esb' action='dump'/><pstore backend='acpi-erst'><path>/orig/pstore</path></pstore>", "device pstore"),
    Part(
        "<metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.0'>orig</nova:instance></metadata>",
        "nova:instance of metadata",
        True,
    ),
    Part(
        "<sysinfo type='smbios'><system><entry name='uuid'>5b1dcd43-5b5a-4bb6-9e2c-2f0f5a5f9d3e</entry></system></sysinfo>",
        "system of sysinfo (smbios)",
        True,
    ),
    Part("<sysinfo type='fwcfg'><entry name='opt/com.example/x' file='/orig/fw'/></sysinfo>", "sysinfo (fwcfg)", True),
    Part("<seclabel type='static' model='dac' relabel='yes'><label>orig:orig</label></seclabel>", "seclabel (static)", True),
    Part("<resource><partition>/orig/partition</partition></resource>", "resource", True),
    Part("<numatune><memory mode='strict' nodeset='0'/></numatune>", "numatune", True),
    Part("<cputune><shares>100</shares><vcpupin vcpu='0' cpuset='0'/></cputune>", "vcpupin of cputune", True),
    Part("<perf><event name='cmt' enabled='yes'/></perf>", "perf", True),
    Part(
        "<blkiotune><weight>200</weight><device><path>/dev/orig</path><weight>300</weight></device></blkiotune>",
        "device of blkiotune",
        True,
    ),
    Part(
        "<launchSecurity type='sev'><policy>0x0001</policy><cbitpos>47</cbitpos>"
        "<reducedPhysBits>1</reducedPhysBits><dhCert>orig</dhCert></launchSecurity>",
        "launchSecurity (sev)",
        True,
    ),
    Part("<title>orig</title>", "title", True),
    Part("<description>that of /orig/x</description>", "description", True),
    Part("<qemu:commandline><qemu:arg value='-drive'/><qemu:arg value='file=/orig/qemu'/></qemu:commandline>", "qemu:commandline", True),
]


def domain_xml(parts: list[Part], cpuset: str = "", kind: str = "qemu") -> str:
    """A domain of two disks, one of them in the set, with these parts."""
    on_domain = "".join(part.xml for part in parts if part.on_domain)
    devices = "".join(part.xml for part in parts if not part.on_domain)
    return f"""<domain type='{kind}' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>orig</name><uuid>{UUID}</uuid>
  <memory unit='KiB'>65536</memory><vcpu placement='static'{cpuset}>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>{on_domain}
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
      <source file='/orig/vda' index='1'><seclabel model='dac' relabel='no'/></source>
      <backingStore type='file'><format type='raw'/><source file='/orig/template'/></backingStore><target dev='vda' bus='virtio'/>
      <serial>S1</serial></disk>
    <disk type='file' device='disk'><source file='/orig/vdb'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/orig/iso'/><target dev='sda' bus='sata'/><readonly/></disk>
    {devices}
  </devices>
</domain>"""
