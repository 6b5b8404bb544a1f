"""Measures device packages of models of published size: `vditc package` to a tar and to a folder, and the device's own check of every file.

    python benchmarks/device_package.py [--case CASE] [--work FOLDER] [--json] [--out FILE] [--list]

The lowered graph has a model's linear layers at their real sizes, INT4 weights beside INT8 activations, and random bytes for weights; a
part of the data file is not read, so that packaging has to leave it out. It needs three times the bytes of the weights on the disk of
--work. Memory is the peak RSS of the command.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from harness import VDITC, measured, options, save, with_json

# model -> blocks, width, width of the feed-forward layer; attention has q, k, v and out twice
CASES = {"package-1.3b": (30, 1536, 8960), "package-14b": (40, 5120, 13824)}
UNREAD = 200_000_000  # bytes of the data file that the graph does not read
TARGET = "jetson-orin"


def layers(blocks: int, width: int, hidden: int) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of every linear layer."""
    found = []
    for block in range(blocks):
        found += [(f"blocks.{block}.attn{a}.{part}", width, width) for a in (1, 2) for part in ("q", "k", "v", "out")]
        found += [(f"blocks.{block}.ffn.in", width, hidden), (f"blocks.{block}.ffn.out", hidden, width)]
    return found


def write_bundle(root: Path, case: str) -> int:
    """A bundle of one target; returns the bytes of its weights."""
    # A process's peak RSS counts its parent's from before exec, so the one that measures imports none of these.
    import numpy as np
    import onnx
    from onnx import TensorProto, helper

    from vditc.adapter import InputSpec
    from vditc.bundle import Manifest, list_files, write_manifest
    from vditc.memory import Memory
    from vditc.pipeline.device_files import Part, write_device_files
    from vditc.profile import Profile, Range
    from vditc.target import Target

    profile = Profile({"batch": Range(1, 1, 1), "tokens": Range(32760, 32760, 32760)})
    blocks, width, hidden = CASES[case]
    (root / "lowered").mkdir(parents=True)
    graph, nodes, tensors, offset, value = root / "lowered" / f"{TARGET}.onnx", [], [], UNREAD, "hidden_states"
    tensors.append(helper.make_tensor("one", TensorProto.FLOAT, (), [1.0]))
    for name, inputs, outputs in layers(blocks, width, hidden):
        weight = TensorProto(name=f"{name}.weight", data_type=TensorProto.INT4, dims=(inputs, outputs), data_location=TensorProto.EXTERNAL)
        for key, said in {"location": "model.onnx.data", "offset": offset, "length": inputs * outputs // 2}.items():
            weight.external_data.add(key=key, value=str(said))
        offset += inputs * outputs // 2
        scale = helper.make_tensor(f"{name}.scale", TensorProto.FLOAT, (outputs,), [0.01] * outputs)
        tensors += [weight, scale]
        nodes += [
            helper.make_node("QuantizeLinear", [value, "one"], [f"{name}.codes"], f"{name}/QuantizeLinear", output_dtype=TensorProto.INT8),
            helper.make_node("DequantizeLinear", [f"{name}.codes", "one"], [f"{name}.wide"], f"{name}/DequantizeLinear"),
            helper.make_node("DequantizeLinear", [weight.name, scale.name], [f"{name}.float"], f"{name}/weight", axis=1),
            helper.make_node("MatMul", [f"{name}.wide", f"{name}.float"], [f"{name}.out"], f"{name}/MatMul"),
        ]
        value = f"{name}.out"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "tokens", width]) for n in ("hidden_states", value)]
    made = helper.make_graph(nodes, "lowered", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), graph)
    block = np.random.default_rng(0).bytes(64 << 20)
    with (root / "lowered" / "model.onnx.data").open("wb") as data:
        for begin in range(0, offset, len(block)):
            data.write(block[: offset - begin])
    specs = (InputSpec("hidden_states", "float32", ("batch", "tokens", width)),)
    memory = Memory(tokens=32760, weights=offset - UNREAD, activations=8_000_000_000, scores=0, builder=0)
    folder, part = root / "engines" / TARGET, Part("model", graph, specs)
    write_device_files(root=root, folder=folder, parts=[part], target=Target.load(TARGET), profile=profile, memory=memory)
    names = ("model", "recipe", "layers", "kept", "sampling", "graph", "gate", "tools")
    rest: dict[str, Any] = {
        "vditc": "0",
        "mean_bits": 4.0,
        "inputs": [],
        "quality": None,
        "targets": {TARGET: {}},
        **{n: {} for n in names},
    }
    manifest = Manifest(**rest, profile=profile.to_json(), files=list_files(root))
    write_manifest(root, manifest)
    return offset - UNREAD


def run(case: str, work: Path) -> dict[str, Any]:
    """One model: both kinds of package, and the check on the device."""
    bundle, tar, folder = work / "bundle", work / "package.tar", work / "package"
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        weights = other.submit(write_bundle, bundle, case).result()
    row: dict[str, Any] = {"bench": "device_package", "case": case, "weights_bytes": weights}
    command = [str(VDITC), "package", str(bundle), "--target", TARGET, "-o"]
    row["tar"] = measured([*command, str(tar)])
    row["package_bytes"] = tar.stat().st_size
    tar.unlink()
    row["folder"] = measured([*command, str(folder)])
    shutil.rmtree(bundle)
    engine = folder / "engines" / TARGET
    row["check"] = measured([sys.executable, str(engine / "vditc_device.pyz"), "check", str(engine)])
    return row


def main() -> None:
    """Measure what --case names."""
    ask = with_json(options(__doc__, CASES))
    ask.add_argument("--work", type=Path, help="folder for the files [default: a temporary one]")
    given = ask.parse_args()
    if given.list:
        print("\n".join(CASES))
        return
    rows = []
    for case in given.case or CASES:
        with tempfile.TemporaryDirectory(dir=given.work) as work:
            rows.append(row := run(case, Path(work)))
        if given.json:
            print(json.dumps(row))
            continue
        steps = ", ".join(f"{s} {row[s]['seconds']:.1f} s and {row[s]['peak_rss_bytes'] / 1e6:.0f} MB" for s in ("tar", "folder", "check"))
        print(f"{case}: {row['package_bytes']:,} bytes from {row['weights_bytes']:,} of weights; {steps}")
    save(given.out, rows)


if __name__ == "__main__":
    main()
