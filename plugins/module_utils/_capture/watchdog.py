# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Start a program that outlives the module that starts it."""

from __future__ import annotations

import inspect
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import IO, cast

from .._base.errors import LiveBackupError
from .._claim.claim import Claim
from .._claim.places import lock_file
from . import pull_watchdog

_ARMING_SECONDS = 20


class Outliving:
    """A process that runs a module's text. Its first line of output says that it is ready."""

    def __init__(self, program: ModuleType, *arguments: str) -> None:
        command = [sys.executable, "-c", inspect.getsource(program), *arguments]
        # A session of its own outlives the SSH connection, and a scope of its own the end of the login session.
        if Path("/run/systemd/system").is_dir() and (systemd_run := shutil.which("systemd-run")):
            command = [systemd_run, "--scope", "--quiet", "--collect", "--", *command]
        # It lives longer than this block, and maybe than this process.
        self.process = subprocess.Popen(  # pylint: disable=consider-using-with
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def armed(self) -> bool:
        """Whether it stands ready. One that does not is ended."""
        output = cast(IO[bytes], self.process.stdout)
        ready, _out, _err = select.select([output], [], [], _ARMING_SECONDS)
        if not ready or output.readline() != b"armed\n":
            self.process.kill()
            self.process.wait()
            return False
        return True


def arm_pull_watchdog(claim: Claim) -> None:
    """Have the job of a pull ended when no step of the claim goes on."""
    watchdog = Outliving(pull_watchdog, claim.uri, claim.uuid, str(claim.file()), str(lock_file(claim.uuid)), claim.token)
    if not watchdog.armed():
        raise LiveBackupError("The watchdog that would end the backup job did not start. Nothing was started.", code="watchdog_failed")
