# SPDX-License-Identifier: GPL-3.0-or-later
"""The near end and the far end of a copy over ssh, with a pipe in ssh's stead."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils._base.errors import LiveBackupError
from ansible_collections.virtops.live_backup.plugins.module_utils._image.data import Pace
from ansible_collections.virtops.live_backup.plugins.module_utils._image.digest import CHUNK, OpenImage, image_digest
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh import (
    client as _ssh_copy,
    program as _far_program,
    server as _far_end,
)
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.address import parse
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.client import FarEnd
from ansible_collections.virtops.live_backup.plugins.module_utils._target.ssh.server import FRAME, MARK

from ..support.clock import FakeClock


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(5 * CHUNK + 77)
        for offset in (0, CHUNK + 65536, 4 * CHUNK - 5):
            file.seek(offset)
            file.write(b"data" * 3000)
    return path


def copy(image: Path, path: Path, source_free: Callable[[], None] = lambda: None) -> dict[str, Any]:
    clock = FakeClock()
    descriptor = os.open(image, os.O_RDONLY)
    try:
        with FarEnd(parse(f"ssh://far{path}", None, [])) as far_end:
            result = far_end.copy(OpenImage(descriptor), 0o640, Pace(clock), clock, source_free)
            far_end.note({"copied": result})
            assert json.loads(far_end.look()["record"])["copied"] == result
            return result
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("url", "host", "path", "words"),
    [
        ("ssh://far/a", "far", "/a", []),
        ("ssh://me@far:22/a b/%20?#", "far", "/a b/%20?#", ["-p", "22", "-l", "me"]),
        ("ssh://[fe80::1%eth0]:9/a", "fe80::1%eth0", "/a", ["-p", "9"]),
        ("ssh://far/a:b@c", "far", "/a:b@c", []),
    ],
)
def test_addresses(url: str, host: str, path: str, words: list[str]) -> None:
    address = parse(url, None, [])
    assert (address.host, address.path) == (host, path)
    assert address.arguments[-2 - len(words) :] == [*words, "--", host]


@pytest.mark.parametrize(
    "url", ["ssh://", "ssh:///a", "ssh://far", "ssh://far:x/a", "ssh://-x/a", "ssh://-l@far/a", "ssh://far/", "ssh://a b/c"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(LiveBackupError, match="is not of the form"):
        parse(url, None, [])


def test_options_come_before_the_defaults_and_after_what_is_fixed(tmp_path: Path) -> None:
    (tmp_path / "key").touch()
    words = parse("ssh://far/a", str(tmp_path / "key"), ["ConnectTimeout=3"]).arguments
    assert words.index("StrictHostKeyChecking=yes") < words.index("ConnectTimeout=3") < words.index("ConnectTimeout=30")
    assert words[words.index("-i") + 1] == str(tmp_path / "key")


@pytest.mark.parametrize(
    "option",
    [
        "StrictHostKeyChecking=no",
        "stricthostkeychecking accept-new",
        " BatchMode=no",
        "ForwardAgent=yes",
        "PermitLocalCommand yes",
        "controlPath=/x",
    ],
)
def test_options_that_protect_are_not_the_users(option: str) -> None:
    with pytest.raises(LiveBackupError, match="must not set"):
        parse("ssh://far/a", None, [option])


def test_the_server_gets_nothing_of_this_host_whatever_the_users_own_file_says(tmp_path: Path) -> None:
    config = tmp_path / "config"
    wanted = "ForwardAgent yes\nForwardX11 yes\nPermitLocalCommand yes\nLocalCommand id\nTunnel yes\n"
    wanted += "RemoteForward 1 far:2\nLocalForward 3 far:4\n"
    config.write_text(f"{wanted}ControlMaster auto\nControlPath /tmp/x\nNoHostAuthenticationForLocalhost yes\nRemoteCommand id\n")
    done = subprocess.run(
        ["ssh", "-F", config, "-G", *parse("ssh://far/a", None, []).arguments], capture_output=True, text=True, check=True
    )
    used = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    for name in ("forwardagent", "forwardx11", "permitlocalcommand", "nohostauthenticationforlocalhost", "tunnel", "controlmaster"):
        assert used[name] in ("no", "false"), name
    assert used["clearallforwardings"] == "yes" and used["stricthostkeychecking"] == "true"
    assert not {"controlpath", "remotecommand", "remoteforward", "localforward"} & {name for name, value in used.items() if value != "none"}


def answering(ssh: Callable[[str], None], tmp_path: Path, *answers: Any) -> None:
    """A server that says so and listens to nothing."""
    said = tmp_path / "answers"
    said.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in (MARK, *answers)))
    ssh(f"cat {said}; cat >/dev/null")


HANGS = {
    "its login shell": "exec sleep 60",
    "the program": f"echo {MARK}; exec sleep 60",
    "after a sign of work": f"echo {MARK}; echo; echo; exec sleep 60",
    "in a line": f"echo {MARK}; printf x; exec sleep 60",
}


@pytest.mark.parametrize("what", HANGS)
def test_a_server_that_hangs_is_given_up(ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(_ssh_copy, "SILENCE_SECONDS", 0.3)
    ssh(HANGS[what])
    with (
        pytest.raises(LiveBackupError, match="^far was given up: it has not answered for 0.3 s"),
        FarEnd(parse("ssh://far/a", None, [])) as far_end,
    ):
        far_end.call("list_sets", {"target": "/a"})


def test_a_server_that_stops_to_read_is_given_up(ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    monkeypatch.setattr(_ssh_copy, "SILENCE_SECONDS", 0.3)
    with image.open("r+b") as file:
        file.write(os.urandom(1 << 20))
    ssh(f"echo {MARK}; exec sleep 60")
    with pytest.raises(LiveBackupError, match="^far was given up: it has not answered for 0.3 s"):
        copy(image, Path("/a"))


@pytest.mark.parametrize("script", ["", f"echo {MARK}; "])
def test_a_line_without_an_end_is_not_kept(ssh: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(_ssh_copy, "_MOST_BYTES", 1 << 20)
    ssh(script + "tr '\\0' x </dev/zero")
    with pytest.raises(LiveBackupError, match="a line has no end"), FarEnd(parse("ssh://far/a", None, [])) as far_end:
        far_end.look()


def test_signs_of_work_are_no_answer(ssh: Callable[[str], None], tmp_path: Path) -> None:
    answering(ssh, tmp_path, "", "", {"returned": {"free": 5}}, "", {"returned": {"free": 6}})
    with FarEnd(parse("ssh://far/a", None, [])) as far_end:
        assert [far_end.call("space_for", {})["free"] for _time in range(2)] == [5, 6]


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "x",
        '{"error": 5}',
        '{"error": null}',
        '{"error": "a", "errno": "b"}',
        '{"error": "a", "file": []}',
        "{}",
        '{"error": "a", "code": null}',
        '{"error": "a", "code": "set in use"}',
        '{"error": "a", "code": "set_in_use\\n"}',
        json.dumps({"error": "a", "code": "x" * 61}),
    ],
)
def test_what_is_no_answer(ssh: Callable[[str], None], tmp_path: Path, answer: str) -> None:
    answering(ssh, tmp_path, answer)
    with pytest.raises(LiveBackupError, match="sent an unexpected answer"), FarEnd(parse("ssh://far/a", None, [])) as far_end:
        far_end.call("space_for", {})


def test_what_a_server_says_is_one_line(ssh: Callable[[str], None], tmp_path: Path) -> None:
    answering(ssh, tmp_path, {"error": "\x1b[2Jno\nTASK [all is well]" + "x" * 9999, "code": "set_in_use"})
    with pytest.raises(LiveBackupError) as told, FarEnd(parse("ssh://far/a", None, [])) as far_end:
        far_end.look()
    assert told.value.code == "set_in_use"
    assert told.value.msg.startswith("On far: no TASK [all is well]xx") and len(told.value.msg) < 1100


def test_only_work_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a disk uses no processor."""
    used, over = iter([1.0, 1.5, 1.5, 1.5005, 2.0, 2.0]), threading.Event()
    said: list[str] = []

    def process_time() -> float:
        value = next(used, None)
        if value is None:
            over.set()
        return value or 2.0

    monkeypatch.setattr(_far_end, "_SIGN_SECONDS", 0.001)
    monkeypatch.setattr(_far_end, "say", said.append)
    monkeypatch.setattr(_far_end.time, "process_time", process_time)
    monkeypatch.setattr(_far_end.time, "thread_time", lambda: 0.0)
    with _far_end.showing_work():
        assert over.wait(30)
    assert said == ["", ""]


def test_a_copy(ssh: object, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    result = copy(image, target / "copy")
    assert (target / "copy").read_bytes() == image.read_bytes()
    assert result["digest"] == image_digest(target / "copy") and result["size"] == 5 * CHUNK + 77
    assert (target / "copy").stat().st_mode & 0o777 == 0o640 and result["allocated"] < CHUNK
    assert sorted(path.name for path in target.iterdir()) == [".copy.sparse_copy.json", "copy"]


def test_a_source_that_changed_leaves_nothing(ssh: object, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()

    def changed() -> None:
        raise LiveBackupError("changed", code="source_changed")

    with pytest.raises(LiveBackupError, match="^changed$"):
        copy(image, target / "copy", changed)
    assert list(target.iterdir()) == []


def test_a_shell_that_greets(ssh: Callable[[str], None], image: Path, tmp_path: Path) -> None:
    ssh('echo "{}"; echo welcome; eval "$command"')
    assert copy(image, tmp_path / "copy")["method"] == "ssh"


@pytest.mark.parametrize(
    ("script", "message", "code"),
    [
        ("echo 'Host key verification failed.' >&2; exit 255", "The host key of far is not known here", "host_key_unknown"),
        ("echo '@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @' >&2; exit 255", "has changed", "host_key_changed"),
        ("echo 'me@far: Permission denied (publickey).' >&2; exit 255", "far rejected the SSH login", "ssh_login_refused"),
        ("echo 'ssh: connect to host far port 22: Connection timed out' >&2; exit 255", "far cannot be reached", "ssh_unreachable"),
        ("echo 'Something else' >&2; exit 255", "ssh to far failed: Something else", "ssh_failed"),
        ("echo 'sh: python3: not found' >&2; exit 127", "There is no python3 on far", "server_python_missing"),
        ("exit 3", "The program at far ended with status 3", "ssh_failed"),
        ("yes hello", "prints too much", "server_answer_invalid"),
        (f"head -c 99 >/dev/null; echo {MARK}; exit 255", "The connection to far was lost", "ssh_connection_lost"),
        (f"head -c 99 >/dev/null; echo {MARK}; exit 137", "ended with status 137", "ssh_failed"),
    ],
)
def test_what_ssh_says_in_words(ssh: Callable[[str], None], script: str, message: str, code: str) -> None:
    ssh(script)
    with pytest.raises(LiveBackupError, match=message) as told, FarEnd(parse("ssh://far/a", None, [])) as far_end:
        far_end.look()
    assert told.value.code == code


def test_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ssh_copy.shutil, "which", lambda _name: None)
    with pytest.raises(LiveBackupError, match="ssh is not installed"), FarEnd(parse("ssh://far/a", None, [])):
        pass


class Receiver:
    """The far end's program, spoken to by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = zlib.compress(_far_program.program())
        begin = f"import sys, zlib; exec(zlib.decompress(sys.stdin.buffer.read({len(text)})))"
        self.process = subprocess.Popen([sys.executable, "-I", "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def talk(self, *said: bytes) -> list[Any]:
        """Everything it answers to this, until it ends."""
        out, _err = self.process.communicate(b"".join(said), timeout=30)
        lines = out.decode().splitlines()
        assert lines[0] == MARK
        return [json.loads(line) for line in lines[1:]]

    def receive(self, size: int) -> bytes:
        return json.dumps({"do": "receive", "path": str(self.path), "size": size, "mode": 0o600}).encode() + b"\n"


def frame(offset: int, data: bytes) -> bytes:
    return FRAME.pack(offset, len(data)) + data


def closing(content: bytes) -> bytes:
    chunk = hashlib.sha256(content).digest()
    return frame(0, b"") + json.dumps({"digest": "sha256-64k:" + hashlib.sha256(chunk).hexdigest()}).encode() + b"\n"


@pytest.fixture
def receiver(tmp_path: Path) -> Receiver:
    (tmp_path / "target").mkdir()
    return Receiver(tmp_path / "target/copy")


def test_frames_in_any_order(receiver: Receiver) -> None:
    [answer] = receiver.talk(receiver.receive(6), frame(4, b"ef"), frame(0, b"ab"), closing(b"ab\0\0ef"))
    assert receiver.path.read_bytes() == b"ab\0\0ef" and answer["dest"][2] == 6


def test_another_digest_leaves_nothing(receiver: Receiver) -> None:
    [answer] = receiver.talk(receiver.receive(6), frame(0, b"abcdef"), closing(b"abcdeg"))
    assert answer["code"] == "copy_damaged" and "what was written has digest" in answer["error"]
    assert list(receiver.path.parent.iterdir()) == []


WHOLE = [frame(0, b"abcdef"), closing(b"abcdef")]


@pytest.mark.parametrize("end", [0, 5, FRAME.size, FRAME.size + 3, FRAME.size + 6, 2 * FRAME.size + 6, -1])
def test_an_input_that_ends_early_leaves_nothing(receiver: Receiver, end: int) -> None:
    receiver.path.write_bytes(b"before")
    assert receiver.talk(receiver.receive(6), b"".join(WHOLE)[:end]) == []
    assert receiver.path.read_bytes() == b"before" and len(list(receiver.path.parent.iterdir())) == 1


def test_terminated_it_leaves_nothing(receiver: Receiver) -> None:
    assert receiver.process.stdin is not None and receiver.process.stdout is not None
    receiver.process.stdin.write(receiver.receive(6) + WHOLE[0])
    receiver.process.stdin.flush()
    while not list(receiver.path.parent.iterdir()):
        assert receiver.process.poll() is None
    receiver.process.terminate()
    receiver.process.communicate()
    assert receiver.process.returncode == 128 + 15 and list(receiver.path.parent.iterdir()) == []


def test_what_is_there(receiver: Receiver) -> None:
    ask = json.dumps({"do": "look", "path": str(receiver.path)}).encode() + b"\n"
    nothing, *_none = receiver.talk(ask)
    assert nothing["dest"] is None and nothing["record"] is None and nothing["writable"] and nothing["free"] > 0
    receiver.path.symlink_to("elsewhere")
    assert not Receiver(receiver.path).talk(ask)[0]["is_file"]
    gone = json.dumps({"do": "look", "path": "/no/where"}).encode() + b"\n"
    assert Receiver(receiver.path).talk(gone) == [
        {"directory": False, "writable": False, "free": 0, "dest": None, "is_file": True, "mode": None, "record": None}
    ]


def test_a_directory_that_is_gone(receiver: Receiver) -> None:
    receiver.path.parent.rmdir()
    [answer] = receiver.talk(receiver.receive(6), *WHOLE)
    assert answer["errno"] == 2 and answer["file"] == str(receiver.path.parent)


def test_it_needs_nothing_but_the_standard_library_of_python_3_9() -> None:
    """The oldest Python that managed hosts may have."""
    texts: dict[str, str] = {}
    _far_program._add(_far_end.__name__, texts)
    assert len(texts) > 10
    for text in texts.values():
        tree = ast.parse(text, feature_version=(3, 9))
        imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
