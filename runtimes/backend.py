"""What turns a lowered graph into something that runs, and what is known about the result."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.errors import InputError

if TYPE_CHECKING:  # a device reads and writes facts, and has none of these
    from typing import Self

    from vditc.adapter import InputSpec
    from vditc.profile import Profile
    from vditc.progress import Progress
    from vditc.sampling import Denoiser
    from vditc.target import Target

Status = Literal["built", "to build on the device", "portable"]
BUILT: Status = "built"
TO_BUILD: Status = "to build on the device"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnginePlugins:
    """The plugin library that an engine was built with, and the plugins that it has of it: (operator, version, namespace)."""

    library: Path
    wanted: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What is known about a target's engine. Everything after `backend` is known of a built engine only.

    Memory is what the builder's log says, in bytes, for the largest shapes of the profile. `gemms` counts matrix products by
    what they compute with, for example {"int8 x int8 -> float": 8, "half x half from int4 -> half": 2}; `layers` says the
    same of each linear layer; `merged`: groups of layers that became one product. `attentions` counts fused attention kernels.
    `fused` counts inputs that are quantized by the kernel that computes what is before them, {"norm": 8, "gelu": 4, "rest": 9};
    `plugins` counts plugins, `plugin_operators` those of each operator, {"vditc.QLinear": 60};
    `cut` names the QuantizeLinear nodes of others, and in how many kernels they are made. `segments`: of an engine that is several
    (vditc.segments), {"name", "blocks", "plan_bytes"} of each; everything else is of all together.
    """

    status: Status
    backend: str
    version: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    plan_bytes: int | None = None
    seconds: float | None = None
    peak_rss_bytes: int | None = None
    activation_bytes: int | None = None
    weight_bytes: int | None = None
    scratch_bytes: int | None = None
    constant_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    gemms: Mapping[str, int] = dataclasses.field(default_factory=dict)
    attentions: int | None = None
    plugins: int | None = None
    plugin_operators: Mapping[str, int] = dataclasses.field(default_factory=dict)
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    merged: tuple[tuple[str, ...], ...] = ()
    fused: Mapping[str, int] = dataclasses.field(default_factory=dict)
    cut: Mapping[str, int] = dataclasses.field(default_factory=dict)
    segments: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def joined(cls, parts: Mapping[str, EngineFacts], blocks: Mapping[str, tuple[str, ...]]) -> EngineFacts:
        """Of segments that are built one by one and run one after the other in the same scratch memory: sums, but for the peaks."""
        facts = list(parts.values())

        def most(name: str) -> int | None:
            return max((value for one in facts if (value := getattr(one, name)) is not None), default=None)

        def total(name: str) -> Any:
            known = [value for one in facts if (value := getattr(one, name)) is not None]
            return sum(known) if known else None

        def merged(name: str) -> dict[str, int]:
            return dict(sum((Counter(getattr(one, name)) for one in facts), Counter[str]()))

        together: dict[str, Any] = {name: total(name) for name in ("plan_bytes", "weight_bytes", "seconds", "attentions", "plugins")}
        together |= {name: most(name) for name in ("activation_bytes", "scratch_bytes", "peak_rss_bytes")}
        together |= {name: merged(name) for name in ("constant_bytes", "gemms", "plugin_operators", "fused", "cut")}
        together["layers"] = {name: kind for one in facts for name, kind in one.layers.items()}
        together["merged"] = tuple(group for one in facts for group in one.merged)
        together["segments"] = tuple({"name": n, "blocks": list(blocks[n]), "plan_bytes": one.plan_bytes} for n, one in parts.items())
        return dataclasses.replace(facts[0], **together)

    def to_json(self) -> dict[str, Any]:
        """Plain data without what is unknown, the inverse of `from_json`."""
        data = dataclasses.asdict(self)
        data["compute_capabilities"] = list(self.compute_capabilities)
        data["merged"] = [list(group) for group in self.merged]
        data["segments"] = [dict(segment) for segment in self.segments]
        return {key: value for key, value in data.items() if value is not None and value != {} and value != []}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; InputError for an unknown key or status."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown or data.get("status") not in get_args(Status):
            raise InputError(
                found=f"engine facts with {unknown or data.get('status')!r}",
                wanted=f"keys {', '.join(sorted(known))}; status one of {', '.join(get_args(Status))}",
                where="engine facts",
                fix="use the vditc that wrote this file",
            )
        tuples = {
            "compute_capabilities": tuple(data.get("compute_capabilities", ())),
            "merged": tuple(tuple(group) for group in data.get("merged", ())),
            "segments": tuple(data.get("segments", ())),
        }
        return cls(**{**data, **tuples})


class Backend(abc.ABC):
    """Builds engines for a target, and runs them."""

    name: ClassVar[str]

    @abc.abstractmethod
    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        """VditcError if `build` for this target is going to fail on this machine; cheap, called before any work."""

    def builds_here(self, target: Target) -> bool:
        """Whether `build` runs a builder on this machine, which takes memory."""
        return False

    @abc.abstractmethod
    def build(
        self,
        *,
        lowered: Path,
        target: Target,
        profile: Profile,
        inputs: tuple[InputSpec, ...],
        out: Path,
        work: Path,
        progress: Progress,
        plugins: Path | None = None,
        options: BuildOptions = DEFAULTS,
    ) -> EngineFacts:
        """Writes the engine of `lowered` into the folder `out`, or nothing where status says that a device builds it (vditc.device).

        `inputs` are the graph's inputs, whose named axes `profile` ranges over. `work` keeps the builder's log. `plugins`: the plugin
        library, for a graph with its operators; the engine needs the same library when it runs. `options`: `check` has seen them.
        VditcError if the build fails, PrecisionError if a layer did not get the precision that the graph gives it; then
        `out` holds no engine.
        """

    @abc.abstractmethod
    def open(
        self, *, model: Path, engine: Path, plugins: EnginePlugins | None = None, weight_budget: int | None = None
    ) -> AbstractContextManager[Denoiser]:
        """Runs the portable graph `model` or the engine in the folder `engine` with its plugin library, whichever this backend runs.

        `weight_budget`: bytes of a streaming engine's weights that stay on the GPU, None for what it was built with; InputError for
        anything that does not stream its weights.
        """


def no_budget(where: str) -> InputError:
    """A budget was given for something that does not stream its weights."""
    return InputError(
        found="a budget for weights",
        wanted="an engine that streams them",
        where=where,
        fix="leave it out, or build the engine with --engine weight-streaming",
    )
