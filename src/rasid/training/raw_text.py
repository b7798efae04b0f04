"""Raw text to learn from: paragraphs of plain or compressed files."""

import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rasid.errors import DataError

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def read_paragraphs(paths: Iterable[Path], about: Iterable[str] = (), mentions: int = 0) -> Iterator[str]:
    """The lines of text files that hold at least `mentions` of the words `about`, in order, without empty ones.

    Raises:
        DataError: for a missing, broken or wrongly encoded file.
    """
    words = re.compile("|".join(map(re.escape, about)) or r"(?!)")
    for path in paths:
        try:
            with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    if (text := line.strip()) and (not mentions or len(words.findall(text)) >= mentions):
                        yield text
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; corpus lists text files, a paragraph a line") from error
        except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text: {error}; plain, .gz and .xz files can") from error
