"""A quirk of a runtime or a GPU: what it cannot do or does wrongly, who says so, and what follows. Strict TOML, one file a quirk.

says = "FP8 products exist from sm_89 on"
source = "https://..."                    # or the test that shows it
arch = ["sm_80", "sm_86", "sm_87"]        # of which GPUs it speaks; left out: of all

What follows, at least one of:

[[refuses]]                               # schemes that a recipe may not use; what a row leaves out matches everything
weight = ["fp8_e4m3"]
granularity = ["per_group"]               # of weights
activation = ["int8"]                     # "float": the weights alone are quantized

operators = ["DynamicQuantizeLinear"]     # that a lowered graph may not hold
types = ["uint4"]                         # of values in a lowered graph, by their names in onnx-ir
rules = ["float32-scales"]                # of the dialect, which hold because of this quirk; errors then say so
int4_blocks = [128, 64]                   # the only blocks in which INT4 weights are fused, the fewest scales first
fp16_keys = 65504                         # the most keys of an attention that is computed in float16
functions = false                         # a lowered graph has no bodies of the plugin library's operators
engine_options = ["tiling"]               # of vditc.build_options, that it does not have or that do nothing
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from vditc.build_options import BuildOptions
from vditc.errors import InputError
from vditc.numerics import Granularity, QType
from vditc.scheme import Scheme
from vditc.toml_data import Table

FLOAT = "float"  # stands for an activation that is not quantized
_QTYPES = tuple(q.value for q in QType)
_GRANULARITIES = tuple(g.value for g in Granularity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Products:
    """Schemes: every one of `weight` with every one of `activation`. An empty list matches everything."""

    weight: tuple[str, ...] = ()
    granularity: tuple[str, ...] = ()  # of weights
    group_sizes: tuple[int, ...] = ()  # of weights per_group
    activation: tuple[str, ...] = ()
    activation_granularity: tuple[str, ...] = ()

    def hold(self, scheme: Scheme) -> bool:
        """Whether `scheme` is one of them."""
        w, a = scheme.weight, scheme.activation
        pairs: list[tuple[str | int, tuple[str | int, ...]]] = [
            (w.qtype.value, self.weight),
            (w.granularity.value, self.granularity),
            (FLOAT if a is None else a.qtype.value, self.activation),
        ]
        if w.group_size is not None:
            pairs.append((w.group_size, self.group_sizes))
        if a is not None:
            pairs.append((a.granularity.value, self.activation_granularity))
        return all(not known or value in known for value, known in pairs)

    @classmethod
    def read(cls, table: Table) -> Products:
        """One row of a TOML list of tables."""
        made = cls(
            weight=_known(table, "weight", _QTYPES),
            granularity=_known(table, "granularity", _GRANULARITIES),
            group_sizes=integers(table, "group_sizes"),
            activation=_known(table, "activation", (*_QTYPES, FLOAT)),
            activation_granularity=_known(table, "activation_granularity", _GRANULARITIES),
        )
        table.done()
        return made

    def __str__(self) -> str:
        """ "int4 or int3 per_group (16, 32, 64, 128) x float"."""
        groups = f" ({', '.join(map(str, self.group_sizes))})" if self.group_sizes else ""
        if self == Products():
            return "everything"
        sides = ((self.weight, self.granularity, groups), (self.activation, self.activation_granularity, ""))
        return " x ".join(f"{' or '.join(types) or 'any'} {' or '.join(grains)}".strip() + end for types, grains, end in sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quirk:
    """What a quirk file says."""

    name: str
    says: str
    source: str
    arch: tuple[str, ...] = ()
    refuses: tuple[Products, ...] = ()
    operators: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    int4_blocks: tuple[int, ...] = ()
    fp16_keys: int | None = None
    functions: bool = True
    engine_options: tuple[str, ...] = ()

    @classmethod
    def load(cls, name_or_path: str, near: Path) -> Quirk:
        """A built-in quirk by name, or a TOML file in the folder `near`."""
        known = builtin_quirks()
        if name_or_path not in known and not name_or_path.endswith(".toml"):
            raise InputError(
                found=f"quirk {name_or_path!r}",
                wanted=f"one of {', '.join(known)} or a .toml file",
                where=str(near),
                fix="correct the name",
            )
        path = known.get(name_or_path, near / name_or_path)
        table = Table.load(path)
        quirk = cls(
            name=path.stem,
            says=table.need("says", str),
            source=table.need("source", str),
            arch=table.strings("arch"),
            refuses=tuple(Products.read(t) for t in table.tables("refuses")),
            operators=table.strings("operators"),
            types=table.strings("types"),
            rules=table.strings("rules"),
            int4_blocks=integers(table, "int4_blocks"),
            fp16_keys=table.take("fp16_keys", int),
            functions=table.take("functions", bool, True) is not False,
            engine_options=_known(table, "engine_options", BuildOptions.NAMES),
        )
        table.done()
        if not quirk.effects:
            raise InputError(
                found="nothing that follows",
                wanted="one of refuses, operators, types, rules, int4_blocks, fp16_keys, functions, engine_options",
                where=table.where,
                fix="add it; what nothing reads belongs into the documentation",
            )
        return quirk

    @property
    def effects(self) -> list[str]:
        """What follows, for people."""
        lists = {
            "operators": self.operators,
            "types": self.types,
            "dialect": self.rules,
            "INT4 blocks": self.int4_blocks,
            "no engine options": self.engine_options,
        }
        found = [f"refuses {row}" for row in self.refuses]
        found += [f"{name}: {', '.join(map(str, values))}" for name, values in lists.items() if values]
        found += [] if self.fp16_keys is None else [f"at most {self.fp16_keys} keys in fp16"]
        return found if self.functions else [*found, "no functions beside plugins"]


def integers(table: Table, key: str) -> tuple[int, ...]:
    """A list of numbers, empty when absent."""
    values = table.take(key, list, []) or []
    if not all(type(v) is int for v in values):
        raise InputError(found=f"{key} = {values!r}", wanted="a list of whole numbers", where=table.where, fix="correct the value")
    return tuple(values)


def _known(table: Table, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    values = table.strings(key)
    if unknown := [v for v in values if v not in known]:
        raise InputError(found=f"{key} {', '.join(unknown)}", wanted=", ".join(known), where=table.where, fix="choose some of these")
    return values


def builtin_quirks() -> Mapping[str, Path]:
    """Name -> file of the quirks that come with vditc."""
    root = Path(__file__).parent / "targets" / "quirks"
    return {p.stem: p for p in sorted(root.glob("*.toml"))}
