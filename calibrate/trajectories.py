"""Statistics over real sampling trajectories of the full-precision model: prompts x steps x guidance branches.

Clips run one after another. After each one the observers' state is written whole, so a killed run goes on at the next clip and
ends with the bytes of a run that was never killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vditc.adapter import ModelAdapter
from vditc.calibrate.observers import Observers
from vditc.calibrate.row_sample import row_keys
from vditc.conditioning import Conditioning
from vditc.errors import InputError
from vditc.model_dir import ModelDir
from vditc.progress import Progress
from vditc.safetensors_file import read_header, write_tensors
from vditc.sampling import Feeds, sample
from vditc.schedule import Schedule
from vditc.torch_device import exact_float32

Array = npt.NDArray[Any]
_BLOCK = re.compile(r".*?\.\d+\.")  # of a layer's name: up to the number of its block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trajectories:
    """The clips to sample, and where to keep what was seen so far."""

    source: ModelDir
    adapter: ModelAdapter
    conditioning: Conditioning
    scheduler: Schedule
    guidance_scale: float
    recipe_digest: str
    device: torch.device
    state: Path  # safetensors file of the observers between two clips
    rows: int = 0  # to keep of each input

    def check(self) -> None:
        """InputError when the model is not sampled, there is no clip, or the clips do not fit the model's inputs."""
        self.adapter.check_sampled()
        self.conditioning.check(self.adapter.inputs(self.source))

    def observe(self, widths: dict[str, int], progress: Progress) -> Observers:
        """Sample every clip and watch the inputs of the linears named in `widths` (layer -> input channels)."""
        steps, clips, specs = len(self.scheduler.timesteps), len(self.conditioning), self.adapter.inputs(self.source)
        run = self._run(widths)
        observers, done = self._resume(Observers(widths, steps, self.rows), run, progress)
        with progress.task("sample trajectories", clips * steps) as advance:
            for _ in range(done * steps):
                advance()
            if done == clips:
                return observers
            with _Watched(self, observers) as denoise:
                for clip in range(done, clips):
                    denoise.clip = clip
                    chosen = self.conditioning.clips([clip], specs)
                    sample(denoise, self.scheduler, chosen, self.guidance_scale, lambda _step, _latents: advance())
                    observers.check()
                    arrays, leader = observers.state()
                    write_tensors(self.state, arrays, {"vditc": json.dumps({"run": run, "clips": clip + 1, "leader": leader})})
        return observers

    def _resume(self, fresh: Observers, run: str, progress: Progress) -> tuple[Observers, int]:
        """What an earlier, killed run of the same inputs saw, and of how many clips; `fresh` and 0 without one."""
        if not self.state.exists():
            return fresh, 0
        try:
            entries, metadata = read_header(self.state)
            saved = json.loads(metadata["vditc"])
            if saved["run"] != run:
                progress.note(f"{self.state} is of another model, recipe, device or set of clips: sampling starts anew")
                return fresh, 0
            fresh.restore({name: entry.read() for name, entry in entries.items()}, saved["leader"])
            clips = int(saved["clips"])
        except (InputError, KeyError, ValueError) as error:
            progress.note(f"{self.state} cannot be read ({error}): sampling starts anew")
            return fresh, 0
        progress.note(f"{self.state} holds {clips} of {len(self.conditioning)} clips: sampling goes on from there")
        return fresh, clips

    def _run(self, widths: dict[str, int]) -> str:
        """Digest of everything that the statistics depend on."""
        facts = {
            "model": self.source.digest,
            "recipe": self.recipe_digest,
            "layers": widths,
            "rows": self.rows,
            "schedule": self.scheduler.to_json(),
            "guidance_scale": self.guidance_scale,
            "clips": self.conditioning.digest(),
            "device": self.device.type,  # a GPU adds in another order: half a run each would match neither
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Watched:
    """The full-precision model as a denoiser, its linears' inputs told to observers; use it as a context."""

    def __init__(self, of: Trajectories, observers: Observers) -> None:
        self.adapter, self.device, self.observers, self.step, self.clip = of.adapter, of.device, observers, 0, 0
        self.last: tuple[str, torch.Tensor] | None = None  # the layer that ran last, and what it read
        self.model = of.adapter.load(of.source).to(of.device)
        self.context = contextlib.ExitStack()

    def __enter__(self) -> _Watched:
        for layer in self.observers.widths:
            hook = self.model.get_submodule(layer).register_forward_pre_hook(self._hook(layer))
            self.context.callback(hook.remove)
        self.context.enter_context(exact_float32())
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def _hook(self, layer: str) -> Any:
        block = _BLOCK.match(layer)

        def watch(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            # Layers of one block share: text that every block reads would otherwise tie all of them together.
            x, last = inputs[0], self.last
            same = last is not None and last[1] is x and block is not None and last[0].startswith(block[0])
            self.last = (layer, x)
            if not self.observers.leads(layer, last[0] if same and last is not None else None):
                return
            # Reduced where the tensor lives: K numbers and a few rows, not the activation, cross to the host.
            rows = x.flatten(0, -2)
            self.observers.update(layer, self.step, rows.abs().amax(0).float().cpu().numpy())
            if self.observers.rows:
                sample = self.observers.sample(layer)
                keys = row_keys((self.clip, self.step), len(rows))
                chosen = np.flatnonzero(keys < sample.bar)
                sample.offer(keys[chosen], rows[torch.from_numpy(chosen).to(rows.device)].float().cpu().numpy())

        return watch

    def __call__(self, feeds: Feeds, step: int) -> Array:
        self.step, self.last = step, None
        given = {n: torch.tensor(a, device=self.device) for n, a in feeds.items()}
        velocity: Array = self.adapter.forward(self.model, given).float().cpu().numpy()
        return velocity
