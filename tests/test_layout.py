"""The shape of the repository: links, light root nouns, packaging, the README's commands."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from command import vditc

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("calibrate", "export", "graph_passes", "plugins", "runtimes")
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "diffusers")


def test_stages_are_links() -> None:
    for stage in STAGES:
        link = ROOT / "src" / "vditc" / stage
        assert link.is_symlink() and link.resolve() == ROOT / stage, f"{link}: check out with symbolic links (Linux)"


def test_no_stage_was_imported_by_its_bare_name() -> None:
    """A script of benchmarks/ may have a stage's name."""
    found = {stage: getattr(sys.modules.get(stage), "__path__", ()) for stage in STAGES}
    assert not [stage for stage, paths in found.items() if any(Path(path).resolve() == ROOT / stage for path in paths)]


def test_root_nouns_import_nothing_heavy() -> None:
    nouns = sorted(
        p.stem
        for p in (ROOT / "src" / "vditc").glob("*.py")
        if p.stem not in ("__init__", "report", "charts", "clips", "torch_device", "torch_transform")
    )
    code = f"import sys\nfor noun in {nouns}: __import__('vditc.' + noun)\nprint([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_inspect_imports_no_torch(tiny_dir: Path) -> None:
    code = "import sys, vditc.cli\nsys.argv = ['vditc', 'inspect', '--help']\ntry: vditc.cli.main()\nexcept SystemExit: pass\n"
    run = subprocess.run(
        [sys.executable, "-c", code + f"print([m for m in {HEAVY} if m in sys.modules])"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip().endswith("[]")


def test_readme_names_every_recipe_and_command() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    used = set(re.findall(r"^vditc (\w+)", blocks, re.MULTILINE))
    known = set(re.findall(r"^  (\w+)  ", vditc("--help").stdout, re.MULTILINE))
    assert used and used <= known, used - known
    for recipe in (ROOT / "src/vditc/recipes").glob("*.toml"):
        assert recipe.stem in text


@pytest.mark.slow
def test_wheel_from_sdist_is_complete(tmp_path: Path) -> None:
    """`pip wheel` of the source distribution holds every module and every data file of the five folders and the package."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for stage in STAGES:
        for module in (ROOT / stage).rglob("*.py"):
            assert f"vditc/{module.relative_to(ROOT).as_posix()}" in names
    assets = [f"assets/{model}/transformer/config.json" for model in ("digits", "digits_latte")]
    for data in ("recipes/w8a8.toml", "targets/cpu.toml", *assets, "templates/report.html"):
        assert f"vditc/{data}" in names
