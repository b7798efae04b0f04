"""Windows: every word in one core, none too long, paragraphs whole where they fit."""

import random
import shutil
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from rasid.encoding import Encoding, TextEncoder
from rasid.errors import ModelError
from rasid.settings import TOKENIZER_FILE, TextSettings, load_settings, shipped_model
from rasid.text import paragraphs, split_words

FIRST, LAST = 1, 2  # ids of the special tokens of the toy tokenizers
PIECES = {
    "characters": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    ),  # a word has as many pieces as letters
    "chunks": pre_tokenizers.WhitespaceSplit(),  # words that no blank parts share a piece
}
SENTENCE = "وصل رتل لقسد إلى دير الزور يوم 12 مارس 2024، وقال «المصدر» إن 30 آلية. "


def toy(pieces: str, frame: str = "[CLS] $A [SEP]") -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": FIRST, "[SEP]": LAST}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = PIECES[pieces]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("[CLS]", FIRST), ("[SEP]", LAST)]
    )
    return tokenizer


@cache
def encoder(name: str, max_pieces: int = 16, overlap: int = 4) -> TextEncoder:
    limits = TextSettings(max_pieces=max_pieces, overlap=overlap)
    return TextEncoder.load(shipped_model(), limits) if name == "shipped" else TextEncoder(toy(name), limits)


def check(encoding: Encoding, text: str, of: TextEncoder) -> None:
    """Everything that holds for any text."""
    expected = [(a + s, a + e) for a, b in paragraphs(text) for s, e in split_words(text[a:b])]
    assert [tuple(w) for w in encoding.words.tolist()] == expected
    assert [i for a, b in encoding.paragraphs for i in range(a, b)] == list(range(len(expected)))
    assert all(a < b for a, b in encoding.paragraphs)
    assert all("\n" not in text[encoding.words[a, 0] : encoding.words[b - 1, 1]] for a, b in encoding.paragraphs)
    assert [i for w in encoding.windows for i in range(*w.core)] == list(range(len(expected)))
    capacity = of.settings.max_pieces - 2
    frame = of.tokenizer.encode("").ids
    for window in encoding.windows:
        (first, after), (core_first, core_after) = window.words, window.core
        assert first <= core_first <= core_after <= after
        assert 0 < after - first <= capacity
        assert 3 <= len(window.input_ids) <= of.settings.max_pieces
        assert [window.input_ids[0], window.input_ids[-1]] == frame
        assert len(window.word_pieces) == after - first
        assert window.word_pieces.min() >= 1 and window.word_pieces.max() <= len(window.input_ids) - 2
        assert (np.diff(window.word_pieces) >= 0).all()
        assert window.input_ids.dtype == window.word_pieces.dtype == np.int64
    parts = [text[a:b] for a, b in paragraphs(text) if split_words(text[a:b])]
    for (start, stop), part in zip(encoding.paragraphs, parts, strict=True):
        inside = [w for w in encoding.windows if w.words[0] < stop and w.words[1] > start]
        if len(inside) > 1:  # cut, so it alone has no room in a window
            assert len(of.encode(part).windows) > 1
            assert all(start <= w.words[0] and w.words[1] <= stop for w in inside)
            assert all(b.words[0] - a.words[0] > 0 and b.words[0] <= a.words[1] for a, b in pairwise(inside))
        else:
            assert inside[0].words[0] <= start and stop <= inside[0].words[1]


@pytest.mark.parametrize("name", ["characters", "chunks", "shipped"])
@given(
    st.text("وبقسدحر\u064e\u0640\u200f\u200d\ufeff\u0301aM4٣ \t\r\n\n\xa0\x00،.»=😀🏽\ufdfa\ufefb中", max_size=120),
    st.integers(0, 8),
)
@settings(max_examples=150, deadline=None)
def test_windows_of_any_text(name, text, overlap):
    of = encoder(name, 16, overlap)
    check(of.encode(text), text, of)


@pytest.mark.parametrize("name", ["characters", "chunks", "shipped"])
@pytest.mark.parametrize(
    "text",
    [
        "ق" * 20_000,
        "\ufdfa" * 2_000,
        "😀" * 5_000,
        "=" * 5_000,
        "中" * 5_000,
        "😀 =\u064e" * 2_000,
        (SENTENCE * 5 + "\r\n") * 20,
        SENTENCE * 100,
    ],
    ids=["one word", "ligatures", "emoji", "rule", "unknown letters", "mixed", "paragraphs", "one paragraph"],
)
def test_windows_of_long_texts(name, text):
    of = encoder(name, 256, 64)
    check(of.encode(text), text, of)


@pytest.mark.parametrize("text", ["", " ", "\n\n", " \t\r\n\xa0\u2028", "\u200f\ufeff\x00", "\u064e"])
def test_texts_without_a_word(text):
    encoding = encoder("shipped").encode(text)
    assert encoding.words.shape == (0, 2)
    assert encoding.paragraphs == encoding.windows == ()


def test_short_paragraphs_share_a_window():
    encoding = encoder("characters").encode("قسد حلب\nدير\n\nزور\nتدمر")
    assert [w.words for w in encoding.windows] == [(0, 4), (4, 5)]
    assert encoding.paragraphs == ((0, 2), (2, 3), (3, 4), (4, 5))
    assert encoding.windows[0].word_pieces.tolist() == [1, 4, 7, 10]


def test_a_paragraph_that_fits_is_not_cut():
    lines = ["ا" * 14, "ا" * 13, "ا", "ا ا", "ا" * 14]
    windows = encoder("characters").encode("\n".join(lines)).windows
    assert [w.words for w in windows] == [(0, 1), (1, 3), (3, 5), (5, 6)]
    assert all(w.words == w.core for w in windows)


def test_a_long_paragraph_is_cut_with_an_overlap():
    of = encoder("characters", 16, 4)
    windows = of.encode("ا ا " * 20).windows  # 40 words of one piece
    assert [w.words for w in windows] == [(0, 14), (10, 24), (20, 34), (30, 40)]
    assert [w.core for w in windows] == [(0, 12), (12, 22), (22, 32), (32, 40)]


def test_a_word_with_more_pieces_than_a_window_stays():
    of = encoder("characters", 16, 4)
    encoding = of.encode("قسد " + "ا" * 30 + " حلب")
    long = next(w for w in encoding.windows if w.core[0] <= 1 < w.core[1])
    assert len(long.input_ids) <= 16
    check(encoding, "قسد " + "ا" * 30 + " حلب", of)


def test_words_that_share_a_piece_may_be_cut_apart():
    windows = encoder("chunks", 16, 4).encode("=" * 30).windows
    assert [w.words for w in windows] == [(0, 14), (10, 24), (20, 30)]
    assert all(len(w.input_ids) == 3 and set(w.word_pieces.tolist()) == {1} for w in windows)


def test_visible_characters_that_the_tokenizer_swallows():
    tokenizer = toy("characters")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "removed")
    encoding = TextEncoder(tokenizer, TextSettings(max_pieces=16, overlap=4)).encode("قسد حلب")
    assert len(encoding.windows) == 1
    assert encoding.windows[0].word_pieces.tolist() == [1, 1]


@pytest.mark.parametrize("mark", ["\u200f", "\u200e", "\u202b", "\t", "\xa0", "\u2028", "\x00"])
def test_a_mark_between_two_words_parts_them_like_a_blank(mark):
    of = encoder("shipped")
    marked, plain = of.encode(f"قسد{mark}حلب"), of.encode("قسد حلب")
    assert marked.words.tolist() == plain.words.tolist()
    assert marked.windows[0].input_ids.tolist() == plain.windows[0].input_ids.tolist()
    assert marked.windows[0].word_pieces.tolist() == plain.windows[0].word_pieces.tolist()


def test_line_ends_do_not_change_what_the_model_reads():
    of = encoder("shipped")
    unix, dos = (of.encode(end.join([SENTENCE, SENTENCE, "قسد"])) for end in ("\n", "\r\n"))
    assert len(unix.windows) == len(dos.windows)
    for a, b in zip(unix.windows, dos.windows, strict=True):
        assert a.words == b.words
        assert a.input_ids.tolist() == b.input_ids.tolist()


def test_paragraphs_do_not_depend_on_their_neighbours():
    of = encoder("shipped", 256, 64)
    alone = of.encode(SENTENCE * 10).windows
    among = of.encode("\n".join([SENTENCE * 10, "قسد " * 300, SENTENCE])).windows
    assert alone[0].input_ids.tolist() == among[0].input_ids.tolist()


def test_five_megabytes():
    rng = random.Random(0)
    lines, size = [], 0
    while size < 5_000_000:
        lines.append(SENTENCE * rng.randint(1, 12))
        size += len(lines[-1].encode())
    text = "\n".join([*lines[:-1], SENTENCE * 2_000])
    of = encoder("shipped", 256, 64)
    encoding = of.encode(text)
    assert [w.core[0] for w in encoding.windows[1:]] == [w.core[1] for w in encoding.windows[:-1]]
    assert encoding.windows[-1].core[1] == len(encoding.words)
    assert max(len(w.input_ids) for w in encoding.windows) <= 256
    assert len(encoding.paragraphs) == len(lines)


def test_no_tokenizer_file(tmp_path):
    with pytest.raises(ModelError, match=rf"{tmp_path}: no tokenizer.json.*copy the checkpoint again"):
        TextEncoder.load(tmp_path, TextSettings())


@pytest.mark.parametrize("content", ["", "{", '{"model": 1}'])
def test_a_broken_tokenizer_file(tmp_path, content):
    (tmp_path / TOKENIZER_FILE).write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer file.*copy the checkpoint again"):
        TextEncoder.load(tmp_path, TextSettings())


def test_a_tokenizer_must_frame_a_text():
    with pytest.raises(ModelError, match="frames a text with 1 special tokens; expected 2"):
        TextEncoder(toy("characters", "[CLS] $A"), TextSettings())


def test_truncation_and_padding_of_the_file_are_turned_off(tmp_path):
    tokenizer = toy("characters")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / TOKENIZER_FILE))
    windows = TextEncoder.load(tmp_path, TextSettings(max_pieces=64, overlap=8)).encode("ا " * 30).windows
    assert [len(w.input_ids) for w in windows] == [32]


def test_the_shipped_settings_fit_the_shipped_tokenizer(tmp_path):
    shutil.copy(shipped_model() / TOKENIZER_FILE, tmp_path)
    of = TextEncoder.load(tmp_path, load_settings(shipped_model()).text)
    check(of.encode(SENTENCE * 50), SENTENCE * 50, of)
