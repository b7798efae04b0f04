"""What is left of a trained model that is cut down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel

from rasid.errors import ConfigError
from rasid.modeling.checkpoint import create_model, load_checkpoint, load_torch_extractor
from rasid.modeling.model import last_layers
from rasid.modeling.pruning import keep_layers, narrow
from rasid.training.trainer import save_checkpoint

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


def bert(layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=layers, **SIZES)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def states(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(9)[None]).last_hidden_state


def test_kept_layers_are_spread_evenly_and_end_with_the_last() -> None:
    def kept(number: int) -> list[int]:
        encoder = bert(12)
        numbers = {id(layer): n for n, layer in enumerate(encoder.encoder.layer)}
        keep_layers(encoder, number)
        assert encoder.config.num_hidden_layers == number
        return [numbers[id(layer)] for layer in encoder.encoder.layer]

    assert kept(6) == [1, 3, 5, 7, 9, 11]
    assert kept(4) == [2, 5, 8, 11]
    assert kept(1) == [11]
    assert kept(12) == list(range(12))
    with pytest.raises(ConfigError, match="layers is 13, but the encoder has 12; lower it"):
        kept(13)


def test_units_that_do_nothing_go_first() -> None:
    """Half of the units give what the next layer does not read: without them a model says the same."""
    model, idle = bert(), torch.arange(0, 16, 2)
    for layer in model.encoder.layer:
        layer.output.dense.weight.data[:, idle] = 0
        layer.intermediate.dense.weight.data[idle] *= 9
    before = states(model)
    narrow(model, 8)
    torch.testing.assert_close(states(model), before, rtol=0, atol=1e-6)
    assert model.config.intermediate_size == 8
    assert [tuple(layer.intermediate.dense.weight.shape) for layer in model.encoder.layer] == [(8, 8)] * 2
    narrow(model, 7)
    assert not torch.allclose(states(model), before, atol=1e-3)


def test_a_unit_counts_by_what_goes_in_and_what_comes_out() -> None:
    model = bert(1)
    into, out = model.encoder.layer[0].intermediate.dense, model.encoder.layer[0].output.dense
    with torch.no_grad():
        into.weight[:] = 1
        out.weight[:] = 1
        into.weight[3], out.weight[:, 3] = 10, 0.01  # large in, small out
        into.weight[5], out.weight[:, 5] = 0.1, 100
    bias = into.bias.clone()
    narrow(model, 1)
    assert into.bias.tolist() == [bias[5].item()]
    assert (into.out_features, out.in_features) == (1, 1)


def test_as_wide_as_before_is_the_same() -> None:
    model = bert()
    before = states(model)
    narrow(model, 16)
    assert torch.equal(states(model), before)
    with pytest.raises(ConfigError, match="feed_forward is 17, but the encoder has 16; lower it"):
        narrow(model, 17)


def test_a_narrow_start_is_narrow_in_all_its_layers(
    configure: Callable[..., Any], debug_run: Path, tmp_path: Path
) -> None:
    model, tokenizer = create_model(configure(tmp_path, f"base={debug_run / 'base'}", "heads.relation_layers=1"))
    save_checkpoint(model, tokenizer, tmp_path / "start")
    run = configure(tmp_path, f"start={tmp_path / 'start'}", "heads.relation_layers=1", "layers=1", "feed_forward=24")
    student, tokenizer = create_model(run)
    save_checkpoint(student, tokenizer, tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved")
    assert loaded.config.encoder["intermediate_size"] == 24
    for layer in (*loaded.encoder.encoder.layer, *loaded.relation_head.layers):
        assert layer.intermediate.dense.weight.shape[0] == layer.output.dense.weight.shape[1] == 24
    assert load_torch_extractor(tmp_path / "saved")("وصل رتل إلى حلب").text == "وصل رتل إلى حلب"


def test_a_narrow_base_gives_narrow_layers_to_the_relation_head(
    configure: Callable[..., Any], debug_run: Path, tmp_path: Path
) -> None:
    options = (f"base={debug_run / 'base'}", "heads.relation_layers=1", "feed_forward=24")
    model, _ = create_model(configure(tmp_path, *options))
    assert model.relation_head.layers[0].intermediate.dense.weight.shape[0] == 24
    mine, theirs = model.relation_head.layers[0], last_layers(model.encoder, 1)[0]
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
