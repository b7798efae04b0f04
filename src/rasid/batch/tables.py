"""Records as tables: a Parquet file with a row per article, and a DuckDB database of articles, entities, relations."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rasid.errors import ConfigError, DataError, describe, first_line
from rasid.records import Article

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    import pyarrow.parquet as pq

# A batch is a row group of Parquet and a step of filling a database. Where it ends depends on the records alone.
_BATCH_ROWS = 1_024
_BATCH_BYTES = 4_000_000  # of JSON
_DUCKDB_LIMITS: dict[str, str | bool | int | float | list[str]] = {"memory_limit": "64MB", "threads": 1}
_TABLES = """
    CREATE TABLE IF NOT EXISTS articles (article BIGINT PRIMARY KEY, id VARCHAR, text VARCHAR, meta JSON);
    CREATE TABLE IF NOT EXISTS entities (
        article BIGINT, id VARCHAR, type VARCHAR, "start" INTEGER, "end" INTEGER, text VARCHAR, score DOUBLE,
        normalized VARCHAR
    );
    CREATE TABLE IF NOT EXISTS relations (
        article BIGINT, type VARCHAR, head VARCHAR, tail VARCHAR, head_text VARCHAR, tail_text VARCHAR, score DOUBLE
    );
"""
_COLUMNS = """
    SELECT table_name, column_name, data_type FROM duckdb_columns()
    WHERE database_name = current_database() AND schema_name = 'main' ORDER BY table_name, column_index
"""


def write_parquet(records: Path, old: Path | None, new: Path) -> None:
    """Write the rows of an older Parquet file, if there is one, and those of a JSONL file of records.

    Raises:
        ConfigError: if the older file is damaged or holds something else.
        DataError: if a line of `records` is no record.
    """
    with parquet_writer(new) as writer:
        for batch in _row_groups(old) if old else ():
            writer.write_batch(batch)
        for articles in _batches(records):
            writer.write_batch(parquet_rows(articles))


@contextmanager
def parquet_writer(path: Path) -> "Iterator[pq.ParquetWriter]":
    """A new Parquet file of articles; each batch written to it is a row group."""
    import pyarrow.parquet as pq

    # Statistics of texts help no query, and make the footer, which is held in memory, grow.
    with path.open("wb") as out, pq.ParquetWriter(out, _schema(), compression="zstd", write_statistics=False) as writer:
        yield writer


def parquet_rows(articles: Iterable[Article]) -> "pa.RecordBatch":
    """Articles as rows of such a file."""
    import pyarrow as pa

    rows = [article.model_dump() | {"meta": _meta(article)} for article in articles]
    return pa.RecordBatch.from_pylist(rows, schema=_schema())


def write_duckdb(records: Path, old: Path | None, new: Path) -> None:
    """Write a copy of an older database, if there is one, with the articles of a JSONL file of records added.

    Articles are numbered from 1 in their order; other tables and added columns of the older database stay.

    Raises:
        ConfigError: if the older database's tables lack a column.
        DataError: if a line of `records` is no record.
        OSError: if DuckDB fails, as on a full disk.
    """
    import duckdb
    import pyarrow as pa

    schemas = _table_schemas()
    if old:
        shutil.copyfile(old, new)
    try:
        with duckdb.connect(new, config=_DUCKDB_LIMITS) as database:
            database.begin()
            if missing := _create_tables(database):
                raise ConfigError(f"{old}: its tables lack {', '.join(missing)}; write to another file")
            (last,) = database.sql("SELECT coalesce(max(article), 0) FROM articles").fetchall()[0]
            for articles in _batches(records):
                for table, rows in _table_rows(articles, first=last + 1).items():
                    _append(database, table, pa.Table.from_pylist(rows, schema=schemas[table]))
                last += len(articles)
            database.commit()
            database.execute("CHECKPOINT")  # closing does so too, but says nothing if it fails
    except duckdb.Error as error:
        raise OSError(first_line(error)) from error


def settle_database(path: Path) -> None:
    """See that nobody has a database open, and have it take in what a killed program left in its log.

    Raises:
        ConfigError: if it is in use or no database.
    """
    import duckdb

    try:
        duckdb.connect(path).close()
    except duckdb.Error as error:
        raise ConfigError(
            f"{path}: cannot be opened ({first_line(error)}); close it elsewhere, or write to another file"
        ) from error
    if path.with_name(f"{path.name}.wal").exists():  # would be taken for the log of the new file
        raise ConfigError(f"{path}: is open in this program too, with changes; close it there")


def _create_tables(database: "duckdb.DuckDBPyConnection") -> list[str]:
    """Create the tables that a database lacks; returns the columns that tables of these names lack."""
    import duckdb

    with duckdb.connect() as fresh:
        expected = fresh.execute(_TABLES).execute(_COLUMNS).fetchall()
    found = database.execute(_TABLES).execute(_COLUMNS).fetchall()
    return [f"{table}.{column} ({kind})" for table, column, kind in expected if (table, column, kind) not in found]


def _table_rows(articles: Sequence[Article], first: int) -> dict[str, list[dict[str, Any]]]:
    """The rows that articles, numbered from `first`, make in each table of a database."""
    rows: dict[str, list[dict[str, Any]]] = {"articles": [], "entities": [], "relations": []}
    for number, article in enumerate(articles, start=first):
        texts = {e.id: e.text for e in article.entities}
        rows["articles"].append({"article": number, "id": article.id, "text": article.text, "meta": _meta(article)})
        for entity in article.entities:
            rows["entities"].append({"article": number} | dict(entity))
        for relation in article.relations:
            ends = {"head_text": texts.get(relation.head), "tail_text": texts.get(relation.tail)}
            rows["relations"].append({"article": number} | dict(relation) | ends)
    return rows


def _append(database: "duckdb.DuckDBPyConnection", table: str, rasid_rows: "pa.Table") -> None:
    """Add rows, which DuckDB finds by the parameter's name; registered, they would be kept until the commit."""
    database.execute(f"INSERT INTO {table} BY NAME FROM rasid_rows")


def _batches(records: Path) -> Iterator[list[Article]]:
    batch, size = list[Article](), 0
    with records.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                batch.append(Article.model_validate_json(line))
            except ValidationError as error:
                raise DataError(f"{records}:{number}: not an article record: {describe(error)}") from error
            size += len(line)
            if len(batch) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _meta(article: Article) -> str:
    return json.dumps(article.meta, ensure_ascii=False)


def _row_groups(old: Path) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = _schema()
    try:
        with pq.ParquetFile(old, pre_buffer=False) as file:
            if not (found := file.schema_arrow).equals(expected):
                columns = "; ".join(f"{field.name} {field.type}" for field in found)
                raise ConfigError(
                    f"{old}: a Parquet file of other columns ({columns}); append to one that was written by this "
                    "program, or write to another file"
                )
            for group in range(file.num_row_groups):
                yield from file.iter_batches(_BATCH_ROWS, row_groups=[group])
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{old}: cannot be appended to: not a sound Parquet file ({first_line(error)}); write to another file"
        ) from error


def _schema() -> "pa.Schema":
    """Columns of a Parquet file."""
    import pyarrow as pa

    entity, relation = _parts()
    texts = {name: pa.string() for name in ("id", "text", "meta")}
    return pa.schema(texts | {"entities": pa.list_(pa.struct(entity)), "relations": pa.list_(pa.struct(relation))})


def _table_schemas() -> "dict[str, pa.Schema]":
    """Columns of what goes into each table of a database."""
    import pyarrow as pa

    number, text = {"article": pa.int64()}, pa.string()
    entity, relation = _parts()
    return {
        "articles": pa.schema(number | {"id": text, "text": text, "meta": text}),
        "entities": pa.schema(number | entity),
        "relations": pa.schema(number | relation | {"head_text": text, "tail_text": text}),
    }


def _parts() -> "tuple[dict[str, pa.DataType], dict[str, pa.DataType]]":
    """Fields of an entity and of a relation."""
    import pyarrow as pa

    text, position, score = pa.string(), pa.int32(), pa.float64()
    entity = {"id": text, "type": text, "start": position, "end": position, "text": text, "score": score}
    return entity | {"normalized": text}, {"type": text, "head": text, "tail": text, "score": score}
