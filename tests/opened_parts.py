"""Counts what of a bundle is opened, and what is open at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vditc.pipeline import denoisers
from vditc.runtimes.parts import opened
from vditc.runtimes.parts.prompt_tokens import PromptTokens


class Opened:
    """`names`: all that was opened, in order; `now`: what is open; `most`: at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.now: list[str] = []
        self.most = 0
        self.tokenizers = 0
        self._watch(monkeypatch, denoisers, "open_expert", lambda own, *_: own.manifest.model["part"])
        monkeypatch.setattr(opened, "PromptTokens", self._tokens)
        self._watch(monkeypatch, opened, "_open", lambda folder, graph, *_: f"{folder.name}/{graph}")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, title: Callable[..., str]) -> None:
        real = getattr(module, name)

        @contextlib.contextmanager
        def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with real(*args, **kwargs) as found:
                self.names.append(own := title(*args))
                self.now.append(own)
                self.most = max(self.most, len(self.now))
                try:
                    yield found
                finally:
                    self.now.remove(own)

        monkeypatch.setattr(module, name, watched)

    def _tokens(self, folder: Any) -> PromptTokens:
        self.tokenizers += 1
        return PromptTokens(folder)
