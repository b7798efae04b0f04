"""`rasid predict` on this machine: outcomes go to a stream at once, or through a journal to a file."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TextIO

import typer

from rasid.batch.journal import Journal
from rasid.batch.outputs import is_device, open_device, remove_output
from rasid.batch.prediction import Outcome, Summary
from rasid.batch.progress import INTERRUPTED, print_interrupted, print_resumed, print_summary, progress_bar
from rasid.errors import ConfigError
from rasid.reading.documents import Document, ReadOptions, UniqueIds, read_documents
from rasid.reading.sources import Source

Read = Callable[[Iterable[Document], Callable[[Outcome], None]], float]
"""`rasid.batch.prediction.predict` with an extractor and its limits."""


def stream(
    read: Read,
    sources: Iterable[Source],
    options: ReadOptions,
    out: Path | None,
    errors: Path | None,
) -> Summary:
    """Write each outcome as soon as it is there, to where nothing can be gone on with."""
    summary, unique = Summary(), UniqueIds()

    def documents() -> Iterator[Document]:
        for source in sources:
            for document in read_documents(source, options):
                yield replace(document, id=unique(document.id))

    with _writer(out, sys.stdout) as results, _writer(errors, sys.stderr) as problems:

        def write(outcome: Outcome) -> None:
            stream, place = results, out or "standard output"
            if not outcome.record:
                stream, place = problems, errors or "standard error"
            try:
                stream.write(outcome.line.encode("utf-8"))
                stream.flush()
            except BrokenPipeError:  # whoever reads has enough
                raise
            except OSError as error:
                raise _cannot_write(place, error) from error
            summary.add(outcome)

        summary.seconds = read(documents(), write)
    if errors is not None and not summary.failed:
        remove_output(errors)
    return summary


@contextmanager
def _writer(path: Path | None, standard: TextIO) -> Iterator[IO[bytes]]:
    if path is None:
        yield standard.buffer
        return
    try:
        file = open_device(path) if is_device(path) else path.open("wb")
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield file
    finally:
        with suppress(OSError):  # a full disk, told before
            file.close()


def _cannot_write(place: Path | str, error: OSError) -> ConfigError:
    return ConfigError(f"{place}: cannot be written: {error.strerror or error}; give another file")


def journalled(read: Read, journal: Journal, options: ReadOptions, *, fresh: bool) -> Summary:
    """Do what is left of a batch; `fresh` says whether the same command would start over."""
    if journal.resumed:
        print_resumed(journal.summary.articles + journal.summary.failed, journal.folder)
    total = sum(1 for _ in journal.sources())
    with progress_bar() as progress:
        task = progress.add_task("files", total=total, articles="0")

        def write(outcome: Outcome) -> None:
            journal.write(outcome)
            done = journal.summary.articles + journal.summary.failed
            progress.update(task, completed=journal.progress.source, articles=f"{done:,}")

        before = journal.summary.seconds
        try:
            seconds = read(journal.documents(lambda s: read_documents(s, options)), write)
            journal.summary.seconds = before + seconds
        except KeyboardInterrupt:
            journal.save()
            progress.stop()
            print_summary(journal.summary, None, None)
            print_interrupted(journal.folder, fresh=fresh)
            raise typer.Exit(INTERRUPTED) from None
    return journal.summary
