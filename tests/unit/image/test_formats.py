# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's tools are told every format: a guest chooses how its raw disk begins, so a format that is guessed is the guest's word."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.clock import Clock
from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._claim.overlays import Overlay
from ansible_collections.virtops.live_backup.plugins.module_utils._image import qemu_img as _qemu_img
from ansible_collections.virtops.live_backup.plugins.module_utils._image.key import Key
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2 import image_node, read_header
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qcow2_writer import Backing
from ansible_collections.virtops.live_backup.plugins.module_utils._image.qemu_nbd import served_for_writing
from ansible_collections.virtops.live_backup.plugins.module_utils._overlay import way_back as _commit
from ansible_collections.virtops.live_backup.plugins.module_utils._proof.scratch import Scratch

from ..support.backup import Backup
from ..support.raising import raises_code

PLUGINS = Path(__file__).parents[3] / "plugins"
TOOLS = {"qemu-img", "qemu-nbd", "qemu-io", "qemu-storage-daemon", "qemu-system-x86_64", "nbdkit", "nbdcopy"}
BACKING_FORMAT = bytes.fromhex("e2792aca")
SECRET = b"what only root reads on this host"
RECORDER = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([{tool!r}, *sys.argv[1:]]) + "\\n")
os.execv({real!r}, [{real!r}, *sys.argv[1:]])
"""
# What each command must be told beside what it reads; a JSON pseudo-file tells it itself.
FORMATS = {
    **{verb: ["-f"] for verb in ("info", "check", "map", "measure", "commit", "bitmap")},
    "convert": ["-f", "-O"],
    "compare": ["-f", "-F"],
    "create": ["-f"],
    "rebase": ["-f"],
}


class Recorder:
    """The commands that were run."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "commands"
        for tool in ("qemu-img", "qemu-nbd"):
            script = directory / tool
            script.write_text(
                RECORDER.format(python=sys.executable, log=str(self.log), tool=tool, real=shutil.which(tool)), encoding="utf-8"
            )
            script.chmod(0o755)

    def commands(self) -> list[list[str]]:
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def recorder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    directory = tmp_path_factory.mktemp("recorder")
    recorder = Recorder(directory)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return recorder


def nodes(value: Any) -> list[dict[str, Any]]:
    """The nodes of QEMU's block layer in a JSON description."""
    return [value, *(node for key in ("file", "backing") if value.get(key) for node in nodes(value[key]))]


def guesses(command: list[str]) -> str:
    """What a command would guess; empty where it guesses nothing."""
    tool, *arguments = command
    if arguments[-1].startswith("json:"):
        described = nodes(json.loads(arguments[-1].removeprefix("json:")))
        # A raw image has nothing below it.
        known = [node.get("driver") == "raw" or node.get("driver") and "backing" in node for node in described if "file" in node]
        return "" if all(known) else str(command)
    told = {option: arguments[index + 1] for index, option in enumerate(arguments[:-1])}
    # No backing file has no format.
    wanted = ["--format"] if tool == "qemu-nbd" else [*FORMATS[arguments[0]], *(["-F"] if told.get("-b") else [])]
    return "" if all(told.get(option, "-").isalnum() for option in wanted) else str(command)


def image(directory: Path, name: str, image_format: str = "qcow2", backing: Path | None = None) -> Path:
    path = directory / name
    below = ["-b", backing, "-F", "raw" if backing.suffix == ".raw" else "qcow2"] if backing else []
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, *below, path, *([] if backing else ["1M"])], check=True)
    return path


def without_format(overlay: Path) -> Path:
    """The same overlay, whose header does not name the format of its backing file, as older tools made them."""
    content = overlay.read_bytes()
    assert content.count(BACKING_FORMAT) == 1
    # An extension that nobody knows is passed over.
    overlay.write_bytes(content.replace(BACKING_FORMAT, b"\xe2\x79\x2a\xcb"))
    return overlay


def with_bitmap(path: Path) -> Path:
    subprocess.run(["qemu-img", "bitmap", "--add", "-f", "qcow2", path, "b"], check=True)
    return path


def overlay_of(directory: Path) -> Overlay:
    base = image(directory, "base.raw", "raw")
    return Overlay("vda", str(base), "raw", "file", str(image(directory, "overlay.qcow2", backing=base)))


def _serve(directory: Path) -> None:
    socket = directory / "s"
    scratch = Scratch(directory, 1 << 30, Clock())
    with scratch.served(image_node([image(directory, "served.raw", "raw")], "raw"), 1 << 20, socket, None):
        # The server is ended when it was started: its arguments are all that is wanted.
        deadline = time.monotonic() + 30
        while '"qemu-nbd"' not in Path(os.environ["PATH"].partition(":")[0], "commands").read_text(encoding="utf-8"):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _serve_for_writing(directory: Path) -> None:
    Q.create_encrypted(directory / "written", 1 << 20, None, KEY)
    with served_for_writing(directory / "written", KEY, lambda: None) as disk:
        disk.write(0, memoryview(b"x" * 512))
        disk.flush()


def _flatten(directory: Path) -> None:
    Q.create_above(directory / "above.qcow2", 1 << 20, Backing(str(image(directory, "base.raw", "raw")), "raw"))
    Q.flatten(directory / "above.qcow2")


KEY = Key(b"a key that is long enough to be one")
Q = _qemu_img
# Every function that runs a tool, by its name, and how it is called.
CALLS: dict[str, Callable[[Path], object]] = {
    "image_info": lambda at: Q.image_info(image(at, "a"), "qcow2"),
    "backing_chain": lambda at: Q.backing_chain(overlay_of(at).path, "qcow2"),
    "check_image": lambda at: Q.check_image({"driver": "file", "filename": str(image(at, "a"))}),
    "holds_data": lambda at: Q.holds_data(overlay_of(at).path),
    "measure": lambda at: Q.measure(overlay_of(at).path, "qcow2", "raw"),
    "convert": lambda at: Q.convert(Path(overlay_of(at).path), "qcow2", at / "copy", "raw"),
    "commit": lambda at: Q.commit(overlay_of(at).path, lambda: None, 1),
    "are_identical": lambda at: Q.are_identical(overlay_of(at).path, "qcow2", at / "base.raw", "raw"),
    "rebase_unsafe": lambda at: Q.rebase_unsafe(Path(overlay_of(at).path), Backing("../elsewhere", "qcow2")),
    "remove_bitmap": lambda at: Q.remove_bitmap(with_bitmap(image(at, "a")), "b"),
    "create_overlay": _serve,
    "create_above": _flatten,
    "flatten": _flatten,
    "_require_header": lambda at: _commit._require_header(overlay_of(at)),
    "served": _serve,
    "_run_encrypting": _serve_for_writing,
    "convert, encrypted": lambda at: Q.convert(image(at, "a"), "qcow2", at / "copy", "qcow2", Q.How(key=KEY)),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_command_is_told_its_formats(name: str, tmp_path: Path, recorder: Recorder) -> None:
    CALLS[name](tmp_path)
    # Those that made the images are told theirs, too.
    recorded = [command for command in recorder.commands() if "--add" not in command]
    commands = [command for command in recorded if command[1] != "create" or "--object" in command]
    assert commands and not [guess for guess in map(guesses, commands) if guess]


def test_the_check_above_finds_a_guess() -> None:
    """It would be of no use if it found none."""
    for command in (
        ["qemu-img", "info", "--output", "json", "/a"],
        ["qemu-img", "convert", "-f", "raw", "/a", "/b"],
        ["qemu-img", "compare", "-f", "raw", "/a", "/b"],
        ["qemu-img", "info", "-f", "", "/a"],
        ["qemu-img", "create", "-f", "qcow2", "-b", "/a", "/b"],
        ["qemu-img", "check", 'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "/a"}}'],
        ["qemu-img", "check", 'json:{"backing": null, "file": {"driver": "file", "filename": "/a"}}'],
        ["qemu-nbd", "--persistent", "/a"],
    ):
        assert guesses(command), command
    with pytest.raises(KeyError):
        guesses(["qemu-img", "snapshot", "/a"])


def functions_with(path: Path, wanted: Callable[[ast.AST], bool]) -> set[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {(path.stem, one.name) for one in functions if any(wanted(node) for node in ast.walk(one))}
    rest = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return inside | ({(path.stem, "")} if any(wanted(node) for one in rest for node in ast.walk(one)) else set())


def test_no_other_code_runs_qemus_tools() -> None:
    """Whoever adds a call adds it to CALLS, or a test fails."""
    found = set()
    for path in PLUGINS.rglob("*.py"):
        found |= functions_with(path, lambda node: isinstance(node, ast.Constant) and node.value in TOOLS)
    assert found == {("qemu_img", "_command"), ("qemu_nbd", "require_qemu_nbd"), ("qemu_nbd", "start_server")}
    runners = functions_with(
        Path(Q.__file__),
        lambda node: isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_run", "_command"),
    )
    assert {name for _module, name in runners} - {"_run"} <= set(CALLS)


@pytest.mark.parametrize("name", ["backing_chain", "measure", "convert", "commit", "are_identical"])
def test_the_format_of_a_backing_file_is_not_guessed(name: str, tmp_path: Path, recorder: Recorder) -> None:
    """Where QEMU would follow a header that names none, it is not run."""
    overlay = Path(overlay_of(tmp_path).path)
    without_format(overlay)
    (tmp_path / "top").mkdir()
    top = image(tmp_path / "top", "overlay.qcow2", backing=overlay)
    recorder.log.unlink()
    calls: dict[str, Callable[[], object]] = {
        "backing_chain": lambda: Q.backing_chain(top, "qcow2"),
        "measure": lambda: Q.measure(top, "qcow2", "raw"),
        "convert": lambda: Q.convert(top, "qcow2", tmp_path / "copy", "raw"),
        "commit": lambda: Q.commit(top, lambda: None, 1),
        "are_identical": lambda: Q.are_identical(top, "qcow2", overlay, "qcow2"),
    }
    with raises_code("format_unknown"):
        calls[name]()
    assert {command[1] for command in recorder.commands()} == {"info"} and not (tmp_path / "copy").exists()


def test_a_chain_that_is_a_loop_ends(tmp_path: Path) -> None:
    first, second = image(tmp_path, "first"), image(tmp_path, "second")
    for one, other in ((first, second), (second, first)):
        subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, one], check=True)
    with pytest.raises(LiveBackupError, match="form a loop"):
        Q.backing_chain(first, "qcow2")


@pytest.fixture
def disguised(tmp_path: Path) -> Path:
    """A guest's raw disk that begins like a qcow2 image on a file of the host."""
    secret = tmp_path / "secret.raw"
    secret.write_bytes(SECRET * 30_000)
    header = image(tmp_path, "header", backing=secret).read_bytes()
    disk = tmp_path / "disk.img"
    disk.write_bytes(header + bytes((8 << 20) - len(header)))
    return disk


@pytest.mark.parametrize("image_format", ["keep", "raw", "qcow2"])
def test_a_raw_disk_that_looks_like_an_image_is_copied_by_its_bytes(image_format: str, disguised: Path, backup: Backup) -> None:
    copy = backup.target / "copy"
    copied = backup.copy(domain=None, src=str(disguised), src_format="raw", dest=str(copy), format=image_format)
    assert copied["changed"] and SECRET not in copy.read_bytes()
    known = "qcow2" if image_format == "qcow2" else "raw"
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", known, disguised, copy], check=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs another file. Set src_format to qcow2"),
        ({"format": "qcow2"}, "Name the format of"),
        ({"format": "raw"}, "Name the format of"),
    ],
)
def test_without_its_format_nothing_is_read_into_it(options: dict[str, Any], words: str, disguised: Path, backup: Backup) -> None:
    with pytest.raises(LiveBackupError, match=words):
        backup.copy(domain=None, src=str(disguised), dest=str(backup.target / "copy"), **options)
    assert backup.tree() == set()


def test_without_its_format_a_whole_image_is_copied_by_its_bytes(tmp_path: Path, backup: Backup) -> None:
    source, copy = image(tmp_path, "a"), backup.target / "copy"
    backup.copy(domain=None, src=str(source), dest=str(copy))
    assert copy.read_bytes() == source.read_bytes()
    # Another format is another copy.
    assert backup.copy(domain=None, src=str(source), src_format="qcow2", dest=str(copy))["changed"]
    assert not backup.copy(domain=None, src=str(source), src_format="qcow2", dest=str(copy))["changed"]


def test_an_image_on_others_is_flattened_when_its_format_is_named(tmp_path: Path, backup: Backup) -> None:
    overlay, copy = overlay_of(tmp_path), backup.target / "copy"
    Path(overlay.base).write_bytes(b"base" * (1 << 18))
    backup.copy(domain=None, src=overlay.path, src_format="qcow2", dest=str(copy))
    header = read_header(copy.read_bytes())
    assert header is not None and header.self_contained and Q.are_identical(copy, "qcow2", overlay.base, "raw")
