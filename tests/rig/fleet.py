# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet: a controller, hypervisors and a backup server, each in namespaces of its own, with a network and SSH between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from .guest import Guest
from .hypervisor import Hypervisor, Inside
from .shell import run
from .sshd import Sshd

PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
_REPOSITORY = Path(__file__).parents[2]
# Of no use outside the namespaces; the controller is .1, the server .2, the hypervisors follow.
_ADDRESS = "10.99.0.{}"


class Fleet:
    """While it is entered, `controller` reaches every host by SSH, and every hypervisor reaches the server.

    `ahead` tells of hypervisors, by their short names, for how many seconds their clocks are ahead: namespaces have none of their
    own, and so it is whatever SSH starts there that sees another time.
    """

    def __init__(self, name: str, hypervisors: int, root: Path | None = None, ahead: Mapping[str, int] | None = None) -> None:
        self._name = name
        self._root = root
        self.ahead = ahead or {}
        self._names = [f"{name}-hv{number}" for number in range(1, hypervisors + 1)]
        self._stack = ExitStack()
        self.hypervisors: list[Hypervisor] = []
        self.sshds: dict[str, Sshd] = {}

    def __enter__(self) -> Fleet:
        with ExitStack() as stack:
            self.controller = self._host(stack, f"{self._name}-controller")
            self.directory = self.controller.directory / "fleet"
            self.directory.mkdir()
            self._clock = self.directory / "clock.so"
            run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", self._clock, Path(__file__).with_name("clock.c")])
            self._inside(self.controller, "link", "add", "fleet", "type", "bridge")
            self._inside(self.controller, "address", "add", f"{_ADDRESS.format(1)}/24", "dev", "fleet")
            self._inside(self.controller, "link", "set", "fleet", "up")
            self.server = self._host(stack, f"{self._name}-server")
            self._connect(stack, self.server, 2)
            for name in self._names:
                hypervisor = self._host(stack, name, libvirtd=True)
                self.hypervisors.append(hypervisor)
                self._connect(stack, hypervisor, self._number(hypervisor))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def short_name(self, hypervisor: Hypervisor) -> str:
        """Its name in the inventory: hv1, hv2 and so on."""
        return hypervisor.name.removeprefix(f"{self._name}-")

    def cut_off(self, hypervisor: Hypervisor) -> None:
        """Take a hypervisor off the network: whoever speaks with it hears nothing more."""
        self._inside(self.controller, "link", "set", self._link(hypervisor), "down")

    def join(self, hypervisor: Hypervisor) -> None:
        """Put it on the network again."""
        self._inside(self.controller, "link", "set", self._link(hypervisor), "up")

    def migrate(self, guest: Guest, there: Hypervisor, *, undefine: bool = True) -> None:
        """Migrate a running guest to another hypervisor, where it is defined from then on; here too, shut off, unless it is undefined."""
        address = f"tcp://{self.sshds[there.name].address}"
        # To libvirt the disks are local files: it does not know that both have the same ones.
        flags = ["--live", "--unsafe", "--persistent", *["--undefinesource"] * undefine]
        run(["virsh", "--connect", guest.hypervisor.libvirt_uri_outside, "migrate", *flags, guest.uuid, there.libvirt_uri_outside, address])

    def boot(self, hypervisor: Hypervisor) -> None:
        """Bring a hypervisor up again that lost its power; its guests are off."""
        Hypervisor.up(hypervisor.name, self._root)
        self._connect(self._stack, hypervisor, self._number(hypervisor))

    def inventory(self, **variables: Any) -> Path:
        """The inventory of the hypervisors, in the group `hypervisors`, reached by SSH."""
        hosts = {}
        for hypervisor in self.hypervisors:
            sshd = self.sshds[hypervisor.name]
            # No time is lost on a host that is cut off: it is told after three questions without answer.
            options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={sshd.known_hosts}"]
            options += ["ServerAliveInterval=2", "ServerAliveCountMax=3", "ConnectTimeout=10"]
            hosts[self.short_name(hypervisor)] = {
                "ansible_host": sshd.address,
                "ansible_port": sshd.port,
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(sshd.key),
                "ansible_ssh_common_args": " ".join(f"-o {option}" for option in options),
                "ansible_ssh_pipelining": True,
                "ansible_python_interpreter": "/usr/bin/python3",
                **variables,
            }
        path = self.directory / "inventory.json"
        path.write_text(json.dumps({"hypervisors": {"hosts": hosts}}), encoding="utf-8")
        return path

    def start(
        self, book: str, *options: str, inventory: Path | None = None, forks: int = 20, program: Path = PLAYBOOK, **variables: Any
    ) -> Inside:
        """A playbook under way on the controller."""
        given = json.dumps({name: value for name, value in variables.items() if value is not None})
        return self.controller.popen(
            [program, "--inventory", inventory or self.inventory(), "--forks", str(forks), book, "--extra-vars", given, *options],
            env={
                **os.environ,
                "ANSIBLE_COLLECTIONS_PATH": str(_REPOSITORY / ".build/tree"),
                "ANSIBLE_SHOW_CUSTOM_STATS": "1",
                # The strategy of the controller's own configuration must not matter.
                "ANSIBLE_STRATEGY": "free",
                "ANSIBLE_HOME": str(self.directory / "ansible"),
                "LC_ALL": "C.UTF-8",
                # No moment may depend on the controller's time zone.
                "TZ": "America/New_York",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _number(self, hypervisor: Hypervisor) -> int:
        return self._names.index(hypervisor.name) + 3

    def _host(self, stack: ExitStack, name: str, *, libvirtd: bool = False) -> Hypervisor:
        host = Hypervisor(name, self._root)
        stack.callback(host.down)
        return Hypervisor.up(name, self._root, libvirtd=libvirtd)

    def _connect(self, stack: ExitStack, host: Hypervisor, number: int) -> None:
        """Join the network, and answer SSH there."""
        address = _ADDRESS.format(number)
        link = self._link(host)
        self._inside(self.controller, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid))
        self._inside(self.controller, "link", "set", link, "master", "fleet", "up")
        self._inside(host, "address", "add", f"{address}/24", "dev", "eth0")
        # The others remember it over a boot.
        self._inside(host, "link", "set", "eth0", "address", f"02:00:00:00:00:{number:02x}", "up")
        environment = {"LD_PRELOAD": str(self._clock), "CLOCK_AHEAD": str(self.ahead[link])} if link in self.ahead else None
        self.sshds[host.name] = stack.enter_context(Sshd(host.directory / "sshd", host, address, environment))

    def _link(self, host: Hypervisor) -> str:
        return host.name.removeprefix(f"{self._name}-")

    @staticmethod
    def _inside(host: Hypervisor, *arguments: str) -> None:
        run(["nsenter", "--target", str(host.pid), "--net", "ip", *arguments])
