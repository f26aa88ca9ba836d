"""An ONNX graph under construction: nodes in order, and a file of weights that grows beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

# The oldest that has Gelu, for the sake of older TensorRTs; all operators used here take bfloat16.
OPSET = 20
# What goes with it; onnx itself would write its newest, which a runtime may not know yet.
IR_VERSION = 9
DATA_SUFFIX = ".data"
ELEMENT_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float16: TensorProto.FLOAT16,
    torch.uint8: TensorProto.UINT8,
}


class OnnxGraph:
    """Collects nodes and weights; a value is known by its name. Use as a context manager.

    Weights go straight to `<file>.data`, one at a time, so that a tower beyond a protobuf message's
    2 GB, or beyond the memory, takes the same way as a small one.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def __enter__(self) -> OnnxGraph:
        self._data = self._file.with_name(self._file.name + DATA_SUFFIX).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output and returns that output's name."""
        output = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def weight(self, name: str, values: torch.Tensor) -> str:
        """Adds a tensor under this name, once, and returns the name; its values go to the file."""
        if name not in self._weights:
            self._weights[name] = self._stored(name, values.contiguous())
        return name

    def integers(self, *values: int) -> str:
        """Adds a vector, such as a shape, and returns its name."""
        name = "_".join(["integers", *map(str, values)])
        if name not in self._weights:
            self._weights[name] = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        return name

    def save(self, graph_input: onnx.ValueInfoProto, graph_output: onnx.ValueInfoProto) -> None:
        """Writes the file.

        Args:
            graph_input: the one input.
            graph_output: the one output; it takes the last node's.
        """
        self._nodes[-1].output[:] = [graph_output.name]
        weights = list(self._weights.values())
        graph = helper.make_graph(self._nodes, "vision", [graph_input], [graph_output], weights)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        onnx.save(model, self._file)

    def _stored(self, name: str, values: torch.Tensor) -> onnx.TensorProto:
        tensor = TensorProto(name=name, dims=values.shape, data_type=ELEMENT_TYPES[values.dtype])
        tensor.data_location = TensorProto.EXTERNAL
        place = {
            "location": Path(self._data.name).name,
            "offset": self._data.tell(),
            "length": values.nbytes,
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self._data.write(values.reshape(-1).view(torch.uint8).numpy().data)
        return tensor
