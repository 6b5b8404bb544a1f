"""What attention modules compute while the full-precision model is sampled, and what quantizing them would change.

Every call of torch's scaled_dot_product_attention is seen, whatever code makes it. It belongs to the innermost module that runs; a
module that calls it twice in a pass (one of them for an image, say) has two entries, `name` and `name#2`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from vditc.attention import AttentionCalibration, AttentionScheme
from vditc.calibrate.quantized_attention import quantized_attention, smoothed
from vditc.errors import VditcError

Array = npt.NDArray[Any]
ROWS = 256  # queries of a call whose output is compared
ERROR_STEPS = 4  # sampling steps at which it is
PARTS = ("q", "k", "k_smooth", "v", "squares")
_KEY = ".attention."


@dataclasses.dataclass(eq=False)
class _Seen:
    """Of one entry; merged over calls."""

    tokens: tuple[int, int]
    q: Array  # [heads]
    k: Array
    k_smooth: Array
    v: Array  # [heads, channels]
    squares: npt.NDArray[np.float64]  # [clips, measured steps, 2]: of the error and of the output

    def ranges(self) -> tuple[Array, ...]:
        return self.q, self.k, self.k_smooth, self.v


class AttentionWatch:
    """Ranges of q, k and v at every step, and the error of quantized attention at ERROR_STEPS steps spread evenly.

    Holds a few numbers for every head and clip; merges are exact and commutative. The error of a call is that of ROWS of its queries,
    whole blocks spread evenly, against all keys.
    """

    def __init__(self, scheme: AttentionScheme, steps: int, clips: int) -> None:
        self.scheme, self.steps, self.clips = scheme, steps, clips
        self.measured = sorted({round(i) for i in np.linspace(0, steps - 1, min(ERROR_STEPS, steps))})
        self.clip, self.step = 0, 0
        self.seen: dict[str, _Seen] = {}

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module) -> Any:
        """Within it, calls made by `model` are seen; call `begin` before each forward pass."""
        self.running: list[str] = []
        self.calls: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                enter = module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name))
                leave = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(_Calls(self))
            yield

    def begin(self, clip: int, step: int) -> None:
        """The forward pass of this clip and sampling step is next."""
        self.clip, self.step, self.calls = clip, step, {}
        self.running.clear()

    def _leave(self) -> None:
        self.running.pop()

    def take(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, mask: torch.Tensor | None, scale: float | None
    ) -> None:
        """One call: q [..., H, T, D], k [..., H', S, D], v [..., H', S, E], out [..., H, T, E]."""
        name = self.running[-1] if self.running else ""
        self.calls[name] = count = self.calls.get(name, 0) + 1
        entry = name if count == 1 else f"{name}#{count}"
        values = v - v.mean(-2, keepdim=True) if self.scheme.smooth_v else v
        ranges = (_heads(q), _heads(k), _heads(smoothed(k)), np.array(_channels(values).numpy()))
        tokens = (q.shape[-2], k.shape[-2])
        if entry not in self.seen:
            q0, k0, smooth0, v0 = (np.zeros_like(r) for r in ranges)
            self.seen[entry] = _Seen(tokens, q0, k0, smooth0, v0, np.zeros((self.clips, len(self.measured), 2)))
        seen = self._widen(entry, tokens, ranges)
        if self.step in self.measured:
            rows = self._rows(tokens[0]).to(q.device)
            chosen = mask if mask is None or mask.shape[-2] == 1 else mask.index_select(-2, rows)
            ours = quantized_attention(q.index_select(-2, rows), k, v, self.scheme, mask=chosen, scale=scale)
            exact = out.index_select(-2, rows)
            at = self.clip, self.measured.index(self.step)
            seen.squares[at] = float((exact - ours).double().square().sum()), float(exact.double().square().sum())

    def _widen(self, entry: str, tokens: tuple[int, int], ranges: tuple[Array, ...]) -> _Seen:
        seen = self.seen[entry]
        if [r.shape for r in ranges] != [r.shape for r in seen.ranges()]:
            raise VditcError(
                found=f"{len(ranges[0])} heads of attention {entry}, before {len(seen.q)}",
                wanted="the same at every call",
                where="sampling",
                fix="leave out [attention], and report the model's config.json",
            )
        seen.tokens = max(tokens[0], seen.tokens[0]), max(tokens[1], seen.tokens[1])
        for old, new in zip(seen.ranges(), ranges, strict=True):
            np.maximum(old, new, out=old)
        return seen

    def _rows(self, tokens: int) -> torch.Tensor:
        """Indices of at most ROWS queries (one block if that is longer): whole blocks, spread evenly."""
        block = min(self.scheme.block_size, tokens)
        count = -(-tokens // block)
        starts = np.unique(np.linspace(0, count - 1, min(count, max(1, ROWS // block))).round().astype(int)) * block
        rows = (starts[:, None] + np.arange(block)).reshape(-1)
        return torch.from_numpy(rows[rows < tokens])

    def result(self) -> dict[str, AttentionCalibration]:
        """By entry; VditcError when no attention was called, or one was not finite."""
        if not self.seen:
            raise VditcError(
                found="no call of torch's scaled_dot_product_attention",
                wanted="one for every attention",
                where="sampling",
                fix="leave out [attention]: this family computes attention in another way",
            )
        found = {}
        for entry, seen in self.seen.items():
            if not all(np.isfinite(r).all() for r in (*seen.ranges(), seen.squares)):
                raise VditcError(
                    found=f"attention {entry} with values that are not finite",
                    wanted="finite queries, keys and values",
                    where="sampling",
                    fix="sample the full-precision model first: check that its weights and its schedule belong together",
                )
            errors = tuple((step, _relative(seen.squares[:, i].sum(0))) for i, step in enumerate(self.measured))
            found[entry] = AttentionCalibration(
                scheme=self.scheme,
                tokens=seen.tokens,
                q=seen.q,
                k=seen.k,
                k_smooth=seen.k_smooth,
                v=seen.v,
                errors=errors,
                error=_relative(seen.squares.sum((0, 1))),
            )
        return found

    def state(self) -> tuple[dict[str, Array], dict[str, list[int]]]:
        """Arrays `ENTRY.attention.PART`, and the tokens of every entry."""
        arrays = {f"{entry}{_KEY}{part}": getattr(seen, part) for entry, seen in self.seen.items() for part in PARTS}
        return arrays, {entry: list(seen.tokens) for entry, seen in self.seen.items()}

    def restored(self, arrays: Mapping[str, Array], tokens: Mapping[str, list[int]]) -> AttentionWatch:
        """A new one with what `state` gave; KeyError or ValueError when it is damaged."""
        made = AttentionWatch(self.scheme, self.steps, self.clips)
        for entry, (queries, keys) in tokens.items():
            made.seen[entry] = _Seen((queries, keys), *(np.array(arrays[f"{entry}{_KEY}{part}"]) for part in PARTS))
        return made

    def merge(self, other: AttentionWatch) -> None:
        """Take in all that `other` has seen of other clips."""
        for entry, theirs in other.seen.items():
            if entry not in self.seen:
                self.seen[entry] = theirs
                continue
            self._widen(entry, theirs.tokens, theirs.ranges())
            self.seen[entry].squares += theirs.squares  # one of each pair is 0


class _Calls(TorchFunctionMode):
    """Tells a watch of every call of scaled_dot_product_attention."""

    def __init__(self, watch: AttentionWatch) -> None:
        super().__init__()
        self.watch, self.inside = watch, False

    def __torch_function__(self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            self._tell(out, *args, **(kwargs or {}))
        return out

    def _tell(
        self,
        out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        del dropout_p, enable_gqa  # nothing is dropped when a model is not trained; heads tell how they are shared
        mask = attn_mask
        if is_causal:
            mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        elif mask is not None and mask.ndim < query.ndim:
            mask = mask.reshape(*[1] * (query.ndim - mask.ndim), *mask.shape)
        self.watch.take(query, key, value, out, mask, scale)


def _channels(x: torch.Tensor) -> torch.Tensor:
    """[..., H, T, D] -> greatest magnitude of each channel of each head [H, D]."""
    top = x.abs().amax(-2)
    return top.reshape(-1, *top.shape[-2:]).amax(0).float().cpu()


def _heads(x: torch.Tensor) -> Array:
    """[..., H, T, D] -> that of each head [H]."""
    return np.array(_channels(x).amax(-1).numpy())


def _relative(squares: npt.NDArray[np.float64]) -> float:
    error, norm = squares
    return float(np.sqrt(error / norm)) if norm else 0.0
