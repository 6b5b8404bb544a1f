from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vditc.axis import Axis, Sizes
from vditc.build_memory import gigabytes
from vditc.errors import InputError
from vditc.memory import BUILDER, BUILDER_PER_LAYER, BUILDER_PER_WEIGHT, FIXED, Layer, Memory, estimate, model_memory
from vditc.model_dir import ModelDir
from vditc.numerics import Granularity, QType
from vditc.profile import Profile
from vditc.recipe import Recipe
from vditc.scheme import QuantSpec, Scheme
from vditc.target import Target

ROOT = Path(__file__).resolve().parents[1]
W8A8 = Scheme(
    weight=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_CHANNEL),
    activation=QuantSpec(qtype=QType.INT8, granularity=Granularity.PER_TOKEN, dynamic=True),
)
W4A16 = Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=64))
W3A8 = Scheme(weight=QuantSpec(qtype=QType.INT3, granularity=Granularity.PER_CHANNEL), activation=W8A8.activation)
SIZES = Sizes(
    {
        "batch": Axis(default=1),
        "frames": Axis(default=21, unit="frames", stride=4, causal=True),
        "height": Axis(default=60, low=2, multiple=2, unit="pixels", stride=8),
        "width": Axis(default=104, low=2, multiple=2, unit="pixels", stride=8),
        "text_tokens": Axis(default=512),
    }
)
CLIP = {"batch": 1, "frames": 21, "height": 60, "width": 104, "text_tokens": 512}
RTX, CPU = Target.load("rtx-ada"), Target.load("cpu")


def wan(width: int, ffn: int, blocks: int, scheme: Scheme | None = None) -> list[Layer]:
    """The linear layers of a Wan transformer."""

    def linear(role: str, n: int, k: int) -> Layer:
        return Layer(role=role, shape=(n, k), scheme=scheme if "attn" in role or "ffn" in role else None)

    attention = [linear(f"{kind}_attn.{part}", width, width) for kind in ("self", "cross") for part in ("q", "k", "v", "out")]
    block = [*attention, linear("ffn.in", ffn, width), linear("ffn.out", width, ffn)]
    return [
        linear("patch_embed", width, 64),
        linear("text_embed.in", width, 4096),
        linear("text_embed.out", width, width),
        linear("time_embed.in", width, 256),
        linear("time_embed.out", width, width),
        linear("modulation", 6 * width, width),
        *block * blocks,
        linear("head", 64, width),
    ]


def of(layers: list[Layer], target: Target = RTX, heads: int = 2, **sizes: int) -> Memory:
    return estimate(layers, 1000, SIZES, {**CLIP, **sizes}, target, {"num_attention_heads": heads})


def test_the_formula_by_hand() -> None:
    tokens = 21 * 30 * 52
    d, f, t = 128, 512, tokens + 512
    found = of(wan(d, f, 1))
    linear = 64 * d + 4096 * d + d * d + 8 * d * d + 2 * d * f + 64 * d
    timed = 256 * d + d * d + 6 * d * d
    assert found.tokens == tokens
    assert found.weights == 2 * linear + 4 * timed + 2 * 1000
    assert found.activations == t * (2 * f + 2 * f + d * (2 + 4)) + FIXED
    assert found.builder == BUILDER + BUILDER_PER_LAYER * 17 + int(BUILDER_PER_WEIGHT * found.weights)
    assert found.total == found.weights + found.activations == found.to_json()["total"]
    assert of(wan(d, f, 1), batch=2).activations - FIXED == 2 * (found.activations - FIXED)
    assert of(wan(d, f, 1, W8A8)).activations == t * (4 * f + 2 * f + d * 6) + FIXED
    assert of(wan(d, f, 1, W4A16)).activations == t * (3 * f + 2 * f + d * 6) + FIXED


def test_attention_can_be_the_greater_moment() -> None:
    d, f, t = 128, 8, 21 * 30 * 52 + 512
    assert of(wan(d, f, 1)).activations == t * (3 * d * 2 + 2 * d * 2 + d * 2 + d * 6) + FIXED
    assert of(wan(d, f, 1, W8A8)).activations == t * (3 * d * 4 + 2 * d * 2 + d * 2 + d * 6) + FIXED
    joined = [Layer(role="self_attn.qkv", shape=(3 * d, d)), Layer(role="self_attn.out", shape=(d, d))]
    assert of(joined).activations == of(wan(d, f, 1)).activations


@pytest.mark.parametrize(("scheme", "bits"), [(None, 16), (W8A8, 8), (W4A16, 4.25), (W3A8, 4)])
def test_weight_bytes(scheme: Scheme | None, bits: float) -> None:
    layer = Layer(role="ffn.in", shape=(64, 128), scheme=scheme)
    rows = 64 * 4 if scheme in (W8A8, W3A8) else 0  # float32 scales
    assert layer.weight_bytes(2) == 64 * 128 * bits / 8 + rows


def test_attention_that_is_not_fused_holds_its_scores() -> None:
    layers = wan(128, 512, 1)
    fused, portable = of(layers, frames=2), of(layers, CPU, frames=2)
    t = 2 * 30 * 52 + 512
    assert fused.scores == 0
    assert portable.scores == 2 * 2 * t * t * 4
    assert portable.activations == t * (3 + 2 + 1) * 128 * 4 + t * 128 * 8 + portable.scores + FIXED
    assert portable.weights == 4 * (sum(math.prod(a.shape) for a in layers) + 1000)
    assert portable.builder == 0 and "building" not in str(portable)
    space, frames = 30 * 52, 8
    apart = [*layers, Layer(role="temporal_attn.q", shape=(128, 128))]
    assert of(apart, CPU, frames=frames).scores == 2 * 2 * frames * space**2 * 4


def test_wan_at_its_published_sizes() -> None:
    """14 B and 1.3 B weights; INT4 quarters the blocks, and 720p holds 75600 / 32760 of the activations of 480p."""
    large, small = of(wan(5120, 13824, 40)), of(wan(1536, 8960, 30))
    assert large.weights == pytest.approx(28.6e9, rel=0.02)
    assert small.weights == pytest.approx(2.87e9, rel=0.02)  # 2872 MB is what an engine of it took
    assert of(wan(1536, 8960, 30, W8A8)).weights == pytest.approx(1.50e9, rel=0.02)
    assert of(wan(1536, 8960, 30, W4A16)).weights == pytest.approx(0.80e9, rel=0.05)
    assert of(wan(5120, 13824, 40, W4A16)).weights < 0.3 * large.weights
    wide = of(wan(5120, 13824, 40), height=90, width=160)
    assert (wide.activations - FIXED) / (large.activations - FIXED) == pytest.approx((75600 + 512) / (32760 + 512))


def test_the_stated_measurements() -> None:
    """The estimates beside the measured figures are what the code says today, and no further off than the page says."""
    from vditc.export.adapters.registry import adapter_for

    data = json.loads((ROOT / "docs" / "measurements" / "memory.json").read_text())
    source = ModelDir.open(ROOT / "src" / "vditc" / "assets" / "digits")
    adapter = adapter_for(source)
    seen = 0
    for row in data["rows"]:
        if row["case"] == "wan-12":
            continue
        schemes = {n: rule.scheme for n, rule in Recipe.load(row["recipe"]).assign(adapter.layer_roles(source)).items()}
        target = CPU if row["case"] == "digits-cpu" else RTX
        found = model_memory(source, adapter, schemes, Profile.from_json(row["profile"]), target).to_json()
        assert row["estimated"] == {name: found[name] for name in row["measured"]}, row
        seen += 1
    assert seen == 12
    errors = [row["error"]["activations"] for row in data["rows"] if row["measured"]["activations"] > 100e6]
    assert len(errors) == 9 and min(errors) > -0.02 and max(errors) < 0.23  # as docs/measurements/README.md says


def test_a_group_that_does_not_divide_names_the_layer(tiny: ModelDir) -> None:
    from vditc.export.adapters.registry import adapter_for

    adapter = adapter_for(tiny)
    scheme = Scheme(weight=QuantSpec(qtype=QType.INT4, granularity=Granularity.PER_GROUP, group_size=96))
    layer = "blocks.0.ffn.net.0.proj"
    with pytest.raises(InputError, match=f"layer {layer}, .*found 128 input channels; wanted a multiple of group_size 96"):
        model_memory(tiny, adapter, {layer: scheme}, adapter.default_profile(tiny), RTX)


def test_words() -> None:
    assert [gigabytes(n) for n in (999_400_000, 1_434_000_000, 96_400_000)] == ["999 MB", "1.43 GB", "96 MB"]
    text = str(Memory(tokens=32760, weights=2_870_000_000, activations=1_500_000_000, scores=0, builder=7_300_000_000))
    assert text == "about 4.37 GB: 2.87 GB of weights, 1.50 GB of activations at 32760 tokens; building it takes about 7.30 GB"
