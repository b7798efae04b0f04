"""Labels of articles made by hand, and that labels and decoding are inverse to each other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rasid.decoding import Floats, Ints
from rasid.encoding import TextEncoder
from rasid.errors import DataError
from rasid.inference import Extractor
from rasid.modeling.model import IGNORED
from rasid.records import Article, Entity, Relation, read_articles
from rasid.schema import Ontology
from rasid.scoring.metrics import links, score_entities, score_relations
from rasid.settings import ModelSettings, TextSettings
from rasid.training.dataset import Collator, Unpredictable, build_dataset, close_groups, label_counts, window_examples

DATA = Path(__file__).parents[1] / "data"
ONTOLOGY = Ontology.load(DATA / "ontology.yaml")
TYPES = {name: index for index, name in enumerate(ONTOLOGY.entity_types)}
RELATIONS = {name: index for index, name in enumerate(ONTOLOGY.relation_names)}


def word_level() -> Tokenizer:
    """A tokenizer of one piece per word, so that windows are easy to count."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def settings(**text: Any) -> ModelSettings:
    return ModelSettings(ontology=ONTOLOGY, text=TextSettings(**text))


def examples(article: Article, **text: Any) -> tuple[list[dict[str, Any]], Unpredictable]:
    losses, chosen = Unpredictable(), settings(**text)
    encoder = TextEncoder(word_level(), chosen.text)
    return list(window_examples(article, encoder, chosen, losses)), losses


def article(text: str, spans: dict[str, str], *relations: tuple[str, str, str]) -> Article:
    """Entities are given by their text, which is their id; a `|` in it marks where it begins within a word."""
    entities = []
    for span, kind in spans.items():
        start = text.index(span.replace("|", "")) + max(span.find("|"), 0)
        surface = span.partition("|")[2] or span
        entities.append(Entity(id=surface, type=kind, start=start, end=start + len(surface), text=surface))
    made = tuple(Relation(head=head, type=kind, tail=tail) for head, kind, tail in relations)
    return Article(id="x", text=text, entities=tuple(entities), relations=made)


# Labels


def test_labels_of_one_sentence() -> None:
    gold = article(
        "تقدم لواء الصقور نحو حلب ووصلت الكتيبة الأولى",
        {"لواء الصقور": "MIL_UNIT", "حلب": "LOCATION", "الكتيبة الأولى": "MIL_UNIT"},
        ("لواء الصقور", "MOVES_TO", "حلب"),
        ("الكتيبة الأولى", "SUBUNIT_OF", "لواء الصقور"),
    )
    (example,), losses = examples(gold)
    unit, place = TYPES["MIL_UNIT"], TYPES["LOCATION"]
    b, i = 2 * unit + 1, 2 * unit + 2
    assert example["tags"].tolist() == [0, b, i, 0, 2 * place + 1, 0, b, i]
    assert example["proclitics"].tolist() == [IGNORED, 0, IGNORED, IGNORED, 0, IGNORED, 0, IGNORED]
    assert example["entities"] == [[1, 2, unit], [4, 4, place], [6, 7, unit]]
    assert example["links"] == [[0, 1, RELATIONS["MOVES_TO"]], [2, 0, RELATIONS["SUBUNIT_OF"]]]
    assert example["paragraphs"] == [0]
    assert example["length"] == len(example["input_ids"]) == 10
    assert example["word_pieces"].tolist() == list(range(1, 9))
    assert vars(losses) == {"entities": 0, "relations": 0, "total_entities": 3, "total_relations": 2}


@pytest.mark.parametrize(
    ("span", "letters_cut"),
    [
        ("حلب", 0),
        ("و|حلب", 1),
        ("وب|حلب", 2),
        ("وَبـ|حلب", 2),  # with a mark and a tatweel
        ("«|حلب", 0),  # a quotation mark is a word of its own
    ],
)
def test_proclitic_lengths(span: str, letters_cut: int) -> None:
    gold = article(f"سقطت قذائف {span.replace('|', '')} ليلا", {span: "LOCATION"})
    (example,), losses = examples(gold)
    assert losses.entities == 0
    assert [p for p in example["proclitics"].tolist() if p != IGNORED] == [letters_cut]


@pytest.mark.parametrize(
    ("span", "why"),
    [
        ("ز|حلب", "not a proclitic"),
        ("وبل|حلب", "more proclitics than the model cuts"),
        ("حل", "ends within a word"),
    ],
)
def test_unpredictable_entities_are_counted(span: str, why: str) -> None:
    word = span.replace("|", "")
    text = f"سقطت {word}{'ب' if word == 'حل' else ''} قرب حماة"
    surface = span.partition("|")[2] or span
    gold = article(text, {span: "LOCATION", "حماة": "LOCATION"}, (surface, "NEAR", "حماة"))
    (example,), losses = examples(gold)
    # Its relation can be learned from, but never be right.
    assert vars(losses) == {"entities": 1, "relations": 1, "total_entities": 2, "total_relations": 1}, why
    assert len(example["entities"]) == 2
    assert example["links"] == [[0, 1, RELATIONS["NEAR"]]]
    assert "1 of 2 entities and 1 of 1 relations cannot be predicted" in str(losses)


def test_entities_that_share_a_word_or_have_none() -> None:
    text = "دخل حلبوحماة \u200f اليوم"
    spans = [("LOCATION", 4, 7), ("LOCATION", 8, 12), ("LOCATION", 13, 14)]
    entities = tuple(
        Entity(id=f"T{n}", type=kind, start=start, end=end, text=text[start:end])
        for n, (kind, start, end) in enumerate(spans)
    )
    gold = Article(id="x", text=text, entities=entities, relations=(Relation(type="NEAR", head="T0", tail="T1"),))
    (example,), losses = examples(gold)
    assert len(example["entities"]) == 1
    assert example["links"] == []
    assert vars(losses) == {"entities": 3, "relations": 1, "total_entities": 3, "total_relations": 1}


def long_article() -> Article:
    """30 words, of which 8 to 17 are one entity, with windows of 14 words and 7 shared ones."""
    words = [f"كلمة{n}" for n in range(30)]
    gold = article(
        " ".join(words),
        {" ".join(words[8:18]): "FACILITY", words[2]: "LOCATION", words[20]: "LOCATION", words[29]: "LOCATION"},
        (" ".join(words[8:18]), "WITHIN", words[20]),
        (words[2], "NEAR", words[29]),
    )
    return gold


def test_entity_at_the_end_of_a_window() -> None:
    found, losses = examples(long_article(), max_pieces=16, overlap=7)
    starts = [0, 7, 14]
    assert [len(e["tags"]) for e in found][:3] == [14, 14, 14]
    inside, place = 2 * TYPES["FACILITY"] + 2, 2 * TYPES["LOCATION"] + 1
    whole = [0, 0, place, *[0] * 5, inside - 1, *[inside] * 9, 0, 0, place, *[0] * 8, place]
    for start, example in zip(starts, found, strict=False):
        # A cut entity keeps its tags in every window, so that no word has two labels; it is only a whole entity in one.
        assert example["tags"].tolist() == whole[start : start + 14]
    complete = [[e[:2] for e in example["entities"] if e[2] == TYPES["FACILITY"]] for example in found]
    assert complete[:3] == [[], [[1, 10]], []]
    # [8, 17] and 20 share the second window, 2 and 29 none.
    assert [len(e["links"]) for e in found][:3] == [0, 1, 0]
    assert vars(losses) == {"entities": 0, "relations": 1, "total_entities": 4, "total_relations": 2}


def test_label_of_a_relation_in_each_direction() -> None:
    text = "لواء الأول ولواء الثاني هاجما حلب"
    spans = {"لواء الأول": "MIL_UNIT", "و|لواء الثاني": "MIL_UNIT", "حلب": "LOCATION"}
    first, second = "لواء الأول", "لواء الثاني"
    collate = Collator(ONTOLOGY, pad_id=0)
    for ends, expected in (((first, second), [1, 0]), ((second, first), [0, 1])):
        (example,), _ = examples(article(text, spans, (ends[0], "SUBUNIT_OF", ends[1])))
        batch = collate([example])
        assert batch["pairs"].tolist() == [[0, 1, 1], [0, 2, 0], [1, 2, 0]]  # the two brigades share a word
        labels = batch["relations"]
        assert labels.sum() == 1
        assert labels[0, :, RELATIONS["SUBUNIT_OF"]].tolist() == expected
    # A symmetric one has both, whichever way it is written.
    for ends in ((first, second), (second, first)):
        (example,), losses = examples(article(text, spans, (ends[0], "ALLIED_WITH", ends[1])))
        assert collate([example])["relations"][0, :, RELATIONS["ALLIED_WITH"]].tolist() == [1, 1]
        assert losses.relations == 0


def test_groups_are_closed() -> None:
    text = "حماة ثم حلب ثم المدينة ثم عفرين ثم البلدة"
    names = ["حماة", "حلب", "المدينة", "عفرين", "البلدة"]
    spans = dict.fromkeys(names, "LOCATION")
    chain = [("حلب", "SAME_AS", "حماة"), ("حلب", "SAME_AS", "المدينة"), ("البلدة", "SAME_AS", "عفرين")]
    gold = article(text, spans, *chain, ("حلب", "NEAR", "عفرين"))
    closed = [(r.head, r.type, r.tail) for r in close_groups(gold, ONTOLOGY)]
    assert closed == [
        ("حماة", "SAME_AS", "حلب"),
        ("حماة", "SAME_AS", "المدينة"),
        ("حلب", "SAME_AS", "المدينة"),
        ("حلب", "NEAR", "عفرين"),
        ("عفرين", "SAME_AS", "البلدة"),
    ]
    (example,), losses = examples(gold)
    assert len(example["links"]) == 5
    assert losses.relations == 0  # though gold writes the later mention first
    assert close_groups(gold.model_copy(update={"relations": ()}), ONTOLOGY) == []


def test_pairs_stay_within_paragraphs() -> None:
    text = "لواء دخل حلب\nوفي حماة دخل فوج\n\nثم دخل رتل"
    spans = {"لواء": "MIL_UNIT", "حلب": "LOCATION", "حماة": "LOCATION", "فوج": "MIL_UNIT", "رتل": "EQUIPMENT"}
    (example,), _ = examples(article(text, spans, ("فوج", "MOVES_TO", "حماة")))
    assert example["paragraphs"] == [0, 3, 7]
    batch = Collator(ONTOLOGY, pad_id=0)([example])
    assert batch["pairs"].tolist() == [[0, 1, 0], [2, 3, 0]]
    assert batch["relations"][1, :, RELATIONS["MOVES_TO"]].tolist() == [0, 1]


# Batches


def test_collator_joins_windows() -> None:
    near = ("حلب", "NEAR", "حماة")
    short, _ = examples(article("حلب قرب حماة", {"حلب": "LOCATION", "حماة": "LOCATION"}, near))
    none, _ = examples(article("لا شيء هنا يذكر اليوم", {}))
    unit = {"لواء": "MIL_UNIT", "حلب": "LOCATION", "رتل": "EQUIPMENT"}
    long, _ = examples(article("دخل لواء إلى حلب ثم دخل رتل", unit, ("لواء", "MOVES_TO", "حلب")))
    batch = Collator(ONTOLOGY, pad_id=7)([*short, *none, *long])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (3, 9),
        "attention_mask": (3, 9),
        "word_pieces": (3, 7),
        "tags": (3, 7),
        "proclitics": (3, 7),
        "starts": (3, 7),
        "entities": (5, 4),
        "pairs": (4, 3),
        "relations": (4, 2, len(RELATIONS)),
    }
    assert batch["input_ids"][0, 5:].tolist() == [7] * 4
    assert batch["attention_mask"].sum(1).tolist() == [5, 7, 9]
    assert batch["tags"][0].tolist()[3:] == [IGNORED] * 4
    assert batch["entities"][:, 0].tolist() == [0, 0, 2, 2, 2]
    assert batch["pairs"][:, :2].tolist() == [[0, 1], [2, 3], [2, 4], [3, 4]]  # of the joined list, within one window
    assert batch["relations"].nonzero().tolist() == [[0, 0, RELATIONS["NEAR"]], [1, 0, RELATIONS["MOVES_TO"]]]
    assert batch["relations"].dtype == torch.float32
    assert all(batch[n].dtype == torch.int64 for n in batch if n != "relations")


def test_collator_without_any_entity() -> None:
    none, _ = examples(article("لا شيء هنا", {}))
    batch = Collator(ONTOLOGY, pad_id=0)(none)
    assert batch["entities"].shape == (0, 4)
    assert batch["pairs"].shape == (0, 3)
    assert batch["relations"].shape == (0, 2, len(RELATIONS))


def test_build_dataset() -> None:
    unit = article("دخل لواء إلى حلب", {"لواء": "MIL_UNIT", "حلب": "LOCATION"}, ("لواء", "MOVES_TO", "حلب"))
    texts = [unit, article("لا شيء هنا", {}), long_article()]
    chosen = settings(max_pieces=16, overlap=7)
    dataset, losses = build_dataset(texts, TextEncoder(word_level(), chosen.text), chosen)
    assert len(dataset) > 4
    assert losses.total_entities == 6
    counts = label_counts(dataset.select([0, 1]), ONTOLOGY)
    assert counts == {"MIL_UNIT": 1, "LOCATION": 1, "MOVES_TO": 1}
    batch = Collator(ONTOLOGY, pad_id=0)(list(dataset))
    assert batch["input_ids"].shape == (len(dataset), 16)


@pytest.mark.parametrize("texts", [[], [Article(id="x", text=" \n\u200f\n")]])
def test_no_text_to_train_on(texts: list[Article]) -> None:
    chosen = settings()
    with pytest.raises(DataError, match="the training corpus holds no text"):
        build_dataset(texts, TextEncoder(word_level(), chosen.text), chosen)


# A perfect model


class PerfectBackend:
    """Answers with the labels of one article's windows, in the order in which an extractor asks for them."""

    def __init__(self, windows: list[dict[str, Any]], chosen: ModelSettings):
        self.windows = windows
        self.settings = chosen
        self.collate = Collator(chosen.ontology, pad_id=0)
        self.next = 0

    def encode(self, input_ids: Ints, word_pieces: Ints) -> tuple[Floats, Floats, Floats]:
        window = self.windows[self.next]
        assert np.array_equal(input_ids, window["input_ids"])
        assert np.array_equal(word_pieces, window["word_pieces"])
        tags = 20.0 * np.eye(len(self.settings.ontology.tags), dtype=np.float32)[window["tags"]]
        lengths = np.maximum(window["proclitics"], 0)
        proclitics = 20.0 * np.eye(self.settings.max_proclitic + 1, dtype=np.float32)[lengths]
        states = np.full((len(word_pieces), 1), self.next, dtype=np.float32)
        self.next = (self.next + 1) % len(self.windows)
        return tags, proclitics, states

    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        window = self.windows[int(states[0, 0])]
        assert np.array_equal(word_tags, window["tags"])  # what the relation head sees in training
        assert entities.tolist() == [e[:2] for e in window["entities"]]
        batch = self.collate([window])
        row = {pair: n for n, pair in enumerate(map(tuple, batch["pairs"].tolist()))}
        labels = batch["relations"].numpy()
        return np.stack([40.0 * labels[row[pair]] - 20.0 for pair in map(tuple, pairs.tolist())])


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("text", [{}, {"max_pieces": 48, "overlap": 16}, {"max_pieces": 24, "overlap": 12}])
def test_a_perfect_model_scores_all_but_the_counted_losses(split: str, text: dict[str, int], debug_run: Path) -> None:
    chosen = settings(**text)
    encoder = TextEncoder.load(debug_run / "torch", chosen.text)
    losses, pairs, windows = Unpredictable(), [], 0
    for gold in read_articles(DATA / f"{split}.jsonl", ONTOLOGY):
        before = vars(losses).copy()
        labelled = list(window_examples(gold, encoder, chosen, losses))
        windows += len(labelled)
        extractor = Extractor(PerfectBackend(labelled, chosen), encoder, chosen)
        found = extractor(gold.text, id=gold.id)
        pairs.append((gold, found))
        if before["entities"] == losses.entities:
            assert {(e.type, e.start, e.end) for e in found.entities} == {
                (e.type, e.start, e.end) for e in gold.entities
            }
        if before["entities"] == losses.entities and before["relations"] == losses.relations:
            assert links(found, ONTOLOGY, typed=True) == links(gold, ONTOLOGY, typed=True)
        related = extractor.relate(gold.model_copy(update={"relations": ()}))
        if before["relations"] == losses.relations:
            assert links(related, ONTOLOGY, typed=True) == links(gold, ONTOLOGY, typed=True)
    entities = score_entities(pairs, ONTOLOGY, samples=0).micro
    relations = score_relations(pairs, ONTOLOGY, samples=0).micro
    assert (entities.fn, entities.fp) == (losses.entities, losses.entities)
    assert losses.total_entities == entities.tp + entities.fn > 800
    assert losses.total_relations == relations.tp + relations.fn > 500
    assert relations.fn == losses.relations
    if not text:
        assert relations.fp == 0
        assert losses.entities <= 0.01 * losses.total_entities
        assert losses.relations <= 0.01 * losses.total_relations
        assert entities.f1 > 0.99 and relations.f1 > 0.99
    else:
        assert windows > 150 and losses.relations > 0
