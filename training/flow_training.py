"""The training loop of the bundled models.

Rectified flow (Liu et al., arXiv 2209.03003): x_s = (1-s) x_0 + s e, the model predicts e - x_0, s is the noise level.
Noise levels are logit-normal (Esser et al., arXiv 2403.03206, eq. 19) and shifted towards noise. Matrices of the blocks
are updated by Muon, the rest by AdamW. One step always sees the same number of tokens, first as many short clips (cheap,
they teach the digits), later as full ones. Everything is written to WORK and a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from digits_data import TEXT_DIM, VOCABULARY, Batch, Data, measure_codec
from muon import Muon
from safetensors.torch import load_file, save_file

SHIFT = 3.0  # of the noise levels
EMA = 0.995
COOLDOWN = 0.12  # share of the steps at the end over which the learning rate falls to zero

# (model, noisy latents, noise levels [B], text [B, TEXT_LENGTH, TEXT_DIM], the batch they come from) -> velocity, like the latents
Predict = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor, Batch], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the training. `high_share` of the noise levels is shifted by `high_shift` instead of SHIFT.

    Where the digit is and which way it moves is settled while a clip is almost pure noise: a digit has some 100 bright pixels
    of about 3 standard deviations, so 100**0.5 * 3 * (1-s)/s, its signal to noise in one frame, falls below 1 at s = 0.97. A
    logit-normal level with shift 3 lies above that once in 60 clips; with shift 100 two times in three.
    """

    until: float  # share of the steps
    frames: dict[int, float]  # frames of a clip -> probability
    high_share: float = 0.0
    high_shift: float = SHIFT


def noise_levels(count: int, phase: Phase) -> torch.Tensor:
    """float32 [count] in (0, 1), logit-normal, shifted towards noise."""
    level = torch.sigmoid(torch.randn(count))
    shift = torch.where(torch.rand(count) < phase.high_share, phase.high_shift, SHIFT)
    return shift * level / (1 + (shift - 1) * level)


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Factor: a linear warm-up, constant, a linear cool-down."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (COOLDOWN * steps))


def pack(params: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], optimizers: list[Any]) -> dict[str, torch.Tensor]:
    """Everything a resumed run needs, as flat named tensors (safetensors; nothing is pickled)."""
    names = {id(p): n for n, p in params.items()}
    out = {f"param/{n}": p.detach().contiguous() for n, p in params.items()}
    out |= {f"ema/{n}": p.contiguous() for n, p in ema.items()}
    for optimizer in optimizers:
        for p, state in optimizer.state.items():
            out |= {f"state/{k}/{names[id(p)]}": torch.as_tensor(v).contiguous() for k, v in state.items()}
    return out


def unpack(saved: dict[str, torch.Tensor], params: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], optimizers: list[Any]) -> None:
    """The inverse of `pack`, in place."""
    home = {id(p): o for o in optimizers for g in o.param_groups for p in g["params"]}
    with torch.no_grad():
        for key, value in saved.items():
            kind, _, name = key.partition("/")
            if kind == "param":
                params[name].copy_(value)
            elif kind == "ema":
                ema[name].copy_(value)
            elif kind == "state":
                field, _, name = name.partition("/")
                home[id(params[name])].state[params[name]][field] = value


def options(description: str | None, steps: int) -> argparse.Namespace:
    """The command line, which is the same for both models."""
    ask = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, required=True, help="diffusers directory to write")
    ask.add_argument("--work", type=Path, required=True, help="checkpoint and log; an interrupted run goes on from here")
    ask.add_argument("--steps", type=int, default=steps)
    ask.add_argument("--lr", type=float, default=2e-3)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--threads", type=int, help="CPU threads [default: PyTorch's choice]")
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return ask.parse_args()


def train(
    args: argparse.Namespace, make: Callable[[], Any], predict: Predict, blocks: tuple[str, ...], phases: Sequence[Phase]
) -> dict[str, torch.Tensor]:
    """Averaged weights of the model that `make` builds, by name, on the CPU; those of the words are `text_embedding`.

    `blocks`: how names of the weights begin whose matrices are Muon's.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = make().to(device)
    embedding = torch.nn.Parameter(torch.randn(len(VOCABULARY), TEXT_DIM, device=device))
    params = {**dict(model.named_parameters()), "text_embedding": embedding}
    ema = {n: p.detach().clone() for n, p in params.items()}
    matrices = {n: p for n, p in params.items() if n.startswith(blocks) and p.ndim == 2}
    others = [p for n, p in params.items() if n not in matrices]
    optimizers = [Muon(matrices.values(), lr=args.lr), torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)]

    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, log, start = args.work / "checkpoint.safetensors", args.work / "log.jsonl", 0
    if checkpoint.exists():
        saved = load_file(checkpoint)
        start = int(saved.pop("step"))
        unpack(saved, params, ema, optimizers)
    data, began, window = Data(measure_codec(), args.seed + start), time.monotonic(), []
    for step in range(start, args.steps):
        torch.manual_seed(args.seed + step)
        phase = next(p for p in phases if (step + 1) / args.steps <= p.until)
        frames = int(data.rng.choice(list(phase.frames), p=list(phase.frames.values())))
        batch = data.batch(frames)
        latents = batch.latents.to(device)
        level, noise = noise_levels(len(latents), phase).to(device), torch.randn(latents.shape).to(device)
        mixed = torch.lerp(latents, noise, level[:, None, None, None, None])
        loss = torch.nn.functional.mse_loss(predict(model, mixed, level, embedding[batch.token_ids], batch), noise - latents)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(params.values()), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * learning_rate(step, args.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            for n, p in params.items():
                ema[n].lerp_(p, 1 - decay)
        window.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            mean, seconds = sum(window) / len(window), time.monotonic() - began
            row = json.dumps({"step": step + 1, "loss": round(mean, 5), "frames": frames, "seconds": round(seconds, 1)})
            with log.open("a") as f:
                f.write(row + "\n")
            print(row, flush=True)
            window = []
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            tensors = pack(params, ema, optimizers) | {"step": torch.tensor(step + 1)}
            save_file(tensors, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return {n: p.cpu() for n, p in ema.items()}
