"""The plugins of TensorRT, from attributes to numbers, by a host that plays TensorRT on the CPU (`tensorrt_host`)."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tolerances
from tensorrt_host import CHAR, CREATORS, FLOAT32, INT32, RUNTIME, Host, HostError, attributes, described

from vditc.plugins.catalogue import OPERATORS
from vditc.plugins.emulated import emulated_library
from vditc.plugins.library import Library
from vditc.plugins.packing import LAYOUT, code_range, pack, pack_tokens, unpack_tokens
from vditc.plugins.plugin_op import DOMAIN, VERSION
from vditc.plugins.qlinear.kernels import Problem, Tactic, tactics
from vditc.plugins.qlinear.op import QLinear
from vditc.plugins.qlinear.reference import qlinear
from vditc.plugins.quantize_token.op import QuantizeToken
from vditc.plugins.quantize_token.reference import quantize_token

Array = npt.NDArray[Any]
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
FLOATS = {"fp32": np.float32, "fp16": np.float16}
SM = 80


@pytest.fixture(scope="module")
def host() -> Host:
    """One host for all: the library is loaded once."""
    return Host()


def inputs_of(op: QLinear, rng: np.random.Generator, tokens: tuple[int, ...] = (2, 3), gate: tuple[int, ...] = (2, 1)) -> list[Array]:
    """Random inputs; `gate`: the leading axes of the gate."""
    low, high = code_range(op.bits, unsigned=op.unsigned)
    codes = rng.integers(-(1 << op.activation_bits - 1), 1 << op.activation_bits - 1, (*tokens, op.k), dtype=np.int8)
    branch = np.float16

    def floats(*shape: int, dtype: Any = np.float32) -> Array:
        return np.asarray(rng.standard_normal(shape), dtype)

    known: dict[str, Array] = {
        "x": pack_tokens(codes) if op.packed else codes,
        "scale": np.asarray(rng.random((*tokens, 1)) * 0.05, np.float32),
        "weight": pack(rng.integers(low, high + 1, (op.n, op.k), dtype=np.int8), op.bits, unsigned=op.unsigned),
        "weight_scale": np.asarray(rng.random((op.k // op.group, op.n) if op.group else (op.n,)) * 0.01, np.float32),
        "left": floats(*tokens, op.rank),
        "right": floats(op.rank, op.n),
        "down": floats(*tokens, op.low_rank, dtype=branch),
        "up": floats(op.low_rank, op.n, dtype=branch),
        "b": floats(op.n),
        "gate": floats(*gate, op.n, dtype=FLOATS[op.output]),
        "residual": floats(*tokens, op.n, dtype=FLOATS[op.output]),
    }
    return [known[name] for name in op.inputs]


LAYERS = {
    "w4": QLinear(n=70, k=96, bits=4),
    "w3 rank bias gated": QLinear(n=33, k=64, bits=3, activation_bits=6, rank=2, bias=True, gated=True),
    "w8 gelu fp32": QLinear(n=40, k=50, bits=8, bias=True, activation="gelu_tanh", output="fp32"),
    "w4 packed groups": QLinear(n=48, k=256, bits=4, unsigned=True, activation_bits=4, packed=True, group=128, low_rank=32, bias=True),
}


def close(op: QLinear, found: Array, wanted: Array) -> None:
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if op.activation == "none" and not op.low_rank:
        np.testing.assert_array_equal(found, wanted)
    else:
        worst = np.abs(found.astype(float) - wanted.astype(float)).max()
        assert worst <= tolerances.PLUGIN_BODY[op.output] * np.abs(wanted.astype(float)).max()


def test_creators_are_those_of_the_catalogue(host: Host) -> None:
    assert host.count == len(OPERATORS) == len(CREATORS)
    kinds = {"int": INT32, "bool": INT32, "str": CHAR, "float": FLOAT32}
    for index, (name, op) in enumerate(OPERATORS.items()):
        fields = {f.name: kinds[str(f.type)] for f in dataclasses.fields(op)}
        assert host.creator(index) == (f"{DOMAIN}.{name}/{VERSION}", fields)


@pytest.mark.parametrize("name", LAYERS)
def test_qlinear_computes_what_the_oracle_does(name: str, host: Host, rng: np.random.Generator) -> None:
    """Configured for a profile, stored, made again, and run at three of its shapes."""
    op = LAYERS[name]
    plugin, least, best, greatest = (
        host.of(op),
        inputs_of(op, rng, (1, 1), (1, 1)),
        inputs_of(op, rng, (2, 17), (2, 1)),
        inputs_of(op, rng, (2, 70), (2, 1)),
    )
    plugin.configure([described(b.shape, b.dtype, least=a.shape, greatest=c.shape) for a, b, c in zip(least, best, greatest, strict=True)])
    before = plugin.cache_id
    plugin.reload()
    assert plugin.cache_id == before and plugin.clone().cache_id == before
    for given in (least, best, greatest):
        close(op, plugin.run(given)[0], qlinear(op, *given))


@pytest.mark.parametrize("tokens", [(5,), (2, 3, 2), (1, 4, 1, 2)])
def test_tokens_have_any_number_of_axes(tokens: tuple[int, ...], host: Host, rng: np.random.Generator) -> None:
    op = LAYERS["w4"]
    given = inputs_of(op, rng, tokens)
    close(op, host.of(op).run(given)[0], qlinear(op, *given))


def test_one_scale_for_all_tokens(host: Host, rng: np.random.Generator) -> None:
    op = LAYERS["w4"]
    for shape in ((), (1,), (1, 1, 1)):
        given = inputs_of(op, rng)
        given[1] = np.full(shape, 0.02, np.float32)
        close(op, host.of(op).run(given)[0], qlinear(op, *given))


def test_no_tokens_are_no_work(host: Host, rng: np.random.Generator) -> None:
    op = LAYERS["w3 rank bias gated"]
    assert host.of(op).run(inputs_of(op, rng, (2, 0), (2, 1)))[0].shape == (2, 0, op.n)


@pytest.mark.parametrize(
    "gate", [(), (1,), (3,), (1, 1), (1, 3), (2, 1), (2, 3), (4, 1, 1), (4, 2, 1), (1, 2, 3), (1, 2, 1), (4, 2, 3), (1, 1, 3)]
)
def test_a_gate_is_broadcast(gate: tuple[int, ...], host: Host, rng: np.random.Generator) -> None:
    op = QLinear(n=20, k=32, bits=8, gated=True, output="fp32")
    tokens = (4, 2, 3) if len(gate) > 2 else (2, 3)
    given = inputs_of(op, rng, tokens, gate)
    close(op, host.of(op).run(given)[0], qlinear(op, *given))


def test_a_gate_of_axes_apart_is_refused(host: Host, rng: np.random.Generator) -> None:
    op = QLinear(n=20, k=32, bits=8, gated=True)
    plugin = host.of(op, layer="blocks.3.ffn")
    wanted = r"layer blocks\.3\.ffn: gate \[4, 1, 3, 20\]; wanted a shape that is broadcast to \[4, 2, 3, 20\], along axes that lie next to"
    with pytest.raises(HostError, match=wanted):
        plugin.run(inputs_of(op, rng, (4, 2, 3), (4, 1, 3)))
    with pytest.raises(HostError, match=r"configure 2: .*along axes that lie next to"):
        plugin.configure([described(a.shape, a.dtype) for a in inputs_of(op, rng, (4, 2, 3), (4, 1, 3))])


def test_tactics_are_the_librarys(host: Host, rng: np.random.Generator) -> None:
    op = LAYERS["w4"]
    plugin, given = host.of(op), inputs_of(op, rng)
    plugin.configure([described(a.shape, a.dtype) for a in given])
    problem = Problem(m=6, n=op.n, k=op.k, bits=op.bits)
    offered = tactics(Library(emulated_library()), problem, SM)
    assert plugin.tactics == [int(t) for t in offered] and len(offered) > 1 and 0 not in plugin.tactics
    assert f"{len(given[0].reshape(-1, op.k))} rows, at most 6; tactics: unpack-" in host.log()
    plugin.reload()
    for tactic in offered:
        close(op, plugin.run(given, tactic=int(tactic))[0], qlinear(op, *given))
        assert f"layer layer: 6 rows by {tactic.name.lower().replace('_', '-')} on sm_{SM}" in host.log()


def test_a_tactic_of_another_gpu_is_replaced_and_said(host: Host, rng: np.random.Generator) -> None:
    op = LAYERS["w4"]
    given = inputs_of(op, rng)
    close(op, host.of(op).run(given, tactic=int(Tactic.EXPAND_SM100))[0], qlinear(op, *given))
    assert "[W] vditc.QLinear, layer layer: the engine's tactic 18 does not run on sm_80; taken: unpack-" in host.log()


def test_without_a_device_tactics_are_chosen_when_it_runs(host: Host, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    op = LAYERS["w4"]
    plugin, given = host.of(op), inputs_of(op, rng)
    monkeypatch.setenv("VDITC_EMULATED_SM", "-1")
    plugin.configure([described(a.shape, a.dtype) for a in given])
    assert plugin.tactics == [] and "tactics: chosen when it runs" in host.log()
    with pytest.raises(HostError, match=r"run 4: \[E\] vditc.QLinear, layer layer: "):
        plugin.run(given)
    monkeypatch.delenv("VDITC_EMULATED_SM")
    close(op, plugin.run(given)[0], qlinear(op, *given))


def test_the_workspace_is_stored_with_the_engine(host: Host) -> None:
    plugin = host.create("QLinear", {**attributes(LAYERS["w4"]), "workspace_bytes": (12345).to_bytes(8, "little")}, phase=RUNTIME)
    assert plugin.workspace == 12345
    plugin.reload()
    assert plugin.workspace == 12345


GOOD = attributes(QLinear(n=70, k=96, bits=4))
TOKEN = attributes(QuantizeToken())
BAD_FIELDS = [
    ("QLinear", GOOD | {"layout": LAYOUT + 1}, f"layout {LAYOUT + 1}; wanted {LAYOUT}"),
    ("QLinear", GOOD | {"bits": 5}, "bits 5; wanted 8 or 4 or 3"),
    ("QLinear", GOOD | {"activation_bits": 5}, "activation_bits 5; wanted 8 or 6 or 4 or 3"),
    ("QLinear", GOOD | {"n": 0}, "n 0; wanted 1 to"),
    ("QLinear", GOOD | {"k": -3}, "k -3; wanted 1 to"),
    ("QLinear", GOOD | {"rank": 5}, "rank 5; wanted 0 to 4"),
    ("QLinear", GOOD | {"low_rank": 8}, "low_rank 8; wanted 0 or 16 or 32 or 48 or 64"),
    ("QLinear", GOOD | {"group": 64}, "group 64; wanted 0 or 128"),
    ("QLinear", GOOD | {"group": 128}, "group 128, k 96; wanted a multiple of 128"),
    ("QLinear", GOOD | {"bias": 2}, "bias 2; wanted 0 or 1"),
    ("QLinear", GOOD | {"packed": 1}, "packed, activation_bits 8, k 96; wanted 4 or 3 bits"),
    ("QLinear", GOOD | {"unsigned": 1, "bits": 8}, "unsigned weights of 8 bits; wanted bits 4"),
    ("QLinear", GOOD | {"activation": "relu"}, 'activation "relu"; wanted none or gelu or gelu_tanh'),
    ("QLinear", GOOD | {"output": 1}, "attribute output is 1 elements of int32; wanted text"),
    ("QLinear", GOOD | {"n": "70"}, "attribute n is 2 elements of text; wanted one int32"),
    ("QLinear", GOOD | {"colour": 1}, "attribute colour is unknown"),
    ("QLinear", {k: v for k, v in GOOD.items() if k != "rank"}, "no attribute rank"),
    ("QuantizeToken", TOKEN | {"bits": 5}, "bits 5; wanted 8 or 6 or 4 or 3"),
    ("QuantizeToken", TOKEN | {"scaled": "channel"}, 'scaled "channel"; wanted token or given'),
    ("QuantizeToken", TOKEN | {"norm": "rms"}, "a norm with epsilon 0; wanted a positive epsilon"),
    ("QuantizeToken", TOKEN | {"epsilon": 1e-5}, "no norm with epsilon 1e-05"),
    ("QuantizeToken", TOKEN | {"epsilon": float("nan")}, "epsilon nan; wanted a finite number"),
    ("QuantizeToken", TOKEN | {"weight": 1}, "weight or bias without a norm"),
    ("QuantizeToken", TOKEN | {"norm": "layer", "epsilon": 1e-5, "activation": "gelu"}, "activation in front of a norm"),
    ("QuantizeToken", TOKEN | {"scaled": "given", "clip": 1}, "a clip of a given scale"),
    ("QuantizeToken", TOKEN | {"packed": 1}, "packed codes of 8 bits; wanted 4 or 3"),
    ("QuantizeToken", TOKEN | {"rotation": 128}, "rotation 128; wanted 0 or 256"),
    ("QuantizeToken", TOKEN | {"shares": 5}, "shares 5; wanted 0 to 4"),
]


@pytest.mark.parametrize(("op", "fields", "said"), BAD_FIELDS, ids=[said for *_, said in BAD_FIELDS])
def test_a_bad_attribute_makes_no_plugin(op: str, fields: dict[str, Any], said: str, host: Host) -> None:
    with pytest.raises(HostError) as caught:
        host.create(op, fields, layer="blocks.0.to_q")
    assert f"[E] vditc.{op}, layer blocks.0.to_q: {said}" in str(caught.value)


@pytest.mark.parametrize("generation", [10, 11])
def test_both_generations_of_loggers_are_used(generation: int) -> None:
    with pytest.raises(HostError, match=r"\[E\] vditc.QLinear, layer x: bits 5"):
        Host(generation).create("QLinear", GOOD | {"bits": 5}, layer="x")
    Host()  # the library keeps the last finder


def test_without_a_logger_errors_go_to_the_standard_error_stream(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HostError):
        Host(0).create("QLinear", GOOD | {"bits": 5}, layer="x")
    Host()
    assert capfd.readouterr().err == "vditc: error: vditc.QLinear, layer x: bits 5; wanted 8 or 4 or 3\n"


def _with(op: QLinear, name: str, array: Array) -> list[Array]:
    given = inputs_of(op, np.random.default_rng(0))
    given[op.inputs.index(name)] = array
    return given


_W4, _ALL = LAYERS["w4"], dataclasses.replace(LAYERS["w4"], rank=2, low_rank=16, bias=True, gated=True)
BAD_TENSORS = [
    (_W4, "x", np.zeros((2, 3, 95), np.int8), "x [..., 95]; wanted [..., 96]"),
    (_W4, "scale", np.zeros((2, 1, 1), np.float32), "scale [2, 1, 1]; wanted [2, 3, 1]"),
    (_W4, "scale", np.zeros((3, 2, 1), np.float32), "scale [3, 2, 1]; wanted [2, 3, 1]"),
    (_W4, "weight", np.zeros(4607, np.int8), "weight [4607]; wanted [4608]"),
    (_W4, "weight_scale", np.zeros(71, np.float32), "weight_scale [71]; wanted [70]"),
    (_W4, "weight_scale", np.zeros((1, 70), np.float32), "weight_scale [1, 70]; wanted [70]"),
    (_ALL, "left", np.zeros((2, 3, 3), np.float32), "left [2, 3, 3]; wanted [2, 3, 2]"),
    (_ALL, "right", np.zeros((2, 71), np.float32), "right [2, 71]; wanted [2, 70]"),
    (_ALL, "down", np.zeros((2, 3, 32), np.float16), "down [2, 3, 32]; wanted [2, 3, 16]"),
    (_ALL, "up", np.zeros((70, 16), np.float16), "up [70, 16]; wanted [16, 70]"),
    (_ALL, "b", np.zeros(1, np.float32), "b [1]; wanted [70]"),
    (
        _ALL,
        "residual",
        np.zeros((2, 3, 1), np.float16),
        "residual [2, 3, 1]; wanted a shape that is broadcast to [2, 3, 70], with the last axis",
    ),
    (
        _ALL,
        "residual",
        np.zeros((1, 2, 3, 70), np.float16),
        "residual [1, 2, 3, 70]; wanted a shape that is broadcast to [2, 3, 70], with no axis in",
    ),
    (_ALL, "residual", np.zeros((2, 2, 70), np.float16), "residual [2, 2, 70]; wanted a shape that is broadcast to [2, 3, 70]"),
]


@pytest.mark.parametrize(("op", "name", "array", "said"), BAD_TENSORS, ids=[said for *_, said in BAD_TENSORS])
def test_a_tensor_that_does_not_fit_is_refused_when_built_and_when_run(op: QLinear, name: str, array: Array, said: str, host: Host) -> None:
    given, plugin = _with(op, name, array), host.of(op)
    with pytest.raises(HostError) as caught:
        plugin.configure([described(a.shape, a.dtype) for a in given])
    assert f"layer layer: {said}" in str(caught.value)
    with pytest.raises(HostError) as caught:
        plugin.run(given)
    assert f"layer layer: {said}" in str(caught.value)


def test_types_and_numbers_of_tensors_are_checked(host: Host, rng: np.random.Generator) -> None:
    plugin, given = host.of(_ALL), [described(a.shape, a.dtype) for a in inputs_of(_ALL, rng)]
    with pytest.raises(
        HostError, match=r"12 inputs and 1 outputs; wanted x, scale, weight, weight_scale, left, right, down, up, b, gate, residual"
    ):
        plugin.infer([*given, given[0]])
    given[0] = described((2, 3, 96), np.float16)
    with pytest.raises(HostError, match="configure 1"):
        plugin.configure(given)


TOKENS = {
    "plain": (QuantizeToken(), np.float16, 40),
    "packed, gated, sums": (QuantizeToken(bits=4, packed=True, gated=True, gain=True, shift=True, total=True, shares=2), np.float32, 64),
    "norm": (QuantizeToken(bits=6, norm="layer", epsilon=1e-6, weight=True, bias=True, gain=True, shift=True, clip=True), np.float16, 48),
    "rotated": (QuantizeToken(bits=4, balance=True, center=True, rotation=256), np.float32, 512),
    "given": (QuantizeToken(bits=3, scaled="given", activation="gelu"), np.float32, 33),
}


def token_inputs(op: QuantizeToken, dtype: Any, tokens: tuple[int, ...], k: int, rng: np.random.Generator) -> list[Array]:
    one = np.full(1, 0.3, np.float32)
    vector = {name: np.asarray(rng.standard_normal(k), np.float32) for name in ("weight", "bias", "center", "balance")}
    rows = {name: np.asarray(rng.standard_normal((tokens[0], *(1 for _ in tokens[1:]), k)), np.float32) for name in ("gain", "shift")}
    wide = {name: np.asarray(rng.standard_normal((*tokens, k)), dtype) for name in ("x", "residual")}
    wide["gate"] = np.asarray(rng.standard_normal((tokens[0], *(1 for _ in tokens[1:]), k)), dtype)
    alpha = np.asarray(rng.standard_normal((op.shares, k)), np.float32)
    known = {**wide, **vector, **rows, "clip": one * 3, "given": one, "alpha": alpha}
    return [known[name] for name in op.inputs]


@pytest.mark.parametrize(("name", "tokens"), itertools.product(TOKENS, [(2, 5), (6,), (2, 2, 3)]))
def test_quantize_token_computes_what_the_oracle_does(name: str, tokens: tuple[int, ...], host: Host, rng: np.random.Generator) -> None:
    op, dtype, k = TOKENS[name]
    given = token_inputs(op, dtype, tokens, k, rng)
    plugin, wanted = host.of(op), quantize_token(op, *given)
    plugin.configure([described(a.shape, a.dtype) for a in given])
    plugin.reload()
    found = dict(zip(op.outputs, plugin.run(given), strict=True))
    for output, array in wanted.items():
        assert (found[output].dtype, found[output].shape) == (array.dtype, array.shape), output
    codes = [unpack_tokens(f["codes"]) if op.packed else f["codes"] for f in (found, wanted)]
    off = np.abs(codes[0].astype(int) - codes[1])
    assert off.max() <= 1 and off.sum() <= (0 if op.norm == "none" and not op.rotation and op.activation == "none" else 3)
    for output in {"scale", "total", "share0", "share1", "sum"} & wanted.keys():
        most = np.abs(wanted[output].astype(float)).max()
        assert np.abs(found[output].astype(float) - wanted[output].astype(float)).max() <= 4 * tolerances.SCALE_OFF * most, output


BAD_TOKENS: list[tuple[QuantizeToken, dict[str, tuple[int, ...]], str]] = [
    (TOKENS["rotated"][0], {"x": (2, 3, 300)}, "x [..., 300] with rotation 256; wanted a multiple of it"),
    (TOKENS["packed, gated, sums"][0], {"x": (2, 3, 48)}, "x [..., 48], packed; wanted a multiple of 32"),
    (TOKENS["packed, gated, sums"][0], {"gate": (2, 3, 32)}, "gate [2, 3, 32]; wanted a shape that is broadcast to [2, 3, 64]"),
    (TOKENS["packed, gated, sums"][0], {"alpha": (3, 64)}, "alpha [3, 64]; wanted [2, 64]"),
    (TOKENS["norm"][0], {"weight": (63,)}, "weight [63]; wanted [64]"),
    (TOKENS["norm"][0], {"gain": (3, 1, 64)}, "gain [3, 1, 64]; wanted a shape that is broadcast to [2, 3, 64]"),
    (TOKENS["norm"][0], {"clip": (2,)}, "clip [2]; wanted one element"),
    (TOKENS["given"][0], {"given": (2, 3, 1)}, "given [2, 3, 1]; wanted one element"),
]


@pytest.mark.parametrize(("op", "shapes", "said"), BAD_TOKENS, ids=[said for *_, said in BAD_TOKENS])
def test_tensors_that_do_not_fit_quantize_token_are_refused(
    op: QuantizeToken, shapes: dict[str, tuple[int, ...]], said: str, host: Host
) -> None:
    given = dict(zip(op.inputs, token_inputs(op, np.float32, (2, 3), 256 if op.rotation else 64, np.random.default_rng(0)), strict=True))
    given |= {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(HostError) as caught:
        host.of(op).configure([described(a.shape, a.dtype) for a in given.values()])
    assert f"layer layer: {said}" in str(caught.value)


def test_views_that_begin_anywhere(host: Host) -> None:
    """What is read one number at a time may lie at any of them; of what is read in vectors those that are not aligned are refused."""
    rng = np.random.default_rng(9)
    tokens = {k: rng.standard_normal((3, k)).astype(np.float16) for k in (64, 77)}
    given, gain = np.full(1, 0.02, np.float32), rng.standard_normal((1, 77)).astype(np.float32)
    cases: list[tuple[QuantizeToken, list[Array], dict[int, int]]] = [
        (QuantizeToken(scaled="given"), [tokens[64], given], {1: 4}),
        (QuantizeToken(gain=True), [tokens[77], gain], {0: 2, 1: 12}),
    ]
    for op, inputs, moved in cases:
        codes = quantize_token(op, *inputs)["codes"]
        assert np.array_equal(host.of(op).run(inputs, moved=moved)[0], codes)
    with pytest.raises(HostError, match=r"(?s)run 4: .*QuantizeToken.*x lies at 0x\w+2; wanted an address that is a multiple of 16"):
        host.of(QuantizeToken()).run([tokens[64]], moved={0: 2})
    layer = LAYERS["w3 rank bias gated"]
    inputs = inputs_of(layer, rng)
    scales = {layer.inputs.index(name): 4 for name in ("scale", "left")}
    close(layer, host.of(layer).run(inputs, moved=scales)[0], qlinear(layer, *inputs))
    for name in set(layer.inputs) - {"scale", "left"}:
        with pytest.raises(
            HostError,
            match=rf"(?s)run 4: .*QLinear.*{'bias' if name == 'b' else name} = 0x\w+8; wanted an address that is a multiple of 16",
        ):
            host.of(layer).run(inputs, moved={layer.inputs.index(name): 8})
