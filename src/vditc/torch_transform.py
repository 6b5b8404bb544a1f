"""A layer's transform (`vditc.transform`) in PyTorch: for the reference and for methods that train. Like torch_device, it imports torch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import linear

from vditc.hadamard import factors
from vditc.transform import Transform


class InputTransform(torch.nn.Module):
    """Nothing in it is trained; it moves with the module that holds it."""

    shift: torch.Tensor | None
    balance: torch.Tensor | None
    left: torch.Tensor | None
    right: torch.Tensor | None
    down: torch.Tensor | None
    up: torch.Tensor | None

    def __init__(self, t: Transform) -> None:
        super().__init__()
        left, right = (None, None) if t.rotation is None else factors(t.rotation) or (None, None)
        arrays = {"shift": t.shift, "balance": t.balance, "left": left, "right": right, "down": t.down, "up": t.up}
        for name, array in arrays.items():
            self.register_buffer(name, None if array is None else torch.from_numpy(np.array(array, np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> x', float32."""
        if self.shift is not None:
            x = x - self.shift
        if self.balance is not None:
            x = x * self.balance
        if self.left is not None and self.right is not None:
            parts = x.reshape(-1, len(self.left), len(self.right))
            x = (self.left.T @ (parts @ self.right)).reshape(x.shape)
        return x

    def add_branch(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y plus what the low-rank branch makes of x'."""
        return y if self.down is None or self.up is None else y + linear(linear(x, self.down), self.up)
