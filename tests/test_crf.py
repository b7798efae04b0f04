"""Tags as a sequence: the loss and the probabilities of a linear-chain CRF against all sequences counted one by one."""

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, PreTrainedTokenizerFast

from rasid.decoding import (
    Span,
    allowed_transitions,
    best_tags,
    chain_probabilities,
    decode_entities,
    find_spans,
    log_softmax,
    span_score,
)
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, ModelError
from rasid.inference import Extractor
from rasid.modeling.checkpoint import load_torch_extractor
from rasid.modeling.crf import ILLEGAL, TagTransitions
from rasid.modeling.export import export_fp32
from rasid.modeling.model import IGNORED, RasidConfig, RasidModel
from rasid.schema import Ontology
from rasid.settings import ModelSettings, TextSettings, load_settings, shipped_model
from rasid.text import split_words
from rasid.training import distillation
from rasid.training.trainer import save_checkpoint

ONTOLOGY = Ontology.model_validate({"entity_types": ["UNIT", "PLACE"]})
TAGS = len(ONTOLOGY.tags)
OUT, B_UNIT, I_UNIT, B_PLACE, I_PLACE = range(TAGS)
SEEDS = range(4)


def crf(seed: int = 0) -> TagTransitions:
    torch.manual_seed(seed)
    module = TagTransitions(TAGS)
    torch.nn.init.normal_(module.learned.weight)
    return module


def score(logits: np.ndarray, scores: np.ndarray, tags: tuple[int, ...], before: int = TAGS) -> float:
    """Of one sequence of tags after the tag `before`, or at the start of a paragraph."""
    rows = (before, *tags[:-1])
    return float(sum(logits[w, t] + scores[row, t] for w, (row, t) in enumerate(zip(rows, tags, strict=True))))


def every_sequence(words: int) -> list[tuple[int, ...]]:
    return list(product(range(TAGS), repeat=words))


def log_likelihoods(logits: np.ndarray, scores: np.ndarray, before: int = TAGS) -> dict[tuple[int, ...], float]:
    every = {tags: score(logits, scores, tags, before) for tags in every_sequence(len(logits))}
    total = np.logaddexp.reduce(list(every.values()))
    return {tags: value - total for tags, value in every.items()}


def parts(module: TagTransitions, logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return logits.double().numpy(), module.scores().detach().double().numpy()


# The loss


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("tags", "starts"),
    [
        ([OUT], [1]),
        ([B_PLACE], [1]),
        ([B_UNIT, I_UNIT, OUT, B_PLACE], [1, 0, 0, 0]),
        ([B_UNIT, I_UNIT, B_UNIT, OUT], [1, 0, 1, 0]),  # two paragraphs
        ([OUT, OUT, OUT], [1, 1, 1]),
        ([I_PLACE, I_PLACE, OUT], [1, 0, 0]),  # the window cuts an entity
        ([I_UNIT, B_PLACE, I_PLACE], [1, 1, 0]),
        ([B_UNIT, I_PLACE], [1, 0]),  # illegal, and dear
    ],
)
def test_loss_is_that_of_all_sequences(tags: list[int], starts: list[int], seed: int) -> None:
    module, logits = crf(seed), 2 * torch.randn(1, len(tags), TAGS)
    values, scores = parts(module, logits[0])
    bounds = [*np.flatnonzero(starts), len(tags)]
    expected = 0.0
    for first, after in pairwise(bounds):
        inside = first == 0 and tags[0] in (I_UNIT, I_PLACE)
        likelihoods = log_likelihoods(values[first:after], scores, tags[0] if inside else TAGS)
        expected -= likelihoods[tuple(tags[first:after])]
    found = module(logits, torch.tensor([tags]), torch.tensor([starts]))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_illegal_transitions_are_all_but_impossible() -> None:
    module, allowed = crf(), torch.from_numpy(allowed_transitions(TAGS))
    added = module.scores() - module.learned.weight
    torch.testing.assert_close(added, torch.where(allowed, 0.0, ILLEGAL))


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_of_uncertain_tags_is_what_is_expected_under_them(seed: int) -> None:
    module, logits = crf(seed), torch.randn(1, 3, TAGS)
    targets = torch.randn(1, 3, TAGS).softmax(-1)
    likelihoods = log_likelihoods(*parts(module, logits[0]))
    chances = targets[0].double().numpy()
    expected = -sum(np.prod([chances[w, t] for w, t in enumerate(tags)]) * x for tags, x in likelihoods.items())
    found = module(logits, torch.zeros(1, 3, dtype=torch.int64), targets=targets)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_certain_targets_are_the_same_as_tags() -> None:
    module, logits = crf(), torch.randn(2, 6, TAGS)
    tags = torch.tensor([[OUT, B_UNIT, I_UNIT, OUT, IGNORED, IGNORED], [B_PLACE, I_PLACE, OUT, B_UNIT, OUT, OUT]])
    starts = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0]])
    certain = torch.nn.functional.one_hot(tags.clamp(min=0), TAGS) * (tags >= 0)[..., None]
    torch.testing.assert_close(module(logits, tags, starts, certain.float()), module(logits, tags, starts))


def test_loss_of_a_batch_is_the_sum_of_its_windows_and_padding_is_worth_nothing() -> None:
    module, logits = crf(), torch.randn(3, 7, TAGS, requires_grad=True)
    lengths = (7, 1, 4)
    tags, starts = torch.full((3, 7), IGNORED), torch.zeros(3, 7, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tags[row, :length] = torch.tensor([B_UNIT, I_UNIT, OUT, B_PLACE, I_PLACE, I_PLACE, OUT])[:length]
        starts[row, [0, 3][: 1 + (length > 3)]] = 1
    together = module(logits, tags, starts)
    alone = sum(
        module(logits[row : row + 1, :n], tags[row : row + 1, :n], starts[row : row + 1, :n])
        for row, n in enumerate(lengths)
    )
    torch.testing.assert_close(together, alone)
    together.backward()
    for row, length in enumerate(lengths):
        assert (logits.grad[row, length:] == 0).all()
        assert (logits.grad[row, :length].abs().sum(-1) > 0).all()
    with torch.no_grad():
        wild = torch.where((tags >= 0)[..., None], logits, 1e4 * torch.randn_like(logits))
    torch.testing.assert_close(module(wild, tags, starts), together)


def test_paragraphs_are_sequences_of_their_own() -> None:
    module, logits = crf(), torch.randn(1, 4, TAGS)
    tags = torch.tensor([[OUT, B_UNIT, OUT, OUT]])
    two = module(logits, tags, torch.tensor([[1, 0, 1, 0]]))
    torch.testing.assert_close(two, module(logits[:, :2], tags[:, :2]) + module(logits[:, 2:], tags[:, 2:]))
    torch.testing.assert_close(module(logits, tags), module(logits, tags, torch.tensor([[1, 0, 0, 0]])))
    assert not torch.allclose(two, module(logits, tags))


def test_loss_under_autocast_is_that_of_full_precision() -> None:
    module, logits, tags = crf(), torch.randn(2, 20, TAGS), torch.randint(0, 2, (2, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(logits, tags)
    assert found.dtype == torch.float32
    assert torch.equal(found, module(logits, tags))


def test_transitions_are_learned() -> None:
    """Words alone say nothing here, but what they follow does."""
    module = crf()
    tags = torch.tensor([[B_UNIT, I_UNIT, B_PLACE] * 3])
    optimizer = torch.optim.Adam(module.parameters(), lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        module(torch.zeros(1, 9, TAGS), tags).backward()
        optimizer.step()
    found = best_tags(np.zeros((9, TAGS)), allowed_transitions(TAGS), module.scores().tolist())
    assert found.tolist() == tags[0].tolist()


# Decoding


def legal(scores: np.ndarray) -> np.ndarray:
    return np.where(allowed_transitions(TAGS), scores, -np.inf)


def posterior(log_probs: np.ndarray, scores: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probabilities of all sequences, of the legal ones alone."""
    return {tags: float(np.exp(x)) for tags, x in log_likelihoods(log_probs, legal(scores)).items()}


def random_paragraph(seed: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return log_softmax(random.normal(0, 2, (words, TAGS))), random.normal(0, 1.5, (TAGS + 1, TAGS))


@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_best_tags_equal_brute_force(seed: int, words: int) -> None:
    log_probs, scores = random_paragraph(seed, words)
    chances = posterior(log_probs, scores)
    found = best_tags(log_probs, allowed_transitions(TAGS), scores.tolist())
    assert tuple(found.tolist()) == max(chances, key=chances.__getitem__)


@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_chain_probabilities_equal_brute_force(seed: int, words: int) -> None:
    log_probs, scores = random_paragraph(seed, words)
    chances = posterior(log_probs, scores)
    single, steps = chain_probabilities(log_probs, allowed_transitions(TAGS), scores.tolist())
    assert single.shape == (words, TAGS)
    assert steps.shape == (words, TAGS, TAGS)
    for w, tag in product(range(words), range(TAGS)):
        expected = sum(p for tags, p in chances.items() if tags[w] == tag)
        assert np.exp(single[w, tag]) == pytest.approx(expected, abs=1e-9)
    for w, before, tag in product(range(1, words), range(TAGS), range(TAGS)):
        expected = sum(p for tags, p in chances.items() if tags[w - 1 : w + 1] == (before, tag))
        assert np.exp(single[w - 1, before] + steps[w, before, tag]) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(np.exp(steps).sum(-1), 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_score_of_a_span_is_its_probability(seed: int) -> None:
    words, start = 4, 10
    log_probs, scores = random_paragraph(seed, words)
    chances = posterior(log_probs, scores)
    chain = chain_probabilities(log_probs, allowed_transitions(TAGS), scores.tolist())
    for first, last, kind in product(range(words), range(words), range(2)):
        if first > last:
            continue
        span = Span(first + start, last + start, kind)
        expected = sum(p for tags, p in chances.items() if p and span in find_spans(np.array(tags), start))
        found = span_score(chain[0], span, start, start + words, chain[1])
        assert found == pytest.approx(expected, abs=1e-9)


def test_a_long_paragraph_neither_overflows_nor_vanishes() -> None:
    random = np.random.default_rng(0)
    log_probs = log_softmax(random.normal(0, 30, (3000, TAGS)))
    scores = random.normal(0, 10, (TAGS + 1, TAGS))
    with np.errstate(all="raise", under="ignore"):
        single, steps = chain_probabilities(log_probs, allowed_transitions(TAGS), scores.tolist())
        tags = best_tags(log_probs, allowed_transitions(TAGS), scores.tolist())
        chances = [span_score(single, span, 0, 3000, steps) for span in find_spans(tags)]
    np.testing.assert_allclose(np.exp(single).sum(-1), 1, rtol=1e-6)
    assert len(chances) > 100
    assert all(0 <= chance <= 1 + 1e-9 for chance in chances)


def test_transitions_decide_between_words_that_are_unsure() -> None:
    text = "لواء الصقور"
    words = np.array(split_words(text))
    logits = np.zeros((2, TAGS), dtype=np.float32)
    logits[0, B_UNIT], logits[1, [OUT, I_UNIT]] = 5.0, (1.1, 1.0)
    cuts = np.zeros((2, 1), dtype=np.float32)
    scores = np.zeros((TAGS + 1, TAGS))
    alone = decode_entities(text, words, [(0, 2)], logits, cuts, ONTOLOGY)[1]
    assert [e.text for e in alone] == ["لواء"]
    scores[B_UNIT, I_UNIT] = 2.0
    joined = decode_entities(text, words, [(0, 2)], logits, cuts, ONTOLOGY, transitions=scores.tolist())[1]
    assert [e.text for e in joined] == [text]
    chances = posterior(log_softmax(logits), scores)
    assert joined[0].score == pytest.approx(chances[B_UNIT, I_UNIT], abs=1e-4)
    apart = decode_entities(text, words, [(0, 1), (1, 2)], logits, cuts, ONTOLOGY, transitions=scores.tolist())[1]
    assert [e.text for e in apart] == ["لواء"]


# Settings and models


@pytest.mark.parametrize("rows", [[], [[0.0] * TAGS] * TAGS, [[0.0] * 3] * (TAGS + 1)])
def test_transitions_of_another_size(rows: list[list[float]]) -> None:
    with pytest.raises(ValidationError, match="transitions must be 6 rows of 5 scores"):
        ModelSettings(ontology=ONTOLOGY, transitions=rows)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder.load(shipped_model(), TextSettings(max_pieces=24, overlap=8))


@pytest.fixture(scope="module")
def folder(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and an exported model in one, with random weights."""
    torch.manual_seed(3)
    bert = BertConfig(
        vocab_size=encoder.tokenizer.get_vocab_size(),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=24,
    )
    settings = ModelSettings(ontology=ONTOLOGY, text=encoder.settings).model_dump(mode="json")
    model = RasidModel(RasidConfig(encoder=bert.to_dict(), settings=settings, relation_size=4, crf=True)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
        model.transitions.learned.weight[[I_UNIT, I_PLACE], [I_UNIT, I_PLACE]] -= 4  # no long entities
    folder = tmp_path_factory.mktemp("crf")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shipped_model() / "tokenizer.json"))
    save_checkpoint(model, tokenizer, folder)
    export_fp32(model, folder)
    return folder


TEXT = (
    "وصل لواء الصقور إلى حلب أمس مع فرقة الرعد ثم عاد منها إلى حماة صباح اليوم وقصف مطار دير الزور\nثم عاد إلى الرقة."
)


def test_exported_model_decodes_as_the_checkpoint_does(folder: Path) -> None:
    """Over several windows of one paragraph, with the transitions that the weights hold."""
    checkpoint, exported = load_torch_extractor(folder), Extractor.load(folder, threads=1)
    module = checkpoint.backend.model.transitions
    assert exported.settings == checkpoint.settings == load_settings(folder)
    np.testing.assert_array_equal(exported.settings.transitions, module.scores().detach().numpy())
    assert len(exported.encoder.encode(TEXT).windows) > 2
    found, expected = exported(TEXT), checkpoint(TEXT)
    assert [(e.start, e.end, e.type) for e in found.entities] == [(e.start, e.end, e.type) for e in expected.entities]
    np.testing.assert_allclose([e.score for e in found.entities], [e.score for e in expected.entities], atol=2e-4)
    assert len(found.entities) > 3
    exported.settings = exported.settings.model_copy(update={"transitions": None})
    assert exported(TEXT).entities != found.entities


def test_transitions_in_training_are_those_of_the_weights(folder: Path) -> None:
    extractor = load_torch_extractor(folder)
    model = extractor.backend.model
    with torch.no_grad():
        model.transitions.learned.weight += 1
    changed = np.array(model.model_settings().transitions) - np.array(extractor.settings.transitions)
    np.testing.assert_allclose(changed, 1, atol=1e-5)


def test_broken_transitions_in_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["settings"]["transitions"].pop()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="transitions must be 6 rows of 5 scores"):
        load_settings(tmp_path)


def test_no_teacher_with_transitions(folder: Path) -> None:
    settings = load_settings(folder).model_copy(update={"transitions": None})
    encoder = TextEncoder.load(folder, settings.text)
    with pytest.raises(
        ConfigError, match=r"crf\d* was trained with heads\.crf, .* give models that were trained without"
    ):
        distillation.load_teachers([folder], encoder, settings)
