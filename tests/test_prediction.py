"""Batches: one line per article, in order; whatever happens to one is told and does not touch the others."""

import io
import json
from pathlib import Path

import pytest

from rasid.errors import DataError
from rasid.inference import Extractor
from rasid.prediction import Summary, predict
from rasid.reading import Source
from rasid.records import Article, Entity, Relation, parse_article
from rasid.settings import shipped_model


class Scripted:
    """An extractor that finds `قسد` and `حلب`, and fails as the text tells it to."""

    threads = 1

    def __call__(self, text: str, *, id: str = "") -> Article:
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


def run(*articles: str | DataError, extractor=None) -> tuple[Summary, list[Article], list[dict], int]:
    """What a batch returns, writes to both files, and how often it told its progress."""
    out, errors, steps = io.StringIO(), io.StringIO(), []
    sources = [(Source(Path(f"in/{n}.txt"), f"{n}.txt"), text) for n, text in enumerate(articles)]
    summary = predict(extractor or Scripted(), sources, out, errors, lambda: steps.append(1))
    records = [parse_article(line, "out") for line in out.getvalue().splitlines()]
    return summary, records, [json.loads(line) for line in errors.getvalue().splitlines()], len(steps)


def test_good_articles():
    summary, records, errors, steps = run("قسد في حلب", "قسد", "لا شيء")
    assert [r.id for r in records] == ["0.txt", "1.txt", "2.txt"]
    assert [len(r.entities) for r in records] == [2, 1, 0]
    assert errors == [] and steps == 3
    assert (summary.articles, summary.failed, summary.characters) == (3, 0, 10 + 3 + 6)
    assert summary.entities == {"UNIT": 2, "PLACE": 1}
    assert summary.relations == {"AT": 1}
    assert summary.seconds >= 0


def test_bad_articles_among_good_ones():
    texts = ["قسد", DataError("empty: holds no text"), "refuse", "حلب", "crash", "memory", "قسد حلب"]
    summary, records, errors, steps = run(*texts)
    assert [r.id for r in records] == ["0.txt", "3.txt", "6.txt"]
    assert [e["path"] for e in errors] == ["in/1.txt", "in/2.txt", "in/4.txt", "in/5.txt"]
    assert [e["reason"] for e in errors] == [
        "empty: holds no text",
        "cannot take this text",
        "ValueError: two\nlines \\ud800",
        "MemoryError: ",
    ]
    assert all(set(e) == {"path", "reason"} for e in errors)
    assert (summary.articles, summary.failed, steps) == (3, 4, 7)
    assert records == run("قسد", "", "", "حلب", "", "", "قسد حلب")[1][::3]  # the same as without the bad ones


def test_an_unexpected_failure_is_logged_with_its_path(caplog):
    run("crash", "refuse")
    assert [r.getMessage() for r in caplog.records] == ["in/0.txt: unexpected failure"]
    assert caplog.records[0].exc_info


def test_no_articles():
    summary, records, errors, steps = run()
    assert (records, errors, steps) == ([], [], 0)
    assert (summary.articles, summary.failed) == (0, 0)


def test_each_line_is_written_as_soon_as_it_is_done():
    class Flushed(io.StringIO):
        seen = ""

        def flush(self):
            self.seen = self.getvalue()

    out, errors, counts = Flushed(), Flushed(), []
    articles = [(Source(Path("a"), "a"), text) for text in ("قسد", "refuse", "حلب")]
    predict(Scripted(), articles, out, errors, lambda: counts.append((out.seen.count("\n"), errors.seen.count("\n"))))
    assert counts == [(1, 0), (1, 1), (2, 1)]


def test_an_interrupt_is_none_of_an_articles_failures():
    with pytest.raises(KeyboardInterrupt):
        run("قسد", "stop", "حلب")


def test_a_path_that_is_not_utf_8():
    out, errors = io.StringIO(), io.StringIO()
    predict(Scripted(), [(Source(Path("caf\udce9.txt"), "x"), "refuse")], out, errors)
    assert json.loads(errors.getvalue().encode("utf-8"))["path"] == "caf\\udce9.txt"


def test_the_shipped_model_refuses_what_it_cannot_write():
    extractor = Extractor.load(shipped_model(), threads=1)
    summary, records, errors, _ = run("قسد في حلب", "\udcff", "", extractor=extractor)
    assert [r.id for r in records] == ["0.txt", "2.txt"]
    assert errors[0]["reason"].startswith("lone surrogate U+DCFF at character 0")
    assert summary.failed == 1
