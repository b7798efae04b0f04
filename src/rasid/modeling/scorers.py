"""Relation heads: from word states and entities to logits of all candidate pairs of a batch in one step.

Letters of the shapes as in `rasid.modeling.model`; M is the most entities of a window.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rasid.config import HeadConfig
from rasid.decoding import LIKENESS
from rasid.schema import Ontology


class RelationHead(nn.Module):
    """What all scorers share: words are told the tags of the entities, and pass the head's own layers if it has any.

    Attributes:
        ends: Number of states that stand for an entity.
    """

    ends = 3
    WORD_BUCKETS = (1, 2, 3, 5, 9, 17, 33, 65)  # words between the ends, at least
    ENTITY_BUCKETS = (2, 3, 4, 5, 7, 10)  # steps in the order of entities, at least

    def __init__(self, config: HeadConfig, hidden: int, ontology: Ontology, layers: Iterable[nn.Module] = ()):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.tag_embedding = nn.Embedding(len(ontology.tags), hidden)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(self.ends * hidden, config.relation_size)
        self.tail = nn.Linear(self.ends * hidden, config.relation_size)
        self.dropout = nn.Dropout(config.dropout)
        self.symmetric = ontology.symmetric

    def forward(
        self, states: Tensor, word_tags: Tensor, entities: Tensor, pairs: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Logits [P, 2, R] of `i → j` and `j → i` for each pair `(i, j)`.

        Args:
            states: [B, W, H], what `RasidModel.encode` gives for relations.
            word_tags: int64 [B, W], the tags of the entities to relate.
            entities: int64 [E, 3], window, first and last word of each entity, window by window and in text order.
            pairs: int64 [P, 3], entity indices `i < j` in one window, and how alike their names are (`name_likeness`).
            mask: bool [B, W], true for real words; None where all are.
        """
        x, ends = self.read(states, word_tags, entities, mask)
        logits = self.score(x, self.dropout(ends), entities, pairs)
        symmetric = torch.tensor(self.symmetric, dtype=torch.bool, device=x.device)
        return torch.where(symmetric, logits.mean(1, keepdim=True), logits)

    def read(self, states: Tensor, word_tags: Tensor, entities: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """States of the words [B, W, H], and of each entity [E, 3H]: first word, last word, the word before."""
        x = states + self.tag_embedding(word_tags)
        bias = None if mask is None else torch.where(mask, 0.0, torch.finfo(x.dtype).min)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attention_mask=bias)
        x = self.norm(x)
        window, first, last = entities.unbind(-1)
        before = torch.where((first > 0)[:, None], x[window, (first - 1).clamp(min=0)], torch.zeros_like(x[:1, 0]))
        return x, torch.cat([x[window, first], x[window, last], before], -1)

    def score(self, x: Tensor, ends: Tensor, entities: Tensor, pairs: Tensor) -> Tensor:
        """Logits [P, 2, R] out of what `read` gives."""
        raise NotImplementedError

    def _add_features(self, size: int) -> None:
        """Embeddings of the size D or R for `_describe`."""
        self.word_distance = nn.Embedding(2 * (len(self.WORD_BUCKETS) + 1), size)
        self.entity_distance = nn.Embedding(2 * (len(self.ENTITY_BUCKETS) + 1), size)
        self.likeness = nn.Embedding(LIKENESS, size)

    def _describe(self, forth: Tensor, back: Tensor, entities: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Add to both directions of the pairs how alike their names are and how far apart they stand."""
        _, first, last = entities.unbind(-1)
        i, j, alike = pairs.unbind(-1)
        likeness = self.likeness(alike)
        forth, back = forth + likeness, back + likeness
        words_at, steps_at = (torch.tensor(b, device=pairs.device) for b in (self.WORD_BUCKETS, self.ENTITY_BUCKETS))
        words = torch.bucketize((first[j] - last[i] - 1).clamp(min=0), words_at, right=True)
        steps = torch.bucketize(j - i, steps_at, right=True)
        n_words, n_steps = len(self.WORD_BUCKETS) + 1, len(self.ENTITY_BUCKETS) + 1
        forth = forth + self.word_distance(words) + self.entity_distance(steps)
        back = back + self.word_distance(words + n_words) + self.entity_distance(steps + n_steps)
        return forth, back


def _last(size: int, relations: int) -> nn.Linear:
    """The layer that gives logits; relations are rare, so its bias starts low."""
    layer = nn.Linear(size, relations)
    layer.initial_bias = -3.0  # type: ignore[assignment]  # an attribute, since `_init_weights` sees layers one by one
    return layer


class ContextScorer(RelationHead):
    """Scores a pair from its ends and the context between them.

    Per context head that is a mean of the words between, weighted by a gate of the word alone, so that prefix sums give
    it for all pairs at the cost of one pass over the words.
    """

    def __init__(self, config: HeadConfig, hidden: int, ontology: Ontology, layers: Iterable[nn.Module] = ()):
        super().__init__(config, hidden, ontology, layers)
        size, relations = config.relation_size, len(ontology.relation_names)
        self.groups = config.context_heads
        self.gate = nn.Linear(hidden, self.groups)
        self.value = nn.Linear(hidden, size)
        self.pair_head = nn.Linear(size, size)
        self.pair_tail = nn.Linear(size, size, bias=False)
        self.context = nn.Linear(size, 2 * size, bias=False)  # one half per direction
        self._add_features(size)
        self.out = _last(size, relations)
        self.product = nn.Linear(size, relations, bias=False)

    def score(self, x: Tensor, ends: Tensor, entities: Tensor, pairs: Tensor) -> Tensor:
        """See `RelationHead`."""
        head, tail = F.gelu(self.head(ends)), F.gelu(self.tail(ends))  # [E, D]
        as_head, as_tail = self.pair_head(head), self.pair_tail(tail)
        window, first, last = entities.unbind(-1)
        i, j, _ = pairs.unbind(-1)
        between = self._between(x, window[i], last[i] + 1, first[j])  # [P, D]
        forth, back = self.context(between).chunk(2, -1)
        forth, back = self._describe(forth, back, entities, pairs)
        hidden = torch.stack([as_head[i] + as_tail[j] + forth, as_head[j] + as_tail[i] + back], 1)  # [P, 2, D]
        product = torch.stack([head[i] * tail[j], head[j] * tail[i]], 1)  # [P, 2, D]
        return self.out(self.dropout(F.gelu(hidden))) + self.product(product)  # type: ignore[no-any-return]

    def _between(self, x: Tensor, window: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """[P, D]: gated means of the words `[start, stop)`, zero where there are none."""
        b, w, _ = x.shape
        weight = torch.exp(5.0 * torch.tanh(self.gate(x).float()))  # [B, W, G]; bounded, so that the sums stay exact
        value = self.value(x).float().view(b, w, self.groups, -1) * weight[..., None]  # [B, W, G, D / G]
        zero = weight.new_zeros(b, 1, self.groups)
        weights = torch.cat([zero, weight.cumsum(1)], 1)  # [B, W + 1, G]
        values = torch.cat([zero[..., None].expand(-1, -1, -1, value.shape[-1]), value.cumsum(1)], 1)
        stop = torch.maximum(start, stop)
        total = values[window, stop] - values[window, start]  # [P, G, D / G]
        return (total / (weights[window, stop] - weights[window, start] + 1e-3)[..., None]).flatten(1)


class BiaffineScorer(RelationHead):
    """Scores a pair from its ends alone, by a bilinear form (Dozat and Manning 2017, https://arxiv.org/abs/1611.01734)."""

    def __init__(self, config: HeadConfig, hidden: int, ontology: Ontology, layers: Iterable[nn.Module] = ()):
        super().__init__(config, hidden, ontology, layers)
        size, relations = config.relation_size, len(ontology.relation_names)
        self.bilinear = nn.Linear(size, relations * size, bias=False)
        self.of_head = _last(size, relations)
        self.of_tail = nn.Linear(size, relations, bias=False)
        self._add_features(relations)

    def score(self, x: Tensor, ends: Tensor, entities: Tensor, pairs: Tensor) -> Tensor:
        """See `RelationHead`."""
        head, tail = self.dropout(F.gelu(self.head(ends))), self.dropout(F.gelu(self.tail(ends)))  # [E, D]
        size = tail.shape[-1]
        form = self.bilinear(head).view(head.shape[0], len(self.symmetric), size)  # [E, R, D]
        every = (form @ tail.T).transpose(1, 2)  # [E, E, R]
        of_head, of_tail = self.of_head(head), self.of_tail(tail)  # [E, R]
        i, j, _ = pairs.unbind(-1)
        forth, back = every[i, j] + of_head[i] + of_tail[j], every[j, i] + of_head[j] + of_tail[i]  # [P, R]
        return torch.stack(self._describe(forth, back, entities, pairs), 1)


class MarkerScorer(RelationHead):
    """Scores a pair from the states of markers at its ends.

    As in the approximation of Zhong and Chen (2021, https://arxiv.org/abs/2010.12812), the markers of all entities pass
    the layers together with the words; they see the words and their own partner, and no word sees them, so that all
    pairs are scored in one pass. A marker knows the type of its entity, and starts from the state of the word at that
    end, which says where it is.
    """

    ends = 2

    def __init__(self, config: HeadConfig, hidden: int, ontology: Ontology, layers: Iterable[nn.Module] = ()):
        super().__init__(config, hidden, ontology, layers)
        size = config.relation_size
        self.marker = nn.Embedding(2 * (len(ontology.entity_types) + 1), hidden)  # of no type first
        self._add_features(size)
        self.out = _last(size, len(ontology.relation_names))

    def read(self, states: Tensor, word_tags: Tensor, entities: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """States of the words [B, W, H], and of each entity [E, 2H]: those of its first and of its last marker."""
        window, first, last = entities.T.contiguous()
        kind = 2 * ((word_tags[window, first] + 1) // 2)  # the same for `B-` and `I-` of a type
        at = torch.stack([states[window, first], states[window, last]], 1)  # [E, 2, H]
        at = at + self.marker(torch.stack([kind, kind + 1], 1))

        b, w, _ = states.shape
        slot = torch.arange(entities.shape[0], device=window.device) - torch.bucketize(window, window)  # in its window
        # One window holds all entities; a traced graph must not take their number for a constant.
        m = entities.shape[0] if b == 1 else int(torch.bincount(window).max()) if len(window) else 0
        markers = at.new_zeros(b, 2 * m, at.shape[-1])
        markers[window, slot], markers[window, m + slot] = at[:, 0], at[:, 1]
        x = torch.cat([states + self.tag_embedding(word_tags), markers], 1)  # [B, W + 2M, H]

        mask = torch.ones_like(word_tags, dtype=torch.bool) if mask is None else mask
        of_words = torch.cat([mask, mask.new_zeros(b, 2 * m)], 1)
        owner = torch.cat([word_tags.new_full((w,), -1), torch.arange(m, device=window.device).repeat(2)])  # [W + 2M]
        seen = of_words[:, None, :] | ((owner[:, None] == owner) & (owner >= 0))  # [B, W + 2M, W + 2M]
        bias = torch.where(seen, 0.0, torch.finfo(x.dtype).min)[:, None]
        for layer in self.layers:
            x = layer(x, attention_mask=bias)
        x = self.norm(x)
        return x[:, :w], torch.cat([x[window, w + slot], x[window, w + m + slot]], -1)

    def score(self, x: Tensor, ends: Tensor, entities: Tensor, pairs: Tensor) -> Tensor:
        """See `RelationHead`."""
        head, tail = self.head(ends), self.tail(ends)  # [E, D]
        i, j, _ = pairs.unbind(-1)
        hidden = torch.stack(self._describe(head[i] + tail[j], head[j] + tail[i], entities, pairs), 1)  # [P, 2, D]
        return self.out(self.dropout(F.gelu(hidden)))  # type: ignore[no-any-return]


SCORERS: dict[str, type[RelationHead]] = {
    "context": ContextScorer,
    "biaffine": BiaffineScorer,
    "markers": MarkerScorer,
}
