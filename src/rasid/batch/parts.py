"""A folder of Parquet files that many processes write at once: complete, in order, every article once, or not there.

The sources are dealt into shares, the documents of a share are cut into parts. Whoever has read a part writes its
records to a file of a name that no other has, and hands in a receipt. Work that is done twice, because a machine died,
leaves two files but one receipt, and a file without a receipt does not count. In the end the receipts have to show each
part of each share once; then the parts are joined to larger files, and these are put in place together.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from pydantic import BaseModel

from rasid.batch.outputs import hold, sync
from rasid.batch.tables import parquet_rows, parquet_writer
from rasid.errors import ConfigError, RasidError
from rasid.parallel import ordered_map
from rasid.reading.documents import Document, UniqueIds
from rasid.reading.sources import Source
from rasid.records import Article, to_json_line

_SHARE_SOURCES = 256
_SHARE_BYTES = 1_000_000
_PART_DOCUMENTS = 256  # some seconds of one processor: that is what a dead machine costs, and the size of the last task
_PART_CHARACTERS = 1_000_000
_FILE_BYTES = 128_000_000  # of a finished file, about
_READERS = 8  # threads
_PARTS, _JOINED, _LOCK = "parts", "joined", "lock"


class Receipt(BaseModel):
    """What is in a part, and where.

    Attributes:
        share: Which share it is of, from 0.
        number: Its place in that share, from 0.
        last: Whether it is the last one there.
        documents: How many documents it has.
        errors: Entries of those that have no record, by their place in the part.
        file: Name of the file of the records; empty if there are none.
        size: Bytes of that file.
    """

    share: int
    number: int
    last: bool
    documents: int
    errors: dict[int, dict[str, str]]
    file: str = ""
    size: int = 0


FilePlan = list[tuple[str, dict[int, str]]]
"""The parts of a finished file: names, and new ids of rows whose id some earlier article has."""


def deal(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Deal the sources, in order, into shares: each has a large file, or many small ones."""
    share, size = list[Source](), 0
    for source in sources:
        share.append(source)
        size += _size(source.path)
        if len(share) == _SHARE_SOURCES or size >= _SHARE_BYTES:
            yield share
            share, size = [], 0
    if share:
        yield share


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # whoever is to read it will tell
        return 0


def cut(documents: Iterable[Document]) -> Iterator[tuple[list[Document], bool]]:
    """Cut the documents of a share into parts, the same ones each time; the truth value marks the last one."""
    part, size = list[Document](), 0
    for document in documents:
        if len(part) == _PART_DOCUMENTS or size >= _PART_CHARACTERS:
            yield part, False
            part, size = [], 0
        part.append(document)
        size += len(document.page.data if document.page else document.text or "")
    yield part, True


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A folder beside the output to work in, gone in the end; what a killed run left there is cleared.

    Raises:
        ConfigError: if another process works there, or it cannot be written.
    """
    folder = staging_of(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold(folder / _LOCK, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        for name in (_PARTS, _JOINED):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
        yield folder
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def staging_of(out: Path) -> Path:
    """Where `staging` is."""
    place = out.resolve()
    return place.with_name(f".{place.name}.cluster")


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{out}: cannot be written: {error.strerror or error}; mend that or choose another place")


def write_part(articles: list[Article], folder: Path) -> tuple[str, int]:
    """Write a part's records; they are on the disk when this returns.

    Args:
        articles: At least one.
        folder: The staging folder, as this machine sees it.

    Returns:
        Name and bytes of the file.

    Raises:
        OSError: if it cannot be written.
    """
    path = folder / _PARTS / f"{uuid4().hex}.parquet"
    with parquet_writer(path) as writer:
        writer.write_batch(parquet_rows(articles))
    sync(path)
    return path.name, path.stat().st_size


def check_complete(receipts: Iterable[Receipt], shares: int) -> None:
    """See that the receipts, in order of share and number, are one for each part of each share.

    Raises:
        RasidError: if one is missing or there twice.
    """
    expected = (0, 0)
    for receipt in receipts:
        if (receipt.share, receipt.number) != expected:
            break
        expected = (receipt.share + 1, 0) if receipt.last else (receipt.share, receipt.number + 1)
    if expected != (shares, 0):
        raise RasidError(f"part {expected[1]} of share {expected[0]} of {shares} is not there once; run it again")


def plan_files(receipts: Iterable[Receipt], folder: Path, errors: TextIO) -> Iterator[FilePlan]:
    """What goes into each finished file; at least one, that may be empty.

    Ids are made unique in the order of all documents, errors included, as they are where one process reads all.

    Args:
        receipts: In order.
        folder: The staging folder.
        errors: Gets the entries of what has no record, in order.

    Raises:
        RasidError: if a file does not hold what its receipt says.
    """
    unique = UniqueIds()
    receipts = list(receipts)
    plan, size = FilePlan(), 0
    for receipt, ids in zip(
        receipts, ordered_map(lambda receipt: _read_ids(receipt, folder), receipts, _READERS), strict=True
    ):
        renamed, row = dict[int, str](), 0
        for place in range(receipt.documents):
            if entry := receipt.errors.get(place):
                errors.write(to_json_line(entry | {"id": unique(entry["id"])}))
                continue
            if (id := unique(ids[row])) != ids[row]:
                renamed[row] = id
            row += 1
        if size >= _FILE_BYTES:
            yield plan
            plan, size = FilePlan(), 0
        if receipt.file:
            plan.append((receipt.file, renamed))
            size += receipt.size
    yield plan


def _read_ids(receipt: Receipt, folder: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids: list[str] = []
    if receipt.file:
        try:
            ids = pq.ParquetFile(folder / _PARTS / receipt.file).read(columns=["id"])["id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise RasidError(
                f"{folder / _PARTS / receipt.file}: was written by another machine and cannot be read here ({error}); "
                "give an --out that all machines see under the same path"
            ) from error
    if len(ids) != receipt.documents - len(receipt.errors):
        raise RasidError(f"{folder / _PARTS / receipt.file}: {len(ids)} records, not what was written; run it again")
    return ids


def join_parts(plan: FilePlan, folder: Path, number: int) -> None:
    """Make a finished file; safe to be done twice, even at once, as long as the parts are there.

    Args:
        plan: Its parts.
        folder: The staging folder, as this machine sees it.
        number: Its place among the finished files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    new = folder / _PARTS / f"{uuid4().hex}.parquet"
    with parquet_writer(new) as writer:
        for name, renamed in plan:
            table = pq.ParquetFile(folder / _PARTS / name).read()
            if renamed:
                ids = [renamed.get(row, id) for row, id in enumerate(table["id"].to_pylist())]
                table = table.set_column(table.schema.get_field_index("id"), table.schema.field("id"), pa.array(ids))
            writer.write_table(table)
    sync(new)
    new.replace(folder / _JOINED / f"articles-{number:05}.parquet")


def clear_parts(plan: FilePlan, folder: Path) -> None:
    """Take away the parts of a file that is finished, so that the disk need not hold everything twice."""
    for name, _ in plan:
        (folder / _PARTS / name).unlink()


def check_place(out: Path, *, fresh: bool) -> None:
    """See that a folder of results may come to this place.

    Raises:
        ConfigError: if something is there, unless it is results and may be replaced.
    """
    if not out.exists():
        return
    if not fresh:
        raise ConfigError(f"{out}: is there already; replace it with --fresh, or give another --out")
    if out.is_dir() and (others := [p.name for p in out.iterdir() if p.suffix != ".parquet" or not p.is_file()]):
        raise ConfigError(f"{out}: holds more than Parquet files, such as {others[0]}; give another --out")


def place_files(folder: Path, out: Path, *, fresh: bool) -> None:
    """Put the finished files in place, instead of what is there: all at once, unless the machine stops in between.

    Args:
        folder: The staging folder.
        out: The output folder.
        fresh: Whether earlier results there may be replaced.

    Raises:
        ConfigError: if it is not possible; says where the files are.
    """
    place, joined, replaced = out.resolve(), folder / _JOINED, folder / "replaced"
    sync(joined)
    try:
        check_place(out, fresh=fresh)
        if place.exists():
            place.rename(replaced)
        joined.rename(place)
    except BaseException as error:
        if not joined.exists():  # it was in place already
            raise
        if replaced.exists():
            replaced.rename(place)
        kept = place.with_name(f"{place.name}.{uuid4().hex[:8]}")
        joined.rename(kept)
        raise ConfigError(f"{out}: the results cannot be put there, and are in {kept} instead: {error}") from error
    sync(place.parent)
