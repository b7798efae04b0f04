"""Bases of every kind, made here with a few hundred weights, and checkpoints that are not what they should be."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, PreTrainedTokenizerFast

from rasid.errors import ConfigError, ModelError
from rasid.inference import Extractor
from rasid.modeling import checkpoint
from rasid.modeling.checkpoint import create_model, load_checkpoint, load_encoder, load_torch_extractor, longest_window
from rasid.modeling.export import export
from rasid.records import check_article, read_articles
from rasid.training.run import run
from rasid.training.trainer import save_checkpoint

Configure = Callable[..., Any]
WORDS = "bert.embeddings.word_embeddings.weight"
PLACEHOLDERS = ["[رابط]", "[بريد]", "[مستخدم]"]
TEXT = (
    "وأعلنَ اللواءُ ٥٥ مدرّع\u200fتقدّمه نحو بلدة عين الزهور، https://example.org/a?b=ت#1 ثم إلى حلــــب.\n"
    "راسِلونا: news@example.org أو @rasid_news؛ وقصفت الفرقةُ الرابعة\u200f مواقعَ في ريف إدلب ردًّا على الهجوم!!!!"
)


def save_wordpiece(folder: Path, texts: list[str]) -> int:
    """AraBERT's kind of tokenizer, with its placeholders in the vocabulary; returns the size of the vocabulary."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PLACEHOLDERS]
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=800, special_tokens=special))
    pieces = tokenizer.get_vocab()
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(sorted(pieces, key=pieces.__getitem__)), encoding="utf-8")
    BertTokenizerFast.from_pretrained(folder, do_lower_case=True).save_pretrained(folder)
    return len(pieces)


def save_byte_level(folder: Path, texts: list[str]) -> int:
    """RoBERTa's kind of tokenizer, in which a letter may be two pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_unigram(folder: Path, texts: list[str]) -> int:
    """XLM-R's kind of tokenizer, without a padding piece."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BASES: dict[str, tuple[str, str, Callable[[Path, list[str]], int], dict[str, Any]]] = {
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", save_byte_level, SIZES | {"max_position_embeddings": 258}),
    "distilbert": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        save_byte_level,
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64},
    ),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", save_unigram, SIZES | {"max_position_embeddings": 258}),
    "electra": ("ElectraForPreTraining", "ElectraConfig", save_byte_level, SIZES | {"embedding_size": 16}),
    "deberta": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        save_unigram,
        SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    # A window of attention that is shorter than the windows of text.
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        save_byte_level,
        SIZES | {"num_hidden_layers": 3, "local_attention": 64, "pad_token_id": 1},
    ),
}


@pytest.fixture(scope="module")
def texts(corpora: dict[str, Path]) -> list[str]:
    return [a.text for a in read_articles(corpora["train"])]


@pytest.fixture(scope="module")
def make_base(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        model, config, save_tokenizer, options = BASES[name]
        folder = tmp_path_factory.mktemp(name)
        size = save_tokenizer(folder, texts)
        made = getattr(transformers, config)(vocab_size=size, **options)
        getattr(transformers, model)(made).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def arabert(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as masked language models are published: its encoder below a head, its tokenizer lower-casing."""
    folder = tmp_path_factory.mktemp("arabert")
    size = save_wordpiece(folder, texts)
    config = BertConfig(vocab_size=size, max_position_embeddings=256, **SIZES)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def arabert_config(configure: Configure, base: Path, output: Path, *overrides: str) -> Any:
    small = ("training.epochs=1", "export.max_drop=100", "heads.relation_size=32")
    return configure(output, f"base={base}", *small, *overrides, config="arabert")


# AraBERT's kind of base


@pytest.fixture(scope="module")
def arabert_run(arabert: Path, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("arabert-run")
    run(arabert_config(configure, arabert, output))
    return output


def test_arabert_starts_from_the_weights_of_its_base(arabert: Path, configure: Configure, tmp_path: Path) -> None:
    model, _ = create_model(arabert_config(configure, arabert, tmp_path))
    weights = {n: w for n, w in load_file(arabert / "model.safetensors").items() if n.startswith("bert.")}
    state = model.encoder.state_dict()
    assert set(state) == {name.removeprefix("bert.") for name in weights}
    assert all(torch.equal(state[name.removeprefix("bert.")], weight) for name, weight in weights.items())


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_arabert_offsets_are_exact(arabert_run: Path, form: str) -> None:
    extractor = load_torch_extractor(arabert_run / form) if form == "torch" else Extractor.load(arabert_run / form)
    # Heads that mark much, so that there is something to check.
    found = [extractor(TEXT), *map(extractor, (TEXT[i:] for i in range(1, 40)))]
    assert sum(len(a.entities) for a in found) > 20
    assert all(check_article(a, extractor.ontology) == [] for a in found)
    encoding = extractor.encoder.encode(TEXT)
    words = [TEXT[a:b] for a, b in encoding.words.tolist()]
    assert words[:5] == ["وأعلنَ", "اللواءُ", "٥٥", "مدرّع", "تقدّمه"]
    assert "حلــــب" in words and "الرابعة" in words
    window = encoding.windows[0]
    tokens = [extractor.encoder.tokenizer.id_to_token(i) for i in window.input_ids.tolist()]
    pieces = [tokens[piece] for piece in window.word_pieces.tolist()]
    assert pieces[words.index("https")] == "[رابط]"
    assert pieces[words.index("news")] == "[بريد]"
    assert pieces[words.index("rasid")] == "[مستخدم]"
    assert [t for t in tokens if t in PLACEHOLDERS] == PLACEHOLDERS  # one piece each, nothing of an address left
    assert not any("example" in t or "http" in t for t in tokens)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")


def test_arabert_tokenizer_keeps_letters_and_placeholders(arabert_run: Path) -> None:
    tokenizer = load_torch_extractor(arabert_run / "torch").encoder.tokenizer
    for placeholder in PLACEHOLDERS:
        assert tokenizer.encode(placeholder, add_special_tokens=False).tokens == [placeholder]
        assert placeholder in tokenizer.encode(f"قال{placeholder}ثم", add_special_tokens=False).tokens
    assert tokenizer.normalizer.normalize_str("أحمد M4") == "أحمد M4"


def test_lower_casing_tokenizer_is_refused(arabert: Path, configure: Configure, tmp_path: Path) -> None:
    config = arabert_config(configure, arabert, tmp_path, "tokenizer.do_lower_case=null")
    with pytest.raises(ConfigError, match=r"lower-cases .*set tokenizer\.do_lower_case=false"):
        create_model(config)


def test_special_tokens_must_be_in_the_vocabulary(arabert: Path, configure: Configure, tmp_path: Path) -> None:
    config = arabert_config(configure, arabert, tmp_path, "tokenizer.special_tokens=['[صورة]']")
    with pytest.raises(ConfigError, match=r"special_tokens: \['\[صورة\]'\] are not in the vocabulary"):
        create_model(config)


# Any other base


@pytest.mark.parametrize("name", BASES)
def test_any_encoder_trains_and_exports(
    name: str, make_base: Callable[[str], Path], configure: Configure, corpora: dict[str, Path], tmp_path: Path
) -> None:
    config = configure(tmp_path, f"base={make_base(name)}")
    model, tokenizer = create_model(config)
    save_checkpoint(model, tokenizer, tmp_path / "torch")
    dev = list(read_articles(corpora["dev"]))
    export(tmp_path / "torch", tmp_path / "onnx", dev, max_drop=100)
    extractor = Extractor.load(tmp_path / "onnx")
    for article in dev:
        found = extractor(article.text)
        assert found.entities
        assert check_article(found, extractor.ontology) == []


@pytest.mark.parametrize(
    ("name", "key", "other"),
    [
        ("roberta", "attention_probs_dropout_prob", "hidden_dropout_prob"),
        ("distilbert", "attention_dropout", "dropout"),
        ("modernbert", "attention_dropout", "mlp_dropout"),
    ],
)
def test_attention_dropout_is_that_of_the_run(
    name: str, key: str, other: str, make_base: Callable[[str], Path], configure: Configure, tmp_path: Path
) -> None:
    base = make_base(name)
    before = getattr(load_encoder(base).config, other)
    for rate in (0.0, 0.3):
        model, _ = create_model(configure(tmp_path, f"base={base}", f"training.attention_dropout={rate}"))
        assert getattr(model.encoder.config, key) == rate
        assert getattr(model.encoder.config, other) == before
        if name == "roberta":
            assert model.encoder.encoder.layer[0].attention.self.dropout.p == rate


def test_a_whole_run_on_roberta(make_base: Callable[[str], Path], configure: Configure, tmp_path: Path) -> None:
    result = run(configure(tmp_path / "run", f"base={make_base('roberta')}"))
    assert set(result.dev) == {"entity_f1", "relation_f1"}


def test_positions_of_roberta_begin_after_the_padding(
    make_base: Callable[[str], Path], configure: Configure, tmp_path: Path
) -> None:
    base = make_base("roberta")
    assert longest_window(load_encoder(base)) == 256
    create_model(configure(tmp_path, f"base={base}", "text.max_pieces=256"))
    with pytest.raises(ConfigError, match=r"text\.max_pieces is 257, but .* reads 256 pieces at most; lower it"):
        create_model(configure(tmp_path, f"base={base}", "text.max_pieces=257"))


def test_longest_window_of_bert(arabert: Path, configure: Configure, tmp_path: Path) -> None:
    assert longest_window(load_encoder(arabert)) == 256
    with pytest.raises(ConfigError, match=r"text\.max_pieces is 300"):
        create_model(arabert_config(configure, arabert, tmp_path, "text.max_pieces=300"))


def test_encoder_and_decoder_is_refused(make_base: Callable[[str], Path], tmp_path: Path) -> None:
    transformers.T5Model(
        transformers.T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="t5 has a decoder too; pick a base that is an encoder alone"):
        load_encoder(tmp_path)


# Bases that cannot be had


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that does not answer; the names that it was asked for."""
    asked: list[str] = []

    def probe(name: str) -> Exception:
        asked.append(name)
        return TimeoutError("no answer")

    monkeypatch.setattr(checkpoint, "probe_hub", probe)
    return asked


def test_unreachable_hub(no_hub: list[str], configure: Configure, tmp_path: Path) -> None:
    config = configure(tmp_path, "base=nobody/never-published-model", config="arabert")
    with pytest.raises(ModelError) as error:
        create_model(config)
    assert no_hub == ["nobody/never-published-model"]  # asked once, not retried
    message = str(error.value)
    assert message.startswith("nobody/never-published-model: cannot be loaded from the hub")
    assert "base=/path/to/checkpoint" in message
    assert "rasid base compact" in message


def test_a_local_base_asks_no_hub(no_hub: list[str], arabert: Path, configure: Configure, tmp_path: Path) -> None:
    create_model(arabert_config(configure, arabert, tmp_path))
    assert no_hub == []


def damaged(source: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(source, folder)
    change(folder)
    return folder


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pickle_weights, r"model\.safetensors \(where it has pytorch_model\.bin, .*save_pretrained"),
        (lambda f: cut_file(f / "model.safetensors"), "cannot be loaded as a base"),
        (lambda f: (f / "config.json").unlink(), "cannot be loaded as a base"),
        (lambda f: change_config(f, model_type="nosuchmodel"), "cannot be loaded as a base"),
        (lambda f: change_config(f, hidden_size=48), "cannot be loaded as a base"),
        (lambda f: change_config(f, num_hidden_layers=2), r"16 weights of the encoder are missing, encoder\.layer\.1"),
        (lambda f: change_config(f, model_type="roberta"), "weights of the encoder are missing|cannot be loaded"),
        (
            lambda f: change_weights(f, lambda w: w.pop(WORDS)),
            r"1 weights of the encoder are missing, embeddings\.word_embeddings\.weight",
        ),
        (lambda f: [p.unlink() for p in f.glob("*") if "token" in p.name or "vocab" in p.name], "has no tokenizer"),
        (
            lambda f: (
                change_weights(f, lambda w: w.update({WORDS: w[WORDS][:500].clone()}))
                or change_config(f, vocab_size=500)
            ),
            "its tokenizer has a piece 799, but its encoder only 500 pieces",
        ),
    ],
    ids=[
        "pickle",
        "cut",
        "no config",
        "unknown",
        "sizes",
        "layers",
        "other model",
        "missing",
        "no tokenizer",
        "pieces",
    ],
)
def test_unsound_base(
    change: Callable[[Path], object], message: str, arabert: Path, configure: Configure, tmp_path: Path
) -> None:
    folder = damaged(arabert, tmp_path / "base", change)
    with pytest.raises(ModelError, match=message) as error:
        create_model(arabert_config(configure, folder, tmp_path))
    assert str(error.value).startswith(f"{folder}: ")
    assert "hub" not in str(error.value)


# Checkpoints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors; weights are read from safetensors"),
        (lambda f: cut_file(f / "model.safetensors"), "cannot be read or do not fit"),
        (lambda f: change_config(f, relation_size=64), "do not fit the config"),
        (lambda f: change_config(f, context_heads=8), "do not fit the config"),
        (lambda f: change_weights(f, lambda w: w.pop("tag_head.bias")), r"do not fit the config.*tag_head\.bias"),
        (
            lambda f: change_weights(f, lambda w: w.update({"tag_head.bias": torch.zeros(3)})),
            r"do not fit the config",
        ),
        (lambda f: change_weights(f, lambda w: w.update(other=torch.zeros(3))), "do not fit the config.*other"),
        (lambda f: change_config(f, settings={}), r"config\.json: invalid settings: ontology: Field required"),
        (lambda f: change_config(f, settings=None), r"config\.json: invalid settings"),
        (lambda f: change_config(f, encoder={"model_type": "nosuchmodel"}), "nosuchmodel"),
        (lambda f: change_config(f, encoder=None), "do not fit the config"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "not valid JSON"),
        (lambda f: (f / "config.json").unlink(), r"no config\.json in this folder"),
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer\.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}", encoding="utf-8"), r"tokenizer\.json"),
    ],
)
def test_unsound_checkpoint(change: Callable[[Path], object], message: str, debug_run: Path, tmp_path: Path) -> None:
    folder = damaged(debug_run / "torch", tmp_path / "torch", change)
    with pytest.raises(ModelError, match=message):
        load_torch_extractor(folder)


@pytest.mark.parametrize("load", [load_checkpoint, load_torch_extractor, Extractor.load])
def test_checkpoint_of_another_architecture(load: Callable[[Path], object], arabert: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(arabert)
    assert "another architecture: model_type is 'bert', expected 'rasid'" in str(error.value)
    assert f"base={arabert}" in str(error.value)


@pytest.mark.parametrize("load", [load_checkpoint, load_torch_extractor, Extractor.load])
def test_missing_checkpoint(load: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        load(tmp_path / "none")


def test_torch_checkpoint_is_no_exported_model(debug_run: Path) -> None:
    with pytest.raises(ModelError, match="make one with: rasid export CHECKPOINT FOLDER"):
        Extractor.load(debug_run / "torch")


def test_loading_is_quiet(debug_run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_checkpoint(debug_run / "torch")
    assert not caplog.records
