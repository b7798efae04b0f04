"""Records to JSONL, Parquet and DuckDB: nothing is lost or changed, and a failure leaves the target as it was."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rasid.batch import tables
from rasid.batch.outputs import SUFFIXES, OutputFormat, check_output, guess_format, write_output
from rasid.errors import ConfigError, DataError
from rasid.records import Article, Entity, Relation, write_articles

FORMATS: tuple[OutputFormat, ...] = ("jsonl", "parquet", "duckdb")
ODD = (
    "a\0b",
    "\0",
    "\ufeffقسد",
    "😀👩‍👩‍👧",
    "one\ntwo\r\nthree\r",
    "\u2028\u2029\x85",
    "'\"\\;--",
    "\u202bحلب\u202c",
    "é\u0301",
    " ",
)

README = Path(__file__).parents[1] / "README.md"
REPORTED_AT, ATTACKS_BY_WEEK, MOVEMENTS = re.findall(r"```sql\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def article(id: str = "a", text: str = "قسد في حلب", **meta: Any) -> Article:
    """A record with every field, the optional ones set in the first entity and relation only."""
    whole = Entity(id="T1", type="MIL_UNIT", start=0, end=len(text), text=text, score=0.1 + 0.2, normalized=text)
    bare = Entity(id="T2", type="LOCATION", start=0, end=1, text=text[0])
    relations = (Relation(type="NEAR", head="T2", tail="T1", score=1 / 3), Relation(type="NEAR", head="T1", tail="T2"))
    return Article(id=id, text=text, meta=meta, entities=(whole, bare), relations=relations)


def story(*spans: str, links: Sequence[tuple[str, int, int]] = (), **meta: Any) -> Article:
    """An article of spans `TYPE name` (or `TYPE name=normalized`) with links between them by their numbers."""
    entities, text = [], ""
    for number, span in enumerate(spans):
        kind, name = span.split(" ", 1)
        name, _, normalized = name.partition("=")
        entities.append(
            Entity(
                id=f"T{number}",
                type=kind,
                start=len(text),
                end=len(text) + len(name),
                text=name,
                normalized=normalized or None,
            )
        )
        text += name + " "
    relations = tuple(Relation(type=kind, head=f"T{head}", tail=f"T{tail}") for kind, head, tail in links)
    return Article(id="same", text=text, meta=meta, entities=tuple(entities), relations=relations)


def write(
    folder: Path, articles: Sequence[Article], format: OutputFormat, append: bool = False, name: str = "out"
) -> Path:
    """The target after these records were written to it."""
    records = folder / "records" / "finished.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    records.unlink(missing_ok=True)
    write_articles(articles, records)
    target = folder / f"{name}.{format}"
    write_output(records, target, format, append)
    assert [p.name for p in folder.iterdir() if p.name.endswith((".part", ".wal", ".tmp"))] == []
    return target


def read(target: Path) -> list[Article]:
    """The records of an output of any format."""
    if target.suffix == ".jsonl":
        return [Article.model_validate_json(line) for line in target.read_bytes().split(b"\n")[:-1]]
    if target.suffix == ".parquet":
        rows = pq.read_table(target).to_pylist()
        return [Article.model_validate(row | {"meta": json.loads(row["meta"])}) for row in rows]
    with duckdb.connect(target, read_only=True) as database:
        articles = database.execute("FROM articles ORDER BY article").fetchall()
        assert [number for number, *_ in articles] == list(range(1, len(articles) + 1))
        parts: dict[str, dict[int, list[dict[str, Any]]]] = {"entities": {}, "relations": {}}
        for table, found in parts.items():
            rows = database.sql(f"FROM {table} ORDER BY rowid").to_arrow_table().to_pylist()
            for row in rows:
                found.setdefault(row.pop("article"), []).append(row)
    for number, rows in parts["relations"].items():
        texts = {e["id"]: e["text"] for e in parts["entities"][number]}
        for row in rows:
            assert (row.pop("head_text"), row.pop("tail_text")) == (texts[row["head"]], texts[row["tail"]])
    return [
        Article.model_validate(
            {"id": id, "text": text, "meta": json.loads(meta)}
            | {name: found.get(number, []) for name, found in parts.items()}
        )
        for number, id, text, meta in articles
    ]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow over that many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(code: str, *args: str | Path) -> "subprocess.Popen[str]":
    """Another Python process."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("a.jsonl", "jsonl"),
        ("a.parquet", "parquet"),
        ("a.duckdb", "duckdb"),
        ("a.b.DB", "duckdb"),
        ("/dev/stdout", "jsonl"),
        ("/dev/null", "jsonl"),
        ("/dev/fd/9", "jsonl"),
    ],
)
def test_format_of_a_path(name: str, format: str) -> None:
    assert guess_format(Path(name)) == format


def test_a_pipe_takes_jsonl(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert guess_format(tmp_path / "pipe") == "jsonl"


@pytest.mark.parametrize(("name", "found"), [("news.csv", "unknown suffix .csv"), ("news", "no suffix"), (".db", "no")])
def test_unknown_suffix(name: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=found) as error:
        guess_format(tmp_path / name)
    assert all(suffix in str(error.value) for suffix in SUFFIXES)


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(format: OutputFormat, tmp_path: Path) -> None:
    articles = [
        article(f"{ODD[i % len(ODD)]}#{i}", ODD[i % len(ODD)] * (1 + i % 7), title=ODD[i % len(ODD)], row=i, big=2**70)
        for i in range(2_000)
    ]
    articles[7] = Article(id="bare", text="no entity, no relation")
    assert read(write(tmp_path, articles, format)) == articles


@pytest.mark.parametrize("format", FORMATS)
def test_no_record(format: OutputFormat, tmp_path: Path) -> None:
    assert read(write(tmp_path, [], format)) == []


def test_columns_of_parquet(tmp_path: Path) -> None:
    schema = pq.read_schema(write(tmp_path, [article()], "parquet"))
    text, score = pa.string(), pa.float64()
    assert {field.name: field.type for field in schema} == {
        "id": text,
        "text": text,
        "meta": text,
        "entities": pa.list_(
            pa.struct(
                {
                    "id": text,
                    "type": text,
                    "start": pa.int32(),
                    "end": pa.int32(),
                    "text": text,
                    "score": score,
                    "normalized": text,
                }
            )
        ),
        "relations": pa.list_(pa.struct({"type": text, "head": text, "tail": text, "score": score})),
    }


def test_columns_of_duckdb(tmp_path: Path) -> None:
    with duckdb.connect(write(tmp_path, [article()], "duckdb")) as database:
        found = {
            name: [row[:2] for row in database.execute(f"DESCRIBE {name}").fetchall()]
            for (name,) in database.execute("SHOW TABLES").fetchall()
        }
        with pytest.raises(duckdb.ConstraintException):
            database.execute("INSERT INTO articles SELECT * FROM articles")
    text, number, score = "VARCHAR", "BIGINT", "DOUBLE"
    assert found == {
        "articles": [("article", number), ("id", text), ("text", text), ("meta", "JSON")],
        "entities": [
            ("article", number),
            ("id", text),
            ("type", text),
            ("start", "INTEGER"),
            ("end", "INTEGER"),
            ("text", text),
            ("score", score),
            ("normalized", text),
        ],
        "relations": [
            ("article", number),
            ("type", text),
            ("head", text),
            ("tail", text),
            ("head_text", text),
            ("tail_text", text),
            ("score", score),
        ],
    }


def test_queries(tmp_path: Path) -> None:
    articles = [
        story(
            "MIL_UNIT قسد",
            "LOCATION الرقّة=الرقه",
            "MIL_UNIT داعش",
            "EQUIPMENT دبابة",
            links=[("LOCATED_AT", 0, 1), ("CONTROLS", 0, 1), ("ATTACKS", 2, 0), ("LOCATED_AT", 3, 1)],
            date="2024-03-05",
        ),
        story(
            "MIL_UNIT قسد",
            "LOCATION الرقة=الرقه",
            "MIL_UNIT داعش",
            links=[("LOCATED_AT", 0, 1), ("ATTACKS", 2, 0), ("ATTACKS", 2, 1)],
            date="2024-03-10T21:30:00Z",
        ),
        story("MIL_UNIT داعش", "MIL_UNIT قسد", links=[("ATTACKS", 0, 1)], date="2024-03-11"),
        story("MIL_UNIT داعش", "MIL_UNIT قسد", links=[("ATTACKS", 0, 1)], date="أمس"),
        story("MIL_UNIT داعش", "MIL_UNIT قسد", links=[("ATTACKS", 0, 1)]),
        story(
            "EQUIPMENT رتل",
            "LOCATION حلب",
            "LOCATION منبج",
            "FACILITY M4",
            "FACILITY جسر",
            "MIL_UNIT لواء",
            links=[
                ("MOVES_FROM", 0, 1),
                ("MOVES_TO", 0, 2),
                ("MOVES_VIA", 0, 4),
                ("MOVES_VIA", 0, 3),
                ("MOVES_TO", 5, 2),
            ],
        ),
        story("MIL_UNIT لواء", "LOCATION منبج", "MIL_UNIT لواء", links=[("MOVES_TO", 0, 1), ("MOVES_TO", 2, 1)]),
    ]
    with duckdb.connect(write(tmp_path, articles, "duckdb")) as database:
        assert database.execute(REPORTED_AT).fetchall() == [("قسد", "الرقه", 2)]
        assert database.execute(ATTACKS_BY_WEEK).fetchall() == [
            (date(2024, 3, 4), "داعش", "قسد", 2),
            (date(2024, 3, 4), "داعش", "الرقه", 1),
            (date(2024, 3, 11), "داعش", "قسد", 1),
            (None, "داعش", "قسد", 2),
        ]
        assert database.execute(MOVEMENTS).fetchall() == [
            (None, "منبج", None, "لواء", 3),
            ("حلب", "منبج", "M4 + جسر", "رتل", 1),
        ]


@pytest.mark.parametrize("format", FORMATS)
def test_append_twice(format: OutputFormat, tmp_path: Path) -> None:
    parts = [[article(f"{part}-{i}", ODD[i]) for i in range(3)] for part in "abc"]
    parts[2] = parts[1]  # equal ids do no harm
    for part in parts:
        target = write(tmp_path, part, format, append=True)
    assert read(target) == [a for part in parts for a in part]


@pytest.mark.parametrize("format", FORMATS)
def test_append_to_an_empty_file(format: OutputFormat, tmp_path: Path) -> None:
    (tmp_path / f"out.{format}").touch()
    assert read(write(tmp_path, [article()], format, append=True)) == [article()]


@pytest.mark.parametrize("format", FORMATS)
def test_without_append_the_old_records_go(format: OutputFormat, tmp_path: Path) -> None:
    write(tmp_path, [article("old")], format)
    assert read(write(tmp_path, [article("new")], format)) == [article("new")]


@pytest.mark.parametrize("format", FORMATS)
def test_append_to_a_file_of_another_name(format: OutputFormat, tmp_path: Path) -> None:
    old = write(tmp_path, [article("old")], format, name="old")
    before = old.read_bytes()
    records = tmp_path / "new.jsonl"
    write_articles([article("new")], records)
    write_output(records, tmp_path / f"staged.{format}", format, append=True, old=old)
    assert read(tmp_path / f"staged.{format}") == [article("old"), article("new")]
    assert old.read_bytes() == before
    assert read(records) == [article("new")]


def test_append_to_a_last_line_without_an_end(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text('{"id":"of another program"}\n\n{"id":"last"}', encoding="utf-8")
    write(tmp_path, [article()], "jsonl", append=True)
    lines = target.read_text(encoding="utf-8").split("\n")
    assert lines == ['{"id":"of another program"}', "", '{"id":"last"}', article().to_json(), ""]


def test_parquet_bytes_depend_on_the_records_alone(tmp_path: Path) -> None:
    articles = [article(str(i), "نص " * i, n=i) for i in range(1, 300)]
    first = write(tmp_path / "one", articles, "parquet", name="first")
    second = write(tmp_path / "two", articles, "parquet", name="second")
    assert first.read_bytes() == second.read_bytes()


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(target: Path) -> list[int]:
        with pq.ParquetFile(target) as file:
            return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]

    articles = [article(str(i)) for i in range(10)]
    monkeypatch.setattr(tables, "_BATCH_ROWS", 4)
    assert sizes(write(tmp_path, articles, "parquet")) == [4, 4, 2]
    assert sizes(write(tmp_path, articles[:3], "parquet", append=True)) == [4, 4, 2, 3]
    monkeypatch.setattr(tables, "_BATCH_BYTES", 2 * len(article("0").to_json()))
    assert sizes(write(tmp_path, articles[:6], "parquet")) == [2, 2, 2]


def test_duckdb_counts_on_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_ROWS", 4)
    articles = [article(str(i), ODD[i]) for i in range(10)]
    write(tmp_path, articles, "duckdb")
    assert read(write(tmp_path, articles, "duckdb", append=True)) == articles * 2


def test_what_else_a_database_holds_stays(tmp_path: Path) -> None:
    target = write(tmp_path, [article("old")], "duckdb")
    with duckdb.connect(target) as database:
        database.execute("CREATE TABLE notes AS SELECT 'mine' AS note")
        database.execute("ALTER TABLE entities ADD COLUMN checked BOOLEAN DEFAULT false")
        database.execute("CREATE VIEW units AS SELECT text FROM entities WHERE type = 'MIL_UNIT'")
    write(tmp_path, [article("new")], "duckdb", append=True)
    with duckdb.connect(target) as database:
        assert database.execute("FROM notes").fetchall() == [("mine",)]
        assert database.execute("SELECT checked FROM entities").fetchall() == [(False,)] * 4
        assert database.execute("FROM units").fetchall() == [("قسد في حلب",)] * 2


def test_tables_join_a_database_of_others(tmp_path: Path) -> None:
    with duckdb.connect(tmp_path / "out.duckdb") as database:
        database.execute("CREATE TABLE notes AS SELECT 'mine' AS note")
    assert read(write(tmp_path, [article()], "duckdb", append=True)) == [article()]


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_full_disk(format: OutputFormat, append: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path, [article("old")], format)
    before = target.read_bytes()

    def no_links(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", no_links)  # so that JSONL needs room too
    records = tmp_path / "records.jsonl"
    write_articles([article(str(i), os.urandom(500).hex()) for i in range(1_000)], records)
    with full_disk(max(len(before), 300_000)), pytest.raises(ConfigError, match=f"{target.name}: cannot be written"):
        write_output(records, target, format, append)
    assert target.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([target.name, records.name, "records"])
    write_output(records, target, format, append)
    assert len(read(target)) == 1_000 + append


@pytest.mark.parametrize("format", FORMATS)
def test_folder_without_permission(format: OutputFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path, [article("old")], format)
    before = target.read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=f"{target.name}: cannot be written: Permission denied"):
        check_output(target, format)
    with pytest.raises(ConfigError, match=f"{target.name}: cannot be written: Permission denied"):
        write_output(tmp_path / "records" / "finished.jsonl", target, format)
    assert target.read_bytes() == before


@pytest.mark.parametrize("format", FORMATS)
def test_parents_are_made_or_named(format: OutputFormat, tmp_path: Path) -> None:
    target = write(tmp_path, [article()], format)
    for place, problem in ((target / f"x.{format}", "Not a directory"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigError, match=problem):
            write_output(tmp_path / "records" / "finished.jsonl", place, format)
    write_output(tmp_path / "records" / "finished.jsonl", tmp_path / "new" / "er" / f"out.{format}", format)
    assert read(tmp_path / "new" / "er" / f"out.{format}") == [article()]


@pytest.mark.parametrize(
    "garbage", [b"garbage", b"\0" * 20_000, b"PAR1" + b"x" * 100 + b"PAR1", b'"text"\n', b"[" * 9_999]
)
@pytest.mark.parametrize("format", FORMATS)
def test_append_to_garbage(format: OutputFormat, garbage: bytes, tmp_path: Path) -> None:
    target = tmp_path / f"out.{format}"
    target.write_bytes(garbage)
    for attempt in (
        lambda: check_output(target, format, append=True),
        lambda: write(tmp_path, [], format, append=True),
    ):
        with pytest.raises(ConfigError, match=f"{target}.*to another file"):
            attempt()
        assert target.read_bytes() == garbage


def test_append_to_a_damaged_row_group(tmp_path: Path) -> None:
    target = write(tmp_path, [article(str(i)) for i in range(500)], "parquet")
    data = bytearray(target.read_bytes())
    data[20:600] = bytes(580)
    target.write_bytes(data)
    with pytest.raises(ConfigError, match="not a sound Parquet file"):
        write(tmp_path, [article()], "parquet", append=True)
    assert target.read_bytes() == data


def test_append_to_other_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": [1]}), tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match=r"out\.parquet: a Parquet file of other columns \(id string; text int64\)"):
        write(tmp_path, [article()], "parquet", append=True)
    with duckdb.connect(tmp_path / "out.duckdb") as database:
        database.execute("CREATE TABLE articles (article BIGINT, id VARCHAR, text BLOB)")
    with pytest.raises(ConfigError, match=r"out\.duckdb: its tables lack .*articles\.meta \(JSON\)") as error:
        write(tmp_path, [article()], "duckdb", append=True)
    assert "articles.text (VARCHAR)" in str(error.value)
    assert "articles.id" not in str(error.value)


def test_line_that_is_no_record(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text(article().to_json() + '\n{"id": 1}\n', encoding="utf-8")
    for format in ("parquet", "duckdb"):
        with pytest.raises(DataError, match=r"records\.jsonl:2: not an article record: id: .*text: Field required"):
            write_output(records, tmp_path / f"out.{format}", guess_format(tmp_path / f"out.{format}"))
    assert list(tmp_path.iterdir()) == [records]


@pytest.mark.parametrize("format", FORMATS)
def test_leftovers_of_a_killed_run(format: OutputFormat, tmp_path: Path) -> None:
    target = write(tmp_path, [article("old")], format)
    before = target.read_bytes()
    kill = """
import os, sys
from pathlib import Path
from rasid.batch.outputs import write_output
Path.replace = lambda *_: os._exit(9)
write_output(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], append=True)
"""
    process = run(kill, tmp_path / "records" / "finished.jsonl", target, format)
    process.communicate()
    assert process.returncode == 9
    assert target.read_bytes() == before
    (left,) = tmp_path.glob(".*.part")
    (left / f"{target.name}.wal").write_bytes(b"of a database half written")
    assert read(write(tmp_path, [article("new")], format, append=True)) == [article("old"), article("new")]


def test_target_changes_only_when_the_new_file_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, Path]] = []
    replace = Path.replace

    def note_sync(descriptor: int) -> None:
        steps.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))

    def note_replace(new: Path, target: Path) -> Path:
        steps.append(("replace", new))
        return replace(new, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write(tmp_path, [article()], "jsonl")
    new = tmp_path / ".out.jsonl.part" / "out.jsonl"
    assert steps == [("sync", new), ("replace", new), ("sync", tmp_path)]


@pytest.mark.parametrize("append", [False, True])
def test_database_in_use(append: bool, tmp_path: Path) -> None:
    target = write(tmp_path, [article("old")], "duckdb")
    before = target.read_bytes()
    hold = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    process = run(hold, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    for attempt in (lambda: check_output(target, "duckdb", append), lambda: write(tmp_path, [], "duckdb", append)):
        with pytest.raises(ConfigError, match=r"out\.duckdb: cannot be opened .*lock.*close it elsewhere"):
            attempt()
    process.communicate()
    assert target.read_bytes() == before
    assert len(read(write(tmp_path, [article("new")], "duckdb", append))) == 1 + append


def test_database_in_use_by_ourselves(tmp_path: Path) -> None:
    target = write(tmp_path, [article("old")], "duckdb")
    with duckdb.connect(target) as database:
        database.execute("CREATE TABLE notes AS SELECT 'mine' AS note")
        with pytest.raises(ConfigError, match="is open in this program too"):
            write(tmp_path, [article("new")], "duckdb", append=True)
    assert read(target) == [article("old")]


def test_log_of_a_killed_program_is_kept(tmp_path: Path) -> None:
    target = write(tmp_path, [article("old")], "duckdb")
    process = run(
        "import duckdb, os, sys; d = duckdb.connect(sys.argv[1]); d.execute('CREATE TABLE notes (n INT)'); os._exit(9)",
        target,
    )
    process.communicate()
    assert (tmp_path / "out.duckdb.wal").exists()
    write(tmp_path, [article("new")], "duckdb", append=True)
    with duckdb.connect(target) as database:
        assert database.execute("FROM notes").fetchall() == []
    assert read(target) == [article("old"), article("new")]


@pytest.mark.parametrize("format", FORMATS)
def test_link_stays_a_link(format: OutputFormat, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere" / f"real.{format}"
    place.parent.mkdir()
    (tmp_path / f"out.{format}").symlink_to(place)
    for expected in ([article()], [article(), article()]):
        target = write(tmp_path, [article()], format, append=True)
        assert target.is_symlink()
        assert read(place) == expected
    assert list(place.parent.iterdir()) == [place]


def test_pipes_and_devices(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    write_articles([article()], records)
    reader, writer = os.pipe()
    write_output(records, Path(f"/dev/fd/{writer}"), "jsonl")
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == records.read_bytes()
    with (tmp_path / "log").open("ab") as log:
        log.write(b"earlier\n")
        log.flush()
        write_output(records, Path(f"/dev/fd/{log.fileno()}"), "jsonl")
    assert (tmp_path / "log").read_bytes() == b"earlier\n" + records.read_bytes()
    write_output(records, Path("/dev/null"), "jsonl", append=True)
    assert Path("/dev/null").is_char_device()
    with pytest.raises(ConfigError, match="/dev/null: a device or a pipe takes jsonl only, not duckdb"):
        check_output(Path("/dev/null"), "duckdb")
    with pytest.raises(ConfigError, match="/dev/full: cannot be written: No space left on device"):
        write_output(records, Path("/dev/full"), "jsonl")


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_check_leaves_everything_as_it_is(format: OutputFormat, append: bool, tmp_path: Path) -> None:
    target = tmp_path / f"out.{format}"
    check_output(target, format, append)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path, [article()], format)
    before = target.read_bytes()
    check_output(target, format, append)
    assert target.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {target.name, "records"}


@pytest.mark.parametrize(("format", "package"), [("parquet", "pyarrow"), ("duckdb", "pyarrow"), ("duckdb", "duckdb")])
def test_missing_package(format: OutputFormat, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install 'rasid\[files\]'"):
        check_output(tmp_path / f"out.{format}", format)
    assert list(tmp_path.iterdir()) == []
