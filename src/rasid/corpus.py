"""Corpora as wholes: every problem of their files, what they count, how they are split."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rasid.errors import DataError
from rasid.formats import scan
from rasid.records import Article
from rasid.schema import Ontology
from rasid.settings import load_settings, shipped_model

ONTOLOGY_FILE = Path("data/ontology.yaml")
SLICE = "slice"  # the key of `meta` that names the part of a corpus an article comes from
OPEN_MARK, CLOSE_MARK = "<!-- counts -->", "<!-- /counts -->"
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def default_ontology() -> Ontology:
    """Load `data/ontology.yaml` of the working directory, or else take that of the shipped model.

    Raises:
        ConfigError: if the file breaks a rule, or is there and the training extra is not.
        ModelError: if there is no file and no shipped model.
    """
    if ONTOLOGY_FILE.is_file():
        return Ontology.load(ONTOLOGY_FILE)
    return load_settings(shipped_model()).ontology


def check(paths: Iterable[str | Path], ontology: Ontology, form: str | None = None) -> list[str]:
    """List every problem of some corpus files, each with its file and line; empty where all is sound.

    An article id that stands in two of the files is a problem too: splits must not share articles.

    Args:
        paths: Files, or folders of brat.
        ontology: What types there are and what they may join.
        form: Name of the format; guessed from each path by default.
    """
    problems: list[str] = []
    places: dict[str, tuple[str, str]] = {}  # article id: path and `file:line`
    for path in map(str, paths):
        try:
            for where, found in scan(path, ontology, form):
                if isinstance(found, DataError):
                    problems.extend(str(found).split("\n"))
                    continue
                first = places.setdefault(found.id, (path, where))
                if first != (path, where):
                    problems.append(f"{where}: id {found.id} is that of {first[1]} too; files must not share articles")
        except DataError as error:
            problems.append(str(error))
    return problems


@dataclass(frozen=True)
class Counts:
    """What some articles hold.

    Attributes:
        articles: Number of articles.
        words: Number of runs of characters between white space.
        entities: Entity type to its number, types without any included, in the order of the ontology.
        relations: Relation type to its number, likewise.
    """

    articles: int
    words: int
    entities: dict[str, int]
    relations: dict[str, int]

    @property
    def rows(self) -> dict[str, int]:
        """All numbers by name, in the order of a table."""
        return {
            "articles": self.articles,
            "words": self.words,
            "entities": sum(self.entities.values()),
            **self.entities,
            "relations": sum(self.relations.values()),
            **self.relations,
        }


@dataclass(frozen=True)
class Statistics:
    """Counts of a corpus, whole and by slice (`meta.slice`; articles without one are under the empty name)."""

    total: Counts
    slices: dict[str, Counts]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the fields of `total`, and `slices`."""
        return {**asdict(self.total), "slices": {name: asdict(counts) for name, counts in self.slices.items()}}


def statistics(articles: Iterable[Article], ontology: Ontology) -> Statistics:
    """Count articles, words, entities and relations per type, in all and per slice."""
    everything = list(articles)
    return Statistics(
        total=_count(everything, ontology),
        slices={name: _count(part, ontology) for name, part in sorted(_slices(everything).items())},
    )


def _count(articles: Sequence[Article], ontology: Ontology) -> Counts:
    return Counts(
        articles=len(articles),
        words=sum(len(a.text.split()) for a in articles),
        entities=_tally((e.type for a in articles for e in a.entities), ontology.entity_types),
        relations=_tally((r.type for a in articles for r in a.relations), ontology.relation_names),
    )


def _tally(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    found = Counter(names)
    return {name: found[name] for name in (*order, *sorted(set(found) - set(order)))}


def _slices(articles: Iterable[Article]) -> dict[str, list[Article]]:
    slices: dict[str, list[Article]] = {}
    for article in articles:
        slices.setdefault(str(article.meta.get(SLICE, "")), []).append(article)
    return slices


def render_counts(parts: Mapping[str, Statistics], total: Statistics) -> str:
    """Render the counts of a corpus as Markdown: a table of its parts by type, and one of its slices.

    Args:
        parts: Name of a part (`train`) to its statistics; a column each.
        total: The statistics of all parts together.
    """
    columns = {**{name: s.total for name, s in parts.items()}, "all": total.total}
    by_type: list[Sequence[str | int]] = [
        [_label(row, total.total), *(c.rows[row] for c in columns.values())] for row in total.total.rows
    ]
    lines = _table(["", *columns], by_type)
    if set(total.slices) != {""}:
        heads = ["articles", "words", "entities", "relations"]
        by_slice: list[Sequence[str | int]] = [
            [f"`{name}`", *(c.rows[head] for head in heads)] for name, c in total.slices.items()
        ]
        lines += ["", *_table(["slice", *heads], by_slice)]
    return "\n".join(lines)


def _label(row: str, counts: Counts) -> str:
    return f"`{row}`" if row in counts.entities or row in counts.relations else row


def _table(heads: Sequence[str], rows: Iterable[Sequence[str | int]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for row in rows:
        lines.append(f"| {' | '.join(c if isinstance(c, str) else f'{c:,}' for c in row)} |")
    return lines


def replace_counts(document: str, counts: str, where: str) -> str:
    """Put counts between the marks `<!-- counts -->` and `<!-- /counts -->` of a document.

    Args:
        document: Its whole text.
        counts: What `render_counts` gave.
        where: Name of the document, for messages.

    Raises:
        DataError: if the marks are missing or in the wrong order.
    """
    before, opened, rest = document.partition(OPEN_MARK)
    _, closed, after = rest.partition(CLOSE_MARK)
    if not opened or not closed:
        raise DataError(f"{where}: no place for counts; put the lines {OPEN_MARK} and {CLOSE_MARK} where they belong")
    return f"{before}{OPEN_MARK}\n{counts}\n{CLOSE_MARK}{after}"


def split(
    articles: Iterable[Article], shares: Mapping[str, float] = SHARES, seed: str = "rasid"
) -> dict[str, list[Article]]:
    """Split a corpus by article, each slice in the same shares.

    Articles are ranked by a hash of seed and id, so the split depends neither on their order nor on a random generator.

    Args:
        articles: The corpus.
        shares: Name of a part to its share; the shares sum to 1. Sizes are rounded, the last part takes the rest.
        seed: Another one gives another split.

    Returns:
        The parts; within each one the articles keep their order.
    """
    everything = list(articles)
    part_of: dict[str, str] = {}
    for part in _slices(everything).values():
        ranked = sorted(part, key=lambda a: hashlib.sha256(f"{seed}:{a.id}".encode()).hexdigest())
        bounds, reached = [], 0.0
        for share in shares.values():
            reached += share
            bounds.append(round(reached * len(ranked)))
        bounds[-1] = len(ranked)
        for i, article in enumerate(ranked):
            part_of[article.id] = next(name for name, bound in zip(shares, bounds, strict=True) if i < bound)
    return {name: [a for a in everything if part_of[a.id] == name] for name in shares}


def order_ends(article: Article, ontology: Ontology) -> Article:
    """Write the ends of symmetric relations in the one order in use: earlier mention first."""
    starts = {e.id: e.start for e in article.entities}
    relations = []
    for r in article.relations:
        rule = ontology.relation_types.get(r.type)
        if rule is not None and rule.symmetric and starts[r.tail] < starts[r.head]:
            r = r.model_copy(update={"head": r.tail, "tail": r.head})
        relations.append(r)
    return article.model_copy(update={"relations": tuple(relations)})
