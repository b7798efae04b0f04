"""What a checkpoint says about itself beyond its weights: ontology, text handling and decoding."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from rasid.errors import ModelError, describe
from rasid.schema import Ontology
from rasid.text import NORMALIZATION_STEPS

MODEL_TYPE = "rasid"
CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
ENCODER_FILE = "encoder.onnx"
RELATIONS_FILE = "relations.onnx"
WEIGHTS_FILE = "model.safetensors"
SHIPPED_MODELS = ("rasid-compact", "rasid-compact-6")

DEFAULT_NORMALIZATION = ("format_marks", "diacritics", "tatweel", "digits", "quotes")


Probability = Annotated[float, Field(gt=0, lt=1)]


class TextSettings(BaseModel):
    """How text becomes windows of pieces.

    Attributes:
        normalization: Steps of `rasid.text.NORMALIZATION_STEPS`, applied before the tokenizer.
        max_pieces: Longest window in pieces, special tokens included.
        overlap: Pieces that two windows over one long paragraph share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    normalization: tuple[str, ...] = DEFAULT_NORMALIZATION
    max_pieces: Annotated[int, Field(ge=16)] = 256
    overlap: Annotated[int, Field(ge=0)] = 64

    @field_validator("normalization")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(NORMALIZATION_STEPS)):
            raise ValueError(f"unknown steps {unknown}; known: {list(NORMALIZATION_STEPS)}")
        return value

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap > self.max_pieces // 2:
            raise ValueError(f"overlap {self.overlap} is more than half of max_pieces {self.max_pieces}")
        return self


class ModelSettings(BaseModel):
    """All that turns text into arrays and arrays into records; stored in the checkpoint's `config.json`.

    Attributes:
        ontology: Types that the model knows; their order is that of its outputs.
        text: How text becomes windows.
        max_proclitic: Most proclitic letters that can be cut off an entity's first word.
        entity_bias: Logit added to the tags of an entity type, where it is not 0; it corrects for texts that hold more
            or less of the type than the training corpus (Menon et al. 2021, https://arxiv.org/abs/2007.07314).
        relation_threshold: Lowest score at which a relation is reported.
        relation_thresholds: The same for single relation types, where it differs.
        transitions: Scores [T + 1][T] of one tag after another, the last row for the start of a paragraph, in the order
            of `Ontology.tags`; none if the tags of words are independent of each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ontology: Ontology
    text: TextSettings = TextSettings()
    max_proclitic: Annotated[int, Field(ge=0, le=8)] = 2
    entity_bias: dict[str, FiniteFloat] = {}
    relation_threshold: Probability = 0.5
    relation_thresholds: dict[str, Probability] = {}
    transitions: tuple[tuple[FiniteFloat, ...], ...] | None = None

    @model_validator(mode="after")
    def _types_known(self) -> Self:
        if unknown := sorted(set(self.entity_bias) - set(self.ontology.entity_types)):
            raise ValueError(f"entity_bias of unknown entities {unknown}")
        if unknown := sorted(set(self.relation_thresholds) - set(self.ontology.relation_types)):
            raise ValueError(f"relation_thresholds of unknown relations {unknown}")
        return self

    @model_validator(mode="after")
    def _transitions_fit(self) -> Self:
        tags = len(self.ontology.tags)
        if self.transitions is not None and [len(row) for row in self.transitions] != [tags] * (tags + 1):
            raise ValueError(f"transitions must be {tags + 1} rows of {tags} scores")
        return self

    @property
    def tag_bias(self) -> tuple[float, ...]:
        """What is added to the logit of each tag, in the order of `Ontology.tags`."""
        return (0.0, *(self.entity_bias.get(name, 0.0) for name in self.ontology.entity_types for _ in "BI"))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Lowest score of each relation type, in the order of the ontology."""
        own = self.relation_thresholds
        return tuple(own.get(name, self.relation_threshold) for name in self.ontology.relation_names)


def read_config(model: str | Path) -> dict[str, Any]:
    """The `config.json` of a Rasid checkpoint.

    Raises:
        ModelError: if the folder or file is missing or unreadable, or the checkpoint is of another architecture.
    """
    path = Path(model) / CONFIG_FILE
    if not Path(model).is_dir():
        raise ModelError(
            f"{model}: no such model folder; give one made by `rasid train`, or leave the model out for the shipped one"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{model}: no {CONFIG_FILE} in this folder, so it is not a checkpoint; of a run, give the onnx folder in it"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; copy the checkpoint again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); copy the checkpoint again") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MODEL_TYPE:
        raise ModelError(
            f"{model}: a checkpoint of another architecture: model_type is {found!r}, expected {MODEL_TYPE!r}. "
            f"To fine-tune it: rasid train configs/arabert.yaml base={model}"
        )
    return config  # type: ignore[no-any-return]


def load_settings(model: str | Path) -> ModelSettings:
    """The settings of a checkpoint folder.

    Raises:
        ModelError: if the folder is not a Rasid checkpoint or its settings are invalid.
    """
    try:
        return ModelSettings.model_validate(read_config(model).get("settings"))
    except ValidationError as error:
        raise ModelError(
            f"{Path(model) / CONFIG_FILE}: invalid settings: {describe(error)}; copy the checkpoint again"
        ) from error


def find_model(model: str | Path | None = None) -> Path:
    """The folder of a model: the given one, or the one of that name which comes with the package.

    Args:
        model: A folder, or a name of `SHIPPED_MODELS`; the first of those by default.
    """
    if str(model) in SHIPPED_MODELS and not Path(str(model)).exists():
        return shipped_model(str(model))
    return shipped_model() if model is None else Path(model)


def shipped_model(name: str = SHIPPED_MODELS[0]) -> Path:
    """The folder of a model that comes with the package: inside it when installed, beside `src` in a checkout.

    Raises:
        ModelError: if it is not there.
    """
    here = Path(__file__).resolve()
    for root in (here.parent, here.parents[2]):
        if (folder := root / "models" / name).is_dir():
            return folder
    raise ModelError(f"the model {name} is missing from this installation; install rasid again or pass --model FOLDER")
