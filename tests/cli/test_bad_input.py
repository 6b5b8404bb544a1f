"""Bad input: exit code 2, one line that says what is wrong, and nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import Run, vditc

from vditc.conditioning import TEXT, Conditioning
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


def test_a_recipe_that_the_target_does_not_run(compile_tiny: Callable[..., Run], out: Path) -> None:
    words = (
        "target a100 (sm_80, TensorRT 10.3 to 11): found rule 3 of recipe fp8",
        "FP8 products exist from sm_89 on (here sm_80)",
        "runs here is w8a8",
    )
    refused(compile_tiny(recipe="fp8", target="a100"), out, *words)


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
    path = recipe(tmp_path / "own.toml", qtype="fp4_e2m1", group=16)
    refused(compile_tiny(recipe=path, target="a100"), out, "rule 1 of recipe own: W[fp4_e2m1", "sm_80", "runs here is w4a16")


def test_type_that_no_method_makes(compile_tiny: Callable[..., Run], out: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    recipe(path, qtype="fp8_e4m3")
    path.write_text(path.read_text().replace('"rtn"', '"smoothquant"'))
    refused(compile_tiny(recipe=str(path), target="cpu"), out, "fp8_e4m3", "rtn")


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
    refused(vditc("export", str(model), "--recipe", "w4a8-rtn", "-o", str(out)), out, f"{WEIGHTS}, layer {layer}", "not finite")
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ("found no prompt", "prompts.txt")),
        (b" \n\n\t\n", ("found no prompt", "prompts.txt")),
        (b"a 7 moving left\na 2 \xff\xfe up\n", ("not UTF-8", "prompts.txt, line 2")),
    ],
    ids=["empty", "blank", "not UTF-8"],
)
@pytest.mark.parametrize("command", ["calibrate", "dataset", "sensitivity"])
def test_prompts_that_cannot_be_read(model: Path, tmp_path: Path, command: str, content: bytes, words: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    (tmp_path / "prompts.txt").write_bytes(content)
    recipe = [] if command == "dataset" else ["--recipe", "w8a8"]
    refused(vditc(command, str(model), *recipe, "--prompts", str(tmp_path / "prompts.txt"), "-o", str(out)), out, *words)


def test_no_prompts_file(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(
        vditc("calibrate", str(model), "--recipe", "w8a8", "--prompts", str(tmp_path / "gone"), "-o", str(out)), out, "--prompts", "gone"
    )


@pytest.mark.parametrize("memory", ["0", "-1", "nan", "inf"])
def test_memory_that_is_none(model: Path, tmp_path: Path, memory: str) -> None:
    out = tmp_path / "out"
    refused(vditc("calibrate", str(model), "--recipe", "w8a8", "--memory", memory, "-o", str(out)), out, "--memory", "more than 0")


def conditioned(model: Path, tmp_path: Path, given: Conditioning, command: str = "calibrate") -> Run:
    given.save(tmp_path / "clips.safetensors")
    recipe = [] if command == "dataset" else ["--recipe", "w8a8"]
    return vditc(command, str(model), *recipe, "--conditioning", str(tmp_path / "clips.safetensors"), "-o", str(tmp_path / "out"))


@pytest.mark.parametrize("command", ["calibrate", "dataset", "sensitivity"])
def test_conditionings_of_another_width(model: Path, tmp_path: Path, tiny_conditioning: Conditioning, command: str) -> None:
    c = tiny_conditioning
    narrow = dataclasses.replace(c, inputs={TEXT: c.inputs[TEXT][..., :5]}, empty={TEXT: c.empty[TEXT][..., :5]})
    refused(conditioned(model, tmp_path, narrow, command), tmp_path / "out", "encoder_hidden_states [2, 8, 5]", "[batch, text_tokens, 16]")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_conditionings_that_are_not_finite(model: Path, tmp_path: Path, tiny_conditioning: Conditioning, value: float) -> None:
    text = tiny_conditioning.inputs[TEXT].copy()
    text[1, 2, 3] = value
    given = dataclasses.replace(tiny_conditioning, inputs={TEXT: text})
    refused(conditioned(model, tmp_path, given), tmp_path / "out", f"inputs/{TEXT}, clip 1 with numbers that are not finite")


def test_activations_that_are_not_finite_name_the_layer(model: Path, tmp_path: Path, tiny_conditioning: Conditioning) -> None:
    """The text overflows in the first attention that reads it."""
    given = dataclasses.replace(tiny_conditioning, inputs={TEXT: tiny_conditioning.inputs[TEXT] * np.float32(1e37)})
    run = conditioned(model, tmp_path, given)
    assert run.code == 2 and "error: layer blocks.0.ffn.net.0.proj, step 0: found an input that is not finite" in run.stderr, run
    assert not (tmp_path / "out").exists()
