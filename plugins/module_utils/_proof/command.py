# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A command in the guest of a proof, whose exit status says whether the guest is good. Its agent runs it (guest-exec)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

from .._base.errors import LiveBackupError
from .._base.text import foreign
from .._hypervisor.bindings import libvirt, libvirt_qemu
from .._hypervisor.connection import LibvirtFailure, explained
from .._hypervisor.numbers import VIR_ERR_AGENT_COMMAND_FAILED, VIR_ERR_INTERNAL_ERROR

# A slow guest may need so long to start a program. A start that is given up might come later, beside the next one.
_AGENT_SECONDS = 30
_SHOWN_CHARACTERS = 400


@dataclass
class GuestCommand:
    """A program with its arguments. `pid` is its number in the guest while it runs, and `problem` how it ended last, if not well.

    It runs again until it ends well: an agent answers before the services of its guest do.
    """

    words: list[str]
    pid: int | None = None
    problem: str = ""

    def succeeded(self, domain: libvirt.virDomain) -> bool:
        """Whether it has ended with status 0. It is started if it does not run."""
        if self.pid is None:
            path, *arguments = self.words
            started = self._ask(domain, "guest-exec", path=path, arg=arguments, **{"capture-output": True})
            self.pid = started.get("pid")
        if self.pid is None:
            return False
        status = self._ask(domain, "guest-exec-status", pid=self.pid)
        if not status.get("exited"):
            return False
        if status.get("exitcode") == 0:
            return True
        how, number = ("signal", status["signal"]) if "signal" in status else ("status", status.get("exitcode"))
        said = " ".join(filter(None, (_text(status.get(name)) for name in ("err-data", "out-data"))))
        self.pid, self.problem = (
            None,
            f"its command {self.words[0]!r} ended with {how} {foreign(str(number), 20)}{f': {said}' if said else ''}",
        )
        return False

    def _ask(self, domain: libvirt.virDomain, command: str, **arguments: Any) -> dict[str, Any]:
        """What the agent answers; nothing where it does not answer yet."""
        try:
            with explained("run a command in the guest"):
                asked = json.dumps({"execute": command, "arguments": arguments})
                answer = libvirt_qemu.qemuAgentCommand(domain, asked, _AGENT_SECONDS, 0)
            known = json.loads(answer)["return"]
        except LibvirtFailure as error:
            if error.number in (VIR_ERR_AGENT_COMMAND_FAILED, VIR_ERR_INTERNAL_ERROR) and domain.connect().isAlive() == 1:
                raise LiveBackupError(
                    f"The guest agent did not run {self.words[0]!r}: {error.message}. This says nothing about the set. "
                    "Is the command there, by its full path, and may the agent run commands (guest-exec)?",
                    code="proof_command_refused",
                ) from error
            return {}
        except (ValueError, KeyError, TypeError):
            return {}
        return known if isinstance(known, dict) else {}


def _text(data: object) -> str:
    """What a command printed, of which the guest may say anything."""
    try:
        return foreign(base64.b64decode(str(data or "")), _SHOWN_CHARACTERS)
    except ValueError:
        return ""
