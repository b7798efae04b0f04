"""More training articles out of the same ones: entities replaced by others of their kind, and spelling as it varies.

Pure functions on articles; what they return depends on the articles, the settings and the seed alone.
"""

import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rasid.config import AugmentationConfig
from rasid.records import Article, Entity
from rasid.schema import Ontology

Edit = tuple[int, int, str]  # start and end of what is replaced, by what
Kind = tuple[str, ...]

_LETTERS = r"\u0621-\u063a\u0641-\u064a"
_LAST = rf"(?![\u064b-\u065f\u0670ـ]*[{_LETTERS}])"  # of its word, marks aside
_DIGIT = re.compile("[0-9٠-٩]")
_FAMILY = {digit: digits[1:] for digits in ("0123456789", "٠١٢٣٤٥٦٧٨٩") for digit in digits}  # never a new zero
_DIGITS = dict(zip("0123456789", "٠١٢٣٤٥٦٧٨٩", strict=True)) | dict(zip("٠١٢٣٤٥٦٧٨٩", "0123456789", strict=True))
# Kind of noise -> the letters that it can change, and into what; under the empty key, what may come after them.
NOISE: dict[str, tuple[re.Pattern[str], Mapping[str, str]]] = {
    "hamza": (re.compile("[أإآ]"), dict.fromkeys("أإآ", "ا")),
    "ya": (re.compile(rf"[يى]{_LAST}"), {"ي": "ى", "ى": "ي"}),
    "ta_marbuta": (re.compile(rf"ة{_LAST}"), {"ة": "ه"}),
    "diacritics": (re.compile(rf"[{_LETTERS}](?=[{_LETTERS}])"), {"": "\u064e\u064f\u0650\u0652"}),
    "tatweel": (re.compile(rf"[بتثجحخسشصضطظعغفقكلمنهي](?=[{_LETTERS}])"), {"": "ـ"}),
    "quotes": (re.compile("[«»“”]"), dict.fromkeys("«»“”", '"')),
    "digits": (_DIGIT, _DIGITS),
}
_HEAD_SHARED = 3  # names that a first word begins, at least, to be their common noun: ريف, مطار, قوات


def augment(
    articles: Sequence[Article], ontology: Ontology, config: AugmentationConfig, seed: int
) -> Iterator[Article]:
    """`config.copies` changed copies of each article; their ids end in `+1`, `+2` and so on."""
    rng = random.Random(seed)
    bank = Bank(articles)
    for copy in range(1, config.copies + 1):
        for article in articles:
            changed = bank.swap(article, ontology, config.swap, rng)
            changed = add_noise(changed, config.noise, rng, ("hamza", "ya", "ta_marbuta"))
            yield changed.model_copy(update={"id": f"{article.id}+{copy}"})


class Bank:
    """Names of a corpus by what they could stand in for."""

    def __init__(self, articles: Iterable[Article]):
        names: dict[tuple[str, str], set[str]] = defaultdict(set)  # type, first word -> what it begins
        entities = {(e.type, e.text) for a in articles for e in a.entities if e.text.split() and not _fused(e, a.text)}
        for kind, text in entities:
            names[kind, text.split()[0]].add(text)
        self._heads = {key for key, found in names.items() if len(found) >= _HEAD_SHARED}
        self._names: dict[Kind, list[str]] = defaultdict(list)
        for kind, text in sorted(entities):
            if not _DIGIT.search(text):
                self._names[self._kind(kind, text)].append(text)

    def _kind(self, type_: str, text: str) -> Kind:
        """What names share that can stand in for one another: common noun, definiteness, gender, length."""
        words = text.split()
        first = words[0] if words else ""
        head = first if len(words) > 1 and (type_, first) in self._heads else ""
        return type_, head, str(first.startswith("ال")), str(first.endswith(("ة", "ات"))), str(min(len(words), 3))

    def replacement(self, entity: Entity, rng: random.Random) -> str:
        """Another name, or other digits in the same one; the same name where there is none."""
        if _DIGIT.search(entity.text):
            return _DIGIT.sub(lambda m: rng.choice(_FAMILY[m[0]]), entity.text)
        return rng.choice(self._names.get(self._kind(entity.type, entity.text), [entity.text]))

    def swap(self, article: Article, ontology: Ontology, rate: float, rng: random.Random) -> Article:
        """The article with a share of its names replaced, each everywhere.

        Names that are linked as one thing under different words stay, since what links them is in the words. So do
        names whose replacement the article has already: they would look linked.
        """
        entities = {e.id: e for e in article.entities}
        stay = {e.text for e in article.entities if _fused(e, article.text)}
        for r in article.relations:
            names = {entities[r.head].text, entities[r.tail].text}
            if ontology.relation_types[r.type].transitive and len(names) > 1:
                stay |= names
        taken = {e.text for e in article.entities}
        new: dict[tuple[str, str], str] = {}
        edits: list[Edit] = []
        for e in sorted(article.entities, key=lambda e: e.start):
            key = e.type, e.text
            if key not in new:
                keep = e.text in stay or rng.random() >= rate
                name = e.text if keep else self.replacement(e, rng)
                new[key] = e.text if name in taken else name
                taken.add(name)
            edits.append((e.start, e.end, new[key]))
        return rewrite(article, edits)


def _fused(e: Entity, text: str) -> bool:
    """Whether a name may lack its article's alef, which is not written after ل (ل + التحالف = للتحالف).

    Such a spelling stands nowhere else, so that it neither replaces a name nor is replaced.
    """
    return e.text.startswith("ل") and text[: e.start].endswith("ل")


def add_noise(article: Article, rate: float, rng: random.Random, kinds: Iterable[str] = tuple(NOISE)) -> Article:
    """The article with a share of the letters misspelt that each kind of `NOISE` could change; spans stay right."""
    letters: dict[int, str] = {}  # what replaces a character
    marks: dict[int, str] = defaultdict(str)  # what follows it then
    for kind in kinds:
        pattern, table = NOISE[kind]
        for match in pattern.finditer(article.text):
            if rng.random() < rate:
                at, letter = match.start(), match[0]
                if letter in table:
                    letters[at] = table[letter]
                else:
                    marks[at] += rng.choice(table[""])
    changed = sorted(letters.keys() | marks.keys())
    return rewrite(article, ((at, at + 1, letters.get(at, article.text[at]) + marks.get(at, "")) for at in changed))


def rewrite(article: Article, edits: Iterable[Edit]) -> Article:
    """The article with parts of its text replaced; spans keep what they cover.

    Args:
        article: Any.
        edits: In text order, none overlapping another, each inside an entity or outside of all.
    """
    parts: list[str] = []
    ends, growth = [0], [0]  # where edits end, and by how much the text has grown by then
    done = 0
    for start, end, new in edits:
        parts += [article.text[done:start], new]
        ends.append(end)
        growth.append(growth[-1] + len(new) - (end - start))
        done = end
    text = "".join([*parts, article.text[done:]])
    entities: list[Entity] = []
    for e in article.entities:
        start, end = (offset + growth[bisect_right(ends, offset) - 1] for offset in (e.start, e.end))
        entities.append(e.model_copy(update={"start": start, "end": end, "text": text[start:end]}))
    return article.model_copy(update={"text": text, "entities": tuple(entities)})
