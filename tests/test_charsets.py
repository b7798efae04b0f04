"""Bytes to text: the encodings that are told, those that are refused, and that no byte is lost."""

import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.reading.charsets import decode, open_text

SENTENCES = [
    "دخل رتل إمداد تابع للتحالف الدولي ليل الأربعاء - الخميس عبر معبر سيمالكا.",
    "قصفت قوات النظام بالمدفعية الثقيلة بلدة سرمين في ريف إدلب الشرقي.",
    "وصل اللواء الأول إلى حلب أمس.",
    "وقال المتحدث: «لم تقع إصابات»، مضيفا أن القوات صدت الهجوم.",
    "سيطر الجيش على 12 قرية، وقتل 3 جنود",
    "قسد تعلن النفير العام",
    "انسحبت كتيبة من الفرقة الرابعة؛ هل تعود؟",
    "مُقاتِلونَ من فصائلِ المعارضة",
]
ENCODINGS = ["utf-8", "utf-16-le", "utf-16-be", "windows-1256", "iso-8859-6"]


def writable(text: str, encoding: str) -> str:
    """What an encoding has of a text: the old ones lack some punctuation."""
    return text.encode(encoding, "ignore").decode(encoding)


@pytest.fixture(scope="module")
def article(corpora) -> str:
    with corpora["dev"].open(encoding="utf-8") as lines:
        return "\r\n\n".join(json.loads(line)["text"] for line in lines)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_enough_to_tell_its_encoding(sentence, encoding):
    text = writable(sentence, encoding)
    assert decode(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_articles_with_latin_words_and_digits(article, encoding):
    text = writable(article + " قال موقع Enab Baladi إن F-16 وMi-24 وBM-21 …", encoding)
    assert len(text) > 2000
    assert decode(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_arabic_among_much_ascii(encoding):
    text = "x = 1; // nothing to see here\n" * 9000 + SENTENCES[0] + "\n</html>" * 9000
    assert decode(text.encode(encoding)) == (text, encoding)


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        ("\ufeffقسد", "utf-8", "utf-8"),
        ("\ufeffقسد", "utf-16-le", "utf-16-le"),
        ("\ufeffقسد\n", "utf-16-be", "utf-16-be"),
        ("\ufeffSDF 中文", "utf-16-le", "utf-16-le"),
        ("SDF moved to Aleppo", "utf-16-le", "utf-16-le"),
        ("“تعسفي” و”غير مبرر” 😀", "utf-16-be", "utf-16-be"),
        ("plain English", "utf-8", "utf-8"),
        ("L'été à Noël", "utf-8", "utf-8"),
        ("قسد\r\nحلب\r", "utf-8", "utf-8"),
        ("قسد\x0c\x1a \u2028\xa0\n\n", "utf-8", "utf-8"),
        ("😀\ufdfa\u0301", "utf-8", "utf-8"),
        ("\u200f", "utf-8", "utf-8"),
        ("\x85قسد\x1c", "utf-8", "utf-8"),
        ("گزارش ارتش پاکستان چهارشنبه منتشر شد", "windows-1256", "windows-1256"),
    ],
)
def test_the_text_is_not_changed_by_a_character(text, encoding, name):
    assert decode(text.encode(encoding)) == (text, name)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty: holds no text"),
        (b" \r\n\t\x0b\x0c", "empty: holds no text"),
        (b"\xef\xbb\xbf\n", "empty: holds no text"),
        (b"\xff\xfe", "empty: holds no text"),
        (b"PK\x03\x04\x00\x00", "binary: holds a NUL byte at 4; give plain text in UTF-8"),
        ("قسد\x00".encode(), "binary: holds a NUL byte at 6"),
        ("قسد تعلن\x00".encode("windows-1256"), "binary: holds a NUL byte at 8"),
        (b"\x01\x00\x00\x00\x02\x00\x00\x00", "binary: holds a NUL byte at 1"),
        ("\ufeffقسد\0".encode("utf-16-le"), r"binary: holds U\+0000 at character 4"),
        ("قسد".encode("utf-16") + b"\x00", "not UTF-16, though it begins like it: truncated data at byte 8"),
        ("قسد".encode() + b"\xd9", "not UTF-8: byte 0xd9 at 6 .*; convert the file to UTF-8, .*iconv -f"),
        (b"\xed\xa0\x80", "not UTF-8: byte 0xed at 0"),  # an encoded surrogate
        (b"\x80\x81\xfe\xff" * 50, "not UTF-8: byte 0x80 at 0"),
        ("“Café”, façade.".encode("latin-1", "ignore"), "nor Arabic in windows-1256 or iso-8859-6"),
        ("Le président syrien a été reçu à l'Élysée, où il déjeuna.".encode("latin-1"), "not UTF-8"),
        ("Gespräche über Änderungen führten zu größeren Erfolgen".encode("latin-1"), "not UTF-8"),
        ("Вооруженные силы сообщили о продвижении".encode("windows-1251"), "not UTF-8"),
        ("Вооруженные силы сообщили о продвижении".encode("koi8-r"), "not UTF-8"),
        ("Οι ένοπλες δυνάμεις ανακοίνωσαν".encode("iso-8859-7"), "not UTF-8"),
        ("הצבא הודיע על התקדמות באזור העיר".encode("windows-1255"), "not UTF-8"),
        ("Türkiye'nin güneydoğusunda çatışmalar sürüyor".encode("iso-8859-9"), "not UTF-8"),
        ("叙利亚军队宣布在该市地区取得进展".encode("gbk"), "not UTF-8"),
        ("أعلن الجيش تقدمه في منطقة المدينة".encode("cp720"), "not UTF-8"),
    ],
)
def test_bytes_that_are_no_text_in_a_known_encoding(data, message):
    with pytest.raises(DataError, match=message):
        decode(data)


@settings(deadline=None)
@given(st.binary() | st.text(alphabet="قسد \x00a\x06\n\u2026é").map(lambda text: text.encode("utf-16-le")))
@example("قسد".encode("utf-16-le"))
@example("قسد تعلن".encode("windows-1256"))
def test_text_encoded_again_gives_the_same_bytes(data):
    try:
        text, encoding = decode(data)
    except DataError as error:
        assert str(error)
    else:
        assert text.encode(encoding) == data


def test_a_page_that_names_an_old_encoding_settles_which(article):
    both = "امر هدم مدرستها"  # good Arabic either way
    assert decode(both.encode("iso-8859-6"), "ISO-8859-6") == (both, "iso-8859-6")
    assert decode(both.encode("windows-1256"), "cp1256") == (both, "windows-1256")
    english = "“SDF” said"  # not plausible by itself
    assert decode(english.encode("windows-1256"), "windows-1256") == (english, "windows-1256")


@pytest.mark.parametrize("declared", ["windows-1256", "utf-8", "latin-1", "no-such-thing", "hex", "", None])
def test_what_a_page_names_does_not_stand_against_its_bytes(declared):
    assert decode(SENTENCES[0].encode(), declared) == (SENTENCES[0], "utf-8")
    assert decode(SENTENCES[0].encode("windows-1256"), declared) == (SENTENCES[0], "windows-1256")


def lines_of(data: bytes, newline: str = "\n") -> tuple[list[str], str]:
    text = open_text(io.BytesIO(data), newline)
    return list(text), text.encoding


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_stream_is_read_in_the_encoding_of_its_beginning(encoding, mark):
    lines = [f"{n},{writable(SENTENCES[n % len(SENTENCES)], encoding)}\r\n" for n in range(40_000)]
    if encoding in ("windows-1256", "iso-8859-6"):
        mark = ""
    data = (mark + "".join(lines)).encode(encoding)
    assert len(data) > 1 << 20  # more than the sample
    assert lines_of(data) == (lines, encoding)


def test_the_sample_may_end_within_a_character():
    text = "a" * ((1 << 20) - 1) + "قسد"
    assert lines_of(text.encode()) == ([text], "utf-8")


def test_a_broken_byte_in_a_stream_costs_its_line_only():
    good = SENTENCES[0] + "\n"
    lines, encoding = lines_of(good.encode() + b"\xff\n" + good.encode())
    assert encoding == "utf-8"
    assert lines == [good, "\udcff\n", good]


def test_a_stream_in_another_encoding_is_refused():
    with pytest.raises(DataError, match="not UTF-8: byte 0xe9 at 3 "):
        lines_of("Les éléments sont présents\n".encode("latin-1").replace(b"Les ", b"Les") * 100)
    with pytest.raises(DataError, match="binary: holds a NUL"):
        lines_of(bytes(range(256)) * 100)


def test_a_stream_that_comes_in_drops():
    class Drops(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 3) if size and size > 0 else 3)

    text = open_text(Drops("\ufeffقسد\nحلب\n".encode()), "\n")
    assert list(text) == ["قسد\n", "حلب\n"]
