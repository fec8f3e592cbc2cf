# Copyright (c) 2026, the virtops.live_backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look for what would trouble the backups of a hypervisor, before they begin."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._base.clock import Clock
from .._base.records import known
from .._base.text import one_line, size_text
from .._capture.methods import qemu_writer
from .._capture.options import BeginOptions
from .._hypervisor.connection import FAILURES, connect, explain, find_domain
from .._hypervisor.processes import daemon_pid
from .._hypervisor.reach import probe_target
from .._hypervisor.signs import denials, mounted_apart
from .._target.ssh.address import SCHEME
from .._target.target import Target
from .begin import plan_backup
from .list_domains import domain_info
from .target import target_of

Finding = dict[str, str]
AUDIT_LOG = Path("/var/log/audit/audit.log")
# Reaching the target is what is tried; no set is of this domain.
_NO_DOMAIN = "00000000-0000-0000-0000-000000000000"


def check_host(params: dict[str, Any], check_mode: bool, clock: Clock) -> dict[str, Any]:
    """The findings, those that would fail a backup first. In check mode no probe file is written at the target."""
    info = domain_info({**params, "unmatched": "tell", "prefer": _preferred(params)}, check_mode, clock)
    info["domains"] = [domain for domain in info["domains"] if domain["wanted"]]
    found = [*_clock(params), *_unmatched(info), *_claims(info), *_restores(info), *_agents(info, params)]
    if params["target"]:
        found += _target(info, params, check_mode, clock)
    return {"changed": False, "findings": sorted(found, key=lambda one: one["severity"] != "error"), "host": info["host"]}


def _finding(check: str, severity: str, subject: str, msg: str) -> Finding:
    return {"check": check, "severity": severity, "subject": subject, "msg": one_line(msg)}


def _preferred(params: dict[str, Any]) -> str:
    """As the role backup has it: what cannot be staged is sent directly."""
    return "pull" if (params["target"] or "").startswith(SCHEME) and not params["staging_dir"] else "push"


def _clock(params: dict[str, Any]) -> Iterator[Finding]:
    clock, most_apart = params["clock"], params["max_skew"]
    ahead, exact = (clock["offset_ms"] / 1000, clock["error_ms"] / 1000) if clock else (0.0, 0.0)
    if abs(ahead) - exact > most_apart:
        yield _finding(
            "clock",
            "error",
            "",
            f"The clock is {abs(ahead):.3f} s {'ahead of' if ahead > 0 else 'behind'} the controller's, give or take {exact:.3f} s; "
            f"{most_apart:g} s are allowed. Instants of different hypervisors cannot be compared. Set up chrony or another NTP client.",
        )
    elif exact > most_apart:
        words = f"The clock cannot be compared with the controller's to {most_apart:g} s, only to {exact:.3f} s: its answers take too long."
        yield _finding("clock", "warning", "", words)
    if _command_output("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() == "no":
        yield _finding(
            "clock",
            "warning",
            "",
            "The clock is not synchronized, as timedatectl says. Set up chrony (with rtcsync) or another NTP client.",
        )


def _unmatched(info: dict[str, Any]) -> Iterator[Finding]:
    for pattern in info["unmatched"]:
        yield _finding(
            "domains", "warning", pattern, f"This hypervisor has no domain {pattern!r}. That is fine if another hypervisor has it."
        )


def _claims(info: dict[str, Any]) -> Iterator[Finding]:
    for claim in info["claims"]:
        if not claim["alive"]:
            yield _finding(
                "claim",
                "warning",
                claim["domain"],
                f"{claim['msg']}. The next backup repairs it, and so does the playbook virtops.live_backup.recover.",
            )


def _restores(info: dict[str, Any]) -> Iterator[Finding]:
    for restore in info["restores"]:
        if not restore["alive"] and not restore["owns_domain"]:
            words = f"{restore['msg']}. Until it is, no set of the domain is removed. Run the playbook virtops.live_backup.recover."
            yield _finding("restore", "warning", restore["name"], words)
        elif not restore["alive"]:
            yield _finding(
                "restore",
                "error",
                restore["name"],
                f"Do not start domain {restore['name']!r}: {restore['msg']}. Until it is, the domain is not backed up. Run the playbook "
                "virtops.live_backup.recover, or the restore again.",
            )


def _agents(info: dict[str, Any], params: dict[str, Any]) -> Iterator[Finding]:
    """With quiesce require the plan of each domain fails, and with never nobody minds."""
    for domain in info["domains"]:
        if params["quiesce"] == "auto" and domain["state"] == "running" and domain["agent"] != "connected":
            what = "has no channel for a guest agent" if domain["agent"] == "absent" else "has a guest agent that is not connected"
            yield _finding(
                "agent",
                "warning",
                domain["name"],
                f"Domain {domain['name']!r} {what}, so its backups are crash-consistent. Install and start qemu-guest-agent in the guest.",
            )


def _denials(params: dict[str, Any], clock: Clock) -> Iterator[Finding]:
    since = clock.wall() - 3600 * params["denial_hours"]
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", f"--since=@{since:.0f}", "--grep=DENIED|avc: +denied"]
    lines = _command_output(*command, "_TRANSPORT=kernel", "+", "_TRANSPORT=audit").splitlines()
    if AUDIT_LOG.exists():
        lines += AUDIT_LOG.read_text(encoding="utf-8", errors="replace").splitlines()
    named = (params[name] or "" for name in ("target", "overlay_dir", "staging_dir"))
    directories = [str(Path(one).resolve()) for one in named if one.startswith("/")]
    for denial in denials(lines, since, directories):
        yield _finding(
            "denials",
            # Only a whole path tells that it is about the backups.
            "error" if denial.path.startswith("/") else "warning",
            denial.path,
            f"{denial.system} has denied QEMU or libvirt {denial.path} within {params['denial_hours']} h: {denial.line}",
        )


def _command_output(*command: str) -> str:
    """What a command prints; nothing where it is not installed, or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout


def _target(info: dict[str, Any], params: dict[str, Any], check_mode: bool, clock: Clock) -> Iterator[Finding]:
    """What is wrong with the target, and with backups to it."""
    try:
        target = target_of(params)
        # A staging directory may be set for all hypervisors, whatever their target is.
        params = {**params, "staging_dir": None if target.is_here else params["staging_dir"]}
        directory = target.made_in(params["staging_dir"])
        # No domain: whether QEMU sees it is asked for each.
        probe_target(directory, "", None, write=False)
    except FAILURES as error:
        yield _target_finding(params, error)
        return
    # A target that hangs would hold these, too.
    yield from _denials(params, clock)
    yield from _mounts(directory)
    try:
        target.sets([_NO_DOMAIN])
    except FAILURES as error:
        # Each plan would wait for a server that does not answer, and tell the same.
        yield _target_finding(params, error)
    else:
        yield from _plans(target, info, params, write=not check_mode)


def _target_finding(params: dict[str, Any], error: BaseException) -> Finding:
    return _finding("target", "error", params["target"], explain(error, "examine the target").msg)


def _mounts(directory: Path) -> Iterator[Finding]:
    daemon = daemon_pid()
    seen = Path(f"/proc/{daemon}/root{directory}")
    if daemon is not None and not (seen.exists() and os.path.samestat(seen.stat(), directory.stat())):
        yield _finding(
            "mounts",
            "error",
            str(directory),
            f"libvirt's daemon does not see {directory} as it is mounted here, nor will domains that it starts. Restart the daemon. "
            "If it has its own mount namespace, mount before it starts.",
        )
    apart = mounted_apart(Path("/proc/self/mountinfo").read_text(encoding="utf-8"), str(directory.resolve()))
    if apart:
        yield _finding(
            "mounts",
            "warning",
            str(directory),
            f"New mounts on {apart} do not reach domains that run already, since the mount above it is private. "
            "Run `mount --make-rshared /` before domains are started.",
        )


def _plans(target: Target, info: dict[str, Any], params: dict[str, Any], *, write: bool) -> Iterator[Finding]:
    """What a backup of each domain would fail with, and whether all fit side by side."""
    needed, free = 0, []
    for domain in info["domains"]:
        if domain["claim"] is not None or domain["restore"] is not None:
            continue
        if domain["error"]:
            yield _finding("backup", "error", domain["name"], domain["error"])
            continue
        excluded = params["exclude_disks"].get(domain["name"])
        named = {"domain": domain["uuid"], "backup_id": f"check-{secrets.token_hex(8)}", "exclude_disks": excluded}
        options = BeginOptions(**known(BeginOptions, {**params, **named, "method": domain["method"]}))
        try:
            with connect(options.uri, readonly=True) as connection:
                plan = plan_backup(find_domain(connection, options.domain), target, options, write=False)
            probe_target(target.made_in(options.staging_dir), domain["name"], qemu_writer(plan), write=write)
        except FAILURES as error:
            yield _finding("backup", "error", domain["name"], explain(error, f"plan a backup of domain {domain['name']!r}").msg)
        else:
            needed += plan.bytes_needed
            free.append(plan.bytes_free)
    if free and needed > min(free):
        yield _finding(
            "space",
            "error",
            params["target"],
            f"Each domain alone fits, all together may not: they need up to {size_text(needed)}, and {size_text(min(free))} are free.",
        )
