"""Changed copies: spans stay right whatever is replaced, and only what may change does."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rasid.config import AugmentationConfig
from rasid.records import Article, Entity, Relation, check_article
from rasid.schema import Ontology
from rasid.training.augmentation import NOISE, Bank, add_noise, augment, rewrite

ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT", "PLACE"], "tail": ["UNIT", "PLACE"]},
            "SAME": {
                "head": ["UNIT", "PLACE"],
                "tail": ["UNIT", "PLACE"],
                "symmetric": True,
                "transitive": True,
                "same_type": True,
            },
        },
    }
)
NAMES = ("حلب", "إدلب", "الرقة", "الحسكة", "دير الزور", "لواء", "لتحالف", "اللواء 7", "٢٠ مقاتلًا", "قوّات ال«حشد»")
ALPHABET = "لاأإىيةهبسود٠3«»”\u064e\u0651ـ \u200f"
Parts = list[tuple[str, str]]  # text and entity type; no entity where the type is empty


def build(parts: Parts, *relations: tuple[int, str, int], name: str = "a") -> Article:
    """An article out of its parts; entities are numbered from 0."""
    text, entities = "", []
    for part, kind in parts:
        if kind:
            end = len(text) + len(part)
            entities.append(Entity(id=str(len(entities)), type=kind, start=len(text), end=end, text=part))
        text += part
    found = tuple(Relation(head=str(head), type=kind, tail=str(tail)) for head, kind, tail in relations)
    return Article(id=name, text=text, entities=tuple(entities), relations=found)


def texts(article: Article) -> list[str]:
    return [e.text for e in article.entities]


@st.composite
def articles(draw: st.DrawFn) -> Article:
    """Flat, entities side by side or apart, in any order of the record, joined by any sound relations."""
    words = st.one_of(st.sampled_from(NAMES), st.text(ALPHABET, min_size=1, max_size=6))
    kinds = st.sampled_from(["", "UNIT", "PLACE"])
    plain = build(draw(st.lists(st.tuples(words, kinds), max_size=8)), name=draw(st.sampled_from("abc")))
    ends = [(h, t) for h in plain.entities for t in plain.entities if int(h.id) < int(t.id)]
    relations = [
        Relation(head=h.id, type=kind, tail=t.id)
        for h, t in (draw(st.lists(st.sampled_from(ends), max_size=3, unique=True)) if ends else ())
        for kind in [draw(st.sampled_from(["AT", "SAME"] if h.type == t.type else ["AT"]))]
    ]
    entities = draw(st.permutations(plain.entities))
    return plain.model_copy(update={"entities": tuple(entities), "relations": tuple(relations)})


def check_copy(copy: Article, article: Article) -> None:
    assert check_article(copy, ONTOLOGY) == []
    assert copy.relations == article.relations
    assert copy.meta == article.meta
    assert [(e.id, e.type) for e in copy.entities] == [(e.id, e.type) for e in article.entities]


ANY = settings(deadline=None, max_examples=60)
RATES = st.sampled_from([0.0, 0.5, 1.0])
SEEDS = st.integers(0, 3)


# Any article


@ANY
@given(articles(), st.data())
def test_rewrite_keeps_what_spans_cover(article: Article, data: st.DataObject) -> None:
    edits = [(e.start, e.end, data.draw(st.sampled_from(["س", "ثلاث كلمات هنا", e.text]))) for e in article.entities]
    expected = {e.id: new for e, (_, _, new) in zip(article.entities, edits, strict=True)}
    ends = sorted({0, len(article.text), *(at for e in article.entities for at in (e.start, e.end))})
    covered = {e.start for e in article.entities}
    gaps = [(start, end) for start, end in pairwise(ends) if start not in covered]
    edits += [
        (start, end, data.draw(st.sampled_from(["", "«طويل»"]))) for start, end in gaps if data.draw(st.booleans())
    ]
    copy = rewrite(article, sorted(edits))
    check_copy(copy, article)
    assert {e.id: e.text for e in copy.entities} == expected


@ANY
@given(st.lists(articles(), min_size=1, max_size=4), RATES, SEEDS)
def test_swap_of_any_articles(corpus: list[Article], rate: float, seed: int) -> None:
    bank = Bank(corpus)
    for article in corpus:
        copy = bank.swap(article, ONTOLOGY, rate, random.Random(seed))
        check_copy(copy, article)
        new: dict[tuple[str, str], str] = {}
        for old, entity in zip(article.entities, copy.entities, strict=True):
            assert new.setdefault((old.type, old.text), entity.text) == entity.text  # alike everywhere
        if rate == 0:
            assert copy == article


@ANY
@given(articles(), RATES, SEEDS, st.sets(st.sampled_from(sorted(NOISE))))
def test_noise_of_any_article(article: Article, rate: float, seed: int, kinds: set[str]) -> None:
    copy = add_noise(article, rate, random.Random(seed), sorted(kinds))
    check_copy(copy, article)
    if rate == 0 or not kinds:
        assert copy == article


@ANY
@given(st.lists(articles(), max_size=3, unique_by=lambda a: a.id), RATES, RATES, SEEDS)
def test_copies_of_any_articles(corpus: list[Article], swap: float, noise: float, seed: int) -> None:
    config = AugmentationConfig(copies=2, swap=swap, noise=noise)
    copies = list(augment(corpus, ONTOLOGY, config, seed))
    assert copies == list(augment(corpus, ONTOLOGY, config, seed))
    assert len({a.id for a in [*corpus, *copies]}) == 3 * len(corpus)
    for copy, article in zip(copies, 2 * corpus, strict=True):
        check_copy(copy, article)
        if swap == noise == 0:
            assert copy == article.model_copy(update={"id": copy.id})


def test_ids_and_number_of_copies() -> None:
    corpus = [build([("حلب", "PLACE")], name=name) for name in "ab"]
    config = AugmentationConfig(copies=2)
    assert [a.id for a in augment(corpus, ONTOLOGY, config, 0)] == ["a+1", "b+1", "a+2", "b+2"]
    assert list(augment(corpus, ONTOLOGY, AugmentationConfig(), 0)) == []


def test_another_seed_makes_another_copy() -> None:
    corpus = [build([("دخل ", ""), (name, "PLACE")], name=name) for name in ("حلب", "إدلب", "حمص", "درعا")]
    config = AugmentationConfig(copies=1, swap=1, noise=0)
    made = {tuple(texts(a)[0] for a in augment(corpus, ONTOLOGY, config, seed)) for seed in range(4)}
    assert len(made) > 1


# Noise


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("hamza", "أحمد إلى آخر سؤال شيء", {"احمد الى اخر سؤال شيء"}),
        ("ya", "في حلبى سوريا سوريّة يي.", {"فى حلبي سوريا سوريّة يى."}),
        ("ta_marbuta", "قوةٌ مدرعة، ةة", {"قوهٌ مدرعه، ةه"}),
        ("quotes", "«حشد» “شعبي” 'لا'", {'"حشد" "شعبي" \'لا\''}),
        ("digits", "3 و٤ ٢٠١٢ no2", {"٣ و4 2012 no٢"}),
        ("tatweel", "دب رأس بيت.", {"دب رأس بـيـت."}),
        ("diacritics", "دب. ا", {f"د{mark}ب. ا" for mark in "\u064e\u064f\u0650\u0652"}),
    ],
)
def test_what_each_kind_changes(kind: str, text: str, expected: set[str]) -> None:
    found = {add_noise(Article(id="x", text=text), 1, random.Random(seed), [kind]).text for seed in range(30)}
    assert found == expected


def test_kinds_that_meet_in_a_letter_both_change_it() -> None:
    copy = add_noise(Article(id="x", text="أب"), 1, random.Random(0), ["diacritics", "hamza"])
    assert (copy.text[0], len(copy.text)) == ("ا", 3)
    copy = add_noise(Article(id="x", text="بت"), 1, random.Random(0), ["diacritics", "tatweel"])
    assert copy.text[2] == "ـ"


def test_the_rate_is_a_share_of_the_letters() -> None:
    copy = add_noise(Article(id="x", text="أ " * 2000), 0.3, random.Random(0), ["hamza"])
    assert copy.text.count("ا") / 2000 == pytest.approx(0.3, abs=0.04)


# Names


def swaps(article: Article, *others: str, seeds: int = 30, kind: str = "PLACE") -> list[Article]:
    """The article with all names swapped that can be, by a corpus with other names too."""
    bank = Bank([article, build([(part, k) for name in others for part, k in ((name, kind), (" ", ""))])])
    return [bank.swap(article, ONTOLOGY, 1, random.Random(seed)) for seed in range(seeds)]


def test_digits_change_but_not_their_number_nor_their_script() -> None:
    article = build([("الفرقة 17", "UNIT"), (" في ", ""), ("٢٠٠٥", "PLACE")])
    found = swaps(article, "الفرقة 9", kind="UNIT")
    for copy in found:
        unit, year = texts(copy)
        assert unit.startswith("الفرقة ") and len(unit) == len("الفرقة 17")
        assert set(unit[-2:]) <= set("123456789")  # a number does not begin with zero
        assert len(year) == 4 and set(year) <= set("١٢٣٤٥٦٧٨٩")
    assert len({texts(copy)[0] for copy in found}) > 5


def test_names_linked_under_different_words_stay() -> None:
    parts = [
        ("حلب", "PLACE"),
        (" ثم ", ""),
        ("الشهباء", "PLACE"),
        (" ثم ", ""),
        ("حلب", "PLACE"),
        (" ", ""),
        ("حمص", "PLACE"),
    ]
    found = swaps(build(parts, (0, "SAME", 1)), "درعا", "إدلب")
    assert {tuple(texts(copy)[:3]) for copy in found} == {("حلب", "الشهباء", "حلب")}
    assert {"درعا", "إدلب"} <= {texts(copy)[3] for copy in found}
    # Any other relation lets them change.
    found = swaps(build(parts, (0, "AT", 1)), "درعا", "إدلب")
    assert "درعا" in {texts(copy)[0] for copy in found}


def test_identical_names_are_replaced_alike_everywhere() -> None:
    article = build([("حلب", "PLACE"), (" و", ""), ("حلب", "PLACE"), (" و", ""), ("حلب", "UNIT")], (0, "SAME", 1))
    found = [texts(copy) for copy in swaps(article, "درعا", "إدلب")]
    assert all(first == second for first, second, _ in found)
    assert {first for first, *_ in found} == {"حلب", "درعا", "إدلب"}
    assert {unit for *_, unit in found} == {"حلب"}  # no other unit is known


def test_two_names_never_become_one() -> None:
    article = build([("حلب", "PLACE"), (" و", ""), ("حمص", "PLACE")])
    found = [texts(copy) for copy in swaps(article, "درعا")]
    assert all(first != second for first, second in found)
    assert any(names != ["حلب", "حمص"] for names in found)


@pytest.mark.parametrize("fused_first", [True, False])
def test_a_name_behind_a_fused_lam_stays_and_stands_nowhere_else(fused_first: bool) -> None:
    fused, bare = [("ل", ""), ("لواء", "PLACE")], [("لواء", "PLACE")]
    parts = [*fused, (" ", ""), *bare] if fused_first else [*bare, (" ", ""), *fused]
    assert {copy.text for copy in swaps(build(parts), "فوج", "حلب")} == {build(parts).text}

    article = build([("حلب", "PLACE"), (" ل", ""), ("لتحالف", "PLACE")])
    found = [texts(copy) for copy in swaps(article, "فوج")]
    assert {name for name, _ in found} == {"حلب", "فوج"}  # never لتحالف
    assert {name for _, name in found} == {"لتحالف"}


def test_definite_stays_definite_and_gender_and_length_stay() -> None:
    others = ("الرقة", "الحسكة", "تدمر", "سلمية", "الباب", "دير الزور", "عين العرب")
    for name, alike in {
        "القامشلي": {"القامشلي", "الباب"},
        "المدينة": {"المدينة", "الرقة", "الحسكة"},
        "حلب": {"حلب", "تدمر"},
        "حماة": {"حماة", "سلمية"},
        "أم قصر": {"أم قصر", "دير الزور", "عين العرب"},
    }.items():
        assert {texts(copy)[0] for copy in swaps(build([(name, "PLACE")]), *others)} == alike


def test_a_common_noun_stays_before_the_name() -> None:
    article = build([("مطار دمشق", "PLACE")])
    found = {texts(copy)[0] for copy in swaps(article, "مطار حلب", "مطار حماة", "دير الزور")}
    assert found == {"مطار دمشق", "مطار حلب", "مطار حماة"}


def test_a_name_without_a_word_stops_nothing() -> None:
    article = build([("\u200f", "PLACE"), ("دخل", ""), ("\xa0", "PLACE"), ("حلب", "PLACE")])
    assert {texts(copy)[1] for copy in swaps(article, "درعا")} == {"\xa0"}
