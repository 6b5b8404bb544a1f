"""How attention is quantized, and what calibration found of it: nouns without arithmetic.

    S = q k^T / sqrt(D);  P = exp(S - max S), in [0, 1];  O = P v / sum P

`qk`: codes of q and k, symmetric, a scale for every `block_size` neighbouring tokens of a head. `smooth_k` takes the mean over the
tokens from k first, which adds the same number to a whole row of S and so leaves P as it is (SageAttention, arXiv 2410.02367, eq. 4).
`pv`: codes of P with the static scale 1 / 448 (FP8) or 1 / 127 (INT8), and of v with a scale for every channel of a head
(SageAttention2, arXiv 2411.10958, section 3.3). `smooth_v` takes the mean over the tokens from v and adds it to O.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import InputError
from vditc.numerics import QType, short

QK, PV = (QType.INT8,), (QType.INT8, QType.FP8_E4M3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionScheme:
    """One scheme for every attention of a model. `qk` or `pv` None: that product stays in floating point."""

    qk: QType | None = None
    pv: QType | None = None
    smooth_k: bool = False
    smooth_v: bool = False
    block_size: int = 1  # 1: a scale for every token

    def __post_init__(self) -> None:
        def bad(found: str, wanted: str) -> InputError:
            return InputError(found=found, wanted=wanted, where="[attention]", fix="correct the recipe")

        if self.qk is None and self.pv is None:
            raise bad("neither qk nor pv", "at least one of them")
        for name, qtype, known in (("qk", self.qk, QK), ("pv", self.pv, PV)):
            if qtype is not None and qtype not in known:
                raise bad(f"{name} = {qtype.value!r}", " or ".join(q.value for q in known))
        if self.qk is None and (self.smooth_k or self.block_size != 1):
            raise bad("smooth_k or block_size without qk", "qk, or neither of these")
        if self.pv is None and self.smooth_v:
            raise bad("smooth_v without pv", "pv, or no smooth_v")
        if self.block_size < 1:
            raise bad(f"block_size = {self.block_size}", "1 (a scale for every token) or more")

    def __str__(self) -> str:
        shared = "per token" if self.block_size == 1 else f"per {self.block_size} tokens"
        qk = "float" if self.qk is None else f"{self.qk.value} {shared}" + (", smooth k" if self.smooth_k else "")
        pv = "float" if self.pv is None else self.pv.value + (", smooth v" if self.smooth_v else "")
        return f"QK[{qk}] PV[{pv}]"

    def to_json(self) -> dict[str, Any]:
        """Plain data, the inverse of `from_json`."""
        return {**dataclasses.asdict(self), "qk": self.qk and self.qk.value, "pv": self.pv and self.pv.value}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AttentionScheme:
        """Read what `to_json` wrote."""
        types = {key: None if data[key] is None else QType(data[key]) for key in ("qk", "pv")}
        return cls(**{**data, **types})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCalibration:
    """What was seen of one attention module (of one of its calls, where it has several). Ranges are greatest magnitudes."""

    scheme: AttentionScheme
    tokens: tuple[int, int]  # greatest number of queries and of keys
    q: npt.NDArray[np.float32]  # [heads]
    k: npt.NDArray[np.float32]  # [heads of k]
    k_smooth: npt.NDArray[np.float32]  # [heads of k], less the mean over the tokens
    v: npt.NDArray[np.float32]  # [heads of v, channels], less the mean over the tokens if `smooth_v`
    errors: tuple[tuple[int, float], ...]  # step -> relative error of the output, ||quantized - float|| / ||float||
    error: float  # the same over those steps together

    def to_json(self) -> dict[str, Any]:
        """Plain data; `v` only as its maximum over each head's channels."""
        ranges = {"q": self.q, "k": self.k, "k_smooth": self.k_smooth, "v": self.v.max(-1)}
        return {
            "scheme": self.scheme.to_json(),
            "tokens": list(self.tokens),
            "absmax": {name: [short(float(x)) for x in array] for name, array in ranges.items()},
            "errors": [[step, short(error)] for step, error in self.errors],
            "error": short(self.error),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], v: npt.NDArray[np.float32]) -> AttentionCalibration:
        """Read what `to_json` wrote, and the array beside it."""
        q, k, k_smooth = (np.array(data["absmax"][name], np.float32) for name in ("q", "k", "k_smooth"))
        return cls(
            scheme=AttentionScheme.from_json(data["scheme"]),
            tokens=(data["tokens"][0], data["tokens"][1]),
            q=q,
            k=k,
            k_smooth=k_smooth,
            v=v,
            errors=tuple((step, error) for step, error in data["errors"]),
            error=data["error"],
        )
