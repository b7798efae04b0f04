"""Text to arrays: words, pieces, and windows that keep paragraphs whole where they fit."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from rasid.errors import ModelError
from rasid.settings import TOKENIZER_FILE, TextSettings
from rasid.text import normalize, paragraphs, split_words

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """What the encoder reads in one pass: a contiguous range of an article's words.

    Attributes:
        words: `(first, after)`, the range of words in it.
        core: The part of `words` whose tags are taken from this window; an article's cores partition its words.
        input_ids: int64 [S], pieces with special tokens at both ends.
        word_pieces: int64 [W], index into `input_ids` of the piece that holds each word's first character.
    """

    words: tuple[int, int]
    core: tuple[int, int]
    input_ids: Ints
    word_pieces: Ints

    def shifted(self, by: int) -> "Window":
        """The same window with `by` added to the numbers of its words."""
        words, core = ((a + by, b + by) for a, b in (self.words, self.core))
        return replace(self, words=words, core=core)


@dataclass(frozen=True)
class Encoding:
    """An article cut into words and windows.

    Attributes:
        words: int64 [N, 2], offsets of each word in the raw text.
        paragraphs: Word ranges `(first, after)`, one per paragraph that holds a word.
        windows: Windows that together hold every word.
    """

    words: Ints
    paragraphs: tuple[tuple[int, int], ...]
    windows: tuple[Window, ...]

    def sections(self) -> Iterator["Encoding"]:
        """The article in parts, each an encoding by itself, in order: no paragraph and no window is in two of them.

        What a window's pass gives is needed until its section is decoded and no longer, so memory does not grow with
        the article. Offsets of words stay those in the raw text.
        """
        starts = [start for start, _ in self.paragraphs]
        known = set(starts)
        begins = [i for i, window in enumerate(self.windows) if window.words[0] in known]
        for first, after in pairwise([*begins, len(self.windows)]):
            start, stop = self.windows[first].words[0], self.windows[after - 1].words[1]
            inside = self.paragraphs[bisect_left(starts, start) : bisect_left(starts, stop)]
            yield Encoding(
                words=self.words[start:stop],
                paragraphs=tuple((a - start, b - start) for a, b in inside),
                windows=tuple(w.shifted(-start) for w in self.windows[first:after]),
            )


@dataclass(frozen=True)
class _Paragraph:
    words: tuple[int, int]
    ids: Ints  # [S], pieces without special tokens
    first: Ints  # [W + 1], the piece of each word's first character, and the number of pieces

    @property
    def size(self) -> int:
        """What it takes of a window: its pieces, or its words where many share a piece, as unknown emoji do."""
        return max(len(self.ids), len(self.first) - 1)


class TextEncoder:
    """Turns raw text into windows, with one tokenizer and its text settings."""

    def __init__(self, tokenizer: Tokenizer, settings: TextSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ends = tokenizer.encode("").ids
        if len(ends) != 2:
            raise ModelError(
                f"the tokenizer frames a text with {len(ends)} special tokens; expected 2 (<s> </s> or [CLS] [SEP])"
            )
        self._prefix, self._suffix = ([ends[0]], [ends[1]])
        self._capacity = settings.max_pieces - 2

    @classmethod
    def load(cls, model: str | Path, settings: TextSettings) -> "TextEncoder":
        """The encoder of a checkpoint folder.

        Raises:
            ModelError: if its `tokenizer.json` is missing or broken.
        """
        path = Path(model) / TOKENIZER_FILE
        if not path.is_file():
            raise ModelError(f"{model}: no {TOKENIZER_FILE}, the fast tokenizer's file; copy the checkpoint again")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path}: not a tokenizer file ({error}); copy the checkpoint again") from error
        return cls(tokenizer, settings)

    def encode(self, text: str) -> Encoding:
        """Cut a text of any length into words and windows; nothing is left out."""
        words: list[tuple[int, int]] = []
        parts: list[_Paragraph] = []
        for start, end in paragraphs(text):
            raw = text[start:end]
            spans = split_words(raw)
            if spans:
                parts.append(self._paragraph(raw, np.array(spans, dtype=np.int64), len(words)))
                words.extend((start + a, start + b) for a, b in spans)
        return Encoding(
            words=np.array(words, dtype=np.int64).reshape(-1, 2),
            paragraphs=tuple(p.words for p in parts),
            windows=tuple(self._windows(parts)),
        )

    def _paragraph(self, raw: str, spans: Ints, first_word: int) -> _Paragraph:
        normalized = normalize(raw, self.settings.normalization)
        pieces = self.tokenizer.encode(normalized.text, add_special_tokens=False)
        ids = np.array(pieces.ids, dtype=np.int64)
        if not len(ids):  # visible characters that the tokenizer swallows: one unknown piece stands for them
            ids, starts = np.array(self._suffix, dtype=np.int64), np.zeros(1, dtype=np.int64)
        else:
            starts = np.array([a for a, _ in pieces.offsets], dtype=np.int64)
        at = normalized.find(spans[:, 0])
        first = np.clip(np.searchsorted(starts, at, side="right") - 1, 0, len(ids) - 1)
        return _Paragraph((first_word, first_word + len(spans)), ids, np.append(first, len(ids)))

    def _windows(self, parts: list[_Paragraph]) -> Iterator[Window]:
        packed: list[_Paragraph] = []
        size = 0
        for part in parts:
            if packed and size + part.size > self._capacity:
                yield self._pack(packed)
                packed, size = [], 0
            if part.size > self._capacity:
                yield from self._cut(part)
            else:
                packed.append(part)
                size += part.size
        if packed:
            yield self._pack(packed)

    def _window(self, words: tuple[int, int], core: tuple[int, int], ids: Ints, word_pieces: Ints) -> Window:
        return Window(words, core, np.concatenate([self._prefix, ids, self._suffix]), word_pieces + 1)

    def _pack(self, parts: list[_Paragraph]) -> Window:
        """One window over whole paragraphs."""
        words = (parts[0].words[0], parts[-1].words[1])
        shifts = np.cumsum([0] + [len(p.ids) for p in parts[:-1]])
        first = np.concatenate([p.first[:-1] + shift for p, shift in zip(parts, shifts, strict=True)])
        return self._window(words, words, np.concatenate([p.ids for p in parts]), first)

    def _cut(self, part: _Paragraph) -> Iterator[Window]:
        """Overlapping windows over one paragraph that does not fit; each word is tagged where it has most context."""
        count = len(part.first) - 1
        ranges: list[tuple[int, int]] = []
        begin = 0
        while True:
            limit = part.first[begin] + self._capacity
            # A word alone may have more pieces than a window holds: it stays, represented by its first ones.
            after = int(np.searchsorted(part.first[:-1], limit, side="left"))  # the words that begin before the limit
            after -= int(part.first[after] > limit)
            after = max(min(after, begin + self._capacity), begin + 1)
            ranges.append((begin, after))
            if after >= count:
                break
            back = int(np.searchsorted(part.first, part.first[after] - self.settings.overlap, side="left"))
            begin = min(max(back, after - self.settings.overlap, begin + 1), after)
        bounds = [0] + [(b[0] + a[1]) // 2 for a, b in pairwise(ranges)] + [count]
        base = part.words[0]
        for (a, b), core in zip(ranges, pairwise(bounds), strict=True):
            low = part.first[a]
            high = max(
                part.first[b], part.first[b - 1] + 1
            )  # words that share a piece may lie on both sides of the cut
            ids = part.ids[low : min(high, low + self._capacity)]
            yield self._window((base + a, base + b), (base + core[0], base + core[1]), ids, part.first[a:b] - low)
