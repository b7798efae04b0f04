"""Judging an extractor on dev: strict F1, and the bias of entities and thresholds of relations that suit it."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rasid.decoding import Floats
from rasid.inference import Backend, Extractor, Reading
from rasid.parallel import ordered_map
from rasid.records import Article
from rasid.schema import Ontology
from rasid.scoring.evaluation import strict_tables
from rasid.scoring.metrics import Score, score_entities
from rasid.settings import ModelSettings

# Names in `ModelSettings`.
BIAS, THRESHOLD, OWN_THRESHOLDS = "entity_bias", "relation_threshold", "relation_thresholds"
BIASES = tuple(0.5 * i for i in range(-4, 5))  # -2 … 2
THRESHOLDS = tuple(round(0.2 + 0.05 * i, 2) for i in range(11))  # 0.2 … 0.7
WORTHWHILE = 0.001  # of micro F1
WORTHWHILE_BIAS = 0.002  # of micro F1; more, since a bias moves what relations join, too


@dataclass(frozen=True)
class DevScores:
    """How a model does on dev, each score in [0, 1], and the bias and thresholds that it was given for that.

    Attributes:
        entity_f1: Strict micro F1 of entities.
        relation_f1: The same of relations; None for an ontology without any.
        threshold: The one under which all relations together score best.
        thresholds: Where single relation types score better under another one, that one.
        bias: Of the entity types that score better with one.
    """

    entity_f1: float
    relation_f1: float | None
    threshold: float
    thresholds: dict[str, float]
    bias: dict[str, float] = field(default_factory=dict)

    @property
    def mean_f1(self) -> float:
        """What training maximises: the mean of both, or that of entities where there are no relations to find."""
        return self.entity_f1 if self.relation_f1 is None else (self.entity_f1 + self.relation_f1) / 2

    @property
    def f1(self) -> dict[str, float]:
        """The scores by name; 0 where there is nothing to score."""
        return {"entity_f1": self.entity_f1, "relation_f1": self.relation_f1 or 0.0}

    @property
    def chosen(self) -> dict[str, Any]:
        """The bias and the thresholds by their names in `ModelSettings`."""
        return {BIAS: self.bias, THRESHOLD: self.threshold, OWN_THRESHOLDS: self.thresholds}

    def calibrate(self, settings: ModelSettings) -> ModelSettings:
        """Settings with this bias and these thresholds."""
        return settings.model_copy(update=self.chosen)


def dev_scores(extractor: Extractor, articles: Sequence[Article]) -> DevScores:
    """Scores over annotated articles under the bias and the thresholds that suit the extractor best here."""
    trial = Extractor(RememberingBackend(extractor.backend), extractor.encoder, extractor.settings, extractor.threads)
    bias = choose_bias(trial, articles)
    settings = extractor.settings.model_copy(update={BIAS: bias})
    names = settings.ontology.relation_names
    readings = _read(trial, articles)
    counts: dict[float, dict[str, Score]] = {}
    entity_f1 = 0.0
    for threshold in THRESHOLDS if names else (settings.relation_threshold,):
        trial.settings = settings.model_copy(update={THRESHOLD: threshold, OWN_THRESHOLDS: {}})
        found = [trial.decode(a.text, reading, id=a.id) for a, reading in zip(articles, readings, strict=True)]
        entities, relations = strict_tables(list(zip(articles, found, strict=True)), settings.ontology)
        entity_f1, counts[threshold] = entities.micro.f1, relations.per_type
    threshold, thresholds = choose_thresholds(counts)
    chosen = [counts[thresholds.get(name, threshold)][name] for name in names]
    return DevScores(entity_f1, pooled_f1(chosen) if names else None, threshold, thresholds, bias)


def _read(extractor: Extractor, articles: Sequence[Article]) -> list[list[Reading]]:
    return list(ordered_map(lambda article: list(extractor.read(article.text)), articles, extractor.threads))


def choose_bias(extractor: Extractor, articles: Sequence[Article]) -> dict[str, float]:
    """The bias, out of `BIASES`, of entity types that raise micro F1 by `WORTHWHILE_BIAS` with it; the best first."""
    # Without relations, which would only take time.
    ontology = Ontology(entity_types=extractor.ontology.entity_types, proclitics=extractor.ontology.proclitics)
    settings = extractor.settings.model_copy(update={"ontology": ontology, OWN_THRESHOLDS: {}})
    trial = Extractor(extractor.backend, extractor.encoder, settings, extractor.threads)
    readings = _read(trial, articles)
    known: list[dict[bytes, Article]] = [{} for _ in articles]  # by tags: which entities they make is all that counts

    def find(article: Article, reading: list[Reading], known: dict[bytes, Article]) -> Article:
        key = b"".join(tags.tobytes() for section in reading for tags in trial.tags(section))
        if key not in known:
            known[key] = trial.decode(article.text, reading, id=article.id)
        return known[key]

    def f1(bias: dict[str, float]) -> float:
        trial.settings = settings.model_copy(update={BIAS: bias})
        found = map(find, articles, readings, known)
        return score_entities(list(zip(articles, found, strict=True)), ontology, samples=0).micro.f1

    chosen: dict[str, float] = {}
    best = f1(chosen)
    while left := [name for name in ontology.entity_types if name not in chosen]:
        scores = {(name, bias): f1(chosen | {name: bias}) for name in left for bias in BIASES if bias}
        name, bias = max(scores, key=lambda choice: (scores[choice], -abs(choice[1])))
        if scores[name, bias] < best + WORTHWHILE_BIAS:
            break
        chosen[name], best = bias, scores[name, bias]
    return chosen


def choose_thresholds(counts: dict[float, dict[str, Score]]) -> tuple[float, dict[str, float]]:
    """The threshold with the best micro F1, and other ones for the types that gain by them.

    A type has a threshold of its own only if micro F1 rises by `WORTHWHILE` with it, so that rare types, whose counts
    say little, keep that of all.

    Args:
        counts: Threshold to relation type to what it scores under it. Types do not depend on one another.
    """
    best = max(counts, key=lambda threshold: (pooled_f1(counts[threshold].values()), threshold))
    own: dict[str, float] = {}
    for name in counts[best]:

        def f1(threshold: float, name: str = name) -> float:
            chosen = own | {name: threshold}
            return pooled_f1(counts[chosen.get(other, best)][other] for other in counts[best])

        candidate = max(counts, key=lambda threshold: (f1(threshold), threshold))
        if f1(candidate) >= f1(best) + WORTHWHILE:
            own[name] = candidate
    return best, own


def pooled_f1(scores: Iterable[Score]) -> float:
    """Micro F1 of several types, in [0, 1]."""
    counted = list(scores)
    right = 2 * sum(s.tp for s in counted)
    return right / total if (total := right + sum(s.fp + s.fn for s in counted)) else 0.0


class RememberingBackend:
    """A backend that runs the network once for each input, since thresholds change only what is made of its answers."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self._answers: dict[bytes, Any] = {}

    def encode(self, *arrays: Any) -> tuple[Floats, Floats, Floats]:
        """See `rasid.inference.Backend`."""
        return self._answer(self.backend.encode, arrays)  # type: ignore[no-any-return]

    def relate(self, *arrays: Any) -> Floats:
        """See `rasid.inference.Backend`."""
        return self._answer(self.backend.relate, arrays)  # type: ignore[no-any-return]

    def _answer(self, ask: Callable[..., Any], arrays: tuple[Any, ...]) -> Any:
        key = hashlib.sha256()
        for array in arrays:
            key.update(repr(array.shape).encode() + array.tobytes())
        if (digest := key.digest()) not in self._answers:
            self._answers[digest] = ask(*arrays)
        return self._answers[digest]
