"""A layer's transform (`vditc.transform`) in PyTorch: for the reference and for methods that train. Like torch_device, it imports torch."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import linear

from vditc.hadamard import factors
from vditc.transform import OutputTransform, Transform


class InputTransform(torch.nn.Module):
    """Nothing in it is trained; it moves with the module that holds it."""

    shift: torch.Tensor | None
    balance: torch.Tensor | None
    left: torch.Tensor | None
    right: torch.Tensor | None
    down: torch.Tensor | None
    up: torch.Tensor | None

    def __init__(self, t: Transform) -> None:
        """What is left of it to do when the model runs."""
        super().__init__()
        t = t.explicit
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
            x = _mixed(x, self.left.T, self.right)
        return x

    def add_branch(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y plus what the low-rank branch makes of x'."""
        return y if self.down is None or self.up is None else y + linear(linear(x, self.down), self.up)


class OutputChange(torch.nn.Module):
    """An output transform applied to what a layer gives out, and taken back."""

    balance: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, t: OutputTransform) -> None:
        super().__init__()
        found = factors(t.rotation)
        assert found is not None, "only rotations that there are"
        for name, array in zip(("balance", "left", "right"), (t.balance, *found), strict=True):
            self.register_buffer(name, torch.from_numpy(np.array(array, np.float32)))
        self.rows = slice(t.start, t.start + len(t.balance))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """y [..., N] -> with (y balance) Q in its channels."""
        y = y.clone()
        part = y[..., self.rows] * self.balance
        y[..., self.rows] = _mixed(part, self.left.T, self.right)
        return y

    def undone(self, y: torch.Tensor) -> torch.Tensor:
        """The other way round."""
        y = y.clone()
        y[..., self.rows] = _mixed(y[..., self.rows], self.left, self.right.T) / self.balance
        return y


def _mixed(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left x right of every block of channels."""
    return (left @ (x.reshape(-1, len(left), len(right)) @ right)).reshape(x.shape)
