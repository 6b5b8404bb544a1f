"""The commands of docs/edge.md, executed as they stand: those of vditc here, those of the device with stubs for TensorRT and the driver."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import device_case
import pytest
from command import vditc
from tiny_model import SAMPLING, save_tiny_model

from vditc.target import Target

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "edge.md"
NAME = "jetson-orin-jp6"


def lines() -> list[str]:
    """Every line of the shell blocks, comments removed."""
    return [line for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL) for line in block.splitlines()]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_guides_commands_run(compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_folder: Path) -> None:
    """The target is for this machine's processor; the plugin library is the emulated one. Quick: what compile leaves is made by hand."""
    model, target = save_tiny_model(tmp_path / "model"), device_case.target(NAME)
    (model / "sampling.json").write_text(json.dumps({**SAMPLING, "semantics": "digits"}))
    real = Target.load
    monkeypatch.setattr(Target, "load", lambda name: target if name == NAME else real(name))
    monkeypatch.setenv("VDITC_PLUGINS", str(plugin_folder))
    monkeypatch.chdir(tmp_path)
    driver, here = device_case.fake_driver(tmp_path / "driver"), tmp_path
    ran = {"vditc": 0, "device": 0}
    for line in lines():
        words = shlex.split(line, comments=True)
        if words[0] == "vditc":
            ran["vditc"] += 1
            if words[1] == "compile" and not compiled:
                device_case.make_bundle(tmp_path / words[-1])
                continue
            given = [str(model) if w == "MODEL_DIR" else w for w in words[1:]]
            run = vditc(*given, *(["--no-gate", "--clips", "1"] if words[1] == "compile" else []))
            assert run.code == 0, f"{line}\n{run.stderr}"
        elif words[0] == "cd":
            here = tmp_path / words[1]
        else:
            command = [sys.executable if w == "python3" else w for w in words]
            done = subprocess.run(command, cwd=here, env=device_case.environment(driver), capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran["device"] += 1
    assert ran == {"vditc": 6, "device": 5}
    assert "built" in vditc("inspect", "wan.bundle").stdout
    assert device_case.read(tmp_path / NAME).library == (f"plugins/{target.platform}/libvditc_plugins.so" if compiled else None)


def test_every_message_of_the_table_is_one_that_there_is() -> None:
    """The first words of each row of Troubles stand in the program."""
    rows = re.findall(r"^\| `([^`]*)`", GUIDE.read_text().partition("## Troubles")[2], re.MULTILINE)
    root = Path(__file__).resolve().parents[1]
    parts = [*(root / "src/vditc").glob("device/*.py"), root / "runtimes/trt_errors.py", root / "runtimes/trt_worker.py"]
    source = "".join(path.read_text() for path in [*parts, root / "src/vditc/pipeline/device_files.py"])
    assert len(rows) >= 9
    for phrase in ("damaged or missing", "a GPU of ", "no usable ", "the plugin library", "the builder process ", "a full disk", " usable"):
        assert phrase in source and any(phrase.strip() in row for row in rows), phrase
