"""Scores by hand, the traps of other scorers, and properties that hold for any article."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology
from rasid.scoring.metrics import Table, align, confusion, links, score_entities, score_relations, word_tags

TEXT = "a b c d e f g h i j"  # entity n of a test is the letter at 2 n
ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE", "DAY"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["UNIT", "PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
            "SAME": {
                "head": ["UNIT", "PLACE"],
                "tail": ["UNIT", "PLACE"],
                "symmetric": True,
                "transitive": True,
                "same_type": True,
            },
        },
    }
)


def article(entities: dict[str, str] | list[Entity] | None = None, *relations: str, text: str = TEXT) -> Article:
    """`article({"a": "UNIT", "c": "PLACE"}, "a AT c")`; the ids of entities are their letters."""
    if not isinstance(entities, list):
        entities = [entity(text.index(at), text.index(at) + 1, name) for at, name in (entities or {}).items()]
    parts = [r.split() for r in relations]
    found = tuple(Relation(head=head, type=name, tail=tail) for head, name, tail in parts)
    return Article(id="x", text=text, entities=tuple(entities), relations=found)


def entity(start: int, end: int, name: str) -> Entity:
    return Entity(id=TEXT[start], type=name, start=start, end=end, text=TEXT[start:end])


def counts(table: Table, name: str) -> tuple[int, int, int]:
    score = table.per_type[name]
    return score.tp, score.fp, score.fn


def relations_of(gold: Article, predicted: Article, typed: bool = True) -> Table:
    return score_relations([(gold, predicted)], ONTOLOGY, typed=typed, samples=0)


def test_entities_by_hand() -> None:
    gold = article({"a": "UNIT", "b": "UNIT", "c": "UNIT", "d": "PLACE"})
    predicted = article({"a": "UNIT", "b": "PLACE", "d": "PLACE", "e": "UNIT"})
    table = score_entities([(gold, predicted)], ONTOLOGY, samples=0)
    assert counts(table, "UNIT") == (1, 1, 2)
    assert counts(table, "PLACE") == (1, 1, 0)
    assert counts(table, "DAY") == (0, 0, 0)
    assert (table.micro.tp, table.micro.fp, table.micro.fn) == (2, 2, 2)
    assert table.per_type["UNIT"].precision == pytest.approx(1 / 2)
    assert table.per_type["UNIT"].recall == pytest.approx(1 / 3)
    assert table.per_type["UNIT"].f1 == pytest.approx(2 / 5)
    assert table.micro.f1 == pytest.approx(1 / 2)
    # DAY is neither in gold nor predicted, so the mean is over two types.
    assert table.macro.precision == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert table.macro.recall == pytest.approx((1 / 3 + 1) / 2)
    assert table.macro.f1 == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert table.micro.interval is None


def test_boundaries_ignore_the_type() -> None:
    gold = article({"a": "UNIT", "b": "UNIT"})
    predicted = article({"a": "PLACE", "c": "DAY"})
    table = score_entities([(gold, predicted)], ONTOLOGY, typed=False, samples=0)
    assert counts(table, "UNIT") == (1, 0, 1)
    assert counts(table, "PLACE") == (0, 0, 0)
    assert counts(table, "DAY") == (0, 1, 0)


def test_a_proclitic_in_the_span_is_another_span() -> None:
    gold, predicted = article([entity(2, 5, "UNIT")]), article([entity(0, 5, "UNIT")])
    for typed in (True, False):
        table = score_entities([(gold, predicted)], ONTOLOGY, typed=typed, samples=0)
        assert counts(table, "UNIT") == (0, 1, 1)


def test_relations_by_hand() -> None:
    gold = article({"a": "UNIT", "b": "PLACE", "c": "UNIT", "d": "PLACE"}, "a AT b", "c AT d", "a WITH c")
    predicted = article({"a": "UNIT", "b": "PLACE", "c": "UNIT", "d": "UNIT"}, "a AT b", "c AT d", "a AT d")
    boundaries, strict = relations_of(gold, predicted, typed=False), relations_of(gold, predicted)
    assert counts(boundaries, "AT") == (2, 1, 0)
    assert counts(strict, "AT") == (1, 2, 1)  # the type of d is wrong
    assert counts(boundaries, "WITH") == counts(strict, "WITH") == (0, 0, 1)
    assert boundaries.micro.f1 == pytest.approx(4 / 6)
    assert boundaries.macro.f1 == pytest.approx((4 / 5 + 0) / 2)


def test_a_relation_whose_end_was_not_predicted_is_a_miss() -> None:
    gold = article({"a": "UNIT", "b": "PLACE", "c": "UNIT"}, "a AT b", "c AT b")
    predicted = article({"a": "UNIT", "b": "PLACE"}, "a AT b")
    for typed in (True, False):
        assert counts(relations_of(gold, predicted, typed), "AT") == (1, 0, 1)
    assert counts(relations_of(gold, article()), "AT") == (0, 0, 2)


def test_direction_counts_unless_symmetric() -> None:
    ends = {"a": "UNIT", "b": "UNIT"}
    assert counts(relations_of(article(ends, "a AT b"), article(ends, "b AT a")), "AT") == (0, 1, 1)
    assert counts(relations_of(article(ends, "a WITH b"), article(ends, "b WITH a")), "WITH") == (1, 0, 0)
    both = article(ends, "a WITH b", "b WITH a")
    assert counts(relations_of(article(ends, "a WITH b"), both), "WITH") == (1, 0, 0)


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac"])
def test_chain_and_star_score_alike(order: str) -> None:
    ends = dict.fromkeys("abcd", "UNIT")
    chain = article(ends, "a SAME b", "b SAME c", "c SAME d")
    center = order[0]
    star = article(ends, *(f"{center} SAME {other}" for other in order[1:]))
    for gold, predicted in ((chain, star), (star, chain)):
        assert counts(relations_of(gold, predicted), "SAME") == (3, 0, 0)


def test_groups_by_hand() -> None:
    ends = dict.fromkeys("abcde", "UNIT")
    gold = article(ends, "a SAME b", "b SAME c", "d SAME e")  # a-b, b-c, d-e
    predicted = article(ends, "a SAME c", "c SAME d")  # a-c, c-d
    assert counts(relations_of(gold, predicted), "SAME") == (0, 2, 3)
    merged = article(ends, "a SAME e", "b SAME e", "c SAME e", "d SAME e")  # a-b, b-c, c-d, d-e
    assert counts(relations_of(gold, merged), "SAME") == (3, 1, 0)


def test_groups_keep_types_apart_in_strict_mode() -> None:
    gold = article({"a": "UNIT", "b": "UNIT", "c": "UNIT"}, "a SAME b", "b SAME c")
    predicted = article({"a": "UNIT", "b": "UNIT", "c": "PLACE"}, "a SAME b", "b SAME c")
    assert counts(relations_of(gold, predicted), "SAME") == (1, 1, 1)
    assert counts(relations_of(gold, predicted, typed=False), "SAME") == (2, 0, 0)


def test_nothing_scores_zero_without_intervals() -> None:
    for pairs in ([], [(article(text=""), article(text=""))], [(article(), article())]):
        for table in (score_entities(pairs, ONTOLOGY, samples=10), score_relations(pairs, ONTOLOGY, samples=10)):
            assert (table.micro.f1, table.macro.f1) == (0.0, 0.0)
            assert table.micro.interval is None
            assert table.macro.interval is None
    no_relations = Ontology(entity_types=("UNIT", "PLACE", "DAY"))
    assert score_relations([(article(), article())], no_relations, samples=10).per_type == {}


def test_spurious_in_an_empty_document() -> None:
    table = score_entities([(article(), article({"a": "DAY"}))], ONTOLOGY, samples=0)
    assert counts(table, "DAY") == (0, 1, 0)
    assert table.micro.precision == 0.0


def test_interval() -> None:
    right = (article({"a": "UNIT"}), article({"a": "UNIT"}))
    wrong = (article({"a": "UNIT"}), article({"b": "UNIT"}))
    table = score_entities([right, wrong] * 20, ONTOLOGY, seed=3)
    assert table == score_entities([right, wrong] * 20, ONTOLOGY, seed=3)
    few = {score_entities([right, wrong] * 20, ONTOLOGY, samples=9, seed=seed).micro.interval for seed in range(5)}
    assert len(few) > 1
    assert table.micro.interval is not None
    # F1 is the share of right articles here: binomial with n = 40 and p = 0.5.
    deviation = np.sqrt(0.25 / 40)
    assert table.micro.interval == pytest.approx((0.5 - 1.96 * deviation, 0.5 + 1.96 * deviation), abs=0.03)
    assert table.per_type["UNIT"].interval == table.macro.interval == table.micro.interval
    assert table.per_type["DAY"].interval is None
    assert score_entities([right] * 5, ONTOLOGY).micro.interval == (1.0, 1.0)


def test_a_type_in_few_articles_is_left_out_where_it_was_not_drawn() -> None:
    pairs = [(article({"a": "UNIT"}), article({"a": "UNIT"}))] * 9 + [(article({"a": "DAY"}), article({"a": "DAY"}))]
    table = score_entities(pairs, ONTOLOGY)
    assert table.per_type["DAY"].interval == (1.0, 1.0)
    assert table.macro.interval == (1.0, 1.0)


def test_confusion_by_hand() -> None:
    gold = article([entity(0, 1, "UNIT"), entity(2, 3, "UNIT"), entity(4, 7, "PLACE"), entity(8, 9, "DAY")])
    predicted = article([entity(0, 1, "UNIT"), entity(2, 3, "PLACE"), entity(6, 7, "UNIT"), entity(12, 13, "DAY")])
    matrix = confusion([(gold, predicted)], ONTOLOGY)
    assert matrix.exact.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert matrix.overlapping.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert matrix.to_dict()["types"] == ["UNIT", "PLACE", "DAY"]
    assert [a.kind for a in align(gold, predicted)] == ["correct", "type", "both", "missed", "spurious"]


def test_alignment_is_one_to_one_and_prefers_the_longest_overlap() -> None:
    gold = article([entity(0, 7, "UNIT"), entity(8, 9, "DAY")])
    predicted = article([entity(0, 1, "UNIT"), entity(2, 7, "UNIT"), entity(8, 9, "DAY")])
    aligned = [(a.gold and a.gold.id, a.predicted and a.predicted.id, a.kind) for a in align(gold, predicted)]
    assert sorted(aligned, key=str) == sorted(
        [("a", "b", "boundaries"), (None, "a", "spurious"), ("e", "e", "correct")], key=str
    )


def test_word_tags() -> None:
    words = [(0, 3), (4, 5), (6, 9), (10, 11)]  # "a b", "c", "d e", "f"
    assert word_tags(words, [entity(6, 9, "DAY"), entity(2, 5, "UNIT")]) == ["B-UNIT", "I-UNIT", "B-DAY", "O"]
    # Two entities share the first word: the earlier keeps it, and the later begins at its next word.
    assert word_tags(words, [entity(0, 1, "UNIT"), entity(2, 5, "UNIT")]) == ["B-UNIT", "B-UNIT", "O", "O"]
    assert word_tags(words, [entity(0, 1, "UNIT"), entity(2, 3, "DAY")]) == ["B-UNIT", "O", "O", "O"]
    assert word_tags([], [entity(0, 1, "UNIT")]) == []
    assert word_tags(words, []) == ["O"] * 4


def test_seqeval_is_strict_only_when_told_twice() -> None:
    """Why the report passes both `mode` and `scheme`: gold B-X against predicted I-X must not score."""
    seqeval = pytest.importorskip("seqeval.metrics")
    scheme = pytest.importorskip("seqeval.scheme").IOB2
    gold, predicted = [["B-UNIT", "I-UNIT", "O"]], [["I-UNIT", "I-UNIT", "O"]]

    def f1(**options: object) -> float:
        report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0, **options)
        return float(report["micro avg"]["f1-score"])

    assert f1(scheme=scheme) == 1.0
    assert f1(mode="strict", scheme=scheme) == 0.0


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (Article(id="y", text=TEXT), "article x: is scored against article y"),
        (Article(id="x", text="other"), "article x: has another text"),
        (article({"a": "PERSON"}), "PERSON"),
        (article({"a": "UNIT", "b": "UNIT"}, "a LIKES b"), "LIKES a → b: unknown type; the ontology has AT"),
        (article({"a": "UNIT"}, "a AT q"), "no entity q in the article"),
    ],
)
def test_errors_name_the_article(predicted: Article, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        relations_of(article({"a": "UNIT"}), predicted)


@st.composite
def articles(draw: st.DrawFn) -> Article:
    letters = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=6))
    entities = {letter: draw(st.sampled_from(ONTOLOGY.entity_types)) for letter in letters}
    pairs = [(a, b) for a in letters for b in letters if a != b]
    triples = st.tuples(st.sampled_from(ONTOLOGY.relation_names), st.sampled_from(pairs)) if pairs else st.nothing()
    relations = draw(st.lists(triples, max_size=8)) if pairs else []
    return article(entities, *(f"{a} {name} {b}" for name, (a, b) in relations))


@given(articles(), st.booleans())
def test_gold_against_gold_is_perfect(gold: Article, typed: bool) -> None:
    for score, items in ((score_entities, gold.entities), (score_relations, links(gold, ONTOLOGY, typed=typed))):
        table = score([(gold, gold)], ONTOLOGY, typed=typed, samples=20)
        perfect = 1.0 if items else 0.0
        assert (table.micro.precision, table.micro.recall, table.micro.f1, table.macro.f1) == (perfect,) * 4
        assert table.micro.interval == ((1.0, 1.0) if items else None)


@given(articles(), articles(), st.booleans())
def test_order_and_direction_of_symmetric_relations_do_not_matter(
    gold: Article, predicted: Article, typed: bool
) -> None:
    turned = tuple(
        r.model_copy(update={"head": r.tail, "tail": r.head}) if ONTOLOGY.relation_types[r.type].symmetric else r
        for r in reversed(predicted.relations)
    )
    shuffled = predicted.model_copy(update={"entities": predicted.entities[::-1], "relations": turned})
    assert relations_of(gold, predicted, typed) == relations_of(gold, shuffled, typed)
    assert confusion([(gold, predicted)], ONTOLOGY).to_dict() == confusion([(gold, shuffled)], ONTOLOGY).to_dict()


@given(articles(), articles())
def test_denominators_come_from_gold(gold: Article, predicted: Article) -> None:
    for typed in (True, False):
        expected = links(gold, ONTOLOGY, typed=typed)
        table = relations_of(gold, predicted, typed)
        for name, score in table.per_type.items():
            assert score.tp + score.fn == sum(link[0] == name for link in expected)
        entities = score_entities([(gold, predicted)], ONTOLOGY, typed=typed, samples=0)
        for name, score in entities.per_type.items():
            assert score.tp + score.fn == sum(e.type == name for e in gold.entities)
        assert entities.micro.tp + entities.micro.fp == len(predicted.entities)


@given(articles(), articles())
def test_confusion_accounts_for_every_entity(gold: Article, predicted: Article) -> None:
    matrix = confusion([(gold, predicted)], ONTOLOGY)
    cells = matrix.exact + matrix.overlapping
    for i, name in enumerate(ONTOLOGY.entity_types):
        assert cells[i].sum() == sum(e.type == name for e in gold.entities)
        assert cells[:, i].sum() == sum(e.type == name for e in predicted.entities)
    table = score_entities([(gold, predicted)], ONTOLOGY, samples=0)
    assert table.micro.tp == np.trace(matrix.exact)
