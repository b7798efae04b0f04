"""Records: one JSON object per article, for corpora and predictions alike. Reading checks everything."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from rasid.errors import DataError, describe
from rasid.schema import Ontology

PARAGRAPH_BREAK = "\n"
Probability = Annotated[float, Field(ge=0, le=1)]
_SURROGATE = re.compile("[\ud800-\udfff]")


class Entity(BaseModel):
    """A typed span.

    Attributes:
        id: Unique within its article.
        type: An entity type of the ontology.
        start: Code point where the span starts in the article's text.
        end: Code point after its last one; `article.text[start:end] == text`.
        text: The span as it stands in the article.
        score: Probability in [0, 1]; predictions only.
        normalized: The name without orthographic variation; predictions only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    type: str
    start: StrictInt
    end: StrictInt
    text: str
    score: Probability | None = None
    normalized: str | None = None


class Relation(BaseModel):
    """A typed link from entity id `head` to entity id `tail`; `score` in [0, 1] in predictions only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str
    head: str
    tail: str
    score: Probability | None = None


class Article(BaseModel):
    """A text with its entities and relations; paragraphs are separated by `\\n`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    meta: dict[str, Any] = {}
    entities: tuple[Entity, ...] = ()
    relations: tuple[Relation, ...] = ()

    def entity(self, entity_id: str) -> Entity:
        """The entity with that id; KeyError if there is none."""
        for e in self.entities:
            if e.id == entity_id:
                return e
        raise KeyError(entity_id)

    def to_json(self) -> str:
        """One line of JSON, without the fields that are unset."""
        return self.model_dump_json(exclude_none=True)


def find_problems(article: Article, ontology: Ontology | None = None) -> list[tuple[Entity | Relation, str]]:
    """List every problem of an article with the entity or relation that has it, so that a reader can name its line.

    Types are checked where an ontology is given.
    """
    problems: list[tuple[Entity | Relation, str]] = []
    by_id: dict[str, Entity] = {}
    for e in article.entities:
        name = f"entity {e.id} [{e.start}, {e.end}) «{e.text}»"
        if e.id in by_id:
            problems.append((e, f"{name}: id used twice; give each entity of an article its own id"))
        by_id[e.id] = e
        problems.extend((e, f"{name}: {problem}") for problem in _check_span(e, article.text))
        if ontology is not None and e.type not in ontology.entity_types:
            known = ", ".join(ontology.entity_types)
            problems.append((e, f"{name}: unknown type {e.type}; the ontology has {known}"))
    reach: Entity | None = None  # the entity so far that ends last
    for e in sorted(article.entities, key=lambda e: (e.start, e.end)):
        if reach is not None and e.start < reach.end:
            both = f"entities {reach.id} [{reach.start}, {reach.end}) and {e.id} [{e.start}, {e.end})"
            problems.append((e, f"{both} overlap; spans are flat: keep one"))
        if reach is None or e.end > reach.end:
            reach = e
    seen: set[tuple[str, str, str]] = set()
    for r in article.relations:
        problems.extend((r, problem) for problem in _check_relation(r, article, by_id, ontology, seen))
    return problems


def check_article(article: Article, ontology: Ontology | None = None) -> list[str]:
    """Every problem of an article, in words; empty where it is sound. Types are checked where an ontology is given."""
    return [problem for _, problem in find_problems(article, ontology)]


def _check_span(e: Entity, text: str) -> list[str]:
    length = len(text)
    if not 0 <= e.start < e.end <= length:
        return [f"outside of the text, which has {length} characters; expected 0 <= start < end <= {length}"]
    if (found := text[e.start : e.end]) != e.text:
        return [f"the text has «{found}» there; offsets count code points, not bytes or UTF-16 units"]
    if PARAGRAPH_BREAK in e.text:
        return ["crosses a paragraph break; split it"]
    return []


def _check_relation(
    r: Relation, article: Article, by_id: dict[str, Entity], ontology: Ontology | None, seen: set[tuple[str, str, str]]
) -> list[str]:
    name = f"relation {r.type} {r.head} → {r.tail}"
    if missing := [end for end in (r.head, r.tail) if end not in by_id]:
        return [f"{name}: no entity {' or '.join(missing)} in the article; add it or drop the relation"]
    problems = []
    head, tail = by_id[r.head], by_id[r.tail]
    if r.head == r.tail:
        problems.append(f"{name}: joins an entity to itself; drop it")
    if PARAGRAPH_BREAK in article.text[min(head.start, tail.start) : max(head.start, tail.start)]:
        problems.append(f"{name}: its ends are in different paragraphs; relations stay within one")
    ends = (r.head, r.tail)
    if ontology is not None:
        rule = ontology.relation_types.get(r.type)
        if rule is None:
            problems.append(f"{name}: unknown type; the ontology has {', '.join(ontology.relation_names)}")
        elif {head.type, tail.type} <= set(ontology.entity_types) and not rule.allows(head.type, tail.type):
            joined = f"{head.type} «{head.text}» to {tail.type} «{tail.text}»"
            problems.append(f"{name}: the ontology does not let {r.type} join {joined}; correct a type or an end")
        elif rule.symmetric:
            ends = min(ends), max(ends)
    if (r.type, *ends) in seen:
        problems.append(f"{name}: marked twice; keep one")
    seen.add((r.type, *ends))
    return problems


def parse_article(line: str, where: str, ontology: Ontology | None = None) -> Article:
    """One record out of one line of JSON.

    Raises:
        DataError: naming `where` and every problem found.
    """
    try:
        article = Article.model_validate_json(line)
    except ValidationError as error:
        found = describe(error)
        raise DataError(f"{where}: not an article record: {found}; expected id, text, entities, relations") from error
    if problems := check_article(article, ontology):
        raise DataError("\n".join(f"{where}: {problem}" for problem in problems))
    return article


def read_articles(path: str | Path, ontology: Ontology | None = None) -> Iterator[Article]:
    """Read a JSONL corpus, one article a line; blank lines are skipped.

    Raises:
        DataError: at the first line with a problem, naming file and line, or for an id used twice.
    """
    path = Path(path)
    ids: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                article = parse_article(line, f"{path}:{number}", ontology)
                if article.id in ids:
                    other = ids[article.id]
                    raise DataError(f"{path}:{number}: id {article.id} is that of line {other} too; ids must be unique")
                ids[article.id] = number
                yield article
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; give the path of a JSONL corpus") from error


def write_articles(articles: Iterable[Article], path: str | Path) -> int:
    """Write a JSONL corpus; returns the number of articles."""
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as out:
        for article in articles:
            out.write(article.to_json() + "\n")
            count += 1
    return count


def check_text(text: str) -> str:
    """The text itself if it can be read and written as Unicode.

    Raises:
        DataError: if it holds a lone surrogate, which no encoding can write.
    """
    if found := _SURROGATE.search(text):
        raise DataError(
            f"lone surrogate U+{ord(found.group()):04X} at character {found.start()}: the text was decoded wrongly; "
            "decode the original bytes as UTF-8 again"
        )
    return text


def to_json_line(value: dict[str, Any]) -> str:
    """One line of JSON with Arabic left readable."""
    return json.dumps(value, ensure_ascii=False) + "\n"
