"""The `vditc` command: what all commands share, and how errors leave it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vditc.errors import InputError, VditcError
from vditc.files import FULL
from vditc.progress import SILENT
from vditc.progress import Progress as Watcher

app = typer.Typer(
    name="vditc",
    help="The video diffusion transformer compiler: quantize, export to Q/DQ ONNX, build TensorRT engines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
complain = Console(stderr=True)
INTERRUPTED = 128 + signal.SIGINT  # the exit code that typer makes of Ctrl-C
# Module of this package -> its commands: only the module of the command that is asked for is loaded.
MODULES: dict[str, tuple[str, ...]] = {
    "compile": ("compile",),
    "stages": ("calibrate", "export", "build"),
    "worker": ("worker",),
    "passes": ("lower", "passes"),
    "dataset": ("dataset",),
    "sensitivity": ("sensitivity",),
    "use": ("run", "verify", "eval"),
    "bench": ("bench",),
    "report": ("report",),
    "inspect": ("inspect",),
    "lists": ("recipes", "targets", "models"),
    "plugins": ("plugins",),
    "device": ("package", "collect"),
    "demo": ("demo",),
}

SPEED_OF = 3600.0  # seconds behind the time left: a step of a large model may take minutes, and two are needed
SHARED = ("calibrate", "dataset")  # commands that torchrun may start

EXTRAS = {  # package -> the extra of vditc that installs it
    "torch": "calibrate,export",
    "diffusers": "calibrate,export",
    "modelopt": "calibrate",
    "onnxruntime": "cpu",
    "polygraphy": "rtx",
    "jinja2": "report",
    "matplotlib": "report",
    "imageio_ffmpeg": "report",
    "PIL": "report",
    "sklearn": "report",
    "skimage": "report",
    "distributed": "cluster",
}


class RichProgress:
    """Bars with the time left, on stderr so that stdout stays for results."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Callable[[], None]]:
        """A bar for `total` parts, of which some are done already."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, *left, console=complain, speed_estimate_period=SPEED_OF) as bars:
            task = bars.add_task(title, total=total, completed=done)
            yield lambda: bars.advance(task)

    def note(self, text: str) -> None:
        """One line."""
        complain.print(text, markup=False, highlight=False)


def progress_of(rank: int) -> Watcher:
    """Bars for rank 0; the others work in silence."""
    return SILENT if rank else RichProgress()


def _check_ranks() -> None:
    """InputError for a command that several processes cannot share."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and sys.argv[1:2] and (name := sys.argv[1]) not in SHARED:
        raise InputError(
            found=f"vditc {name} under torchrun",
            wanted=f"one of {', '.join(SHARED)}",
            where="WORLD_SIZE",
            fix="start it without torchrun",
        )


@app.callback()
def no_command() -> None:
    """Makes a group of the commands, one or many as are loaded."""


def main() -> None:
    """Run a command; VditcError, and trouble with a file, become one line on stderr and an exit code.

    Ended from outside (SIGTERM) a command cleans up as after Ctrl-C.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    for name in [module for module, commands in MODULES.items() if asked in commands] or MODULES:
        importlib.import_module(f"vditc.cli.{name}")
    try:
        _check_ranks()
        app(standalone_mode=True)
    except VditcError as error:
        rank = int(os.environ.get("RANK", "0"))
        sys.stderr.write(f"vditc: {f'rank {rank}: ' if rank else ''}error: {error}\n")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if (extra := EXTRAS.get((error.name or "").partition(".")[0])) is None:
            raise
        sys.stderr.write(f"vditc: error: this command needs the package {error.name}: pip install 'vditc[{extra}]'\n")
        sys.exit(1)
    except OSError as error:
        full = error.errno in FULL
        if error.filename is None and not full:
            raise
        trouble = VditcError(
            found="a full disk" if full else str(error.strerror),
            wanted="room for what is written" if full else "a file that can be used",
            where=str(error.filename or "vditc " + asked),
            fix="free some space, or write to another disk" if full else "check the path, its rights and the disk",
        )
        sys.stderr.write(f"vditc: error: {trouble}\n")
        sys.exit(trouble.exit_code)
    except SystemExit as exit_:
        if exit_.code in (INTERRUPTED, 128 + signal.SIGTERM):
            again = "; repeat the command with --resume to go on" if sys.argv[1:2] == ["compile"] else ""
            sys.stderr.write(f"vditc: interrupted{again}\n")
        raise
