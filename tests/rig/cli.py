# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig's command line: python3 -m tests.rig."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .guest import MIB
from .hypervisor import Hypervisor
from .oracle import judge
from .shapes import SHAPES
from .shell import RigError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; examples: 4096, 64M, 3G")
    return int(number) * _UNITS[unit]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.rig", description="Throw-away hypervisors with real guests.")
    commands = parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="bring a hypervisor up")
    up.add_argument("name")

    guest = commands.add_parser(
        "guest",
        help="make a guest and wait until it has written",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="shapes:\n" + "\n".join(f"  {name:13} {shape.what}" for name, shape in SHAPES.items()),
    )
    guest.add_argument("hypervisor")
    guest.add_argument("name")
    guest.add_argument("--shape", choices=SHAPES, default="two-disks", metavar="SHAPE")
    guest.add_argument("--rate", type=int, help="writes a second; as fast as it can by default")
    guest.add_argument("--size", type=_size, default=64 * MIB, help="of each disk, 64M by default")
    guest.add_argument("--fill", type=_size, default=0, help="how much of each disk holds data from the start")

    status = commands.add_parser("status", help="show hypervisors and their guests")
    status.add_argument("hypervisor", nargs="?")

    execute = commands.add_parser("exec", help="run a command inside a hypervisor: exec NAME -- COMMAND...")
    execute.add_argument("hypervisor")
    execute.add_argument("argv", nargs="+", metavar="command")

    oracle = commands.add_parser("judge", help="decide whether images hold one single instant of a guest")
    oracle.add_argument("--at-least", type=int, default=0, metavar="N", help="a number that was durable before")
    oracle.add_argument("images", nargs="+", type=Path, help="in the order of the disks; NAME.qcow2 is qcow2, others raw")

    down = commands.add_parser("down", help="remove a hypervisor, and its guests with it")
    which = down.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?")
    which.add_argument("--all", action="store_true", help="every hypervisor")
    return parser


def _status(names: list[str]) -> None:
    for hypervisor in [Hypervisor(name) for name in names] or Hypervisor.all():
        if not hypervisor.is_up():
            print(f"{hypervisor.name}: not up")
            continue
        print(f"{hypervisor.name}: up, {hypervisor.libvirt_uri_outside}")
        for guest in hypervisor.guests():
            print(f"  {guest.name}: {guest.state()}, durable {guest.durable()}, {guest.shape.what}")


def _judge(images: list[Path], at_least: int) -> int:
    verdict = judge([(image, "qcow2" if image.suffix == ".qcow2" else "raw") for image in images], at_least)
    print(verdict)
    return 0 if verdict.ok else 1


def main() -> int:
    """Run one command; what went wrong is one line on stderr."""
    arguments = _parser().parse_args()
    try:
        if arguments.command == "up":
            print(Hypervisor.up(arguments.name).libvirt_uri_outside)
        elif arguments.command == "guest":
            guest = Hypervisor.find(arguments.hypervisor).guest(
                arguments.name, arguments.shape, arguments.rate, arguments.size, arguments.fill
            )
            print(f"{guest.name}: {guest.state()}")
        elif arguments.command == "status":
            _status([arguments.hypervisor] if arguments.hypervisor else [])
        elif arguments.command == "exec":
            return Hypervisor.find(arguments.hypervisor).popen(arguments.argv).wait()
        elif arguments.command == "judge":
            return _judge(arguments.images, arguments.at_least)
        else:
            for hypervisor in Hypervisor.all() if arguments.all else [Hypervisor(arguments.name)]:
                hypervisor.down()
    except (RigError, subprocess.TimeoutExpired) as error:
        print(f"rig: {error}", file=sys.stderr)
        return 2
    return 0
