"""Model outputs to entities and relations: pure functions on arrays, the one decode path of evaluation and prediction.

Letters of the shapes: W words, T IOB2 tags (`O`, then `B-`, `I-` of each entity type), K proclitic lengths (0 … K-1),
E entities, P unordered pairs of entities, R relation types.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rasid.records import Entity, Relation
from rasid.schema import Ontology
from rasid.text import canonical_name, name_words, proclitic_cuts

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Transitions = Sequence[Sequence[float]]  # [T + 1][T], as in `ModelSettings`

LIKENESS = 4  # levels of `name_likeness`
_CLOSING = {"«": "»", "“": "”", "„": "“", "(": ")", "[": "]", '"': '"', "'": "'"}
_PUNCTUATION = frozenset("،؛:.؟!,;?–—…-") | _CLOSING.keys() | frozenset(_CLOSING.values())


@dataclass(frozen=True)
class Span:
    """An entity over words `first` to `last`, both inclusive; `type` is an index into the ontology's entity types."""

    first: int
    last: int
    type: int


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Natural-log probabilities over the last axis, in float64."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return result


def sigmoid(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Element-wise probabilities, in float64, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))


def allowed_transitions(tags: int) -> npt.NDArray[np.bool_]:
    """Transitions, bool [T + 1, T]: whether tag `j` may follow tag `i` under IOB2; row T is the start of a paragraph.

    Tag 0 is `O`, odd ones are `B-`, even ones the `I-` of the tag before; `I-X` follows `B-X` or `I-X` only.
    """
    allowed = np.ones((tags + 1, tags), dtype=bool)
    for inside in range(2, tags, 2):
        allowed[:, inside] = False
        allowed[[inside - 1, inside], inside] = True
    return allowed


def best_tags(
    log_probs: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], transitions: Transitions | None = None
) -> Ints:
    """The most probable tag sequence [W] under IOB2 (Viterbi) out of log-probabilities [W, T].

    Without `transitions`, legal ones all score the same, so where each word's best tag makes a legal sequence, it is
    the answer.
    """
    if transitions is None:
        best: Ints = log_probs.argmax(-1)
        before = np.concatenate([[log_probs.shape[1]], best[:-1]])
        if allowed[before, best].all():
            return best
    penalty = np.where(allowed, 0.0 if transitions is None else transitions, -np.inf)
    score = log_probs[0] + penalty[-1]
    back = np.empty(log_probs.shape, dtype=np.int64)
    for w in range(1, len(log_probs)):
        paths = score[:, None] + penalty[:-1]  # [T, T]
        back[w] = paths.argmax(0)
        score = paths[back[w], np.arange(len(score))] + log_probs[w]
    path = [int(score.argmax())]
    for w in range(len(log_probs) - 1, 0, -1):
        path.append(int(back[w, path[-1]]))
    return np.array(path[::-1], dtype=np.int64)


def decode_tags(
    log_probs: npt.NDArray[np.float64],
    paragraphs: Sequence[tuple[int, int]],
    allowed: npt.NDArray[np.bool_],
    transitions: Transitions | None = None,
) -> list[Ints]:
    """The most probable tags [W] of each paragraph, out of log-probabilities [W, T] of all words; see `best_tags`."""
    return [best_tags(log_probs[start:stop], allowed, transitions) for start, stop in paragraphs]


def chain_probabilities(
    log_probs: npt.NDArray[np.float64], allowed: npt.NDArray[np.bool_], transitions: Transitions
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What a linear-chain CRF makes of a paragraph's log-probabilities [W, T], of legal sequences alone.

    Returns:
        Log-probabilities of each word's tags, [W, T], and of its tag `j` where the word before has tag `i`, [W, T, T].
    """
    scores = np.where(allowed, transitions, -np.inf)
    later = np.zeros_like(log_probs)  # what all words after this one add to the score of its tag
    for w in range(len(log_probs) - 1, 0, -1):
        later[w - 1] = np.logaddexp.reduce(scores[:-1] + log_probs[w] + later[w], axis=-1)
    steps = log_softmax(scores[:-1] + (log_probs + later)[:, None, :])
    single = np.empty_like(log_probs)
    single[0] = log_softmax(scores[-1] + log_probs[0] + later[0])
    for w in range(1, len(log_probs)):
        single[w] = np.logaddexp.reduce(single[w - 1][:, None] + steps[w], axis=0)
    return single, steps


def find_spans(tags: Ints, offset: int = 0) -> list[Span]:
    """Entities of a legal tag sequence [W]; `offset` is added to their words."""
    spans: list[Span] = []
    for w, tag in enumerate(tags.tolist(), start=offset):
        if tag % 2 == 1:
            spans.append(Span(w, w, tag // 2))
        elif tag:
            spans[-1] = Span(spans[-1].first, w, spans[-1].type)
    return spans


def tidy_spans(spans: Sequence[Span], words: Sequence[str], offset: int) -> list[Span]:
    """Spans without marks of punctuation at their edges, and with the closing mark of what they open.

    A name that holds an opening quotation mark or bracket holds the closing one too; nothing else of punctuation begins
    or ends a name. A span of punctuation alone is dropped.

    Args:
        spans: In text order.
        words: Of the paragraph.
        offset: Number of the paragraph's first word.
    """
    result: list[Span] = []
    for n, span in enumerate(spans):
        first, last = span.first - offset, span.last - offset
        after = spans[n + 1].first - offset if n + 1 < len(spans) else len(words)
        if last + 1 < after and words[last + 1] in _unclosed(words[first : last + 1]):
            last += 1
        while first <= last and words[last] in _PUNCTUATION and not _closes(words[first : last + 1]):
            last -= 1
        while first <= last and words[first] in _PUNCTUATION and not _opens(words[first : last + 1]):
            first += 1
        if first < last and _CLOSING.get(words[first]) == words[last]:  # quoted whole
            first, last = first + 1, last - 1
        if first <= last:
            result.append(Span(first + offset, last + offset, span.type))
    return result


def _unclosed(words: Sequence[str]) -> set[str]:
    """The marks that would close what some words open and leave open."""
    return {
        close
        for mark, close in _CLOSING.items()
        if (words.count(mark) % 2 if mark == close else words.count(mark) > words.count(close))
    }


def _opens(words: Sequence[str]) -> bool:
    """Whether the first word opens what a later one closes."""
    return _CLOSING.get(words[0]) in words[1:]


def _closes(words: Sequence[str]) -> bool:
    """Whether the last word closes what an earlier one opens."""
    return words[-1] in _CLOSING.values() and words[-1] in _unclosed(words[:-1])


def tag_words(spans: Sequence[Span], words: tuple[int, int]) -> Ints:
    """IOB2 tags int64 [W] of the words `[first, after)` under entities that lie inside; inverse of `find_spans`."""
    first, after = words
    tags = np.zeros(after - first, dtype=np.int64)
    for span in spans:
        tags[span.first - first : span.last + 1 - first] = 2 * span.type + 2
        tags[span.first - first] = 2 * span.type + 1
    return tags


def span_score(
    log_probs: npt.NDArray[np.float64],
    span: Span,
    start: int,
    stop: int,
    steps: npt.NDArray[np.float64] | None = None,
) -> float:
    """Probability of a span: that of its tags, and of the next word of its paragraph `[start, stop)` not going on.

    Args:
        log_probs: Of the tags of the paragraph's words, [W, T].
        span: The span.
        start: First word of the paragraph.
        stop: The word after it.
        steps: The same given the tag before, [W, T, T]; none if that does not matter. See `chain_probabilities`.
    """
    begin, inside = 2 * span.type + 1, 2 * span.type + 2
    first, after = span.first - start, span.last + 1 - start
    if steps is None:
        going_on = log_probs[first + 1 : after + 1, inside]
    else:
        going_on = steps[first + 1 : after + 1, inside, inside].copy()
        going_on[:1] = steps[first + 1 : first + 2, begin, inside]
    score = float(np.exp(log_probs[first, begin] + going_on[: after - first - 1].sum()))
    if span.last + 1 < stop:
        score *= 1.0 - float(np.exp(going_on[-1]))
    return score


def cut_proclitic(word: str, logits: Floats, proclitics: str) -> tuple[int, float]:
    """`(offset, probability)` of the best cut of an entity's first word that the word allows, out of logits [K]."""
    cuts = proclitic_cuts(word, proclitics, longest=len(logits) - 1)
    if len(cuts) == 1:
        return cuts[0], 1.0
    probs = np.exp(log_softmax(logits[: len(cuts)]))
    best = int(probs.argmax())
    return cuts[best], float(probs[best])


def decode_entities(
    text: str,
    words: Ints,
    paragraphs: Sequence[tuple[int, int]],
    tag_logits: Floats,
    proclitic_logits: Floats,
    ontology: Ontology,
    first_id: int = 1,
    transitions: Transitions | None = None,
) -> tuple[list[Span], list[Entity]]:
    """Entities of an article in text order; their ids are `T1`, `T2` and so on.

    Args:
        text: The raw text.
        words: int64 [W, 2], offsets of all its words.
        paragraphs: Ranges of words; no entity crosses one.
        tag_logits: float32 [W, T].
        proclitic_logits: float32 [W, K].
        ontology: Types and proclitics.
        first_id: Number of the first one.
        transitions: Scores of one tag after another, if they were learned.
    """
    allowed = allowed_transitions(len(ontology.tags))
    log_probs = log_softmax(tag_logits)
    spans: list[Span] = []
    entities: list[Entity] = []
    for (start, stop), tags in zip(paragraphs, decode_tags(log_probs, paragraphs, allowed, transitions), strict=True):
        part = log_probs[start:stop]
        surfaces = [text[a:b] for a, b in words[start:stop].tolist()]
        single, steps = (part, None) if transitions is None else chain_probabilities(part, allowed, transitions)
        for span in tidy_spans(find_spans(tags, start), surfaces, start):
            begin, end = int(words[span.first, 0]), int(words[span.last, 1])
            word = text[begin : int(words[span.first, 1])]
            cut, cut_score = cut_proclitic(word, proclitic_logits[span.first], ontology.proclitics)
            surface = text[begin + cut : end]
            spans.append(span)
            entities.append(
                Entity(
                    id=f"T{first_id + len(entities)}",
                    type=ontology.entity_types[span.type],
                    start=begin + cut,
                    end=end,
                    text=surface,
                    score=round(span_score(single, span, start, stop, steps) * cut_score, 4),
                    normalized=canonical_name(surface, before=word[:cut]),
                )
            )
    return spans, entities


def candidate_pairs(spans: Sequence[Span], ontology: Ontology) -> Ints:
    """int64 [P, 2]: index pairs `i < j` of entities that some relation may join in either direction."""
    if len(spans) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    types = np.array([s.type for s in spans])
    first, second = np.triu_indices(len(spans), k=1)
    rules = allowed_relations(ontology)
    kept = (rules[types[first], types[second]] | rules[types[second], types[first]]).any(-1)
    return np.stack([first[kept], second[kept]], axis=1).astype(np.int64)


def name_likeness(names: Sequence[str], pairs: Ints) -> Ints:
    """How alike two names are, int64 [P]: 0 no word shared, 1 one shared, 2 all words of one in the other, 3 the same.

    Args:
        names: Surface forms of E entities.
        pairs: int64 [P, 2], indices of it.
    """
    words = [name_words(name) for name in names]
    column = {word: n for n, word in enumerate(sorted(frozenset().union(*words)))}
    has = np.zeros((len(names), len(column)), dtype=np.float32)
    for row, of_name in enumerate(words):
        has[row, [column[word] for word in of_name]] = 1
    shared = (has @ has.T)[pairs[:, 0], pairs[:, 1]]
    sizes = has.sum(1)[pairs]  # [P, 2]
    levels: Ints = (
        (shared > 0).astype(np.int64) + (shared >= sizes.min(1, initial=np.inf)) + (shared >= sizes.max(1, initial=0))
    )
    return np.where(shared > 0, levels, 0)


def allowed_relations(ontology: Ontology) -> npt.NDArray[np.bool_]:
    """Rules, bool [types, types, R]: whether the relation may join a head of the first type to a tail of the second."""
    types = len(ontology.entity_types)
    return np.array(ontology.rules, dtype=bool).reshape(types, types, len(ontology.relation_names))


def decode_relations(
    entities: Sequence[Entity],
    spans: Sequence[Span],
    pairs: Ints,
    logits: Floats,
    ontology: Ontology,
    thresholds: Sequence[float],
) -> list[Relation]:
    """Relations whose score reaches the threshold of their type, in order of head and tail.

    The score is the probability that the relation holds and that both of its ends are right, since it is of no use
    without them: that of the logits times the scores of the ends. Ends without a score, such as gold ones, are sure.

    Args:
        entities: E entities in text order.
        spans: The same as word spans.
        pairs: int64 [P, 2], entity indices `i < j`.
        logits: float32 [P, 2, R]; `[:, 0]` is `i → j`, `[:, 1]` is `j → i`.
        ontology: Which relations may join what. Symmetric ones are read off the first direction.
        thresholds: Lowest score of each relation type, R of them.
    """
    if not len(pairs):
        return []
    types = np.array([s.type for s in spans])
    symmetric = np.array(ontology.symmetric)
    heads, tails = pairs, pairs[:, ::-1]  # [P, 2] each: the two directions
    mask = allowed_relations(ontology)[types[heads], types[tails]]  # [P, 2, R]
    mask[:, 1] &= ~symmetric
    sure = np.array([1.0 if e.score is None else e.score for e in entities])
    probs = sigmoid(logits) * (sure[pairs[:, 0]] * sure[pairs[:, 1]])[:, None, None]
    found = []
    for p, direction, r in np.argwhere(mask & (probs >= np.asarray(thresholds))).tolist():
        found.append((int(heads[p, direction]), int(tails[p, direction]), r, float(probs[p, direction, r])))
    found = _as_chains(sorted(found), ontology)
    return [
        Relation(type=ontology.relation_names[r], head=entities[h].id, tail=entities[t].id, score=round(score, 4))
        for h, t, r, score in sorted(found)
    ]


def _as_chains(found: list[tuple[int, int, int, float]], ontology: Ontology) -> list[tuple[int, int, int, float]]:
    """Rewrite the links of each transitive relation as chains: each mention of a group linked to the next one.

    Groups grow best-first (Ng and Cardie 2002, https://aclanthology.org/P02-1014): each mention joins the group of the
    earlier mention it scores highest with, so that one wrong link does not merge two groups. A link of a chain that was
    not found itself takes its later mention's best score.
    """
    transitive = {i for i, r in enumerate(ontology.relation_names) if ontology.relation_types[r].transitive}
    result = [link for link in found if link[2] not in transitive]
    for r in sorted(transitive):
        score_of = {(h, t): score for h, t, relation, score in found if relation == r}
        best: dict[int, tuple[float, int]] = {}  # mention -> best score, the earlier mention
        for (h, t), score in score_of.items():
            best[t] = max(best.get(t, (0.0, -1)), (score, h))
        group: dict[int, int] = {}  # mention -> first mention of its group
        last: dict[int, int] = {}  # first mention -> latest mention so far
        for mention in sorted(best):
            score, earlier = best[mention]
            root = group[mention] = group.setdefault(earlier, earlier)
            previous = last.get(root, root)
            result.append((previous, mention, r, score_of.get((previous, mention), score)))
            last[root] = mention
    return result
