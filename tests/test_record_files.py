"""Records out of JSON and CSV as they stream by, and where reading goes on after what is broken."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.reading import record_files
from rasid.reading.record_files import Row, read_csv, read_json, read_jsonl

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5)


def stream(text: str, newline: str) -> TextIO:
    return io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogatepass")), "utf-8", "surrogatepass", newline)


def rows(
    read: Callable[..., Iterator[Row]], text: str, *more: Any, limit: int = 1000
) -> tuple[list[Row], DataError | None]:
    """What is read before the error that ends the file, if any, and that error."""
    found: list[Row] = []
    try:
        for row in read(stream(text, "" if read is read_csv else "\n"), limit, *more):
            found.append(row)
    except DataError as error:
        return found, error
    return found, None


def csv_rows(text: str, limit: int = 1000) -> list[Row]:
    found, error = rows(read_csv, text, list, limit=limit)
    assert error is None
    return found


@pytest.fixture(scope="module", params=[1, 2, 7, 1 << 14])
def chunk(request) -> Iterator[int]:
    """How many characters are read at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_CHUNK", request.param)
        yield request.param


@settings(max_examples=40, deadline=None)
@given(objects=OBJECTS, indent=st.sampled_from([None, 0, 3]), ascii=st.booleans())
def test_a_list_is_read_like_json_does(chunk, objects, indent, ascii):
    text = json.dumps(objects, indent=indent, ensure_ascii=ascii)
    numbered = [Row(n, value) for n, value in enumerate(objects, 1)]
    assert rows(read_json, f" {text}\n", limit=10**6) == (numbered, None)


@settings(max_examples=40, deadline=None)
@given(objects=OBJECTS, indent=st.sampled_from([None, 3]), between=st.sampled_from(["", "\n", " \r\n\t"]))
def test_objects_that_follow_one_another(chunk, objects, indent, between):
    text = between.join(json.dumps(value, indent=indent) for value in objects)
    numbers = [None] if len(objects) == 1 else range(1, len(objects) + 1)
    numbered = [Row(n, value) for n, value in zip(numbers, objects, strict=True)]
    assert rows(read_json, text + between, limit=10**6) == (numbered, None)


@settings(max_examples=40, deadline=None)
@given(objects=OBJECTS)
def test_json_lines_are_read_like_json_does(objects):
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in objects)
    assert rows(read_jsonl, text, limit=10**6) == ([Row(n, value) for n, value in enumerate(objects, 1)], None)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ('[{"a": 1}, {"b"}, {"c": 1}]', 1, "not JSON: Expecting ':' delimiter at character 15; nothing after it"),
        ('[{"a": 1}, {"b": 1} {"c": 1}]', 2, "not JSON: neither , nor ] after object 2, at character 20"),
        ('[{"a": 1}, {"b": 1}', 2, "not JSON: neither , nor ] after object 2"),
        ('[{"a": 1}, {"b": ', 1, "not JSON: Expecting value at character 17"),
        ('[{"a": 1}, {"b": "x', 1, "not JSON: Unterminated string starting at"),
        ('[{"a": 1},', 1, "not JSON: the list is cut off after object 1"),
        ("[", 0, "not JSON: the list is cut off after object 0"),
        ('[{"a": 1}, ]', 1, "not JSON: Expecting value at character 11"),
        ('[{"a": 1}] [{"a": 2}]', 1, "not JSON: more after the end of the list, at character 11"),
        ("قسد", 0, "not JSON: Expecting value at character 0"),
        ('[{"a": "\t"}]', 0, "not JSON: Invalid control character at"),
        ("[" + '{"a":' * 200_000, 0, "nested too deeply|longer than"),
        ('[{"a": 1}, {"b": "' + "x" * 2000, 1, "longer than 1,000 bytes"),
        ('[{"a": 1}, {"b": "' + "x" * 2000 + '"}]', 1, "longer than 1,000 bytes"),
        ('[{"a": 1}, {"b": "' + "x" * 990 + '"}, 3]', 3, None),
    ],
)
def test_json_that_ends_a_file(chunk, text, count, message):
    found, error = rows(read_json, text)
    assert len(found) == count
    assert (error is None) == (message is None)
    assert message is None or re.search(message, str(error))


def test_values_of_a_list_that_are_no_objects(chunk):
    found, error = rows(read_json, '[{"a": 1}, 12345, "a", [], null, true, {"b": 2}]')
    assert error is None
    assert [row.record for row in found] == [{"a": 1}, None, None, None, None, None, {"b": 2}]
    kinds = ["a number", "a string", "a list", "null", "true or false"]
    assert [row.problem for row in found[1:6]] == [
        f"not a record but {kind}; expected an object with the text in one of its fields" for kind in kinds
    ]


def test_lines_too_long_cost_themselves_only(chunk):
    good = '{"a": 1}\n'
    found, error = rows(read_jsonl, good + "x" * 5000 + "\n" + good + "y" * 5000 + "\r" + good + good + "z" * 5000)
    assert error is None
    assert [(row.number, row.record) for row in found] == [
        (1, {"a": 1}),
        (2, None),
        (3, {"a": 1}),
        (4, None),  # a lone carriage return ends no line of JSON
        (5, {"a": 1}),
        (6, None),
    ]


def test_a_line_just_as_long_as_the_limit():
    line = json.dumps({"a": "x" * 991})
    assert len(line) == 1000
    assert rows(read_jsonl, line)[0] == [Row(1, json.loads(line))]
    assert rows(read_jsonl, line, limit=999)[0][0].record is None


@settings(deadline=None)
@given(
    table=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]))] * 3),
        max_size=6,
    ),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_tables_are_read_as_they_were_written(table, delimiter, end):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *table])
    expected = [Row(n, dict(zip("abc", row, strict=True))) for n, row in enumerate(table, 1)]
    assert csv_rows(out.getvalue()) == expected


def test_rows_with_more_or_fewer_fields_than_the_header():
    found = csv_rows("id,text\n1,قصف، وانسحاب\n2,a,b\n3\n4,c\n")
    assert [row.record and row.record["text"] for row in found] == ["قصف، وانسحاب", None, None, "c"]
    assert found[1].problem == "3 fields where the header has 2; put fields that hold ',' or line breaks between quotes"
    assert found[2].problem is not None


def test_quotes_that_are_wrong_cost_their_rows_only():
    found = csv_rows('id,text\n1,"a"\n2,"said "no" twice"\n3,"b"\n4,a "b" c\n5,"never closed\n6,"c"\n7,"d"\n8,"end')
    assert [(row.number, row.record and row.record["text"]) for row in found] == [
        (1, "a"),
        (2, None),
        (3, "b"),
        (4, 'a "b" c'),
        (5, None),  # with row 6, in which the quote is closed
        (6, "d"),
        (7, None),
    ]
    assert "not CSV: ',' expected after '\"'" in (found[1].problem or "")
    assert "unexpected end of data" in (found[-1].problem or "")


def test_a_field_too_long_is_passed_to_its_closing_quote(chunk):
    long = ('line, with commas and ""quotes""\n' * 200) + "end"
    found = csv_rows(f'id,text\n1,a\n2,"{long}"\n3,b\n4,{"x" * 3000}\n5,c\n')
    assert [row.record and row.record["text"] for row in found] == ["a", None, "b", None, "c"]
    assert all("longer than 1,000 bytes" in (row.problem or "") for row in (found[1], found[3]))


def test_a_header_of_names_between_quotes_and_spaces():
    assert csv_rows('\n\n" id ","te""xt"\n1,"a;b"\n') == [Row(1, {"id": "1", 'te"xt': "a;b"})]


def test_the_delimiter_may_be_told():
    for told in ("sep=;\n", "sep=;\r\n"):
        assert csv_rows(f"{told}text;a,b,c\nx;1\n") == [Row(1, {"text": "x", "a,b,c": "1"})]
    assert csv_rows("sep=;\n") == []


def test_two_columns_of_one_name():
    _, error = rows(read_csv, "id,text,text\n1,a,b\n", list)
    assert str(error) == "two columns are called «text»; give one of them another name"
    assert csv_rows("text,,\na,,\n") == [Row(1, {"text": "a", "": ""})]  # as tables with empty columns have it


def test_a_header_that_is_none():
    for text in ('"never closed', "x" * 2000):
        found, error = rows(read_csv, text, list)
        assert found == []
        assert error is not None
    assert csv_rows("") == csv_rows("\n\n") == []
