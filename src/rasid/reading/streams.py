"""Files as streams of bytes, decompressed as they are read, so that a small file cannot fill the memory."""

import gzip
import importlib
import io
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, cast

from rasid.errors import DataError
from rasid.reading.sources import STANDARD_INPUT, formats_of

READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a stream raises if the disk fails, or the compressed data are corrupt or cut off."""

_CHUNK = 1 << 20  # bytes


class ByteStream(Protocol):
    """What is needed of a stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, fewer at the end."""

    def read1(self, size: int = -1, /) -> bytes:
        """Up to `size` of the bytes that are there already, so that they are not lost to an error after them."""


def too_long(limit: int) -> DataError:
    """The error for an article of more than `limit` bytes; nothing reads on to see how long it is."""
    return DataError(f"longer than {limit:,} bytes, the most that one article may have; raise --max-bytes to read it")


def optional_package(name: str) -> Any:
    """A package that only some formats need.

    Raises:
        DataError: if it is not installed, with the command to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"needs the package {name} ({reason}): pip install 'rasid[files]'") from error


@contextmanager
def open_stream(path: Path) -> Iterator[ByteStream]:
    """The bytes of a file, or of standard input, decompressed if its suffix says so.

    Reading it may raise `READ_ERRORS`.

    Raises:
        OSError: if it cannot be opened.
        DataError: if a package is missing.
    """
    if path == STANDARD_INPUT:
        yield cast(ByteStream, sys.stdin.buffer)
        return
    _, compression = formats_of(path.name)
    with path.open("rb") as file:
        if compression == "gz":
            with gzip.open(file) as unzipped:
                yield unzipped
        elif compression == "zst":
            pa = optional_package("pyarrow")  # its reader, unlike that of zstandard, notices that data are cut off
            with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as unzipped:
                yield unzipped
        else:
            yield file


def read_all(stream: ByteStream, limit: int) -> bytes:
    """All bytes of a stream.

    Raises:
        DataError: as soon as they are more than `limit`.
    """
    data = bytearray()
    while piece := stream.read(min(_CHUNK, limit + 1 - len(data))):
        data += piece
        if len(data) > limit:
            raise too_long(limit)
    return bytes(data)


@contextmanager
def seekable(stream: ByteStream, magic: bytes) -> Iterator[IO[bytes]]:
    """The stream itself if it is a file, else a temporary file of all that it holds, if it begins with `magic`.

    Raises:
        DataError: if it begins with something else; it could be a bomb that fills the disk.
    """
    if isinstance(stream, io.BufferedReader) and stream.seekable():
        yield stream
        return
    beginning = stream.read(len(magic))
    if beginning != magic:
        raise DataError(f"not a file of its format: begins with {beginning!r} instead of {magic!r}")
    with tempfile.TemporaryFile() as file:
        file.write(beginning)
        shutil.copyfileobj(stream, file)
        file.seek(0)
        yield file
