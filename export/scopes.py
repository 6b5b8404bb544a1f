"""Which module of the traced model a node comes from."""

from __future__ import annotations

import ast

import onnx_ir as ir

MODEL = "model"  # the tracer's wrapper holds the model under this name, hence the first part of every traced name
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of the exporter: a list of module paths, outermost first


def module_path(node: ir.Node) -> str:
    """The innermost module, "blocks.0.attn1"; "" for what the model's own forward does."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    modules = [s for s in scopes if s == MODEL or s.startswith(f"{MODEL}.")]
    return modules[-1].removeprefix(MODEL).removeprefix(".") if modules else ""
