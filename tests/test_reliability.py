"""How often a score is right, by hand."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology
from rasid.scoring.figures import render_reliability
from rasid.scoring.metrics import score_entities, score_relations
from rasid.scoring.reliability import Bin, Reliability, entity_reliability, relation_reliability

TEXT = "a b c d e f"
ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["UNIT", "PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
            "SAME": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True, "transitive": True},
        },
    }
)
NOTHING = Reliability((), ())


def article(entities: str, *relations: str) -> Article:
    """`article("a:UNIT:0.9 b:PLACE", "a AT b 0.5")`; the ids of entities are their letters."""
    found = []
    for entity in entities.split():
        name, kind, *score = entity.split(":")
        at = TEXT.index(name)
        found.append(
            Entity(id=name, type=kind, start=at, end=at + 1, text=name, score=float(score[0]) if score else None)
        )
    parts = [r.split() for r in relations]
    links = [
        Relation(head=head, type=kind, tail=tail, score=float(score[0]) if score else None)
        for head, kind, tail, *score in parts
    ]
    return Article(id="x", text=TEXT, entities=tuple(found), relations=tuple(links))


def items(reliability: Reliability) -> set[tuple[float, bool]]:
    return set(zip(reliability.scores, reliability.right, strict=True))


def relations(gold: Article, predicted: Article) -> set[tuple[float, bool]]:
    return items(relation_reliability([(gold, predicted)], ONTOLOGY))


def test_bins_and_errors_by_hand() -> None:
    reliability = Reliability.of([(0.92, True), (0.98, True), (1.0, False), (0.55, True), (0.51, False), (0.0, False)])
    assert [b.count for b in reliability.bins] == [1, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    last = reliability.bins[9]
    assert (last.start, last.end, last.count) == (0.9, 1.0, 3)
    assert last.mean_score == pytest.approx(2.9 / 3)
    assert last.share_right == pytest.approx(2 / 3)
    assert reliability.bins[0] == Bin(0.0, 0.1, 1, 0.0, 0.0)
    assert reliability.bins[1] == Bin(0.1, 0.2, 0, None, None)
    # 1 · 0 + 2 · |0.53 − 0.5| + 3 · |2.9/3 − 2/3| over 6 items
    assert reliability.calibration_error == pytest.approx((0.06 + 0.9) / 6)
    assert reliability.share_right(0.9) == pytest.approx(2 / 3)
    assert reliability.share_right(0.98) == pytest.approx(1 / 2)  # the bound itself counts
    assert reliability.share_right(0.5) == pytest.approx(3 / 5)
    assert reliability.share_right(0.0) == pytest.approx(3 / 6)
    assert [reliability.count(at_least) for at_least in (0.0, 0.5, 0.9, 0.98, 1.0)] == [6, 5, 3, 2, 1]
    assert reliability.describe("entities") == (
        "Of the 3 entities that score 0.9 or more, 66.7 % are right; expected calibration error 16.0 points over 6."
    )


@pytest.mark.parametrize("tenth", range(11))
def test_a_score_on_a_border_is_in_the_bin_above(tenth: int) -> None:
    counts = [b.count for b in Reliability.of([(tenth / 10, True)]).bins]
    assert counts.index(1) == min(tenth, 9)


def test_no_scored_item_divides_nothing() -> None:
    assert NOTHING.calibration_error is NOTHING.share_right(0.0) is None
    assert NOTHING.describe("relations") == "No relations with a score."
    assert [b.count for b in NOTHING.bins] == [0] * 10
    plain = NOTHING.to_dict()
    assert plain["count"] == 0
    assert plain["sure"] == {"at_least": 0.9, "count": 0, "share_right": None}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_none_that_is_sure() -> None:
    unsure = Reliability.of([(0.75, True), (0.75, False)])
    assert unsure.share_right(0.9) is None
    assert unsure.describe("entities") == (
        "No entities score 0.9 or more; expected calibration error 25.0 points over 2."
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1))
def test_any_items(found: list[tuple[float, bool]]) -> None:
    reliability = Reliability.of(found)
    assert sum(b.count for b in reliability.bins) == len(found)
    assert all(b.start <= b.mean_score <= b.end + 1e-9 for b in reliability.bins if b.mean_score is not None)
    assert 0 <= reliability.calibration_error <= 1
    assert reliability.share_right(0.0) == pytest.approx(sum(right for _, right in found) / len(found))
    assert json.loads(json.dumps(reliability.to_dict(), allow_nan=False)) == reliability.to_dict()


def test_an_entity_is_right_with_its_span_and_type() -> None:
    gold = article("a:UNIT b:UNIT c:PLACE")
    predicted = article("a:UNIT:0.9 b:PLACE:0.8 d:UNIT:0.7 c:PLACE")  # the last one has no score
    reliability = entity_reliability([(gold, predicted), (gold, gold)])
    assert items(reliability) == {(0.9, True), (0.8, False), (0.7, False)}
    longer = Entity(id="a", type="UNIT", start=0, end=3, text="a b", score=0.6)
    assert items(entity_reliability([(gold, Article(id="x", text=TEXT, entities=(longer,)))])) == {(0.6, False)}


def test_an_entity_marked_twice_counts_once() -> None:
    twice = article("a:UNIT:0.5 a:UNIT:0.7 a:UNIT:0.6")
    assert entity_reliability([(article("a:UNIT"), twice)]) == Reliability((0.7,), (True,))


def test_a_relation_is_right_with_type_direction_and_both_ends() -> None:
    gold = article("a:UNIT b:PLACE c:UNIT d:PLACE", "a AT b", "c AT d", "a WITH c")
    ends = "a:UNIT:0.9 b:PLACE:0.9 c:UNIT:0.9 d:UNIT:0.9"  # d is of another type than in gold
    predicted = article(ends, "a AT b 0.9", "c AT d 0.8", "c WITH a 0.7", "c AT a 0.6", "b AT a 0.5", "a AT c")
    assert relations(gold, predicted) == {(0.9, True), (0.8, False), (0.7, True), (0.6, False), (0.5, False)}


def test_a_symmetric_relation_stated_both_ways_counts_once() -> None:
    gold = article("a:UNIT b:UNIT", "a WITH b")
    predicted = article("a:UNIT b:UNIT", "b WITH a 0.6", "a WITH b 0.4")
    assert relation_reliability([(gold, predicted)], ONTOLOGY) == Reliability((0.6,), (True,))


def test_groups_are_compared_as_chains() -> None:
    units = "a:UNIT b:UNIT c:UNIT d:UNIT"
    star = article(units, "a SAME b", "a SAME c")
    chain = article(units, "a SAME b 0.9", "c SAME b 0.8", "c SAME d 0.7")
    assert relations(star, chain) == {(0.9, True), (0.8, True), (0.7, False)}
    # b–c of the star's chain is stated by nobody, and a–c is no link of the chain: neither has a score of its own.
    scored = article(units, "a SAME b 0.9", "a SAME c 0.8", "a SAME a 0.7")
    assert relations(chain, scored) == {(0.9, True)}


def test_errors_are_those_of_the_scores() -> None:
    with pytest.raises(DataError, match="unknown type"):
        relation_reliability([(article("a:UNIT b:UNIT"), article("a:UNIT b:UNIT", "a NEAR b 0.5"))], ONTOLOGY)


def test_the_items_are_those_of_the_scores() -> None:
    gold = article("a:UNIT b:UNIT c:UNIT d:PLACE", "a SAME b", "b SAME c", "a AT d")
    predicted = article(
        "a:UNIT:0.9 b:UNIT:0.9 c:UNIT:0.9 d:UNIT:0.4", "a SAME b 0.9", "b SAME c 0.8", "a AT d 0.7", "a WITH b 0.6"
    )
    pairs = [(gold, predicted)]
    for reliability, table in (
        (entity_reliability(pairs), score_entities(pairs, ONTOLOGY, samples=0)),
        (relation_reliability(pairs, ONTOLOGY), score_relations(pairs, ONTOLOGY, samples=0)),
    ):
        assert (len(reliability.scores), sum(reliability.right)) == (table.micro.tp + table.micro.fp, table.micro.tp)
        assert reliability.share_right(0.0) == pytest.approx(table.micro.precision)


@pytest.mark.parametrize(
    "curves",
    [
        {"entities": Reliability.of([(0.95, True)] * 1200 + [(0.4, False)]), "relations": NOTHING},
        {"entities": NOTHING},
        {},
    ],
    ids=["one", "nothing", "none"],
)
@pytest.mark.filterwarnings("error")
def test_the_picture(curves: dict[str, Reliability]) -> None:
    picture = render_reliability(curves)
    assert render_reliability(curves) == picture
    pixels = pytest.importorskip("matplotlib.image").imread(io.BytesIO(picture), format="png")
    assert 400 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) <= 2000
    assert pixels[..., :3].std() > 0.05  # not blank
