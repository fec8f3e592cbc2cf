# SPDX-License-Identifier: GPL-3.0-or-later
"""What libguestfs needs here: a kernel for its appliance, which a machine of ours may not have, and no KVM."""

from __future__ import annotations

from pathlib import Path

from .image import kernel_tree
from .shell import run


def appliance_environment(root: Path) -> dict[str, str]:
    """The variables with which libguestfs uses the guests' kernel. It keeps the appliance in the rig's cache."""
    cache = root / "cache"
    tree = kernel_tree(cache)
    [modules] = (tree / "lib/modules").iterdir()
    if not (modules / "modules.dep").exists():
        run(["depmod", "--basedir", tree, modules.name])
    # supermin looks there, whatever it is told.
    Path("/lib/modules").mkdir(exist_ok=True)
    place = cache / "appliance"
    place.mkdir(exist_ok=True)
    return {
        "SUPERMIN_KERNEL": str(tree / f"boot/vmlinuz-{modules.name}"),
        "SUPERMIN_MODULES": str(modules),
        "LIBGUESTFS_CACHEDIR": str(place),
        "LIBGUESTFS_BACKEND": "direct",
        "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg",
    }
