"""Errors that a user can act on: what was found, what was wanted, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping


class VditcError(Exception):
    """Something failed while working; the CLI exits with 1."""

    exit_code = 1

    def __init__(self, *, found: str, wanted: str, where: str, fix: str) -> None:
        self.found, self.wanted, self.where, self.fix = found, wanted, where, fix
        super().__init__(f"{where}: found {found}; wanted {wanted}; {fix}")


class InputError(VditcError):
    """The input is bad and nothing was written; the CLI exits with 2."""

    exit_code = 2


class CancelledError(VditcError):
    """Whoever watches a call said that it is not to go on."""


class QualityError(VditcError):
    """The result is worse than the recipe's gate; the CLI exits with 3."""

    exit_code = 3


class PrecisionError(VditcError):
    """A layer did not get the precision that the recipe gave it (in a graph or in an engine).

    `layers`: layer -> what is wrong, where layers are all that is.
    """

    def __init__(self, *, found: str, wanted: str, where: str, fix: str, layers: Mapping[str, str] | None = None) -> None:
        super().__init__(found=found, wanted=wanted, where=where, fix=fix)
        self.layers = dict(layers or {})


class DialectError(VditcError):
    """A graph holds something that the dialect does not allow."""
