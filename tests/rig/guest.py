# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest: a domain whose writer tells on its console what has become durable."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from .blocks import BLOCK, Label, content, slot_of
from .disks import Disk, make_disks
from .image import guest_image
from .oracle import judge
from .shapes import SHAPES, Shape
from .shell import RigError, wait_until

if TYPE_CHECKING:
    from .hypervisor import Hypervisor

MIB = 1 << 20
_OVMF = "/usr/share/OVMF/OVMF_{}_4M.fd"
_BOOT_TIMEOUT = 120
_PORT = "/dev/vport0p1"
_REAL_AGENT = f"qemu-ga --daemonize --retry-path --method=virtio-serial --path={_PORT} --statedir=/run --pidfile=/run/qemu-ga.pid"
# Begins when libvirt calls, and ends when it hangs up.
_FALSE_AGENT = """
until read -r line; do sleep 0.1; done
while
    case $line in
    *guest-sync*) id=${line##*:}; echo "{\\"return\\": ${id%%\\}*}}" ;;
    *guest-fsfreeze-freeze*) FREEZE ;;
    *guest-fsfreeze-thaw*) THAW ;;
    *) echo '{"return": {}}' ;;
    esac
    read -r line
do :; done
"""


class Guest:
    """A guest of a hypervisor; made by ``Hypervisor.guest``, found again by ``Hypervisor.guests``."""

    def __init__(self, hypervisor: Hypervisor, directory: Path) -> None:
        record = json.loads((directory / "guest.json").read_text(encoding="utf-8"))
        self.hypervisor = hypervisor
        self.directory = directory
        self.name: str = record["name"]
        self.uuid: str = record["uuid"]
        self.shape: Shape = SHAPES[record["shape"]]
        disks = [Disk(d["target"], d["role"], d["path"] and Path(d["path"]), d["format"]) for d in record["disks"]]
        self.disks = {disk.target: disk for disk in disks}
        self._size: int = record["size"]
        self._fill: int = record["fill"]

    @classmethod
    def make(cls, hypervisor: Hypervisor, name: str, shape: str, rate: int | None, size: int, fill: int) -> Guest:
        """Make the disks and define the domain; a transient one is not there before it is started."""
        if shape not in SHAPES:
            raise RigError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise RigError(f"{name!r} is no name for a guest: use letters, digits, dots, underscores and hyphens")
        if size % MIB or size < 8 * MIB or fill % BLOCK:
            raise RigError("a disk has whole MiB, at least 8, and a filling of whole blocks of 4096 bytes")
        directory = hypervisor.directory / "guests" / name
        if directory.exists():
            raise RigError(f"{hypervisor.name} already has a guest {name}")
        directory.mkdir(parents=True)
        plan = SHAPES[shape]
        disks = make_disks(hypervisor, directory, plan.disks, size, fill, plan.file_name)
        record = {
            "name": plan.domain_name.format(name),
            "uuid": str(uuid.uuid4()),
            "shape": shape,
            "size": size,
            "fill": fill,
            "disks": [{**dataclasses.asdict(disk), "path": disk.path and str(disk.path)} for disk in disks],
        }
        (directory / "guest.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        guest = cls(hypervisor, directory)
        guest._xml_file.write_bytes(ElementTree.tostring(guest._domain(rate)))
        if plan.persistent:
            hypervisor.virsh("define", guest._xml_file)
        return guest

    @property
    def images(self) -> list[tuple[Path, str]]:
        """The stores, as the oracle wants them: (path, format) in order."""
        return [(disk.image, disk.format) for disk in self.disks.values() if disk.is_store]

    # The domain

    def xml(self, *flags: str) -> str:
        """Its XML, as ``virsh dumpxml`` shows it."""
        return self.hypervisor.virsh("dumpxml", *flags, self.uuid)

    def state(self) -> str:
        """Its state in virsh's words; "undefined" if libvirt does not know it."""
        done = self.hypervisor.run(["virsh", "--connect", "qemu:///system", "domstate", self.uuid], check=False)
        return done.stdout.strip() if done.returncode == 0 else "undefined"

    @property
    def state_when_up(self) -> str:
        """Its state in virsh's words after its start."""
        return "paused" if self.shape.still else "running"

    def start(self) -> None:
        """Start it and wait until its writer has written."""
        if self.shape.still:
            self._start_still()
            return
        before = len(self.console())
        if self.shape.persistent:
            self.hypervisor.virsh("start", self.uuid)
        else:
            self.hypervisor.virsh("create", self._xml_file)
        try:
            wait_until(lambda: "\ndurable " in self.console()[before:], _BOOT_TIMEOUT, f"the writer of {self.name}")
        except RigError as error:
            raise RigError(f"{error}; its console ends: {self.console()[-300:]!r}") from error

    def _start_still(self) -> None:
        # As the writer does it, which takes the greatest number that it finds.
        number = judge(self.images).number
        command = ["start", self.uuid] if self.shape.persistent else ["create", self._xml_file]
        self.hypervisor.virsh(*command, "--paused")
        self._durable_file.write_text(str(number), encoding="ascii")
        self.write(1)

    def destroy(self) -> None:
        """Stop it at once."""
        self.hypervisor.virsh("destroy", self.uuid)

    def shutdown_inside(self) -> None:
        """Let the guest agent shut it down, and wait until it is off."""
        if self.shape.still:
            # QEMU itself ends, and brings to the disk what it holds.
            self.hypervisor.virsh("destroy", "--graceful", self.uuid)
            return
        off = "shut off" if self.shape.persistent else "undefined"
        # The agent may end before it has answered, which is an error for libvirt.
        self.hypervisor.virsh("shutdown", "--mode", "agent", self.uuid, check=False)
        wait_until(lambda: self.state() == off, 60, f"{self.name} to shut down")

    def undefine(self) -> None:
        """Undefine it, with all that libvirt keeps about it."""
        self.hypervisor.virsh("undefine", "--managed-save", "--snapshots-metadata", "--checkpoints-metadata", "--nvram", self.uuid)

    def remove(self) -> None:
        """Remove the domain, whatever its state, and its disks."""
        if self.state() not in ("shut off", "undefined"):
            self.destroy()
        if self.state() != "undefined":
            self.undefine()
        for disk in self.disks.values():
            if disk.role == "loop":
                self.hypervisor.remove_loop_device(disk.image)
        shutil.rmtree(self.directory)

    # QEMU

    def qemu_pid(self) -> int:
        """The QEMU process, as seen outside."""
        wanted = f"\0-uuid\0{self.uuid}\0".encode()
        for command_line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if wanted in command_line.read_bytes() and self.hypervisor.contains(int(command_line.parent.name)):
                    return int(command_line.parent.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        raise RigError(f"{self.name} has no QEMU")

    def kill_qemu(self) -> None:
        """Kill QEMU, as a crash would."""
        os.kill(self.qemu_pid(), signal.SIGKILL)

    # The writer

    def console(self) -> str:
        """All that the guest has printed, over all its boots."""
        try:
            return self._console_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def write(self, count: int) -> None:
        """Let QEMU make the next writes of a guest that stands still, each durable before the next one, through its own devices."""
        stores = [(number, disk) for number, disk in enumerate(self.disks.values()) if disk.is_store]
        labels = [Label.make(index, len(stores), self._size, self._fill) for index in range(len(stores))]
        first = self.durable() + 1
        commands = []
        for n in range(first, first + count):
            index, slot = slot_of(n, labels)
            block = labels[index].slot_block(slot)
            data = self.directory / f"block-{n}"
            data.write_bytes(content(n, index, block))
            device = f"/machine/peripheral/virtio-disk{stores[index][0]}/virtio-backend"
            write = f'qemu-io -d {device} "write -f -s {data} {block * BLOCK} {BLOCK}"'
            commands.append(f"qemu-monitor-command --hmp {self.uuid} '{write}'\n")
        # One virsh for all: its start would take longer than a write. What fails is in QEMU's log alone, and the oracle sees it.
        said = self.hypervisor.run(["virsh", "--quiet", "--connect", "qemu:///system"], input="".join(commands))
        if "rror" in said.stdout + said.stderr:
            raise RigError(f"{self.name} cannot write: {said.stdout[-300:]!r} {said.stderr!r}")
        self._durable_file.write_text(str(first + count - 1), encoding="ascii")
        for data in self.directory.glob("block-*"):
            data.unlink()

    def durable(self) -> int:
        """The last number that the writer has told to be durable; 0 if none."""
        if self.shape.still:
            return int(self._durable_file.read_text(encoding="ascii")) if self._durable_file.exists() else 0
        numbers = re.findall(r"^durable (\d+)\r?\n", self.console(), re.MULTILINE)
        return int(numbers[-1]) if numbers else 0

    def wait_durable(self, number: int, timeout: float = 60) -> None:
        """Wait until write ``number`` is durable."""
        if self.shape.still:
            self.write(number - self.durable())
        wait_until(lambda: self.durable() >= number, timeout, f"write {number} of {self.name}")

    def wait_writes_after(self, printed: str) -> None:
        """Wait until writes are durable beyond what it had printed: one that was restored goes on from an older number."""
        wait_until(lambda: "\ndurable " in self.console()[len(printed) :], 60, f"{self.name} to write again")

    # The guest agent

    def agent(self, command: str, **arguments: object) -> object:
        """What the guest agent returns for a command."""
        request = json.dumps({"execute": command, "arguments": arguments})
        return json.loads(self.hypervisor.virsh("qemu-agent-command", "--timeout", "60", self.uuid, request))["return"]

    def frozen(self) -> bool:
        """Whether the guest agent holds file systems frozen."""
        return self.agent("guest-fsfreeze-status") == "frozen"

    def silence_agent(self, seconds: int) -> None:
        """Make the guest agent stop answering for some seconds; whatever it is asked meanwhile, it does afterwards."""
        script = f"kill -STOP $(cat /run/qemu-ga.pid); sleep {seconds}; kill -CONT $(cat /run/qemu-ga.pid)"
        self.agent("guest-exec", path="/bin/sh", arg=["-c", f"({script}) >/dev/null 2>&1 &"])

    def replace_agent(self, freeze: str, thaw: str) -> None:
        """Until libvirtd is restarted a shell script is the guest agent, which answers with the output of these commands."""
        script = _FALSE_AGENT.replace("FREEZE", freeze).replace("THAW", thaw)
        self._start_agent(f"sh -c {shlex.quote(script)} <>{_PORT} >&0; while ! {_REAL_AGENT}; do sleep 0.1; done")
        wait_until(lambda: self._asked("guest-info") == {}, 60, "the false agent to answer")

    def wait_for_agent(self) -> None:
        """Wait until the true agent answers."""
        wait_until(lambda: bool(self._asked("guest-info")), 60, "the guest agent to answer")

    def hook_agent(self, hook: str) -> None:
        """The guest agent runs this program before each freeze and after each thaw, with the word for it as its argument."""
        mark = f"/run/{uuid.uuid4()}"
        write = f"echo {shlex.quote(hook)} >/run/hook; chmod 755 /run/hook"
        self._start_agent(f"{write}; {_REAL_AGENT} --fsfreeze-hook=/run/hook; touch {mark}")
        wait_until(lambda: self._asked("guest-file-open", path=mark) is not None, 60, "the guest agent with its hook")

    def _asked(self, command: str, **arguments: object) -> object:
        """What the guest agent returns; None if it does not, or there is none."""
        # Not for long: one that is going takes the question with it.
        ask = ["virsh", "--connect", "qemu:///system", "qemu-agent-command", "--timeout", "5", self.uuid]
        done = self.hypervisor.run([*ask, json.dumps({"execute": command, "arguments": arguments})], check=False)
        return json.loads(done.stdout)["return"] if done.returncode == 0 else None

    def _start_agent(self, script: str) -> None:
        """Let the agent run this, which waits until it has ended."""
        wait = "pid=$(cat /run/qemu-ga.pid); kill -9 $pid; while kill -0 $pid; do sleep 0.1; done"
        run = f"setsid sh -c {shlex.quote(f'{wait}; {script}')} </dev/null >/dev/null 2>&1 &"
        # It may end before it has answered.
        self._asked("guest-exec", path="/bin/sh", arg=["-c", run])

    # Files

    @property
    def _xml_file(self) -> Path:
        return self.directory / "domain.xml"

    @property
    def _console_file(self) -> Path:
        return self.directory / "console.log"

    @property
    def _durable_file(self) -> Path:
        return self.directory / "durable"

    def _domain(self, rate: int | None) -> ElementTree.Element:
        image = guest_image(self.hypervisor.root)
        # no_timer_check: on a busy machine emulated timers fail the kernel's test at boot, and it panics.
        command_line = ["console=ttyS0", "quiet", "panic=1", "no_timer_check", "mitigations=off", "cryptomgr.notests"]
        command_line += [f"rate={rate}"] if rate else []
        command_line += [] if self.shape.agent else ["agent=off"]

        domain = ElementTree.Element("domain", type="qemu")
        _add(domain, "name", self.name)
        _add(domain, "uuid", self.uuid)
        _add(domain, "memory", "192", unit="MiB")
        _add(domain, "vcpu", "1")
        system = _add(domain, "os")
        _add(system, "type", "hvm", arch="x86_64", machine="q35")
        if self.shape.uefi:
            _add(system, "loader", _OVMF.format("CODE"), readonly="yes", type="pflash")
            _add(system, "nvram", template=_OVMF.format("VARS"))
        _add(system, "kernel", str(image.kernel))
        _add(system, "initrd", str(image.initramfs))
        _add(system, "cmdline", " ".join(command_line))
        _add(_add(domain, "features"), "acpi")

        devices = _add(domain, "devices")
        for disk in self.disks.values():
            _add_disk(devices, disk)
        serial = _add(devices, "serial", type="file")
        _add(serial, "source", path=str(self._console_file), append="on")
        if self.shape.channel:
            channel = _add(devices, "channel", type="unix")
            _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
        _add(devices, "controller", type="usb", model="none")
        _add(devices, "memballoon", model="none")
        return domain


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_disk(devices: ElementTree.Element, disk: Disk) -> None:
    is_cdrom = disk.role.endswith("cdrom")
    block = disk.role == "loop"
    element = _add(devices, "disk", type="block" if block else "file", device="cdrom" if is_cdrom else "disk")
    _add(element, "driver", name="qemu", type=disk.format)
    if disk.path:
        _add(element, "source", **{"dev" if block else "file": str(disk.path)})
    _add(element, "target", dev=disk.target, bus="sata" if is_cdrom else "virtio")
    if disk.role == "readonly":
        _add(element, "readonly")
