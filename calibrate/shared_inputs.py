"""Which layers of a block read the very same tensor, as a forward pass shows; `Observers` joins what all passes show."""

from __future__ import annotations

import re
import weakref

import torch

_BLOCK = re.compile(r".*?\.\d+\.")  # of a layer's name: up to the number of its block


class SharedInputs:
    """One forward pass. Layers of one block share: text that every block reads would otherwise tie all of them together.

    Tensors are one if they are one object, or, of two layers that run one behind the other, if they hold the same numbers: some attention
    takes a tensor apart into video and text and puts it together again, which the graph does not do.
    """

    def __init__(self) -> None:
        self.block = ""
        self.seen: list[tuple[str, weakref.ref[torch.Tensor]]] = []  # layers of the block that runs, and what they read
        self.last: torch.Tensor | None = None

    def reads_as(self, layer: str, x: torch.Tensor) -> str | None:
        """A layer that ran before and reads what `layer`, which runs now, reads."""
        match = _BLOCK.match(layer)
        if match is None or match[0] != self.block:
            self.block, self.seen, self.last = "" if match is None else match[0], [], None
        if match is None:
            return None
        found = next((name for name, known in self.seen if known() is x), None)
        if found is None and self.last is not None and _equal(x, self.last):
            found = self.seen[-1][0]
        self.seen.append((layer, weakref.ref(x)))
        self.last = x
        return found


def _equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    """The same numbers, and not nothing but zeros. A row tells most tensors apart."""
    if x.shape != y.shape or x.dtype != y.dtype or not x.numel():
        return False
    first = (0,) * (x.ndim - 1)
    return torch.equal(x[first], y[first]) and torch.equal(x, y) and bool(x.any())
