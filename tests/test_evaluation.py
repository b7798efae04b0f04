"""Evaluation of a canned extractor, and the files of a report."""

import io
import json
import logging
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from rasid.errors import ConfigError, DataError
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology
from rasid.scoring.evaluation import Evaluation, evaluate, word_report
from rasid.scoring.figures import render_confusion
from rasid.scoring.report import find_errors, render_errors, render_summary

ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "NEAR": {"head": ["UNIT"], "tail": ["PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
        },
    }
)
FIRST = "دخل اللواء إلى حلب <script>alert(1)</script>\nوصل الفوج مع الفرقة إلى حمص ثم حماة"
SECOND = "هدوء في حلب"


def article(name: str, text: str, spans: dict[str, str], *relations: tuple[str, str, str]) -> Article:
    """Entities are given by their text, which is their id too."""
    entities = tuple(
        Entity(id=span, type=kind, start=text.index(span), end=text.index(span) + len(span), text=span)
        for span, kind in spans.items()
    )
    found = tuple(Relation(head=head, type=kind, tail=tail) for head, kind, tail in relations)
    return Article(id=name, text=text, entities=entities, relations=found)


GOLD = [
    article("quiet", SECOND, {"حلب": "PLACE"}),
    article(
        "<b>first</b>",
        FIRST,
        {"اللواء": "UNIT", "حلب": "PLACE", "الفوج": "UNIT", "الفرقة": "UNIT", "حمص": "PLACE", "حماة": "PLACE"},
        ("اللواء", "AT", "حلب"),
        ("الفوج", "WITH", "الفرقة"),
        ("الفوج", "AT", "حمص"),
        ("الفرقة", "AT", "حماة"),
    ),
]
PREDICTED = {
    SECOND: article("1", SECOND, {"حلب": "PLACE"}),
    FIRST: article(
        "2",
        FIRST,
        {"دخل": "UNIT", "اللواء": "PLACE", "الفوج": "UNIT", "الفرقة": "UNIT", "إلى حمص": "PLACE", "حلب": "PLACE"},
        ("دخل", "AT", "حلب"),
        ("الفرقة", "WITH", "الفوج"),
        ("الفوج", "NEAR", "إلى حمص"),
    ),
}


class Canned:
    """Returns what it was given beforehand; between gold entities it finds nothing but the first gold relation."""

    def __init__(self, ontology: Ontology = ONTOLOGY) -> None:
        self.ontology = ontology
        self.seen: list[Article] = []

    def pipe(self, texts: Iterable[str]) -> Iterator[Article]:
        return (PREDICTED[text] for text in texts)

    def relate(self, article: Article) -> Article:
        self.seen.append(article)
        gold = next(g for g in GOLD if g.id == article.id)
        return article.model_copy(update={"relations": gold.relations[:1]})


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(Canned(), GOLD, ONTOLOGY, samples=50)


def test_scores(evaluation: Evaluation) -> None:
    entities, relations = evaluation.entities, evaluation.relations
    assert (entities.micro.tp, entities.micro.fp, entities.micro.fn) == (4, 3, 3)
    assert (evaluation.boundaries.micro.tp, evaluation.boundaries.micro.fp, evaluation.boundaries.micro.fn) == (5, 2, 2)
    assert list(relations) == ["boundaries", "strict", "gold entities"]
    for name in ("boundaries", "strict"):
        assert (relations[name].micro.tp, relations[name].micro.fp, relations[name].micro.fn) == (1, 2, 3)
    assert (relations["gold entities"].micro.tp, relations["gold entities"].micro.fn) == (1, 3)


def test_reliability_is_that_of_the_predictions() -> None:
    class Scored(Canned):
        def pipe(self, texts: Iterable[str]) -> Iterator[Article]:
            for found in super().pipe(texts):
                entities = tuple(e.model_copy(update={"score": 0.95}) for e in found.entities)
                relations = tuple(r.model_copy(update={"score": 0.85}) for r in found.relations)
                yield found.model_copy(update={"entities": entities, "relations": relations})

    result = evaluate(Scored(), GOLD, ONTOLOGY, samples=0)
    entities, relations = result.reliability["entities"], result.reliability["relations"]
    assert (entities.count(0.9), entities.share_right(0.9)) == (7, pytest.approx(4 / 7))
    assert (relations.count(0.8), relations.share_right(0.8)) == (3, pytest.approx(1 / 3))
    summary = render_summary(2, result.entities, result.boundaries, result.relations, result.reliability)
    assert "\nOf the 7 entities that score 0.9 or more, 57.1 % are right; expected calibration error 37.9 " in summary
    assert "\nNo relations score 0.9 or more; expected calibration error 51.7 points over 3.\n\n## Ent" in summary


def test_the_extractor_never_sees_gold_relations() -> None:
    extractor = Canned()
    evaluate(extractor, GOLD, ONTOLOGY, samples=0)
    assert [a.id for a in extractor.seen] == [a.id for a in GOLD]
    assert all(a.relations == () for a in extractor.seen)
    assert [a.entities for a in extractor.seen] == [a.entities for a in GOLD]


def test_ontology_without_relations() -> None:
    bare = Ontology(entity_types=("UNIT", "PLACE"))
    extractor = Canned(bare)
    result = evaluate(extractor, [GOLD[0]], bare, samples=0)
    assert result.relations == {}
    assert extractor.seen == []
    assert set(result.reliability) == {"entities"}
    summary = render_summary(1, result.entities, result.boundaries, result.relations, result.reliability)
    assert "## Relations" not in summary
    assert "\nNo entities with a score.\n\n" in summary


def test_types_of_extractor_and_ontology(caplog: pytest.LogCaptureFixture) -> None:
    class Places(Canned):
        def relate(self, article: Article) -> Article:
            assert {e.type for e in article.entities} == {"PLACE"}  # the real one refuses types it does not know
            return article

    places = Ontology(entity_types=("PLACE",), relation_types={})
    with pytest.raises(ConfigError, match=r"entity types \['UNIT'\], which the ontology lacks"):
        evaluate(Canned(), GOLD, places)
    with caplog.at_level(logging.WARNING):
        result = evaluate(Places(places), GOLD, ONTOLOGY, samples=0)
    assert "cannot predict the entity types ['UNIT']" in caplog.text
    assert result.relations["gold entities"].micro.fn == 4


def test_an_extractor_that_loses_articles_is_an_error() -> None:
    class Lossy(Canned):
        def pipe(self, texts: Iterable[str]) -> Iterator[Article]:
            return iter(list(super().pipe(texts))[:-1])

    with pytest.raises(DataError, match="1 articles for 2 texts"):
        evaluate(Lossy(), GOLD, ONTOLOGY)


def test_no_articles_are_an_error() -> None:
    with pytest.raises(DataError, match="no articles to evaluate on"):
        evaluate(Canned(), [], ONTOLOGY)


def test_a_gold_entity_without_a_word_is_a_miss_and_stops_nothing() -> None:
    text = "دخل \u200f حلب"
    gold = article("marks", text, {"\u200f": "UNIT", "حلب": "PLACE"}, ("\u200f", "AT", "حلب"))

    class Real(Canned):
        def pipe(self, texts: Iterable[str]) -> Iterator[Article]:
            return (Article(id="", text=t) for t in texts)

        def relate(self, article: Article) -> Article:
            assert [e.text for e in article.entities] == ["حلب"]  # the real one refuses what covers no word
            return article

    result = evaluate(Real(), [gold], ONTOLOGY, samples=0)
    assert result.entities.micro.fn == 2
    assert result.relations["gold entities"].micro.fn == 1


def test_a_report_that_cannot_be_written_is_explained(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file: cannot be written: .*; give another folder"):
        evaluation.save(tmp_path / "file")


def test_save_writes_exactly_the_report(evaluation: Evaluation, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    written = evaluation.save(folder)
    names = {"metrics.json", "entities.txt", "confusion.png", "reliability.png", "errors.html", "report.md"}
    assert {p.name for p in folder.iterdir()} == {p.name for p in written} == names
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == names

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == json.loads(json.dumps(evaluation.to_dict()))
    assert metrics["articles"] == 2
    unit = metrics["entities"]["exact"]["per_type"]["UNIT"]
    assert (unit["tp"], unit["fp"], unit["fn"]) == (2, 1, 1)
    assert set(metrics["relations"]) == {"boundaries", "strict", "gold entities"}
    low, high = metrics["relations"]["strict"]["micro"]["interval"]
    assert 0 <= low <= metrics["relations"]["strict"]["micro"]["f1"] <= high <= 1
    assert metrics["confusion"]["exact"] == [[2, 1, 0], [0, 2, 1], [1, 0, 0]]
    assert metrics["confusion"]["overlapping"] == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]

    assert set(metrics["reliability"]) == {"entities", "relations"}
    assert metrics["reliability"]["entities"]["count"] == 0  # the canned predictions have no scores

    assert "micro avg" in (folder / "entities.txt").read_text(encoding="utf-8")
    summary = (folder / "report.md").read_text(encoding="utf-8")
    assert summary.startswith("# Evaluation\n\n2 articles.")
    assert "| UNIT | 3 | 3 | 66.7 | 66.7 | 66.7 [" in summary
    assert "| type | gold | boundaries | strict | gold entities |" in summary
    before = {p.name: p.read_bytes() for p in written}
    assert {p.name: p.read_bytes() for p in evaluation.save(folder)} == before


def test_word_report_matches_exact_scores_where_words_are_whole(evaluation: Evaluation) -> None:
    report = word_report(evaluation.pairs)
    row = next(line for line in report.splitlines() if "micro avg" in line)
    score = evaluation.entities.micro
    assert row.split()[2:] == [f"{score.precision:.4f}", f"{score.recall:.4f}", f"{score.f1:.4f}", "7"]
    assert report.endswith("not in this report: 0\n")


def test_word_report_counts_entities_without_a_word() -> None:
    text = "والفرقة"
    whole = article("x", text, {"و": "PLACE", "الفرقة": "UNIT"})
    assert word_report([(whole, whole)]).endswith("not in this report: 1\n")


def test_word_report_of_nothing() -> None:
    empty = Article(id="x", text="")
    assert word_report([]) == word_report([(empty, empty)]) == "no entities, neither in gold nor predicted\n"


@pytest.mark.parametrize("module", ["seqeval.metrics", "matplotlib", "jinja2"])
def test_a_missing_package_leaves_no_report(
    module: str, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs {module.split('.')[0]}: pip install 'rasid\[train\]'"):
        evaluation.save(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_a_png_of_sensible_size(evaluation: Evaluation) -> None:
    picture = render_confusion(evaluation.confusion)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert 400 <= width <= 2000
    assert 300 <= height <= 2000
    pixels = pytest.importorskip("matplotlib.image").imread(io.BytesIO(picture), format="png")
    assert pixels.shape[:2] == (height, width)
    assert pixels[..., :3].std() > 0.05  # not blank


def test_error_page_escapes_what_it_quotes(evaluation: Evaluation) -> None:
    page = render_errors(evaluation.pairs, ONTOLOGY)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<b>first" not in page
    assert "&lt;b&gt;first" in page
    assert 'dir="rtl"' in page
    assert "http" not in page  # self-contained
    assert "Articles with errors: 1; shown: 1" in page
    assert ">quiet<" not in page


def test_errors_of_an_article() -> None:
    predicted = PREDICTED[FIRST].model_copy(update={"id": GOLD[1].id})
    errors = find_errors(GOLD[1], predicted, ONTOLOGY)
    assert (errors.entities, errors.links) == (4, 5)
    one, two = errors.paragraphs
    assert "".join(s.text for s in one.gold) == "".join(s.text for s in one.predicted) == FIRST.split("\n")[0]
    assert [(s.text, s.kind, s.type) for s in one.gold if s.kind] == [
        ("اللواء", "type", "UNIT"),
        ("حلب", "correct", "PLACE"),
    ]
    assert [(s.text, s.kind) for s in one.predicted if s.kind] == [
        ("دخل", "spurious"),
        ("اللواء", "type"),
        ("حلب", "correct"),
    ]
    assert [(e.kind, e.lacking) for e in one.links] == [("spurious", ("دخل",)), ("missed", ())]
    assert [(s.text, s.kind) for s in two.gold if s.kind][2:] == [("حمص", "boundaries"), ("حماة", "missed")]
    assert [(e.kind, e.lacking) for e in two.links] == [
        ("missed", ("حمص",)),
        ("spurious", ("إلى حمص",)),
        ("missed", ("حماة",)),
    ]


def test_the_same_spans_joined_otherwise_are_one_error() -> None:
    spans = {"الفوج": "UNIT", "حمص": "PLACE"}
    gold = article("x", FIRST, spans, ("الفوج", "AT", "حمص"))
    for wrong in (("الفوج", "NEAR", "حمص"), ("حمص", "AT", "الفوج")):
        (paragraph,) = find_errors(gold, article("x", FIRST, spans, wrong), ONTOLOGY).paragraphs
        (error,) = paragraph.links
        assert error.kind == "type"
        assert error.gold == ("AT", "الفوج", "حمص")
        assert error.predicted == (wrong[1], wrong[0], wrong[2])


def test_worst_article_first_and_a_limit() -> None:
    texts = [article(str(i), SECOND, {}) for i in range(3)]
    predicted = [
        article("0", SECOND, {"حلب": "PLACE"}),
        article("1", SECOND, {"هدوء": "UNIT", "حلب": "PLACE"}),
        article("2", SECOND, {}),
    ]
    pairs = list(zip(texts, predicted, strict=True))
    page = render_errors(pairs, ONTOLOGY)
    assert page.index("<bdi>1</bdi>: 2 entity errors") < page.index("<bdi>0</bdi>: 1 entity errors")
    assert "<bdi>2</bdi>" not in page
    page = render_errors(pairs, ONTOLOGY, max_articles=1)
    assert "Articles with errors: 2; shown: 1" in page
    assert "<bdi>0</bdi>" not in page
