"""Training examples: one per window, with labels; and the collator that makes batches of them."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rasid.decoding import Ints, Span, name_likeness, tag_words
from rasid.encoding import Encoding, TextEncoder
from rasid.errors import DataError
from rasid.inference import pairs_in_paragraphs, word_span
from rasid.modeling.model import IGNORED
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology
from rasid.scoring.metrics import join_groups
from rasid.settings import ModelSettings
from rasid.text import proclitic_cuts

logger = logging.getLogger(__name__)

Example = dict[str, Any]


@dataclass
class Unpredictable:
    """Gold annotations that no output of the model can equal; they count as misses in every score."""

    entities: int = 0
    relations: int = 0
    total_entities: int = 0
    total_relations: int = 0

    def __str__(self) -> str:
        return (
            f"{self.entities} of {self.total_entities} entities and {self.relations} of {self.total_relations} "
            "relations cannot be predicted (an entity begins or ends within a word, or the ends of a relation are "
            "further apart than a window)"
        )


def build_dataset(
    articles: Iterable[Article], encoder: TextEncoder, settings: ModelSettings
) -> tuple[Dataset, Unpredictable]:
    """All windows of a corpus as a dataset, and what of its annotation the model cannot express.

    Raises:
        DataError: if the corpus holds no window.
    """
    unpredictable = Unpredictable()
    rows = [row for article in articles for row in window_examples(article, encoder, settings, unpredictable)]
    return to_dataset(rows), unpredictable


def to_dataset(rows: list[Example]) -> Dataset:
    """Examples as a dataset.

    Raises:
        DataError: if there are none.
    """
    if not rows:
        raise DataError("the training corpus holds no text")
    return Dataset.from_list(rows)


def window_examples(
    article: Article, encoder: TextEncoder, settings: ModelSettings, unpredictable: Unpredictable
) -> Iterator[Example]:
    """The windows of one annotated article, with word-level labels.

    Each has `input_ids` [S], `word_pieces` [W], `tags` [W], `proclitics` [W], `paragraphs` (the first word of each),
    `entities` [E, 3] (first word, last word, type), `names` [E] (what they cover), `links` [N, 3] (head, tail,
    relation; the first two are indices of entities in the window), and `length` = S. An entity that a window cuts has
    its labels there, but is none of its `entities`.
    """
    ontology = settings.ontology
    encoding = encoder.encode(article.text)
    spans, cuts, exact = _labels(article, encoding, settings, unpredictable)
    tags = tag_words(list(spans.values()), (0, len(encoding.words)))
    proclitics = np.full(len(encoding.words), IGNORED, dtype=np.int64)
    for i, span in spans.items():
        proclitics[span.first] = cuts[i]
    links = [
        (r.head, r.tail, ontology.relation_names.index(r.type))
        for r in close_groups(article, ontology)
        if r.head in spans and r.tail in spans
    ]
    held: set[tuple[str, str, int]] = set()
    names = {e.id: e.text for e in article.entities}
    for window in encoding.windows:
        first, after = window.words
        inside = [i for i, s in spans.items() if first <= s.first and s.last < after]
        position = {i: n for n, i in enumerate(inside)}
        here = [link for link in links if link[0] in position and link[1] in position]
        held.update(link for link in here if exact.issuperset(link[:2]))
        yield {
            "input_ids": window.input_ids,
            "word_pieces": window.word_pieces,
            "tags": tags[first:after],
            "proclitics": proclitics[first:after],
            "paragraphs": [max(a - first, 0) for a, b in encoding.paragraphs if a < after and b > first],
            "entities": [[spans[i].first - first, spans[i].last - first, spans[i].type] for i in inside],
            "names": [names[i] for i in inside],
            "links": [[position[h], position[t], r] for h, t, r in here],
            "length": len(window.input_ids),
        }
    for r in article.relations:
        index, rule = ontology.relation_names.index(r.type), ontology.relation_types[r.type]
        unpredictable.total_relations += 1
        unpredictable.relations += not (
            (r.head, r.tail, index) in held or (rule.symmetric and (r.tail, r.head, index) in held)
        )


def _labels(
    article: Article, encoding: Encoding, settings: ModelSettings, unpredictable: Unpredictable
) -> tuple[dict[str, Span], dict[str, int], set[str]]:
    """Word span and proclitic length of each entity that gets labels, by id, in text order; ids of those they fit."""
    spans: dict[str, Span] = {}
    cuts: dict[str, int] = {}
    exact: set[str] = set()
    used = -1
    for e in sorted(article.entities, key=lambda e: e.start):
        try:
            span = word_span(e, encoding.words, settings.ontology)
        except DataError:  # no word at all, such as a lone direction mark
            continue
        if span.first <= used:
            continue  # shares a word with the entity before
        used = span.last
        cut = _proclitic_length(e, article.text, encoding.words, span, settings)
        spans[e.id], cuts[e.id] = span, cut or 0
        if cut is not None and encoding.words[span.last, 1] == e.end:
            exact.add(e.id)
    unpredictable.total_entities += len(article.entities)
    unpredictable.entities += len(article.entities) - len(exact)
    return spans, cuts, exact


def _proclitic_length(e: Entity, text: str, words: Ints, span: Span, settings: ModelSettings) -> int | None:
    begin, end = words[span.first].tolist()
    possible = proclitic_cuts(text[begin:end], settings.ontology.proclitics, settings.max_proclitic)
    return possible.index(e.start - begin) if e.start - begin in possible else None


def close_groups(article: Article, ontology: Ontology) -> list[Relation]:
    """The article's relations, with those of transitive types closed: all pairs of a group linked, earlier one first.

    Which chain joins a group is a matter of layout; that two mentions name the same thing is what the text says.
    """
    order = {e.id: n for n, e in enumerate(sorted(article.entities, key=lambda e: e.start))}
    transitive = {name for name, rule in ontology.relation_types.items() if rule.transitive}
    result = [r for r in article.relations if r.type not in transitive]
    for name in transitive:
        for members in join_groups((r.head, r.tail) for r in article.relations if r.type == name):
            ranked = sorted(members, key=order.__getitem__)
            result += [Relation(type=name, head=a, tail=b) for a, b in combinations(ranked, 2)]
    return sorted(result, key=lambda r: (order[r.head], order[r.tail], r.type))


class Collator:
    """Joins examples to a batch: windows padded to the longest, entities and pairs of all windows in one list."""

    def __init__(self, ontology: Ontology, pad_id: int):
        self.ontology = ontology
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """See `RasidModel.forward` for the arrays and their shapes."""
        entities: list[list[int]] = []
        soft: list[Tensor] = []
        starts: list[Tensor] = []
        pairs: list[Ints] = [np.zeros((0, 3), dtype=np.int64)]
        relations: list[np.ndarray] = [np.zeros((0, 2, len(self.ontology.relation_names)), dtype=np.float32)]
        for window, example in enumerate(examples):
            local, labels = candidates(example, self.ontology)
            local[:, :2] += len(entities)
            pairs.append(local)
            relations.append(labels)
            entities += [[window, *e] for e in example["entities"]]
            soft.append(torch.as_tensor(example.get("tag_targets", ())))
            starts.append(torch.zeros(len(example["tags"]), dtype=torch.int64))
            starts[-1][example["paragraphs"]] = 1
        ids = [torch.as_tensor(e["input_ids"]) for e in examples]
        batch = {
            "input_ids": _pad(ids, self.pad_id),
            "attention_mask": _pad([torch.ones_like(i) for i in ids], 0),
            "word_pieces": _pad([torch.as_tensor(e["word_pieces"]) for e in examples], 0),
            "tags": _pad([torch.as_tensor(e["tags"]) for e in examples], IGNORED),
            "proclitics": _pad([torch.as_tensor(e["proclitics"]) for e in examples], IGNORED),
            "starts": _pad(starts, 0),
            "entities": torch.tensor(entities, dtype=torch.int64).view(-1, 4),
            "pairs": torch.from_numpy(np.concatenate(pairs)),
            "relations": torch.from_numpy(np.concatenate(relations)),
        }
        if any(len(targets) for targets in soft):
            batch["tag_targets"] = _pad(soft, 0)
        return batch


def candidates(example: Example, ontology: Ontology) -> tuple[Ints, np.ndarray]:
    """Candidate pairs [P, 3] of one window and the probabilities [P, 2, R] that they are related.

    Those are the example's `relation_targets` (flat) where it has any, else 1 for each of its `links`.
    """
    spans = [Span(*e) for e in example["entities"]]
    # Pairs across paragraphs are never scored, and many of them would be false negatives: the same name twice.
    pairs = pairs_in_paragraphs(spans, [(first, first) for first in example["paragraphs"]], ontology)
    alike = np.column_stack([pairs, name_likeness(example["names"], pairs)])
    shape = (len(pairs), 2, len(ontology.relation_names))
    if "relation_targets" in example:
        return alike, np.asarray(example["relation_targets"], dtype=np.float32).reshape(shape)
    targets = np.zeros(shape, dtype=np.float32)
    row = {(i, j): p for p, (i, j) in enumerate(pairs.tolist())}
    for head, tail, relation in example["links"]:
        p = row[min(head, tail), max(head, tail)]
        targets[p, int(head > tail), relation] = 1.0
        if ontology.symmetric[relation]:
            targets[p, :, relation] = 1.0
    return alike, targets


def _pad(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def label_counts(dataset: Dataset, ontology: Ontology) -> dict[str, int]:
    """How many entities and relations of each type the examples hold."""
    entities = Counter(ontology.entity_types[e[2]] for row in dataset["entities"] for e in row)
    relations = Counter(ontology.relation_names[x[2]] for row in dataset["links"] for x in row)
    return dict(entities + relations)
