"""Batch prediction: many articles in, one JSON line each out; a bad one costs a line in the error file."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO

from rasid.errors import DataError, RasidError
from rasid.inference import Extractor
from rasid.parallel import ordered_map
from rasid.reading import Source, printable
from rasid.records import Article, to_json_line

logger = logging.getLogger(__name__)


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


def predict(
    extractor: Extractor,
    articles: Iterable[tuple[Source, str | DataError]],
    out: TextIO,
    errors: TextIO,
    advance: Callable[[], None] = lambda: None,
) -> Summary:
    """Extract from each article and write its record, in order, as soon as it is done.

    Args:
        extractor: The model.
        articles: Sources with their text, or with why they have none.
        out: Gets one record per readable article.
        errors: Gets one object `{"path", "reason"}` per article that failed, whatever the failure.
        advance: Called after each article.
    """
    summary, began = Summary(), time.perf_counter()

    def read(item: tuple[Source, str | DataError]) -> tuple[Source, Article | Exception, str]:
        source, text = item
        try:
            if isinstance(text, DataError):
                raise text
            record = extractor(text, id=source.id)
            return source, record, record.to_json() + "\n"
        except Exception as error:  # whatever one article does to us, the others are still to be read
            return source, error, ""

    for source, result, line in ordered_map(read, articles, extractor.threads):
        if isinstance(result, Exception):
            reason = str(result)
            if not isinstance(result, RasidError):
                logger.error("%s: unexpected failure", source.path, exc_info=result)
                reason = f"{type(result).__name__}: {result}"
            entry = {"path": printable(source.path.as_posix()), "reason": printable(reason)}
            errors.write(to_json_line(entry))
            errors.flush()
            summary.failed += 1
        else:
            out.write(line)
            out.flush()
            summary.articles += 1
            summary.characters += len(result.text)
            summary.entities.update(e.type for e in result.entities)
            summary.relations.update(r.type for r in result.relations)
        advance()
    summary.seconds = time.perf_counter() - began
    return summary
