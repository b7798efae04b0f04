import json

import pytest

from rasid.errors import DataError
from rasid.records import (
    Article,
    Entity,
    Relation,
    check_article,
    check_text,
    find_problems,
    parse_article,
    read_articles,
    write_articles,
)
from rasid.schema import Ontology

ONTOLOGY = Ontology.parse(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
        },
    },
    "test",
)
TEXT = "وصلت قسد إلى حلب\nثم غادرت داعش"


def span(name: str, kind: str, surface: str, text: str = TEXT) -> Entity:
    start = text.index(surface)
    return Entity(id=name, type=kind, start=start, end=start + len(surface), text=surface)


QASD, HALAB, DAESH = span("T1", "UNIT", "قسد"), span("T2", "PLACE", "حلب"), span("T3", "UNIT", "داعش")


def article(entities=(QASD, HALAB), relations=(), **fields):
    return Article(**{"id": "a", "text": TEXT, "entities": tuple(entities), "relations": tuple(relations), **fields})


def link(kind, head, tail):
    return Relation(type=kind, head=head, tail=tail)


def test_sound_article_has_no_problems():
    assert check_article(article(relations=[link("AT", "T1", "T2")]), ONTOLOGY) == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            article([QASD.model_copy(update={"end": 999})]),
            r"entity T1 \[5, 999\) «قسد»: outside of the text, which has 30",
        ),
        (article([QASD.model_copy(update={"start": -1})]), "outside of the text"),
        (article([QASD.model_copy(update={"start": 8})]), "expected 0 <= start < end"),
        (article([QASD.model_copy(update={"text": "حلب"})]), "the text has «قسد» there; offsets count code points"),
        (article([span("T1", "UNIT", "حلب\nثم")]), "crosses a paragraph break; split it"),
        (article([QASD, HALAB.model_copy(update={"id": "T1"})]), "id used twice"),
        (article([QASD, span("T2", "PLACE", "سد إلى")]), r"entities T1 \[5, 8\) and T2 \[6, 12\) overlap"),
        (article([span("T1", "SHIP", "قسد")]), "unknown type SHIP; the ontology has UNIT, PLACE"),
        (article(relations=[link("AT", "T1", "T9")]), "relation AT T1 → T9: no entity T9 in the article"),
        (article(relations=[link("AT", "T8", "T9")]), "no entity T8 or T9"),
        (
            article(relations=[link("NEAR", "T1", "T2")]),
            "relation NEAR T1 → T2: unknown type; the ontology has AT, WITH",
        ),
        (article(relations=[link("AT", "T2", "T1")]), "does not let AT join PLACE «حلب» to UNIT «قسد»"),
        (article(relations=[link("WITH", "T1", "T1")]), "joins an entity to itself"),
        (article([QASD, DAESH], [link("WITH", "T1", "T3")]), "its ends are in different paragraphs"),
        (article(relations=[link("AT", "T1", "T2")] * 2), "marked twice"),
    ],
)
def test_each_problem_is_named(broken, message):
    problems = check_article(broken, ONTOLOGY)
    assert len(problems) == 1
    with pytest.raises(DataError, match=message):
        parse_article(broken.to_json(), "f.jsonl:1", ONTOLOGY)


def test_symmetric_relation_in_both_directions_is_one_too_many():
    text = "قسد وداعش"
    pair = (span("T1", "UNIT", "قسد", text), span("T2", "UNIT", "داعش", text))
    twice = Article(id="a", text=text, entities=pair, relations=(link("WITH", "T1", "T2"), link("WITH", "T2", "T1")))
    assert "marked twice" in check_article(twice, ONTOLOGY)[0]
    assert check_article(twice) == []  # without an ontology nobody knows that it is symmetric


def test_one_long_span_over_two_short_ones_is_reported_for_both():
    long = span("T9", "UNIT", "وصلت قسد إلى حلب")
    problems = find_problems(article([long, QASD, HALAB]), ONTOLOGY)
    assert [item for item, _ in problems] == [QASD, HALAB]


def test_all_problems_come_in_one_error_with_file_and_line():
    broken = article([QASD.model_copy(update={"end": 999, "type": "SHIP"})], [link("AT", "T1", "T9")])
    with pytest.raises(DataError) as caught:
        parse_article(broken.to_json(), "f.jsonl:7", ONTOLOGY)
    lines = str(caught.value).split("\n")
    assert len(lines) == 3
    assert all(line.startswith("f.jsonl:7: ") for line in lines)


def test_round_trip_keeps_everything_and_leaves_unset_fields_out(tmp_path):
    first = article(
        [QASD.model_copy(update={"score": 0.5, "normalized": "قسد"})], meta={"n": 1, "none": None, "l": ["أ"]}
    )
    second = article(id="b", relations=[link("AT", "T1", "T2")])
    path = tmp_path / "c.jsonl"
    assert write_articles([first, second], path) == 2
    assert list(read_articles(path, ONTOLOGY)) == [first, second]
    raw = path.read_text(encoding="utf-8")
    assert "قسد" in raw
    assert "score" not in json.loads(raw.splitlines()[1])["entities"][0]


def test_reading_names_the_line_of_the_problem(tmp_path):
    path = tmp_path / "c.jsonl"
    good = article().to_json()
    path.write_text(f"{good}\n\n{{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl:3: not an article record: .*Invalid JSON"):
        list(read_articles(path))
    path.write_text(f"\ufeff{good}\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl:2: id a is that of line 1 too"):
        list(read_articles(path))
    path.write_text('{"id": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl:1: .*text: Field required"):
        list(read_articles(path))
    path.write_text('{"id": "a", "text": "x", "spans": []}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"c\.jsonl:1: .*spans: Extra inputs"):
        list(read_articles(path))
    path.write_bytes("قسد".encode("cp1256"))
    with pytest.raises(DataError, match=r"c\.jsonl: not UTF-8"):
        list(read_articles(path))
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read"):
        list(read_articles(tmp_path / "no.jsonl"))


@pytest.mark.parametrize("field", ['"start": "0"', '"start": true', '"end": 3.0', '"score": 1.5', '"score": NaN'])
def test_numbers_are_not_guessed(field):
    good = '{"id": "T1", "type": "UNIT", "start": 0, "end": 3, "text": "قسد", "score": 0.5}'
    name = field.split(":")[0]
    bad = ", ".join(field if part.startswith(name) else part for part in good[1:-1].split(", "))
    line = '{"id": "a", "text": "قسد", "entities": [%s]}'
    parse_article(line % good, "here")
    with pytest.raises(DataError, match=rf"here: not an article record: entities\.0\.{name[1:-1]}: "):
        parse_article(line % f"{{{bad}}}", "here")


def test_lone_surrogates_are_refused():
    assert check_text("🚀 قسد") == "🚀 قسد"
    with pytest.raises(DataError, match=r"lone surrogate U\+D83D at character 2"):
        check_text("ab\ud83d")


def test_entity_lookup_by_id():
    assert article().entity("T2") is HALAB
    with pytest.raises(KeyError):
        article().entity("T9")
