"""A bundle in place of a diffusers pipeline's transformer."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin

from vditc.adapter import InputSpec
from vditc.bundle import Bundle
from vditc.errors import InputError, VditcError
from vditc.export.adapters.registry import adapters
from vditc.export.diffusers_adapter import DiffusersAdapter
from vditc.pipeline.denoisers import backend_here, open_denoiser
from vditc.runtimes.graph_inputs import model_inputs
from vditc.runtimes.step_table import StepTable
from vditc.sampling import Denoiser

# Arguments that decide nothing about what is computed, or a scale that fused LoRAs have already.
_FREE = frozenset({"return_dict", "attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs"})


class CompiledTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc] # diffusers has no types
    """What `vditc.load` returns: takes the place of `pipe.transformer`, in a constructor, in from_pretrained, or by assignment.

    It has no parameters: tensors go to the denoiser of a backend and come back on the device and in the type of the latents. Its
    schedule is the bundle's; where the graph has tables of steps, a timestep that is none of theirs is an InputError. A context
    manager; `close` frees the engine.
    """

    def __init__(self, bundle: Bundle, backend: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.bundle, self.backend = bundle, backend
        self._dtype, self._device = dtype, torch.device("cpu")
        model = bundle.manifest.model
        self._adapter = _adapter(model["class"], bundle.path)
        kind = self._adapter.class_()
        defaults = {p.name: p.default for p in inspect.signature(kind.__init__).parameters.values() if p.default is not p.empty}
        self._internal_dict = FrozenDict({**defaults, **model["config"], "_name_or_path": str(bundle.path)})
        self._names = list(inspect.signature(kind.forward).parameters)[1:]
        self._specs = model_inputs(bundle.file("model.onnx"))
        target = bundle.manifest.targets.get(backend)
        stepped = any(i["name"] == "step" for i in (bundle.manifest.inputs if target is None else target["inputs"]))
        # A graph without tables runs at any time.
        self._table = StepTable(tuple(bundle.manifest.sampling["schedule"]["timesteps"]), str(bundle.path)) if stepped else None
        self._step = 0
        self._stack = contextlib.ExitStack()
        self._denoise: Denoiser | None = self._stack.enter_context(open_denoiser(bundle, backend))

    @property
    def dtype(self) -> torch.dtype:
        """What pipelines give latents and texts as."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where pipelines put their tensors, as the last `to` said."""
        return self._device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As of a module; only what `device` and `dtype` say changes."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        self._device, self._dtype = device or self._device, dtype or self._dtype
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the diffusers class whose place this takes; InputError for arguments that the graph has no form of."""
        if self._denoise is None:
            raise VditcError(
                found="a transformer that was closed", wanted="an open one", where=str(self.bundle.path), fix="load the bundle again"
            )
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        as_dict = call.get("return_dict", True)
        self._check_scale(call)
        call = {n: v for n, v in call.items() if v is not None and n not in _FREE and n not in self._adapter.made_inside}
        latents: torch.Tensor = call["hidden_states"]
        feeds = self._adapter.fed_by(call, self.config)
        arrays = {name: _array(value) for name, value in self._known(feeds).items()}
        if self._table is not None:
            self._step = self._table.step_of(arrays["timestep"], self._step)
        predicted = self._denoise(arrays, self._step)
        tensor = torch.from_numpy(np.array(predicted, np.float32))
        given_back = self._adapter.handed_back(tensor, call).to(latents.device, latents.dtype)
        return Transformer2DModelOutput(sample=given_back) if as_dict else (given_back,)

    @contextlib.contextmanager
    def cache_context(self, name: str, **state: Any) -> Iterator[None]:
        """Pipelines say which branch of the guidance they run; nothing is kept between calls here."""
        yield

    def close(self) -> None:
        """Free the engine; a call after that is an error."""
        self._denoise = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_scale(self, call: dict[str, Any]) -> None:
        for name in _FREE - {"return_dict"}:
            if {n: v for n, v in (call.get(name) or {}).items() if (n, v) != ("scale", 1.0)}:
                raise self._adapter.no_form(f"{name} = {call[name]}", "none: LoRAs are fused when a bundle is compiled, with their scales")

    def _known(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """What the graph takes, with constants that no pipeline names; InputError for more or less than that."""
        specs = {spec.name: spec for spec in self._specs}
        if more := sorted(set(feeds) - set(specs)):
            raise self._adapter.no_form(f"arguments {', '.join(more)}", ", ".join(specs))
        found = {name: feeds[name] if name in feeds else _constant(spec) for name, spec in specs.items()}
        if missing := [name for name, value in found.items() if value is None]:
            raise self._adapter.no_form(f"no {', '.join(missing)}", ", ".join(specs))
        return found


def load_transformer(path: Path, backend: str | None = None, dtype: torch.dtype | None = None) -> CompiledTransformer:
    """See `vditc.load`."""
    bundle = Bundle.open(path)
    chosen = backend_here(bundle) if backend is None else backend
    compute = bundle.manifest.targets[chosen]["compute"] if chosen in bundle.manifest.targets else "fp32"
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return CompiledTransformer(bundle, chosen, dtype or types[compute])


def _adapter(model_class: str, path: Path) -> DiffusersAdapter:
    known = {n: a for n, a in adapters().items() if isinstance(a, DiffusersAdapter) and a.in_pipelines and len(a.outputs) == 1}
    if model_class not in known:
        raise InputError(
            found=f"a bundle of {model_class}",
            wanted=f"one of {', '.join(known)}",
            where=str(path),
            fix="sample it with `vditc run`: diffusers has no pipeline that this could be a part of",
        )
    return known[model_class]


def _array(value: Any) -> np.ndarray[Any, Any]:
    """numpy has no bfloat16; the denoiser's own types follow."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def _constant(spec: InputSpec) -> np.ndarray[Any, Any] | None:
    """An input whose value nobody needs to choose, and that has no batch."""
    if isinstance(spec.fill, str) or not all(isinstance(d, int) for d in spec.dims):
        return None
    return np.full(spec.shape({}), spec.fill, spec.dtype)
