"""What folding takes off every step: element-wise passes over activations that a method puts in front of quantization, before and after.

    python benchmarks/fold_value.py [--case CASE] [--form FORM] [--out FILE] [--list] [--table FILE]

Graphs of published sizes (`random_graphs`) are counted, node by node; nothing is run. A node counts when a tensor of tokens passes
through it and plain rounding to the same codes, with one static scale or per token, has no such node: Sub of a shift, Mul by a balance, Div
by a step's scale, and the products of a rotation, each by itself. It moves the elements of its token-wide inputs and of its output, of two
bytes each. Terms behind the product (zero points, corrections, branches) are counted apart. `relative_l2` is the distance of
a small model's outputs with folds from those without, in float32, the greater of two sizes. Each line is a row, as JSON; `--table FILE`
prints the Markdown of a file of --out instead.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import REPOSITORY, options, save

if TYPE_CHECKING:
    import onnx_ir as ir

    from vditc.adapter import ModelAdapter
    from vditc.model_dir import ModelDir

# name in tests/families -> config of the published model: a name in export_models.toml, or below
CASES = {
    "wan": "wan-1.3b",
    "cogvideox-2b": "cogvideox-2b",
    "hunyuan-video": "hunyuan-13b",
    "ltx-0.9.0": "ltx-13b",
    "latte": "latte-1",
    "pixart-alpha-1024": "pixart-xl-2",
}
MORE: dict[str, dict[str, Any]] = {  # beside the classes' own defaults
    "latte-1": {
        "_class_name": "LatteTransformer3DModel",
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "cross_attention_dim": 1152,
        "attention_bias": True,
        "patch_size": 2,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": 4096,
    },
    "pixart-xl-2": {"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096},
}
FORM_NAMES = ("SmoothQuant w8a8", "ViDiT-Q w4a8", "static w8a8", "QVD w8a8", "Q-VDiT w3a6", "QVGen w4a4", "SVDQuant w4a4")
BYTES = 2  # of an element: float16
TOKENS = 64  # rows of a clip from which a tensor is one of tokens
FRONT = re.compile(r".*/(Sub_shift|Mul_balance|(Mul|Add|Div)_folded)(_\d+)?")
ROTATION = re.compile(r".*/MatMul_rotation_(left|right)(_\d+)?")
BEHIND = re.compile(
    r".*/((Mul|Add)_zero_point|(ReduceSum|Mul)_(total|share)|Mul_(alpha|beta|frames)|Add_(compensation|low_rank|bias_correction)"
    r"|MatMul)(_\d+)?"
)
BRANCH = re.compile(r".*\.low_rank\.(down|up)/MatMul")
KINDS = {
    "qkv": "q, k, v",
    "out": "proj",
    "fc1": "fc1",
    "fc2": "fc2",
    "cross q": "cross q",
    "text kv": "text k, v",
    "text stream": "text stream",
}
THEORY = ("qkv", "out", "fc1")  # layers whose element-wise passes ought to be none


def kind(role: str) -> str:
    """The row of the table that a layer of a role is in."""
    module, part = role.split(".")
    if module in ("text_attn", "text_ffn"):
        return "text stream"
    if module == "cross_attn":
        return {"q": "cross q", "out": "out"}.get(part, "text kv")
    if module.endswith("ffn"):
        return "fc2" if part == "out" else "fc1"
    return "out" if part == "out" else "qkv"


def config(case: str) -> dict[str, Any]:
    """Of the published model."""
    import diffusers

    from export import CASES as PUBLISHED  # noqa: TID251 # benchmarks/export.py

    own = {**PUBLISHED, **MORE}[CASES[case]]
    parameters = inspect.signature(getattr(diffusers, own["_class_name"])).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | own


def adapter_of(source: ModelDir) -> ModelAdapter:
    """Who knows the model."""
    from vditc.export.adapters.registry import adapter_for

    return adapter_for(source)


def prepared(model: ir.Model) -> None:
    """As every list of passes begins."""
    run(model, "fold-constants", "share-quantization")


def folded(model: ir.Model) -> None:
    """And goes on."""
    run(model, "fold-constants", "fold-channel-balance", "fold-rotation", "fold-temporal-scales")


def run(model: ir.Model, *passes: str) -> None:
    from vditc.graph_passes.core import run_passes
    from vditc.graph_passes.pipelines import parse_pass
    from vditc.graph_passes.spec import Spec

    run_passes(model, [parse_pass(p) for p in passes], Spec.canonical())


def token_shapes(model: ir.Model, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that is computed at these sizes; what is the same for all inputs of a size is not."""
    import onnx_ir as ir
    from onnxscript.optimizer import fold_constants

    from vditc.graph_passes.inferred_shapes import inferred_shapes

    fixed = model.clone()
    for value in fixed.graph.inputs:
        assert value.shape is not None
        value.shape = ir.Shape([d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape])
    fold_constants(fixed, input_size_limit=1 << 10, output_size_limit=1 << 16)  # casts of sizes too, which the pass leaves alone
    found = inferred_shapes(fixed.graph)
    shapes = {str(v.name): found.get(str(v.name), (None,)) for node in fixed.graph for v in node.outputs}
    if unknown := [name for name, shape in shapes.items() if None in shape]:
        raise SystemExit(f"{len(unknown)} shapes are not known, the first of {unknown[0]}")
    return {name: tuple(n for n in shape if n is not None) for name, shape in shapes.items()}


def counted(model: ir.Model, sizes: dict[str, int], roles: dict[str, str], times: dict[str, int]) -> dict[str, Any]:
    """Passes over tokens, and their bytes, by kind of layer: element-wise, of rotations and behind the product.

    `times`: how many blocks of the whole model one of a list of blocks stands for.
    """
    from vditc.graph_passes.patterns import by_step

    shapes = token_shapes(model, sizes)

    def elements(value: ir.Value | None) -> int:
        """Of a tensor of tokens; 0 for vectors and constants."""
        shape = () if value is None or value.const_value is not None else shapes.get(str(value.name), ())
        return math.prod(shape) if math.prod(shape[:-1]) >= TOKENS * sizes["batch"] else 0

    def weight(layer: str, node: ir.Node | None = None) -> int:
        """Layers of the whole model that it stands for; 1 where a node is there once, for all blocks."""
        if node is not None and len({".".join(name.split(".")[:2]) for name in _readers(node, roles)}) > 1:
            return 1
        return next((n for module, n in times.items() if layer.startswith(f"{module}.")), 1)

    passes: dict[str, Counter[str]] = {"elementwise": Counter(), "rotation": Counter(), "behind": Counter()}
    moved: dict[str, Counter[str]] = {name: Counter() for name in passes}
    inputs: Counter[str] = Counter()
    for node in model.graph:
        name, size = str(node.name), elements(node.outputs[0])
        if node.op_type == "QuantizeLinear" and size and (layer := _layer(node, roles)) is not None:
            inputs[kind(roles[layer])] += weight(layer, node)
        if node.op_type in ("Sub", "Mul", "Add", "Div") and (FRONT.fullmatch(name) or (node.op_type == "Div" and by_step(node.inputs[1]))):
            what = "elementwise"
        elif node.op_type == "MatMul" and ROTATION.fullmatch(name):
            what = "rotation"
        elif BRANCH.fullmatch(name) or (node.op_type != "MatMul" and BEHIND.fullmatch(name)):
            what = "behind"
        else:
            continue
        layer = _layer(node, roles)
        if layer is None or not (size or any(elements(v) for v in node.inputs)):
            continue
        key = kind(roles[layer])
        count = weight(layer, None if what == "behind" else node)
        passes[what][key] += count
        moved[what][key] += count * BYTES * (size + sum(elements(v) for v in dict.fromkeys(node.inputs)))
    return {"inputs": dict(inputs), "passes": {n: dict(c) for n, c in passes.items()}, "bytes": {n: dict(c) for n, c in moved.items()}}


def _layer(node: ir.Node, roles: dict[str, str]) -> str | None:
    """Whose input or output a node changes: by its name, or by the first node behind it that has one."""
    queue, seen = deque([node]), {node}
    while queue:
        one = queue.popleft()
        name = str(one.name).rsplit("/", 1)[0].split(".low_rank")[0]
        if name in roles:
            return name
        after = [use.node for v in one.outputs for use in v.uses() if use.node not in seen]
        seen.update(after)
        queue.extend(after)
    return None


def _readers(node: ir.Node, roles: dict[str, str]) -> set[str]:
    """Layers whose product is of what a node in front of it makes."""
    queue, found, seen = deque([node]), set[str](), {node}
    while queue:
        for use in (use for v in queue.popleft().outputs for use in v.uses()):
            name, _, what = str(use.node.name).rpartition("/")
            if what in ("MatMul", "Mul") and name in roles:  # the product, or what brings the scale back behind it
                found.add(name)
            elif use.node not in seen:
                seen.add(use.node)
                if not BEHIND.fullmatch(str(use.node.name)) and (use.node.op_type != "MatMul" or "rotation" in what):
                    queue.append(use.node)
    return found


def count(case: str, forms: list[str], work: Path) -> None:
    """Print a row for each form."""
    from random_graphs import FORMS, LATENT_FRAMES, random_graph, sparse_model

    from vditc.export.adapters.registry import adapters

    whole = config(case)
    adapter = adapters()[whole["_class_name"]]
    loops = adapter.loops(whole)
    # Two iterations stand for all: blocks of a list are alike.
    source = sparse_model(adapter.shortened(whole, (2,) * len(loops)), work / "model", None)
    times = {module: loop.count // 2 for loop in loops for module in loop.modules}
    assert all(loop.count % 2 == 0 for loop in loops)
    roles = adapter.layer_roles(source)
    axes = adapter.sizes(source).axes
    sizes = {name: axis.default for name, axis in axes.items()} | {"batch": 2}
    sizes |= {"frames": LATENT_FRAMES} if "frames" in axes and axes["frames"].allows(LATENT_FRAMES) else {}
    for form in forms:
        model = random_graph(source, FORMS[form], sizes.get("frames", 1), codes=False)
        prepared(model)
        before = counted(model, sizes, roles, times)
        folded(model)
        print(json.dumps({"form": form, "sizes": sizes, "before": before, "after": counted(model, sizes, roles, times)}), flush=True)


def distances(case: str, forms: list[str], work: Path) -> None:
    """Print, for each form, how far folds move the outputs of a small model."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import family_case
    import numpy as np
    import onnxruntime
    from random_graphs import FORMS, random_graph
    from tolerances import relative_l2

    from vditc.export.adapters.registry import adapter_for
    from vditc.graph_passes.stage import save as save_graph
    from vditc.runtimes.onnxruntime import session_options

    small = next(c for c in family_case.cases() if c.name == case)
    source = family_case.save(small, work / "model")
    adapter = adapter_for(source)
    for form in forms:
        furthest = 0.0
        for number, shape in enumerate(small.shapes[:2]):
            model = random_graph(source, FORMS[form], shape.get("frames", 1))
            outputs = []
            for step in (prepared, folded):
                step(model)
                path = work / f"{step.__name__}.onnx"
                save_graph(model, path)
                session = onnxruntime.InferenceSession(str(path), session_options(), providers=["CPUExecutionProvider"])
                random = np.random.default_rng(number)
                feeds = {s.name: s.example(shape, random) for s in adapter.inputs(source)} | {"step": np.array([7])}
                outputs.append(session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()}))
            furthest = max(furthest, *(float(relative_l2(b, a)) for a, b in zip(*outputs, strict=True)))
        print(json.dumps({"form": form, "relative_l2": furthest}), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each method and model."""
    heads = ["method", "model", *KINDS.values(), "rotations", "GB a step", "behind the product, GB", "relative L2"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        before, after = row["before"], row["after"]
        cells = [row["form"], row["model"]]
        for key in KINDS:
            count = before["inputs"].get(key, 0)
            pair = [_per_input(side["passes"]["elementwise"].get(key, 0), count) for side in (before, after)]
            cells.append(" → ".join(pair) if count else "–")
        cells.append(" → ".join(str(sum(side["passes"]["rotation"].values())) for side in (before, after)))
        front = [sum(sum(side["bytes"][what].values()) for what in ("elementwise", "rotation")) / 1e9 for side in (before, after)]
        cells.append(" → ".join(f"{n:.3g}" for n in front))
        cells.append(f"{sum(after['bytes']['behind'].values()) / 1e9:.3g}")
        cells.append(f"{row['relative_l2']:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _per_input(passes: int, inputs: int) -> str:
    """Passes for each quantized input; a mean where they differ."""
    return f"{passes / inputs:.2g}" if inputs else "0"


def child(*arguments: str) -> dict[str, dict[str, Any]]:
    """What this file, run with these arguments, prints, by form."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return {row.pop("form"): row for row in map(json.loads, done.stdout.splitlines())}


def main() -> None:
    match sys.argv[1:]:
        case ["--count", name, forms, work]:
            return count(name, forms.split(","), Path(work))
        case ["--distance", name, forms, work]:
            return distances(name, forms.split(","), Path(work))
    ask = options(__doc__, CASES)
    ask.add_argument("--form", choices=FORM_NAMES, action="append", help="default: all")
    ask.add_argument("--table", metavar="FILE", type=Path, help="print the Markdown of what --out has written, and nothing else")
    args = ask.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())["rows"]), end="")
        return None
    if args.list:
        print("\n".join(CASES))
        return None
    rows: list[dict[str, Any]] = []
    chosen: list[str] = args.form or list(FORM_NAMES)
    for name in args.case or CASES:
        found: list[dict[str, dict[str, Any]]] = []
        for what in ("--count", "--distance"):
            with tempfile.TemporaryDirectory() as work:
                found.append(child(what, name, ",".join(chosen), work))
        for form in chosen:
            rows.append({"bench": "fold_value", "case": name, "model": CASES[name], "form": form, **found[0][form], **found[1][form]})
            print(json.dumps(rows[-1]), flush=True)
    save(args.out, sorted(rows, key=lambda row: FORM_NAMES.index(row["form"])))
    return None


if __name__ == "__main__":
    main()
