import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rasid.cli.data import app
from rasid.corpus import (
    OPEN_MARK,
    check,
    default_ontology,
    order_ends,
    render_counts,
    replace_counts,
    split,
    statistics,
)
from rasid.errors import DataError, RasidError
from rasid.formats import FORMATS, read, write
from rasid.records import Article, Entity, Relation, read_articles
from rasid.schema import Ontology

ROOT = Path(__file__).parents[1]
DATA = ROOT / "data"
PARTS = ("train", "dev", "test")
SPLIT, TRAIN_ONLY = ("af", "gw", "mx", "sy", "yi"), "rn"  # slices
ONTOLOGY = Ontology.load(DATA / "ontology.yaml")


@pytest.fixture(scope="module")
def corpus():
    return {part: list(read_articles(DATA / f"{part}.jsonl", ONTOLOGY)) for part in PARTS}


def invoke(*args):
    result = CliRunner().invoke(app, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# The corpus that is shipped


def test_every_committed_file_is_sound():
    assert check([DATA / f"{part}.jsonl" for part in PARTS], ONTOLOGY) == []


def test_splits_are_disjoint_balanced_and_reproducible(corpus):
    everything = [a for articles in corpus.values() for a in articles]
    assert len({a.id for a in everything}) == len({a.text for a in everything}) == len(everything)
    slices = {
        part: {name: c.articles for name, c in statistics(a, ONTOLOGY).slices.items()} for part, a in corpus.items()
    }
    for part, size in (("train", 80), ("dev", 10), ("test", 10)):
        assert (slices[part].pop(TRAIN_ONLY, 0) >= 400) is (part == "train")
        assert slices[part] == dict.fromkeys(SPLIT, size)
    again = split(reversed([a for a in everything if a.meta["slice"] in SPLIT]))
    parts = {part: {a.id for a in articles if a.meta["slice"] in SPLIT} for part, articles in corpus.items()}
    assert {part: {a.id for a in articles} for part, articles in again.items()} == parts


def test_symmetric_relations_name_the_earlier_mention_first(corpus):
    assert all(order_ends(a, ONTOLOGY) == a for articles in corpus.values() for a in articles)


def test_counts_in_the_datasheet_are_those_of_the_files(corpus):
    parts = {part: statistics(articles, ONTOLOGY) for part, articles in corpus.items()}
    total = statistics([a for articles in corpus.values() for a in articles], ONTOLOGY)
    datasheet = (DATA / "DATASHEET.md").read_text(encoding="utf-8")
    assert datasheet == replace_counts(datasheet, render_counts(parts, total), "DATASHEET.md")


def test_checksums_match_and_cover_the_corpus():
    sums = dict(reversed(line.split()) for line in (DATA / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    assert set(sums) == {"train.jsonl", "dev.jsonl", "test.jsonl", "ontology.yaml", "GUIDELINES.md"}
    for name, digest in sums.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("form", FORMATS)
def test_the_corpus_survives_every_format(tmp_path, corpus, form):
    write(corpus["dev"], tmp_path / "out", form)
    back = {a.id: a for a in read(tmp_path / "out", ONTOLOGY, form)}
    assert set(back) == {a.id for a in corpus["dev"]}
    for article in corpus["dev"]:
        other = back[article.id]
        assert (other.text, other.entities) == (article.text, article.entities)
        assert set(other.relations) == set(article.relations)
        assert other.meta == ({} if form == "brat" else article.meta)


def test_samples_are_new_arabic_text(corpus):
    samples = sorted((DATA / "samples").rglob("*.txt"))
    assert len(samples) == 6
    assert any(path.parent != DATA / "samples" for path in samples)
    texts = {a.text for articles in corpus.values() for a in articles}
    for path in samples:
        text = path.read_text(encoding="utf-8")
        assert re.search(r"[\u0621-\u064a]{3}", text)
        assert text.strip() not in texts


# Corpora that are broken

TEXT = "وصل رتل لقسد إلى تل تمر"
GOOD = {
    "id": "x-1",
    "text": TEXT,
    "entities": [
        {"id": "T1", "type": "EQUIPMENT", "start": 4, "end": 7, "text": "رتل"},
        {"id": "T2", "type": "LOCATION", "start": 17, "end": 23, "text": "تل تمر"},
    ],
    "relations": [{"type": "MOVES_TO", "head": "T1", "tail": "T2"}],
}


def spoil(path, value):
    """A copy of the good record with one value changed: `entities.0.end`."""
    record = json.loads(json.dumps(GOOD))
    *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = record
    for step in way:
        place = place[step]
    place[last] = value
    return json.dumps(record, ensure_ascii=False)


BROKEN = {
    "unknown type": (
        spoil("entities.0.type", "SHIP"),
        "entity T1 [4, 7) «رتل»: unknown type SHIP; the ontology has MIL_UNIT, LOCATION, FACILITY, EQUIPMENT",
    ),
    "unknown relation": (
        spoil("relations.0.type", "SAILS_TO"),
        "relation SAILS_TO T1 → T2: unknown type; the ontology has",
    ),
    "overlap": (
        spoil("entities.1", {"id": "T2", "type": "LOCATION", "start": 6, "end": 12, "text": "ل لقسد"}),
        "entities T1 [4, 7) and T2 [6, 12) overlap; spans are flat: keep one",
    ),
    "offset beyond the text": (
        spoil("entities.1.end", 50),
        "entity T2 [17, 50) «تل تمر»: outside of the text, which has 23 characters; expected 0 <= start < end <= 23",
    ),
    "wrong offset": (
        spoil("entities.0.end", 6),
        "entity T1 [4, 6) «رتل»: the text has «رت» there; offsets count code points",
    ),
    "missing id": (
        spoil("relations.0.tail", "T7"),
        "relation MOVES_TO T1 → T7: no entity T7 in the article; add it or drop the relation",
    ),
    "forbidden ends": (
        spoil("relations.0", {"type": "MOVES_TO", "head": "T2", "tail": "T1"}),
        "relation MOVES_TO T2 → T1: the ontology does not let MOVES_TO join LOCATION «تل تمر» to EQUIPMENT «رتل»",
    ),
    "broken JSON": ('{"id": "x-1", "text": ', "not an article record: record: Invalid JSON: EOF while parsing"),
    "missing field": (json.dumps({"id": "x-1"}), "not an article record: text: Field required"),
    "unknown field": (spoil("labels", []), "not an article record: labels: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_names_file_line_problem_and_remedy(tmp_path, name):
    line, message = BROKEN[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**GOOD, "id": "x-0"}) + "\n" + line + "\n", encoding="utf-8")
    result = invoke("check", path, "--ontology", DATA / "ontology.yaml")
    assert result.exit_code == 1
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    assert first.startswith(f"{path}:2: {message}")
    assert last == "1 problem"
    with pytest.raises(DataError) as caught:  # reading for any other purpose says the same
        list(read(path, ONTOLOGY))
    assert str(caught.value) == first


def test_check_lists_all_problems_of_all_files(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.markup"
    first.write_text("\n".join(line for line, _ in BROKEN.values()) + "\n", encoding="utf-8")
    second.write_text("=== m\n[رتل](SHIP 1)\n@ HAS 1 1\n", encoding="utf-8")
    problems = check([first, second, tmp_path / "none.jsonl"], ONTOLOGY)
    assert [p.split(": ")[0] for p in problems] == [
        *(f"{first}:{i}" for i in range(1, len(BROKEN) + 1)),
        f"{second}:2",
        f"{second}:3",
        str(tmp_path / "none.jsonl"),
    ]


def test_check_finds_articles_that_splits_share(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(GOOD) + "\n", encoding="utf-8")
    problems = check([tmp_path / "train.jsonl", tmp_path / "test.jsonl"], ONTOLOGY)
    assert problems == [
        f"{tmp_path}/test.jsonl:1: id x-1 is that of {tmp_path}/train.jsonl:1 too; files must not share articles"
    ]


# Counting and splitting


def small(article_id, part, text="قسد في حلب"):
    entity = Entity(id="T1", type="MIL_UNIT", start=0, end=3, text=text[:3])
    return Article(id=article_id, text=text, meta={"slice": part}, entities=(entity,))


def test_statistics_count_types_without_any_too():
    counts = statistics([small("a", "sy"), small("b", "af", "قسد")], ONTOLOGY)
    assert (counts.total.articles, counts.total.words) == (2, 4)
    assert counts.total.entities == {**dict.fromkeys(ONTOLOGY.entity_types, 0), "MIL_UNIT": 2}
    assert counts.total.relations == dict.fromkeys(ONTOLOGY.relation_names, 0)
    assert {name: c.words for name, c in counts.slices.items()} == {"af": 1, "sy": 3}


def test_split_keeps_shares_within_each_slice_and_moves_no_article_when_others_come():
    articles = [small(f"{part}-{i}", part) for part in ("sy", "af") for i in range(20)]
    parts = split(articles)
    assert {name: len(p) for name, p in parts.items()} == {"train": 32, "dev": 4, "test": 4}
    assert [sum(a.meta["slice"] == "sy" for a in p) for p in parts.values()] == [16, 2, 2]
    assert split(articles[:20])["dev"] == [a for a in parts["dev"] if a.meta["slice"] == "sy"]
    assert split(articles, seed="other") != parts
    assert split([small("a", "sy")], {"left": 0.5, "right": 0.5}) == {"left": [], "right": [small("a", "sy")]}


def test_order_ends_turns_only_symmetric_relations():
    text = "قسد وداعش"
    entities = (
        Entity(id="T9", type="MIL_UNIT", start=0, end=3, text="قسد"),
        Entity(id="T1", type="MIL_UNIT", start=5, end=9, text="داعش"),
    )
    relations = tuple(Relation(type=kind, head="T1", tail="T9") for kind in ("ALLIED_WITH", "ATTACKS"))
    turned = order_ends(Article(id="a", text=text, entities=entities, relations=relations), ONTOLOGY)
    assert [(r.head, r.tail) for r in turned.relations] == [("T9", "T1"), ("T1", "T9")]


def test_default_ontology_is_that_of_the_working_directory(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ontology.yaml").write_text("entity_types: [ONLY]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert default_ontology().entity_types == ("ONLY",)


# The commands


def test_check_says_how_much_it_checked(monkeypatch):
    monkeypatch.chdir(ROOT)
    result = invoke("check", "data/dev.jsonl", "data/test.jsonl")
    assert (result.exit_code, result.stdout) == (0, "100 articles in 2 files: no problems\n")


def test_stats_prints_a_table_or_json(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = invoke("stats", "data/dev.jsonl", "data/test.jsonl").stdout
    assert re.search(r"articles +50 +50 +100\b", table)
    assert re.search(r"articles +20 +20 +20 +20 +20 +100\b", table)
    values = json.loads(invoke("stats", "data/dev.jsonl", "--json").stdout)
    assert values["total"]["articles"] == values["files"]["dev"]["articles"] == 50
    assert set(values["total"]["slices"]) == {"af", "gw", "mx", "sy", "yi"}


def test_stats_rewrites_the_counts_of_a_datasheet_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    datasheet = shutil.copy(DATA / "DATASHEET.md", tmp_path / "D.md")
    files = [f"data/{part}.jsonl" for part in PARTS]
    invoke("stats", files[1], "--datasheet", datasheet)
    assert "| articles | 50 | 50 |" in datasheet.read_text(encoding="utf-8")
    invoke("stats", *files, "--datasheet", datasheet)
    assert datasheet.read_bytes() == (DATA / "DATASHEET.md").read_bytes()
    datasheet.write_text("no marks\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"D\.md: no place for counts; put the lines {OPEN_MARK}"):
        invoke("stats", files[1], "--datasheet", datasheet)


def test_convert_goes_round_and_says_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = invoke("convert", "data/dev.jsonl", tmp_path / "dev.conll")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{tmp_path}/dev.conll: 50 articles, jsonl → conll\n"
    result = invoke("convert", tmp_path / "dev.conll", tmp_path / "folder", "--to", "brat")
    assert result.stderr == "brat has no place for `meta`: left out of 50 articles\n"
    invoke("convert", tmp_path / "folder", tmp_path / "back.jsonl")
    back = {a.id: (a.text, a.entities, set(a.relations)) for a in read(tmp_path / "back.jsonl", ONTOLOGY)}
    assert back == {a.id: (a.text, a.entities, set(a.relations)) for a in read("data/dev.jsonl")}


def test_convert_never_writes_over_its_source_or_after_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD) + "\n", encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(RasidError, match="would replace its own source"):
        invoke("convert", path, path)
    assert path.read_bytes() == before
    path.write_text(spoil("relations.0.tail", "T7") + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:1: relation MOVES_TO T1 → T7"):
        invoke("convert", path, tmp_path / "b.conll")
    assert not (tmp_path / "b.conll").exists()
    with pytest.raises(DataError, match="unknown format «xml»"):
        invoke("convert", path, tmp_path / "b.conll", "--to", "xml")


def test_convert_renumbers_foreign_ids_when_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD).replace('"T', '"e'), encoding="utf-8")
    with pytest.raises(DataError, match="--renumber"):
        invoke("convert", path, tmp_path / "a.markup")
    invoke("convert", path, tmp_path / "a.markup", "--renumber")
    assert "[رتل](EQUIPMENT 1) لقسد إلى [تل تمر](LOCATION 2)" in (tmp_path / "a.markup").read_text(encoding="utf-8")
