"""Relative L2 distance of a lowered graph's output from the canonical graph's; what passes may do stands, with reasons, in the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.graph_passes.tolerances import TOLERANCES
from vditc.plugins.qlinear import reference as qlinear_reference
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.quantize_token import reference

# (type that the rest computes in, type of the activations' codes or None where none is quantized)
LOWERED: dict[tuple[str, str | None], float] = {
    # The passes for float32 change no arithmetic.
    **{("fp32", codes): TOLERANCES["exact", codes] for codes in (None, "int8", "int6")},
    **{("fp16", codes): TOLERANCES["fp16", codes] for codes in (None, "int8", "int6")},
    # Transforms and step scales that went into what computes an input: it is rounded elsewhere, and where that falls on the other side of a
    # tie, a code flips by one. float16 alone gives the second figure, folded or not; 8.2e-4 and 1.7e-2 are the greatest that were measured
    # of six families at three sizes.
    ("fp32", "int8 folded"): 2e-3,
    ("fp16", "int8 folded"): 2e-2,
}

# A product of two float32 numbers is rounded where another one was: a few times 2^-24 of the greatest, in sums of some ten terms.
FOLDED = 2e-6
# The same where codes are made of it: one of the few that a small test has may flip, by 1 of 127.
FOLDED_CODES = 1e-2

# Tables instead of the time path, in float32: one row is computed by itself, not one for every clip, so that its products sum in
# another order; where that meets a tie of the rounding, a code flips.
TABLES: dict[str | None, float] = {None: 1e-6, "int8": 1e-2, "int6": 4e-2}

# Samplers against diffusers', of the greatest latent after up to 50 steps. Numbers of a step are computed in float64 here and in float32
# there, where differences of logarithms lose some bits: 7e-6 was the greatest; and a 3 x 3 system of UniPC's third order some more: 1.4e-5.
# Where a level has next to no signal (cosine betas, zero terminal SNR), a clip is what is left of latents divided by it,
# and solvers of the noise multiply latents by hundreds in one step: the wider limit.
SAMPLER = 2e-5
SAMPLER_OF_ORDER_3 = 1e-4
# Cosine betas leave a share of signal of 1/4000 and less at the first level, by which float32's 6e-8 is divided: 2.2e-4 was seen.
SAMPLER_OF_COSINES = 1e-3
# Noise levels of models with betas: PyTorch's square roots are a unit in the last place off here and there.
NOISE_LEVELS = 3e-7
# Where the root of the last share is taken away from all (zero terminal SNR), that unit is a greater part of the late ones.
NOISE_LEVELS_RESCALED = 1e-4
# A pipeline of diffusers against our own sampling around one quantized model: guidance sums in another order, and where that meets a tie of
# the rounding, a code flips; over four steps 1.2e-3 was seen, less than 1e-5 where none does (which depends on the CPU).
PIPELINE = 1e-2


def relative_l2(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """|found - wanted| / |wanted|."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


# The body of an operator of the plugin library, in ONNX Runtime, against the oracle: a sum of up to four float32 products in another order
# and another GELU (1e-6 of the greatest element); a float16 output may round to the other side (2^-11).
PLUGIN_BODY = {"fp32": 2e-6, "fp16": 5e-4}

# Where `vditc.QuantizeToken` sums (a norm, a rotation) or has GELU: a kernel, ONNX Runtime and the oracle add float32 numbers in orders of
# their own, and values next to a tie of the rounding get the neighbouring code. Of codes the share that may be off by one; of a scale the
# relative error, which is some roundings of 2^-24; also of a weighed sum of codes, relative to the sum of its magnitudes.
CODES_OFF = reference.CODES_OFF
BRANCH_OFF = qlinear_reference.BRANCH_OFF  # of the sum of magnitudes of a low-rank branch
SCALE_OFF = reference.SCALE_OFF

# A kernel's GELU against the oracle's, which is float64 rounded once: a few float32 operations and the library's erf or tanh, relative to
# the greatest element; a 16-bit output may round to the other side.
KERNEL_GELU = {"fp32": 2e-6, "fp16": 2.0**-10, "bf16": 2.0**-7}

# What lies as near as a value of float32 to one that was rounded: the neighbour on the other side, relative.
ONE_ROUNDING = {"fp32": 2.0**-22, "fp16": 2.0**-10, "bf16": 2.0**-7}

# The same for each element, for golden files: erff and tanhf are off by some units in the last place of numbers up to 2, times x / 2, and
# five roundings are added. In units of |GELU(x)| or 8, whichever is greater: from x = -8 on GELU is 0 in float32.
GELU_OFF = 2.0**-20


def qlinear_allowed(op: QLinear, given: dict[str, npt.NDArray[Any]], y: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
    """How far an element of a kernel's output may be from the oracle's, float32 [..., N]; None where both must be equal bit for bit."""
    if not op.low_rank and op.activation == "none":
        return None
    wide = np.abs(y.astype(np.float64))
    off = np.zeros(y.shape)
    if op.low_rank:
        off = off + BRANCH_OFF * qlinear_reference.branch_magnitude(given["down"], given["up"])
    if op.activation != "none":
        assert not op.gated, "what GELU gave is not known behind a gate"
        off = off * 1.13 + GELU_OFF * np.maximum(wide, 8)  # 1.13: the greatest slope of GELU
    if op.gated:
        off = off * np.abs(given["gate"].astype(np.float64))
    allowed = off + ONE_ROUNDING[op.output] * wide + np.finfo(np.float16).smallest_subnormal
    return np.asarray(allowed, np.float32)


# A layer of `vditc.plugins.torch_linear` against float64, relative to the greatest output: sums of float32; of a branch factors that a
# product rounded to float16 on their way to the kernel.
TORCH_LAYER = {"fp32": 1e-5, "fp16 branch": 2e-3}

# `vditc.QAttention` against float32 attention, relative L2, normal q, k and v: INT8 codes of q and k have steps of about 1/40 of a standard
# deviation, which moves scores by 0.01 of theirs; 0.0076 was seen of 37 tokens.
QATTENTION = 2e-2

# A VAE decoder's chunks against diffusers', both in float32 PyTorch: norms and attention are written otherwise; pixels in [-1, 1].
VAE_CHUNKS = 1e-5
# The same in ONNX Runtime, whose convolutions sum in another order.
VAE_GRAPHS = 5e-5
# A text encoder's vectors, up to 3, both in float32 PyTorch: attention is spelt out, over other lengths.
TEXT_VECTORS = 3e-5
# A text encoder's vectors, relative to the greatest: ONNX Runtime against PyTorch, float32.
TEXT_GRAPH = 1e-5
# With matrices of 8 bits, on random weights of two blocks: rounding is 1/254 of a channel's range, FP8 has 3 bits of mantissa.
TEXT_W8, TEXT_FP8 = 0.05, 0.15
# A whole pipeline in float32, four steps with guidance, against diffusers: latents about 1, pixels of 8 bits.
PIPELINE_LATENTS = 2e-3

# Clips of float32 models after some steps, and what their layers read: diffusers' own modules, the exporter's, and ONNX Runtime sum in
# orders of their own (9e-7 was measured).
WALKED = 5e-6
