"""Int8 for ONNX graphs: weights with one scale per output channel, activations with one per row.

ONNX Runtime's dynamic quantisation gives a whole activation matrix one scale, and the few tokens that every transformer
lets grow large then take the precision of all others. Dividing each row by its largest value first, and multiplying the
product by it again, makes that one scale a scale per row: token-wise quantisation (Yao et al. 2022, ZeroQuant,
https://arxiv.org/abs/2206.01861) out of plain operators, with the runtime's fast integer kernels and no calibration.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

_SMALLEST = 1e-6  # a row of zeros stays one
_GELUS, _GELU_DEPTH = ("Gelu", "BiasGelu"), 0.17  # their least value is above -0.17
_AXIS, _FLOOR, _GELU_FLOOR = "row_axis", "row_floor", "row_gelu_floor"


def quantize_graph(source: Path, target: Path) -> None:
    """Quantise one graph into a new file.

    Weights use 7 of their 8 bits: with all of them, processors without VNNI overflow 16-bit sums in silence.

    Args:
        source: Graph in float32.
        target: Where to write the int8 one.
    """
    model = onnx.load(source)
    scale_rows(model.graph)
    add_pre_process_metadata(model)  # the graph is optimised already; says so to a warning that asks for it
    quantize_dynamic(
        model,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused operators have no shape inference
    )


def scale_rows(graph: onnx.GraphProto) -> None:
    """Rewrite each product `x @ w` with a constant as `r * ((x / r) @ w)`, `r` the largest of each row of `|x|`.

    Not right before and after attention, where no row stands out: it is the feed-forward layers that let some grow.
    """
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    made_by = {name: node for node in graph.node for name in node.output}
    attention = [node for node in graph.node if node.op_type == "Attention"]
    before = [_origin(name, made_by) for node in attention for name in node.input[:3]]
    scaled: dict[str, tuple[str, str]] = {}  # x -> x / r, r; several products may share an x
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if (
            node.op_type != "MatMul"
            or node.input[1] not in weights
            or node.input[0] in weights
            or node in before
            or _origin(node.input[0], made_by) in attention
        ):
            nodes.append(node)
            continue
        x, product = node.input[0], node.output[0]
        if x not in scaled:
            size, largest, divisor, rows = (f"{x}/row_{part}" for part in ("size", "largest", "divisor", "scaled"))
            if x in made_by and made_by[x].op_type in _GELUS:  # no need to look for large negative numbers
                nodes.append(helper.make_node("ReduceMax", [x, _AXIS], [largest], keepdims=1))
                nodes.append(helper.make_node("Max", [largest, _GELU_FLOOR], [divisor]))
            else:
                nodes.append(helper.make_node("Abs", [x], [size]))
                nodes.append(helper.make_node("ReduceMax", [size, _AXIS], [largest], keepdims=1))
                nodes.append(helper.make_node("Max", [largest, _FLOOR], [divisor]))
            nodes.append(helper.make_node("Div", [x, divisor], [rows]))
            scaled[x] = rows, divisor
        rows, divisor = scaled[x]
        node.input[0], node.output[0] = rows, f"{product}/of_rows"
        nodes += [node, helper.make_node("Mul", [node.output[0], divisor], [product])]
    if scaled:
        constants = {_AXIS: np.array([-1]), _FLOOR: np.float32(_SMALLEST), _GELU_FLOOR: np.float32(_GELU_DEPTH)}
        graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
        del graph.node[:]
        graph.node.extend(nodes)


def _origin(name: str, made_by: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """What computes a matrix, before a bias is added and it is cut and turned."""
    node = made_by.get(name)
    while node is not None and node.op_type in ("Add", "Reshape", "Split", "Transpose"):
        node = next((made_by[name] for name in node.input if name in made_by), None)
    return node
