"""The binding of the CUDA runtime."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from vditc.errors import VditcError
from vditc.runtimes import cuda_runtime
from vditc.runtimes.cuda_runtime import Cuda


def test_every_function_is_in_the_library() -> None:
    """The names are looked up when they are called; a real library, no GPU needed."""
    try:
        library = ctypes.CDLL(Cuda.load().name)
    except VditcError as error:
        pytest.skip(str(error))
    named = set(re.findall(r'"(cuda[A-Z]\w+)"', Path(cuda_runtime.__file__).read_text()))
    assert len(named) > 15
    assert [name for name in sorted(named) if not hasattr(library, name)] == []


def test_a_machine_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VDITC_CUDART", str(tmp_path / "none.so"))
    with pytest.raises(VditcError, match=r"found no CUDA runtime; wanted libcudart.so.13 or .*pip install nvidia-cuda-runtime"):
        Cuda.load()


def test_wheels_are_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both layouts of NVIDIA's wheels, behind what the system's search path has."""
    for sub in cuda_runtime.WHEELS:
        (tmp_path / "nvidia" / sub).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("VDITC_CUDART", raising=False)
    found = cuda_runtime.candidates()
    assert found[:2] == list(cuda_runtime.NAMES)
    assert f"{tmp_path}/nvidia/cu13/lib/libcudart.so.13" in found and f"{tmp_path}/nvidia/cuda_runtime/lib/libcudart.so.12" in found
