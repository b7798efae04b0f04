"""Files to texts: a document for each article and for each thing that is wrong, whatever the format."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, Literal, Self

from rasid.errors import DataError
from rasid.reading.charsets import check_filled, decode, open_text
from rasid.reading.record_files import Row, read_csv, read_json, read_jsonl, read_parquet
from rasid.reading.sources import Format, Source, cannot_read, formats_of, printable
from rasid.reading.streams import READ_ERRORS, ByteStream, open_stream, read_all, too_long
from rasid.reading.web_pages import read_page
from rasid.records import check_text

TEXT_FIELDS = (
    "text",
    "body",
    "content",
    "article",
    "maintext",
    "full_text",
    "article_text",
    "article_body",
    "articlebody",
    "النص",
    "نص",
    "نص الخبر",
    "المحتوى",
    "المتن",
)
"""Names, in lower case, of fields that are taken to hold the text: the first of them that a record has."""

ID_FIELDS = (
    "id",
    "_id",
    "article_id",
    "doc_id",
    "document_id",
    "url",
    "uri",
    "link",
    "guid",
    "uuid",
    "المعرف",
    "الرابط",
)
"""Names, in lower case, of fields that are taken to hold the id: the first of them that does in a record."""

OWN_FIELDS = ("entities", "relations")
"""Lists that a record of Rasid's own has beside its text, and that reading it again gives anew."""

_NAMES_SHOWN = 20
_DEEPEST = 100  # levels in a field; some readers of JSON take no more than 200


@dataclass(frozen=True)
class ReadOptions:
    """How files are read.

    Attributes:
        text_field: The field or column of the text; guessed by `TEXT_FIELDS` if not given.
        id_field: The field or column of the id; guessed by `ID_FIELDS` if not given.
        max_bytes: The most that is read, decompressed, for one article: a text, a page, a line, a row, an object.
        format: The format of what has no known suffix, such as standard input; plain text if not given.
    """

    text_field: str | None = None
    id_field: str | None = None
    max_bytes: int = 20_000_000
    format: Format | None = None


@dataclass(frozen=True)
class Document:
    """An article, or what is wrong with one.

    Attributes:
        source: Where it is from, for people: the path, with `:row` in files of many records.
        id: The id of its record; `UniqueIds` makes it unique.
        text: The text that its record carries and its offsets count in.
        problem: Why there is no text.
        page: What `with_text` is to find the text in.
        meta: What else is known: the other fields of a record, those of its own `meta` among them, or the title and
            date of a page; and the `encoding` that its bytes were taken to be in, unless it is UTF-8.
    """

    source: str
    id: str
    text: str | None
    problem: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    page: "Page | None" = None

    def with_text(self) -> Self:
        """The document with the text of its page, or with what is wrong with that; itself if it has none."""
        if self.page is None:
            return self
        try:
            text, meta = self.page.read()
        except DataError as error:
            return replace(self, page=None, problem=printable(str(error)))
        return replace(self, page=None, text=text, meta=meta)


@dataclass(frozen=True)
class Page:
    """The bytes of a file that holds one article.

    To decode them, and to take an HTML page apart, takes much longer than to read them, so that this is left to those
    who extract, of whom there are several.
    """

    kind: Literal["txt", "html"]
    data: bytes

    def read(self) -> tuple[str, dict[str, Any]]:
        """The text, and what else is known.

        Raises:
            DataError: if there is no text in it, or in no known encoding.
        """
        if self.kind == "txt":
            text, encoding = decode(self.data)
            return text, _encoding_meta(encoding)
        text, meta, encoding = read_page(self.data)
        return text, _encoding_meta(encoding) | meta


class UniqueIds:
    """Makes ids unique: the second article of one id gets `<id>#2`, the third `<id>#3`.

    It keeps a hash of 64 bits of each id, which takes about 70 MB of memory for a million. Where the hashes of two ids
    are equal, as are hardly any among a thousand million, one gets a number that it does not need.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._counts: dict[int, int] = {}

    def __call__(self, id: str) -> str:
        """The id itself the first time, then with a number."""
        unique, first = id, _hash(id)
        key = first
        while key in self._seen:
            self._counts[first] = self._counts.get(first, 1) + 1
            unique = f"{id}#{self._counts[first]}"
            key = _hash(unique)
        self._seen.add(key)
        return unique


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest())


def read_documents(source: Source, options: ReadOptions) -> Iterator[Document]:
    """The articles of a source, in order; at least one document, and no error, whatever is wrong with it.

    Those of files that hold one article each have a page and no text yet. A problem that ends a file early comes after
    the articles before it.
    """
    where = printable(source.path.as_posix())
    problem = source.problem
    if problem is None:
        problem = "empty: holds no articles"
        try:
            for document in _read(source, where, options):
                problem = None
                yield document
        except DataError as error:
            problem = str(error)
        except UnicodeDecodeError as error:
            problem = f"not {error.encoding} to the end: {error.reason}"
        except READ_ERRORS as error:
            problem = cannot_read(error)
    if problem is not None:
        yield Document(where, source.id, None, printable(problem))


def _read(source: Source, where: str, options: ReadOptions) -> Iterator[Document]:
    kind = formats_of(source.path.name)[0] or options.format or "txt"
    with open_stream(source.path) as stream:
        if kind in ("txt", "html"):
            yield Document(where, source.id, None, page=Page(kind, read_all(stream, options.max_bytes)))
        else:
            rows, encoding = _read_rows(stream, kind, options)
            for row in rows:
                yield _document(row, source, where, options, encoding)


def _read_rows(stream: ByteStream, kind: Format, options: ReadOptions) -> tuple[Iterator[Row], str]:
    check_columns = partial(_choose_fields, options=options)
    if kind == "parquet":
        return read_parquet(stream, check_columns), "utf-8"
    text = open_text(stream, newline="" if kind == "csv" else "\n")
    if kind == "csv":
        return read_csv(text, options.max_bytes, check_columns), text.encoding
    return (read_json if kind == "json" else read_jsonl)(text, options.max_bytes), text.encoding


def _document(row: Row, source: Source, where: str, options: ReadOptions, encoding: str) -> Document:
    id = source.id
    if row.number is not None:
        where, id = f"{where}:{row.number}", f"{id}#{row.number}"
    try:
        if row.record is None:
            raise DataError(row.problem)
        record = dict(row.record)
        text_field, id_fields = _choose_fields(record, options)
        text, encoding = _as_text(record.pop(text_field), text_field, encoding)
        for name in id_fields:
            if name in record and (given := _as_id(record[name])):
                id = given
                del record[name]
                break
        for name in OWN_FIELDS:
            if isinstance(record.get(name), list):
                del record[name]
        if isinstance(own := record.get("meta"), dict):
            record = {name: value for name, value in record.items() if name != "meta"} | own
        meta = {name: kept for name, value in record.items() if (kept := _as_json(value)) is not None}
        for value in (text, id, json.dumps(meta, ensure_ascii=False)):
            _check_unicode(value, encoding)
        if len(text.encode()) > options.max_bytes:
            raise too_long(options.max_bytes)
    except DataError as error:
        return Document(where, printable(id), None, printable(str(error)))
    return Document(where, id, text, meta=_encoding_meta(encoding) | meta)


def _choose_fields(names: Iterable[str], options: ReadOptions) -> tuple[str, list[str]]:
    """The field of the text and those that may hold the id, the best first.

    Raises:
        DataError: if there is no such field; the message says which there are, and what to do.
    """
    names = list(names)
    known = {name.strip().lower(): name for name in reversed(names)}
    there_are = f"there are: {', '.join(names[:_NAMES_SHOWN])}{' …' if len(names) > _NAMES_SHOWN else ''}"
    for given, option in ((options.text_field, "--text-field"), (options.id_field, "--id-field")):
        if given is not None and given not in names:
            raise DataError(f"no field «{given}», which {option} names; {there_are}")
    text_field = options.text_field or next((known[name] for name in TEXT_FIELDS if name in known), None)
    if text_field is None:
        raise DataError(f"no field that is known to hold the text; name it with --text-field; {there_are}")
    return text_field, [options.id_field] if options.id_field else [known[name] for name in ID_FIELDS if name in known]


def _as_text(value: Any, name: str, encoding: str) -> tuple[str, str]:
    """The text of a field and its encoding; columns of Parquet may hold bytes."""
    if isinstance(value, bytes):
        return decode(value)
    if value is None:
        raise DataError(f"empty: field «{name}» holds no text")
    if isinstance(value, list | dict):
        raise DataError(
            f"field «{name}» holds no text but records or values within it; make a line of JSON of each of them first"
        )
    if not isinstance(value, str):
        raise DataError(f"field «{name}» holds no text but {type(value).__name__} {str(value)[:40]}; see --text-field")
    check_filled(value)
    return value, encoding


def _as_id(value: Any) -> str:
    """The id that a field holds; empty if none."""
    if isinstance(value, float) and value.is_integer():  # how tables keep whole numbers where some are missing
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _as_json(value: Any, depth: int = 0) -> Any:
    """A value that JSON has; None for what is missing or has no such form.

    Raises:
        DataError: if it is nested too deeply.
    """
    if depth > _DEEPEST:
        raise DataError("its fields are nested too deeply")
    if isinstance(value, dict):
        return {str(name): _as_json(part, depth + 1) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part, depth + 1) for part in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return None


def _check_unicode(value: str, encoding: str) -> None:
    """Raises DataError if a string holds a lone surrogate, which no encoding can write."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # what a stream of text gives for a byte that it cannot decode
            raise DataError(f"not {encoding}: byte 0x{code - 0xDC00:02x} at character {error.start}") from error
        check_text(error.object)


def _encoding_meta(encoding: str) -> dict[str, Any]:
    return {} if encoding == "utf-8" else {"encoding": encoding}
