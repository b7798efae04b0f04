import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import set_seed

from rasid.checkpoint import create_model, load_checkpoint
from rasid.dataset import Collator, Unpredictable, window_examples
from rasid.encoding import TextEncoder
from rasid.errors import ModelError
from rasid.model import IGNORED, RasidModel
from rasid.records import read_articles
from rasid.training import save_checkpoint


@pytest.fixture(scope="module")
def created(debug_run: Path, configure: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A model with untrained heads, and its tokenizer."""
    set_seed(1)
    return create_model(configure(tmp_path_factory.mktemp("model"), f"base={debug_run / 'base'}"))


@pytest.fixture
def model(created: tuple) -> RasidModel:
    created[0].zero_grad()
    return created[0].eval()


@pytest.fixture(scope="module")
def examples(created: tuple, corpora: dict[str, Path]) -> list[dict[str, Any]]:
    """Windows of many sizes, the longest first."""
    model, tokenizer = created
    settings = model.config.model_settings()
    encoder = TextEncoder(tokenizer.backend_tokenizer, settings.text)
    articles = read_articles(corpora["dev"], settings.ontology)
    found = [e for a in articles for e in window_examples(a, encoder, settings, Unpredictable())]
    return sorted(found, key=lambda e: -e["length"])


@pytest.fixture
def collate(model: RasidModel) -> Collator:
    return Collator(model.config.model_settings().ontology, pad_id=1)


def test_round_trip_is_bitwise_and_safetensors_only(
    created: tuple, model: RasidModel, examples: list, collate: Collator, tmp_path: Path
) -> None:
    save_checkpoint(*created, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = load_checkpoint(tmp_path).eval()
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert not set(dict(again.named_buffers())) - set(dict(model.named_buffers()))
    assert again.config.model_settings() == model.config.model_settings()
    batch = collate(examples)
    with torch.inference_mode():
        before, after = model(**batch), again(**batch)
    for name in ("loss", "tag_logits", "proclitic_logits", "relation_logits"):
        assert torch.equal(before[name], after[name]), name


def test_pickled_weights_are_refused(created: tuple, model: RasidModel, tmp_path: Path) -> None:
    save_checkpoint(*created, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors; weights are read from safetensors only"):
        load_checkpoint(tmp_path)


def test_nothing_is_left_uninitialised(
    created: tuple, debug_run: Path, configure: Callable[..., Any], tmp_path: Path
) -> None:
    config = configure(tmp_path, f"base={debug_run / 'base'}")
    states = []
    for seed in (1, 1, 2):
        torch.rand(1000)  # leave other memory and another random state behind
        set_seed(seed)
        states.append(create_model(config)[0].state_dict())
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert changed == {"tag_head", "proclitic_head", "relation_head"}  # the encoder is the base's
    for name, value in first.items():
        assert value.isfinite().all(), name
        if name.startswith("encoder."):
            continue
        if value.ndim == 2:
            assert (value == 0).all() or 0.01 < value.std() < 0.05, name
        elif name.endswith("norm.weight"):
            assert (value == 1).all(), name
        elif name != "relation_head.out.bias":
            assert (value == 0).all(), name


def test_relations_start_out_rare(model: RasidModel, examples: list, collate: Collator) -> None:
    probabilities = model(**collate(examples)).relation_logits.sigmoid()
    assert 0.001 < probabilities.min() <= probabilities.max() < 0.1


def test_encoder_has_the_weights_of_the_base(model: RasidModel, debug_run: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(debug_run / "base" / "model.safetensors")
    assert len(base) > 30
    assert {n.removeprefix("encoder.") for n in model.state_dict() if n.startswith("encoder.")} == set(base)
    assert all(torch.equal(model.encoder.state_dict()[name], value) for name, value in base.items())


def test_config_keeps_no_path_of_the_base(created: tuple, debug_run: Path, tmp_path: Path) -> None:
    save_checkpoint(*created, tmp_path)
    assert str(debug_run) not in (tmp_path / "config.json").read_text()


def test_symmetric_relations_are_scored_alike_both_ways(model: RasidModel, examples: list, collate: Collator) -> None:
    ontology = model.config.model_settings().ontology
    logits = model(**collate(examples)).relation_logits.detach()
    assert any(r.symmetric for r in ontology.relation_types.values())
    for index, name in enumerate(ontology.relation_names):
        alike = torch.equal(logits[:, 0, index], logits[:, 1, index])
        assert alike is ontology.relation_types[name].symmetric, name


def test_states_and_losses_do_not_depend_on_the_batch(model: RasidModel, examples: list, collate: Collator) -> None:
    chosen = [examples[-1], examples[0]]
    assert chosen[0]["length"] < chosen[1]["length"] / 1.5
    both = collate(chosen)
    with torch.inference_mode():
        together = model(**both)
        states = model.encode(both["input_ids"], both["word_pieces"], both["attention_mask"])
        loss, pairs = 0.0, 0
        for row, example in enumerate(chosen):
            alone = collate([example])
            output = model(**alone)
            words = len(example["word_pieces"])
            # Without a mask, as the extractor encodes a window.
            expected = model.encode(alone["input_ids"], alone["word_pieces"])[0]
            torch.testing.assert_close(states[row, :words], expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(together.tag_logits[row, :words], output.tag_logits[0], rtol=0, atol=1e-5)
            mine = together.relation_logits[pairs : pairs + len(alone["pairs"])]
            torch.testing.assert_close(mine, output.relation_logits, rtol=0, atol=1e-5)
            pairs += len(alone["pairs"])
            loss += float(output.loss) * words
    assert pairs == len(both["pairs"]) > 50
    assert float(together.loss) == pytest.approx(loss / int((both["tags"] != IGNORED).sum()), abs=1e-5)


def test_all_pairs_are_scored_in_one_call(model: RasidModel, examples: list, collate: Collator) -> None:
    calls: list[torch.Size] = []
    handle = model.relation_head.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    batch = collate(examples)
    model(**batch)
    handle.remove()
    relations = len(model.config.model_settings().ontology.relation_names)
    assert calls == [(len(batch["pairs"]), 2, relations)]
    assert set(batch["entities"][:, 0].tolist()) == set(range(len(examples)))


def test_relation_logits_do_not_depend_on_the_other_pairs(model: RasidModel, examples: list, collate: Collator) -> None:
    batch = collate(examples[:1])
    with torch.inference_mode():
        states = model.encode(batch["input_ids"], batch["word_pieces"])
        entities = batch["entities"][:, :3]
        every = model.relation_head(states, batch["tags"], entities, batch["pairs"])
        for p in (0, len(every) // 2, len(every) - 1):
            one = model.relation_head(states, batch["tags"], entities, batch["pairs"][p : p + 1])
            torch.testing.assert_close(one[0], every[p], rtol=0, atol=1e-5)


def test_impossible_relations_cost_nothing(model: RasidModel, examples: list, collate: Collator) -> None:
    ontology = model.config.model_settings().ontology
    batch = collate(examples)
    before = model(**batch).loss
    types = batch["entities"][:, 3].tolist()
    for p, pair in enumerate(batch["pairs"].tolist()):
        for direction, (head, tail) in enumerate((pair, pair[::-1])):
            ends = ontology.entity_types[types[head]], ontology.entity_types[types[tail]]
            for index, name in enumerate(ontology.relation_names):
                if not ontology.allows(name, *ends):
                    assert batch["relations"][p, direction, index] == 0
                    batch["relations"][p, direction, index] = 1
    assert torch.equal(model(**batch).loss, before)


def test_gradients_reach_every_parameter(created: tuple, examples: list, collate: Collator) -> None:
    model = copy.deepcopy(created[0])
    with torch.no_grad():
        for parameter in model.parameters():  # a layer may start at a point that lets no gradient through
            parameter += 0.01 * torch.randn_like(parameter)
    model(**collate(examples)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_windows_without_entities_or_pairs(model: RasidModel, examples: list, collate: Collator) -> None:
    empty = examples[-1] | {"entities": [], "links": [], "proclitics": [IGNORED] * len(examples[-1]["tags"])}
    lone = examples[-1] | {"entities": examples[-1]["entities"][:1], "links": []}
    for chosen in ([empty], [lone], [empty, lone]):
        output = model(**collate(chosen))
        assert output.loss.isfinite()
        assert output.relation_logits.shape == (0, 2, 12)
