"""Arabic text: normalisation with an offset map, words, proclitics, names. Offsets are code points, half-open."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]

MAX_WORD_LENGTH = 64  # code points; a longer run of letters is several words, so that no word outgrows a window

# Harakat, Quranic marks and superscript alef. Combining madda and hamza (U+0653-0655) are letters' parts and stay.
_DIACRITICS = "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
_JOINERS = "\u200c\u200d"
_MARKS = f"{_DIACRITICS}\u0653-\u0655{_JOINERS}"
_WORD = re.compile(
    rf"[^\W_](?:[^\W_]|[{_MARKS}]){{0,{MAX_WORD_LENGTH - 1}}}"  # letters and digits with what combines with them
    r"|[^\w\s]|_"  # any other visible character is a word of its own
)
_INVISIBLE = frozenset({"Cf", "Cc", "Cs", "Mn", "Me", "Zl", "Zp"})
_TATWEEL = "\u0640"
_DIGIT_BEGINS = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_LONG_RUN = re.compile(r"(\D)\1{2,}")


def _table(characters: Iterable[str], target: str) -> dict[int, str]:
    return {ord(c): target for c in characters}


def _expand(ranges: str) -> list[str]:
    return [chr(c) for c in range(0x0600, 0x0700) if re.match(f"[{ranges}]", chr(c))]


# Step name -> what each character becomes: nothing or one character.
_CHARACTER_STEPS: dict[str, dict[int, str]] = {
    # A direction mark between two words must not glue them together, so it becomes a blank, as do controls and the
    # white space that a tokenizer takes for an unknown letter: an article with CRLF line ends reads like one without.
    "format_marks": _table("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u061c\ufeff", " ")
    | _table("\u200c\u200d\u00ad", "")
    | {c: " " for c in (*range(0x20), *range(0x7F, 0xA1), 0x2028, 0x2029) if chr(c) != "\n"},
    "diacritics": _table(_expand(_DIACRITICS), ""),
    "tatweel": _table(_TATWEEL, ""),
    "digits": {base + d: str(d) for base in (0x0660, 0x06F0) for d in range(10)},
    "quotes": _table("“”„‟«»‹›″", '"') | _table("‘’‚‛′", "'"),
}
# AraBERT's: one token for addresses; blanks between digits and letters; no run of a character beyond two.
_OTHER_STEPS = ("placeholders", "digit_spacing", "repetition")
_PLACEHOLDERS = (
    ("[رابط]", re.compile(r"https?://\S+|www\.\S+")),
    ("[بريد]", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+")),
    ("[مستخدم]", re.compile(r"(?<!\w)@\w+")),
)
NORMALIZATION_STEPS = (*_CHARACTER_STEPS, *_OTHER_STEPS)


@dataclass(frozen=True)
class Normalized:
    """A text as a tokenizer should see it.

    Attributes:
        text: The normalised text, `n` code points.
        offsets: int64 [n + 1], non-decreasing; `offsets[i]` is the raw offset of normalised character `i`, and the last
            one is the raw length.
    """

    text: str
    offsets: Offsets

    def find(self, raw: Offsets) -> Offsets:
        """Normalised offset of the first character that stems from raw offset `raw` or a later one, of any shape."""
        return np.searchsorted(self.offsets[:-1], raw, side="left")


@lru_cache(maxsize=16)
def _compiled(steps: tuple[str, ...]) -> tuple[dict[int, str], re.Pattern[str] | None]:
    table: dict[int, str] = {}
    for step in steps:
        table |= _CHARACTER_STEPS.get(step, {})
    deleted = "".join(re.escape(chr(c)) for c, target in table.items() if not target)
    return table, re.compile(f"[{deleted}]") if deleted else None


def normalize(text: str, steps: tuple[str, ...]) -> Normalized:
    """Apply normalisation steps (of `NORMALIZATION_STEPS`), keeping track of where each character came from."""
    table, deleted = _compiled(steps)
    offsets = np.arange(len(text) + 1, dtype=np.int64)
    result = text
    if "placeholders" in steps:
        for placeholder, pattern in _PLACEHOLDERS:
            result, offsets = _replace(result, offsets, placeholder, pattern)
    if deleted is not None and (gone := [m.start() for m in deleted.finditer(result)]):
        offsets = np.delete(offsets, gone)
    result = result.translate(table)
    if "repetition" in steps:
        extra = [i for m in _LONG_RUN.finditer(result) for i in range(m.start() + 2, m.end())]
        if extra:
            keep = np.ones(len(result), dtype=bool)
            keep[extra] = False
            result = "".join(c for c, k in zip(result, keep, strict=True) if k)
            offsets = np.delete(offsets, extra)
    if "digit_spacing" in steps:
        at = [m.start() for m in _DIGIT_BEGINS.finditer(result)]
        result = _DIGIT_BEGINS.sub(" ", result)
        offsets = np.insert(offsets, at, offsets[at])
    return Normalized(result, offsets)


def _replace(text: str, offsets: Offsets, placeholder: str, pattern: re.Pattern[str]) -> tuple[str, Offsets]:
    """Put a placeholder for each match; its characters map to evenly spaced ones of the match, ends to ends."""
    parts: list[str] = []
    maps: list[Offsets] = []
    at = 0
    for m in pattern.finditer(text):
        spread = np.linspace(m.start(), m.end() - 1, len(placeholder)).astype(np.int64)
        parts += [text[at : m.start()], placeholder]
        maps += [offsets[at : m.start()], offsets[spread]]
        at = m.end()
    return "".join([*parts, text[at:]]), np.concatenate([*maps, offsets[at:]])


def split_words(text: str) -> list[tuple[int, int]]:
    """Words as `(start, end)`: a run of letters and digits with its marks, or one other visible character.

    A run of more than `MAX_WORD_LENGTH` code points comes out as several adjacent words. White space, direction marks
    and control characters belong to no word.
    """
    return [
        m.span()
        for m in _WORD.finditer(text)
        if m.end() - m.start() > 1 or unicodedata.category(text[m.start()]) not in _INVISIBLE
    ]


def is_letter(character: str) -> bool:
    """Whether the character counts as a letter of a proclitic: marks and tatweel do not."""
    return character.isalnum() and character != _TATWEEL


def proclitic_cuts(word: str, proclitics: str, longest: int) -> list[int]:
    """Where a word may be cut: offsets after 0, 1, … proclitic letters; the first is always 0.

    A cut falls behind the marks and the tatweel that follow the letter (`بـ|قسد`), and always leaves a letter.
    """
    cuts, at = [0], 0
    while len(cuts) <= longest and at < len(word) and word[at] in proclitics:
        at += 1
        while at < len(word) and not is_letter(word[at]):
            at += 1
        if at == len(word):
            break
        cuts.append(at)
    return cuts


_NAMES = 4096  # that are kept in mind: the same few are in most articles of a batch
_CANONICAL = ("format_marks", "diacritics", "tatweel", "digits", "quotes")
_EDGES = "'()[] "
# Words whose own first letter is a lam, most frequent in news: `للواء` is `ل` + `لواء` or `اللواء`, never `الواء`.
_OWN_LAM = {"لواء", "لوائي", "لجنة", "لجان", "ليلة", "لبنان", "ليبيا", "لحج", "لندن", "لفيف", "لوهانسك", "ليمان"}
_OWN_LAM_DEFINITE = {"لاذقية", "لد", "لجاة", "لطامنة"}  # names that are always definite: `للاذقية` → `اللاذقية`


@lru_cache(maxsize=_NAMES)
def canonical_name(text: str, *, before: str = "") -> str:
    """The name without orthographic variation: no marks, tatweel or quotes, ASCII digits, single blanks.

    Args:
        text: The span as it stands in the article.
        before: The proclitic letters cut off its first word. Behind `ل` the article's alef is unwritten
            (`للتحالف` → `التحالف`), and is restored.
    """
    name = text
    for _ in range(2):  # compatibility forms may hold marks and tatweel of their own
        name = unicodedata.normalize("NFKC", normalize(name, _CANONICAL).text)
    name = " ".join(name.replace('"', "").split()).strip(_EDGES)
    letters = "".join(filter(is_letter, before))
    if letters.endswith("ل") and name.startswith("ل"):
        first = name.split()[0]
        name = ("ال" if first in _OWN_LAM_DEFINITE else "" if first in _OWN_LAM else "ا") + name
    return name or text


_SPELLINGS = str.maketrans("أإآٱىةؤئ", "ااااي\u0647وي")
_ARTICLE = re.compile("^(?:ال|ل)")  # behind the proclitic ل the article's alef is unwritten


@lru_cache(maxsize=_NAMES)
def name_words(name: str) -> frozenset[str]:
    """The words of a name, without article and spelling variants, to tell whether two names are alike."""
    return frozenset(_ARTICLE.sub("", word) or word for word in canonical_name(name).translate(_SPELLINGS).split())


def paragraphs(text: str) -> list[tuple[int, int]]:
    """Offsets of the paragraphs of a text without the white space around them; those of white space alone left out."""
    spans, start = [], 0
    for line in text.split("\n"):
        if content := line.lstrip():
            end = start + len(line)
            spans.append((end - len(content), end - len(content) + len(content.rstrip())))
        start += len(line) + 1
    return spans
