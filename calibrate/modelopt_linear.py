"""One linear layer, or several that read one tensor, through nvidia-modelopt: only its algorithms are used, never its exporters.

A single linear and a sample of its inputs are all that modelopt sees, so memory does not depend on the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from vditc.errors import VditcError
from vditc.numerics import Granularity
from vditc.scheme import QuantSpec

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Calibrated:
    """What modelopt made of a weight."""

    weight: Array  # [N, K]: for a balance, W / balance; for GPTQ, values of the grid; for SVDQuant, what the branch leaves
    balance: Array | None = None  # [K], what the input is multiplied with (`pre_quant_scale`)
    down: Array | None = None  # [R, K]
    up: Array | None = None  # [N, R]


def calibrate_linear(
    weight: Array, rows: Array, spec: QuantSpec, algorithm: dict[str, Any], activation_bits: int | None = None
) -> Calibrated:
    """Run one of modelopt's algorithms on W [N, K] and sampled inputs [T, K]. `activation_bits`: quantize inputs per tensor meanwhile."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about versions of packages that have nothing to do with it
        import modelopt.torch.quantization as mtq

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(np.array(weight, np.float32))
    model = torch.nn.Sequential(linear)
    inputs = torch.from_numpy(np.array(rows, np.float32))
    weights: dict[str, Any] = {"num_bits": spec.qtype.bits, "axis": 0}
    if spec.granularity is Granularity.PER_GROUP:
        weights = {"num_bits": spec.qtype.bits, "block_sizes": {-1: spec.group_size, "type": "static"}}
    elif spec.granularity is Granularity.PER_TENSOR:
        weights = {"num_bits": spec.qtype.bits, "axis": None}
    quantizers = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": weights}]
    if activation_bits is not None:
        quantizers.append({"quantizer_name": "*input_quantizer", "cfg": {"num_bits": activation_bits, "axis": None}})
    logging.getLogger("modelopt").setLevel(logging.ERROR)
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mtq.quantize(model, {"quant_cfg": quantizers, "algorithm": algorithm}, lambda m: m(inputs))
    done: Any = model[0]

    def array(tensor: Any) -> Array | None:
        return None if tensor is None else np.array(tensor.detach().numpy(), np.float32)

    found, balance = array(done.weight), array(getattr(done.input_quantizer, "pre_quant_scale", None))
    assert found is not None
    if balance is None and algorithm["method"] != "gptq":  # modelopt only warns when it leaves a layer as it was
        raise VditcError(
            found=f"a layer of {spec} that {algorithm['method']} left as it was",
            wanted="a balance of its input",
            where="nvidia-modelopt",
            fix="use another method or another scheme for this layer",
        )
    return Calibrated(
        weight=found,
        balance=balance,
        down=array(getattr(done.weight_quantizer, "svdquant_lora_a", None)),
        up=array(getattr(done.weight_quantizer, "svdquant_lora_b", None)),
    )
