"""JSON lines: one record per article, the format of the project itself; it holds everything."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from rasid.errors import DataError
from rasid.formats.files import Found, number_lines, read_text, write_text
from rasid.records import Article, parse_article
from rasid.schema import Ontology


def scan(path: Path, ontology: Ontology | None = None) -> Iterator[Found]:
    """Yield each line's article or its error; blank lines are skipped."""
    for number, line in number_lines(read_text(path)):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield where, parse_article(line, where, ontology)
            except DataError as error:
                yield where, error


def write(articles: Iterable[Article], path: Path) -> int:
    """Write one record a line; returns the number of articles."""
    lines = [article.to_json() + "\n" for article in articles]
    write_text(path, "".join(lines))
    return len(lines)
