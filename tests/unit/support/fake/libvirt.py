# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for the libvirt module: the calls and error codes that the collection relies on, without a hypervisor.

Tests describe a hypervisor in `host` and drive its jobs; tests/contract holds what is said here to the real libvirt.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

VIR_ERR_INTERNAL_ERROR = 1
VIR_ERR_INVALID_ARG = 8
VIR_ERR_OPERATION_DENIED = 29
VIR_ERR_XML_DETAIL = 35
VIR_ERR_SYSTEM_ERROR = 38
VIR_ERR_NO_DOMAIN = 42
VIR_ERR_OPERATION_INVALID = 55
VIR_ERR_CONFIG_UNSUPPORTED = 67
VIR_ERR_OPERATION_TIMEOUT = 68
VIR_ERR_ARGUMENT_UNSUPPORTED = 74
VIR_ERR_BLOCK_COPY_ACTIVE = 83
VIR_ERR_OPERATION_UNSUPPORTED = 84
VIR_ERR_AGENT_UNRESPONSIVE = 86
VIR_ERR_NO_DOMAIN_BACKUP = 104

VIR_DOMAIN_RUNNING = 1
VIR_DOMAIN_PAUSED = 3
VIR_DOMAIN_SHUTOFF = 5
VIR_DOMAIN_PAUSED_USER = 1
VIR_DOMAIN_PAUSED_IOERROR = 5
VIR_DOMAIN_XML_SECURE = 1
VIR_DOMAIN_XML_INACTIVE = 2
VIR_DOMAIN_XML_MIGRATABLE = 8
VIR_DOMAIN_JOB_STATS_COMPLETED = 1
VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED = 2
VIR_DOMAIN_STATS_BLOCK = 32
VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA = 4
VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY = 16
VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC = 128
VIR_DOMAIN_BLOCK_COMMIT_SHALLOW = 1
VIR_DOMAIN_BLOCK_COMMIT_ACTIVE = 4
VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT = 2
VIR_DOMAIN_EVENT_ID_LIFECYCLE = 0
VIR_DOMAIN_EVENT_ID_JOB_COMPLETED = 21

UNBOUNDED, COMPLETED, FAILED, CANCELLED = 2, 3, 4, 5
BACKUP = 9
_NO_JOB = {"type": 0}


class libvirtError(Exception):  # noqa: N801
    """An error with libvirt's number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self._code = code

    def get_error_code(self) -> int:
        return self._code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_domain(self) -> int:
        return 10

    def get_int1(self) -> int:
        """The errno of a system error; -1 where nobody told it."""
        return -1


class HostClock:
    """The host's time; a unit test puts its own here."""

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Nothing happens in the fake by waiting."""


@dataclass
class Job:
    """A job that runs: a backup with its targets, or another operation without."""

    began: float
    targets: dict[str, str] = field(default_factory=dict)
    operation: int = BACKUP
    total: int = 1 << 20
    done: int = 0
    aborted: bool = False


@dataclass
class Commit:
    """An active commit: it becomes ready by waits for an event."""

    end: int
    turns: int
    cur: int = 0
    # libvirtd may die before it notes in the XML what the job is for.
    noted: bool = True

    @property
    def ready(self) -> bool:
        return self.turns <= 0


@dataclass
class DomainState:
    """A domain of the fake hypervisor. `agent`: answers, refuses, times out, garbles, disconnected, absent.

    `disks` are the bases, raw. `live` and `defined` are the images on top of them, the top first, where there are any.
    """

    name: str
    uuid: str
    disks: dict[str, str] = field(default_factory=lambda: {"vda": "/images/vda", "vdb": "/images/vdb"})
    state: int = VIR_DOMAIN_RUNNING
    reason: int = 1
    persistent: bool = True
    agent: str = "absent"
    filesystems: int = 1
    frozen: bool = False
    thaw_fails: bool = False
    # libvirt could not read what the agent said, and asks it no more.
    dropped: bool = False
    nvram: str = ""
    devices: str = ""
    metadata: str = ""
    capacity: int = 1 << 20
    job: Job | None = None
    completed: dict[str, Any] = field(default_factory=lambda: dict(_NO_JOB))
    block_jobs: dict[str, dict[str, int]] = field(default_factory=dict)
    live: dict[str, list[str]] = field(default_factory=dict)
    defined: dict[str, list[str]] = field(default_factory=dict)
    devices_of_host: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    commit_turns: int = 2
    saved_xml: str = ""
    snapshots: dict[str, str] = field(default_factory=dict)
    # Overlays that QEMU writes to and libvirt does not know of, names by which it has unused ones open, and commits begun by its monitor.
    unknown: dict[str, str] = field(default_factory=dict)
    unused: dict[str, list[str]] = field(default_factory=dict)
    # Disks that QEMU has on their bases again, whatever libvirt shows.
    stuck: set[str] = field(default_factory=set)
    qemu_jobs: dict[str, str] = field(default_factory=dict)
    runs: int = 1
    checkpoints: list[str] = field(default_factory=list)
    agent_timeout: int = -2

    @property
    def active(self) -> bool:
        return self.state != VIR_DOMAIN_SHUTOFF

    def chain(self, target: str, *, inactive: bool = False) -> list[tuple[str, str]]:
        """The images of a disk with their formats, the one that the guest writes to first."""
        above = (self.defined if inactive or not self.active else self.live).get(target, [])
        return [*((path, "qcow2") for path in above), (self.disks[target], "raw")]

    def xml(self, *, inactive: bool = False) -> str:
        inactive = inactive or not self.active
        disks = "".join(self._disk_xml(target, inactive) for target in self.disks)
        connected = "disconnected" if self.agent == "disconnected" or not self.active else "connected"
        channel = f"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='{connected}'/></channel>"
        nvram = f"<nvram>{self.nvram}</nvram>" if self.nvram else ""
        domain = ElementTree.fromstring(
            f"<domain><name/><uuid>{self.uuid}</uuid>{self.metadata}<os>{nvram}</os>"
            f"<devices>{disks}{self.devices}{'' if self.agent == 'absent' else channel}</devices></domain>"
        )
        domain[0].text = self.name
        return ElementTree.tostring(domain, encoding="unicode")

    def _disk_xml(self, target: str, inactive: bool) -> str:
        (path, style), *backing = self.chain(target, inactive=inactive)
        name, kind = ("dev", "block") if target in self.devices_of_host else ("file", "file")

        def index(depth: int) -> str:
            # libvirt numbers the images that are in use; the base is the first.
            return "" if inactive else f" index='{len(backing) + 1 - depth}'"

        # The definition keeps only what the snapshot wrote there, the live XML tells where the chain ends.
        stores, closing = "", "" if inactive else "<backingStore/>"
        for depth, (below, form) in enumerate(backing[:1] if inactive else backing, 1):
            stores += f"<backingStore type='file'{index(depth)}><format type='{form}'/><source file={quoteattr(below)}/>"
            closing += "</backingStore>"
        mirror = ""
        commit = self.commits.get(target)
        if commit is not None and commit.noted and not inactive:
            ready = " ready='yes'" if commit.ready else ""
            below, form = backing[0]
            inside = f"<format type='{form}'/><source file={quoteattr(below)}{index(1)}/>"
            mirror = f"<mirror type='file' job='active-commit'{ready}>{inside}</mirror>"
        return (
            f"<disk type='{kind}' device='disk'><driver name='qemu' type='{style}'/><source {name}={quoteattr(path)}{index(0)}/>"
            f"{stores}{closing}{mirror}"
            f"<target dev={quoteattr(target)} bus='virtio'/></disk>"
        )

    def end_job(self, kind: int = COMPLETED, errmsg: str = "") -> None:
        """The running job ends; libvirt removes the files of a backup that did not complete."""
        assert self.job is not None
        if kind == COMPLETED:
            self.job.done = self.job.total
        self.completed = {**self.stats(), "type": kind, "success": kind == COMPLETED}
        if errmsg:
            self.completed["errmsg"] = errmsg
        for path in self.job.targets.values():
            if kind == COMPLETED:
                Path(path).write_bytes(b"image")
            else:
                Path(path).unlink(missing_ok=True)
        self.job = None

    def stats(self) -> dict[str, Any]:
        """The statistics of the running job; libvirt leaves out amounts that are zero only for all disks together."""
        if self.job is None:
            return dict(_NO_JOB)
        elapsed = round((host.clock.wall() - self.job.began) * 1000)
        amounts = {"disk_total": self.job.total, "disk_processed": self.job.done, "disk_remaining": self.job.total - self.job.done}
        return {"operation": self.job.operation, "time_elapsed": elapsed, **amounts, "type": UNBOUNDED}

    def shut_off(self) -> None:
        """The domain stops, and with it its job; a transient one is gone."""
        if self.job is not None:
            self.end_job(CANCELLED)
        self.commits.clear()
        self.state, self.reason, self.frozen = VIR_DOMAIN_SHUTOFF, 2, False
        if not self.persistent:
            del host.domains[self.uuid]
            self.live.clear()
            self.defined.clear()

    def start(self, *, on_base: bool = False) -> None:
        """A new QEMU runs on what is defined; `on_base` as `virsh create` of an old XML."""
        self.live = {} if on_base else {target: list(images) for target, images in self.defined.items()}
        self.state, self.reason = VIR_DOMAIN_RUNNING, 1
        self.runs += 1
        host.domains[self.uuid] = self

    def forget_snapshot(self) -> None:
        """libvirtd is killed when QEMU has gone over to the overlays, and has not noted it."""
        for target, images in self.live.items():
            self.unknown[target] = images.pop(0)
            self.defined[target].pop(0)
        host.restart()

    def image_of(self, target: str) -> tuple[str, str]:
        """The image that QEMU writes to, and its format."""
        if target in self.stuck:
            return self.disks[target], "raw"
        return (self.unknown[target], "qcow2") if target in self.unknown else self.chain(target)[0]

    def write(self, target: str, sector: int, value: int) -> None:
        """The guest writes 64 KiB."""
        path, style = self.image_of(target)
        _run("qemu-io", "-f", style, "-c", f"write -P {value} {sector * 65536} 65536", path)

    def read(self, target: str) -> list[int]:
        """The guest's view of a disk: the value in each 64 KiB."""
        path, style = self.image_of(target)
        image = Path(f"{path}.seen")
        _run("qemu-img", "convert", "-f", style, "-O", "raw", path, str(image))
        data = image.read_bytes()
        image.unlink()
        return list(data[::65536])

    def pivot(self, target: str) -> None:
        """The guest goes over to the base, which holds everything."""
        del self.commits[target]
        overlay = self.live[target].pop(0)
        if self.defined.get(target, [""])[:1] == [overlay]:
            self.defined[target].pop(0)
        _run("qemu-img", "commit", "-d", "-f", "qcow2", overlay)

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """What QEMU answers at its monitor."""
        if command == "query-block":
            images = {target: self.image_of(target)[0] for target in self.disks}
            return [{"inserted": {"image": {"filename": path}, "node-name": f"{target}-format"}} for target, path in images.items()] + [{}]
        if command == "query-named-block-nodes":
            used = {path: _nodes(target) for target in self.disks for path, style in [self.image_of(target)] if style == "qcow2"}
            # That of one that is used is its path; opened for a snapshot that never came, it has no backing file yet.
            opened = [(path, path, nodes) for path, nodes in used.items()]
            opened += [(path, _json_name(path), nodes) for path, nodes in self.unused.items()]
            return [
                {"node-name": node, **({"drv": "qcow2", "file": name} if node.endswith("-format") else {"drv": "file", "file": path})}
                for path, name, nodes in opened
                for node in reversed(nodes)
            ] + [{"node-name": f"{target}-base", "drv": "raw", "file": base} for target, base in self.disks.items()]
        if command == "query-jobs":
            return []
        if command == "query-block-jobs":
            return [{"device": job, "ready": status == "ready"} for job, status in self.qemu_jobs.items()]
        if command == "block-commit":
            target = arguments["device"].removesuffix("-format")
            assert arguments["base-node"] == f"{target}-base" and target in self.unknown
            self.qemu_jobs[arguments["job-id"]] = "running"
        elif command == "block-job-complete":
            assert self.qemu_jobs.pop(arguments["device"]) == "ready"
            target = arguments["device"].rpartition("-")[2]
            path = self.unknown.pop(target)
            self.unused[path] = _nodes(target)
            _run("qemu-img", "commit", "-d", "-f", "qcow2", path)
        elif command == "blockdev-del":
            [nodes] = [nodes for nodes in self.unused.values() if arguments["node-name"] in nodes]
            # A file is in use as long as its format is open.
            assert nodes.pop(0) == arguments["node-name"]
        else:
            raise AssertionError(f"{command} is not in the fake")
        return {}


def _nodes(target: str) -> list[str]:
    """QEMU's names for an overlay, the format's first."""
    return [f"{target}-format", f"{target}-storage"]


def _json_name(path: str) -> str:
    return "json:" + json.dumps({"backing": None, "driver": "qcow2", "file": {"driver": "file", "filename": path}})


def qemuMonitorCommand(domain: virDomain, text: str, flags: int) -> str:  # noqa: N802
    """As libvirt_qemu.qemuMonitorCommand."""
    state = domain._enter("qemuMonitorCommand", writes=True, running=True)
    command = json.loads(text)
    return json.dumps({"return": state.answer(command["execute"], command["arguments"])})


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


class Host:
    """The hypervisor behind every connection of the fake."""

    def __init__(self, *domains: DomainState, clock: Any = None) -> None:
        self.domains = {domain.uuid: domain for domain in domains}
        self.clock = clock or HostClock()
        if clock is not None:
            clock.at_wait = self.turn
        self.libvirt = 9_000_000
        self.qemu = 7_002_000
        self.running = True
        self.daemons = 1
        self.connections: list[virConnect] = []
        self.calls: list[str] = []
        # What happens at the next waits for an event, one entry a wait.
        self.turns: list[Callable[[], None]] = []
        # What happens before a method of that name does its work; it may raise.
        self.before: dict[str, Callable[[], None]] = {}
        self.at_each_call: Callable[[], None] = lambda: None

    def restart(self) -> None:
        """libvirtd is restarted: connections are dropped, jobs go on."""
        self.daemons += 1
        for connection in self.connections:
            connection.alive = False

    def instance(self, name: str) -> str:
        """Which run of a domain's QEMU this is."""
        return next((f"{domain.runs}@1" for domain in self.domains.values() if domain.name == name and domain.active), "")

    def daemon(self) -> str:
        """Which run of libvirt's daemon this is."""
        return f"{self.daemons}@1"

    def turn(self) -> None:
        """One wait for an event: at most a second passes, and the next thing happens."""
        self.clock.sleep(1.0)
        for domain in list(self.domains.values()):
            domain.qemu_jobs = dict.fromkeys(domain.qemu_jobs, "ready")
            if domain.job is not None and domain.job.aborted:
                domain.end_job(CANCELLED, "Operation canceled")
            for commit in domain.commits.values():
                commit.turns -= 1
                # It is behind until QEMU says that it is ready.
                commit.cur = commit.end if commit.ready else commit.end - 1
        if self.turns:
            self.turns.pop(0)()


host = Host()


class virDomain:  # noqa: N801
    """A handle on a domain; it may outlive the domain and the connection."""

    def __init__(self, connection: virConnect, state: DomainState) -> None:
        self._connection = connection
        self._state = state

    def _enter(self, method: str, *, writes: bool = False, running: bool = False) -> DomainState:
        self._connection.enter(method)
        state = self._state
        if writes and self._connection.readonly:
            raise libvirtError(VIR_ERR_OPERATION_DENIED, f"operation forbidden: read only access prevents {method}")
        if state.uuid not in host.domains:
            raise libvirtError(VIR_ERR_NO_DOMAIN, f"Domain not found: no domain with matching uuid '{state.uuid}'")
        if running and not state.active:
            raise libvirtError(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running")
        return state

    def connect(self) -> virConnect:
        return self._connection

    def name(self) -> str:
        return self._state.name

    def UUIDString(self) -> str:  # noqa: N802
        return self._state.uuid

    def XMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        state = self._enter("XMLDesc", writes=bool(flags & VIR_DOMAIN_XML_SECURE))
        return state.xml(inactive=bool(flags & VIR_DOMAIN_XML_INACTIVE))

    def state(self) -> list[int]:
        state = self._enter("state")
        return [state.state, state.reason]

    def isActive(self) -> int:  # noqa: N802
        return int(self._enter("isActive").active)

    def isPersistent(self) -> int:  # noqa: N802
        return int(self._enter("isPersistent").persistent)

    def jobStats(self, flags: int = 0) -> dict[str, Any]:  # noqa: N802
        if flags == VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED:
            raise libvirtError(VIR_ERR_INVALID_ARG, "Flag 'COMPLETED' is required by flag 'KEEP_COMPLETED'")
        state = self._enter("jobStats", running=not flags)
        if not flags:
            return state.stats()
        if state.job is not None:
            return dict(_NO_JOB)
        stats = state.completed
        if not flags & VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED:
            state.completed = dict(_NO_JOB)
        return stats

    def blockJobInfo(self, disk: str, flags: int = 0) -> dict[str, int]:  # noqa: N802
        state = self._enter("blockJobInfo", running=True)
        if disk not in state.disks and f"dev='{disk}'" not in state.devices:
            raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: disk '{disk}' not found in domain")
        if state.job is not None and disk in state.job.targets:
            return {"type": 5, "bandwidth": 0, "cur": state.job.done, "end": state.job.total}
        commit = state.commits.get(disk)
        if commit is not None:
            return {"type": 4, "bandwidth": 0, "cur": commit.cur, "end": commit.end}
        return state.block_jobs.get(disk, {})

    def snapshotCreateXML(self, text: str, flags: int = 0) -> virDomainSnapshot:  # noqa: N802
        state = self._enter("snapshotCreateXML", writes=True, running=True)
        assert flags & VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY and flags & VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA, "not in the fake"
        named = {disk.get("name", ""): disk for disk in ElementTree.fromstring(text).iterfind("disks/disk")}
        overlays = {}
        for target in state.disks:
            # Whoever is not named is taken too.
            disk = named.get(target)
            if disk is None or disk.get("snapshot") != "no":
                source = None if disk is None else disk.find("source")
                overlays[target] = f"{state.chain(target)[0][0]}.auto" if source is None else source.get("file", "")
        for target, path in overlays.items():
            if state.commits.get(target) or state.block_jobs.get(target):
                raise libvirtError(VIR_ERR_BLOCK_COPY_ACTIVE, f"block copy still active: disk '{target}' already in active block job")
            if Path(path).exists() and Path(path).stat().st_size:
                raise libvirtError(
                    VIR_ERR_CONFIG_UNSUPPORTED, f"unsupported configuration: external snapshot file for disk {target} already exists"
                )
            if not Path(path).parent.is_dir():
                raise libvirtError(VIR_ERR_SYSTEM_ERROR, f"failed to create image file '{path}': No such file or directory")
        for target, path in overlays.items():
            base, style = state.chain(target)[0]
            if state.chain(target) == state.chain(target, inactive=True):
                state.defined.setdefault(target, []).insert(0, path)
            state.live.setdefault(target, []).insert(0, path)
            _run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", style, path)
            Path(path).chmod(0o600)
        return virDomainSnapshot("snapshot", text)

    def listAllSnapshots(self, flags: int = 0) -> list[virDomainSnapshot]:  # noqa: N802
        return [virDomainSnapshot(name, text) for name, text in self._enter("listAllSnapshots").snapshots.items()]

    def _with_disk(self, method: str, disk: str) -> DomainState:
        state = self._enter(method, writes=True, running=True)
        if disk not in state.disks:
            raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: disk '{disk}' not found in domain")
        return state

    def blockCommit(self, disk: str, base: str | None, top: str | None, bandwidth: int = 0, flags: int = 0) -> int:  # noqa: N802
        state = self._with_disk("blockCommit", disk)
        images = [path for path, _style in state.chain(disk)]
        if disk in state.commits:
            raise libvirtError(VIR_ERR_BLOCK_COPY_ACTIVE, f"block copy still active: disk '{disk}' already in active block job")
        if disk in state.block_jobs or state.job is not None and disk in state.job.targets:
            raise libvirtError(VIR_ERR_OPERATION_UNSUPPORTED, f"Operation not supported: disk '{disk}' already in active block job")
        if top is None and not flags & VIR_DOMAIN_BLOCK_COMMIT_ACTIVE:
            raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: commit of '{disk}' active layer requires active flag")
        shallow = flags & VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
        if len(images) < 2 or base is not None and base not in (images[1:2] if shallow else images[1:]):
            raise libvirtError(VIR_ERR_INVALID_ARG, "invalid argument: no such backing file in chain")
        assert base == images[1], "the fake commits into the next image only"
        state.commits[disk] = Commit(state.capacity, state.commit_turns)
        return 0

    def blockJobAbort(self, disk: str, flags: int = 0) -> int:  # noqa: N802
        state = self._with_disk("blockJobAbort", disk)
        commit = state.commits.get(disk)
        if commit is None:
            raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: disk {disk} does not have an active block job")
        if not flags & VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT:
            del state.commits[disk]
        elif commit.ready:
            state.pivot(disk)
        else:
            raise libvirtError(VIR_ERR_BLOCK_COPY_ACTIVE, f"block copy still active: block copy on '{disk}' not ready for pivot yet")
        return 0

    def hasManagedSaveImage(self, flags: int = 0) -> int:  # noqa: N802
        return int(bool(self._enter("hasManagedSaveImage").saved_xml))

    def managedSaveGetXMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        state = self._enter("managedSaveGetXMLDesc")
        if not state.saved_xml:
            raise libvirtError(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain does not have managed save image")
        return state.saved_xml

    def backupBegin(self, text: str, checkpoint: str | None, flags: int = 0) -> int:  # noqa: N802
        state = self._enter("backupBegin", writes=True)
        if not state.active:
            raise libvirtError(VIR_ERR_OPERATION_UNSUPPORTED, "Operation not supported: cannot perform disk backup for inactive domain")
        if state.job is not None:
            raise libvirtError(VIR_ERR_OPERATION_TIMEOUT, "Timed out during operation: cannot acquire state change lock")
        targets = _targets(text)
        unknown = [target for target in targets if target not in state.disks]
        if unknown:
            raise libvirtError(VIR_ERR_CONFIG_UNSUPPORTED, f"unsupported configuration: no disk named '{unknown[0]}'")
        _create(targets)
        state.job = Job(host.clock.wall(), targets)
        return 0

    def backupGetXMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        state = self._enter("backupGetXMLDesc")
        if state.job is None or state.job.operation != BACKUP:
            raise libvirtError(VIR_ERR_NO_DOMAIN_BACKUP, "Domain backup job id not found: no domain backup job present")
        root = ElementTree.Element("domainbackup", mode="push")
        disks = ElementTree.SubElement(root, "disks")
        for disk in state.disks:
            taken = disk in state.job.targets
            element = ElementTree.SubElement(disks, "disk", name=disk, backup="yes" if taken else "no")
            if taken:
                ElementTree.SubElement(element, "target", file=state.job.targets[disk])
        return ElementTree.tostring(root, encoding="unicode")

    def abortJob(self) -> int:  # noqa: N802
        state = self._enter("abortJob", writes=True, running=True)
        if state.job is None:
            raise libvirtError(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: no job is active on the domain")
        # QEMU is only asked; the end comes at the next wait for an event.
        state.job.aborted = True
        return 0

    def fsFreeze(self) -> int:  # noqa: N802
        state = self._agent("fsFreeze")
        if state.frozen or state.agent == "refuses":
            raise libvirtError(VIR_ERR_INTERNAL_ERROR, "internal error: unable to execute QEMU agent command 'guest-fsfreeze-freeze'")
        state.frozen = state.filesystems > 0
        if state.agent == "garbles":
            state.dropped = True
            raise libvirtError(VIR_ERR_INTERNAL_ERROR, "internal error: cannot parse json froze: lexical error: invalid char in json text.")
        if state.agent == "times out":
            raise libvirtError(VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: Guest agent not available for now")
        return state.filesystems

    def fsThaw(self) -> int:  # noqa: N802
        state = self._agent("fsThaw")
        if state.thaw_fails:
            raise libvirtError(VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: Guest agent not available for now")
        was_frozen, state.frozen = state.frozen, False
        return state.filesystems if was_frozen else 0

    def getTime(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
        state = self._agent("getTime")
        if state.frozen:
            raise libvirtError(VIR_ERR_INTERNAL_ERROR, "internal error: unable to execute QEMU agent command 'guest-get-time'")
        return {"seconds": round(host.clock.wall()), "nseconds": 0}

    def _agent(self, method: str) -> DomainState:
        state = self._enter(method, writes=True, running=True)
        if state.state != VIR_DOMAIN_RUNNING:
            raise libvirtError(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running")
        if state.agent == "absent":
            raise libvirtError(VIR_ERR_ARGUMENT_UNSUPPORTED, "argument unsupported: QEMU guest agent is not configured")
        if state.dropped:
            raise libvirtError(VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: not available due to an error")
        if state.agent == "disconnected":
            raise libvirtError(VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: QEMU guest agent is not connected")
        return state

    def agentSetResponseTimeout(self, timeout: int, flags: int = 0) -> int:  # noqa: N802
        state = self._enter("agentSetResponseTimeout", writes=True)
        if timeout < -2:
            raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: guest agent timeout '{timeout}' is less than the minimum '-2'")
        state.agent_timeout = timeout
        return 0

    def listAllCheckpoints(self) -> list[virDomainCheckpoint]:  # noqa: N802
        return [virDomainCheckpoint(name) for name in self._enter("listAllCheckpoints").checkpoints]

    def resume(self) -> int:
        state = self._enter("resume", writes=True, running=True)
        if state.state == VIR_DOMAIN_RUNNING:
            raise libvirtError(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is already running")
        state.state, state.reason = VIR_DOMAIN_RUNNING, 5
        return 0


@dataclass(frozen=True)
class virDomainCheckpoint:  # noqa: N801
    """A checkpoint has a name."""

    _name: str

    def getName(self) -> str:  # noqa: N802
        return self._name


@dataclass(frozen=True)
class virDomainSnapshot:  # noqa: N801
    """A snapshot has a name and XML."""

    _name: str
    _xml: str

    def getName(self) -> str:  # noqa: N802
        return self._name

    def getXMLDesc(self, flags: int = 0) -> str:  # noqa: N802
        return self._xml


class virConnect:  # noqa: N801
    """A connection, which lives until it is closed or libvirtd is restarted."""

    def __init__(self, readonly: bool) -> None:
        self.readonly = readonly
        self.alive = True
        self.closed = False
        host.connections.append(self)

    def enter(self, method: str) -> None:
        host.calls.append(method)
        host.at_each_call()
        if method in host.before:
            host.before[method]()
        if not self.alive:
            raise libvirtError(VIR_ERR_INTERNAL_ERROR, "internal error: client socket is closed")

    def getLibVersion(self) -> int:  # noqa: N802
        self.enter("getLibVersion")
        return host.libvirt

    def getVersion(self) -> int:  # noqa: N802
        self.enter("getVersion")
        return host.qemu

    def listAllDomains(self, flags: int = 0) -> list[virDomain]:  # noqa: N802
        self.enter("listAllDomains")
        return [virDomain(self, state) for state in host.domains.values()]

    def lookupByName(self, name: str) -> virDomain:  # noqa: N802
        return self._lookup("lookupByName", "name", name, lambda state: state.name == name)

    def lookupByUUIDString(self, uuid: str) -> virDomain:  # noqa: N802
        if len(uuid.replace("-", "")) != 32:
            raise libvirtError(VIR_ERR_INVALID_ARG, "Invalid UUID")
        return self._lookup("lookupByUUIDString", "uuid", uuid, lambda state: state.uuid == uuid.lower())

    def _lookup(self, method: str, kind: str, value: str, matches: Callable[[DomainState], bool]) -> virDomain:
        self.enter(method)
        for state in host.domains.values():
            if matches(state):
                return virDomain(self, state)
        raise libvirtError(VIR_ERR_NO_DOMAIN, f"Domain not found: no domain with matching {kind} '{value}'")

    def defineXML(self, text: str) -> virDomain:  # noqa: N802
        """Change the sources of a domain's definition; the fake looks at nothing else."""
        self.enter("defineXML")
        if self.readonly:
            raise libvirtError(VIR_ERR_OPERATION_DENIED, "operation forbidden: read only access prevents virDomainDefineXML")
        root = ElementTree.fromstring(text)
        state = host.domains[root.findtext("uuid", "")]
        for target, base in state.disks.items():
            [source] = [disk.find("source") for disk in root.iterfind("devices/disk") if disk.find("target").get("dev") == target]  # type: ignore[union-attr]
            path = "" if source is None else source.get("file", "")
            state.defined[target] = [] if path == base else [path]
        state.persistent = True
        return virDomain(self, state)

    def domainListGetStats(self, domains: list[virDomain], stats: int = 0, flags: int = 0) -> list[tuple[virDomain, dict[str, Any]]]:  # noqa: N802
        self.enter("domainListGetStats")
        found = []
        for domain in domains:
            state = host.domains.get(domain.UUIDString())
            if state is not None:
                blocks: dict[str, Any] = {"block.count": len(state.disks)}
                for index, target in enumerate(state.disks):
                    blocks.update({f"block.{index}.name": target, f"block.{index}.capacity": state.capacity})
                found.append((domain, blocks))
        return found

    def domainEventRegisterAny(self, domain: virDomain, event: int, callback: Callable[..., None], opaque: Any) -> int:  # noqa: N802
        self.enter("domainEventRegisterAny")
        return event

    def domainEventDeregisterAny(self, callback: int) -> None:  # noqa: N802
        self.enter("domainEventDeregisterAny")

    def isAlive(self) -> int:  # noqa: N802
        return int(self.alive)

    def setKeepAlive(self, interval: int, count: int) -> int:  # noqa: N802
        self.enter("setKeepAlive")
        return 0

    def close(self) -> int:
        self.alive, self.closed = False, True
        return 0


def _targets(text: str) -> dict[str, str]:
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise libvirtError(VIR_ERR_XML_DETAIL, f"(domain_backup): {error}") from error
    return {disk.get("name", ""): disk.find("target").get("file", "") for disk in root.iterfind("disks/disk")}  # type: ignore[union-attr]


def _create(targets: dict[str, str]) -> None:
    """Create the files of a push job, or none of them."""
    made: list[Path] = []
    for disk, path in targets.items():
        try:
            Path(path).touch(0o600, exist_ok=False)
        except OSError as error:
            for created in made:
                created.unlink()
            if isinstance(error, FileExistsError):
                raise libvirtError(VIR_ERR_INVALID_ARG, f"invalid argument: store '{path}' for backup of '{disk}' exists") from error
            raise libvirtError(VIR_ERR_SYSTEM_ERROR, f"failed to create image file '{path}': {error.strerror}") from error
        made.append(Path(path))


def open(uri: str) -> virConnect:  # noqa: A001
    """As libvirt.open."""
    return _open("open", readonly=False)


def openReadOnly(uri: str) -> virConnect:  # noqa: N802
    """As libvirt.openReadOnly."""
    return _open("openReadOnly", readonly=True)


def _open(method: str, *, readonly: bool) -> virConnect:
    host.calls.append(method)
    if not host.running:
        raise libvirtError(VIR_ERR_SYSTEM_ERROR, "Failed to connect socket to '/run/libvirt/libvirt-sock': Connection refused")
    return virConnect(readonly)


def registerErrorHandler(handler: Callable[..., None], context: Any) -> None:  # noqa: N802
    """The fake prints nothing anyhow."""


def virEventRegisterDefaultImpl() -> None:  # noqa: N802
    """There is only one event loop."""


def virEventRunDefaultImpl() -> None:  # noqa: N802
    """The event loop's thread never has anything to do: what happens comes when somebody waits for it."""
    threading.Event().wait()
