"""Run an extractor over gold articles and score what it finds."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rasid.errors import ConfigError, DataError
from rasid.records import Article
from rasid.schema import OUTSIDE, Ontology
from rasid.scoring import figures, report
from rasid.scoring.metrics import Confusion, Pair, Table, confusion, score_entities, score_relations, word_tags
from rasid.scoring.reliability import Reliability, entity_reliability, relation_reliability
from rasid.text import split_words

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
ENTITIES_FILE = "entities.txt"
CONFUSION_FILE = "confusion.png"
RELIABILITY_FILE = "reliability.png"
ERRORS_FILE = "errors.html"
SUMMARY_FILE = "report.md"


class Extractor(Protocol):
    """What evaluation needs of an extractor."""

    @property
    def ontology(self) -> Ontology:
        """The types that it can predict."""

    def pipe(self, texts: Iterable[str], /) -> Iterator[Article]:
        """One article with predicted entities and relations for each text, in order."""

    def relate(self, article: Article, /) -> Article:
        """Return the article with the same entities and the relations predicted between them."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions next to gold, and their scores.

    Attributes:
        ontology: The types that were scored.
        pairs: Gold and predicted article, in the order of the corpus.
        entities: Exact span and type.
        boundaries: Exact span, whatever the type.
        relations: `boundaries` (offsets of both ends), `strict` (their types too) and `gold entities` (predicted
            between gold entities, so that no entity error interferes); empty for an ontology without relations.
        confusion: Which entity type became which.
        reliability: How often what has a score is right: `entities` (as in `entities`), and `relations` (as in
            `strict`) unless the ontology has none.
    """

    ontology: Ontology
    pairs: tuple[Pair, ...]
    entities: Table
    boundaries: Table
    relations: dict[str, Table]
    confusion: Confusion
    reliability: dict[str, Reliability]

    def to_dict(self) -> dict[str, Any]:
        """Every score as plain data for JSON."""
        return {
            "articles": len(self.pairs),
            "entities": {"exact": self.entities.to_dict(), "boundaries": self.boundaries.to_dict()},
            "relations": {name: table.to_dict() for name, table in self.relations.items()},
            "confusion": self.confusion.to_dict(),
            "reliability": {name: items.to_dict() for name, items in self.reliability.items()},
        }

    def summary(self) -> str:
        """The scores as Markdown."""
        return report.render_summary(len(self.pairs), self.entities, self.boundaries, self.relations, self.reliability)

    def save(self, report_dir: str | Path) -> tuple[Path, ...]:
        """Write scores, seqeval's report, pictures, errors in context and a summary into a folder.

        Everything is rendered before anything is written, so that a missing package leaves no half report.

        Returns:
            The files written.

        Raises:
            ConfigError: if a package of the `train` extra is missing, or the folder cannot be written.
        """
        contents: dict[str, bytes] = {
            METRICS_FILE: (json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n").encode(),
            ENTITIES_FILE: word_report(self.pairs).encode(),
            CONFUSION_FILE: figures.render_confusion(self.confusion),
            RELIABILITY_FILE: figures.render_reliability(self.reliability),
            ERRORS_FILE: report.render_errors(self.pairs, self.ontology).encode(),
            SUMMARY_FILE: self.summary().encode(),
        }
        folder = Path(report_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (folder / name).write_bytes(content)
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be written: {error.strerror}; give another folder") from error
        return tuple(folder / name for name in contents)


def evaluate(
    extractor: Extractor,
    articles: Iterable[Article],
    ontology: Ontology,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Extract from the texts of gold articles and score the result.

    Args:
        extractor: Gets texts, and gold entities without their relations; never the gold answers.
        articles: Gold articles, valid under `ontology`.
        ontology: The types to score. Types that the extractor lacks are scored as misses, with a warning.
        samples: Bootstrap samples of the intervals; 0 for none.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: if the extractor predicts types that the ontology lacks.
        DataError: if there are no articles, or the extractor returns another number of them or another text than it
            was given.
    """
    _check_types(extractor.ontology, ontology)
    gold = tuple(articles)
    if not gold:
        raise DataError("no articles to evaluate on; give a corpus with at least one")
    pairs = _predict(extractor, gold)
    relations = {}
    reliability = {"entities": entity_reliability(pairs)}
    if ontology.relation_types:
        related = [(g, extractor.relate(_without_relations(g, extractor.ontology))) for g in gold]
        relations = {
            "boundaries": score_relations(pairs, ontology, typed=False, samples=samples, seed=seed),
            "strict": score_relations(pairs, ontology, samples=samples, seed=seed),
            "gold entities": score_relations(related, ontology, samples=samples, seed=seed),
        }
        reliability["relations"] = relation_reliability(pairs, ontology)
    return Evaluation(
        ontology=ontology,
        pairs=pairs,
        entities=score_entities(pairs, ontology, samples=samples, seed=seed),
        boundaries=score_entities(pairs, ontology, typed=False, samples=samples, seed=seed),
        relations=relations,
        confusion=confusion(pairs, ontology),
        reliability=reliability,
    )


def strict_f1(extractor: Extractor, gold: Sequence[Article]) -> dict[str, float]:
    """Strict micro F1 of entities and of relations under the extractor's ontology, each in [0, 1], and no more.

    Raises:
        DataError: as `evaluate` does.
    """
    entities, relations = strict_tables(_predict(extractor, gold), extractor.ontology)
    return {"entity_f1": entities.micro.f1, "relation_f1": relations.micro.f1}


def strict_tables(pairs: Sequence[Pair], ontology: Ontology) -> tuple[Table, Table]:
    """Strict scores of entities and of relations of gold and predicted articles, without intervals.

    Raises:
        DataError: as `evaluate` does.
    """
    return score_entities(pairs, ontology, samples=0), score_relations(pairs, ontology, samples=0)


def _predict(extractor: Extractor, gold: Sequence[Article]) -> tuple[Pair, ...]:
    found = list(extractor.pipe([article.text for article in gold]))
    if len(found) != len(gold):
        raise DataError(
            f"the extractor returned {len(found)} articles for {len(gold)} texts; pipe() must return one each"
        )
    # An extractor that sees a text only makes up an id of its own.
    return tuple((g, p.model_copy(update={"id": g.id})) for g, p in zip(gold, found, strict=True))


def word_report(pairs: Iterable[Pair]) -> str:
    """Seqeval's classification report on the IOB2 tags of words.

    It is coarser than `score_entities`: a proclitic in or out of the span makes no difference to a word's tag. Gold
    entities that share their only word with an earlier one leave no tag; the report ends with their number.

    Raises:
        ConfigError: if seqeval is not installed.
    """
    try:
        from seqeval.metrics import classification_report
        from seqeval.scheme import IOB2
    except ImportError as error:
        raise ConfigError("the entity report needs seqeval: pip install 'rasid[train]'") from error
    gold_tags, predicted_tags, lost = [], [], 0
    for gold, predicted in pairs:
        if words := split_words(gold.text):
            gold_tags.append(word_tags(words, gold.entities))
            predicted_tags.append(word_tags(words, predicted.entities))
            lost += len(gold.entities) - sum(tag.startswith("B-") for tag in gold_tags[-1])
    if all(tag == OUTSIDE for tags in gold_tags + predicted_tags for tag in tags):
        return "no entities, neither in gold nor predicted\n"
    # Only mode="strict" with a scheme is strict: by default gold B-X against predicted I-X scores 1.0.
    table = classification_report(gold_tags, predicted_tags, digits=4, mode="strict", scheme=IOB2, zero_division=0)
    return f"{table}\ngold entities without a word of their own, not in this report: {lost}\n"


def _without_relations(gold: Article, known: Ontology) -> Article:
    # Entities that no model can place, such as a lone direction mark, are left out; their relations count as misses.
    entities = tuple(e for e in gold.entities if e.type in known.entity_types and split_words(e.text))
    return gold.model_copy(update={"entities": entities, "relations": ()})


def _check_types(predicted: Ontology, scored: Ontology) -> None:
    for what, predicts, scores in (
        ("entity types", predicted.entity_types, scored.entity_types),
        ("relation types", predicted.relation_names, scored.relation_names),
    ):
        if unknown := sorted(set(predicts) - set(scores)):
            raise ConfigError(
                f"the extractor predicts {what} {unknown}, which the ontology lacks; it has {list(scores)}"
            )
        if lacking := sorted(set(scores) - set(predicts)):
            logger.warning("the extractor cannot predict the %s %s; gold ones count as misses", what, lacking)
