"""The command line: one file per group of commands. Heavy imports wait until a command needs them."""

from vditc.cli.app import main

__all__ = ["main"]
