"""Reading the program text of a plan, on a plan written here line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from vditc.errors import VditcError
from vditc.runtimes.engine_program import Gemm
from vditc.runtimes.plan_text import Tensor, program, read_plan

LAYER = "[ONNX Layer: blocks.0.ffn.net.2/MatMul]"


def section(accelerators: str, tensors: list[str], ops: list[str]) -> bytes:
    lines = ["header {", "  version = 5", f"  accelerators={{{accelerators} }}", "}", "descriptors {", *tensors[:1], "", *tensors[1:], "}"]
    text = "\n".join([*lines, "main {", " label bb1: ", *ops, "}", "shape_main {", '  mul={ name="m" output={"z" } }', "}"]).encode()
    return b"NLYM\xa1\xda\x1e\x00" + len(text).to_bytes(8, "little") + text + b"\0\0"


def tensor(name: str, kind: str, dims: str, const: int | None = None, base: str | None = None) -> str:
    size = f"const_payload_size={const} " if const else ""
    view = f'base="{base}" ' if base else ""
    return f'  {"sub_" if base else ""}tensor={{ alignment=128 {size}{view}dims={{ {dims} }} name="{name}" strides={{ 1 }} type={kind} }}'


def gemm(a: str, b: str, out: str) -> str:
    return f'  fully_connected={{ name="mm" output={{"{out}" }} input={{"{a}" "{b}" "alpha" }} kernel=__stub layers="{LAYER}" }}'


CODES = tensor("codes^deref", "int8", '"{odd = name}" 8', base="codes")
MAIN = [
    tensor("codes", "int8", '"{odd = name}" 8'),
    CODES,
    tensor("w", "int8", "8 4", 32),
    tensor("y", "float", '"n" 4'),
    tensor("packed", "int4", "8 4", 16),
    tensor("scale", "half", "4", 8),
    tensor("wide", "half", "8 4"),
    tensor("wide^deref", "half", "8 4", base="wide"),
    tensor("x", "half", '"n" 8'),
    tensor("z", "half", '"n" 4'),
]
DEQUANT = '  function={ name=__myl_Cast grid = { 1 { 9 } } input_args={ "packed" "scale" } output_args={ "wide" } cond = { name = "no" } }'


def written(path: Path, *sections: bytes) -> Path:
    path.write_bytes(b"ptrt\0" + b"".join(sections))
    return path


def test_reads_types_views_constants_and_nodes(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path / "p", section("sm80 sm89", MAIN, [gemm("codes^deref", "w", "y")])))
    (main,) = plan.sections
    assert main.accelerators == ("sm80", "sm89")
    assert len(main.tensors) == len(MAIN)
    assert main.tensors["codes^deref"] == Tensor("codes^deref", "int8", ("{odd = name}", "8"), None, "codes")
    assert [op.kind for op in main.ops] == ["fully_connected"]  # shape_main is not the program
    found = program(plan)
    assert found.gemms == (Gemm(("blocks.0.ffn.net.2/MatMul",), "int8", "int8", "float", "int8", True),)
    assert found.constant_bytes == {"half": 8, "int4": 16, "int8": 32}


def test_a_weight_converted_by_its_own_kernel(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path / "p", section("sm89", MAIN, [DEQUANT, gemm("x", "wide^deref", "z")])))
    found = program(plan)
    assert found.gemms[0].stored == "int4"
    assert not found.gemms[0].dequant_fused
    assert [k.outputs for k in found.kernels] == [("half[8 4]",)]


def test_a_weight_converted_inside_the_product(tmp_path: Path) -> None:
    shell = f'  runtime_fusion={{ name=f input_args={{ "x" "packed" }} output_args={{ "z" }} layers="{LAYER}" backbone=gemm }}'
    body = [tensor("packed", "int4", "8 4"), *(t for t in MAIN if "packed" not in t)]
    fused = '  mul={ name="int4_block_dq" output={"wide" } input={"packed" "scale" } layers="" }'
    plan = read_plan(written(tmp_path / "p", section("sm89", MAIN, [shell]), section("*", body, [fused, gemm("x", "wide", "z")])))
    assert [(str(g), g.dequant_fused) for g in program(plan).gemms] == [("half x half from int4 -> half", True)]


def test_attention_and_plugins(tmp_path: Path) -> None:
    ops = [
        '  function={ name=_gemm_mha_v2 input_args={ "x" } output_args={ "z" } layers="[ONNX Layer: a/Softmax]" }',
        '  custom_layer={ name="q" }',
    ]
    found = program(read_plan(written(tmp_path / "p", section("sm89", MAIN, ops))))
    assert [a.nodes for a in found.attentions] == [("a/Softmax",)]
    assert [p.name for p in found.plugins] == ["q"]
    assert found.kernels == ()


def test_kernels_that_write_codes_and_sizes_that_repeat(tmp_path: Path) -> None:
    scores = [tensor("s", "float", '2 "n" "n"'), tensor("t", "half", '2 "n" "m"'), tensor("u", "half", "8 8")]
    ops = [
        '  function={ name=f input_args={ "x" } output_args={ "codes" "y" } }',
        '  function={ name=g input_args={ "x" } output_args={ "z" } }',
    ]
    found = program(read_plan(written(tmp_path / "p", section("sm89", [*MAIN, *scores], ops))))
    assert [k.codes for k in found.kernels] == [True, False]
    assert found.repeated_sizes == ("float[2 n n]",)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"ptrt and nothing known", "no program text"),
        (section("sm89", MAIN, [gemm("x", "w", "z")])[:-40], r"a section of \d+ bytes at byte 16"),
        (section("*", MAIN, [gemm("x", "w", "z")]), "1 sections of program text"),
        (section("sm89", [*MAIN, '  tensor={ name="t" }'], []), "a tensor with the fields name"),
    ],
)
def test_an_unknown_format_is_an_error_that_names_the_version(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(VditcError, match=rf"found {found}.*tensorrt_rtx_cu13==1\.7\.1\.116"):
        read_plan(tmp_path / "p")


def test_a_product_of_unknown_tensors_is_an_error(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path / "p", section("sm89", MAIN, [gemm("x", "nowhere", "z")])))
    with pytest.raises(VditcError, match=r"product 'mm' of .*nowhere"):
        program(plan)
