"""What passes there are, as data for `vditc passes` and the documentation."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any, get_type_hints

from vditc.errors import InputError
from vditc.graph_passes.core import PASSES, Pass, option_text
from vditc.graph_passes.pipelines import pipeline
from vditc.graph_passes.quantize_attention import QuantizeAttention
from vditc.target import Target, builtin_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassInfo:
    """One pass."""

    name: str
    what: str  # one line
    options: dict[str, dict[str, str]]  # name -> type, default
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    ends: tuple[str, ...]
    numerics: str  # with its default options; a key of `vditc.graph_passes.tolerances.KINDS`
    targets: tuple[str, ...]  # built-in targets whose pipelines have it
    example: str  # before -> after

    @property
    def signature(self) -> str:
        """Name and default options, as `--passes` takes them."""
        options = ",".join(f"{name}={one['default']}" for name, one in self.options.items())
        return f"{self.name}{{{options}}}" if options else self.name

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dataclasses.asdict(self)


def catalogue() -> tuple[PassInfo, ...]:
    """Every pass, by name."""
    used: dict[type[Pass], list[str]] = {}
    for target in builtin_targets():
        always = {type(one) for one in pipeline(Target.load(target))}
        for kind in dict.fromkeys(type(one) for one in pipeline(Target.load(target), plugins=True, attention=QuantizeAttention())):
            used.setdefault(kind, []).append(target if kind in always else f"{target} (--plugins)")
    return tuple(_info(PASSES[name], tuple(used.get(PASSES[name], ()))) for name in sorted(PASSES))


def pass_info(name: str) -> PassInfo:
    """One pass; InputError for an unknown name."""
    found = {info.name: info for info in catalogue()}
    if name not in found:
        raise InputError(found=f"pass {name!r}", wanted=f"one of {', '.join(found)}", where="vditc passes", fix="correct the name")
    return found[name]


def markdown_table() -> str:
    """The table of docs/graph_passes.md."""
    lines = ["| pass | does | needs | gives | ends | numbers |", "|---|---|---|---|---|---|"]
    for i in catalogue():
        columns = [f"`{i.signature}`", i.what, *(", ".join(names) for names in (i.needs, i.gives, i.ends)), i.numerics]
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def _info(made: type[Pass], targets: tuple[str, ...]) -> PassInfo:
    types = get_type_hints(made)
    default = made()
    return PassInfo(
        name=made.name,
        what=(inspect.getdoc(made) or "").split("\n\n")[0].replace("\n", " "),
        options={
            f.name: {"type": types[f.name].__name__, "default": option_text(getattr(default, f.name))} for f in dataclasses.fields(made)
        },
        needs=tuple(sorted(made.needs)),
        gives=tuple(sorted(made.gives)),
        ends=tuple(sorted(made.ends)),
        numerics=default.numerics(),
        targets=targets,
        example=(sys.modules[made.__module__].__doc__ or "").strip(),
    )
