"""The README's commands, executed as they stand, on a model that is small enough."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import vditc
from tiny_model import SAMPLING, save_tiny_model

README = Path(__file__).resolve().parents[1] / "README.md"


def commands() -> list[list[str]]:
    """Every `vditc` line of the README's shell blocks, comments removed."""
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "vditc"]


@pytest.mark.demo
def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = save_tiny_model(tmp_path / "model")
    (model / "sampling.json").write_text(json.dumps({**SAMPLING, "semantics": "digits"}))
    monkeypatch.chdir(tmp_path)
    ran = commands()
    assert len(ran) >= 12
    for words in ran:
        if words[0] == "plugins" and shutil.which("nvcc") is None:
            continue  # test_build.py has what is said then
        # The clips of a random model show no digit to lose, but its noise may be read as one: the gate is not the point here.
        extra = ["--no-gate", "--clips", "1"] if words[0] == "compile" else []
        # CUTLASS's compilers take 3 GB, and every GPU six minutes.
        extra = ["--no-cutlass", "--arch", "80,120a"] if words == ["plugins", "build"] else extra
        run = vditc(*[str(model) if w == "MODEL_DIR" else w for w in words], *extra)
        assert run.code == 0, f"vditc {' '.join(words)}\n{run.stderr}"
    for name in ("wan.bundle/manifest.json", "clip.mp4", "calibration.safetensors", "model.onnx.data", "lowered.onnx", "engine/model.plan"):
        assert (tmp_path / name).stat().st_size > 0
