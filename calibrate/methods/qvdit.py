"""Q-VDiT: what rounding took from a linear is estimated from its quantized input, and the estimate is learnt on the model's output.

Feng et al., "Q-VDiT" (arXiv 2505.22167). Token-aware Quantization Estimator, section 3.2: X W^T ~ Q(X) Q(W)^T + M_i (Q(X)_i alpha) beta^T
with alpha [K] by Kaiming, beta [N] zero, and a factor for each frame M_i = eta_i / omega_i, eta = softmax over frames of
1 - cos(X_i, Q(X_i)), omega_i frame i's share of sum |X|. Temporal Maintenance Distillation: `vditc.calibrate.temporal_loss`.
Loss = MSE + gamma L_temp on the output of the whole model.

Where this differs from the release: activations are quantized while it learns; frames have factors wherever a linear's rows are frames in
order (`ModelAdapter.frame_orders`), not in temporal attention alone; the factor is M, not 1 + M. As in the release, weights are Q(W + B A)
with learnt B A of low rank, which vanishes into the codes, and the scales learn with a rate of their own. It starts from ViDiT-Q's balance,
with its rotation if the recipe wants it. gamma multiplies a sum over frames, where the release takes a mean over all pairs of them; there
is no weight decay (the release: 0.01); gradients are clipped to a norm of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from vditc.calibrate.fake_quant import quantized_rows, quantized_tokens
from vditc.calibrate.leftovers import CHECKPOINT
from vditc.calibrate.methods.base import InputStatistics, Quantized, Trained, TrainedMethod, TrainingJob, scale_dtype
from vditc.calibrate.methods.quarot import HEAD, check_rotated_outputs, check_rotation_block
from vditc.calibrate.methods.viditq import balanced
from vditc.calibrate.range_search import searched_grid
from vditc.calibrate.recorded import Recorded, record
from vditc.calibrate.sharding import put, whole
from vditc.calibrate.student import TrainedLinear, results, student_of
from vditc.calibrate.temporal_loss import temporal_loss
from vditc.calibrate.training import PRECISIONS, Batch, Now, Plan, train
from vditc.correction import Correction, FrameOrder
from vditc.errors import InputError
from vditc.float_weight import FloatWeight
from vditc.numerics import EPS
from vditc.scheme import Scheme, quantize_weight

FACTOR_BATCHES = 4  # batches that the frames' first factors are taken from


@dataclasses.dataclass(frozen=True)
class QVDiT(TrainedMethod):
    """Estimator, inner low rank and scales learn together, end to end."""

    alpha: float = 0.75  # of the balance, as in method viditq
    rotation: bool = True
    rotate_attention_output: str = HEAD  # as in method viditq
    rotation_block: int = 0  # as in method quarot
    seed: int = 0  # of signs, estimators and batches
    iterations: int = 5000  # the paper: 5,000 for 6 and 8 bits, 10,000 for 4, 15,000 for 3
    batch_size: int = 4
    rate: float = 1e-5  # of estimators and of the inner low rank
    scale_rate: float = 1e-6
    inner_rank: int = 32  # 0: without
    estimator: bool = True  # alpha and beta of the TQE
    frame_factors: bool = True  # M
    gamma: float = 100.0  # weight of the temporal loss; 0: without
    checkpointing: bool = False
    precision: str = "no"  # or "bf16"

    name: ClassVar[str] = "qvdit"
    rotates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rotated_outputs(self.rotate_attention_output, self.name)
        check_rotation_block(self.rotation_block, self.name)
        least = {"iterations": 1, "batch_size": 1, "inner_rank": 0, "rate": 0, "scale_rate": 0, "gamma": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise _bad(f"{name} = {getattr(self, name)}", f"{low} or more")
        if not 0 <= self.alpha <= 1:
            raise _bad(f"alpha = {self.alpha}", "0 to 1")
        if self.precision not in PRECISIONS:
            raise _bad(f"precision = {self.precision!r}", f"one of {', '.join(PRECISIONS)}")
        if self.frame_factors and not self.estimator:
            raise _bad("frame_factors without estimator", "both, or frame_factors = false: they are factors of the estimate")

    @property
    def pins_frames(self) -> bool:
        """Every frame has its factor."""
        return self.frame_factors

    @property
    def rotates_within_heads(self) -> bool:
        """As the settings say."""
        return self.rotation and self.rotate_attention_output == HEAD

    def needs_statistics(self, scheme: Scheme) -> bool:
        """For the balance; the rest is learnt."""
        return scheme.activation is not None

    def quantize(
        self,
        weights: Mapping[str, FloatWeight],
        statistics: InputStatistics | None,
        schemes: Mapping[str, Scheme],
        head: int | None = None,
    ) -> dict[str, Quantized]:
        """See `Method.quantize`: where the training starts."""
        transform = balanced(statistics, weights, self.alpha, rotation=self.rotation, seed=self.seed, head=head, block=self.rotation_block)
        return {
            layer: Quantized(
                searched_grid(
                    transform.weight(weight.read()), schemes[layer].weight, scale_dtype(schemes[layer]), steps=50, least=0.4, power=2
                ),
                transform=transform,
            )
            for layer, weight in weights.items()
        }

    def train(self, job: TrainingJob) -> Trained:
        """See `TrainedMethod.train`: against the full-precision model's outputs on its own trajectories."""
        examples = record(job)
        now = Now(steps=torch.zeros(1, dtype=torch.int64))
        adapter, source = job.sampled.adapter, job.sampled.source
        frames = adapter.frames_of(source, job.sampled.conditioning.latent_shape[1])
        random = torch.Generator().manual_seed(self.seed)

        def make(layer: str, linear: torch.nn.Linear) -> EstimatedLinear:
            order = adapter.frame_order(source, layer) if self.frame_factors else None
            own = EstimatedLinear(job.start[layer], linear.weight, linear.bias, now)
            own.free(self, frames, order, random)
            return own

        student, linears = student_of(job, make, checkpointing=self.checkpointing)
        batches = _Batches(examples, self)
        if any(linear.order for linear in linears.values()):
            with torch.no_grad():
                for linear in linears.values():
                    linear.seen = torch.zeros(2, frames, dtype=torch.float64, device=job.device)
                for iteration in range(FACTOR_BATCHES):
                    batch = batches(-1 - iteration, slice(None))
                    now.steps = batch.steps.to(job.device)
                    student({n: t.to(job.device) for n, t in batch.feeds.items()})
                for linear in linears.values():
                    linear.set_factors()
        parts = [linear.learnt() for linear in linears.values()]
        history = train(
            student=student,
            now=now,
            plan=Plan(
                iterations=self.iterations,
                batch_size=self.batch_size,
                groups=(([p for rest, _ in parts for p in rest], self.rate), ([p for _, scales in parts for p in scales], self.scale_rate)),
                run=job.run,
                precision=self.precision,
                max_norm=1.0,
            ),
            batches=batches,
            loss=self._loss,
            before=lambda _iteration: (),
            device=job.device,
            state=job.work / CHECKPOINT,
            progress=job.progress,
        )
        return Trained(results(linears, job.ranks), {"examples": len(examples), "loss": history})

    def _loss(self, said: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        error = torch.nn.functional.mse_loss(said, wanted)
        return error + self.gamma * temporal_loss(said, wanted) if self.gamma else error


class EstimatedLinear(TrainedLinear):
    """A linear with its estimator."""

    def free(self, method: QVDiT, frames: int, order: FrameOrder | None, random: torch.Generator) -> None:
        """Make everything that learns."""
        n, k = self.weight.shape
        self.order = order
        self.seen: torch.Tensor | None = None  # while the factors are looked for: 1 - cos and sum |X| of each frame
        self.scale.requires_grad_()
        bound = k**-0.5  # Kaiming's uniform bound sqrt(6 / ((1 + 5) K)) of a linear layer

        def learnt(wanted: object, values: torch.Tensor) -> torch.nn.Parameter | None:
            return torch.nn.Parameter(values) if wanted else None

        def kaiming(*shape: int) -> torch.Tensor:
            values: torch.Tensor = (torch.rand(*shape, generator=random) * 2 - 1) * bound
            return values

        self.down = learnt(method.inner_rank, kaiming(method.inner_rank, k))
        self.up = learnt(method.inner_rank, torch.zeros(n, method.inner_rank))
        self.alpha = learnt(method.estimator, kaiming(k))
        self.beta = learnt(method.estimator, torch.zeros(n))
        self.frames = learnt(order, torch.ones(frames))

    def learnt(self) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
        """Parameters that learn, and the scales, which learn more slowly."""
        rest = (self.down, self.up, self.alpha, self.beta, self.frames)
        return [p for p in rest if p is not None], [self.scale]

    def quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        """See TrainedLinear."""
        spec = self.scheme.activation
        quantized = x if spec is None else quantized_tokens(x, spec)
        if self.seen is not None and self.order is not None:
            shape = self.order.shape(len(self.now.steps), self.seen.shape[1])
            axis = shape.index(self.seen.shape[1], 1)
            a, b = (t.reshape(*shape, x.shape[-1]).movedim(axis, 0).flatten(1).double() for t in (x, quantized))
            distance = 1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)
            self.seen += torch.stack([distance, a.abs().sum(-1)])
        return quantized

    def set_factors(self) -> None:
        """M_i = eta_i / omega_i of what was seen, and no longer look."""
        if self.seen is not None and self.frames is not None:
            distance, size = self.seen[0] / FACTOR_BATCHES, self.seen[1]
            share = size / size.sum().clamp_min(torch.finfo(torch.float64).tiny)
            floor = 1e-6  # a frame of nothing but zeros has no error to estimate
            put(self.frames, (torch.softmax(distance, 0) / share.clamp_min(floor)).float().where(share > floor, 0))
        self.seen = None

    def quantized_weight(self) -> torch.Tensor:
        """See TrainedLinear."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return quantized_rows(_changed(self.weight, self.up, self.down), self.scale, self.zero_point, self.scheme.weight)

    def corrected(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """See TrainedLinear: the estimate is added."""
        if self.alpha is None or self.beta is None:
            return y
        share = (x * self.alpha).sum(-1, keepdim=True)
        if self.frames is not None and self.order is not None:
            shape = self.order.shape(len(self.now.steps), len(self.frames))
            share = (share.reshape(shape) * self.order.spread(self.frames)).reshape(share.shape)
        return y + share * self.beta

    def result(self) -> Quantized:
        """See TrainedLinear."""
        weight, scale = whole(self.weight), whole(self.scale).clamp_min(EPS).cpu().numpy()
        learnt = (self.up, self.down, self.zero_point, self.alpha, self.beta, self.frames)
        up, down, *rest = (None if p is None else whole(p) for p in learnt)
        zero_point, alpha, beta, frames = (None if p is None else p.cpu().numpy() for p in rest)
        changed = _changed(weight, up, down).cpu().numpy()
        codes = quantize_weight(changed, self.scheme.weight, scale, scale_dtype(self.scheme), zero_point)
        correction = Correction(alpha=alpha, beta=beta, frames=frames, order=self.order)
        return Quantized(codes, transform=self.start.transform, correction=correction)


def _changed(weight: torch.Tensor, up: torch.Tensor | None, down: torch.Tensor | None) -> torch.Tensor:
    """W + B A, float32."""
    return weight if down is None or up is None else weight + (up.float() @ down.float())


class _Batches:
    """Uniform random examples, the same for the same seed and iteration."""

    def __init__(self, examples: Recorded, method: QVDiT) -> None:
        self.examples, self.size, self.seed = examples, method.batch_size, method.seed

    def __call__(self, iteration: int, share: slice) -> Batch:
        random = np.random.default_rng((self.seed, iteration + (1 << 20)))
        chosen = self.examples.read(random.integers(0, len(self.examples), self.size)[share])
        feeds = {name: torch.from_numpy(np.array(array)) for name, array in chosen.feeds.items()}
        return Batch(feeds, torch.from_numpy(chosen.outputs), torch.from_numpy(chosen.steps))


def _bad(found: str, wanted: str) -> InputError:
    return InputError(found=found, wanted=wanted, where="method qvdit", fix="correct [settings]")
