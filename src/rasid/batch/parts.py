"""Parts of a batch, which many processes read and write at once, and how they become files in order, each article once.

The sources are dealt into shares, the documents of a share are cut into parts. Whoever has read a part writes its
records to a file of a name that no other has, and hands in a receipt. Work that is done twice, because a machine died,
leaves two files but one receipt, and a file without a receipt does not count. In the end the receipts have to show each
part of each share once; then the parts are joined to larger files. `rasid.batch.staging` keeps all that on the disk.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from pydantic import BaseModel

from rasid.batch.outputs import sync
from rasid.batch.tables import parquet_rows, parquet_writer
from rasid.errors import RasidError
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
PARTS, JOINED = "parts", "joined"  # folders


class Receipt(BaseModel):
    """What is in a part, and where.

    Attributes:
        share: Which share it is of, from 0.
        number: Its place in that share, from 0.
        last: Whether it is the last one there.
        documents: How many documents it has.
        errors: Entries of those that have no record, by their place in the part.
        summary: What `Summary.to_dict` gives for it.
        file: Name of the file of the records; empty if there are none.
        size: Bytes of that file.
        seconds: How long the whole batch had taken when this was handed in.
    """

    share: int
    number: int
    last: bool
    documents: int
    errors: dict[int, dict[str, str]]
    summary: dict[str, Any] = {}
    file: str = ""
    size: int = 0
    seconds: float = 0.0


FilePlan = list[tuple[str, dict[int, str]]]
"""The parts of a finished file: names, and new ids of rows whose id some earlier article has."""


def deal(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Deal the sources, in order, into shares: each has a large file, or many small ones."""
    share, size = list[Source](), 0
    for source in sources:
        share.append(source)
        size += file_size(source.path)
        if len(share) == _SHARE_SOURCES or size >= _SHARE_BYTES:
            yield share
            share, size = [], 0
    if share:
        yield share


def file_size(path: Path) -> int:
    """Bytes of a file; 0 if there is none, which whoever is to read it will tell."""
    try:
        return path.stat().st_size
    except OSError:
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
    path = folder / PARTS / f"{uuid4().hex}.parquet"
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
    else:
        if expected == (shares, 0):
            return
    raise RasidError(
        f"part {expected[1]} of share {expected[0]} of {shares} is not there once, as if an input had changed since "
        "the batch began"
    )


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
            ids = pq.ParquetFile(folder / PARTS / receipt.file).read(columns=["id"])["id"].to_pylist()
        except (OSError, pa.ArrowException) as error:
            _forget(receipt, folder)
            raise RasidError(
                f"{folder / PARTS / receipt.file}: was written by another machine and cannot be read here ({error}); "
                "give an --out that all machines see under the same path"
            ) from error
    if len(ids) != receipt.documents - len(receipt.errors):
        _forget(receipt, folder)
        raise RasidError(f"{folder / PARTS / receipt.file}: {len(ids)} records, not what was written")
    return ids


def _forget(receipt: Receipt, folder: Path) -> None:
    """Take a bad file away, so that its receipt does not count any more when the batch goes on."""
    if receipt.file:
        (folder / PARTS / receipt.file).unlink(missing_ok=True)


def join_parts(plan: FilePlan, folder: Path, number: int) -> None:
    """Make a finished file; safe to be done twice, even at once, as long as the parts are there.

    Args:
        plan: Its parts.
        folder: The staging folder, as this machine sees it.
        number: Its place among the finished files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    new = folder / PARTS / f"{uuid4().hex}.parquet"
    with parquet_writer(new) as writer:
        for name, renamed in plan:
            table = pq.ParquetFile(folder / PARTS / name).read()
            if renamed:
                ids = [renamed.get(row, id) for row, id in enumerate(table["id"].to_pylist())]
                table = table.set_column(table.schema.get_field_index("id"), table.schema.field("id"), pa.array(ids))
            writer.write_table(table)
    sync(new)
    new.replace(_joined(folder, number))


def is_joined(folder: Path, number: int) -> bool:
    """Whether a finished file is there; its parts may be gone then."""
    return _joined(folder, number).exists()


def _joined(folder: Path, number: int) -> Path:
    return folder / JOINED / f"articles-{number:05}.parquet"


def clear_parts(plan: FilePlan, folder: Path) -> None:
    """Take away the parts of a file that is finished, so that the disk need not hold everything twice."""
    for name, _ in plan:
        (folder / PARTS / name).unlink(missing_ok=True)
