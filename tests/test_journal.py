"""A batch that is interrupted anywhere goes on, and ends as if nothing had happened."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from rasid.batch import journal as module
from rasid.batch.journal import ARTICLES, Journal
from rasid.batch.prediction import Outcome
from rasid.errors import ConfigError, DataError
from rasid.reading.documents import Document
from rasid.reading.sources import Source
from rasid.records import Article

RUN = {"inputs": ["in"], "model": "m"}
SOURCES = (Source(Path("in/a"), "a"), Source(Path("in/b\udce9"), "b\\udce9"), Source(Path("in/c"), "c", "gone"))
IDS = ["a#1", "same", "a#3", "b\\udce9#1", "b\\udce9#2", "same#2", "c"]
EARLIER = b'{"id":"earlier","text":"x"}\n'
BAD = ["b\\udce9#2", "c"]


def read(source: Source) -> Iterator[Document]:
    """Three documents of each good source, the second of `b` bad; two have the same id."""
    if source.problem:
        yield Document(str(source.path), source.id, None, source.problem)
        return
    for n in (1, 2, 3):
        bad = source.id.startswith("b") and n == 2
        id = "same" if (source.id[0], n) in (("a", 2), ("b", 3)) else f"{source.id}#{n}"
        yield Document(f"{source.id}:{n}", id, None if bad else f"نص {n}", "bad" if bad else None)


def outcome(document: Document) -> Outcome:
    if document.text is None:
        return Outcome(json.dumps({"path": document.source, "id": document.id, "reason": document.problem}) + "\n")
    article = Article(id=document.id, text=document.text)
    return Outcome(article.to_json() + "\n", article)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl.journal"


def begin(place: Path, run: dict[str, Any] = RUN, sources: Any = SOURCES, **options: Any) -> Journal:
    return Journal(place, run, iter(sources), **options)


def work(journal: Journal, most: int = 99) -> list[str]:
    """Do some of what is left; returns the ids of what was done."""
    done: list[str] = []
    documents = journal.documents(read)
    while len(done) < most and (document := next(documents, None)):
        journal.write(outcome(document))
        done.append(document.id)
    return done


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()]


def result(place: Path, **options: Any) -> tuple[bytes, bytes | None]:
    """Put the outputs in their place, and what they hold then."""
    with begin(place) as journal:
        assert len(list(journal.sources())) in (0, len(SOURCES))
        work(journal)
        out, errors = place.with_name("out.jsonl"), place.with_name("errors.jsonl")
        journal.place(out, errors, **options)
    return out.read_bytes(), errors.read_bytes() if errors.exists() else None


def test_a_batch_without_interruption(place: Path) -> None:
    with begin(place) as journal:
        assert not journal.resumed
        assert work(journal) == IDS
        assert (journal.summary.articles, journal.summary.failed) == (5, 2)
        journal.place(place.with_name("out.jsonl"), place.with_name("errors.jsonl"))
    assert ids(place.with_name("out.jsonl")) == [i for i in IDS if i not in BAD]
    assert ids(place.with_name("errors.jsonl")) == BAD
    assert sorted(p.name for p in place.parent.iterdir()) == ["errors.jsonl", "out.jsonl"]


@pytest.mark.parametrize("done", range(len(IDS) + 1))
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_it_goes_on_after_any_document(done: int, lost: int, place: Path, tmp_path: Path) -> None:
    """… even if the last ones that were written were not made safe, or only half of a line was."""
    whole = result(tmp_path / "whole" / "out.jsonl.journal")
    first = begin(place)
    safe = max(done - lost, 0)
    assert work(first, safe) == IDS[:safe]
    first.save()
    work(first, done - safe)
    first.close()
    with first.articles.open("ab") as file:
        file.write(b'{"id": "half')
    with begin(place) as second:
        assert second.resumed
        assert second.summary.articles + second.summary.failed == safe
        assert work(second) == IDS[safe:]
        assert (second.summary.articles, second.summary.failed) == (5, 2)
    assert result(place) == whole


class Killed(BaseException):
    pass


def killed_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at the `number`th thing that is done to the files."""
    steps = iter(range(1, 99))

    def stopping(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == number:
                raise Killed
            return function(*args, **kwargs)

        return call

    for name in ("replace", "unlink", "fsync", "rmdir"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    monkeypatch.setattr(shutil, "copyfile", stopping(shutil.copyfile))
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(Path, name, stopping(getattr(Path, name)))


@pytest.mark.parametrize("append", [False, True])
def test_killed_at_any_step_of_the_end(append: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str) -> Path:
        place = tmp_path / name / "out.jsonl.journal"
        place.parent.mkdir()
        for earlier in ("out.jsonl", "errors.jsonl"):
            place.with_name(earlier).write_bytes(EARLIER)
        return place

    whole = result(prepare("whole"), append=append)
    assert whole[0].startswith(EARLIER) is append
    number = 0
    while True:
        number += 1
        place = prepare(str(number))
        with begin(place) as journal:
            work(journal)
            journal.save()
        with monkeypatch.context() as patch:
            killed_at(number, patch)
            try:
                assert result(place, append=append) == whole
                break
            except Killed:
                pass
        if (place / "progress.json").exists():  # else all was done but to remove the empty folder
            assert result(place, append=append) == whole
        out, errors = place.with_name("out.jsonl"), place.with_name("errors.jsonl")
        assert (out.read_bytes(), errors.read_bytes()) == whole
    assert number > 8


def test_a_journal_that_was_never_whole_is_begun_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = 0
    while True:
        number += 1
        shutil.rmtree(place, ignore_errors=True)
        with monkeypatch.context() as patch:
            killed_at(number, patch)
            try:
                begin(place).close()
                break
            except Killed:
                pass
        with begin(place) as journal:
            assert work(journal) == IDS
    assert number > 5


class InterruptedFile:
    """A file in the middle of whose writing the user presses Ctrl-C."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: bytes) -> int:
        written = self.file.write(data)
        signal.raise_signal(signal.SIGINT)
        return written


@pytest.mark.parametrize("saving", [True, False])
def test_an_article_that_is_being_written_when_the_user_interrupts_is_there_once(
    place: Path, saving: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0 if saving else 1e9)
    handler = signal.getsignal(signal.SIGINT)
    for done in range(1, 4):
        with begin(place) as journal:
            journal._articles = InterruptedFile(journal._articles)
            with pytest.raises(KeyboardInterrupt):
                work(journal)
            journal.save()
            assert journal.summary.articles == done
        assert ids(place / ARTICLES) == IDS[:done]
    assert signal.getsignal(signal.SIGINT) is handler
    with begin(place) as journal:
        assert work(journal) == IDS[3:]
        journal.save()
        assert ids(place / ARTICLES) == [id for id in IDS if id not in BAD]


def test_a_journal_can_be_written_by_any_thread(place: Path) -> None:
    with begin(place) as journal, ThreadPoolExecutor(1) as pool:
        assert pool.submit(work, journal).result() == IDS


def test_fresh_starts_over(place: Path) -> None:
    with begin(place) as journal:
        work(journal, 3)
    with begin(place, {"inputs": ["other"]}, SOURCES[:1], fresh=True) as journal:
        assert not journal.resumed
        assert work(journal) == IDS[:3]


def test_a_listing_that_fails_leaves_an_unfinished_batch_alone(place: Path) -> None:
    def bad() -> Iterator[Source]:
        yield SOURCES[0]
        raise DataError("no files")

    with pytest.raises(DataError):
        begin(place, sources=bad())
    assert not place.exists()
    with begin(place) as journal:
        work(journal, 3)
        journal.save()
    with pytest.raises(DataError):
        begin(place, sources=bad(), fresh=True)
    with begin(place) as journal:
        assert work(journal) == IDS[3:]


def test_what_comes_or_goes_meanwhile_does_not_move_the_others(place: Path) -> None:
    with begin(place) as journal:
        work(journal, 4)
        journal.save()
    with begin(place, sources=()) as journal:
        assert work(journal) == IDS[4:]


def test_another_batch(place: Path) -> None:
    begin(place).close()
    with pytest.raises(ConfigError, match=r"out\.jsonl\.journal: an unfinished run with other model; .* --fresh"):
        begin(place, RUN | {"model": "n"})


def test_two_at_once(place: Path) -> None:
    with begin(place), pytest.raises(ConfigError, match="another process writes this"):
        begin(place)
    with begin(place) as journal:
        assert work(journal) == IDS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("progress.json", "{"),
        ("progress.json", '{"run": {}, "summary": {"pages": 1}}'),
        ("articles.jsonl", ""),
        ("errors.jsonl", None),
    ],
)
def test_a_damaged_journal(name: str, content: str | None, place: Path) -> None:
    with begin(place) as journal:
        work(journal, 5)
        journal.save()
    if content is None:
        (place / name).unlink()
    else:
        (place / name).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{name}: damaged journal; start over with --fresh"):
        begin(place)
    begin(place, fresh=True).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"file/out\.jsonl\.journal: cannot be written: Not a directory"):
        begin(tmp_path / "file" / "out.jsonl.journal")


def test_a_full_disk_costs_nothing_that_was_saved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with begin(place) as journal:
        work(journal, 3)
        journal.save()
        with monkeypatch.context() as patch:

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(module.os, "fsync", full)
            with pytest.raises(ConfigError, match=r"No space left on device; what is done is kept in .* repeat"):
                work(journal, 1)
                journal.save()
    with begin(place) as journal:
        assert work(journal) == IDS[3:]


def test_without_errors_the_file_of_an_earlier_batch_goes_away(tmp_path: Path) -> None:
    place = tmp_path / "out.jsonl.journal"
    (tmp_path / "errors.jsonl").write_text("{}\n", encoding="utf-8")
    with begin(place, sources=SOURCES[:1]) as journal:
        work(journal)
        journal.place(tmp_path / "out.jsonl", tmp_path / "errors.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("append", [False, True])
def test_a_database_with_a_log_is_sound_afterwards(append: bool, tmp_path: Path) -> None:
    """… also where a program left the log after the batch began; its rows are kept if records are appended."""
    import subprocess
    import sys

    place, out = tmp_path / "out.duckdb.journal", tmp_path / "out.duckdb"
    with begin(place) as journal:
        work(journal)
        kill = (
            "import duckdb, os, sys; d = duckdb.connect(sys.argv[1]); d.sql('CREATE TABLE notes (x INT)'); "
            "d.sql('CHECKPOINT'); d.sql('INSERT INTO notes VALUES (7)'); os._exit(1)"
        )
        subprocess.run([sys.executable, "-c", kill, str(out)], check=False)
        assert out.with_name("out.duckdb.wal").exists()
        journal.place(out, tmp_path / "errors.jsonl", append=append)
    import duckdb

    with duckdb.connect(out) as base:
        assert base.sql("SELECT count(*) FROM articles").fetchall() == [(5,)]
        if append:
            assert base.sql("SELECT x FROM notes").fetchall() == [(7,)]
