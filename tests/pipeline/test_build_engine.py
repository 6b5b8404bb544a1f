"""Engines in segments: what is built and kept, what a device gets, and that a build which was killed goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from lowered_graphs import LAYERS, save_blocks

from vditc.build_options import DEFAULTS, BuildOptions
from vditc.device.package import DevicePackage
from vditc.errors import InputError, VditcError
from vditc.files import sha256
from vditc.pipeline import build_engine as module
from vditc.pipeline.build_engine import build_alone, build_engine
from vditc.pipeline.engine_folder import drop_others
from vditc.profile import Profile, Range
from vditc.progress import SILENT
from vditc.runtimes.backend import EngineFacts
from vditc.runtimes.built_with import BuiltWith
from vditc.runtimes.tensorrt_rtx import TensorRTRTX
from vditc.segments import Segments
from vditc.target import Target

PROFILE = Profile({"batch": Range(1, 2, 2), "tokens": Range(16, 64, 64), "text_tokens": Range(16, 64, 64)})
BLOCKS = 3


@pytest.fixture
def lowered(tmp_path: Path) -> Path:
    (tmp_path / "lowered").mkdir()
    return save_blocks(tmp_path / "lowered" / "rtx-ada.onnx", "w8a8", BLOCKS)


def build(lowered: Path, options: str, target: str = "rtx-ada") -> EngineFacts:
    root = lowered.parents[1]
    return build_engine(
        root=root,
        folder=root / "engines" / target,
        lowered=lowered,
        target=Target.load(target),
        profile=PROFILE,
        work=root / "work",
        progress=SILENT,
        library=None,
        options=BuildOptions.parse(options),
    )


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_segments_for_real(lowered: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts, out = build(lowered, "segments=2"), lowered.parents[1] / "engines" / "rtx-ada"
    assert files(out) == ["engine.json", "layers.json", "segment_00.plan", "segment_01.plan", "segments.json"]
    assert files(lowered.parent) == ["rtx-ada.onnx"] and files(lowered.parents[1] / "work") == []
    chain = Segments.read(out)
    assert chain == Segments({"segment_00": ("blocks.0",), "segment_01": ("blocks.1", "blocks.2")}, ("velocity",))
    assert facts.layers == dict.fromkeys(
        sorted(f"blocks.{i}.{name.split('.', 2)[2]}" for i in range(BLOCKS) for name in LAYERS), "int8 x int8 -> float"
    )
    assert facts.attentions == 2 * BLOCKS and sum(facts.gemms.values()) > 0
    sizes = [(out / plan).stat().st_size for plan in chain.plans]
    assert facts.plan_bytes == sum(sizes) and [s["plan_bytes"] for s in facts.segments] == sizes
    assert EngineFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    built = BuiltWith.read(out)
    assert built is not None and built.options == BuildOptions(segments=2)
    assert list(json.loads((out / "layers.json").read_text())["segments"]) == list(chain.blocks)


class Maker(TensorRTRTX):
    """Writes what it is given instead of an engine."""

    def __init__(self) -> None:
        self.built: list[tuple[str, BuildOptions]] = []
        self.dies_at: int | None = None

    def check(self, target: Target, options: BuildOptions = DEFAULTS) -> None:
        """Nothing is missing."""

    def build(self, *, lowered: Path, out: Path, options: BuildOptions = DEFAULTS, **_: Any) -> EngineFacts:
        if len(self.built) == self.dies_at:
            raise KeyboardInterrupt
        self.built.append((lowered.name, options))
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.plan").write_bytes(lowered.read_bytes())
        (out / "layers.json").write_text("{}")
        BuiltWith(module="tensorrt_rtx", version="1", arch=("sm_89",), options=options).write(out)
        return EngineFacts(status="built", backend=self.name, plan_bytes=1, peak_rss_bytes=len(self.built), gemms={"a": 1})


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    monkeypatch.setattr(module, "backend", lambda name: made)
    return made


def test_a_killed_build_goes_on(lowered: Path, maker: Maker) -> None:
    out, maker.dies_at = lowered.parents[1] / "engines" / "rtx-ada", 2
    with pytest.raises(KeyboardInterrupt):
        build(lowered, "segments=3,level=1")
    assert not out.exists()
    maker.dies_at = None
    facts = build(lowered, "segments=3,level=1")
    names = [f"rtx-ada.segment_{i:02}.onnx" for i in range(3)]
    assert [name for name, _ in maker.built] == names  # each once
    assert {options for _, options in maker.built} == {BuildOptions(level=1)}
    assert (facts.plan_bytes, facts.peak_rss_bytes, facts.gemms) == (3, 3, {"a": 3})
    assert files(out) == ["engine.json", "layers.json", *(f"segment_{i:02}.plan" for i in range(3)), "segments.json"]


def test_what_differs_is_built_anew(lowered: Path, maker: Maker) -> None:
    for dies_at, options in ((2, "segments=3,level=5"), (4, "segments=3")):
        maker.dies_at = dies_at
        with pytest.raises(KeyboardInterrupt):
            build(lowered, options)
    maker.dies_at = None
    plan = lowered.parents[1] / "work" / "segment_00" / "model.plan"
    plan.write_bytes(plan.read_bytes()[:-1])  # damaged
    build(lowered, "segments=3")
    assert [name[-7:-5] for name, _ in maker.built] == ["00", "01", "00", "01", "00", "02"]


def test_as_many_as_the_memory_asks_for(lowered: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    out = lowered.parents[1] / "engines" / "rtx-ada"
    monkeypatch.setattr(module, "available_memory", lambda: 1 << 40)
    assert build(lowered, "segments=auto").segments == () and files(out) == ["engine.json", "layers.json", "model.plan"]
    assert files(lowered.parent) == ["rtx-ada.onnx"]
    for free in (None, 1):
        assert len(build(lowered, f"segments=auto,memory={free}B" if free else "segments=auto,memory=302MB").segments) == BLOCKS
    monkeypatch.setattr(module, "available_memory", lambda: 1)
    assert len(build(lowered, "segments=auto").segments) == BLOCKS
    with pytest.raises(VditcError, match="found segments=4; wanted at most 3, as the model has blocks"):
        build(lowered, "segments=4")


def test_a_folder_holds_one_engine(lowered: Path, maker: Maker) -> None:
    """However the one before was cut: what an older one left would be run, or be listed in the bundle. Other files are left alone."""
    out, other = lowered.parents[1] / "engines" / "rtx-ada", ["engine.json", "layers.json", "mine.plan"]
    out.mkdir(parents=True)
    for name in ("mine.plan", "device.json", "build.sh", "SHA256SUMS"):
        (out / name).touch()
    for options, plans in (("segments=3", 3), ("segments=2", 2), ("", 0), ("segments=2", 2)):
        build(lowered, options)
        wanted = [f"segment_{i:02}.plan" for i in range(plans)]
        assert files(out) == (sorted([*other, *wanted, "segments.json"]) if plans else sorted([*other, "model.plan"]))
        assert files(lowered.parent) == ["rtx-ada.onnx"]


def test_a_folder_of_a_device_holds_no_engine(tmp_path: Path) -> None:
    for name in (
        "model.plan",
        "segment_00.plan",
        "engine.json",
        "layers.json",
        "segments.json",
        "device.json",
        "timing.cache",
        "mine.plan",
    ):
        (tmp_path / name).touch()
    drop_others(tmp_path, (), cut=True)
    assert files(tmp_path) == ["device.json", "mine.plan", "segments.json", "timing.cache"]


def test_one_segment_is_one_engine(lowered: Path, maker: Maker) -> None:
    assert build(lowered, "segments=1").segments == () and maker.built[0][0] == "rtx-ada.onnx"


def test_a_device_gets_the_graphs(lowered: Path) -> None:
    facts, folder = build(lowered, "segments=2", "jetson-orin"), lowered.parents[1] / "engines" / "jetson-orin"
    assert facts.status == "to build on the device"
    assert files(lowered.parent) == ["rtx-ada.onnx", "rtx-ada.segment_00.onnx", "rtx-ada.segment_01.onnx"]
    package, chain = DevicePackage.read(folder), Segments.read(folder)
    assert chain is not None and [(g.name, g.blocks) for g in package.graphs] == list(chain.blocks.items())
    assert [g.plan for g in package.graphs] == list(chain.plans)
    first, second = package.graphs
    assert set(first.shapes) == {"hidden_states", "encoder_hidden_states"} and "blocks.0/residual3:0" in second.shapes
    assert first.weights + second.weights > 0 and first.builder < second.builder
    assert package.files["engines/jetson-orin/segments.json"].sha256 == sha256(folder / "segments.json")
    assert package.options.segments == 2
    with pytest.raises(
        InputError, match="found segments=auto for a machine that is not here; wanted the memory that a build may take there"
    ):
        build(lowered, "segments=auto", "jetson-orin")


def test_a_graph_alone_takes_everything_along(lowered: Path, tmp_path: Path) -> None:
    out = tmp_path / "package"
    build_alone(
        lowered=lowered,
        out=out,
        target=Target.load("jetson-orin"),
        profile=PROFILE,
        work=tmp_path / "w",
        progress=SILENT,
        library=None,
        options=BuildOptions.parse("segments=auto,memory=302MB"),
    )
    assert files(out / "lowered") == ["rtx-ada.onnx", *(f"rtx-ada.segment_{i:02}.onnx" for i in range(BLOCKS))]
    assert files(lowered.parent) == ["rtx-ada.onnx"] and DevicePackage.read(out).root == "."
    target = dataclasses.replace(Target.load("jetson-orin"))
    with pytest.raises(InputError, match="found segments=auto"):
        build_alone(
            lowered=lowered,
            out=tmp_path / "other",
            target=target,
            profile=PROFILE,
            work=tmp_path / "w",
            progress=SILENT,
            library=None,
            options=BuildOptions.parse("segments=auto"),
        )
    assert not (tmp_path / "other").exists()
