"""The rule for memory on boards that share it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from vditc.build_options import BuildOptions
from vditc.device.__main__ import boards
from vditc.device.memory import LEAST_WORKSPACE, RESERVE, BoardMemory, Share, share
from vditc.device.package import DeviceGraph, DevicePackage
from vditc.errors import InputError
from vditc.runtimes.precision import Expectation

GIB = 2**30


def package(weights: float, activations: float | None, parts: int = 1) -> DevicePackage:
    """Figures in GiB; the builder takes 2.13 of the weights, as vditc.memory estimates."""
    each = int(weights * GIB / parts)
    graphs = tuple(
        DeviceGraph(
            name=f"g{i}", lowered="l.onnx", shapes={}, expectation=Expectation((), {}, ()), weights=each, builder=int(300e6 + 2.13 * each)
        )
        for i in range(parts)
    )
    return DevicePackage(
        identity="",
        vditc="0",
        target="jetson-orin",
        description="",
        arch=("sm_87",),
        runtime="",
        versions=("10.3", None),
        machine="aarch64",
        module="tensorrt",
        profile={},
        activations=None if activations is None else int(activations * GIB),
        root=".",
        graphs=graphs,
        library=None,
        files={},
    )


def test_boards_are_smaller_than_their_names() -> None:
    """7486 and 62795 MB are what an Orin Nano of 8 GB and an AGX Orin of 64 GB show."""
    for size, shown in ((8, 7486), (64, 62795)):
        seen = BoardMemory.of_board(size).available + GIB
        assert 0.94 * shown * 2**20 < seen <= shown * 2**20


def test_pools_are_what_is_left() -> None:
    model, board = package(2, 1), BoardMemory(available=16 * GIB)
    found = share(model, model.graphs[0], board)
    left = 16 * GIB - RESERVE - model.graphs[0].builder
    assert found == Share(workspace=left - GIB, tactic_memory=left)
    asked = BuildOptions(workspace=GIB, tactic_memory=2 * GIB)
    assert share(dataclasses.replace(model, options=asked), model.graphs[0], board) == Share(workspace=GIB, tactic_memory=2 * GIB)
    asked = BuildOptions(workspace=64 * GIB, tactic_memory=64 * GIB)  # more than there is
    assert share(dataclasses.replace(model, options=asked), model.graphs[0], board) == found


def test_options_may_say_what_a_build_takes() -> None:
    board = BoardMemory.allowed(BuildOptions(memory=8 * GIB))
    assert board is not None and board.usable == 8 * GIB
    assert BoardMemory.allowed(BuildOptions()) is None


def test_swap_takes_what_the_builder_holds_beside_the_weights() -> None:
    """2 GiB of weights: the builder is expected at 4.54 GiB, of which 2.54 may lie in swap."""
    model = package(2, 1)
    graph, short = model.graphs[0], 5 * GIB
    lacking = LEAST_WORKSPACE - (short - RESERVE - graph.builder - GIB)
    assert 0 < lacking < graph.builder - graph.weights
    assert share(model, graph, BoardMemory(short, swap=lacking)) == Share(LEAST_WORKSPACE, LEAST_WORKSPACE + GIB, lacking)
    with pytest.raises(InputError, match=r"found 4\.25 GiB usable and 0\.00 GiB of swap; wanted 5\.79 GiB to build g0.*add 3 GiB of swap"):
        share(model, graph, BoardMemory(short))
    with pytest.raises(InputError, match=r"and 1\.00 GiB of swap.*add 2 GiB of swap: sudo fallocate -l 2G /swapfile"):
        share(model, graph, BoardMemory(short, swap=GIB))


def test_fewer_bits_are_proposed_where_no_swap_helps() -> None:
    """7 GiB of weights run on 10 GiB, but the GPU's part of one build alone does not fit; of eight graphs each does."""
    board = BoardMemory(int(8.9 * GIB), swap=64 * GIB)
    whole, cut = package(7, 1), package(7, 1, parts=8)
    with pytest.raises(
        InputError, match="compile with --segments, a recipe of fewer bits or a smaller --profile, or build on a board with more"
    ):
        share(whole, dataclasses.replace(whole.graphs[0], builder=whole.graphs[0].weights + GIB), board)
    assert all(share(cut, graph, board).workspace > LEAST_WORKSPACE for graph in cut.graphs)


def test_what_could_not_run_is_not_built() -> None:
    for parts in (1, 8):  # segments are all there when the model runs
        model = package(7, 2, parts)
        with pytest.raises(InputError, match=r"found 5\.53 GiB usable; wanted 9\.00 GiB to run it: 7\.00 GiB of weights and 2\.00 GiB"):
            share(model, model.graphs[0], BoardMemory.of_board(8))


def test_boards_by_size() -> None:
    lines = boards(package(7, 2, parts=8))
    assert [line.partition(":")[0] for line in lines] == [f"a board of {size} GB" for size in (8, 16, 32, 64)]
    assert "no, needs 9.00 GiB to run it" in lines[0] and all("fits" in line for line in lines[1:])
    assert "fits" in boards(package(1, None))[0]  # nobody knows the activations


def test_memory_of_this_machine(tmp_path: Path) -> None:
    (meminfo := tmp_path / "meminfo").write_text(
        "MemTotal: 7665908 kB\nMemAvailable:    6000000 kB\nSwapTotal: 1 kB\nSwapFree:  3832952 kB\n"
    )
    assert BoardMemory.here(meminfo) == BoardMemory(6000000 * 1024, 3832952 * 1024)
    assert BoardMemory(1).usable == 0
    for broken in (tmp_path / "none", tmp_path / "odd"):
        (tmp_path / "odd").write_text("MemTotal: 1 kB\n")
        with pytest.raises(InputError, match=r"wanted MemAvailable and SwapFree.*--memory GB"):
            BoardMemory.here(broken)
