"""Attention in recipes, in the calibration file, and what the later stages and `vditc inspect` say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_export import calibration as exportable
from tiny_model import tiny_sampled
from torchrun import run as vditc
from watcher import Watcher

from vditc.attention import AttentionScheme
from vditc.calibrate import trajectories
from vditc.calibrate.stage import calibrate, uncalibrated
from vditc.calibration import Calibration
from vditc.cli.inspect_calibration import calibration_facts, show_calibration
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.export.adapters.registry import adapter_for
from vditc.export.stage import export_model
from vditc.model_dir import ModelDir
from vditc.numerics import QType
from vditc.recipe import Recipe, builtin_recipes
from vditc.safetensors_file import read_header
from vditc.toml_data import Table

STEPS = 3
MODULES = [f"blocks.{i}.attn{j}" for i in range(2) for j in (1, 2)]
SAGE = {"qk": "int8", "pv": "fp8_e4m3", "smooth_k": True}


def recipe(attention: dict[str, Any] | None = None, **rule: Any) -> Recipe:
    data: dict[str, Any] = {"schema": 1, "name": "test", "description": "", "method": "rtn"}
    data["rules"] = [{"match": ["*"], **(rule or {"keep": "all"})}]
    data |= {} if attention is None else {"attention": attention}
    return Recipe.parse(Table(data, "test"), digest=repr(data))


@pytest.fixture
def run(tiny: ModelDir, tiny_conditioning: Conditioning, tmp_path: Path) -> Callable[..., Calibration]:
    """Calibrate the tiny model into tmp_path / out; keywords replace the defaults."""

    def call(out: str = "out", **changes: Any) -> Calibration:
        given: dict[str, Any] = {
            "recipe": recipe(SAGE),
            "out": tmp_path / out,
            "work": tmp_path / "work",
            "progress": Watcher(),
        }
        found = calibrate(tiny_sampled(tiny, tiny_conditioning, steps=STEPS), **(given | changes))
        assert found is not None
        return found

    return call


def test_every_attention_module_is_in_the_file(run: Callable[..., Calibration], tmp_path: Path) -> None:
    run()
    back = Calibration.load(tmp_path / "out")
    assert list(back.attention) == MODULES and not back.layers and len(back.kept) == 27
    for name, found in back.attention.items():
        assert found.scheme == AttentionScheme(qk=QType.INT8, pv=QType.FP8_E4M3, smooth_k=True)
        assert found.tokens == (32, 32 if name.endswith("attn1") else 8)
        assert found.q.shape == found.k.shape == (2,) and found.v.shape == (2, 64)
        assert [step for step, _ in found.errors] == [0, 1, 2] and 0.001 < found.error < 0.05
    tensor = read_header(tmp_path / "out")[0]["blocks.1.attn2.attention.v_absmax"].read()
    np.testing.assert_array_equal(tensor, back.attention["blocks.1.attn2"].v)
    back.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out").read_bytes()


def test_a_file_without_its_ranges_is_refused(run: Callable[..., Calibration], tmp_path: Path) -> None:
    run()
    raw = (tmp_path / "out").read_bytes().replace(b'"blocks.0.attn1.attention.v_absmax"', b'"blocks.0.attn1.attention.u_absmax"')
    (tmp_path / "out").write_bytes(raw)
    with pytest.raises(InputError, match=r"found no tensor blocks\.0\.attn1\.attention\.v_absmax"):
        Calibration.load(tmp_path / "out")


@pytest.mark.parametrize("kill_at", [2, STEPS + 1, 2 * STEPS])
def test_killed_run_resumes_to_the_same_bytes(
    run: Callable[..., Calibration], tmp_path: Path, kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole", work=tmp_path / "elsewhere")
    monkeypatch.setattr(trajectories, "SAVE_PAUSE", 0.0)
    monkeypatch.setattr(trajectories, "SAVE_SHARE", 1.0)
    with pytest.raises(KeyboardInterrupt):
        run(progress=Watcher(kill_at))
    again = Watcher()
    run(progress=again)
    assert "observers.safetensors holds" in again.notes[0] and again.notes[0].endswith("sampling goes on from there")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_two_ranks_write_the_bytes_of_one(tiny_dir: Path, tmp_path: Path) -> None:
    text = builtin_recipes()["w8a8-attn"].read_text()
    (tmp_path / "attn.toml").write_text(text.replace("prompts = 4", "prompts = 3"))
    (tmp_path / "prompts.txt").write_text("a 7 moving left\na 2 moving up\na 1 moving down\n")
    options = ["--recipe", str(tmp_path / "attn.toml"), "--steps", "2", "--prompts", str(tmp_path / "prompts.txt")]
    for ranks in (1, 2):
        out = str(tmp_path / f"{ranks}.safetensors")
        done = vditc(ranks, "calibrate", str(tiny_dir), *options, "-o", out)
        assert done.code == 0, done.stderr
        assert "attention of 4 modules as QK[int8 per token, smooth k] PV[fp8_e4m3]: relative error" in done.stdout
    one, two = ((tmp_path / f"{ranks}.safetensors").read_bytes() for ranks in (1, 2))
    assert one == two


def test_weights_and_activations_do_not_depend_on_it(run: Callable[..., Calibration]) -> None:
    rule = {
        "weight": {"qtype": "int8", "granularity": "per_channel"},
        "activation": {"qtype": "int8", "granularity": "per_tensor", "per_step": True},
        "layers": ["blocks.*"],
    }

    def of(attention: dict[str, Any] | None) -> Calibration:
        data: dict[str, Any] = {"schema": 1, "name": "t", "description": "", "method": "rtn"}
        data["rules"] = [{"match": ["*"], **rule}, {"match": ["*"], "keep": "rest"}]
        data |= {} if attention is None else {"attention": attention}
        return run(recipe=Recipe.parse(Table(data, "t"), digest=repr(data)))

    with_it, without = of(SAGE), of(None)
    assert len(with_it.attention) == 4 and not without.attention and with_it.mean_bits == without.mean_bits
    for name, layer in without.layers.items():
        np.testing.assert_array_equal(with_it.layers[name].activation_scale, layer.activation_scale)


def test_it_needs_data(tiny: ModelDir) -> None:
    with pytest.raises(InputError, match=r"found \[attention\], which is calibrated on data; .*run `vditc calibrate"):
        uncalibrated(source=tiny, adapter=adapter_for(tiny), recipe=recipe(SAGE))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "found neither qk nor pv"),
        ({"qk": "int9"}, r"found qk = 'int9'; wanted int8, int6"),
        ({"qk": "int8", "smooth": True}, r"found unknown key smooth; wanted only block_size, pv, qk, smooth_k, smooth_v"),
        ({"qk": "int8", "smooth_k": 1}, "found smooth_k = 1; wanted bool"),
        ({"qk": "int8", "block_size": 0}, "found block_size = 0"),
    ],
)
def test_bad_sections(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(section)


def test_export_and_inspect_say_what_was_measured(
    run: Callable[..., Calibration], tiny: ModelDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = run()
    for known, count in ((calibration, 1), (exportable(tiny, None), 0)):
        watcher = Watcher()
        export_model(source=tiny, adapter=adapter_for(tiny), calibration=known, out=tmp_path / "m.onnx", progress=watcher)
        said = [n for n in watcher.notes if n.startswith("attention of 4 modules is calibrated as QK[int8 per token, smooth k]")]
        assert len(said) == count and all("this graph computes it in floating point" in n for n in said)
        about = json.loads(onnx.load(tmp_path / "m.onnx", load_external_data=False).metadata_props[0].value)
        assert about.get("attention") == (calibration.attention[MODULES[0]].scheme.to_json() if count else None)
    (tmp_path / "out").rename(tmp_path / "c.safetensors")
    facts = json.loads(json.dumps(calibration_facts(tmp_path / "c.safetensors")))
    assert list(facts["attention"]) == MODULES and facts["attention"][MODULES[0]]["error"] == calibration.attention[MODULES[0]].error
    show_calibration(tmp_path / "c.safetensors", facts)
    shown = capsys.readouterr().out
    assert "attention, QK[int8 per token, smooth k] PV[fp8_e4m3]: measured" in " ".join(shown.split())
    assert all(name in shown for name in MODULES)
