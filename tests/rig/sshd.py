# SPDX-License-Identifier: GPL-3.0-or-later
"""An sshd of one's own, on the loopback interface or a fleet's network, which lets one key in and touches nothing of the machine's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .shell import family, run, wait_until

if TYPE_CHECKING:
    from .hypervisor import Hypervisor


class Sshd:
    """While it is entered it answers, inside a hypervisor if one is given; `key`, `known_hosts` and `port` are what a client needs.

    Whatever it starts has the `environment`.
    """

    def __init__(
        self,
        directory: Path,
        hypervisor: Hypervisor | None = None,
        address: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._hypervisor = hypervisor
        self._environment = environment or {}
        self.address = address
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.key = directory / "key"
        self.known_hosts = directory / "known_hosts"
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    def __enter__(self) -> Sshd:
        host_key = self.directory / "host_key"
        for path in (self.key, host_key):
            path.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path])
        self.known_hosts.write_text(f"[{self.address}]:{self.port} {host_key.with_suffix('.pub').read_text()}", encoding="utf-8")
        configuration = self.directory / "sshd_config"
        lines = [
            f"Port {self.port}",
            f"ListenAddress {self.address}",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {self.key}.pub",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin yes",
            "MaxStartups 100",
            *([" ".join(["SetEnv", *(f"{name}={value}" for name, value in self._environment.items())])] if self._environment else []),
        ]
        configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # It wants this to be there, and keeps nothing in it.
        Path("/run/sshd").mkdir(exist_ok=True)
        command = ["/usr/sbin/sshd", "-D", "-f", str(configuration), "-E", str(self.directory / "log")]
        if self._hypervisor is not None:
            self._hypervisor.run(["sh", "-c", "mkdir -p /run/sshd && ip link set lo up"])
        self._process = subprocess.Popen(command) if self._hypervisor is None else self._hypervisor.popen(command)
        wait_until(self._answers, 20, "sshd to answer")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it has started."""
        # The youngest first: nsenter stops itself when it sees its child stopped, and would do so after it was told to go on.
        for pid in reversed(family(self._process.pid)):
            os.kill(pid, number)

    @property
    def url(self) -> str:
        """What comes before a path."""
        return f"ssh://{self.address}:{self.port}"

    @property
    def options(self) -> dict[str, object]:
        """The options of a module that lead here."""
        return {"ssh_key": str(self.key), "ssh_options": [f"UserKnownHostsFile={self.known_hosts}"]}

    @property
    def command(self) -> list[str]:
        """The ssh of other programs."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", f"UserKnownHostsFile={self.known_hosts}"]
        return ["ssh", "-p", str(self.port), "-i", str(self.key), *[word for option in options for word in ("-o", option)]]

    @property
    def pid(self) -> int:
        """Its process; that of each connection is below it."""
        return self._process.pid

    def cut(self) -> None:
        """Break every connection."""
        for child in self._children():
            os.kill(child, signal.SIGKILL)

    def _children(self) -> list[int]:
        listener = self._process.pid if self._hypervisor is None else family(self._process.pid)[1]
        done = subprocess.run(["pgrep", "--parent", str(listener)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.directory / "log").read_text()
        if self._hypervisor is not None:
            return self._hypervisor.run(["bash", "-c", f": </dev/tcp/{self.address}/{self.port}"], check=False).returncode == 0
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            time.sleep(0.02)
            return False
        return True
