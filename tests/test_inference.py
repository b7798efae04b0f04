"""The extractor: offsets that hold on any text, whatever the network says; neighbours that do not matter; bad input."""

import json
import random
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rasid.decoding import LIKENESS, Span
from rasid.encoding import TextEncoder, Window
from rasid.errors import DataError, ModelError
from rasid.inference import Extractor, assign_windows, word_span
from rasid.records import Article, Entity, Relation, check_article, parse_article
from rasid.schema import Ontology
from rasid.settings import (
    CONFIG_FILE,
    ENCODER_FILE,
    RELATIONS_FILE,
    SHIPPED_MODELS,
    TOKENIZER_FILE,
    ModelSettings,
    TextSettings,
    load_settings,
    shipped_model,
)

ONTOLOGY = Ontology.model_validate(
    {
        "entity_types": ["UNIT", "PLACE"],
        "relation_types": {
            "AT": {"head": ["UNIT"], "tail": ["PLACE"]},
            "SAME": {
                "head": ["UNIT", "PLACE"],
                "tail": ["UNIT", "PLACE"],
                "symmetric": True,
                "transitive": True,
                "same_type": True,
            },
        },
        "proclitics": "وفبكلس",
    }
)
SENTENCE = "وصل رتل لقسد إلى دير الزور يوم 12 مارس 2024، وقال «المصدر» إن 30 آلية. "
FRAGMENTS = (
    *("وصلت", "قسد", "لِقسد", "وَبِـالتَّحالف", "إلى", "حلب", "اللواء ٤٧", "۱۲", "M4", "HIMARS", "شاهد-136", "نحو 13"),
    *("«قسد»", "(قسد)", "،", ".", "؟", "!!!", "ــــ", "قـــسد", "https://a.example/b?c", "@user", "a.b@example.org"),
    *("\u200f", "\u202bقسد\u202c", "\u2067", "\ufeff", "می\u200cروند", "\u200d", "\u00ad", "\u061c"),
    *("👍🏽", "👨‍👩‍👧", "🇸🇾", "❤️", "😀", "\u064e\u0651", "\u0301", "e\u0301", "أ\u0655", "ا\u0653"),
    *("\ufdfa", "\ufefb", "\ufee3\ufe71\ufedb", "ﬁ", "½", "中文", "รถ", "_", "\x00", "\x07", "\x85"),
)
SEPARATORS = (" ", " ", " ", "", "", "\n", "\r\n", "\n\n", "\t", "\xa0", "  ", "\u2028", "\u2003", "\v")


def any_text(rng: random.Random, longest: int = 14) -> str:
    """A text of the fragments above, so short that ten thousand of them are read in seconds."""
    return "".join(rng.choice(FRAGMENTS) + rng.choice(SEPARATORS) for _ in range(rng.randint(0, longest)))


class NoiseBackend:
    """Logits out of a hash of what it reads: now wild and illegal, now sure of what it says."""

    def __init__(self, ontology: Ontology = ONTOLOGY, cuts: int = 3):
        self.tags, self.relations, self.cuts = len(ontology.tags), len(ontology.relation_names), cuts

    def encode(self, input_ids, word_pieces):
        assert input_ids.ndim == word_pieces.ndim == 1
        assert word_pieces.min() >= 1 and word_pieces.max() < len(input_ids) - 1
        rng = np.random.default_rng(zlib.crc32(input_ids.tobytes() + word_pieces.tobytes()))
        words, scale = len(word_pieces), rng.choice([0.5, 3.0, 30.0])
        shapes = ((words, self.tags), (words, self.cuts), (words, 4))
        return tuple(rng.normal(0, scale, shape).astype(np.float32) for shape in shapes)

    def relate(self, states, word_tags, entities, pairs):
        assert len(states) == len(word_tags)
        assert (entities[:, 0] <= entities[:, 1]).all() and entities.max() < len(states)
        assert (pairs[:, 0] < pairs[:, 1]).all() and pairs[:, :2].max() < len(entities)
        assert 0 <= pairs[:, 2].min() <= pairs[:, 2].max() < LIKENESS
        assert (word_tags[entities[:, 0]] % 2 == 1).all()  # an entity begins with a B- tag
        rng = np.random.default_rng(zlib.crc32(states.tobytes()))
        return rng.normal(-1, 2, (len(pairs), 2, self.relations)).astype(np.float32)


class KeywordBackend:
    """Tags by the first piece of a word, and relates every pair in both directions: for tests by hand."""

    def __init__(self, encoder: TextEncoder, words: dict[str, int]):
        self.tag_of = {encoder.encode(word).windows[0].input_ids[1]: tag for word, tag in words.items()}

    def encode(self, input_ids, word_pieces):
        tags = np.zeros((len(word_pieces), len(ONTOLOGY.tags)), dtype=np.float32)
        tags[range(len(word_pieces)), [self.tag_of.get(i, 0) for i in input_ids[word_pieces]]] = 20.0
        return tags, np.zeros((len(word_pieces), 3), dtype=np.float32), tags

    def relate(self, states, word_tags, entities, pairs):
        return np.full((len(pairs), 2, len(ONTOLOGY.relation_names)), 5.0, dtype=np.float32)


@cache
def shipped() -> Extractor:
    return Extractor.load(threads=1)


def fake(backend=None, max_pieces: int = 32, overlap: int = 8) -> Extractor:
    settings = ModelSettings(ontology=ONTOLOGY, text=TextSettings(max_pieces=max_pieces, overlap=overlap))
    return Extractor(backend or NoiseBackend(), TextEncoder.load(shipped_model(), settings.text), settings)


def keyword(max_pieces: int = 256) -> Extractor:
    extractor = fake(max_pieces=max_pieces)
    extractor.backend = KeywordBackend(extractor.encoder, {"قسد": 1, "داعش": 1, "حلب": 3})
    return extractor


def check(article: Article, text: str, ontology: Ontology) -> None:
    """Everything that holds for the record of any text."""
    assert article.text == text
    assert check_article(article, ontology) == []
    at = 0
    for n, e in enumerate(article.entities, start=1):
        assert e.id == f"T{n}"
        assert at <= e.start < e.end <= len(text)
        assert text[e.start : e.end] == e.text == e.text.strip() != ""
        assert "\n" not in e.text
        assert 0 <= e.score <= 1
        assert e.normalized
        at = e.end
    assert all(0 <= r.score <= 1 for r in article.relations)
    line = article.to_json()
    assert "\n" not in line
    assert parse_article(line, "here", ontology) == article


def test_ten_thousand_texts():
    rng, extractor = random.Random(1), fake()
    entities = relations = 0
    for n in range(10_000):
        text = any_text(rng)
        article = extractor(text, id=str(n))
        check(article, text, ONTOLOGY)
        entities, relations = entities + len(article.entities), relations + len(article.relations)
    assert entities > 10_000 and relations > 1_000  # or nothing was tested


def test_texts_through_the_shipped_model():
    rng, extractor = random.Random(2), shipped()
    for _ in range(300):
        text = any_text(rng)
        check(extractor(text), text, extractor.ontology)


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_models_that_come_with_the_package_are_loaded_by_name(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extractor = Extractor.load(name)
    assert extractor.settings == load_settings(shipped_model(name))
    article = extractor("وصل رتل عسكري لقوات التحالف الدولي إلى قاعدة الشدادي قادمًا من معبر الوليد الحدودي.")
    assert {"قوات التحالف الدولي", "قاعدة الشدادي", "معبر الوليد الحدودي"} <= {e.text for e in article.entities}
    assert {r.type for r in article.relations} >= {"HAS", "MOVES_TO"}
    (tmp_path / name).mkdir()  # a folder of that name is taken before
    with pytest.raises(ModelError, match=r"no config\.json"):
        Extractor.load(name)


def test_the_smaller_shipped_model_cuts_texts_as_the_larger_one():
    larger, smaller = (shipped_model(name) / TOKENIZER_FILE for name in SHIPPED_MODELS)
    assert larger.read_bytes() == smaller.read_bytes()
    assert Extractor.load().settings == load_settings(shipped_model(SHIPPED_MODELS[0]))


@pytest.mark.parametrize("text", ["", " ", "\n\r\n", "\u200f\ufeff", "\x00", "\u064e", "و", "👍🏽", "\ufdfa" * 40])
def test_texts_with_little_in_them(text):
    check(shipped()(text), text, shipped().ontology)


def test_a_text_without_words_has_no_entities():
    article = shipped()(" \n\u200f\t")
    assert article.entities == article.relations == ()


def test_ids():
    assert shipped()("قسد", id="a/b.txt").id == "a/b.txt"
    assert shipped()("قسد").id == ""


def test_neighbours_and_order_do_not_matter():
    rng, extractor = random.Random(3), shipped()
    texts = [SENTENCE * 3, "", *(any_text(rng) for _ in range(20)), SENTENCE * 40, f"{SENTENCE}\n" * 5]
    alone = [extractor(text).to_json() for text in texts]
    assert [a.to_json() for a in extractor.pipe(texts)] == alone
    order = rng.sample(range(len(texts)), len(texts))
    assert [a.to_json() for a in extractor.pipe(texts[i] for i in order)] == [alone[i] for i in order]
    assert [a.to_json() for a in Extractor.load(threads=1).pipe(texts[:3])] == alone[:3]


def test_pipe_is_lazy():
    taken = []
    articles = shipped().pipe(taken.append(text) or text for text in ("قسد", "حلب"))
    assert next(articles).text == "قسد"
    assert taken == ["قسد"]


def test_line_ends_do_not_change_what_is_found():
    lines = [SENTENCE * 2, SENTENCE, "سيطرت قسد على حلب"]
    unix, dos = (shipped()(end.join(lines)) for end in ("\n", "\r\n"))
    assert [(e.type, e.text, e.score) for e in unix.entities] == [(e.type, e.text, e.score) for e in dos.entities]
    assert unix.relations == dos.relations


def test_by_hand():
    article = keyword()("وصلت قسد إلى حلب\nقسد ثم داعش")
    assert [(e.type, e.text) for e in article.entities] == [
        ("UNIT", "قسد"),
        ("PLACE", "حلب"),
        ("UNIT", "قسد"),
        ("UNIT", "داعش"),
    ]
    found = {(r.type, r.head, r.tail) for r in article.relations}
    assert found == {("AT", "T1", "T2"), ("SAME", "T3", "T4")}  # none across the paragraphs


def test_the_network_is_told_how_alike_the_names_of_a_pair_are():
    told, extractor = [], keyword()
    relate = extractor.backend.relate
    extractor.backend.relate = lambda *arrays: told.append(arrays[-1].tolist()) or relate(*arrays)
    extractor("ثم داعش ثم حلب\nقسد ثم داعش ثم قسد")
    assert told == [[[0, 1, 0], [2, 3, 0], [2, 4, 3], [3, 4, 0]]]


def test_relations_in_a_paragraph_that_is_cut():
    near, far = "قسد في حلب ", "ثم " * 100
    article = keyword(max_pieces=32)(near + far + near)
    assert [e.text for e in article.entities] == ["قسد", "حلب"] * 2
    assert [(r.type, r.head, r.tail) for r in article.relations] == [("AT", "T1", "T2"), ("AT", "T3", "T4")]


def test_long_articles_are_read_to_the_end():
    extractor = keyword(max_pieces=32)
    for text in ("قسد ثم " * 500, "قسد ثم\n" * 500, "\ufdfa" * 3_000 + " قسد", "😀" * 2_000 + " قسد"):
        article = extractor(text)
        check(article, text, ONTOLOGY)
        assert len(article.entities) == text.count("قسد")


def test_an_article_of_five_megabytes():
    text = f"{SENTENCE * 3}\n" * (5_000_000 // len(f"{SENTENCE * 3}\n".encode())) + "ثم " * 10_000 + "قسد"
    extractor = keyword()
    article = extractor(text)
    check(article, text, ONTOLOGY)
    words = [text[start:end] for start, end in extractor.encoder.encode(text).words.tolist()]
    assert [e.text for e in article.entities] == [w for w in words if w in ("قسد", "داعش", "حلب")]
    assert article.entities[-1].end == len(text)


def window(words: tuple[int, int]) -> Window:
    return Window(words, words, np.zeros(3, dtype=np.int64), np.ones(words[1] - words[0], dtype=np.int64))


def test_a_pair_goes_to_the_window_in_whose_middle_it_stands():
    spans = [Span(2, 2, 0), Span(8, 9, 1), Span(11, 11, 0), Span(25, 26, 1)]
    windows = [window((0, 12)), window((6, 18)), window((17, 30))]
    pairs, home = assign_windows(spans, [(0, 30)], windows, ONTOLOGY)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert home.tolist() == [0, 0, 1]


def test_pairs_stay_within_a_paragraph():
    spans = [Span(0, 0, 0), Span(1, 1, 1), Span(2, 2, 0), Span(3, 3, 1)]
    pairs, home = assign_windows(spans, [(0, 2), (2, 4)], [window((0, 4))], ONTOLOGY)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert home.tolist() == [0, 0]


def test_no_spans_no_pairs():
    pairs, home = assign_windows([], [(0, 4)], [window((0, 4))], ONTOLOGY)
    assert pairs.shape == (0, 2) and home.shape == (0,)


def test_the_pairs_of_a_huge_paragraph_grow_with_its_length_only():
    spans = [Span(n, n, n % 2) for n in range(30_000)]  # 450 million pairs, did distance not matter
    windows = [window((a, min(a + 40, 30_000))) for a in range(0, 30_000, 20)]
    pairs, home = assign_windows(spans, [(0, 30_000)], windows, ONTOLOGY)
    assert len(pairs) < 30_000 * 40
    assert (np.diff(pairs, axis=1) < 40).all() and (home >= 0).all()


def test_relate_keeps_the_entities():
    text = "وصلت قسد إلى حلب"
    entities = tuple(
        Entity(id=name, type=kind, start=text.index(surface), end=text.index(surface) + 3, text=surface)
        for name, kind, surface in (("b", "PLACE", "حلب"), ("a", "UNIT", "قسد"))
    )
    article = keyword().relate(Article(id="x", text=text, meta={"k": 1}, entities=entities))
    assert (article.id, article.meta) == ("x", {"k": 1})
    assert article.entities == entities[::-1]  # in text order
    assert article.relations == (Relation(type="AT", head="a", tail="b", score=article.relations[0].score),)


def test_relate_refuses_what_it_cannot_place():
    text = "قسد \u200f حلب"
    for kind, start, end, message in (("DAY", 0, 3, "does not know type DAY"), ("UNIT", 4, 5, "covers no word")):
        entity = Entity(id="T1", type=kind, start=start, end=end, text=text[start:end])
        with pytest.raises(DataError, match=message):
            keyword().relate(Article(id="x", text=text, entities=(entity,)))


def test_word_span_takes_every_word_that_an_entity_touches():
    words = np.array([[0, 4], [5, 9], [9, 10], [11, 14]])
    spans = [
        word_span(Entity(id="T1", type="UNIT", start=a, end=b, text="…"), words, ONTOLOGY)
        for a, b in ((0, 4), (1, 4), (5, 10), (6, 12), (4, 6))
    ]
    assert [(s.first, s.last) for s in spans] == [(0, 0), (0, 0), (1, 2), (1, 3), (1, 1)]


@pytest.mark.parametrize("text", ["قسد \ud800", "\udc80"])
def test_a_lone_surrogate(text):
    with pytest.raises(DataError, match=r"lone surrogate U\+D.* decode the original bytes as UTF-8 again"):
        shipped()(text)
    with pytest.raises(DataError, match="lone surrogate"):
        shipped().relate(Article(id="", text=text))


def model_copy(folder: Path, **changes: bytes | None) -> Path:
    """The shipped model with some files replaced, or left out; by their names without suffix."""
    folder.mkdir()
    for path in (shipped_model() / name for name in (CONFIG_FILE, TOKENIZER_FILE, ENCODER_FILE, RELATIONS_FILE)):
        if path.stem not in changes:
            (folder / path.name).symlink_to(path)
        elif (content := changes[path.stem]) is not None:
            (folder / path.name).write_bytes(content)
    return folder


def test_a_copied_model_loads(tmp_path):
    article = Extractor.load(model_copy(tmp_path / "m"), threads=1)(SENTENCE)
    assert article == shipped()(SENTENCE)


def test_no_such_model_folder(tmp_path):
    with pytest.raises(ModelError, match=r"/nowhere: no such model folder; give one made by `rasid train`"):
        Extractor.load(tmp_path / "nowhere")


def config(**changes) -> bytes:
    value = json.loads((shipped_model() / CONFIG_FILE).read_text(encoding="utf-8"))
    return json.dumps(value | changes).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, r"m: no config.json in this folder, so it is not a checkpoint; .*give the onnx folder"),
        ({"config": b'{"model_type": '}, r"config.json: not valid JSON .*; copy the checkpoint again"),
        ({"config": b"\xff\xfe"}, r"config.json: not valid JSON .*; copy the checkpoint again"),
        ({"config": b'{"model_type": "bert"}'}, r"m: .*model_type is 'bert', expected 'rasid'.*rasid train .*base="),
        ({"config": b"[]"}, r"model_type is None, expected 'rasid'"),
        ({"config": b'{"model_type": "rasid"}'}, r"config.json: invalid settings: .*; copy the checkpoint again"),
        ({"tokenizer": None}, r"m: no tokenizer.json, .*; copy the checkpoint again"),
        ({"tokenizer": b"{"}, r"tokenizer.json: not a tokenizer file .*; copy the checkpoint again"),
        ({"encoder": None}, r"encoder.onnx: missing, .*make one with: rasid export"),
        ({"relations": None}, r"relations.onnx: missing, .*make one with: rasid export"),
        ({"encoder": b""}, r"encoder.onnx: ONNX Runtime cannot load it .*; copy the model again"),
        ({"relations": b"junk"}, r"relations.onnx: ONNX Runtime cannot load it .*; copy the model again"),
    ],
)
def test_broken_models(tmp_path, changes, message):
    with pytest.raises(ModelError, match=f"(?s){message}"):
        Extractor.load(model_copy(tmp_path / "m", **changes))


@pytest.mark.parametrize("name", ["encoder", "relations"])
def test_a_truncated_graph(tmp_path, name):
    content = (shipped_model() / f"{name}.onnx").read_bytes()
    with pytest.raises(ModelError, match=rf"(?s){name}.onnx: ONNX Runtime cannot load it"):
        Extractor.load(model_copy(tmp_path / "m", **{name: content[: len(content) // 2]}))


def test_settings_name_the_field_that_is_wrong(tmp_path):
    settings = json.loads(config())["settings"] | {"relation_threshold": 2, "colour": "red"}
    with pytest.raises(ModelError, match=r"relation_threshold: .*; colour: "):
        Extractor.load(model_copy(tmp_path / "m", config=config(settings=settings)))


def test_a_config_that_cannot_be_read(tmp_path):
    (model_copy(tmp_path / "m", config=None) / CONFIG_FILE).mkdir()
    with pytest.raises(ModelError, match=r"config.json: cannot be read: "):
        Extractor.load(tmp_path / "m")


def test_a_model_of_another_ontology_needs_no_code():
    other = Ontology.model_validate({"entity_types": ["SHIP", "PORT", "CREW"], "proclitics": ""})
    settings = ModelSettings(ontology=other, max_proclitic=0)
    extractor = Extractor(NoiseBackend(other, 1), TextEncoder.load(shipped_model(), settings.text), settings)
    article = extractor(SENTENCE * 5)
    check(article, SENTENCE * 5, other)
    assert article.entities and not article.relations


def test_the_default_number_of_threads_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert Extractor.load()("قسد").text == "قسد"


def test_inference_needs_no_training_packages():
    code = (
        "import sys, rasid.inference, rasid.cli.main\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'omegaconf', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
