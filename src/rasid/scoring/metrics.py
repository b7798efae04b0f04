"""Scores of predicted against gold articles. Pure: a number here depends on the records, the ontology and a seed alone.

What is counted, and how:

- Every denominator of recall is the gold document: a gold relation whose end was never predicted is a miss like others.
- Spans match where both offsets do. A span without a partner is a miss or spurious; near misses earn nothing.
- A rate whose denominator is 0 is 0.0. Macro averages run over the types in gold or prediction, as seqeval's do.
- Symmetric relations have no order. Transitive ones are compared as groups: links are joined into connected components
  and each component is rewritten as one link between neighbours in text order, so a chain and a star score alike.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from rasid.errors import DataError
from rasid.records import Article, Entity
from rasid.schema import OUTSIDE, Ontology

Pair = tuple[Article, Article]  # gold, predicted
End = tuple[int, int, str]  # start, end, entity type; the type is "" where types are ignored
Link = tuple[str, End, End]  # relation type, head, tail
Kind = Literal["correct", "type", "boundaries", "both", "missed", "spurious"]
Counts = NDArray[np.int64]
Rates = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Score:
    """Rates in [0, 1] and their counts over all articles. A macro average has mean rates and summed counts.

    Attributes:
        precision: `tp / (tp + fp)`.
        recall: `tp / (tp + fn)`.
        f1: `2 tp / (2 tp + fp + fn)`; in a macro average the mean of the types' F1.
        tp: In gold and predicted.
        fp: Predicted and not in gold.
        fn: In gold and not predicted.
        interval: 95 % bootstrap interval of F1 over articles; None where it was not asked for or nothing occurs.
    """

    precision: float
    recall: float
    f1: float
    tp: int
    fp: int
    fn: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """Scores of every type of the ontology in its order (those that never occur too), and both averages."""

    per_type: dict[str, Score]
    micro: Score
    macro: Score

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Alignment:
    """A gold entity and its predicted partner; one of the two is None where there is no partner."""

    gold: Entity | None
    predicted: Entity | None

    @property
    def kind(self) -> Kind:
        """The error: `type` (of one span), `boundaries` (of overlapping spans), `both`, or the lack of a partner."""
        if self.gold is None:
            return "spurious"
        if self.predicted is None:
            return "missed"
        same_type = self.gold.type == self.predicted.type
        if (self.gold.start, self.gold.end) == (self.predicted.start, self.predicted.end):
            return "correct" if same_type else "type"
        return "boundaries" if same_type else "both"


@dataclass(frozen=True, eq=False)
class Confusion:
    """Which of T entity types became which: [T + 1, T + 1], gold × predicted; last row spurious, last column missed.

    An overlapping pair is one miss and one spurious span in `score_entities`; here it is a pair, in another matrix.
    Both matrices together sum to the gold entities in each row and to the predicted ones in each column.

    Attributes:
        types: The T names, in the order of the ontology.
        exact: Pairs with the same span, and the entities without a partner.
        overlapping: Pairs with other boundaries; last row and column are 0.
    """

    types: tuple[str, ...]
    exact: Counts
    overlapping: Counts

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"types": list(self.types), "exact": self.exact.tolist(), "overlapping": self.overlapping.tolist()}


def score_entities(
    pairs: Iterable[Pair], ontology: Ontology, *, typed: bool = True, samples: int = 1000, seed: int = 0
) -> Table:
    """Score entities on exact spans.

    Args:
        pairs: Gold and predicted article, same id and text.
        ontology: Names the types.
        typed: The type must match too. Otherwise boundaries only: a found span counts for its gold type whatever type
            was predicted, and a spurious one for its predicted type.
        samples: Bootstrap samples of the intervals; 0 for none.
        seed: Seed of the bootstrap.

    Raises:
        DataError: if a pair does not belong together or holds a type that the ontology lacks.
    """
    index = {name: i for i, name in enumerate(ontology.entity_types)}
    rows = []
    for gold, predicted in pairs:
        _check(gold, predicted, ontology)
        truth = {(e.type, e.start, e.end) for e in gold.entities}
        types = {} if typed else {(start, end): name for name, start, end in truth}
        guess = {(types.get((e.start, e.end), e.type), e.start, e.end) for e in predicted.entities}
        rows.append(_count(truth, guess, index))
    return _tabulate(rows, index, samples, seed)


def score_relations(
    pairs: Iterable[Pair], ontology: Ontology, *, typed: bool = True, samples: int = 1000, seed: int = 0
) -> Table:
    """Score relations; both ends must have the offsets of gold. Arguments and errors as in `score_entities`.

    `typed` asks for the entity types of both ends too (strict); otherwise they are ignored (boundaries). Predictions
    made on gold entities score relation extraction alone; `typed` then makes no difference.
    """
    index = {name: i for i, name in enumerate(ontology.relation_names)}
    rows = []
    for gold, predicted in pairs:
        _check(gold, predicted, ontology)
        rows.append(_count(links(gold, ontology, typed=typed), links(predicted, ontology, typed=typed), index))
    return _tabulate(rows, index, samples, seed)


def links(article: Article, ontology: Ontology, *, typed: bool) -> set[Link]:
    """Rewrite the relations of an article as links between spans, in the one form in which they are compared.

    Raises:
        DataError: for a relation type that the ontology lacks, or an end that is no entity of the article.
    """
    ends = {e.id: (e.start, e.end, e.type if typed else "") for e in article.entities}
    found: set[Link] = set()
    joined: dict[str, list[tuple[End, End]]] = {}
    for r in article.relations:
        name = f"article {article.id}: relation {r.type} {r.head} → {r.tail}"
        if (rule := ontology.relation_types.get(r.type)) is None:
            raise DataError(f"{name}: unknown type; the ontology has {', '.join(ontology.relation_names)}")
        if missing := [end for end in (r.head, r.tail) if end not in ends]:
            raise DataError(f"{name}: no entity {' or '.join(missing)} in the article; add it or drop the relation")
        pair = (ends[r.head], ends[r.tail])
        head, tail = sorted(pair) if rule.symmetric else pair
        if rule.transitive:
            joined.setdefault(r.type, []).append((head, tail))
        else:
            found.add((r.type, head, tail))
    for name, pairs in joined.items():
        for group in join_groups(pairs):
            found.update((name, *neighbours) for neighbours in pairwise(sorted(group)))
    return found


def align(gold: Article, predicted: Article) -> list[Alignment]:
    """Pair entities one to one: same spans first, then overlapping ones, the longest overlap first.

    Returns:
        One alignment for each pair and each entity left over, in text order.
    """
    overlapping = [(g, p) for g in gold.entities for p in predicted.entities if g.start < p.end and p.start < g.end]

    def rank(pair: tuple[Entity, Entity]) -> tuple[bool, int, int, int]:
        g, p = pair
        other_span = (g.start, g.end) != (p.start, p.end)
        return other_span, max(g.start, p.start) - min(g.end, p.end), g.start, p.start

    aligned: list[Alignment] = []
    gold_used, predicted_used = set(), set()
    for g, p in sorted(overlapping, key=rank):
        if g.id not in gold_used and p.id not in predicted_used:
            gold_used.add(g.id)
            predicted_used.add(p.id)
            aligned.append(Alignment(g, p))
    aligned += [Alignment(g, None) for g in gold.entities if g.id not in gold_used]
    aligned += [Alignment(None, p) for p in predicted.entities if p.id not in predicted_used]
    return sorted(aligned, key=lambda a: min(e.start for e in (a.gold, a.predicted) if e is not None))


def confusion(pairs: Iterable[Pair], ontology: Ontology) -> Confusion:
    """Count which entity type became which; errors as in `score_entities`."""
    index: dict[str | None, int] = {name: i for i, name in enumerate((*ontology.entity_types, None))}
    exact: Counts = np.zeros((len(index), len(index)), np.int64)
    overlapping = np.zeros_like(exact)
    for gold, predicted in pairs:
        _check(gold, predicted, ontology)
        for a in align(gold, predicted):
            row, column = (e.type if e is not None else None for e in (a.gold, a.predicted))
            (overlapping if a.kind in ("boundaries", "both") else exact)[index[row], index[column]] += 1
    return Confusion(ontology.entity_types, exact, overlapping)


def word_tags(words: Sequence[tuple[int, int]], entities: Iterable[Entity]) -> list[str]:
    """IOB2 tags of words. A word belongs to the entities it overlaps; where two share a word, the earlier keeps it.

    Args:
        words: Half-open offsets in text order, not overlapping.
        entities: Flat entities of the same text; one whose every word was kept by an earlier entity leaves no tag.
    """
    tags = [OUTSIDE] * len(words)
    word_starts, word_ends = [start for start, _ in words], [end for _, end in words]
    for e in sorted(entities, key=lambda e: (e.start, e.end)):
        prefix = "B"
        for i in range(bisect_right(word_ends, e.start), bisect_left(word_starts, e.end)):
            if tags[i] == OUTSIDE:
                tags[i] = f"{prefix}-{e.type}"
                prefix = "I"
    return tags


def _check(gold: Article, predicted: Article, ontology: Ontology) -> None:
    if gold.id != predicted.id or gold.text != predicted.text:
        what = "has another text" if gold.id == predicted.id else f"is scored against article {predicted.id}"
        raise DataError(f"article {gold.id}: {what}; pass gold and predicted articles in the same order")
    if unknown := {e.type for a in (gold, predicted) for e in a.entities}.difference(ontology.entity_types):
        raise DataError(f"article {gold.id}: entity types {sorted(unknown)} are not in {list(ontology.entity_types)}")


def join_groups(pairs: Iterable[tuple[T, T]]) -> list[set[T]]:
    """Join pairs into connected components."""
    group_of: dict[T, set[T]] = {}
    for a, b in pairs:
        merged = group_of.get(a, {a}) | group_of.get(b, {b})
        group_of.update(dict.fromkeys(merged, merged))
    return list({id(group): group for group in group_of.values()}.values())


def _count(gold: set[Any], predicted: set[Any], index: dict[str, int]) -> Counts:
    """Count tp, fp and fn of one article for each type, [T, 3]; an item starts with the name of its type."""
    counts = np.zeros((len(index), 3), np.int64)
    for column, items in enumerate((gold & predicted, predicted - gold, gold - predicted)):
        for item in items:
            counts[index[item[0]], column] += 1
    return counts


def _rates(counts: NDArray[Any]) -> Rates:
    """Precision, recall and F1 out of tp, fp and fn: [..., 3] → [..., 3]."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    above = np.stack([tp, tp, 2 * tp], axis=-1)
    below = np.stack([tp + fp, tp + fn, 2 * tp + fp + fn], axis=-1)
    rates: Rates = np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
    return rates


def _macro(counts: NDArray[Any]) -> Rates:
    """Mean rates of the types that occur: [..., T, 3] → [..., 3]."""
    occurs = counts.sum(axis=-1, keepdims=True) > 0  # [..., T, 1]
    return np.asarray((_rates(counts) * occurs).sum(axis=-2) / np.maximum(occurs.sum(axis=-2), 1))


def _tabulate(rows: list[Counts], index: dict[str, int], samples: int, seed: int) -> Table:
    articles, size = len(rows), len(index)
    counts = np.array(rows, np.int64).reshape(articles, size, 3)  # [A, T, 3]
    drawn = np.zeros((0, size, 3))  # [S, T, 3]
    if articles and samples:
        # A bootstrap sample is how often each article was drawn; floats make the sums one exact matrix product.
        draws = np.random.default_rng(seed).multinomial(
            articles, np.full(articles, 1 / articles), size=samples
        )  # [S, A]
        drawn = (draws.astype(float) @ counts.reshape(articles, -1).astype(float)).reshape(samples, size, 3)
    total, pooled = counts.sum(axis=0), drawn.sum(axis=1)
    per_type = {name: _score(_rates(total[i]), total[i], _rates(drawn[:, i]), drawn[:, i]) for name, i in index.items()}
    micro = _score(_rates(total.sum(axis=0)), total.sum(axis=0), _rates(pooled), pooled)
    return Table(per_type, micro, macro=_score(_macro(total), total.sum(axis=0), _macro(drawn), pooled))


def _score(rates: Rates, counts: Counts, drawn_rates: Rates, drawn_counts: Rates) -> Score:
    """Pack rates [3] and counts [3] with the interval out of the samples, [S, 3] each, that hold any count."""
    f1 = drawn_rates[drawn_counts.sum(axis=-1) > 0, 2]
    interval = tuple(np.percentile(f1, (2.5, 97.5)).tolist()) if f1.size else None
    values = (*rates.tolist(), *counts.tolist(), interval)
    return Score(*values)
