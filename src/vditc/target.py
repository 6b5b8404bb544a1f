"""A target: a device, what builds engines for it, and which types it computes with. Strict TOML."""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

from vditc.errors import InputError
from vditc.recipe import Recipe
from vditc.toml_data import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a target file says."""

    name: str
    description: str
    arch: tuple[str, ...]  # "sm_89"; empty for a CPU; several where one engine serves them all
    backend: str  # "tensorrt_rtx" | "tensorrt" | "onnxruntime"
    runtime: str  # version of the runtime, as people say it
    builds: str  # "here": ahead of time, no GPU needed; "on_device": needs the device (or its GPU)
    compute: str  # "fp32" | "fp16" | "bf16": type of everything that is not quantized
    opset: int
    weight_qtypes: tuple[str, ...]
    activation_qtypes: tuple[str, ...]
    low_precision: str  # the default low-precision path, for people

    def check(self, recipe: Recipe) -> None:
        """InputError when a rule uses a type that this target does not know."""
        for number, rule in enumerate(recipe.rules, 1):
            if rule.scheme is None:
                continue
            used = {"weight": (rule.scheme.weight, self.weight_qtypes), "activation": (rule.scheme.activation, self.activation_qtypes)}
            for side, (spec, known) in used.items():
                if spec is not None and spec.qtype.value not in known:
                    raise InputError(
                        found=f"rule {number} of recipe {recipe.name}: {side} {spec.qtype.value}",
                        wanted=f"one of {', '.join(known) or 'none'}",
                        where=f"target {self.name} ({', '.join(self.arch) or 'cpu'}, {self.runtime})",
                        fix="choose another recipe or target",
                    )

    @classmethod
    def load(cls, name_or_path: str) -> Target:
        """A built-in target by name, or any TOML file."""
        path = Path(name_or_path)
        if name_or_path in (known := builtin_targets()):
            path = known[name_or_path]
        elif path.suffix != ".toml":
            raise InputError(
                found=f"target {name_or_path!r}",
                wanted=f"one of {', '.join(known)} or a .toml file",
                where="--target",
                fix="see `vditc targets`",
            )
        table = Table.load(path)
        target = cls(
            name=table.need("name", str),
            description=table.need("description", str),
            arch=table.strings("arch"),
            backend=_one_of(table, "backend", ("tensorrt_rtx", "tensorrt", "onnxruntime")),
            runtime=table.need("runtime", str),
            builds=_one_of(table, "builds", ("here", "on_device")),
            compute=_one_of(table, "compute", ("fp32", "fp16", "bf16")),
            opset=table.need("opset", int),
            weight_qtypes=table.strings("weight_qtypes"),
            activation_qtypes=table.strings("activation_qtypes"),
            low_precision=table.need("low_precision", str),
        )
        table.done()
        return target


def _one_of(table: Table, key: str, known: tuple[str, ...]) -> str:
    if (value := table.need(key, str)) not in known:
        raise InputError(found=f"{key} = {value!r}", wanted=", ".join(known), where=table.where, fix="choose one of these")
    return value


def builtin_targets() -> dict[str, Path]:
    """Name -> file of the targets that come with vditc."""
    root = Path(str(files("vditc") / "targets"))
    return {p.stem: p for p in sorted(root.glob("*.toml"))}
