"""Runs `vditc` in this process, so that tests do not pay for the imports again and again."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from unittest import mock

from vditc.cli import main


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def vditc(*arguments: str) -> Run:
    """Run one command line."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", ["vditc", *arguments]):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Run(code, out.getvalue(), err.getvalue())
