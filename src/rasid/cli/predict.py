"""`rasid predict`: articles of any common form in, records out."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from rasid.batch.journal import SUFFIX, Journal
from rasid.batch.outputs import check_output, guess_format, is_device
from rasid.batch.prediction import predict as run
from rasid.batch.progress import print_skipped, print_summary
from rasid.batch.staging import staging_of
from rasid.batch.workers import Workers
from rasid.cli import cluster as cluster_cli
from rasid.cli import local as local_cli
from rasid.errors import ConfigError
from rasid.inference import Extractor
from rasid.reading.documents import ReadOptions
from rasid.reading.sources import FORMATS, STANDARD_INPUT, Format, Source, find_sources, printable
from rasid.settings import find_model


class Engine(StrEnum):
    """What does the work: this process, or a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Folders (recursively), files, or - for standard input; the README lists the formats."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File: .jsonl, .parquet or .duckdb; by default JSONL to standard output. With ray: a folder.",
        ),
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
    append: Annotated[bool, typer.Option("--append", help="Add to what the output files hold; not with ray.")] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh/--resume",
            help="Start over, or go on where an interrupted run stopped; with ray, also whether --out may be replaced.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Articles read at once; as many as processors by default, and always with ray."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that read, on one thread each; faster than threads, 200 MB each.")
    ] = 1,
    engine: Annotated[
        Engine, typer.Option(help="What does the work: this process, or a Ray cluster (docs/scale.md).")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a running Ray cluster, or auto; by default one of this machine for this run."),
    ] = None,
) -> None:
    """Extract entities and relations from articles. Exit status 1 if an article could not be read."""
    standard = STANDARD_INPUT in inputs
    if standard and len(inputs) > 1:
        raise ConfigError("- (standard input) goes alone; give either - or paths")
    options = ReadOptions(text_field, id_field, max_bytes, _format(input_format))
    if out is not None and not is_device(out):
        errors = errors or out.parent / "errors.jsonl"
        if out.resolve() == errors.resolve():
            raise ConfigError(f"{out}: is to take both the results and the errors; give --errors another file")
    out, errors = _follow(out), _follow(errors)
    if threads is not None and processes > 1:
        raise ConfigError("--threads: each of several --processes has one; give one of the two")
    if engine is Engine.RAY:
        cluster_cli.check_request(inputs, out, errors, append=append, parallel=threads is not None or processes > 1)
    elif address is not None:
        raise ConfigError("--address: is for a cluster; give --engine ray too")
    folder = find_model(model)
    extractor = Extractor.load(folder, threads=threads)
    skipped = Counter[str]()
    sources = _sources(inputs, glob, out, errors, skipped)
    if engine is Engine.RAY:
        assert out is not None and errors is not None, "was checked"
        what = _describe(folder, inputs, glob, options, append, errors)
        summary = cluster_cli.run(
            folder, sources, options, out, errors, max_seconds, what=what, fresh=fresh, address=address
        )
    else:
        with Workers(folder, processes, max_seconds) if processes > 1 else nullcontext() as workers:
            read = partial(run, extractor, max_seconds=max_seconds, workers=workers)
            if out is None or is_device(out):
                if errors is not None and errors.is_file():
                    sources = iter(list(sources))  # one of them may be the error file, which is opened at once
                summary = local_cli.stream(read, sources, options, out, errors)
            else:
                check_output(out, guess_format(out), append)
                assert errors is not None, "there is an error file wherever there is an output"
                what = _describe(folder, inputs, glob, options, append, errors)
                with Journal(_journal_of(out), what, sources, fresh=fresh or standard) as journal:
                    summary = local_cli.journalled(read, journal, options, fresh=fresh or standard)
                    journal.place(out, errors, append=append)
    print_summary(summary, out, errors)
    print_skipped(skipped)
    if summary.failed:
        raise typer.Exit(1)


def _format(name: str | None) -> Format | None:
    if name is not None and name not in FORMATS.values():
        raise ConfigError(f"--input-format {name}: unknown; known are {', '.join(dict.fromkeys(FORMATS.values()))}")
    return cast(Format | None, name)


def _follow(path: Path | None) -> Path | None:
    """Where a link to a file leads, so that the file is replaced and not the link."""
    return path.resolve() if path is not None and path.is_symlink() and not is_device(path) else path


def _describe(
    model: Path, inputs: list[Path], glob: str | None, options: ReadOptions, append: bool, errors: Path
) -> dict[str, Any]:
    """What a batch is: if any of it changes, an unfinished one cannot be gone on with."""
    return {
        "version": version("rasid"),
        "model": _digest(model),
        "folder": printable(str(Path.cwd())),
        "inputs": [printable(str(path)) for path in inputs],
        "glob": glob,
        "options": str(options),
        "append": append,
        "errors": printable(str(errors.parent.resolve() / errors.name)),  # another one could be an article
    }


def _digest(model: Path) -> str:
    """What tells one exported model from another."""
    digest = sha256()
    for path in sorted(p for p in model.iterdir() if p.suffix in (".json", ".onnx") and p.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _journal_of(out: Path) -> Path:
    return out.parent / f"{out.name}{SUFFIX}"


def _sources(
    inputs: list[Path], glob: str | None, out: Path | None, errors: Path | None, skipped: Counter[str]
) -> Iterator[Source]:
    """What is to be read, without a journal, a folder of results or a new file of our own.

    Raises:
        ConfigError: if an article would be written over, as soon as it is found, or if in the end there was none.
    """
    targets = {path.resolve(): path for path in (out, errors) if path is not None}
    old = {place for place, path in targets.items() if path.is_file()}
    own = set() if out is None else {_journal_of(out).resolve(), staging_of(out), out.resolve()}

    def checked() -> Iterator[Source]:
        empty = True
        for source in find_sources(inputs, glob, skipped=skipped):
            place = source.path.resolve()
            if place in old:
                raise ConfigError(
                    f"{targets[place]}: is itself one of the articles to read; give another file to write to"
                )
            if place not in targets and own.isdisjoint(place.parents):
                empty = False
                yield source
        if empty:
            raise ConfigError(f"{', '.join(map(str, inputs))}: nothing to read there but results of an earlier run")

    return checked()
