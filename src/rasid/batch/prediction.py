"""Batch prediction: many articles in, one JSON line each out; a bad one costs a line among the errors."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from rasid.errors import DataError, RasidError
from rasid.inference import Extractor
from rasid.parallel import ordered_map
from rasid.reading.documents import Document
from rasid.reading.sources import printable
from rasid.records import Article, to_json_line

if TYPE_CHECKING:
    from rasid.batch.workers import Workers

logger = logging.getLogger(__name__)

AHEAD = 16  # documents read ahead per thread, so that a long one does not leave the other threads without work


@dataclass(frozen=True)
class Outcome:
    """What came of one document.

    Attributes:
        line: JSON line: the record, or `{"path", "id", "reason"}` where there is none.
        record: The article with what was found in it; None if it could not be read.
    """

    line: str
    record: Article | None = None


@dataclass
class Summary:
    """What a batch came to.

    Attributes:
        articles: Articles read.
        characters: Their length in code points.
        failed: Articles that could not be read.
        seconds: Wall-clock time.
        entities: Count per type.
        relations: Count per type.
    """

    articles: int = 0
    characters: int = 0
    failed: int = 0
    seconds: float = 0.0
    entities: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if outcome.record is None:
            self.failed += 1
            return
        self.articles += 1
        self.characters += len(outcome.record.text)
        self.entities.update(e.type for e in outcome.record.entities)
        self.relations.update(r.type for r in outcome.record.relations)

    def merge(self, other: Self) -> None:
        """Count what another part of the batch came to; its time is left out, as both may have run at once."""
        self.articles += other.articles
        self.characters += other.characters
        self.failed += other.failed
        self.entities.update(other.entities)
        self.relations.update(other.relations)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return vars(self) | {"entities": dict(self.entities), "relations": dict(self.relations)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; TypeError for other keys."""
        counts = {name: Counter(values.get(name, {})) for name in ("entities", "relations")}
        return cls(**values | counts)


def predict_one(extractor: Extractor, document: Document, max_seconds: float | None = None) -> Outcome:
    """What comes of one document; no error, whatever it does to us, as the others are still to be read.

    Args:
        extractor: The model.
        document: An article with its text or page, or with why it has none.
        max_seconds: Longest time for it.
    """
    try:
        document = document.with_text()
        if document.text is None:
            raise DataError(document.problem or "no text")
        article = extractor(document.text, id=document.id, max_seconds=max_seconds)
        article = article.model_copy(update={"meta": document.meta})
        return Outcome(article.to_json() + "\n", article)
    except Exception as error:
        reason = str(error)
        if not isinstance(error, RasidError):
            logger.error("%s: unexpected failure", document.source, exc_info=error)
            reason = f"{type(error).__name__}: {error}"
        entry = {"path": document.source, "id": document.id, "reason": printable(reason)}
        return Outcome(to_json_line(entry))


def predict(
    extractor: Extractor,
    documents: Iterable[Document],
    write: Callable[[Outcome], None],
    max_seconds: float | None = None,
    workers: "Workers | None" = None,
) -> float:
    """Extract from each document and pass on what comes of it, in order, as soon as it is done.

    Args:
        extractor: The model.
        documents: Articles with their texts or pages, or with why they have none.
        write: Called once for each document, whatever happened to it.
        max_seconds: Longest time for one article.
        workers: Read in place of the extractor, under a time limit of their own.

    Returns:
        Wall-clock seconds.

    Raises:
        RasidError: if one of the workers dies.
    """
    began = time.perf_counter()
    if workers is not None:
        outcomes = workers.read(documents)
    else:
        read = partial(predict_one, extractor, max_seconds=max_seconds)
        outcomes = ordered_map(read, documents, extractor.threads, AHEAD * extractor.threads)
    for outcome in outcomes:
        write(outcome)
    return time.perf_counter() - began
