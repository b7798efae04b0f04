"""File formats for annotated articles. Each one reads and writes `Article` records; none knows a type by name.

Every format reads and writes whole files, cut into lines at line feeds only. Round trips keep id, text, entities and
relations exactly, or writing fails with the reason; `Format.loses` names what a format has no place for.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rasid.errors import DataError
from rasid.formats import brat, conll, jsonl, markup
from rasid.formats.files import Found
from rasid.records import Article
from rasid.schema import Ontology

__all__ = ["FORMATS", "Format", "Found", "find_format", "guess_format", "read", "renumber", "scan", "write"]


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        name: What `--from` and `--to` call it.
        suffixes: File suffixes that stand for it.
        scan: Yields `(file:line, article or error)` for each article, so that one bad article hides no other.
        write: Writes articles to a path and returns their number.
        loses: Parts of a record that it has no place for.
    """

    name: str
    suffixes: tuple[str, ...]
    scan: Callable[[Path, Ontology | None], Iterator[Found]]
    write: Callable[[Iterable[Article], Path], int]
    loses: frozenset[str] = frozenset()


_PREDICTED = frozenset({"score", "normalized"})
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("jsonl", (".jsonl",), jsonl.scan, jsonl.write),
        Format("markup", (".markup", ".ann"), markup.scan, markup.write, _PREDICTED),
        Format("conll", (".conll", ".iob", ".iob2", ".bio", ".tsv"), conll.scan, conll.write, _PREDICTED),
        Format("brat", (), brat.scan, brat.write, _PREDICTED | {"meta"}),
    )
}


def find_format(name: str) -> Format:
    """Look a format up by name.

    Raises:
        DataError: naming the formats there are.
    """
    if name not in FORMATS:
        raise DataError(f"unknown format «{name}»; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def guess_format(path: str | Path) -> Format:
    """Guess a format from a path: a folder, or a name without suffix, is brat; files go by their suffix.

    Both markup and brat use `.ann`. An existing one beside a `.txt` of the same name is brat; others are markup.

    Raises:
        DataError: if the suffix is unknown.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir() or (not suffix and not path.exists()):
        return FORMATS["brat"]
    if suffix == brat.MARKS and path.with_suffix(brat.TEXT).exists():
        return FORMATS["brat"]
    for form in FORMATS.values():
        if suffix in form.suffixes:
            return form
    raise DataError(f"{path}: cannot tell the format from the name; say which one it is: {', '.join(FORMATS)}")


def scan(path: str | Path, ontology: Ontology | None = None, form: str | None = None) -> Iterator[Found]:
    """Yield each article of a file or folder, or what is wrong with it, with its `file:line`.

    Args:
        path: A file, or a folder for brat.
        ontology: Types and ends of relations are checked if it is given.
        form: Name of the format; guessed from the path by default.

    Raises:
        DataError: if the path cannot be read at all.
    """
    path = Path(path)
    chosen = find_format(form) if form else guess_format(path)
    places: dict[str, str] = {}
    for where, found in chosen.scan(path, ontology):
        if isinstance(found, Article):
            if found.id in places:
                other = places[found.id]
                yield where, DataError(f"{where}: id {found.id} is that of {other} too; ids must be unique")
                continue
            places[found.id] = where
        yield where, found


def read(path: str | Path, ontology: Ontology | None = None, form: str | None = None) -> Iterator[Article]:
    """Read articles; arguments as for `scan`.

    Raises:
        DataError: at the first article with a problem, naming file, line and every problem of that article.
    """
    for _, found in scan(path, ontology, form):
        if isinstance(found, DataError):
            raise found
        yield found


def write(articles: Iterable[Article], path: str | Path, form: str | None = None) -> int:
    """Write articles in the format of that name (guessed from the path by default); returns their number.

    Raises:
        DataError: if the format cannot hold an article, or the path cannot be written.
    """
    path = Path(path)
    return (find_format(form) if form else guess_format(path)).write(articles, path)


def renumber(article: Article) -> Article:
    """Name the entities T1, T2, … in the order of the text, as markup and brat need them."""
    names = {e.id: f"T{i}" for i, e in enumerate(sorted(article.entities, key=lambda e: e.start), start=1)}
    return article.model_copy(
        update={
            "entities": tuple(e.model_copy(update={"id": names[e.id]}) for e in article.entities),
            "relations": tuple(
                r.model_copy(update={"head": names[r.head], "tail": names[r.tail]}) for r in article.relations
            ),
        }
    )
