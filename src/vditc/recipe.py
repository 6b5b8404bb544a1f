"""A recipe: which layers get which scheme, with which method, from what calibration data, to what quality. Strict TOML.

schema = 1
name = "w8a8"
description = "INT8 weights per channel, INT8 activations per token"
method = "rtn"

[settings]               # of the method, for example alpha = 0.5; what is left out has the method's default

[calibration]
prompts = 4              # sampled trajectories; each feeds every step and both guidance branches
seed = 0

[attention]              # optional: measure attention as well (vditc.attention); targets with the plugin library compute INT8 scores for qk
qk = "int8"
pv = "fp8_e4m3"
smooth_k = true

[gate]                   # `compile` exits 3 when a number of `verify` is worse
min_psnr_db = 30.0

[[rules]]                # the first rule that matches a layer's role (and name) decides
match = ["self_attn.*", "ffn.*"]
weight = { qtype = "int8", granularity = "per_channel" }
activation = { qtype = "int8", granularity = "per_token", dynamic = true }

[[rules]]
match = ["*"]
keep = "why these layers stay in floating point"
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from vditc.attention import AttentionScheme
from vditc.errors import InputError
from vditc.numerics import Granularity, QType
from vditc.scheme import QuantSpec, Scheme
from vditc.toml_data import Table

SCHEMA = 1
_E = TypeVar("_E", QType, Granularity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Layers whose role matches one of `match` and whose name matches one of `layers` get `scheme`, or stay floating point."""

    match: tuple[str, ...]  # shell patterns over roles
    layers: tuple[str, ...] = ("*",)  # shell patterns over layer names
    scheme: Scheme | None = None
    keep: str | None = None  # the reason to stay in floating point

    def matches(self, layer: str, role: str) -> bool:
        """Whether this rule speaks of a layer."""
        return any(fnmatchcase(role, p) for p in self.match) and any(fnmatchcase(layer, p) for p in self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """Least quality of the bundle's clips; a drop is a share of all clips, against the full-precision clips."""

    min_psnr_db: float | None = None
    max_digit_accuracy_drop: float | None = None
    max_motion_accuracy_drop: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe file says."""

    name: str
    description: str
    method: str
    rules: tuple[Rule, ...]
    gate: Gate
    calibration_prompts: int
    calibration_seed: int
    settings: Mapping[str, Any]  # of the method
    digest: str  # sha256 of the file's bytes
    attention: AttentionScheme | None = None

    def assign(self, roles: Mapping[str, str]) -> dict[str, Rule]:
        """Rule of every layer, from layer name -> role. InputError for a layer without a rule or a rule without a layer."""
        chosen: dict[str, Rule] = {}
        for layer, role in roles.items():
            rule = next((r for r in self.rules if r.matches(layer, role)), None)
            if rule is None:
                raise InputError(
                    found=f"layer {layer} (role {role}) matched by no rule",
                    wanted="a rule for every linear layer",
                    where=f"recipe {self.name}",
                    fix=f'add a rule with match = ["{role}"], or keep = "why"',
                )
            chosen[layer] = rule
        for number, rule in enumerate(self.rules, 1):
            if not any(r is rule for r in chosen.values()):
                raise InputError(
                    found=f"rule {number} (match {list(rule.match)}, layers {list(rule.layers)}) decides no layer",
                    wanted="every rule to decide at least one layer",
                    where=f"recipe {self.name}",
                    fix=f"roles of this model: {', '.join(sorted(set(roles.values())))}; remove the rule or correct it",
                )
        return chosen

    @classmethod
    def load(cls, name_or_path: str) -> Recipe:
        """A built-in recipe by name, or any TOML file."""
        path = Path(name_or_path)
        if name_or_path in (known := builtin_recipes()):
            path = known[name_or_path]
        elif path.suffix != ".toml":
            raise InputError(
                found=f"recipe {name_or_path!r}",
                wanted=f"one of {', '.join(known)} or a .toml file",
                where="--recipe",
                fix="see `vditc recipes`",
            )
        return cls.parse(Table.load(path), hashlib.sha256(path.read_bytes()).hexdigest())

    @classmethod
    def parse(cls, table: Table, digest: str) -> Recipe:
        """Read and check a table."""
        if (schema := table.need("schema", int)) != SCHEMA:
            raise InputError(found=f"schema = {schema}", wanted=str(SCHEMA), where=table.where, fix="use a matching vditc")
        calibration = table.table("calibration") or Table({}, table.where)
        gate = table.table("gate") or Table({}, table.where)
        attention = table.table("attention")
        recipe = cls(
            name=table.need("name", str),
            description=table.need("description", str),
            method=table.need("method", str),
            rules=tuple(_rule(t) for t in table.tables("rules")),
            gate=Gate(**{f.name: gate.take(f.name, float) for f in dataclasses.fields(Gate)}),
            calibration_prompts=calibration.take("prompts", int, 4) or 0,
            calibration_seed=calibration.take("seed", int, 0) or 0,
            settings=table.take("settings", dict, {}) or {},
            digest=digest,
            attention=None if attention is None else _attention(attention),
        )
        for t in (table, calibration, gate):
            t.done()
        if not recipe.rules or recipe.calibration_prompts < 1:
            raise InputError(
                found=f"{len(recipe.rules)} rules, {recipe.calibration_prompts} calibration prompts",
                wanted="at least one of each",
                where=table.where,
                fix="add [[rules]], set calibration.prompts",
            )
        return recipe


def _rule(table: Table) -> Rule:
    match, layers, keep = table.strings("match"), table.strings("layers") or ("*",), table.take("keep", str)
    weight, activation = table.table("weight"), table.table("activation")
    table.done()
    if not match or (keep is None) == (weight is None) or (activation is not None and weight is None):
        raise InputError(
            found=f"match = {list(match)} with {'keep' if keep else 'no keep'} and {'a' if weight else 'no'} weight",
            wanted="match = [roles], and either weight (with or without activation) or keep",
            where=table.where,
            fix='write weight = { qtype = "int8", granularity = "per_channel" }, or keep = "the reason"',
        )
    scheme = Scheme(weight=_spec(weight), activation=_spec(activation) if activation else None) if weight else None
    return Rule(match=match, layers=layers, scheme=scheme, keep=keep)


def _choice(table: Table, key: str, text: str, kind: type[_E]) -> _E:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(e.value for e in kind)
        raise InputError(found=f"{key} = {text!r}", wanted=known, where=table.where, fix="choose one of these") from None


def _attention(table: Table) -> AttentionScheme:
    qk, pv = (None if (text := table.take(key, str)) is None else _choice(table, key, text, QType) for key in ("qk", "pv"))
    smooth_k, smooth_v = (bool(table.take(key, bool, False)) for key in ("smooth_k", "smooth_v"))
    block_size = table.take("block_size", int, 1)
    table.done()
    return AttentionScheme(qk=qk, pv=pv, smooth_k=smooth_k, smooth_v=smooth_v, block_size=1 if block_size is None else block_size)


def _spec(table: Table) -> QuantSpec:
    spec = QuantSpec(
        qtype=_choice(table, "qtype", table.need("qtype", str), QType),
        granularity=_choice(table, "granularity", table.need("granularity", str), Granularity),
        group_size=table.take("group_size", int),
        symmetric=bool(table.take("symmetric", bool, True)),
        dynamic=bool(table.take("dynamic", bool, False)),
        per_step=bool(table.take("per_step", bool, False)),
    )
    table.done()
    return spec


def builtin_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with vditc."""
    root = Path(str(files("vditc") / "recipes"))
    return {p.stem: p for p in sorted(root.glob("*.toml"))}
