"""The article of an HTML page, without its menus, links and comments."""

import logging
import re

from rasid.errors import DataError
from rasid.reading.charsets import decode
from rasid.reading.streams import optional_package

_DECLARATION = re.compile(rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_DECLARED_WITHIN = 4096  # bytes; browsers look at 1,024, but pages with long comments above it are no rarity
_MAX_ELEMENTS = 50_000  # of a page: the time that trafilatura takes grows with the square, to minutes from here on


def read_page(data: bytes) -> tuple[str, dict[str, str], str]:
    """The main text of a page, a paragraph a line, its title and date if it says them, and its encoding.

    The page is decoded here: lxml would put replacement characters where a page names the wrong encoding, and
    trafilatura pays no regard to the one named.

    Raises:
        DataError: if it is no page, holds no article, or is in an unknown encoding.
    """
    trafilatura = optional_package("trafilatura")
    for name in ("trafilatura", "htmldate"):  # they would log what our errors say
        logging.getLogger(name).setLevel(logging.CRITICAL)
    declared = _DECLARATION.search(data[:_DECLARED_WITHIN])
    page, encoding = decode(data, declared.group(1).decode("ascii", "replace") if declared else None)
    if "<html" not in page[:1024].lower():  # trafilatura refuses some fragments
        page = f"<html>{page}"
    try:
        tree = trafilatura.load_html(page)
        elements = 0 if tree is None else sum(1 for _ in tree.iter())
        found = None
        if 0 < elements <= _MAX_ELEMENTS:
            found = trafilatura.bare_extraction(
                tree,
                favor_precision=True,  # or a page of menus would be an article
                include_comments=False,
                with_metadata=True,
                date_extraction_params={"original_date": True, "extensive_search": False},
            )
    except Exception as error:  # whatever a page does to the parser, it is no article
        raise DataError(f"no HTML page that can be parsed: {type(error).__name__}: {error}") from error
    if elements > _MAX_ELEMENTS:
        raise DataError(f"a page of {elements:,} elements, the most that are read is {_MAX_ELEMENTS:,}; give its text")
    text = found.text.strip() if found is not None and found.text else ""
    if not text:
        raise DataError("no article in this page: nothing but menus, links or scripts; give pages of one article each")
    return text, {name: value for name in ("title", "date") if (value := getattr(found, name))}, encoding
