from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vditc.adapter import InputSpec
from vditc.conditioning import TEXT, Conditioning
from vditc.errors import InputError
from vditc.sampling import noise
from vditc.schedule import Schedule


def test_survives_saving_with_equal_bytes(tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    tiny_conditioning.save(tmp_path / "a")
    tiny_conditioning.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Conditioning.load(tmp_path / "a")
    for name in ("prompts", "seeds", "latent_shape"):
        assert getattr(loaded, name) == getattr(tiny_conditioning, name)
    np.testing.assert_array_equal(loaded.inputs[TEXT], tiny_conditioning.inputs[TEXT])
    np.testing.assert_array_equal(loaded.empty[TEXT], tiny_conditioning.empty[TEXT])
    assert loaded.digest() == tiny_conditioning.digest()


def test_arrays_in_any_memory_order_are_saved(tiny_conditioning: Conditioning, tmp_path: Path) -> None:
    turned = dataclasses.replace(tiny_conditioning, inputs={TEXT: np.asfortranarray(tiny_conditioning.inputs[TEXT])})
    turned.save(tmp_path / "a")
    np.testing.assert_array_equal(Conditioning.load(tmp_path / "a").inputs[TEXT], tiny_conditioning.inputs[TEXT])


def test_noise_of_each_clip(tiny_conditioning: Conditioning) -> None:
    assert len(tiny_conditioning) == 2
    assert tiny_conditioning.noise(1).shape == (1, 4, 2, 8, 8)
    np.testing.assert_array_equal(tiny_conditioning.noise(1)[0], noise((4, 2, 8, 8), 6))


def test_counts_must_agree(tiny_conditioning: Conditioning) -> None:
    with pytest.raises(InputError, match=r"found 2 prompts and 1 seeds; wanted one seed a prompt"):
        dataclasses.replace(tiny_conditioning, seeds=(1,))
    with pytest.raises(InputError, match="wanted one encoding like theirs"):
        dataclasses.replace(tiny_conditioning, empty={TEXT: tiny_conditioning.empty[TEXT][:, :3]})
    with pytest.raises(InputError, match=r"found mask of the empty prompt alone"):
        dataclasses.replace(tiny_conditioning, empty={"mask": np.ones((1, 8))})
    with pytest.raises(InputError, match=r"found channels \[2, 3, 2, 8, 9\]; wanted \[1 or 2, E, 2, 8, 8\]"):
        dataclasses.replace(tiny_conditioning, channels=np.zeros((2, 3, 2, 8, 9)))
    for known, frames in ((None, (0,)), (np.zeros((2, 4, 2, 8, 8)), ()), (np.zeros((2, 4, 2, 8, 8)), (2,))):
        with pytest.raises(InputError, match="known_frames"):
            dataclasses.replace(tiny_conditioning, known=known, known_frames=frames)


SPECS = (
    InputSpec("hidden_states", "float32", ("batch", 5, "frames", "height", "width")),
    InputSpec("timestep", "float32", ("batch",), "timestep"),
    InputSpec(TEXT, "float32", ("batch", "text_tokens", 16)),
    InputSpec("encoder_attention_mask", "int64", ("batch", "text_tokens"), "mask"),
    InputSpec("guidance", "float32", ("batch",), 6000.0),
    InputSpec("fps", "float32", (1,), 24.0),
)


@pytest.fixture
def whole(tiny_conditioning: Conditioning) -> Conditioning:
    """Everything that SPECS asks for, and an image in front."""
    mask = np.array([[1] * 8, [1] * 5 + [0] * 3])
    return dataclasses.replace(
        tiny_conditioning,
        inputs={**tiny_conditioning.inputs, "encoder_attention_mask": mask, "fps": np.array([16])},
        empty={**tiny_conditioning.empty, "encoder_attention_mask": mask[1:]},
        channels=np.ones((1, 1, 2, 8, 8), np.float32),
        known=np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1, 1) * np.ones((2, 4, 2, 8, 8), np.float32),
        known_frames=(0,),
    )


def test_clips_hold_what_the_model_takes(whole: Conditioning, tmp_path: Path) -> None:
    whole.save(tmp_path / "a")
    whole = Conditioning.load(tmp_path / "a")
    whole.check(SPECS)
    clips = whole.clips([1], SPECS)
    assert clips.noise.shape == (1, 4, 2, 8, 8)
    schedule = Schedule.flow(np.array([0.5, 0.0]))
    feeds = clips.feeds(schedule, 0, clips.start(schedule), guided=True)
    assert list(feeds) == [s.name for s in SPECS]
    assert {n: a.shape for n, a in feeds.items()} == {
        "hidden_states": (2, 5, 2, 8, 8),
        "timestep": (2,),
        TEXT: (2, 8, 16),
        "encoder_attention_mask": (2, 8),
        "guidance": (2,),
        "fps": (1,),
    }
    assert {s.name: s.dtype for s in SPECS} == {n: a.dtype.name for n, a in feeds.items()}
    assert feeds["encoder_attention_mask"].tolist() == [[1] * 5 + [0] * 3] * 2  # the prompt's, the empty prompt's
    assert feeds["fps"].tolist() == [16.0] and feeds["guidance"].tolist() == [6000.0] * 2
    assert (feeds["hidden_states"][:, :4, 0] == 1).all() and (feeds["hidden_states"][:, 4] == 1).all()


def test_digest_is_of_one_clip_or_of_all(whole: Conditioning) -> None:
    changed = dataclasses.replace(whole, inputs={**whole.inputs, TEXT: whole.inputs[TEXT] + np.array([[[0]], [[1]]], np.float32)})
    assert changed.digest(0) == whole.digest(0)
    assert changed.digest(1) != whole.digest(1) and changed.digest() != whole.digest()
    for other in ({"seeds": (9, 6)}, {"prompts": ("x", "a 2 moving up")}, {"known_frames": (1,)}, {"channels": None}):
        assert dataclasses.replace(whole, **other).digest(0) != whole.digest(0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": {TEXT: np.zeros((2, 8, 16))}, "empty": {}}, r"no encoder_attention_mask; wanted .*\[batch, text_tokens\]"),
        ({"channels": None}, r"hidden_states \[2, 4, 2, 8, 8\]; wanted \[batch, 5"),
    ],
)
def test_what_does_not_fit_the_model(whole: Conditioning, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(whole, **change).check(SPECS)


def test_axes_must_agree_and_strangers_are_named(whole: Conditioning) -> None:
    short = {**whole.inputs, "encoder_attention_mask": np.ones((2, 7))}
    with pytest.raises(InputError, match=r"encoder_attention_mask \[2, 7\]; wanted \[batch, text_tokens\] .*text_tokens = 8"):
        dataclasses.replace(whole, inputs=short, empty={}).check(SPECS)
    with pytest.raises(InputError, match="found inputs pooled; wanted only"):
        dataclasses.replace(whole, inputs={**whole.inputs, "pooled": np.ones((2, 7))}).check(SPECS)


def test_another_file_is_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match=r"found no conditioning .*wanted tensors inputs/NAME"):
        Conditioning.load(tiny_dir / "text_encoder" / "model.safetensors")
