"""model.onnx -> lowered/<target>.onnx: numbers, files, and what is refused."""

from __future__ import annotations

import dataclasses
import filecmp
import os
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import tiny_export
import tolerances
from attention_graph import attention_model, feeds, run, save_attention

from vditc.errors import DialectError, InputError
from vditc.files import sha256
from vditc.graph_passes import stage
from vditc.graph_passes.core import Observer, Pass, PassFacts
from vditc.graph_passes.stage import LowerFacts, lower
from vditc.model_dir import ModelDir
from vditc.progress import SILENT
from vditc.target import Target, builtin_targets

FP16, CPU = Target.load("rtx-ada"), Target.load("cpu")


@pytest.fixture
def canonical(tmp_path: Path) -> Path:
    return save_attention(tmp_path / "bundle" / "model.onnx")


def lowered(model: Path, target: Target = FP16, passes: list[str] | None = None, *, live: bool = False) -> LowerFacts:
    """`live`: the time path stays."""
    out = model.parent / "lowered" / f"{target.name}.onnx"
    return lower(model=model, target=target, out=out, progress=SILENT, passes=passes, keep_time_path=live)


def at_step(found: Path, wanted: Path) -> float:
    """Relative distance of two graphs of the tiny model at the second step."""
    return tolerances.relative_l2(*(run(p, tiny_export.feeds_at(p, 1, 0, *tiny_export.SHAPES[0])) for p in (found, wanted)))


@pytest.mark.parametrize("target", [FP16, CPU], ids=lambda t: t.name)
def test_numbers_of_the_hand_built_graph(canonical: Path, target: Target) -> None:
    error = tolerances.relative_l2(run(lowered(canonical, target, live=True).files[0], feeds()), run(canonical, feeds()))
    assert error <= tolerances.LOWERED[target.compute, "int8"]


@pytest.mark.parametrize("scheme", tiny_export.SCHEMES)
@pytest.mark.parametrize("target", [FP16, CPU], ids=lambda t: t.name)
def test_numbers_of_an_exported_model(tmp_path: Path, tiny: ModelDir, scheme: str, target: Target) -> None:
    chosen = tiny_export.SCHEMES[scheme]
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, chosen), tmp_path / "model.onnx")
    facts = lowered(model, target)
    onnx.checker.check_model(str(facts.files[0]), full_check=True)
    codes = chosen.activation.qtype.value if chosen is not None and chosen.activation is not None else None
    stepped = "step" in {i.name for i in ir.load(model).graph.inputs}
    exact, tables = tolerances.LOWERED[target.compute, f"{codes} folded" if stepped else codes], tolerances.TABLES[codes]
    assert at_step(facts.files[0], model) <= max(exact, tables)
    live = lower(model=model, target=target, out=tmp_path / "live.onnx", progress=SILENT, keep_time_path=True)
    assert at_step(live.files[0], model) <= exact
    left = {r.node.split(".", 2)[2] for f in facts.passes for r in f.refusals}
    # The second norm's weight is constant, text is read by every block, GELU is not linear.
    assert left == ({"attn2.to_q/Div", "attn2.to_k/Div", "ffn.net.2/Div"} if stepped else set())


@pytest.mark.parametrize("name", builtin_targets())
def test_every_builtin_target_has_a_pipeline(canonical: Path, name: str) -> None:
    target = Target.load(name)
    if name == "b300":  # it takes no INT8
        with pytest.raises(
            DialectError, match=r"products-of-target of the lowered to fp16 for b300 dialect, node q/MatMul: found int8 x int8"
        ):
            lowered(canonical, target)
        return
    facts = lowered(canonical, target)
    assert facts.dialect == f"lowered to {target.compute} for {name}"


def test_bfloat16_is_checked_without_running_it(canonical: Path) -> None:
    facts = lowered(canonical, Target.load("rtx-ada-bf16"))
    onnx.checker.check_model(str(facts.files[0]), full_check=True)
    softmax = next(n for n in ir.load(facts.files[0]).graph if n.op_type == "Softmax")
    assert softmax.name == "softmax"
    assert facts.dialect == "lowered to bf16 for rtx-ada-bf16"


def test_facts_tell_what_each_pass_did(canonical: Path) -> None:
    facts = lowered(canonical)
    assert [p.name for p in facts.passes] == [
        "fold-constants{size_limit=1024}",
        "share-quantization",
        "fold-channel-balance{explicit=false}",
        "fold-rotation",
        "fold-temporal-scales",
        "precompute-time-path{store=fp16}",
        "convert-compute-type{to=fp16}",
        "fold-token-aware{rank_term=false}",
        "flatten-attention-outputs",
        "join-norms-to-quantization",
        "legalize-for-target{blocks=128:64:32:16}",
        "eliminate-dead-nodes",
    ]
    assert [p.modified for p in facts.passes] == [False, False, False, False, False, True, True, False, False, True, False, True]
    assert facts.nodes_before == len(attention_model().graph)
    assert facts.nodes_after == len(ir.load(facts.files[0]).graph)
    assert all(p.seconds > 0 for p in facts.passes)


def test_data_that_is_hardly_used_is_not_written_over(canonical: Path, tmp_path: Path) -> None:
    """Other graphs of the folder may point into it."""
    with canonical.with_name(f"{canonical.name}.data").open("ab") as f:
        f.write(bytes(1 << 20))
    before = canonical.with_name(f"{canonical.name}.data").read_bytes()
    with pytest.raises(InputError, match=f"found data file .*{canonical.name}.data; wanted another name"):
        lower(model=canonical, target=Target.load("cpu"), out=canonical, progress=SILENT)
    assert canonical.with_name(f"{canonical.name}.data").read_bytes() == before
    facts = lower(model=canonical, target=Target.load("cpu"), out=tmp_path / "own" / "x.onnx", progress=SILENT)
    assert {p.name for p in facts.files} == {"x.onnx", "x.onnx.data"}


def test_passes_can_be_chosen_and_watched(canonical: Path) -> None:
    seen: list[str] = []

    class Watch(Observer):
        def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
            seen.append(f"{done}: {len(model.graph)}")

    out = canonical.parent / "x.onnx"
    lower(
        model=canonical,
        target=CPU,
        out=out,
        progress=SILENT,
        passes=["fold-constants{size_limit=9}", "eliminate-dead-nodes"],
        observers=[Watch()],
    )
    nodes = len(attention_model().graph)
    assert seen == [f"fold-constants{{size_limit=9}}: {nodes}", f"eliminate-dead-nodes: {nodes}"]


def test_a_copy_of_this_process_is_not_compared_until_it_changes(canonical: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def noted(one: Path, other: Path, shallow: bool) -> bool:
        compared.append(one.name)
        return compare(one, other, shallow)

    compare = filecmp.cmp
    monkeypatch.setattr(filecmp, "cmp", noted)
    copy = lowered(canonical).files[1]
    lowered(canonical, CPU)
    assert not compared
    wanted = copy.read_bytes()
    copy.write_bytes(wanted[:-1] + bytes([wanted[-1] ^ 1]))
    os.utime(copy, ns=(0, 0))
    lowered(canonical, CPU)
    assert compared == [copy.name] and copy.read_bytes() == wanted
    monkeypatch.setattr(stage, "_COPIES", {})  # another process
    lowered(canonical, CPU)
    assert len(compared) == 2


def test_unchanged_weights_stay_in_the_canonical_data(canonical: Path) -> None:
    graph, weights = lowered(canonical, live=True).files
    assert weights.name == "model.onnx.data"
    assert weights.read_bytes() == (canonical.parent / "model.onnx.data").read_bytes()
    tensors = ir.load(graph).graph.initializers
    places = {name: t.location for name, v in tensors.items() if isinstance(t := v.const_value, ir.ExternalTensor)}
    assert places["q_codes"] == places["v_codes"] == places["table"] == "model.onnx.data"


def test_large_new_tensors_go_to_a_file_of_their_own(tmp_path: Path, tiny: ModelDir) -> None:
    scheme = tiny_export.SCHEMES["w4a16"]
    assert scheme is not None
    by_channel = dataclasses.replace(scheme, weight=dataclasses.replace(tiny_export.INT8, qtype=scheme.weight.qtype))
    model = tiny_export.export(tiny, tiny_export.calibration(tiny, by_channel), tmp_path / "model.onnx")
    facts = lowered(model)
    assert [f.name for f in facts.files] == ["rtx-ada.onnx", "model.onnx.data", "rtx-ada.onnx.data"]
    assert at_step(facts.files[0], model) <= tolerances.LOWERED["fp16", None]
    blocks = {n.attributes.get_int("block_size", 0) for n in ir.load(facts.files[0]).graph if n.op_type == "DequantizeLinear"}
    assert blocks == {64, 128}


def test_same_input_same_bytes(canonical: Path, tmp_path: Path) -> None:
    first = lowered(canonical)
    digests = [sha256(f) for f in first.files]
    again = lowered(canonical)
    assert again.files == first.files
    assert [sha256(f) for f in again.files] == digests
    moved = lowered(save_attention(tmp_path / "elsewhere" / "model.onnx"))
    assert [sha256(f) for f in moved.files] == digests


def test_a_stale_data_file_is_replaced(canonical: Path) -> None:
    stale = canonical.parent / "lowered" / "model.onnx.data"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    assert lowered(canonical).files[1] == stale
    assert stale.read_bytes() == (canonical.parent / "model.onnx.data").read_bytes()


def test_nothing_is_written_when_a_pass_fails(canonical: Path) -> None:
    with pytest.raises(DialectError, match="after the last pass: rule computes-in-one-type"):
        lowered(canonical, passes=["eliminate-dead-nodes"])
    assert not (canonical.parent / "lowered").exists()


def test_an_older_graph_does_not_survive_a_failed_write(canonical: Path) -> None:
    graph, weights = lowered(canonical, live=True).files
    weights.unlink()
    weights.mkdir()
    with pytest.raises(IsADirectoryError):
        lowered(canonical)
    assert not graph.exists()


def test_truncated_data_is_refused(canonical: Path) -> None:
    data = canonical.parent / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model.onnx.data: found 100 bytes; wanted at least \d+ bytes for tensor"):
        lowered(canonical)
    data.unlink()
    with pytest.raises(InputError, match="found no such file; wanted at least"):
        lowered(canonical)


def test_data_outside_the_folder_is_refused(canonical: Path) -> None:
    proto = onnx.load(canonical, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"
    canonical.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match=r"found tensor \w+ in \.\./model.onnx.data; wanted a file in the model's own folder"):
        lowered(canonical)


@pytest.mark.parametrize("content", [None, b"no model at all"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="wanted an ONNX model"):
        lowered(path)


@pytest.mark.parametrize("opsets", [(22, 25), (9, 20)])
def test_an_opset_that_lowering_does_not_write_is_refused(canonical: Path, opsets: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"target new: found opsets {opsets[0]} to {opsets[1]}; wanted opset 21 among them"):
        lowered(canonical, dataclasses.replace(FP16, name="new", opsets=opsets))
