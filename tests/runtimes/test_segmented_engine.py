"""Segments that hand on tensors, on a device that does its work as late as streams and events allow."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cuda_stub import CudaStub
from hypothesis import given
from hypothesis import strategies as st

from vditc.errors import VditcError
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import DeviceRuns, Shape
from vditc.runtimes.segmented_engine import SegmentedEngine


class Times:
    """`to` = (sum of `of`) x `factor`, through scratch memory that it is given; float32, as an engine's kernels would."""

    generation = 0

    def __init__(self, stub: CudaStub, of: tuple[str, ...], to: str, factor: int, dtype: Any = np.float32) -> None:
        self.stub, self.factor = stub, factor
        self.inputs: Mapping[str, Any] = dict.fromkeys(of, np.float32)
        self.outputs: Mapping[str, Any] = {to: dtype}
        self.shape: Shape = ()
        self.scratch = (0, 0)

    def resize(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        assert list(shapes) == list(self.inputs)
        self.shape = next(iter(shapes.values()))
        return dict.fromkeys(self.outputs, self.shape)

    def scratch_bytes(self) -> int:
        return 4 * self.factor * int(np.prod(self.shape))

    def take_scratch(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        assert set(addresses) == {*self.inputs, *self.outputs} and self.scratch[1] >= self.scratch_bytes()
        count, at, factor, of, scratch = int(np.prod(self.shape)), dict(addresses), self.factor, list(self.inputs), self.scratch[0]
        [to] = self.outputs

        def view(address: int, n: int) -> Any:
            return np.ctypeslib.as_array((ctypes.c_uint8 * (n * 4)).from_address(address)).view(np.float32)

        def run() -> None:
            assert not self.stub.gone.keys() & {scratch, *at.values()}, "freed memory"
            rows = view(scratch, count * factor).reshape(factor, count)
            rows[:] = sum(view(at[name], count) for name in of)
            view(at[to], count)[:] = rows.sum(0)

        self.stub.work(stream, run)

    def release(self, stream: int) -> None:
        """It has no memory of its own."""


def chain(stub: CudaStub) -> SegmentedEngine:
    """y = (x + 2 x) x 3 + bias; `y` is made in the middle, `z` last: 5 (2 x + y)."""
    segments = [Times(stub, ("x",), "a", 2), Times(stub, ("x", "a"), "y", 3), Times(stub, ("a", "y"), "z", 5)]
    return SegmentedEngine(Cuda(stub, "stub"), segments, ("z", "y"), "engine")


def wanted(x: Any) -> dict[str, Any]:
    y = (x + 2 * x) * 3
    return {"z": 5 * (2 * x + y), "y": y}


def test_the_models_inputs_and_outputs() -> None:
    program = chain(CudaStub())
    assert (list(program.inputs), list(program.outputs)) == (["x"], ["z", "y"])


@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=14), st.booleans())
def test_runs_of_all_sizes(runs: list[tuple[int, bool]], graphs: bool) -> None:
    """Two in flight, sizes that come and go: memory between segments moves, and what was recorded before is not replayed."""
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), chain(stub), graphs=graphs) as device:
        late: Any = None
        for seed, (n, wait) in enumerate(runs):
            x = np.random.default_rng(seed).integers(-9, 9, (n, 3)).astype(np.float32)
            pending = device.begin({"x": x})
            if late is not None:
                found = late[0].result()
                assert all(np.array_equal(found[name], array) for name, array in wanted(late[1]).items())
            late = (pending, x)
            if wait:
                found = pending.result()
                assert all(np.array_equal(found[name], array) for name, array in wanted(x).items())
                late = None
    assert stub.left == 0


def test_launches_are_recorded_again_when_memory_has_moved() -> None:
    stub = CudaStub()
    program = chain(stub)
    with DeviceRuns(Cuda(stub, "stub"), program, slots=1) as device:
        small, large = np.ones((2, 3), np.float32), np.ones((8, 3), np.float32)
        for _ in range(3):
            device.begin({"x": small}).result()
        assert device.recorded
        before = program.generation
        device.begin({"x": large}).result()
        assert program.generation > before and not device.recorded
        for x in (small, small, small, large, large):
            assert np.array_equal(device.begin({"x": x}).result()["z"], wanted(x)["z"])
        assert device.recorded and program.generation == before + 2  # a, and scratch memory


def test_what_the_other_slot_has_recorded_is_not_replayed_either() -> None:
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), chain(stub)) as device:
        small, large = np.ones((2, 3), np.float32), np.ones((8, 3), np.float32)
        for _ in range(3):
            both = [device.begin({"x": small}), device.begin({"x": small})]
            assert all(np.array_equal(one.result()["z"], wanted(small)["z"]) for one in both)
        device.begin({"x": large}).result()
        both = [device.begin({"x": small}), device.begin({"x": 2 * small})]
        assert [one.result()["z"][0, 0] for one in both] == [55, 110]


@pytest.mark.parametrize(
    ("outputs", "dtype", "words"),
    [
        (("z",), np.float32, "engine: found no segment that makes z; wanted segments of one engine"),
        (("y",), np.float16, "found a of type float16 for a segment that reads float32"),
    ],
)
def test_segments_that_do_not_belong_together(outputs: tuple[str, ...], dtype: Any, words: str) -> None:
    stub = CudaStub()
    with pytest.raises(VditcError, match=words):
        SegmentedEngine(Cuda(stub, "stub"), [Times(stub, ("x",), "a", 2, dtype), Times(stub, ("a",), "y", 3)], outputs, "engine")
