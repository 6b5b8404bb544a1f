"""Exports a text encoder as large as Wan's UMT5-XXL, from a sparse checkpoint of zeros: seconds, peak memory, bytes.

python benchmarks/text_encoder.py --dtype w8 --work /tmp/xxl
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from pathlib import Path

import torch
from transformers import UMT5Config, UMT5EncoderModel

from vditc.export.parts.families.registry import part_for
from vditc.export.parts.part import open_part
from vditc.export.parts.stage import STORED, export_part
from vditc.export.weightless import weightless
from vditc.progress import SILENT
from vditc.runtimes.trt_worker import peak_rss_bytes


def sparse_checkpoint(folder: Path) -> int:
    """Write config.json and model.safetensors, bfloat16 zeros that take no space; returns the number of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": ["UMT5EncoderModel"]}))
    with weightless(lambda shape: torch.empty(shape, device="meta")):
        model = UMT5EncoderModel(config)
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        begin, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=STORED, default="w8")
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    weights = sparse_checkpoint(given.work / "text_encoder")
    began, cpu = time.monotonic(), time.process_time()
    facts = export_part(part_for(open_part(given.work, "text_encoder")), given.work / "onnx", SILENT, given.dtype)
    spent = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    print(
        json.dumps({"weights": weights, "dtype": given.dtype, **spent, "data_bytes": facts.data_bytes, "peak_rss_bytes": peak_rss_bytes()})
    )


if __name__ == "__main__":
    main()
