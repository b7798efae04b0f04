"""Files of every format to texts: what is read, under which ids, and that nothing bad stops the rest."""

import csv
import gzip
import io
import json
import os
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rasid.reading.documents import Document, ReadOptions, UniqueIds, read_documents
from rasid.reading.sources import STANDARD_INPUT, Source, find_sources

TEXT = "قسد حلب"
SENTENCE = "دخل رتل إمداد تابع للتحالف الدولي ليل الأربعاء عبر معبر سيمالكا، وضم 37 شاحنة."


def read_source(source: Source, **options: Any) -> list[Document]:
    return [document.with_text() for document in read_documents(source, ReadOptions(**options))]


def read(path: Path, **options: Any) -> list[Document]:
    return read_source(Source(path, path.name), **options)


def problem(path: Path, **options: Any) -> str:
    """The only document of a file, which has a problem."""
    (document,) = read(path, **options)
    assert document.text is None
    assert document.problem is not None
    return document.problem


def texts(documents: list[Document]) -> list[str | None]:
    return [d.text for d in documents]


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return sink.getvalue()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


ROWS = [
    {"id": "a", "text": TEXT, "title": "عنوان", "url": "http://a"},
    {"id": "b", "text": f'«قال "نعم"»\n\n{SENTENCE}\n', "title": "", "url": ""},
    {"id": "", "text": "\ufeffحماة; دمشق,\tدرعا", "title": "x", "url": "http://c"},
]
EXPECTED = [
    Document("", "a", ROWS[0]["text"], meta={"title": "عنوان", "url": "http://a"}),
    Document("", "b", ROWS[1]["text"], meta={"title": "", "url": ""}),
    Document("", "http://c", ROWS[2]["text"], meta={"id": "", "title": "x"}),
]
WRITERS: dict[str, Callable[[], bytes]] = {
    "csv": lambda: table(ROWS).encode(),
    "jsonl": lambda: lines(ROWS).encode(),
    "ndjson": lambda: lines(ROWS).replace("\n", "\r\n\r\n").encode(),
    "json": lambda: json.dumps(ROWS, indent=1).encode(),
    "parquet": lambda: parquet(ROWS),
}
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}


@pytest.mark.parametrize("end", COMPRESSORS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_records_of_every_format(tmp_path, suffix, end):
    path = write(tmp_path / f"a.{suffix}{end}", COMPRESSORS[end](WRITERS[suffix]()))
    found = read(path)
    step = 2 if suffix == "ndjson" else 1  # every second line is blank
    assert [d.source for d in found] == [f"{path}:{n}" for n in (1, 1 + step, 1 + 2 * step)]
    assert [Document("", d.id, d.text, d.problem, d.meta) for d in found] == EXPECTED


@pytest.mark.parametrize("end", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.story", "a"])
def test_text_files(tmp_path, name, end):
    text = f"\ufeff{TEXT}\r\n\x85\u2028{SENTENCE}\r"
    path = write(tmp_path / f"{name}{end}", COMPRESSORS[end](text.encode()))
    assert read(path) == [Document(str(path), path.name, text)]


@pytest.mark.parametrize("end", COMPRESSORS)
def test_pages(tmp_path, end):
    page = f"<html><head><title>عنوان</title></head><body><article><p>{SENTENCE}</p></article></body></html>"
    path = write(tmp_path / f"a.html{end}", COMPRESSORS[end](page.encode("windows-1256")))
    assert read(path) == [Document(str(path), path.name, SENTENCE, meta={"encoding": "windows-1256", "title": "عنوان"})]


def test_an_object_alone_goes_by_the_id_of_its_file(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"text": TEXT, "n": 1}))
    assert read(path) == [Document(str(path), "a.json", TEXT, meta={"n": 1})]
    assert [d.id for d in read(write(path, json.dumps({"text": TEXT, "id": 7})))] == ["7"]
    assert [d.id for d in read(write(path, json.dumps([{"text": TEXT}])))] == ["a.json#1"]
    assert [d.id for d in read(write(path, lines([{"text": TEXT}] * 2)))] == ["a.json#1", "a.json#2"]


@pytest.mark.parametrize("field", ["body", "Content", " ARTICLE ", "maintext", "النص"])
def test_text_fields_that_are_guessed(tmp_path, field):
    assert texts(read(write(tmp_path / "a.jsonl", lines([{"title": "x", field: TEXT}])))) == [TEXT]
    assert texts(read(write(tmp_path / "a.csv", table([{"title": "x", field: TEXT}])))) == [TEXT]


@pytest.mark.parametrize(
    ("record", "id"),
    [
        ({"id": 12, "url": "u"}, "12"),
        ({"id": 12.0}, "12"),
        ({"ID": "a b"}, "a b"),
        ({"_id": {"$oid": "5f"}, "url": "u"}, "u"),
        ({"id": None, "doc_id": "d"}, "d"),
        ({"id": True}, "a.jsonl#1"),
        ({"id": ""}, "a.jsonl#1"),
        ({"name": "n"}, "a.jsonl#1"),
    ],
)
def test_ids_that_are_guessed(tmp_path, record, id):
    assert [d.id for d in read(write(tmp_path / "a.jsonl", lines([record | {"text": TEXT}])))] == [id]


def test_fields_that_are_named(tmp_path):
    row = {"text": "summary", "story": TEXT, "id": "1", "key": "k"}
    for suffix, data in (("csv", table([row])), ("jsonl", lines([row])), ("json", lines([row]))):
        (found,) = read(write(tmp_path / f"a.{suffix}", data), text_field="story", id_field="key")
        assert (found.id, found.text, found.meta) == ("k", TEXT, {"text": "summary", "id": "1"})
    path = write(tmp_path / "a.parquet", parquet([row]))
    assert [d.id for d in read(path, text_field="story", id_field="key")] == ["k"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_without_the_column_is_one_problem(tmp_path, suffix):
    rows = [{"headline": "a", "words": TEXT}] * 3
    path = write(tmp_path / f"a.{suffix}", table(rows) if suffix == "csv" else parquet(rows))
    unknown = "no field that is known to hold the text; name it with --text-field; there are: headline, words"
    assert problem(path) == unknown
    missing = "no field «story», which --text-field names; there are: headline, words"
    assert problem(path, text_field="story") == missing
    assert "«key», which --id-field names" in problem(path, text_field="words", id_field="key")
    assert texts(read(path, text_field="words")) == [TEXT] * 3


def test_a_record_without_the_field_is_its_own_problem(tmp_path):
    path = write(tmp_path / "a.jsonl", lines([{"text": TEXT}, {"words": TEXT}, {"body": TEXT}]))
    found = read(path)
    assert texts(found) == [TEXT, None, TEXT]
    assert found[1].source == f"{path}:2"
    assert "there are: words" in (found[1].problem or "")
    assert texts(read(path, text_field="words")) == [None, TEXT, None]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "empty: field «text» holds no text"),
        (" \n", "empty: holds no text"),
        (["a"], "field «text» holds no text but records or values within it; make a line of JSON of each"),
        ({"a": "b"}, "field «text» holds no text but records or values within it; make a line of JSON of each"),
        (7, "field «text» holds no text but int 7"),
    ],
)
def test_values_that_are_no_text(tmp_path, value, message):
    found = read(write(tmp_path / "a.jsonl", lines([{"text": value, "id": "x"}, {"text": TEXT}])))
    assert texts(found) == [None, TEXT]
    assert message in (found[0].problem or "")


def test_other_fields_go_into_meta_as_they_are(tmp_path):
    kept = {"n": 1, "score": 0.5, "true": False, "tags": ["a", None], "by": {"a": [{"b": 1}]}, "": "x"}
    (found,) = read(write(tmp_path / "a.jsonl", lines([{"text": TEXT, "none": None} | kept]) + "\n"))
    assert found.meta == kept
    (found,) = read(write(tmp_path / "b.jsonl", '{"text": "قسد", "a": NaN, "b": Infinity, "encoding": "mine"}'))
    assert found.meta == {"encoding": "mine"}


def test_our_own_records_are_read_again(tmp_path):
    record = {"id": "x", "text": TEXT, "meta": {"date": "2024-05-01"}, "entities": [{"id": "T1"}], "relations": []}
    (found,) = read(write(tmp_path / "a.jsonl", lines([record])))
    assert (found.id, found.text, found.meta) == ("x", TEXT, {"date": "2024-05-01"})
    (found,) = read(write(tmp_path / "b.jsonl", lines([{"text": TEXT, "meta": "word", "entities": 3}])))
    assert found.meta == {"meta": "word", "entities": 3}


@pytest.mark.parametrize("depth", [101, 220, 900])  # between 200 and 254, pydantic writes what it does not read
def test_what_is_deep_in_a_record_is_checked_too(tmp_path, depth):
    deep = '{"a": ' * depth + "1" + "}" * depth
    records = ['{"text": "قسد", "by": {"name": ["\\ud800"]}}', f'{{"text": "قسد", "by": {deep}}}', '{"text": "قسد"}']
    found = read(write(tmp_path / "a.jsonl", "\n".join(records)))
    assert texts(found) == [None, None, "قسد"]
    assert "surrogate" in (found[0].problem or "")
    assert "nested too deeply" in (found[1].problem or "")


def test_types_of_parquet(tmp_path):
    row = {
        "text": TEXT.encode("windows-1256") + " تعلن النفير العام".encode("windows-1256"),
        "id": 3,
        "at": datetime(2024, 5, 1, 12),
        "on": date(2024, 5, 1),
        "price": Decimal("1.50"),
        "n": 2.5,
        "tags": ["a"],
        "by": {"name": "x"},
        "nan": float("nan"),
        "raw": b"\xff",
    }
    (found,) = read(write(tmp_path / "a.parquet", parquet([row])))
    assert found.id == "3"
    assert found.text == f"{TEXT} تعلن النفير العام"
    assert found.meta == {
        "encoding": "windows-1256",
        "at": "2024-05-01T12:00:00",
        "on": "2024-05-01",
        "price": "1.50",
        "n": 2.5,
    }
    json.dumps(found.meta, allow_nan=False)


def test_parquet_of_several_row_groups_and_a_broken_value(tmp_path):
    bad = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    good = pa.array([TEXT] * 40)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, pa.schema([("text", pa.string())])) as writer:
        for column in (good, bad, good):
            writer.write_table(pa.table({"text": column}))
    found = read(write(tmp_path / "a.parquet", sink.getvalue()))
    assert texts(found) == [TEXT] * 40 + [None, "a"] + [TEXT] * 40
    assert "not UTF-8: invalid start byte at byte 0" in (found[40].problem or "")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_of_csv(tmp_path, delimiter):
    rows = [{"id": str(n), "a,b;c": "1,2;3", "text": f"{SENTENCE};,\t\n\n{n}"} for n in range(3)]
    found = read(write(tmp_path / "a.csv", table(rows, delimiter)))
    assert texts(found) == [row["text"] for row in rows]
    assert found[2].meta == {"a,b;c": "1,2;3"}


def test_a_csv_of_one_column(tmp_path):
    assert texts(read(write(tmp_path / "a.csv", f"text\n{TEXT}\n\n{TEXT}"))) == [TEXT, TEXT]


def test_a_field_longer_than_the_csv_module_allows_by_default(tmp_path):
    text = f"{SENTENCE}\n" * 5000
    assert len(text) > 131_072
    path = write(tmp_path / "a.csv", table([{"id": "1", "text": text}, {"id": "2", "text": TEXT}]))
    assert texts(read(path)) == [text, TEXT]
    found = read(path, max_bytes=10_000)
    assert texts(found) == [None, TEXT]
    assert found[0].problem == (
        "longer than 10,000 bytes, the most that one article may have; raise --max-bytes to read it"
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "windows-1256"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "txt"])
def test_encodings_of_files(tmp_path, suffix, encoding):
    text = SENTENCE * 3
    data = {"csv": table([{"text": text}] * 2), "jsonl": lines([{"text": text}] * 2), "txt": text}
    data["json"] = json.dumps([{"text": text}] * 2, ensure_ascii=False)
    found = read(write(tmp_path / f"a.{suffix}", data[suffix].encode(encoding)))
    mark = "\ufeff" if suffix == "txt" and encoding in ("utf-8-sig", "utf-16") else ""
    assert texts(found) == [mark + text] * (1 if suffix == "txt" else 2)
    name = {"utf-16": "utf-16-le" if sys.byteorder == "little" else "utf-16-be"}.get(encoding, encoding)
    assert found[0].meta == ({} if encoding.startswith("utf-8") else {"encoding": name})


def test_iso_8859_6_csv(tmp_path):
    path = write(tmp_path / "a.csv", table([{"text": SENTENCE}]).encode("iso-8859-6"))
    assert [(d.text, d.meta) for d in read(path)] == [(SENTENCE, {"encoding": "iso-8859-6"})]


@pytest.mark.parametrize("end", COMPRESSORS)
@pytest.mark.parametrize("suffix", ["txt", "html", "json", "jsonl", "csv", "parquet"])
def test_empty_files(tmp_path, suffix, end):
    found = problem(write(tmp_path / f"a.{suffix}{end}", COMPRESSORS[end](b"")))
    assert "empty" in found or "Parquet" in found or "not a file of its format: begins with b''" in found


@pytest.mark.parametrize(("name", "data"), [("a.csv", "id,text\n"), ("a.json", " [ ] "), ("a.jsonl", "\n \n")])
def test_files_without_records(tmp_path, name, data):
    assert problem(write(tmp_path / name, data)) == "empty: holds no articles"


def test_json_lines_broken_in_the_middle(tmp_path):
    bad = ['{"text": "قسد"', "[1]", '"a"', "3", "null", "true", "[" * 100_000, '{"text": "a\0b"}', '{"text": "\ttab"}']
    path = write(tmp_path / "a.jsonl", "".join(f"{line}\n" for line in [lines([{"text": TEXT}]).strip(), *bad, "{}"]))
    with path.open("a", encoding="utf-8") as file:
        file.write(lines([{"text": SENTENCE}]))
    found = read(path)
    assert texts(found) == [TEXT, *[None] * 10, SENTENCE]
    assert [d.source for d in found] == [f"{path}:{n}" for n in range(1, 13)]
    for document, message in zip(
        found[1:],
        ["not JSON", "a list", "a string", "a number", "null", "true or false", "nested too deeply", "not JSON"],
        strict=False,
    ):
        assert message in (document.problem or "")


def test_lone_surrogates_and_nuls_in_json(tmp_path):
    data = '{"text": "a\\u0000b"}\n{"text": "\\ud800"}\n{"text": "x", "id": "\\udfff"}\n{"text": "x", "t": "\\udbff"}\n'
    found = read(write(tmp_path / "a.jsonl", data + '{"text": "\\ud83d\\ude00"}\n{"\\ud801": "", "text": "x"}'))
    assert texts(found) == ["a\0b", None, None, None, "😀", None]
    assert found[1].problem == (
        "lone surrogate U+D800 at character 0: the text was decoded wrongly; decode the original bytes as UTF-8 again"
    )
    for document in found:
        (document.id + (document.problem or "")).encode()


@pytest.mark.parametrize(("suffix", "row"), [("csv", b'1,"%s"\n'), ("jsonl", b'{"id": 1, "text": "%s"}\n')])
def test_a_byte_that_is_not_utf_8_costs_its_record(tmp_path, suffix, row):
    header = b"id,text\n" if suffix == "csv" else b""
    good, bad = row % SENTENCE.encode(), row % "caf\xe9".encode("latin-1")
    found = read(write(tmp_path / f"a.{suffix}", header + good + bad + good))
    assert texts(found) == [SENTENCE, None, SENTENCE]
    assert found[1].problem == "not utf-8: byte 0xe9 at character 3"


def test_a_utf_16_file_that_ends_within_a_character(tmp_path):
    path = write(tmp_path / "a.jsonl", ("\ufeff" + lines([{"text": TEXT}, {"text": TEXT}])).encode("utf-16-le")[:-1])
    found = read(path)
    assert found[-1].problem == "not utf-16-le to the end: truncated data"
    assert all(d.text == TEXT for d in found[:-1])


JUNK = bytes(range(256)) * 40


@pytest.mark.parametrize("end", COMPRESSORS)
@pytest.mark.parametrize("suffix", ["txt", "html", "json", "jsonl", "csv", "parquet"])
def test_content_of_another_kind(tmp_path, suffix, end):
    assert problem(write(tmp_path / f"a.{suffix}{end}", COMPRESSORS[end](JUNK)))
    assert problem(write(tmp_path / f"b.{suffix}{end}", JUNK))  # not compressed at all
    pdf = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n" + zlib.compress(JUNK) * 20
    assert len(read(write(tmp_path / f"c.{suffix}{end}", COMPRESSORS[end](pdf)))) == 1


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet"])
def test_plain_text_under_the_suffix_of_records(tmp_path, suffix):
    assert problem(write(tmp_path / f"a.{suffix}", SENTENCE))


@settings(deadline=None)
@given(data=st.binary(max_size=200), suffix=st.sampled_from(["txt", "json", "jsonl", "csv", "csv.gz", "parquet"]))
def test_no_bytes_raise_an_error(tmp_path_factory, data, suffix):
    path = write(tmp_path_factory.getbasetemp() / f"any.{suffix}", data)
    found = read(path, text_field=None)
    assert found
    for document in found:
        assert (document.text is None) == (document.problem is not None)
        json.dumps([document.id, document.text, document.problem, document.meta], ensure_ascii=False).encode()


# What is compressed


@pytest.mark.parametrize("end", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", ["txt", "html", "jsonl", "json", "csv", "parquet"])
def test_files_cut_off(tmp_path, suffix, end):
    noise = os.urandom(200_000).hex()  # does not compress to nothing
    rows = [{"text": TEXT, "noise": noise[n : n + 4000]} for n in range(0, len(noise), 4000)]
    data = {"csv": table(rows), "json": json.dumps(rows), "txt": noise, "html": noise}.get(suffix, lines(rows)).encode()
    data = COMPRESSORS[end](parquet(rows) if suffix == "parquet" else data)
    found = read(write(tmp_path / f"a.{suffix}{end}", data[: len(data) * 2 // 3]))
    assert "cannot be read: " in (found[-1].problem or "")
    if suffix in ("csv", "jsonl", "json"):
        assert texts(found[:-1]) == [TEXT] * (len(found) - 1)
        assert 50 < len(found) < 70  # of a hundred
    else:
        assert len(found) == 1
    for cut in (1, 2, 5, len(data) // 3):  # of the check sum at the end too
        assert read(write(tmp_path / f"b.{suffix}{end}", data[:-cut]))[-1].problem


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_corrupt_compressed_files(tmp_path, end):
    data = bytearray(COMPRESSORS[end](os.urandom(60_000).hex().encode()))
    data[12:400] = bytes(388)
    assert "cannot be read: " in problem(write(tmp_path / f"a.txt{end}", bytes(data)))
    good = COMPRESSORS[end](TEXT.encode())
    assert "cannot be read: " in problem(write(tmp_path / f"b.txt{end}", good + b"garbage"))


@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_compressed_files_joined_end_to_end(tmp_path, end):
    parts = [COMPRESSORS[end](lines([{"text": f"{TEXT} {n}"}]).encode()) for n in range(3)]
    assert texts(read(write(tmp_path / f"a.jsonl{end}", b"".join(parts)))) == [f"{TEXT} {n}" for n in range(3)]


def gz_bomb(before: bytes, filler: bytes, megabytes: int, after: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=31)
    pieces = [packer.compress(before), *(packer.compress(filler * 2**10) for _ in range(megabytes))]
    return b"".join([*pieces, packer.compress(after), packer.flush()])


def zst_bomb(before: bytes, filler: bytes, megabytes: int, after: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(before)
        for _ in range(megabytes):
            stream.write(filler * 2**10)
        stream.write(after)
    return sink.getvalue().to_pybytes()


GOOD = lines([{"text": TEXT}]).encode()
FILLER = b"a" * 1024
BOMBS = {
    "txt": (b"", FILLER, b""),
    "html": (b"<html><p>", FILLER, b""),
    "json": (b'[{"text": "' + TEXT.encode() + b'"}, {"text": "', FILLER, b'"}]'),
    "jsonl": (GOOD + b'{"text": "', FILLER, b'"}\n' + GOOD),
    "csv": (b"text\n" + TEXT.encode() + b'\n"', b"\n" + FILLER[1:], b'"\n' + TEXT.encode()),
}


@pytest.mark.parametrize("bomb", [gz_bomb, zst_bomb])
@pytest.mark.parametrize("suffix", BOMBS)
def test_bombs_stay_small_in_memory(tmp_path, suffix, bomb):
    before, filler, after = BOMBS[suffix]
    path = write(tmp_path / f"a.{suffix}.{'gz' if bomb is gz_bomb else 'zst'}", bomb(before, filler, 32, after))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        found = read(path, max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    too_long = "longer than 1,000,000 bytes, the most that one article may have; raise --max-bytes to read it"
    assert [d.problem for d in found if d.problem] == [too_long]
    good = {"json": 1, "jsonl": 2, "csv": 2}.get(suffix, 0)
    assert [d.text for d in found if d.text] == [TEXT] * good


def test_a_bomb_in_place_of_a_table_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", None)  # it would go there
    path = write(tmp_path / "a.parquet.gz", gz_bomb(b"", b"\0" * 1024, 20, b""))
    assert "begins with" in problem(path)


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_limit_holds_for_articles_and_not_for_files(tmp_path, suffix):
    text = "ق" * 400
    rows = [{"text": text}] * 50 + [{"text": text + "ق"}] + [{"text": text}]
    data = {"csv": table(rows).encode(), "json": json.dumps(rows, ensure_ascii=False).encode()}
    data["parquet"] = parquet(rows)
    found = read(write(tmp_path / f"a.{suffix}", data.get(suffix, lines(rows).encode())), max_bytes=800)
    assert texts(found) == [text] * 50 + [None, text]
    assert "longer than 800 bytes" in (found[50].problem or "")


def test_the_limit_of_a_text_file(tmp_path):
    path = write(tmp_path / "a.txt", TEXT)
    assert texts(read(path, max_bytes=len(TEXT.encode()))) == [TEXT]
    assert "longer than 12 bytes" in problem(path, max_bytes=12)


# What cannot be opened


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    assert problem(tmp_path / "gone.txt") == "cannot be read: No such file or directory"
    assert problem(tmp_path) == "cannot be read: Is a directory"
    path = write(tmp_path / "a.txt", TEXT)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(io, "open", refuse)
    assert problem(path) == "cannot be read: Permission denied"


def test_a_file_that_vanishes_before_it_is_read(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", GOOD)
    found = []
    for source in find_sources([tmp_path]):
        (tmp_path / "b.jsonl").unlink(missing_ok=True)
        found += read_source(source)
    assert texts(found) == [TEXT, None, TEXT]
    assert found[1].problem == "cannot be read: No such file or directory"


def test_a_disk_that_fails_in_the_middle(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            if self.tell() > 1_500_000:
                raise OSError(5, "Input/output error")
            return super().read1(size)

    monkeypatch.setattr(Path, "open", lambda *_: Failing(GOOD * 80_000))
    found = read(tmp_path / "a.jsonl")
    assert found[-1].problem == "cannot be read: Input/output error"
    assert len(found) > 1_500_000 // len(GOOD)
    assert set(texts(found[:-1])) == {TEXT}


def test_the_problem_of_a_source_is_that_of_its_document(tmp_path):
    source = Source(tmp_path / "a.txt", "a.txt", "a pipe")
    assert read_source(source) == [Document(str(source.path), "a.txt", None, "a pipe")]


def test_names_that_are_not_utf_8(tmp_path):
    try:
        path = write(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), GOOD)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (source,) = find_sources([tmp_path])
    (document,) = read_source(source)
    assert (document.id, document.text) == ("caf\\udce9.jsonl#1", TEXT)
    assert document.source == f"{path.parent}/caf\\udce9.jsonl:1"


@pytest.mark.parametrize("package", ["pyarrow", "trafilatura"])
def test_packages_that_are_not_installed(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    suffixes = {"pyarrow": ["parquet", "txt.zst"], "trafilatura": ["html"]}[package]
    for suffix in suffixes:
        message = problem(write(tmp_path / f"a.{suffix}", b"PAR1"))
        assert message.startswith(f"needs the package {package}")
        assert message.endswith("pip install 'rasid[files]'")
    assert texts(read(write(tmp_path / "a.txt.gz", gzip.compress(TEXT.encode())))) == [TEXT]


def test_pages_are_taken_apart_by_those_who_extract(tmp_path):
    """Reading costs next to nothing, and what is wrong within a page is found only later."""
    page = b"<html><p>" + SENTENCE.encode() + b"</p></html>"
    for suffix, data in (("txt", SENTENCE.encode()), ("html", page), ("htm", b"\0"), ("txt", b"")):
        path = write(tmp_path / f"a.{suffix}", data)
        (document,) = read_documents(Source(path, path.name), ReadOptions())
        assert (document.text, document.problem, document.page.data) == (None, None, data)
        again = document.with_text()
        assert again.page is None and (again.text is None) == (again.problem is not None) == (len(data) < 2)
        assert again.with_text() == again
    path = write(tmp_path / "a.jsonl", GOOD)
    assert [d.page for d in read_documents(Source(path, path.name), ReadOptions())] == [None]


# Standard input and pipes


class Input:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("format", "data", "ids"),
    [
        (None, TEXT.encode(), ["-"]),
        ("txt", TEXT.encode(), ["-"]),
        ("jsonl", GOOD * 2, ["-#1", "-#2"]),
        ("json", GOOD, ["-"]),
        ("csv", f"text\n{TEXT}".encode(), ["-#1"]),
        ("html", f"<html><p>{TEXT}</p></html>".encode(), ["-"]),
        ("parquet", parquet([{"text": TEXT}]), ["-#1"]),
    ],
)
def test_standard_input(monkeypatch, format, data, ids):
    monkeypatch.setattr(sys, "stdin", Input(data))
    found = read_source(Source(STANDARD_INPUT, "-"), format=format)
    assert [(d.id, d.text) for d in found] == [(id, TEXT) for id in ids]
    assert found[0].source == ("-" if ids == ["-"] else "-:1")
    assert not sys.stdin.buffer.closed


@pytest.fixture
def pipe(tmp_path) -> Iterator[Callable[[str, bytes], Path]]:
    threads = []

    def fill(name: str, data: bytes) -> Path:
        os.mkfifo(tmp_path / name)
        threads.append(threading.Thread(target=(tmp_path / name).write_bytes, args=[data], daemon=True))
        threads[-1].start()
        return tmp_path / name

    yield fill
    for thread in threads:
        thread.join(10)


def test_pipes_given_by_themselves_are_read(pipe):
    (source,) = find_sources([pipe("p", GOOD * 3)])
    assert texts(read_source(source, format="jsonl")) == [TEXT] * 3
    (source,) = find_sources([pipe("q", TEXT.encode())])
    assert texts(read_source(source)) == [TEXT]
    assert texts(read(pipe("r.parquet", parquet([{"text": TEXT}] * 20)))) == [TEXT] * 20
    assert texts(read(pipe("s.csv.gz", gzip.compress(f"text\n{TEXT}".encode())))) == [TEXT]


def test_the_suffix_counts_for_more_than_the_format_given(tmp_path):
    path = write(tmp_path / "a.txt", GOOD)
    assert texts(read(path, format="jsonl")) == [GOOD.decode()]
    assert texts(read(write(tmp_path / "a.gz", gzip.compress(GOOD)), format="jsonl")) == [TEXT]


# Ids


def test_ids_are_made_unique():
    unique = UniqueIds()
    given_ids = ["a", "b", "a", "a#2", "a", "b", "a#2", "", ""]
    assert [unique(id) for id in given_ids] == ["a", "b", "a#2", "a#2#2", "a#3", "b#2", "a#2#3", "", "#2"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "a#2#2", "b"])))
def test_ids_are_unique_whatever_comes(given_ids):
    unique = UniqueIds()
    found = [unique(id) for id in given_ids]
    assert len(set(found)) == len(found)
    assert [id for n, id in enumerate(given_ids) if id not in found[:n] and found[n] != id] == []
    assert all(new == id or new.startswith(f"{id}#") for new, id in zip(found, given_ids, strict=True))


def test_one_id_many_times_takes_no_time():
    unique = UniqueIds()
    found = [unique("a") for _ in range(20_000)]
    assert (found[0], found[1], found[-1]) == ("a", "a#2", "a#20000")
