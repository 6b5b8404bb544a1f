"""segments.json, beside an engine that is several: which plans run one after the other, and what the last of them hand out.

    {"schema": 1, "outputs": ["velocity"], "segments": [{"name": "segment_00", "blocks": ["blocks.0", ...]}, ...]}

The plan of a segment is NAME.plan. A segment reads the model's inputs and outputs of segments before it, by their names.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vditc.errors import InputError

if TYPE_CHECKING:
    from typing import Self  # a device may have Python 3.10

NAME, SCHEMA = "segments.json", 1
_BLOCK = re.compile(r"([A-Za-z_]\w*\.\d+)(?=[./])")


def block_of_name(name: str) -> str | None:
    """The block that a layer or a node belongs to by its name: "blocks.7.attn1.to_q/MatMul" -> "blocks.7"; None for none."""
    found = _BLOCK.match(name)
    return found[1] if found else None


def check_count(asked: int | str | None, layers: Iterable[str], where: str) -> None:
    """InputError for more segments than the model with these layers has blocks."""
    blocks = {block_of_name(name) for name in layers} - {None}
    if isinstance(asked, int) and asked > max(1, len(blocks)):
        raise InputError(
            found=f"segments={asked}", wanted=f"at most {len(blocks)}, as many as the model has blocks", where=where, fix="cut into fewer"
        )


@dataclasses.dataclass(frozen=True)
class Segments:
    """`blocks`: segment -> the model's blocks in it, in the order in which they run. `outputs`: of the whole model."""

    blocks: Mapping[str, tuple[str, ...]]
    outputs: tuple[str, ...]

    @property
    def plans(self) -> tuple[str, ...]:
        """Names of the engines' files, in order."""
        return tuple(f"{name}.plan" for name in self.blocks)

    def to_text(self) -> str:
        """Sorted, indented JSON."""
        data = {
            "schema": SCHEMA,
            "outputs": list(self.outputs),
            "segments": [{"name": name, "blocks": list(blocks)} for name, blocks in self.blocks.items()],
        }
        return json.dumps(data, indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """None for an engine that is one; InputError for a file that says no segments."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise InputError(
                    found=f"schema {data['schema']}", wanted=f"schema {SCHEMA}", where=str(path), fix="use the vditc that built the engine"
                )
            blocks = {str(one["name"]): tuple(map(str, one["blocks"])) for one in data["segments"]}
            outputs = tuple(map(str, data["outputs"]))
            if not blocks or not outputs or any("/" in name for name in blocks):
                raise ValueError("no segments or no outputs, or a name that is none of a file")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                found=f"unreadable ({error!r})", wanted="the segments of an engine", where=str(path), fix="build the engine again"
            ) from error
        return cls(blocks, outputs)
