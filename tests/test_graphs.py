"""What graphs are rewritten into gives the same."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers import AttentionInterface, BertConfig, BertModel

from rasid.modeling.graphs import ATTENTION, declare_operators, split_norms

HEADS, SIZE = 4, 8


def run(model: onnx.ModelProto, **inputs: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, inputs)[0]


# Normalisation


def norm(options: dict[str, Any], shape: list[int], inputs: list[str]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(1, 0.3, shape).astype(np.float32), name) for name in inputs]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "n", 3, 8]) for name in "xy")
    node = helper.make_node("LayerNormalization", ["x", *inputs], ["y"], **options)
    graph = helper.make_graph([node], "norm", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("options", [{}, {"axis": -1, "epsilon": 1e-12}, {"epsilon": 0.5}, {"axis": 2}])
@pytest.mark.parametrize("inputs", [["weight"], ["weight", "bias"]])
def test_split_normalisations_give_the_same(options: dict[str, Any], inputs: list[str]) -> None:
    model = norm(options, [3, 8] if options.get("axis") == 2 else [8], inputs)
    x = np.random.default_rng(1).normal(2, 3, (1, 5, 3, 8)).astype(np.float32)
    before = run(model, x=x)
    split_norms(model.graph)
    np.testing.assert_allclose(run(model, x=x), before, rtol=0, atol=1e-5)
    assert len(model.graph.node) == (1 if options.get("axis") == 2 else 2 + len(inputs))  # of other axes: left alone


# Attention


class Attending(nn.Module):
    """What a layer of `transformers` does, under one implementation of attention."""

    def __init__(self, implementation: str):
        super().__init__()
        self.attend = AttentionInterface()[implementation]
        self.is_causal = False
        self.num_key_value_groups = 1  # read by implementations that repeat keys

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        context, _ = self.attend(self, query, key, value, mask, scaling=0.3, dropout=0.0)
        return context.flatten(2)


def exported(path: Any, *inputs: Tensor) -> onnx.ModelProto:
    names = ["query", "key", "value", "mask"][: len(inputs)]
    axes = {name: {2: "words"} for name in names[:3]} | {name: {2: "words", 3: "words"} for name in names[3:]}
    torch.onnx.export(
        Attending(ATTENTION),
        inputs,
        str(path),
        input_names=names,
        output_names=["context"],
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )
    model = onnx.load(path)
    declare_operators(model)
    return model


def vectors(words: int, heads: int = HEADS, seed: int = 0) -> Tensor:
    return torch.randn(1, heads, words, SIZE, generator=torch.Generator().manual_seed(seed))


def far_apart(words: int) -> Tensor:
    """A mask that keeps words apart that are further than 3 from each other, as layers with local attention have it."""
    places = torch.arange(words)
    return torch.zeros(1, 1, words, words).masked_fill((places[:, None] - places).abs() > 3, -1e9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning")
def test_exported_attention_is_that_of_torch_at_any_length(tmp_path: Any, masked: bool, kv_heads: int) -> None:
    def inputs(words: int) -> list[Tensor]:
        parts = [vectors(words), vectors(words, kv_heads, 1), vectors(words, kv_heads, 2)]
        return [*parts, far_apart(words)] if masked else parts

    model = exported(tmp_path / "attention.onnx", *inputs(9))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("Attention") == 1
    reference = Attending("sdpa")
    reference.num_key_value_groups = HEADS // kv_heads
    for words in (9, 1, 40):
        given = inputs(words)
        names = ["query", "key", "value", "mask"]
        found = run(model, **{name: x.numpy() for name, x in zip(names, given, strict=False)})
        assert found.shape == (1, words, HEADS * SIZE)
        np.testing.assert_allclose(found, reference(*given).numpy(), rtol=0, atol=1e-5)


def test_a_model_computes_the_same_under_it() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    pieces = torch.arange(20)[None]
    with torch.no_grad():
        before = model(pieces).last_hidden_state
        model.set_attn_implementation(ATTENTION)
        after = model(pieces).last_hidden_state
    assert model.config._attn_implementation == ATTENTION
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
