"""Strict TOML: every key is known, every value has its type, and errors name the file and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from vditc.errors import InputError

_T = TypeVar("_T")


class Table:
    """A TOML table that is read key by key; `done` refuses what nobody read."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = dict(data), where
        self.known: list[str] = []

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read a file; InputError when it is missing or not TOML."""
        try:
            return cls(tomllib.loads(path.read_text()), str(path))
        except OSError as error:
            raise InputError(found=str(error), wanted="a readable TOML file", where=str(path), fix="check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(found=f"no TOML ({error})", wanted="TOML", where=str(path), fix="correct that line") from error

    def take(self, key: str, kind: type[_T], default: _T | None = None, *, required: bool = False) -> _T | None:
        """The value of `key`, of type `kind` (an int will do for a float)."""
        self.known.append(key)
        if key not in self.data:
            if required:
                raise InputError(found="no such key", wanted=f"{key} = {kind.__name__}", where=self.where, fix=f"add {key}")
            return default
        value = self.data[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(found=f"{key} = {value!r}", wanted=f"{kind.__name__}", where=self.where, fix="correct the value")
        return value

    def need(self, key: str, kind: type[_T]) -> _T:
        """The value of a key that must be there."""
        value = self.take(key, kind, required=True)
        assert value is not None
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty when absent."""
        values = self.take(key, list, [])
        assert values is not None
        if not all(isinstance(v, str) for v in values):
            raise InputError(found=f"{key} = {values!r}", wanted="a list of strings", where=self.where, fix="correct the value")
        return tuple(values)

    def table(self, key: str) -> Table | None:
        """A sub-table, None when absent."""
        value = self.take(key, dict)
        return None if value is None else Table(value, f"{self.where} [{key}]")

    def tables(self, key: str) -> list[Table]:
        """A list of sub-tables, empty when absent."""
        values = self.take(key, list, []) or []
        if not all(isinstance(v, dict) for v in values):
            raise InputError(found=f"{key} = {values!r}", wanted=f"[[{key}]] tables", where=self.where, fix="correct it")
        return [Table(v, f"{self.where} [[{key}]] #{i + 1}") for i, v in enumerate(values)]

    def done(self) -> None:
        """InputError for every key that was never asked for."""
        if unknown := sorted(set(self.data) - set(self.known)):
            raise InputError(
                found=f"unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}",
                wanted=f"only {', '.join(sorted(self.known))}",
                where=self.where,
                fix="remove or correct the spelling",
            )
