from pathlib import Path

import pytest

from rasid.config import PretrainConfig, RunConfig, load_config, read_config
from rasid.errors import ConfigError
from rasid.schema import Ontology

ROOT = Path(__file__).parents[1]
PRETRAIN = ROOT / "configs" / "pretrain.yaml"
CONFIGS = sorted({*(ROOT / "configs").glob("*.yaml")} - {PRETRAIN})
DEBUG = ROOT / "configs" / "debug.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_loads(path: Path) -> None:
    config = load_config(path)
    assert config.name.startswith("rasid-")
    assert Ontology.load(ROOT / config.ontology).entity_types
    assert not config.output.is_absolute()


def test_there_are_shipped_configs() -> None:
    assert {"arabert", "compact", "debug"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_resolved_config_loads_to_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["training.encoder_learning_rate=2e-5", "data.test=null", "name='yes'"])
    again = write(tmp_path, config.to_yaml())
    assert load_config(again) == config
    assert load_config(again).to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("bass: random", "bass", "base"),
        ("training: {epoch: 3}", "training.epoch", "epochs"),
        ("data: {trian: [a.jsonl]}", "data.trian", "train"),
        ("text: {max_piece: 64}", "text.max_piece", "max_pieces"),
        ("heads: {relation_sizes: 64}", "heads.relation_sizes", "relation_size"),
    ],
)
def test_misspelt_key_names_file_key_and_nearest(tmp_path: Path, text: str, key: str, near: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(error.value) == f"{path}: unknown key {key}; did you mean {near}?"


def test_misspelt_key_of_an_override() -> None:
    with pytest.raises(ConfigError, match=r"debug\.yaml: unknown key training\.batchsize; did you mean batch_size\?"):
        load_config(DEBUG, ["training.batchsize=4"])


def test_key_like_no_other_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key export\.qqq; known keys: max_drop"):
        load_config(DEBUG, ["export.qqq=4"])


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: some\ntraining: {epochs: 0, warmup: 1}\nnmae: x\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=0",
        "training.epochs=.inf",
        "training.epochs=.nan",
        "training.epochs=many",
        "training.epochs=[1]",
        "training.batch_size=1.5",
        "training.encoder_learning_rate=-1e-4",
        "training.warmup=1",
        "training.patience=0",
        "training.layer_decay=0",
        "training.layer_decay=1.1",
        "training.average=0",
        "training.attention_dropout=1",
        "training.precision=fp16",
        "training=3",
        "heads.dropout=1",
        "heads.relation_layers=-1",
        "heads.relation_size=30",  # no multiple of context_heads
        "max_proclitic=-1",
        "text.normalization=[lowercase]",
        "text.overlap=200",
        "text.max_pieces=8",
        "export.max_drop=0",
        "data.train=x.jsonl",
        "data.dev=null",
        "seed=1.5",
        "tokenizer.do_lower_case=perhaps",
    ],
)
def test_bad_value_names_its_key(override: str) -> None:
    key = override.split("=")[0]
    with pytest.raises(ConfigError) as error:
        load_config(DEBUG, [override])
    assert str(error.value).startswith(f"{DEBUG}: {key.rsplit('.', 1)[0]}")


def test_a_list_is_asked_for_in_words() -> None:
    with pytest.raises(ConfigError, match=r"data\.train: expected a list, such as data\.train=\[a,b\]"):
        load_config(DEBUG, ["data.train=x.jsonl"])


def test_overrides() -> None:
    config = load_config(
        DEBUG,
        [
            "training.encoder_learning_rate=2e-5",
            "training.head_learning_rate=1E-3",
            "training.epochs=3",
            "data.train=[a.jsonl,b c.jsonl]",
            "data.test=null",
            "tokenizer.special_tokens=['[رابط]','[بريد]']",
            "tokenizer.do_lower_case=false",
            "text.normalization=[]",
            "output=runs/x=y",
        ],
    )
    assert config.training.encoder_learning_rate == 2e-5
    assert isinstance(config.training.encoder_learning_rate, float)
    assert config.training.head_learning_rate == 1e-3
    assert config.training.epochs == 3
    assert config.data.train == (Path("a.jsonl"), Path("b c.jsonl"))
    assert config.data.test is None
    assert config.data.dev == Path("data/dev.jsonl")
    assert config.tokenizer.special_tokens == ("[رابط]", "[بريد]")
    assert config.tokenizer.do_lower_case is False
    assert config.text.normalization == ()
    assert config.output == Path("runs/x=y")
    assert config.base == "random"  # from the file
    assert config.training.batch_size == 16


def test_exponents_in_a_file_are_numbers(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "training: {encoder_learning_rate: 2e-5, weight_decay: 1e-2}"))
    assert config.training.encoder_learning_rate == 2e-5
    assert config.training.weight_decay == 0.01


def test_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


def test_config_of_pretraining() -> None:
    config = read_config(PRETRAIN, PretrainConfig, ["corpus=[a.txt.xz,b.txt]", "epochs=0.5", "learning_rate=1e-4"])
    assert config.corpus == (Path("a.txt.xz"), Path("b.txt"))
    assert (config.epochs, config.learning_rate) == (0.5, 1e-4)
    assert (config.mentions, config.block) == (0, 256) and "قصف" in config.about
    assert read_config(PRETRAIN, PretrainConfig).corpus == ()  # for the user to give


def test_misspelt_key_of_pretraining_is_told_from_its_own_keys() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.yaml: unknown key mask; did you mean masked\?"):
        read_config(PRETRAIN, PretrainConfig, ["mask=0.2"])
    with pytest.raises(ConfigError, match=r"unknown key text\.overlaps; did you mean overlap\?"):
        read_config(PRETRAIN, PretrainConfig, ["text.overlaps=8"])
    with pytest.raises(ConfigError, match=r"unknown key zzz; known keys: corpus, about, mentions, base, output"):
        read_config(PRETRAIN, PretrainConfig, ["zzz=1"])


def test_a_config_of_one_kind_is_not_one_of_another() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.yaml: unknown key block"):
        load_config(PRETRAIN)
    with pytest.raises(ConfigError, match=r"debug\.yaml: unknown key training"):
        read_config(DEBUG, PretrainConfig)


@pytest.mark.parametrize(
    "override", ["masked=0", "masked=1", "block=8", "mentions=-1", "epochs=0", "corpus=a.txt", "precision=fp16"]
)
def test_bad_value_of_pretraining_names_its_key(override: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config(PRETRAIN, PretrainConfig, [override])
    assert str(error.value).startswith(f"{PRETRAIN}: {override.split('=')[0]}: ")


def test_override_without_a_value() -> None:
    with pytest.raises(ConfigError, match=r"override 'training\.epochs': expected key=value"):
        load_config(DEBUG, ["training.epochs"])


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"configs/none\.yaml: no such config; .*configs/"):
        load_config("configs/none.yaml")


@pytest.mark.parametrize("text", ["a: [1", "- base\n- random\n", "name: ${nothing}\n", "just words\n", "\x00"])
def test_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("name: راصد".encode("cp1256"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(path)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(tmp_path)


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 1  # type: ignore[misc]
