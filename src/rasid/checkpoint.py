"""Torch checkpoints: made from a base encoder, saved, loaded, and run behind the extractor."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from rasid.base import hub_error, resolve_base
from rasid.config import RunConfig, TokenizerConfig
from rasid.decoding import Floats, Ints
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, ModelError
from rasid.inference import Extractor
from rasid.model import RasidConfig, RasidModel
from rasid.schema import Ontology
from rasid.settings import WEIGHTS_FILE, ModelSettings, read_config

logger = logging.getLogger(__name__)


def load_tokenizer(base: str | Path, config: TokenizerConfig) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a base, checked to leave Arabic letters alone.

    Raises:
        ModelError: if it cannot be loaded, or has no fast form.
        ConfigError: if it lower-cases (`BertTokenizer` does so by default, and turns أحمد into احمد on the way), or a
            special token is not in its vocabulary.
    """
    options = {} if config.do_lower_case is None else {"do_lower_case": config.do_lower_case}
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, use_fast=True, **options)
    except (OSError, ValueError) as error:
        raise hub_error(str(base), error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{base}: its tokenizer has no fast form, and offsets need one; pick a base with a tokenizer.json"
        )
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str("أحمد M4").replace("▁", " ").strip() != "أحمد M4":
        raise ConfigError(
            f"{base}: its tokenizer lower-cases and turns أحمد into احمد; set tokenizer.do_lower_case=false"
        )
    vocabulary = tokenizer.get_vocab()
    if missing := [t for t in config.special_tokens if t not in vocabulary]:
        raise ConfigError(f"tokenizer.special_tokens: {missing} are not in the vocabulary of {base}; take them out")
    if config.special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(config.special_tokens)})
    return tokenizer


def create_model(run: RunConfig) -> tuple[RasidModel, PreTrainedTokenizerFast]:
    """A model with the base's weights in its encoder and new heads, and the base's tokenizer.

    Raises:
        ModelError: if the base cannot be loaded; the message says how to pass a local one.
        ConfigError: if the ontology or the tokenizer's options do not fit.
    """
    base = resolve_base(run.base)
    tokenizer = load_tokenizer(base, run.tokenizer)
    try:
        encoder = AutoConfig.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise hub_error(run.base, error) from error
    longest = getattr(encoder, "max_position_embeddings", run.text.max_pieces)
    if run.text.max_pieces > longest:
        raise ConfigError(
            f"text.max_pieces is {run.text.max_pieces}, but {run.base} reads {longest} pieces at most; lower it"
        )
    settings = ModelSettings(ontology=Ontology.load(run.ontology), text=run.text, max_proclitic=run.max_proclitic)
    config = RasidConfig(encoder=encoder.to_dict(), settings=settings.model_dump(mode="json"), **run.heads.model_dump())
    try:
        model = RasidModel.from_pretrained(base, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise hub_error(run.base, error) from error
    return model, tokenizer


def load_checkpoint(folder: str | Path) -> RasidModel:
    """A trained model out of its folder.

    Raises:
        ModelError: if the folder is missing, of another architecture, or without safetensors weights.
    """
    read_config(folder)
    if not (Path(folder) / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS_FILE}; weights are read from safetensors only")
    model, report = RasidModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
    )
    if bad := {k: sorted(map(str, v))[:5] for k, v in report.items() if v}:
        raise ModelError(f"{folder}: the weights do not fit the config: {bad}; copy the checkpoint again")
    return model  # type: ignore[no-any-return]


def torch_extractor(model: RasidModel, encoder: TextEncoder) -> Extractor:
    """The extractor over a torch model, for evaluation in training; it leaves the model's mode as it is."""
    return Extractor(TorchBackend(model), encoder, model.config.model_settings())


def load_torch_extractor(folder: str | Path) -> Extractor:
    """The extractor of a torch checkpoint folder; raises ModelError as `load_checkpoint` does."""
    model = load_checkpoint(folder).eval()
    return torch_extractor(model, TextEncoder.load(folder, model.config.model_settings().text))


class TorchBackend:
    """Runs a torch model in float32 on its own device; see `rasid.inference.Backend`."""

    def __init__(self, model: RasidModel):
        self.model = model

    @torch.inference_mode()
    def encode(self, input_ids: Ints, word_pieces: Ints) -> tuple[Floats, Floats, Floats]:
        """See `rasid.inference.Backend`."""
        device = self.model.device
        ids, words = (torch.from_numpy(a)[None].to(device) for a in (input_ids, word_pieces))
        states = self.model.encode(ids, words)
        tags, proclitics = self.model.tag(states)
        return tags[0].cpu().numpy(), proclitics[0].cpu().numpy(), states[0].cpu().numpy()

    @torch.inference_mode()
    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        """See `rasid.inference.Backend`."""
        device = self.model.device
        where = torch.nn.functional.pad(torch.from_numpy(entities), (1, 0))  # [E, 3], all in window 0
        arrays = (torch.from_numpy(states)[None], torch.from_numpy(word_tags)[None], where, torch.from_numpy(pairs))
        logits: Floats = self.model.relation_head(*(a.to(device) for a in arrays)).cpu().numpy()
        return logits
