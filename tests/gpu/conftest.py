"""Tests that need a CUDA GPU and the real plugin library; everywhere else they are skipped, and say why.

    VDITC_PLUGINS_LIBRARY=.../libvditc_plugins.so pytest tests/gpu            # default: where `vditc plugins build` put it

VDITC_REQUIRE_GPU=1 makes a missing GPU a failure.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from vditc.plugins.library import Library
from vditc.plugins.torch_ops import use_library


def why_not() -> str | None:
    """What is missing for these tests; None where a GPU is there. A missing library is no reason: it is an error."""
    return None if torch.cuda.is_available() else "needs a CUDA GPU: torch.cuda.is_available() is False"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made."""
    if Path(__file__).parent in item.path.parents and (reason := why_not()):
        (pytest.fail if os.environ.get("VDITC_REQUIRE_GPU") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def library_file() -> Path:
    """Path of the library of this machine."""
    from vditc.plugins.build import library_here

    said = os.environ.get("VDITC_PLUGINS_LIBRARY")
    return Path(said) if said else library_here(int((torch.version.cuda or "13").partition(".")[0]))


@pytest.fixture(scope="session")
def library(library_file: Path) -> Library:
    """The library; torch's operators use it as well."""
    use_library(library_file)
    return Library(library_file)


@pytest.fixture(autouse=True)
def seeded(library: Library) -> None:
    """The same random numbers for every order of the tests; work of the last test is done."""
    torch.cuda.synchronize()
    torch.manual_seed(0)
