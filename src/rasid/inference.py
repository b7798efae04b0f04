"""The extractor: text in, entities and relations out, on numpy and ONNX Runtime alone."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import onnxruntime as ort

from rasid.decoding import (
    Floats,
    Ints,
    Span,
    allowed_transitions,
    candidate_pairs,
    decode_entities,
    decode_relations,
    decode_tags,
    log_softmax,
    name_likeness,
    tag_words,
)
from rasid.encoding import Encoding, TextEncoder, Window
from rasid.errors import DataError, ModelError
from rasid.parallel import ordered_map, processors
from rasid.records import Article, Entity, Relation, check_text
from rasid.schema import Ontology
from rasid.settings import ENCODER_FILE, RELATIONS_FILE, ModelSettings, find_model, load_settings


class Backend(Protocol):
    """Runs the network on one window at a time.

    One window, not a padded batch: dynamic quantisation scales activations over a whole batch, so that in a batch an
    article's output would depend on its neighbours.
    """

    def encode(self, input_ids: Ints, word_pieces: Ints) -> tuple[Floats, Floats, Floats]:
        """Tag logits [W, T], proclitic logits [W, K] and word states [W, H] of pieces [S] and word pieces [W]."""
        ...

    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        """Logits [P, 2, R] out of states [W, H], tags [W], first and last words of entities [E, 2] and pairs [P, 3].

        A pair is two indices of entities and the `name_likeness` of the two.
        """
        ...


class OnnxBackend:
    """A checkpoint's ONNX graphs in ONNX Runtime on the CPU."""

    def __init__(self, model: Path, *, relations: bool = True):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # windows are small: two at once are faster than one on two threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._encoder = _session(model / ENCODER_FILE, options)
        self._relations = _session(model / RELATIONS_FILE, options) if relations else None

    def encode(self, input_ids: Ints, word_pieces: Ints) -> tuple[Floats, Floats, Floats]:
        """See `Backend`."""
        tags, proclitics, states = self._encoder.run(
            None, {"input_ids": input_ids[None], "word_pieces": word_pieces[None]}
        )
        return tags[0], proclitics[0], states[0]

    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        """See `Backend`."""
        assert self._relations is not None, "an ontology without relations has no pairs"
        inputs = {"states": states[None], "word_tags": word_tags[None], "entities": entities, "pairs": pairs}
        logits: Floats = self._relations.run(None, inputs)[0]
        return logits


def _session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    if not path.is_file():
        raise ModelError(
            f"{path}: missing, so this folder is not an exported model; make one with: rasid export CHECKPOINT FOLDER"
        )
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions share no public base
        raise ModelError(f"{path}: ONNX Runtime cannot load it ({error}); copy the model again") from error


@dataclass(frozen=True)
class Reading:
    """What the network says of a section of an article.

    Attributes:
        section: Its words, paragraphs and windows.
        tag_logits: float32 [W, T].
        proclitic_logits: float32 [W, K].
        states: Of the words of each window, float32 [W, H], to relate entities by.
    """

    section: Encoding
    tag_logits: Floats
    proclitic_logits: Floats
    states: Sequence[Floats]


class Extractor:
    """Reads articles: `extractor(text)` gives one record, `extractor.pipe(texts)` one after another.

    The output for a text does not depend on the texts around it. Safe to call from several threads.

    Attributes:
        threads: How many articles `pipe` works on at once.
    """

    def __init__(self, backend: Backend, encoder: TextEncoder, settings: ModelSettings, threads: int = 1):
        self.backend = backend
        self.encoder = encoder
        self.settings = settings
        self.threads = threads

    @classmethod
    def load(cls, model: str | Path | None = None, *, threads: int | None = None) -> Self:
        """Load an exported model; the larger shipped one by default.

        Args:
            model: A folder with `config.json`, `tokenizer.json` and the ONNX graphs (one if it knows no relations), or
                the name of a shipped one: `rasid-compact` or `rasid-compact-6`.
            threads: Articles that `pipe` works on at once; the processors that this process may use by default.

        Raises:
            ModelError: if the folder is missing, incomplete, broken or of another architecture.
        """
        folder = find_model(model)
        settings = load_settings(folder)
        encoder = TextEncoder.load(folder, settings.text)
        backend = OnnxBackend(folder, relations=bool(settings.ontology.relation_names))
        return cls(backend, encoder, settings, threads or processors())

    @property
    def ontology(self) -> Ontology:
        """The types that the model knows."""
        return self.settings.ontology

    def __call__(self, text: str, *, id: str = "", max_seconds: float | None = None) -> Article:
        """Entities and relations of one text, of any length.

        Args:
            text: What to read.
            id: Of the record.
            max_seconds: When to give up; looked at between windows.

        Raises:
            DataError: if the text holds a lone surrogate, or takes too long.
        """
        return self.decode(text, self.read(text, max_seconds=max_seconds), id=id)

    def read(self, text: str, *, max_seconds: float | None = None) -> Iterator[Reading]:
        """What the network says of a text, section by section; `decode` makes a record of it.

        Args:
            text: What to read.
            max_seconds: When to give up; looked at between windows.

        Raises:
            DataError: as a call of the extractor does.
        """
        began = time.monotonic()
        for section in self.encoder.encode(check_text(text)).sections():
            tag_logits = np.zeros((len(section.words), len(self.ontology.tags)), dtype=np.float32)
            proclitic_logits = np.zeros((len(section.words), self.settings.max_proclitic + 1), dtype=np.float32)
            states: list[Floats] = []
            for window in section.windows:
                if max_seconds is not None and time.monotonic() - began > max_seconds:
                    raise DataError(f"took over {max_seconds:g} seconds for {len(text):,} characters; allow more time")
                tags, proclitics, window_states = self.backend.encode(window.input_ids, window.word_pieces)
                start, stop = window.core
                core = slice(start - window.words[0], stop - window.words[0])
                tag_logits[start:stop], proclitic_logits[start:stop] = tags[core], proclitics[core]
                states.append(window_states)
            yield Reading(section, tag_logits, proclitic_logits, states)

    def decode(self, text: str, readings: Iterable[Reading], *, id: str = "") -> Article:
        """The record that this extractor's settings make of what `read` gives."""
        entities: list[Entity] = []
        relations: list[Relation] = []
        for reading in readings:
            spans, found = decode_entities(
                text,
                reading.section.words,
                reading.section.paragraphs,
                self._biased(reading),
                reading.proclitic_logits,
                self.ontology,
                len(entities) + 1,
                self.settings.transitions,
            )
            relations += self._relate(found, spans, reading.section, reading.states)
            entities += found
        return Article(id=id, text=text, entities=tuple(entities), relations=tuple(relations))

    def tags(self, reading: Reading) -> list[Ints]:
        """The tags [W] of each paragraph of a section; which entities `decode` finds depends on nothing else."""
        log_probs = log_softmax(self._biased(reading))
        allowed = allowed_transitions(len(self.ontology.tags))
        return decode_tags(log_probs, reading.section.paragraphs, allowed, self.settings.transitions)

    def _biased(self, reading: Reading) -> Floats:
        return reading.tag_logits + np.array(self.settings.tag_bias, dtype=np.float32)

    def pipe(self, texts: Iterable[str]) -> Iterator[Article]:
        """One article per text, in order, several at once on as many threads; ids are empty.

        Raises:
            TypeError: for a single text, which would be read letter by letter.
        """
        if isinstance(texts, str):
            raise TypeError("pipe takes several texts; call the extractor itself for one")
        return ordered_map(self, texts, self.threads)

    def relate(self, article: Article) -> Article:
        """The article with its own entities and predicted relations between them.

        Raises:
            DataError: if an entity's type is unknown to the model, an entity covers no word, or the text holds a lone
                surrogate.
        """
        encoding = self.encoder.encode(check_text(article.text))
        entities = sorted(article.entities, key=lambda e: e.start)
        spans = [word_span(e, encoding.words, self.ontology) for e in entities]
        relations: list[Relation] = []
        first = 0  # word
        for section in encoding.sections():
            low, high = (bisect_left(spans, w, key=lambda s: s.first) for w in (first, first + len(section.words)))
            local = [Span(s.first - first, s.last - first, s.type) for s in spans[low:high]]
            states = [self.backend.encode(w.input_ids, w.word_pieces)[2] for w in section.windows] if local else []
            relations += self._relate(entities[low:high], local, section, states)
            first += len(section.words)
        return article.model_copy(update={"entities": tuple(entities), "relations": tuple(relations)})

    def _relate(
        self, entities: Sequence[Entity], spans: Sequence[Span], section: Encoding, states: Sequence[Floats]
    ) -> list[Relation]:
        """Relations between entities of a section, given the states [W, H] of each of its windows."""
        if not self.ontology.relation_names:
            return []
        pairs, home = assign_windows(spans, section.paragraphs, section.windows, self.ontology)
        likeness = name_likeness([e.text for e in entities], pairs)
        word_tags = tag_words(spans, (0, len(section.words)))
        logits = np.full((len(pairs), 2, len(self.ontology.relation_names)), -np.inf, dtype=np.float32)
        for index, window in enumerate(section.windows):
            chosen = np.flatnonzero(home == index)
            if len(chosen):
                alike = np.column_stack([pairs[chosen], likeness[chosen]])
                logits[chosen] = self._relate_window(window, spans, word_tags, alike, states[index])
        return decode_relations(entities, spans, pairs, logits, self.ontology, self.settings.thresholds)

    def _relate_window(
        self, window: Window, spans: Sequence[Span], word_tags: Ints, pairs: Ints, states: Floats
    ) -> Floats:
        first, after = window.words
        inside = _inside(spans, window)
        position = {entity: n for n, entity in enumerate(inside)}
        local = np.array([[position[i], position[j], alike] for i, j, alike in pairs.tolist()], dtype=np.int64)
        entities = np.array([[spans[i].first - first, spans[i].last - first] for i in inside], dtype=np.int64)
        return self.backend.relate(states, word_tags[first:after], entities, local)


def word_span(entity: Entity, words: Ints, ontology: Ontology) -> Span:
    """The words of `words` [W, 2] that an entity touches.

    Raises:
        DataError: if there are none, or the ontology lacks the entity's type.
    """
    if entity.type not in ontology.entity_types:
        raise DataError(
            f"entity {entity.id}: the model does not know type {entity.type}; it has {', '.join(ontology.entity_types)}"
        )
    first = int(np.searchsorted(words[:, 1], entity.start, side="right"))
    after = int(np.searchsorted(words[:, 0], entity.end, side="left"))
    if after <= first:
        raise DataError(f"entity {entity.id} [{entity.start}, {entity.end}) «{entity.text}» covers no word")
    return Span(first, after - 1, ontology.entity_types.index(entity.type))


def pairs_in_paragraphs(spans: Sequence[Span], paragraphs: Sequence[tuple[int, int]], ontology: Ontology) -> Ints:
    """Candidate pairs [P, 2] of each paragraph, as indices into all spans."""
    starts = np.array([start for start, _ in paragraphs], dtype=np.int64)
    owner = np.searchsorted(starts, [s.first for s in spans], side="right")
    result = [np.zeros((0, 2), dtype=np.int64)]
    for _, group in groupby(range(len(spans)), key=lambda i: int(owner[i])):
        members = list(group)
        result.append(candidate_pairs([spans[i] for i in members], ontology) + members[0])
    return np.concatenate(result)


def assign_windows(
    spans: Sequence[Span], paragraphs: Sequence[tuple[int, int]], windows: Sequence[Window], ontology: Ontology
) -> tuple[Ints, Ints]:
    """Pairs to score, int64 [P, 2], and the window that scores each, int64 [P]: the one in whose middle it stands.

    The ends of a pair are in one paragraph and in one window; further apart they are too far for the model to relate.

    Args:
        spans: Entities in text order; pairs are indices of it.
        paragraphs: Ranges of words.
        windows: What the encoder read.
        ontology: Which types some relation may join.
    """
    rows = [np.zeros((0, 4), dtype=np.int64)]  # pair, words on its narrower side (negative), window
    for index, window in enumerate(windows):
        members = np.array(_inside(spans, window), dtype=np.int64)
        first = bisect_right(paragraphs, window.words[0], key=lambda p: p[0]) - 1
        after = bisect_left(paragraphs, window.words[1], key=lambda p: p[0])
        pairs = members[pairs_in_paragraphs([spans[i] for i in members], paragraphs[first:after], ontology)]
        low = np.array([spans[i].first for i in pairs[:, 0]], dtype=np.int64)
        high = np.array([spans[j].last for j in pairs[:, 1]], dtype=np.int64)
        margin = np.minimum(low - window.words[0], window.words[1] - 1 - high)
        rows.append(np.column_stack([pairs, -margin, np.full(len(pairs), index)]))
    found = np.concatenate(rows)
    found = found[np.lexsort(found.T[::-1])]
    best = np.ones(len(found), dtype=bool)  # the first row of each pair
    best[1:] = (found[1:, :2] != found[:-1, :2]).any(1)
    return found[best, :2], found[best, 3]


def _inside(spans: Sequence[Span], window: Window) -> list[int]:
    """Indices of the spans, which are in text order, that lie in the window."""
    low, high = (bisect_left(spans, word, key=lambda s: s.first) for word in window.words)
    return [i for i in range(low, high) if spans[i].last < window.words[1]]
