"""Arrays to records: by hand, against brute force, and for any arrays."""

import math
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rasid.decoding import (
    LIKENESS,
    Span,
    allowed_relations,
    allowed_transitions,
    best_tags,
    candidate_pairs,
    cut_proclitic,
    decode_entities,
    decode_relations,
    find_spans,
    log_softmax,
    name_likeness,
    sigmoid,
    span_score,
    tag_words,
    tidy_spans,
)
from rasid.records import Article, Entity, check_article
from rasid.schema import Ontology
from rasid.text import split_words

ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "IN": {"head": ["PLACE"], "tail": ["PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
            "SAME": {
                "head": ["UNIT", "PLACE"],
                "tail": ["UNIT", "PLACE"],
                "symmetric": True,
                "transitive": True,
                "same_type": True,
            },
        },
        "proclitics": "وفبكلس",
    }
)
UNIT, PLACE = 0, 1
OUT, B_UNIT, I_UNIT, B_PLACE, I_PLACE = range(5)
NEVER = -50.0


def scores(words: int, tags: int = 5):
    """Log-probabilities [words, tags]."""
    shape = st.tuples(st.integers(1, words), st.just(tags))
    return hnp.arrays(np.float64, shape, elements=st.floats(-8, 8, width=16)).map(log_softmax)


def legal(tags) -> bool:
    """IOB2 in its own words: an inside tag goes on an entity of its type."""
    return all(t == 0 or t % 2 or (w > 0 and tags[w - 1] in (t, t - 1)) for w, t in enumerate(tags))


def peaked(*tags: int, by: float = 20.0) -> np.ndarray:
    """Logits [W, 5] that are sure of these tags."""
    return np.where(np.arange(5) == np.array(tags)[:, None], by, 0.0).astype(np.float32)


def decode(text: str, tags: np.ndarray, cuts: np.ndarray | None = None, paragraphs=None):
    words = np.array(split_words(text), dtype=np.int64).reshape(-1, 2)
    cuts = np.tile([1.0, 0.0, 0.0], (len(words), 1)) if cuts is None else cuts
    return decode_entities(text, words, paragraphs or [(0, len(words))], tags, cuts.astype(np.float32), ONTOLOGY)


def mentions(types: str, sure: Sequence[float | None] | None = None) -> tuple[list[Entity], list[Span]]:
    """Entities `T1`, `T2`, … of the types `U` and `P`, one word each, with the scores `sure`."""
    spans = [Span(n, n, "UP".index(t)) for n, t in enumerate(types)]
    entities = [
        Entity(id=f"T{n}", type=ONTOLOGY.entity_types[s.type], start=2 * n - 2, end=2 * n - 1, text="x", score=score)
        for n, (s, score) in enumerate(zip(spans, sure or [None] * len(spans), strict=True), start=1)
    ]
    return entities, spans


def every(threshold: float) -> list[float]:
    """The same threshold for each relation type."""
    return [threshold] * len(ONTOLOGY.relation_names)


def decode_links(
    types: str,
    links: dict[str, float],
    thresholds: Sequence[float] | None = None,
    sure: Sequence[float | None] | None = None,
) -> dict[str, float]:
    """Decode links such as `{"T1 AT T2": 3.0}` (a logit) to their scores; all others are impossible."""
    entities, spans = mentions(types, sure)
    pairs = candidate_pairs(spans, ONTOLOGY)
    logits = np.full((len(pairs), 2, len(ONTOLOGY.relation_names)), NEVER, dtype=np.float32)
    row = {tuple(pair): p for p, pair in enumerate(pairs.tolist())}
    for link, logit in links.items():
        head, name, tail = link.split()
        h, t = int(head[1:]) - 1, int(tail[1:]) - 1
        logits[row[min(h, t), max(h, t)], int(h > t), ONTOLOGY.relation_names.index(name)] = logit
    found = decode_relations(entities, spans, pairs, logits, ONTOLOGY, thresholds or every(0.5))
    assert all(0 <= r.score <= 1 for r in found)
    text = "x " * len(types)
    assert check_article(Article(id="a", text=text, entities=tuple(entities), relations=tuple(found)), ONTOLOGY) == []
    return {f"{r.head} {r.type} {r.tail}": r.score for r in found}


def relate(types: str, links: dict[str, float], threshold: float = 0.5) -> list[str]:
    return list(decode_links(types, links, every(threshold)))


def chance(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_transitions():
    allowed = allowed_transitions(5)
    assert allowed.shape == (6, 5)
    for before, after in product(range(6), range(5)):
        assert allowed[before, after] == legal([after] if before == 5 else [{2: 1, 4: 3}.get(before, 0), before, after])


@given(scores(4))
def test_best_tags_equal_brute_force(log_probs):
    words = np.arange(len(log_probs))
    found = best_tags(log_probs, allowed_transitions(5))
    assert found.dtype == np.int64 and legal(found.tolist())
    best = max(log_probs[words, tags].sum() for tags in product(range(5), repeat=len(words)) if legal(tags))
    assert log_probs[words, found].sum() == pytest.approx(best)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([[0, 0, 9, 0, 0]], [OUT]),  # nothing to go on with; all others are equal, and the first one is taken
        ([[0, 5, 9, 0, 0]], [B_UNIT]),
        ([[0, 9, 0, 0, 0], [0, 0, 2, 0, 9]], [B_UNIT, I_UNIT]),
        ([[0, 9, 0, 0, 0], [8, 0, 2, 0, 9]], [B_UNIT, OUT]),
        ([[0, 5, 0, 4, 0], [0, 0, 0, 0, 9]], [B_PLACE, I_PLACE]),
        ([[9, 0, 0, 0, 0], [0, 0, 9, 1, 0], [0, 0, 9, 0, 0]], [OUT, B_UNIT, I_UNIT]),
    ],
)
def test_an_illegal_best_sequence_gives_way(logits, expected):
    assert best_tags(log_softmax(np.array(logits, dtype=np.float32)), allowed_transitions(5)).tolist() == expected


@given(scores(8), st.integers(0, 5))
def test_spans_and_tags_are_inverse(log_probs, offset):
    tags = best_tags(log_probs, allowed_transitions(5))
    spans = find_spans(tags, offset)
    assert tag_words(spans, (offset, offset + len(tags))).tolist() == tags.tolist()
    assert all(a.last < b.first for a, b in pairwise(spans))


@given(scores(8))
def test_span_scores_are_probabilities(log_probs):
    for span in find_spans(best_tags(log_probs, allowed_transitions(5)), 3):
        assert 0 <= span_score(log_probs, span, 3, 3 + len(log_probs)) <= 1


def test_a_span_score_by_hand():
    probs = np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.5, 0.1, 0.2], [0.6, 0.1, 0.2, 0.05, 0.05]])
    score = span_score(np.log(probs), Span(10, 11, UNIT), 10, 13)
    assert score == pytest.approx(0.6 * 0.5 * (1 - 0.2))
    assert span_score(np.log(probs[:2]), Span(10, 11, UNIT), 10, 12) == pytest.approx(0.6 * 0.5)


def test_probabilities_do_not_overflow():
    big = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert np.exp(log_softmax(big)).tolist() == [[1.0, 0.0, 0.0]]
    assert sigmoid(np.array([-np.inf, -1e4, 0.0, 1e4])).tolist() == [0.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("word", "logits", "cut"),
    [
        ("لقسد", [0, 5, 0], 1),
        ("لقسد", [0, 5, 9], 1),  # the word has no second proclitic
        ("وبقسد", [0, 5, 9], 2),
        ("بـقسد", [0, 5, 0], 2),
        ("وَلِقسد", [0, 0, 5], 4),
        ("قسد", [0, 9, 9], 0),
        ("ول", [0, 0, 9], 0),
        ("و", [0, 9, 9], 0),
    ],
)
def test_cuts_that_the_word_allows(word, logits, cut):
    found, probability = cut_proclitic(word, np.array(logits, dtype=np.float32), ONTOLOGY.proclitics)
    assert found == cut
    assert 0 < probability <= 1


def test_the_only_cut_is_certain():
    assert cut_proclitic("قسد", np.array([-9, 9, 9], dtype=np.float32), ONTOLOGY.proclitics) == (0, 1.0)


def test_entities_by_hand():
    text = "وصل اللواء 47 إلى بحلب"
    cuts = np.array([[9, 0, 0]] * 4 + [[0, 9, 0]])
    spans, entities = decode(text, peaked(OUT, B_UNIT, I_UNIT, OUT, B_PLACE), cuts)
    assert spans == [Span(1, 2, UNIT), Span(4, 4, PLACE)]
    assert [(e.id, e.type, e.text) for e in entities] == [("T1", "UNIT", "اللواء 47"), ("T2", "PLACE", "حلب")]
    assert [text[e.start : e.end] for e in entities] == [e.text for e in entities]
    assert all(e.score > 0.99 for e in entities)


def test_the_unwritten_article_is_restored_in_the_normalised_form():
    _, (entity,) = decode("للتَّحالف", peaked(B_UNIT), np.array([[0, 9, 0]]))
    assert (entity.text, entity.normalized) == ("لتَّحالف", "التحالف")


def test_an_entity_does_not_cross_a_paragraph():
    spans, entities = decode("قسد\nحلب", peaked(B_UNIT, I_UNIT), paragraphs=[(0, 1), (1, 2)])
    assert entities[0].text == "قسد"
    assert all(s.first == s.last for s in spans)


@given(
    st.text("وبلقسد\u064e\u0640\u200f🏽4،« \n", max_size=30),
    st.randoms(use_true_random=False),
)
def test_any_arrays_give_sound_entities(text, random):
    lines, words = text.split("\n"), split_words(text)
    ends = np.cumsum([len(line) + 1 for line in lines])
    owner = np.searchsorted(ends, [a for a, _ in words], side="right").tolist()
    paragraphs = [(owner.index(n), owner.index(n) + owner.count(n)) for n in sorted(set(owner))]
    rng = np.random.default_rng(random.getrandbits(32))
    _, entities = decode(text, rng.normal(0, 3, (len(words), 5)), rng.normal(0, 3, (len(words), 3)), paragraphs)
    assert check_article(Article(id="a", text=text, entities=tuple(entities)), ONTOLOGY) == []
    assert [e.id for e in entities] == [f"T{n}" for n in range(1, len(entities) + 1)]
    assert all(0 <= e.score <= 1 and e.normalized for e in entities)


def test_candidate_pairs():
    assert candidate_pairs([], ONTOLOGY).shape == candidate_pairs([Span(0, 0, UNIT)], ONTOLOGY).shape == (0, 2)
    assert candidate_pairs(mentions("UPU")[1], ONTOLOGY).tolist() == [[0, 1], [0, 2], [1, 2]]
    only = Ontology.model_validate(
        {"entity_types": ["UNIT", "PLACE"], "relation_types": {"AT": {"head": ["UNIT"], "tail": ["PLACE"]}}}
    )
    assert candidate_pairs(mentions("UPU")[1], only).tolist() == [[0, 1], [1, 2]]
    assert candidate_pairs(mentions("UPU")[1], Ontology(entity_types=("UNIT", "PLACE"))).tolist() == []


@pytest.mark.parametrize(
    ("one", "other", "level"),
    [
        ("حلب", "حماة", 0),
        ("ريف حلب", "ريف حماة", 1),
        ("ريف حلب", "حلب", 2),
        ("الفرقة الرابعة", "الفرقة", 2),
        ("قوات سوريا الديمقراطية", "قوات سوريا الديمقراطية", 3),
        ("الجيش", "جيش", 3),  # the article
        ("لجيش", "الجيش", 3),  # what للجيش leaves
        ("إدلب", "ادلب", 3),  # spelling
        ("الحسكة", "الحسكه", 3),
        ("حلبَ", "حلـــب", 3),
    ],
)
def test_likeness_of_names(one, other, level):
    assert 0 <= level < LIKENESS
    assert name_likeness([one, other], np.array([[0, 1]])).tolist() == [level]
    assert name_likeness([other, one], np.array([[0, 1]])).tolist() == [level]


def test_likeness_of_many_pairs():
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    found = name_likeness(["ريف حلب", "حلب", "ريف حماة"], pairs)
    assert (found.dtype, found.tolist()) == (np.int64, [2, 1, 0])
    assert name_likeness([], np.zeros((0, 2), dtype=np.int64)).shape == (0,)
    assert name_likeness(["حلب"], np.zeros((0, 2), dtype=np.int64)).shape == (0,)


def test_allowed_relations():
    rules = allowed_relations(ONTOLOGY)
    assert rules.shape == (2, 2, 4)
    for (h, head), (t, tail) in product(enumerate(ONTOLOGY.entity_types), repeat=2):
        assert rules[h, t].tolist() == [ONTOLOGY.allows(r, head, tail) for r in ONTOLOGY.relation_names]
    assert allowed_relations(Ontology(entity_types=("UNIT",))).shape == (1, 1, 0)


@pytest.mark.parametrize(
    ("types", "links", "expected"),
    [
        ("UP", {"T1 AT T2": 1}, ["T1 AT T2"]),
        ("PU", {"T2 AT T1": 1}, ["T2 AT T1"]),
        ("UP", {"T2 AT T1": 9}, []),  # a place is at no unit
        ("UU", {"T1 AT T2": 9, "T2 IN T1": 9}, []),
        ("PP", {"T2 IN T1": 1}, ["T2 IN T1"]),
        ("PP", {"T1 IN T2": 1, "T2 IN T1": 1}, ["T1 IN T2", "T2 IN T1"]),
        ("UU", {"T1 WITH T2": 1}, ["T1 WITH T2"]),
        ("UU", {"T1 WITH T2": 1, "T2 WITH T1": 1}, ["T1 WITH T2"]),
        ("UU", {"T2 WITH T1": 9}, []),  # symmetric ones are read in text order only
        ("UP", {"T1 SAME T2": 9, "T1 WITH T2": 9}, []),
        ("UU", {"T1 SAME T2": 1, "T1 WITH T2": 1}, ["T1 WITH T2", "T1 SAME T2"]),
        ("UPP", {"T1 AT T3": 1, "T1 AT T2": 1, "T2 IN T3": 1}, ["T1 AT T2", "T1 AT T3", "T2 IN T3"]),
        ("U", {}, []),
        ("", {}, []),
    ],
)
def test_relations_by_hand(types, links, expected):
    assert relate(types, links) == expected


def test_the_threshold_itself_is_enough():
    assert relate("UP", {"T1 AT T2": 0.0}, threshold=0.5) == ["T1 AT T2"]
    assert relate("UP", {"T1 AT T2": -0.01}, threshold=0.5) == []
    assert relate("UP", {"T1 AT T2": 2.0}, threshold=0.9) == []
    assert relate("UP", {"T1 AT T2": -2.0}, threshold=0.1) == ["T1 AT T2"]


@pytest.mark.parametrize(
    ("types", "links", "expected"),
    [
        # all pairs of a group come out as a chain
        ("UUU", {"T1 SAME T2": 1, "T1 SAME T3": 1, "T2 SAME T3": 1}, ["T1 SAME T2", "T2 SAME T3"]),
        # a star too
        ("UUU", {"T1 SAME T2": 1, "T1 SAME T3": 1}, ["T1 SAME T2", "T2 SAME T3"]),
        # two groups that cross
        ("UUUU", {"T1 SAME T3": 1, "T2 SAME T4": 1}, ["T1 SAME T3", "T2 SAME T4"]),
        # a weak link does not merge two groups: T4 goes with the mention it scores highest with
        ("UUUU", {"T1 SAME T3": 2, "T2 SAME T4": 2, "T1 SAME T4": 1}, ["T1 SAME T3", "T2 SAME T4"]),
        # other types in between
        ("UPUPU", {"T1 SAME T3": 1, "T3 SAME T5": 1, "T2 SAME T4": 1}, ["T1 SAME T3", "T2 SAME T4", "T3 SAME T5"]),
        # of equal scores, the nearest mention
        ("UUU", {"T1 SAME T3": 1, "T2 SAME T3": 1}, ["T2 SAME T3"]),
    ],
)
def test_transitive_relations_are_chains(types, links, expected):
    assert relate(types, links) == expected


def test_a_link_that_only_the_chain_has_takes_a_score_of_its_mention():
    entities, spans = mentions("UUU")
    pairs = candidate_pairs(spans, ONTOLOGY)
    logits = np.full((3, 2, 4), NEVER, dtype=np.float32)
    logits[0, 0, 3], logits[1, 0, 3] = 3.0, 1.0  # 1-2 and 1-3
    found = decode_relations(entities, spans, pairs, logits, ONTOLOGY, every(0.5))
    assert [(r.head, r.tail) for r in found] == [("T1", "T2"), ("T2", "T3")]
    assert [r.score for r in found] == pytest.approx(sigmoid(np.array([3.0, 1.0])), abs=1e-4)


@pytest.mark.parametrize(
    ("sure", "share"),
    [([0.9, 0.8], 0.72), ([0.9, None], 0.9), ([None, 0.8], 0.8), ([None, None], 1.0), ([1.0, 1.0], 1.0), ([1, 0], 0)],
)
def test_a_relation_is_as_sure_as_it_and_both_of_its_ends(sure, share):
    for link in ("T1 AT T2", "T1 IN T2", "T2 IN T1", "T1 WITH T2", "T1 SAME T2"):
        types = {"AT": "UP", "IN": "PP", "WITH": "UU", "SAME": "PP"}[link.split()[1]]
        found = decode_links(types, {link: 2.0}, every(0.0), sure=sure)
        assert found[link] == pytest.approx(chance(2.0) * share, abs=1e-4)
        assert chance(2.0) < 0.9  # or a maximum or minimum would do as well


def test_each_pair_has_the_scores_of_its_own_ends():
    links = dict.fromkeys(("T1 AT T2", "T1 AT T3", "T3 IN T2"), 40.0)
    found = decode_links("UPP", links, every(0.1), sure=[0.5, 0.6, 0.7])
    assert found == {"T1 AT T2": 0.3, "T1 AT T3": 0.35, "T3 IN T2": 0.42}


def test_unsure_ends_take_a_relation_below_the_threshold():
    link = {"T1 AT T2": 40.0}
    assert decode_links("UP", link, every(0.5), sure=[0.8, 0.6]) == {}
    assert decode_links("UP", link, every(0.45), sure=[0.8, 0.6]) == {"T1 AT T2": 0.48}
    assert decode_links("UP", link, every(0.99)) == {"T1 AT T2": 1.0}


def test_a_threshold_for_each_type():
    links = {"T1 AT T3": 0.0, "T1 WITH T2": 0.0, "T1 SAME T2": 0.0, "T3 IN T4": 0.0}
    for name in ONTOLOGY.relation_names:
        low = [0.4 if other == name else 0.6 for other in ONTOLOGY.relation_names]
        assert [link.split()[1] for link in decode_links("UUPP", links, low)] == [name]
        high = [0.6 if other == name else 0.4 for other in ONTOLOGY.relation_names]
        left = {link.split()[1] for link in decode_links("UUPP", links, high)}
        assert left == set(ONTOLOGY.relation_names) - {name}


def test_a_chain_is_made_of_links_above_the_threshold_of_their_type():
    links = {"T1 SAME T2": 1.0, "T2 SAME T3": -1.0}
    assert list(decode_links("UUU", links, [0.9, 0.9, 0.9, 0.2])) == ["T1 SAME T2", "T2 SAME T3"]
    assert list(decode_links("UUU", links, [0.2, 0.2, 0.2, 0.5])) == ["T1 SAME T2"]


@given(st.text("UP", max_size=6), st.randoms(use_true_random=False))
def test_any_logits_give_sound_relations(types, random):
    entities, spans = mentions(types)
    pairs = candidate_pairs(spans, ONTOLOGY)
    logits = np.random.default_rng(random.getrandbits(32)).normal(0, 3, (len(pairs), 2, 4)).astype(np.float32)
    found = decode_relations(entities, spans, pairs, logits, ONTOLOGY, every(0.4))
    article = Article(id="a", text="x " * len(types), entities=tuple(entities), relations=tuple(found))
    assert check_article(article, ONTOLOGY) == []
    assert all(0.4 <= r.score <= 1 for r in found)
    order = [(int(r.head[1:]), int(r.tail[1:]), ONTOLOGY.relation_names.index(r.type)) for r in found]
    assert order == sorted(order)
    assert all(h < t for h, t, r in order if r >= 2)  # symmetric ones: earlier mention first
    chain = [(h, t) for h, t, r in order if r == 3]
    assert len({h for h, _ in chain}) == len({t for _, t in chain}) == len(chain)


@pytest.mark.parametrize(
    ("text", "first", "last", "expected"),
    [
        ("قال تنظيم “ الدولة ” اليوم", 1, 3, "تنظيم “ الدولة ”"),  # closed outside of the span
        ("قال تنظيم “ الدولة ” اليوم", 1, 4, "تنظيم “ الدولة ”"),
        ('قال تنظيم " الدولة " اليوم', 1, 3, 'تنظيم " الدولة "'),  # one mark for both
        ("« قسد » قالت", 0, 2, "قسد"),  # quoted whole: inside its quotes
        ("« قسد » قالت", 0, 1, "قسد"),
        ("« قسد » قالت", 1, 2, "قسد"),
        ("قسد ( الجناح ) و « كذا »", 0, 3, "قسد ( الجناح )"),
        ("داعش , وقال", 0, 1, "داعش"),
        ("عشرة من عناصر «", 0, 3, "عشرة من عناصر"),
        ("- داعش", 0, 1, "داعش"),
        ("خسر 90 % منها", 1, 2, "90 %"),  # a sign that is no punctuation
    ],
)
def test_spans_are_tidied(text: str, first: int, last: int, expected: str) -> None:
    words = text.split()
    (span,) = tidy_spans([Span(7 + first, 7 + last, PLACE)], words, offset=7)
    assert " ".join(words[span.first - 7 : span.last - 6]) == expected
    assert span.type == PLACE


def test_tidied_spans_never_meet() -> None:
    words = ["في", "«", "حلب", "»", "(", "إدلب", ")"]
    spans = [Span(1, 2, PLACE), Span(3, 5, UNIT)]  # the second begins with what would close the first
    assert tidy_spans(spans, words, 0) == [Span(2, 2, PLACE), Span(5, 5, UNIT)]
    assert tidy_spans([Span(1, 1, PLACE), Span(3, 4, PLACE)], words, 0) == []
