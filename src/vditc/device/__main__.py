"""`python3 vditc_device.pyz build | check | memory | facts`: what build.sh of a package calls."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from vditc.device.build import build_package, report
from vditc.device.facts import device_facts
from vditc.device.memory import BOARDS, BoardMemory, gib, share
from vditc.device.package import DEVICE, DevicePackage
from vditc.errors import InputError, VditcError

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, 1 when something failed, 2 for bad input; an error is one line on stderr."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except VditcError as error:
        sys.stderr.write(f"vditc: error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"vditc: error: {error.filename or 'a file'}: found {error.strerror}; check the path, its rights and the disk\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("vditc: interrupted; what is finished is kept, repeat the command to go on\n")
        return INTERRUPTED
    return 0


def boards(package: DevicePackage) -> list[str]:
    """One line for every size of board: whether the engines can be built and run there."""
    lines = []
    for board in [BoardMemory.of_board(size) for size in BOARDS]:
        try:
            least = min(share(package, graph, board).workspace for graph in package.graphs)
            lines.append(f"{board.name}: fits, {gib(least)} of workspace")
        except InputError as error:
            lines.append(f"{board.name}: no, needs {error.wanted}; found {error.found}")
    return lines


def _build(given: argparse.Namespace) -> None:
    board = BoardMemory.of_board(given.memory) if given.memory else None
    done = build_package(given.folder, say=_say, library=given.plugins, board=board, force=given.force)
    print(report(done))


def _check(given: argparse.Namespace) -> None:
    package = DevicePackage.read(given.folder)
    package.check_files(given.folder)
    print(f"{len(package.files)} files as packaged, {sum(e.bytes for e in package.files.values()):,} bytes")


def _memory(given: argparse.Namespace) -> None:
    print("\n".join(boards(DevicePackage.read(given.folder))))


def _facts(given: argparse.Namespace) -> None:
    print(json.dumps(device_facts(), indent=1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vditc_device", description="Builds the engines of a device package where they will run.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, says in (
        ("build", _build, "check the package and build its engines"),
        ("check", _check, "check every file of the package"),
        ("memory", _memory, "which boards the engines fit"),
        ("facts", _facts, "board, releases, power mode and clocks"),
    ):
        command = commands.add_parser(name, help=says, description=says)
        command.set_defaults(run=run)
        if name != "facts":
            command.add_argument("folder", nargs="?", type=Path, default=Path(), help=f"folder of {DEVICE} [default: this one]")
        if name == "build":
            command.add_argument("--plugins", type=Path, metavar="LIB", help="plugin library, instead of the package's")
            command.add_argument("--memory", type=_gigabytes, metavar="GB", help="size of the board [default: what is free here]")
            command.add_argument("--force", action="store_true", help="build again what is there")
    return parser


def _gigabytes(text: str) -> float:
    size = float(text)
    if not 1 <= size <= 4096:
        raise argparse.ArgumentTypeError(f"{text} GB; wanted 1 to 4096")
    return size


if __name__ == "__main__":
    sys.exit(main())
