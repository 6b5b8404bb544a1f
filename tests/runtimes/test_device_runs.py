"""Runs of an engine on a device that does its work as late as streams and events allow."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cuda_stub import FAILED, CudaStub
from hypothesis import given
from hypothesis import strategies as st

from vditc.errors import InputError, VditcError
from vditc.runtimes.cuda_runtime import Cuda
from vditc.runtimes.device_runs import DeviceRuns, Shape


class Doubler:
    """y = 2 x + step, y float32; written as an engine's kernels would."""

    inputs: Mapping[str, Any] = {"x": np.float16, "step": np.int64}
    outputs: Mapping[str, Any] = {"y": np.float32}
    generation = 0

    def __init__(self, stub: CudaStub) -> None:
        self.stub, self.enqueued = stub, 0
        self.shape: Shape = ()

    def resize(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        if shapes["x"][0] > 64:
            raise InputError(found=f"x of shape {list(shapes['x'])}", wanted="up to 64", where="engine", fix="build a wider one")
        self.shape = shapes["x"]
        return {"y": self.shape}

    def enqueue(self, addresses: Mapping[str, int], stream: int) -> None:
        self.enqueued += 1
        count, at = int(np.prod(self.shape)), dict(addresses)

        def run() -> None:
            def view(name: str, dtype: Any, n: int) -> Any:
                return np.ctypeslib.as_array((ctypes.c_uint8 * (n * np.dtype(dtype).itemsize)).from_address(at[name])).view(dtype)

            view("y", np.float32, count)[:] = view("x", np.float16, count) * 2 + view("step", np.int64, 1)

        self.stub.work(stream, run)

    def release(self, stream: int) -> None:
        """It has no memory of its own."""


def feeds(seed: int, n: int = 5) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).integers(-9, 9, (n, 2)), "step": np.array([seed])}


def wanted(fed: Mapping[str, Any]) -> Any:
    return (fed["x"] * 2 + fed["step"]).astype(np.float32)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=12), st.booleans())
def test_what_is_in_flight_does_not_meet(runs: list[tuple[int, bool]], graphs: bool) -> None:
    """Sizes change between runs, and results are asked for at once or one run later; all memory goes back."""
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub), graphs=graphs) as device:
        late: Any = None
        for seed, (n, wait) in enumerate(runs):
            fed = feeds(seed, n)
            pending = device.begin(fed)
            if late is not None:
                assert np.array_equal(late[0].result()["y"], wanted(late[1]))
            late = (pending, fed)
            if wait:
                assert np.array_equal(pending.result()["y"], wanted(fed))
                late = None
    assert stub.left == 0


def test_the_third_run_of_a_shape_is_a_replay() -> None:
    stub = CudaStub()
    program = Doubler(stub)
    with DeviceRuns(Cuda(stub, "stub"), program, slots=1) as device:
        found = [device.begin(feeds(i)).result()["y"] for i in range(5)]
        assert all(np.array_equal(y, wanted(feeds(i))) for i, y in enumerate(found))  # later runs leave earlier results alone
        # the first run, the second, and its record
        assert (program.enqueued, stub.calls.count("cudaGraphLaunch"), device.recorded) == (3, 3, True)
        device.begin(feeds(5, 8)).result()  # greater buffers: the graph's addresses are gone
        assert not device.recorded
        for seed in range(3):
            device.begin(feeds(seed, 8)).result()
        assert device.recorded
        device.begin(feeds(6, 7)).result()  # no greater, but the engine's state is another
        assert not device.recorded
    assert stub.left == 0


def test_inputs_of_the_next_run_are_copied_while_one_computes() -> None:
    """They wait for no work, once memory is there."""
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub)) as device:
        for pending in [device.begin(feeds(seed)) for seed in range(2)]:
            pending.result()
        first = device.begin(feeds(2))
        work = {id(task) for tasks in stub.streams.values() for task in tasks if not task.done}
        second = device.begin(feeds(3))
        copied, *_ = (task for tasks in stub.streams.values() for task in tasks if not task.done and id(task) not in work)
        stub.do(copied)
        assert sum(task.done for tasks in stub.streams.values() for task in tasks if id(task) in work) <= len(feeds(2)) + 1
        assert np.array_equal(first.result()["y"], wanted(feeds(2))) and np.array_equal(second.result()["y"], wanted(feeds(3)))


def test_an_engine_that_is_not_recorded_runs_all_the_same() -> None:
    stub = CudaStub(cudaGraphInstantiate=1)
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub), slots=1) as device:
        device.begin(feeds(0)).result()
        with pytest.warns(UserWarning, match=r"one by one: this engine is not recorded as a CUDA graph \(cudaGraphInstantiate: error 2"):
            device.begin(feeds(1)).result()
        assert np.array_equal(device.begin(feeds(2)).result()["y"], wanted(feeds(2)))


def test_a_third_run_in_flight_is_refused() -> None:
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub)) as device:
        first, second = device.begin(feeds(0)), device.begin(feeds(1))
        with pytest.raises(VditcError, match="found 2 runs whose results nobody has asked for"):
            device.begin(feeds(2))
        assert np.array_equal(first.result()["y"], wanted(feeds(0)))
        assert np.array_equal(device.begin(feeds(2)).result()["y"], wanted(feeds(2)))
        assert np.array_equal(second.result()["y"], wanted(feeds(1)))


@pytest.mark.parametrize("function", ["cudaMallocAsync", "cudaMallocHost", "cudaMemcpyAsync"])
@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_does_not_begin_leaves_nothing(function: str, number: int) -> None:
    stub = CudaStub(**{function: number})
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub), slots=1) as device:
        with pytest.raises(VditcError, match=f"{function}: error 2, said the stub.*has enough memory"):
            device.begin(feeds(0))
        assert np.array_equal(device.begin(feeds(1)).result()["y"], wanted(feeds(1)))
    assert stub.left == 0


def test_a_shape_outside_of_the_profile() -> None:
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub)) as device, pytest.raises(InputError, match="up to 64"):
        device.begin(feeds(0, 65))


def test_an_error_on_the_device_is_an_error_of_its_run() -> None:
    stub = CudaStub()
    with DeviceRuns(Cuda(stub, "stub"), Doubler(stub)) as device:
        pending = device.begin(feeds(0))
        stub.error = FAILED
        with pytest.raises(VditcError, match="cudaEventSynchronize: error 700, an illegal memory access"):
            pending.result()
