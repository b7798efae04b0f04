"""Torch checkpoints: made from a base encoder, saved, loaded, and run behind the extractor."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from rasid.bases.base import hub_error, probe_hub, resolve_base
from rasid.config import RunConfig, TokenizerConfig
from rasid.decoding import Floats, Ints
from rasid.encoding import TextEncoder
from rasid.errors import ConfigError, ModelError
from rasid.inference import Extractor
from rasid.modeling.dequantization import dequantize
from rasid.modeling.model import RasidConfig, RasidModel, find_encoder
from rasid.modeling.pruning import keep_layers, narrow
from rasid.schema import Ontology
from rasid.settings import ENCODER_FILE, WEIGHTS_FILE, ModelSettings, find_model, load_settings

logger = logging.getLogger(__name__)


# What encoders call the dropout of attention weights.
ATTENTION_DROPOUT = {"attention_probs_dropout_prob", "attention_dropout"}

# What the loaders of transformers raise for files that are missing, broken or of another kind.
_LOAD_ERRORS = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)


def load_tokenizer(
    base: str | Path, config: TokenizerConfig, *, local: bool = False, trained: PreTrainedConfig | None = None
) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a base or, given the config of its encoder, of a trained model.

    It is checked to leave Arabic letters alone.

    Raises:
        ModelError: if it cannot be loaded (with `local`, without asking the hub), or has no fast form.
        ConfigError: if it lower-cases (`BertTokenizer` does so by default, and turns أحمد into احمد on the way), or a
            special token is not in its vocabulary.
    """
    options = {} if config.do_lower_case is None else {"do_lower_case": config.do_lower_case}
    kind = PreTrainedTokenizerFast if trained else AutoTokenizer  # an exported model does not say which it is
    try:
        tokenizer = kind.from_pretrained(base, use_fast=True, local_files_only=local, **options)
    except _LOAD_ERRORS as error:
        raise _base_error(base, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{base}: its tokenizer has no fast form, and offsets need one; pick a base with a tokenizer.json"
        )
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str("أحمد M4").replace("▁", " ").strip() != "أحمد M4":
        remedy = "pick another base" if config.do_lower_case is False else "set tokenizer.do_lower_case=false"
        raise ConfigError(f"{base}: its tokenizer lower-cases and turns أحمد into احمد; {remedy}")
    if trained and tokenizer.pad_token is None and trained.pad_token_id is not None:  # nor what pads
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(trained.pad_token_id)
    vocabulary = tokenizer.get_vocab()
    if set(vocabulary) <= set(tokenizer.all_special_tokens):  # what transformers makes up where there are no files
        raise ModelError(f"{base}: has no tokenizer; pick a base with a tokenizer.json")
    if missing := [t for t in config.special_tokens if t not in vocabulary]:
        raise ConfigError(f"tokenizer.special_tokens: {missing} are not in the vocabulary of {base}; take them out")
    if config.special_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": list(config.special_tokens)})
    return tokenizer


def create_model(run: RunConfig) -> tuple[RasidModel, PreTrainedTokenizerFast]:
    """The model to train, with its tokenizer: that of the run's `start`, or its base under new heads.

    Raises:
        ModelError: if the base or the start cannot be loaded; the message says how to pass a local one.
        ConfigError: if the ontology, the tokenizer's options or the sizes do not fit.
    """
    settings = ModelSettings(ontology=Ontology.load(run.ontology), text=run.text, max_proclitic=run.max_proclitic)
    if run.start is not None:
        start = find_model(run.start)
        model = _start_model(run, start, settings)
        return model, load_tokenizer(start, run.tokenizer, local=True, trained=model.encoder.config)
    base = resolve_base(run.base)
    local = isinstance(base, Path) or probe_hub(base) is not None
    tokenizer = load_tokenizer(base, run.tokenizer, local=local)
    encoder = load_encoder(base, local=local)
    _prune(encoder, run)
    if (last := max(tokenizer.get_vocab().values())) >= encoder.config.vocab_size:
        raise ModelError(
            f"{run.base}: its tokenizer has a piece {last}, but its encoder only {encoder.config.vocab_size} pieces; "
            "the two belong to different models"
        )
    if (longest := longest_window(encoder)) is not None and run.text.max_pieces > longest:
        raise ConfigError(
            f"text.max_pieces is {run.text.max_pieces}, but {run.base} reads {longest} pieces at most; lower it"
        )
    described = {name: value for name, value in encoder.config.to_dict().items() if name != "_name_or_path"}
    for name in ATTENTION_DROPOUT & described.keys():
        described[name] = run.training.attention_dropout
    config = RasidConfig(encoder=described, settings=settings.model_dump(mode="json"), **run.heads.model_dump())
    model = RasidModel(config)
    model.load_encoder(encoder)
    model.loss = run.loss
    return model, tokenizer


def _start_model(run: RunConfig, start: Path, settings: ModelSettings) -> RasidModel:
    """The trained model of a folder, as large as the run says."""
    trained = load_trained(start)
    own = trained.config.model_settings()
    if (own.ontology, own.text, own.max_proclitic) != (settings.ontology, settings.text, settings.max_proclitic):
        raise ConfigError(f"start: {start} was trained with another ontology, text or max_proclitic than this run has")
    _prune(trained.encoder, run, trained.relation_head.layers)
    config = RasidConfig(
        encoder=trained.encoder.config.to_dict(), settings=settings.model_dump(mode="json"), **run.heads.model_dump()
    )
    model = RasidModel(config)
    layers = trained.relation_head.layers
    if config.relation_layers > len(layers):
        raise ConfigError(
            f"start: {start} has {len(layers)} heads.relation_layers, and the run {config.relation_layers}"
        )
    trained.relation_head.layers = layers[len(layers) - config.relation_layers :]
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"start: {start} has other sizes than this run's heads: {error}") from error
    model.loss = run.loss
    return model


def _prune(encoder: PreTrainedModel, run: RunConfig, others: Iterable[nn.Module] = ()) -> None:
    if run.layers is not None:
        keep_layers(encoder, run.layers)
    if run.feed_forward is not None:
        narrow(encoder, run.feed_forward, others)


def load_encoder(base: str | Path, *, local: bool = False) -> PreTrainedModel:
    """The encoder of a base in float32, without pooler and without the heads that it was trained with.

    Raises:
        ModelError: if it cannot be loaded (with `local`, without asking the hub), is no encoder, or lacks weights.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(base, local_files_only=local)
    except _LOAD_ERRORS as error:
        raise _base_error(base, error) from error
    if config.is_encoder_decoder:
        raise ModelError(f"{base}: {config.model_type} has a decoder too; pick a base that is an encoder alone")
    try:
        encoder_class, options = find_encoder(config)
    except KeyError as error:
        raise ModelError(f"{base}: transformers has no encoder for {config.model_type}; pick another base") from error
    try:
        encoder, report = encoder_class.from_pretrained(
            base,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=local,
            **options,
        )
    except _LOAD_ERRORS as error:
        raise _base_error(base, error) from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise ModelError(
            f"{base}: {len(missing)} weights of the encoder are missing, {', '.join(missing[:3])} among them; "
            "the base is incomplete or not what its config.json says"
        )
    return encoder


def longest_window(encoder: PreTrainedModel) -> int | None:
    """Most pieces that an encoder reads; None where its positions have no end.

    RoBERTa and its kin count positions from the padding's on, so that they read two pieces less than
    `max_position_embeddings` says.
    """
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return getattr(encoder.config, "max_position_embeddings", None)


def _base_error(base: str | Path, error: BaseException) -> ModelError:
    if isinstance(base, str):
        return hub_error(base, error)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"{base}: cannot be loaded as a base ({reason}); expected a folder with config.json, {WEIGHTS_FILE} (where it "
        "has pytorch_model.bin, load it and save_pretrained it once with transformers) and a fast tokenizer"
    )


def load_checkpoint(folder: str | Path) -> RasidModel:
    """A trained model out of its folder.

    Raises:
        ModelError: if the folder is missing, of another architecture, or without sound safetensors weights.
    """
    load_settings(folder)
    if not (Path(folder) / WEIGHTS_FILE).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS_FILE}; weights are read from safetensors only")
    try:
        model, report = RasidModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, local_files_only=True
        )
    except _LOAD_ERRORS as error:
        raise ModelError(f"{folder}: weights that cannot be read or do not fit the config: {error}") from error
    if bad := {k: sorted(map(str, v))[:5] for k, v in report.items() if v}:
        raise ModelError(f"{folder}: the weights do not fit the config: {bad}; copy the checkpoint again")
    return model  # type: ignore[no-any-return]


def load_trained(folder: str | Path) -> RasidModel:
    """A trained model out of its torch folder, or out of an exported one, whose weights are coarser.

    Raises:
        ModelError: as `load_checkpoint` and `dequantize` do.
    """
    exported = (Path(folder) / ENCODER_FILE).is_file() and not (Path(folder) / WEIGHTS_FILE).is_file()
    return dequantize(folder) if exported else load_checkpoint(folder)


def torch_extractor(model: RasidModel, encoder: TextEncoder) -> Extractor:
    """The extractor over a torch model, for evaluation in training; it leaves the model's mode as it is."""
    return Extractor(TorchBackend(model), encoder, model.model_settings())


def load_torch_extractor(folder: str | Path) -> Extractor:
    """The extractor of a trained model in torch; raises ModelError as `load_trained` does."""
    model = load_trained(folder).eval()
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
        states, relation_states = self.model.encode(ids, words)
        tags, proclitics = self.model.tag(states)
        return tags[0].cpu().numpy(), proclitics[0].cpu().numpy(), relation_states[0].cpu().numpy()

    @torch.inference_mode()
    def relate(self, states: Floats, word_tags: Ints, entities: Ints, pairs: Ints) -> Floats:
        """See `rasid.inference.Backend`."""
        device = self.model.device
        where = torch.nn.functional.pad(torch.from_numpy(entities), (1, 0))  # [E, 3], all in window 0
        arrays = (torch.from_numpy(states)[None], torch.from_numpy(word_tags)[None], where, torch.from_numpy(pairs))
        logits: Floats = self.model.relation_head(*(a.to(device) for a in arrays)).cpu().numpy()
        return logits
