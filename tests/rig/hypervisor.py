# SPDX-License-Identifier: GPL-3.0-or-later
"""A hypervisor: a set of namespaces with its own libvirtd, below one directory, the same inside and outside."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .guest import MIB, Guest
from .init import PRIVATE
from .shell import RigError, check as check_done, run, wait_until

_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")

_CONFIG = {
    "qemu.conf": 'security_driver = "none"\n',
    "virtlogd.conf": "max_size = 0\n",
    # Without a number of its own each hypervisor on this machine would report the machine's.
    "libvirtd.conf": 'host_uuid = "{uuid}"\nlog_outputs = "2:file:/var/log/libvirt/libvirtd.log"\n',
}


def rig_root() -> Path:
    """Where the rig keeps everything."""
    return Path(os.environ.get("LIVE_BACKUP_RIG", "/var/tmp/live-backup-rig"))


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


class Inside(subprocess.Popen[str]):
    """A command inside a hypervisor.

    ``pid`` is that of a process which only waits, as nsenter does: a process enters a PID namespace by being forked into it.
    The command itself is ``command_pid`` (as seen outside), and signals, ``kill`` and ``terminate`` included, go to it.
    The one that waits ends as the command ended, so ``returncode`` is the command's.
    """

    @property
    def command_pid(self) -> int:
        """The command's own process; it exists as soon as the one that waits has forked."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        wait_until(lambda: self.poll() is not None or children.read_text(encoding="ascii") != "", 30, "it to fork")
        if self.returncode is not None:
            raise ProcessLookupError("the command has ended")
        return int(children.read_text(encoding="ascii"))

    def send_signal(self, sig: int) -> None:
        """Signal the command, not the one that waits."""
        try:
            os.kill(self.command_pid, sig)
        except ProcessLookupError:
            pass


def _become(program: Callable[[], None], namespaces: Sequence[int], env: Mapping[str, str]) -> NoReturn:
    """In a fork of this process: run the function inside, and end as it ends."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    for namespace in namespaces:
        if setns(namespace, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    # The end of the last one tells subprocess that the process is under way.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    command = os.fork()
    if command:
        status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    status = 1
    try:
        os.environ.update(env)
        faulthandler.disable()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        program()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
        os._exit(status)


class Hypervisor:
    """One hypervisor. ``up`` makes or finds it, ``find`` only finds it, ``all`` lists what there is."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        if not _NAME.fullmatch(name) or name == "cache":
            raise RigError(f"{name!r} is no name for a hypervisor: use lower case letters, digits and hyphens")
        self.name = name
        self.root = root or rig_root()
        self.directory = self.root / name

    @classmethod
    def up(cls, name: str, root: Path | None = None, *, libvirtd: bool = True) -> Hypervisor:
        """Bring a hypervisor up. What is up stays as it is; after a power_off or a crash its domains are still defined.

        Without `libvirtd` it is just a host of its own.
        """
        if os.geteuid() != 0:
            raise RigError("the rig needs root: it makes namespaces, mounts and loop devices")
        hypervisor = cls(name, root)
        if not hypervisor.is_up():
            hypervisor.power_off()
            hypervisor._boot()
        if libvirtd:
            hypervisor.start_libvirtd()
        return hypervisor

    @classmethod
    def find(cls, name: str, root: Path | None = None) -> Hypervisor:
        """The hypervisor of this name, which must be up."""
        hypervisor = cls(name, root)
        if not hypervisor.is_up():
            raise RigError(f"hypervisor {name} is not up")
        return hypervisor

    @classmethod
    def all(cls, root: Path | None = None) -> list[Hypervisor]:
        """Every hypervisor below the root, up or not."""
        root = root or rig_root()
        return [cls(path.parent.name, root) for path in sorted(root.glob("*/host"))]

    # Life and death

    def is_up(self) -> bool:
        """Whether its first process lives and has finished the set-up."""
        return self._init_pid() is not None and (self.directory / "ready").exists()

    def power_off(self) -> None:
        """Kill everything in it at once, as if the power failed. Its directory stays, and ``up`` boots it again."""
        pid = self._init_pid()
        if pid is not None:
            # The kernel takes every process of a PID namespace down with its first one, and the mounts with the last.
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: start_time(pid) is None, 30, f"the processes of {self.name} to end")

    def down(self) -> None:
        """Power off and remove every trace; the cache stays."""
        self.power_off()
        for device in self._loop_devices():
            run(["losetup", "--detach", device])
        wait_until(lambda: not self._loop_devices(), 30, f"the loop devices of {self.name} to go")
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _boot(self) -> None:
        self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self.root.stat().st_uid != 0:
            raise RigError(f"{self.root} belongs to someone else")
        for path in PRIVATE:
            self._private(path).mkdir(parents=True, exist_ok=True)
        for name, text in _CONFIG.items():
            config = self._private("/etc/libvirt") / name
            if not config.exists():
                config.write_text(text.format(uuid=uuid.uuid4()), encoding="utf-8")
        log, ready = self.directory / "init.log", self.directory / "ready"
        ready.unlink(missing_ok=True)
        with log.open("wb") as output:
            subprocess.run(
                # setsid --fork: it outlives us, and is no child that we would have to reap.
                ["setsid", "--fork", "unshare", *_NAMESPACES, "--fork", "--kill-child"]
                + [sys.executable, str(Path(__file__).with_name("init.py")), self.name, str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )
        wait_until(lambda: ready.exists() or log.stat().st_size > 0, 30, f"{self.name} to set itself up")
        if not ready.exists():
            raise RigError(f"{self.name} cannot be set up: {log.read_text(errors='replace').strip().splitlines()[-1]}")

    def _private(self, path: str) -> Path:
        return self.directory / "host" / path.strip("/").replace("/", "-")

    def _init_pid(self) -> int | None:
        """Its first process as seen outside, if that is still the process which wrote the record."""
        try:
            pid, started = map(int, (self.directory / "init").read_text(encoding="ascii").split())
        except (FileNotFoundError, ValueError):
            return None
        return pid if start_time(pid) == started else None

    # Commands inside

    def popen(self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, **options: Any) -> Inside:
        """Start a command inside, as root; ``env`` adds to the environment. See Inside for its real process."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES, "--"]
        return Inside([*enter, *argv], env={**os.environ, **(env or {})}, text=True, **options)

    def fork(self, program: Callable[[], None], env: Mapping[str, str], **options: Any) -> Inside:
        """Start a function inside, as root, in a fork of this process: what is imported here need not be imported again."""
        kinds = ("uts", "ipc", "net", "pid", "mnt")
        namespaces = [os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
        try:
            become = partial(_become, program, namespaces, env)
            return Inside(["true"], preexec_fn=become, text=True, **options)
        finally:
            for namespace in namespaces:
                os.close(namespace)

    def run(
        self,
        argv: Sequence[str | Path],
        input: str | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; past the timeout it is killed and TimeoutExpired raised, as by subprocess."""
        pipe = subprocess.PIPE
        with self.popen(argv, env, stdin=pipe if input else subprocess.DEVNULL, stdout=pipe, stderr=pipe) as process:
            try:
                stdout, stderr = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
        if check:
            check_done(argv, done)
        return done

    def virsh(self, *arguments: str | Path, check: bool = True, timeout: float | None = 120) -> str:
        """What ``virsh`` prints for these arguments."""
        return self.run(["virsh", "--quiet", "--connect", "qemu:///system", *arguments], check=check, timeout=timeout).stdout

    @property
    def pid(self) -> int:
        """Its first process, as seen outside."""
        pid = self._init_pid()
        if pid is None:
            raise RigError(f"hypervisor {self.name} is not up")
        return pid

    def outside(self, path: Path | str) -> Path:
        """Where a path inside (one that is mounted there only) is seen from outside."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def contains(self, pid: int) -> bool:
        """Whether a process, numbered as seen outside, is one of this hypervisor."""
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")

    def outside_pid(self, inside_pid: int) -> int:
        """The number that a process inside has outside."""
        wanted = re.compile(rf"^NSpid:\t.*\t{inside_pid}$", re.MULTILINE)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                status = (process / "status").read_text(encoding="utf-8", errors="replace")
                if wanted.search(status) and self.contains(int(process.name)):
                    return int(process.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        raise RigError(f"no process {inside_pid} in {self.name}")

    @property
    def libvirt_uri_outside(self) -> str:
        """A URI for libvirt clients that run outside."""
        return f"qemu+unix:///system?socket={self.outside('/run/libvirt/libvirt-sock')}"

    # libvirtd

    def start_libvirtd(self) -> None:
        """Start virtlogd and libvirtd where they do not run, and wait until libvirtd answers and has its guests back."""
        for daemon in ("virtlogd", "libvirtd"):
            if self.daemon_pid(daemon) is None:
                self.run([daemon, "--daemon"])
        listing = ["virsh", "--connect", "qemu:///system", "list"]
        wait_until(lambda: self.run(listing, check=False).returncode == 0, 60, f"libvirtd of {self.name} to answer")
        # It lists its guests before it has spoken with their QEMUs, which it does under a job, and domjobinfo needs one too. Killed
        # meanwhile it may leave a question whose answer QEMU gives to the next libvirtd, which then destroys the guest.
        wait_until(self._has_its_guests, 120, f"libvirtd of {self.name} to have its guests back")

    def _has_its_guests(self) -> bool:
        virsh = ["virsh", "--quiet", "--connect", "qemu:///system"]
        running = self.virsh("list", "--uuid").split()
        asked = [self.run([*virsh, "domjobinfo", domain], check=False) for domain in running]
        # It was killed as a backup began: it has spoken with QEMU, and never knows more of that job.
        return all(one.returncode == 0 or "backup job data missing" in one.stderr for one in asked)

    def stop_libvirtd(self, sig: int = signal.SIGTERM) -> None:
        """Stop libvirtd (SIGKILL: let it crash); its guests go on."""
        pid = self.daemon_pid("libvirtd")
        if pid is not None:
            os.kill(pid, sig)
            # Until it is reaped, other threads of it may live and hold its files.
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), 60, f"libvirtd of {self.name} to end")

    def restart_libvirtd(self, sig: int = signal.SIGTERM) -> None:
        """Stop libvirtd and start it again."""
        self.stop_libvirtd(sig)
        self.start_libvirtd()

    def hang_libvirtd(self) -> None:
        """Let libvirtd live and do nothing, until ``wake_libvirtd``."""
        os.kill(self._require_libvirtd(), signal.SIGSTOP)

    def wake_libvirtd(self) -> None:
        """Let it go on."""
        os.kill(self._require_libvirtd(), signal.SIGCONT)

    def libvirtd_hangs(self) -> bool:
        """Whether it is stopped."""
        stat = Path(f"/proc/{self._require_libvirtd()}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] == "T"

    def _require_libvirtd(self) -> int:
        pid = self.daemon_pid("libvirtd")
        if pid is None:
            raise RigError(f"libvirtd of {self.name} does not run")
        return pid

    def daemon_pid(self, daemon: str) -> int | None:
        """The number, as seen outside, of libvirtd or virtlogd."""
        try:
            recorded = int(self.outside(f"/run/{daemon}.pid").read_text(encoding="ascii"))
            pid = self.outside_pid(recorded)
            comm = Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError, ValueError, RigError):
            return None
        return pid if comm == daemon and start_time(pid) is not None else None

    # Guests

    def guest(self, name: str, shape: str = "two-disks", rate: int | None = None, size: int = 64 * MIB, fill: int = 0) -> Guest:
        """Define a guest of this shape, start it, and wait until it has written.

        ``rate`` limits its writes a second; ``size`` is that of each disk, of which ``fill`` bytes hold data from the start.
        """
        guest = Guest.make(self, name, shape, rate, size, fill)
        if guest.shape.running:
            guest.start()
        return guest

    def guests(self) -> list[Guest]:
        """The guests that ``guest`` has made here."""
        return [Guest(self, path.parent) for path in sorted(self.directory.glob("guests/*/guest.json"))]

    # Storage

    def loop_device(self, size: int) -> Path:
        """A block device of this size, for a disk."""
        directory = self.directory / "devices"
        directory.mkdir(exist_ok=True)
        image = directory / f"{uuid.uuid4()}.img"
        with image.open("wb") as file:
            file.truncate(size)
        return Path(run(["losetup", "--find", "--show", image]).strip())

    def remove_loop_device(self, device: Path) -> None:
        """Detach a device of ours and remove what is behind it."""
        image = self._loop_devices()[device]
        run(["losetup", "--detach", device])
        image.unlink()

    def small_filesystem(self, name: str, size: int) -> Path:
        """Mount a fresh ext4 of this size inside, where QEMU sees it too; ``outside`` tells where it is seen from outside."""
        # A device of its own instead of `mount -o loop`: that would vanish by itself some time after its mount.
        device = self.loop_device(size)
        run(["mkfs.ext4", "-q", "-m", "0", device])
        mount_point = self.directory / "filesystems" / name
        mount_point.mkdir(parents=True)
        self.run(["mount", device, mount_point])
        return mount_point

    def remove_filesystem(self, mount_point: Path) -> None:
        """Unmount and remove a small_filesystem."""
        device = self.run(["findmnt", "--noheadings", "--output", "SOURCE", mount_point]).stdout.strip()
        self.run(["umount", mount_point])
        mount_point.rmdir()
        self.remove_loop_device(Path(device))

    def _loop_devices(self) -> dict[Path, Path]:
        """The loop devices over files below our directory, and those files."""
        listed = run(["losetup", "--list", "--json", "--output", "NAME,BACK-FILE"])
        devices = json.loads(listed)["loopdevices"] if listed else []
        pairs = [(Path(device["name"]), Path(device["back-file"])) for device in devices if device["back-file"]]
        return {device: image for device, image in pairs if self.directory in image.parents}
