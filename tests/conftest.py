"""Fixtures that every part of the test tree shares."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import their helpers by plain name

from tiny_model import save_tiny_model, tiny_clips

from vditc.conditioning import Conditioning
from vditc.graph_passes.core import PASSES
from vditc.model_dir import ModelDir
from vditc.plugins.build import LIBRARY
from vditc.plugins.emulated import emulated_library
from vditc.target import PLATFORMS


@pytest.fixture(scope="session", autouse=True)
def no_plugin_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whether this machine has a plugin library changes no test; those that need one say where it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDITC_PLUGINS", str(tmp_path_factory.mktemp("plugins")))
        yield


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What VDITC_PLUGINS may name: the emulated library, under the real one's name. It builds engines, which nobody can run."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    root = tmp_path_factory.mktemp("libraries")
    for platform in PLATFORMS:
        (root / platform).mkdir()
        shutil.copyfile(emulated_library(), root / platform / LIBRARY)
    return root


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a tiny random Wan model; read only."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> ModelDir:
    """The tiny model, opened."""
    return ModelDir.open(tiny_dir)


@pytest.fixture(scope="session")
def tiny_conditioning(tiny_dir: Path) -> Conditioning:
    """Two prompts for the tiny model."""
    return tiny_clips(tiny_dir)


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture
def registry() -> Iterator[None]:
    """Passes that a test declares are forgotten after it."""
    before = dict(PASSES)
    yield
    PASSES.clear()
    PASSES.update(before)
