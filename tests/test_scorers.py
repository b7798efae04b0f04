"""What the relation scorers see and do not see, on encoders so small that nothing needs to be trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig

from rasid.config import HeadConfig, load_config
from rasid.decoding import LIKENESS
from rasid.errors import ConfigError
from rasid.inference import OnnxBackend
from rasid.modeling.checkpoint import TorchBackend
from rasid.modeling.export import export_fp32, quantize
from rasid.modeling.model import RasidConfig, RasidModel
from rasid.modeling.scorers import SCORERS, BiaffineScorer, ContextScorer, MarkerScorer
from rasid.schema import Ontology
from rasid.settings import ModelSettings, TextSettings

HIDDEN, WORDS = 16, 12
ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
        },
    }
)
KINDS = [("context", 0), ("context", 1), ("biaffine", 0), ("biaffine", 1), ("markers", 1), ("markers", 2)]


def make(scorer: str, layers: int, ontology: Ontology = ONTOLOGY) -> RasidModel:
    """A model with weights so large that everything matters."""
    torch.manual_seed(0)
    bert = BertConfig(
        vocab_size=50,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    settings = ModelSettings(ontology=ontology, text=TextSettings(max_pieces=64, overlap=8)).model_dump(mode="json")
    heads = HeadConfig(scorer=scorer, relation_layers=layers, relation_size=8)
    model = RasidModel(RasidConfig(encoder=bert.to_dict(), settings=settings, **heads.model_dump())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=KINDS, ids=lambda k: f"{k[0]}-{k[1]}")
def head(request: pytest.FixtureRequest) -> Any:
    return make(*request.param).relation_head


@pytest.fixture
def markers() -> MarkerScorer:
    return make("markers", 2).relation_head


@pytest.fixture
def states() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(1, WORDS, HIDDEN)


ENTITIES = torch.tensor([[0, 1, 2], [0, 4, 4], [0, 6, 7], [0, 10, 11]])
PAIRS = torch.tensor([[0, 1, 0], [0, 2, 3], [1, 2, 1], [2, 3, 2], [0, 3, 1]])
TYPES = (1, 3, 1, 3)  # first tags of the entities


def tags_of(entities: torch.Tensor, types: tuple[int, ...] = TYPES, windows: int = 1) -> torch.Tensor:
    tags = torch.zeros(windows, WORDS, dtype=torch.int64)
    for (window, first, last), tag in zip(entities.tolist(), types, strict=True):
        tags[window, first : last + 1] = tag + 1
        tags[window, first] = tag
    return tags


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_pairs_and_windows_do_not_depend_on_one_another(head: Any, states: torch.Tensor) -> None:
    """Windows with many entities, none and few, one of them padded."""
    alone = head(states, tags_of(ENTITIES), ENTITIES, PAIRS)
    assert alone.shape == (5, 2, 2)
    other = torch.tensor([[2, 0, 0], [2, 3, 5]])
    tags = tags_of(torch.cat([ENTITIES, other]), (*TYPES, 1, 1), windows=3)
    batch = torch.cat([states, torch.randn(2, WORDS, HIDDEN)])
    mask = torch.arange(WORDS) < torch.tensor([WORDS, 2, 7])[:, None]
    entities, pairs = torch.cat([ENTITIES, other]), torch.cat([PAIRS, torch.tensor([[4, 5, 0]])])
    together = head(batch, tags, entities, pairs, mask)
    assert close(together[:5], alone)
    last = head(batch[2:, :7], tags[2:, :7], other - torch.tensor([2, 0, 0]), torch.tensor([[0, 1, 0]]))
    assert close(together[5:], last)
    batch[1:, 7:] = 9.0
    assert close(head(batch, tags, entities, pairs, mask), together)
    for p in range(5):
        assert close(head(states, tags_of(ENTITIES), ENTITIES, PAIRS[p : p + 1]), alone[p : p + 1])


@torch.inference_mode()
@pytest.mark.parametrize("windows", [1, 2])
def test_no_entities(head: Any, windows: int) -> None:
    tags, none = torch.zeros(windows, WORDS, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int64)
    assert head(torch.randn(windows, WORDS, HIDDEN), tags, none, none).shape == (0, 2, 2)


@torch.inference_mode()
def test_direction_and_likeness_count(head: Any, states: torch.Tensor) -> None:
    logits = head(states, tags_of(ENTITIES), ENTITIES, PAIRS)
    assert not close(logits[:, 0, 0], logits[:, 1, 0])
    assert torch.equal(logits[:, 0, 1], logits[:, 1, 1])  # symmetric
    alike = PAIRS.clone()
    alike[:, 2] = (alike[:, 2] + 1) % LIKENESS
    assert not close(head(states, tags_of(ENTITIES), ENTITIES, alike), logits)


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0]}-{k[1]}")
def test_what_a_word_between_two_entities_changes(kind: tuple[str, int], states: torch.Tensor) -> None:
    head = make(*kind).relation_head
    before = head(states, tags_of(ENTITIES), ENTITIES, PAIRS)
    states[0, 8] = torch.randn(HIDDEN)  # between the last two entities
    after = head(states, tags_of(ENTITIES), ENTITIES, PAIRS)
    changed = [not close(a, b) for a, b in zip(after, before, strict=True)]
    if kind == ("biaffine", 0):
        assert changed == [False] * 5
    elif kind == ("context", 0):
        assert changed == [False, False, False, True, True]
    else:  # all see all words
        assert changed == [True] * 5


@torch.inference_mode()
def test_biaffine_scores_one_by_one(states: torch.Tensor) -> None:
    head: Any = make("biaffine", 0).relation_head
    assert isinstance(head, BiaffineScorer)
    head.symmetric = (False, False)
    found = head(states, tags_of(ENTITIES), ENTITIES, PAIRS)
    x = head.norm(states + head.tag_embedding(tags_of(ENTITIES)))[0]
    ends = [torch.cat([x[first], x[last], x[first - 1]]) for _, first, last in ENTITIES.tolist()]
    form = head.bilinear.weight.view(2, 8, 8)
    for p, (i, j, alike) in enumerate(PAIRS.tolist()):
        words, steps = int(ENTITIES[j, 1] - ENTITIES[i, 2]) - 1, j - i
        for direction, (a, b) in enumerate(((i, j), (j, i))):
            h, t = F.gelu(head.head(ends[a])), F.gelu(head.tail(ends[b]))
            for r in range(2):
                expected = t @ form[r] @ h + head.of_head(h)[r] + head.of_tail(t)[r] + head.likeness.weight[alike, r]
                expected += head.word_distance.weight[sum(words >= n for n in head.WORD_BUCKETS) + 9 * direction, r]
                expected += head.entity_distance.weight[sum(steps >= n for n in head.ENTITY_BUCKETS) + 7 * direction, r]
                torch.testing.assert_close(found[p, direction, r], expected, rtol=1e-4, atol=1e-5)


# Markers


@torch.inference_mode()
def test_words_do_not_see_markers(markers: MarkerScorer, states: torch.Tensor) -> None:
    tags = tags_of(ENTITIES)
    plain: Any = make("context", 2).relation_head
    for part in ("layers", "tag_embedding", "norm"):
        getattr(plain, part).load_state_dict(getattr(markers, part).state_dict())
    expected, _ = plain.read(states, tags, ENTITIES, None)
    for number in (0, 1, 4):
        words, _ = markers.read(states, tags, ENTITIES[:number], None)
        assert words.shape == states.shape
        assert close(words, expected)


@torch.inference_mode()
def test_entities_do_not_see_each_others_markers(markers: MarkerScorer, states: torch.Tensor) -> None:
    tags = tags_of(ENTITIES)
    _, every = markers.read(states, tags, ENTITIES, None)
    assert every.shape == (4, 2 * HIDDEN)
    for n in range(4):
        assert close(markers.read(states, tags, ENTITIES[n : n + 1], None)[1][0], every[n])


@torch.inference_mode()
def test_two_markers_of_an_entity_see_each_other(markers: MarkerScorer, states: torch.Tensor) -> None:
    tags = tags_of(ENTITIES)
    _, before = markers.read(states, tags, ENTITIES, None)
    longer = ENTITIES.clone()
    longer[0, 2] = 3  # the tags stay
    _, after = markers.read(states, tags, longer, None)
    assert not close(after[0, :HIDDEN], before[0, :HIDDEN])  # the marker of the first word
    assert close(after[1:], before[1:])


@torch.inference_mode()
def test_markers_are_typed(markers: MarkerScorer, states: torch.Tensor) -> None:
    markers.tag_embedding.weight.zero_()  # so that no word tells the type
    _, before = markers.read(states, tags_of(ENTITIES), ENTITIES, None)
    _, after = markers.read(states, tags_of(ENTITIES, (3, 3, 1, 3)), ENTITIES, None)
    assert not close(after[0], before[0])
    assert close(after[1:], before[1:])


def test_gradients_reach_every_parameter(head: Any, states: torch.Tensor) -> None:
    head(states, tags_of(ENTITIES), ENTITIES, PAIRS).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-7 or name.endswith("key.bias"), name  # which changes no attention


# Export


@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] != "context"], ids=lambda k: f"{k[0]}-{k[1]}")
def test_graphs_equal_torch(kind: tuple[str, int], tmp_path: Path) -> None:
    model = make(*kind)
    fp32, int8 = tmp_path / "fp32", tmp_path / "int8"
    fp32.mkdir()
    int8.mkdir()
    export_fp32(model, fp32)
    quantize(fp32, int8)
    torch_backend, exact, small = TorchBackend(model), OnnxBackend(fp32), OnnxBackend(int8)
    random = np.random.default_rng(0)
    for words, number in ((1, 1), (5, 1), (5, 2), (30, 7), (60, 40), (40, 40)):
        states = random.normal(size=(words, HIDDEN)).astype(np.float32)
        bounds = np.linspace(0, words, number + 1).astype(np.int64)
        every = np.stack(np.triu_indices(number, 1), 1).astype(np.int64)
        pairs = np.column_stack([every, np.arange(len(every)) % LIKENESS])
        inputs = states, random.integers(0, 5, size=words), np.stack([bounds[:-1], bounds[1:] - 1], 1), pairs
        expected = torch_backend.relate(*inputs)
        assert expected.shape == (len(pairs), 2, 2)
        np.testing.assert_allclose(exact.relate(*inputs), expected, rtol=0, atol=1e-4)
        difference = np.abs(small.relate(*inputs) - expected).max(initial=0)
        assert difference < 0.1 * max(1.0, np.abs(expected).max(initial=0))


# Configs


def test_every_scorer_is_in_the_config() -> None:
    assert set(HeadConfig.model_fields["scorer"].annotation.__args__) == set(SCORERS)  # type: ignore[union-attr]
    assert SCORERS[HeadConfig().scorer] is ContextScorer


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("heads.scorer=markers", r"heads: .*the markers scorer takes relation_layers of 1 or more"),
        ("heads.scorer=bilinear", r"heads\.scorer: Input should be 'context', 'biaffine' or 'markers'"),
        ("heads.crf=maybe", r"heads\.crf: Input should be a valid boolean"),
        ("loss.adversarial=-1", r"loss\.adversarial: Input should be greater than or equal to 0"),
    ],
)
def test_bad_choice(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("base: random\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "run.yaml", [override])


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0]}-{k[1]}")
def test_ontology_without_relations(kind: tuple[str, int], states: torch.Tensor) -> None:
    head = make(*kind, ontology=Ontology.model_validate({"entity_types": ["UNIT", "PLACE"]})).relation_head
    none = torch.zeros(0, 3, dtype=torch.int64)
    assert head(states, tags_of(ENTITIES), ENTITIES, none).shape == (0, 2, 0)
