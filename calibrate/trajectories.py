"""Statistics over real sampling trajectories of the full-precision model: prompts x steps x guidance branches.

Clips run one after another, and what was seen is written whole now and then, in the midst of a clip too: a killed run goes on at the step
behind its last state and ends with the bytes of a run that was never killed. Under torchrun each rank takes every N-th clip; what they
saw is merged exactly, so the number of ranks does not change a byte.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from vditc.attention import AttentionScheme
from vditc.calibrate.attention_watch import AttentionWatch
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.observers import Observers
from vditc.calibrate.ranks import Ranks
from vditc.calibrate.row_sample import RowSample, row_keys
from vditc.calibrate.shared_inputs import SharedInputs
from vditc.errors import InputError
from vditc.files import data_digest
from vditc.progress import Progress
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampled_model import SampledModel

Array = npt.NDArray[Any]
STATE = "observers"  # .safetensors in the working folder
LATENTS = "latents"  # in a state, beside the observers' own: of the clip that was begun
SAVE_SHARE = 0.02  # of the time may go into saving states
SAVE_PAUSE = 5.0  # seconds between two states, at least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
    """The clips to sample, and where to keep what was seen so far."""

    sampled: SampledModel
    recipe_digest: str
    device: torch.device
    work: Path  # a folder; each rank has a file of its own
    ranks: Ranks
    rows: int = 0  # to keep of each input
    bounds: bool = False  # whether signed bounds of channels are kept
    memory: int | None = None  # bytes for weights
    attention: AttentionScheme | None = None  # to watch attention for

    @property
    def state(self) -> Path:
        """This rank's file."""
        ranks = "" if self.ranks.size == 1 else f"-{self.ranks.rank}-of-{self.ranks.size}"
        return self.work / f"{STATE}{ranks}.safetensors"

    def observe(self, widths: dict[str, int], progress: Progress) -> Seen | None:
        """Sample every clip and watch the inputs of the linears named in `widths` (layer -> input channels), and attention if asked.

        Returns what all ranks saw, on rank 0; None on the others, which keep their state until `forget`.
        """
        with self.ranks.together():
            found = self._own(widths, progress)
        arrays, about = found.state()
        packed = b"" if self.ranks.first else safetensors.numpy.save(arrays, {"vditc": json.dumps(about)})
        for state in self.ranks.collect(packed):
            header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
            other = found.restored(safetensors.numpy.load(state), json.loads(header["__metadata__"]["vditc"]))
            found.observers.merge(other.observers)
            if found.attention is not None and other.attention is not None:
                found.attention.merge(other.attention)
        return found if self.ranks.first else None

    def forget(self) -> None:
        """Remove this rank's state: the calibration is written."""
        self.state.unlink(missing_ok=True)

    def _own(self, widths: dict[str, int], progress: Progress) -> Seen:
        """What this rank's clips show."""
        given, steps = self.sampled.conditioning, self.sampled.steps
        clips = self.ranks.share(len(given))
        if self.ranks.first and self.ranks.size > len(given):
            progress.note(f"{len(given)} clips for {self.ranks.size} ranks: the others have nothing to sample")
        attention = None if self.attention is None else AttentionWatch(self.attention, steps, len(given))
        observers = Observers(widths, steps, self.rows, bounds=self.bounds)
        at = _Position(Seen(observers, attention), run=self.run(layers=widths, rank=self.ranks.rank, ranks=self.ranks.size))
        at = self._resume(at, len(clips), progress)
        with progress.task("sample trajectories", len(clips) * steps, at.clips * steps + at.steps) as advance:
            if at.clips == len(clips):
                return at.seen
            pause, model = _Pause(), FullPrecision(self.sampled.adapter, self.sampled.source, self.device, self.memory)
            with watched(model, at.seen) as watch:
                for clip in clips[at.clips :]:

                    def after(step: int, latents: Array, clip: int = clip) -> None:
                        self._check_latents(latents, clip, step)
                        self.ranks.look()
                        at.steps, at.latents = step + 1, latents
                        if step + 1 < steps and pause.over():
                            with pause.begins():
                                at.save(self.state)
                        advance()

                    watch.clip = clip
                    self.sampled.sample(watch, clip, after, begin=at.steps, latents=at.latents)
                    at.seen.observers.check()
                    at.clips, at.steps, at.latents = at.clips + 1, 0, None
                    if at.clips == len(clips) or pause.over():
                        with pause.begins():
                            at.save(self.state)
        return at.seen

    def _check_latents(self, latents: Array, clip: int, step: int) -> None:
        if not np.isfinite(latents).all():
            raise InputError(
                found="latents that are not finite",
                wanted="finite numbers",
                where=f"clip {clip} ({self.sampled.conditioning.prompts[clip]!r}), step {step}",
                fix="check that the conditionings, the schedule and the weights are of this model",
            )

    def _resume(self, at: _Position, count: int, progress: Progress) -> _Position:
        """Where an earlier, killed run of the same inputs was; `at` itself, the beginning, without one."""
        if not self.state.exists():
            if strays := [p for p in self.work.glob(f"{STATE}*.safetensors") if self.ranks.first]:
                progress.note(f"{strays[0]} is of another number of ranks: sampling starts anew")
            return at
        try:
            found = at.restored(self.state)
        except (InputError, KeyError, ValueError) as error:
            progress.note(f"{self.state} cannot be read ({error}): sampling starts anew")
            return at
        if found is None:
            progress.note(f"{self.state} is of another model, recipe, device or set of clips: sampling starts anew")
            return at
        begun = f" and {found.steps} steps" if found.steps else ""
        progress.note(f"{self.state} holds {found.clips} of {count} clips{begun}: sampling goes on from there")
        return found

    def run(self, **more: Any) -> str:
        """Digest of everything that statistics depend on, and what is made of them; and of `more`."""
        facts = {
            **self.sampled.facts(),
            "recipe": self.recipe_digest,
            "rows": self.rows,
            "clips": self.sampled.conditioning.digest(),
            "device": self.device.type,  # a GPU adds in another order: half a run each would match neither
            "vditc": importlib.metadata.version("vditc"),
            **more,
        }
        return data_digest(facts)


class Seen(NamedTuple):
    """What watches a run."""

    observers: Observers
    attention: AttentionWatch | None

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Arrays, and plain data."""
        arrays, leader = self.observers.state()
        about: dict[str, Any] = {"leader": leader}
        if self.attention is not None:
            more, about["attention"] = self.attention.state()
            arrays |= more
        return arrays, about

    def restored(self, arrays: dict[str, Array], about: dict[str, Any]) -> Seen:
        """What `state` gave, read into new ones; KeyError or ValueError when it is damaged."""
        observers = Observers(self.observers.widths, self.observers.steps, self.observers.rows, bounds=self.observers.with_bounds)
        observers.restore(arrays, about["leader"])
        return Seen(observers, None if self.attention is None else self.attention.restored(arrays, about["attention"]))


@dataclasses.dataclass
class _Position:
    """How far a run is, and what it has seen."""

    seen: Seen
    run: str
    clips: int = 0  # that are done
    steps: int = 0  # of the next one
    latents: Array | None = None  # after those steps

    def save(self, path: Path) -> None:
        arrays, about = self.seen.state()
        if self.latents is not None:
            arrays[LATENTS] = self.latents
        info = {"run": self.run, "clips": self.clips, "steps": self.steps, **about}
        write_tensors(path, arrays, {"vditc": json.dumps(info)})

    def restored(self, path: Path) -> _Position | None:
        """None for the state of another run; InputError, KeyError or ValueError for a damaged one."""
        entries, metadata = read_header(path)
        saved = json.loads(metadata["vditc"])
        if saved["run"] != self.run:
            return None
        arrays = {name: entry.read() for name, entry in entries.items()}
        latents = np.array(arrays.pop(LATENTS)) if saved["steps"] else None
        return _Position(self.seen.restored(arrays, saved), self.run, int(saved["clips"]), int(saved["steps"]), latents)


class _Pause:
    """Between two states: long enough that saving takes its share and no more."""

    def __init__(self) -> None:
        self.until = time.monotonic() + SAVE_PAUSE

    def over(self) -> bool:
        return time.monotonic() >= self.until

    @contextmanager
    def begins(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        now = time.monotonic()
        self.until = now + max(SAVE_PAUSE, (now - began) * (1 / SAVE_SHARE - 1))


@contextmanager
def watched(model: FullPrecision, seen: Seen) -> Iterator[_Watch]:
    """A denoiser that tells what linears read, and what attention does."""
    watch = _Watch(model, seen)
    with ExitStack() as hooks:
        if seen.attention is not None:
            hooks.enter_context(seen.attention.watching(model.model))
        for layer in seen.observers.widths:
            hooks.callback(model.model.get_submodule(layer).register_forward_pre_hook(watch.hook(layer)).remove)
        yield watch


@dataclasses.dataclass
class _Input:
    """A tensor that layers of the block that runs read, reduced where it lives: K numbers and a few rows cross to the host."""

    absmax: Array
    bounds: Array | None
    rows: dict[str, tuple[Array, Array, Array] | None]  # keys, rows and scale that the sample of each of these layers wants
    readers: list[tuple[str, str]]  # layer, and which of these layers' rows are for its sample


class _Watch:
    """What a block's layers read is told to the observers when the block is done: only then is it known who shares a tensor."""

    def __init__(self, model: FullPrecision, seen: Seen) -> None:
        self.model, self.step, self.clip = model, 0, 0
        self.observers, self.attention = seen
        self._begin()

    def _begin(self) -> None:
        self.shared, self.block = SharedInputs(), ""
        self.read: list[_Input] = []
        self.at: dict[str, _Input] = {}  # what each layer has read last

    def hook(self, layer: str) -> Any:
        def watch(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            before = self.shared.reads_as(layer, inputs[0])
            if self.shared.block != self.block or not self.block:
                self._tell()
                self.block = self.shared.block
            if before is None:
                found = _reduced(inputs[0], bounds=self.observers.with_bounds)
                self.read.append(found)
            else:
                found = self.at[before]
            self.at[layer] = found
            leader = self.observers.leader.get(layer)
            same = next((first for first in found.rows if self.observers.leader.get(first) == leader), None)
            if same is None:
                found.rows[layer] = self._rows(layer, leader, inputs[0])
            found.readers.append((layer, same or layer))

        return watch

    def _rows(self, layer: str, leader: str | None, x: torch.Tensor) -> tuple[Array, Array, Array] | None:
        if not self.observers.rows:
            return None
        rows = x.flatten(0, -2)
        keys = row_keys((self.clip, self.step), len(rows))
        sample = self.observers.samples.get(leader or layer) or RowSample(self.observers.rows, rows.shape[1])
        chosen = sample.chosen(keys)
        few = rows[torch.from_numpy(chosen).to(rows.device)].float()
        # numpy rounds to float16 six times slower; the divisor is what RowSample.offer divides by.
        scale = torch.maximum(few.amax(-1), -few.amin(-1)).clamp_min(torch.finfo(torch.float32).tiny)
        return keys[chosen], (few / scale[:, None]).half().cpu().numpy(), scale.cpu().numpy()

    def _tell(self) -> None:
        read, self.read, self.at = self.read, [], {}
        for found in read:
            rows = dict(found.readers)
            for leader in self.observers.reads(list(rows)):
                self.observers.update(leader, self.step, found.absmax, found.bounds)
                if (few := found.rows[rows[leader]]) is not None:
                    self.observers.sample(leader).put(*few)

    def __call__(self, feeds: Any, step: int) -> Array:
        self.step = step
        self._begin()
        if self.attention is not None:
            self.attention.begin(self.clip, step)
        said = self.model(feeds, step)
        self._tell()
        return said


def _reduced(x: torch.Tensor, *, bounds: bool) -> _Input:
    rows = x.flatten(0, -2)
    # Two passes that only read are a third of abs(), which writes as much as the activation.
    low, high = rows.amin(0), rows.amax(0)
    absmax = torch.maximum(high, -low).abs().float().cpu().numpy()
    return _Input(absmax, torch.stack([low, high]).float().cpu().numpy() if bounds else None, {}, [])
