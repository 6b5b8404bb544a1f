"""Calibrations of the tiny model with all that a method may add: asymmetric weights, shifts, clips, corrections."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from tiny_export import FEW_BITS, SCHEMES, calibration

from vditc.calibration import Calibration
from vditc.correction import Correction, FrameOrder
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity
from vditc.transform import IDENTITY, Transform

F32 = np.float32
ALL = {**SCHEMES, **FEW_BITS}


def random(name: str, role: str) -> np.random.Generator:
    """Layers that share an input have one shift."""
    shared = name.rsplit(".", 1)[0] if role in ("self_attn.q", "self_attn.k", "self_attn.v") else name
    return np.random.default_rng(zlib.crc32(shared.encode()))


def shifted(name: str, role: str, shape: tuple[int, ...]) -> Transform:
    return Transform(shift=random(name, role).normal(0, 0.3, shape[1]).astype(F32))


def corrected(name: str, role: str, shape: tuple[int, ...]) -> Correction:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    n, k = shape
    alpha, beta = rng.normal(0, k**-0.5, k).astype(F32), rng.normal(0, 0.3, n).astype(F32)
    if role.startswith("cross_attn.") and role[-1] in "kv":  # text has no frames
        return Correction(alpha=alpha, beta=beta, bias=rng.normal(0, 0.1, n).astype(F32))
    order = FrameOrder.TOKENS_FIRST if role.startswith("ffn") else FrameOrder.FRAMES_FIRST
    return Correction(alpha=alpha, beta=beta, frames=np.array([0.5, 2], F32), order=order)


def of(tiny: ModelDir, scheme: str, kind: str) -> Calibration:
    """`kind`: "zero point", "shift", "correction", "clip" or "all"."""
    known, everything = ALL[scheme], kind == "all"
    assert known is not None
    if (everything or kind == "zero point") and known.weight.granularity is Granularity.PER_CHANNEL:
        known = dataclasses.replace(known, weight=dataclasses.replace(known.weight, symmetric=False))
    return calibration(
        tiny,
        known,
        transform=shifted if everything or kind == "shift" else lambda *_: IDENTITY,
        correction=corrected if everything or kind == "correction" else lambda *_: Correction(),
        clip=(everything or kind == "clip") and known.activation is not None and known.activation.dynamic,
    )
