"""Which files are read, in which order and under which ids, and what is reported where they cannot be."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.reading.sources import FORMATS, STANDARD_INPUT, Source, find_sources, formats_of, printable


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("قسد", encoding="utf-8")
    return folder


def ids(*paths: Path, glob: str | None = None) -> list[str]:
    return [s.id for s in find_sources(paths, glob)]


def problems(*paths: Path, glob: str | None = None) -> dict[str, str | None]:
    return {s.id: s.problem for s in find_sources(paths, glob)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("txt", None)),
        ("A.HTM", ("html", None)),
        ("a.b.JsonL.GZ", ("jsonl", "gz")),
        ("a.ndjson.zst", ("jsonl", "zst")),
        ("a.parquet", ("parquet", None)),
        ("a.TSV", ("csv", None)),
        ("a.gz", (None, "gz")),
        ("a.txt.bz2", (None, None)),
        ("a.gz.txt", ("txt", None)),
        ("a.txt.gz.gz", (None, "gz")),
        ("txt", (None, None)),
        (".txt", (None, None)),
        ("", (None, None)),
    ],
)
def test_suffixes_tell_format_and_compression(name, expected):
    assert formats_of(name) == expected


def test_folders_are_walked_in_depth_in_the_order_of_the_bytes_of_names(tmp_path):
    tree(
        tmp_path,
        "b.txt",
        "a/2.csv",
        "a/10.txt",
        "a/deep/er/x.json.gz",
        "z.parquet",
        "خبر.html",
        "a.txt",
        "a-b/1.txt",
        "note.md",
        "txt",
        "B.TXT",
    )
    expected = [
        "B.TXT",
        "a/10.txt",
        "a/2.csv",
        "a/deep/er/x.json.gz",
        "a-b/1.txt",
        "a.txt",
        "b.txt",
        "z.parquet",
        "خبر.html",
    ]
    assert ids(tmp_path) == expected
    assert [s.path for s in find_sources([tmp_path])] == [tmp_path / name for name in expected]


def test_every_known_format_is_found_compressed_or_not(tmp_path):
    names = sorted(f"a{suffix}{end}" for suffix in FORMATS for end in ("", ".gz", ".ZST"))
    assert ids(tree(tmp_path, *names)) == names


def test_sources_come_before_the_walk_is_over(tmp_path, monkeypatch):
    tree(tmp_path, "a.txt", "b/c.txt")
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    sources = find_sources([tmp_path])
    assert isinstance(sources, Iterator)
    assert listed == []
    assert next(sources).id == "a.txt"
    assert listed == [tmp_path.name]
    assert [s.id for s in sources] == ["b/c.txt"]


def test_a_folder_may_be_named_like_an_article(tmp_path):
    assert ids(tree(tmp_path, "archive.txt/a.txt")) == ["archive.txt/a.txt"]


def test_one_file_goes_by_its_name_whatever_the_suffix(tmp_path):
    tree(tmp_path, "more/a.md")
    assert ids(tmp_path / "more" / "a.md") == ["a.md"]


def test_several_inputs_keep_their_order_and_go_by_whole_paths(tmp_path, monkeypatch):
    tree(tmp_path, "b.txt", "a.md", "more/c.txt", "more/d/e.csv")
    monkeypatch.chdir(tmp_path)
    assert ids(Path("b.txt"), Path("a.md"), Path("more")) == ["b.txt", "a.md", "more/c.txt", "more/d/e.csv"]
    assert ids(tmp_path / "more", Path("b.txt")) == [
        (tmp_path / "more/c.txt").as_posix(),
        (tmp_path / "more/d/e.csv").as_posix(),
        "b.txt",
    ]
    assert ids(Path(), Path("b.txt")) == ["b.txt", "more/c.txt", "more/d/e.csv"]


def test_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tree(tmp_path, "a/b.txt"))
    assert ids(Path()) == ["a/b.txt"]


def test_standard_input_is_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(find_sources([STANDARD_INPUT])) == [Source(STANDARD_INPUT, "-")]


def test_a_file_reached_twice_is_read_once(tmp_path, monkeypatch):
    tree(tmp_path, "a.txt", "b.txt", "sub/c.txt")
    monkeypatch.chdir(tmp_path)
    everything = ids(Path("b.txt"), tmp_path, Path("a.txt"), Path("sub"), Path("sub/../b.txt"), tmp_path)
    assert everything == ["b.txt", f"{tmp_path}/a.txt", f"{tmp_path}/sub/c.txt"]


def test_a_link_to_a_file_that_is_read_as_well(tmp_path):
    tree(tmp_path, "b.txt")
    (tmp_path / "a.txt").symlink_to("b.txt")
    (tmp_path / "c.txt").symlink_to("b.txt")
    assert problems(tmp_path) == {"a.txt": None}


def test_two_files_of_equal_content_are_both_read(tmp_path):
    assert ids(tree(tmp_path, "a.txt", "b.txt", "c/a.txt")) == ["a.txt", "b.txt", "c/a.txt"]


def test_many_files(tmp_path):
    paths = [Path(f"{n}/a.txt") for n in range(20_000)]
    assert ids(*paths) == [p.as_posix() for p in paths]


def test_glob_compares_names_or_paths(tmp_path):
    tree(tmp_path, "a.txt", "2024/b.txt", "2024/05/c.csv", "2024/05/d.txt", "2025/e.txt", "2024/f.md")
    assert ids(tmp_path, glob="*.csv") == ["2024/05/c.csv"]
    assert ids(tmp_path, glob="[a-d].txt") == ["2024/05/d.txt", "2024/b.txt", "a.txt"]
    assert ids(tmp_path, glob="2024/**") == ["2024/05/c.csv", "2024/05/d.txt", "2024/b.txt"]
    assert ids(tmp_path, glob="2024/*") == ["2024/b.txt"]
    assert ids(tmp_path, glob="**/*.txt") == ["2024/05/d.txt", "2024/b.txt", "2025/e.txt", "a.txt"]
    assert ids(tmp_path, glob="*/05/*.txt") == ["2024/05/d.txt"]
    assert ids(tmp_path, glob="**/05/**/d.*") == ["2024/05/d.txt"]


def test_glob_does_not_bear_on_files_given_by_themselves(tmp_path):
    assert ids(tree(tmp_path, "a.txt") / "a.txt", glob="*.csv") == ["a.txt"]


def test_missing_files_are_reported(tmp_path):
    gone = tmp_path / "gone.txt"
    assert list(find_sources([gone])) == [Source(gone, "gone.txt", "cannot be read: No such file or directory")]
    assert len(list(find_sources([gone, gone]))) == 1


@pytest.mark.parametrize("names", [[], ["a.md", "sub/b.TXT.bz2"]])
def test_a_folder_without_articles(tmp_path, names):
    with pytest.raises(
        DataError, match=rf"{tmp_path}: no file of a known format in this folder or below; known are .*"
    ):
        list(find_sources([tree(tmp_path, *names)]))
    with pytest.raises(DataError, match=r"\.txt, \.html, .*\.parquet, each also with \.gz or \.zst"):
        list(find_sources([tmp_path]))


def test_a_folder_without_a_file_that_matches(tmp_path):
    with pytest.raises(DataError, match=r"no file of a known format that matches \*\.csv in this folder"):
        list(find_sources([tree(tmp_path, "a.txt", "b.md")], "*.csv"))
    with pytest.raises(DataError, match=r"matches \*\.md"):
        list(find_sources([tmp_path], "*.md"))


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    tree(tmp_path, "in/a.txt", "in/deep/b.txt", "out/c.txt")
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/other").symlink_to(tmp_path / "out")
    (tmp_path / "in/ring.txt").symlink_to("ring.txt")
    found = problems(tmp_path / "in")
    assert list(found) == ["a.txt", "deep/b.txt", "deep/up", "other/c.txt", "ring.txt", "self"]
    assert {name for name, problem in found.items() if problem} == {"deep/up", "ring.txt", "self"}
    assert found["self"] == "a link to a folder that it is in (symlink loop); remove the link"
    assert "cannot be read: " in (found["ring.txt"] or "")


def test_a_web_of_links_is_walked_in_no_time(tmp_path):
    folders = [f"f{n:02}" for n in range(12)]
    tree(tmp_path, *(f"{folder}/{folder}.txt" for folder in folders))
    for a in folders:
        for b in folders:
            if a != b:
                (tmp_path / a / f"to-{b}").symlink_to(tmp_path / b)
    found = problems(tmp_path)
    assert sorted(Path(name).name for name, problem in found.items() if not problem) == [f"{f}.txt" for f in folders]


def test_glob_by_path_finds_what_a_link_shows_elsewhere(tmp_path):
    tree(tmp_path, "a/1.txt")
    (tmp_path / "z").symlink_to("a")
    assert ids(tmp_path, glob="z/*") == ["z/1.txt"]


def test_what_would_block_or_lead_nowhere_is_reported(tmp_path):
    tree(tmp_path, "a.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "null.txt").symlink_to("/dev/null")
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe")
    blocked = "a pipe, socket or device; give it by itself to have it read"
    assert problems(tmp_path) == {
        "a.txt": None,
        "gone.txt": "cannot be read: No such file or directory",
        "null.txt": blocked,
        "pipe.txt": blocked,
    }
    assert problems(tmp_path, glob="a*") == {"a.txt": None}


def test_a_socket_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tree(tmp_path, "a.txt"))  # the names of sockets must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.txt")
        assert problems(Path())["s.txt"] == "a pipe, socket or device; give it by itself to have it read"


def test_a_pipe_given_by_itself_is_a_source(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert list(find_sources([tmp_path / "pipe"])) == [Source(tmp_path / "pipe", "pipe")]


def test_a_folder_without_permission_costs_itself_only(tmp_path, monkeypatch):
    tree(tmp_path, "a.txt", "closed/b.txt", "d.txt")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert problems(tmp_path) == {"a.txt": None, "closed": "cannot be read: Permission denied", "d.txt": None}
    assert problems(tmp_path / "closed") == {"closed": "cannot be read: Permission denied"}


def test_a_folder_that_vanishes_during_the_walk(tmp_path, monkeypatch):
    tree(tmp_path, "a.txt", "b/c.txt")
    sources = find_sources([tmp_path])
    assert next(sources).id == "a.txt"
    (tmp_path / "b/c.txt").unlink()
    (tmp_path / "b").rmdir()
    assert [(s.id, s.problem) for s in sources] == [("b", "cannot be read: No such file or directory")]


def test_folders_nested_a_thousand_deep(tmp_path, monkeypatch):
    deepest = "d/" * 1200
    monkeypatch.chdir(tmp_path)
    for depth in range(1, 1201):
        Path("d/" * depth).mkdir()
    Path(deepest, "a.txt").write_text("قسد", encoding="utf-8")
    try:
        assert ids(Path()) == [f"{deepest}a.txt"]
    finally:  # what clears temporary folders up does recurse
        Path(deepest, "a.txt").unlink()
        os.removedirs(deepest)


def test_a_file_name_that_is_not_utf_8_gets_an_id_that_is(tmp_path):
    try:
        tree(tmp_path, os.fsdecode(b"caf\xe9.txt"), "cafz.txt")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert ids(tmp_path) == ["cafz.txt", "caf\\udce9.txt"]
    assert printable("a/خبر.txt") == "a/خبر.txt"


@settings(deadline=None)
@given(st.text(alphabet=st.characters()))
def test_what_is_printable_can_be_written_and_stays_as_it_is(text):
    shown = printable(text)
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
