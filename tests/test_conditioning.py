from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.sampling import noise


def test_survives_saving_with_equal_bytes(tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    tiny_conditioning.save(tmp_path / "a")
    tiny_conditioning.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Conditioning.load(tmp_path / "a")
    for name in ("prompts", "seeds", "latent_shape"):
        assert getattr(loaded, name) == getattr(tiny_conditioning, name)
    np.testing.assert_array_equal(loaded.text, tiny_conditioning.text)
    np.testing.assert_array_equal(loaded.empty, tiny_conditioning.empty)


def test_arrays_in_any_memory_order_are_saved(tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    turned = dataclasses.replace(tiny_conditioning, text=np.asfortranarray(tiny_conditioning.text))
    turned.save(tmp_path / "a")
    np.testing.assert_array_equal(Conditioning.load(tmp_path / "a").text, tiny_conditioning.text)


def test_noise_of_each_clip(tiny_conditioning: Conditioning) -> None:
    assert len(tiny_conditioning) == 2
    assert tiny_conditioning.noise(1).shape == (1, 4, 2, 8, 8)
    np.testing.assert_array_equal(tiny_conditioning.noise(1)[0], noise((4, 2, 8, 8), 6))


def test_counts_must_agree(tiny_conditioning: Conditioning) -> None:
    with pytest.raises(InputError, match=r"found 2 prompts, .* 1 seeds; wanted as many prompts, encodings and seeds"):
        dataclasses.replace(tiny_conditioning, seeds=(1,))
    with pytest.raises(InputError, match="empty like one encoding"):
        dataclasses.replace(tiny_conditioning, empty=tiny_conditioning.empty[:, :3])


def test_another_file_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match=r"found no conditioning .*wanted tensors text and empty, metadata vditc"):
        Conditioning.load(tiny_dir / "text_encoder" / "model.safetensors")
