"""The quantized PyTorch model: canonical arithmetic in float32, the oracle that every graph and engine is held against.

Nothing is fused and nothing is folded: each quantized linear does what its Q/DQ nodes in model.onnx say, in their order.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import linear

from vditc.adapter import ModelAdapter
from vditc.calibration import Calibration, LayerCalibration
from vditc.errors import InputError
from vditc.float_codes import BLOCK, LEAST_BLOCK_SCALE
from vditc.model_dir import ModelDir
from vditc.numerics import EPS, QType
from vditc.runtimes.layer_times import OTHERS, modules
from vditc.sampling import Feeds
from vditc.scheme import QuantSpec, zero_offset
from vditc.torch_device import exact_float32, torch_device
from vditc.torch_transform import InputTransform, OutputChange

Array = npt.NDArray[Any]


class ReferenceModel:
    """A denoiser (vditc.sampling.Denoiser) that runs in PyTorch; without a calibration it is the full-precision model."""

    def __init__(self, adapter: ModelAdapter, source: ModelDir, calibration: Calibration | None, device: str = "cpu") -> None:
        """`device`: auto, cpu or cuda[:N]. InputError when the calibration is of another model, or the device is not there."""
        self.adapter, self.device = adapter, torch_device(device)
        self.model = adapter.load(source)
        self.quantized: dict[str, QuantizedLinear] = {}
        self.steps: int | None = None  # of the per-step tables, if any
        self.frames = None if calibration is None else calibration.latent_frames
        if calibration is not None:
            check_same_model(source, calibration)
            calibration.check_outputs()
            for name, layer in calibration.layers.items():
                self.quantized[name] = QuantizedLinear(layer, linear_of(self.model, name).bias)
                self.model.set_submodule(name, self.quantized[name])
            if any(layer.layer.per_step for layer in self.quantized.values()):
                self.steps = len(calibration.timesteps)
        self.model.to(self.device)

    def __call__(self, feeds: Feeds, step: int) -> Array:
        """What the adapter's `inputs` name -> velocity float32 [B, C, F, H, W].

        `step` chooses the row of per-step tables; InputError when they have none for it.
        """
        if self.steps is not None and not 0 <= step < self.steps:
            raise InputError(
                found=f"step {step}",
                wanted=f"0 to {self.steps - 1}, the steps that were calibrated",
                where="per-step tables of activations",
                fix="sample with the calibrated schedule, or calibrate for this one",
            )
        latents = next(iter(feeds.values()))
        if self.frames is not None and latents.shape[2] != self.frames:
            raise InputError(
                found=f"clips of {latents.shape[2]} latent frames",
                wanted=f"{self.frames}, for which the per-frame factors were calibrated",
                where="token-aware compensation",
                fix="sample as many frames as were calibrated",
            )
        for layer in self.quantized.values():
            layer.step, layer.clips = step, len(latents)
        given = {n: torch.tensor(a, device=self.device) for n, a in feeds.items()}
        with exact_float32():
            velocity: Array = self.adapter.forward(self.model, given).cpu().numpy()
        return velocity

    def layer_seconds(self, feeds: Feeds, step: int, runs: int) -> dict[str, float]:
        """Module -> seconds of a step, the mean of `runs`, what the modules in it take left out: that of an attention is its scores."""
        times: list[tuple[str, float]] = []
        open_calls: list[list[float]] = []  # when it began, seconds of the calls in it

        def now() -> float:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter()

        def before(*_: Any) -> None:
            open_calls.append([now(), 0.0])

        def behind(name: str) -> Callable[..., None]:
            def ended(*_: Any) -> None:
                began, inside = open_calls.pop()
                took = now() - began
                times.append((f"{name}/forward" if name else OTHERS, took - inside))
                if open_calls:
                    open_calls[-1][1] += took

            return ended

        hooks = [
            hook
            for name, module in self.model.named_modules()
            for hook in (module.register_forward_pre_hook(before), module.register_forward_hook(behind(name)))
        ]
        try:
            for _ in range(runs):
                self(feeds, step)
        finally:
            for hook in hooks:
                hook.remove()
        return {module: seconds / runs for module, seconds in modules(times).items()}


class QuantizedLinear(torch.nn.Module):
    """x float32 [..., K] -> [..., N] through quantized weights and, if the scheme says so, quantized activations.

    codes = clip(rint(x / s)) with IEEE division and ties to even, all in float32.
    """

    def __init__(self, layer: LayerCalibration, bias: torch.nn.Parameter | None, *, resident: bool = True, alone: bool = False) -> None:
        """Without `resident` the weight is dequantized whenever it is used, and no memory holds it in between.

        `alone`, in a model whose other layers are not quantized, it transforms its whole input itself, and takes back the transform of
        its output.
        """
        super().__init__()
        self.layer = layer
        if resident:
            self.held = torch.nn.Parameter(self._dequantized(), requires_grad=False)
        self.bias = bias
        if layer.output is not None and bias is not None:
            changed = layer.output.bias(bias.detach().float().cpu().numpy())
            self.bias = torch.nn.Parameter(torch.from_numpy(changed), requires_grad=False)
        self.taken_back = OutputChange(layer.output) if alone and layer.output is not None else None
        self.activation = layer.scheme.activation
        self.step, self.clips = 0, 1  # of the current forward pass: index in the schedule, clips in the batch
        self.inputs = InputTransform(dataclasses.replace(layer.transform, made_by=()) if alone else layer.transform)
        self.correction = _Correction(layer)
        self.table: torch.Tensor | None  # [] or [steps]
        self.clip: torch.Tensor | None  # [steps]
        for name, array in (("table", layer.activation_scale), ("clip", layer.activation_clip)):
            self.register_buffer(name, None if array is None else torch.from_numpy(np.array(array, np.float32)))

    def _dequantized(self) -> torch.Tensor:
        # DequantizeLinear's result has the type of its scale: with float16 scales the product is rounded to float16.
        weight = self.layer.weight
        return torch.from_numpy(weight.read().scaled_codes().astype(weight.value_dtype).astype(np.float32))

    @property
    def weight(self) -> torch.Tensor:
        """Codes times scales [N, K], float32, without the zero points."""
        held: torch.Tensor | None = getattr(self, "held", None)
        return self._dequantized() if held is None else held

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The canonical form of the scheme: the transform, the product of codes, the bias, the corrections, the low-rank branch."""
        x = self.inputs(x)
        spec, scale = self.activation, None
        if spec is None:
            codes = x
        elif self.table is not None and not spec.per_step:
            codes = _nvfp4(x, self.table) if spec.qtype is QType.FP4_E2M1 else _codes(x, self.table, spec) * self.table
        else:
            scale = self.table[self.step] if self.table is not None else self._token_scale(x, spec)
            codes = _codes(x, scale, spec)
        if scale is None:
            y = linear(codes, self.weight, self.bias)
        else:
            y = linear(codes, self.weight) * scale
            y = y if self.bias is None else y + self.bias
        y = self.inputs.add_branch(self.correction(y, codes, scale, self.clips), x)
        return y if self.taken_back is None else self.taken_back.undone(y)

    def _token_scale(self, x: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
        top = x.abs().amax(-1, keepdim=True)
        if self.clip is not None:
            top = top * self.clip[self.step]
        # The divisor is a tensor: CUDA multiplies by the reciprocal of a Python number, which is not IEEE division.
        high = torch.full((), spec.qtype.high, device=x.device)
        return (top / high).clamp_min(EPS)


class _Correction(torch.nn.Module):
    """What asymmetric weights and a layer's correction (`vditc.correction`) add to its output."""

    offset: torch.Tensor | None
    bias: torch.Tensor | None
    alpha: torch.Tensor | None
    beta: torch.Tensor | None
    frames: torch.Tensor | None

    def __init__(self, layer: LayerCalibration) -> None:
        super().__init__()
        c, offset = layer.correction, None
        self.order = c.order
        if not layer.weight.spec.symmetric:
            weight = layer.weight.read()
            offset = zero_offset(weight.scale, weight.zero_point)
        for name, array in (("offset", offset), ("bias", c.bias), ("alpha", c.alpha), ("beta", c.beta), ("frames", c.frames)):
            self.register_buffer(name, None if array is None else torch.from_numpy(np.array(array, np.float32)))

    def forward(self, y: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor | None, clips: int) -> torch.Tensor:
        """y [..., N] and what is to be added, for an input codes * scale."""
        if self.bias is not None:
            y = y + self.bias
        if self.offset is not None:
            total = codes.sum(-1, keepdim=True)
            y = y + (total if scale is None else total * scale) * self.offset
        if self.alpha is not None and self.beta is not None:
            share = (codes * self.alpha).sum(-1, keepdim=True)
            share = share if scale is None else share * scale
            if self.frames is not None and self.order is not None:
                count = len(self.frames)
                share = (share.reshape(self.order.shape(clips, count)) * self.order.spread(self.frames)).reshape(share.shape)
            y = y + share * self.beta
        return y


def layer_errors(
    adapter: ModelAdapter, source: ModelDir, calibration: Calibration, feeds_by_step: Iterable[tuple[Feeds, int]], device: str = "cpu"
) -> dict[str, float]:
    """Relative output error of every quantized layer on its own full-precision inputs, over all given feeds together.

    `||X W^T - Q(X) Q(W)^T||_F / ||X W^T||_F`, without biases; one full-precision forward pass a feed. Layers that did not run are
    left out. Holds the full-precision model and one dequantized weight at a time.
    """
    check_same_model(source, calibration)
    model = ReferenceModel(adapter, source, None, device)
    sums: dict[str, tuple[float, float]] = {}  # squared norms of error and output
    step, clips = 0, 1

    def measure(name: str, layer: LayerCalibration) -> Any:
        def hook(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
            quantized = QuantizedLinear(layer, None, alone=True).to(model.device)
            quantized.step, quantized.clips = step, clips
            exact = linear(inputs[0], module.weight)
            error, norm = sums.get(name, (0.0, 0.0))
            sums[name] = (error + _square(exact - quantized(inputs[0])), norm + _square(exact))

        return hook

    for name, layer in calibration.layers.items():
        linear_of(model.model, name).register_forward_hook(measure(name, layer))
    for feeds, step in feeds_by_step:  # the hooks read step and clips
        clips = len(next(iter(feeds.values())))
        model(feeds, step)
    # An output of nothing but zeros comes from zeros, which every scheme keeps.
    return {name: math.sqrt(error / norm) if norm else 0.0 for name, (error, norm) in sums.items()}


def _codes(x: torch.Tensor, scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    if spec.qtype is QType.FP8_E4M3:
        return _e4m3(x / scale)
    return torch.round(x / scale).clamp(spec.qtype.low, spec.qtype.high)  # torch.round takes ties to even


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    """Nearest E4M3, ties to even, saturated: a cast alone would give NaN."""
    high = QType.FP8_E4M3.high
    return x.clamp(-high, high).to(torch.float8_e4m3fn).float()


def _nvfp4(x: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """x [..., K] through NVFP4 codes and back (vditc.float_codes), with the static scale of the tensor."""
    high = QType.FP4_E2M1.high
    blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
    share = blocks.abs().amax(-1, keepdim=True) / torch.full((), high, device=x.device) / whole
    scale = _e4m3(share).clamp_min(float(LEAST_BLOCK_SCALE)) * whole
    ratio = (blocks / scale).clamp(-high, high)
    size = ratio.abs()
    gap = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))  # between codes; torch.round takes ties to even
    return (torch.round(ratio / gap) * gap * scale).flatten(-2)


def _square(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def linear_of(model: Any, name: str) -> torch.nn.Linear:
    """A linear of a torch module; InputError for another layer."""
    module = model.get_submodule(name)
    if not isinstance(module, torch.nn.Linear):
        raise InputError(
            found=f"{type(module).__name__} {name}", wanted="torch.nn.Linear", where="calibration", fix="keep this layer in floating point"
        )
    return module


def check_same_model(source: ModelDir, calibration: Calibration) -> None:
    """InputError unless the calibration is of this checkpoint and of layers that it has."""
    if calibration.model_digest != source.digest:
        raise InputError(
            found=f"a calibration of model {calibration.model_digest[:12]}",
            wanted=f"one of model {source.digest[:12]}",
            where=str(source.path),
            fix="calibrate this model",
        )
    if strangers := [name for name in calibration.layers if f"{name}.weight" not in source.weights]:
        raise InputError(
            found=f"{len(strangers)} layers that the model has not: {', '.join(strangers)}",
            wanted="layers of this model",
            where=f"calibration {calibration.file or calibration.recipe}",
            fix="calibrate this model again",
        )
