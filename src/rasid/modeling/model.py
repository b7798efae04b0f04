"""The model: one encoder pass, three heads.

Letters of the shapes: B windows, S pieces, W words, H hidden size, T IOB2 tags, K proclitic lengths, E entities of the
whole batch, P unordered pairs of entities, R relation types, D size of the relation scorer, G context heads.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from rasid.config import HeadConfig, LossConfig
from rasid.decoding import allowed_relations
from rasid.errors import ConfigError
from rasid.modeling.crf import TagTransitions
from rasid.modeling.scorers import SCORERS
from rasid.settings import MODEL_TYPE, ModelSettings

IGNORED = -100  # label of padding
BERT_KIND = ("bert", "roberta", "xlm-roberta", "camembert", "electra")  # whose layers need states and a mask alone


class RasidConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of a checkpoint: that of its encoder, the `ModelSettings`, and the sizes of the heads."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        dropout: float = 0.1,
        relation_size: int = 256,
        context_heads: int = 4,
        relation_layers: int = 0,
        crf: bool = False,
        scorer: str = "context",
        **kwargs: Any,
    ):
        self.encoder = encoder
        self.settings = settings
        self.dropout = dropout
        self.relation_size = relation_size
        self.context_heads = context_heads
        self.relation_layers = relation_layers
        self.crf = crf
        self.scorer = scorer
        super().__init__(**kwargs)

    def model_settings(self) -> ModelSettings:
        """The validated settings."""
        return ModelSettings.model_validate(self.settings)

    def heads(self) -> HeadConfig:
        """What the heads are like."""
        return HeadConfig.model_validate({name: getattr(self, name) for name in HeadConfig.model_fields})


@dataclass
class RasidOutput(ModelOutput):  # type: ignore[misc]
    """Losses are sums of negative log-likelihoods per word; see `RasidModel.forward` for the shapes."""

    loss: Tensor | None = None
    tag_logits: Tensor | None = None
    proclitic_logits: Tensor | None = None
    relation_logits: Tensor | None = None


def find_encoder(config: PreTrainedConfig) -> tuple[type[PreTrainedModel], dict[str, bool]]:
    """The encoder class of a config, and the options that leave its pooler out; KeyError if there is no such class."""
    encoder = AutoModel._model_mapping[type(config)]
    return encoder, {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(encoder).parameters else {}


def encoder_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    """The layers of an encoder of BERT's kind.

    Raises:
        ConfigError: if it is of another kind.
    """
    if (kind := encoder.config.model_type) not in BERT_KIND:
        raise ConfigError(
            f"layers of a {kind} encoder cannot be copied or left out, but those of {', '.join(BERT_KIND)} can; set "
            "heads.relation_layers to 0, and layers and feed_forward to null"
        )
    layers: nn.ModuleList = encoder.encoder.layer
    return layers


def last_layers(encoder: PreTrainedModel, number: int) -> nn.ModuleList:
    """The last layers of an encoder of BERT's kind.

    Raises:
        ConfigError: if it has fewer, or is of another kind.
    """
    if not number:
        return nn.ModuleList()
    layers = encoder_layers(encoder)
    if number > len(layers):
        raise ConfigError(f"heads.relation_layers is {number}, but the encoder has {len(layers)} layers; lower it")
    return layers[len(layers) - number :]


class RasidModel(PreTrainedModel):  # type: ignore[misc]
    """Encoder with a tag head, a proclitic head and a relation head; any Hugging Face encoder will do."""

    config_class = RasidConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RasidConfig):
        super().__init__(config)
        settings = config.model_settings()
        encoder_config = AutoConfig.for_model(**(config.encoder or {}))
        encoder_class, options = find_encoder(encoder_config)
        self.encoder = encoder_class(encoder_config, **options)
        hidden = encoder_config.hidden_size
        self.dropout = nn.Dropout(config.dropout)
        self.tag_head = nn.Linear(hidden, len(settings.ontology.tags))
        self.proclitic_head = nn.Linear(hidden, settings.max_proclitic + 1)
        shared = {id(self.encoder.config): self.encoder.config}  # so that they take its attention implementation too
        layers = copy.deepcopy(last_layers(self.encoder, config.relation_layers), shared)
        self.relation_head = SCORERS[config.scorer](config.heads(), hidden, settings.ontology, layers)
        self.transitions = TagTransitions(len(settings.ontology.tags)) if config.crf else None
        self.loss = LossConfig()
        self.allowed = allowed_relations(settings.ontology)  # no buffer: those are not restored by loading
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights as in BERT; a bias starts at the layer's `initial_bias`, if it has one."""
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.constant_(module.bias, getattr(module, "initial_bias", 0.0))
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def load_encoder(self, encoder: PreTrainedModel) -> None:
        """Take a base's weights, for the layers of the relation head too."""
        self.encoder.load_state_dict(encoder.state_dict())
        layers = last_layers(self.encoder, self.config.relation_layers)
        for own, layer in zip(self.relation_head.layers, layers, strict=True):
            own.load_state_dict(layer.state_dict())

    def model_settings(self) -> ModelSettings:
        """Those of the config, with the transition scores that the weights hold."""
        settings: ModelSettings = self.config.model_settings()
        if self.transitions is None:
            return settings
        scores = self.transitions.scores().tolist()
        return settings.model_copy(update={"transitions": tuple(map(tuple, scores))})

    def encode(
        self, input_ids: Tensor, word_pieces: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States of words, each that of its first piece: [B, W, H] to tag and [B, W, H] to relate.

        Args:
            input_ids: int64 [B, S].
            word_pieces: int64 [B, W], index of each word's piece.
            attention_mask: int64 [B, S], 1 for real pieces; None where all are.
        """
        depth = self.config.relation_layers
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=depth > 0)
        states = output.last_hidden_state  # [B, S, H]
        index = word_pieces[..., None].expand(-1, -1, states.shape[-1])
        of_words = states.gather(1, index)
        return of_words, output.hidden_states[-1 - depth].gather(1, index) if depth else of_words

    def tag(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Tag logits [B, W, T] and proclitic logits [B, W, K] of word states [B, W, H]."""
        states = self.dropout(states)
        return self.tag_head(states), self.proclitic_head(states)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_pieces: Tensor,
        tags: Tensor,
        proclitics: Tensor,
        entities: Tensor,
        pairs: Tensor,
        relations: Tensor,
        tag_targets: Tensor | None = None,
        starts: Tensor | None = None,
        **_: Any,
    ) -> RasidOutput:
        """Joint negative log-likelihood per word of a batch with its labels.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, S].
            word_pieces: int64 [B, W].
            tags: int64 [B, W], `IGNORED` on padding.
            proclitics: int64 [B, W], proclitic letters of entities' first words, `IGNORED` elsewhere.
            entities: int64 [E, 4], window, first word, last word, type.
            pairs: int64 [P, 3].
            relations: float [P, 2, R], probability that the relation holds, 1 or 0 where that is annotated; symmetric
                ones in both directions.
            tag_targets: float [B, W, T], probabilities of the tags, 0 on padding; where not given, `tags` are certain.
            starts: int64 [B, W], 1 for the first word of each paragraph; where not given, windows are paragraphs.
        """
        real = tags != IGNORED
        states, relation_states = self.encode(input_ids, word_pieces, attention_mask)
        tag_logits, proclitic_logits = self.tag(states)
        if self.transitions is not None:
            loss = self.transitions(tag_logits.float(), tags, starts, tag_targets)
        elif tag_targets is None:
            flat = tag_logits.float().flatten(0, 1)
            loss = F.cross_entropy(flat, tags.flatten(), ignore_index=IGNORED, reduction="sum")
        else:
            loss = -(tag_targets * F.log_softmax(tag_logits.float(), -1)).sum()
        loss = loss + F.cross_entropy(
            proclitic_logits.float().flatten(0, 1), proclitics.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        relation_logits = self.relation_head(
            relation_states, tags.clamp(min=0), entities[:, :3], pairs, mask=real
        ).float()
        types = entities[:, 3]
        heads = pairs[:, :2]
        tails = heads.flip(-1)
        rules = torch.from_numpy(self.allowed).to(types.device)
        allowed = rules[types[heads], types[tails]].float()  # [P, 2, R]
        bce = F.binary_cross_entropy_with_logits(relation_logits, relations, reduction="none") * allowed  # [P, 2, R]
        if self.loss.focusing:
            bce = bce * (1 - torch.exp(-bce.detach())) ** self.loss.focusing
        bce = torch.where(relations > 0.5, self.loss.positive * bce, bce)
        loss = loss + self.loss.relations * bce.sum()
        return RasidOutput(
            loss=loss / real.sum(),
            tag_logits=tag_logits,
            proclitic_logits=proclitic_logits,
            relation_logits=relation_logits,
        )
