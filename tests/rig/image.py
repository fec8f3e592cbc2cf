# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests' kernel and initramfs, built once into the cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .shell import RigError, run

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "writer.c", _HERE / "guest-init", _HERE / "guest-shutdown", Path(__file__))
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console")


@dataclass(frozen=True)
class Image:
    """What a guest boots, and the writer compiled for it."""

    kernel: Path
    initramfs: Path
    writer: Path


def guest_image(root: Path) -> Image:
    """The image of the sources as they are now; built if the cache has none."""
    cache = root / "cache"
    cache.mkdir(mode=0o755, parents=True, exist_ok=True)
    version = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]
    built = cache / f"image-{version}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            scratch = Path(tempfile.mkdtemp(dir=cache))
            _build(kernel_tree(cache), scratch)
            scratch.chmod(0o755)
            scratch.rename(built)
    return Image(built / "vmlinuz", built / "initramfs", built / "writer")


def compile_writer(writer: Path) -> None:
    """Compile the writer; static, as the guest has no libraries to speak of."""
    run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-pthread", "-o", writer, _HERE / "writer.c"])


def kernel_tree(cache: Path) -> Path:
    """Debian's cloud kernel, unpacked; not installed, since the machine's own boot is no business of ours."""
    tree = cache / "kernel"
    if not tree.exists():
        depends = run(["apt-cache", "depends", "linux-image-cloud-amd64"])
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise RigError("apt knows no linux-image-cloud-amd64; run apt-get update")
        scratch = Path(tempfile.mkdtemp(dir=cache))
        run(["apt-get", "download", "-o", "APT::Sandbox::User=root", package[1]], cwd=scratch)
        run(["dpkg", "--extract", next(scratch.glob("*.deb")), scratch / "tree"])
        (scratch / "tree").rename(tree)
        shutil.rmtree(scratch)
    return tree


def _build(kernel_tree: Path, image: Path) -> None:
    initramfs = image / "root"
    for directory in ("bin", "dev", "mnt", "proc", "run", "sbin", "sys", "tmp", "var"):
        (initramfs / directory).mkdir(parents=True)
    (initramfs / "var/run").symlink_to("/run")

    compile_writer(image / "writer")
    shutil.copy(image / "writer", initramfs / "bin/writer")
    busybox = shutil.which("busybox")
    agent = shutil.which("qemu-ga", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if busybox is None or agent is None:
        raise RigError("busybox or qemu-ga is missing; tests/rig/packages.txt lists what to install")
    shutil.copy(busybox, initramfs / "bin/busybox")
    for library in re.findall(r"/\S+", run(["ldd", agent]).replace("=>", "")):
        (initramfs / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, initramfs / library[1:])
    shutil.copy(agent, initramfs / "bin/qemu-ga")
    _add_script("guest-init", initramfs / "init")
    _add_script("guest-shutdown", initramfs / "sbin/shutdown")

    shutil.copy(next(kernel_tree.glob("boot/vmlinuz-*")), image / "vmlinuz")
    all_modules = {path.stem: path for path in kernel_tree.glob("lib/modules/*/kernel/**/*.ko")}
    version = next(kernel_tree.glob("lib/modules/*")).name
    wanted = list(_MODULES)
    for name in wanted:
        module = all_modules[name]
        place = initramfs / "lib/modules" / version / module.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, place)
        wanted += [need for need in _needs(module) if need not in wanted]
    run(["busybox", "depmod", "-b", initramfs, version])

    for program in ("init", "sbin/shutdown", "bin/writer", "bin/busybox", "bin/qemu-ga"):
        (initramfs / program).chmod(0o755)
    names = "\n".join(sorted(str(path.relative_to(initramfs)) for path in initramfs.rglob("*")))
    run(["cpio", "--quiet", "--create", "--format=newc", "--file", image / "initramfs"], cwd=initramfs, stdin=names)
    shutil.rmtree(initramfs)


def _add_script(name: str, place: Path) -> None:
    """A script for the guest's shell; not executable in the repository, where nothing could run it."""
    place.write_text("#!/bin/busybox sh\n" + (_HERE / name).read_text(encoding="utf-8"), encoding="utf-8")


def _needs(module: Path) -> list[str]:
    """The modules that a module says it depends on."""
    depends = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in depends[1].decode().split(",") if name] if depends else []
