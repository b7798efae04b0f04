import gzip
import json
import logging
import lzma
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertModel, DataCollatorForLanguageModeling, TrainerCallback, TrainingArguments
from typer.testing import CliRunner

from rasid.bases.base import describe_base, read_info
from rasid.bases.random_base import make_random_base
from rasid.cli.main import app
from rasid.config import PretrainConfig
from rasid.errors import ConfigError, DataError, ModelError
from rasid.modeling.checkpoint import create_model, load_encoder
from rasid.modeling.model import IGNORED
from rasid.settings import TextSettings, shipped_model
from rasid.text import normalize
from rasid.training import pretraining
from rasid.training.pretraining import HELD_OUT, MaskedTrainer, make_blocks, pretrain
from rasid.training.raw_text import read_paragraphs

LINES = ("وصلت قوات إلى حلب.", "قصف وقصف آخر على قوات.", "طقس جميل اليوم.", "قوات قوات قوات")
FOLLOWS = {"وصل": "اللواء", "اللواء": "إلى", "إلى": "حلب", "حلب": "ثم", "ثم": "وصل"}  # each word tells the next one
DROPOUT = 0.25


def sentences(number: int, seed: int = 0) -> Iterator[str]:
    """Runs of the words above from some place on: easy to fill where one is masked."""
    rng = random.Random(seed)
    for _ in range(number):
        words = [rng.choice(sorted(FOLLOWS))]
        for _ in range(9):
            words.append(FOLLOWS[words[-1]])
        yield " ".join(words)


# Paragraphs


def write(path: Path, lines: tuple[str, ...] = LINES) -> Path:
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("name", ["news.txt", "news.txt.gz", "news.txt.xz", "news"])
def test_paragraphs_are_lines_of_plain_and_packed_files(tmp_path: Path, name: str) -> None:
    assert tuple(read_paragraphs([write(tmp_path / name)])) == LINES


def test_paragraphs_of_several_files_are_in_order(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "b.xz", LINES[:1]),
        write(tmp_path / "a.txt", LINES[1:2]),
        write(tmp_path / "c.gz", LINES[2:]),
    ]
    assert tuple(read_paragraphs(paths)) == LINES


def test_empty_lines_and_space_around_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "news.txt", ("", f"  {LINES[0]}\t", " \t ", "\u00a0", LINES[1]))
    assert list(read_paragraphs([path])) == list(LINES[:2])
    assert list(read_paragraphs([write(tmp_path / "empty.txt", ())])) == []


@pytest.mark.parametrize(
    ("mentions", "kept"),
    [(0, [0, 1, 2, 3]), (1, [0, 1, 3]), (2, [1, 3]), (3, [1, 3]), (4, [])],
)
def test_paragraphs_must_hold_enough_mentions(tmp_path: Path, mentions: int, kept: list[int]) -> None:
    """Each occurrence counts, within longer words too: Arabic joins its particles to them."""
    found = list(read_paragraphs([write(tmp_path / "news.txt")], ("قوات", "قصف"), mentions))
    assert found == [LINES[i] for i in kept]


def test_words_are_no_patterns(tmp_path: Path) -> None:
    path = write(tmp_path / "news.txt", ("a.c", "abc", "(x", "a|c"))
    assert list(read_paragraphs([path], ("a.c", "(x"), 1)) == ["a.c", "(x"]


def test_no_words_are_mentioned_nowhere(tmp_path: Path) -> None:
    assert list(read_paragraphs([write(tmp_path / "news.txt")], (), 1)) == []


def damage(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 20]) + content[middle + 20 :]


NOISE = random.Random(0).randbytes(4000).hex().encode()
BROKEN = {
    "cp1256.txt": "قوات".encode("cp1256"),
    "cp1256.txt.gz": gzip.compress("قوات".encode("cp1256")),
    "cut.txt.gz": gzip.compress(NOISE)[:-1000],
    "cut.txt.xz": lzma.compress(NOISE)[:-1000],
    "damaged.txt.gz": damage(gzip.compress(NOISE)),
    "damaged.txt.xz": damage(lzma.compress(NOISE)),
    "plain.txt.gz": NOISE,
    "plain.txt.xz": NOISE,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    found = read_paragraphs([write(tmp_path / "good.txt"), tmp_path / name])
    assert next(found) == LINES[0]
    with pytest.raises(DataError, match=rf"{name}: cannot be read as UTF-8 text: .+; plain, \.gz and \.xz files can"):
        list(found)


def test_damage_that_only_unpacking_finds(tmp_path: Path) -> None:
    """A gzip stream with an impossible block: `zlib.error`, which is no OSError."""
    path = tmp_path / "news.gz"
    path.write_bytes(gzip.compress(b"")[:10] + b"\xff" * 50)
    with pytest.raises(DataError, match=r"news\.gz: cannot be read as UTF-8 text"):
        list(read_paragraphs([path]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("none.txt", "none.gz", "none.xz"):
        with pytest.raises(DataError, match=rf"{name}: no such file; corpus lists text files, a paragraph a line"):
            list(read_paragraphs([tmp_path / name]))
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        list(read_paragraphs([tmp_path]))


# Blocks

TOKENIZER = Tokenizer.from_file(str(shipped_model() / "tokenizer.json"))
BEGIN, END = TOKENIZER.encode("").ids


def pieces(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def check_blocks(texts: list[str], block: int) -> list[list[int]]:
    """Full, framed, and together all pieces in order but those that fill no block."""
    stream = [piece for text in texts for piece in [*pieces(text), END]]
    blocks = make_blocks(texts, TOKENIZER, TextSettings(), block).tolist()
    assert all(len(b) == block and b[0] == BEGIN and b[-1] == END for b in blocks)
    inside = [piece for b in blocks for piece in b[1:-1]]
    assert inside == stream[: len(inside)]
    assert len(stream) - len(inside) < block - 2
    return blocks


@given(st.lists(st.lists(st.sampled_from(["قوات", "حلب", "مستشفى", "55", "."]), max_size=30).map(" ".join), max_size=8))
def test_blocks_lose_nothing_but_the_last_part(texts: list[str]) -> None:
    check_blocks(texts, 16)


@pytest.mark.parametrize("more", [0, 1, 13])
@pytest.mark.parametrize("whole", [1, 2])
def test_texts_that_fill_blocks_exactly(whole: int, more: int) -> None:
    text, short = (" ".join(["قوات"] * words) for words in (14 * whole + more - 1, 13))
    assert len(pieces(text)) == 14 * whole + more - 1  # … and a piece after the text
    assert len(check_blocks([text], 16)) == whole
    assert len(check_blocks([short, short, text], 16)) == 2 + whole


def test_no_text_no_blocks() -> None:
    assert make_blocks([], TOKENIZER, TextSettings(), 16).shape == (0, 16)


def test_blocks_are_of_normalised_text() -> None:
    plain, marked = "وصلت قوات إلى حلب " * 5, "وصلَتْ قـــواتٌ إلى حَلَب " * 5
    assert normalize(marked, TextSettings().normalization).text == plain
    expected = make_blocks([plain], TOKENIZER, TextSettings(), 16).tolist()
    assert len(expected) > 0
    assert make_blocks([marked], TOKENIZER, TextSettings(), 16).tolist() == expected
    assert make_blocks([marked], TOKENIZER, TextSettings(normalization=()), 16).tolist() != expected


# Training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("news") / "news.txt.xz"
    return write(path, tuple(sentences(250)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose tokenizer has a mask, described as the compact base is."""
    folder = make_random_base(sentences(50), tmp_path_factory.mktemp("base"), pieces=60, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model.resize_token_embeddings(len(tokenizer))
    model.config.hidden_dropout_prob = DROPOUT
    model.save_pretrained(folder)
    info = {"source": "registry package", "origin": "toy==1", "licence": "MIT", "versions": {"torch": "2"}}
    (folder / "base.json").write_text(json.dumps(info | {"vocab_size": len(tokenizer)}), encoding="utf-8")
    return folder


def short_run(base: Path, corpus: Path, output: Path, **changes: Any) -> PretrainConfig:
    short = {"block": 16, "batch_size": 16, "learning_rate": 1e-2, "epochs": 8, "precision": "fp32"}
    return PretrainConfig.model_validate({"base": str(base), "corpus": (corpus,), "output": output, **short} | changes)


Options = Callable[..., PretrainConfig]


@pytest.fixture
def options(base: Path, corpus: Path, tmp_path: Path) -> Options:
    """`options(…)`: the config of a short run, with any field of it changed."""
    return lambda **changes: short_run(base, corpus, tmp_path / "run").model_copy(update=changes)


@pytest.fixture(scope="module")
def pretrained(base: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that a short run made."""
    return pretrain(short_run(base, corpus, tmp_path_factory.mktemp("pretrain") / "run"))


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))


def test_pretraining_lowers_the_loss_on_held_out_text(pretrained: Path, base: Path) -> None:
    told = facts(pretrained)
    guessing = math.log(len(AutoTokenizer.from_pretrained(base)))
    unigrams = math.log(len(FOLLOWS) + 1)
    assert told["held_out_loss"] < unigrams < guessing  # it learned which words follow one another
    assert told["base"] == str(base)
    assert told["epochs"] == 8
    assert told["seconds"] > 0


def test_pieces_are_those_that_were_trained_on(pretrained: Path, corpus: Path, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base).backend_tokenizer
    blocks = list(make_blocks(read_paragraphs([corpus]), tokenizer, TextSettings(), 16))
    assert facts(pretrained)["pieces"] == 16 * (len(blocks) - HELD_OUT)


def test_a_run_leaves_the_base_alone(pretrained: Path) -> None:
    assert [p.name for p in pretrained.parent.iterdir()] == ["base"]
    assert {p.name for p in pretrained.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "pretraining.json",
        "base.json",
    }


def test_the_new_base_has_new_weights_of_the_same_encoder(pretrained: Path, base: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base, pretrained))
    assert before.keys() == after.keys()  # no head, no prefix
    assert {name: w.shape for name, w in before.items()} == {name: w.shape for name, w in after.items()}
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == set()
    assert all(weight.isfinite().all() and weight.dtype == torch.float32 for weight in after.values())
    assert (pretrained / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_new_base_keeps_its_dropout(pretrained: Path, base: Path) -> None:
    """Pre-training does without, but fine-tuning is not to."""
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, pretrained))
    assert after["hidden_dropout_prob"] == DROPOUT
    assert after["attention_probs_dropout_prob"] == before["attention_probs_dropout_prob"] > 0
    assert load_encoder(pretrained).embeddings.dropout.p == DROPOUT


def test_a_model_starts_from_the_new_base(pretrained: Path, configure: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = create_model(configure(tmp_path, f"base={pretrained}"))
    weights = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.encoder.state_dict().items())
    assert tokenizer.mask_token == "<mask>"


def test_the_new_base_tells_what_it_was_trained_on(pretrained: Path, base: Path) -> None:
    info, before = read_info(pretrained), read_info(base)
    millions, epochs = facts(pretrained)["pieces"] / 1e6, facts(pretrained)["epochs"]
    assert epochs != 1
    words = f"pre-trained further on {millions:.1f} million pieces of raw Arabic news, {epochs:g} times"
    assert info.pretraining == words
    assert info == before.model_copy(update={"path": pretrained, "pretraining": info.pretraining})
    assert describe_base(str(pretrained)) == f"{describe_base(str(base))}; {info.pretraining}"


def test_a_base_without_a_description_gets_none(options: Options, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in base.iterdir():
        if path.name != "base.json":
            (copy / path.name).symlink_to(path)
    out = pretrain(options(base=str(copy), epochs=0.1))
    assert read_info(out) is None
    assert facts(out)["base"] == str(copy)


def test_one_seed_gives_one_base(options: Options, tmp_path: Path) -> None:
    weights = [
        load_file(pretrain(options(output=tmp_path / name, seed=seed, epochs=0.3)) / "model.safetensors")
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_only_paragraphs_about_the_words_are_read(options: Options, corpus: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.txt", ("طقس جميل " * 5,) * 200)
    changed = options(corpus=(other, corpus), about=("اللواء",), mentions=2, epochs=0.1)
    assert facts(pretrain(changed))["pieces"] == facts(pretrain(options(output=tmp_path / "b", epochs=0.1)))["pieces"]


class Interrupt(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_it_stopped(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pretraining, "TrainingArguments", lambda **kwargs: TrainingArguments(**(kwargs | {"save_steps": 3}))
    )
    config = options(epochs=1)
    with monkeypatch.context() as patch:
        init = MaskedTrainer.__init__
        patch.setattr(MaskedTrainer, "__init__", lambda self, **kwargs: init(self, **kwargs, callbacks=[Interrupt()]))
        with pytest.raises(KeyboardInterrupt):
            pretrain(config)
    assert [p.name for p in (config.output / "checkpoints").iterdir()] == ["checkpoint-6"]
    steps: list[int] = []
    step = MaskedTrainer.training_step
    monkeypatch.setattr(
        MaskedTrainer, "training_step", lambda self, *args: steps.append(self.state.global_step) or step(self, *args)
    )
    out = pretrain(config)
    assert steps[0] == 6 and len(steps) > 1
    assert facts(out)["seconds"] is None
    assert not (config.output / "checkpoints").exists()


def masked_batch(model: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=1)
    blocks = list(make_blocks(sentences(20), tokenizer.backend_tokenizer, TextSettings(), 16))
    return collate([{"input_ids": block} for block in blocks])


def test_loss_is_that_of_the_whole_model(base: Path, tmp_path: Path) -> None:
    """The trainer computes logits of masked pieces alone; the model's own loss does so of all."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = pretraining._masked_model(load_encoder(base))
    batch = masked_batch(model, tokenizer)
    assert 5 < (batch["labels"] != IGNORED).sum() < batch["labels"].numel() / 2
    trainer = MaskedTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    expected = model(**batch).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outputs["logits"].shape == (int((batch["labels"] != IGNORED).sum()), len(tokenizer))
    loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5)


def test_special_pieces_are_never_masked(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = masked_batch(None, tokenizer)
    masked = set(batch["labels"][batch["labels"] != IGNORED].tolist())
    assert len(masked) > 3
    assert not masked & set(tokenizer.all_special_ids)


def test_the_head_is_new_and_the_encoder_is_the_bases(base: Path) -> None:
    encoder = load_encoder(base)
    model = pretraining._masked_model(encoder).train()
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in model.base_model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.0}
    assert encoder.embeddings.dropout.p == DROPOUT


# What it refuses


def test_an_existing_base_is_not_overwritten(options: Options, tmp_path: Path) -> None:
    (tmp_path / "run" / "base").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"run/base: there already; remove it, or give another output"):
        pretrain(options())
    assert list((tmp_path / "run" / "base").iterdir()) == []


def test_no_corpus(options: Options) -> None:
    with pytest.raises(ConfigError, match=r"corpus: no text files; give some, such as corpus=\[news\.txt\.xz\]"):
        pretrain(options(corpus=()))


def test_an_empty_corpus(options: Options, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.txt", ("", " "))
    with pytest.raises(DataError, match="the corpus gives 0 blocks of 16 pieces; more than 64 are needed"):
        pretrain(options(corpus=(empty,)))
    assert not (tmp_path / "run").exists()


def test_a_corpus_about_nothing_of_that(options: Options) -> None:
    with pytest.raises(DataError, match="the corpus gives 0 blocks"):
        pretrain(options(about=("مستشفى",), mentions=1))


def test_one_block_more_than_is_held_out_is_enough(options: Options, tmp_path: Path, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base).backend_tokenizer
    size = len(tokenizer.encode("حلب", add_special_tokens=False).ids)
    assert size == 1
    for blocks, enough in ((HELD_OUT, False), (HELD_OUT + 1, True)):
        path = write(tmp_path / f"{blocks}.txt", ("حلب " * 13,) * blocks)
        config = options(corpus=(path,), epochs=1, output=tmp_path / str(blocks))
        if enough:
            assert facts(pretrain(config))["pieces"] == 16
        else:
            with pytest.raises(DataError, match="the corpus gives 64 blocks"):
                pretrain(config)


def test_a_base_without_a_mask(options: Options, tmp_path: Path) -> None:
    folder = make_random_base(sentences(20), tmp_path / "maskless", pieces=60, layers=1)
    with pytest.raises(ModelError, match="maskless: its tokenizer has no mask token, so it cannot learn from masked"):
        pretrain(options(base=str(folder), corpus=(tmp_path / "never read.txt",)))


def test_blocks_longer_than_the_base_reads(options: Options, base: Path) -> None:
    with pytest.raises(ConfigError, match=r"block is 513, but .* reads 512 pieces at most; lower it"):
        pretrain(options(block=513))


def test_a_base_whose_head_has_several_parts() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    electra = transformers.ElectraModel(transformers.ElectraConfig(vocab_size=9, embedding_size=8, **sizes))
    with pytest.raises(ModelError, match=r"head of electra has several parts \(.*, .*\); pick a base of BERT's kind"):
        pretraining._masked_model(electra)


def test_a_base_that_transformers_has_no_head_for() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=4, patch_size=2, **sizes))
    with pytest.raises(ModelError, match="no masked-word head for vit"):
        pretraining._masked_model(vit)


def test_an_unreachable_hub_is_asked_once(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pretraining, "probe_hub", lambda name: asked.append(name) or TimeoutError("no answer"))
    with pytest.raises(ModelError, match="nobody/never-published-model: cannot be loaded from the hub"):
        pretrain(options(base="nobody/never-published-model"))
    assert asked == ["nobody/never-published-model"]


# The command


def test_the_command(base: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").write_text("block: 16\nepochs: 0.1\nprecision: fp32\n", encoding="utf-8")
    overrides = [f"base={base}", f"output={tmp_path / 'run'}", f"corpus=[{corpus}]"]
    level = logging.getLogger("rasid").level
    try:
        result = CliRunner().invoke(app, ["pretrain", str(tmp_path / "pretrain.yaml"), *overrides])
    finally:
        logging.getLogger("rasid").setLevel(level)
    assert result.exit_code == 0, result.stderr
    assert f"{tmp_path}/run/base: train with base={tmp_path}/run/base" in result.stderr
    assert facts(tmp_path / "run" / "base")["epochs"] == 0.1
