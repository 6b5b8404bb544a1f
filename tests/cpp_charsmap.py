"""A charsmap as sentencepiece writes it, of a few rules: a double-array trie of byte strings, then what they become."""

from __future__ import annotations

import struct
from collections.abc import Mapping


def charsmap(rules: Mapping[str, str]) -> bytes:
    """Units of 32 bits: bits 0 to 7 label, 8 whether a value follows, 9 large offset, 10 to 30 offset; a value has bit 31."""
    places: dict[str, int] = {}
    texts = b""
    for new in rules.values():
        if new not in places:
            places[new] = len(texts)
            texts += new.encode() + b"\0"
    values = {key.encode(): places[new] for key, new in rules.items()}
    units: dict[int, int] = {}

    def fill(node: int, prefix: bytes) -> None:
        children = sorted({key[len(prefix)] for key in values if key.startswith(prefix) and len(key) > len(prefix)})
        labels = ([0] if prefix in values else []) + children
        if not labels:
            return
        offset = next(o for o in range(1, 1 << 21) if all(node ^ o ^ label not in units and node ^ o ^ label for label in labels))
        base = node ^ offset
        units[node] = units.get(node, 0) | offset << 10 | (1 << 8 if prefix in values else 0)
        for label in labels:
            units[base ^ label] = values[prefix] | 1 << 31 if label == 0 else label
        for label in children:
            fill(base ^ label, prefix + bytes([label]))

    units[0] = 0
    fill(0, b"")
    size = (max(units) | 255) + 1
    return struct.pack("<I", 4 * size) + b"".join(struct.pack("<I", units.get(i, 0)) for i in range(size)) + texts
