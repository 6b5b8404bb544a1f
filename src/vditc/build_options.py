"""How an engine is built: `--engine level=5,workspace=8GiB,strip-weights`. Strict; what a target does not do is refused before any work.

level=0..5                 how long TensorRT looks for kernels; its own default is 3
workspace=SIZE             the most scratch memory of the GPU that a kernel may take; left out: what the GPU has
tactic-memory=SIZE         the most memory of the GPU that a kernel may take in all while it is timed; left out: what the GPU has
tiling=fast|moderate|full  how long it looks for a tiling of layers that share the L2 cache
timing-cache=on|off        keep what kernels took beside the engine, and read it in the next build there [default: on]
refit                      the engine's weights can be replaced
strip-weights              the engine holds no weights; they are read from the lowered graph when it is loaded
weight-streaming[=SIZE]    weights stay in the host's memory, and as much of the GPU's as SIZE [default: what TensorRT finds best]
hardware-compatibility=ampere_plus|same_compute_capability     the engine runs on other GPUs as well
version-compatible         the engine runs with later versions of TensorRT
embed-plugins              the plugin library is in the engine
memory=SIZE                of the host, that the build may take [default: what is free]
segments=N|auto            N engines of whole blocks, built one by one and run as one; auto: as few as the memory takes

A SIZE has a unit: B, KB, MB, GB, TB or KiB, MiB, GiB, TiB.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vditc.errors import InputError

if TYPE_CHECKING:
    from typing import Self  # a device may have Python 3.10

TILING = ("fast", "moderate", "full")
HARDWARE = ("ampere_plus", "same_compute_capability")
AUTO = "auto"  # a budget that TensorRT finds itself, segments that the memory asks for
_UNITS = {"B": 1, **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}, **{f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """See the head of this file. None and False are TensorRT's own behaviour; sizes are in bytes."""

    level: int | None = None
    workspace: int | None = None
    tactic_memory: int | None = None
    tiling: str | None = None
    timing_cache: bool | None = None  # None: on, where the runtime has one
    refit: bool = False
    strip_weights: bool = False
    weight_streaming: int | str | None = None  # a budget in bytes, or AUTO
    hardware_compatibility: str | None = None
    version_compatible: bool = False
    embed_plugins: bool = False
    memory: int | None = None
    segments: int | str | None = None  # how many, or AUTO

    NAMES: ClassVar[tuple[str, ...]]
    # What text encoders and VAE decoders are built with too; the others speak of a transformer's weights, plugins and blocks.
    OF_PARTS: ClassVar = ("level", "workspace", "tactic-memory", "tiling", "timing-cache", "hardware-compatibility", "version-compatible")

    @classmethod
    def parse(cls, text: str, where: str = "--engine") -> Self:
        """Of `level=5,refit`; InputError for an unknown, repeated or impossible option."""
        given: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (part.strip() for part in item.partition("="))
            if name not in cls.NAMES or name in given:
                fix = "say it once" if name in given else "correct the name"
                raise _bad(where, f"option {name!r}{' twice' if name in given else ''}", f"some of {', '.join(cls.NAMES)}", fix)
            given[name] = _READ[name](value if equals else None, f"{where}, {name}")
        # Stripped weights come back from one graph, and a budget is of one engine.
        if "segments" in given and (whole := [name for name in ("strip-weights", "weight-streaming") if name in given]):
            raise _bad(where, f"segments and {whole[0]}", "one of them", "leave the other out")
        return cls(**{name.replace("-", "_"): value for name, value in given.items()})

    @classmethod
    def for_target(cls, texts: Iterable[str], target: str) -> Self:
        """Of several `[TARGET:]OPTIONS`: what is said to all targets and to this one, which may say each option once."""
        said = []
        for text in texts:
            name, colon, rest = text.partition(":")
            if not colon or name == target:
                said.append(rest if colon else text)
        return cls.parse(",".join(said), f"--engine of {target}")

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the options that are not at their defaults."""
        fields = zip(self.NAMES, dataclasses.fields(self), strict=True)
        return tuple(name for name, field in fields if getattr(self, field.name) is not field.default)

    @property
    def of_parts(self) -> BuildOptions:
        """Those that text encoders and VAE decoders are built with."""
        return BuildOptions.from_json({name: value for name, value in self.to_json().items() if name in self.OF_PARTS})

    @property
    def host_code(self) -> bool:
        """Whether the engine holds machine code of the host, which a runtime loads only when it is told to."""
        return self.embed_plugins or self.version_compatible

    def to_json(self) -> dict[str, Any]:
        """What was asked for, by name; the inverse of `from_json`."""
        return {name: getattr(self, name.replace("-", "_")) for name in self.asked}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; InputError for anything else."""
        return cls.parse(",".join(_item(str(name), value) for name, value in data.items()), "build options")

    def __str__(self) -> str:
        """As `parse` reads it."""
        return ",".join(_item(name, value) for name, value in self.to_json().items())


def check_targets(texts: Iterable[str], targets: Iterable[str]) -> None:
    """InputError for options of a target that is not among those that are built."""
    known = list(targets)
    for text in texts:
        name, colon, _ = text.partition(":")
        if colon and name not in known:
            raise _bad("--engine", f"options of target {name!r}", f"one of {', '.join(known)}", "correct the name")


def byte_count(text: str | None, where: str) -> int:
    """ "8GiB" -> 8589934592; InputError for no number above 0 or no unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?i?B)", text or "")
    if match is None or match[2] not in _UNITS or (count := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise _bad(where, repr(text or ""), f"a number with one of {', '.join(_UNITS)}", "write 8GiB")
    return count


def _bad(where: str, found: str, wanted: str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where=where, fix=fix)


def _item(name: str, value: Any) -> str:
    """One option as `parse` reads it."""
    if isinstance(value, bool):
        return name if value and name != "timing-cache" else f"{name}={'on' if value else 'off'}"
    if name in ("workspace", "tactic-memory", "memory", "weight-streaming") and isinstance(value, int):
        return f"{name}={value}B"
    return name if value == AUTO and name != "segments" else f"{name}={value}"


def _level(text: str | None, where: str) -> int:
    if text not in ("0", "1", "2", "3", "4", "5"):
        raise _bad(where, repr(text or ""), "0 to 5", "choose one of these")
    return int(text)


def _one_of(*known: str) -> Any:
    def read(text: str | None, where: str) -> str:
        if text not in known:
            raise _bad(where, repr(text or ""), " or ".join(known), "choose one of these")
        return text

    return read


def _switch(text: str | None, where: str) -> bool:
    if text not in ("on", "off"):
        raise _bad(where, repr(text or ""), "on or off", "choose one of these")
    return text == "on"


def _flag(text: str | None, where: str) -> bool:
    if text is not None:
        raise _bad(where, repr(text), "no value", "leave the value out")
    return True


def _segments(text: str | None, where: str) -> int | str:
    if text == AUTO:
        return AUTO
    if text is None or not text.isdecimal() or int(text) < 1:
        raise _bad(where, repr(text or ""), f"a number from 1 on, or {AUTO}", f"write segments={AUTO}")
    return int(text)


def _budget(text: str | None, where: str) -> int | str:
    return AUTO if text is None else byte_count(text, where)


_READ: dict[str, Any] = {
    "level": _level,
    "workspace": byte_count,
    "tactic-memory": byte_count,
    "tiling": _one_of(*TILING),
    "timing-cache": _switch,
    "refit": _flag,
    "strip-weights": _flag,
    "weight-streaming": _budget,
    "hardware-compatibility": _one_of(*HARDWARE),
    "version-compatible": _flag,
    "embed-plugins": _flag,
    "memory": byte_count,
    "segments": _segments,
}
BuildOptions.NAMES = tuple(_READ)
DEFAULTS = BuildOptions()
assert tuple(f.name.replace("_", "-") for f in dataclasses.fields(BuildOptions)) == BuildOptions.NAMES
