"""How often what has a score is right. Pure, on the same items as the scores of `rasid.scoring.metrics`.

Predictions without a score are left out. What nothing can be said about is None, not 0: no item is not a wrong item.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from rasid.schema import Ontology
from rasid.scoring.metrics import Link, Pair, links

BINS = 10  # of equal width over [0, 1]
SURE = 0.9  # a score from which on the summaries count an item as sure


@dataclass(frozen=True)
class Bin:
    """Items whose scores are in `[start, end)`; the last bin holds 1.0 too. Both means are None in an empty bin."""

    start: float
    end: float
    count: int
    mean_score: float | None
    share_right: float | None


@dataclass(frozen=True)
class Reliability:
    """Scored predictions, and whether each is right.

    Attributes:
        scores: In [0, 1].
        right: Whether gold has it too; as long as `scores`.
    """

    scores: tuple[float, ...]
    right: tuple[bool, ...]

    @classmethod
    def of(cls, items: Iterable[tuple[float, bool]]) -> Self:
        """Out of pairs of a score and whether it is right."""
        found = tuple(items)
        return cls(tuple(score for score, _ in found), tuple(right for _, right in found))

    @property
    def bins(self) -> tuple[Bin, ...]:
        """Ten bins of equal width, empty ones too."""
        scores, right = np.array(self.scores, float), np.array(self.right, float)
        index = np.minimum((scores * BINS).astype(int), BINS - 1)
        result = []
        for i in range(BINS):
            inside = index == i
            count = int(inside.sum())
            means = (float(scores[inside].mean()), float(right[inside].mean())) if count else (None, None)
            result.append(Bin(i / BINS, (i + 1) / BINS, count, *means))
        return tuple(result)

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error in [0, 1] (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

        How far share right and mean score of a bin are apart, averaged over the items; None without any.
        """
        if not self.scores:
            return None
        filled = ((b.count, b.share_right, b.mean_score) for b in self.bins)
        gaps = (n * abs(share - mean) for n, share, mean in filled if share is not None and mean is not None)
        return sum(gaps) / len(self.scores)

    def count(self, at_least: float) -> int:
        """How many items have that score or more."""
        return sum(score >= at_least for score in self.scores)

    def share_right(self, at_least: float) -> float | None:
        """Share in [0, 1] of the items with that score or more that are right; None if there are none."""
        right = [r for score, r in zip(self.scores, self.right, strict=True) if score >= at_least]
        return sum(right) / len(right) if right else None

    def describe(self, name: str) -> str:
        """One sentence, with `name` for the items (in the plural)."""
        error, share = self.calibration_error, self.share_right(SURE)
        if error is None:
            return f"No {name} with a score."
        sure = f"No {name} score {SURE} or more"
        if share is not None:
            sure = f"Of the {self.count(SURE):,} {name} that score {SURE} or more, {100 * share:.1f} % are right"
        return f"{sure}; expected calibration error {100 * error:.1f} points over {len(self.scores):,}."

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "count": len(self.scores),
            "calibration_error": self.calibration_error,
            "sure": {"at_least": SURE, "count": self.count(SURE), "share_right": self.share_right(SURE)},
            "bins": [asdict(b) for b in self.bins],
        }


def entity_reliability(pairs: Iterable[Pair]) -> Reliability:
    """How often predicted entities have span and type of a gold one.

    Args:
        pairs: Gold and predicted article, same text. Of a span marked twice with one type the higher score counts.
    """
    items: list[tuple[float, bool]] = []
    for gold, predicted in pairs:
        truth = {(e.type, e.start, e.end) for e in gold.entities}
        scores: dict[tuple[str, int, int], float] = {}
        for e in predicted.entities:
            if e.score is not None:
                key = e.type, e.start, e.end
                scores[key] = max(scores.get(key, 0.0), e.score)
        items += [(score, key in truth) for key, score in scores.items()]
    return Reliability.of(items)


def relation_reliability(pairs: Iterable[Pair], ontology: Ontology) -> Reliability:
    """How often predicted relations are in gold, compared strictly and in the form of `rasid.scoring.metrics.links`.

    A link that this form puts between neighbours of a group but no relation states has no score and is left out. The
    extractor states all of them. Of a link stated twice, such as both ways round, the higher score counts.

    Args:
        pairs: Gold and predicted article, same text.
        ontology: Says which relations are symmetric and transitive.

    Raises:
        DataError: as `rasid.scoring.metrics.links`.
    """
    items: list[tuple[float, bool]] = []
    for gold, predicted in pairs:
        truth, compared = links(gold, ontology, typed=True), links(predicted, ontology, typed=True)
        scores: dict[Link, float] = {}
        for r in predicted.relations:
            if r.score is not None:
                for link in links(predicted.model_copy(update={"relations": (r,)}), ontology, typed=True) & compared:
                    scores[link] = max(scores.get(link, 0.0), r.score)
        items += [(score, link in truth) for link, score in scores.items()]
    return Reliability.of(items)
