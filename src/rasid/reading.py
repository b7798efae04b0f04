"""Folders of articles: which files, in which order, and their text exactly as it stands."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rasid.errors import DataError

SUFFIX = ".txt"


@dataclass(frozen=True)
class Source:
    """An article to read: where it is, and the id that its record gets."""

    path: Path
    id: str


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """Files as given, and the `.txt` files below folders, sorted by their path; missing ones are kept to be reported.

    A file that is named twice is read once. Ids are unique paths: relative to the folder, or the name of a file that
    was given itself; all of them whole where two would be equal.

    Raises:
        DataError: if a folder holds no `.txt` file.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        if path.is_dir():
            found = sorted(filter(_is_article, path.rglob("*")), key=lambda p: p.as_posix())
            if not found:
                raise DataError(
                    f"{path}: no {SUFFIX} files in this folder or below; give a folder of {SUFFIX} articles"
                )
            for p in found:
                sources.setdefault(p, Source(p, printable(p.relative_to(path).as_posix())))
        else:
            sources.setdefault(path, Source(path, printable(path.name)))
    if len({s.id for s in sources.values()}) < len(sources):
        return [Source(path, printable(path.as_posix())) for path in sources]
    return list(sources.values())


def _is_article(path: Path) -> bool:
    """Whether to read what a folder holds: files, and links that lead nowhere, to be reported; a pipe would block."""
    return path.suffix.lower() == SUFFIX and (path.is_file() or (path.is_symlink() and not path.exists()))


def printable(text: str) -> str:
    """The text with surrogates written out (`\\udcXX`): file names need not be UTF-8, and what we write has to be."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_text(path: Path) -> str:
    """The text of a file, not a character changed: no newline is translated and no byte order mark removed.

    Raises:
        DataError: if it cannot be read, or `decode` refuses it.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}") from error


def read_stream(stream: BinaryIO) -> str:
    """The text of standard input; raises DataError as `decode` does."""
    return decode(stream.read())


def decode(data: bytes) -> str:
    """Bytes to text.

    Raises:
        DataError: if they are empty, binary, or not UTF-8; the message says which and what to do.
    """
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise DataError("not UTF-8 but UTF-16; convert the file to UTF-8, for example with: iconv -f utf-16 -t utf-8")
    if b"\0" in data:
        raise DataError(f"binary: holds a NUL byte at {data.index(0)}; give plain text in UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start} ({error.reason}); convert the file to UTF-8, "
            "for example with: iconv -f windows-1256 -t utf-8"
        ) from error
    if not text.strip("\ufeff \t\r\n\v\f"):
        raise DataError("empty: holds no text")
    return text


def read_sources(sources: Iterable[Source]) -> Iterator[tuple[Source, str | DataError]]:
    """Each source with its text, or with what is wrong with it."""
    for source in sources:
        try:
            yield source, read_text(source.path)
        except DataError as error:
            yield source, error
