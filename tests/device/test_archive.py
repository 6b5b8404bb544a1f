"""vditc_device.pyz: the same bytes each time, whole, and free of everything that a device has not."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import pytest

from vditc.pipeline.device_archive import archive, device_modules

ABSENT = (
    *("torch", "numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "diffusers", "ml_dtypes", "safetensors", "typer", "rich"),
    *("tomllib", "polygraphy", "tensorrt", "google"),
)
# Of the standard library, after Python 3.10.
NEWER = {
    "typing": {
        "Self",
        "Never",
        "LiteralString",
        "assert_never",
        "override",
        "reveal_type",
        "Unpack",
        "TypeVarTuple",
        "dataclass_transform",
    },
    "enum": {"StrEnum", "verify", "member", "nonmember"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
}


def test_equal_sources_give_equal_bytes() -> None:
    assert archive() == archive()
    with zipfile.ZipFile(io.BytesIO(archive())) as packed:
        assert packed.testzip() is None and packed.namelist() == sorted(packed.namelist())
        assert {"__main__.py", "vditc/__init__.py", "vditc/device/__main__.py", "vditc/runtimes/trt_worker.py"} <= set(packed.namelist())
        assert not [name for name in packed.namelist() if "export" in name or "calibrat" in name or "cli" in name]


@pytest.mark.parametrize("python", ["python3", "python3.10", "python3.12"])
def test_runs_with_the_standard_library_alone(python: str, tmp_path: Path) -> None:
    """Every module is imported where the names that a device lacks cannot be, in a Python without site packages."""
    found = sys.executable if python == "python3" else _python(python)
    if found is None:
        pytest.skip(f"no {python}")
    path = tmp_path / "a.pyz"
    path.write_bytes(archive())
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in device_modules()]
    code = f"""
import sys
for name in {ABSENT!r}: sys.modules[name] = None
import importlib
for name in {names!r}: importlib.import_module(name)
assert all(module is None or str(getattr(module, "__file__", "")).startswith({str(path)!r})
           for name, module in sys.modules.items() if name.partition(".")[0] == "vditc")
"""
    environment = {"PYTHONPATH": str(path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([found, "-S", "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([found, "-S", str(path), "--help"], capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0 and "build" in done.stdout and "facts" in done.stdout
    done = subprocess.run([found, "-S", str(path), "facts"], capture_output=True, text=True, check=False, env={"PATH": "/none"})
    assert done.returncode == 0 and '"power_mode": "unknown: ' in done.stdout


def test_the_test_sees_what_is_imported(tmp_path: Path) -> None:
    """An archive of a module that imports numpy does not pass as above."""
    code = "import sys; sys.modules['numpy'] = None; import vditc.adapter"
    source = Path(device_modules()["vditc/errors.py"]).parents[1]
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(source)})
    assert done.returncode == 1 and "numpy" in done.stderr


def test_the_language_is_that_of_python_3_10() -> None:
    for name, path in device_modules().items():
        tree = ast.parse(path.read_text(), name, feature_version=(3, 10))
        for node in ast.walk(tree):
            assert not isinstance(node, getattr(ast, "TryStar", ())), name
            if isinstance(node, ast.ImportFrom) and node.module in NEWER and not _for_checkers(tree, node):
                newer = NEWER[node.module] & {alias.name for alias in node.names}
                assert not newer, f"{name} imports {newer}"


def _for_checkers(tree: ast.AST, node: ast.AST) -> bool:
    guarded = (n for n in ast.walk(tree) if isinstance(n, ast.If) and isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING")
    return any(node in ast.walk(one) for one in guarded)


def _python(name: str) -> str | None:
    """A Python of that version that runs: a name on PATH may be a shim without one."""
    candidates = [shutil.which(name), *map(str, Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}*/bin/python3"))]
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


def test_the_names_are_those_of_typing() -> None:
    """The list above names what there is in the Python that runs this test."""
    assert {"Self", "Never", "LiteralString"} <= NEWER["typing"] & set(dir(typing))
