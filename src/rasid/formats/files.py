"""What the formats share: whole files in and out, and problems gathered with their lines."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rasid.errors import DataError
from rasid.records import Article, Entity, Relation, find_problems
from rasid.schema import Ontology

Found = tuple[str, Article | DataError]
"""Where an article starts (`file:line`), and the article or what is wrong with it."""

Lines = dict[Entity | Relation, int]
"""The line, from 1, on which an entity or relation stands."""


def read_text(path: Path, encoding: str = "utf-8-sig") -> str:
    """Read a file whole and as it stands: line ends are not translated.

    Raises:
        DataError: if it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give the path of a corpus") from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole and as it stands.

    Raises:
        DataError: if the path cannot be written.
    """
    try:
        path.write_bytes(text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; give a path in an existing folder") from error


def number_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield the lines of a text with their numbers from 1, cut at `\n` only: U+2028 and the like are text."""
    yield from enumerate(text.split("\n"), start=1)


class Problems:
    """The problems of one article, each with its line."""

    def __init__(self, path: Path, first_line: int):
        """Start with none; `first_line` stands for problems of the article as a whole."""
        self.path, self.first_line = path, first_line
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, problem: str) -> None:
        """Note a problem on a line of the file."""
        self._found.append((line, problem))

    def judge(self, article: Article, lines: Mapping[Entity | Relation, int], ontology: Ontology | None) -> None:
        """Note what breaks the record format or the ontology; `lines` tells where each entity and relation stands."""
        for item, problem in find_problems(article, ontology):
            self.add(lines.get(item, self.first_line), problem)

    def error(self) -> DataError | None:
        """Return all problems as one error, a line each, in the order of the file; None where there are none."""
        if not self._found:
            return None
        in_order = sorted(self._found, key=lambda item: item[0])
        return DataError("\n".join(f"{self.path}:{line}: {problem}" for line, problem in in_order))


def check_writable(article: Article) -> None:
    """Refuse to write what is broken already.

    Raises:
        DataError: naming every problem of the article.
    """
    if problems := find_problems(article):
        raise DataError("\n".join(f"article {article.id}: {problem}" for _, problem in problems))


def in_text_order(article: Article) -> list[Entity]:
    """Sort the entities by where they start."""
    return sorted(article.entities, key=lambda e: e.start)
