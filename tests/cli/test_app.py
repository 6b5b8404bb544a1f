from __future__ import annotations

import sys

import pytest
from command import vditc


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
