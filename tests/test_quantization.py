"""Rows that grow large must not take the precision of the others."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from rasid.modeling.quantization import quantize_graph, scale_rows

ROWS, WIDE, NARROW = 6, 32, 8


@pytest.fixture
def model() -> onnx.ModelProto:
    """x [rows, 32] @ a and x @ b, which share an input, and a product of two inputs, which has no weights."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(WIDE, NARROW)).astype(np.float32) for name in "ab"}
    nodes = [helper.make_node("MatMul", ["x", name], [f"x{name}"], name=name) for name in "ab"]
    nodes.append(helper.make_node("MatMul", ["x", "y"], ["xy"]))
    graph = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDE]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [WIDE, NARROW]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", NARROW]) for name in ("xa", "xb", "xy")],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def inputs(large: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, WIDE)).astype(np.float32)
    x[0] *= large
    return {"x": x, "y": rng.normal(size=(WIDE, NARROW)).astype(np.float32)}


def run(model: bytes | str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.mark.parametrize("large", [0.0, 1.0, 1e4])
def test_scaled_rows_change_no_product(model, large):
    before = run(model.SerializeToString(), inputs(large))
    scale_rows(model.graph)
    after = run(model.SerializeToString(), inputs(large))
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert sum(node.op_type == "Div" for node in model.graph.node) == 1  # of the input that two products share


def test_a_large_row_costs_the_others_nothing(model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    quantize_graph(path, tmp_path / "rows.onnx")
    quantize_dynamic(model, tmp_path / "plain.onnx", weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    exact = run(str(path), inputs(300.0))

    def error(name: str) -> float:
        found = run(str(tmp_path / name), inputs(300.0))
        return max(float(np.abs(f[1:] - e[1:]).max()) for f, e in zip(found, exact, strict=True))

    assert error("rows.onnx") < 0.3 < 3.0 < error("plain.onnx")


def test_the_source_is_left_alone(model, tmp_path):
    path = Path(tmp_path, "model.onnx")
    onnx.save(model, path)
    before = path.read_bytes()
    quantize_graph(path, tmp_path / "int8.onnx")
    assert path.read_bytes() == before


def test_a_graph_without_weights_is_left_alone():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "none", [value], [result])
    before = graph.SerializeToString()
    scale_rows(graph)
    assert graph.SerializeToString() == before


# Where rows are left alone


def layer() -> onnx.ModelProto:
    """A layer as it is exported: queries, keys and values; attention; the product after it; a feed-forward part."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(0, 0.2, (WIDE, WIDE)).astype(np.float32), name)
        for name in ("wq", "wk", "wv", "wo", "up", "down")
    ]
    bias = numpy_helper.from_array(rng.normal(0, 0.1, WIDE).astype(np.float32), "bias")
    shape = numpy_helper.from_array(np.array([0, 0, WIDE]), "shape")
    make = helper.make_node
    nodes = [
        node
        for n in "qkv"
        for node in (
            make("MatMul", ["x", f"w{n}"], [n]),
            make("Add", ["bias", n], [f"{n}_biased"]),
            make("Reshape", [f"{n}_biased", "shape"], [f"{n}_shaped"]),
        )
    ]
    nodes += [
        make("Attention", ["q_shaped", "k_shaped", "v_shaped"], ["context"], q_num_heads=4, kv_num_heads=4),
        make("Reshape", ["context", "shape"], ["context_shaped"]),
        make("MatMul", ["context_shaped", "wo"], ["attended"]),
        make("MatMul", ["attended", "up"], ["wide"]),
        make("BiasGelu", ["wide", "bias"], ["activated"], domain="com.microsoft"),
        make("MatMul", ["activated", "down"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", WIDE]) for name in "xy")
    graph = helper.make_graph(nodes, "layer", [x], [y], [*weights, bias, shape])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)


def test_rows_are_scaled_in_feed_forward_layers_alone():
    model = layer()
    scale_rows(model.graph)
    products = {n.input[1]: n.input[0] for n in model.graph.node if n.op_type == "MatMul"}
    assert products == {
        "wq": "x",
        "wk": "x",
        "wv": "x",
        "wo": "context_shaped",
        "up": "attended/row_scaled",
        "down": "activated/row_scaled",
    }
    assert [n.input[0] for n in model.graph.node if n.op_type == "Abs"] == ["attended"]  # a GELU is hardly negative


@pytest.mark.parametrize("level", [1, 0, -30])
def test_scaled_rows_after_a_gelu_change_no_product(level):
    """Also where all of a row is at the lowest that a GELU gives, or at 0."""
    model, x = layer(), np.random.default_rng(1).normal(size=(1, ROWS, WIDE)).astype(np.float32)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(level), "bias"))
    before = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    scale_rows(model.graph)
    after = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_scaled_rows_after_a_gelu_lie_between_minus_one_and_one():
    model = layer()
    scale_rows(model.graph)
    for name in ("activated", "attended"):
        model.graph.output.append(helper.make_tensor_value_info(f"{name}/row_scaled", TensorProto.FLOAT, None))
    x = np.random.default_rng(1).normal(-3, 2, size=(1, 50, WIDE)).astype(np.float32)
    for rows in ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[1:]:
        assert np.abs(rows).max() <= 1
