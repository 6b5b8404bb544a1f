"""A target: GPUs, what builds engines for them, and what it computes. Strict TOML; every key is read by a check, a pass or the dialect.

name = "l4"
description = "NVIDIA L4, datacenter Ada"
low_precision = "FP8, INT8"              # the default low-precision path, for people
arch = ["sm_89"]                         # none for a CPU; several where one engine serves them all
backend = "tensorrt"                     # or tensorrt_rtx, onnxruntime
runtime = "TensorRT"                     # as people call it, and the versions that are known to do:
runtime_least = "10.3"
runtime_greatest = "11"                  # every 11; left out: no end
builds = "on_device"                     # or here: ahead of time, without a GPU
compute = ["fp16", "bf16"]               # of everything that is not quantized, the default first; NAME-bf16 is the target with another
opset_least = 9                          # that the runtime reads
opset_greatest = 21
opset = 21                               # that lowering writes: 21, or 23 with its operators Attention and RMSNormalization
quirks = ["fp32-scales"]                 # vditc.quirk: what it cannot do, with sources
platform = "aarch64"                     # of the plugin library beside its GPUs (vditc.plugins.build); left out: x86_64

[[products]]                             # schemes that it runs; what a row leaves out matches everything
weight = ["int8"]
granularity = ["per_channel"]
activation = ["int8"]
"""

from __future__ import annotations

import dataclasses
from importlib.resources import files
from pathlib import Path

from vditc.build_options import BuildOptions
from vditc.errors import InputError
from vditc.quirk import Products, Quirk
from vditc.recipe import Recipe
from vditc.recipe_distance import nearest
from vditc.scheme import Scheme
from vditc.toml_data import Table
from vditc.version_range import VersionRange

COMPUTE = ("fp32", "fp16", "bf16")
PLATFORMS = ("x86_64", "x86_64-cuda12", "aarch64", "aarch64-cuda12")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a target file says. `compute` is one of `computes`; `opsets`: least and greatest that the runtime reads, `opset` is written.

    `attention` is no key of the file: what attention alone is computed in, None for `compute`.
    """

    name: str
    description: str
    low_precision: str
    arch: tuple[str, ...]
    backend: str
    runtime_name: str
    versions: VersionRange
    builds: str
    compute: str
    computes: tuple[str, ...]
    opsets: tuple[int, int]
    opset: int
    products: tuple[Products, ...]
    quirks: tuple[Quirk, ...]
    platform: str = "x86_64"
    attention: str | None = None

    @property
    def runtime(self) -> str:
        """ "TensorRT 10.3 to 11"."""
        return f"{self.runtime_name} {self.versions}"

    @property
    def int4_blocks(self) -> tuple[int, ...]:
        """The only blocks in which INT4 weights are fused, the fewest scales first; none: they need no blocks."""
        lists = [q.int4_blocks for q in self.quirks if q.int4_blocks]
        return tuple(b for b in lists[0] if all(b in other for other in lists)) if lists else ()

    @property
    def built_in(self) -> bool:
        """Whether it is what the built-in target of its name says; attention may be computed in a type of its own."""
        return self._base in builtin_targets() and dataclasses.replace(self, attention=None) == Target.load(self.name)

    @property
    def functions(self) -> bool:
        """Whether a graph may hold the bodies of the plugin library's operators."""
        return all(q.functions for q in self.quirks)

    @property
    def fp16_keys(self) -> Quirk | None:
        """The quirk that limits the keys of attention in float16 most."""
        return min((q for q in self.quirks if q.fp16_keys is not None), key=lambda q: q.fp16_keys or 0, default=None)

    def runs(self, recipe: Recipe) -> bool:
        """Whether every rule of `recipe` runs."""
        return all(self.refusal(rule.scheme) is None for rule in recipe.rules if rule.scheme is not None)

    def refusal(self, scheme: Scheme, *, plugins: bool = False) -> str | None:
        """Why this target does not run `scheme`: a quirk and its source, or that no product is of these types; None if it does.

        `plugins`: layers in groups go to the plugin library, whose products are of the types of layers without groups.
        """
        if plugins and scheme.needs_plugins:
            scheme = scheme.by_channel
        for quirk in self.quirks:
            if any(row.hold(scheme) for row in quirk.refuses):
                gpus = ", ".join(a for a in self.arch if a in quirk.arch)
                return f"{quirk.says}{f' (here {gpus})' if gpus else ''} [{quirk.source}]"
        if any(row.hold(scheme) for row in self.products):
            return None
        return f"it runs {'; '.join(map(str, self.products))}"

    def check(self, recipe: Recipe, *, plugins: bool = False) -> None:
        """InputError for the first rule that this target cannot run, with the nearest built-in recipe that it can.

        `plugins`: with the plugin library.
        """
        for number, rule in enumerate(recipe.rules, 1):
            if rule.scheme is None or (why := self.refusal(rule.scheme, plugins=plugins)) is None:
                continue
            found = nearest(recipe, self.runs)
            fix = "choose another target"
            if found is not None:
                fix = f"the nearest built-in recipe that runs here is {found[0].name} ({found[1]}); or {fix}"
            if self.refusal(rule.scheme, plugins=True) is None:
                fix = f"--plugins on hands such layers to the plugin library, which has groups, and builds it where it is not; or {fix}"
            raise InputError(
                found=f"rule {number} of recipe {recipe.name}: {rule.scheme}",
                wanted=f"what this target runs: {why}",
                where=f"target {self.name} ({', '.join(self.arch) or 'cpu'}, {self.runtime})",
                fix=fix,
            )

    def check_options(self, options: BuildOptions) -> None:
        """InputError for an option of building engines that this target has not."""
        if self.backend == "onnxruntime" and options.asked:
            raise self._no_option(options.asked[0], "no engine is built for it")
        for quirk in self.quirks:
            if lacking := [name for name in options.asked if name in quirk.engine_options]:
                raise self._no_option(lacking[0], f"{quirk.says} [{quirk.source}]")

    def _no_option(self, name: str, why: str) -> InputError:
        return InputError(
            found=f"engine option {name}",
            wanted=f"options that this target has: {why}",
            where=f"target {self.name} ({self.runtime})",
            fix=f"leave it out, or say it to another target alone: --engine TARGET:{name}",
        )

    def check_attention(self, keys: int, where: str) -> None:
        """InputError when an attention that is computed in float16 has more keys than that counts."""
        limit = self.fp16_keys
        if limit is None or not self._too_many(keys):
            return
        wider = ""
        if "bf16" in self.computes:
            named = self._base in builtin_targets()
            wider = f"lower for --target {self._base}-bf16, or " if named else 'put "bf16" first in the target\'s compute, or '
            wider = f"lower with --attention bf16, or {wider}"
        raise InputError(
            found=f"attention over {keys} tokens in fp16",
            wanted=f"at most {limit.fp16_keys} on target {self.name}: {limit.says} [{limit.source}]",
            where=where,
            fix=f"{wider}give a --profile with smaller clips",
        )

    def for_keys(self, keys: int) -> Target:
        """This target, with attention in bfloat16 where float16 does not count that many keys and the target computes both."""
        narrow = self.compute == "fp16" and self.attention is None and "bf16" in self.computes
        return self.attending("bf16") if narrow and self._too_many(keys) else self

    def attending(self, compute: str) -> Target:
        """The same target with attention alone in another of its types: bf16, where the rest is fp16. InputError for any other."""
        if compute == self.compute:
            return dataclasses.replace(self, attention=None)
        if (self.compute, compute) != ("fp16", "bf16") or compute not in self.computes:
            raise InputError(
                found=f"attention in {compute}",
                wanted=" or ".join(c for c in self.computes if c == self.compute or (self.compute, c) == ("fp16", "bf16")),
                where=f"target {self.name}, which computes in {self.compute}",
                fix="choose one of these",
            )
        return dataclasses.replace(self, attention=compute)

    def _too_many(self, keys: int) -> bool:
        limit = self.fp16_keys
        return limit is not None and limit.fp16_keys is not None and keys > limit.fp16_keys

    @property
    def _base(self) -> str:
        return self.name.removesuffix(f"-{self.compute}")

    def computing(self, compute: str) -> Target:
        """The same target with another of its types: NAME-bf16. InputError for a type that it has not."""
        if compute not in self.computes:
            raise InputError(
                found=f"compute {compute}", wanted=" or ".join(self.computes), where=f"target {self.name}", fix="choose one of these"
            )
        return dataclasses.replace(self, name=f"{self._base}-{compute}", compute=compute)

    @classmethod
    def load(cls, name_or_path: str) -> Target:
        """A built-in target by name, with or without one of its compute types (h100-bf16), or any TOML file."""
        known = builtin_targets()
        base, _, compute = name_or_path.rpartition("-")
        if name_or_path not in known and base in known and compute in COMPUTE:
            return cls.load(base).computing(compute)
        path = known.get(name_or_path, Path(name_or_path))
        if path.suffix != ".toml":
            raise InputError(
                found=f"target {name_or_path!r}",
                wanted=f"one of {', '.join(known)} (with -bf16 where it computes in that) or a .toml file",
                where="--target",
                fix="see `vditc targets`",
            )
        return cls.parse(Table.load(path), path)

    @classmethod
    def parse(cls, table: Table, path: Path) -> Target:
        """Read and check a table of the file `path`."""
        computes = table.strings("compute")
        if not computes or any(c not in COMPUTE for c in computes):
            raise InputError(
                found=f"compute = {list(computes)}", wanted=f"some of {', '.join(COMPUTE)}", where=table.where, fix="correct the list"
            )
        target = cls(
            name=table.need("name", str),
            description=table.need("description", str),
            low_precision=table.need("low_precision", str),
            arch=table.strings("arch"),
            backend=_one_of(table, "backend", ("tensorrt_rtx", "tensorrt", "onnxruntime")),
            runtime_name=table.need("runtime", str),
            versions=VersionRange(table.need("runtime_least", str), table.take("runtime_greatest", str)),
            builds=_one_of(table, "builds", ("here", "on_device")),
            compute=computes[0],
            computes=computes,
            opsets=(table.need("opset_least", int), table.need("opset_greatest", int)),
            opset=table.need("opset", int),
            products=tuple(Products.read(t) for t in table.tables("products")),
            quirks=tuple(Quirk.load(name, path.parent) for name in table.strings("quirks")),
            platform=_platform(table),
        )
        table.done()
        for quirk in target.quirks:
            if quirk.arch and not set(quirk.arch) & set(target.arch):
                raise InputError(
                    found=f"quirk {quirk.name} of {', '.join(quirk.arch)}",
                    wanted=f"quirks of {', '.join(target.arch) or 'any CPU'}",
                    where=table.where,
                    fix="remove it",
                )
        return target


def _platform(table: Table) -> str:
    if (value := table.take("platform", str) or PLATFORMS[0]) not in PLATFORMS:
        raise InputError(found=f"platform = {value!r}", wanted=", ".join(PLATFORMS), where=table.where, fix="choose one of these")
    return value


def _one_of(table: Table, key: str, known: tuple[str, ...]) -> str:
    if (value := table.need(key, str)) not in known:
        raise InputError(found=f"{key} = {value!r}", wanted=", ".join(known), where=table.where, fix="choose one of these")
    return value


def builtin_targets() -> dict[str, Path]:
    """Name -> file of the targets that come with vditc."""
    root = Path(str(files("vditc") / "targets"))
    return {p.stem: p for p in sorted(root.glob("*.toml"))}
