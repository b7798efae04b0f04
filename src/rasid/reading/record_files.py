"""Files of many records: JSON, JSON lines, CSV and Parquet, a record at a time, so that files of any size are read.

What is wrong with one record costs that record; what is wrong with the file as such is a `DataError` that ends it.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from rasid.errors import DataError
from rasid.reading.streams import ByteStream, optional_package, seekable, too_long

_CHUNK = 1 << 14  # characters; what a file that is cut off may cost before the cut
_DELIMITERS = ",;\t"
_JSON = json.JSONDecoder()
_JSON_SPACE = " \t\r\n"
_JSON_SPACES = re.compile(f"[{_JSON_SPACE}]*")
_LONGEST_TOKEN = 16  # characters: of what JSON does not put between quotes, or of an escape
_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 16  # few, as each text may be as long as an article may be

CheckColumns = Callable[[list[str]], object]
"""Raises a DataError where the columns of a table are not those needed."""


@dataclass(frozen=True)
class Row:
    """A record, or what is wrong with it.

    Attributes:
        number: Which line of JSON lines, else which record, from 1; None if it is all that the file holds.
        record: Its fields.
        problem: Why there are none.
    """

    number: int | None
    record: dict[str, Any] | None
    problem: str | None = None


def read_jsonl(text: TextIO, limit: int) -> Iterator[Row]:
    """An object a line, each of at most `limit` characters; blank lines are skipped."""
    lines = _Lines(text, limit, quoted=False)
    for number in itertools.count(1):
        lines.begin()
        try:
            line = next(lines, None)
        except DataError as error:
            yield Row(number, None, str(error))
            continue
        if line is None:
            return
        if line := line.strip(_JSON_SPACE):
            yield _parse(number, line)


def read_json(text: TextIO, limit: int) -> Iterator[Row]:
    """The objects of a list, or objects that follow one another, each of at most `limit` characters.

    Raises:
        DataError: where the file breaks the rules of JSON, as there is no telling where the next object begins.
    """
    window = _Window(text, limit)
    is_list = window.take("[")
    ended = is_list and window.take("]")
    number = 0
    while not ended and window.peek():
        value = window.value()
        number += 1
        is_alone = not is_list and number == 1 and not window.peek()
        yield _object(None if is_alone else number, value)
        if is_list and not window.take(","):
            ended = window.take("]")
            if not ended:
                raise DataError(f"not JSON: neither , nor ] after object {number}, at {window.place}")
    if is_list and not ended:
        raise DataError(f"not JSON: the list is cut off after object {number}")
    if window.peek():
        raise DataError(f"not JSON: more after the end of the list, at {window.place}; name JSON lines .jsonl")


def read_csv(text: TextIO, limit: int, check_columns: CheckColumns) -> Iterator[Row]:
    """The rows below a header, each of at most `limit` characters; the header tells the delimiter: `,`, `;` or tab.

    The csv module's limit for a field, which is one for the whole process, is raised to `limit`.

    Raises:
        DataError: if there is no header, or `check_columns` refuses it.
    """
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    lines = _Lines(text, limit, quoted=True)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        return
    if told := re.fullmatch(r"sep=(.)\s*", first):  # how Excel is told the delimiter
        delimiter, first = told[1], next(lines, "")
    else:
        delimiter = max(_DELIMITERS, key=lambda d: len(next(csv.reader([first], delimiter=d))))
    rows = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(rows)]
    except csv.Error as error:
        raise DataError(f"no CSV header in the first line: {error}") from error
    check_columns(columns)
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise DataError(f"two columns are called «{twice}»; give one of them another name")
    number = 0
    while True:
        lines.begin()
        record, problem = None, None
        try:
            row = next(rows, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) == len(columns):
                record = dict(zip(columns, row, strict=True))
            else:
                problem = (
                    f"{len(row)} fields where the header has {len(columns)}; "
                    f"put fields that hold {delimiter!r} or line breaks between quotes"
                )
        except DataError as error:
            problem = str(error)
        except csv.Error as error:
            problem = f"not CSV: {error}; quotes within a quoted field are written twice"
        number += 1
        yield Row(number, record, problem)


def read_parquet(stream: ByteStream, check_columns: CheckColumns) -> Iterator[Row]:
    """The rows of a Parquet file, without the columns of lists and structures.

    Raises:
        DataError: if it is none, is broken, or `check_columns` refuses it.
    """
    pa, pq = optional_package("pyarrow"), optional_package("pyarrow.parquet")
    try:
        with seekable(stream, _PARQUET_MAGIC) as file:
            table = pq.ParquetFile(file)
            columns = [field.name for field in table.schema_arrow if not pa.types.is_nested(field.type)]
            check_columns(columns)
            number = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=columns):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        yield Row(number, batch.slice(index, 1).to_pylist()[0])
                    except UnicodeDecodeError as error:
                        yield Row(number, None, f"not UTF-8: {error.reason} at byte {error.start} of a value")
    except pa.ArrowException as error:
        raise DataError(f"not a sound Parquet file: {error}") from error


def _parse(number: int, line: str) -> Row:
    try:
        return _object(number, json.loads(line))
    except RecursionError:
        return Row(number, None, "not JSON that can be read: nested too deeply")
    except ValueError as error:
        return Row(number, None, f"not JSON: {error}")


def _object(number: int | None, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value)
    kind = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return Row(number, None, f"not a record but {kind}; expected an object with the text in one of its fields")


class _Lines(Iterator[str]):
    """Lines, as long as the record that they make up has no more than `limit` characters.

    Past that a DataError is raised, and the next line is the first one after the record, which is where the line ends
    and, if lines may be `quoted`, its quotes are closed.
    """

    def __init__(self, text: TextIO, limit: int, *, quoted: bool) -> None:
        self._text, self._limit, self._quoted = text, limit, quoted
        self._ends = ("\n", "\r") if quoted else "\n"
        self.begin()

    def begin(self) -> None:
        """Begin a record: what was read so far does not count."""
        self._taken = self._quotes = 0

    def __next__(self) -> str:
        line = self._read(self._limit + 1 - self._taken)
        if not line:
            raise StopIteration
        self._taken += len(line)
        if self._taken > self._limit:
            while line and not (line.endswith(self._ends) and not (self._quoted and self._quotes % 2)):
                line = self._read(_CHUNK)
            raise too_long(self._limit)
        return line

    def _read(self, most: int) -> str:
        line = self._text.readline(most)
        self._quotes += line.count('"')
        return line


class _Window:
    """The part of a JSON text that is held in memory: at most about twice `limit` characters."""

    def __init__(self, text: TextIO, limit: int) -> None:
        self._text, self._limit = text, limit
        self._held, self._at, self._dropped = "", 0, 0

    @property
    def place(self) -> str:
        """Where in the text the next character is."""
        return f"character {self._dropped + self._at}"

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            spaces = _JSON_SPACES.match(self._held, self._at)
            self._at = spaces.end() if spaces else self._at
            if self._at < len(self._held) or not self._read():
                return self._held[self._at : self._at + 1]

    def take(self, character: str) -> bool:
        """Whether this is the next character; it is passed if so."""
        found = self.peek() == character
        self._at += found
        return found

    def value(self) -> Any:
        """The value that begins here; raises DataError if there is none, or too long a one."""
        while True:
            try:
                value, end = _JSON.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._held) - _LONGEST_TOKEN
                if is_cut and len(self._held) - self._at > self._limit:
                    raise too_long(self._limit) from error
                if not is_cut or not self._read():
                    place = f"character {self._dropped + error.pos}"
                    raise DataError(f"not JSON: {error.msg} at {place}; nothing after it is read") from error
            except RecursionError as error:
                raise DataError(f"not JSON that can be read: nested too deeply at {self.place}") from error
            else:
                length = end - self._at
                if length > self._limit:
                    raise too_long(self._limit)
                if end < len(self._held) or not self._read():  # a number at the end of what is held may go on
                    self._at += length
                    return value

    def _read(self) -> bool:
        more = self._text.read(max(_CHUNK, len(self._held) - self._at))
        if more:
            self._dropped += self._at
            self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)
