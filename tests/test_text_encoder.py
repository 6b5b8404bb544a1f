from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vditc.errors import InputError
from vditc.text_encoder import PAD, WordEmbedding


@pytest.fixture
def words() -> WordEmbedding:
    return WordEmbedding((PAD, "a", "7", "moving", "left"), 5, np.arange(10, dtype=np.float32).reshape(5, 2))


def test_token_ids_are_padded(words: WordEmbedding) -> None:
    assert words.token_ids("A 7  moving left") == [1, 2, 3, 4, 0]
    assert words.token_ids("") == [0] * 5


def test_encode_looks_vectors_up(words: WordEmbedding) -> None:
    text = words.encode(["a left", ""])
    assert text.shape == (2, 5, 2) and text.dtype == np.float32
    assert text[0, :3].tolist() == [[2, 3], [8, 9], [0, 1]]
    assert (text[1] == words.weight[0]).all()


def test_unknown_words_are_named(words: WordEmbedding) -> None:
    with pytest.raises(InputError, match=r"with unknown words \['9', 'up'\]; wanted at most 5 words of: a, 7, moving, left"):
        words.encode(["a 9 moving up"])


def test_too_long_a_prompt(words: WordEmbedding) -> None:
    with pytest.raises(InputError, match="of 6 words; wanted at most 5 words"):
        words.token_ids("a a a a a a")


def test_survives_saving(words: WordEmbedding, tmp_path: Path) -> None:
    words.save(tmp_path / "text_encoder")
    loaded = WordEmbedding.load(tmp_path / "text_encoder")
    assert (loaded.vocabulary, loaded.length) == (words.vocabulary, words.length)
    np.testing.assert_array_equal(loaded.weight, words.weight)  # small whole numbers are exact in float16
