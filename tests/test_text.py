"""Normalisation and its offset map, words, proclitics and canonical names."""

import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rasid.text import (
    MAX_WORD_LENGTH,
    NORMALIZATION_STEPS,
    canonical_name,
    normalize,
    paragraphs,
    proclitic_cuts,
    split_words,
)

PROCLITICS = "وفبكلس"
MARKED = "\u200f\u200e\u202b\u202c\u2067\u2069\u061c\ufeff\u200c\u200d\u00ad"
ALPHABET = (
    "وفبكلسقدحرأإآىةء"
    + "\u064b\u064e\u0651\u0652\u0653\u0654\u0670\u06d6\u0640"
    + MARKED
    + "aZé_@.:/-٣۴7 \t\r\n\xa0\u2028\x00\x1f\x85،؛؟«»“”‘’\"'()[]😀👍🏽\u0301\ufdfa\ufefb\ufe71"
)
TEXTS = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=20))


def norm(text: str, *steps: str) -> str:
    return normalize(text, steps or NORMALIZATION_STEPS).text


def surfaces(text: str) -> list[str]:
    return [text[a:b] for a, b in split_words(text)]


@given(TEXTS, st.sets(st.sampled_from(NORMALIZATION_STEPS)))
def test_the_offset_map_of_any_text_and_steps(text, steps):
    result = normalize(text, tuple(sorted(steps)))
    assert result.offsets.dtype == np.int64
    assert len(result.offsets) == len(result.text) + 1
    assert result.offsets[0] >= 0 and result.offsets[-1] == len(text)
    assert (np.diff(result.offsets) >= 0).all()
    if result.text:
        assert result.offsets[-2] < len(text)
    for raw in range(len(text) + 1):
        behind = [i for i, at in enumerate(result.offsets[:-1]) if at >= raw]
        assert int(result.find(np.array(raw))) == (behind[0] if behind else len(result.text))


@given(TEXTS, st.sets(st.sampled_from(["format_marks", "diacritics", "tatweel", "digits", "quotes"])))
def test_steps_on_characters_keep_or_replace_or_drop_each(text, steps):
    result = normalize(text, tuple(steps))
    assert len(set(result.offsets.tolist())) == len(result.offsets)  # no character comes out twice
    for character, at in zip(result.text, result.offsets[:-1], strict=True):
        if character != text[at]:
            assert character in " \"'" or (character.isdecimal() and unicodedata.digit(text[at]) == int(character))
    kept = set(result.offsets.tolist())
    assert all(not c.isspace() for at, c in enumerate(text) if at not in kept)


@given(TEXTS)
def test_no_steps_change_nothing(text):
    result = normalize(text, ())
    assert result.text == text
    assert result.offsets.tolist() == list(range(len(text) + 1))


@pytest.mark.parametrize(
    ("steps", "raw", "expected"),
    [
        (["diacritics"], "اللِّواءُ", "اللواء"),
        (["diacritics"], "آ\u0653أ", "آ\u0653أ"),  # combining madda and hamza are parts of letters
        (["tatweel"], "قـــسد", "قسد"),
        (["digits"], "٤٧ ۴۷ 47", "47 47 47"),
        (["quotes"], "“قسد” «قسد» ‘قسد’", '"قسد" "قسد" \'قسد\''),
        (["format_marks"], "قسد\u200fحلب", "قسد حلب"),
        (["format_marks"], "می\u200cروند", "میروند"),
        (["format_marks"], "قسد\tحلب\xa0دير\u2028الزور\r", "قسد حلب دير الزور "),
        (["format_marks"], "قسد\x00حلب\x85\n", "قسد حلب \n"),
        (["repetition"], "مـــهم!!!! 1111", "مــهم!! 1111"),
        (["digit_spacing"], "الفوج46مشاة M4", "الفوج 46 مشاة M 4"),
        (["placeholders"], "انظر https://a.example/b?c=1 الآن", "انظر [رابط] الآن"),
        (["placeholders"], "www.example.org", "[رابط]"),
        (["placeholders"], "إلى a.b+c@example.org و@user_1", "إلى [بريد] و@user_1"),
        (["placeholders"], "من @user_1", "من [مستخدم]"),
    ],
)
def test_each_step(steps, raw, expected):
    assert norm(raw, *steps) == expected


def test_find_skips_what_was_dropped():
    raw = "بـَقسد"
    found = normalize(raw, ("diacritics", "tatweel")).find(np.array([[0, 1], [2, 3]]))
    assert found.tolist() == [[0, 1], [1, 1]]


def test_a_placeholder_spans_the_match():
    raw = "في https://example.org/long/path ثم"
    result = normalize(raw, ("placeholders",))
    assert result.text == "في [رابط] ثم"
    at = result.text.index("[")
    assert result.offsets[at] == raw.index("h")
    assert result.offsets[at + len("[رابط]") - 1] == raw.index("path") + 3
    assert result.offsets[at + len("[رابط]")] == raw.index(" ثم")


def test_a_placeholder_may_be_longer_than_its_match():
    result = normalize("x @a y", ("placeholders",))
    assert result.text == "x [مستخدم] y"
    assert result.offsets.tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5, 6]


def test_an_inserted_blank_maps_to_the_character_behind_it():
    result = normalize("M4", ("digit_spacing",))
    assert (result.text, result.offsets.tolist()) == ("M 4", [0, 1, 1, 2])


@given(TEXTS)
def test_words_are_sorted_visible_and_complete(text):
    words = split_words(text)
    assert all(0 <= a < b <= len(text) and b - a <= MAX_WORD_LENGTH for a, b in words)
    assert all(before[1] <= after[0] for before, after in pairwise(words))
    covered = {i for a, b in words for i in range(a, b)}
    assert all(i in covered for i, c in enumerate(text) if c.isalnum())
    assert not any(text[i].isspace() for i in covered)
    assert all(unicodedata.category(text[a]) not in ("Cf", "Cc", "Mn", "Me") for a, _ in words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("وصلت قسد، إلى M4.", ["وصلت", "قسد", "،", "إلى", "M4", "."]),
        ("اللِّواءُ قـــسد", ["اللِّواءُ", "قـــسد"]),
        ("قسد\u200fحلب\u200e", ["قسد", "حلب"]),
        ("می\u200cروند", ["می\u200cروند"]),
        ("شاهد-136", ["شاهد", "-", "136"]),
        ("a_b", ["a", "_", "b"]),
        ("\u064e\u0651قسد", ["قسد"]),
        ("👍🏽", ["👍", "🏽"]),
        ("\ufdfa \ufefb", ["\ufdfa", "\ufefb"]),
        ("قسد\r\nحلب\x00دير", ["قسد", "حلب", "دير"]),
        (" \t\r\n\u200f\ufeff\x00\u2028", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert surfaces(text) == expected


def test_a_run_of_letters_becomes_several_words():
    words = split_words("ق" * 150)
    assert words == [(0, 64), (64, 128), (128, 150)]


@pytest.mark.parametrize(
    ("word", "longest", "cuts"),
    [
        ("لقسد", 2, [0, 1]),
        ("وبقسد", 2, [0, 1, 2]),
        ("وبكلقسد", 2, [0, 1, 2]),
        ("وبكلقسد", 0, [0]),
        ("بـقسد", 2, [0, 2]),
        ("بـــَقسد", 2, [0, 5]),
        ("وَلِقسد", 2, [0, 2, 4]),
        ("قسد", 2, [0]),
        ("ول", 2, [0, 1]),
        ("و", 2, [0]),
        ("وَ", 2, [0]),
        ("لـ", 2, [0]),
        ("ل47", 2, [0, 1]),
        ("،", 2, [0]),
        ("M4", 2, [0]),
    ],
)
def test_proclitic_cuts(word, longest, cuts):
    assert proclitic_cuts(word, PROCLITICS, longest) == cuts


def test_no_proclitics_no_cuts():
    assert proclitic_cuts("لقسد", "", 2) == [0]


@given(st.text(PROCLITICS + "قسد\u064e\u0640", min_size=1, max_size=12), st.integers(0, 4))
def test_a_cut_leaves_a_letter_and_begins_with_one(word, longest):
    cuts = proclitic_cuts(word, PROCLITICS, longest)
    assert cuts[0] == 0 and len(cuts) <= longest + 1
    assert cuts == sorted(set(cuts)) and cuts[-1] < len(word)
    assert all(word[c] not in "\u064e\u0640" for c in cuts[1:])


@pytest.mark.parametrize(
    ("text", "before", "expected"),
    [
        ("قسد", "", "قسد"),
        ("لتحالف", "ل", "التحالف"),
        ("لتحالف الدولي", "وَلِ", "التحالف الدولي"),
        ("تحالف", "ل", "تحالف"),
        ("لتحالف", "ب", "لتحالف"),
        ("لبنان", "ل", "لبنان"),
        ("لواء أبو الفضل", "ل", "لواء أبو الفضل"),
        ("لاذقية", "ل", "اللاذقية"),
        ("اللِّواء ٤٧", "", "اللواء 47"),
        ("قـــسد", "", "قسد"),
        ("ميليشيا “قسد”", "", "ميليشيا قسد"),
        ("«قسد»", "", "قسد"),
        ("جبل\u200f  عبد\xa0العزيز\t", "", "جبل عبد العزيز"),
        ("\ufdfa", "", "صلى الله عليه وسلم"),
        ("\ufee3\ufe71\ufedb", "", "مك"),  # presentation forms, one of them a tatweel with its mark
        ("ـــ", "", "ـــ"),  # nothing would be left
        ("“”", "", "“”"),
    ],
)
def test_canonical_name(text, before, expected):
    assert canonical_name(text, before=before) == expected


@given(TEXTS.filter(bool))
def test_a_canonical_name_is_never_empty(text):
    assert canonical_name(text)


@given(st.text("وقسدأ \u064e\u0651\u0640\u200f\u200c٤۴4«»“”'()\ufee3\ufedb", min_size=1, max_size=20))
def test_a_canonical_name_is_its_own(text):
    name = canonical_name(text)
    assert canonical_name(name) == name


@given(TEXTS)
def test_paragraphs_hold_all_that_is_visible(text):
    spans = paragraphs(text)
    assert all("\n" not in text[a:b] and text[a:b] == text[a:b].strip() != "" for a, b in spans)
    covered = {i for a, b in spans for i in range(a, b)}
    assert all(i in covered for i, c in enumerate(text) if not c.isspace())


def test_paragraphs_without_the_white_space_around_them():
    assert paragraphs("قسد\r\n\r\n  حلب \n\nدير") == [(0, 3), (9, 12), (15, 18)]
