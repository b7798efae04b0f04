"""A smaller encoder out of a trained one, for a student to start from: fewer layers, narrower feed-forward parts."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from rasid.errors import ConfigError
from rasid.modeling.model import encoder_layers


def keep_layers(encoder: PreTrainedModel, number: int) -> None:
    """Cut an encoder of BERT's kind down to some of its layers, evenly spaced, the last one among them.

    Raises:
        ConfigError: if it has fewer, or is of another kind.
    """
    layers = encoder_layers(encoder)
    if number > len(layers):
        raise ConfigError(f"layers is {number}, but the encoder has {len(layers)}; lower it")
    chosen = [(n + 1) * len(layers) // number - 1 for n in range(number)]
    encoder.encoder.layer = nn.ModuleList(layers[i] for i in chosen)
    encoder.config.num_hidden_layers = number


def narrow(encoder: PreTrainedModel, size: int, others: Iterable[nn.Module] = ()) -> None:
    """Cut the feed-forward part of each layer of an encoder of BERT's kind down to its largest units.

    A unit is as large as the product of the norms of its weights in and out (Li et al. 2017,
    https://arxiv.org/abs/1608.08710).

    Args:
        encoder: The layers are changed in place.
        size: Units to keep in each.
        others: Further layers of the same kind, such as those of the relation head.

    Raises:
        ConfigError: if it has fewer units, or is of another kind.
    """
    layers = encoder_layers(encoder)
    if size > encoder.config.intermediate_size:
        raise ConfigError(f"feed_forward is {size}, but the encoder has {encoder.config.intermediate_size}; lower it")
    with torch.no_grad():
        for layer in (*layers, *others):
            into, out = layer.intermediate.dense, layer.output.dense
            kept = (into.weight.norm(dim=1) * out.weight.norm(dim=0)).topk(size).indices.sort().values
            into.weight, into.bias = nn.Parameter(into.weight[kept]), nn.Parameter(into.bias[kept])
            out.weight = nn.Parameter(out.weight[:, kept])
            into.out_features = out.in_features = size
    encoder.config.intermediate_size = size
