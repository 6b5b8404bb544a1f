"""A request: its tensors by name, as Python values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vditc.errors import CancelledError, InputError
from vditc.pipeline.triton.server import Utils
from vditc.sampling import Array


class Request:
    """Reads a Triton request; InputError for a tensor of a wrong shape or text that is not UTF-8."""

    def __init__(self, utils: Utils, request: Any, cancelled: Callable[[], bool] | None = None) -> None:
        """`cancelled`: of its sender, where it has one."""
        self.utils, self.request = utils, request
        self._cancelled = cancelled or request.is_cancelled
        self.outputs = frozenset(request.requested_output_names())

    def check_wanted(self, where: str) -> None:
        """CancelledError when nobody waits for the answer any longer."""
        if self._cancelled():
            raise CancelledError(found="a request that was cancelled", wanted="all of it", where=where, fix="send it again")

    def array(self, name: str) -> Array | None:
        """A tensor as it is; None where the request has none."""
        tensor = self.utils.get_input_tensor_by_name(self.request, name)
        return None if tensor is None else np.array(tensor.as_numpy())  # Triton frees its own with the request

    def numbers(self, name: str) -> list[Any] | None:
        """Of a tensor with one axis, or none."""
        array = self.array(name)
        if array is None:
            return None
        if array.ndim > 1 or not array.size:
            raise _bad(f"{name} {list(array.shape)}", f"{name} [n]", "give numbers in one row")
        found: list[Any] = array.reshape(-1).tolist()
        return found

    def number(self, name: str) -> Any:
        """Of a tensor with one element; None where the request has none."""
        found = self.numbers(name)
        if found is not None and len(found) != 1:
            raise _bad(f"{name} with {len(found)} numbers", "one", "give one number")
        return None if found is None else found[0]

    def texts(self, name: str) -> list[str] | None:
        """Of a tensor of strings, in order; None where the request has none."""
        array = self.array(name)
        if array is None:
            return None
        try:
            return [one.decode() if isinstance(one, bytes) else str(one) for one in array.reshape(-1).tolist()]
        except UnicodeDecodeError as error:
            raise _bad(f"{name} with bytes that are not UTF-8 ({error.reason})", "UTF-8 text", "encode it so") from error

    def text(self, name: str) -> str | None:
        """The only string of a tensor; None where the request has none."""
        found = self.texts(name)
        if found is not None and len(found) != 1:
            raise _bad(f"{name} with {len(found)} texts", "one", "give one text")
        return None if found is None else found[0]


def _bad(found: str, wanted: str, fix: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="request", fix=fix)
