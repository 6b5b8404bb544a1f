"""Which layers behind attention may have their input rotated by v, and in blocks of how many channels: found by running the model.

Attention is linear in v, head by head, so (v m) Q with a Q that mixes no heads comes out of it as (softmax(q k^T) v m) Q (Ashkboos et al.,
"QuaRot", arXiv 2404.00456, section 4.1). Whether a model's code is like that, nothing in its names tells for certain: gates, norms and
other uses of v may come in between. So layers are paired by their roles, v's outputs are changed in one forward pass, and what the layers
behind attention read must be what an earlier pass says, changed the same way; so must the model's prediction.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode

from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.methods.base import InputStatistics
from vditc.calibrate.row_sample import RowSample
from vditc.hadamard import block_of
from vditc.sampling import Feeds
from vditc.scheme import Scheme
from vditc.torch_transform import OutputChange
from vditc.transform import OutputTransform, Transform

PARTS = {"v": 1, "kv": 2, "qkv": 3}  # end of a role -> thirds or halves of the output, of which v is the last
ROWS = 64  # of an input that are compared
NEAR = 1e-3  # relative L2 that two ways to compute one thing may differ; float32 has 1e-6, another operation 1
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a block, in a layer's name


@dataclasses.dataclass(frozen=True)
class AttentionOutput:
    """The linears at both ends of one attention, of one stream or of several that attend together."""

    values: tuple[str, ...]
    outs: tuple[str, ...]
    head: int = 0  # channels of a head

    def transforms(self, parts: Mapping[str, int], wanted: Transform) -> dict[str, OutputTransform]:
        """What the v layers are to give out for an input as `wanted`, which has a balance and a rotation."""
        assert wanted.balance is not None and wanted.rotation is not None
        k = len(wanted.balance)
        return {v: OutputTransform(balance=wanted.balance, rotation=wanted.rotation, start=(parts[v] - 1) * k) for v in self.values}


def attention_outputs(
    load: Callable[[], FullPrecision], feeds: Feeds, schemes: Mapping[str, Scheme], roles: Mapping[str, str]
) -> tuple[list[AttentionOutput], dict[str, str]]:
    """Those whose v may be rotated; and of every other quantized layer behind attention, why its rotation stays.

    The model is run on `feeds` twice, and once more for every kind of block whose attention is not like that.
    """
    refused: dict[str, str] = {}
    found = []
    for one in paired(roles):
        if missing := [layer for layer in (*one.values, *one.outs) if layer not in schemes]:
            refused |= {out: f"{missing[0]} is not quantized" for out in one.outs if out in schemes}
        else:
            found.append(one)
    if not found:
        return [], refused
    probe = _Probe(load(), feeds, roles)
    found, reasons = probe.usable(found)
    while found and (wrong := probe.wrong(found)):
        # Blocks are alike: what fails in one is not tried in the others.
        kinds = {_NUMBER.sub("N", one.outs[0]) for one in wrong}
        reasons |= {out: wrong[one] for one in wrong for out in one.outs}
        alike = [one for one in found if _NUMBER.sub("N", one.outs[0]) in kinds and one not in wrong]
        reasons |= {out: "as in the other blocks" for one in alike for out in one.outs}
        found = [one for one in found if one not in wrong and one not in alike]
    return found, refused | reasons


def paired(roles: Mapping[str, str]) -> list[AttentionOutput]:
    """The v and output layers of every module that has both, in the order of the layers; a v that is in two of them is in none."""
    values = [layer for layer, role in roles.items() if _parts(role)]
    by_module: dict[str, list[str]] = {}
    for layer, role in roles.items():
        if role.endswith("_attn.out"):
            above = layer
            while (above := above.rpartition(".")[0]) and not any(v.startswith(f"{above}.") for v in values):
                pass
            if above:
                by_module.setdefault(above, []).append(layer)
    found = [AttentionOutput(tuple(v for v in values if v.startswith(f"{m}.")), tuple(outs)) for m, outs in by_module.items()]
    twice = [v for one in found for v in one.values]
    return [one for one in found if all(twice.count(v) == 1 for v in one.values)]


def parts_of(roles: Mapping[str, str]) -> dict[str, int]:
    """How many projections every layer with v in it has side by side."""
    return {layer: parts for layer, role in roles.items() if (parts := _parts(role))}


def joined_statistics(all_of: Sequence[InputStatistics]) -> InputStatistics:
    """Of several tensors that are quantized alike: their ranges together, and the rows of all."""
    first = all_of[0]
    samples = [s.sample for s in all_of if s.sample is not None]
    rows = RowSample(sum(s.size for s in samples), first.channel_absmax.shape[1])
    for sample in samples:
        rows.put(*(sample.state()[part] for part in ("keys", "rows", "scale")))
    bounds = [s.bounds for s in all_of if s.bounds is not None]
    return InputStatistics(
        np.maximum.reduce([s.channel_absmax for s in all_of]),
        rows if samples else None,
        np.stack([np.minimum.reduce([b[0] for b in bounds]), np.maximum.reduce([b[1] for b in bounds])]) if bounds else None,
        first.temporal,
    )


def _parts(role: str) -> int:
    kind, _, part = role.partition(".")
    return PARTS.get(part, 0) if kind.endswith("_attn") else 0


class _Probe:
    """The full-precision model, run on the same inputs again and again."""

    def __init__(self, model: FullPrecision, feeds: Feeds, roles: Mapping[str, str]) -> None:
        self.model, self.feeds, self.parts = model, feeds, parts_of(roles)
        self.rows: dict[str, list[torch.Tensor]] = {}  # of what every layer behind attention reads
        self.widths: dict[str, set[int]] = {}  # of the heads of the attention that ran last in front of it

    def usable(self, pairs: Sequence[AttentionOutput]) -> tuple[list[AttentionOutput], dict[str, str]]:
        """Pairs with their heads; and of the others, why not."""
        with ExitStack() as hooks:
            calls = hooks.enter_context(_Heads())
            for v in (v for one in pairs for v in one.values):
                hooks.callback(self.model.model.get_submodule(v).register_forward_hook(lambda *_: calls.forget()).remove)
            for out in (out for one in pairs for out in one.outs):

                def look(_module: Any, inputs: tuple[torch.Tensor, ...], out: str = out) -> None:
                    self.rows.setdefault(out, []).append(_some(inputs[0]))
                    self.widths.setdefault(out, set()).add(calls.width)

                hooks.callback(self.model.model.get_submodule(out).register_forward_pre_hook(look).remove)
            self.said = self.model(self.feeds, 0)
        found, reasons = list[AttentionOutput](), dict[str, str]()
        for one in pairs:
            try:
                found.append(dataclasses.replace(one, head=self._head(one)))
            except ValueError as reason:
                reasons |= dict.fromkeys(one.outs, str(reason))
        return found, reasons

    def _head(self, one: AttentionOutput) -> int:
        """ValueError says why there is no block within a head."""
        widths = set().union(*(self.widths.get(out, {0}) for out in one.outs))
        if len(widths) != 1 or not (head := widths.pop()):
            raise ValueError("no attention of softmax and v was seen in front of it")
        channels = {self.model.model.get_submodule(out).in_features for out in one.outs}
        for v in one.values:
            channels.add(self.model.model.get_submodule(v).out_features // self.parts[v])
        if len(channels) != 1 or (k := channels.pop()) % head:
            raise ValueError(f"{', '.join(one.values)} have other channels than it reads")
        if block_of(head) == 1:
            raise ValueError(f"no rotation of {head} channels, a head's, is known")
        assert k
        return head

    def wrong(self, pairs: Sequence[AttentionOutput]) -> dict[AttentionOutput, str]:
        """Change all v layers, and name the first attention that does not give out what was to be expected; {} if all do."""
        first: dict[AttentionOutput, str] = {}
        with ExitStack() as hooks:
            for one in pairs:
                hooks.enter_context(self._changed(one, first))
            said = self.model(self.feeds, 0)
        if not first and _far(torch.from_numpy(said), torch.from_numpy(self.said)):
            return dict.fromkeys(pairs, "something else than attention reads v")
        return first

    @contextmanager
    def _changed(self, one: AttentionOutput, first: dict[AttentionOutput, str]) -> Iterator[None]:
        """v's outputs changed, and the change undone behind attention, where rows are compared before."""
        k = self.model.model.get_submodule(one.outs[0]).in_features
        balance = np.random.default_rng(k).uniform(0.5, 1.5, k).astype(np.float32)
        wanted = Transform(balance=balance, rotation=block_of(one.head))
        given = {v: OutputChange(t).to(self.model.device) for v, t in one.transforms(self.parts, wanted).items()}
        whole = OutputChange(OutputTransform(balance=balance, rotation=block_of(one.head))).to(self.model.device)
        with ExitStack() as hooks:
            for v, change in given.items():
                hook = self.model.model.get_submodule(v).register_forward_hook(lambda _m, _i, y, change=change: change(y))
                hooks.callback(hook.remove)
            for out in one.outs:
                known = iter(self.rows[out])

                def undo(_m: Any, inputs: tuple[torch.Tensor, ...], known: Iterator[torch.Tensor] = known) -> tuple[torch.Tensor, ...]:
                    if not first and _far(_some(inputs[0]), whole(next(known))):
                        first[one] = "its input is not what attention makes of v alone"
                    return (whole.undone(inputs[0]), *inputs[1:])

                hooks.callback(self.model.model.get_submodule(out).register_forward_pre_hook(undo).remove)
            yield


class _Heads(TorchFunctionMode):
    """Width of the heads of the last attention that was computed: by torch's function, or as a product of a softmax and v."""

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Another attention begins."""
        self.width = 0
        self.shares: torch.Tensor | None = None  # what softmax gave out last

    def __torch_function__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            self.width = out.shape[-1]
        elif func in (torch.softmax, softmax, torch.Tensor.softmax):
            self.shares = out
        elif func in (torch.matmul, torch.Tensor.__matmul__, torch.Tensor.matmul, torch.bmm) and args and args[0] is self.shares:
            self.width, self.shares = out.shape[-1], None
        return out


def _some(x: torch.Tensor) -> torch.Tensor:
    """At most ROWS rows [K], spread evenly."""
    rows = x.detach().flatten(0, -2)
    chosen = torch.linspace(0, len(rows) - 1, min(ROWS, len(rows))).round().long()
    return rows[chosen.to(x.device)].float()


def _far(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also where b is nothing but zeros, which tell nothing, or not finite."""
    size = torch.linalg.vector_norm(b.double())
    return not (size > 0 and torch.linalg.vector_norm(a.double() - b.double()) <= NEAR * size)
