"""Fixtures that every part of the test tree shares."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import their helpers by plain name

from tiny_model import save_tiny_model

from vditc.conditioning import TEXT, Conditioning
from vditc.model_dir import ModelDir
from vditc.text_encoder import WordEmbedding


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
    words = WordEmbedding.load(tiny_dir / "text_encoder")
    prompts = ("a 7 moving left", "a 2 moving up")
    return Conditioning(
        prompts=prompts,
        inputs={TEXT: words.encode(list(prompts))},
        empty={TEXT: words.encode([""])},
        seeds=(5, 6),
        latent_shape=(4, 2, 8, 8),
    )


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)
