import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rasid.errors import DataError
from rasid.formats import FORMATS, find_format, guess_format, read, renumber, scan, write
from rasid.records import Article, Entity, Relation
from rasid.schema import Ontology

ONTOLOGY = Ontology.parse(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "WITH": {"head": ["UNIT"], "tail": ["UNIT"], "symmetric": True},
            "SAME": {
                "head": ["UNIT", "PLACE"],
                "tail": ["UNIT", "PLACE"],
                "symmetric": True,
                "transitive": True,
                "same_type": True,
            },
        },
    },
    "test",
)
# What breaks careless converters: diacritics, tatweel, bidi marks, a joiner, an emoji with its selector and one beyond
# 16 bits, blanks of all sorts, line separators that are no paragraph breaks, and the signs of the formats themselves.
LETTERS = "وبلقسدتةأٱ" + "ًُّْـ" + "\u200f\u200e\u202b\u202c\u2067\u200d\ufeff" + "✈\ufe0f🚀" + "A1٣#@=\\:\"'*«»()-_;"
BLANKS = "   \u00a0\t\r\u2028\u2029\x85\x0b\x1c"
ALL_KEPT = ("id", "text", "meta", "entities", "relations")


@st.composite
def articles(draw, clean=False):
    """Articles with any text; `clean` ones have spans of letters only and no brackets, as markup demands.

    A paragraph is gaps and spans by turns. Gaps may be empty or end in a proclitic: spans touch words and each other.
    """
    edge = st.sampled_from("قسدتةأA1٣")
    inside = st.text(LETTERS + BLANKS.replace("\r", "") + ("" if clean else "[]"), max_size=6)
    surfaces = st.one_of(edge, st.tuples(edge, inside, edge).map("".join))
    if not clean:
        marks = st.sampled_from('ً\u200f\u200d🚀"«(')
        surfaces = st.one_of(surfaces, st.tuples(marks, inside, marks).map("".join))
    gaps = st.text(LETTERS + BLANKS + ("" if clean else "[]"), max_size=8)
    shapes = st.lists(
        st.lists(st.tuples(gaps, surfaces, st.sampled_from(ONTOLOGY.entity_types)), max_size=3), max_size=3
    )
    paragraphs, entities, relations, offset = [], [], [], 0
    for shape in draw(shapes):
        text, here = "", []
        for gap, surface, kind in shape:
            text += gap
            start, end = offset + len(text), offset + len(text) + len(surface)
            here.append(Entity(id=f"T{len(entities) + len(here) + 1}", type=kind, start=start, end=end, text=surface))
            text += surface
        text += draw(gaps)
        pairs = [(a.id, b.id) for a in here for b in here if a is not b and ONTOLOGY.allows("AT", a.type, b.type)]
        relations += [Relation(type="AT", head=a, tail=b) for a, b in pairs]
        entities += here
        paragraphs.append(text)
        offset += len(text) + 1
    values = st.one_of(st.text(LETTERS + BLANKS, max_size=8), st.integers(), st.none(), st.lists(edge))
    meta = draw(st.dictionaries(st.text("abjson:# ", max_size=5), values, max_size=2))
    return Article(
        id="sy-1", text="\n".join(paragraphs), meta=meta, entities=tuple(entities), relations=tuple(relations)
    )


def kept(article, *fields):
    """What a round trip has to keep; the order of relations means nothing."""
    values = {name: getattr(article, name) for name in fields}
    values["relations"] = sorted((r.type, r.head, r.tail) for r in article.relations)
    return values


def there_and_back(items, path, form):
    assert write(items, path, form) == len(items)
    return list(read(path, ONTOLOGY, form))


quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(article=articles())
def test_jsonl_and_conll_keep_everything(tmp_path, article):
    for form in ("jsonl", "conll"):
        (back,) = there_and_back([article], tmp_path / "corpus", form)
        assert kept(back, *ALL_KEPT) == kept(article, *ALL_KEPT)


@quick
@given(article=articles())
def test_brat_keeps_all_but_meta(tmp_path, article):
    (back,) = there_and_back([article], tmp_path / "corpus", "brat")
    assert back.meta == {}
    assert kept(back, "id", "text", "entities") == kept(article, "id", "text", "entities")


@quick
@given(article=articles(clean=True))
def test_markup_keeps_everything_of_texts_without_brackets(tmp_path, article):
    (back,) = there_and_back([article], tmp_path / "corpus.markup", "markup")
    assert kept(back, *ALL_KEPT) == kept(article, *ALL_KEPT)


@quick
@given(article=articles())
def test_markup_keeps_everything_or_says_that_it_cannot(tmp_path, article):
    try:
        (back,) = there_and_back([article], tmp_path / "corpus.markup", "markup")
    except DataError as error:
        assert "article sy-1" in str(error)
    else:
        assert kept(back, *ALL_KEPT) == kept(article, *ALL_KEPT)


def example(article_id="sy-1"):
    text = "وصل رتل لقسد إلى تل تمر\nوقالت قسد"
    spans = [("T1", "UNIT", 9, 12), ("T2", "PLACE", 17, 23), ("T3", "UNIT", 30, 33)]
    entities = tuple(Entity(id=n, type=t, start=a, end=b, text=text[a:b]) for n, t, a, b in spans)
    relations = (Relation(type="AT", head="T1", tail="T2"),)
    return Article(id=article_id, text=text, meta={"outlet": "brief"}, entities=entities, relations=relations)


def test_markup_is_written_as_people_write_it(tmp_path):
    path = tmp_path / "a.markup"
    write([example()], path)
    assert path.read_text(encoding="utf-8") == (
        "=== sy-1\n# outlet: brief\nوصل رتل ل[قسد](UNIT 1) إلى [تل تمر](PLACE 2)\n@ AT 1 2\nوقالت [قسد](UNIT 3)\n"
    )


def test_conll_cuts_a_word_at_the_edge_of_an_entity(tmp_path):
    path = tmp_path / "a.conll"
    write([example()], path)
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if "\t" in line]
    assert rows[2:4] == [["ل", "O", "8", "9", "_"], ["قسد", "B-UNIT", "9", "12", "T1"]]
    assert rows[5:7] == [["تل", "B-PLACE", "17", "19", "T2"], ["تمر", "I-PLACE", "20", "23", "_"]]
    assert "# relation = AT T1 T2" in path.read_text(encoding="utf-8").split("\n")


def test_brat_is_one_pair_of_files_per_article_below_the_folder(tmp_path):
    assert write([example(), example("sub/sy-2")], tmp_path / "out") == 2
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")) == [
        "sub/sy-2.ann",
        "sub/sy-2.txt",
        "sy-1.ann",
        "sy-1.txt",
    ]
    assert (tmp_path / "out" / "sy-1.ann").read_text(encoding="utf-8") == (
        "T1\tUNIT 9 12\tقسد\nT2\tPLACE 17 23\tتل تمر\nT3\tUNIT 30 33\tقسد\nR1\tAT Arg1:T1 Arg2:T2\n"
    )
    assert [a.id for a in read(tmp_path / "out", ONTOLOGY)] == ["sub/sy-2", "sy-1"]
    assert [a.id for a in read(tmp_path / "out" / "sy-1.ann", ONTOLOGY)] == ["sy-1"]


@pytest.mark.parametrize("form", FORMATS)
def test_articles_keep_their_order_and_ids_must_be_unique(tmp_path, form):
    several = [example(name) for name in ("b", "a", "c")]
    order = ["a", "b", "c"] if form == "brat" else ["b", "a", "c"]
    assert [a.id for a in there_and_back(several, tmp_path / "out", form)] == order
    with pytest.raises(DataError, match=r"id a is that of|id used twice"):
        there_and_back([example("a"), example("a")], tmp_path / "again", form)


@pytest.mark.parametrize("form", FORMATS)
def test_line_ends_of_windows_inside_a_text_survive(tmp_path, form):
    text = "أولا\r\n\r\n ثانيا \r"
    (back,) = there_and_back([Article(id="a", text=text)], tmp_path / "out", form)
    assert back.text == text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "  ",
        "\ufeff",
        "-DOCSTART-\n-DOCSTART- O",
        "# id = x\n# y: z\n#",
        "=== z\n====",
        "@ AT 1 2",
        "\\\n\\ a",
        "T1\tX 0 1\ta",
    ],
)
def test_texts_that_look_like_a_format_are_texts(tmp_path, form, text):
    first, second = (Article(id=name, text=text) for name in "ab")
    assert [a.text for a in there_and_back([first, second], tmp_path / "out", form)] == [text, text]


# Foreign and hand-written files


def conll(tmp_path, content):
    path = tmp_path / "foreign.conll"
    path.write_bytes(content.encode())
    return path


def test_two_columns_without_documents_give_an_article_per_sentence(tmp_path):
    path = conll(tmp_path, "وصل O\r\nجيش B-UNIT\r\nالشام I-UNIT\r\n\r\n\r\nإلى O\r\nحلب B-PLACE\r\n")
    first, second = read(path, ONTOLOGY)
    assert (first.id, first.text) == ("foreign-1", "وصل جيش الشام")
    assert [(e.text, e.type, e.start, e.end) for e in first.entities] == [("جيش الشام", "UNIT", 4, 13)]
    assert (second.id, second.entities[0].text) == ("foreign-2", "حلب")


def test_document_separators_gather_sentences_into_paragraphs(tmp_path):
    path = conll(
        tmp_path, "-DOCSTART- -X- O O\n\nقسد NNP x B-UNIT\n\nحلب NNP x B-PLACE\n\n-DOCSTART- -X- O O\n\nلا RP x O\n"
    )
    assert [(a.text, len(a.entities)) for a in read(path, ONTOLOGY)] == [("قسد\nحلب", 2), ("لا", 0)]
    path = conll(
        tmp_path,
        "# global.columns = a b\n# newdoc id = d1\n# text = قسد في حلب\nقسد\tB-UNIT\nفي\tO\nحلب\tB-PLACE\n"
        "# relation = AT T1 T2\n\n# newdoc\n# id = d2\n# sent_id = 4\n#\tO\n#\tB-UNIT\n",
    )
    first, second = read(path, ONTOLOGY)
    assert (first.id, first.text) == ("d1", "قسد في حلب")
    assert first.relations == (Relation(type="AT", head="T1", tail="T2"),)
    assert (second.id, second.text, second.entities[0].start) == ("d2", "# #", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("قسد\tI-UNIT\n", r"foreign\.conll:1: tag «I-UNIT» continues no entity of its type; in IOB2 .* B-UNIT"),
        ("قسد\tB-UNIT\nحلب\tI-PLACE\n", r"foreign\.conll:2: tag «I-PLACE» continues no entity"),
        ("# id = a\nقسد\tB-UNIT\n\nحلب\tI-UNIT\n", r"foreign\.conll:4: tag «I-UNIT» continues no entity"),
        ("قسد\tB-UNIT\n\nحلب\tI-UNIT\n", r"foreign\.conll:3: tag «I-UNIT» continues no entity"),
        ("قسد\tS-UNIT\n", r"foreign\.conll:1: unknown tag «S-UNIT»; expected O, B-TYPE or I-TYPE"),
        ("لا\tO\nقسد\tB-SHIP\n", r"foreign\.conll:2: entity T1 .*unknown type SHIP; the ontology has UNIT, PLACE"),
        ("لا\tO\nقسد\n", r"foreign\.conll:2: «قسد»: expected a token and its tag"),
        ("# id = a\n\n", r"foreign\.conll:1: article a has no rows and no text"),
        ("قسد\tB-UNIT\n# relation = AT T1\n", r"foreign\.conll:2: relation «AT T1» has 2 parts"),
        ("قسد\tB-UNIT\n# relation = AT T1 T7\n", r"foreign\.conll:2: relation AT T1 → T7: no entity T7"),
        (
            '# id = a\n# text = "قسد"\nحلب\tO\t0\t3\n',
            r"foreign\.conll:3: token «حلب» \[0, 3\): the text has «قسد» there",
        ),
        ('# id = a\n# text = "قسد حلب"\nقسد\tO\t0\t3\nحلب\tO\n', r"foreign\.conll:4: token «حلب» has no offsets"),
        ('# id = a\n# text = "لا"\nلا\tO\t0\t2\nلا\tO\t0\t2\n', r"foreign\.conll:4: .*the row before ends at 2"),
        ("# id = a\n# meta = 5\nحلب\tO\n", r"foreign\.conll:2: `# meta` is no JSON object"),
    ],
)
def test_broken_conll_is_explained(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        list(read(conll(tmp_path, content), ONTOLOGY))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("قسد\n", r"a\.markup:1: text before the first article; begin each article with a line `=== id`"),
        ("=== \nقسد\n", r"a\.markup:1: no id"),
        ("=== a\n# outlet: x\n", r"a\.markup:1: article a has no text"),
        ("=== a\n[قسد](SHIP 1)\n", r"a\.markup:2: entity T1 .* unknown type SHIP; the ontology has UNIT, PLACE"),
        ("=== a\n[قسد](UNIT 1) و[حلب](PLACE 1)\n", r"a\.markup:2: number 1 used twice \(here for «حلب»\)"),
        ("=== a\n\n[قسد](UNIT)\n", r"a\.markup:3: stray bracket near «\[قسد\]\(UNIT\)»"),
        ("=== a\nقسد] في\n", r"a\.markup:2: stray bracket"),
        ("=== a\n[قسد ](UNIT 1)\n", r"a\.markup:2: span «قسد » starts or ends with white space or punctuation"),
        ("=== a\n[«قسد](UNIT 1)\n", r"a\.markup:2: span ««قسد» starts or ends"),
        ("=== a\n[قسد](UNIT 1)\n@ AT 1\n", r"a\.markup:3: relation line «@ AT 1» has 2 parts"),
        ("=== a\n[قسد](UNIT 1)\n@ AT 1 2\n", r"a\.markup:3: relation line «@ AT 1 2»: unknown number 2"),
        ("=== a\n[قسد](UNIT 1) [حلب](PLACE 2)\n@ NEAR 1 2\n", r"a\.markup:3: relation NEAR T1 → T2: unknown type"),
        ("=== a\n[قسد](UNIT 1) [حلب](PLACE 2)\n@ AT 2 1\n", r"a\.markup:3: .*does not let AT join PLACE «حلب» to UNIT"),
        ("=== a\n[قسد](UNIT 1)\n[حلب](PLACE 2)\n@ AT 1 2\n", r"a\.markup:4: .*in different paragraphs"),
        ("=== a\n[قسد](UNIT 1) [حلب](PLACE 2)\n@ AT 1 2\n@ AT 1 2\n", r"a\.markup:4: .*marked twice"),
        ("=== a\n# json: [1]\nقسد\n", r"a\.markup:2: meta data «\[1\]» are no JSON object"),
    ],
)
def test_broken_markup_is_explained(tmp_path, content, message):
    path = tmp_path / "a.markup"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        list(read(path, ONTOLOGY))
    assert len(str(caught.value).split("\n")) == 1


def test_markup_written_by_hand_may_be_untidy(tmp_path):
    path = tmp_path / "a.markup"
    path.write_bytes(
        "\ufeff\r\n===  a \r\n# country:  SY\r\n\r\n   [ «قسد» و)](UNIT 3) \r\n".replace(" «قسد» و)", "م.ط.").encode()
    )
    (article,) = read(path, ONTOLOGY)
    assert (article.id, article.text, article.meta, article.entities[0].id) == ("a", "م.ط.", {"country": "SY"}, "T3")


def test_a_bad_article_hides_neither_the_good_ones_nor_the_next_bad_one(tmp_path):
    path = tmp_path / "a.markup"
    path.write_text("=== a\n[x\n=== b\nقسد\n=== c\n[y\n", encoding="utf-8")
    found = list(scan(path, ONTOLOGY))
    assert [where.rpartition(":")[2] for where, _ in found] == ["1", "3", "5"]
    assert [isinstance(item, Article) for _, item in found] == [False, True, False]


def brat(tmp_path, marks, text="قسد في حلب وقسد"):
    (tmp_path / "d1.txt").write_text(text, encoding="utf-8")
    (tmp_path / "d1.ann").write_text(marks, encoding="utf-8")
    return tmp_path


def test_brat_groups_become_chains_and_notes_are_skipped_aloud(tmp_path, caplog):
    marks = "T2\tUNIT 12 15\tقسد\nT1\tUNIT 0 3\tقسد\n*\tSAME T2 T1\n#1\tAnnotatorNotes T1\tsure?\n"
    with caplog.at_level(logging.WARNING):
        (article,) = read(brat(tmp_path, marks), ONTOLOGY)
    assert article.relations == (Relation(type="SAME", head="T1", tail="T2"),)
    assert "d1.ann:4: note skipped" in caplog.text


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ("T1\tUNIT 0 3;4 6\tقسد في\n", r"d1\.ann:1: discontinuous span .*mark one part, or each on its own"),
        ("T1\tUNIT 0 3\tقسد\nA1\tNegation T1\n", r"d1\.ann:2: an attribute .*remove the line"),
        ("T1\tUNIT 0 3\tقسد\nE1\tUNIT:T1\n", r"d1\.ann:2: an event "),
        ("T1\tUNIT 0 3\tقسد\nN1\tReference T1 W:1\tx\n", r"d1\.ann:2: a normalisation "),
        ("T1 UNIT 0 3 قسد\n", r"d1\.ann:1: cannot read «T1 UNIT 0 3 قسد»; expected `T1<TAB>TYPE start end<TAB>text`"),
        ("T1\tUNIT 0 99\tقسد\n", r"d1\.ann:1: entity T1 \[0, 99\) .*outside of the text"),
        ("T1\tUNIT 4 6\tقسد\n", r"d1\.ann:1: .*the text has «في» there"),
        ("T1\tSHIP 0 3\tقسد\n", r"d1\.ann:1: .*unknown type SHIP"),
        ("T1\tUNIT 0 3\tقسد\nT2\tUNIT 0 6\tقسد في\n", r"d1\.ann:2: entities T1 .* overlap"),
        ("T1\tUNIT 0 3\tقسد\nR1\tAT Arg1:T1 Arg2:T5\n", r"d1\.ann:2: .*no entity T5"),
        ("T1\tUNIT 0 3\tقسد\nT2\tUNIT 12 15\tقسد\n*\tWITH T1 T2\n", r"d1\.ann:3: WITH is not transitive"),
    ],
)
def test_broken_brat_is_explained(tmp_path, marks, message):
    with pytest.raises(DataError, match=message):
        list(read(brat(tmp_path, marks), ONTOLOGY))


def test_brat_spans_may_end_in_a_blank(tmp_path):
    (article,) = read(brat(tmp_path, "T1\tUNIT 0 4\tقسد \n"), ONTOLOGY)
    (back,) = there_and_back([article], tmp_path / "out", "brat")
    assert back.entities[0].text == "قسد "


def test_brat_needs_both_files_and_a_folder_with_some(tmp_path):
    with pytest.raises(DataError, match=r"no \.ann files below this folder"):
        list(read(tmp_path, ONTOLOGY))
    (tmp_path / "d1.txt").write_text("قسد", encoding="utf-8")
    with pytest.raises(DataError, match=r"d1\.txt: d1\.ann is missing beside it"):
        list(read(tmp_path, ONTOLOGY))


# What cannot be written


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("markup", {"text": "[x]", "entities": (), "relations": ()}, r"article sy-1: square bracket at character 0"),
        ("markup", {"id": "a\nb"}, "cannot be written as markup|does not survive markup"),
        ("brat", {"id": "../up"}, "the id cannot name a file below the folder"),
        ("brat", {"id": "/etc/x"}, "the id cannot name a file below the folder"),
        ("conll", {"id": " a"}, "an id must be one line without white space around it"),
        ("conll", {"relations": (Relation(type="A B", head="T1", tail="T2"),)}, "name «A B» has white space"),
        ("brat", {"relations": (Relation(type="A B", head="T1", tail="T2"),)}, "brat does not allow the type «A B»"),
        ("markup", {"relations": (Relation(type="A B", head="T1", tail="T2"),)}, "cannot be written as markup"),
        ("conll", {"relations": (Relation(type="AT", head="T1", tail="T9"),)}, "article sy-1: .*no entity T9"),
        ("brat", {"relations": (Relation(type="AT", head="T1", tail="T9"),)}, "article sy-1: .*no entity T9"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_written(tmp_path, form, change, message):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=message):
        write([example("first"), example().model_copy(update=change)], out, form)
    assert not out.exists()


def test_foreign_entity_ids_need_new_numbers_in_markup_and_brat(tmp_path):
    article = example()
    names = {"T1": "e1", "T2": "e2", "T3": "e3"}
    article = article.model_copy(
        update={
            "entities": tuple(e.model_copy(update={"id": names[e.id]}) for e in article.entities),
            "relations": (Relation(type="AT", head="e1", tail="e2"),),
        }
    )
    for form in ("markup", "brat"):
        with pytest.raises(DataError, match=r"entity id e1 is not T and a number.*--renumber"):
            write([article], tmp_path / form, form)
    (back,) = there_and_back([article], tmp_path / "out", "conll")
    assert back == article
    assert renumber(article) == example()


# The registry


def test_formats_are_found_by_name_and_guessed_by_path(tmp_path):
    guesses = {"a.jsonl": "jsonl", "a.CONLL": "conll", "a.iob2": "conll", "a.markup": "markup", "folder": "brat"}
    assert {path: guess_format(tmp_path / path).name for path in guesses} == guesses
    assert guess_format(tmp_path).name == "brat"
    assert guess_format(tmp_path / "a.ann").name == "markup"
    (tmp_path / "a.txt").touch()
    assert guess_format(tmp_path / "a.ann").name == "brat"
    with pytest.raises(DataError, match=r"a\.docx: cannot tell the format from the name; .*jsonl, markup, conll, brat"):
        guess_format(tmp_path / "a.docx")
    with pytest.raises(DataError, match="unknown format «xml»; expected one of jsonl"):
        find_format("xml")


def test_unwritable_paths_are_explained(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file or directory; give a path in an existing"):
        write([example()], tmp_path / "none" / "a.jsonl")


def test_no_format_names_a_type_of_the_project():
    folder = Path(__file__).parents[1] / "src" / "rasid" / "formats"
    ontology = Ontology.load(folder.parents[2] / "data" / "ontology.yaml")
    for path in folder.glob("*.py"):
        code = path.read_text(encoding="utf-8").split('"""', 2)[2]  # docstrings may give examples
        assert [name for name in (*ontology.entity_types, *ontology.relation_names) if f'"{name}"' in code] == []
