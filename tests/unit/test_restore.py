# SPDX-License-Identifier: GPL-3.0-or-later
"""The last steps of a restore: what somebody has put in their way, and what is left where libvirt refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.virtops.live_backup.plugins.module_utils import _restore
from ansible_collections.virtops.live_backup.plugins.module_utils._errors import LiveBackupError

from .fake import libvirt

URI = "qemu:///system"


@pytest.fixture
def journal(tmp_path: Path, claims: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A restore over one disk and to one free place, which has written both beside their places."""
    libvirt.host = libvirt.Host()
    claims.mkdir()
    monkeypatch.setattr(_restore, "CLAIMS", claims)
    moves = []
    for name in ("old", "free"):
        paths = {"path": name, "temporary": f".{name}.n1.restoring", "aside": f".{name}.n1.replaced"}
        moves.append({**{key: str(tmp_path / path) for key, path in paths.items()}, "had_old": name == "old"})
        Path(moves[-1]["temporary"]).write_text(f"backup of {name}", encoding="utf-8")
    (tmp_path / "old").write_text("old", encoding="utf-8")
    known = {"name": "db1", "stamp": {"backup_id": "n1"}, "phase": "swap", "xml": "<domain/>", "start": False, "backup": "/backup"}
    return {**known, "fetched_into": "", "moves": moves, "devices": []}


def files(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir() if path.is_file()}


def test_what_somebody_has_put_at_a_free_place_meanwhile_is_not_touched(tmp_path: Path, journal: dict[str, Any]) -> None:
    (tmp_path / "free").write_text("mine", encoding="utf-8")
    with pytest.raises(LiveBackupError, match=f"^{tmp_path}/free was made by somebody else meanwhile. Move it away"):
        _restore._swap(journal)
    assert files(tmp_path)["free"] == "mine"
    (tmp_path / "free").rename(tmp_path / "moved")
    _restore._swap(journal)
    assert files(tmp_path) == {"old": "backup of old", ".old.n1.replaced": "old", "free": "backup of free", "moved": "mine"}


def refuse() -> None:
    raise libvirt.libvirtError(67, "unsupported configuration")


@pytest.mark.parametrize(("devices", "lost"), [([], ""), ([{"path": "/dev/vg/b"}], ", but /dev/vg/b, which cannot be put aside, holds")])
def test_libvirt_refuses_the_definition(tmp_path: Path, journal: dict[str, Any], devices: list[dict[str, str]], lost: str) -> None:
    """Whatever can be put back is; what cannot is named, with what libvirt said."""
    _restore._swap(journal)
    libvirt.host.before["defineXML"] = refuse
    with pytest.raises(LiveBackupError) as failed:
        _restore._complete(URI, {**journal, "devices": devices})
    words = f"define domain 'db1': unsupported configuration. The files are as they were{lost}"
    assert words in failed.value.msg and failed.value.libvirt_error
    assert files(tmp_path) == {"old": "old"} and not any((tmp_path / "claims").iterdir())
