"""Rewriting ONNX graphs into what ONNX Runtime computes fastest; the results are the same up to rounding."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

ATTENTION = "rasid_export"  # the attention implementation under which a model is to be exported
OPSET = 23  # the first with an operator for attention; the exporter writes older ones
_DOMAIN = "rasid"  # stands for the default one, in which the exporter knows no such operator
_LAST = "last_axis"


class _Attention(torch.autograd.Function):
    """Attention of queries, keys and values [1, S, heads * D] as one operator; a mask is added to the scores."""

    @staticmethod
    def forward(
        _: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, kv_heads: int, scale: float, *mask: Tensor
    ) -> Tensor:
        parts = ((query, heads), (key, kv_heads), (value, kv_heads))
        q, k, v = (x.view(*x.shape[:2], n, -1).transpose(1, 2) for x, n in parts)
        context = nn.functional.scaled_dot_product_attention(
            q, k, v, mask[0] if mask else None, scale=scale, enable_gqa=heads != kv_heads
        )
        return context.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, kv_heads: int, scale: float, *mask: Any) -> Any:
        options = {"q_num_heads_i": heads, "kv_num_heads_i": kv_heads, "scale_f": scale}
        return g.op(f"{_DOMAIN}::Attention", query, key, value, *mask, **options).setType(query.type())


def _attend(
    _: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **__: Any
) -> tuple[Tensor, None]:
    """What `transformers` calls with queries, keys and values [1, heads, S, D] of a window; gives [1, S, heads, D]."""
    heads, kv_heads, size = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    flat = (x.transpose(1, 2).reshape(1, -1, int(x.shape[1]) * size) for x in (query, key, value))
    mask = () if attention_mask is None else (attention_mask,)
    context = _Attention.apply(*flat, heads, kv_heads, float(scaling), *mask)  # type: ignore[no-untyped-call]
    return context.reshape(1, -1, heads, size), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def declare_operators(model: onnx.ModelProto) -> None:
    """Make attention written under `ATTENTION` the standard's, and declare the sets of operators that are in use."""
    for node in model.graph.node:
        node.domain = "" if node.domain == _DOMAIN else node.domain
    versions = {"": OPSET} | {node.domain: 1 for node in model.graph.node if node.domain}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in versions.items())
    model.ir_version = helper.find_min_ir_version_for([model.opset_import[0]])


def split_norms(graph: onnx.GraphProto) -> None:
    """Rewrite each normalisation of the last axis: centre, divide by the root mean square, add the bias.

    In ONNX Runtime 1.32 the operator for all of it, and the one that adds a residual too, take five times as long: a
    fifth of a window's time. In versions up to 1.29 they are fast, and what this costs there is 1 to 4 % of it.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "LayerNormalization" or options.get("axis", -1) != -1:
            nodes.append(node)
            continue
        (x, weight, *bias), y = node.input, node.output[0]
        mean, centred, scaled = (f"{y}/{part}" for part in ("mean", "centred", "scaled"))
        result = scaled if bias else y
        nodes += [
            helper.make_node("ReduceMean", [x, _LAST], [mean], keepdims=1),
            helper.make_node("Sub", [x, mean], [centred]),
            helper.make_node("SimplifiedLayerNormalization", [centred, weight], [result], **options),
        ]
        if bias:
            nodes.append(helper.make_node("Add", [scaled, *bias], [y]))
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), _LAST))
        del graph.node[:]
        graph.node.extend(nodes)
