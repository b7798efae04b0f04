"""Which files are read, in which order, under which ids, and their text to the last byte."""

import io
import os
from pathlib import Path

import pytest

from rasid.errors import DataError
from rasid.reading import Source, decode, find_sources, printable, read_sources, read_stream, read_text


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("قسد", encoding="utf-8")
    return folder


def ids(*paths: Path) -> list[str]:
    return [s.id for s in find_sources(paths)]


def test_folders_are_read_recursively_in_the_order_of_paths(tmp_path):
    tree(
        tmp_path,
        "b.txt",
        "a/2.txt",
        "a/10.txt",
        "a/deep/er/x.txt",
        "z.txt",
        "خبر.txt",
        "a.txt",
        "note.md",
        "txt",
        "B.TXT",
    )
    expected = ["B.TXT", "a.txt", "a/10.txt", "a/2.txt", "a/deep/er/x.txt", "b.txt", "z.txt", "خبر.txt"]
    assert ids(tmp_path) == expected
    assert [s.path for s in find_sources([tmp_path])] == [tmp_path / name for name in expected]


def test_a_folder_may_be_named_like_an_article(tmp_path):
    assert ids(tree(tmp_path, "archive.txt/a.txt")) == ["archive.txt/a.txt"]


def test_files_keep_the_order_given_and_any_suffix(tmp_path):
    tree(tmp_path, "b.txt", "a.md", "more/c.txt")
    assert ids(tmp_path / "b.txt", tmp_path / "a.md", tmp_path / "more") == ["b.txt", "a.md", "c.txt"]


def test_missing_files_are_kept_to_be_reported(tmp_path):
    assert find_sources([tmp_path / "gone.txt"]) == [Source(tmp_path / "gone.txt", "gone.txt")]


def test_equal_ids_become_whole_paths(tmp_path):
    tree(tmp_path, "one/a.txt", "two/a.txt", "two/b.txt")
    assert ids(tmp_path / "one", tmp_path / "two") == [
        (tmp_path / name).as_posix() for name in ("one/a.txt", "two/a.txt", "two/b.txt")
    ]


def test_ids_are_unique_even_where_a_folder_looks_like_another_path(tmp_path, monkeypatch):
    tree(tmp_path, "p/a.txt", "q/a.txt", "r/p/a.txt")
    monkeypatch.chdir(tmp_path)
    assert ids(Path("p"), Path("q"), Path("r")) == ["p/a.txt", "q/a.txt", "r/p/a.txt"]


def test_a_file_named_twice_is_read_once(tmp_path):
    tree(tmp_path, "a.txt", "b.txt")
    assert ids(tmp_path / "b.txt", tmp_path, tmp_path / "a.txt", tmp_path / "b.txt") == ["b.txt", "a.txt"]


def test_many_equal_names(tmp_path):
    paths = [Path(f"{n}/a.txt") for n in range(20_000)]
    assert ids(*paths) == [p.as_posix() for p in paths]


@pytest.mark.parametrize("names", [[], ["a.md", "sub/b.TXT.gz"]])
def test_a_folder_without_articles(tmp_path, names):
    with pytest.raises(DataError, match=rf"{tmp_path}: no .txt files in this folder or below; give a folder"):
        find_sources([tree(tmp_path, *names)])


def test_links_that_lead_nowhere_are_reported_and_pipes_left_alone(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tree(tmp_path, "a.txt") / "linked.txt").symlink_to(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    found = dict(read_sources(find_sources([tmp_path])))
    assert [s.id for s in found] == ["a.txt", "gone.txt", "linked.txt"]
    assert [isinstance(text, DataError) for text in found.values()] == [False, True, False]


def test_a_file_name_that_is_not_utf_8_gets_an_id_that_is(tmp_path):
    try:
        tree(tmp_path, os.fsdecode(b"caf\xe9.txt"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert ids(tmp_path) == ["caf\\udce9.txt"]
    assert printable("a/خبر.txt") == "a/خبر.txt"


@pytest.mark.parametrize(
    "text",
    ["قسد\r\nحلب\r", "\ufeffقسد", "قسد\x0c\x1a \u2028\xa0\n\n", "😀\ufdfa\u0301", "\u200f", "\x85قسد\x1c"],
)
def test_the_text_is_not_changed_by_a_character(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode("utf-8"))
    assert read_text(tmp_path / "a.txt") == text
    assert read_stream(io.BytesIO(text.encode("utf-8"))) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty: holds no text"),
        (b" \r\n\t\x0b\x0c", "empty: holds no text"),
        (b"\xef\xbb\xbf\n", "empty: holds no text"),
        (b"PK\x03\x04\x00\x00", "binary: holds a NUL byte at 4; give plain text in UTF-8"),
        ("قسد\x00".encode(), "binary: holds a NUL byte at 6"),
        ("قسد حلب".encode("windows-1256"), "not UTF-8: byte 0xde at 0 .*; convert the file .*iconv -f windows-1256"),
        ("قسد".encode() + b"\xd9", "not UTF-8: byte 0xd9 at 6 .*convert the file to UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8: byte 0xed at 0"),  # an encoded surrogate
        ("قسد".encode("utf-16"), "not UTF-8 but UTF-16; convert the file .*iconv -f utf-16 -t utf-8"),
    ],
)
def test_bytes_that_are_no_text(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        decode(data)
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "a.txt")


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_a_bad_source_does_not_stop_the_others(tmp_path):
    tree(tmp_path, "a.txt", "c.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    found = [text for _, text in read_sources(find_sources([tmp_path, tmp_path / "gone.txt"]))]
    assert [isinstance(text, DataError) for text in found] == [False, True, False, True]
    assert found[0] == found[2] == "قسد"
