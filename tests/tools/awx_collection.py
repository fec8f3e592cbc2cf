# SPDX-License-Identifier: GPL-3.0-or-later
"""awx_collection.py VERSION TREE: put the collection awx.awx there, out of the package "ansible" of that version."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = "ansible_collections/awx/awx"


def main(version: str, tree: Path) -> None:
    with tempfile.TemporaryDirectory() as download:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            + ["--dest", download, f"ansible=={version}"],
            check=True,
        )
        [wheel] = Path(download).glob("*.whl")
        shutil.rmtree(tree / FOLDER, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree, [name for name in archive.namelist() if name.startswith(f"{FOLDER}/")])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
