import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel, set_seed

from rasid.config import HeadConfig
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, ModelError
from rasid.modeling.checkpoint import create_model, load_checkpoint
from rasid.modeling.model import IGNORED, RasidConfig, RasidModel, last_layers
from rasid.modeling.scorers import ContextScorer
from rasid.records import read_articles
from rasid.training.dataset import Collator, Unpredictable, window_examples
from rasid.training.trainer import save_checkpoint


@pytest.fixture(scope="module")
def create(debug_run: Path, configure: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """`create(layers, *options)`: a model with untrained heads and so many layers for relations, and its tokenizer."""

    def make(layers: int, *more: str) -> tuple:
        set_seed(1)
        options = (f"base={debug_run / 'base'}", f"heads.relation_layers={layers}", *more)
        return create_model(configure(tmp_path_factory.mktemp("model"), *options))

    return make


KINDS = {
    "context": (0,),
    "layers": (1,),
    "crf": (0, "heads.crf=true"),
    "biaffine": (0, "heads.scorer=biaffine"),
    "markers": (1, "heads.scorer=markers"),
}


@pytest.fixture(scope="module", params=KINDS)
def created(request: pytest.FixtureRequest, create: Callable) -> tuple:
    return create(*KINDS[request.param])


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


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_uninitialised(
    kind: str, debug_run: Path, configure: Callable[..., Any], tmp_path: Path
) -> None:
    layers, *more = KINDS[kind]
    config = configure(tmp_path, f"base={debug_run / 'base'}", f"heads.relation_layers={layers}", *more)
    states = []
    for seed in (1, 1, 2):
        torch.rand(1000)  # leave other memory and another random state behind
        set_seed(seed)
        states.append(create_model(config)[0].state_dict())
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    base = ("encoder.", "relation_head.layers.")
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    heads = {"tag_head", "proclitic_head", "relation_head"} | ({"transitions"} if kind == "crf" else set())
    assert {name.split(".")[0] for name in changed} == heads
    assert not [name for name in changed if name.startswith(base)]
    for name, value in first.items():
        assert value.isfinite().all(), name
        if name.startswith(base):
            continue
        if value.ndim == 2:
            assert (value == 0).all() or 0.01 < value.std() < 0.05, name
        elif name.endswith("norm.weight"):
            assert (value == 1).all(), name
        elif name not in ("relation_head.out.bias", "relation_head.of_head.bias"):
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
        together_states = model.encode(both["input_ids"], both["word_pieces"], both["attention_mask"])
        loss, pairs = 0.0, 0
        for row, example in enumerate(chosen):
            alone = collate([example])
            output = model(**alone)
            words = len(example["word_pieces"])
            # Without a mask, as the extractor encodes a window.
            alone_states = model.encode(alone["input_ids"], alone["word_pieces"])
            for states, expected in zip(together_states, alone_states, strict=True):  # to tag, to relate
                torch.testing.assert_close(states[row, :words], expected[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(together.tag_logits[row, :words], output.tag_logits[0], rtol=0, atol=1e-5)
            mine = together.relation_logits[pairs : pairs + len(alone["pairs"])]
            torch.testing.assert_close(mine, output.relation_logits, rtol=0, atol=1e-5)
            # Without a mask again, as the extractor relates.
            bare = model.relation_head(alone_states[1], alone["tags"], alone["entities"][:, :3], alone["pairs"])
            torch.testing.assert_close(mine, bare, rtol=0, atol=1e-5)
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
        _, states = model.encode(batch["input_ids"], batch["word_pieces"])
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
    for p, pair in enumerate(batch["pairs"][:, :2].tolist()):
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


# Layers of the relation head's own


@pytest.fixture(params=[1, 2])
def layered(request: pytest.FixtureRequest, create: Callable) -> RasidModel:
    return create(request.param)[0].eval()


def test_relation_layers_start_as_copies_of_the_encoders_last_ones(layered: RasidModel, debug_run: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(debug_run / "base" / "model.safetensors")
    number = layered.config.relation_layers
    assert len(layered.relation_head.layers) == number
    for index, layer in enumerate(layered.relation_head.layers):
        state = layer.state_dict()
        assert len(state) == 16
        below = f"encoder.layer.{2 - number + index}."
        assert {below + name for name in state} == {name for name in base if name.startswith(below)}
        assert all(torch.equal(value, base[below + name]) for name, value in state.items())
    first, last = layered.encoder.encoder.layer
    assert not torch.equal(first.attention.self.query.weight, last.attention.self.query.weight)


def test_relation_layers_are_not_the_encoders(layered: RasidModel) -> None:
    encoder = {p.data_ptr() for p in layered.encoder.parameters()}
    assert len(encoder) > 30
    assert not encoder & {p.data_ptr() for p in layered.relation_head.parameters()}


def test_without_relation_layers_both_heads_read_the_same(create: Callable, examples: list) -> None:
    model = create(0)[0].eval()
    assert len(model.relation_head.layers) == 0
    batch = Collator(model.config.model_settings().ontology, pad_id=1)(examples[:1])
    to_tag, to_relate = model.encode(batch["input_ids"], batch["word_pieces"])
    assert torch.equal(to_tag, to_relate)


def test_relations_read_the_states_below_the_copied_layers(layered: RasidModel, examples: list) -> None:
    """So that the copies go on where the encoder's layers did, and all of a relation's depth is the base's."""
    batch = Collator(layered.config.model_settings().ontology, pad_id=1)(examples[:1])
    with torch.inference_mode():
        to_tag, to_relate = layered.encode(batch["input_ids"], batch["word_pieces"])
        hidden = layered.encoder(batch["input_ids"], output_hidden_states=True).hidden_states
        words = batch["word_pieces"][0]
        assert len(hidden) == 3
        assert torch.equal(to_tag[0], hidden[2][0, words])
        assert torch.equal(to_relate[0], hidden[2 - layered.config.relation_layers][0, words])


def test_each_head_has_its_own_upper_layers(layered: RasidModel, examples: list) -> None:
    batch = Collator(layered.config.model_settings().ontology, pad_id=1)(examples)
    number = layered.config.relation_layers

    def outputs() -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            output = layered(**batch)
        return output.tag_logits, output.proclitic_logits, output.relation_logits

    def disturb(layers: Any) -> None:
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter += 0.1 * torch.randn_like(parameter)

    before = outputs()
    disturb(layered.relation_head.layers)
    after = outputs()
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    assert not torch.allclose(after[2], before[2], atol=1e-3)
    disturb(layered.encoder.encoder.layer[-number:])
    last = outputs()
    assert torch.equal(last[2], after[2])
    assert not torch.allclose(last[0], after[0], atol=1e-3)


def test_words_of_relations_see_one_another_but_no_padding(layered: RasidModel, examples: list) -> None:
    """A word far from a pair changes its logits through the layers; one of padding does not."""
    batch = Collator(layered.config.model_settings().ontology, pad_id=1)([examples[0], examples[-1]])
    real = batch["tags"][1] != IGNORED
    words = int(real.sum())
    assert 3 < words < len(real) - 3
    entities, pairs = torch.tensor([[1, 0, 0], [1, 1, 1]]), torch.tensor([[0, 1, 0]])
    with torch.inference_mode():
        _, states = layered.encode(batch["input_ids"], batch["word_pieces"], batch["attention_mask"])

        def logits(changed: int | None) -> torch.Tensor:
            other = states.clone()
            if changed is not None:
                other[1, changed] = torch.randn(states.shape[-1])
            return layered.relation_head(
                other, batch["tags"].clamp(min=0), entities, pairs, mask=batch["tags"] != IGNORED
            )

        assert torch.equal(logits(words), logits(None))
        assert torch.equal(logits(len(real) - 1), logits(None))
        assert not torch.equal(logits(words - 1), logits(None))


def test_more_relation_layers_than_the_encoder_has(create: Callable) -> None:
    message = r"heads\.relation_layers is 3, but the encoder has 2 layers; lower it"
    with pytest.raises(ConfigError, match=message):
        create(3)


def test_relation_layers_of_another_kind_of_encoder() -> None:
    encoder = DistilBertModel(DistilBertConfig(vocab_size=9, dim=8, n_layers=2, n_heads=2, hidden_dim=8))
    assert len(last_layers(encoder, 0)) == 0
    with pytest.raises(ConfigError, match=r"layers of a distilbert encoder .* set heads\.relation_layers to 0"):
        last_layers(encoder, 1)


def test_a_checkpoint_from_before_there_was_a_choice_of_heads(create: Callable, tmp_path: Path) -> None:
    save_checkpoint(*create(0), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("relation_layers", "crf", "scorer"):
        del config[key]
    del config["settings"]["transitions"]
    path.write_text(json.dumps(config), encoding="utf-8")
    model = load_checkpoint(tmp_path)
    assert len(model.relation_head.layers) == 0
    assert isinstance(model.relation_head, ContextScorer)
    assert model.transitions is None
    assert model.model_settings().transitions is None
    assert RasidConfig().heads() == HeadConfig()
