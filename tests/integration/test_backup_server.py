# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets on a backup server, over a real sshd: who reads, who removes and who sends do not hinder or harm one another."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base import pipes as _pipes
from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.list_sets import set_info
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.prune import prune
from ansible_collections.virtops.live_backup.plugins.module_utils._operations.verify import verify_set
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.catalogue import list_sets
from ansible_collections.virtops.live_backup.plugins.module_utils._sets.schema import RULES
from ansible_collections.virtops.live_backup.plugins.module_utils._target.address import TargetAddress
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import client as _ssh_copy, program as _far_program
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.client import FarEnd
from ansible_collections.virtops.live_backup.plugins.module_utils._target.target import open_target
from tests.rig.shell import family, run
from tests.rig.sshd import Sshd
from tests.unit.support.sets import INSTANT, make_set, replace_images


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def params(sshd: Sshd, target: Path, **more: Any) -> dict[str, Any]:
    return {"target": f"{sshd.url}{target}", **sshd.options, **more}


def at(sshd: Sshd, target: Path) -> TargetAddress:
    return TargetAddress(f"{sshd.url}{target}", **sshd.options)


def test_what_is_being_fetched_is_not_removed(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault, here = tmp_path / "vault", tmp_path / "here"
    here.mkdir()
    old = make_set(vault, "old")
    make_set(vault, "new", instant=INSTANT.replace("2021", "2022"))
    keep = params(sshd, vault, domains=[], keep_ids=[], own_rules=True, **{f"keep_{rule}": 1 if rule == "last" else None for rule in RULES})
    begun, go_on = Event(), Event()
    fetch = FarEnd.fetch

    def wait_and_fetch(far_end: FarEnd, path: str, destination: Path) -> None:
        begun.set()
        assert go_on.wait(60)
        fetch(far_end, path, destination)

    def restore() -> dict[str, bytes]:
        with open_target(at(sshd, vault)).reading("db1", "old", here) as found:
            return {path.name: path.read_bytes() for path in Path(found["path"]).iterdir()}

    monkeypatch.setattr(FarEnd, "fetch", wait_and_fetch)
    with ThreadPoolExecutor(1) as pool:
        restoring = pool.submit(restore)
        try:
            assert begun.wait(60)
            with pytest.raises(LiveBackupError, match=f"On 127.0.0.1: A set in {vault / 'db1'} is being read") as refused:
                prune(keep, False, Clock())
            assert refused.value.facts["removed"] == [] and not refused.value.facts["changed"]
        finally:
            go_on.set()
        assert restoring.result() == {path.name: path.read_bytes() for path in old.iterdir()}
    assert list(here.iterdir()) == []
    assert [one["backup_id"] for one in prune(keep, False, Clock())["removed"]] == ["old"]
    assert not old.exists()


def test_what_the_server_cannot_read_is_told_as_it_is(sshd: Sshd, tmp_path: Path) -> None:
    one = make_set(tmp_path / "vault")
    (one / "RESTORE.md").unlink()
    fetching = open_target(at(sshd, tmp_path / "vault")).reading("db1", "night-1", tmp_path)
    with pytest.raises(LiveBackupError, match=f"^On 127.0.0.1: .* refused on '{one}/RESTORE.md': No such file"), fetching:
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["vault"]


def image(path: Path) -> None:
    """What fills all of its tables."""
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "1G"])


def check(sshd: Sshd, target: Path) -> dict[str, Any]:
    asked = {"domain": "db1", "backup_id": "night-1", "level": "check", "console_pattern": None, "timeout": 1}
    asked |= {"scratch_dir": "/var/tmp", "scratch_size": 1 << 30, "max_memory": None, "max_vcpus": 4, "every": 0}
    return verify_set(params(sshd, target, **asked), False, Clock())


def test_what_only_qemu_sees_is_found_on_the_server(sshd: Sshd, tmp_path: Path) -> None:
    """Every digest is right: the image was bad when it was backed up."""
    one = make_set(tmp_path / "vault")
    replace_images(one, image)
    assert check(sshd, tmp_path / "vault")["verified"]

    def damaged(path: Path) -> None:
        image(path)
        if path.name == "vdb.qcow2":
            with path.open("r+b") as file:
                file.seek(2 * 65536)
                file.write(bytes(16))

    replace_images(one, damaged)
    with pytest.raises(LiveBackupError, match="is not good: vdb.qcow2: qemu-img check finds it damaged: ERROR cluster 0 refcount=0"):
        check(sshd, tmp_path / "vault")
    [found] = list_sets(str(tmp_path / "vault"))["sets"]
    assert found["status"] == "good" and not found["good"] and found["proof"]["findings"][0].startswith("vdb.qcow2: qemu-img")


def test_a_server_that_goes_while_qemu_reads_is_told_as_it_is(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_images(make_set(tmp_path / "vault"), image)
    read = FarEnd.read

    def cut_and_read(far_end: FarEnd, path: str, offset: int, length: int) -> bytearray:
        if offset:
            sshd.cut()
        return read(far_end, path, offset, length)

    monkeypatch.setattr(FarEnd, "read", cut_and_read)
    with pytest.raises(LiveBackupError, match="^The connection to 127.0.0.1 was lost"):
        check(sshd, tmp_path / "vault")
    assert list_sets(str(tmp_path / "vault"))["sets"][0]["proof"] is None


def test_a_server_that_hangs_is_given_up(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sshd answers as ever; the program there does nothing."""
    make_set(tmp_path / "vault")
    ask = FarEnd._ask
    stopped: list[int] = []

    def stop_and_ask(far_end: FarEnd, do: str, **arguments: Any) -> dict[str, Any]:
        for pid in family(sshd.pid):
            if b"zlib.decompress" in Path(f"/proc/{pid}/cmdline").read_bytes():
                stopped.append(pid)
                os.kill(pid, signal.SIGSTOP)
        far_end._pipes._patience = 1.0
        return ask(far_end, do, **arguments)

    monkeypatch.setattr(FarEnd, "_ask", stop_and_ask)
    try:
        with pytest.raises(LiveBackupError, match="^127.0.0.1 was given up: it has not answered for "):
            set_info(params(sshd, tmp_path / "vault", domains=[]), False, Clock())
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert stopped


def test_a_long_proof_shows_that_it_goes_on(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that works says so before it answers."""
    replace_images(make_set(tmp_path / "vault"), lambda path: path.write_bytes(os.urandom(1 << 20) * 128))
    program = _far_program.program().replace(b"_SIGN_SECONDS = 10.0", b"_SIGN_SECONDS = 0.01")
    monkeypatch.setattr(_ssh_copy, "program", lambda: program)
    signs = []
    line = _pipes.Pipes.line

    def counted(pipes: _pipes.Pipes, most: int) -> bytes:
        said = line(pipes, most)
        signs.append(said)
        return said

    monkeypatch.setattr(_pipes.Pipes, "line", counted)
    found = open_target(at(sshd, tmp_path / "vault")).check("db1", "night-1", deep=False)
    assert found["findings"] == [] and b"" in signs
