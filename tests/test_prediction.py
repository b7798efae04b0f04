"""Batches: one line per article, in order; whatever happens to one is told and does not touch the others."""

import json
from collections.abc import Iterator
from itertools import count

import pytest

from rasid.batch.prediction import AHEAD, Outcome, Summary, predict
from rasid.errors import DataError
from rasid.inference import Extractor
from rasid.parallel import ordered_map
from rasid.reading.documents import Document
from rasid.records import Article, Entity, Relation, parse_article
from rasid.settings import shipped_model


class Scripted:
    """An extractor that finds `قسد` and `حلب`, and fails as the text tells it to."""

    threads = 1

    def __call__(self, text: str, *, id: str = "", max_seconds: float | None = None) -> Article:
        if text == "refuse":
            raise DataError("cannot take this text")
        if text == "crash":
            raise ValueError("two\nlines \ud800")
        if text == "memory":
            raise MemoryError
        if text == "stop":
            raise KeyboardInterrupt
        entities = tuple(
            Entity(id=f"T{n}", type=kind, start=text.index(name), end=text.index(name) + 3, text=name, score=0.5)
            for n, (name, kind) in enumerate((("قسد", "UNIT"), ("حلب", "PLACE")), start=1)
            if name in text
        )
        relations = (Relation(type="AT", head="T1", tail="T2", score=0.75),) if len(entities) == 2 else ()
        return Article(id=id, text=text, entities=entities, relations=relations)


def documents(*articles: str | DataError) -> Iterator[Document]:
    for n, text in enumerate(articles):
        if isinstance(text, DataError):
            yield Document(f"in/{n}.txt", f"{n}.txt", None, str(text))
        else:
            yield Document(f"in/{n}.txt", f"{n}.txt", text, meta={"n": n})


def run(*articles: str | DataError, extractor=None) -> tuple[Summary, list[Article], list[dict], list[Outcome]]:
    """What a batch comes to, its records, its errors, and all outcomes in order."""
    summary, outcomes = Summary(), []

    def write(outcome: Outcome) -> None:
        outcomes.append(outcome)
        summary.add(outcome)

    summary.seconds = predict(extractor or Scripted(), documents(*articles), write)
    assert all(o.line.endswith("\n") and o.line.count("\n") == 1 for o in outcomes)
    records = [parse_article(o.line, "out") for o in outcomes if o.record]
    assert records == [o.record for o in outcomes if o.record]
    return summary, records, [json.loads(o.line) for o in outcomes if not o.record], outcomes


def test_good_articles():
    summary, records, errors, outcomes = run("قسد في حلب", "قسد", "لا شيء")
    assert [r.id for r in records] == ["0.txt", "1.txt", "2.txt"]
    assert [r.meta for r in records] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert [len(r.entities) for r in records] == [2, 1, 0]
    assert errors == [] and len(outcomes) == 3
    assert (summary.articles, summary.failed, summary.characters) == (3, 0, 10 + 3 + 6)
    assert summary.entities == {"UNIT": 2, "PLACE": 1}
    assert summary.relations == {"AT": 1}
    assert summary.seconds >= 0


def test_bad_articles_among_good_ones():
    texts = ["قسد", DataError("empty: holds no text"), "refuse", "حلب", "crash", "memory", "قسد حلب"]
    summary, records, errors, outcomes = run(*texts)
    assert [r.id for r in records] == ["0.txt", "3.txt", "6.txt"]
    assert [o.record is None for o in outcomes] == [False, True, True, False, True, True, False]
    assert [e["path"] for e in errors] == ["in/1.txt", "in/2.txt", "in/4.txt", "in/5.txt"]
    assert [e["id"] for e in errors] == ["1.txt", "2.txt", "4.txt", "5.txt"]
    assert [e["reason"] for e in errors] == [
        "empty: holds no text",
        "cannot take this text",
        "ValueError: two\nlines \\ud800",
        "MemoryError: ",
    ]
    assert all(set(e) == {"path", "id", "reason"} for e in errors)
    assert (summary.articles, summary.failed) == (3, 4)
    assert records == run("قسد", "", "", "حلب", "", "", "قسد حلب")[1][::3]  # the same as without the bad ones


def test_an_unexpected_failure_is_logged_with_its_path(caplog):
    run("crash", "refuse")
    assert [r.getMessage() for r in caplog.records] == ["in/0.txt: unexpected failure"]
    assert caplog.records[0].exc_info


def test_no_articles():
    summary, records, errors, outcomes = run()
    assert (records, errors, outcomes) == ([], [], [])
    assert (summary.articles, summary.failed) == (0, 0)


def test_no_more_is_read_ahead_than_is_needed():
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for n in count():
            taken.append(n)
            yield n

    results = ordered_map(lambda n: n, endless(), 2, 2 * AHEAD)
    assert next(results) == 0
    assert len(taken) == 2 * AHEAD + 1
    results.close()


def test_an_interrupt_is_none_of_an_articles_failures():
    with pytest.raises(KeyboardInterrupt):
        run("قسد", "stop", "حلب")


def test_a_summary_outlasts_a_process():
    summary = run("قسد في حلب", "refuse")[0]
    again = Summary.from_dict(json.loads(json.dumps(summary.to_dict())))
    assert again == summary
    again.add(Outcome("x"))
    assert again.failed == 2
    with pytest.raises(TypeError):
        Summary.from_dict({"pages": 3})


def test_the_shipped_model_refuses_what_it_cannot_write():
    extractor = Extractor.load(shipped_model(), threads=1)
    summary, records, errors, _ = run("قسد في حلب", "\udcff", "", extractor=extractor)
    assert [r.id for r in records] == ["0.txt", "2.txt"]
    assert errors[0]["reason"].startswith("lone surrogate U+DCFF at character 0")
    assert summary.failed == 1


def test_an_article_that_takes_too_long():
    extractor = Extractor.load(shipped_model(), threads=1)
    outcomes: list[Outcome] = []
    predict(extractor, documents("قسد في حلب"), outcomes.append, max_seconds=0.0)
    assert "took over 0 seconds for 10 characters; allow more time" in json.loads(outcomes[0].line)["reason"]
