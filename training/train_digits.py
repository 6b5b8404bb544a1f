"""Train the bundled model: a small WanTransformer3DModel on videos of moving handwritten digits.

    python training/train_digits.py --out src/vditc/assets/digits --work runs/digits

Rectified flow (Liu et al., arXiv 2209.03003): x_s = (1-s) x_0 + s e, the model predicts e - x_0, s is the noise level.
Noise levels are logit-normal (Esser et al., arXiv 2403.03206, eq. 19) and shifted towards noise. Matrices of the blocks
are updated by Muon, the rest by AdamW. One step always sees the same number of tokens, first as many short clips (cheap,
they teach the digits), later as full ones. Everything is written to WORK and a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from vditc import digits
from vditc.codec import PixelShuffleCodec
from vditc.text_encoder import PAD, WordEmbedding

CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "in_channels": 7,  # 4 of the clip, 3 that say where they are
    "out_channels": 4,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 768,
    "num_layers": 6,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
VOCABULARY = (PAD, "a", "moving", *map(str, range(10)), *digits.DIRECTIONS)
TEXT_LENGTH = 8
SHIFT = 3.0  # of the noise levels
SAMPLING_SHIFT = 8.0  # of the stored scheduler: half of its steps are spent above s = 0.89
SAMPLING = {"steps": 16, "guidance_scale": 3.0, "frames": 8, "height": 16, "width": 16, "semantics": "digits", "extra_channels": "position"}
TOKENS = 4096  # per step
DROP_PROMPT = 0.1  # share of prompts replaced by "" for classifier-free guidance
EMA = 0.995
COOLDOWN = 0.12  # share of the steps at the end over which the learning rate falls to zero


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


PHASES = (
    Phase(0.27, {1: 0.5, 2: 0.25, 4: 0.25}),  # digits, from single frames that cost little
    Phase(0.36, {1: 0.15, 2: 0.15, 4: 0.35, 8: 0.35}),
    Phase(0.53, {4: 0.15, 8: 0.85}),  # smooth motion
    Phase(0.81, {4: 0.3, 8: 0.7}, 0.6, 30.0),  # the axis of the motion
    Phase(1.00, {1: 0.45, 8: 0.55}, 0.6, 100.0),  # its sense: which side a frame's digit is on, single frames teach that too
)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024), scaled to AdamW's update size (Liu et al., arXiv 2502.16982, eq. 4).

    torch.optim.Muon orthogonalises in bfloat16, which a CPU without bfloat16 instructions runs 100 times slower.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def orthogonalise(g: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix, coefficients of Jordan et al. 2024."""
    x: torch.Tensor = g / (g.norm() + 1e-7)
    if wide := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if wide else x


class Data:
    """Batches of real clips, their prompts' token numbers, and noise levels, all from one seeded generator."""

    def __init__(self, codec: PixelShuffleCodec, words: WordEmbedding, seed: int) -> None:
        self.codec, self.words = codec, words
        self.rng = np.random.default_rng(seed)
        self.indices, _ = digits.split()
        self.captions = digits.captions()

    def batch(self, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents [B, 4, frames, 16, 16], token numbers [B, TEXT_LENGTH], positions [B, 3, frames, 16, 16]; B * tokens = TOKENS."""
        count = TOKENS // (frames * 64)
        clips, ids, places = [], [], []
        everywhere = digits.position_channels(digits.FRAMES, 16, 16)
        for _ in range(count):
            caption = self.captions[self.rng.integers(len(self.captions))]
            clip = digits.draw(caption, self.rng, digits.FRAMES, self.indices)
            start = self.rng.integers(digits.FRAMES - frames + 1)
            clips.append(clip[start : start + frames])
            places.append(everywhere[:, start : start + frames])
            ids.append(self.words.token_ids("" if self.rng.random() < DROP_PROMPT else str(caption)))
        return torch.from_numpy(self.codec.encode(np.stack(clips))), torch.tensor(ids), torch.from_numpy(np.stack(places))


def noise_levels(count: int, phase: Phase) -> torch.Tensor:
    """float32 [count] in (0, 1), logit-normal, shifted towards noise."""
    level = torch.sigmoid(torch.randn(count))
    shift = torch.where(torch.rand(count) < phase.high_share, phase.high_shift, SHIFT)
    return shift * level / (1 + (shift - 1) * level)


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Factor: a linear warm-up, constant, a linear cool-down."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (COOLDOWN * steps))


def measure_codec() -> PixelShuffleCodec:
    """The codec whose latents of real clips have mean 0 and standard deviation 1."""
    rng = np.random.default_rng(0)
    clips = np.stack([digits.draw(c, rng) for c in digits.captions()])
    return PixelShuffleCodec(2, round(float(clips.mean()), 4), round(float(clips.std()), 4))


def publish(folder: Path, model: WanTransformer3DModel, embedding: torch.Tensor, codec: PixelShuffleCodec) -> None:
    """Write a diffusers directory: transformer (float16), scheduler, text_encoder, vae."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT).save_pretrained(folder / "scheduler")
    WordEmbedding(VOCABULARY, TEXT_LENGTH, embedding.detach().float().numpy()).save(folder / "text_encoder")
    codec.save(folder / "vae")
    index = {
        "_class_name": "WanPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["vditc", "WordEmbedding"],
        "vae": ["vditc", "PixelShuffleCodec"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "sampling.json").write_text(json.dumps(SAMPLING, indent=2) + "\n")


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


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--out", type=Path, required=True, help="diffusers directory to write")
    ask.add_argument("--work", type=Path, required=True, help="checkpoint and log; an interrupted run goes on from here")
    ask.add_argument("--steps", type=int, default=3200)
    ask.add_argument("--lr", type=float, default=2e-3)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = ask.parse_args()

    torch.manual_seed(args.seed)
    device, codec = torch.device(args.device), measure_codec()
    model = WanTransformer3DModel(**CONFIG).to(device)
    embedding = torch.nn.Parameter(torch.randn(len(VOCABULARY), CONFIG["text_dim"], device=device))
    params = {**dict(model.named_parameters()), "text_embedding": embedding}
    ema = {n: p.detach().clone() for n, p in params.items()}
    matrices = [p for n, p in params.items() if n.startswith("blocks.") and p.ndim == 2]
    others = [p for n, p in params.items() if not (n.startswith("blocks.") and p.ndim == 2)]
    optimizers = [Muon(matrices, lr=args.lr), torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)]
    words = WordEmbedding(VOCABULARY, TEXT_LENGTH, np.zeros((len(VOCABULARY), CONFIG["text_dim"]), np.float32))

    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, log, first = args.work / "checkpoint.safetensors", args.work / "log.jsonl", 0
    if checkpoint.exists():
        saved = load_file(checkpoint)
        first = int(saved.pop("step"))
        unpack(saved, params, ema, optimizers)
    data, began, window = Data(codec, words, args.seed + first), time.monotonic(), []
    for step in range(first, args.steps):
        torch.manual_seed(args.seed + step)
        phase = next(p for p in PHASES if (step + 1) / args.steps <= p.until)
        frames = int(data.rng.choice(list(phase.frames), p=list(phase.frames.values())))
        latents, ids, places = (t.to(device) for t in data.batch(frames))
        level, noise = noise_levels(len(latents), phase).to(device), torch.randn(latents.shape).to(device)
        mixed = torch.lerp(latents, noise, level[:, None, None, None, None])
        out = model(torch.cat([mixed, places], 1), level * 1000, embedding[ids], return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(out, noise - latents)
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
            row = {
                "step": step + 1,
                "loss": round(sum(window) / len(window), 5),
                "frames": frames,
                "seconds": round(time.monotonic() - began, 1),
            }
            with log.open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            window = []
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            tensors = pack(params, ema, optimizers) | {"step": torch.tensor(step + 1)}
            save_file(tensors, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)

    final = WanTransformer3DModel(**CONFIG)
    final.load_state_dict({n: p.cpu() for n, p in ema.items() if n != "text_embedding"}, strict=False)
    publish(args.out, final, ema["text_embedding"].cpu(), codec)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
