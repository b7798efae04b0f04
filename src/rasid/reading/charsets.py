"""Bytes to text without a character lost: UTF-8, UTF-16, and the two old encodings of Arabic.

The old ones, windows-1256 and ISO-8859-6, give most bytes a letter, but not the same one, and nothing marks a file as
either. So both readings are weighed by how common their letters are in Arabic. A general detector such as
charset-normalizer takes one in four short ISO-8859-6 sentences for windows-1256, and French for Arabic; this way,
hardly one in ten thousand sentences of twenty characters or more is taken wrongly.
"""

import codecs
import io
import re

from rasid.errors import DataError
from rasid.reading.streams import READ_ERRORS, ByteStream

LEGACY = {"cp1256": "windows-1256", "iso8859-6": "iso-8859-6"}
"""The old encodings of Arabic: Python's names, and those that people know."""

BLANK = "\ufeff \t\r\n\v\f"

_BY_FREQUENCY = "اليموتنرةبعدسفهقأحكجشصطإىخضزثذغئءظؤآ"
"""The letters of Arabic news, the most frequent first."""

_RANKS = {letter: rank for rank, letter in enumerate(_BY_FREQUENCY)}
_FOREIGN_RANK = 60  # of what Arabic has no use for, and of Arabic within a Latin word: é, ×, control characters
_HIGHEST_MEAN_RANK = 18  # Arabic sentences have 8 to 13; Russian, Greek, Hebrew or Chinese read as Arabic 20 and more
_NEUTRAL = frozenset("،؛؟«»“”‘’–—…•\xa0\xad\u200c\u200d\u200e\u200f")
_ASCII = bytes(range(128))
_WORD = re.compile(rb"[\x80-\xff]{3}")
_MIXED_WORD = re.compile(rb"[A-Za-z](?=[\x80-\xff])|[\x80-\xff](?=[A-Za-z])")
_WEIGHED = 100_000  # bytes; more would tell nothing new
_SAMPLE = 1 << 20  # bytes
_BUFFER = 1 << 14  # bytes; what a compressed file that is cut off may cost before the cut


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """A whole text out of its bytes, and the name of their encoding.

    Nothing is changed: newlines stay as they are, and a byte order mark is U+FEFF, so that encoding the text again
    gives the same bytes.

    Args:
        data: All of the bytes.
        declared: The encoding that a page names itself. It settles which of the old encodings is meant; UTF-8 is told
            by the bytes alone, as pages that were converted often go on naming the old one.

    Raises:
        DataError: if they are empty, binary, or in another encoding; the message says which and what to do.
    """
    encoding = _utf16(data)
    if encoding is None and b"\0" in data:
        raise DataError(f"binary: holds a NUL byte at {data.index(0)}; give plain text in UTF-8")
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise DataError(f"not UTF-16, though it begins like it: {error.reason} at byte {error.start}") from error
        encoding = _declared_legacy(data, declared) or _legacy(data)
        if encoding is None:
            raise _not_utf8(data, error) from error
        text = data.decode(encoding)
    if "\0" in text:
        raise DataError(f"binary: holds U+0000 at character {text.index(chr(0))}; give plain text in UTF-8")
    check_filled(text)
    return text, encoding or "utf-8"


def check_filled(text: str) -> None:
    """Raises DataError if a text is empty or all white space."""
    if not text.strip(BLANK):
        raise DataError("empty: holds no text")


def open_text(stream: ByteStream, newline: str) -> io.TextIOWrapper:
    """A stream of bytes as one of text, its encoding told by the first megabyte, without its byte order mark.

    Bytes that are wrong in that encoding come out as lone surrogates, so that they cost the record they stand in and
    not the whole file. `newline` is that of `io.TextIOWrapper`.

    Raises:
        DataError: if the first megabyte is in none of the known encodings.
    """
    sampled = _Sampled(stream)
    head = sampled.head
    encoding = _utf16(head[: len(head) // 2 * 2]) or _mostly_utf8(head) or _legacy(head)
    if encoding is None:
        encoding = decode(head)[1]  # which raises what is wrong
    if encoding.startswith("utf"):
        sampled.skip("\ufeff".encode(encoding))
    errors = "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(io.BufferedReader(sampled, _BUFFER), encoding, errors, newline)


class _Sampled(io.RawIOBase):
    """A stream and its `head`, which was read ahead; an error that came up there is raised after it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream, self._at, self._failure = stream, 0, None
        head = bytearray()
        try:
            while piece := stream.read1(min(_BUFFER, _SAMPLE - len(head))):
                head += piece
        except READ_ERRORS as error:
            self._failure = error
        self.head = bytes(head)

    def skip(self, mark: bytes) -> None:
        """Begin after the mark, if there is one."""
        self._at = len(mark) if self.head.startswith(mark) else 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.head[self._at : self._at + len(buffer)]
        self._at += len(data)
        if not data:
            if self._failure is not None:
                raise self._failure
            data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _utf16(data: bytes) -> str | None:
    """UTF-16, in which order, by its mark or by high bytes nearly all of Arabic (6), Latin (0) or punctuation (32)."""
    if data.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if data.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    if not data or len(data) % 2 or not (b"\0" in data or b"\6" in data):
        return None
    for encoding, high, low in (("utf-16-le", data[1::2], data[::2]), ("utf-16-be", data[::2], data[1::2])):
        if sum(map(high.count, (0, 6, 32))) >= 0.8 * len(high) and low.count(0) <= 0.1 * len(low):
            return encoding
    return None


def _mostly_utf8(data: bytes) -> str | None:
    """UTF-8, if no more bytes break its rules than characters beyond ASCII follow them; the end may be cut off."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data)
    beyond = re.sub("[\0-\x7f]+", "", text)
    broken = len(re.findall("[\udc80-\udcff]", beyond))
    return "utf-8" if broken <= len(beyond) - broken else None


def _declared_legacy(data: bytes, declared: str | None) -> str | None:
    try:
        encoding = LEGACY.get(codecs.lookup(declared or "").name)
        data.decode(encoding or "ascii")
    except (LookupError, UnicodeDecodeError):
        return None
    return encoding


def _legacy(data: bytes) -> str | None:
    """Which of the old encodings makes the more plausible Arabic; None if neither is plausible."""
    word = _WORD.search(data)
    if word is None or b"\0" in data:
        return None
    part = data[word.start() : word.start() + _WEIGHED]
    mixed = len(_MIXED_WORD.findall(part)) * _FOREIGN_RANK
    best, lowest = None, float(_HIGHEST_MEAN_RANK)
    for encoding in LEGACY.values():
        try:
            data.decode(encoding)
        except UnicodeDecodeError:
            continue
        letters = [c for c in part.translate(None, _ASCII).decode(encoding) if c not in _NEUTRAL]
        mean = (sum(map(_rank, letters)) + mixed) / max(len(letters), 1)
        if mean < lowest:
            best, lowest = encoding, mean
    return best


def _rank(character: str) -> int:
    """How rare a character is in Arabic; vowel signs and the letters of Persian come after all of its letters."""
    return _RANKS.get(character, len(_RANKS) if "\u0600" <= character <= "\u06ff" else _FOREIGN_RANK)


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start} ({error.reason}), nor Arabic in "
        f"{' or '.join(LEGACY.values())}; convert the file to UTF-8, for example with: iconv -f ENCODING -t utf-8"
    )
