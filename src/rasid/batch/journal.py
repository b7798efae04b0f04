"""The journal of a batch: what is done so far, so that the same command goes on after any interruption.

A folder beside the output, gone when the batch is done:

    sources.jsonl   the files to read, listed once, so that what comes or goes meanwhile does not move the others
    articles.jsonl  records so far, in the order of the inputs
    errors.jsonl    what went wrong so far
    progress.json   what the batch is, and up to where the others are whole; a folder with it is a whole journal
"""

import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from pydantic import BaseModel, ValidationError

from rasid.batch.outputs import (
    OutputFormat,
    check_same_run,
    guess_format,
    hold,
    is_device,
    remove_output,
    replace_output,
    write_lines,
    write_output,
)
from rasid.batch.prediction import Outcome, Summary
from rasid.errors import ConfigError
from rasid.reading.documents import Document, UniqueIds
from rasid.reading.sources import Source

SUFFIX = ".journal"
SOURCES, ARTICLES, ERRORS, PROGRESS, LOCK = "sources.jsonl", "articles.jsonl", "errors.jsonl", "progress.json", "lock"
INTERVAL = 1.0  # seconds of work that a power cut may cost


class Progress(BaseModel):
    """Up to where a batch is done.

    Attributes:
        run: What the batch is.
        source: Place of the source that was read last, in the order of `sources.jsonl`.
        documents: How many of its documents are done; those of all sources before it are.
        articles: Whole bytes of `articles.jsonl`.
        errors: Whole bytes of `errors.jsonl`.
        complete: Whether nothing is left to read.
        summary: Counts so far.
    """

    run: dict[str, Any]
    source: int = 0
    documents: int = 0
    articles: int = 0
    errors: int = 0
    complete: bool = False
    summary: dict[str, Any] = {}


class Journal:
    """The journal of one batch, open for writing; use it in a `with` statement.

    Attributes:
        folder: Where it is.
        resumed: Whether an earlier process has begun it.
        summary: Counts so far, those of earlier processes included.
    """

    def __init__(self, folder: Path, run: dict[str, Any], sources: Iterable[Source], *, fresh: bool = False):
        """Open the journal of a batch, or begin one.

        Args:
            folder: Its place.
            run: What the batch is, JSON values only; an unfinished journal of another one is not gone on with.
            sources: What to read; listed where there is no journal yet.
            fresh: Begin anew whatever is there.

        Raises:
            ConfigError: if another process writes it, it belongs to another batch, is damaged or cannot be written.
            DataError, ConfigError: as listing the sources does.
        """
        self.folder = folder
        self._ahead: deque[tuple[int, int]] = deque()  # where each document that is out for extraction stands
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = hold(folder / LOCK, folder)
            try:
                self.resumed = not fresh and (folder / PROGRESS).exists()
                if not self.resumed:
                    self._begin(run, sources)
                self._open(run)
            except BaseException:
                self._lock.release()
                if not (folder / PROGRESS).exists():
                    shutil.rmtree(folder)
                raise
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}; give another --out") from error

    @property
    def articles(self) -> Path:
        """The file of records."""
        return self.folder / ARTICLES

    @property
    def errors(self) -> Path:
        """The file of what went wrong."""
        return self.folder / ERRORS

    def _begin(self, run: dict[str, Any], sources: Iterable[Source]) -> None:
        listed = self.folder / "listed.jsonl"
        write_lines(listed, (json.dumps(source.to_values()) + "\n" for source in sources))
        (self.folder / PROGRESS).unlink(missing_ok=True)  # from here on there is no journal until it is whole
        listed.replace(self.folder / SOURCES)
        for name in (ARTICLES, ERRORS):
            write_lines(self.folder / name, [])
        write_lines(self.folder / PROGRESS, [Progress(run=run).model_dump_json()])

    def _open(self, run: dict[str, Any]) -> None:
        try:
            self.progress = Progress.model_validate_json((self.folder / PROGRESS).read_bytes())
            self.summary = Summary.from_dict(self.progress.summary)
        except (ValidationError, TypeError) as error:
            raise self._damaged(PROGRESS) from error
        check_same_run(self.folder, self.progress.run, run)
        self._articles = self._whole(ARTICLES, self.progress.articles)
        self._errors = self._whole(ERRORS, self.progress.errors)
        self._saved = time.monotonic()

    def _damaged(self, name: str) -> ConfigError:
        return ConfigError(f"{self.folder / name}: damaged journal; start over with --fresh")

    def _whole(self, name: str, size: int) -> BinaryIO:
        """A file cut to its whole part, open at the end."""
        path = self.folder / name
        if self.progress.complete and not path.exists():
            return Path(os.devnull).open("wb")  # it was put in its place already
        if not path.exists() or path.stat().st_size < size:
            raise self._damaged(name)
        file = path.open("r+b")
        file.truncate(size)
        file.seek(size)
        return file

    def sources(self) -> Iterator[Source]:
        """All sources, in order; none if all are done."""
        if self.progress.complete:
            return
        with (self.folder / SOURCES).open(encoding="ascii") as lines:
            for line in lines:
                yield Source.from_values(*json.loads(line))

    def documents(self, read: Callable[[Source], Iterable[Document]]) -> Iterator[Document]:
        """The documents that are still to be done, in order.

        Args:
            read: Opens a source.
        """
        if self.progress.complete:
            return
        unique = UniqueIds()
        for id in self._ids():
            unique(id)
        for place, source in enumerate(self.sources()):
            if place < self.progress.source:
                continue
            done = self.progress.documents if place == self.progress.source else 0
            for number, document in enumerate(read(source), start=1):
                if number > done:
                    self._ahead.append((place, number))
                    yield replace(document, id=unique(document.id))

    def _ids(self) -> Iterator[str]:
        """Those that are given away."""
        for path, size in ((self.articles, self.progress.articles), (self.errors, self.progress.errors)):
            with path.open("rb") as lines:
                while lines.tell() < size:
                    yield json.loads(lines.readline())["id"]

    def write(self, outcome: Outcome) -> None:
        """Add what came of the next of `documents`, in their order; Ctrl-C has effect afterwards."""
        with _without_interrupts():
            try:
                (self._articles if outcome.record else self._errors).write(outcome.line.encode("utf-8"))
            except OSError as error:
                raise self._cannot_write(self.folder, error) from error
            self.summary.add(outcome)
            self.progress.source, self.progress.documents = self._ahead.popleft()
            if time.monotonic() - self._saved >= INTERVAL:
                self.save()

    def save(self, *, complete: bool = False) -> None:
        """Make sure that what is written so far outlasts a power cut."""
        if self.progress.complete:
            return
        try:
            for file in (self._articles, self._errors):
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._cannot_write(self.folder, error) from error
        self.progress.articles, self.progress.errors = self._articles.tell(), self._errors.tell()
        self.progress.complete |= complete
        self.progress.summary = self.summary.to_dict()
        write_lines(self.folder / PROGRESS, [self.progress.model_dump_json()])
        self._saved = time.monotonic()

    def place(self, out: Path, errors: Path, *, append: bool = False) -> None:
        """Put records and errors where the user wants them, each at once and exactly once, and take the journal away.

        Args:
            out: Gets the records, in the format of its suffix; what it holds stays where there are none.
            errors: Gets the errors; where there are none, no such file is written, and an earlier one goes.
            append: Keep what the two hold already.

        Raises:
            ConfigError: if one cannot be written.
        """
        self.save(complete=True)
        self.close()
        try:
            form = guess_format(out)
            if self.summary.articles or not out.exists():  # nothing takes the place of no results
                self._place(
                    self.articles, out, form, lambda staged: write_output(self.articles, staged, form, append, old=out)
                )
            if self.summary.failed:
                self._place(self.errors, errors, "jsonl", lambda staged: self._make_errors(staged, errors, append))
            elif not append:
                remove_output(errors)
            for name in (ARTICLES, ERRORS, SOURCES, LOCK, PROGRESS):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()
        except OSError as error:
            raise self._cannot_write(out, error) from error

    def _place(self, source: Path, target: Path, form: OutputFormat, make: Callable[[Path], None]) -> None:
        """Make the target's file in the journal and move it; a device is written into instead.

        `source` is there until that file is whole.
        """
        staged = self.folder / f"staged-{target.name}"
        if source.exists():
            if is_device(target):
                write_output(source, target, form)
            else:
                staged.unlink(missing_ok=True)
                make(staged)
            source.unlink()
        if staged.exists():
            replace_output(staged, target, form)

    def _make_errors(self, staged: Path, errors: Path, append: bool) -> None:
        with staged.open("wb") as file:
            for path in (errors, self.errors) if append and errors.exists() else (self.errors,):
                with path.open("rb") as lines:
                    shutil.copyfileobj(lines, file)
            file.flush()
            os.fsync(file.fileno())

    def _cannot_write(self, path: Path, error: OSError) -> ConfigError:
        return ConfigError(
            f"{path}: cannot be written: {error.strerror or error}; what is done is kept in {self.folder}: mend that "
            "and repeat the command"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let others have the journal."""
        for file in (self._articles, self._errors):
            with suppress(OSError):  # a full disk, told before
                file.close()
        self._lock.release()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Put Ctrl-C off until the end: in the middle, records and what is known of them would not agree."""
    if threading.current_thread() is not threading.main_thread():  # only that one is ever interrupted
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)
