"""The article of a page: its text, title and date, in any encoding, and pages that have none."""

import logging

import pytest

from rasid.errors import DataError
from rasid.reading.web_pages import read_page

PARAGRAPHS = [
    "أعلنت قوات سوريا الديمقراطية أنها صدت هجوما على قاعدة حقل العمر شرقي دير الزور مساء الجمعة.",
    "وقال المتحدث باسم القوات إن الهجوم نفذ بطائرات مسيرة، وإن الأضرار اقتصرت على الماديات.",
    "«لم تقع إصابات»، أضاف المصدر.",
]
NAMES = ["الرئيسية", "سوريا", "العراق", "رياضة", "اقتصاد", "اتصل بنا", "من نحن"]
MENU = "<nav><ul>{}</ul></nav>".format("".join(f'<li><a href="/{n}">{name}</a></li>' for n, name in enumerate(NAMES)))
ARTICLE = "<article>{}</article>".format("".join(f"<p>{p}</p>" for p in PARAGRAPHS))
FOOTER = '<footer><p>جميع الحقوق محفوظة</p><a href="/rss">خلاصات</a></footer>'


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html>\n<html dir='rtl'><head>{head}</head><body>{body}</body></html>"


def test_the_text_without_what_is_around_it():
    head = (
        "<title>هجوم على حقل العمر</title>"
        '<meta property="article:published_time" content="2024-02-05T10:00:00Z">'
        "<script>var x = 'قسد';</script><style>p {}</style>"
    )
    comments = '<div id="comments"><div class="comment"><p>تعليق من قارئ على هذا الخبر المهم جدا</p></div></div>'
    text, meta, encoding = read_page(page(MENU + ARTICLE + comments + FOOTER, head).encode())
    assert text.split("\n") == PARAGRAPHS
    assert meta == {"title": "هجوم على حقل العمر", "date": "2024-02-05"}
    assert encoding == "utf-8"


@pytest.mark.parametrize(
    "body",
    [
        "<br><br>".join(PARAGRAPHS),
        "".join(f"<div>{p}</div>" for p in PARAGRAPHS),
        MENU + "<div>" + "".join(f"<p>{p}</p>" for p in PARAGRAPHS) + "</div>" + FOOTER,
    ],
)
def test_pages_without_an_article_element(body):
    text, meta, _ = read_page(page(body).encode())
    assert text.split("\n") == PARAGRAPHS
    assert meta == {}


@pytest.mark.parametrize("body", [f"<p>{PARAGRAPHS[0]}</p>", PARAGRAPHS[0], f"<div><p>{PARAGRAPHS[0]}</div>"])
def test_pieces_of_pages(body):
    assert read_page(body.encode())[0] == PARAGRAPHS[0]
    assert read_page(page(body).encode())[0] == PARAGRAPHS[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "windows-1256", "iso-8859-6"])
@pytest.mark.parametrize(
    "head",
    [
        "",
        '<meta charset="{}">',
        "<!-- a long comment -->" * 60 + "<META http-equiv='Content-Type' content='text/html; charset={}'>",
        '<meta charset="iso-8859-1">',  # wrong, as it often is
        '<meta charset="utf-8">',
    ],
)
@pytest.mark.parametrize("body", [ARTICLE, f"<p>{PARAGRAPHS[1]}</p>"])
def test_encodings_named_and_not_named(encoding, head, body):
    html = page(MENU + body, head.replace("{}", encoding)).encode(encoding, "ignore")
    known = [p.encode(encoding, "ignore").decode(encoding).lstrip("\ufeff") for p in PARAGRAPHS]
    text, _, found = read_page(html)
    assert text.split("\n") == (known if body == ARTICLE else known[1:2])
    assert found == {"utf-8-sig": "utf-8", "utf-16": "utf-16-le"}.get(encoding, encoding)


def test_the_encoding_named_settles_what_letters_cannot():
    both = "امر هدم مدرستها"  # good Arabic either way
    for encoding in ("windows-1256", "iso-8859-6"):
        html = page(f"<p>{both}</p>", f'<meta charset="{encoding.upper()}">').encode(encoding)
        assert read_page(html)[::2] == (both, encoding)


def test_an_xml_declaration_of_another_encoding():
    html = '<?xml version="1.0" encoding="windows-1256"?>' + page(ARTICLE)
    assert read_page(html.encode())[0].split("\n") == PARAGRAPHS


@pytest.mark.parametrize(
    "html",
    [
        page(MENU),
        page(MENU.replace("nav", "div") + FOOTER),
        page("".join(f'<div><a href="/{n}">{name}</a></div>' for n, name in enumerate(NAMES))),
        page("".join(f'<div class="teaser"><a href="/{n}"><h2>{p}</h2></a></div>' for n, p in enumerate(PARAGRAPHS))),
        page(""),
        page("<script>document.write('قسد')</script>"),
        "<html>",
        "<html><body>" + "<div>" * 100_000,
        "<!-- قسد -->",
    ],
)
def test_pages_of_menus_links_or_scripts_only(html, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="no article in this page: nothing but menus"):
        read_page(html.encode())
    assert caplog.records == []


def test_a_page_that_would_take_too_long():
    with pytest.raises(DataError, match=r"a page of 60,0\d\d elements, the most that are read is 50,000"):
        read_page(page("<p>قسد</p>" * 60_000).encode())


def test_a_page_that_breaks_the_parser(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("trafilatura.bare_extraction", fail)
    with pytest.raises(DataError, match="no HTML page that can be parsed: RecursionError: too deep"):
        read_page(page(ARTICLE).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "empty"), (b"<html>\0</html>", "binary"), ("<p>L'été à Noël".encode("latin-1"), "not UTF-8")],
)
def test_what_is_no_page(data, message):
    with pytest.raises(DataError, match=message):
        read_page(data)
