"""`rasid data`: check, count and convert corpora."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rasid import corpus
from rasid.errors import DataError
from rasid.formats import FORMATS, find_format, guess_format, read, renumber
from rasid.formats.files import read_text, write_text
from rasid.records import Article
from rasid.schema import Ontology

app = typer.Typer(no_args_is_help=True, help="Check, count and convert annotated corpora.")

_NAMES = ", ".join(FORMATS)
Files = Annotated[list[Path], typer.Argument(help="Corpus files, or folders of brat files.", show_default=False)]
OntologyOption = Annotated[
    Path | None,
    typer.Option("--ontology", help="YAML file; data/ontology.yaml or that of the shipped model by default."),
]
FormatOption = Annotated[
    str | None, typer.Option("--from", help=f"Format: {_NAMES}; guessed from the name by default.")
]
ToOption = Annotated[str | None, typer.Option("--to", help=f"Format: {_NAMES}; guessed from the name by default.")]


@app.command()
def check(files: Files, ontology: OntologyOption = None, source: FormatOption = None) -> None:
    """List every problem of corpus files; exit status 1 if there is one."""
    rules = _load(ontology)
    if problems := corpus.check(files, rules, source):
        for problem in problems:
            _say(problem, stderr=True)
        _say(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", stderr=True)
        raise typer.Exit(1)
    count = sum(1 for file in files for _ in read(file, rules, source))
    _say(f"{count:,} articles in {len(files)} file{'s' if len(files) > 1 else ''}: no problems")


@app.command()
def stats(
    files: Files,
    ontology: OntologyOption = None,
    source: FormatOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    datasheet: Annotated[
        Path | None, typer.Option("--datasheet", help="Rewrite the counts in this Markdown file instead.")
    ] = None,
) -> None:
    """Count articles, words, entities and relations, per file and per slice."""
    rules = _load(ontology)
    articles = {file: list(read(file, rules, source)) for file in files}
    if len({file.stem for file in files}) < len(files):
        raise DataError("two of the files have one name, so their columns could not be told apart; rename one")
    parts = {file.stem: corpus.statistics(some, rules) for file, some in articles.items()}
    total = corpus.statistics([a for some in articles.values() for a in some], rules)
    if as_json:
        values = {"total": total.to_dict(), "files": {name: part.to_dict() for name, part in parts.items()}}
        typer.echo(json.dumps(values, ensure_ascii=False, indent=2))
    if datasheet is not None:
        new = corpus.replace_counts(read_text(datasheet), corpus.render_counts(parts, total), str(datasheet))
        write_text(datasheet, new)
        _say(f"{datasheet}: counts of {total.total.articles:,} articles written", stderr=as_json)
    elif not as_json:
        _print_tables(parts, total)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="File or folder to read.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.", show_default=False)],
    ontology: OntologyOption = None,
    source_format: FormatOption = None,
    target_format: ToOption = None,
    new_ids: Annotated[bool, typer.Option("--renumber", help="Name entities T1, T2, … first.")] = False,
) -> None:
    """Convert a corpus from one format to another; nothing is written if an article breaks a rule."""
    reader = find_format(source_format) if source_format else guess_format(source)
    writer = find_format(target_format) if target_format else guess_format(target)
    if target.exists() and target.samefile(source):
        raise DataError(f"{target}: would replace its own source; give another path to write to")
    articles = list(read(source, _load(ontology), reader.name))
    if new_ids:
        articles = [renumber(article) for article in articles]
    count = writer.write(articles, target)
    for part in sorted(writer.loses):
        if hit := sum(_has(article, part) for article in articles):
            _say(f"{writer.name} has no place for `{part}`: left out of {hit:,} articles", stderr=True)
    _say(f"{target}: {count:,} articles, {reader.name} → {writer.name}")


def _load(path: Path | None) -> Ontology:
    return Ontology.load(path) if path is not None else corpus.default_ontology()


def _has(article: Article, part: str) -> bool:
    if part == "meta":
        return bool(article.meta)
    return any(getattr(x, part, None) is not None for x in (*article.entities, *article.relations))


def _print_tables(parts: dict[str, corpus.Statistics], total: corpus.Statistics) -> None:
    files = {name: part.total for name, part in parts.items()}
    slices = {name: counts for name, counts in total.slices.items() if name}
    for title, columns in (("files", files), ("slices", slices)):
        if not columns:
            continue
        table = Table(title, *map(escape, columns), "all", box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in total.total.rows:
            top = row in ("articles", "words", "entities", "relations")
            numbers = [c.rows[row] for c in (*columns.values(), total.total)]
            table.add_row(row if top else f"  {escape(row)}", *(f"{n:,}" for n in numbers))
        Console().print(table)


def _say(message: str, *, stderr: bool = False) -> None:
    """Print one line as it stands: brackets are text, and long lines stay whole so that they can be searched."""
    Console(stderr=stderr).print(message, markup=False, highlight=False, soft_wrap=True)
