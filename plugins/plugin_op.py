"""What the operators of the plugin library have in common: their domain, how a node names its plugin, and their bodies in ONNX.

A node carries the attributes that a TensorRT plugin is created from, `plugin_namespace` and `plugin_version` among them: without those two
TensorRT takes the body although it has the plugin. The body is a function of the model, in operators of the standard domain, that ONNX
Runtime runs instead. Two nodes of one operator may need different bodies (other bits, an input more), so every function has an overload,
which is made from the attributes (ONNX IR version 10, NodeProto.overload).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import onnx
import onnx.parser
import onnx_ir as ir

from vditc.plugins.domain import DOMAIN as DOMAIN
from vditc.plugins.domain import DOMAIN_VERSION as DOMAIN_VERSION
from vditc.plugins.domain import VERSION as VERSION

FLOATS = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
NAMED = {"plugin_namespace": DOMAIN, "plugin_version": VERSION}
Dims = tuple[int | str | None, ...]  # sizes of axes: a number, the name of a dynamic axis, or unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginOp(abc.ABC):
    """One operator with its attributes. Fields are the node's attributes: int, str or bool (written 0 and 1)."""

    op_type: ClassVar[str]
    opset: ClassVar[int] = 21  # of the body

    @property
    @abc.abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs that a node with these attributes has, in order."""

    @property
    @abc.abstractmethod
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""

    @property
    @abc.abstractmethod
    def overload(self) -> str:
        """What tells this body from others of the operator."""

    @abc.abstractmethod
    def body(self) -> Sequence[str]:
        """Lines of ONNX text that compute the outputs from the inputs."""

    @abc.abstractmethod
    def types(self, given: Sequence[ir.DataType | None]) -> tuple[ir.DataType, ...]:
        """Element types of the outputs. ValueError when the inputs' are not what the operator takes."""

    @abc.abstractmethod
    def shapes(self, given: Sequence[Dims | None]) -> tuple[Dims | None, ...]:
        """Shapes of the outputs, from those of the inputs; None: not known."""

    def function(self) -> ir.Function:
        """The body, as a function of a model."""
        names = [f.name for f in dataclasses.fields(self)]
        head = f'<domain: "{DOMAIN}", overload: "{self.overload}", opset_import: ["" : {self.opset}]>'
        text = f"{head}\n{self.op_type} <{', '.join([*names, *NAMED])}> ({', '.join(self.inputs)}) => ({', '.join(self.outputs)})\n{{\n"
        return ir.serde.deserialize_function(onnx.parser.parse_function(text + "\n".join(self.body()) + "\n}"))

    def node(self, inputs: Sequence[ir.Value], name: str) -> ir.Node:
        """A node that computes it; its outputs are named NAME, NAME.scale, ... after the operator's."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs; {self.op_type} {self.overload} has {', '.join(self.inputs)}")
        attributes = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)} | NAMED
        node = ir.node(self.op_type, inputs, attributes, domain=DOMAIN, overload=self.overload, num_outputs=len(self.outputs), name=name)
        for i, (value, said) in enumerate(zip(node.outputs, self.outputs, strict=True)):
            value.name = f"{name}.{said}" if i else name
        return node

    @classmethod
    def of(cls, node: ir.Node) -> Self:
        """The operator that a node names. ValueError when an attribute is missing, unknown or no value that there is."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        if odd := sorted(given.keys() ^ (known.keys() | NAMED.keys())):
            raise ValueError(f"attribute {odd[0]} {'is unknown' if odd[0] in given else 'is missing'}")
        for name, wanted in NAMED.items():
            if given[name] != wanted:
                raise ValueError(f"{name} {given[name]!r}; wanted {wanted!r}")
        made = cls.of_values(given)
        if len(node.inputs) != len(made.inputs) or None in node.inputs:
            raise ValueError(f"{len(node.inputs)} inputs; wanted {', '.join(made.inputs)}")
        if node.overload != made.overload:
            raise ValueError(f"overload {node.overload!r}; wanted {made.overload!r}")
        return made

    @classmethod
    def of_values(cls, given: Mapping[str, Any]) -> Self:
        """The operator with these attributes, and maybe others. TypeError or ValueError when there is none."""
        return cls(**{f.name: _field(f, given[f.name]) for f in dataclasses.fields(cls) if f.name in given})


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _field(field: dataclasses.Field[Any], value: Any) -> Any:
    if field.type not in ("bool", bool):
        return value
    if value not in (0, 1):
        raise ValueError(f"{field.name} {value!r}; wanted 0 or 1")
    return bool(value)
