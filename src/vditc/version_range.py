"""Ranges of versions such as "10.3" to "11", whose end means every 11."""

from __future__ import annotations

import dataclasses
import re

from vditc.errors import InputError


@dataclasses.dataclass(frozen=True)
class VersionRange:
    """From `least` on, up to `greatest` in as many parts as it has; None: no end."""

    least: str
    greatest: str | None = None

    def __post_init__(self) -> None:
        for text in filter(None, (self.least, self.greatest)):
            if not re.fullmatch(r"\d+(\.\d+)*", text):
                raise InputError(
                    found=f"version {text!r}", wanted="numbers and dots", where="a range of versions", fix='write it as "10.3"'
                )
        if self.greatest is not None and not self.holds(self.least):
            raise InputError(found=str(self), wanted="a range that grows", where="a range of versions", fix="exchange the two")

    def holds(self, version: str) -> bool:
        """Whether "10.13.2.6" is in the range; what follows the numbers does not count."""
        found = _numbers(version)
        if found < _numbers(self.least):
            return False
        last = None if self.greatest is None else _numbers(self.greatest)
        return last is None or found[: len(last)] <= last

    def __str__(self) -> str:
        if self.greatest is None:
            return f"{self.least} or newer"
        return self.least if self.least == self.greatest else f"{self.least} to {self.greatest}"


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
