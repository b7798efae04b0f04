"""Render an evaluation: errors in context as HTML, summary as Markdown."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rasid.errors import ConfigError
from rasid.records import PARAGRAPH_BREAK, Article
from rasid.schema import Ontology
from rasid.scoring.metrics import Link, Pair, Score, Table, align, links
from rasid.scoring.reliability import Reliability

_PARAGRAPH = re.compile(f"[^{PARAGRAPH_BREAK}]+")


@dataclass(frozen=True)
class Segment:
    """A piece of text: plain where `kind` is empty, else an entity with its `scoring.metrics.Kind` and its type."""

    text: str
    kind: str = ""
    type: str = ""


@dataclass(frozen=True)
class LinkError:
    """A wrong relation, with type, head text and tail text as in gold and as predicted, or None.

    Attributes:
        kind: `missed`, `spurious`, or `type`: the same two spans are joined by another type or the other way round.
        gold: What gold has.
        predicted: What was predicted.
        lacking: Texts of the ends that the other side has no entity for, which explains the error.
        start: Where the head starts in the article.
    """

    kind: str
    gold: tuple[str, str, str] | None
    predicted: tuple[str, str, str] | None
    lacking: tuple[str, ...]
    start: int


@dataclass(frozen=True)
class ParagraphErrors:
    """A paragraph with at least one error, as marked in gold and as predicted."""

    gold: list[Segment]
    predicted: list[Segment]
    links: list[LinkError]


@dataclass(frozen=True)
class ArticleErrors:
    """The paragraphs of an article that hold errors, and how many of its entities and relations are wrong."""

    id: str
    entities: int
    links: int
    paragraphs: list[ParagraphErrors]


def render_errors(pairs: Iterable[Pair], ontology: Ontology, max_articles: int = 100) -> str:
    """Render errors in context as one self-contained page, the article with most errors first.

    Args:
        pairs: Gold and predicted article, same id and text.
        ontology: Says which relations are symmetric and transitive.
        max_articles: How many articles to show; the page says how many have errors.

    Raises:
        ConfigError: if jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError("the error page needs jinja2: pip install 'rasid[train]'") from error
    wrong = [errors for gold, predicted in pairs if (errors := find_errors(gold, predicted, ontology)).paragraphs]
    wrong.sort(key=lambda a: (-a.entities - a.links, a.id))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rasid"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template("errors.html").render(articles=wrong[:max_articles], total=len(wrong)))


def find_errors(gold: Article, predicted: Article, ontology: Ontology) -> ArticleErrors:
    """Collect the errors of one article by paragraph. Relations are compared by the offsets of their ends."""
    # Start, end, entity type and kind of error of the spans on either side.
    spans: tuple[list[tuple[int, int, str, str]], ...] = ([], [])
    for a in (aligned := align(gold, predicted)):
        for side, e in zip(spans, (a.gold, a.predicted), strict=True):
            if e is not None:
                side.append((e.start, e.end, e.type, a.kind))
    link_errors = _find_link_errors(gold, predicted, ontology)
    paragraphs = []
    for match in _PARAGRAPH.finditer(gold.text):
        inside = [sorted(s for s in side if match.start() <= s[0] < match.end()) for side in spans]
        wrong = [error for error in link_errors if match.start() <= error.start < match.end()]
        if wrong or any(kind != "correct" for side in inside for *_, kind in side):
            gold_line, predicted_line = (_segments(gold.text, match.start(), match.end(), side) for side in inside)
            paragraphs.append(ParagraphErrors(gold_line, predicted_line, wrong))
    return ArticleErrors(gold.id, sum(a.kind != "correct" for a in aligned), len(link_errors), paragraphs)


def render_summary(
    articles: int,
    entities: Table,
    boundaries: Table,
    relations: Mapping[str, Table],
    reliability: Mapping[str, Reliability],
) -> str:
    """Write the scores as Markdown, in percent.

    Args:
        articles: How many were scored.
        entities: Exact span and type.
        boundaries: Exact span alone.
        relations: One table for each way of comparing relations, all over the same gold; may be empty.
        reliability: How often what has a score is right, by the name of the items in the plural.
    """
    tables = {"entities, span and type": entities, "entities, span only": boundaries}
    tables |= {f"relations, {name}": table for name, table in relations.items()}
    lines = [
        "# Evaluation",
        "",
        f"{articles} articles. All scores in percent; in brackets the 95 % bootstrap interval over articles.",
        "",
        *_markdown(
            ("compared", "gold", "predicted", "precision", "recall", "micro F1", "macro F1"),
            ((name, *_sizes(t.micro), *_rates(t.micro), _f1(t.micro), _f1(t.macro)) for name, t in tables.items()),
        ),
        "",
        "Relations: `boundaries` compares the offsets of both ends, `strict` their entity types too; `gold entities`",
        "scores relations predicted between gold entities. A gold relation whose end was not found is a miss.",
        "",
        *(items.describe(name) for name, items in reliability.items()),
        "",
        "## Entities",
        "",
        *_markdown(
            ("type", "gold", "predicted", "precision", "recall", "F1"),
            ((name, *_sizes(s), *_rates(s), _f1(s)) for name, s in entities.per_type.items()),
        ),
    ]
    if relations:
        first = next(iter(relations.values()))
        rows = (
            (name, str(s.tp + s.fn), *(_f1(table.per_type[name]) for table in relations.values()))
            for name, s in first.per_type.items()
        )
        lines += ["", "## Relations, F1", "", *_markdown(("type", "gold", *relations), rows)]
    return "\n".join(lines) + "\n"


def _find_link_errors(gold: Article, predicted: Article, ontology: Ontology) -> list[LinkError]:
    expected, found = links(gold, ontology, typed=False), links(predicted, ontology, typed=False)
    missed, spurious = sorted(expected - found), sorted(found - expected)
    gold_spans, predicted_spans = ({(e.start, e.end) for e in a.entities} for a in (gold, predicted))

    def names(link: Link) -> tuple[str, str, str]:
        return link[0], gold.text[slice(*link[1][:2])], gold.text[slice(*link[2][:2])]

    def lacking(link: Link, spans: set[tuple[int, int]]) -> tuple[str, ...]:
        return tuple(gold.text[slice(*end[:2])] for end in link[1:] if (end[0], end[1]) not in spans)

    errors = []
    for link in missed:
        # The same two spans, joined otherwise.
        other = next((s for s in spurious if {*s[1:]} == {*link[1:]}), None)
        if other is not None:
            spurious.remove(other)
            errors.append(LinkError("type", names(link), names(other), (), link[1][0]))
        else:
            errors.append(LinkError("missed", names(link), None, lacking(link, predicted_spans), link[1][0]))
    errors += [LinkError("spurious", None, names(s), lacking(s, gold_spans), s[1][0]) for s in spurious]
    return sorted(errors, key=lambda error: error.start)


def _segments(text: str, start: int, end: int, spans: list[tuple[int, int, str, str]]) -> list[Segment]:
    segments, at = [], start
    for span_start, span_end, entity_type, kind in spans:
        segments += [Segment(text[at:span_start]), Segment(text[max(at, span_start) : span_end], kind, entity_type)]
        at = span_end
    return [s for s in (*segments, Segment(text[at:end])) if s.text]


def _markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = tuple(header)
    rule = ("---", *("---:" for _ in head[1:]))
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def _sizes(score: Score) -> tuple[str, str]:
    return str(score.tp + score.fn), str(score.tp + score.fp)


def _rates(score: Score) -> tuple[str, str]:
    return f"{100 * score.precision:.1f}", f"{100 * score.recall:.1f}"


def _f1(score: Score) -> str:
    if score.interval is None:
        return f"{100 * score.f1:.1f}"
    return f"{100 * score.f1:.1f} [{100 * score.interval[0]:.1f}, {100 * score.interval[1]:.1f}]"
