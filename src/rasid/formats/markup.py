r"""Inline markup, made to be written by hand.

    === sy-0001
    # outlet: agency brief
    انطلق [رتل عسكري](EQUIPMENT 1) ل[قسد](MIL_UNIT 2) من [تل تمر](LOCATION 3).
    @ HAS 2 1
    @ MOVES_FROM 1 3

A line is a paragraph; blank lines and the white space around a paragraph do not count. `# key: value` lines are meta
data. An entity stands in brackets, followed by its type and number; number 1 is the record's id `T1`. An `@` line
states a relation (type, head, tail) of a paragraph above it. Square brackets are reserved.

Two lines exist for texts that were not written by hand: a paragraph behind `\` is taken as it stands, white space and
all (an empty one is a lone `\`), and `# json: {...}` holds the meta data that are not plain one-line strings.

Lost in writing: `score` and `normalized`. Entities come back in the order of the text, relations by paragraph.
"""

import json
import re
from collections.abc import Iterable, Iterator
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
from rasid.schema import Ontology

HEADER, META, RELATION, VERBATIM = "===", "# ", "@", "\\"
JSON_KEY = "json"
_MENTION = re.compile(r"\[([^\[\]\n]+)\]\(([^\s()\[\]]+) ([0-9]+)\)")
_ID = re.compile(r"T[0-9]+")
_CLOSES = {"”": "“", "»": "«", '"': '"', ")": "("}
_EDGES = frozenset(" \t\u00a0\u200f\u200e\"'“”«»„()،؛:.؟!,;?–—…")


def scan(path: Path, ontology: Ontology | None = None) -> Iterator[Found]:
    """Yield each article of a file, or what is wrong with it, with the line of its header."""
    lines = list(number_lines(read_text(path)))
    starts = [i for i, (_, line) in enumerate(lines) if line.startswith(HEADER)]
    for number, line in lines[: starts[0] if starts else len(lines)]:
        if line.strip():
            where = f"{path}:{number}"
            yield where, DataError(f"{where}: text before the first article; begin each article with a line `=== id`")
            break
    for begin, end in pairwise([*starts, len(lines)]):
        yield f"{path}:{lines[begin][0]}", parse(lines[begin:end], path, ontology)


def write(articles: Iterable[Article], path: Path) -> int:
    """Write a file of articles; returns their number.

    Raises:
        DataError: for the first article that markup cannot hold, before anything is written.
    """
    blocks = [render(article) for article in articles]
    write_text(path, "\n".join(blocks))
    return len(blocks)


def parse(block: list[tuple[int, str]], path: Path, ontology: Ontology | None = None) -> Article | DataError:
    """Read one article.

    Args:
        block: Its lines with their numbers, the header first.
        path: The file, for messages.
        ontology: Types and ends are checked if it is given.
    """
    reader = _Reader(block[0][1].removeprefix(HEADER).strip(), Problems(path, block[0][0]))
    for number, raw in block[1:]:
        line = raw.strip()
        if line.startswith(VERBATIM):
            reader.read_paragraph(number, raw.lstrip().removeprefix(VERBATIM))
        elif line.startswith(META):
            reader.read_meta(number, line)
        elif line.startswith(RELATION):
            reader.read_relation(number, line)
        elif line:
            reader.read_paragraph(number, line)
    return reader.finish(ontology)


class _Reader:
    """One article on its way in."""

    def __init__(self, article_id: str, problems: Problems):
        self.id, self.problems = article_id, problems
        self.paragraphs: list[str] = []
        self.meta: dict[str, Any] = {}
        self.entities: dict[str, Entity] = {}
        self.relations: list[Relation] = []
        self.lines: Lines = {}
        self.offset = 0  # code points before the next paragraph

    def read_meta(self, number: int, line: str) -> None:
        key, _, value = line.removeprefix(META).partition(":")
        if key.strip() != JSON_KEY:
            self.meta[key.strip()] = value.strip()
            return
        try:
            found = json.loads(value)
        except ValueError:
            found = None
        if isinstance(found, dict):
            self.meta.update(found)
        else:
            self.problems.add(number, f"meta data «{value.strip()}» are no JSON object; write `# {JSON_KEY}: {{...}}`")

    def read_relation(self, number: int, line: str) -> None:
        parts = line.removeprefix(RELATION).split()
        if len(parts) != 3:
            self.problems.add(number, f"relation line «{line}» has {len(parts)} parts; expected `@ TYPE HEAD TAIL`")
            return
        kind, head, tail = parts
        if unknown := [end for end in (head, tail) if f"T{end}" not in self.entities]:
            which = " and ".join(unknown)
            self.problems.add(
                number, f"relation line «{line}»: unknown number {which}; mark the entity above this line"
            )
            return
        relation = Relation(type=kind, head=f"T{head}", tail=f"T{tail}")
        self.relations.append(relation)
        self.lines[relation] = number

    def read_paragraph(self, number: int, line: str) -> None:
        plain, cursor = "", 0
        for mention in _MENTION.finditer(line):
            surface, kind, name = mention.groups()
            plain += line[cursor : mention.start()]
            start = self.offset + len(plain)
            entity = Entity(id=f"T{name}", type=kind, start=start, end=start + len(surface), text=surface)
            plain += surface
            cursor = mention.end()
            if entity.id in self.entities:
                self.problems.add(number, f"number {name} used twice (here for «{surface}»); give each entity its own")
            if problem := find_edge(surface):
                self.problems.add(number, problem)
            self.entities[entity.id] = entity
            self.lines[entity] = number
        plain += line[cursor:]
        if stray := re.search(r"[\[\]]", plain):
            near = plain[max(0, stray.start() - 20) : stray.start() + 20]
            self.problems.add(number, f"stray bracket near «{near}»; write an entity as `[text](TYPE number)`")
        self.paragraphs.append(plain)
        self.offset += len(plain) + len(PARAGRAPH_BREAK)

    def finish(self, ontology: Ontology | None) -> Article | DataError:
        if not self.id:
            self.problems.add(self.problems.first_line, "no id; write `=== id`")
        if not self.paragraphs:
            self.problems.add(self.problems.first_line, f"article {self.id} has no text; add a paragraph")
        article = Article(
            id=self.id,
            text=PARAGRAPH_BREAK.join(self.paragraphs),
            meta=self.meta,
            entities=tuple(self.entities.values()),
            relations=tuple(self.relations),
        )
        self.problems.judge(article, self.lines, ontology)
        return self.problems.error() or article


def find_edge(surface: str) -> str | None:
    """Say what is wrong with the edges of a span: white space or punctuation that is not part of a name.

    A full stop at the end may belong to an abbreviation, and a closing mark belongs to the opening one inside the span.
    """
    closes = _CLOSES.get(surface[-1], "\0") in surface[:-1]
    if surface[0] in _EDGES or (surface[-1] in _EDGES and surface[-1] != "." and not closes):
        return f"span «{surface}» starts or ends with white space or punctuation; leave it outside of the brackets"
    return None


def render(article: Article) -> str:
    """Write one article as markup, ending in a line break.

    Raises:
        DataError: if markup cannot hold it: a square bracket, an id that is not `T` and a number, a span with bad
            edges.
    """
    check_writable(article)
    where, text = f"article {article.id}", article.text
    if stray := re.search(r"[\[\]]", text):
        near = text[max(0, stray.start() - 20) : stray.start() + 20]
        raise DataError(
            f"{where}: square bracket at character {stray.start()} («{near}»); markup reserves them: "
            "write jsonl, conll or brat instead"
        )
    if bad := [e.id for e in article.entities if not _ID.fullmatch(e.id)]:
        raise DataError(f"{where}: entity id {bad[0]} is not T and a number, as markup needs; use --renumber")
    lines = [f"{HEADER} {article.id}", *_render_meta(article.meta)]
    start, entities = 0, in_text_order(article)
    for paragraph in text.split(PARAGRAPH_BREAK):
        end = start + len(paragraph)
        here = [e for e in entities if start <= e.start < end]
        lines.append(_render_paragraph(paragraph, start, here))
        names = {e.id for e in here}
        lines.extend(f"@ {r.type} {r.head[1:]} {r.tail[1:]}" for r in article.relations if r.head in names)
        start = end + len(PARAGRAPH_BREAK)
    # Reading it again is the proof that nothing is lost: ids with blanks, types with brackets, edges of spans.
    back = parse(list(number_lines("\n".join(lines))), Path(where))
    if isinstance(back, DataError):
        raise DataError(f"{where} cannot be written as markup; write jsonl, conll or brat instead: {back}")
    if _key(back) != _key(article):
        raise DataError(f"{where} does not survive markup (id, types or meta data); write jsonl instead")
    return "\n".join(lines) + "\n"


def _render_meta(meta: dict[str, Any]) -> Iterator[str]:
    rest: dict[str, Any] = {}
    for key, value in meta.items():
        line = f"{META}{key}: {value}"
        plain = (
            isinstance(value, str) and key == key.strip() and value == value.strip() and not re.search(r"[\r\n]", line)
        )
        if plain and key and ":" not in key and key != JSON_KEY:
            yield line
        else:
            rest[key] = value
    if rest:
        yield f"{META}{JSON_KEY}: {json.dumps(rest, ensure_ascii=False)}"


def _render_paragraph(paragraph: str, offset: int, entities: list[Entity]) -> str:
    line, cursor = "", 0
    for e in entities:
        line += f"{paragraph[cursor : e.start - offset]}[{e.text}]({e.type} {e.id[1:]})"
        cursor = e.end - offset
    line += paragraph[cursor:]
    plain = paragraph == paragraph.strip() and paragraph != ""
    return line if plain and not paragraph.startswith((META, RELATION, HEADER, VERBATIM)) else VERBATIM + line


def _key(article: Article) -> tuple[Any, ...]:
    """Return what markup keeps of an article, in a form that compares."""
    entities = [(e.id, e.type, e.start, e.end) for e in in_text_order(article)]
    return article.id, article.text, article.meta, entities, sorted((r.type, r.head, r.tail) for r in article.relations)
