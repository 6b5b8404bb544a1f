"""The kernels of `vditc.QLinear` outside of TensorRT: `vditc_qlinear_*` of `native/vditc_plugins.h`.

A `Problem` is what the C interface calls one, in Python's terms; `launch` and `accumulators` take one address for each tensor: of device
memory, or, with the emulated library, arrays of numpy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.plugins.interface import ACTIVATIONS, FLOATS, QLinearProblem, QLinearTensors
from vditc.plugins.library import Library, Rows, zeroed
from vditc.plugins.packing import LAYOUT
from vditc.plugins.qlinear.op import QLinear

Array = npt.NDArray[Any]
Tensor = Array | int  # an address is an int


class Tactic(enum.IntEnum):
    """`vditc_qlinear_tactic`."""

    ANY = 0
    UNPACK_128 = 1
    UNPACK_64 = 2
    INT4 = 3
    CARRIER = 4
    EXPAND_SM80 = 16
    EXPAND_SM90 = 17
    EXPAND_SM100 = 18


TENSORS = tuple(field[0] for field in QLinearTensors._fields_)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """`vditc_qlinear_problem`: `m` rows, `n` outputs, `k` inputs. `gate_rows`, `residual_rows`: (inner, count), see `Rows`."""

    m: int
    n: int
    k: int
    bits: int
    unsigned: bool = False
    activation_bits: int = 8
    packed: bool = False
    layout: int = LAYOUT
    group: int = 0
    rank: int = 0
    low_rank: int = 0
    bias: bool = False
    activation: str = "none"
    gated: bool = False
    output: str = "fp16"
    scale_per_row: bool = True
    gate_rows: tuple[int, int] = (1, 1)
    residual_rows: tuple[int, int] = (1, 1)

    def native(self) -> Any:
        """The C struct."""
        made = zeroed(QLinearProblem)
        for name in (field[0] for field in QLinearProblem._fields_):
            if isinstance(value := getattr(self, name, None), int):
                setattr(made, name, int(value))
        made.unsigned_weights = int(self.unsigned)
        made.activation, made.output = ACTIVATIONS[self.activation], FLOATS[self.output]
        made.gate_rows, made.residual_rows = Rows(*self.gate_rows), Rows(*self.residual_rows)
        return made


def problem_of(
    op: QLinear, m: int, *, scale_per_row: bool = True, gate_rows: tuple[int, int] = (1, 1), residual_rows: tuple[int, int] = (1, 1)
) -> Problem:
    """The problem of the operator with `m` rows."""
    same = {field.name: getattr(op, field.name) for field in dataclasses.fields(op)}
    return Problem(m=m, scale_per_row=scale_per_row, gate_rows=gate_rows, residual_rows=residual_rows, **same)


def tactics(library: Library, problem: Problem, sm: int) -> list[Tactic]:
    """Tactics on a GPU of compute capability `sm` (10 major + minor), the best guess first."""
    ids, count = (ctypes.c_int32 * len(Tactic))(), ctypes.c_int32()
    library.call("vditc_qlinear_tactics", ctypes.byref(problem.native()), sm, ids, len(ids), ctypes.byref(count))
    return [Tactic(ids[i]) for i in range(count.value)]


def workspace_bytes(library: Library, problem: Problem, tactic: Tactic, sm: int) -> int:
    """What `launch` wants."""
    found = ctypes.c_size_t()
    library.call("vditc_qlinear_workspace", ctypes.byref(problem.native()), int(tactic), sm, ctypes.byref(found))
    return found.value


def launch(
    library: Library,
    problem: Problem,
    tensors: dict[str, Tensor],
    tactic: Tactic = Tactic.ANY,
    workspace: Tensor = 0,
    stream: int = 0,
    *,
    room: int | None = None,
) -> None:
    """y = the layer; `tensors`: those of `TENSORS` that the problem has. `room`: bytes of the workspace, where that is an address."""
    _compute(library, "launch", problem, tensors, tactic, (), workspace, room, stream)


def accumulators(
    library: Library,
    problem: Problem,
    tensors: dict[str, Tensor],
    out: Tensor,
    tactic: Tactic = Tactic.ANY,
    workspace: Tensor = 0,
    stream: int = 0,
    *,
    room: int | None = None,
) -> None:
    """out int32 [m, n] = x times the weights, which are all that is read of `tensors`."""
    _compute(library, "accumulators", problem, tensors, tactic, (out,), workspace, room, stream)


def expand(library: Library, problem: Problem, weight: Tensor, out: Tensor, stream: int = 0) -> None:
    """out int8 [n, k] = the codes of packed weights."""
    addresses = (ctypes.c_void_p(_address(tensor)) for tensor in (weight, out))
    library.call("vditc_qlinear_expand", ctypes.byref(problem.native()), *addresses, ctypes.c_void_p(stream))


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """An array of zeros at a multiple of 16, as the library wants its tensors."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 16, np.uint8)
    first = -room.ctypes.data % 16
    return room[first : first + size].view(dtype).reshape(shape)


def _compute(
    library: Library,
    what: str,
    problem: Problem,
    tensors: dict[str, Tensor],
    tactic: Tactic,
    out: tuple[Tensor, ...],
    workspace: Tensor,
    room: int | None,
    stream: int,
) -> None:
    """The C function vditc_qlinear_`what`; `out`: what it writes beside the tensors."""
    library.call(
        f"vditc_qlinear_{what}",
        ctypes.byref(problem.native()),
        ctypes.byref(QLinearTensors(**{name: _address(value) for name, value in tensors.items()})),
        int(tactic),
        *(ctypes.c_void_p(_address(tensor)) for tensor in (*out, workspace)),
        ctypes.c_size_t(_room(workspace, room)),
        ctypes.c_void_p(stream),
    )


def _address(tensor: Tensor) -> int:
    if isinstance(tensor, int):
        return tensor
    if not tensor.flags.c_contiguous:
        raise ValueError(f"strides {tensor.strides} of shape {tensor.shape}; wanted a contiguous array")
    return int(tensor.ctypes.data)


def _room(workspace: Tensor, room: int | None) -> int:
    return room or 0 if isinstance(workspace, int) else workspace.nbytes
