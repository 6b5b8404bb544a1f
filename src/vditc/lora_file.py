"""The keys of LoRA files, in the styles of diffusers, peft, kohya and the original releases of video models."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vditc.errors import InputError
from vditc.lora_names import TABLE
from vditc.model_dir import PARTS
from vditc.safetensors_file import TensorEntry, is_float, read_header

_PREFIXES = ("base_model.model.", "diffusion_model.", "model.diffusion_model.", *(f"{p}." for p in PARTS), "lora_unet_")
_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora[._](?P<side>A|B|down|up)(?:\.(?P<adapter>[^.]+))?\.(?P<what>weight|bias)|(?P<other>alpha|diff|diff_b|diff_m))"
)
_KINDS = {  # what a key contains -> the kind of adapter that it belongs to
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
    "lora_mid": "LoCon with a middle factor",
    "lora_embedding_": "embedding LoRA",
}
_DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": TABLE}
_PEFT, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # what peft saves
_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration


@dataclasses.dataclass
class LoraModule:
    """The tensors of one module: `down` is A [rank, K, ...], `up` is B [N, rank, ...]; differences are added as they are."""

    down: TensorEntry | None = None
    up: TensorEntry | None = None
    up_bias: TensorEntry | None = None
    alpha: TensorEntry | None = None
    differences: dict[str, TensorEntry] = dataclasses.field(default_factory=dict)  # parameter -> what is added to it
    factor: float = 1.0  # alpha / rank

    def products(self) -> list[tuple[str, TensorEntry, TensorEntry | None, float]]:
        """(parameter, up, down, factor): factor * up @ down, or factor * up, is added to the parameter."""
        found: list[tuple[str, TensorEntry, TensorEntry | None, float]] = []
        if self.up is not None:
            found.append(("weight", self.up, self.down, self.factor))
        if self.up_bias is not None:
            found.append(("bias", self.up_bias, None, self.factor))
        return [*found, *((parameter, entry, None, 1.0) for parameter, entry in self.differences.items())]


def read_lora(path: Path) -> dict[str, dict[str, LoraModule]]:
    """Transformer ("transformer" when the file does not say) -> module name without prefixes -> its tensors.

    alpha comes from the module's `alpha` tensor, or else from the file's metadata (diffusers) or adapter_config.json beside
    adapter_model.safetensors (peft), or else it is the rank. InputError for damaged files, keys that are not understood, other
    kinds of adapters, and halves of pairs.
    """
    entries, metadata = read_header(path)
    if kind := next((k for word, k in _KINDS.items() for name in entries if word in name), None):
        raise _bad(path, f"a {kind} adapter", "LoRA", "merge it into the checkpoint with the tool that made it")
    parts: dict[str, dict[str, LoraModule]] = {}
    adapters: set[str] = set()
    slots: dict[tuple[str | None, ...], str] = {}
    for key, entry in entries.items():
        part, plain = _without_prefix(key)
        match = _KEY.fullmatch(plain)
        if match is None:
            unknown = [k for k in entries if _KEY.fullmatch(_without_prefix(k)[1]) is None]
            raise _bad(
                path, f"{len(unknown)} keys that are not of a LoRA, first {key}", "lora_A / lora_B, lora_down / lora_up, alpha or diff"
            )
        if not is_float(entry.dtype) and match["other"] != "alpha":
            raise _bad(path, f"{key} in {entry.dtype}", "floating point")
        if match["side"]:
            adapters.add(match["adapter"] or "")
        side = {"A": "down", "B": "up"}.get(match["side"], match["side"])
        if (other := slots.setdefault((part, match["module"], side, match["what"] or match["other"]), key)) != key:
            raise _bad(path, f"{other} and {key} for the same factor", "each factor once")
        _put(path, parts.setdefault(part, {}).setdefault(match["module"], LoraModule()), match, entry, key)
    if not parts:
        raise _bad(path, "no tensor", "a LoRA file")
    if len(adapters) > 1:
        raise _bad(path, f"adapters {', '.join(sorted(repr(a) for a in adapters))}", "one adapter", "save each to a file of its own")
    settings = _settings(path, metadata)
    if residual := _residual(settings):
        raise _bad(
            path, f"an adapter with {residual}", "one that is added to the model's own weights", "convert it to a plain LoRA with peft"
        )
    for part, modules in parts.items():
        for name, module in modules.items():
            if (module.up is None) != (module.down is None) or (module.up is None and (module.up_bias or module.alpha) is not None):
                raise _bad(path, f"{name} without its {'lora_A (down)' if module.down is None else 'lora_B (up)'}", "both factors")
            if module.down is not None:
                module.factor = _factor(path, part, name, module, settings)
    return parts


def lora_files(path: Path) -> list[Path]:
    """The files that what `read_lora` returns depends on."""
    beside = path.with_name(_SETTINGS)
    return [path, beside] if path.name == _PEFT and beside.exists() else [path]


def _bad(path: Path, found: str, wanted: str, fix: str = "save the LoRA again, or use another") -> InputError:
    return InputError(found=found, wanted=wanted, where=str(path), fix=fix)


def _without_prefix(key: str) -> tuple[str, str]:
    part = PARTS[0]
    while prefix := next((p for p in _PREFIXES if key.startswith(p)), None):
        part = prefix.removesuffix(".") if prefix == f"{PARTS[1]}." else part
        key = key.removeprefix(prefix)
    return part, key


def _put(path: Path, module: LoraModule, match: re.Match[str], entry: TensorEntry, key: str) -> None:
    if match["other"] == "alpha":
        if math.prod(entry.shape) != 1:
            raise _bad(path, f"{key} {list(entry.shape)}", "one number")
        module.alpha = entry
    elif match["other"]:
        if not entry.shape:
            raise _bad(path, f"{key} []", "what is added to a parameter")
        module.differences[_DIFFERENCES[match["other"]]] = entry
    elif match["what"] == "bias":
        if match["side"] not in ("B", "up"):
            raise _bad(path, key, "a bias of lora_B only")
        module.up_bias = entry
    elif not entry.shape or min(entry.shape) < 1 or len(entry.shape) < 2:
        raise _bad(path, f"{key} {list(entry.shape)}", "a matrix or a convolution's kernel")
    elif match["side"] in ("A", "down"):
        module.down = entry
    else:
        module.up = entry


def _settings(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """peft's configuration, if it is there."""
    beside = path.with_name(_SETTINGS)
    try:
        if _METADATA in metadata:
            data = json.loads(metadata[_METADATA])
        elif path.name == _PEFT and beside.exists():
            path, data = beside, json.loads(beside.read_text())
        else:
            data = {}
    except (OSError, ValueError) as error:
        raise _bad(path, f"a configuration that is not JSON ({error})", "peft's configuration") from error
    if not isinstance(data, dict):
        raise _bad(path, f"a configuration that is a {type(data).__name__}", "a JSON object")
    return data


def _residual(settings: Mapping[str, Any]) -> str | None:
    """What makes peft add the pairs to other weights than the model's: to what is left of them (PiSSA, OLoRA, CorDA), or to copies."""
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        if name == "init_lora_weights" and isinstance(value, str) and value.lower().startswith(("pissa", "olora", "corda")):
            return f"{key} = {value}"
        if name == "layer_replication" and value:
            return key
    return None


def _factor(path: Path, part: str, name: str, module: LoraModule, settings: Mapping[str, Any]) -> float:
    """alpha / rank, or alpha / sqrt(rank) where peft says so (rsLoRA)."""
    assert module.down is not None
    rank = module.down.shape[0]

    def setting(key: str) -> Any:
        return settings.get(f"{part}.{key}", settings.get(key))

    if module.alpha is not None:
        alpha: Any = float(module.alpha.read().reshape(()))
    else:
        # A pattern names the end of modules' names: that module's alpha goes before the common one.
        patterns = setting("alpha_pattern") or {}
        try:
            own = next((a for p, a in patterns.items() if re.fullmatch(rf"(.*\.)?({p})", name)), None)
        except (AttributeError, re.error) as error:
            raise _bad(path, f"alpha_pattern = {str(patterns)[:60]}", "regular expression -> alpha") from error
        alpha = next((a for a in (own, setting("lora_alpha")) if a is not None), rank)
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise _bad(path, f"alpha = {alpha!r} of {name}", "a finite number")
    stable = module.alpha is None and setting("use_rslora")
    return float(alpha) / (math.sqrt(rank) if stable else rank)
