"""Holds passes to what they say of themselves."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from vditc.errors import VditcError
from vditc.graph_passes.core import Observer, Pass, PassFacts
from vditc.graph_passes.text import bare


class CheckClaims(Observer):
    """VditcError for a pass that says that it changed nothing and left another graph behind."""

    def __init__(self) -> None:
        self._before = ""

    def start(self, model: ir.Model) -> None:
        """Remember the graph."""
        self._before = structure(model)

    def after(self, done: Pass, facts: PassFacts, model: ir.Model) -> None:
        """Compare."""
        now = structure(model)
        if not facts.modified and now != self._before:
            raise VditcError(
                found="another graph than before",
                wanted="the same graph, since the pass says that it changed nothing",
                where=f"after pass {done}",
                fix="report it: the pass must return Result(model, modified=True)",
            )
        self._before = now


def structure(model: ir.Model) -> str:
    """Digest of the serialised graph without metadata and types of intermediate values; of weights on disk, where they lie."""
    return hashlib.sha256(bare(model).SerializeToString(deterministic=True)).hexdigest()
