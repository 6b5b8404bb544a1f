"""engine.json, beside an engine: what it was built with and what it needs to be loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import InputError
from vditc.files import write_text

if TYPE_CHECKING:
    from typing import Self  # a device may have Python 3.10

NAME = "engine.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltWith:
    """`module` and its `version`, GPUs ("sm_90"), options; `weights`: the lowered graph with an engine's stripped weights, beside it."""

    module: str
    version: str
    arch: tuple[str, ...]
    options: BuildOptions = DEFAULTS
    weights: str | None = None

    def write(self, folder: Path) -> None:
        """Into the engine's folder."""
        data: dict[str, Any] = {**dataclasses.asdict(self), "arch": list(self.arch), "options": self.options.to_json()}
        write_text(folder / NAME, json.dumps({k: v for k, v in data.items() if v is not None}, indent=1, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None for an engine of which nothing is said; InputError for a file that does not say it."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text())
            return cls(**{**data, "arch": tuple(data["arch"]), "options": BuildOptions.from_json(data.get("options", {}))})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                found=f"unreadable ({error!r})", wanted="what is said of the engine", where=str(path), fix="build the engine again"
            ) from error

    def __str__(self) -> str:
        """ "tensorrt 10.16.1 for sm_90"."""
        return f"{self.module} {self.version} for {', '.join(self.arch)}"
