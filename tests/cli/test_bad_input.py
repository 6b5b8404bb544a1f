"""Bad input: exit code 2, one line that says what is wrong, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import Run, vditc

from vditc.safetensors_file import read_header

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
W4 = """schema = 1
name = "own"
description = "made by a test"
method = "rtn"

[[rules]]
match = ["{match}"]
weight = {{ qtype = "{qtype}", granularity = "per_group", group_size = {group} }}

[[rules]]
match = ["*"]
keep = "not in this test"
"""


def recipe(path: Path, match: str = "ffn.*", qtype: str = "int4", group: int = 64, extra: str = "") -> str:
    path.write_text(extra + W4.format(match=match, qtype=qtype, group=group))
    return str(path)


def refused(run: Run, out: Path, *words: str) -> None:
    """Exit 2, one line with every word, no output and no unfinished output."""
    assert run.code == 2, run
    said = [line for line in run.stderr.splitlines() if line.strip() and "━" not in line]  # a slow machine shows progress before
    assert len(said) == 1 and said[0].startswith("vditc: error: "), run.stderr
    for word in words:
        assert word in run.stderr, f"{word!r} not in {run.stderr!r}"
    assert not out.exists() and not out.with_name(out.name + ".partial").exists()


@pytest.fixture
def model(tiny_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.bundle"


@pytest.fixture
def compile_tiny(model: Path, out: Path, tmp_path: Path) -> Callable[..., Run]:
    (tmp_path / "prompts.txt").write_text("a 7 moving left\n")

    def run(*options: str, recipe: str = "w8a8", target: str = "cpu") -> Run:
        prompts = str(tmp_path / "prompts.txt")
        return vditc("compile", str(model), "--recipe", recipe, "--target", target, "-o", str(out), "--prompts", prompts, *options)

    return run


def test_missing_weights(compile_tiny: Callable[..., Run], model: Path, out: Path) -> None:
    (model / WEIGHTS).unlink()
    refused(compile_tiny(), out, "no readable file", "diffusion_pytorch_model.safetensors")


def test_truncated_weights(compile_tiny: Callable[..., Run], model: Path, out: Path) -> None:
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[:-100])
    refused(compile_tiny(), out, "its header promises", str(len(data)))


def test_weights_cut_inside_the_header(compile_tiny: Callable[..., Run], model: Path, out: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:40])
    refused(compile_tiny(), out, "with a header of")


def configure(model: Path, **changes: object) -> None:
    """Change transformer/config.json."""
    file = model / "transformer/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_layers": 3}, ("tensors missing or of another shape", "blocks.2")),
        ({"num_layers": 1}, ("tensors more than the model has", "blocks.1")),
        ({"in_channels": 5}, ("tensors missing or of another shape", "patch_embedding.weight [128, 4, 1, 2, 2]")),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ("quantized already", "config.json")),
    ],
    ids=str,
)
def test_config_that_does_not_fit_the_weights(
    compile_tiny: Callable[..., Run], model: Path, out: Path, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    configure(model, **changes)
    refused(compile_tiny(), out, *words)
    refused(vditc("export", str(model), "--recipe", "fp16", "-o", str(out)), out, *words)
    prompts = str(out.with_name("prompts.txt"))
    refused(vditc("calibrate", str(model), "--recipe", "fp16", "--prompts", prompts, "-o", str(out)), out, *words)


def retype(model: Path, name: str, dtype: str) -> None:
    """Say another type of a float16 tensor, and half of its bytes."""
    data = (model / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[name]["dtype"] = dtype
    begin, end = header[name]["data_offsets"]
    for info in header.values():
        if info.get("data_offsets", [0])[0] >= end:
            info["data_offsets"] = [n - (end - begin) // 2 for n in info["data_offsets"]]
    header[name]["data_offsets"] = [begin, (begin + end) // 2]
    text, body = json.dumps(header).encode(), data[8 + length :]
    (model / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + body[: (begin + end) // 2] + body[end:])


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("I8", "1 weights that are not floating point, first blocks.0.attn1.to_q.weight int8"), ("F8_E5M2", "to_q.weight of type F8_E5M2")],
)
def test_weights_that_are_codes_already(model: Path, out: Path, dtype: str, words: str) -> None:
    retype(model, "blocks.0.attn1.to_q.weight", dtype)
    refused(vditc("export", str(model), "--recipe", "fp16", "-o", str(out)), out, words)


def test_unknown_class(compile_tiny: Callable[..., Run], model: Path, out: Path) -> None:
    configure(model, _class_name="MysteryTransformer3DModel")
    refused(compile_tiny(), out, "MysteryTransformer3DModel", "WanTransformer3DModel")


def test_unknown_recipe(compile_tiny: Callable[..., Run], out: Path) -> None:
    refused(compile_tiny(recipe="w2a2"), out, "'w2a2'", "w8a8-static")


def test_unknown_recipe_key(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    refused(compile_tiny(recipe=recipe(tmp_path / "own.toml", extra="colour = 1\n")), out, "unknown key colour", "own.toml")


def test_rule_that_matches_no_layer(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    refused(compile_tiny(recipe=recipe(tmp_path / "own.toml", match="temporal_attn.*")), out, "rule 1", "decides no layer", "ffn.in")


def test_group_size_that_does_not_divide(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    refused(compile_tiny(recipe=recipe(tmp_path / "own.toml", group=96)), out, "group_size 96", "blocks.0.ffn", "128 input channels")


def test_unknown_method(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "own.toml")
    Path(path).write_text(Path(path).read_text().replace('"rtn"', '"magic"'))
    refused(compile_tiny(recipe=path), out, "magic", "rtn")


def test_target_that_does_not_know_a_type(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "own.toml", qtype="fp8_e4m3")
    refused(compile_tiny(recipe=path, target="a100"), out, "fp8_e4m3", "sm_80", "int8")


def test_type_that_no_method_makes(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path / "own.toml", qtype="fp8_e4m3")
    refused(compile_tiny(recipe=path, target="l40s"), out, "fp8_e4m3", "rtn")


def test_unknown_target(compile_tiny: Callable[..., Run], out: Path) -> None:
    refused(compile_tiny(target="toaster"), out, "toaster", "jetson-orin")


@pytest.mark.parametrize(
    ("profile", "word"),
    [
        ("frames=4:2:8", "4:2:8"),
        ("frames=8:8:4", "min <= opt <= max"),
        ("depth=1", "'depth=1'"),
        ("frames=1:2", "'frames=1:2'"),
        ("frames=x", "'frames=x'"),
    ],
)
def test_bad_profile(compile_tiny: Callable[..., Run], out: Path, profile: str, word: str) -> None:
    refused(compile_tiny("--profile", profile), out, word, "--profile")


def test_unknown_word_in_a_prompt(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a 7 dancing\n")
    refused(compile_tiny(), out, "dancing", "moving")


def test_no_prompts_for_a_model_that_needs_them(model: Path, out: Path) -> None:
    refused(vditc("compile", str(model), "--recipe", "w8a8", "--target", "cpu", "-o", str(out)), out, "no prompts", "--conditioning")


def test_existing_output(compile_tiny: Callable[..., Run], out: Path) -> None:
    out.mkdir()
    (out / "precious").write_text("keep me")
    run = compile_tiny()
    assert run.code == 2 and "exists" in run.stderr and "--force" in run.stderr
    assert [p.name for p in out.iterdir()] == ["precious"]


@pytest.mark.parametrize("there", ["m.onnx", "m.onnx.data", "m.refit.json"])
def test_export_replaces_nothing_unasked(model: Path, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("keep me")
    run = vditc("export", str(model), "--recipe", "fp16", "-o", str(tmp_path / "m.onnx"))
    assert run.code == 2 and f"{there} exists" in run.stderr
    assert (tmp_path / there).read_text() == "keep me"
    run = vditc("export", str(model), "--recipe", "fp16", "-o", str(tmp_path / "m.onnx"), "--force")
    assert run.code == 0 and (tmp_path / there).read_bytes() != b"keep me"


def test_output_that_is_a_folder_or_lies_in_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    run = vditc("export", str(model), "--recipe", "fp16", "-o", str(tmp_path / "folder"), "--force")
    assert run.code == 2 and "folder, a folder; wanted a file" in run.stderr
    run = vditc("export", str(model), "--recipe", "fp16", "-o", str(tmp_path / "file" / "m.onnx"))
    assert run.code == 2 and "file, which cannot be written to" in run.stderr


def test_no_bundle(tmp_path: Path) -> None:
    for command in (["inspect"], ["verify"], ["run", "-o", str(tmp_path / "x.gif"), "--prompt", "a 7 moving left"]):
        run = vditc(*command, str(tmp_path))
        assert run.code == 2 and "manifest" in run.stderr, run


def test_export_wants_one_of_calibration_and_recipe(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    refused(vditc("export", str(model), "-o", str(out)), out, "found neither", "--calibration FILE or --recipe RECIPE")
    refused(vditc("export", str(model), "--recipe", "w8a8", "--calibration", "c", "-o", str(out)), out, "found both")


def test_export_of_a_recipe_that_needs_data(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    refused(
        vditc("export", str(model), "--recipe", "w8a8-static", "-o", str(out)), out, f"run `vditc calibrate {model} --recipe w8a8-static"
    )


def test_export_of_weights_that_are_not_finite(model: Path, tmp_path: Path) -> None:
    out, layer = tmp_path / "new" / "m.onnx", "blocks.1.attn2.to_k"
    entry = read_header(model / WEIGHTS)[0][f"{layer}.weight"]
    with (model / WEIGHTS).open("r+b") as f:
        f.seek(entry.offset)
        f.write(np.array([np.nan], np.float16).tobytes())
    refused(vditc("export", str(model), "--recipe", "w4a8", "-o", str(out)), out, f"{WEIGHTS}, layer {layer}", "not finite")
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
