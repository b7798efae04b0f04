"""Outputs: the finished records as JSONL, Parquet or a DuckDB database, each written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from rasid.batch.tables import settle_database, write_duckdb, write_parquet
from rasid.errors import ConfigError

OutputFormat = Literal["jsonl", "parquet", "duckdb"]
SUFFIXES: dict[str, OutputFormat] = {".jsonl": "jsonl", ".parquet": "parquet", ".duckdb": "duckdb", ".db": "duckdb"}
_DEVICES = (Path("/dev"), Path("/dev/fd"))
_STANDARD = {Path("/dev/stdout"): 1, Path("/dev/stderr"): 2}


def guess_format(path: Path) -> OutputFormat:
    """The format that a path's suffix names; a device or a pipe, such as /dev/stdout, takes JSONL.

    Raises:
        ConfigError: if the suffix is none of `SUFFIXES`.
    """
    if path.suffix.lower() in SUFFIXES:
        return SUFFIXES[path.suffix.lower()]
    with _reporting(path):
        if is_device(path):
            return "jsonl"
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; give a file whose name ends in one of {', '.join(SUFFIXES)}")
    found = f"unknown suffix {path.suffix}" if path.suffix else "no suffix"
    raise ConfigError(f"{path}: {found}; give a name that ends in one of {', '.join(SUFFIXES)}")


def check_output(target: Path, format: OutputFormat, append: bool = False) -> None:
    """Find out before the work begins whether `write_output` could do its part; the target stays as it is.

    Raises:
        ConfigError: as `write_output` does.
    """
    with _reporting(target):
        if not _takes_stream(target, format):
            place = target.resolve()
            with _built(Path(os.devnull), place, format, place if append else None):
                pass


def write_output(
    records: Path, target: Path, format: OutputFormat, append: bool = False, old: Path | None = None
) -> None:
    """Turn a finished JSONL file of records into the target.

    The new file is built in a folder beside the target and takes its place only when it is on the disk, so that
    whatever happens the target is either as it was or complete. Memory is bounded by the largest articles, not by the
    number of records. Parquet files of the same records are the same bytes.

    Args:
        records: One `Article.to_json()` a line; for JSONL any objects. It stays, but shares its bytes with a JSONL
            target where the file system can do that: do not write to it any more.
        target: The file to make or replace; a link keeps leading to it. A device or a pipe gets JSONL as it comes.
        format: What to make of the records.
        append: Put the records behind those of an older file; one that is missing or empty is as good.
        old: That file, of the same format; the target by default.

    Raises:
        ConfigError: if the target cannot be written or appended to, is in use, or needs a package that is missing.
        DataError: if a line of `records` is no record.
    """
    with _reporting(target):
        if _takes_stream(target, format):
            with open_device(target) as out, records.open("rb") as lines:
                shutil.copyfileobj(lines, out)
            return
        place = target.resolve()
        with _built(records, place, format, (old or place) if append else None) as new:
            sync(new)
            replace_output(new, place, format)


def replace_output(new: Path, target: Path, format: OutputFormat) -> None:
    """Put a file that is on the disk in the target's place; both are in one file system.

    A database that is there takes in its log first, which would be taken for that of the new one.

    Raises:
        ConfigError: if that database is in use.
    """
    if format == "duckdb" and _holds_something(target):
        settle_database(target)
    new.replace(target)
    sync(target.parent)


def hold(lock: Path, target: Path) -> FileLock:
    """A lock on a file, which ends with this process.

    Raises:
        ConfigError: if another process has it, since that one is at work on the target.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise ConfigError(
            f"{target}: another process writes this (its lock is {lock}); wait for it, or give another --out"
        ) from error
    return held


def check_same_run(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that the unfinished run in a folder is the one that is to go on.

    Args:
        folder: Where it is.
        before: What it is.
        now: What is asked for.

    Raises:
        ConfigError: if they differ.
    """
    if changed := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
        raise ConfigError(
            f"{folder}: an unfinished run with other {', '.join(changed)}; repeat its command to go on, or start over "
            "with --fresh"
        )


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file whole or not at all; it is on the disk when this returns."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def remove_output(target: Path) -> None:
    """Take away what an earlier run left there, if anything; a device or a pipe stays, whatever it leads to."""
    if target.is_file() and not is_device(target):
        target.unlink()


def is_device(target: Path) -> bool:
    """Whether it is a device or a pipe, such as /dev/stdout, that is written into and never replaced or removed."""
    return target.parent in _DEVICES or (target.exists() and not target.is_file() and not target.is_dir())


def open_device(target: Path) -> BinaryIO:
    """A device or a pipe, open for writing; what a redirection such as `>> file` leads to keeps what it holds."""
    if (descriptor := _STANDARD.get(target)) is not None:  # opened anew, a file would be written from its start
        return os.fdopen(os.dup(descriptor), "wb")
    return target.open("ab")


def _takes_stream(target: Path, format: OutputFormat) -> bool:
    """Whether to write into the target as it is, instead of replacing it."""
    if not is_device(target):
        return False
    if format != "jsonl":
        raise ConfigError(f"{target}: a device or a pipe takes jsonl only, not {format}; give the path of a file")
    return True


@contextmanager
def _reporting(target: Path) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ConfigError(f"{target}: this format needs {package}: pip install 'rasid[files]'") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{target}: cannot be written: {reason}; mend that or choose another place") from error


@contextmanager
def _built(records: Path, target: Path, format: OutputFormat, old: Path | None) -> Iterator[Path]:
    """The target's new file, in a folder beside it that is gone in the end; what a killed run left there is cleared."""
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; give the path of a file")
    if format == "duckdb":
        for database in filter(_holds_something, {target, old or target}):
            settle_database(database)
    folder = target.with_name(f".{target.name}.part")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        new = folder / target.name
        _WRITERS[format](records, old if old and _holds_something(old) else None, new)
        yield new
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _holds_something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def sync(path: Path) -> None:
    """Have a file or a folder written to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_jsonl(records: Path, old: Path | None, new: Path) -> None:
    if old is None:
        try:
            new.hardlink_to(records)
        except OSError:  # on another file system, or on one without hard links
            shutil.copyfile(records, new)
        return
    with new.open("wb") as out, old.open("rb") as before, records.open("rb") as after:
        for number, line in enumerate(before, start=1):
            if line.strip() and not _is_object(line):
                raise ConfigError(f"{old}:{number}: not a JSON object; append to JSONL, or write to another file")
            out.write(line.removesuffix(b"\n") + b"\n")
        shutil.copyfileobj(after, out)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


_WRITERS: dict[OutputFormat, Callable[[Path, Path | None, Path], None]] = {
    "jsonl": _write_jsonl,
    "parquet": write_parquet,
    "duckdb": write_duckdb,
}
