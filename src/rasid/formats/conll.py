r"""CoNLL columns with IOB2 tags.

    # id = sy-0001
    # meta = {"outlet": "agency brief"}
    # text = "وصل رتل لقسد"
    وصل	O	0	3	_
    رتل	B-EQUIPMENT	4	7	T1
    ل	O	8	9	_
    قسد	B-MIL_UNIT	9	12	T2
    # relation = HAS T2 T1

Columns: token, tag, start, end (code points into `text`, half-open), entity id on `B-` rows. A word is cut where an
entity starts or ends inside it, so a proclitic is a row of its own. A blank line follows each paragraph; `# id` starts
an article. `# text` and `# meta` are JSON. Lost in writing: `score` and `normalized`; entities come back in the order
of the text, relations by paragraph.

Files of others need only token and tag: the first and the last of two or more columns, parted by tabs or blanks. Their
tokens are joined with blanks and their sentences with line breaks. `-DOCSTART-`, `# newdoc` and `# id` start a
document; in a file without any, each sentence is an article of its own, named after the file and its number. Other
comments are skipped. Tags must be IOB2: an `I-` that continues nothing is an error, never mended silently.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rasid.errors import DataError
from rasid.formats.files import (
    Found,
    Lines,
    Problems,
    check_writable,
    in_text_order,
    number_lines,
    read_text,
    write_text,
)
from rasid.records import PARAGRAPH_BREAK, Article, Entity, Relation
from rasid.schema import OUTSIDE, Ontology

NO_ID = "_"
_COMMENT = re.compile(r"# (id|meta|text|relation|newdoc id) = (.*)")
_DOCSTART = r"-DOCSTART-(?!\t\S+\t[0-9]+\t[0-9]+)"  # with offsets behind it, it is a word of a text
_START = re.compile(rf"{_DOCSTART}|# newdoc\b|# id = ")
_TAG = re.compile(r"([BI])-(.+)")


@dataclass
class _Row:
    line: int
    columns: list[str]
    sentence: int
    start: int = 0
    end: int = 0

    @property
    def token(self) -> str:
        return self.columns[0]


@dataclass
class _Document:
    """The lines of one article, sorted by kind; comments as (line, value)."""

    line: int
    comments: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    rows: list[_Row] = field(default_factory=list)

    def comment(self, name: str) -> str | None:
        return self.comments[name][-1][1] if name in self.comments else None


def scan(path: Path, ontology: Ontology | None = None) -> Iterator[Found]:
    """Yield each article of a file, or what is wrong with it, with the line where it starts."""
    lines = [(number, line.removesuffix("\r")) for number, line in number_lines(read_text(path))]
    by_sentence = not any(_START.match(line) for _, line in lines)
    for count, document in enumerate(_documents(lines, by_sentence), start=1):
        name = document.comment("id") or document.comment("newdoc id") or f"{path.stem}-{count}"
        yield f"{path}:{document.line}", _build(document, name, path, ontology)


def write(articles: Iterable[Article], path: Path) -> int:
    """Write a file of articles; returns their number.

    Raises:
        DataError: for the first article that the format cannot hold, before anything is written.
    """
    blocks = [render(article) for article in articles]
    write_text(path, "".join(blocks))
    return len(blocks)


def _documents(lines: list[tuple[int, str]], by_sentence: bool) -> Iterator[_Document]:
    document: _Document | None = None
    sentence = 0
    for number, line in lines:
        if not line.strip():
            sentence += 1
            if by_sentence and document is not None and document.rows:
                yield document
                document = None
            continue
        if _START.match(line):
            if document is not None and (document.rows or "id" in document.comments):
                yield document
                document = None
            elif not line.startswith("# id"):  # which may follow the `# newdoc` of the same document
                document = None
            document = document or _Document(number)
        document = document or _Document(number)
        if match := _COMMENT.fullmatch(line):
            document.comments.setdefault(match[1], []).append((number, match[2].strip()))
        elif not _START.match(line):
            columns = [c.strip() for c in line.rstrip().split("\t")] if "\t" in line else line.split()
            if not line.startswith("#") or _is_row(columns):
                document.rows.append(_Row(number, columns, sentence))
    if document is not None and (document.rows or "id" in document.comments):
        yield document


def _is_row(columns: list[str]) -> bool:
    """Whether a line that starts with `#` is a token all the same, and no comment."""
    return len(columns) > 1 and any(tag == OUTSIDE or _TAG.fullmatch(tag) for tag in (columns[1], columns[-1]))


def _build(document: _Document, name: str, path: Path, ontology: Ontology | None) -> Article | DataError:
    problems = Problems(path, document.line)
    for row in [row for row in document.rows if len(row.columns) < 2 or not row.token]:
        problems.add(row.line, f"«{' '.join(row.columns)}»: expected a token and its tag, parted by a tab")
    if not document.rows and "text" not in document.comments:
        problems.add(document.line, f"article {name} has no rows and no text; add them, or remove its comments")
    if error := problems.error():
        return error
    text = _own_text(document)
    own = text is not None
    text = _check_offsets(document.rows, text, problems) if text is not None else _join(document.rows)
    entities, lines = _spans(document.rows, text, own, problems)
    relations = []
    for number, value in document.comments.get("relation", []):
        if len(parts := value.split()) != 3:
            problems.add(number, f"relation «{value}» has {len(parts)} parts; expected `# relation = TYPE HEAD TAIL`")
            continue
        relations.append(Relation(type=parts[0], head=parts[1], tail=parts[2]))
        lines[relations[-1]] = number
    meta = _json(document.comment("meta") or "{}")
    if not isinstance(meta, dict):
        problems.add(document.comments["meta"][-1][0], "`# meta` is no JSON object; write `# meta = {...}`")
        meta = {}
    article = Article(id=name, text=text, meta=meta, entities=tuple(entities), relations=tuple(relations))
    problems.judge(article, lines, ontology)
    return problems.error() or article


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None


def _own_text(document: _Document) -> str | None:
    """Return the article's text if the file is of the richer kind: a JSON text, and offsets on some rows at least."""
    text = _json(document.comment("text") or "")
    offsets = not document.rows or any(_offsets(row) for row in document.rows)
    return text if isinstance(text, str) and offsets else None


def _offsets(row: _Row) -> tuple[int, int] | None:
    columns = row.columns
    return (
        (int(columns[2]), int(columns[3]))
        if len(columns) > 3 and columns[2].isdecimal() and columns[3].isdecimal()
        else None
    )


def _check_offsets(rows: list[_Row], text: str, problems: Problems) -> str:
    before = 0
    for row in rows:
        if (offsets := _offsets(row)) is None:
            problems.add(row.line, f"token «{row.token}» has no offsets; expected columns token, tag, start, end")
            continue
        row.start, row.end = offsets
        if row.start < before or text[row.start : row.end] != row.token:
            found = text[row.start : row.end]
            problems.add(
                row.line,
                f"token «{row.token}» [{row.start}, {row.end}): the text has «{found}» there, and the row before ends "
                f"at {before}; offsets count code points and go up",
            )
        before = row.end
    return text


def _join(rows: list[_Row]) -> str:
    """Build the text of a file without offsets and fill the offsets in."""
    text = ""
    for i, row in enumerate(rows):
        if i:
            text += " " if row.sentence == rows[i - 1].sentence else PARAGRAPH_BREAK
        row.start = len(text)
        text += row.token
        row.end = len(text)
    return text


def _spans(rows: list[_Row], text: str, own: bool, problems: Problems) -> tuple[list[Entity], Lines]:
    entities: list[Entity] = []
    lines: Lines = {}
    group: list[_Row] = []  # the rows of the entity being read
    kind = ""

    def close() -> None:
        if group:
            first, start, end = group[0], group[0].start, group[-1].end
            given = first.columns[4] if own and len(first.columns) > 4 and first.columns[4] != NO_ID else ""
            name = given or f"T{len(entities) + 1}"
            entities.append(Entity(id=name, type=kind, start=start, end=end, text=text[start:end]))
            lines[entities[-1]] = first.line
            group.clear()

    for row in rows:
        tag = row.columns[1] if own else row.columns[-1]
        match = _TAG.fullmatch(tag)
        if match is None and tag != OUTSIDE:
            problems.add(row.line, f"unknown tag «{tag}»; expected O, B-TYPE or I-TYPE (IOB2)")
        goes_on = bool(match and match[1] == "I" and group and kind == match[2] and group[-1].sentence == row.sentence)
        if not goes_on:
            close()
            if match and match[1] == "I":
                problems.add(
                    row.line, f"tag «{tag}» continues no entity of its type; in IOB2 a span starts with B-{match[2]}"
                )
        if match:
            kind = match[2]
            group.append(row)
    close()
    return entities, lines


def render(article: Article) -> str:
    """Write one article in columns, ending in a blank line.

    Raises:
        DataError: if the format cannot hold it: a name with white space, a span that starts or ends with white space.
    """
    check_writable(article)
    where, entities = f"article {article.id}", in_text_order(article)
    if not article.id or article.id != article.id.strip() or re.search(r"[\r\n]", article.id):
        raise DataError(f"article «{article.id}»: an id must be one line without white space around it; rename it")
    names = [e.type for e in entities] + [r.type for r in article.relations] + [e.id for e in entities]
    for name in names:
        if not name or name == NO_ID or re.search(r"\s", name):
            raise DataError(f"{where}: name «{name}» has white space or no letters; rename types, --renumber entities")
    if bad := [e for e in entities if e.text != e.text.strip()]:
        raise DataError(f"{where}: entity {bad[0].id} «{bad[0].text}» starts or ends with white space; trim it")
    lines = [f"# id = {article.id}"]
    if article.meta:
        lines.append(f"# meta = {json.dumps(article.meta, ensure_ascii=False)}")
    lines.append(f"# text = {json.dumps(article.text, ensure_ascii=False)}")
    start = 0
    for paragraph in article.text.split(PARAGRAPH_BREAK):
        end = start + len(paragraph)
        here = [e for e in entities if start <= e.start < end]
        if rows := list(_render_rows(article.text, start, end, here)):
            ids = {e.id for e in here}
            lines += [
                *rows,
                *(f"# relation = {r.type} {r.head} {r.tail}" for r in article.relations if r.head in ids),
                "",
            ]
        start = end + len(PARAGRAPH_BREAK)
    return "\n".join(lines if lines[-1] == "" else [*lines, ""]) + "\n"


def _render_rows(text: str, start: int, end: int, entities: list[Entity]) -> Iterator[str]:
    """Yield the rows of one paragraph: its words, cut where an entity starts or ends."""
    cuts = sorted({start, end, *(e.start for e in entities), *(e.end for e in entities)})
    at = {e.start: e for e in entities}
    for low, high in pairwise(cuts):
        entity = at.get(low)
        for i, word in enumerate(re.finditer(r"\S+", text[low:high])):
            tag = OUTSIDE if entity is None else f"{'I' if i else 'B'}-{entity.type}"
            name = entity.id if entity and not i else NO_ID
            yield f"{word.group()}\t{tag}\t{low + word.start()}\t{low + word.end()}\t{name}"
