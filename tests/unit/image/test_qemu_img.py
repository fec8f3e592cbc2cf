# SPDX-License-Identifier: GPL-3.0-or-later
"""What qemu-img converts is nobody else's, and goes to the disk while it is written."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import Interrupted, LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image import qemu_img as _qemu_img
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_img import How, convert


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(b"data" * (1 << 20))
    return path


@pytest.mark.parametrize("there", [False, True])
def test_nobody_else_can_read_what_is_converted(there: bool, image: Path, tmp_path: Path) -> None:
    """Nor what is written over the file that a run that died has left."""
    copy = tmp_path / "copy.qcow2"
    if there:
        copy.write_bytes(b"something" * 1000)
        copy.chmod(0o644)
    convert(image, "raw", copy, "qcow2")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    subprocess.run(["qemu-img", "compare", "-q", image, copy], check=True)


def test_a_link_is_not_followed(image: Path, tmp_path: Path) -> None:
    victim, copy = tmp_path / "victim", tmp_path / "copy.qcow2"
    victim.write_text("mine", encoding="utf-8")
    copy.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        convert(image, "raw", copy, "qcow2")
    assert victim.read_text(encoding="utf-8") == "mine"


def test_a_device_that_is_gone_is_not_made_as_a_file(image: Path, tmp_path: Path) -> None:
    """As after a restart of the host before its volumes are there: what is written below /dev would be lost."""
    with pytest.raises(FileNotFoundError):
        convert(image, "raw", tmp_path / "volume", "raw", How(into=True))
    assert not (tmp_path / "volume").exists()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "".join(f"qemu-img: error while writing at byte {number << 21}: No space left on device\\n" for number in range(8)),
            "error while writing at byte 0: No space left on device. Free some disk space there. ",
        ),
        ("qemu-img: one\\nqemu-img: two\\n", "one two."),
        ("qemu-img: \\033[31mred\\n\\377", "red \\xff."),
        ("", "it ended with status 1."),
    ],
)
def test_what_it_says_is_one_line_without_repetitions(
    said: str, shown: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "qemu-img").write_text(f"#!/bin/sh\nprintf '{said}' >&2\nexit 1\n", encoding="utf-8")
    (tmp_path / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LiveBackupError) as failed:
        convert(image, "raw", tmp_path / "copy.qcow2", "qcow2")
    assert failed.value.msg.startswith(f"qemu-img convert of {tmp_path}/copy.qcow2 failed: {shown}")


def test_the_disk_writes_while_qemu_img_does(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qemu-img that ends when what it has written was given to the disk."""
    copy, given = tmp_path / "copy.raw", tmp_path / "given"
    (tmp_path / "qemu-img").write_text(f"#!/bin/sh\nwhile [ ! -e '{given}' ]; do sleep 0.01; done\n", encoding="utf-8")
    (tmp_path / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def write_out(descriptor: int, offset: int, length: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), copy.stat()) and (offset, length) == (0, 0)
        given.touch()

    monkeypatch.setattr(_qemu_img, "write_out", write_out)
    convert(image, "raw", copy, "raw", How(forget=True))
    assert given.exists()


def overlay_on(image: Path, tmp_path: Path) -> Path:
    overlay = tmp_path / "overlay"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay], check=True)
    return overlay


def test_somebody_hears_that_a_commit_is_at_work(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that ends when that was heard twice."""
    heard, overlay = tmp_path / "heard", overlay_on(image, tmp_path)
    real = shutil.which("qemu-img")
    script = f"while [ ! -s '{heard}' ]; do sleep 0.01; done"
    (tmp_path / "qemu-img").write_text(f'#!/bin/sh\n[ $1 = commit ] || exec {real} "$@"\n{script}\n', encoding="utf-8")
    (tmp_path / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def hear() -> None:
        if heard.exists():
            heard.write_text("twice", encoding="utf-8")
        heard.touch()

    _qemu_img.commit(overlay, hear, 0.02)
    assert heard.read_text(encoding="utf-8") == "twice"


def test_an_error_or_a_signal_ends_qemu_img_too(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for: it may have hours to go."""
    overlay, pid = overlay_on(image, tmp_path), tmp_path / "pid"
    real = shutil.which("qemu-img")
    (tmp_path / "qemu-img").write_text(
        f"#!/bin/sh\n[ $1 = commit ] || exec {real} \"$@\"\necho $$ >'{pid}'\nexec sleep 600\n", encoding="utf-8"
    )
    (tmp_path / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def interrupt() -> None:
        if pid.exists() and pid.read_text(encoding="utf-8").endswith("\n"):
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        _qemu_img.commit(overlay, interrupt, 0.02)
    assert not Path(f"/proc/{pid.read_text(encoding='utf-8').strip()}").exists()


def test_a_source_that_a_qemu_writes_to(image: Path, tmp_path: Path) -> None:
    """It is converted only where somebody else sees to it that it stands still, and then no lock of it is taken."""
    with subprocess.Popen(["qemu-io", "-f", "raw", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdin.write("length\n")
        writer.stdin.flush()
        assert "MiB" in writer.stdout.readline()
        with pytest.raises(LiveBackupError, match="lock"):
            convert(image, "raw", tmp_path / "refused.qcow2", "qcow2")
        convert(image, "raw", tmp_path / "copy.qcow2", "qcow2", How(in_use=True))
        writer.stdin.close()
    subprocess.run(["qemu-img", "compare", "-q", image, tmp_path / "copy.qcow2"], check=True)
