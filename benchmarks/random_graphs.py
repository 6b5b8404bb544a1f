"""Graphs of models of published sizes, quantized as a recipe says, of random numbers: nothing is calibrated, and no checkpoint is stored.

The checkpoint is a file of holes but for what stays in floating point; codes are made when they are written. What a method adds to a
layer, a balance or a rotation, has the form that the method gives it, with random values. Which attention's rotation v makes is found as
calibration finds it, in a random model of the same widths and two blocks of each kind.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from vditc.adapter import ModelAdapter
from vditc.axis import Axis
from vditc.calibrate.attention_outputs import AttentionOutput, attention_outputs, paired, parts_of
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibration import Calibration, Kept, LayerCalibration
from vditc.correction import Correction
from vditc.export.adapters.registry import adapter_for
from vditc.export.describe import describe_inputs
from vditc.export.linears import normalise_linears
from vditc.export.stage import insert_weights, traced_graph
from vditc.hadamard import block_of
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.recipe import Recipe
from vditc.schedule import Schedule
from vditc.scheme import QTensor, QuantSpec, QWeight, Scheme, Stored, scale_shape, unpack_int4
from vditc.transform import OutputTransform, Transform

Array = npt.NDArray[Any]
REPEAT = 8 << 20  # bytes of random numbers that are repeated
LATENT_FRAMES = 21
STEPS = 50
RANK = 32  # of SVDQuant's branch
ANY = Scheme(weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL))  # where it only matters that there is one
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block, in a layer's name


@dataclasses.dataclass(frozen=True)
class Form:
    """What a method adds to every layer that a recipe quantizes."""

    recipe: str  # whose schemes
    shift: bool = False
    balance: bool = False
    rotation: bool = False  # of the whole width behind random signs; behind attention of each head, and made by v where it can be
    low_rank: bool = False
    estimator: bool = False  # Q-VDiT's rank-1 term, with a factor for every frame where rows are frames
    clip: bool = False  # a share of the range for every step


FORMS = {
    "w8a8": Form("w8a8"),
    "SmoothQuant w8a8": Form("w8a8", balance=True),
    "ViDiT-Q w4a8": Form("w4a8", balance=True, rotation=True),
    "static w8a8": Form("w8a8-static"),
    "QVD w8a8": Form("w8a8-qvd", shift=True, balance=True),
    "Q-VDiT w3a6": Form("w3a6", balance=True, rotation=True, estimator=True),
    "QVGen w4a4": Form("w4a4", rotation=True, clip=True),
    "SVDQuant w4a4": Form("w4a4-svdquant", balance=True, low_rank=True),
}


def sparse_model(config: Mapping[str, Any], folder: Path, recipe: Recipe | None) -> ModelDir:
    """A model directory: bfloat16, random where the recipe keeps a layer (nowhere without one), holes elsewhere."""
    from export import STEM, tensor_shapes  # noqa: TID251 # benchmarks/export.py

    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensor_shapes(dict(config)).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file = folder / "transformer" / f"{STEM}.safetensors"
    file.parent.mkdir(parents=True)
    (file.parent / "config.json").write_text(json.dumps(config))
    with file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + end)
    source = ModelDir.open(folder, hash_now=False)
    if recipe is not None:
        rules = recipe.assign(adapter_for(source).layer_roles(source))
        holes = {f"{layer}.weight" for layer, rule in rules.items() if rule.scheme is not None}
        fill(source, source.weights.keys() - holes)
    return source


def fill(source: ModelDir, names: Iterable[str]) -> None:
    """Random values for these tensors of a sparse model."""
    for name in names:
        entry = source.weights[name]
        with entry.path.open("r+b") as f:
            f.seek(entry.offset)
            f.writelines(part.data for part in _pieces(_noise(), entry.nbytes))


def random_graph(source: ModelDir, form: Form, frames: int = LATENT_FRAMES, *, codes: bool = True) -> ir.Model:
    """The canonical graph, its weights still to be written; `frames` of the latents, where factors are for so many alone.

    Without `codes` they are zeros, for a graph that is looked at only.
    """
    adapter, recipe = adapter_for(source), Recipe.load(form.recipe)
    graph = traced_graph(source, adapter)
    calibration = random_calibration(source, adapter, recipe, form, groups(graph, source), frames, codes)
    insert_weights(graph, source, calibration)
    sizes = adapter.sizes(source)
    describe_inputs(graph, adapter.inputs(source), sizes if calibration.latent_frames is None else sizes.pinned("frames", frames))
    return graph


def groups(graph: ir.Model, source: ModelDir) -> dict[str, str]:
    """Layer -> the first layer of its block that reads the same tensor: methods give them one transform."""
    found: dict[str, str] = {}
    seen: dict[tuple[str, Any], str] = {}
    for layer, (matmul, *_) in normalise_linears(graph.clone().graph, source).items():
        block = re.split(r"(?<=\.\d)\.|(?<=\.\d\d)\.", layer, maxsplit=1)[0]
        found[layer] = seen.setdefault((block, matmul.inputs[0]), layer)
    return found


def rotated_attention(source: ModelDir, adapter: ModelAdapter, quantized: Iterable[str]) -> list[AttentionOutput]:
    """Attention whose rotation v makes, by calibration's own search: in a random model of these widths and two blocks of each list."""
    config = adapter.shortened(source.config, (2,) * len(adapter.loops(source.config)))
    heads = _heads(json.dumps(config), frozenset(map(_kind, quantized)))
    pairs = paired(adapter.layer_roles(source))
    return [dataclasses.replace(one, head=heads[_kind(one.outs[0])]) for one in pairs if _kind(one.outs[0]) in heads]


@functools.cache
def _heads(config: str, quantized: frozenset[str]) -> dict[str, int]:
    """Kind of layer behind attention -> channels of a head."""
    with tempfile.TemporaryDirectory() as folder:
        source = sparse_model(json.loads(config), Path(folder), None)
        fill(source, source.weights)
        adapter = adapter_for(source)
        roles, axes, random = adapter.layer_roles(source), adapter.sizes(source).axes, np.random.default_rng(0)
        found, _ = attention_outputs(
            lambda: FullPrecision(adapter, source, torch.device("cpu")),
            {spec.name: spec.example({name: _few(axis) for name, axis in axes.items()}, random) for spec in adapter.inputs(source)},
            {layer: ANY for layer in roles if _kind(layer) in quantized},
            roles,
        )
    return {_kind(out): one.head for one in found for out in one.outs}


def random_calibration(
    source: ModelDir, adapter: ModelAdapter, recipe: Recipe, form: Form, same: Mapping[str, str], latents: int, codes: bool
) -> Calibration:
    """Every layer that the recipe quantizes, in that form."""
    layers: dict[str, LayerCalibration] = {}
    kept: dict[str, Kept] = {}
    roles = adapter.layer_roles(source)
    rules = recipe.assign(roles)
    quantized = [layer for layer, rule in rules.items() if rule.scheme is not None]
    pairs = rotated_attention(source, adapter, quantized) if form.rotation else []
    behind = {out: one for one in pairs for out in one.outs}
    outputs: dict[str, OutputTransform] = {}
    for layer, rule in rules.items():
        shape = source.weights[f"{layer}.weight"].shape
        if rule.scheme is None:
            kept[layer] = Kept(role=roles[layer], reason=str(rule.keep), shape=shape)
            continue
        pair = behind.get(layer)
        group = same.get(layer, layer) if pair is None else pair.outs[0]  # streams that attend together have one transform
        random = np.random.default_rng(zlib.crc32(group.encode()))
        act, (n, k) = rule.scheme.activation, shape
        order = adapter.frame_order(source, layer) if form.estimator else None
        frames = adapter.frames_of(source, latents)
        transform = _transform(form, random, n, k, pair)
        outputs |= {} if pair is None else pair.transforms(parts_of(roles), transform)
        layers[layer] = LayerCalibration(
            role=roles[layer],
            scheme=rule.scheme,
            weight=RandomWeight(rule.scheme.weight, (n, k), codes),
            activation_scale=_steps(0.04, 0.06) if act is not None and act.ranged else None,
            transform=transform,
            activation_clip=_steps(0.7, 1) if form.clip else None,
            correction=Correction(
                bias=_normal(random, n) if form.shift else None,
                alpha=_normal(random, k) if form.estimator else None,
                beta=_normal(random, n) if form.estimator else None,
                frames=np.linspace(0.5, 1, frames, dtype=np.float32) if order is not None else None,
                order=order,
            ),
        )
    calibration = Calibration(
        model_class=source.model_class,
        model_digest="0" * 64,
        recipe=recipe.name,
        recipe_digest=recipe.digest,
        method=recipe.method,
        schedule=Schedule.flow(np.linspace(1, 0, STEPS + 1)),
        guidance_scale=1.0,
        layers={layer: dataclasses.replace(known, output=outputs.get(layer)) for layer, known in layers.items()},
        kept=kept,
        statistics={},
        latent_frames=latents if form.estimator else None,
    )
    calibration.check_outputs()
    return calibration


@dataclasses.dataclass(frozen=True)
class RandomWeight(QWeight):
    """Random codes."""

    spec: QuantSpec
    size: tuple[int, int]
    codes: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.size

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Of the scale."""
        return np.dtype(np.float32)

    def stored(self, *, transposed: bool = False) -> Stored:
        """See `QWeight.stored`."""
        bits = self.spec.qtype.bits
        packed = 2 if bits <= 4 else 1
        outer, inner = self.size[::-1] if transposed else self.size
        low, high = int(self.spec.qtype.low), int(self.spec.qtype.high)
        count = self.count // packed
        codes = np.concatenate(list(_pieces(_codes(low, high, packed), count))) if self.codes else np.zeros(count, np.uint8)
        codes = codes.reshape(outer, inner // packed).view(np.uint8 if packed == 2 else np.int8)
        scale = np.full(scale_shape(self.size, self.spec), 1 / (self.spec.qtype.high * math.sqrt(self.size[1])), np.float32)
        zero = None if self.spec.symmetric else np.linspace(-1, 1, self.size[0], dtype=np.float32)
        return Stored(codes, scale.T if transposed else scale, zero, None)

    def read(self) -> QTensor:
        """The whole tensor."""
        codes, scale, zero_point, _ = self.stored()
        whole = unpack_int4(codes, self.size) if self.spec.qtype.bits <= 4 else codes
        return QTensor(whole, scale, self.spec, zero_point)


def _kind(layer: str) -> str:
    """The same for all blocks of a list."""
    return NUMBER.sub("N", layer)


def _few(axis: Axis) -> int:
    """Two steps, where the axis may have them."""
    size = max(axis.least, 2 * axis.multiple)
    return size if axis.greatest is None else min(size, axis.greatest)


def _transform(form: Form, random: np.random.Generator, n: int, k: int, pair: AttentionOutput | None) -> Transform:
    """Of a layer [n, k]; `pair`: the attention that gives its input out rotated already."""
    shift, balance = 0.1 * _normal(random, k), np.exp(0.3 * _normal(random, k))
    signs = np.where(np.random.default_rng((0, k)).random(k) < 0.5, np.float32(-1), np.float32(1))  # one vector for a width
    made = (balance if form.balance else np.float32(1)) * (signs if form.rotation else np.float32(1))
    half = np.float16
    return Transform(
        shift=shift if form.shift else None,
        balance=np.asarray(made, np.float32) if form.balance or form.rotation else None,
        rotation=block_of(k if pair is None else pair.head) if form.rotation else None,
        down=(_normal(random, RANK, k) / k).astype(half) if form.low_rank else None,
        up=_normal(random, n, RANK).astype(half) if form.low_rank else None,
        made_by=() if pair is None else pair.values,
    )


def _normal(random: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return random.standard_normal(shape, np.float32)


def _steps(first: float, last: float) -> npt.NDArray[np.float32]:
    return np.linspace(first, last, STEPS, dtype=np.float32)


@functools.cache
def _noise() -> npt.NDArray[np.uint8]:
    values = np.random.default_rng(0).standard_normal(REPEAT // 2, np.float32) * np.float32(0.02)
    return values.astype(ml_dtypes.bfloat16).view(np.uint8)


@functools.cache
def _codes(low: int, high: int, packed: int) -> npt.NDArray[np.uint8]:
    codes = np.random.default_rng(0).integers(low, high + 1, (REPEAT, packed), np.int8)
    return codes.view(np.uint8)[:, 0] if packed == 1 else np.asarray((codes[:, 0] & 15) | (codes[:, 1] << 4), np.int8).view(np.uint8)


def _pieces(block: npt.NDArray[np.uint8], nbytes: int) -> Iterable[npt.NDArray[np.uint8]]:
    return (block[: min(len(block), nbytes - start)] for start in range(0, nbytes, len(block)))
