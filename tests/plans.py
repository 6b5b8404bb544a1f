"""Comparing TensorRT-RTX's plans."""

from __future__ import annotations

# Version 1.7 numbers size expressions by the addresses of its objects (docs/roadmap.md): two builds alike differed in 8 bytes of a
# product of two sizes, in some 30 of the tiny model's engine.
ORDER_BYTES = 64
# What a change of options may set lies before (weight streaming: 56, 57 and 558); the size expressions come after the weights.
HEADER_BYTES = 4096


def same_engine(a: bytes, b: bytes) -> bool:
    """Whether two plans are one engine but for the order of its size expressions."""
    return len(a) == len(b) and a[:HEADER_BYTES] == b[:HEADER_BYTES] and sum(x != y for x, y in zip(a, b, strict=True)) <= ORDER_BYTES
