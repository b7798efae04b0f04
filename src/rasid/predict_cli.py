"""`rasid predict`: articles of any common form in, records out."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO, Annotated, TextIO, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from rasid.documents import Document, ReadOptions, UniqueIds, read_documents
from rasid.errors import ConfigError
from rasid.inference import Extractor
from rasid.journal import SUFFIX, Journal
from rasid.outputs import check_output, guess_format
from rasid.prediction import Outcome, Summary
from rasid.prediction import predict as run
from rasid.settings import shipped_model
from rasid.sources import FORMATS, STANDARD_INPUT, Format, Source, find_sources

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it
stderr = Console(stderr=True)


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Folders (recursively), files, or - for standard input; the README lists the formats."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File: .jsonl, .parquet or .duckdb; by default JSONL to standard output."),
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(help="Error file; errors.jsonl beside --out by default, or standard error.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Exported model; the shipped one by default.")
    ] = None,
    glob: Annotated[str | None, typer.Option(help="Which files of folders to read, such as '2024/**/*.html'.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Field or column of the text; guessed by default.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Field or column of the id; guessed by default.")] = None,
    input_format: Annotated[
        str | None, typer.Option(help="Format of standard input and of files without a known suffix; txt by default.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Longest article, decompressed.")] = 20_000_000,
    max_seconds: Annotated[float, typer.Option(min=0, help="Longest time that one article may take.")] = 600.0,
    append: Annotated[bool, typer.Option("--append", help="Add to what the output files hold.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Start over, or go on where an interrupted run stopped.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Articles read at once; as many as processors by default.")
    ] = None,
) -> None:
    """Extract entities and relations from articles. Exit status 1 if an article could not be read."""
    standard = STANDARD_INPUT in inputs
    if standard and len(inputs) > 1:
        raise ConfigError("- (standard input) goes alone; give either - or paths")
    options = ReadOptions(text_field, id_field, max_bytes, _format(input_format))
    errors = errors or (out.parent / "errors.jsonl" if out else None)
    if out is not None and errors is not None and out.resolve() == errors.resolve():
        raise ConfigError(f"{out}: is to take both the results and the errors; give --errors another file")
    extractor = Extractor.load(model, threads=threads)
    sources = _sources(inputs, glob, out, errors)
    if out is None or _is_device(out):
        summary = _stream(extractor, sources, options, out, errors, max_seconds)
    else:
        check_output(out, guess_format(out), append)
        described = {
            "version": version("rasid"),
            "model": _digest(shipped_model() if model is None else model),
            "folder": str(Path.cwd()),
            "inputs": [str(path) for path in inputs],
            "glob": glob,
            "options": str(options),
            "append": append,
        }
        assert errors is not None, "there is an error file wherever there is an output"
        with Journal(_journal_of(out), described, sources, fresh=fresh or standard) as journal:
            summary = _journalled(extractor, journal, options, max_seconds)
            journal.place(out, errors, append=append)
    _print_summary(summary, out, errors)
    if summary.failed:
        raise typer.Exit(1)


def _format(name: str | None) -> Format | None:
    if name is not None and name not in FORMATS.values():
        raise ConfigError(f"--input-format {name}: unknown; known are {', '.join(dict.fromkeys(FORMATS.values()))}")
    return cast(Format | None, name)


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _digest(model: Path) -> str:
    """What tells one exported model from another."""
    digest = sha256()
    for path in sorted(p for p in model.iterdir() if p.suffix in (".json", ".onnx") and p.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _journal_of(out: Path) -> Path:
    return out.parent / f"{out.name}{SUFFIX}"


def _sources(inputs: list[Path], glob: str | None, out: Path | None, errors: Path | None) -> Iterator[Source]:
    """What is to be read, without a journal of our own.

    Raises:
        ConfigError: if an article would be written over; nothing is lost yet.
    """
    targets = {path.resolve(): path for path in (out, errors) if path is not None and path.is_file()}
    if targets:
        for source in find_sources(inputs, glob):
            if (place := source.path.resolve()) in targets:
                raise ConfigError(
                    f"{targets[place]}: is itself one of the articles to read; give another file to write to"
                )
    if out is None:
        return find_sources(inputs, glob)
    journal = _journal_of(out).resolve()
    return (source for source in find_sources(inputs, glob) if journal not in source.path.resolve().parents)


def _stream(
    extractor: Extractor,
    sources: Iterable[Source],
    options: ReadOptions,
    out: Path | None,
    errors: Path | None,
    max_seconds: float,
) -> Summary:
    """Write each outcome as soon as it is there, to where nothing can be gone on with."""
    summary, unique = Summary(), UniqueIds()

    def documents() -> Iterator[Document]:
        for source in sources:
            for document in read_documents(source, options):
                yield replace(document, id=unique(document.id))

    with _writer(out, sys.stdout) as results, _writer(errors, sys.stderr) as problems:

        def write(outcome: Outcome) -> None:
            stream = results if outcome.record else problems
            stream.write(outcome.line.encode("utf-8"))
            stream.flush()
            summary.add(outcome)

        summary.seconds = run(extractor, documents(), write, max_seconds)
    if errors is not None and errors.is_file() and not summary.failed:  # and no device such as /dev/null
        errors.unlink()
    return summary


@contextmanager
def _writer(path: Path | None, standard: TextIO) -> Iterator[IO[bytes]]:
    if path is None:
        yield standard.buffer
        return
    try:
        file = path.open("wb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}; give another file") from error
    with file:
        yield file


def _journalled(extractor: Extractor, journal: Journal, options: ReadOptions, max_seconds: float) -> Summary:
    """Do what is left of a batch."""
    if journal.resumed:
        stderr.print(
            f"going on after {journal.summary.articles + journal.summary.failed:,} articles, from {journal.folder}",
            soft_wrap=True,
            highlight=False,
        )
    total = sum(1 for _ in journal.sources())
    with _progress() as progress:
        task = progress.add_task("files", total=total, articles="0")

        def write(outcome: Outcome) -> None:
            journal.write(outcome)
            done = journal.summary.articles + journal.summary.failed
            progress.update(task, completed=journal.progress.source, articles=f"{done:,}")

        before = journal.summary.seconds
        try:
            seconds = run(extractor, journal.documents(lambda s: read_documents(s, options)), write, max_seconds)
            journal.summary.seconds = before + seconds
        except KeyboardInterrupt:
            journal.save()
            progress.stop()
            _print_summary(journal.summary, None, None)
            stderr.print(
                f"interrupted; the same command goes on from {journal.folder}", soft_wrap=True, highlight=False
            )
            raise typer.Exit(INTERRUPTED) from None
    return journal.summary


def _progress() -> Progress:
    columns = (
        TextColumn("{task.fields[articles]} articles"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, transient=True)


def _print_summary(summary: Summary, out: Path | None, errors: Path | None) -> None:
    def line(counts: dict[str, int]) -> str:
        return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))

    rate = summary.articles / summary.seconds if summary.seconds else 0.0
    stderr.print(
        f"articles: {summary.articles:,} in {summary.seconds:.1f} s ({rate:,.1f} per second)",
        highlight=False,
    )
    stderr.print(f"{summary.entities.total():,} entities: {line(summary.entities)}", soft_wrap=True, highlight=False)
    stderr.print(f"{summary.relations.total():,} relations: {line(summary.relations)}", soft_wrap=True, highlight=False)
    if out:
        stderr.print(f"results: {out}", soft_wrap=True, highlight=False)
    if summary.failed:
        stderr.print(f"[red]{summary.failed:,} not read[/], see {errors or 'above'}", soft_wrap=True, highlight=False)
