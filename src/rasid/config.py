"""Run configs: typed, with defaults, read from YAML with `key=value` overrides.

A config file holds only what differs from the defaults.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from yaml import YAMLError

from rasid.errors import ConfigError
from rasid.settings import TextSettings

Positive = Annotated[float, Field(gt=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """Corpora, JSONL. Relative paths count from the working directory."""

    train: tuple[Path, ...] = (Path("data/train.jsonl"),)
    dev: Path = Path("data/dev.jsonl")
    test: Path | None = Path("data/test.jsonl")


class TokenizerConfig(_Section):
    """Options of the base's tokenizer.

    Attributes:
        do_lower_case: Passed on where given; `BertTokenizer` needs `false` to leave Arabic letters alone.
        special_tokens: Tokens of its vocabulary that are never split, such as AraBERT's placeholders.
    """

    do_lower_case: bool | None = None
    special_tokens: tuple[str, ...] = ()


class HeadConfig(_Section):
    """The heads.

    Attributes:
        dropout: Of what the heads read.
        crf: Whether the tags of a paragraph are scored as a sequence; see `rasid.modeling.crf`.
        scorer: How pairs of entities are scored: from their ends and the context between them, from their ends by a
            bilinear form, or from markers in the text, which takes `relation_layers`; see `rasid.modeling.scorers`.
        relation_size: Of the scorer.
        context_heads: Means that the `context` scorer takes of the words between two entities.
        relation_layers: Layers of its own that the relation head has on top of the encoder's lower ones.
    """

    dropout: Ratio = 0.1
    crf: bool = False
    scorer: Literal["context", "biaffine", "markers"] = "context"
    relation_size: Annotated[int, Field(ge=4)] = 256
    context_heads: Annotated[int, Field(ge=1)] = 4
    relation_layers: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.scorer == "markers" and not self.relation_layers:
            raise ValueError("the markers scorer takes relation_layers of 1 or more, in which markers see the words")
        if self.relation_size % self.context_heads:
            raise ValueError(f"relation_size {self.relation_size} is no multiple of context_heads {self.context_heads}")
        return self


class AugmentationConfig(_Section):
    """Changed copies of the training articles; see `rasid.training.augmentation`.

    Attributes:
        copies: Of each article, beside the article itself.
        swap: Share of the names in a copy that another name of their kind replaces.
        noise: Share of the letters in a copy that are misspelt, of those that often are (hamza, final ya, ta marbuta).
    """

    copies: Annotated[int, Field(ge=0)] = 0
    swap: Annotated[float, Field(ge=0, le=1)] = 0.3
    noise: Annotated[float, Field(ge=0, le=1)] = 0.1


class LossConfig(_Section):
    """What the loss weighs.

    Attributes:
        relations: Weight of the relations' part against that of the tags.
        positive: Weight of a pair that has a relation against one that has not.
        focusing: Power of focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002): the larger, the more the hard
            pairs among the many without a relation count; 0 for none.
        r_drop: Weight of the divergence between two passes under dropout (Wu et al. 2021,
            https://arxiv.org/abs/2106.14448), which double the time; 0 for one pass.
        adversarial: Length of the change of a window's word embeddings that raises the loss most, under which it is
            learned once more (Miyato et al. 2017, https://arxiv.org/abs/1605.07725), in double the time; 0 for none.
    """

    relations: Positive = 1.0
    positive: Positive = 1.0
    focusing: Annotated[float, Field(ge=0)] = 0.0
    r_drop: Annotated[float, Field(ge=0)] = 0.0
    adversarial: Annotated[float, Field(ge=0)] = 0.0


# fmt: off
CONFLICT_WORDS = (
    "قوات", "الجيش", "مسلح", "قصف", "اشتباك", "غارة", "غارات", "معبر", "ميليشيا", "كتائب", "صاروخ", "صواريخ",
    "الحوثي", "داعش", "قسد", "طائرات", "عسكري", "مقاتل", "قتيل", "هجوم", "الاحتلال", "فصائل", "جندي", "جنود",
    "دبابات", "لواء", "ثكنة", "حاجز", "قاعدة",
)
# fmt: on
"""Words, and beginnings of words, of which Arabic news about armed conflict has several in a paragraph."""


class RawTextConfig(_Section):
    """Raw text without annotation.

    Attributes:
        corpus: Text files, a paragraph a line; plain, `.gz` or `.xz`.
        about: Words that tell what a paragraph is about; no others than those that hold `mentions` of them are read.
        mentions: Fewest words of `about` in a paragraph; with 0, all paragraphs are read.
    """

    corpus: tuple[Path, ...] = ()
    about: tuple[str, ...] = CONFLICT_WORDS
    mentions: Annotated[int, Field(ge=0)] = 0


class DistillationConfig(RawTextConfig):
    """What the model learns from other models, its teachers, beside the annotation; see `rasid.training.distillation`.

    Attributes:
        teachers: Exported models, several seeds of one base for example; none for plain training.
        weight: Share of what the teachers say in the targets of annotated text; raw text has nothing else.
        paragraphs: Most paragraphs of raw text to learn from, drawn at random.
        longest: Most characters of such a paragraph, since in long ones little is about what `about` says.
        corpus, about, mentions: Raw text that the teachers read, as in `RawTextConfig`.
    """

    teachers: tuple[Path, ...] = ()
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    paragraphs: Annotated[int, Field(ge=1)] = 2400
    longest: Annotated[int, Field(ge=1)] = 1000

    @model_validator(mode="after")
    def _raw_text_has_teachers(self) -> Self:
        if self.corpus and not self.teachers:
            raise ValueError("corpus is raw text, which nobody annotates: give teachers too")
        return self


class TrainingConfig(_Section):
    """Optimisation.

    Attributes:
        epochs: Passes over the training corpus.
        batch_size: Windows per step and device.
        encoder_learning_rate: Peak learning rate of the encoder.
        head_learning_rate: Peak learning rate of the heads.
        layer_decay: Factor of the encoder's learning rate from one layer to the next lower one.
        average: Epochs, best and last ones, whose mean weights are taken if they are better on dev than the best one.
        weight_decay: AdamW's, for matrices only.
        warmup: Share of the steps with a rising learning rate; a cosine falls over the rest.
        clip: Largest gradient norm.
        attention_dropout: Dropout of attention weights, which costs much time on a CPU.
        patience: Evaluations on dev without a better one before training stops.
        precision: `auto` takes bfloat16 where the processor or GPU computes in it.
        workers: Processes that prepare batches.
    """

    epochs: Positive = 10
    batch_size: Annotated[int, Field(ge=1)] = 8
    encoder_learning_rate: Positive = 1.2e-4
    head_learning_rate: Positive = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    average: Annotated[int, Field(ge=1)] = 1
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Ratio = 0.1
    clip: Positive = 1.0
    attention_dropout: Ratio = 0.0
    patience: Annotated[int, Field(ge=1)] = 4
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 0


class ExportConfig(_Section):
    """Export.

    Attributes:
        max_drop: Most that strict dev F1 of entities or of relations may fall by quantisation, in points of 100.
    """

    max_drop: Positive = 0.5


class RunConfig(_Section):
    """One training run.

    Attributes:
        name: Name of the model, on its card.
        base: `compact`, `random` (small and untrained, to try a run out), a hub id, or a local checkpoint folder.
        start: Trained model to start from, heads included, in place of the base: a torch checkpoint, an exported model,
            or the name of a shipped one.
        layers: Layers of the encoder to keep, evenly spaced; all by default.
        feed_forward: Units to keep in the feed-forward part of each layer; all by default.
        output: Folder of the run.
        ontology: YAML file of types.
        seed: Of initialisation, order and dropout.
        max_proclitic: Most proclitic letters cut off an entity's first word.
    """

    name: str = "rasid"
    base: str = "compact"
    start: Path | None = None
    layers: Annotated[int, Field(ge=1)] | None = None
    feed_forward: Annotated[int, Field(ge=1)] | None = None
    output: Path = Path("runs/compact")
    ontology: Path = Path("data/ontology.yaml")
    seed: int = 13
    max_proclitic: Annotated[int, Field(ge=0, le=8)] = 2
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    text: TextSettings = TextSettings()
    heads: HeadConfig = HeadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig = DistillationConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()

    def to_yaml(self) -> str:
        """The whole config, defaults included."""
        return str(OmegaConf.to_yaml(OmegaConf.create(self.model_dump(mode="json"))))


class PretrainConfig(RawTextConfig):
    """Continued pre-training of a base on raw text, by masked words.

    Attributes:
        base: As in `RunConfig`.
        output: Folder of the run; the new base is `OUTPUT/base`.
        corpus, about, mentions: What to read, as in `RawTextConfig`.
        text: How the fine-tuned model will see text.
        block: Pieces per training sequence.
        masked: Share of the pieces that are masked.
        seed: Of the order, the masks and the new prediction head.
        epochs, batch_size, learning_rate, weight_decay, warmup, precision, workers: As in `TrainingConfig`.
    """

    base: str = "compact"
    output: Path = Path("runs/pretrain")
    text: TextSettings = TextSettings()
    block: Annotated[int, Field(ge=16)] = 128
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: int = 13
    epochs: Positive = 1
    batch_size: Annotated[int, Field(ge=1)] = 32
    learning_rate: Positive = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Ratio = 0.06
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: Annotated[int, Field(ge=0)] = 0


Config = TypeVar("Config", bound=BaseModel)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run config; see `read_config`."""
    return read_config(path, RunConfig, overrides)


def read_config(path: str | Path, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a config of some kind.

    Args:
        path: YAML file.
        kind: The class that it is one of.
        overrides: `key=value` with dotted keys, such as `training.epochs=3` or `data.train=[a.jsonl,b.jsonl]`.

    Raises:
        ConfigError: for a missing or broken file, an unknown key (with the nearest known one) or a bad value.
    """
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config; those of this project are in configs/") from error
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"{path}: expected a mapping of keys to values, such as base: compact")
    if bad := [o for o in overrides if "=" not in o]:
        raise ConfigError(f"override {bad[0]!r}: expected key=value, such as training.epochs=3")
    try:
        merged = OmegaConf.to_container(OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides))), resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path} with {list(overrides)}: {error}") from error
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        problems = [_problem(kind, e["loc"], e["type"], e["msg"]) for e in error.errors()]
        raise ConfigError("\n".join(f"{path}: {p}" for p in problems)) from error


def _problem(config: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in loc)
    if kind == "tuple_type":
        return f"{key}: expected a list, such as {key}=[a,b]"
    if kind != "extra_forbidden":
        return f"{key}: {message}"
    from difflib import get_close_matches

    section = config
    for part in loc[:-1]:
        section = section.model_fields[str(part)].annotation  # type: ignore[assignment]
    known = list(section.model_fields)
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"unknown key {key}; " + (f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}")
