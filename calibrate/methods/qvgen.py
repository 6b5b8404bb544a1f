"""QVGen: quantization-aware training with a branch of low rank that helps at first and is faded out until nothing is left of it.

Huang et al., "QVGen" (arXiv 2505.11497). y = Q(X) Q(W)^T + Q(X) Phi^T with Phi = U V, from the SVD of W - Q(W), faded by
`vditc.calibrate.rank_decay`; loss ||student - full-precision teacher||^2. Weights have LSQ+ grids: a scale and a real-valued zero point of
every output channel, both learnt, beside the weights themselves. Activations are quantized per token with a learnt share of their range
for every step (starts at 0.95).

Where this differs from the release: codes of activations are symmetric (its asymmetric ones need column sums of the weights at run time);
clips belong to the schedule's steps, not to t mod 50 of a batch's first clip; quantized layers are those that the recipe says; layers that
stay in floating point and biases are not trained, so that they are the checkpoint's; 10 % of the prompts are left out (the release: 5 %);
only the schedule's noise levels are trained.

Data: `[settings] dataset` is a folder that `vditc dataset` wrote, or one like it (docs/dataset.md); without it, the recipe's calibration
prompts are sampled from the full-precision model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch

from vditc.calibrate.clip_examples import ClipExamples
from vditc.calibrate.dataset import sample_dataset
from vditc.calibrate.denoiser import FullPrecision
from vditc.calibrate.fake_quant import quantized_rows, quantized_tokens
from vditc.calibrate.leftovers import CHECKPOINT, DATASET
from vditc.calibrate.methods.base import InputStatistics, Quantized, Trained, TrainedMethod, TrainingJob, scale_dtype
from vditc.calibrate.methods.quarot import HEAD, check_rotated_outputs, check_rotation_block, hadamard
from vditc.calibrate.range_search import searched_grid
from vditc.calibrate.rank_decay import RankDecay, decomposed, redecomposed
from vditc.calibrate.sharding import put, whole
from vditc.calibrate.student import TrainedLinear, results, student_of
from vditc.calibrate.training import PRECISIONS, Now, Plan, train
from vditc.dataset import INDEX, Dataset
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.numerics import EPS
from vditc.scheme import Scheme, quantize_weight
from vditc.transform import IDENTITY

CLIP = 0.95  # share of a token's range to begin with


@dataclasses.dataclass(frozen=True)
class QVGen(TrainedMethod):
    """Everything of a quantized linear learns."""

    dataset: str = ""  # folder of clips; empty: sample the recipe's calibration prompts
    rotation: bool = False  # a Hadamard rotation of every input, as in method quarot: not the paper's, and it costs time when it runs
    rotate_attention_output: str = HEAD  # with a rotation: made by v, or of the whole "width"
    rotation_block: int = 0  # as in method quarot
    rank: int = 32  # of the branch to begin with; 0: plain quantization-aware training
    iterations: int = 2000
    batch_size: int = 8
    rate: float = 3e-5  # of weights, zero points and branch
    scale_rate: float = 3e-5  # of the weights' scales, which are a few hundredths: AdamW moves every one by about so much in each iteration
    clip_rate: float = 1e-2
    warmup: float = 0.1  # share of the iterations
    tail: float = 0.1  # share of the iterations without the branch, at the end
    unprompted: float = 0.1  # share of examples without a prompt: guidance needs that branch too
    seed: int = 0
    checkpointing: bool = False
    precision: str = "no"  # or "bf16"

    name: ClassVar[str] = "qvgen"
    rotates: ClassVar[bool] = True  # if the recipe wants it

    def __post_init__(self) -> None:
        check_rotated_outputs(self.rotate_attention_output, self.name)
        check_rotation_block(self.rotation_block, self.name)
        for name, low, high in (("rank", 0, 1 << 16), ("iterations", 1, 1 << 40), ("batch_size", 1, 1 << 30)):
            if not low <= getattr(self, name) <= high:
                raise _bad(f"{name} = {getattr(self, name)}", f"{low} to {high}")
        for name in ("warmup", "tail", "unprompted", "rate", "scale_rate", "clip_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise _bad(f"{name} = {getattr(self, name)}", "0 to 1")
        if self.rank and self.iterations * (1 - self.tail) < (stages := len(RankDecay(self.rank, self.iterations).ranks)):
            raise _bad(
                f"{self.iterations} iterations, {self.tail:.0%} of them at the end", f"one for each of {stages} stages of the branch"
            )
        if self.precision not in PRECISIONS:
            raise _bad(f"precision = {self.precision!r}", f"one of {', '.join(PRECISIONS)}")

    @property
    def rotates_within_heads(self) -> bool:
        """As the settings say."""
        return self.rotation and self.rotate_attention_output == HEAD

    def needs_statistics(self, scheme: Scheme) -> bool:
        """Ranges of inputs are found at run time, and their clips are learnt."""
        return False

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`: where the training starts."""
        width = next(iter(weights.values())).shape[1]
        transform = hadamard(self.seed, width, head=head, block=self.rotation_block) if self.rotation else IDENTITY
        found = {}
        for layer, weight in weights.items():
            scheme, changed = schemes[layer], transform.weight(weight.read())
            grid = searched_grid(changed, scheme.weight, scale_dtype(scheme), steps=80, least=0.2, power=2.4)
            found[layer] = Quantized(grid, transform=transform)
        return found

    def train(self, job: TrainingJob) -> Trained:
        """See `TrainedMethod.train`: against what the full-precision model says of noisy clips."""
        dataset = self._dataset(job)
        now = Now(steps=torch.zeros(1, dtype=torch.int64))
        steps, decay = job.sampled.steps, RankDecay(self.rank, self.iterations, self.tail)

        def make(layer: str, linear: torch.nn.Linear) -> BranchedLinear:
            own = BranchedLinear(job.start[layer], linear.weight, linear.bias, now)
            own.free(decay, steps)
            return own

        student, linears = student_of(job, make, checkpointing=self.checkpointing)
        clips = [p for linear in linears.values() if (p := linear.clip_logit) is not None]
        scales = [linear.scale for linear in linears.values()]
        chosen = {id(p) for p in (*clips, *scales)}
        rest = [p for p in student.parameters() if p.requires_grad and id(p) not in chosen]
        groups = ((rest, self.rate), (scales, self.scale_rate), (clips, self.clip_rate))

        def before(iteration: int) -> list[torch.nn.Parameter]:
            return [p for linear in linears.values() for p in linear.fade(decay, iteration)]

        history = train(
            student=student,
            now=now,
            plan=Plan(
                iterations=self.iterations,
                batch_size=self.batch_size,
                groups=tuple(group for group in groups if group[0]),
                run=f"{job.run} {dataset.digest}",
                warmup=int(self.warmup * self.iterations),
                betas=(0.9, 0.95),
                weight_decay=1e-4,
                max_norm=1.0,
                precision=self.precision,
            ),
            batches=ClipExamples(
                dataset=dataset,
                specs=job.sampled.specs,
                scheduler=job.sampled.scheduler,
                teacher=FullPrecision(job.sampled.adapter, job.sampled.source, job.device, job.memory, job.sharding),
                batch_size=self.batch_size,
                seed=self.seed,
                unprompted=self.unprompted,
            ),
            loss=torch.nn.functional.mse_loss,
            before=before,
            device=job.device,
            state=job.work / CHECKPOINT,
            progress=job.progress,
        )
        before(self.iterations)
        return Trained(results(linears, job.ranks), {"clips": len(dataset), "loss": history})

    def _dataset(self, job: TrainingJob) -> Dataset:
        """The user's clips, or ones of the full-precision model."""
        if not self.dataset:
            folder = job.work / DATASET / job.run[:16]
            if not (folder / INDEX).exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                sample_dataset(
                    job.sampled,
                    out=folder,
                    progress=job.progress,
                    device=str(job.device),
                    memory=job.memory,
                    ranks=job.ranks,
                )
                with job.ranks.together():
                    pass  # rank 0 has put the folder in its place
            return Dataset.open(folder)
        found = Dataset.open(Path(self.dataset))
        if found.model_digest not in (None, job.sampled.source.digest):
            job.progress.note(f"{self.dataset} was sampled from another model: its clips are used, what is said of them is this model's")
        channels = job.sampled.adapter.latent_channels(job.sampled.source)
        if found.latent_shape[0] != channels:
            raise InputError(
                found=f"clips of {found.latent_shape[0]} channels",
                wanted=f"{channels}",
                where=self.dataset,
                fix="make a dataset of this model with `vditc dataset`",
            )
        found.read([0]).conditioning.check(job.sampled.specs)
        return found


class BranchedLinear(TrainedLinear):
    """A linear with its branch."""

    gamma: torch.Tensor

    def free(self, decay: RankDecay, steps: int) -> None:
        """Make everything that learns."""
        for parameter in (self.weight, self.scale, self.zero_point):
            if parameter is not None:
                parameter.requires_grad_()
        dynamic = self.scheme.activation is not None
        self.clip_logit = torch.nn.Parameter(torch.full((steps,), math.log(CLIP / (1 - CLIP)))) if dynamic else None
        self.up = self.down = None
        if decay.rank:
            with torch.no_grad():
                up, down = decomposed(self.weight - self._quantized(), decay.rank, decay.rank)
            self.up, self.down = torch.nn.Parameter(up), torch.nn.Parameter(down)
            self.register_buffer("gamma", decay.gamma(0))

    def fade(self, decay: RankDecay, iteration: int) -> list[torch.nn.Parameter]:
        """Set gamma for an iteration; where a stage begins, cut the branch and decompose it again. Parameters that are new then."""
        if self.up is None or self.down is None:
            return []
        fresh = []
        if decay.begins(iteration):
            up, down = (whole(parameter).float().cpu() for parameter in (self.up, self.down))
            values = redecomposed(up * decay.gamma(iteration).ne(0), down, decay.kept(iteration))
            for parameter, value in zip((self.up, self.down), values, strict=True):
                put(parameter, value)
                fresh.append(parameter)
        self.gamma.copy_(decay.gamma(iteration))
        return fresh

    def _quantized(self) -> torch.Tensor:
        return quantized_rows(self.weight, self.scale, self.zero_point, self.scheme.weight)

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """See TrainedLinear."""
        spec = self.scheme.activation
        if spec is None:
            return x
        clip = None if self.clip_logit is None else self.now.of_rows(torch.sigmoid(self.clip_logit), x)
        return quantized_tokens(x, spec, clip)

    def quantized_weight(self) -> torch.Tensor:
        """See TrainedLinear: with the branch, which has the same input."""
        with torch.autocast(self.weight.device.type, enabled=False):
            weight = self._quantized()
            return weight if self.up is None or self.down is None else weight + (self.up * self.gamma) @ self.down

    def result(self) -> Quantized:
        """See TrainedLinear."""
        weight, scale = (p.float().cpu().numpy() for p in (whole(self.weight), whole(self.scale).clamp_min(EPS)))
        zero_point = None if self.zero_point is None else whole(self.zero_point).float().cpu().numpy()
        codes = quantize_weight(weight, self.scheme.weight, scale, scale_dtype(self.scheme), zero_point)
        clip = None if self.clip_logit is None else torch.sigmoid(whole(self.clip_logit)).cpu().numpy()
        return Quantized(codes, transform=self.start.transform, activation_clip=clip)


def _bad(found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="method qvgen", fix="correct [settings]")
