"""Which files are read, in which order and under which ids: files as given, and the articles in folders."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Literal, Self

from rasid.errors import DataError

Format = Literal["txt", "html", "json", "jsonl", "csv", "parquet"]
Compression = Literal["gz", "zst"]

FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".html": "html",
    ".htm": "html",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""The format that a suffix, in any case, stands for."""

COMPRESSIONS: dict[str, Compression] = {".gz": "gz", ".zst": "zst"}
"""What may follow any of those suffixes."""

STANDARD_INPUT = Path("-")


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        path: Where it is.
        id: The id of its article; those of many records begin with it.
        problem: Why it cannot be read, if that is known already.
    """

    path: Path
    id: str
    problem: str | None = None

    def to_values(self) -> tuple[str, str, str | None]:
        """As JSON values; what is no UTF-8 in a path needs ASCII escapes, as `json.dumps` makes them."""
        return str(self.path), self.id, self.problem

    @classmethod
    def from_values(cls, path: str, id: str, problem: str | None) -> Self:
        """Inverse of `to_values`."""
        return cls(Path(path), id, problem)


@dataclass(frozen=True)
class _Folder:
    """A folder that is being walked: its path, where it really is, and (st_dev, st_ino) of those above and its own."""

    path: Path
    real: str
    chain: tuple[tuple[int, int], ...]


_Kind = Literal["file", "folder", "link", "other"]


def formats_of(name: str) -> tuple[Format | None, Compression | None]:
    """What the suffixes of a file name say of its format and its compression; None where they say nothing."""
    suffixes = PurePath(name.lower()).suffixes
    compression = COMPRESSIONS[suffixes.pop()] if suffixes and suffixes[-1] in COMPRESSIONS else None
    return FORMATS.get(suffixes[-1]) if suffixes else None, compression


def find_sources(
    paths: Iterable[Path], glob: str | None = None, *, skipped: Counter[str] | None = None
) -> Iterator[Source]:
    """The files given, whatever their names, and those of a known format in the folders given and below them.

    They come as they are found, each folder's entries sorted by the bytes of their names. Links are followed, but a
    file that is reached twice is read once, which costs about 80 bytes of memory a file. What cannot be entered or
    read is a source with a problem.

    Args:
        paths: Files, pipes, folders or `-` for standard input.
        glob: Which files of folders to take. Without a slash it is compared with their names, else with their paths
            from the folder given, where `**` stands for any number of folders.
        skipped: Counts the files in folders that are left out since their suffix, the key, is of no known format.

    Yields:
        Sources whose ids are paths from the folder given, or the name of the file given; where there are several
        inputs, the whole paths, beginning with the input.

    Raises:
        DataError: on coming to a folder that holds no file to read.
    """
    paths = list(paths)
    finder = _Finder(glob, Counter() if skipped is None else skipped)
    for path in paths:
        for found, problem in finder.find(path):
            short = found.name if found == path else found.relative_to(path).as_posix()
            name = found.as_posix() if len(paths) > 1 or not short else short
            yield Source(found, printable(name), problem)


class _Finder:
    """The walk through the inputs; it remembers which files it came to."""

    def __init__(self, glob: str | None, skipped: Counter[str]) -> None:
        self._glob = glob
        self._skipped = skipped
        self._pattern = glob.split("/") if glob else ["*"]
        self._by_name = len(self._pattern) == 1
        self._seen: set[int] = set()

    def find(self, path: Path) -> Iterator[tuple[Path, str | None]]:
        """The files of one input, each with its problem, if it has one."""
        try:
            is_folder = path != STANDARD_INPUT and stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            if self._is_new(str(path)):
                yield path, cannot_read(error)
            return
        if not is_folder:
            if self._is_new(os.path.realpath(path)):
                yield path, None
            return
        empty = True
        for found, place, problem in self._walk(path):
            empty = False
            if self._is_new(place):
                yield found, problem
        if empty:
            matching = f" that matches {self._glob}" if self._glob else ""
            raise DataError(
                f"{path}: no file of a known format{matching} in this folder or below; known are {', '.join(FORMATS)}, "
                f"each also with {' or '.join(COMPRESSIONS)}"
            )

    def _is_new(self, place: str) -> bool:
        before = len(self._seen)
        self._seen.add(hash(place))
        return len(self._seen) > before

    def _walk(self, top: Path) -> Iterator[tuple[Path, str, str | None]]:
        """What there is to report of a folder: paths, the places where they really are, and problems."""
        pending: list[tuple[_Folder | None, str, _Kind]] = [(None, "", "folder")]
        while pending:  # no recursion, as folders may be nested a thousand deep
            above, name, kind = pending.pop()
            path = above.path / name if above else top
            place = f"{above.real}/{name}" if above else str(top)
            is_link = kind == "link"
            try:
                if is_link:
                    kind = _kind(path.stat().st_mode)
                if kind == "folder":
                    real = os.path.realpath(path) if is_link or above is None else place
                    folder = _enter(path, real, above)
                    if folder is None:
                        yield path, place, "a link to a folder that it is in (symlink loop); remove the link"
                    elif not self._is_new(f"{folder.real}/") and is_link and self._by_name:
                        yield path, f"{folder.real}/", None  # nothing in it would be new
                    else:
                        pending.extend((folder, *entry) for entry in reversed(_entries(path)))
                    continue
            except OSError as error:
                if kind == "folder" or not isinstance(error, FileNotFoundError) or self._is_wanted(path, top):
                    yield path, place, cannot_read(error)
                continue
            if self._is_wanted(path, top):
                problem = "a pipe, socket or device; give it by itself to have it read" if kind == "other" else None
                yield path, os.path.realpath(path) if is_link else place, problem

    def _is_wanted(self, path: Path, top: Path) -> bool:
        if not _matches((path.name,) if self._by_name else path.relative_to(top).parts, self._pattern):
            return False
        known = formats_of(path.name)[0] is not None
        if not known:
            self._skipped[path.suffix.lower()] += 1
        return known


def _enter(path: Path, real: str, above: _Folder | None) -> _Folder | None:
    """A folder to walk, or None if the walk is in it already."""
    status = path.stat()
    identity = (status.st_dev, status.st_ino)
    chain = above.chain if above else ()
    return None if identity in chain else _Folder(path, real.rstrip("/"), (*chain, identity))


def _entries(folder: Path) -> list[tuple[str, _Kind]]:
    """Names and kinds of what a folder holds, in order; both come with the listing, without a look at each file."""
    with os.scandir(folder) as listing:
        entries = [(entry.name, _listed_kind(entry)) for entry in listing]
    return sorted(entries, key=lambda entry: os.fsencode(entry[0]))


def _listed_kind(entry: os.DirEntry[str]) -> _Kind:
    if entry.is_symlink():
        return "link"
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if entry.is_file(follow_symlinks=False) else "other"


def _kind(mode: int) -> _Kind:
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def _matches(parts: tuple[str, ...], pattern: list[str]) -> bool:
    """Whether the parts of a path match a pattern, part by part; `**` matches any number of them."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def cannot_read(error: Exception) -> str:
    """What a failure of the system to open or read something is called in problems."""
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def printable(text: str) -> str:
    """The text with surrogates written out (`\\udcXX`): file names need not be UTF-8, and what we write has to be."""
    return text.encode("utf-8", "backslashreplace").decode()
