"""Records as tables: a Parquet file with a row per article, and a DuckDB database of articles, entities, relations."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from rasid.errors import ConfigError, DataError, describe
from rasid.records import Article

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# A batch is a row group of Parquet and a step of filling a database. Where it ends depends on the records alone.
_BATCH_ROWS = 1_024
_BATCH_BYTES = 8_000_000  # of JSON
_DUCKDB_LIMITS: dict[str, str | bool | int | float | list[str]] = {"memory_limit": "100MB", "threads": 1}
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
_INSERTS = (
    "INSERT INTO articles BY NAME SELECT article, id, text, meta FROM rasid_batch",
    "INSERT INTO entities BY NAME SELECT article, unnest(entities, max_depth := 2) FROM rasid_batch",
    """
    INSERT INTO relations BY NAME SELECT
        article, r.type, r.head, r.tail, r.score,
        list_filter(entities, lambda e: e.id = r.head)[1].text AS head_text,
        list_filter(entities, lambda e: e.id = r.tail)[1].text AS tail_text
    FROM (SELECT article, entities, unnest(relations) AS r FROM rasid_batch)
    """,
)


def write_parquet(records: Path, old: Path | None, new: Path) -> None:
    """Write the rows of an older Parquet file, if there is one, and those of a JSONL file of records.

    Raises:
        ConfigError: if the older file is damaged or holds something else.
        DataError: if a line of `records` is no record.
    """
    import pyarrow.parquet as pq

    # Statistics of texts help no query, and make the footer, which is held in memory, grow.
    with new.open("wb") as out, pq.ParquetWriter(out, _schema(), compression="zstd", write_statistics=False) as writer:
        for batch in _row_groups(old) if old else ():
            writer.write_batch(batch)
        for batch in _batches(records):
            writer.write_batch(batch)


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

    if old:
        shutil.copyfile(old, new)
    try:
        with duckdb.connect(new, config=_DUCKDB_LIMITS) as database:
            database.begin()
            if missing := _create_tables(database):
                raise ConfigError(f"{old}: its tables lack {', '.join(missing)}; write to another file")
            (last,) = database.sql("SELECT coalesce(max(article), 0) FROM articles").fetchall()[0]
            for batch in _batches(records):
                numbers = pa.array(range(last + 1, last + 1 + len(batch)), pa.int64())
                _insert(database, pa.Table.from_batches([batch]).append_column("article", numbers))
                last += len(batch)
            database.commit()
            database.execute("CHECKPOINT")  # closing does so too, but says nothing if it fails
    except duckdb.Error as error:
        raise OSError(_first_line(error)) from error


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
            f"{path}: cannot be opened ({_first_line(error)}); close it elsewhere, or write to another file"
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


def _insert(database: "duckdb.DuckDBPyConnection", rasid_batch: "pa.Table") -> None:
    """Add numbered articles. DuckDB finds the batch by this name; one that is registered is held until the commit."""
    for insert in _INSERTS:
        database.execute(insert)


def _batches(records: Path) -> Iterator["pa.RecordBatch"]:
    import pyarrow as pa

    schema, rows, size = _schema(), list[dict[str, Any]](), 0
    with records.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                article = Article.model_validate_json(line)
            except ValidationError as error:
                raise DataError(f"{records}:{number}: not an article record: {describe(error)}") from error
            rows.append(article.model_dump() | {"meta": json.dumps(article.meta, ensure_ascii=False)})
            size += len(line)
            if len(rows) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield pa.RecordBatch.from_pylist(rows, schema=schema)
                rows, size = [], 0
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


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
            f"{old}: cannot be appended to: not a sound Parquet file ({_first_line(error)}); write to another file"
        ) from error


def _schema() -> "pa.Schema":
    import pyarrow as pa

    text, position, score = pa.string(), pa.int32(), pa.float64()
    entity = {"id": text, "type": text, "start": position, "end": position, "text": text, "score": score}
    relation = {"type": text, "head": text, "tail": text, "score": score}
    lists = {
        "entities": pa.list_(pa.struct(entity | {"normalized": text})),
        "relations": pa.list_(pa.struct(relation)),
    }
    return pa.schema({"id": text, "text": text, "meta": text} | lists)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
