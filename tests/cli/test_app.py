from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from command import vditc
from rich.console import Console

from vditc.cli.app import MODULES, RichProgress


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("vditc.pipeline") or n == "vditc.clips"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # as if it were not installed
    run = vditc("demo", "-o", "never-written")
    assert run.code == 1
    assert run.stderr == "vditc: error: this command needs the package imageio_ffmpeg: pip install 'vditc[report]'\n"


def test_help_names_every_command() -> None:
    text = vditc("--help").stdout
    for name in (
        "compile",
        "calibrate",
        "dataset",
        "sensitivity",
        "export",
        "lower",
        "build",
        "verify",
        "run",
        "inspect",
        "eval",
        "recipes",
        "targets",
        "models",
        "demo",
    ):
        assert f"  {name} " in text


@pytest.mark.parametrize(("command", "words"), [("recipes", ["w8a8-static"]), ("targets", ["jetson-thor", "sm_110"]), ("models", ["wan"])])
def test_lists(command: str, words: list[str]) -> None:
    assert all(word in vditc(command, "--json").stdout for word in words)


def test_all_about_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(vditc("targets", "b300", "--json").stdout)
    assert (facts["arch"], facts["runtime"], facts["compute"], facts["opsets"]) == (
        ["sm_103"],
        "TensorRT 10.13 to 11",
        ["fp16", "bf16"],
        [9, 21],
    )
    assert facts["recipes"]["fp8"] == "runs" and facts["recipes"]["w8a8"] == "instead: fp8"
    assert "int4 or int3 per_group (16, 32, 64, 128) x float" in facts["products"]
    quirk = next(q for q in facts["quirks"] if q["name"] == "no-int8-on-sm103")
    assert quirk["source"].startswith("https://") and quirk["follows"][0] == "refuses int8 or int6 x any"
    from vditc.cli.app import console

    monkeypatch.setattr(console, "width", 160)
    shown = vditc("targets", "b300").stdout
    for words in (
        "w8a8: instead: fp8",
        f"no-int8-on-sm103: {quirk['says']}",
        f"source: {quirk['source']}",
        "at most 65504 keys in fp16",
        "9 to 21",
    ):
        assert words in shown
    assert json.loads(vditc("targets", "b300-bf16", "--json").stdout)["compute"] == ["bf16", "fp16"]
    run = vditc("targets", "tpu")
    assert run.code == 2 and "found target 'tpu'" in run.stderr


def test_time_left_of_slow_steps_and_of_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of two minutes; an earlier run's parts do not count as fast ones."""
    now = 0.0
    shown = io.StringIO()
    monkeypatch.setattr(
        "vditc.cli.app.complain", Console(file=shown, width=120, force_terminal=True, color_system=None, get_time=lambda: now)
    )
    with RichProgress().task("sample", 10, done=6) as advance:
        for _ in range(3):
            now += 120.0
            advance()
        now += 1.0
    assert "9/10 0:06:01 left 0:02:00" in shown.getvalue()


@pytest.mark.parametrize("module", MODULES)
def test_every_command_is_found_by_its_module(module: str) -> None:
    """Only the module that names a command is loaded for it."""
    asked = f"import vditc.cli.{module}; from vditc.cli.app import app; "
    said = asked + "print(*(c.name for c in app.registered_commands), *(g.typer_instance.info.name for g in app.registered_groups))"
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert set(MODULES[module]) <= set(ran.stdout.split())
    assert set(ran.stdout.split()) <= {command for commands in MODULES.values() for command in commands}
