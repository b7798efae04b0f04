"""Cutting a Unigram vocabulary, and the embedding with it, to Arabic.

Dropping pieces changes no segmentation that uses kept pieces alone: their scores stay, so the best one stays best.
That holds for words in standard Arabic letters, digits and punctuation; longer Latin words are cut into more pieces,
and letters of other scripts become unknown.
"""

import json
import unicodedata
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel

from rasid.errors import ModelError

SPECIAL = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
# Beyond the block of standard Arabic: superscript alef, and the letters of names from Iran, Kurdistan and the Maghreb.
_ARABIC_EXTRA = frozenset("\u0670\u067e\u0686\u06a4\u06a9\u06af\u06cc")
_LONGEST_LATIN = 3  # enough for M4 or T-72; longer words are spelt with these
Keep = Callable[[str], bool]


def keeps(piece: str) -> bool:
    """Whether the compact vocabulary has a piece: Arabic letters, digits, punctuation, Latin up to three characters."""
    text = piece.replace("▁", "")
    if not all(_keeps_character(c) for c in text):
        return False
    return len(text) <= _LONGEST_LATIN or not any(c.isascii() and c.isalpha() for c in text)


def _keeps_character(c: str) -> bool:
    if " " <= c <= "~" or "\u0600" <= c <= "\u066d" or c in _ARABIC_EXTRA:
        return True
    return c < "\u2100" and unicodedata.category(c)[0] in "PSZ"


def kept_ids(pieces: Sequence[str], special: Collection[int], keep: Keep = keeps) -> list[int]:
    """List the ids of the special pieces and of those that `keep` accepts, ascending; positions are the new ids."""
    return [i for i, piece in enumerate(pieces) if i in special or keep(piece)]


def trim_tokenizer(tokenizer: Tokenizer, keep: Keep = keeps) -> tuple[Tokenizer, list[int]]:
    """Cut a tokenizer's Unigram vocabulary; returns the new tokenizer, and the kept old ids in their new order.

    Raises:
        ModelError: if it is no Unigram tokenizer or lacks a special piece.
    """
    spec: dict[str, Any] = json.loads(tokenizer.to_str())
    model = spec["model"]
    if model.get("type") != "Unigram":
        raise ModelError(
            f"expected a Unigram tokenizer, found {model.get('type')}; give multilingual-e5-small or its like"
        )
    scores: list[float] = [score for _, score in model["vocab"]]
    pieces: list[str] = [piece for piece, _ in model["vocab"]]
    beyond = sorted((t["id"], t["content"]) for t in spec["added_tokens"] if t["id"] >= len(pieces))
    if [i for i, _ in beyond] != list(range(len(pieces), len(pieces) + len(beyond))):
        raise ModelError(f"expected added tokens to follow the vocabulary of {len(pieces)} pieces, found {beyond[:5]}")
    pieces += [content for _, content in beyond]
    scores += [0.0] * len(beyond)
    added = {t["id"] for t in spec["added_tokens"]} | {i for i, piece in enumerate(pieces) if piece in SPECIAL.values()}
    if missing := sorted(set(SPECIAL.values()) - {pieces[i] for i in added}):
        raise ModelError(
            f"expected the special pieces {sorted(set(SPECIAL.values()))}, found none of {missing}; give another source"
        )

    kept = kept_ids(pieces, added, keep)
    new = {old: i for i, old in enumerate(kept)}
    model["vocab"] = [[pieces[i], scores[i]] for i in kept]
    model["unk_id"] = kept.index(pieces.index(SPECIAL["unk_token"]))
    spec["added_tokens"] = [{**t, "id": new[t["id"]]} for t in spec["added_tokens"]]
    frame = spec["post_processor"] or {}
    if frame.get("type") == "TemplateProcessing":
        for token in frame["special_tokens"].values():
            token["ids"] = [new[i] for i in token["ids"]]
    for end in ("sep", "cls"):  # of the two fixed frames, BERT's and RoBERTa's
        if end in frame:
            frame[end][1] = new[frame[end][1]]
    spec["truncation"] = spec["padding"] = None
    return Tokenizer.from_str(json.dumps(spec)), kept


def trim(model: PreTrainedModel, tokenizer: Tokenizer, keep: Keep = keeps) -> Tokenizer:
    """Cut the model's vocabulary in place; returns the tokenizer for it.

    Raises:
        ModelError: if the tokenizer cannot be trimmed, or has more pieces than the embedding [V, H] has rows.
    """
    trimmed, kept = trim_tokenizer(tokenizer, keep)
    rows = model.get_input_embeddings().weight.detach()  # [V, H]
    if kept[-1] >= len(rows):
        raise ModelError(
            f"expected an embedding row for piece {kept[-1]}, found {len(rows)} rows; the tokenizer is of another model"
        )
    pad = trimmed.token_to_id(SPECIAL["pad_token"])
    embedding = nn.Embedding(len(kept), rows.shape[1], padding_idx=pad)
    with torch.no_grad():
        embedding.weight.copy_(rows[torch.tensor(kept)])  # [kept, H]
    model.set_input_embeddings(embedding)
    model.config.vocab_size = len(kept)
    model.config.pad_token_id = pad
    # A class name of the untrimmed tokenizer would have AutoTokenizer rebuild it otherwise than `tokenizer.json` says.
    vars(model.config).pop("tokenizer_class", None)
    return trimmed
